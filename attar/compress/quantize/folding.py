"""Batch norms taken into the layer before them, of which they are a part once training is over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from attar.compress.placing import swap_
from attar.compress.quantize.flow import Flow, watched

Layer = nn.Conv1d | nn.Conv2d | nn.Linear


def is_layer(module: nn.Module) -> bool:
    """Whether a module is a layer that can be folded into and quantized.

    A subclass may do more than its parent, or be read by others (torch's attention takes the
    weight of its output layer); what is padded with something else than zeros runs in two steps.
    """
    if type(module) is nn.Linear:
        return True
    return type(module) in (nn.Conv1d, nn.Conv2d) and module.padding_mode == "zeros"


def fold_(model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    """Put every batch norm that alone reads what a layer gives into that layer.

    Where it was stands an `nn.Identity`. A layer or a norm that runs more than once stays.

    inputs: with which the model is run once, to see who reads what
    """
    for layer, norm in list(_pairs(model, watched(model, inputs))):
        _fuse_(layer, norm)
        swap_(model, norm, nn.Identity())


def _pairs(model: nn.Module, flow: Flow) -> Iterator[tuple[Layer, _BatchNorm]]:
    runs = flow.runs()
    for call in flow.calls:
        after = flow.next(call.writes[0])
        if after is None or after.name != "batch_norm" or runs[call.module] > 1:
            continue
        layer, norm = (model.get_submodule(each.module) for each in (call, after))
        # A linear layer's outputs are its last dimension, those of a norm its second.
        in_place = call.rank == 2 or not isinstance(layer, nn.Linear)
        if is_layer(layer) and in_place and runs[after.module] == 1:
            assert isinstance(layer, Layer)
            if isinstance(norm, _BatchNorm) and norm.running_mean is not None:
                yield layer, norm


def _fuse_(layer: Layer, norm: _BatchNorm) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        weight, bias = fuse_conv_bn_weights(
            *(layer.weight, layer.bias, norm.running_mean, norm.running_var),
            *(norm.eps, norm.weight, norm.bias),
        )
    # torch's function says of a bias that was not there that it is not to be trained.
    layer.weight, layer.bias = weight, bias.requires_grad_(weight.requires_grad)
