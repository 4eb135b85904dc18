"""Schemes whose lessons have labels only: the true ones, or a teacher's answers in their place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from attar.errors import RecipeError
from attar.heads import dense
from attar.types import IGNORE, Batch, Lesson


def alone(batches: Iterable[Batch]) -> Iterator[Lesson]:
    """Nobody teaches: the student has the true labels only."""
    for batch in batches:
        yield Lesson(batch, None)


def pseudo_labels(lessons: Iterable[Lesson]) -> Iterator[Lesson]:
    """The teacher's hard answer stands in for each label that is not known (Lee, 2013).

    lessons: those of any scheme with a teacher; RecipeError where it has none
    """
    for lesson in lessons:
        if lesson.teacher is None:
            raise RecipeError("pseudo_labels needs lessons with a teacher; nobody teaches these.")
        answers = dense(lesson.teacher.logits).argmax(-1).to(lesson.batch.labels.device)
        labels = torch.where(lesson.batch.labels == IGNORE, answers, lesson.batch.labels)
        yield Lesson(replace(lesson.batch, labels=labels), None)
