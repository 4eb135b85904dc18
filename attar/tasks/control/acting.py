"""A policy: states in, an action out; scored by the return of whole episodes."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from attar.errors import RecipeError
from attar.tasks.control.filming import film
from attar.tasks.control.playing import play, returns
from attar.tasks.control.stage import Stage
from attar.tasks.control.states import States
from attar.tasks.control.worlds import Numbers, View, opened
from attar.tasks.intervals import interval
from attar.types import Batch, Count, Knowledge, Moment

SPREAD = (-3.0, 2.0)
"""The log deviations that Gaussians are drawn with, as `losses.policy` bounds them."""

SOME = 8
"""Episodes by which it is told how long all take."""

HELD_EPISODES = 0.2
"""Episodes played for validation, as a share of those of the test."""


class policy(States):  # noqa: N801  (a recipe names it)
    """Acting in an environment of Gymnasium: a choice among actions, or numbers within bounds.

    A network is shown observations as the environment gives them and answers a choice with a logit
    each, numbers with their means and the logarithms of their deviations. The likeliest choice, or
    the mean, is what is done.

    environment: its id, as CartPole-v1, ALE/Pong-v5 or MinAtar/Breakout-v1
    settings: what `gymnasium.make` is given beside the id
    states: how many states the teacher meets for the student to learn from
    exploration: share of its steps that chance takes, so that it also meets what it would avoid
    episodes: played to score each model, on seeds that nothing else is played on
    frames: of pictures, how many of the last are seen at a time
    grey: of pictures, without their colours
    side: of pictures, the pixels of a side that they are scaled to
    """

    kind = "control.policy"
    score_name = "return"

    def __init__(
        self,
        seed: int = 0,
        trust: bool = False,
        *,
        environment: str,
        settings: dict[str, Any] | None = None,
        states: Count = 20_000,
        exploration: Moment = 0.05,
        episodes: Count = 100,
        frames: Count = 1,
        grey: bool = False,
        side: Count | None = None,
    ) -> None:
        world = opened(environment, settings, View(frames, grey, side), trust=trust)
        self.episodes, self.exclusive = episodes, bool(world.choices)
        if world.choices:
            self.classes = tuple(f"action {n + world.first}" for n in range(world.choices))
        else:
            names = [f"action {n}" for n in range(world.low.size)]
            self.classes = (*names, *(f"log deviation of {name}" for name in names))
        self._start(world, seed, states, exploration)

    @property
    def tells(self) -> str:
        numbers = self.world.low.size
        return (
            f"{self.world.choices} actions"
            if self.world.choices
            else f"actions of {numbers} number{'s' * (numbers > 1)}"
        )

    def stage(self, critic: nn.Module, **how: Any) -> Stage:
        """Copies of the environment, for schemes in which a model is rewarded; see `Stage`."""
        return Stage(self, critic, **how)

    def drawn(self, answers: Tensor, random: np.random.Generator) -> Numbers:
        """Actions drawn from answers (rows, classes), as likely as these say."""
        said = answers.double().numpy()
        if self.world.choices:
            # The largest of logits with Gumbel's noise is a choice drawn from their softmax.
            choices: Numbers = (said + random.gumbel(size=said.shape)).argmax(1)
            return choices
        mean, log = np.split(said, 2, 1)
        drawn: Numbers = mean + np.exp(log.clip(*SPREAD)) * random.standard_normal(mean.shape)
        return drawn

    def judged(self, model: nn.Module, part: str) -> tuple[Numbers, dict[str, float]]:
        """The return of each episode of a part that a model plays, and what they come to.

        Episodes are the part's own; `low` and `high` bound the mean return by the bootstrap over
        them. `agreement` is over states that the teacher met in episodes held out: of choices the
        share that is the same, of numbers 1 less the mean distance as a share of what is allowed.
        """
        number = self._number(part)
        played = play(self.world, self.actor(model), self.seeds(part, number))
        found = returns(played)
        low, high = interval(found)
        judged: dict[str, float] = {
            "score": float(found.mean()),
            "low": low,
            "high": high,
            "deviation": float(found.std(ddof=1)) if number > 1 else 0.0,
            "examples": number,
            "length": float(np.mean([len(each.rewards) for each in played])),
        }
        if self._gathered:
            judged |= self.agreed(model, part)
        return found, judged

    def films(self, models: Mapping[str, nn.Module]) -> tuple[dict[str, Any], ...]:
        """The first episode of the test as each model plays it, in a few pictures."""
        actors = {name: self.actor(model) for name, model in models.items()}
        return (film(self.world, actors, self.seeds("test", 1)[0]),)

    def played(self, model: nn.Module, part: str) -> float:
        """Seconds in which a model plays a part, by some of its episodes."""
        number = self._number(part)
        some = self.seeds("validation", min(SOME, number))
        start = time.perf_counter()
        play(self.world, self.actor(model), some)
        return (time.perf_counter() - start) * number / len(some)

    def _number(self, part: str) -> int:
        """Episodes of a part."""
        return self.episodes if part == "test" else max(1, round(HELD_EPISODES * self.episodes))

    def hash_of(self, part: str) -> str:
        """A hash of what is played, or seen, in a part; of the test the same for every teacher."""
        if part != "test":
            return super().hash_of(part)
        played = [self.world.facts(), self.seeds(part, self.episodes)]
        return hashlib.sha256(json.dumps(played, sort_keys=True).encode()).hexdigest()[:16]

    def agreed(self, model: nn.Module, part: str) -> dict[str, float]:
        """How far a model does what the teacher does, in the states of a part."""
        predicted = self.actions(self.answers(model, part))
        truth = self._acts[list(self._part(part))].numpy()
        if self.world.choices:
            return {"agreement": float((predicted == truth).mean())}
        low, high = self.world.low.flatten(), self.world.high.flatten()
        if not np.isfinite(high - low).all():
            return {}
        apart = np.abs(np.clip(predicted, low, high) - np.clip(truth, low, high))
        return {"agreement": float(1 - (apart / (high - low)).mean())}

    def loss(self, knowledge: Knowledge, batch: Batch, *, label_smoothing: float = 0.0) -> Tensor:
        """Cross-entropy with the choice that is known to be right, over rows in which one is."""
        if not self.world.choices:
            raise RecipeError(
                f"An action in {self.world.name} is numbers, which are no labels; compare with the "
                "teacher's by policy.gaussian_kl."
            )
        return super().loss(knowledge, batch, label_smoothing=label_smoothing)
