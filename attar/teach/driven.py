"""Lessons about the states that a student gets itself into, which its teacher never would."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attar.errors import RecipeError
from attar.teach.asking import ask, only
from attar.types import IGNORE, Act, Batch, Count, Engine, Forward, Lesson, Moment


def student_driven(
    batches: Iterable[Batch],
    teachers: Sequence[nn.Module],
    student: nn.Module,
    forward: Forward,
    act: Act,
    engine: Engine,
    steps: int,
    examples: int,
    *,
    rounds: Count = 4,
    states: Count = 1000,
    beta: Moment = 0.0,
) -> Iterator[Lesson]:
    """The student acts, and the teacher says of each state that it met what should be done there.

    It begins with what the teacher met itself. Then come so many rounds, evenly over the steps: in
    each the student acts, and what it met is added to all that was met before, of which every
    state counts alike.

    act: has a model act; steps: how many there will be; examples: states that the batches hold
    rounds: how often the student acts
    states: how many it meets each time
    beta: share of steps in which the teacher moves in the first round; in round n it is beta^n
    Source: Ross et al., A Reduction of Imitation Learning and Structured Prediction to No-Regret
    Online Learning (DAgger), AISTATS 2011, algorithm 3.1.
    Raises RecipeError for several teachers.
    """
    teacher = only(teachers, "student_driven")
    met = _Met()
    engine.track("met", met)
    for batch in batches:
        due = min(rounds, met.lessons * (rounds + 1) // max(1, steps))
        while met.rounds < due:
            met.rounds += 1
            share = beta**met.rounds
            met.add(act(student, states, (met.rounds - 1) * states, share, teacher))
        mixed = met.mixed(batch, examples)
        met.lessons += 1
        yield Lesson(mixed, ask(teacher, mixed, forward))


@dataclass
class _Met:
    """What a student met, over all rounds, and how far the lessons are; it survives a crash."""

    lessons: int = 0
    rounds: int = 0
    keys: list[str] = field(default_factory=list)
    shown: list[Tensor] = field(default_factory=list)

    def add(self, batch: Batch) -> None:
        """Take in what was met in a round. Raises RecipeError where it is nothing to be kept."""
        if not isinstance(batch.inputs, Tensor):
            raise RecipeError("student_driven is for tasks in which a model acts.")
        self.keys += batch.keys
        self.shown.append(batch.inputs)

    def mixed(self, batch: Batch, examples: int) -> Batch:
        """A batch in which every state counts alike, whoever met it."""
        if not self.keys:
            return batch
        random = np.random.default_rng(self.lessons)
        own = random.binomial(len(batch), len(self.keys) / (examples + len(self.keys)))
        rows = random.integers(len(self.keys), size=own)
        others = batch.rows(0, len(batch) - own)
        return Batch(
            torch.cat([others.inputs, torch.cat(self.shown)[rows]]),
            torch.cat([others.labels, torch.full((own,), IGNORE)]),
            (*others.keys, *(self.keys[n] for n in rows)),
        )

    def state_dict(self) -> Mapping[str, Any]:
        return {**vars(self)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
