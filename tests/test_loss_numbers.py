"""One number for every loss, worked out by hand or by NumPy in double precision, loop by loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from test_losses import LOSSES, title
from torch import Tensor

from attar.losses import attention, feature, response

Array = np.ndarray
Loss = Callable[..., Tensor]


def logs(*probabilities: float) -> Tensor:
    return torch.tensor([probabilities]).log()


FROM_TEACHER = (math.log(0.75 / 0.625) * 0.75 + math.log(0.25 / 0.375) * 0.25) / 2
FROM_STUDENT = (math.log(0.5 / 0.625) * 0.5 + math.log(0.5 / 0.375) * 0.5) / 2
BY_HAND = [
    (response.kl, logs(0.5, 0.5), logs(0.75, 0.25), 0.75 * math.log(1.5) - 0.25 * math.log(2)),
    (response.reverse_kl, logs(0.5, 0.5), logs(0.75, 0.25), math.log(4 / 3) / 2),
    (response.jsd, logs(0.5, 0.5), logs(0.75, 0.25), FROM_TEACHER + FROM_STUDENT),
    (response.soft_cross_entropy, logs(0.5, 0.5), logs(0.75, 0.25), math.log(2)),
    (response.mse, torch.zeros(1, 2), torch.tensor([[1.0, 3.0]]), 5.0),
    (response.cosine, torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 3.0]]), 1 - 2**-0.5),
    (response.cosine, torch.tensor([[1.0, 2.0]]), torch.tensor([[-2.0, -4.0]]), 2.0),
    (response.dist, logs(0.5, 0.375, 0.125), logs(0.2, 0.3, 0.5), 2.0),
    (feature.mse, torch.zeros(1, 1, 2), torch.tensor([[[1.0, 3.0]]]), 5.0),
    (feature.cosine, torch.tensor([[0.0, 2.0]]), torch.tensor([[5.0, 0.0]]), 1.0),
    (attention.mse, torch.full((1, 1, 2, 2), 0.5), torch.eye(2)[None, None], 0.25),
    (attention.mse, torch.full((1, 1, 2, 2), -1e4), torch.eye(2)[None, None], 0.5),
    (
        attention.kl,
        torch.tensor([[[[0.75, 0.25], [0.5, 0.5]]]]),
        torch.full((1, 1, 2, 2), 0.5),
        math.log(4 / 3) / 4,
    ),
]


@pytest.mark.parametrize(
    ("loss", "student", "teacher", "expected"), BY_HAND, ids=[title(row[0]) for row in BY_HAND]
)
def test_a_loss_is_the_number_worked_out_by_hand(
    loss: Any, student: Tensor, teacher: Tensor, expected: float
) -> None:
    assert loss(student, teacher).item() == pytest.approx(expected, abs=1e-6)


def test_dkd_by_hand() -> None:
    target, others = math.log(4 / 3) / 2, math.log(9 / 8) / 2
    student, teacher = logs(0.25, 0.25, 0.5), logs(0.5, 0.25, 0.25)
    loss = response.dkd(student, teacher, torch.tensor([0]), alpha=3, beta=2, temperature=1)
    assert loss.item() == pytest.approx(3 * target + 2 * others, abs=1e-6)


def test_minilm_v2_by_hand() -> None:
    student = torch.tensor([[[math.sqrt(math.log(3))], [0.0]]])  # relates 3 to 1, then 1 to 1
    loss = attention.minilm_v2(student, torch.zeros(1, 2, 1), heads=1)
    assert loss.item() == pytest.approx(math.log(4 / 3) / 4, abs=1e-6)


def test_hot_answers_compare_centred_logits_whatever_the_temperature() -> None:
    """Hinton et al. 2015, equation 4: T² KL tends to half the variance of the difference."""
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])
    for temperature in (100.0, 200.0):
        loss = response.kl(student, teacher, temperature=temperature)
        assert loss.item() == pytest.approx(0.5, rel=1e-2)


def test_standardized_logits_are_compared_by_shape_alone() -> None:
    student, teacher = torch.randn(2, 6, 5)
    plain = response.kl(student, teacher, standardize=True)
    moved = response.kl(7 * student - 2, 0.3 * teacher + 5, standardize=True)
    torch.testing.assert_close(moved, plain)


# The references: plain sums over plain numbers, each from its paper's formula


def soft(scores: Array, temperature: float = 1.0) -> Array:
    powers = np.array([math.exp(score / temperature) for score in scores])
    return powers / powers.sum()


def divergence(p: Array, q: Array) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def shape(scores: Array, standardize: bool) -> Array:
    return (scores - np.mean(scores)) / np.std(scores, ddof=1) if standardize else scores


def softened(scores: Array, temperature: float, standardize: bool = False) -> list[Array]:
    return [soft(shape(row, standardize), temperature) for row in scores]


def kl(s: Array, t: Array, temperature: float = 1.0, standardize: bool = False) -> float:
    answers = softened(t, temperature, standardize), softened(s, temperature, standardize)
    return temperature**2 * float(np.mean([*map(divergence, *answers)]))


def reverse_kl(s: Array, t: Array, temperature: float = 1.0) -> float:
    return kl(t, s, temperature)


def jsd(s: Array, t: Array, beta: float = 0.5, temperature: float = 1.0) -> float:
    total = 0.0
    for p, q in zip(softened(t, temperature), softened(s, temperature), strict=True):
        middle = beta * p + (1 - beta) * q
        total += beta * divergence(p, middle) + (1 - beta) * divergence(q, middle)
    return temperature**2 * total / len(s)


def soft_cross_entropy(s: Array, t: Array, temperature: float = 1.0) -> float:
    total = 0.0
    for p, q in zip(softened(t, temperature), softened(s, temperature), strict=True):
        total -= sum(a * math.log(b) for a, b in zip(p, q, strict=True))
    return temperature**2 * total / len(s)


def squares(s: Array, t: Array) -> float:
    return float(np.mean([(a - b) ** 2 for a, b in zip(s.flat, t.flat, strict=True)]))


def angles(s: Array, t: Array) -> float:
    lengths = [math.hypot(*a) * math.hypot(*b) for a, b in zip(s, t, strict=True)]
    return float(np.mean([1 - a @ b / length for a, b, length in zip(s, t, lengths, strict=True)]))


def dkd(
    s: Array,
    t: Array,
    labels: Array,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    standardize: bool = False,
) -> float:
    losses = []
    answers = softened(t, temperature, standardize), softened(s, temperature, standardize)
    for p, q, label in zip(*answers, labels, strict=True):
        if label == -100:
            continue
        target = divergence([p[label], 1 - p[label]], [q[label], 1 - q[label]])
        others = divergence(
            np.delete(p, label) / (1 - p[label]), np.delete(q, label) / (1 - q[label])
        )
        losses.append(alpha * target + beta * others)
    return temperature**2 * sum(losses) / len(losses)


def dist(
    s: Array, t: Array, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0
) -> float:
    p, q = np.array(softened(t, temperature)), np.array(softened(s, temperature))
    rows = np.mean([1 - np.corrcoef(p[i], q[i])[0, 1] for i in range(p.shape[0])])
    classes = np.mean([1 - np.corrcoef(p[:, j], q[:, j])[0, 1] for j in range(p.shape[1])])
    return float(temperature**2 * (beta * rows + gamma * classes))


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
    response.kl: kl,
    response.reverse_kl: reverse_kl,
    response.jsd: jsd,
    response.soft_cross_entropy: soft_cross_entropy,
    response.mse: squares,
    response.cosine: angles,
    response.dkd: dkd,
    response.dist: dist,
    feature.mse: lambda s, t, mask: squares(tokens(s, mask), tokens(t, mask)),
    feature.cosine: lambda s, t, mask: angles(tokens(s, mask), tokens(t, mask)),
    attention.mse: attention_squares,
    attention.kl: attention_kl,
    attention.minilm_v2: minilm_v2,
}
OPTIONS: list[tuple[Loss, dict[str, Any]]] = [
    (response.kl, {"temperature": 3.0}),
    (response.kl, {"temperature": 2.0, "standardize": True}),
    (response.reverse_kl, {"temperature": 3.0}),
    (response.jsd, {"beta": 0.1, "temperature": 2.0}),
    (response.soft_cross_entropy, {"temperature": 3.0}),
    (response.dkd, {"alpha": 0.5, "beta": 2.0, "temperature": 2.0}),
    (response.dkd, {"standardize": True}),
    (response.dist, {"beta": 0.5, "gamma": 3.0, "temperature": 2.0}),
    (attention.minilm_v2, {"heads": 2}),
    *[(loss, {}) for loss in REFERENCES],
]


def arrays(loss: Loss) -> list[Array]:
    """Student, teacher and whatever else the loss asks for, for four rows."""
    random = np.random.default_rng(7)
    mask = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]], dtype=bool)
    if loss.__module__.endswith("response"):
        logits = [2 * random.normal(size=(4, 5)) for _ in range(2)]
        return [*logits, np.array([3, 0, -100, 4])] if loss is response.dkd else logits
    if loss is attention.minilm_v2:
        return [random.normal(size=(4, 3, 24)), random.normal(size=(4, 3, 48)), mask]
    if loss.__module__.endswith("feature"):
        return [*random.normal(size=(2, 4, 3, 6)), mask]
    powers = np.exp(random.normal(size=(2, 4, 2, 3, 3))) * mask[:, None, None, :]
    return [*(powers / powers.sum(-1, keepdims=True)), mask]


def test_every_loss_has_a_reference() -> None:
    assert set(REFERENCES) == set(LOSSES)


@pytest.mark.parametrize(
    ("loss", "options"), OPTIONS, ids=[f"{title(loss)}-{chosen}" for loss, chosen in OPTIONS]
)
def test_a_loss_is_the_number_numpy_works_out(loss: Loss, options: dict[str, Any]) -> None:
    numbers = arrays(loss)
    given = [torch.from_numpy(number) for number in numbers]
    expected = REFERENCES[loss](*numbers, **options)
    assert expected > 0.01
    assert loss(*given, **options).item() == pytest.approx(expected, rel=1e-5)
