"""A critic: states in, the return that is still to come out; scored by how well it is told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attar.errors import RecipeError
from attar.tasks.control import agents
from attar.tasks.control.playing import Answer, play
from attar.tasks.control.states import EACH, States, beside
from attar.tasks.control.worlds import Numbers, View, opened
from attar.types import Count, Decay, Moment

APART = 10
"""Steps from one state whose return is looked at to the next: neighbours have nearly the same."""


class value(States):  # noqa: N801  (a recipe names it)
    """Telling the return that an agent will make from a state on, as its critic does.

    The teacher is an agent of PPO or A2C, of which the policy plays and the critic teaches. A
    student answers in the units of the return.

    environment: its id, as CartPole-v1
    settings: what `gymnasium.make` is given beside the id
    states: how many states the agent meets for the student to learn from
    exploration: share of its steps that chance takes
    episodes: played to the end, for the returns that values are compared with
    discount: what a reward is worth a step later, as the agent was trained
    """

    kind = "control.value"
    score_name = "R squared"
    classes = ("value",)

    def __init__(
        self,
        seed: int = 0,
        trust: bool = False,
        *,
        environment: str,
        settings: dict[str, Any] | None = None,
        states: Count = 20_000,
        exploration: Moment = 0.05,
        episodes: Count = 20,
        discount: Decay = 0.99,
    ) -> None:
        world = opened(environment, settings, View(), trust=trust)
        self.episodes, self.discount = episodes, discount
        self._critic = 0.0
        self._returned: tuple[Numbers, Numbers] = (np.zeros(0), np.zeros(0))
        self._start(world, seed, states, exploration)

    def met(self, teacher: nn.Module) -> value:
        """The same task with the states that the agent meets, their values, and some returns."""
        there = super().met(teacher)
        assert isinstance(there, value)
        shown, returned = there._returns(teacher)
        there._returned = shown, returned
        there._critic = _ranked(there._told(teacher, shown).numpy(), returned)
        return there

    @property
    def offers(self) -> Mapping[str, Any]:
        """What there is to see, and the mean and deviation of what is to be told."""
        train = self._acts[list(self.rows["train"])] if self._gathered else torch.zeros(2)
        spread = float(train.std()) or 1.0
        return {**super().offers, "level": (float(train.mean()), spread)}

    def judged(self, model: nn.Module, part: str) -> tuple[Numbers, dict[str, float]]:
        """Of each state what it adds to R squared, and what they come to.

        `score` is how much of the variance of the critic's values in held-out states a model tells,
        `critic` the rank correlation with them, `returns` that with the discounted returns of whole
        episodes, and `critic_returns` the critic's own with these (Spearman 1904).
        """
        rows = list(self._part(part))
        truth, found = self._acts[rows].numpy(), self._told(model, self._states[rows].numpy())
        each = 1 - (found.numpy() - truth) ** 2 / truth.var()
        shown, returned = self._returned
        its = self._told(model, shown).numpy()
        return each, {
            "score": float(each.mean()),
            "error": float(np.abs(found.numpy() - truth).mean()),
            "critic": _ranked(found.numpy(), truth),
            "returns": _ranked(its, returned),
            "critic_returns": self._critic,
            "examples": len(rows),
        }

    def loss(self, *_: Any, **__: Any) -> Tensor:
        """Nobody labels states with a value. Raises RecipeError."""
        raise RecipeError("control.value has no labels; compare with the critic by policy.value.")

    def actor(self, model: nn.Module) -> Answer:
        """How the policy beside a critic acts; a critic alone does nothing."""
        return beside(self, model)

    def counts(self) -> dict[str, int]:
        """Values are no classes."""
        return {}

    def beginner(self, *_: Any, **__: Any) -> nn.Module:
        """Raises RecipeError: what is trained by reward is kept without its critic."""
        raise RecipeError("control.value needs an agent with its critic: use `teacher: load`.")

    def _read(self, path: Path) -> nn.Module:
        critic = agents.read(path, self.world, "value")
        # Not as a part of it: the critic alone is what is taught, counted and timed.
        vars(critic)["acts"] = agents.read(path, self.world, "policy")
        return critic

    def _answered(self, teacher: nn.Module) -> Tensor:
        return self._told(teacher, self._states.numpy())

    def _apart(self, answers: Tensor, acts: Tensor) -> Tensor:
        return (answers[:, 0] - acts).square().mean() / 2

    def _returns(self, teacher: nn.Module) -> tuple[Numbers, Numbers]:
        """Every tenth state of whole episodes, and the discounted return from each on.

        Where a limit of steps has cut an episode off, the critic tells what was still to come.
        """
        seeds = self.seeds("test", self.episodes, EACH // 2)
        shown, returned = [], []
        for episode in play(self.world, self.actor(teacher), seeds, keep=True):
            later = 0.0
            if not episode.ended:
                later = float(self._told(teacher, np.stack(episode.states[-1:]))[0])
            found = []
            for reward in reversed(episode.rewards):
                later = reward + self.discount * later
                found.append(later)
            returned += found[::-1][::APART]
            shown += episode.states[::APART]
        return np.stack(shown), np.array(returned)

    def _told(self, model: nn.Module, shown: Numbers) -> Tensor:
        """The values (states,) that a model tells."""
        return self.said(model, torch.from_numpy(shown))[:, 0]


def _ranked(one: Numbers, other: Numbers) -> float:
    """Spearman's rank correlation, equal values sharing their mean rank; 0 where all are equal."""
    ranks = [_ranks(each) for each in (one, other)]
    if min(each.std() for each in ranks) == 0:
        return 0.0
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: Numbers) -> Numbers:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: Numbers = (ends - (counts - 1) / 2)[places]
    return ranks
