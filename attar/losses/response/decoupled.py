"""Losses that look at the class of the label and at the other classes apart from each other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .softening import Answers, Logits, divergence, log_answers, rowwise, soften, targets, whole


@rowwise
def dkd(
    student: Logits,
    teacher: Answers,
    labels: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    standardize: bool = False,
) -> Tensor:
    """T² (α KL(target or not) + β KL(among the classes that are not the target)).

    labels: (rows,) int64. The split needs a target: of rows labelled -100 (not known) it is what
    the teacher finds likeliest, so that a pool without labels teaches as well.
    With two classes the second part is zero. `standardize` as in `kl`. The authors raise the
    weight of this loss from zero over the first epochs.

    Raises ValueError if the temperature is not positive.
    Source: Zhao et al., Decoupled Knowledge Distillation, CVPR 2022 (α TCKD + β NCKD).
    """
    told = whole(teacher)
    target = F.one_hot(targets(labels, told), student.shape[-1]).bool()
    soft_student = soften(student, temperature, standardize)
    soft_teacher = soften(told, temperature, standardize)
    in_student, in_teacher = (_in_target(soft, target) for soft in (soft_student, soft_teacher))
    others, wanted = (_others(soft, target) for soft in (soft_student, soft_teacher))
    both = alpha * divergence(in_teacher, in_student) + beta * divergence(wanted, others)
    return temperature**2 * both.mean()


@rowwise
def nkd(
    student: Logits,
    teacher: Answers,
    labels: Tensor,
    *,
    gamma: float = 1.5,
    temperature: float = 1.0,
) -> Tensor:
    """-(teacher log student) of the target - γ T² Σ teacher log student of the others, normalised.

    The others are softened by T and made to sum to one on both sides; the target is not softened.
    labels: as in `dkd`. Not least where the student equals the teacher: like the cross-entropy
    with the labels, to which the paper adds it, it always asks for more of the target.

    Raises ValueError if the temperature is not positive.
    Source: Yang et al., From Knowledge Distillation to Self-Knowledge Distillation, ICCV 2023
    (NKD, γ = 1.5).
    """
    told = whole(teacher)
    target = F.one_hot(targets(labels, told), student.shape[-1]).bool()
    in_target = (log_answers(told, 1).exp() * log_answers(student, 1))[target]
    others = _others(soften(student, temperature), target)
    wanted = _others(soften(told, temperature), target).exp()
    return -(in_target + gamma * temperature**2 * (wanted * others).sum(-1)).mean()


def _in_target(logits: Tensor, target: Tensor) -> Tensor:
    """(rows, 2) log probabilities of target and not target."""
    rest = logits.masked_fill(target, -torch.inf).logsumexp(-1)
    return torch.stack([logits[target], rest], -1).log_softmax(-1)


def _others(logits: Tensor, target: Tensor) -> Tensor:
    """(rows, classes - 1) log probabilities of the others among themselves."""
    rows, classes = logits.shape
    return logits[~target].view(rows, classes - 1).log_softmax(-1)
