"""Schemes that need no teacher while the student learns: labels alone, or the teacher's as labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from attar.types import IGNORE, Batch, Lesson


def alone(batches: Iterable[Batch]) -> Iterator[Lesson]:
    """Nobody teaches: the student has the true labels only."""
    for batch in batches:
        yield Lesson(batch, None)


def pseudo_labels(lessons: Iterable[Lesson]) -> Iterator[Lesson]:
    """The teacher's hard answer stands in for each label that is not known (Lee, 2013).

    lessons: those of any scheme with a teacher
    """
    for lesson in lessons:
        assert lesson.teacher is not None
        answers = lesson.teacher.logits.argmax(1).to(lesson.batch.labels.device)
        labels = torch.where(lesson.batch.labels == IGNORE, answers, lesson.batch.labels)
        yield Lesson(replace(lesson.batch, labels=labels), None)
