"""A network made as wide as weights that come from its pruned twin: the weights are the record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attar.errors import ModelError


def fit_(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """Give each layer of a network the widths of some weights, so that it can load them.

    So a network of your own whose channels were pruned loads again from safetensors: build it as
    ever, `fit_` it to the file's weights, then `load_state_dict`. Linear layers, convolutions,
    batch and layer norms and embeddings are fitted, in place; what they hold is not yet set.

    weights: by the names of the model's `state_dict`
    Raises ModelError for a layer of another kind whose shape differs.
    """
    for path, module in model.named_modules():
        own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        there = {name: weights.get(f"{path}.{name}".lstrip(".")) for name, _ in own}
        wrong = {
            name: there[name].shape  # type: ignore[union-attr]
            for name, tensor in own
            if there[name] is not None and there[name].shape != tensor.shape  # type: ignore[union-attr]
        }
        if wrong:
            _widen(path, module, wrong)
    return model


def _widen(path: str, module: nn.Module, shapes: Mapping[str, torch.Size]) -> None:
    weight = shapes.get("weight")
    if weight is not None and isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight
    elif weight is not None and isinstance(module, nn.Conv1d | nn.Conv2d):
        _convolve(module, weight)
    elif weight is not None and isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = weight
    elif weight is not None and isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(weight)
    elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        module.num_features = next(shape[0] for shape in shapes.values() if shape)
    elif not isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
        name, shape = next(iter(shapes.items()))
        raise ModelError(
            f"{path} is a {type(module).__name__}, whose {name} can't be given the shape "
            f"{tuple(shape)} of the weights; build the network with that shape."
        )
    for name, shape in shapes.items():
        now: Any = module.get_parameter(name) if name in module._parameters else None
        if now is None:
            module.register_buffer(name, module.get_buffer(name).new_empty(shape))
        else:
            setattr(module, name, nn.Parameter(now.data.new_empty(shape), now.requires_grad))


def _convolve(module: nn.Conv1d | nn.Conv2d, weight: torch.Size) -> None:
    """A group keeps its width where that stayed the same, and else the groups keep their number."""
    if module.groups > 1 and weight[1] == module.weight.shape[1]:
        module.groups = module.groups * weight[0] // module.out_channels
    module.out_channels, module.in_channels = weight[0], weight[1] * module.groups
