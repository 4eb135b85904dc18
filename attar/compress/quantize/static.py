"""Int8 weights, and activations in 8 bits whose ranges are fixed beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy

import torch
from torch import nn

from attar.compress.choosing import chosen
from attar.compress.placing import swap_, unfuse_
from attar.compress.quantize.activations import WHAT, Plan, observed, planned_, stood_
from attar.compress.quantize.dynamic import Int8Embedding
from attar.compress.quantize.grids import Grid, scale_and_zero
from attar.compress.quantize.integer import Int8Layer, largest, weight_scale
from attar.compress.quantize.placing import Spot
from attar.compress.quantize.ranges import Histogram, Ranges
from attar.compress.quantize.training import LearnedGrid, MovingGrid, Snapped, SnappedTable
from attar.types import Calibration, Count, Example


def int8_static(
    model: nn.Module,
    example: Example,
    calibration: Calibration,
    *,
    ranges: Ranges = "minmax",
    batches: Count = 8,
    reduce_range: bool = True,
    exclude: list[str] | None = None,
) -> nn.Module:
    """Linear, convolution and embedding weights as int8; activations in 8 bits of fixed ranges.

    What ONNX Runtime's QLinearConv and QGemm compute, done in torch, so that the model can be
    scored before it is a file (Jacob et al. 2018, equations 1 to 8): batch norms become part of
    the layer before them, weights are symmetric per output channel, activations unsigned with one
    scale and zero point a tensor. This is the fast way for convolutions; for transformers
    `quantize.int8_dynamic` is as fast and nearer to the float model.

    A model that `quantize.qat` has trained is taken as it is: its weights and ranges become the
    integers that it was trained with, and ranges, batches and reduce_range have no say.

    ranges: of activations: minmax keeps all values seen, percentile all but one in ten thousand,
        entropy the range by which the least of their distribution is lost (Migacz 2017)
    batches: how many batches of training examples the ranges are taken from
    reduce_range: 7 of the 8 bits for weights. Processors without VNNI add pairs of products in 16
        bits and saturate with all 8; with 7 a file answers the same on every x86 machine.
    exclude: paths of modules, with all that is in them, that stay in float
    Returns a copy. Layers that the example does not reach stay in float. Raises ModelError for a
    path that names nothing, and where nothing is left.
    """
    small = deepcopy(model).eval()
    unfuse_(small)
    if any(isinstance(module, Snapped | SnappedTable) for module in small.modules()):
        return _taken_over(small, exclude)
    plan = planned_(small, example, exclude)
    seen = observed(small, plan.places, calibration, batches)
    most = largest(8, reduce_range)
    put_(small, plan, seen, ranges, dict.fromkeys(plan.layers, most))
    return small.eval()


def put_(
    model: nn.Module,
    plan: Plan,
    seen: Mapping[Spot, Histogram],
    ranges: Ranges,
    most: Mapping[str, int],
) -> None:
    """Put the integers that were planned for a model into it, or into one of the same modules.

    most: by the path of a layer, how many steps its weights may be away from zero
    """
    kept = [seen[place.spot].range(ranges) for place in plan.places]
    grids = [Grid(*scale_and_zero(*map(torch.tensor, each))) for each in kept]
    for path, stand in stood_(model, plan, grids):
        layer = plan.layers[path]
        scale = weight_scale(layer, most[path], stand.seen.scale)
        swap_(model, model.get_submodule(path), Int8Layer(layer, scale, most[path], stand))
    for path, table in plan.tables.items():
        swap_(model, model.get_submodule(path), Int8Embedding(table))


def _taken_over(model: nn.Module, exclude: Sequence[str] | None) -> nn.Module:
    """A model that was trained for few bits, in integers."""
    kept = chosen(model, lambda each: isinstance(each, Snapped | SnappedTable), exclude, WHAT)
    wanted = {id(layer) for layer in kept.values()}
    modules = list(model.modules())
    for grid in modules:
        if isinstance(grid, LearnedGrid | MovingGrid):
            swap_(model, grid, grid.fixed())
    for layer in modules:
        if isinstance(layer, Snapped | SnappedTable):
            swap_(model, layer, layer.fixed() if id(layer) in wanted else layer.dequantized())
    return model
