"""MobileNetV2 for small pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attar.students.pictures import started_
from attar.types import Decay, Positive

STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, channels, blocks and stride: table 2 of the paper, but with stride 1 where pictures of
32 pixels would soon have no places left."""
STEM, LAST = 32, 1280
EIGHTS = 8
"""Channels come in eights, which machines compute fastest."""


def mobilenet(
    classes: Sequence[str],
    *,
    width: Positive = 1.0,
    dropout: Decay = 0.0,
) -> nn.Module:
    """MobileNetV2 for small pictures: each layer looks at places or at channels, never at both.

    width: of all layers, as a multiple of the paper's
    dropout: before the last layer
    Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (2018).
    """
    return Mobile(classes, width=width, channels=3, dropout=dropout)


class Mobile(nn.Module):
    """A stem, seven stages of inverted residuals, the mean over all places, a linear layer.

    `forward` takes pixels (rows, channels, height, width) and gives logits (rows, classes).
    """

    def __init__(
        self, classes: Sequence[str], *, width: float, channels: int, dropout: float
    ) -> None:
        super().__init__()
        self.recipe = {
            "mobilenet": {"width": width, "channels": channels, "dropout": dropout},
            "classes": list(classes),
        }
        into = _eights(STEM * width)
        last = _eights(LAST * max(1.0, width))
        self.stem = _seen_by(channels, into, 3)
        stages = []
        for expansion, wide, blocks, stride in STAGES:
            out = _eights(wide * width)
            inside = [Inverted(into, out, expansion, stride)]
            inside += [Inverted(out, out, expansion, 1) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(*inside))
            into = out
        self.stages = nn.ModuleList(stages)
        self.last = _seen_by(into, last, 1)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(last, len(classes))
        started_(self)

    def forward(self, pixel_values: Tensor) -> Tensor:
        seen = self.stem(pixel_values)
        for stage in self.stages:
            seen = stage(seen)
        logits: Tensor = self.linear(self.dropout(torch.mean(self.last(seen), (2, 3))))
        return logits


class Inverted(nn.Module):
    """Widened, looked at place by place and channel by channel, and made narrow again."""

    def __init__(self, into: int, out: int, expansion: int, stride: int) -> None:
        super().__init__()
        wide = into * expansion
        self.widen = nn.Identity() if expansion == 1 else _seen_by(into, wide, 1)
        self.look = _seen_by(wide, wide, 3, stride=stride, groups=wide)
        self.narrow = nn.Conv2d(wide, out, 1, bias=False)
        self.norm = nn.BatchNorm2d(out)
        self.passes = stride == 1 and into == out

    def forward(self, seen: Tensor) -> Tensor:
        inner: Tensor = self.norm(self.narrow(self.look(self.widen(seen))))
        return seen + inner if self.passes else inner


def _seen_by(into: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(into, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out), nn.ReLU6())


def _eights(wanted: float) -> int:
    """The nearest multiple of eight, but never a tenth less than wanted."""
    near = max(EIGHTS, int(wanted + EIGHTS / 2) // EIGHTS * EIGHTS)
    return near + EIGHTS * (near < 0.9 * wanted)
