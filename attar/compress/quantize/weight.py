"""Weights of few bits in groups, packed as ONNX Runtime's MatMulNBits multiplies them."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.compress.choosing import chosen
from attar.compress.placing import replace_
from attar.compress.quantize.dynamic import Int8Embedding
from attar.compress.quantize.packing import lane_of, pack, unpack
from attar.compress.quantize.rounding import Codes, awq, gptq, nearest
from attar.compress.watching import moments
from attar.errors import ModelError
from attar.types import Bits, Calibration, Count

GROUPS = (16, 32, 64, 128, 256)
"""The group sizes that ONNX Runtime multiplies."""

How = Literal["nearest", "gptq", "awq"]


def int4_weight(
    model: nn.Module,
    calibration: Calibration,
    *,
    bits: Bits = 4,
    group: int = 32,
    how: How = "gptq",
    batches: Count = 8,
    embeddings: bool = True,
    exclude: list[str] | None = None,
) -> nn.Module:
    """Linear weights in few bits, with a scale and a zero point for each group of inputs.

    Smaller than int8, and faster where one token or a few are answered at a time; with long
    inputs at once int8_dynamic is faster. `export.onnx` writes ONNX Runtime's MatMulNBits, whose
    arithmetic is done here too: activations are rounded to 8 bits, group by group.

    bits: 2 to 8; 3 are kept in the room of 4, and 5 to 7 in that of 8, as ONNX Runtime reads them
    group: inputs that share a scale: 16, 32, 64, 128 or 256; -1 for one scale a row
    how: to the `nearest` code; `gptq`: each error is made up for by later weights (Frantar 2023);
        `awq`: inputs that are large get finer weights (Lin 2024), at one product more an input
    batches: calibration batches that gptq and awq look at
    embeddings: whether embedding tables are kept in 8 bits, as int8_dynamic does, or in float
    exclude: paths of modules, with all that is in them, that stay in float
    Returns a copy. Raises ModelError for a path that names nothing, where nothing is left, and
    for bits and groups that are not these.
    """
    _check(bits, group)
    small = deepcopy(model).eval()
    kinds = (nn.Linear, nn.Embedding) if embeddings else (nn.Linear,)
    what = "linear or embedding" if embeddings else "linear"
    # As in int8_dynamic: a subclass may do more than its parent, or be read by others.
    layers = chosen(small, lambda m: type(m) in kinds, exclude, f"{what} layer left to quantize")
    tables = [m for m in layers.values() if isinstance(m, nn.Embedding)]
    replace_(small, layers, {each: Int8Embedding(each) for each in tables})
    linears = dict.fromkeys(m for m in layers.values() if isinstance(m, nn.Linear))
    if how == "nearest":
        replace_(small, layers, {each: _packed(each, None, bits, group, how) for each in linears})
        return small
    for layer, moment in moments(small, linears, calibration, batches):
        assert isinstance(layer, nn.Linear)
        replace_(small, layers, {layer: _packed(layer, moment, bits, group, how)})
    return small


def _check(bits: int, group: int) -> None:
    if not 2 <= bits <= 8:
        raise ModelError(f"bits is {bits}; weights can have 2 to 8.")
    if group not in (-1, *GROUPS):
        raise ModelError(f"group is {group}; it can be {', '.join(map(str, GROUPS))}, or -1.")


def _packed(
    linear: nn.Linear, moment: Tensor | None, bits: int, group: int, how: How
) -> PackedLinear:
    weight = linear.weight.detach().float()
    span = linear.in_features if group == -1 else group
    scales = None
    if moment is None or how == "nearest":
        codes = nearest(weight, bits, span)
    elif how == "gptq":
        codes = gptq(weight, moment, bits, span)
    else:
        codes, scales = awq(weight, moment, bits, span)
    return PackedLinear(linear, codes, scales, bits, _block(linear.in_features, group, bits))


def _block(inputs: int, group: int, bits: int) -> int:
    """Inputs of one block of the layout: a group, or what holds a whole row in the fewest bytes."""
    if group != -1:
        return group
    scale = torch.float32.itemsize
    return min(GROUPS, key=lambda n: math.ceil(inputs / n) * (n * lane_of(bits) / 8 + scale))


class PackedLinear(nn.Module):
    """A linear layer whose weight is packed codes, several a byte, the first in the lowest bits.

    `weight` is (outputs, blocks, bytes), `scale` (outputs, blocks), `zero` packed codes again;
    the layout of com.microsoft's MatMulNBits. `relief` (inputs,) is what AWQ multiplies inputs by,
    having divided the weights by it.
    """

    weight: Tensor
    scale: Tensor
    zero: Tensor
    relief: Tensor | None
    bias: nn.Parameter | None

    def __init__(
        self, linear: nn.Linear, codes: Codes, scales: Tensor | None, bits: int, block: int
    ) -> None:
        super().__init__()
        self.bits = bits
        self.block = block
        self.in_features, self.out_features = linear.in_features, linear.out_features
        blocks = math.ceil(linear.in_features / block)
        # One scale for a whole row stands at each of its blocks.
        shape = (linear.out_features, blocks)
        scale, zero = codes.scale.expand(shape), codes.zero.expand(shape)
        # What fills up the last block is the zero point itself: a weight of 0.
        padded = zero.repeat_interleave(block, 1)
        padded[:, : linear.in_features] = codes.values
        lane = lane_of(bits)
        self.register_buffer("weight", pack(padded.unflatten(1, (blocks, block)), lane))
        self.register_buffer("scale", scale.contiguous())
        self.register_buffer("zero", pack(zero, lane))
        self.register_buffer("relief", None if scales is None else 1 / scales)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().clone())

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        if self.relief is not None:
            inputs = inputs * self.relief
        if torch.onnx.is_in_onnx_export():
            product = self._as_onnx(inputs)
        else:
            product = F.linear(self._rounded(inputs), self._unpacked())
        answer: Tensor = product if self.bias is None else product + self.bias
        return answer

    def _rounded(self, inputs: Tensor) -> Tensor:
        """Inputs as 8-bit codes with one scale a block, in which the products are summed."""
        blocks = F.pad(inputs, (0, -self.in_features % self.block)).unflatten(-1, (-1, self.block))
        step = (blocks.abs().amax(-1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float).tiny)
        rounded: Tensor = (torch.round(blocks / step) * step).flatten(-2)
        return rounded[..., : self.in_features]

    def _unpacked(self) -> Tensor:
        """The weights that the codes stand for, for inputs after their relief."""
        lane = lane_of(self.bits)
        zero = unpack(self.zero, lane)[:, : self.scale.shape[1], None].to(self.scale.dtype)
        values: Tensor = (unpack(self.weight, lane) - zero) * self.scale.unsqueeze(-1)
        return values.flatten(1)[:, : self.in_features]

    def _as_onnx(self, inputs: Tensor) -> Tensor:
        return torch.onnx.ops.symbolic(
            "com.microsoft::MatMulNBits",
            [inputs, self.weight, self.scale, self.zero],
            {
                "K": self.in_features,
                "N": self.out_features,
                "bits": lane_of(self.bits),
                "block_size": self.block,
                # Products in 8 bits: 2 to 20 times faster than in float, measured on x86.
                "accuracy_level": 4,
            },
            dtype=torch.float32,
            shape=(*inputs.shape[:-1], self.out_features),
            version=1,
        )

    def dequantized(self) -> nn.Linear:
        """The float layer with the values that the codes stand for."""
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        weight = self._unpacked()
        with torch.no_grad():
            linear.weight.copy_(weight if self.relief is None else weight * self.relief)
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        return linear
