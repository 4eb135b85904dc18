"""Int8 weights, and activations quantized as they come, batch by batch."""

from __future__ import annotations

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.compress.choosing import chosen
from attar.compress.placing import replace_
from attar.compress.quantize.grids import positive, scale_and_zero


def int8_dynamic(
    model: nn.Module, *, reduce_range: bool = True, exclude: list[str] | None = None
) -> nn.Module:
    """Linear and embedding weights as int8; activations quantized as they come, batch by batch.

    What ONNX Runtime's dynamic quantization does, done in torch, so that the model can be scored
    before it is a file: weights symmetric per output channel, activations unsigned with one scale
    and zero point a tensor. `export.onnx` writes it as real int8 operators.

    reduce_range: 7 of the 8 bits for linear weights. Processors without VNNI add pairs of products
        in 16 bits and saturate with all 8; with 7 a file answers the same on every x86 machine.
    exclude: paths of modules, with all that is in them, that stay in float
    Returns a copy. Raises ModelError for a path that names nothing, and where nothing is left.
    """
    small = deepcopy(model).eval()
    layers = chosen(small, _is_plain, exclude, "linear or embedding layer left to quantize")
    twins = {layer: _int8(layer, reduce_range) for layer in layers.values()}
    replace_(small, layers, twins)
    return small


def _is_plain(module: nn.Module) -> bool:
    # A subclass may do more than its parent (scale the embeddings) or be read by others
    # (torch's attention takes the weight of its output layer), so it stays in float.
    return type(module) in (nn.Linear, nn.Embedding)


def _int8(layer: nn.Module, reduce_range: bool) -> nn.Module:
    if isinstance(layer, nn.Embedding):
        return Int8Embedding(layer)
    assert isinstance(layer, nn.Linear)
    return Int8Linear(layer, 64 if reduce_range else 127)


class Int8Linear(nn.Module):
    """A linear layer with int8 weights per output channel and dynamically quantized input.

    Jacob et al. 2018, equations 1 to 4; ranges as in ONNX's DynamicQuantizeLinear.
    `weight` is (inputs, outputs) as MatMulInteger wants it, `scale` (outputs,).
    """

    bits = 8
    weight: Tensor
    scale: Tensor
    bias: nn.Parameter | None

    def __init__(self, linear: nn.Linear, most: int) -> None:
        super().__init__()
        weight = linear.weight.detach().T
        # ONNX Runtime's symmetric scale: the largest weight of each output channel is `most`.
        scale = positive(weight.abs().amax(0) / most)
        values = torch.round(weight / scale).clamp(-most, most)
        self.register_buffer("weight", values.to(torch.int8).contiguous())
        self.register_buffer("scale", scale)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().clone())

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs); one scale for the whole tensor, padding included."""
        if torch.onnx.is_in_onnx_export():
            scaled = self._as_onnx(inputs)
        else:
            step, zero = scale_and_zero(inputs.amin(), inputs.amax())
            seen = (torch.round(inputs / step) + zero).clamp(0, 255)
            scaled = ((seen - zero) @ self.weight.to(inputs.dtype)) * (step * self.scale)
        return scaled if self.bias is None else scaled + self.bias

    def _as_onnx(self, inputs: Tensor) -> Tensor:
        """The same in ONNX's integer operators, in the order that ONNX Runtime fuses into one."""
        seen, step, zero = torch.onnx.ops.symbolic_multi_out(
            "DynamicQuantizeLinear",
            [inputs],
            dtypes=[torch.uint8, torch.float32, torch.uint8],
            shapes=[inputs.shape, (), ()],
        )
        product = torch.onnx.ops.symbolic(
            "MatMulInteger",
            [seen, self.weight, zero],
            dtype=torch.int32,
            shape=(*inputs.shape[:-1], self.weight.shape[1]),
        )
        return product.to(torch.float32) * (step * self.scale)

    def dequantized(self) -> nn.Linear:
        """The float layer with the values that the int8 weights stand for."""
        into, out = self.weight.shape
        linear = nn.Linear(into, out, bias=self.bias is not None)
        with torch.no_grad():
            linear.weight.copy_((self.weight * self.scale).T)
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        return linear


class Int8Embedding(nn.Module):
    """An embedding table in 8 bits with one scale and zero point.

    `weight` is (rows, width) uint8, `scale` and `zero` one number each, as in ONNX's
    DequantizeLinear.
    """

    bits = 8
    weight: Tensor
    scale: Tensor
    zero: Tensor

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        table = embedding.weight.detach()
        scale, zero = scale_and_zero(table.amin(), table.amax())
        values = (torch.round(table / scale) + zero).clamp(0, 255)
        self.register_buffer("weight", values.to(torch.uint8))
        self.register_buffer("scale", scale)
        self.register_buffer("zero", zero.to(torch.uint8))
        self.padding_idx = embedding.padding_idx

    def forward(self, ids: Tensor) -> Tensor:
        """Ids of any shape to embeddings (..., width)."""
        seen = F.embedding(ids, self.weight)
        if torch.onnx.is_in_onnx_export():
            return torch.onnx.ops.symbolic(
                "DequantizeLinear",
                [seen, self.scale, self.zero],
                dtype=torch.float32,
                shape=seen.shape,
            )
        return (seen.to(self.scale.dtype) - self.zero) * self.scale

    def dequantized(self) -> nn.Embedding:
        """The float table with the values that the 8-bit ones stand for."""
        rows, width = self.weight.shape
        table = nn.Embedding(rows, width, padding_idx=self.padding_idx)
        with torch.no_grad():
            table.weight.copy_((self.weight.to(self.scale.dtype) - self.zero) * self.scale)
        return table
