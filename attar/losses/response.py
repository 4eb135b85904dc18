"""Losses that compare logits: what the student answers with what the teacher answers.

Each takes logits of any float type, works in float32, returns the mean over rows as a float32
scalar, and sends no gradient to the teacher. Losses with a `temperature` T are multiplied by T²,
so that their gradients keep their size when T changes (Hinton et al. 2015, section 2).
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Logits: TypeAlias = Tensor  # (rows, classes)

UNKNOWN = -100
# A spread below this is rounding, not knowledge; dividing by less would send back gradients
# that no half-precision float can hold.
FLAT = 1e-3
TINY = 1e-12


def kl(
    student: Logits, teacher: Logits, *, temperature: float = 1.0, standardize: bool = False
) -> Tensor:
    """T² KL(teacher ‖ student) of the softened answers.

    `standardize` first gives each row of logits mean zero and standard deviation one (the sample's,
    as in the authors' code), so that only their shape is matched; with two classes only the sign
    is left of them. The deviation is kept above 1e-3, so a constant row gives a finite gradient.

    Raises ValueError if the temperature is not positive.
    Source: Hinton et al., Distilling the Knowledge in a Neural Network, 2015;
    Sun et al., Logit Standardization in Knowledge Distillation, CVPR 2024.
    """
    log_student = _log_answers(student, temperature, standardize)
    log_teacher = _log_answers(teacher.detach(), temperature, standardize)
    return temperature**2 * _divergence(log_teacher, log_student).mean()


def reverse_kl(student: Logits, teacher: Logits, *, temperature: float = 1.0) -> Tensor:
    """T² KL(student ‖ teacher): the student may leave out what it can't say, but invents nothing.

    Raises ValueError if the temperature is not positive.
    Source: Gu et al., MiniLLM, ICLR 2024, equation 1.
    """
    log_student = _log_answers(student, temperature)
    log_teacher = _log_answers(teacher.detach(), temperature)
    return temperature**2 * _divergence(log_student, log_teacher).mean()


def jsd(student: Logits, teacher: Logits, *, beta: float = 0.5, temperature: float = 1.0) -> Tensor:
    """T² (β KL(teacher ‖ m) + (1 - β) KL(student ‖ m)) with m = β teacher + (1 - β) student.

    Never above T² log 2. It vanishes as β nears 0 or 1 (only divided by β does it tend to `kl`),
    so those two are refused instead of silently changing the scale.

    Raises ValueError if β is not between 0 and 1 or the temperature is not positive.
    Source: Agarwal et al., On-Policy Distillation of Language Models (GKD), ICLR 2024,
    generalized Jensen-Shannon divergence.
    """
    if not 0 < beta < 1:
        raise ValueError(f"beta is {beta}, not between 0 and 1: use kl for 0, reverse_kl for 1")
    log_student = _log_answers(student, temperature)
    log_teacher = _log_answers(teacher.detach(), temperature)
    middle = torch.logaddexp(log_teacher + math.log(beta), log_student + math.log1p(-beta))
    divergence = beta * _divergence(log_teacher, middle)
    divergence = divergence + (1 - beta) * _divergence(log_student, middle)
    return temperature**2 * divergence.mean()


def soft_cross_entropy(student: Logits, teacher: Logits, *, temperature: float = 1.0) -> Tensor:
    """-T² Σ teacher log student: `kl` plus the teacher's entropy, hence with the same gradient.

    Raises ValueError if the temperature is not positive.
    Source: Jiao et al., TinyBERT, 2020, equation 10 (there with T = 1).
    """
    log_student = _log_answers(student, temperature)
    answers = _log_answers(teacher.detach(), temperature).exp()
    return -(temperature**2) * (answers * log_student).sum(-1).mean()


def mse(student: Logits, teacher: Logits) -> Tensor:
    """Mean squared difference of the logits, over rows and classes.

    Source: Ba and Caruana, Do Deep Nets Really Need to be Deep?, NeurIPS 2014, equation 1.
    """
    return (student.float() - teacher.detach().float()).square().mean()


def cosine(student: Logits, teacher: Logits) -> Tensor:
    """1 - cosine of the angle between the logits of a row, whatever their size.

    Computed as half the squared distance of the unit vectors, which is defined at zero logits too.
    """
    student, teacher = student.float(), teacher.detach().float()
    return _half_square(F.normalize(student, eps=FLAT), F.normalize(teacher, eps=FLAT))


def dkd(
    student: Logits,
    teacher: Logits,
    labels: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    standardize: bool = False,
) -> Tensor:
    """T² (α KL(target or not) + β KL(among the classes that are not the target)).

    labels: (rows,) int64. The split needs a target, so rows labelled -100 (not known) are left
    out, of the mean too; a batch of nothing else gives zero, still with a graph.
    With two classes the second part is zero. `standardize` as in `kl`. The authors raise the
    weight of this loss from zero over the first epochs.

    Raises ValueError if the temperature is not positive.
    Source: Zhao et al., Decoupled Knowledge Distillation, CVPR 2022 (α TCKD + β NCKD).
    """
    known = labels != UNKNOWN
    target = F.one_hot(labels[known], student.shape[-1]).bool()
    soft_student = _soften(student[known], temperature, standardize)
    soft_teacher = _soften(teacher.detach()[known], temperature, standardize)
    student_target, student_others = _decouple(soft_student, target)
    teacher_target, teacher_others = _decouple(soft_teacher, target)
    divergence = alpha * _divergence(teacher_target, student_target)
    divergence = divergence + beta * _divergence(teacher_others, student_others)
    return temperature**2 * divergence.sum() / max(len(target), 1)


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

    Raises ValueError if the temperature is not positive.
    Source: Huang et al., Knowledge Distillation from A Stronger Teacher, NeurIPS 2022
    (β L_inter + γ L_intra).
    """
    answers = _log_answers(student, temperature).exp()
    wanted = _log_answers(teacher.detach(), temperature).exp()
    rows = _half_square(_deviations(answers), _deviations(wanted))
    classes = _half_square(_deviations(answers.mT), _deviations(wanted.mT))
    return temperature**2 * (beta * rows + gamma * classes)


def _soften(logits: Tensor, temperature: float, standardize: bool = False) -> Tensor:
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}, not above 0")
    logits = logits.float()
    if standardize:
        spread = logits.std(-1, keepdim=True).clamp_min(FLAT)
        logits = (logits - logits.mean(-1, keepdim=True)) / spread
    return logits / temperature


def _log_answers(logits: Tensor, temperature: float, standardize: bool = False) -> Tensor:
    return _soften(logits, temperature, standardize).log_softmax(-1)


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q) of each row."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _decouple(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Log probabilities of (target, not target), and of the others among themselves."""
    rows, classes = logits.shape
    others = logits[~target].view(rows, classes - 1)
    pair = torch.stack([logits[target], others.logsumexp(-1)], -1)
    return pair.log_softmax(-1), others.log_softmax(-1)


def _deviations(values: Tensor) -> Tensor:
    """Deviations from the mean of each row, scaled to length one; near zero where it is flat."""
    size = values.detach().norm(dim=-1, keepdim=True).clamp_min(TINY)
    return F.normalize((values - values.mean(-1, keepdim=True)) / size, dim=-1, eps=FLAT)


def _half_square(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 - student · teacher over unit rows; zero, not 0/0, where both have no length."""
    return (student - teacher).square().sum(-1).mean() / 2
