"""Student and teacher at the places where their answers are compared, with what is known there."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from attar.errors import RecipeError
from attar.heads import Foreign
from attar.types import IGNORE, Batch, Knowledge


def trimmed(knowledge: Knowledge) -> Knowledge:
    """Without padding that no row needs: one side may come from a store, which keeps none."""
    return knowledge.rows(0, len(knowledge.logits))


def noted(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """What is known of each label: where tokens have them, of those that are to be learned."""
    known = batch.labels != IGNORE
    notes = {name: note[known] if batch.by_token else note for name, note in batch.notes.items()}
    return {name: note.to(device) for name, note in notes.items()}


class Met(NamedTuple):
    """Both sides where they are compared, with the labels there.

    share: of all the answers that a mean over them is to be over, how many these are
    """

    student: Knowledge
    teacher: Knowledge | None
    labels: Tensor
    share: float = 1.0

    def by_token(self) -> Met:
        """The logits (tokens, vocabulary) where a token is to be learned, and those tokens.

        Raises RecipeError where the two answer for other tokens.
        """
        labels = self.labels[:, : self.student.logits.shape[1]]
        at = labels != IGNORE
        sides = [side for side in (self.student, self.teacher) if side is not None]
        alike = 2 if isinstance(sides[-1].logits, Foreign) else 3
        if len({side.logits.shape[:alike] for side in sides}) > 1:
            one, other = (tuple(side.logits.shape) for side in sides)
            raise RecipeError(
                f"The student's answers {one} and the teacher's {other} are not of the same tokens;"
                " give the task the student's tokenizer."
            )
        flat = [replace(side, logits=side.logits[at.to(side.logits.device)]) for side in sides]
        return Met(flat[0], None if self.teacher is None else flat[1], labels[at])

    def common(self) -> Met:
        """Of these, where a teacher that answers in tokens of its own has something to say.

        Elsewhere nothing is lost, so that the parts of a lesson add up to the whole.
        """
        if self.teacher is None or not isinstance(self.teacher.logits, Foreign):
            return self
        known = self.teacher.logits.known
        at = known.to(self.labels.device)
        mine = replace(self.student, logits=self.student.logits[at])
        its = replace(self.teacher, logits=self.teacher.logits[known])
        return Met(mine, its, self.labels[at], int(known.sum()) / max(1, len(known)))
