"""Losses over answers in other tokens, held against NumPy: uld and mined."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attar.heads import Foreign, Sparse
from attar.losses import response


def numbers(rows: int = 7, its: int = 9, mine: int = 6) -> tuple[Tensor, Foreign, list[int]]:
    torch.manual_seed(3)
    nearest = [0, 1, 1, 5, 4, 4, 4, 2, 0][:its]
    said = Foreign(
        torch.randn(rows, its), torch.ones(rows, dtype=torch.bool), lambda: torch.tensor(nearest)
    )
    return torch.randn(rows, mine), said, nearest


def softmax(logits: Tensor, temperature: float) -> Any:
    raised = np.exp(logits.double().numpy() / temperature)
    return raised / raised.sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_uld_and_mined_are_what_numpy_makes_of_them(temperature: float) -> None:
    student, teacher, nearest = numbers()
    q, p = softmax(student, temperature), softmax(teacher.logits, temperature)  # type: ignore[arg-type]
    sorted_q = np.pad(-np.sort(-q, 1), ((0, 0), (0, 3)))
    uld = temperature * np.abs(-np.sort(-p, 1) - sorted_q).sum(1).mean()
    moved = np.zeros_like(q)
    for its, mine in enumerate(nearest):
        moved[:, mine] += p[:, its]
    told = np.where(moved > 0, moved * np.log(np.where(moved > 0, moved, 1) / q), 0)
    mined = temperature**2 * told.sum(1).mean()
    assert float(response.uld(student, teacher, temperature=temperature)) == pytest.approx(uld)
    assert float(response.mined(student, teacher, temperature=temperature)) == pytest.approx(mined)


def test_drawn_answers_of_other_tokens_give_the_gradient_of_all_on_average() -> None:
    student, teacher, _ = numbers(rows=1)
    student.requires_grad_()
    p = teacher.logits.softmax(-1)[0]  # type: ignore[union-attr]
    whole = torch.autograd.grad(response.mined(student, teacher), student)[0]
    draws = torch.multinomial(p, 4000, replacement=True)
    few = Sparse(draws[None], torch.full((1, 4000), 1 / 4000), torch.ones(1), 0, 9)
    drawn = Foreign(few, teacher.known, teacher.nearest)
    slope = torch.autograd.grad(response.mined(student, drawn), student)[0]
    torch.testing.assert_close(slope, whole, atol=0.03, rtol=0)
    top = p.topk(9)
    every = Sparse(top.indices[None], top.values[None], torch.zeros(1), 9, 9)
    exact = response.mined(student, Foreign(every, teacher.known, teacher.nearest))
    torch.testing.assert_close(exact, response.mined(student, teacher))
