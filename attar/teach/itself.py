"""Schemes without a teacher: the student's own average, its own answers, or an invented expert."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from attar.errors import RecipeError
from attar.teach.asking import ask
from attar.types import IGNORE, Batch, Decay, Engine, Forward, Knowledge, Lesson


def self_ema(
    batches: Iterable[Batch],
    student: nn.Module,
    forward: Forward,
    engine: Engine,
    *,
    decay: Decay = 0.99,
) -> Iterator[Lesson]:
    """The teacher is the student's own moving average (Tarvainen and Valpola, Mean Teacher, 2017).

    decay: share of the average that a step leaves as it was; the first steps leave less, so that
        the weights the student began with are soon forgotten
    """
    teacher = copy.deepcopy(student).eval()
    steps = _Count()
    engine.track("average", teacher)
    engine.track("averaged", steps)
    for batch in batches:
        yield Lesson(batch, ask(teacher, batch, forward))
        steps.taken += 1
        _follow_(teacher, student, 1 - min(decay, steps.taken / (steps.taken + 10)))


def own(batches: Iterable[Batch], student: nn.Module, forward: Forward) -> Iterator[Lesson]:
    """The student's own answer of the moment, for losses that compare its layers with one another.

    An earlier layer learns from a later one, as by the hints of Zhang et al., Be Your Own Teacher,
    ICCV 2019; a loss over logits, which are the same on both sides, teaches nothing here.
    """
    for batch in batches:
        yield Lesson(batch, ask(student, batch, forward))


def virtual(
    batches: Iterable[Batch],
    student: nn.Module,
    forward: Forward,
    classes: Sequence[str],
    *,
    confidence: float = 0.9,
) -> Iterator[Lesson]:
    """An expert nobody trained: sure of the true label, and of no other class more than another.

    Under a high temperature this is label smoothing whose strength the temperature sets. Where the
    label is not known there is no expert: the student's own answer is the lesson, from which it
    has nothing to learn.

    confidence: probability of the true label
    Source: Yuan et al., Revisiting Knowledge Distillation via Label Smoothing Regularization, CVPR
    2020 (Tf-KD_reg, equation 9; confidence 0.9 or more, temperature 20).
    Raises RecipeError where the true label would not be the likeliest.
    """
    if not classes:
        raise RecipeError("virtual invents answers of classes, and there are none here.")
    if not 1 / len(classes) < confidence < 1:
        raise RecipeError(
            f"The confidence of virtual is {confidence}; with {len(classes)} classes it lies "
            f"between {1 / len(classes):.3g} and 1."
        )
    rest = (1 - confidence) / (len(classes) - 1)
    sure, unsure = math.log(confidence), math.log(rest)
    for batch in batches:
        known = (batch.labels != IGNORE).unsqueeze(1)
        truth = batch.labels.unsqueeze(1) == torch.arange(len(classes))
        answers = torch.where(truth, sure, unsure)
        if not known.all():
            own = ask(student, batch, forward).logits.float().log_softmax(1)
            answers = torch.where(known, answers, own.to(answers))
        yield Lesson(batch, Knowledge(answers))


class _Count:
    """How many steps have been taken, across crashes."""

    taken = 0

    def state_dict(self) -> dict[str, int]:
        return {"taken": self.taken}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.taken = state["taken"]


@torch.no_grad()
def _follow_(teacher: nn.Module, student: nn.Module, share: float) -> None:
    """Move the teacher's weights towards the student's; statistics and counts are taken over."""
    theirs: dict[str, Tensor] = dict(student.named_parameters())
    for name, slow in teacher.named_parameters():
        slow.lerp_(theirs[name], share)
    for kept, now in zip(teacher.buffers(), student.buffers(), strict=True):
        kept.copy_(now)
