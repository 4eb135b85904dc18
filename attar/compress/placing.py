"""Layers of a model replaced by their twins, wherever they stand."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn


def replace_(
    model: nn.Module, layers: Mapping[str, nn.Module], twins: Mapping[nn.Module, nn.Module]
) -> None:
    """Put the twin of each layer where the layer stands; one in two places has one twin.

    layers: by path, as `chosen` gives them
    twins: by the layer they replace; a layer without one stays
    """
    for path, layer in layers.items():
        if layer in twins:
            model.set_submodule(path, twins[layer])
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            # torch's fused layer would take the weights of its linears and never call them.
            module.activation_relu_or_gelu = 0
