"""How much a model would miss a row, a head or a channel: four measures, one meaning.

Three look at the weights that read a unit (the columns of the layer behind it), since what nobody
reads nobody misses; the fourth at the batch norm that gives it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Literal

import torch
from torch import Tensor, nn

from attar.compress.watching import inputs_of, watch
from attar.errors import ModelError
from attar.taps import evaluating
from attar.types import Calibration, Losses

Importance = Literal["magnitude", "activation", "taylor", "scale"]


def columns(
    model: nn.Module,
    paths: Iterable[str],
    how: Importance,
    calibration: Calibration,
    losses: Losses,
    batches: int,
) -> dict[str, Tensor]:
    """What each input of some linear or convolution layers is worth, (inputs,) a layer by path.

    magnitude: the squares of the weights that read it (Li et al. 2017)
    activation: the same times its mean square over calibration, which is the mean square of what
        it brings to the layer's outputs (the score of Wanda, Sun et al. 2024, of a whole column)
    taylor: the square of what the loss would change to first order without it, the mean over
        batches (Molchanov et al. 2019, equation 8, of the unit's own gate)
    """
    if how == "scale":
        raise ModelError(
            f"{type(model).__name__} has no batch norms between its layers whose scales could "
            "tell; take another importance."
        )
    layers = {path: model.get_submodule(path) for path in paths}
    if how == "taylor":
        return _gates(model, layers, losses, batches)
    found = {path: _read(layer, _weight(layer).float().square()) for path, layer in layers.items()}
    if how == "activation":
        moments = mean_squares(model, layers, calibration, batches)
        found = {path: worth * moments[path] for path, worth in found.items()}
    return found


def scales(model: nn.Module) -> dict[nn.Module, Tensor]:
    """The size of each channel's scale in each batch norm, (channels,) (Liu et al. 2017).

    Raises ModelError where there is none.
    """
    norms = [each for each in model.modules() if isinstance(each, nn.BatchNorm1d | nn.BatchNorm2d)]
    if not any(norm.affine for norm in norms):
        raise ModelError(
            f"{type(model).__name__} has no batch norm whose scales could tell; take another "
            "importance."
        )
    return {norm: norm.weight.detach().abs() for norm in norms if norm.affine}


def mean_squares(
    model: nn.Module, layers: Mapping[str, nn.Module], calibration: Calibration, batches: int
) -> dict[str, Tensor]:
    """The mean square of each input of some layers over some batches, (inputs,) a layer.

    Raises ModelError for a layer that no batch ever reached.
    """
    sums = {layer: torch.zeros(inputs_of(layer)) for layer in layers.values()}
    counts = dict.fromkeys(sums, 0)

    def see(layer: nn.Module, rows: Tensor) -> None:
        sums[layer] += rows.float().square().sum(0).cpu()
        counts[layer] += len(rows)

    watch(model, sums, calibration, batches, see)
    if unseen := [path for path, layer in layers.items() if counts[layer] == 0]:
        raise ModelError(
            f"{unseen[0]} was never called while {type(model).__name__} answered, so what it is "
            "worth can't be measured; take `importance: magnitude`, or exclude it."
        )
    return {path: sums[layer] / counts[layer] for path, layer in layers.items()}


def _gates(
    model: nn.Module, layers: dict[str, nn.Module], losses: Losses, batches: int
) -> dict[str, Tensor]:
    """The squared gradient of each input's gate: the sum of weight times gradient of its column."""
    weights = {path: _weight(layer) for path, layer in layers.items()}
    wanted = [weight.requires_grad for weight in weights.values()]
    for weight in weights.values():
        weight.requires_grad_(True)
    found = {path: torch.zeros(inputs_of(layer)) for path, layer in layers.items()}
    count = 0
    with evaluating(model):
        for loss in islice(losses(model), batches):
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            for (path, weight), gradient in zip(weights.items(), gradients, strict=True):
                if gradient is not None:
                    found[path] += _read(layers[path], weight * gradient).float().square()
            count += 1
    for weight, before in zip(weights.values(), wanted, strict=True):
        weight.requires_grad_(before)
    if count == 0:
        raise ModelError(
            "There is no labelled example to take gradients from; take another importance."
        )
    return {path: worth / count for path, worth in found.items()}


def _weight(layer: nn.Module) -> nn.Parameter:
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    return weight


def _read(layer: nn.Module, values: Tensor) -> Tensor:
    """Something of each weight, (outputs, inputs of a group, ...), summed for each input."""
    groups = 1 if isinstance(layer, nn.Linear) else int(layer.groups)  # type: ignore[arg-type]
    by_group = (
        values.detach().unflatten(0, (groups, -1)).flatten(3)
        if values.dim() > 2
        else (values.detach()[None, ..., None])
    )
    return by_group.sum((1, 3)).flatten()
