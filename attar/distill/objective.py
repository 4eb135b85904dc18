"""The weighted sum of terms that a student is trained on, and the bridges where widths differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attar.errors import LayerError, RecipeError
from attar.resolve import asks, compares, name_of
from attar.types import Knowledge, Lesson

Weight = float | Callable[[float], float]


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
        return "teacher" in asks(self.function)

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

    Raises RecipeError where a loss over layers is given none.
    """
    bound = partial(function, **options) if options else function
    made = Term(bound, weight, dict(layers or {}), name_of(function))
    if made.kind != "Logits" and not made.layers:
        raise RecipeError(f"{made.name} compares layers; give it `layers: {{student: teacher}}`.")
    return made


class Objective(nn.Module):
    """What the student is to minimise; its parameters are the bridges.

    A bridge is a linear map from a student layer's width to its teacher's, learned beside the
    student and left out of it afterwards (FitNets, Romero et al. 2015). Where the widths agree it
    begins as the identity. Attention maps and projections are compared without one.
    """

    def __init__(self, terms: Sequence[Term], student: Knowledge, teacher: Knowledge | None) -> None:
        """student, teacher: knowledge of one lesson, from which shapes are learned."""
        super().__init__()
        self.terms = tuple(terms)
        if not self.terms:
            raise RecipeError("There is nothing to minimise: give at least one loss.")
        self._asked = [tuple(asks(term.function)) for term in self.terms]
        self.bridges = nn.ModuleDict()
        for each in self.terms:
            if each.needs_teacher and teacher is None:
                raise RecipeError(f"The loss {each.name} needs a teacher, and nobody teaches.")
            if teacher is not None:
                self._bridge(each, student, teacher)

    def forward(
        self, student: Knowledge, lesson: Lesson, progress: float = 0.0
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss (a scalar) of the student's knowledge of a lesson, and each term's own value."""
        total = student.logits.new_zeros(())
        parts: dict[str, float] = {}
        for each, asked in zip(self.terms, self._asked, strict=True):
            value = self._value(each, asked, student, lesson)
            total = total + each.weight_at(progress) * value
            parts[each.name] = parts.get(each.name, 0.0) + float(value.detach())
        return total, parts

    def _value(
        self, each: Term, asked: Sequence[str], student: Knowledge, lesson: Lesson
    ) -> Tensor:
        available: dict[str, Any] = {
            "student": student.logits,
            "knowledge": student,
            "batch": lesson.batch,
            "mask": student.mask,
        }
        if "labels" in asked:
            available["labels"] = lesson.batch.labels.to(student.logits.device)
        if lesson.teacher is not None:
            available["teacher"] = lesson.teacher.logits.to(student.logits.device)
        if not each.layers:
            return each.function(**{name: available[name] for name in asked if name in available})
        assert lesson.teacher is not None
        total = student.logits.new_zeros(())
        for mine, its in each.layers.items():
            available["student"] = self._bridged(mine, its, student.features[mine], each.kind)
            available["teacher"] = lesson.teacher.features[its].to(student.logits.device)
            given = {name: available[name] for name in asked if name in available}
            total = total + each.function(**given)
        return total / len(each.layers)

    def _bridged(self, mine: str, its: str, feature: Tensor, kind: str) -> Tensor:
        if kind != "Features":
            return feature
        bridged: Tensor = self.bridges[_key(mine, its)](feature)
        return bridged.float()

    def _bridge(self, each: Term, student: Knowledge, teacher: Knowledge) -> None:
        for mine, its in each.layers.items():
            here, there = student.features[mine], teacher.features[its]
            if here.dim() != there.dim() or (here.dim() > 2 and here.shape[1:-1] != there.shape[1:-1]):
                if each.kind == "Attentions" and here.shape[2:] == there.shape[2:]:
                    continue  # another number of heads: the loss averages over them
                raise LayerError(
                    f"{mine} of shape {tuple(here.shape)} can't be compared with {its} of shape "
                    f"{tuple(there.shape)}; pool both over the tokens with @mean."
                )
            if each.kind == "Features" and _key(mine, its) not in self.bridges:
                bridge = _linear(here.shape[-1], there.shape[-1])
                self.bridges[_key(mine, its)] = bridge.to(student.logits.device)


def _key(mine: str, its: str) -> str:
    return f"{mine} -> {its}".replace(".", "/")


def _linear(width: int, target: int) -> nn.Linear:
    # A generator of its own: building bridges, also again on resuming, must not move the stream of
    # random numbers that dropout draws from.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        bridge = nn.Linear(width, target)
    if width == target:
        nn.init.eye_(bridge.weight)
        nn.init.zeros_(bridge.bias)
    return bridge
