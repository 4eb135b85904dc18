"""What every test shares: no network, one seed, one thread."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers and the same number of threads for each test."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
