"""Numbers of the oldest losses over layers, by hand and by NumPy; and that every loss has one."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_losses import ROOM, title
from torch import Tensor

from attar.losses import attention, feature

Array = np.ndarray
Loss = Callable[..., Tensor]

BY_HAND = [
    (feature.mse, torch.zeros(1, 1, 2), torch.tensor([[[1.0, 3.0]]]), 5.0),
    (feature.cosine, torch.tensor([[0.0, 2.0]]), torch.tensor([[5.0, 0.0]]), 1.0),
    (attention.mse, torch.full((1, 1, 2, 2), 0.5), torch.eye(2)[None, None], 0.25),
    (attention.mse, torch.full((1, 1, 2, 2), -100.0), 3 * torch.eye(2)[None, None], 4.5),
    (
        attention.kl,
        torch.tensor([[[[0.75, 0.25], [0.5, 0.5]]]]),
        torch.full((1, 1, 2, 2), 0.5),
        math.log(4 / 3) / 4,
    ),
]


@pytest.mark.parametrize("name", ROOM)
def test_every_loss_has_a_number_of_its_own(name: str) -> None:
    files = Path(__file__).parent.glob("test_*_numbers.py")
    assert any(re.search(rf"\b{re.escape(name)}\b", file.read_text("utf-8")) for file in files)


@pytest.mark.parametrize(
    ("loss", "student", "teacher", "expected"), BY_HAND, ids=[title(row[0]) for row in BY_HAND]
)
def test_a_loss_is_the_number_worked_out_by_hand(
    loss: Any, student: Tensor, teacher: Tensor, expected: float
) -> None:
    assert loss(student, teacher).item() == pytest.approx(expected, abs=1e-6)


def test_minilm_v2_by_hand() -> None:
    student = torch.tensor([[[math.sqrt(math.log(3))], [0.0]]])  # relates 3 to 1, then 1 to 1
    loss = attention.minilm_v2(student, torch.zeros(1, 2, 1), heads=1)
    assert loss.item() == pytest.approx(math.log(4 / 3) / 4, abs=1e-6)


# The references: plain sums over plain numbers, each from its paper's formula


def soft(scores: Array) -> Array:
    powers = np.array([math.exp(score) for score in scores])
    return powers / powers.sum()


def divergence(p: Array, q: Array) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def squares(s: Array, t: Array) -> float:
    return float(np.mean([(a - b) ** 2 for a, b in zip(s.flat, t.flat, strict=True)]))


def angles(s: Array, t: Array) -> float:
    lengths = [math.hypot(*a) * math.hypot(*b) for a, b in zip(s, t, strict=True)]
    return float(np.mean([1 - a @ b / length for a, b, length in zip(s, t, lengths, strict=True)]))


def tokens(features: Array, mask: Array) -> Array:
    rows, length = mask.shape
    return np.array([features[i, j] for i in range(rows) for j in range(length) if mask[i, j]])


def attention_squares(s: Array, t: Array, mask: Array) -> float:
    rows, heads, length, _ = s.shape
    return float(
        np.mean(
            [
                (s[i, h, j, k] - t[i, h, j, k]) ** 2
                for i, h, j, k in product(range(rows), range(heads), range(length), range(length))
                if mask[i, j] and mask[i, k]
            ]
        )
    )


def attention_kl(s: Array, t: Array, mask: Array) -> float:
    rows, heads, length, _ = s.shape
    return float(
        np.mean(
            [
                divergence(t[i, h, j, mask[i]], s[i, h, j, mask[i]])
                for i, h, j in product(range(rows), range(heads), range(length))
                if mask[i, j]
            ]
        )
    )


def relation(projection: Array, heads: int, head: int, query: int) -> Array:
    """Where one query of one unpadded example looks."""
    width = projection.shape[-1] // heads
    part = projection[:, head * width : (head + 1) * width]
    return soft(np.array([part[query] @ key / math.sqrt(width) for key in part]))


def minilm_v2(s: Array, t: Array, mask: Array, heads: int = 12) -> float:
    gaps = []
    for i in range(len(s)):
        ours, theirs = s[i][mask[i]], t[i][mask[i]]
        for head, query in product(range(heads), range(len(ours))):
            place = heads, head, query
            gaps.append(divergence(relation(theirs, *place), relation(ours, *place)))
    return float(np.mean(gaps))


REFERENCES: dict[Loss, Callable[..., float]] = {
    feature.mse: lambda s, t, mask: squares(tokens(s, mask), tokens(t, mask)),
    feature.cosine: lambda s, t, mask: angles(tokens(s, mask), tokens(t, mask)),
    attention.mse: attention_squares,
    attention.kl: attention_kl,
    attention.minilm_v2: minilm_v2,
}
OPTIONS: list[tuple[Loss, dict[str, Any]]] = [
    (attention.minilm_v2, {"heads": 2}),
    *[(loss, {}) for loss in REFERENCES],
]


def arrays(loss: Loss) -> list[Array]:
    """Student, teacher and mask, for four rows."""
    random = np.random.default_rng(7)
    mask = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]], dtype=bool)
    if loss is attention.minilm_v2:
        return [random.normal(size=(4, 3, 24)), random.normal(size=(4, 3, 48)), mask]
    if title(loss).startswith("feature."):
        return [*random.normal(size=(2, 4, 3, 6)), mask]
    powers = np.exp(random.normal(size=(2, 4, 2, 3, 3))) * mask[:, None, None, :]
    return [*(powers / powers.sum(-1, keepdims=True)), mask]


@pytest.mark.parametrize(
    ("loss", "options"), OPTIONS, ids=[f"{title(loss)}-{chosen}" for loss, chosen in OPTIONS]
)
def test_a_loss_is_the_number_numpy_works_out(loss: Loss, options: dict[str, Any]) -> None:
    numbers = arrays(loss)
    given = [torch.from_numpy(number) for number in numbers]
    expected = REFERENCES[loss](*numbers, **options)
    assert expected > 0.01
    assert loss(*given, **options).item() == pytest.approx(expected, rel=1e-5)
