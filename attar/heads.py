"""Logits of a vocabulary so large that they are never whole: made in chunks, or a few kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from attar.types import IGNORE

CHUNK, PARTS = 1 << 22, 32
"""Logits that are made at a time, 16 MB in float32, and a dozen times that of what a loss makes of
them; or where that is more, one part of so many: larger products are quicker on a GPU."""


@dataclass(frozen=True)
class Headed:
    """Logits over a large vocabulary that are not made yet: states, and the head that makes them.

    Made whole they would often be the largest tensors of a training; `in_chunks` makes a few
    rows of them at a time. The product is made in the float type of the states.

    states: (..., width)
    weight: (classes, width); bias: (classes,) or None
    """

    states: Tensor
    weight: Tensor
    bias: Tensor | None = None

    @classmethod
    def by(cls, head: nn.Linear, states: Tensor) -> Headed:
        """What a head would make of states; under autocast in the type that it would take."""
        kind = states.device.type
        if torch.is_autocast_enabled(kind):
            states = states.to(torch.get_autocast_dtype(kind))
        return cls(states, head.weight, head.bias)

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, places: Any) -> Headed:
        """Of some places, all the classes."""
        return Headed(self.states[places], self.weight, self.bias)

    @property
    def shape(self) -> torch.Size:
        """That of the logits, (..., classes)."""
        return torch.Size((*self.states.shape[:-1], len(self.weight)))

    @property
    def device(self) -> torch.device:
        """Where the logits would be."""
        return self.states.device

    def dim(self) -> int:
        """How many dimensions the logits have."""
        return self.states.dim()

    def to(self, device: torch.device) -> Headed:
        """The same on another device."""
        bias = None if self.bias is None else self.bias.to(device)
        return Headed(self.states.to(device), self.weight.to(device), bias)

    def detach(self) -> Headed:
        """The same, through which no gradient can flow."""
        bias = None if self.bias is None else self.bias.detach()
        return Headed(self.states.detach(), self.weight.detach(), bias)

    def first(self, classes: int) -> Headed:
        """The same of the first classes alone."""
        if classes == len(self.weight):
            return self
        bias = None if self.bias is None else self.bias[:classes]
        return Headed(self.states, self.weight[:classes], bias)

    def dense(self) -> Tensor:
        """The logits themselves."""
        dtype = self.states.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        with torch.autocast(self.device.type, enabled=False):
            return functional.linear(self.states, self.weight.to(dtype), bias)


@dataclass(frozen=True)
class Sparse:
    """What a teacher says of a few of very many classes, in place of its logits.

    The first `head` entries of a place are its likeliest classes, known one by one; all others have
    the mass `rest` together. What entries follow were drawn, and estimate that mass without bias.

    ids: (..., entries) int64
    weights: (..., entries) float: probabilities, or what is estimated of them; 0 of no entry
    rest: (...,) float
    head: how many entries are known and not drawn
    classes: how many there are
    """

    ids: Tensor
    weights: Tensor
    rest: Tensor
    head: int
    classes: int

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, places: Any) -> Sparse:
        """Of some places, all the classes."""
        ids, weights, rest = self.ids[places], self.weights[places], self.rest[places]
        return Sparse(ids, weights, rest, self.head, self.classes)

    @property
    def shape(self) -> torch.Size:
        """That of the logits, (..., classes)."""
        return torch.Size((*self.ids.shape[:-1], self.classes))

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.ids.device

    def dim(self) -> int:
        """How many dimensions the logits have."""
        return self.ids.dim()

    def to(self, device: torch.device) -> Sparse:
        """The same on another device."""
        ids, weights, rest = self.ids.to(device), self.weights.to(device), self.rest.to(device)
        return Sparse(ids, weights, rest, self.head, self.classes)

    def detach(self) -> Sparse:
        """The same; there never is a gradient."""
        return self

    def flat(self) -> Sparse:
        """Of all places, one after another."""
        wide = self.ids.shape[-1]
        ids, weights = self.ids.view(-1, wide), self.weights.view(-1, wide)
        return Sparse(ids, weights, self.rest.view(-1), self.head, self.classes)

    def estimate(self) -> tuple[Tensor, Tensor, Tensor]:
        """What is best known of the probabilities: ids, what each has above `floor`, floor (...,).

        Where nothing was drawn, the mass of all others is spread evenly; it is the floor.
        """
        if self.ids.shape[-1] > self.head:
            return self.ids, self.weights, torch.zeros_like(self.rest)
        floor = self._evenly()
        return self.ids, self.weights - floor[..., None], floor

    def dense(self) -> Tensor:
        """Logits: what is known one by one as it is, the mass of all others spread evenly.

        Raises ValueError where nothing is known, but all was drawn.
        """
        if self.head == 0:
            raise ValueError(
                "of this teacher's answers only draws are kept, which allow `response.kl` and"
                " `response.soft_cross_entropy` at temperature 1: keep a `top` too for others"
            )
        known = self.ids[..., : self.head]
        whole = self._evenly().log()[..., None].repeat(*(1 for _ in self.rest.shape), self.classes)
        told = self.weights[..., : self.head].log()
        # Several entries may name one class, all but one of them empty.
        lone = torch.full_like(whole, -torch.inf).scatter_reduce_(-1, known, told, "amax")
        return torch.where(lone > -torch.inf, lone, whole)

    def _evenly(self) -> Tensor:
        return self.rest / max(1, self.classes - self.head)


@dataclass(frozen=True)
class Foreign:
    """What a teacher says in tokens of its own, at places of the student's text.

    It is known where a token of either ends at the same byte: behind it both tell what comes next,
    each in tokens of its own.

    logits: (..., its classes); known: (...,) of bool, where there are any
    nearest: gives (its classes,) int64, the student's class that each of its comes nearest to
    """

    logits: Tensor | Headed | Sparse
    known: Tensor
    nearest: Callable[[], Tensor]

    def __len__(self) -> int:
        return len(self.known)

    def __getitem__(self, places: Any) -> Foreign:
        """Of some places, all the classes."""
        return Foreign(self.logits[places], self.known[places], self.nearest)

    @property
    def shape(self) -> torch.Size:
        """That of the logits, (..., its classes)."""
        return self.logits.shape

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.logits.device

    def dim(self) -> int:
        """How many dimensions the logits have."""
        return self.logits.dim()

    def to(self, device: torch.device) -> Foreign:
        """The same on another device."""
        return Foreign(self.logits.to(device), self.known.to(device), self.nearest)

    def detach(self) -> Foreign:
        """The same, through which no gradient can flow."""
        return Foreign(self.logits.detach(), self.known, self.nearest)

    def dense(self) -> Tensor:
        """The logits themselves, over the teacher's own classes."""
        return dense(self.logits)


def in_chunks(
    loss: Callable[..., Tensor], given: Mapping[str, Any], rows: int | None = None
) -> Tensor:
    """A loss that is a mean over rows, each seen by itself, without ever making all logits.

    Logits are made of `rows` rows at a time, for the student and for a teacher that has states and
    a head of its own; the gradients of states and head are made with them, while they are there,
    and only these are kept for the backward pass. So a vocabulary costs its head's gradient (added
    up in float32) and a few tensors of `rows` rows. No product is made twice.

    given: what the loss is given by name; `student` is Headed of (rows, width) states, or a tensor
        (rows, classes). What else has as many rows is cut as it is; of a teacher that is Headed the
        loss is given logits, one that is Sparse stays so
    rows: of a chunk; where None so many that it has about 4 million logits, or a 32nd of all

    Raises RuntimeError where the gradient is asked for twice, ValueError if `rows` is not positive.
    Source: Hsu et al., Liger Kernel, 2024 (section 3.2, there of cross-entropy): a head's gradients
    in the forward pass.
    """
    student, others = given["student"], {name: given[name] for name in given if name != "student"}
    whole, classes = len(student), student.shape[-1]
    rows = max(1, CHUNK // classes, whole // PARTS) if rows is None else rows
    if rows < 1:
        raise ValueError(f"rows is {rows}, not at least 1")

    def judge(part: slice, logits: Tensor) -> Tensor:
        told = {name: _cut(value, part, whole) for name, value in others.items()}
        return loss(student=logits, **told) * len(logits)

    headed = isinstance(student, Headed)
    parts = (student.states, student.weight, student.bias) if headed else (student, None, None)
    value: Tensor = _Chunks.apply(judge, rows, torch.is_grad_enabled(), *parts)  # type: ignore[no-untyped-call]
    return value


def cross_entropy(logits: Tensor | Headed, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The mean cross-entropy with all labels that are known: those that are not `IGNORE`.

    logits: (..., classes); labels: (...) int64
    label_smoothing: share of each label that is spread evenly over all classes
    """

    def surprise(student: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(student.float(), labels, label_smoothing=label_smoothing)

    student, known = at_labels(logits, labels)
    return in_chunks(surprise, {"student": student, "labels": known})


def dense(logits: Tensor | Headed | Sparse | Foreign) -> Tensor:
    """The logits as one tensor, whatever stands in their place."""
    return logits if isinstance(logits, Tensor) else logits.dense()


def at_labels(logits: Any, labels: Tensor) -> tuple[Any, Tensor]:
    """Logits (places, classes) where there is a label, those that are not `IGNORE`, and the labels.

    logits: (..., classes), whatever stands in their place; labels: (...) int64, of as many places
        or more: padding that no model was shown
    """
    labels = labels[tuple(map(slice, logits.shape[:-1]))]
    at = labels != IGNORE
    return logits[at.to(logits.device)], labels[at]


def parts(logits: Tensor | Headed) -> Iterator[tuple[slice, Tensor]]:
    """All rows of (rows, classes) in float32, about 4 million logits at a time, and which."""
    rows = max(1, CHUNK // logits.shape[-1])
    for start in range(0, len(logits), rows):
        part = slice(start, start + rows)
        yield part, dense(logits[part]).float()


def _cut(value: Any, part: slice, whole: int) -> Any:
    """Some rows of what has as many as there are; of states what their head makes of them."""
    if isinstance(value, Headed):
        return value[part].dense()
    if isinstance(value, Foreign):
        return Foreign(_cut(value.logits, part, whole), value.known[part], value.nearest)
    if isinstance(value, Sparse) or (
        isinstance(value, Tensor) and value.dim() > 0 and len(value) == whole
    ):
        return value[part]
    return value


class _Chunks(torch.autograd.Function):
    """The mean over rows of what `judge` gives as a sum over those of a chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        judge: Callable[[slice, Tensor], Tensor],
        rows: int,
        learns: bool,
        states: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
    ) -> Tensor:
        wanted = [learns and needed for needed in ctx.needs_input_grad[3:]]
        slopes = _Slopes(states, weight, bias, wanted)
        head = Headed(states, states if weight is None else weight.to(states.dtype), bias)
        total = torch.zeros((), dtype=_exact(states), device=states.device)
        for start in range(0, len(states), rows):
            part = slice(start, start + rows)
            with torch.autocast(states.device.type, enabled=False):
                logits = states[part] if weight is None else head[part].dense()
                with torch.set_grad_enabled(any(wanted)):
                    value = judge(part, logits := logits.detach().requires_grad_(any(wanted)))
                total += value.detach()
                if any(wanted):
                    slopes.add(part, torch.autograd.grad(value, logits)[0], head[part])
        ctx.slopes, ctx.rows = slopes, max(1, len(states))
        mean: Tensor = total / ctx.rows
        return mean

    @staticmethod
    def backward(ctx: Any, *slope: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.slopes is None:
            raise RuntimeError(
                "the gradient of logits in chunks is there once: it was taken before"
            )
        slopes, ctx.slopes = ctx.slopes, None
        return (None, None, None, *slopes.scaled(slope[0] / ctx.rows))


def _exact(states: Tensor) -> torch.dtype:
    """What is added up in."""
    return torch.promote_types(states.dtype, torch.float32)


class _Slopes:
    """Gradients of states, weight and bias, added up chunk by chunk; those of a sum over rows.

    A mean's would be lost in half precision.
    """

    def __init__(
        self, states: Tensor, weight: Tensor | None, bias: Tensor | None, wanted: list[bool]
    ) -> None:
        self.given = states, weight, bias
        exact = _exact(states)
        self.states = torch.empty_like(states) if wanted[0] else None
        self.weight = self.bias = None
        if weight is not None and wanted[1]:
            self.weight = torch.zeros_like(weight, dtype=exact)
        if bias is not None and wanted[2]:
            self.bias = torch.zeros_like(bias, dtype=exact)

    def add(self, part: slice, slope: Tensor, head: Headed) -> None:
        """Those of a chunk, from that of its logits; without a head the states are the logits."""
        if self.states is not None:
            self.states[part] = slope if self.given[1] is None else slope @ head.weight
        if self.weight is not None and slope.dtype == self.weight.dtype:
            self.weight.addmm_(slope.mT, head.states)
        elif self.weight is not None:
            self.weight += slope.mT @ head.states
        if self.bias is not None:
            self.bias += slope.sum(0, dtype=self.bias.dtype)

    def scaled(self, scale: Tensor) -> list[Tensor | None]:
        """All of them times a number, in the types of what they are for."""
        own = self.states, self.weight, self.bias
        return [
            None if its is None or given is None else its.mul_(scale).to(given.dtype)
            for its, given in zip(own, self.given, strict=True)
        ]
