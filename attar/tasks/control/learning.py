"""Agents trained by reward, with stable-baselines3, where there is none to be had."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from attar.errors import EngineError, MissingExtra, RecipeError
from attar.tasks.control import agents
from attar.tasks.control.playing import Seat
from attar.tasks.control.worlds import Numbers, World
from attar.tasks.tables import reason

Algorithm = Literal["ppo", "a2c", "dqn", "sac", "td3", "ddpg"]
Watch = Callable[[Mapping[str, Any]], None]

CHOOSE, MOVE = ("ppo", "a2c", "dqn"), ("ppo", "a2c", "sac", "td3", "ddpg")
"""Which algorithms learn to choose, and which to give numbers."""

LOOKS = 10
"""How often in a training the agent plays without exploring, so that its best weights are kept."""

SMALL = 36
"""Pixels of a side below which the convolutions of Mnih et al. leave nothing."""


def agent(
    world: World,
    seed: int,
    *,
    algorithm: Algorithm,
    widths: Sequence[int],
    environments: int = 1,
    lr: float | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Any:
    """An agent of stable-baselines3 that has learned nothing yet.

    Raises MissingExtra where the library is missing, RecipeError where the algorithm knows no such
    actions or no such setting.
    """
    if algorithm not in (able := CHOOSE if world.choices else MOVE):
        kind = "a choice" if world.choices else "numbers"
        raise RecipeError(
            f"{algorithm} can't learn {world.name}, where an action is {kind}; take "
            f"{' or '.join(able)}."
        )
    try:
        import stable_baselines3
        from stable_baselines3.common.vec_env import DummyVecEnv
    except ImportError as error:
        raise MissingExtra("stable-baselines3", "control", "training an agent") from error
    kind = vars(stable_baselines3)[algorithm.upper()]
    shaped: dict[str, Any] = {"net_arch": list(widths)}
    if world.picture and min(world.shape[1:]) < SMALL:
        shaped |= {"features_extractor_class": _small_eyes(), "normalize_images": False}
    given = {**(settings or {}), **({} if lr is None else {"learning_rate": lr})}
    try:
        return kind(
            "CnnPolicy" if world.picture else "MlpPolicy",
            DummyVecEnv([lambda: _seen(world)] * environments),
            policy_kwargs=shaped,
            device="cpu",
            seed=seed,
            verbose=0,
            **given,
        )
    except (TypeError, ValueError, AssertionError) as error:
        said = reason(error).rstrip(".")
        raise RecipeError(f"{algorithm} can't be set so: {said}.") from error


def network(learner: Any, world: World, part: agents.Part = "policy") -> nn.Module:
    """The network that an agent acts with, apart from it."""
    weights = {name: each.detach().cpu() for name, each in learner.policy.state_dict().items()}
    said = {"activation_fn": learner.policy_kwargs.get("activation_fn")}
    return agents.built(weights, said, world, part, type(learner).__name__)


def learn(
    learner: Any,
    world: World,
    steps: int,
    judge: Callable[[nn.Module], float],
    watch: Watch | None = None,
) -> nn.Module:
    """Train an agent for so many steps of the environment; the best of its looks is what is kept.

    judge: the mean return of a network where it plays without exploring
    watch: is told of every step of all environments together
    Raises EngineError where the training fails.
    """
    from stable_baselines3.common.callbacks import BaseCallback

    calls = max(1, steps // learner.n_envs)
    every = max(1, calls // LOOKS)
    best: list[tuple[float, dict[str, Tensor]]] = []

    class Looks(BaseCallback):  # type: ignore[misc]
        """Watches, and looks how well the agent plays."""

        def _on_step(self) -> bool:
            step = min(self.n_calls, calls)
            losses = [x for name, x in self.logger.name_to_value.items() if "loss" in name]
            record = {"step": step, "steps": calls, "loss": float(sum(losses))}
            if step % every == 0:
                known = network(learner, world)
                record["score"] = judge(known)
                if not best or record["score"] >= best[0][0]:
                    best[:] = [(record["score"], copy.deepcopy(dict(known.state_dict())))]
            if watch is not None:
                watch(record)
            return bool(step < calls)

    try:
        learner.learn(total_timesteps=steps, callback=Looks())
    except (ValueError, RuntimeError, FloatingPointError) as error:
        said = reason(error).rstrip(".")
        raise EngineError(f"The agent could not be trained: {said}.") from error
    trained = network(learner, world)
    if best:
        trained.load_state_dict(best[0][1])
    return trained.eval()


def _seen(world: World) -> Any:
    """The environment as a model of attar's sees it, in the words of Gymnasium."""
    import gymnasium

    class Seen(gymnasium.Env):  # type: ignore[misc]
        """Observations as numbers or frames; actions as the environment takes them."""

        def __init__(self) -> None:
            self.seat = Seat(world)
            self.action_space = self.seat.environment.action_space
            pixels = world.picture and world.highest > 1
            bound = world.highest if world.picture else np.inf
            self.observation_space = gymnasium.spaces.Box(
                0 if world.picture else -bound,
                bound,
                world.shape,
                np.uint8 if pixels else np.float32,
            )

        def reset(self, *, seed: int | None = None, **_: Any) -> tuple[Numbers, Any]:
            super().reset(seed=seed)
            drawn = int(self.np_random.integers(2**31)) if seed is None else seed
            self.seat.begin(drawn)
            return self._shown(), {}

        def step(self, action: Any) -> tuple[Numbers, float, bool, bool, Any]:
            if world.choices:
                action = np.asarray(action) - world.first
            reward, ended, cut = self.seat.move(action)
            return self._shown(), reward, ended, cut, {}

        def close(self) -> None:
            self.seat.close()

        def _shown(self) -> Numbers:
            return self.seat.shown().astype(self.observation_space.dtype)

    return Seen()


def _small_eyes() -> type[nn.Module]:
    """One convolution and a linear layer, for pictures too small for those of Mnih et al.

    Source: Young and Tian, MinAtar, 2019 (16 channels, 3 x 3, then 128).
    """
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

    class SmallEyes(BaseFeaturesExtractor):  # type: ignore[misc]
        """Named as stable-baselines3 names its own, so that agents are read alike."""

        def __init__(self, space: Any, features_dim: int = 128) -> None:
            super().__init__(space, features_dim)
            channels, height, width = space.shape
            self.cnn = nn.Sequential(nn.Conv2d(channels, 16, 3), nn.ReLU(), nn.Flatten())
            flat = 16 * (height - 2) * (width - 2)
            self.linear = nn.Sequential(nn.Linear(flat, features_dim), nn.ReLU())

        def forward(self, seen: Tensor) -> Tensor:
            answers: Tensor = self.linear(self.cnn(seen))
            return answers

    return SmallEyes
