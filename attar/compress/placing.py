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
    unfuse_(model)


def unfuse_(model: nn.Module) -> None:
    """Have torch's own transformer layers call their linear layers."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            # torch's fused layer would take the weights of its linears and never call them.
            module.activation_relu_or_gelu = 0


def swap_(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module into every place of another."""
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if module is old:
            model.set_submodule(path, new)
