"""The 256 values that an activation is rounded to, and the doors at which that is done."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attar.compress.quantize.placing import Door

MOST = 255
"""The largest unsigned number of 8 bits."""


def positive(scale: Tensor) -> Tensor:
    """A scale that can be divided by; where there is only zero, any will do."""
    return scale.clamp(min=torch.finfo(scale.dtype).tiny)


def scale_and_zero(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The step between the values of a grid over a range, and which of them is zero.

    Zero is always on the grid, since convolutions pad with it (Jacob et al. 2018, section 2.1).
    """
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = positive((high - low) / MOST)
    return scale, torch.round(-low / scale)


class Grid(nn.Module):
    """256 values, `scale` apart, of which number `zero` is 0."""

    scale: Tensor
    zero: Tensor

    def __init__(self, scale: Tensor, zero: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale.detach().clone().float())
        self.register_buffer("zero", zero.detach().to(torch.uint8))

    @property
    def step(self) -> Tensor:
        """The distance between two of the values."""
        return self.scale

    def steps(self, inputs: Tensor) -> Tensor:
        """How many steps from zero each value is, rounded: whole numbers as float."""
        return (torch.round(inputs / self.scale) + self.zero).clamp(0, MOST) - self.zero

    def forward(self, inputs: Tensor) -> Tensor:
        """The nearest values on the grid; a tie goes to the even number, as in ONNX."""
        if not torch.onnx.is_in_onnx_export():
            return self.steps(inputs) * self.scale
        seen = torch.onnx.ops.symbolic(
            "QuantizeLinear",
            [inputs, self.scale, self.zero],
            dtype=torch.uint8,
            shape=inputs.shape,
        )
        return torch.onnx.ops.symbolic(
            "DequantizeLinear",
            [seen, self.scale, self.zero],
            dtype=torch.float32,
            shape=inputs.shape,
        )


def hang_(model: nn.Module, door: Door, grid: nn.Module) -> None:
    """Have a grid round what goes through a door; it is kept as a part of the module there."""
    module = model.get_submodule(door.path)
    if door.takes:
        module.add_module("taken", grid)
        module.register_forward_pre_hook(_round_taken)
    else:
        module.add_module("given", grid)
        module.register_forward_hook(_round_given)


# Functions of the file, which find the grid in the module: so a copy rounds to the copy's grid.
def _round_taken(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (module.get_submodule("taken")(inputs[0]), *inputs[1:])


def _round_given(module: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    rounded: Tensor = module.get_submodule("given")(output)
    return rounded
