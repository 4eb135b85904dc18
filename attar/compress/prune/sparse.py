"""Weights set to zero by their importance."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Literal

import torch
from torch import Tensor, nn

from attar.compress.choosing import chosen
from attar.errors import ModelError


def magnitude(
    model: nn.Module,
    *,
    ratio: float,
    scope: Literal["global", "layer"] = "global",
    exclude: list[str] | None = None,
) -> nn.Module:
    """Zero the weights of linear and convolution layers that are smallest in magnitude.

    Zeros make a file smaller only once it is compressed (zip, gzip) and make no processor faster
    that multiplies dense matrices: for speed take fewer layers, fewer channels or fewer bits.

    ratio: share of the weights set to zero, from 0 to below 1
    scope: one threshold for all layers, or one for each (Han et al. 2015)
    exclude: paths of modules, with all that is in them, that stay whole
    Returns a copy. Raises ModelError for a path that names nothing, and where nothing is left.
    """
    if not 0 <= ratio < 1:
        raise ModelError(f"ratio is the share of weights set to zero, 0 to below 1, not {ratio}.")
    sparse = deepcopy(model)
    layers = chosen(sparse, _is_dense, exclude, "linear or convolution layer left to prune")
    # By identity, since a weight that two layers share is one weight.
    weights = list({id(layer.weight): layer.weight for layer in layers.values()}.values())
    groups = [weights] if scope == "global" else [[weight] for weight in weights]
    for group in groups:
        _zero_smallest_(group, ratio)  # type: ignore[arg-type]
    return sparse


def _is_dense(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d)


@torch.no_grad()
def _zero_smallest_(weights: Sequence[Tensor], ratio: float) -> None:
    flat = torch.cat([weight.abs().flatten() for weight in weights])
    count = round(ratio * flat.numel())
    # Positions, not a threshold: equal magnitudes must not take more than was asked for.
    drop = torch.zeros_like(flat, dtype=torch.bool)
    drop[flat.argsort(stable=True)[:count]] = True
    for weight, mask in zip(weights, drop.split([w.numel() for w in weights]), strict=True):
        weight.masked_fill_(mask.view_as(weight), 0.0)
