"""Which places are real, and how the places of a layer are brought to another number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Places: TypeAlias = Literal["line", "square"]

# Less length than this is rounding, not a direction; dividing by less would send back gradients
# that no half-precision float can hold.
FLAT = 1e-3


def tokens(features: Tensor, mask: Tensor | None) -> Tensor:
    """(tokens, width): what is compared; padding is gone before any arithmetic."""
    if mask is None or features.ndim == 2:
        return features.flatten(0, -2).float()
    return features[mask.bool()].float()


def real(maps: Tensor, mask: Tensor | None) -> Tensor:
    """(rows, length), True for what is not padding. Raises ValueError for another layer's mask."""
    if mask is None:
        return torch.ones(maps.shape[:2], dtype=torch.bool, device=maps.device)
    if mask.shape != maps.shape[:2]:
        raise ValueError(
            f"a layer of {maps.shape[1]} places can't be masked for {mask.shape[1]} tokens: "
            "compare layers that keep every token"
        )
    return mask.bool()


def clean(maps: Tensor, kept: Tensor) -> Tensor:
    """In float32, and zero wherever a place (rows, length) is not kept, whatever stands there."""
    return maps.masked_fill(~kept[:, :, None], 0).float()


def laid_out(stages: Sequence[Tensor]) -> Places:
    """How the places of these layers lie: as square maps if not all layers have as many of them
    and each number is a square, as a convolution's are; else in a line, as tokens and time do."""
    lengths = {stage.shape[1] for stage in stages}
    maps = len(lengths) > 1 and all(math.isqrt(length) ** 2 == length for length in lengths)
    return "square" if maps else "line"


def side(length: int) -> int:
    """The side of a square map. Raises ValueError where the places are none."""
    if math.isqrt(length) ** 2 != length:
        raise ValueError(f"{length} places are no square map: set places to line")
    return math.isqrt(length)


def averaging(kept: Tensor, bins: int, places: Places) -> Tensor:
    """(rows, bins of all, length) that takes the mean of the real places of each bin.

    bins: how many in a line, or along each side of a square map. Bin i of n real places begins at
        ⌊i n / bins⌋ and ends before ⌈(i + 1) n / bins⌉ (torch's adaptive pooling); where the bins
        are a multiple of the places, each place is repeated.
    """
    if places == "line":
        return _line(kept, bins)
    one = torch.ones(1, side(kept.shape[1]), dtype=torch.bool, device=kept.device)
    along = _line(one, bins)[0]
    return torch.kron(along, along)[None]


def _line(kept: Tensor, bins: int) -> Tensor:
    count = kept.sum(1)[:, None, None]
    rank = (kept.cumsum(1) - 1)[:, None, :]
    index = torch.arange(bins, device=kept.device)[None, :, None]
    # -(-a // b) is a / b rounded up.
    inside = (index * count // bins <= rank) & (rank < -(-(index + 1) * count // bins))
    weights = (inside & kept[:, None, :]).float()
    return weights / weights.sum(-1, keepdim=True).clamp_min(1)
