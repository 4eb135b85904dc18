"""Layers that multiply and add in integers between grids that are fixed beforehand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.compress.quantize.folding import Layer
from attar.compress.quantize.grids import Grid, positive
from attar.compress.quantize.packing import lane_of, pack, unpack

LARGEST_BIAS = 2.0**30
"""Biases are added in 32 bits: half of their range, since products come on top."""


Rounding = TypeVar("Rounding", bound=nn.Module)
"""What puts values on a grid: a `Grid`, or one that is still to be trained."""


@dataclass(frozen=True)
class Stand(Generic[Rounding]):
    """Where a layer stands: the grid of its input, and that of its output if it has to round it.

    rounds: whether the input still has to be put on its grid
    """

    seen: Rounding
    rounds: bool = True
    said: Rounding | None = None


def largest(bits: int, reduce_range: bool) -> int:
    """How many steps a weight of so many bits may be away from zero."""
    return min((1 << (bits - 1)) - 1, 64 if reduce_range else 127)


def weight_scale(layer: Layer, most: int, step: Tensor) -> Tensor:
    """The scale of each output channel by which its largest weight becomes `most`.

    step: of the grid of the input. Where weights are so small that the bias would not fit into its
        integers, it is the bias that decides.
    """
    with torch.no_grad():
        scale = layer.weight.abs().flatten(1).amax(1) / most
        if layer.bias is not None:
            scale = torch.maximum(scale, layer.bias.abs() / (step * LARGEST_BIAS))
    return positive(scale)


class Int8Layer(nn.Module):
    """A linear layer or convolution that multiplies in 8 bits, its input on a grid.

    Weights are symmetric per output channel. Those of 8 bits down to 5 are `kept` as int8, those of
    fewer packed, two or four in a byte. `scale` is (outputs,).
    """

    kept: Tensor
    scale: Tensor
    bias: nn.Parameter | None

    def __init__(self, layer: Layer, scale: Tensor, most: int, stand: Stand[Grid]) -> None:
        """scale: of the weights; most: how many of its steps a weight may have"""
        super().__init__()
        weight = layer.weight.detach()
        steps = torch.round(weight / _along(scale, weight.dim() - 1)).clamp(-most, most)
        self.combine, self.make = _product(layer)
        self.axis = int(isinstance(layer, nn.Linear))
        steps = steps.T.contiguous() if self.axis else steps
        self.bits, self.shape = most.bit_length() + 1, steps.shape
        self.register_buffer("kept", self._packed(steps))
        self.register_buffer("scale", scale.detach().clone())
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())
        self.seen, self.rounds, self.said = stand.seen, stand.rounds, stand.said

    def _packed(self, steps: Tensor) -> Tensor:
        lane = lane_of(self.bits)
        if lane == 8:
            return steps.to(torch.int8)
        return pack(steps.flatten() + (1 << lane - 1), lane)

    def integers(self) -> Tensor:
        """What is multiplied: (outputs, inputs of a group, ...) of a convolution.

        (inputs, outputs) of a linear layer, as no transposition may stand before the runtime's
        product. What is packed is unpacked by the file once, as it is loaded.
        """
        lane = lane_of(self.bits)
        if lane == 8:
            return self.kept
        codes = unpack(self.kept, lane)[: math.prod(self.shape)].view(self.shape)
        return (codes.to(torch.int32) - (1 << lane - 1)).to(torch.int8)

    @property
    def weight(self) -> Tensor:
        """What the integers stand for, for who reads a layer's weight or the type of it."""
        integers = self.integers().T if self.axis else self.integers()
        return integers * _along(self.scale, integers.dim() - 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """What the float layer takes and gives."""
        if torch.onnx.is_in_onnx_export():
            output = self._as_onnx(inputs)
        else:
            integers, (bias, step) = self.integers().to(inputs.dtype), self._bias()
            output = self.combine(self.seen.steps(inputs), integers, bias)
            output = output * _along(step, integers.dim() - 2)
        return output if self.said is None else self.said(output)

    def _bias(self) -> tuple[Tensor | None, Tensor]:
        """The bias in the steps of the products, and these."""
        step = self.seen.scale * self.scale
        return None if self.bias is None else torch.round(self.bias / step), step

    def _as_onnx(self, inputs: Tensor) -> Tensor:
        """The same between Quantize and Dequantize, from which the runtime makes one node."""
        seen = self.seen(inputs) if self.rounds else inputs
        weight = _dequantized(self.integers(), self.scale, self.axis)
        bias, step = self._bias()
        if bias is not None and self.axis and inputs.dim() > 2:
            # Written as a product and a sum, of which only the first is done in integers.
            bias = bias * step
        elif bias is not None:
            bias = _dequantized(bias.to(torch.int32), step, 0)
        return self.combine(seen, weight, bias)

    def dequantized(self) -> nn.Module:
        """The float layer with the values that the int8 weights stand for."""
        layer: Layer = self.make(bias=self.bias is not None)
        with torch.no_grad():
            layer.weight.copy_(self.weight)
            if layer.bias is not None and self.bias is not None:
                layer.bias.copy_(self.bias)
        return layer


def _product(layer: Layer) -> tuple[Callable[..., Tensor], Callable[..., Layer]]:
    """What a layer does with inputs, weight and bias; and what makes such a layer anew."""
    if isinstance(layer, nn.Linear):
        return _multiplied, partial(nn.Linear, layer.in_features, layer.out_features)
    options: dict[str, Any] = {
        "stride": layer.stride,
        "padding": layer.padding,
        "dilation": layer.dilation,
        "groups": layer.groups,
    }
    convolve: Any = F.conv1d if isinstance(layer, nn.Conv1d) else F.conv2d
    channels = (layer.in_channels, layer.out_channels, layer.kernel_size)
    return partial(convolve, **options), partial(type(layer), *channels, **options)  # type: ignore[arg-type]


def _multiplied(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if bias is not None and inputs.dim() == 2:
        return torch.addmm(bias, inputs, weight)
    return inputs @ weight if bias is None else inputs @ weight + bias


def _along(scale: Tensor, after: int) -> Tensor:
    """A scale for each channel, with as many dimensions after it as the tensor it is to scale."""
    return scale.view(-1, *[1] * after)


def _dequantized(values: Tensor, scale: Tensor, axis: int) -> Tensor:
    # The runtime leaves a linear layer in float that has no zero points.
    zeros = torch.zeros_like(scale, dtype=values.dtype)
    return torch.onnx.ops.symbolic(
        "DequantizeLinear",
        [values, scale, zeros],
        attrs={"axis": axis},
        dtype=torch.float32,
        shape=values.shape,
    )
