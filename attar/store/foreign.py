"""Answers in tokens of a teacher's own: where there are any, and the student's nearest to each."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attar.errors import StoreError
from attar.heads import Foreign
from attar.store.files import publish
from attar.types import Knowledge

KNOWN, NEAREST = "its tokens end here", "nearest.npy"
"""What is kept of each place beside its answers; and the file that is the same for all rows."""


def apart(knowledge: Knowledge, folder: Path) -> Knowledge:
    """Knowledge whose logits are an ordinary part, beside one of where they are known."""
    said = knowledge.logits
    if not isinstance(said, Foreign):
        return knowledge
    if not (folder / NEAREST).is_file():
        file = BytesIO()
        np.save(file, said.nearest().numpy())
        publish(folder / NEAREST, file.getvalue())
    known = said.known[..., None].float()
    return replace(knowledge, logits=said.logits, features={**knowledge.features, KNOWN: known})


def joined(knowledge: Knowledge, folder: Path) -> Knowledge:
    """The same as it was before `apart`."""
    if KNOWN not in knowledge.features:
        return knowledge
    known = knowledge.features[KNOWN][..., 0] > 0.5
    others = {path: each for path, each in knowledge.features.items() if path != KNOWN}
    said = Foreign(knowledge.logits, known, partial(_nearest, folder / NEAREST))
    return replace(knowledge, logits=said, features=others)


def _nearest(path: Path) -> Tensor:
    """The student's token nearest to each of the teacher's, as the file says."""
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False))
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path} can't be read ({error}): delete its folder and ask the teacher again"
        ) from error
