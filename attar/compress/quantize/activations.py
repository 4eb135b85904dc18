"""From a model to the grids of its activations, and from the grids to where its layers stand."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from attar.compress.choosing import chosen
from attar.compress.quantize.flow import Flow, watched
from attar.compress.quantize.folding import Layer, fold_, is_layer
from attar.compress.quantize.grids import hang_
from attar.compress.quantize.integer import Rounding, Stand
from attar.compress.quantize.placing import Door, Place, Spot, places
from attar.compress.quantize.ranges import Histogram
from attar.types import Calibration, Example

WHAT = "linear, convolution or embedding layer left to quantize"


@dataclass(frozen=True)
class Plan:
    """What of a model is quantized, by path: layers that run, tables; and where activations are."""

    layers: Mapping[str, Layer]
    tables: Mapping[str, nn.Embedding]
    flow: Flow
    places: Sequence[Place]

    def part(self, model: nn.Module, paths: Collection[str]) -> Plan:
        """The same where only some of its layers and tables are quantized."""
        layers = {path: layer for path, layer in self.layers.items() if path in paths}
        tables = {path: table for path, table in self.tables.items() if path in paths}
        return Plan(layers, tables, self.flow, places(model, self.flow, layers))


def planned_(model: nn.Module, example: Example, exclude: Sequence[str] | None) -> Plan:
    """Fold a model's batch norms, and find out what of it to quantize and where.

    Raises ModelError for an excluded path that names nothing, and where nothing is left.
    """
    wanted = {id(each) for each in chosen(model, _is_wanted, exclude, WHAT).values()}
    inputs = example(model)
    fold_(model, inputs)
    flow = watched(model, inputs)
    ran = {call.module for call in flow.calls}
    left = {path: module for path, module in model.named_modules() if id(module) in wanted}
    layers = {path: m for path, m in left.items() if isinstance(m, Layer) and path in ran}
    tables = {path: module for path, module in left.items() if isinstance(module, nn.Embedding)}
    return Plan(layers, tables, flow, places(model, flow, layers))


def _is_wanted(module: nn.Module) -> bool:
    return is_layer(module) or type(module) is nn.Embedding


@torch.no_grad()
def observed(
    model: nn.Module, where: Sequence[Place], calibration: Calibration, batches: int
) -> dict[Spot, Histogram]:
    """What values were seen at some places, in some batches of training examples."""
    seen = {place.spot: Histogram() for place in where}
    with ExitStack() as stack:
        for (door, floored), histogram in seen.items():
            stack.callback(_hooked(model, door, floored, histogram).remove)
        for inputs in islice(calibration(model), batches):
            model(**inputs)
    return seen


def _hooked(model: nn.Module, door: Door, floored: bool, histogram: Histogram) -> Any:
    """Have what comes through a door counted."""

    def count_taken(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        histogram.add(inputs[0])

    def count_given(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        histogram.add(output.clamp(min=0) if floored else output)

    module = model.get_submodule(door.path)
    if door.takes:
        return module.register_forward_pre_hook(count_taken)
    return module.register_forward_hook(count_given)


def stood_(
    model: nn.Module, plan: Plan, grids: Sequence[Rounding]
) -> Iterator[tuple[str, Stand[Rounding]]]:
    """Hang a plan's grids at the doors of a model, and tell where each of its layers stands."""
    seen: dict[str, tuple[Rounding, bool]] = {}
    said: dict[str, Rounding] = {}
    for place, grid in zip(plan.places, grids, strict=True):
        seen |= dict.fromkeys(place.readers, (grid, place.door is None))
        if place.writer is not None:
            said[place.writer] = grid
        if place.door is not None:
            hang_(model, place.door, grid)
    for path in plan.layers:
        grid, rounds = seen[path]
        yield path, Stand(grid, rounds, said.get(path))
