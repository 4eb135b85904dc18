"""The weighted sum of terms that a student is trained on, and the bridges where widths differ."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attar.errors import LayerError, RecipeError, nearest
from attar.resolve import asks, compares, name_of
from attar.types import Knowledge, Lesson

Weight = float | Callable[[float], float]

GIVEN = ("student", "teacher", "labels", "mask", "knowledge", "batch")
"""What a loss may ask for."""


@dataclass(frozen=True)
class Term:
    """A loss with its weight and, where it compares layers, student path -> teacher path."""

    function: Callable[..., Tensor]
    weight: Weight = 1.0
    layers: Mapping[str, str] = field(default_factory=dict)
    name: str = ""

    @property
    def kind(self) -> str:
        """Logits, Features, Attentions or Projections."""
        return compares(self.function)

    @property
    def needs_teacher(self) -> bool:
        """Whether it can't be had from the labels alone."""
        return bool(self.layers) or "teacher" in asks(self.function)

    def weight_at(self, progress: float) -> float:
        """The weight when this share of the training is done."""
        return self.weight(progress) if callable(self.weight) else self.weight


def term(
    function: Callable[..., Tensor],
    weight: Weight = 1.0,
    *,
    layers: Mapping[str, str] | None = None,
    **options: Any,
) -> Term:
    """A loss, its weight (a number or a schedule), its layers and its options, as one term.

    Raises RecipeError for an option that the loss does not have, and where a loss over layers is
    given none.
    """
    name = _title(function)
    known = inspect.signature(function).parameters
    for option in options:
        if option not in known:
            raise RecipeError(f"{name} has no option {option!r}; {nearest(option, known)}")
    bound = partial(function, **options) if options else function
    made = Term(bound, weight, dict(layers or {}), name)
    if made.kind != "Logits" and not made.layers:
        raise RecipeError(f"{made.name} compares layers; give it `layers: {{student: teacher}}`.")
    return made


class Objective(nn.Module):
    """What the student is to minimise; its parameters are the bridges.

    A bridge is a linear map from a student layer's width to its teacher's, learned beside the
    student and left out of it afterwards (FitNets, Romero et al. 2015). Where the widths agree it
    begins as the identity. Attention maps and projections are compared without one.

    In a loop of one's own: `loss, parts = objective(forward(student, lesson.batch), lesson)`, and
    give `objective.parameters()` to the optimizer. Attention maps have to be without dropout
    (those of `transformers` are, where the attention module is in eval mode).
    """

    def __init__(
        self, terms: Sequence[Term], student: Knowledge, teacher: Knowledge | None
    ) -> None:
        """student, teacher: knowledge of one lesson, from which shapes are learned.

        Raises RecipeError where a loss lacks what it asks for, LayerError where two layers can't
        be compared.
        """
        super().__init__()
        student, teacher = _trimmed(student), None if teacher is None else _trimmed(teacher)
        self.terms = tuple(terms)
        if not self.terms:
            raise RecipeError("There is nothing to minimise: give at least one loss.")
        self._asked = [_asked(each) for each in self.terms]
        self._names = _numbered([each.name for each in self.terms])
        self.bridges = nn.ModuleDict()
        for each in self.terms:
            if each.needs_teacher and teacher is None:
                raise RecipeError(f"The loss {each.name} needs a teacher, and nobody teaches.")
            for mine, its in each.layers.items():
                assert teacher is not None
                here, there = _meet(each, mine, its, student, teacher)
                if each.kind == "Features" and _key(mine, its) not in self.bridges:
                    bridge = _linear(here.shape[-1], there.shape[-1])
                    self.bridges[_key(mine, its)] = bridge.to(here.device)

    def forward(
        self, student: Knowledge, lesson: Lesson, progress: float = 0.0
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss (a scalar) of the student's knowledge of a lesson, and each term's own value."""
        total = student.logits.new_zeros((), dtype=torch.float32)
        parts: dict[str, float] = {}
        teacher = None if lesson.teacher is None else _trimmed(lesson.teacher)
        student, lesson = _trimmed(student), Lesson(lesson.batch, teacher)
        for each, name, asked in zip(self.terms, self._names, self._asked, strict=True):
            value = self._value(each, asked, student, lesson)
            total = total + each.weight_at(progress) * value
            parts[name] = float(value.detach())
        return total, parts

    def _value(
        self, each: Term, asked: Sequence[str], student: Knowledge, lesson: Lesson
    ) -> Tensor:
        device = student.logits.device
        available: dict[str, Any] = {
            "student": student.logits,
            "labels": lesson.batch.labels.to(device),
            "mask": student.mask,
            "knowledge": student,
            "batch": lesson.batch,
        }
        if lesson.teacher is None or not each.layers:
            if lesson.teacher is not None:
                available["teacher"] = lesson.teacher.logits.to(device)
            return _compared(each, asked, available)
        values = []
        for mine, its in each.layers.items():
            here, there = _meet(each, mine, its, student, lesson.teacher)
            # A forward pass in half precision gives features that a bridge in float32 can't take.
            ours = self.bridges[_key(mine, its)](here.float()) if each.kind == "Features" else here
            pair = {"student": ours, "teacher": there.to(device)}
            values.append(_compared(each, asked, available | pair))
        return torch.stack(values).mean()


def _title(function: Callable[..., Tensor]) -> str:
    """What a loss is called: `response.kl`, as in a recipe; a method by its class."""
    if isinstance(function, partial):
        return _title(function.func)
    if not inspect.isroutine(function):
        return name_of(function)
    owner = type(function.__self__) if inspect.ismethod(function) else None
    file = function.__module__.rpartition(".")[2]
    return f"{owner.__name__ if owner else file}.{name_of(function)}"


def _numbered(names: Sequence[str]) -> list[str]:
    """The names, each one once: what comes a second time has a 2 behind it."""
    seen = Counter[str]()
    numbered = []
    for name in names:
        seen[name] += 1
        numbered.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return numbered


def _asked(each: Term) -> tuple[str, ...]:
    """What a loss is to be given, of what there is."""
    wanted = asks(each.function)
    for name, parameter in wanted.items():
        if name not in GIVEN and parameter.default is parameter.empty:
            raise RecipeError(
                f"The loss {each.name} asks for {name!r}; a loss may ask for {', '.join(GIVEN)}."
            )
    return tuple(name for name in wanted if name in GIVEN)


def _compared(each: Term, asked: Sequence[str], available: Mapping[str, Any]) -> Tensor:
    try:
        return each.function(**{name: available[name] for name in asked if name in available})
    except ValueError as error:
        raise RecipeError(f"The loss {each.name} can't be had: {error}") from error


def _trimmed(knowledge: Knowledge) -> Knowledge:
    """Without padding that no row needs: one side may come from a store, which keeps none."""
    return knowledge.rows(0, len(knowledge.logits))


def _meet(
    each: Term, mine: str, its: str, student: Knowledge, teacher: Knowledge
) -> tuple[Tensor, Tensor]:
    """What two layers gave. Raises LayerError where they gave nothing, or can't be compared."""
    here, there = _feature(student, mine, "student"), _feature(teacher, its, "teacher")
    # A bridge evens out the last dimension, and a loss over attention maps the number of heads.
    same = slice(2, None) if each.kind == "Attentions" else slice(None, -1)
    if here.dim() == there.dim() and here.shape[same] == there.shape[same]:
        return here, there
    cure = (
        "pool both over the tokens with @mean"
        if each.kind == "Features"
        else "both models need the same tokenizer"
    )
    raise LayerError(
        f"{mine} of shape {tuple(here.shape)} can't be compared with {its} of shape "
        f"{tuple(there.shape)}; {cure}."
    )


def _feature(knowledge: Knowledge, path: str, whose: str) -> Tensor:
    if path not in knowledge.features:
        raise LayerError(
            f"The {whose}'s knowledge has no layer {path!r}; have its forward read it, as in "
            f"partial(task.forward, layers=[{path!r}])."
        )
    return knowledge.features[path]


def _key(mine: str, its: str) -> str:
    return f"{mine} -> {its}".replace(".", "/")


def _linear(width: int, target: int) -> nn.Linear:
    """A bridge: the identity, or what `nn.Linear` begins with."""
    bridge: nn.Linear = nn.utils.skip_init(nn.Linear, width, target)  # type: ignore[no-untyped-call]
    if width == target:
        nn.init.eye_(bridge.weight)
        nn.init.zeros_(bridge.bias)
        return bridge
    # A generator of its own: building bridges, also again on resuming, must not move the stream of
    # random numbers that dropout draws from.
    generator = torch.Generator().manual_seed(0)
    bound = 1 / math.sqrt(width)
    nn.init.uniform_(bridge.weight, -bound, bound, generator=generator)
    nn.init.uniform_(bridge.bias, -bound, bound, generator=generator)
    return bridge
