"""How far made-up inputs are from what a teacher's batch normalization remembers of its data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attar.taps import evaluating
from attar.teach.asking import ask
from attar.types import IGNORE, Batch, Forward

_FLOOR = 1e-5
"""Added to the variance of the inputs, as batch normalization adds as much: a root has no slope at
zero."""


def norms(teacher: nn.Module) -> list[_BatchNorm]:
    """The batch normalizations that remember something: those with running statistics."""
    return [
        module
        for module in teacher.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]


@dataclass(frozen=True)
class Wish:
    """What inputs are to be like; the weights are those of `data_free`."""

    teacher: nn.Module
    student: nn.Module
    forward: Forward
    aim: float
    normal: float
    compete: float = 0.0

    @property
    def device(self) -> torch.device:
        """Where the teacher is, and so where inputs are made."""
        return next(self.teacher.parameters()).device

    def classes(self, like: Tensor) -> int:
        """How many the teacher tells apart."""
        example = unlabelled(torch.zeros_like(like[:1], device=self.device), [0])
        return len(ask(self.teacher, example, self.forward).logits[0])

    def cost(self, inputs: Tensor, classes: Tensor) -> Tensor:
        """A scalar with a gradient for the inputs (rows, ...), wanted to be of these classes."""
        batch = unlabelled(inputs, range(len(inputs)))
        with _entering(self.teacher) as heard, evaluating(self.teacher):
            logits = self.forward(self.teacher, batch).logits.float()
        zero, one = inputs.new_zeros(()), inputs.new_ones(())
        cost = self.normal * _apart(inputs, zero, one, _FLOOR)
        for norm, values in heard:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            cost = cost + _apart(values, norm.running_mean, norm.running_var, norm.eps)
        cost = cost + self.aim * F.cross_entropy(logits, classes.to(logits.device))
        if self.compete == 0:
            return cost
        with evaluating(self.student):
            answer = self.forward(self.student, batch).logits.float()
        return cost - self.compete * _disagreement(logits, answer.to(logits.device))


def unlabelled(inputs: Tensor, names: Iterable[object]) -> Batch:
    """Made-up inputs as a batch: nobody knows their labels."""
    keys = tuple(f"imagined-{name}" for name in names)
    return Batch(inputs, torch.full((len(inputs),), IGNORE), keys)


@contextmanager
def _entering(teacher: nn.Module) -> Iterator[list[tuple[_BatchNorm, Tensor]]]:
    """Gathers what enters each batch normalization while the teacher runs inside the `with`."""
    heard: list[tuple[_BatchNorm, Tensor]] = []

    def listen(norm: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(norm, _BatchNorm)
        heard.append((norm, inputs[0]))

    handles = [norm.register_forward_pre_hook(listen) for norm in norms(teacher)]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def _apart(values: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    """Squared distance of each channel's mean and deviation from those wanted; mean over them."""
    values = values.float()
    others = [dim for dim in range(values.dim()) if dim != 1]
    shift = values.mean(others) - mean.float()
    deviation = (values.var(others, correction=0) + eps).sqrt()
    stretch = deviation - (variance.float() + eps).sqrt()
    return (shift.square() + stretch.square()).mean()


def _disagreement(one: Tensor, other: Tensor) -> Tensor:
    """Jensen-Shannon divergence of (rows, classes) logits, a mean over rows, at most log 2."""
    sides = torch.stack([one.log_softmax(1), other.log_softmax(1)])
    middle = sides.logsumexp(0) - math.log(2)
    return (sides.exp() * (sides - middle)).sum(2).mean()
