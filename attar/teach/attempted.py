"""Lessons in what a student writes itself, in which its teacher says what should have come next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from attar.teach.asking import ask, only
from attar.teach.written import Write
from attar.types import Amount, Batch, Engine, Forward, Lesson, Moment, Share

Note = Callable[[Batch], Mapping[str, Any]]
"""Of texts that a model wrote: the same in tensors, numbers and lists, as a checkpoint holds it."""

Read = Callable[[Mapping[str, Any]], Batch]
"""Gives the texts back that a `Note` was made of."""


def on_policy(
    batches: Iterable[Batch],
    teachers: Sequence[nn.Module],
    student: nn.Module,
    forward: Forward,
    write: Write,
    note: Note,
    read: Read,
    engine: Engine,
    steps: int,
    *,
    share: Moment = 0.5,
    prompt: Moment = 0.25,
    temperature: Share = 1.0,
    replay: Amount = 0,
    fresh: Moment = 1.0,
    fade: bool = False,
) -> Iterator[Lesson]:
    """The teacher answers what the student writes behind the beginning of each text, or the text.

    Any loss over logits follows from it: `response.jsd` and `response.reverse_kl` are usual. There
    is no gradient through what was drawn.

    write: has a model write; note, read: keep what it wrote; steps: how many there will be
    share: of the lessons that are about what the student writes, in place of the data's own text
    prompt: share of a text that the student is given; of conversations what comes before the answer
    temperature: that the student draws at
    replay: batches of what it wrote last that are kept, to be learned from again
    fresh: where some are kept, how often it writes anew and is not asked about one of these
    fade: whether `fresh` falls to 0 over the steps
    Source: Agarwal et al., On-Policy Distillation of Language Models (GKD), ICLR 2024, algorithm 1;
    replay that fades: Ko et al., DistiLLM, ICML 2024 (there the share adapts to the loss, too).
    """
    teacher = only(teachers, "on_policy")
    past = _Past()
    engine.track("past", past)
    for batch in batches:
        shown = batch
        if _happens(share):
            anew = fresh * (1 - past.lessons / max(1, steps)) if fade else fresh
            if past.texts and not _happens(anew):
                shown = read(past.texts[int(torch.randint(len(past.texts), ()))])
            else:
                shown = write(student, batch, prompt, temperature)
                past.texts = [*past.texts, note(shown)][-replay:] if replay else []
        past.lessons += 1
        yield Lesson(shown, ask(teacher, shown, forward))
        if past.lessons == steps:
            return  # before something is written that nobody learns from


def _happens(share: float) -> bool:
    """Drawn by torch's own random numbers, which a checkpoint has; where it is sure, of none."""
    return share >= 1 or (share > 0 and float(torch.rand(())) < share)


class _Past:
    """What a student wrote last, and how far the lessons are; it survives a crash."""

    def __init__(self) -> None:
        self.lessons = 0
        self.texts: list[Mapping[str, Any]] = []

    def state_dict(self) -> Mapping[str, Any]:
        return {"lessons": self.lessons, "texts": self.texts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.lessons, self.texts = state["lessons"], list(state["texts"])
