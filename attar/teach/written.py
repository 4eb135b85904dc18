"""Lessons in what a teacher writes: of its knowledge, the text alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from torch import nn

from attar.teach.asking import only
from attar.types import Batch, Knowledge, Lesson, Moment, Share


class Write(Protocol):
    """Of a model, a batch, the share of each text that stays, and the temperature: what it writes.

    Another model may help, by its share of the probability that each token is drawn by.
    """

    def __call__(
        self,
        model: nn.Module,
        batch: Batch,
        prompt: float,
        temperature: float,
        other: nn.Module | None = None,
        share: float = 0.0,
        /,
    ) -> Batch: ...


def teacher_text(
    batches: Iterable[Batch],
    teachers: Sequence[nn.Module],
    write: Write,
    *,
    prompt: Moment = 0.25,
    temperature: Share = 1.0,
) -> Iterator[Lesson]:
    """The teacher goes on from the beginning of each text; the student learns what it wrote.

    It is distillation of whole sequences: the loss is `task`, over the teacher's tokens.

    write: has a model write
    prompt: share of a text that the teacher is given; of conversations what comes before the answer
    temperature: that the teacher draws at; at 0 it writes what is likeliest
    Source: Kim and Rush, Sequence-Level Knowledge Distillation, EMNLP 2016, section 3.2; drawn
    samples in place of beam search.
    """
    teacher = only(teachers, "teacher_text")
    for batch in batches:
        yield Lesson(write(teacher, batch, prompt, temperature), None)


def spoken(
    batches: Iterable[Batch], recall: Callable[[Batch], Knowledge | None]
) -> Iterator[Lesson]:
    """Lessons in what a teacher wrote before the training, which is what the batches hold.

    recall: of a batch, what the teacher said of each token; None where nothing but the text is left
    """
    for batch in batches:
        yield Lesson(batch, recall(batch))
