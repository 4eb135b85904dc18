"""Losses over actions and values against NumPy, integrals along a line, and numbers by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from attar.losses import policy

DRAWN = np.random.default_rng(0)


def softmax(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def pair(rows: int = 7, wide: int = 4) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    return DRAWN.normal(size=(rows, wide)), DRAWN.normal(size=(rows, wide))


@pytest.mark.parametrize("temperature", [0.1, 1.0, 3.0])
def test_kl_sharpens_the_teacher_alone(temperature: float) -> None:
    mine, its = pair()
    p, q = softmax(its / temperature), softmax(mine)
    want = (p * (np.log(p + 1e-300) - np.log(q))).sum(1).mean()
    got = policy.kl(torch.tensor(mine), torch.tensor(its), temperature=temperature)
    assert got.item() == pytest.approx(want, rel=1e-5)


def test_reverse_kl_takes_the_students_own_probabilities_as_weights() -> None:
    mine, its = pair()
    p, q = softmax(its / 0.5), softmax(mine)
    want = (q * (np.log(q) - np.log(p))).sum(1).mean()
    got = policy.reverse_kl(torch.tensor(mine), torch.tensor(its), temperature=0.5)
    assert got.item() == pytest.approx(want, rel=1e-5)


def test_nearly_equal_values_become_a_clear_choice() -> None:
    # exp(-0.05 / 0.01) = exp(-5): the better of two actions has 0.9933 of the sharpened policy.
    teacher, student = torch.tensor([[10.05, 10.0]]), torch.zeros(1, 2)
    p = 1 / (1 + math.exp(-5))
    want = math.log(2) + p * math.log(p) + (1 - p) * math.log(1 - p)
    assert policy.kl(student, teacher).item() == pytest.approx(want, rel=1e-4)


def test_nll_is_the_log_likelihood_of_the_teachers_choice() -> None:
    mine, its = pair()
    want = -np.log(softmax(mine)[np.arange(7), its.argmax(1)]).mean()
    got = policy.nll(torch.tensor(mine), torch.tensor(its))
    assert got.item() == pytest.approx(want, rel=1e-5)


def test_mse_sums_over_choices() -> None:
    mine, its = pair()
    got = policy.mse(torch.tensor(mine), torch.tensor(its))
    assert got.item() == pytest.approx(((its - mine) ** 2).sum(1).mean(), rel=1e-5)


def test_value_counts_in_deviations_of_the_teachers_values() -> None:
    mine, its = pair(wide=1)
    got = policy.value(torch.tensor(mine), torch.tensor(its), scale=4.0)
    assert got.item() == pytest.approx((((its - mine) / 4) ** 2).mean() / 2, rel=1e-5)
    with pytest.raises(ValueError, match="scale is 0"):
        policy.value(torch.tensor(mine), torch.tensor(its), scale=0)


def integral(mean: float, log: float, other: float, other_log: float) -> float:
    """KL of two Gaussians by adding up p log(p / q) along a line."""
    x = np.linspace(-40, 40, 800_001)
    p = np.exp(-0.5 * ((x - mean) / math.exp(log)) ** 2 - log) / math.sqrt(2 * math.pi)
    log_p = -0.5 * ((x - mean) / math.exp(log)) ** 2 - log
    log_q = -0.5 * ((x - other) / math.exp(other_log)) ** 2 - other_log
    return float((p * (log_p - log_q)).sum() * (x[1] - x[0]))


def test_gaussians_are_as_far_apart_as_an_integral_says() -> None:
    student = torch.tensor([[0.3, -1.0, 0.2, -0.5]])  # two actions: means, then log deviations
    teacher = torch.tensor([[1.1, -0.2, -0.4, 0.6]])
    forward = integral(1.1, -0.4, 0.3, 0.2) + integral(-0.2, 0.6, -1.0, -0.5)
    reverse = integral(0.3, 0.2, 1.1, -0.4) + integral(-1.0, -0.5, -0.2, 0.6)
    assert policy.gaussian_kl(student, teacher).item() == pytest.approx(forward, rel=1e-4)
    assert policy.gaussian_reverse_kl(student, teacher).item() == pytest.approx(reverse, rel=1e-4)


def test_deviations_beyond_the_bounds_count_as_the_bounds() -> None:
    teacher = torch.tensor([[0.0, -20.0]])  # as SAC says where it is sure
    student = torch.tensor([[math.exp(-3), -3.0]])
    assert policy.gaussian_kl(student, teacher).item() == pytest.approx(0.5, rel=1e-5)


def test_answers_that_are_no_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="answers of 3 numbers"):
        policy.gaussian_kl(torch.zeros(1, 3), torch.zeros(1, 3))


@pytest.mark.parametrize("loss", [policy.kl, policy.reverse_kl])
def test_a_temperature_that_is_not_positive_is_refused(loss: Any) -> None:
    with pytest.raises(ValueError, match="temperature"):
        loss(torch.zeros(1, 2), torch.zeros(1, 2), temperature=0.0)
