"""Students that act: a few linear layers for numbers, a few convolutions for pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from attar.errors import ModelError
from attar.types import Count

Bend = Literal["relu", "tanh"]
BENDS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}

LEAST = 1e-3
"""What a number that never changes is divided by."""


def mlp(
    classes: Sequence[str],
    observations: Tensor,
    level: tuple[float, float] | None = None,
    *,
    widths: Sequence[Count] = (8,),
    activation: Bend = "relu",
) -> nn.Module:
    """Linear layers over what is seen, each number of it first brought to mean 0 and deviation 1.

    observations: (states, ...), by which that is done: it is part of the network
    level: mean and deviation of what is to be told, where it is a value: its answers begin there
    widths: of the hidden layers; none is a linear policy
    activation: relu or tanh
    """
    flat = observations.flatten(1).float()
    student = Mlp(
        classes,
        inputs=flat.shape[1],
        widths=list(widths),
        activation=activation,
        level=None if level is None else list(level),
    )
    if len(flat) > 1:
        student.centre.copy_(flat.mean(0))
        student.scale.copy_(flat.std(0).clamp(min=LEAST))
    return student


class Mlp(nn.Module):
    """Numbers brought to a scale of their own, hidden layers, a head.

    `forward` takes observations (rows, ...) float as they are and gives answers (rows, classes).
    """

    centre: Tensor
    scale: Tensor

    def __init__(
        self,
        classes: Sequence[str],
        *,
        inputs: int,
        widths: list[int],
        activation: str,
        level: list[float] | None = None,
    ) -> None:
        super().__init__()
        said = {"inputs": inputs, "widths": widths, "activation": activation, "level": level}
        self.recipe = {
            "mlp": said,
            "classes": list(classes),
        }
        self.level = level
        self.register_buffer("centre", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))
        sizes = [inputs, *widths]
        self.hidden = nn.Sequential(
            *(
                part
                for before, after in zip(sizes, widths, strict=False)
                for part in (nn.Linear(before, after), BENDS[activation]())
            )
        )
        self.head = nn.Linear(sizes[-1], len(classes))

    def forward(self, observation: Tensor) -> Tensor:
        seen = (observation.flatten(1) - self.centre) / self.scale
        answers: Tensor = self.head(self.hidden(seen))
        return answers if self.level is None else self.level[0] + self.level[1] * answers


def convnet(
    classes: Sequence[str],
    observations: Tensor,
    highest: int,
    *,
    channels: Sequence[Count] = (16,),
    kernel: Count = 3,
    stride: Count = 1,
    width: Count = 64,
) -> nn.Module:
    """Convolutions over the pixels of the last frames, one hidden layer, a head.

    observations: (states, frames, height, width) of bytes; highest: what a pixel can be
    channels: of the convolutions, one after another
    kernel, stride: of each of them
    width: of the hidden layer
    """
    if observations.dim() != 4:
        raise ModelError("convnet sees pixels, and there are none here; take the student mlp.")
    seen = list(observations.shape[1:])
    return Convnet(
        classes,
        seen=seen,
        channels=list(channels),
        kernel=kernel,
        stride=stride,
        width=width,
        highest=highest,
    )


class Convnet(nn.Module):
    """Pixels brought to 0 to 1, convolutions, a hidden layer, a head.

    `forward` takes frames (rows, frames, height, width) float as they are and gives answers
    (rows, classes).
    """

    def __init__(
        self,
        classes: Sequence[str],
        *,
        seen: list[int],
        channels: list[int],
        kernel: int,
        stride: int,
        width: int,
        highest: int,
    ) -> None:
        super().__init__()
        self.recipe = {
            "convnet": {
                "seen": seen,
                "channels": channels,
                "kernel": kernel,
                "stride": stride,
                "width": width,
                "highest": highest,
            },
            "classes": list(classes),
        }
        self.highest = float(highest)
        sides, layers = seen[1:], []
        for before, after in zip([seen[0], *channels], channels, strict=False):
            layers += [nn.Conv2d(before, after, kernel, stride), nn.ReLU()]
            sides = [(side - kernel) // stride + 1 for side in sides]
        if min(sides) < 1:
            raise ModelError(
                f"{len(channels)} convolutions with kernel {kernel} and stride {stride} leave "
                f"nothing of {seen[1]} x {seen[2]} pixels; take fewer, or smaller ones."
            )
        self.eyes = nn.Sequential(*layers)
        self.hidden = nn.Linear(channels[-1] * math.prod(sides), width)
        self.head = nn.Linear(width, len(classes))

    def forward(self, observation: Tensor) -> Tensor:
        seen = self.eyes(observation / self.highest).flatten(1)
        answers: Tensor = self.head(torch.relu(self.hidden(seen)))
        return answers
