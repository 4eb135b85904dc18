"""Fewer bits for each weight, in the arithmetic of the runtime that will run the file."""

from __future__ import annotations

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.errors import ModelError, nearest


def int8_dynamic(
    model: nn.Module, *, reduce_range: bool = True, exclude: list[str] | None = None
) -> nn.Module:
    """Linear and embedding weights as int8; activations quantized as they come, batch by batch.

    What ONNX Runtime's dynamic quantization does, done in torch, so that the model can be scored and
    distilled further before it is a file: weights symmetric per output channel, activations
    unsigned with one scale and zero point a tensor. `export.onnx` writes it as real int8 operators.

    reduce_range: 7 of the 8 bits for linear weights. Processors without VNNI add pairs of products
        in 16 bits and saturate with all 8; with 7 a file answers the same on every x86 machine.
    exclude: paths of modules that stay in float
    Returns a copy. Raises ModelError for a path that names no such module.
    """
    small = deepcopy(model).eval()
    kept = set(exclude or ())
    candidates = {
        path: module
        for path, module in small.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding)
    }
    for path in kept - set(candidates):
        raise ModelError(f"There is no linear or embedding {path!r}; {nearest(path, candidates)}")
    if not candidates:
        raise ModelError(f"{type(model).__name__} has no linear or embedding layer to quantize.")
    for path, module in candidates.items():
        if path not in kept:
            small.set_submodule(path, _int8(module, reduce_range))
    return small


def _int8(module: nn.Linear | nn.Embedding, reduce_range: bool) -> nn.Module:
    if isinstance(module, nn.Embedding):
        return Int8Embedding(module)
    return Int8Linear(module, 64 if reduce_range else 127)


class Int8Linear(nn.Module):
    """A linear layer with int8 weights per output channel and dynamically quantized input.

    Jacob et al. 2018, equations 1 to 4; ranges as in ONNX's DynamicQuantizeLinear.
    """

    bits = 8
    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, most: int) -> None:
        super().__init__()
        weight = linear.weight.detach()
        # ONNX Runtime's symmetric scale: the largest weight of each output channel is `most`.
        scale = (weight.abs().amax(1, keepdim=True) / most).clamp(
            min=torch.finfo(weight.dtype).tiny
        )
        values = torch.round(weight / scale).clamp(-most, most)
        self.register_buffer("weight", values.to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())

    def forward(self, inputs: Tensor) -> Tensor:
        low = inputs.detach().amin().clamp(max=0)
        high = inputs.detach().amax().clamp(min=0)
        step = ((high - low) / 255).clamp(min=torch.finfo(inputs.dtype).tiny)
        zero = torch.round(-low / step)
        seen = (torch.round(inputs / step) + zero).clamp(0, 255)
        return F.linear((seen - zero) * step, self.weight * self.scale, self.bias)

    def dequantized(self) -> nn.Linear:
        """The float layer with the values that the int8 weights stand for."""
        out, into = self.weight.shape
        linear = nn.Linear(into, out, bias=self.bias is not None)
        with torch.no_grad():
            linear.weight.copy_(self.weight * self.scale)
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        return linear


class Int8Embedding(nn.Module):
    """An embedding table in 8 bits with one scale and zero point, as ONNX's Gather reads it."""

    bits = 8
    weight: Tensor
    scale: Tensor
    zero: Tensor

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        table = embedding.weight.detach()
        low, high = table.amin().clamp(max=0), table.amax().clamp(min=0)
        scale = ((high - low) / 255).clamp(min=torch.finfo(table.dtype).tiny)
        zero = torch.round(-low / scale)
        values = (torch.round(table / scale) + zero).clamp(0, 255)
        self.register_buffer("weight", values.to(torch.uint8))
        self.register_buffer("scale", scale)
        self.register_buffer("zero", zero)
        self.padding_idx = embedding.padding_idx

    def forward(self, ids: Tensor) -> Tensor:
        return (F.embedding(ids, self.weight) - self.zero) * self.scale

    def dequantized(self) -> nn.Embedding:
        """The float table with the values that the 8-bit ones stand for."""
        rows, width = self.weight.shape
        table = nn.Embedding(rows, width, padding_idx=self.padding_idx)
        with torch.no_grad():
            table.weight.copy_((self.weight - self.zero) * self.scale)
        return table
