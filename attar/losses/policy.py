"""Losses that compare policies: what the student would do with what the teacher does, and values.

Of choices the answers are logits or values (rows, choices). Of actions that are numbers they are
the means and then the logarithms of the deviations of independent Gaussians, (rows, twice the
numbers). Each takes any float type, works in float32, returns the mean over rows as a float32
scalar, and sends no gradient to the teacher. `ppo` and `proximal_kl` are for students that act and
are rewarded: they ask what was `played`.
"""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .response.softening import Logits, divergence, log_answers

SPREAD = (-3.0, 2.0)
"""The log deviations between which Gaussians are told apart: below, a gradient would explode."""


def kl(student: Logits, teacher: Logits, *, temperature: float = 0.01) -> Tensor:
    """KL(softmax(teacher / T) ‖ softmax(student)): the student learns a policy as it is.

    temperature: of the teacher alone. The values of a DQN differ by little from action to action,
        and 0.01 makes a clear choice of them; of a policy that is one already (PPO) take 1

    Raises ValueError if the temperature is not positive.
    Source: Rusu et al., Policy Distillation, ICLR 2016, equation 3.
    """
    wanted = log_answers(teacher.detach(), temperature)
    return divergence(wanted, log_answers(student, 1.0)).mean()


def reverse_kl(student: Logits, teacher: Logits, *, temperature: float = 1.0) -> Tensor:
    """KL(softmax(student) ‖ softmax(teacher / T)): the student leaves out what it can't say.

    temperature: of the teacher alone, as in `kl`

    Raises ValueError if the temperature is not positive.
    Source: Czarnecki et al., Distilling Policy Distillation, AISTATS 2019, section 3.
    """
    wanted = log_answers(teacher.detach(), temperature)
    return divergence(log_answers(student, 1.0), wanted).mean()


def nll(student: Logits, teacher: Logits) -> Tensor:
    """-log softmax(student) of the choice that the teacher makes, and nothing of all the others.

    Source: Rusu et al., Policy Distillation, ICLR 2016, equation 1.
    """
    return F.cross_entropy(student.float(), teacher.detach().argmax(-1))


def mse(student: Logits, teacher: Logits) -> Tensor:
    """(teacher - student)² summed over choices: known to fail on the values of a DQN.

    Values of what is best and what is not differ by less than a small student errs in all of them,
    so it spends itself on their size and gets their order wrong. Take `kl` to act; this is for
    values whose size is what one wants.

    Source: Rusu et al., Policy Distillation, ICLR 2016, equation 2 (and table 1, where it fails).
    """
    return (teacher.detach().float() - student.float()).square().sum(-1).mean()


def value(student: Logits, teacher: Logits, *, scale: float = 1.0) -> Tensor:
    """½ ((teacher - student) / scale)² of a critic's value: regression on standardised returns.

    scale: the standard deviation of the teacher's values, so that a unit is one of them

    Raises ValueError if the scale is not positive.
    """
    if scale <= 0:
        raise ValueError(f"scale is {scale}, not above 0")
    apart = (teacher.detach().float() - student.float()) / scale
    return apart.square().sum(-1).mean() / 2


def gaussian_kl(student: Logits, teacher: Logits) -> Tensor:
    """KL(teacher ‖ student) of Gaussians: log σ_S/σ_T + (σ_T² + (μ_T - μ_S)²) / 2σ_S² - ½, summed.

    Where the teacher is sure of an action, the student is held to it, and where it is not, not.

    Raises ValueError where the answers are not pairs.
    """
    (mine, my_log), (its, its_log) = _gaussian(student), _gaussian(teacher.detach())
    return _apart(its, its_log, mine, my_log).mean()


def gaussian_reverse_kl(student: Logits, teacher: Logits) -> Tensor:
    """KL(student ‖ teacher) of Gaussians: the distance of means counts in the teacher's deviations.

    Raises ValueError where the answers are not pairs.
    """
    (mine, my_log), (its, its_log) = _gaussian(student), _gaussian(teacher.detach())
    return _apart(mine, my_log, its, its_log).mean()


def ppo(student: Logits, batch: Any, *, clip: float = 0.2, entropy: float = 0.0) -> Tensor:
    """-min(r A, clamp(r, 1 - clip, 1 + clip) A): the student's own reward, a short way at a time.

    r is how much likelier it would do now what it did, A how much better than its usual that was.

    clip: how far r may go before it is worth no more
    entropy: weight of the entropy of what it would do, so that it goes on trying

    Raises ValueError where the student has not played, or clip is not above 0.
    Source: Schulman et al., Proximal Policy Optimization Algorithms, 2017, equations 7 and 9.
    """
    if clip <= 0:
        raise ValueError(f"clip is {clip}, not above 0")
    ratio, advantages = _ratio(student, batch), _played(batch).advantages.to(student.device)
    gain = (ratio * advantages).minimum(ratio.clamp(1 - clip, 1 + clip) * advantages)
    worth: Tensor = -(gain + entropy * _entropy(student, _played(batch).actions)).mean()
    return worth


def proximal_kl(
    student: Logits, teacher: Logits, batch: Any, *, clip: float = 0.2, temperature: float = 1.0
) -> Tensor:
    """max(r, 1 - clip) KL(teacher ‖ student), r as in `ppo`: proximal policy distillation.

    What the student has become likelier to do counts more, what it has left hardly less. The
    paper's whole loss is `ppo` beside this with its weight λ; of choices and of Gaussians.

    clip: how far below 1 a row may count
    temperature: of a teacher of choices, as in `kl`

    Raises ValueError where the student has not played, or clip is not from 0 to 1.
    Source: Spigler, Proximal Policy Distillation, TMLR 2025, and its code (the ratio is bounded
    from below alone, and both factors have a gradient).
    """
    if not 0 <= clip <= 1:
        raise ValueError(f"clip is {clip}, not from 0 to 1")
    if _played(batch).actions.dim() > 1:
        (mine, my_log), (its, its_log) = _gaussian(student), _gaussian(teacher.detach())
        apart = _apart(its, its_log, mine, my_log)
    else:
        wanted = log_answers(teacher.detach(), temperature)
        apart = divergence(wanted, log_answers(student, 1.0))
    return (_ratio(student, batch).clamp(min=1 - clip) * apart).mean()


def _played(batch: Any) -> Any:
    """What the student did. Raises ValueError where it did nothing."""
    if batch.played is None:
        raise ValueError("it is about what the student does itself; take `teach: rewarded`")
    return batch.played


def _ratio(student: Tensor, batch: Any) -> Tensor:
    """How much likelier (rows,) the student would do now what it did."""
    played = _played(batch)
    actions = played.actions.to(student.device)
    before = _likelihood(played.answers.to(student.device), actions)
    return (_likelihood(student, actions) - before).exp()


def _likelihood(answers: Tensor, actions: Tensor) -> Tensor:
    """The log-likelihood (rows,) of choices, or of numbers under Gaussians."""
    if actions.dim() == 1:
        return log_answers(answers, 1.0).gather(1, actions[:, None])[:, 0]
    mean, log = _gaussian(answers)
    scaled = (actions - mean) * (-log).exp()
    return -(scaled.square() / 2 + log + math.log(2 * math.pi) / 2).sum(1)


def _entropy(answers: Tensor, actions: Tensor) -> Tensor:
    """The entropy (rows,) of what would be done."""
    if actions.dim() == 1:
        log = log_answers(answers, 1.0)
        return -(log.exp() * log).sum(1)
    return (_gaussian(answers)[1] + math.log(2 * math.pi * math.e) / 2).sum(1)


def _gaussian(answers: Tensor) -> tuple[Tensor, Tensor]:
    """Means and log deviations, the latter within bounds."""
    if answers.shape[-1] % 2:
        raise ValueError(
            f"answers of {answers.shape[-1]} numbers are no means with their log deviations"
        )
    mean, log = answers.float().chunk(2, -1)
    return mean, log.clamp(*SPREAD)


def _apart(mean: Tensor, log: Tensor, other: Tensor, other_log: Tensor) -> Tensor:
    """KL(first ‖ other), (rows,)."""
    distance = (mean - other).square() * (-2 * other_log).exp()
    # expm1 and not exp - 1, which loses what is left where both deviations are nearly the same.
    ratio = (2 * (log - other_log)).expm1()
    return ((ratio + distance) / 2 - (log - other_log)).sum(-1)
