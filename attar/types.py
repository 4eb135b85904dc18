"""The words the rooms share: Batch, Knowledge, Lesson, and the shapes of what is handed around."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol, runtime_checkable

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn

Count = Annotated[int, Ge(1)]
"""An option that counts something; a recipe that sets it below 1 is refused with its line."""

Amount = Annotated[int, Ge(0)]
"""An option that counts something of which there may be none."""

Positive = Annotated[float, Gt(0)]
"""An option that measures something; a recipe that sets it to 0 or less is refused."""

Share = Annotated[float, Ge(0)]
"""An option that is a part or a multiple of something; 0 is none of it."""

Moment = Annotated[float, Ge(0), Le(1)]
"""An option that is a moment of the training, as the share of it that is done by then."""

Decay = Annotated[float, Ge(0), Lt(1)]
"""An option that is the share kept at every step; all of it would never change."""

Bits = Annotated[int, Ge(2), Le(8)]
"""An option that is the bits of a weight; with one alone there would be no zero."""

IGNORE = -100
"""The label of an example whose label is not known (torch's own `ignore_index`)."""


@dataclass(frozen=True)
class Mixture:
    """What was mixed into examples: the labels (rows,) of others, and their share (rows,)."""

    labels: Tensor
    share: Tensor

    def at(self, rows: slice | list[int]) -> Mixture:
        """That of some rows."""
        return Mixture(self.labels[rows], self.share[rows])


@dataclass(frozen=True)
class Played:
    """What a model did in some states of an environment, and what came of it.

    answers: (rows, classes) what it answered when it acted
    actions: what it drew of them and did, (rows,) int64 choices or (rows, numbers) float
    advantages: (rows,) how much better that was than its usual, in deviations of all that it did
    returns: (rows,) the discounted return from there on, in units of the reward
    """

    answers: Tensor
    actions: Tensor
    advantages: Tensor
    returns: Tensor

    def at(self, rows: slice | list[int]) -> Played:
        """That of some rows."""
        return Played(**{name: each[rows] for name, each in vars(self).items()})


@dataclass(frozen=True)
class Batch:
    """Some examples, as the task hands them out, before any model's own preprocessing.

    inputs: what `forward` takes, one entry a row (for text a tuple of strings)
    labels: (rows,) int64; `IGNORE` where the label is not known. Of language models (rows, length):
        at each token the one that comes next, `IGNORE` where none is to be learned
    keys: one content hash a row, the address of its knowledge in a store
    mixed: what other examples were mixed in, of which there is never more than of the row's own
    played: what the student itself did there, where it acts and is rewarded
    notes: by name what a scheme knows of each label, in the labels' shape; losses ask for it
    """

    inputs: Any
    labels: Tensor
    keys: tuple[str, ...]
    mixed: Mixture | None = None
    played: Played | None = None
    notes: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def weight(self) -> int:
        """How many answers a mean over the batch is over: rows, or tokens to be learned."""
        return int((self.labels != IGNORE).sum()) if self.by_token else len(self)

    @property
    def by_token(self) -> bool:
        """Whether each token has a label; several values of a row are no tokens."""
        return self.labels.dim() > 1 and not self.labels.is_floating_point()

    def rows(self, start: int, stop: int) -> Batch:
        """Some of the rows, as a batch."""
        at = slice(start, stop)
        mixed, played = self.mixed and self.mixed.at(at), self.played and self.played.at(at)
        notes = {name: note[at] for name, note in self.notes.items()}
        return Batch(self.inputs[at], self.labels[at], self.keys[at], mixed, played, notes)

    def some(self, positions: Sequence[int]) -> Batch:
        """Chosen rows, in the order given, as a batch."""
        chosen = list(positions)
        inputs = (
            self.inputs[chosen]
            if isinstance(self.inputs, Tensor)
            else tuple(self.inputs[n] for n in chosen)
        )
        mixed = self.mixed and self.mixed.at(chosen)
        played = self.played and self.played.at(chosen)
        keys = tuple(self.keys[n] for n in chosen)
        notes = {name: note[chosen] for name, note in self.notes.items()}
        return Batch(inputs, self.labels[chosen], keys, mixed, played, notes)


@dataclass(frozen=True)
class Question:
    """What a teacher that is no network here is asked to go on from.

    said: a text; or the messages of a conversation, each {role, content}
    most: tokens that the answer may have
    size: tokens of what is said, about
    place: what a task needs to put the answer where it belongs
    """

    said: str | tuple[Mapping[str, Any], ...]
    most: int
    size: int = 0
    place: Any = None


@dataclass(frozen=True)
class Answer:
    """What such a teacher wrote.

    ended: whether it came to its own end, and was not cut off
    tokens: the text in the writer's own pieces, where it tells them
    likely: for each of these pieces some that could have stood there, itself among them, with the
        logarithm of their probabilities
    """

    text: str
    ended: bool
    tokens: tuple[str, ...] = ()
    likely: tuple[tuple[tuple[str, float], ...], ...] = ()


@dataclass(frozen=True)
class Knowledge:
    """What a model makes of one batch; whoever produced it, it has this shape.

    logits: (rows, classes) float; of a language model (rows, length, vocabulary), for which may
        stand what is never as large: `attar.heads.Headed`, or from a store `attar.heads.Sparse`
    features: by layer path, each (rows, length, width), (rows, heads, length, length)
        or pooled (rows, width)
    mask: (rows, length) of 1 for what is real and 0 for padding; None where nothing is padded
    """

    logits: Any
    features: Mapping[str, Tensor] = field(default_factory=dict)
    mask: Tensor | None = None

    def rows(self, start: int, stop: int) -> Knowledge:
        """What was made of some of the rows, without the padding that only the others needed."""
        mask = None if self.mask is None else self.mask[start:stop]
        logits = self.logits[start:stop]
        features = {path: feature[start:stop] for path, feature in self.features.items()}
        if mask is not None:
            # A row may have no real token at all; a model is still shown one place of padding.
            padded, longest = mask.shape[1], max(1, int(mask.sum(1).max()))
            features = {path: _cut(each, padded, longest) for path, each in features.items()}
            logits, mask = _cut(logits, padded, longest), mask[:, :longest]
        return Knowledge(logits, features, mask)

    def detach(self) -> Knowledge:
        """The same knowledge, through which no gradient can flow."""
        return Knowledge(
            self.logits.detach(),
            {path: feature.detach() for path, feature in self.features.items()},
            None if self.mask is None else self.mask.detach(),
        )


def _cut(feature: Tensor, padded: int, length: int) -> Tensor:
    """An activation over `padded` tokens cut to its first `length`; a pooled one stays as it is."""
    if feature.dim() == 3 and feature.shape[1] == padded:
        return feature[:, :length]
    if feature.dim() == 4 and feature.shape[2:] == (padded, padded):
        return feature[:, :, :length, :length]
    return feature


@dataclass(frozen=True)
class Lesson:
    """One batch together with what the teacher makes of it (None where nobody teaches)."""

    batch: Batch
    teacher: Knowledge | None


class Forward(Protocol):
    """How a model is asked: the task's `forward`, bound to the layers that are wanted."""

    def __call__(self, model: nn.Module, batch: Batch, /) -> Knowledge: ...


Example = Callable[[nn.Module], Mapping[str, Tensor]]
"""Gives, for a model, the named inputs of one typical example after the model's preprocessing."""

Calibration = Callable[[nn.Module], Iterator[Mapping[str, Tensor]]]
"""Gives, for a model, the named inputs of training examples, batch by batch, in a fixed order."""

Losses = Callable[[nn.Module], Iterator[Tensor]]
"""Gives what a model loses on labelled training examples, batch by batch, with the graph."""

Act = Callable[[nn.Module, int, int, float, nn.Module], Batch]
"""Of a model, a number of states, the episodes played before, the share of steps in which another
moves, and that other: the states that are met."""

Tell = Callable[[str, Sequence[Mapping[str, Any]]], None]
"""Is told of what a step found out: a title, and the rows of a table for the report."""

Score = Callable[[nn.Module], Mapping[str, float]]
"""Scores a model on held-out data; `score` is the one number that choices are made by."""


@runtime_checkable
class Stateful(Protocol):
    """Whatever must survive a crash."""

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


class Stream(Stateful, Protocol):
    """Batches that can go on where they stood, and are no further than what was asked for."""

    def __iter__(self) -> Iterator[Batch]: ...


@runtime_checkable
class Quantized(Protocol):
    """A module whose weight is kept in few bits; `dequantized` is its float twin."""

    bits: int

    def dequantized(self) -> nn.Module: ...


@runtime_checkable
class Sparse(Protocol):
    """A layer whose weights were pruned: those that are zero stay so when it is trained on."""

    zeros_stay: bool
    weight: nn.Parameter


@runtime_checkable
class InTraining(Protocol):
    """A module that rounds what is still trained; `fixed` is what stays of it afterwards."""

    def fixed(self) -> nn.Module: ...


class Engine(Protocol):
    """Where the arithmetic runs; the loop and the schemes know nothing else about machines."""

    is_main: bool
    precision: str

    def prepare(self, module: nn.Module) -> nn.Module: ...

    def autocast(self) -> Any: ...

    def backward(self, loss: Tensor) -> None: ...

    def step(
        self, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], clip: float
    ) -> float: ...

    def track(self, name: str, thing: Stateful) -> None: ...

    def feed(self, batches: Stream) -> Iterator[Batch]: ...

    def save(self, step: int, *, force: bool = False) -> None: ...

    def resume(self) -> int: ...


Batches = Iterator[Batch]
Lessons = Iterator[Lesson]
