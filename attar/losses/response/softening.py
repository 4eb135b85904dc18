"""What the losses over logits share: answers softened by a temperature, and which have a label."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
from torch import Tensor

Logits: TypeAlias = Tensor  # (rows, classes)


class Few(Protocol):
    """What a teacher says of a few classes of each row, in place of logits of very many."""

    @property
    def shape(self) -> torch.Size:
        """That of the logits: (rows, classes)."""

    def dense(self) -> Tensor:
        """Logits as far as they are known; ValueError where that is not enough for any."""

    def estimate(self) -> tuple[Tensor, Tensor, Tensor]:
        """Classes (rows, entries), what each one's probability is above a floor, floor (rows,)."""


Answers: TypeAlias = Tensor | Few


@runtime_checkable
class Foreign(Protocol):
    """What a teacher answers in classes that are not the student's: tokens of its own."""

    @property
    def logits(self) -> Answers:
        """(rows, its classes)"""

    def nearest(self) -> Tensor:
        """(its classes,) int64: the student's class that each of them comes nearest to."""


Loss = TypeVar("Loss", bound=Callable[..., Tensor])

UNKNOWN = -100
# A spread below this is rounding, not knowledge; dividing by less would send back gradients
# that no half-precision float can hold.
FLAT = 1e-3
# What a quotient is divided by at the least, where only 0/0 has to be kept away.
TINY = 1e-12


def rowwise(loss: Loss) -> Loss:
    """Says of a loss that it is a mean over rows, each seen by itself: chunks of them will do."""
    vars(loss)["rowwise"] = True
    return loss


def whole(teacher: Answers) -> Tensor:
    """The teacher's logits, through which no gradient can flow.

    Raises ValueError where it says so little that there are none.
    """
    return teacher.detach() if isinstance(teacher, Tensor) else teacher.dense()


def soften(logits: Tensor, temperature: float | Tensor, standardize: bool = False) -> Tensor:
    """The logits as float32, divided by the temperature; standardized first where that is asked.

    Raises ValueError if the temperature is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {float(temperature)}, not above 0")
    logits = logits.float()
    if standardize:
        logits = logits - logits.mean(-1, keepdim=True)
        variance = logits.square().sum(-1, keepdim=True) / (logits.shape[-1] - 1)
        logits = logits / variance.clamp_min(FLAT**2).sqrt()
    # Of a large vocabulary a division by one would be one more tensor as large.
    return (
        logits
        if isinstance(temperature, float | int) and temperature == 1
        else logits / temperature
    )


def log_answers(logits: Tensor, temperature: float | Tensor, standardize: bool = False) -> Tensor:
    """Log probabilities of the softened logits."""
    return soften(logits, temperature, standardize).log_softmax(-1)


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q) of each row."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def mixed(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    """The logarithm of `share` p + (1 - `share`) q, for a share from 0 to below 1."""
    if share == 0:
        return log_q
    return torch.logaddexp(log_p + math.log(share), log_q + math.log1p(-share))


def targets(labels: Tensor, teacher: Tensor) -> Tensor:
    """(rows,) the label; where it is not known (-100) what the teacher finds likeliest."""
    return torch.where(labels == UNKNOWN, teacher.argmax(-1), labels)


def labelled(labels: Tensor) -> Tensor:
    """(rows,), True where the label is known: a class that is not -100, numbers without a NaN."""
    if labels.is_floating_point():
        return ~labels.reshape(len(labels), -1).isnan().any(-1)
    return labels != UNKNOWN


def mean_over_known(values: Tensor) -> Tensor:
    """The mean of what the known rows gave; where there are none a zero that still has a graph."""
    return values.sum() / max(len(values), 1)
