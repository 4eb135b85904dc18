"""Weights in 16 bits: half the bytes, the arithmetic in 32 as before."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence

from attar.compress.choosing import chosen
from attar.compress.placing import replace_
from attar.errors import ModelError

HALVED = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.LSTM, nn.GRU)
"""Layers that hold nearly all weights; norms are few and need their precision."""


def fp16(model: nn.Module, *, exclude: list[str] | None = None) -> nn.Module:
    """Linear, convolution, embedding and recurrent weights as float16: 11 bits and their size.

    Half the file at the speed it had, since most processors multiply in 32 bits: the weights are
    cast when they are used, in torch and in the file that `export.onnx` writes, where ONNX Runtime
    casts them once at loading. `export.transformers` writes a folder of that type, which
    `transformers` loads and runs in 16 bits throughout. Put it after all training.

    exclude: paths of modules, with all that is in them, that stay in 32 bits
    Returns a copy. Raises ModelError for a path that names nothing, where nothing is left, and for
    a weight beyond 65504, the largest number that float16 has.
    """
    return _halved(model, torch.float16, exclude)


def bf16(model: nn.Module, *, exclude: list[str] | None = None) -> nn.Module:
    """The same as bfloat16: of any size that a weight can have, but with 8 bits only.

    Half the file at the speed it had, as with fp16, which is nearer to most models by far; this
    is for weights too large for it, or for who loads the folder and multiplies in bfloat16.

    exclude: paths of modules, with all that is in them, that stay in 32 bits
    Returns a copy. Raises ModelError for a path that names nothing, and where nothing is left.
    """
    return _halved(model, torch.bfloat16, exclude)


def _halved(model: nn.Module, dtype: torch.dtype, exclude: list[str] | None) -> nn.Module:
    small = deepcopy(model).eval()
    what = "linear, convolution, embedding or recurrent layer left to halve"
    layers = chosen(small, lambda module: type(module) in HALVED, exclude, what)
    weights: dict[nn.Parameter, nn.Parameter] = {}
    for path, layer in layers.items():
        for weight in layer.parameters():
            weights[weight] = nn.Parameter(_cast(weight.detach(), dtype, path))
    replace_(small, layers, {layer: Halved(layer, weights) for layer in layers.values()})
    return small


def _cast(weight: Tensor, dtype: torch.dtype, path: str) -> Tensor:
    small = weight.to(dtype)
    if not small.isfinite().all() and weight.isfinite().all():
        raise ModelError(
            f"{path} has a weight of {weight.abs().amax():g}, and the largest number of 16 bits is "
            f"{torch.finfo(dtype).max:g} here; exclude it, or use quantize.bf16."
        )
    return small


def _in_32(given: Any) -> Any:
    """What is given to a layer, its floating numbers in 32 bits."""
    if isinstance(given, PackedSequence):
        return given.float()
    if isinstance(given, tuple):
        return tuple(_in_32(each) for each in given)
    return given.float() if isinstance(given, Tensor) and given.is_floating_point() else given


class Halved(nn.Module):
    """A layer that keeps its weights in 16 bits, by the names they had, and computes in 32."""

    def __init__(self, layer: nn.Module, weights: dict[nn.Parameter, nn.Parameter]) -> None:
        super().__init__()
        for name, weight in layer.named_parameters():
            self.register_parameter(name, weights[weight])
        # In a tuple, where torch does not look for modules: what computes, with no weights.
        self._layer = (deepcopy(layer).to("meta"),)
        if isinstance(layer, nn.RNNBase):
            self.hidden_size = layer.hidden_size

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """What the layer gives with these weights."""
        # Some models cast their inputs to the type that the weights have.
        whole = {name: _in_32(each) for name, each in named.items()}
        return functional_call(self._layer[0], self._whole(), _in_32(inputs), whole)

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The weights of a recurrent layer in 32 bits, ordered as torch orders them."""
        whole = self._whole()
        return [[whole[name] for name in names] for names in self._layer[0]._all_weights]  # type: ignore[union-attr]

    def _whole(self) -> dict[str, Tensor]:
        return {name: weight.float() for name, weight in self.named_parameters()}

    def extra_repr(self) -> str:
        """The layer that computes, for whoever prints the model."""
        return repr(self._layer[0])
