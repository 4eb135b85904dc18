"""Whole episodes of given seeds, several at a time, whoever acts in them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from attar.errors import AttarError, DataError
from attar.tasks.control.worlds import Numbers, World

SIDE_BY_SIDE = 32
"""Episodes that are played at a time: one question to a network serves all of them."""

Answer = Callable[[Numbers], Numbers]
"""Of what is seen (episodes, ...) the actions: (episodes,) or (episodes, numbers)."""


@dataclass
class Episode:
    """One episode, from its seed to its end.

    states: what was seen, where that is kept; rewards: of each step
    ended: whether it came to its own end; else it was cut off by a limit of steps
    """

    seed: int
    states: list[Numbers] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    ended: bool = False

    @property
    def total(self) -> float:
        """The return: the sum of all rewards."""
        return float(np.sum(self.rewards))


def play(
    world: World,
    answer: Answer,
    seeds: Sequence[int],
    *,
    explore: float = 0.0,
    other: Answer | None = None,
    keep: bool = False,
    enough: int | None = None,
) -> list[Episode]:
    """Play one episode of each seed, to its end; in the order of the seeds.

    What happens in an episode hangs on its seed and on who acts, not on those beside it.

    explore: share of steps in which somebody else moves than who is asked
    other: who that is; chance where left out
    keep: whether what was seen is kept
    enough: steps after which no further episode is begun
    Raises DataError where the environment fails or gives no numbers.
    """
    waiting = deque(seeds)
    done: list[Episode] = []
    seats: list[Seat] = []
    try:
        while True:
            steps = sum(len(episode.rewards) for episode in done)
            while waiting and len(seats) < SIDE_BY_SIDE and (enough is None or steps < enough):
                # A new one for each: MinAtar remembers its last action beyond an episode's end.
                seats.append(Seat(world))
                seats[-1].begin(waiting.popleft())
            if not seats:
                break
            shown = np.stack([seat.shown() for seat in seats])
            actions = answer(shown)
            others = other(shown) if other is not None and explore else None
            for n, seat in enumerate(list(seats)):
                instead = None if others is None else others[n]
                if (ended := seat.step(actions[n], explore, instead, keep)) is not None:
                    done.append(ended)
                    seat.close()
                    seats.remove(seat)
    finally:
        for seat in seats:
            seat.close()
    order = {seed: n for n, seed in enumerate(seeds)}
    return sorted(done, key=lambda episode: order[episode.seed])


class Seat:
    """A copy of the environment, in which one episode after another is played."""

    def __init__(self, world: World, *, drawn: bool = False) -> None:
        self.world = world
        self.environment = world.open(drawn=drawn)
        self.episode: Episode | None = None
        self._random = np.random.default_rng(0)
        self._frames: deque[Numbers] = deque(maxlen=world.view.frames)

    def begin(self, seed: int) -> None:
        """Begin the episode of a seed."""
        self.episode = Episode(seed)
        self._random = np.random.default_rng([seed, 1])
        observation, _ = self._told(lambda: self.environment.reset(seed=seed))
        self._frames.clear()
        self._see(observation)

    def shown(self) -> Numbers:
        """What a model sees now."""
        if self._frames.maxlen == 1:
            return self._frames[0]
        first = self._frames[0]
        missing = (self._frames.maxlen or 1) - len(self._frames)
        return np.concatenate([*[np.zeros_like(first)] * missing, *self._frames])

    def step(
        self, action: Numbers, explore: float, instead: Numbers | None, keep: bool
    ) -> Episode | None:
        """Take a step; gives the episode where that was its last."""
        assert self.episode is not None
        if keep:
            self.episode.states.append(self.shown())
        if explore and self._random.random() < explore:
            action = self.world.any_action(self._random) if instead is None else instead
        reward, ended, cut = self.move(action)
        self.episode.rewards.append(reward)
        if not (ended or cut or len(self.episode.rewards) >= self.world.limit):
            return None
        over, self.episode = self.episode, None
        over.ended = ended
        return over

    def move(self, action: Numbers) -> tuple[float, bool, bool]:
        """Act once: the reward, whether the episode has ended, and whether it was cut off."""
        told = self.world.action(action)
        observation, reward, ended, cut, _ = self._told(lambda: self.environment.step(told))
        if not np.isfinite(reward):
            raise self._wrong(f"gave the reward {reward}")
        self._see(observation)
        return float(reward), bool(ended), bool(cut)

    def close(self) -> None:
        """Let go of the environment."""
        self.environment.close()

    def _see(self, observation: Any) -> None:
        seen = self.world.seen(observation, self.environment.observation_space)
        if seen.dtype != np.uint8 and not np.isfinite(seen).all():
            raise self._wrong(f"showed {float(seen[~np.isfinite(seen)][0])}")
        self._frames.append(seen)

    def _told(self, move: Callable[[], Any]) -> Any:
        try:
            return move()
        except AttarError:
            raise
        except Exception as error:  # an environment may raise anything
            lines = str(error).strip().splitlines() or [""]
            raise self._wrong(f"failed with {type(error).__name__}: {lines[0]}") from error

    def _wrong(self, what: str) -> DataError:
        episode = self.episode or Episode(0)
        where = f"in step {len(episode.rewards) + 1} of the episode of seed {episode.seed}"
        return DataError(f"{self.world.name} {what.rstrip('.')} {where}; mend the environment.")


def returns(episodes: Sequence[Episode]) -> Numbers:
    """The return of each episode."""
    return np.array([episode.total for episode in episodes])


def steps(episodes: Sequence[Episode]) -> Iterator[Numbers]:
    """All that was seen in some episodes, step by step."""
    for episode in episodes:
        yield from episode.states
