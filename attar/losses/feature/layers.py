"""The layers that a learned loss is built of: they begin alike each time and see no padding."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .places import Places, side

# A variance below this is rounding; it is also what torch's own batch normalization adds.
LEAST_VARIANCE = 1e-5


def seeded() -> torch.Generator:
    """A generator of its own: building a loss must not move what dropout draws from."""
    return torch.Generator().manual_seed(0)


def linear(width: int, target: int, generator: torch.Generator, *, bias: bool = True) -> nn.Linear:
    """What `nn.Linear` begins with, drawn from the generator.

    bias: not wanted before a standardization, which takes it out again
    """
    layer = nn.Linear(width, target, bias=bias, device="meta").to_empty(device="cpu")
    _begin_(layer, generator)
    return layer


def projection(width: int, target: int, generator: torch.Generator) -> nn.Module:
    """A linear map between widths that differ; nothing where they agree."""
    return nn.Identity() if width == target else linear(width, target, generator)


class Convolution(nn.Module):
    """Three places in a line, or three by three of a square map; (rows, length, width) both ways.

    A place that is not kept counts as zero, just as what lies beyond the border does.
    """

    def __init__(
        self,
        width: int,
        target: int,
        places: Places,
        generator: torch.Generator,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.places = places
        window = (3,) if places == "line" else (3, 3)
        self.weight = nn.Parameter(torch.empty(target, width, *window))
        self.bias = nn.Parameter(torch.empty(target)) if bias else None
        _begin_(self, generator)

    def forward(self, maps: Tensor, kept: Tensor) -> Tensor:
        """kept: bool, (rows, length, 1) or (rows, length, width)."""
        channels = maps.masked_fill(~kept, 0).transpose(1, 2)
        if self.places == "line":
            return F.conv1d(channels, self.weight, self.bias, padding=1).transpose(1, 2)
        sides = side(maps.shape[1])
        square = channels.unflatten(2, (sides, sides))
        return F.conv2d(square, self.weight, self.bias, padding=1).flatten(2).transpose(1, 2)


class Standardization(nn.Module):
    """Batch normalization by the batch at hand, over real tokens; its scale and shift are learned.

    Unlike torch's own it keeps no moving averages, since a loss is only had in training, and takes
    a single token, of which nothing but the shift is left.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, features: Tensor, kept: Tensor | None = None) -> Tensor:
        """features: (tokens, width), or (rows, length, width) of which some places are kept."""
        seen = features if kept is None else features[kept]
        return standardized(features, seen) * self.scale + self.shift


def standardized(features: Tensor, seen: Tensor, least: float = LEAST_VARIANCE) -> Tensor:
    """Features less the mean, by the standard deviation, of the tokens (tokens, width) seen."""
    spread, mean = torch.var_mean(seen, 0, correction=0)
    return (features - mean) * (spread + least).rsqrt()


@torch.no_grad()
def _begin_(layer: nn.Linear | Convolution, generator: torch.Generator) -> None:
    bound = 1 / math.sqrt(layer.weight[0].numel())
    for each in layer.parameters():
        each.uniform_(-bound, bound, generator=generator)
