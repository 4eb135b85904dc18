"""Where a model acts on and on and is rewarded: stretches of episodes, and a critic of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from attar.tasks.control.playing import Seat
from attar.tasks.control.worlds import Numbers
from attar.tasks.loading import device_of, logits
from attar.types import IGNORE, Batch, Engine, Played

if TYPE_CHECKING:
    from attar.tasks.control.acting import policy

RATE, CLIP = 1e-3, 1.0
"""The critic's learning rate, which no schedule lowers: what it tells changes to the end; and the
largest norm of its gradient."""

LEAST = 1e-6
"""A deviation of advantages below which all is alike."""


class Stage:
    """Copies of an environment in which a model acts, and the critic that says what is usual there.

    Episodes go on from one stretch to the next. Of an episode the seed and the actions are kept:
    after a crash it is played again up to where it stood, as no environment can be saved itself.

    critic: gives a value (rows, 1), in units that the returns of the first stretch set
    environments: how many copies there are
    discount: what a reward is worth a step later
    trace: by how much what comes later counts less for what was done (GAE's lambda)
    """

    def __init__(
        self,
        task: policy,
        critic: nn.Module,
        *,
        environments: int,
        discount: float,
        trace: float,
    ) -> None:
        self.task, self.critic, self.discount, self.trace = task, critic, discount, trace
        self.optimizer = torch.optim.Adam(critic.parameters(), lr=RATE)
        self.scale = 0.0
        self.stretches = self.begun = 0
        self.done: list[list[Numbers]] = [[] for _ in range(environments)]
        self.seeds = [self._next() for _ in range(environments)]
        self.seats = [self._opened(seed) for seed in self.seeds]

    def play(self, model: nn.Module, steps: int, engine: Engine) -> Batch:
        """The next so many steps of each copy: what was seen, done and earned.

        What is done is drawn from the model's answers, by numbers that hang on the stretch alone.
        It answers in the number format that it learns in: else it would differ from itself.
        """
        random = np.random.default_rng([self.stretches, *self.task.seeds("rewarded", 1)])
        self.stretches += 1
        seen, said, did, worth, paid, over = ([] for _ in range(6))  # type: ignore[var-annotated]
        for _ in range(steps):
            shown = self._shown()
            with engine.autocast():
                answers = self.task.said(model, torch.from_numpy(shown))
            actions = self.task.drawn(answers, random)
            came = [self._step(n, action) for n, action in enumerate(actions)]
            for kept, each in ((seen, shown), (said, answers.numpy()), (did, actions)):
                kept.append(each)
            worth.append(self._told(shown))
            paid.append([reward for reward, _ in came])
            over.append([ended for _, ended in came])
        worth.append(self._told(self._shown()))
        values = np.stack(worth)
        gained = advantages(np.array(paid), values, np.array(over), self.discount, self.trace)
        returned = gained + values[:-1]
        if not self.scale:
            self.scale = float(np.sqrt((returned**2).mean())) or 1.0
        # Over the whole stretch and not a batch: so a loss is the mean over rows, however cut.
        gained = (gained - gained.mean()) / max(gained.std(), LEAST)
        states = np.concatenate(seen)
        flat = [np.concatenate(said), np.concatenate(did), gained.reshape(-1), returned.reshape(-1)]
        return Batch(
            torch.from_numpy(states),
            torch.full((len(states),), IGNORE),
            self.task.named(states),
            played=Played(*map(_tensor, flat)),
        )

    def learn_(self, batch: Batch, engine: Engine) -> None:
        """Have the critic learn, by one step, what came of some states."""
        assert batch.played is not None
        with torch.enable_grad():
            values = self._value(batch.inputs)
            wanted = batch.played.returns.to(values.device) / self.scale
            engine.backward((values - wanted).square().mean())
        engine.step(self.optimizer, list(self.critic.parameters()), CLIP)

    def close(self) -> None:
        """Let go of the environments."""
        for seat in self.seats:
            seat.close()

    def state_dict(self) -> Mapping[str, Any]:
        return {
            "critic": self.critic.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "counts": [self.stretches, self.begun],
            "scale": self.scale,
            "seeds": self.seeds,
            "done": [torch.from_numpy(np.array(each)) for each in self.done],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.critic.load_state_dict(state["critic"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.stretches, self.begun = state["counts"]
        self.scale, self.seeds = state["scale"], list(state["seeds"])
        self.done = [list(each.numpy()) for each in state["done"]]
        self.close()
        self.seats = [self._opened(seed) for seed in self.seeds]
        for seat, done in zip(self.seats, self.done, strict=True):
            for action in done:
                seat.step(action, 0.0, None, keep=False)

    def _next(self) -> int:
        """The seed of the next episode."""
        (seed,) = self.task.seeds("rewarded", 1, self.begun)
        self.begun += 1
        return seed

    def _opened(self, seed: int) -> Seat:
        """An episode begun in a copy of its own: some remember beyond an episode's end."""
        seat = Seat(self.task.world)
        seat.begin(seed)
        return seat

    def _step(self, number: int, action: Numbers) -> tuple[float, bool]:
        """Act in one copy: the reward, and whether the episode is over; then the next begins.

        Where a limit of steps has cut it off, the critic tells what was still to come.
        """
        seat = self.seats[number]
        running = seat.episode
        assert running is not None
        self.done[number].append(action)
        if seat.step(action, 0.0, None, keep=False) is None:
            return running.rewards[-1], False
        reward = running.rewards[-1]
        if not running.ended:
            reward += self.discount * float(self._told(seat.shown()[None])[0])
        seat.close()
        self.seeds[number], self.done[number] = self._next(), []
        self.seats[number] = self._opened(self.seeds[number])
        return reward, True

    def _shown(self) -> Numbers:
        return np.stack([seat.shown() for seat in self.seats])

    @torch.no_grad()
    def _told(self, shown: Numbers) -> Numbers:
        """The values (rows,) of what is seen, in units of the return; 0 until one is known."""
        told: Numbers = self._value(torch.from_numpy(shown)).cpu().double().numpy()
        return told * self.scale

    def _value(self, shown: Tensor) -> Tensor:
        seen = shown.to(device_of(self.critic)).float()
        return logits(self.critic(observation=seen))[:, 0].float()


def advantages(
    rewards: Numbers, values: Numbers, over: Numbers, discount: float, trace: float
) -> Numbers:
    """How much better (steps, environments) it went than the values said, later steps fading.

    A_t = d_t + discount trace A_(t+1) with d_t = r_t + discount V_(t+1) - V_t; where an episode is
    over, nothing comes after it.

    rewards: (steps, environments); values: one step more; over: bool, as the rewards
    Source: Schulman et al., High-Dimensional Continuous Control Using Generalized Advantage
    Estimation, ICLR 2016, equation 16.
    """
    found, after = np.zeros_like(rewards, float), np.zeros(rewards.shape[1])
    for step in reversed(range(len(rewards))):
        goes_on = ~over[step]
        surprise = rewards[step] + discount * values[step + 1] * goes_on - values[step]
        found[step] = after = surprise + discount * trace * after * goes_on
    return found


def _tensor(numbers: Numbers) -> Tensor:
    whole = np.issubdtype(numbers.dtype, np.integer)
    return torch.from_numpy(numbers.astype(np.int64 if whole else np.float32))
