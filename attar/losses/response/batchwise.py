"""Losses that also compare what a batch makes of a class, or of two examples, with one another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .divergences import kl
from .softening import FLAT, TINY, Logits, log_answers


def dist(
    student: Logits,
    teacher: Logits,
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    """T² (β (1 - correlation within a row) + γ (1 - correlation of a class across the rows)).

    Pearson's, of the softened answers, averaged over rows and over classes. Where neither side
    has a spread (each class of a batch of one row) a correlation is undefined and counts nothing.
    With two classes the first part can only compare signs and has no gradient.
    The T² is the authors' (their τ²); as correlations hardly depend on scale, the gradients grow
    with T, and a temperature that falls is a weight that falls.

    Raises ValueError if the temperature is not positive.
    Source: Huang et al., Knowledge Distillation from A Stronger Teacher, NeurIPS 2022
    (β L_inter + γ L_intra).
    """
    answers = log_answers(student, temperature).exp()
    wanted = log_answers(teacher.detach(), temperature).exp()
    rows = _half_square(_deviations(answers), _deviations(wanted))
    classes = _half_square(_deviations(answers.mT), _deviations(wanted.mT))
    return temperature**2 * (beta * rows + gamma * classes)


def mlkd(
    student: Logits,
    teacher: Logits,
    *,
    temperatures: tuple[float, ...] = (2.0, 3.0, 4.0, 5.0, 6.0),
    standardize: bool = False,
) -> Tensor:
    """Σ over T of T² KL(teacher ‖ student) + squared gaps in relating examples and classes.

    With S and R the softened answers (rows, classes) of student and teacher, the gaps are
    ‖S Sᵀ - R Rᵀ‖² / rows and ‖Sᵀ S - Rᵀ R‖² / classes. They are sums, as in the paper, and grow
    with the batch (the authors' has 64 rows). `standardize` as in `kl`, of the KL alone, as in the
    code of Sun et al. The authors add the same loss of strongly augmented inputs, and leave out
    examples and classes of which the teacher is unsure.

    Raises ValueError if a temperature is not positive, or there is none.
    Source: Jin et al., Multi-Level Logit Distillation, CVPR 2023; Sun et al., CVPR 2024.
    """
    if not temperatures:
        raise ValueError("temperatures is empty: name at least one")
    teacher, total = teacher.detach(), student.new_zeros((), dtype=torch.float32)
    for temperature in temperatures:
        answers = log_answers(student, temperature).exp()
        wanted = log_answers(teacher, temperature).exp()
        total = total + kl(student, teacher, temperature=temperature, standardize=standardize)
        total = total + _product_gap(answers, wanted) + _product_gap(answers.mT, wanted.mT)
    return total


def _product_gap(student: Tensor, teacher: Tensor) -> Tensor:
    """‖student studentᵀ - teacher teacherᵀ‖² over the number of their rows."""
    # Autocast would multiply in half precision, and this is a difference of products.
    with torch.autocast(student.device.type, enabled=False):
        gap = student @ student.mT - teacher @ teacher.mT
    return gap.square().sum() / len(gap)


def _deviations(values: Tensor) -> Tensor:
    """Deviations from the mean of each row, scaled to length one; near zero where it is flat."""
    size = values.detach().norm(dim=-1, keepdim=True).clamp_min(TINY)
    return F.normalize((values - values.mean(-1, keepdim=True)) / size, dim=-1, eps=FLAT)


def _half_square(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 - student · teacher over unit rows; zero, not 0/0, where both have no length."""
    return (student - teacher).square().sum(-1).mean() / 2
