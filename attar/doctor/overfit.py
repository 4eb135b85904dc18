"""The overfit test: a student that can't learn two batches by heart will not learn a data set."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from typing import Any

import torch
from torch import nn

from attar import distill, schooling, teach
from attar.doctor.finding import Finding
from attar.heads import Foreign
from attar.resolve import ask, chosen
from attar.setting import Cast, Setting
from attar.types import Batch, Lesson

STEPS, LEARNED, NOTHING = 200, 1 / 3, 2e-4
"""The overfit test: its steps, the share of the loss at which it is passed, and what is no loss."""


class _Enough(Exception):
    """The student has learned it."""


def overfit(here: Setting, cast: Cast) -> Iterator[Finding]:
    """Whether a copy of the student learns two batches by heart, from the recipe's losses."""
    name = "overfit"
    step = next((each.function for each in here.plan.steps if each.name == "distill"), None)
    if step is None:
        yield Finding(name, None, "The recipe trains no student: it has no distill step.")
        return
    if not cast.trained and not here.task.size("labelled"):
        yield Finding(name, None, "The teacher is trained first, and there are no labels but its.")
        return
    terms = _constant(here, cast)
    if not terms:
        yield Finding(name, None, "What the student learns from is known in its training alone.")
        return
    part = "train" if cast.trained else "labelled"
    size = min(32, chosen(step, "batch_size"))
    batches = list(islice(here.task.batches(part, batch_size=size), 2))
    lessons = list(_taught(here, cast, batches))
    losses = _memorize(here, cast, step, terms, lessons)
    start, end = sum(losses[:2]) / 2, sum(losses[-2:]) / 2
    rows, by = sum(map(len, batches)), "" if cast.trained else " by the labels"
    says = f"its loss above the least goes from {start:.3g} to {end:.3g} in {len(losses)} steps{by}"
    if _learned(losses):
        yield Finding(name, True, f"The student learns {rows} {here.task.noun} by heart: {says}.")
        return
    cure = f"raise lr ({chosen(step, 'lr'):g}), look at rates, or take a larger student."
    yield Finding(
        name, False, f"The student can't learn {rows} {here.task.noun} by heart: {says}; {cure}"
    )


def _constant(here: Setting, cast: Cast) -> tuple[distill.Term, ...]:
    """The recipe's terms, each at its highest weight.

    Of a teacher that is not trained yet the answers mean nothing: the labels stand in for them.
    Left out is what asks for a teacher where none is at hand, or for what a scheme notes.
    """
    terms = cast.taught.terms
    if cast.teacher is not None and not cast.trained:
        kept = [term for term in terms if term.layers or not term.needs_teacher]
        labels = [distill.term(here.task.loss)]
        terms = (*kept, *(labels if all(term.needs_teacher for term in kept) else ()))
    if cast.teacher is None:
        terms = tuple(term for term in terms if not term.needs_teacher)
    terms = tuple(term for term in terms if not term.noted)
    return tuple(
        replace(term, weight=max(term.weight_at(share) for share in (0.0, 0.5, 1.0)))
        for term in terms
    )


def _taught(here: Setting, cast: Cast, batches: Sequence[Batch]) -> Iterator[Lesson]:
    if cast.teacher is None:
        return teach.alone(batches)
    return teach.online(batches, [cast.teacher], schooling.asking(here, cast.taught))


@torch.no_grad()
def _floor(terms: Sequence[distill.Term], lessons: Sequence[Lesson]) -> float:
    """The loss of a student that is the teacher itself: soft answers have an entropy.

    Nobody can be a teacher with tokens of its own; what is lost to it may all go.
    """
    if any(
        each.teacher is not None and isinstance(each.teacher.logits, Foreign) for each in lessons
    ):
        return 0.0
    total = 0.0
    own = [replace(term, layers={its: its for its in term.layers.values()}) for term in terms]
    if compared := [term for term in own if term.needs_teacher]:
        for lesson in lessons:
            assert lesson.teacher is not None
            objective = distill.Objective(compared, lesson.teacher, lesson.teacher)
            total += float(objective(lesson.teacher, lesson)[0])
    return total / len(lessons)


def _memorize(
    here: Setting,
    cast: Cast,
    step: partial[Any],
    terms: Sequence[distill.Term],
    lessons: Sequence[Lesson],
) -> list[float]:
    """What can go of the loss of a student's copy that sees nothing but these lessons, by step."""
    losses: list[float] = []
    floor = _floor(terms, lessons)
    student = copy.deepcopy(cast.student)
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # it is there against learning by heart

    def watch(record: Mapping[str, Any]) -> None:
        losses.append(record["loss"] - floor)
        if _learned(losses):
            raise _Enough

    kept = ("lr", "optimizer", "weight_decay", "clip", "accumulate", "recompute", "rates")
    with suppress(_Enough):
        distill.train(
            student,
            cycle(lessons),
            terms,
            partial(here.task.forward, layers=cast.taught.student_layers),
            ask(here.plan.engine.function, {}),
            watch=watch,
            steps=STEPS,
            decay="constant",
            **{name: chosen(step, name) for name in kept},
        )
    return losses


def _learned(losses: Sequence[float]) -> bool:
    """Whether most of what can go, over both batches, is gone."""
    return len(losses) >= 4 and sum(losses[-2:]) <= LEARNED * sum(losses[:2]) + NOTHING
