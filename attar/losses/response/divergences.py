"""Losses that measure how far one distribution of answers is from another, row by row."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .few import entropy_of_few, surprise_of_few
from .softening import (
    TINY,
    Answers,
    Logits,
    divergence,
    log_answers,
    mixed,
    rowwise,
    soften,
    whole,
)


@rowwise
def kl(
    student: Logits, teacher: Answers, *, temperature: float = 1.0, standardize: bool = False
) -> Tensor:
    """T² KL(teacher ‖ student) of the softened answers.

    `standardize` first gives each row of logits mean zero and standard deviation one (the sample's,
    as in the authors' code), so that only their shape is matched; with two classes only the sign
    is left of them. The deviation is kept above 1e-3, so a constant row gives a finite gradient.
    Of a teacher of whom few classes are kept, drawn ones among them, it is the KL of what they
    estimate: its gradient at T = 1 has no bias.

    Raises ValueError if the temperature is not positive.
    Source: Hinton et al., Distilling the Knowledge in a Neural Network, 2015;
    Sun et al., Logit Standardization in Knowledge Distillation, CVPR 2024.
    """
    if not isinstance(teacher, Tensor) and temperature == 1 and not standardize:
        return (surprise_of_few(student, teacher) - entropy_of_few(teacher)).mean()
    log_student = log_answers(student, temperature, standardize)
    log_teacher = log_answers(whole(teacher), temperature, standardize)
    return temperature**2 * divergence(log_teacher, log_student).mean()


@rowwise
def reverse_kl(student: Logits, teacher: Answers, *, temperature: float = 1.0) -> Tensor:
    """T² KL(student ‖ teacher): the student may leave out what it can't say, but invents nothing.

    Raises ValueError if the temperature is not positive.
    Source: Gu et al., MiniLLM, ICLR 2024, equation 1.
    """
    log_student = log_answers(student, temperature)
    log_teacher = log_answers(whole(teacher), temperature)
    return temperature**2 * divergence(log_student, log_teacher).mean()


@rowwise
def jeffreys(student: Logits, teacher: Answers, *, temperature: float = 1.0) -> Tensor:
    """T² (KL(teacher ‖ student) + KL(student ‖ teacher)): the symmetric KL, `kl` + `reverse_kl`.

    Raises ValueError if the temperature is not positive.
    Source: Jeffreys, An Invariant Form for the Prior Probability in Estimation Problems,
    Proceedings of the Royal Society A, 1946.
    """
    log_student = log_answers(student, temperature)
    log_teacher = log_answers(whole(teacher), temperature)
    both = (log_teacher.exp() - log_student.exp()) * (log_teacher - log_student)
    return temperature**2 * both.sum(-1).mean()


@rowwise
def jsd(
    student: Logits, teacher: Answers, *, beta: float = 0.5, temperature: float = 1.0
) -> Tensor:
    """T² (β KL(teacher ‖ m) + (1 - β) KL(student ‖ m)) with m = β teacher + (1 - β) student.

    Never above T² log 2. It vanishes as β nears 0 or 1 (only divided by β does it tend to `kl`),
    so those two are refused instead of silently changing the scale.

    Raises ValueError if β is not between 0 and 1 or the temperature is not positive.
    Source: Agarwal et al., On-Policy Distillation of Language Models (GKD), ICLR 2024,
    generalized Jensen-Shannon divergence.
    """
    if not 0 < beta < 1:
        raise ValueError(f"beta is {beta}, not between 0 and 1: use kl for 0, reverse_kl for 1")
    log_student = log_answers(student, temperature)
    log_teacher = log_answers(whole(teacher), temperature)
    middle = mixed(log_teacher, log_student, beta)
    both = beta * divergence(log_teacher, middle) + (1 - beta) * divergence(log_student, middle)
    return temperature**2 * both.mean()


@rowwise
def skew_kl(
    student: Logits, teacher: Answers, *, alpha: float = 0.1, temperature: float = 1.0
) -> Tensor:
    """T² KL(teacher ‖ α teacher + (1 - α) student): `kl` that stays below -T² log α.

    Raises ValueError if α is not at least 0 (then it is `kl`) and below 1 (then it is zero), or the
    temperature is not positive.
    Source: Ko et al., DistiLLM, ICML 2024, skew KL divergence.
    """
    log_student = log_answers(student, temperature)
    log_teacher = log_answers(whole(teacher), temperature)
    middle = mixed(log_teacher, log_student, _skew(alpha))
    return temperature**2 * divergence(log_teacher, middle).mean()


@rowwise
def skew_reverse_kl(
    student: Logits, teacher: Answers, *, alpha: float = 0.1, temperature: float = 1.0
) -> Tensor:
    """T² KL(student ‖ α student + (1 - α) teacher): `reverse_kl` that stays below -T² log α.

    Raises ValueError if α is not at least 0 (then it is `reverse_kl`) and below 1 (then it is
    zero), or the temperature is not positive.
    Source: Ko et al., DistiLLM, ICML 2024, skew reverse KL divergence.
    """
    log_student = log_answers(student, temperature)
    log_teacher = log_answers(whole(teacher), temperature)
    middle = mixed(log_student, log_teacher, _skew(alpha))
    return temperature**2 * divergence(log_student, middle).mean()


@rowwise
def total_variation(student: Logits, teacher: Answers, *, temperature: float = 1.0) -> Tensor:
    """T ½ Σ |teacher - student| of the softened answers: the most any event's chance differs by.

    Multiplied by T and not T²: its gradient shrinks with 1 / T only. Never above T.

    Raises ValueError if the temperature is not positive.
    Source: Wen et al., f-Divergence Minimization for Sequence-Level Knowledge Distillation,
    ACL 2023 (total variation distance).
    """
    answers = log_answers(student, temperature).exp()
    wanted = log_answers(whole(teacher), temperature).exp()
    return temperature * (wanted - answers).abs().sum(-1).mean() / 2


@rowwise
def adaptive_kl(
    student: Logits, teacher: Answers, *, head: float = 0.5, temperature: float = 1.0
) -> Tensor:
    """T² (w KL(teacher ‖ student) + (1 - w) KL(student ‖ teacher)), w from where the two differ.

    head: the teacher's likeliest classes, as many as together have no more than this mass and at
        least one, are its head, the others its tail

    w of a row is the head's share of Σ |teacher - student| and sends back no gradient: `kl` fits
    the head first, `reverse_kl` the tail.

    Raises ValueError if `head` is not in (0, 1], or the temperature is not positive.
    Source: Wu et al., Rethinking Kullback-Leibler Divergence in Knowledge Distillation for Large
    Language Models, 2024 (AKL, μ = 0.5).
    """
    if not 0 < head <= 1:
        raise ValueError(f"head is {head}, not above 0 and at most 1: it is a share of the answer")
    log_student = log_answers(student, temperature)
    log_teacher = log_answers(whole(teacher), temperature)
    share = _head_share(log_student, log_teacher, head)
    forward, reverse = divergence(log_teacher, log_student), divergence(log_student, log_teacher)
    return temperature**2 * (share * forward + (1 - share) * reverse).mean()


@rowwise
def alpha_beta(
    student: Logits,
    teacher: Answers,
    *,
    alpha: float = 0.2,
    beta: float = 0.7,
    temperature: float = 1.0,
) -> Tensor:
    """-T²/(αβ) Σ (p^α q^β - α/(α+β) p^(α+β) - β/(α+β) q^(α+β)), p the teacher's, q the student's.

    A larger α weighs classes where the two differ more, a larger β those the student believes in.
    Where α or β is 0 the limit is taken: (1, 0) is `kl`, (0, 1) is `reverse_kl`, and (0, 0) is
    half the sum of the squared differences of the log probabilities, which nothing bounds.

    Raises ValueError if α or β is negative or the temperature is not positive.
    Source: Wang et al., ABKD, ICML 2025 (α-β-divergence); the limits: Cichocki et al., Generalized
    Alpha-Beta Divergences, Entropy 2011.
    """
    if alpha < 0 or beta < 0:
        raise ValueError(f"alpha is {alpha} and beta {beta}: neither may be below 0")
    log_q = log_answers(student, temperature)
    log_p = log_answers(whole(teacher), temperature)
    if alpha > beta:  # with p and q exchanged it is the same divergence, here of a larger β
        alpha, beta, log_p, log_q = beta, alpha, log_q, log_p
    if beta == 0:
        return temperature**2 * (log_p - log_q).square().sum(-1).mean() / 2
    weighed = (beta * log_q).exp() * _power_gap(log_p, log_q, alpha)
    parts = (_power_gap(log_p, log_q, alpha + beta) - weighed) / beta
    return temperature**2 * parts.sum(-1).mean()


@rowwise
def soft_cross_entropy(student: Logits, teacher: Answers, *, temperature: float = 1.0) -> Tensor:
    """-T² Σ teacher log student: `kl` plus the teacher's entropy, hence with the same gradient.

    Raises ValueError if the temperature is not positive.
    Source: Jiao et al., TinyBERT, 2020, equation 10 (there with T = 1).
    """
    if not isinstance(teacher, Tensor) and temperature == 1:
        return surprise_of_few(student, teacher).mean()
    log_student = log_answers(student, temperature)
    answers = log_answers(whole(teacher), temperature).exp()
    return -(temperature**2) * (answers * log_student).sum(-1).mean()


@rowwise
def binary(student: Logits, teacher: Answers, *, temperature: float = 1.0) -> Tensor:
    """T² Σ over classes of KL(teacher ‖ student) of yes or no: for several labels at a time.

    Each class is answered by itself, yes with probability sigmoid(logit / T).

    Raises ValueError if the temperature is not positive.
    Source: Yang et al., Multi-Label Knowledge Distillation, ICCV 2023 (one-versus-all logits).
    """
    ours, theirs = soften(student, temperature), soften(whole(teacher), temperature)
    yes = theirs.sigmoid() * (F.logsigmoid(theirs) - F.logsigmoid(ours))
    no = (-theirs).sigmoid() * (F.logsigmoid(-theirs) - F.logsigmoid(-ours))
    return temperature**2 * (yes + no).sum(-1).mean()


def _skew(alpha: float) -> float:
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha is {alpha}, not at least 0 and below 1")
    return alpha


@torch.no_grad()
def _head_share(log_student: Tensor, log_teacher: Tensor, head: float) -> Tensor:
    """(rows,): the share of what the two differ by that lies in the teacher's head."""
    ranked, order = log_teacher.exp().sort(stable=True, dim=-1, descending=True)
    gap = (ranked - log_student.exp().gather(-1, order)).abs()
    leading = ranked.cumsum(-1) <= head
    leading[:, 0] = True
    return (gap * leading).sum(-1) / gap.sum(-1).clamp_min(TINY)


def _power_gap(log_p: Tensor, log_q: Tensor, power: float) -> Tensor:
    """(p^power - q^power) / power, in full precision down to its limit log p - log q."""
    if power == 0:
        return log_p - log_q
    return ((power * log_p).expm1() - (power * log_q).expm1()) / power
