"""The residual networks of He et al. 2015 for small pictures, as the other benchmarks take them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Padded(nn.Module):
    """Every second place, with channels of zeros around: the paper's shortcut without weights."""

    def __init__(self, more: int) -> None:
        super().__init__()
        self.more = more

    def forward(self, seen: Tensor) -> Tensor:
        return F.pad(seen[:, :, ::2, ::2], (0, 0, 0, 0, self.more // 2, self.more // 2))


class Block(nn.Module):
    """Two convolutions, around which the input is passed."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        stride = 1 if into == out else 2
        self.conv1 = nn.Conv2d(into, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut = nn.Identity() if into == out else Padded(out - into)

    def forward(self, seen: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(seen)))))
        return F.relu(inner + self.shortcut(seen))


class Residual(nn.Module):
    """A stem, three stages of blocks, the mean over all places, a linear layer.

    Weights are named as in github.com/akamaster/pytorch_resnet_cifar10, whose files it loads.
    """

    def __init__(self, blocks: int, classes: int = 10, width: int = 16, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, blocks)
        self.layer2 = _stage(width, 2 * width, blocks)
        self.layer3 = _stage(2 * width, 4 * width, blocks)
        self.linear = nn.Linear(4 * width, classes)

    def forward(self, pixel_values: Tensor) -> Tensor:
        seen = F.relu(self.bn1(self.conv1(pixel_values)))
        seen = self.layer3(self.layer2(self.layer1(seen)))
        logits: Tensor = self.linear(torch.mean(seen, (2, 3)))
        return logits


def _stage(into: int, out: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*(Block(into if n == 0 else out, out) for n in range(blocks)))
