"""Losses that compare what features have in common: with one another, or over the places."""

from __future__ import annotations

from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from .places import FLAT, clean, real

Rows: TypeAlias = Tensor  # (rows, width)
Maps: TypeAlias = Tensor  # (rows, length, width)

# The least similarity with a logarithm of its own, as in the authors' code.
LEAST = 1e-7


def pkt(student: Rows, teacher: Rows) -> Tensor:
    """KL(teacher ‖ student) of how likely each row takes each other row for its neighbour.

    Row i takes row j ≠ i with probability k(i, j) / Σ_{l ≠ i} k(i, l), k = (1 + cosine) / 2. Mean
    over the rows; a single row has no neighbour and costs nothing. (The authors' code counts a row
    as its own neighbour too, and takes the mean over pairs.)

    Source: Passalis and Tefas, Learning Deep Representations with Probabilistic Knowledge Transfer,
    ECCV 2018 (cosine kernel).
    Published below plain KD (ResNet-56 -> 20: 70.34 against 70.66, Tian et al. 2020).
    """
    ours, theirs = _log_neighbours(student), _log_neighbours(teacher.detach())
    return (theirs.exp() * (theirs - ours)).sum(-1).mean()


def _log_neighbours(features: Tensor) -> Tensor:
    """(rows, rows - 1) log probabilities."""
    rows = len(features)
    units = F.normalize(features.float(), dim=-1, eps=FLAT)
    with torch.autocast(features.device.type, enabled=False):
        alike = (1 + units @ units.mT) / 2
    others = ~torch.eye(rows, dtype=torch.bool, device=features.device)
    alike = alike[others].view(rows, rows - 1).clamp_min(LEAST)
    return alike.log() - alike.sum(-1, keepdim=True).log()


def nst(student: Maps, teacher: Maps, mask: Tensor | None = None) -> Tensor:
    """The squared maximum mean discrepancy of what the neurons of both select, mean over rows.

    A neuron is the unit vector of its activations over a row's real places; with the kernel
    k(x, y) = (x · y)² it is mean k(s, s') + mean k(t, t') - 2 mean k(s, t) over all pairs of
    neurons. Widths may differ.

    Source: Huang and Wang, Like What You Like: Knowledge Distill via Neuron Selectivity Transfer,
    2017 (MMD with the polynomial kernel, d = 2, c = 0).
    Published below plain KD (ResNet-56 -> 20: 69.60 against 70.66, Tian et al. 2020).
    """
    kept = real(student, mask)
    ours = F.normalize(clean(student, kept), dim=1, eps=FLAT)
    theirs = F.normalize(clean(teacher.detach(), kept), dim=1, eps=FLAT)
    with torch.autocast(student.device.type, enabled=False):
        return _kernel(ours, ours) + _kernel(theirs, theirs) - 2 * _kernel(ours, theirs)


def _kernel(some: Tensor, others: Tensor) -> Tensor:
    return (some.mT @ others).square().mean()
