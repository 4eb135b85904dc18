"""Lessons about what the student did itself, with what came of it: it has a reward of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from attar.teach.asking import ask, only
from attar.types import IGNORE, Batch, Count, Decay, Engine, Forward, Lesson, Moment, Played

CRITIC: dict[str, Any] = {"mlp": {"widths": [64, 64], "activation": "tanh"}}
"""A critic that is larger than most students: it is left out of what they are shipped as."""


class Stage(Protocol):
    """Where a model acts and is rewarded, a stretch at a time; its critic learns beside it."""

    def play(self, model: nn.Module, steps: int, engine: Engine, /) -> Batch: ...

    def learn_(self, batch: Batch, engine: Engine, /) -> None: ...

    def close(self) -> None: ...

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


def rewarded(
    batches: Iterable[Batch],
    student: nn.Module,
    forward: Forward,
    engine: Engine,
    stage: Callable[..., Stage],
    steps: int,
    teachers: Sequence[nn.Module] = (),
    *,
    environments: Count = 8,
    stretch: Count = 128,
    passes: Count = 10,
    discount: Decay = 0.99,
    trace: Moment = 0.95,
    critic: str | dict[str, Any] = CRITIC,
) -> Iterator[Lesson]:
    """The student acts, is rewarded, and hears what the teacher would have done in its place.

    With `policy.ppo` and a divergence whose weight fades it is kickstarting, with
    `policy.proximal_kl` proximal policy distillation; the baseline `reward_only` has the first
    loss alone. So many lessons of a batch size B take lessons x B / passes steps of the
    environment. Of the batches only their size is taken.

    stage: opens copies of the environment, with a critic of its own; steps: lessons there will be
    teachers: one, or nobody
    environments: copies that it plays in at a time
    stretch: steps in each, after which it learns from them all
    passes: how often it sees each of these steps
    discount: what a reward is worth a step later
    trace: by how much what comes later counts less for what was done (GAE's lambda)
    critic: the network that tells what is usual, one that students can be; it is not shipped
    Source: Schmitt et al., Kickstarting Deep Reinforcement Learning, 2018; Spigler, Proximal Policy
    Distillation, TMLR 2025; Schulman et al., Proximal Policy Optimization Algorithms, 2017.
    Raises RecipeError for several teachers.
    """
    teacher = only(teachers, "rewarded") if teachers else None
    opened = stage(
        critic=critic, environments=environments, discount=discount, trace=trace, engine=engine
    )
    with closing(opened) as here:
        met = _Stretch()
        engine.track("stage", here)
        engine.track("stretch", met)
        for batch in batches:
            if met.left < len(batch):
                met.begin(here.play(student, stretch, engine), passes)
            own = met.part(len(batch))
            yield Lesson(own, None if teacher is None else ask(teacher, own, forward))
            here.learn_(own, engine)
            met.lessons += 1
            if met.lessons == steps:
                return  # before a stretch is played that nobody learns from


class _Stretch:
    """What the student did last, and how much of it is learned; it survives a crash."""

    def __init__(self) -> None:
        self.lessons = self.number = self.position = self.passes = 0
        self.batch = Batch(torch.empty(0), torch.empty(0), ())
        self._order = np.empty(0, int)

    @property
    def left(self) -> int:
        """Rows that are still to be learned from, over all passes."""
        return len(self._order) - self.position

    def begin(self, batch: Batch, passes: int) -> None:
        """Take in a new stretch."""
        self.number, self.position, self.passes, self.batch = self.number + 1, 0, passes, batch
        self._shuffle()

    def part(self, rows: int) -> Batch:
        """The next rows of it, or what there is."""
        start, self.position = self.position, min(self.position + rows, len(self._order))
        return self.batch.some(self._order[start : self.position].tolist())

    def _shuffle(self) -> None:
        """Every row once in each pass, in an order that the number of the stretch decides."""
        random = np.random.default_rng(self.number)
        rounds = [random.permutation(len(self.batch)) for _ in range(self.passes)]
        self._order = np.concatenate([np.empty(0, int), *rounds])

    def state_dict(self) -> Mapping[str, Any]:
        played = self.batch.played
        return {
            "counts": [self.lessons, self.number, self.position, self.passes],
            "shown": self.batch.inputs,
            "keys": list(self.batch.keys),
            "played": {} if played is None else dict(vars(played)),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.lessons, self.number, self.position, self.passes = state["counts"]
        shown: Tensor = state["shown"]
        labels, played = torch.full((len(shown),), IGNORE), state["played"]
        keys = tuple(state["keys"])
        self.batch = Batch(shown, labels, keys, played=Played(**played) if played else None)
        self._shuffle()
