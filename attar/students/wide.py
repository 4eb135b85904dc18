"""Wide residual networks for small pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.errors import ModelError
from attar.students.pictures import PARTS, started_
from attar.types import Count, Decay

STEM = 16


def wideresnet(
    classes: Sequence[str],
    *,
    depth: Count = 16,
    factor: Count = 2,
    dropout: Decay = 0.0,
) -> nn.Module:
    """A residual network that is wide rather than deep, normalized before each convolution.

    depth: layers with weights: 6 n + 4, as 10, 16, 28, 40
    factor: the stages have 16, 32 and 64 channels times this
    dropout: between the two convolutions of a block
    Source: Zagoruyko and Komodakis, "Wide Residual Networks" (2016).
    """
    if depth < PARTS + 4 or (depth - 4) % PARTS:
        raise ModelError(f"A wideresnet has 6 n + 4 layers, as 16, 28 or 40, not {depth}.")
    return Wide(classes, depth=depth, factor=factor, channels=3, dropout=dropout)


class Wide(nn.Module):
    """A stem, three stages of blocks, a norm, the mean over all places, a linear layer.

    `forward` takes pixels (rows, channels, height, width) and gives logits (rows, classes).
    """

    def __init__(
        self, classes: Sequence[str], *, depth: int, factor: int, channels: int, dropout: float
    ) -> None:
        super().__init__()
        self.recipe = {
            "wideresnet": {
                "depth": depth,
                "factor": factor,
                "channels": channels,
                "dropout": dropout,
            },
            "classes": list(classes),
        }
        blocks = (depth - 4) // PARTS
        widths = [STEM * factor * scale for scale in (1, 2, 4)]
        self.conv1 = nn.Conv2d(channels, STEM, 3, 1, 1, bias=False)
        self.layer1 = _stage(STEM, widths[0], blocks, 1, dropout)
        self.layer2 = _stage(widths[0], widths[1], blocks, 2, dropout)
        self.layer3 = _stage(widths[1], widths[2], blocks, 2, dropout)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.linear = nn.Linear(widths[2], len(classes))
        started_(self)

    def forward(self, pixel_values: Tensor) -> Tensor:
        seen = self.layer3(self.layer2(self.layer1(self.conv1(pixel_values))))
        logits: Tensor = self.linear(torch.mean(F.relu(self.bn1(seen)), (2, 3)))
        return logits


class Block(nn.Module):
    """Norms and convolutions in turn, around which the input is passed, made fit where it must."""

    def __init__(self, into: int, out: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(into)
        self.conv1 = nn.Conv2d(into, out, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        fits = into == out and stride == 1
        self.shortcut = None if fits else nn.Conv2d(into, out, 1, stride, bias=False)

    def forward(self, seen: Tensor) -> Tensor:
        ready = F.relu(self.bn1(seen))
        inner: Tensor = self.conv2(self.dropout(F.relu(self.bn2(self.conv1(ready)))))
        return inner + (seen if self.shortcut is None else self.shortcut(ready))


def _stage(into: int, out: int, blocks: int, stride: int, dropout: float) -> nn.Sequential:
    first = Block(into, out, stride, dropout)
    return nn.Sequential(first, *(Block(out, out, 1, dropout) for _ in range(blocks - 1)))
