"""Losses that compare policies: what the student would do with what the teacher does, and values.

Of choices the answers are logits or values (rows, choices). Of actions that are numbers they are
the means and then the logarithms of the deviations of independent Gaussians, (rows, twice the
numbers). Each takes any float type, works in float32, returns the mean over rows as a float32
scalar, and sends no gradient to the teacher.
"""

from __future__ import annotations

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
    return _apart(its, its_log, mine, my_log)


def gaussian_reverse_kl(student: Logits, teacher: Logits) -> Tensor:
    """KL(student ‖ teacher) of Gaussians: the distance of means counts in the teacher's deviations.

    Raises ValueError where the answers are not pairs.
    """
    (mine, my_log), (its, its_log) = _gaussian(student), _gaussian(teacher.detach())
    return _apart(mine, my_log, its, its_log)


def _gaussian(answers: Tensor) -> tuple[Tensor, Tensor]:
    """Means and log deviations, the latter within bounds."""
    if answers.shape[-1] % 2:
        raise ValueError(
            f"answers of {answers.shape[-1]} numbers are no means with their log deviations"
        )
    mean, log = answers.float().chunk(2, -1)
    return mean, log.clamp(*SPREAD)


def _apart(mean: Tensor, log: Tensor, other: Tensor, other_log: Tensor) -> Tensor:
    """KL(first ‖ other), the mean over rows."""
    distance = (mean - other).square() * (-2 * other_log).exp()
    # expm1 and not exp - 1, which loses what is left where both deviations are nearly the same.
    ratio = (2 * (log - other_log)).expm1()
    return ((ratio + distance) / 2 - (log - other_log)).sum(-1).mean()
