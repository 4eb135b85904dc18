"""The residual networks of He et al. 2015 for small pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.errors import ModelError
from attar.students.pictures import PARTS, started_
from attar.types import Count

Shortcut = Literal["zeros", "convolution"]


def resnet(
    classes: Sequence[str],
    *,
    depth: Count = 20,
    width: Count = 16,
    shortcut: Shortcut = "zeros",
) -> nn.Module:
    """A residual network for small pictures: three stages, the mean over places, a linear layer.

    depth: layers with weights: 6 n + 2, as 20, 32, 56, 110
    width: channels of the first stage; the next have twice and four times as many
    shortcut: past a step to more channels `zeros` stand in for them, as in the paper's networks for
        small pictures, or a `convolution` makes them, so that pruning may thin out every layer
    Source: He et al., "Deep Residual Learning for Image Recognition" (2015), section 4.2.
    """
    if depth < PARTS + 2 or (depth - 2) % PARTS:
        raise ModelError(f"A resnet has 6 n + 2 layers, as 20, 32, 56 or 110, not {depth}.")
    return Residual(classes, depth=depth, width=width, channels=3, shortcut=shortcut)


class Residual(nn.Module):
    """A stem, three stages of blocks, the mean over all places, a linear layer.

    `forward` takes pixels (rows, channels, height, width) and gives logits (rows, classes). Weights
    are named as in github.com/akamaster/pytorch_resnet_cifar10, whose files it loads.
    """

    def __init__(
        self,
        classes: Sequence[str],
        *,
        depth: int = 20,
        width: int = 16,
        channels: int = 3,
        shortcut: Shortcut = "zeros",
    ) -> None:
        super().__init__()
        self.recipe = {
            "resnet": {
                "depth": depth,
                "width": width,
                "channels": channels,
                "shortcut": shortcut,
            },
            "classes": list(classes),
        }
        blocks = (depth - 2) // PARTS
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, blocks, shortcut)
        self.layer2 = _stage(width, 2 * width, blocks, shortcut)
        self.layer3 = _stage(2 * width, 4 * width, blocks, shortcut)
        self.linear = nn.Linear(4 * width, len(classes))
        started_(self)

    def forward(self, pixel_values: Tensor) -> Tensor:
        seen = F.relu(self.bn1(self.conv1(pixel_values)))
        seen = self.layer3(self.layer2(self.layer1(seen)))
        logits: Tensor = self.linear(torch.mean(seen, (2, 3)))
        return logits


class Block(nn.Module):
    """Two convolutions, around which the input is passed."""

    def __init__(self, into: int, out: int, shortcut: Shortcut) -> None:
        super().__init__()
        stride = 1 if into == out else 2
        self.conv1 = nn.Conv2d(into, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut = nn.Identity() if into == out else _past(into, out, shortcut)

    def forward(self, seen: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(seen)))))
        return F.relu(inner + self.shortcut(seen))


class Padded(nn.Module):
    """Every second place, with channels of zeros around: the paper's shortcut without weights."""

    def __init__(self, more: int) -> None:
        super().__init__()
        self.more = more

    def forward(self, seen: Tensor) -> Tensor:
        before = self.more // 2
        return F.pad(seen[:, :, ::2, ::2], (0, 0, 0, 0, before, self.more - before))


def _past(into: int, out: int, shortcut: Shortcut) -> nn.Module:
    if shortcut == "zeros":
        return Padded(out - into)
    return nn.Sequential(nn.Conv2d(into, out, 1, 2, bias=False), nn.BatchNorm2d(out))


def _stage(into: int, out: int, blocks: int, shortcut: Shortcut) -> nn.Sequential:
    return nn.Sequential(*(Block(into if n == 0 else out, out, shortcut) for n in range(blocks)))
