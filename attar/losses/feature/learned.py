"""Losses over one token at a time that learn something: a projection, a variance, a margin."""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Standardization, linear, seeded, standardized
from .places import FLAT, tokens

Features: TypeAlias = Tensor  # (rows, length, width) or pooled (rows, width)


class srd(nn.Module):  # noqa: N801
    """log Σ |n(projected student) - n(teacher)|^power, with n batch normalization without scale.

    The sum is over the width and its mean over the real tokens; the paper sums over both, which
    differs by the logarithm of their number and has the same gradient. The projection is linear and
    is left behind after training. A single token has no deviation: it moves nothing.

    power: of the difference; above 1 it lets small differences be
    Raises ValueError if the power is below 1, where the slope at no difference has no limit.
    Source: Miles and Mikolajczyk, Understanding the Role of the Projector in Knowledge
    Distillation, AAAI 2024, Algorithm 1.
    """

    # A variance below this is rounding, as in the authors' code.
    least_variance = 1e-4

    def __init__(self, student: Features, teacher: Features, *, power: float = 4.0) -> None:
        super().__init__()
        if power < 1:
            raise ValueError(f"power is {power}, not 1 or more")
        self.power = power
        self.project = linear(student.shape[-1], teacher.shape[-1], seeded(), bias=False)

    def forward(self, student: Features, teacher: Features, mask: Tensor | None = None) -> Tensor:
        theirs = tokens(teacher.detach(), mask)
        with torch.autocast(student.device.type, enabled=False):
            ours: Tensor = self.project(tokens(student, mask))
        gap = standardized(ours, ours, self.least_variance)
        gap = gap - standardized(theirs, theirs, self.least_variance)
        # Of no difference there is no logarithm; one of FLAT is none.
        left: Tensor = gap.abs().pow(self.power).sum(-1).mean() + FLAT**self.power
        return left.log()


class vid(nn.Module):  # noqa: N801
    """(t - μ(s))² / 2σ² + log σ, mean over real tokens and width: what s leaves unsaid of t.

    μ is three linear maps with ReLU between them, σ² = log(1 + e^a) + 1e-5 a learned variance of
    each of the teacher's channels, so that what can't be told from the student weighs less. It is
    a negative log likelihood without its constant, and becomes negative as the student learns.

    variance: what σ² begins with
    Raises ValueError if the variance is not above its floor of 1e-5.
    Source: Ahn et al., Variational Information Distillation for Knowledge Transfer, CVPR 2019
    (section on the variational distribution, with the variances of the authors' code).
    Published below plain KD (ResNet-56 -> 20: 70.38 against 70.66, Tian et al. 2020).
    """

    # As in the authors' code: certainty is never so large that one token rules the gradient.
    floor = 1e-5

    def __init__(self, student: Features, teacher: Features, *, variance: float = 5.0) -> None:
        super().__init__()
        if not variance > self.floor:
            raise ValueError(f"variance is {variance}, not above {self.floor}")
        generator, width = seeded(), teacher.shape[-1]
        self.mean = nn.Sequential(
            linear(student.shape[-1], width, generator),
            nn.ReLU(),
            linear(width, width, generator),
            nn.ReLU(),
            linear(width, width, generator),
        )
        self.spread = nn.Parameter(torch.full((width,), _softplus_inverse(variance - self.floor)))

    def forward(self, student: Features, teacher: Features, mask: Tensor | None = None) -> Tensor:
        with torch.autocast(student.device.type, enabled=False):
            gap: Tensor = tokens(teacher.detach(), mask) - self.mean(tokens(student, mask))
        variance = F.softplus(self.spread) + self.floor
        return (gap.square() / variance + variance.log()).mean() / 2


def _softplus_inverse(value: float) -> float:
    return value + math.log(-math.expm1(-value))


class ofd(nn.Module):  # noqa: N801
    """(s - max(t, m))², but nothing where s ≤ max(t, m) ≤ 0; mean over real tokens and width.

    s is the student's feature after a linear map and batch normalization. The margin m of a channel
    is the mean of the teacher's negative responses in it, over all batches seen so far (the paper
    works it out from the teacher's batch normalization, which not every layer has); before the
    first it is 0. Give it layers before their ReLU: what is lost in it need not be learned. The
    authors' code takes the sum over a row, times 1 / 1000, half as much for each earlier layer.

    Source: Heo et al., A Comprehensive Overhaul of Feature Distillation, ICCV 2019
    (margin ReLU and partial L2).
    """

    margin: Tensor
    negatives: Tensor

    def __init__(self, student: Features, teacher: Features) -> None:
        super().__init__()
        width = teacher.shape[-1]
        self.project = linear(student.shape[-1], width, seeded(), bias=False)
        self.standardize = Standardization(width)
        self.register_buffer("margin", torch.zeros(width))
        self.register_buffer("negatives", torch.zeros(width))

    def forward(self, student: Features, teacher: Features, mask: Tensor | None = None) -> Tensor:
        theirs = tokens(teacher.detach(), mask)
        if self.training:
            self._learn_margin(theirs)
        with torch.autocast(student.device.type, enabled=False):
            ours: Tensor = self.standardize(self.project(tokens(student, mask)))
        target = theirs.maximum(self.margin)
        told = (ours > target) | (target > 0)
        return ((ours - target).square() * told).mean()

    @torch.no_grad()
    def _learn_margin(self, teacher: Tensor) -> None:
        negative = teacher < 0
        self.negatives += negative.sum(0)
        beyond = torch.where(negative, teacher - self.margin, 0).sum(0)
        self.margin += beyond / self.negatives.clamp_min(1)
