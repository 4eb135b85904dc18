"""Quantized layers seen as the float layers they stand for, so that all are counted alike."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import torch
from torch import Tensor, nn

from attar.types import Quantized


def weights(model: nn.Module) -> Iterator[Tensor]:
    """Every stored weight once, with its value; of quantized layers those of their float twins."""
    quantized = _outermost(model)
    hidden = {id(each) for layer in quantized.values() for each in _tensors(layer)}
    for layer in {id(layer): layer for layer in quantized.values()}.values():
        yield from _twin(layer).parameters()
    parameters = {id(each) for each in model.parameters()}
    for tensor in _tensors(model):
        if id(tensor) not in hidden and (id(tensor) in parameters or _is_matrix(tensor)):
            yield tensor


def floating(model: nn.Module) -> nn.Module:
    """The model with float layers in place of quantized ones; the model itself if it has none."""
    quantized = _outermost(model)
    if not quantized:
        return model
    if "" in quantized:
        return _twin(model)
    # Only what is quantized is taken apart: the rest of the copy is the original's own tensors.
    shared = {id(each): each for each in _tensors(model)}
    copy = deepcopy(model, shared)
    twins = {id(layer): _twin(layer) for layer in quantized.values()}
    for path, layer in quantized.items():
        copy.set_submodule(path, twins[id(layer)])
    return copy


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _is_matrix(tensor: Tensor) -> bool:
    """Whether a buffer is a weight that somebody else's layer keeps in a byte each.

    A lone integer is what zero became, and a row of them one for each channel.
    """
    return tensor.dtype in (torch.int8, torch.uint8) and tensor.dim() > 1


def _outermost(model: nn.Module) -> dict[str, nn.Module]:
    """The quantized layers by path, without those inside of another; shared ones at each path."""
    found: dict[str, nn.Module] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        inside = any(not outer or path.startswith(f"{outer}.") for outer in found)
        if not inside and isinstance(module, Quantized):
            found[path] = module  # type: ignore[assignment]
    return found


def _twin(layer: nn.Module) -> nn.Module:
    """The float layer, in the number format and on the device that the quantized one answers in."""
    assert isinstance(layer, Quantized)
    # A new layer draws its first weights at random, which must not move anybody's dice.
    with torch.random.fork_rng(devices=[]):
        twin: nn.Module = layer.dequantized()
    known = [each for each in _tensors(layer) if each.is_floating_point()]
    return twin.to(known[0].device, known[0].dtype) if known else twin
