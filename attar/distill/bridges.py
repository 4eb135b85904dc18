"""What lets two layers be compared: maps of one size, tokens at one time, widths made one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.errors import LayerError
from attar.taps import TIME

PLACED = ("Features", "Maps", "Stages", "Scores", "Reused")
"""The kinds of loss to which a place of a map is a token."""

DIMENSIONS = {"Maps": 3, "Stages": 3, "Scores": 3, "Rows": 2}
"""How many dimensions a kind of loss takes, where it takes only one number of them."""


class Layer(NamedTuple):
    """What a layer gave for a batch; mask: (rows, length) of 1 for what is real, or None."""

    path: str
    feature: Tensor
    mask: Tensor | None


class Pair(NamedTuple):
    """The two sides as a loss takes them; of several layers at once, a sequence of each side."""

    student: Tensor | Sequence[Tensor]
    teacher: Tensor | Sequence[Tensor] | None
    mask: Tensor | None


def meet(kind: str, student: Layer, teacher: Layer) -> Pair:
    """What two layers gave, as a loss of this kind can compare it; widths may still differ.

    A map (rows, channels, height, width) becomes (rows, places, channels); of two maps the larger
    is pooled to the size of the smaller. Where one of the paths ends in `@time`, the teacher's
    sequence is read at the student's places. Raises LayerError, naming both shapes, where the two
    can't meet.
    """
    here, there = student.feature, teacher.feature.to(student.feature.device)
    mask = student.mask
    if kind in PLACED:
        here, there = _tokens(*_same_size(here, there))
        mask = _fitting(student.mask, student.feature)
        timed = student.path.endswith(TIME) or teacher.path.endswith(TIME)
        if timed and here.dim() == there.dim() == 3:
            there = in_time(there, _fitting(teacher.mask, teacher.feature), here.shape[1], mask)
    if not _comparable(kind, here.shape, there.shape):
        raise LayerError(
            f"{student.path} of shape {tuple(student.feature.shape)} can't be compared with "
            f"{teacher.path} of shape {tuple(teacher.feature.shape)}; {_cure(kind, here, there)}."
        )
    return Pair(here, there, mask)


def together(stages: Iterable[Pair]) -> Pair:
    """Several pairs as one: what a loss over stages takes. They share a mask that fits them all."""
    ours, its, masks = zip(*stages, strict=True)
    first = masks[0]
    fits = all(m is not None and first is not None and m.shape == first.shape for m in masks)
    return Pair(ours, its, first if fits else None)


def in_time(feature: Tensor, mask: Tensor | None, length: int, real: Tensor | None) -> Tensor:
    """A sequence (rows, any length, width) read at `length` places of another, in float32.

    Of n real places, place j stands for the time (j + 1/2) / n; between two places the sequence is
    interpolated linearly, before the first and after the last it stays as it is.

    mask, real: (rows, places) of 1 for what is real, of the sequence and of the other; padding
        comes last and is never read
    """
    its, ours = _counts(feature, feature.shape[1], mask), _counts(feature, length, real)
    at = (torch.arange(length, device=feature.device) + 0.5) * its / ours - 0.5
    at = at.clamp(min=0).minimum(its - 1)
    before = at.floor()
    after = (before + 1).minimum(its - 1)
    earlier, later = (_places(feature, index.long()).float() for index in (before, after))
    return torch.lerp(earlier, later, (at - before).unsqueeze(-1))


def linear(width: int, target: int) -> nn.Linear:
    """A bridge from one width to another: the identity, or what `nn.Linear` begins with.

    Over the places of a map it is a 1 x 1 convolution.
    """
    bridge: nn.Linear = nn.utils.skip_init(nn.Linear, width, target)  # type: ignore[no-untyped-call]
    if width == target:
        nn.init.eye_(bridge.weight)
        nn.init.zeros_(bridge.bias)
        return bridge
    # A generator of its own: building bridges, also again on resuming, must not move the stream of
    # random numbers that dropout draws from.
    generator = torch.Generator().manual_seed(0)
    bound = 1 / math.sqrt(width)
    nn.init.uniform_(bridge.weight, -bound, bound, generator=generator)
    nn.init.uniform_(bridge.bias, -bound, bound, generator=generator)
    return bridge


def _same_size(here: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps, each pooled to the lesser height and the lesser width; all else as it is."""
    if not here.dim() == there.dim() == 4:
        return here, there
    height, width = (min(sides) for sides in zip(here.shape[2:], there.shape[2:], strict=True))
    return _pooled_to(here, height, width), _pooled_to(there, height, width)


def _pooled_to(maps: Tensor, height: int, width: int) -> Tensor:
    if maps.shape[2:] == (height, width):
        return maps
    return F.adaptive_avg_pool2d(maps.float(), (height, width))


def _tokens(*features: Tensor) -> tuple[Tensor, ...]:
    """(rows, channels, height, width) as (rows, height * width, channels); all else as it is."""
    return tuple(each.flatten(2).mT if each.dim() == 4 else each for each in features)


def _fitting(mask: Tensor | None, feature: Tensor) -> Tensor | None:
    """The mask for the places of a feature: none for maps; thinned out where a layer has fewer."""
    if mask is None or feature.dim() == 4:
        return None
    if feature.dim() == 2 or mask.shape[1] == feature.shape[1]:
        return mask
    return F.interpolate(mask[:, None].float(), feature.shape[1])[:, 0].to(mask.dtype)


def _counts(feature: Tensor, length: int, mask: Tensor | None) -> Tensor:
    """(rows, 1): how many places are real; a row without any is read as if it had one."""
    if mask is None:
        return torch.full((len(feature), 1), length, device=feature.device)
    return mask.to(feature.device).long().sum(1, keepdim=True).clamp(min=1)


def _places(feature: Tensor, index: Tensor) -> Tensor:
    return feature.gather(1, index.unsqueeze(-1).expand(-1, -1, feature.shape[-1]))


def _comparable(kind: str, here: torch.Size, there: torch.Size) -> bool:
    """Whether a loss of this kind can take the two; it evens out widths, or numbers of heads."""
    if kind == "Attentions":
        return len(here) == len(there) and here[2:] == there[2:]
    dimensions = DIMENSIONS.get(kind, len(here))
    return len(here) == len(there) == dimensions and here[:-1] == there[:-1]


def _cure(kind: str, here: Tensor, there: Tensor) -> str:
    sequences = here.dim() == there.dim() == 3
    if kind in ("Features", "Reused"):
        return "pool both over the tokens with @mean" + (
            f", or read the teacher's at the student's times with {TIME}" if sequences else ""
        )
    if kind == "Rows":
        return "pool both with @mean, to one (rows, width) each"
    if kind in PLACED and sequences:
        return f"read the teacher's at the student's times with {TIME}"
    if kind in PLACED:
        return "name layers that both give tokens, or both maps, without @mean"
    return "both models need the same tokenizer"
