"""Losses over how the examples of a batch stand to one another: distances, angles, similarities."""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Rows: TypeAlias = Tensor  # (rows, width)

# A length below this is rounding, not a relation; dividing by less would send back gradients
# that no half-precision float can hold.
FLAT = 1e-3
# Angles are taken at this many examples at once: all of them would need rows² x width numbers.
VERTICES = 32


def distance(student: Rows, teacher: Rows) -> Tensor:
    """Huber of the difference of the distances between examples, over all pairs.

    Distances are Euclidean, in units of the mean distance of that model's examples. Examples that
    coincide are zero apart and left out of this mean, and the mean of the loss is over rows² pairs,
    as in the authors' code; so a batch given twice over costs the same.

    The authors give `distance` weight 25 beside `angle`'s 50. Together published below plain KD on
    all seven pairs (ResNet-56 -> 20: 69.61 against 70.66, Tian et al. 2020): for a place beside
    `response.kl`.
    Source: Park et al., Relational Knowledge Distillation, CVPR 2019 (RKD-D, δ = 1).
    """
    return F.huber_loss(_relative(apart(student)), _relative(apart(teacher.detach())))


def angle(student: Rows, teacher: Rows) -> Tensor:
    """Huber of the difference of the cosines of the angles, over all triplets of examples.

    The angle i j k lies at j, between the ways to i and to k. Where two of the three coincide
    there is none, and it counts as zero. The mean is over rows³, as in the authors' code.

    Published, together with `distance`, below plain KD: see there.
    Source: Park et al., Relational Knowledge Distillation, CVPR 2019 (RKD-A, δ = 1).
    """
    ours, theirs = student.float(), teacher.detach().float()
    gaps = [
        checkpoint(_angle_gap, ours, theirs, at, use_reentrant=False, preserve_rng_state=False)
        for at in torch.arange(len(ours), device=ours.device).split(VERTICES)
    ]
    return torch.stack(gaps).sum() / len(ours) ** 3


def similarity(student: Rows, teacher: Rows) -> Tensor:
    """‖G_student - G_teacher‖² / rows², G the inner products of all examples, rows of length one.

    A row of G has length one whatever the batch, so the loss falls as 1 / rows: the authors'
    weight of 3000 is for batches of 64 (on CIFAR).

    Published below plain KD on all seven pairs (ResNet-56 -> 20: 69.67 against 70.66, Tian et al.
    2020).
    Source: Tung and Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019 (L_SP of
    one pair of layers).
    """
    return F.mse_loss(_similarities(student), _similarities(teacher.detach()))


def correlation(student: Rows, teacher: Rows, *, gamma: float = 0.4, order: int = 2) -> Tensor:
    """Mean squared difference of the examples' correlations, over all pairs.

    The correlation of x and y, scaled to length one, is the Gaussian kernel exp(-γ ‖x - y‖²) as
    its Taylor series in x · y up to `order`: exp(-2γ) Σ (2γ)ᵖ/p! (x · y)ᵖ.

    gamma: how fast a correlation falls with distance
    order: the highest power of the series

    Published below plain KD on all seven pairs (ResNet-56 -> 20: 69.63 against 70.66, Tian et al.
    2020, who ran a simpler form that the authors had sent them).
    Raises ValueError if the order is below 1, or gamma is not positive.
    Source: Peng et al., Correlation Congruence for Knowledge Distillation, ICCV 2019 (L_CC with the
    Gaussian RBF kernel).
    """
    if order < 1:
        raise ValueError(f"order is {order}, not 1 or more: nothing of the examples would be left")
    if not gamma > 0:
        raise ValueError(f"gamma is {gamma}, not above 0: all examples would be equally alike")
    ours, theirs = _cosines(student), _cosines(teacher.detach())
    gap = torch.zeros_like(ours)
    for power in range(1, order + 1):  # power 0 is the same for both
        share = math.exp(-2 * gamma) * (2 * gamma) ** power / math.factorial(power)
        gap = gap + share * (ours**power - theirs**power)
    return gap.square().mean()


def apart(rows: Tensor) -> Tensor:
    """(rows, rows) distances; exactly zero, and without a gradient, where examples coincide."""
    rows = rows.float()
    return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")


def _relative(distances: Tensor) -> Tensor:
    mean = distances.sum() / (distances > 0).sum().clamp_min(1)
    return distances / mean.clamp_min(FLAT)


def _angle_gap(ours: Tensor, theirs: Tensor, vertices: Tensor) -> Tensor:
    return F.huber_loss(_angles(ours, vertices), _angles(theirs, vertices), reduction="sum")


def _angles(rows: Tensor, vertices: Tensor) -> Tensor:
    """(vertices, rows, rows) cosines of the angles between the ways to two examples."""
    ways = F.normalize(rows - rows[vertices, None], dim=-1, eps=FLAT)
    with torch.autocast(rows.device.type, enabled=False):
        return ways @ ways.mT


def _similarities(rows: Tensor) -> Tensor:
    rows = rows.float()
    # The scale is divided out anyway; first, so that no square vanishes or overflows.
    rows = rows / rows.detach().norm(dim=-1).max().clamp_min(FLAT)
    with torch.autocast(rows.device.type, enabled=False):
        return F.normalize(rows @ rows.mT, dim=-1, eps=FLAT)


def _cosines(rows: Tensor) -> Tensor:
    ways = F.normalize(rows.float(), dim=-1, eps=FLAT)
    with torch.autocast(rows.device.type, enabled=False):
        return ways @ ways.mT
