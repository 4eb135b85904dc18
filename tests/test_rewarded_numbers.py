"""Losses of a student that is rewarded against NumPy and SciPy: its surrogate, and its teacher."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from attar.losses import policy
from attar.types import Batch, Played

ROWS = 9


def softmax(x: Any) -> Any:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def scene(numbers: bool) -> tuple[Any, Any, Any, Batch]:
    """Student, teacher, what the student answered when it acted, and the batch of it."""
    random = np.random.default_rng(3)
    mine, its, old = (random.normal(size=(ROWS, 4)) / 2 for _ in range(3))
    actions = random.normal(size=(ROWS, 2)) if numbers else random.integers(4, size=ROWS)
    gained = random.normal(size=ROWS)
    done = torch.tensor(actions).float() if numbers else torch.tensor(actions)
    played = Played(torch.tensor(old).float(), done, torch.tensor(gained).float(), torch.zeros(9))
    nothing = torch.zeros(ROWS, 1)
    return mine, its, old, Batch(nothing, nothing[:, 0], ("",) * ROWS, played=played)


def likelihood(answers: Any, actions: Any) -> Any:
    if actions.ndim == 1:
        return np.log(softmax(answers)[np.arange(ROWS), actions])
    mean, log = np.split(answers, 2, 1)
    return scipy.stats.norm.logpdf(actions, mean, np.exp(log)).sum(1)


def entropies(answers: Any, actions: Any) -> Any:
    if actions.ndim == 1:
        return scipy.stats.entropy(softmax(answers), axis=1)
    return scipy.stats.norm.entropy(0, np.exp(answers[:, 2:])).sum(1)


def divergences(its: Any, mine: Any, actions: Any) -> Any:
    if actions.ndim == 1:
        return scipy.stats.entropy(softmax(its), softmax(mine), axis=1)
    (m, s), (n, t) = np.split(its, 2, 1), np.split(mine, 2, 1)
    return (t - s + (np.exp(2 * s) + (m - n) ** 2) / (2 * np.exp(2 * t)) - 0.5).sum(1)


def done(batch: Batch) -> tuple[Any, Any]:
    assert batch.played is not None
    return batch.played.actions.numpy(), batch.played.advantages.numpy()


@pytest.mark.parametrize("numbers", [False, True])
@pytest.mark.parametrize("entropy", [0.0, 0.3])
def test_ppo_is_the_clipped_surrogate(numbers: bool, entropy: float) -> None:
    mine, _, old, batch = scene(numbers)
    actions, gained = done(batch)
    ratio = np.exp(likelihood(mine, actions) - likelihood(old, actions))
    assert (ratio > 1.1).any()
    assert (ratio < 0.9).any()
    least = np.minimum(ratio * gained, ratio.clip(0.9, 1.1) * gained)
    want = -(least + entropy * entropies(mine, actions)).mean()
    got = policy.ppo(torch.tensor(mine).float(), batch, clip=0.1, entropy=entropy)
    assert got.item() == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("numbers", [False, True])
def test_proximal_kl_weighs_a_row_by_how_much_likelier_it_has_become(numbers: bool) -> None:
    mine, its, old, batch = scene(numbers)
    actions, _ = done(batch)

    def want(mine: Any) -> Any:
        ratio = np.exp(likelihood(mine, actions) - likelihood(old, actions))
        return (np.maximum(ratio, 0.8) * divergences(its, mine, actions)).mean()

    student = torch.tensor(mine).float().requires_grad_()
    got = policy.proximal_kl(student, torch.tensor(its).float(), batch)
    assert got.item() == pytest.approx(want(mine), rel=1e-4)
    got.backward()
    assert student.grad is not None
    for row, column in ((0, 0), (3, 1), (5, 2), (8, 3)):  # both factors have a gradient
        step = np.zeros_like(mine)
        step[row, column] = 1e-5
        slope = (want(mine + step) - want(mine - step)) / 2e-5
        assert float(student.grad[row, column]) == pytest.approx(slope, rel=1e-3, abs=1e-5)


def test_a_student_as_it_was_is_weighed_evenly() -> None:
    mine, its, _, batch = scene(False)
    assert batch.played is not None
    student, teacher = torch.tensor(mine).float(), torch.tensor(its).float()
    batch = Batch(
        batch.inputs,
        batch.labels,
        batch.keys,
        played=Played(student, *list(vars(batch.played).values())[1:]),
    )
    plain = policy.kl(student, teacher, temperature=1.0)
    torch.testing.assert_close(policy.proximal_kl(student, teacher, batch), plain)
    gained = float(batch.played.advantages.mean()) if batch.played else 0.0
    assert policy.ppo(student, batch).item() == pytest.approx(-gained, rel=1e-5)


def test_bounds_that_make_no_sense_are_refused() -> None:
    mine, its, _, batch = scene(False)
    student, teacher = torch.tensor(mine), torch.tensor(its)
    with pytest.raises(ValueError, match="clip is 0"):
        policy.ppo(student, batch, clip=0.0)
    with pytest.raises(ValueError, match="clip is 2"):
        policy.proximal_kl(student, teacher, batch, clip=2.0)
