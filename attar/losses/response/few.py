"""What a loss says where of the teacher only a few classes of a large vocabulary are known."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .softening import Few, Logits


def surprise_of_few(student: Logits, teacher: Few) -> Tensor:
    """(rows,): -Σ p log student, p as the few estimate it; log student is over all classes.

    Its gradient is made from two numbers a row, the few, and the student's answers, in one pass.

    Raises ValueError where student and teacher have another number of classes.
    Source: Anshumann et al., Sparse Logit Sampling, ACL 2025 (random sampling of p, unbiased).
    """
    if student.shape[-1] != teacher.shape[-1]:
        raise ValueError(
            f"the student has {student.shape[-1]} classes and the teacher {teacher.shape[-1]}"
        )
    value: Tensor = _Surprise.apply(student, *teacher.estimate())  # type: ignore[no-untyped-call]
    return value


def entropy_of_few(teacher: Few) -> Tensor:
    """(rows,): -Σ p log p of the same p."""
    ids, above, floor = teacher.estimate()
    others: Tensor = (teacher.shape[-1] - ids.shape[-1]) * torch.special.entr(floor)
    listed: Tensor = torch.special.entr(above + floor[:, None]).sum(-1)
    return listed + others


class _Surprise(torch.autograd.Function):
    """-Σ p log softmax(logits) of each row, p = floor + what some ids have above it.

    With mass = Σ p it is mass · logsumexp - Σ p logits, and its gradient mass · softmax - p.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, above: Tensor, floor: Tensor) -> Tensor:
        scores = logits.float()
        mass = above.sum(-1) + floor * scores.shape[-1]
        bottom = scores.logsumexp(-1)
        told = (above * scores.gather(-1, ids)).sum(-1)
        if floor.any():
            told = told + floor * scores.sum(-1)
        ctx.save_for_backward(logits, ids, above, floor, mass, bottom)
        return mass * bottom - told

    @staticmethod
    def backward(ctx: Any, *slope: Tensor) -> tuple[Tensor | None, ...]:
        logits, ids, above, floor, mass, bottom = ctx.saved_tensors
        answers = (logits.float() - bottom[:, None]).exp_().mul_(mass[:, None])
        answers.sub_(floor[:, None]).scatter_add_(-1, ids, -above)
        return answers.mul_(slope[0][:, None]).to(logits.dtype), None, None, None
