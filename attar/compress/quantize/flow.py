"""Which value goes where in a model, as one forward shows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from attar.taps import evaluating


@dataclass(frozen=True)
class Call:
    """One call of a torch function: the values it reads and writes, and the module it is part of.

    A value is a number; a tensor that is changed in place is a new value from then on. `rank` is
    the number of dimensions of what is written first.
    """

    name: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    module: str
    rank: int


@dataclass
class Visit:
    """One run of a module: what it was given first and what it gave, if those are tensors.

    `start` and `stop` are numbers of calls; the calls between them happened inside.
    """

    path: str
    start: int
    stop: int
    takes: int | None
    gives: int | None = None


@dataclass
class Flow:
    """All calls and visits of one forward, in their order."""

    calls: list[Call] = field(default_factory=list)
    visits: list[Visit] = field(default_factory=list)
    _readers: dict[int, list[int]] = field(default_factory=dict)

    def readers(self, value: int) -> list[int]:
        """Numbers of the calls that read a value; the model's answer is read by one after them."""
        return self._readers.get(value, [])

    def next(self, value: int) -> Call | None:
        """The call that reads a value, if it is the only one."""
        readers = self.readers(value)
        alone = len(readers) == 1 and readers[0] < len(self.calls)
        return self.calls[readers[0]] if alone else None

    def runs(self) -> Counter[str]:
        """How often each module ran."""
        return Counter(visit.path for visit in self.visits)

    def add(self, call: Call) -> None:
        """One more call."""
        self.read(call.reads, len(self.calls))
        self.calls.append(call)

    def read(self, values: tuple[int, ...], reader: int) -> None:
        """Note who reads some values."""
        for value in values:
            self._readers.setdefault(value, []).append(reader)


class _Watching(TorchFunctionMode):
    """Writes down every torch function that is called while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.flow = Flow()
        self.inside: list[Visit] = []
        self._values: dict[int, int] = {}
        # Held, since a tensor that is gone leaves its id to another.
        self._held: list[Tensor] = []

    def value(self, tensor: Tensor, *, new: bool = False) -> int:
        if new or id(tensor) not in self._values:
            self._values[id(tensor)] = len(self._held)
            self._held.append(tensor)
        return self._values[id(tensor)]

    def values(self, things: Any) -> tuple[int, ...]:
        return tuple(self.value(each) for each in tree_leaves(things) if isinstance(each, Tensor))

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = [e for e in tree_leaves((args, dict(kwargs or {}))) if isinstance(e, Tensor)]
        reads = self.values(given)
        before = [tensor._version for tensor in given]
        output = func(*args, **(kwargs or {}))
        changed = [e for e, old in zip(given, before, strict=True) if e._version != old]
        told = [each for each in tree_leaves(output) if isinstance(each, Tensor)]
        # What hands back what it was given, as dropout does at rest, has done nothing.
        fresh = [each for each in told if all(each is not other for other in given)]
        if changed or fresh:
            made = (*fresh, *changed)
            writes = tuple(self.value(each, new=True) for each in made)
            path = self.inside[-1].path if self.inside else ""
            self.flow.add(Call(func.__name__, reads, writes, path, made[0].dim()))
        return output


@torch.no_grad()
def watched(model: nn.Module, inputs: Mapping[str, Tensor]) -> Flow:
    """The flow of one answer of a model, in eval mode; the model's mode is put back."""
    watching = _Watching()
    with evaluating(model), _visited(model, watching), watching:
        output = model(**inputs)
    flow = watching.flow
    flow.read(watching.values(output), len(flow.calls))
    return flow


@contextmanager
def _visited(model: nn.Module, watching: _Watching) -> Iterator[None]:
    """Note every visit to a module while this is open."""
    flow = watching.flow

    def enter(path: str, args: tuple[Any, ...]) -> None:
        first = args[0] if args else None
        takes = watching.value(first) if isinstance(first, Tensor) else None
        visit = Visit(path, len(flow.calls), -1, takes)
        watching.inside.append(visit)
        flow.visits.append(visit)

    def leave(output: Any) -> None:
        visit = watching.inside.pop()
        visit.stop = len(flow.calls)
        visit.gives = watching.value(output) if isinstance(output, Tensor) else None

    def hooked(path: str, module: nn.Module) -> None:
        before = module.register_forward_pre_hook(lambda _, args: enter(path, args))
        after = module.register_forward_hook(lambda _, __, output: leave(output))
        stack.callback(before.remove)
        stack.callback(after.remove)

    with ExitStack() as stack:
        for path, module in model.named_modules():
            hooked(path, module)
        yield
