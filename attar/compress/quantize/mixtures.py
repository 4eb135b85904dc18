"""A model in which each layer has a precision of its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Literal, Protocol

from torch import nn

from attar.compress.placing import swap_, unfuse_
from attar.compress.quantize.activations import observed, planned_
from attar.compress.quantize.dynamic import int8_dynamic
from attar.compress.quantize.halves import bf16, fp16
from attar.compress.quantize.integer import largest
from attar.compress.quantize.placing import Place, Spot
from attar.compress.quantize.ranges import Histogram
from attar.compress.quantize.static import put_
from attar.compress.quantize.weight import int4_weight
from attar.errors import ModelError, nearest
from attar.types import Calibration, Example

Candidate = Literal["bf16", "fp16", "int8_dynamic", "int4_weight", "int8_static", "int4_static"]

STATIC = {"int8_static": 8, "int4_static": 4}
"""Candidates whose activations have fixed ranges, and the bits of their weights."""

Exclude = list[str] | None


class Mixtures:
    """What becomes of a model where some of its layers are lowered, each to a candidate.

    Where a candidate is static, batch norms are folded before anything else: all mixtures have the
    same layers, and what the folding changes is no layer's harm.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Example,
        calibration: Calibration,
        candidates: Sequence[str],
        batches: int,
        exclude: Exclude,
    ) -> None:
        self.candidates = list(dict.fromkeys(candidates))
        known = _apart(calibration, exclude)
        for name in self.candidates:
            if name not in (*known, *STATIC):
                raise ModelError(f"{name!r} is no candidate; {nearest(name, [*known, *STATIC])}")
        self.model = deepcopy(model).eval()
        # Torch's fused layers would not be what their twins are compared with.
        unfuse_(self.model)
        self._ways: dict[str, Lowering] = {}
        if static := [name for name in self.candidates if name in STATIC]:
            together = _Together(self.model, example, calibration, batches, exclude)
            self._ways |= dict.fromkeys(static, together)
        for name in self.candidates:
            if name in known:
                self._ways[name] = _Apart(self.model, known[name](self.model))

    def choices(self) -> dict[str, list[str]]:
        """The candidates of each layer that has any, by its path, in the order of the model."""
        found = {
            path: [name for name in self.candidates if path in self._ways[name].paths]
            for path, _ in self.model.named_modules()
        }
        return {path: names for path, names in found.items() if names}

    def of(self, lowered: Mapping[str, str]) -> nn.Module:
        """The model with the layers at some paths as the candidates that they are lowered to."""
        small = _anew(self.model)
        # What is folded first is put in last, since grids are hung at what stands there then.
        for way in reversed(dict.fromkeys(self._ways.values())):
            own = {path: name for path, name in lowered.items() if self._ways[name] is way}
            way.put_(small, own)
        return small.eval()


class Lowering(Protocol):
    """A way to have fewer bits."""

    @property
    def paths(self) -> Collection[str]:
        """Where the layers stand that can be lowered so."""

    def put_(self, model: nn.Module, lowered: Mapping[str, str]) -> None:
        """Lower some of them, each to its candidate, in a model of the same modules."""


class _Apart:
    """Layers that are lowered one by one, whatever becomes of the others: each has its twin."""

    def __init__(self, model: nn.Module, lowered: nn.Module) -> None:
        others = dict(lowered.named_modules(remove_duplicate=False))
        self._twins = {
            path: others[path]
            for path, layer in model.named_modules()
            if path in others and type(others[path]) is not type(layer)
        }
        self.paths: Collection[str] = self._twins.keys()

    def put_(self, model: nn.Module, lowered: Mapping[str, str]) -> None:
        for path in lowered:
            swap_(model, model.get_submodule(path), _anew(self._twins[path]))


class _Together:
    """Layers with fixed ranges between them: where values are rounded, all around them decide."""

    def __init__(
        self,
        model: nn.Module,
        example: Example,
        calibration: Calibration,
        batches: int,
        exclude: Exclude,
    ) -> None:
        self._model, self._calibration, self._batches = model, calibration, batches
        self._plan = plan = planned_(model, example, exclude)
        self.paths: Collection[str] = [*plan.layers, *plan.tables]
        self._seen: dict[Spot, Histogram] = {}
        alone = [place for path in plan.layers for place in plan.part(model, [path]).places]
        self._look([*plan.places, *alone])

    def _look(self, places: Sequence[Place]) -> None:
        """See to it that the ranges at some places are known."""
        if new := [place for place in places if place.spot not in self._seen]:
            self._seen |= observed(self._model, new, self._calibration, self._batches)

    def put_(self, model: nn.Module, lowered: Mapping[str, str]) -> None:
        part = self._plan.part(self._model, lowered)
        self._look(part.places)
        most = {path: largest(STATIC[name], reduce_range=True) for path, name in lowered.items()}
        put_(model, part, self._seen, "minmax", most)


def _apart(
    calibration: Calibration, exclude: Exclude
) -> dict[str, Callable[[nn.Module], nn.Module]]:
    """The candidates that lower layers one by one, and what lowers all of a model to them."""
    return {
        "bf16": partial(bf16, exclude=exclude),
        "fp16": partial(fp16, exclude=exclude),
        "int8_dynamic": partial(int8_dynamic, exclude=exclude),
        "int4_weight": partial(int4_weight, calibration=calibration, exclude=exclude),
    }


def _anew(module: nn.Module) -> nn.Module:
    """The same modules once more, around the same weights."""
    shared = {id(each): each for each in (*module.parameters(), *module.buffers())}
    return deepcopy(module, shared)
