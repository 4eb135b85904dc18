"""Weights set to zero one by one, by their importance."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Literal

import torch
from torch import Tensor, nn

from attar.compress.choosing import chosen
from attar.compress.prune.graph import is_dense
from attar.compress.prune.importance import mean_squares
from attar.errors import ModelError
from attar.types import Calibration, Count


def magnitude(
    model: nn.Module,
    *,
    ratio: float | None = None,
    pattern: str | None = None,
    scope: Literal["global", "layer"] = "global",
    exclude: list[str] | None = None,
) -> nn.Module:
    """Zero the weights of linear and convolution layers that are smallest in magnitude.

    Zeros make a file smaller only once it is compressed (zip, gzip) and make no processor faster
    that multiplies dense matrices: for speed take fewer layers, fewer channels or fewer bits.
    A `distill` step behind it leaves the zeros as they are and trains the rest.

    ratio: share of the weights set to zero, from 0 to below 1
    pattern: instead of a ratio, `N:M` such as `2:4`: of every M weights of a row, N stay
    scope: one threshold for all layers, or one for each (Han et al. 2015)
    exclude: paths of modules, with all that is in them, that stay whole
    Returns a copy. Raises ModelError for a path that names nothing, and where nothing is left.
    """
    _check(ratio, pattern)
    sparse = deepcopy(model)
    layers = chosen(sparse, is_dense, exclude, "linear or convolution layer left to prune")
    worths = {path: _matrix(layer).abs() for path, layer in layers.items()}
    if pattern is not None:
        _prune_(layers, worths, _by_pattern(pattern))
    elif scope == "layer":
        _prune_(layers, worths, lambda worth: _lowest(worth.flatten(), ratio or 0).view_as(worth))
    else:
        _prune_together_(layers, worths, ratio or 0)
    return sparse


def wanda(
    model: nn.Module,
    calibration: Calibration,
    *,
    ratio: float | None = None,
    pattern: str | None = None,
    batches: Count = 8,
    exclude: list[str] | None = None,
) -> nn.Module:
    """Zero the weights that bring least to each output: magnitude times the size of the input.

    Every output loses the same share (Sun et al. 2024, equation 1). Of a trained language model
    without repair much better than magnitude alone (their Llama-2-7B at half the weights:
    perplexity 6.42 against 14.89); and as little help to speed, see `magnitude`.

    ratio: share of the weights set to zero, from 0 to below 1
    pattern: instead of a ratio, `N:M` such as `2:4`: of every M weights of a row, N stay
    batches: of calibration
    exclude: paths of modules, with all that is in them, that stay whole
    Returns a copy. Raises ModelError for a path that names nothing, and where nothing is left.
    """
    _check(ratio, pattern)
    sparse = deepcopy(model)
    layers = chosen(sparse, is_dense, exclude, "linear or convolution layer left to prune")
    moments = mean_squares(sparse, layers, calibration, batches)
    worths = {
        path: _matrix(layer).abs() * _by_row(layer, moments[path].sqrt())
        for path, layer in layers.items()
    }
    by_output = _by_pattern(pattern) if pattern is not None else _by_output(ratio or 0)
    _prune_(layers, worths, by_output)
    return sparse


def _check(ratio: float | None, pattern: str | None) -> None:
    if (ratio is None) == (pattern is None):
        raise ModelError("Give either `ratio` or `pattern`, such as 2:4.")
    if ratio is not None and not 0 <= ratio < 1:
        raise ModelError(f"ratio is the share of weights set to zero, 0 to below 1, not {ratio}.")


def _matrix(layer: nn.Module) -> Tensor:
    """A layer's weights as (outputs, inputs): what one output reads stands in one row."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach().flatten(1)


def _by_row(layer: nn.Module, norms: Tensor) -> Tensor:
    """Something of each input, shaped as the weights of `_matrix` that read it."""
    if isinstance(layer, nn.Linear):
        return norms.to(layer.weight.device)
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    rows = norms.to(layer.weight.device).view(layer.groups, 1, -1, 1)
    shape = (layer.groups, layer.out_channels // layer.groups, -1, layer.weight[0, 0].numel())
    return rows.expand(shape).reshape(layer.out_channels, -1)


Choice = Callable[[Tensor], Tensor]
"""Which weights go, of what each is worth: both (outputs, inputs)."""


def _prune_(layers: dict[str, nn.Module], worths: dict[str, Tensor], gone: Choice) -> None:
    done: set[int] = set()  # a weight that two layers share is one weight
    for path, layer in layers.items():
        if id(layer.weight) not in done:
            _zero_(layer, gone(worths[path]))
        done.add(id(layer.weight))
        mark_(layer)


def _prune_together_(layers: dict[str, nn.Module], worths: dict[str, Tensor], ratio: float) -> None:
    once = {id(layer.weight): path for path, layer in reversed(layers.items())}.values()
    flat = torch.cat([worths[path].flatten() for path in once])
    drops = _lowest(flat, ratio).split([worths[path].numel() for path in once])
    for path, drop in zip(once, drops, strict=True):
        _zero_(layers[path], drop)
    for layer in layers.values():
        mark_(layer)


def _lowest(worth: Tensor, ratio: float) -> Tensor:
    """Where the lowest share of a row of values is; of equal values no more than was asked for."""
    drop = torch.zeros_like(worth, dtype=torch.bool)
    order = worth.argsort(dim=-1, stable=True)
    count = round(ratio * worth.shape[-1])
    return drop.scatter(-1, order[..., :count], True)


def _by_output(ratio: float) -> Choice:
    return lambda worth: _lowest(worth, ratio)


def _by_pattern(pattern: str) -> Choice:
    """Of every M weights of a row all but the best N."""
    stay, _, every = pattern.partition(":")
    if not (stay.isdecimal() and every.isdecimal() and 0 < int(stay) <= int(every)):
        raise ModelError(f"pattern is N:M, N of every M weights staying, as in 2:4; not {pattern}.")
    size = int(every)

    def gone(worth: Tensor) -> Tensor:
        whole = worth.shape[1] // size * size  # what is left over at a row's end stays
        parts = worth[:, :whole].unflatten(1, (-1, size))
        drop = torch.zeros_like(worth, dtype=torch.bool)
        drop[:, :whole] = _lowest(parts, 1 - int(stay) / size).flatten(1)
        return drop

    return gone


@torch.no_grad()
def _zero_(layer: nn.Module, drop: Tensor) -> None:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    weight.masked_fill_(drop.view_as(weight), 0.0)


def mark_(layer: nn.Module) -> None:
    """Say of a layer that its zeros are meant, so that training leaves them (`types.Sparse`)."""
    vars(layer)["zeros_stay"] = True
