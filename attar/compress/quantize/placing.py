"""Where activations are rounded, so that a runtime can work in integers throughout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from attar.compress.quantize.flow import Call, Flow

FLOORS = {"relu", "relu_"}
"""Clip at zero: what comes after has a grid that starts there, and the runtime drops the call."""

CLIPS = FLOORS | {"relu6", "hardtanh", "hardtanh_"}
"""Clip, on both sides too; the runtime drops these as well where the grid keeps within."""

CARRIERS = {
    *("max_pool1d", "max_pool2d", "flatten", "reshape", "view", "squeeze", "unsqueeze"),
    *("transpose", "permute", "__getitem__"),
}
"""Give some of the values they read, in another order: rounding before or after is the same."""

SUMS = {"add", "add_"}

GATHERERS = SUMS | {"cat", "concat", "pad", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool2d"}
"""Have an integer form in the runtime where all that they read, and what they give, has a grid."""


@dataclass(frozen=True)
class Door:
    """Where a module takes its first input, or where it gives its output."""

    path: str
    takes: bool


Spot = tuple[Door, bool]
"""A door, and whether only what is above zero counts of what comes through."""


@dataclass
class Place:
    """Values that are rounded to one grid.

    readers: layers that read them
    writer: the layer that rounds them as it gives them; `floored` where a relu comes right after
    door: where they are rounded for all who read them
    Without a door each reader rounds for itself, which after a writer changes nothing.
    """

    readers: list[str] = field(default_factory=list)
    writer: str | None = None
    floored: bool = False
    door: Door | None = None

    @property
    def spot(self) -> Spot:
        """Where its values are seen; of those who see them one is enough."""
        if self.door is not None:
            return self.door, False
        if self.readers:
            return Door(self.readers[0], takes=True), False
        assert self.writer is not None
        return Door(self.writer, takes=False), self.floored


def places(model: nn.Module, flow: Flow, layers: Mapping[str, nn.Module]) -> list[Place]:
    """The grids that some layers of a model need, in the order in which their values come up.

    Each layer's input has one. A convolution's output has one too, after the relu that may follow,
    and so has what is put together of such outputs, as the sum of a residual block is: only then
    does the runtime add in integers. A layer that runs several times has grids of its own.
    """
    placing = _Placing(model, flow, layers)
    for call in flow.calls:
        placing.follow(call)
    often = [path for path in layers if placing.runs[path] > 1]
    return [
        *placing.by_value.values(),
        *(Place(readers=[path]) for path in often),
        *(Place(writer=path) for path in often if not isinstance(layers[path], nn.Linear)),
    ]


class _Placing:
    """What is known of the values while a flow is followed from its first call to its last."""

    def __init__(self, model: nn.Module, flow: Flow, layers: Mapping[str, nn.Module]) -> None:
        self.model, self.flow, self.layers = model, flow, layers
        self.runs = flow.runs()
        self.on_grid: set[int] = set()
        self.by_value: dict[int, Place] = {}
        for call in flow.calls:
            if self._is_single_layer(call):
                self._place(call.reads[0]).readers.append(call.module)

    def _is_single_layer(self, call: Call) -> bool:
        return call.module in self.layers and self.runs[call.module] == 1

    def _place(self, value: int) -> Place:
        return self.by_value.setdefault(value, Place())

    def follow(self, call: Call) -> None:
        """Find out whether what a call writes needs a grid, and where it is put on it."""
        known = self.on_grid.issuperset(call.reads)
        if call.name in CARRIERS and known:
            self.on_grid.update(call.writes)
        elif call.name in GATHERERS and known and len(call.reads) > (call.name in SUMS):
            self._round(call.writes[0], writer=None)
        elif self._is_single_layer(call) and call.name != "linear":
            self._round(call.writes[0], writer=call.module)

    def _round(self, value: int, writer: str | None) -> None:
        chain, clipped, floored = self._chain(value)
        readers = self.flow.readers(chain[-1])
        if all(n < len(self.flow.calls) and self._reads_as_layer(n) for n in readers):
            return
        entered = [(each, self._door(each)) for each in reversed(chain[clipped:])]
        for each, door in entered:
            if door is not None:
                self._place(each).door = door
                self.on_grid.update(chain[chain.index(each) :])
                return
        if writer is not None:
            place = self._place(chain[-1])
            place.writer, place.floored = writer, floored
            self.on_grid.update(chain)

    def _reads_as_layer(self, number: int) -> bool:
        return self._is_single_layer(self.flow.calls[number])

    def _chain(self, value: int) -> tuple[list[int], int, bool]:
        """The values that come of one as long as each has a single reader that keeps its grid.

        Also from which of them on nothing is clipped any more, and whether a relu was among them.
        """
        chain, clipped, floored = [value], 0, False
        while (call := self.flow.next(chain[-1])) and call.name in CLIPS | CARRIERS:
            chain.append(call.writes[0])
            clipped = len(chain) - 1 if call.name in CLIPS else clipped
            floored = floored or call.name in FLOORS
        return chain, clipped, floored

    def _door(self, value: int) -> Door | None:
        """A module through whose door a value goes before anyone reads it."""
        readers: Sequence[int] = self.flow.readers(value)
        # The innermost first: the fewer a module holds, the less else can happen inside of it.
        for visit in sorted(self.flow.visits, key=lambda each: each.stop - each.start):
            module = self.model.get_submodule(visit.path)
            # A `Sequential` would run what is put into it.
            closed = isinstance(module, nn.Sequential) or visit.path in ("", *self.layers)
            if closed or self.runs[visit.path] > 1:
                continue
            if visit.gives == value and all(n >= visit.stop for n in readers):
                return Door(visit.path, takes=False)
            if visit.takes == value and all(visit.start <= n < visit.stop for n in readers):
                return Door(visit.path, takes=True)
        return None
