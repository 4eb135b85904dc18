"""Losses that need several layers at once: how they flow into one another, and their review."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from .layers import Convolution, Standardization, linear, seeded
from .places import Places, averaging, clean, laid_out, real, side

Stages: TypeAlias = Sequence[Tensor]  # of each layer, shallow to deep, (rows, length, width)

# What ReviewKD pools its maps to, beside comparing them whole.
LEVELS = (4, 2, 1)
# No fused map is wider, as in the authors' code.
WIDEST = 512


def fsp(
    student: Stages,
    teacher: Stages,
    mask: Tensor | None = None,
    *,
    places: Literal["auto", "line", "square"] = "auto",
) -> Tensor:
    """Mean squared difference of the flows from each layer to the next, summed over the flows.

    The flow (widths of both) is the mean of aᵀ b over a row's real places, a and b what the two
    layers give there. Where the next layer has other places, the longer of the two is pooled. The
    mean is over rows and entries (the paper sums over the entries).

    places: `line` for tokens and time, `square` for a convolution's square maps; `auto` takes
        layers of different lengths that are all squares for square maps
    Raises ValueError for a single layer, and if a layer's widths differ: the paper's student is as
    wide as its teacher, and a learned bridge would undo the comparison.
    Source: Yim et al., A Gift from Knowledge Distillation, CVPR 2017, equations 1 and 2.
    Published below plain KD (ResNet-56 -> 20: 69.95 against 70.66, Tian et al. 2020).
    """
    if len(student) < 2:
        raise ValueError("a flow needs two layers or more")
    for ours, theirs in zip(student, teacher, strict=True):
        if ours.shape[-1] != theirs.shape[-1]:
            raise ValueError(
                f"the widths of student and teacher are {ours.shape[-1]} and {theirs.shape[-1]}: "
                "flows can only be compared between layers of one width"
            )
    lie = laid_out(teacher) if places == "auto" else places
    with torch.autocast(student[0].device.type, enabled=False):
        gaps = [
            _flow(ours, mask, lie) - _flow([each.detach() for each in theirs], mask, lie)
            for ours, theirs in zip(_steps(student), _steps(teacher), strict=True)
        ]
    return torch.stack([gap.square().mean() for gap in gaps]).sum()


def _steps(stages: Stages) -> list[Stages]:
    return [stages[n : n + 2] for n in range(len(stages) - 1)]


def _flow(pair: Stages, mask: Tensor | None, places: Places) -> Tensor:
    """(rows, width of the first, width of the second)."""
    length = min(each.shape[1] for each in pair)
    first, second = (_resized(clean(each, real(each, mask)), length, places) for each in pair)
    count = real(first, mask).sum(1)
    return first.mT @ second / count.clamp_min(1)[:, None, None]


def _resized(maps: Tensor, length: int, places: Places) -> Tensor:
    """Pooled to fewer places, or repeated to more."""
    if maps.shape[1] == length:
        return maps
    bins = length if places == "line" else side(length)
    return averaging(real(maps, None)[:1], bins, places) @ maps


class review(nn.Module):  # noqa: N801
    """The sum over stages of the hierarchical context loss between a fused map and the teacher's.

    From the deepest stage to the shallowest, the student's map is brought to one width (linear,
    batch normalization) and, but for the deepest, fused with the fused map of the stage below it:
    g x + h y, where y is repeated to the places of x and the gates g, h are sigmoids of a linear
    map of both. A convolution over three places, with batch normalization, then brings it to the
    teacher's width. The hierarchical context loss is the mean squared difference of both maps,
    whole (weight 1) and pooled to those of 4, 2 and 1 places a side that are fewer than its own
    (weights 1/2, 1/4, 1/8 in this order), divided by the sum of the weights; mean over rows.

    The authors raise its weight from 0 over the first 20 epochs, and add the pooled feature before
    the classifier as one more stage, of one place. Student and teacher have as many places.

    places: `line` for tokens and time, `square` for a convolution's square maps; `auto` takes
        layers of different lengths that are all squares for square maps
    Raises ValueError if a square map is not square.
    Source: Chen et al., Distilling Knowledge via Knowledge Review, CVPR 2021 (ABF and
    HCL, with the weights of the authors' code).
    """

    def __init__(
        self,
        student: Stages,
        teacher: Stages,
        *,
        places: Literal["auto", "line", "square"] = "auto",
    ) -> None:
        super().__init__()
        self.places: Places = laid_out(student) if places == "auto" else places
        generator, width = seeded(), min(WIDEST, student[-1].shape[-1])
        self.fusions = nn.ModuleList(
            _Fusion(
                (ours.shape[-1], width, theirs.shape[-1]),
                self.places,
                generator,
                deepest=number == len(student) - 1,
            )
            for number, (ours, theirs) in enumerate(zip(student, teacher, strict=True))
        )

    def forward(self, student: Stages, teacher: Stages, mask: Tensor | None = None) -> Tensor:
        fused, values = None, []
        stages = list(zip(self.fusions, student, teacher, strict=True))
        with torch.autocast(student[0].device.type, enabled=False):
            for fusion, ours, theirs in reversed(stages):
                kept = real(ours, mask)
                fused, made = fusion(clean(ours, kept), fused, kept)
                gap = clean(made, kept) - clean(theirs.detach(), kept)
                values.append(_hierarchical(gap, kept, self.places))
        return torch.stack(values).sum()


class _Fusion(nn.Module):
    """One stage of the review: what it fuses, and what it makes of it for the teacher's map."""

    def __init__(
        self,
        widths: tuple[int, int, int],
        places: Places,
        generator: torch.Generator,
        *,
        deepest: bool,
    ) -> None:
        super().__init__()
        ours, width, theirs = widths
        self.places = places
        self.enter = linear(ours, width, generator, bias=False)
        self.entered = Standardization(width)
        self.gates = None if deepest else linear(2 * width, 2, generator)
        self.leave = Convolution(width, theirs, places, generator, bias=False)
        self.left = Standardization(theirs)

    def forward(self, maps: Tensor, deeper: Tensor | None, kept: Tensor) -> tuple[Tensor, Tensor]:
        fused = self.entered(self.enter(maps), kept)
        if self.gates is not None and deeper is not None:
            below = _resized(deeper, maps.shape[1], self.places)
            gates = self.gates(torch.cat([fused, below], -1)).sigmoid()
            fused = gates[..., :1] * fused + gates[..., 1:] * below
        return fused, self.left(self.leave(fused, kept[:, :, None]), kept)


def _hierarchical(gap: Tensor, kept: Tensor, places: Places) -> Tensor:
    """Pooling is linear, so it is the difference that is pooled; what is padding of it is zero."""
    count = kept.sum(1)
    along = count if places == "line" else count.sqrt()
    total = gap.square().mean(-1).sum(1) / count.clamp_min(1)
    weights = weight = torch.ones_like(total)
    for level in LEVELS:
        larger = along > level
        weight = torch.where(larger, weight / 2, weight)
        pooled = averaging(kept, level, places) @ gap
        total = total + larger * weight * pooled.square().mean((1, 2))
        weights = weights + larger * weight
    return (total / weights).mean()
