"""Agents that others trained: their weights read from a zip or safetensors, nothing unpickled.

An agent of stable-baselines3 is a zip of plain tensors (`policy.pth`) and of JSON (`data`) that
holds pickles beside readable words. Only tensors and words are read here, so that a zip of a
stranger, or of another version of Python or of the library, is as good as one's own.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attar.errors import ModelError
from attar.tasks.control import normalizing
from attar.tasks.control.normalizing import Normalized
from attar.tasks.control.worlds import World

Part = Literal["policy", "value"]
Weights = Mapping[str, Tensor]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    each.__name__: each for each in (nn.ReLU, nn.Tanh, nn.ELU, nn.LeakyReLU, nn.SiLU, nn.GELU)
}
STEADY = math.log(0.1)
"""The log standard deviation of an agent that has none: the noise TD3's authors act with."""

STRIDES = {(8, 4, 3): (4, 2, 1), (3,): (1,)}
"""By their kernels the strides of convolutions: those of Mnih et al. 2015, and attar's own."""

SURE = 1e-6
"""What keeps the logarithm of tanh's slope finite where it is flat."""


class Agent(nn.Module):
    """What an agent of stable-baselines3 answers with: what it sees, hidden layers, a head.

    `forward` takes observations (rows, ...) float, as the environment gives them. Of choices it
    gives a logit, or a value, each; of actions that are numbers their means in the environment's
    own units and the logarithms of their standard deviations, (rows, twice the numbers).
    """

    low: Tensor
    high: Tensor

    def __init__(
        self, eyes: nn.Module, hidden: nn.Sequential, head: nn.Module, spread: nn.Module | None
    ) -> None:
        super().__init__()
        self.eyes, self.hidden, self.head = eyes, hidden, head
        self.spread = spread

    def forward(self, observation: Tensor) -> Tensor:
        seen = self.hidden(self.eyes(observation))
        answers: Tensor = self.head(seen)
        if self.spread is None:
            return answers
        return torch.cat([answers, self.spread(seen)], -1)


class Squashed(nn.Module):
    """A Gaussian behind tanh, as means and log deviations in the environment's own units.

    The deviation is that of the linear map that touches tanh at the mean.
    """

    centre: Tensor
    reach: Tensor

    def __init__(self, agent: nn.Module, world: World) -> None:
        super().__init__()
        self.agent = agent
        low, high = (torch.tensor(each).float().flatten() for each in (world.low, world.high))
        self.register_buffer("centre", (low + high) / 2)
        self.register_buffer("reach", (high - low) / 2)

    def forward(self, observation: Tensor) -> Tensor:
        mean, spread = self.agent(observation).chunk(2, -1)
        bent = torch.tanh(mean)
        slope = self.reach * (1 - bent.square())
        return torch.cat([self.centre + self.reach * bent, spread + (slope + SURE).log()], -1)


class Same(nn.Module):
    """The same log deviations whatever is seen."""

    def __init__(self, spread: Tensor) -> None:
        super().__init__()
        self.log = nn.Parameter(spread.clone())

    def forward(self, seen: Tensor) -> Tensor:
        return self.log.expand(len(seen), -1)


def read(path: Path, world: World, part: Part = "policy") -> nn.Module:
    """An agent's acting network, or its critic, from `policy.pth` of a zip or from safetensors.

    Raises ModelError where the file holds none, or one for other observations or actions.
    """
    if path.suffix == ".zip":
        (weights, said), level = _zipped(path), normalizing.beside(path)
    else:
        weights, said = _safe(path), {}
        level = normalizing.within(weights)
    try:
        return built(weights, said, world, part, str(path), level)
    except (KeyError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"{path} holds no agent of stable-baselines3 that attar knows ({_first(error)}); give "
            "one of DQN, PPO, A2C, SAC, TD3 or DDPG, or a module of your own."
        ) from error


def built(
    weights: Weights,
    said: Mapping[str, Any],
    world: World,
    part: Part,
    name: str,
    level: Normalized | None = None,
) -> nn.Module:
    """The network that weights by the names of stable-baselines3 belong to.

    said: the policy's `activation_fn`, in words, where it is not the algorithm's own
    level: how what it sees was normalized, which becomes a part of it
    """
    names, highest = list(weights), world.highest
    if any(each.startswith("q_net.") for each in names):
        agent = _layered(weights, "q_net.q_net", "q_net.", said, highest)
        squashed = False
    elif "action_net.weight" in names:
        agent = _actor_critic(weights, said, part, highest)
        squashed = False
    elif any(each.startswith("actor.") for each in names) and part == "policy":
        agent, squashed = _actor(weights, said, highest), True
    else:
        raise KeyError(f"no {part} under the names {', '.join(sorted(names)[:3])}")
    _check(agent, world, part, name)
    if level is not None:
        if level.mean.shape != world.shape:
            raise ModelError(
                f"{name} was trained on normalized observations of {list(level.mean.shape)} "
                f"numbers, and {world.name} shows {list(world.shape)}."
            )
        agent.eyes = nn.Sequential(level, agent.eyes)
    return (Squashed(agent, world) if squashed else agent).eval()


def _actor_critic(weights: Weights, said: Mapping[str, Any], part: Part, highest: int) -> Agent:
    """Of PPO and A2C: the policy with its deviations, or the critic."""
    branch, head = ("policy_net", "action_net") if part == "policy" else ("value_net", "value_net")
    hidden = _stack(weights, f"mlp_extractor.{branch}", _activation(said, nn.Tanh), last=True)
    own = f"{'pi' if part == 'policy' else 'vf'}_features_extractor."
    eyes = _eyes(
        weights, own if f"{own}cnn.0.weight" in weights else "features_extractor.", highest
    )
    spread: nn.Module | None = None
    if part == "policy" and "log_std" in weights:
        log = weights["log_std"]
        if log.dim() > 1:
            raise ValueError("it explores by its state, with use_sde")
        spread = Same(log.float())
    return Agent(eyes, hidden, _linear(weights, head), spread)


def _actor(weights: Weights, said: Mapping[str, Any], highest: int) -> Agent:
    """Of SAC, with deviations that hang on the state; of TD3 and DDPG, which have none."""
    eyes, kind = _eyes(weights, "actor.features_extractor.", highest), _activation(said, nn.ReLU)
    if "actor.log_std.weight" in weights:
        hidden = _stack(weights, "actor.latent_pi", kind, last=True)
        spread: nn.Module = _Bounded(_linear(weights, "actor.log_std"))
        return Agent(eyes, hidden, _linear(weights, "actor.mu"), spread)
    if "actor.log_std" in weights:
        raise ValueError("it explores by its state, with use_sde")
    agent = _layered(weights, "actor.mu", "actor.", said, highest)
    agent.spread = Same(torch.full((agent.head.out_features,), STEADY))  # type: ignore[arg-type]
    return agent


class _Bounded(nn.Module):
    """Log deviations within the bounds that SAC sets them."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, seen: Tensor) -> Tensor:
        log: Tensor = self.linear(seen)
        return log.clamp(-20, 2)


def _layered(
    weights: Weights, prefix: str, owner: str, said: Mapping[str, Any], highest: int
) -> Agent:
    """Layers of which the last is the head."""
    hidden = _stack(weights, prefix, _activation(said, nn.ReLU), last=False)
    last = max(_numbers(weights, prefix))
    eyes = _eyes(weights, f"{owner}features_extractor.", highest)
    return Agent(eyes, hidden, _linear(weights, f"{prefix}.{last}"), None)


def _stack(weights: Weights, prefix: str, kind: type[nn.Module], *, last: bool) -> nn.Sequential:
    """The linear layers under a prefix, an activation behind each; the last left out if not last.

    Raises KeyError where there is none at all.
    """
    numbers = _numbers(weights, prefix)
    if not numbers and not last:
        raise KeyError(f"{prefix} has no layer")
    kept = numbers if last else numbers[:-1]
    return nn.Sequential(
        *(part for n in kept for part in (_linear(weights, f"{prefix}.{n}"), kind()))
    )


def _numbers(weights: Weights, prefix: str) -> list[int]:
    found = (re.fullmatch(rf"{re.escape(prefix)}\.(\d+)\.weight", name) for name in weights)
    return sorted(int(match[1]) for match in found if match)


def _linear(weights: Weights, name: str) -> nn.Linear:
    weight = weights[f"{name}.weight"].float()
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict({"weight": weight, "bias": weights[f"{name}.bias"].float()})
    return layer


def _eyes(weights: Weights, prefix: str, highest: int) -> nn.Module:
    """What stands before the hidden layers: nothing, or the convolutions for pixels."""
    if f"{prefix}cnn.0.weight" not in weights:
        return nn.Flatten()
    numbers = _numbers(weights, f"{prefix}cnn")
    kernels = tuple(weights[f"{prefix}cnn.{n}.weight"].shape[-1] for n in numbers)
    if kernels not in STRIDES:
        raise ValueError(f"its convolutions have the kernels {list(kernels)}")
    layers: list[nn.Module] = [_Lit(highest)]
    for n, stride in zip(numbers, STRIDES[kernels], strict=True):
        weight = weights[f"{prefix}cnn.{n}.weight"].float()
        layer = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[-1], stride)
        bias = weights[f"{prefix}cnn.{n}.bias"].float()
        layer.load_state_dict({"weight": weight, "bias": bias})
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), _linear(weights, f"{prefix}linear.0"), nn.ReLU())


class _Lit(nn.Module):
    """Pixels as numbers from 0 to 1."""

    def __init__(self, highest: int) -> None:
        super().__init__()
        self.highest = float(highest)

    def forward(self, observation: Tensor) -> Tensor:
        return observation / self.highest


def _activation(said: Mapping[str, Any], own: type[nn.Module]) -> type[nn.Module]:
    """The activation that a policy says it has; the algorithm's own where it says nothing."""
    told = said.get("activation_fn")
    if told is None:
        return own
    name = str(told).rstrip("'>").rpartition(".")[2]
    if name not in ACTIVATIONS:
        raise ValueError(f"its activation is {name}")
    return ACTIVATIONS[name]


def _check(agent: Agent, world: World, part: Part, name: str) -> None:
    """Raises ModelError where an agent was made for other observations or actions."""
    first = next(module for module in agent.modules() if isinstance(module, nn.Linear | nn.Conv2d))
    takes = first.in_features if isinstance(first, nn.Linear) else first.in_channels
    shown = world.shape[0] if isinstance(first, nn.Conv2d) else math.prod(world.shape)
    if takes != shown:
        kind = "numbers" if isinstance(first, nn.Linear) else "frames"
        raise ModelError(
            f"{name} is an agent for observations of {takes} {kind}, and {world.name} shows "
            f"{shown}; give an agent of this environment."
        )
    answers: int = agent.head.out_features  # type: ignore[assignment]
    wanted = 1 if part == "value" else world.choices or int(world.low.size)
    numbers = part == "policy" and agent.spread is not None
    if answers != wanted or (part == "policy" and numbers == bool(world.choices)):
        does = f"{answers} numbers" if numbers else f"one of {answers} choices"
        takes_ = f"one of {world.choices} choices" if world.choices else f"{wanted} numbers"
        raise ModelError(
            f"{name} is an agent whose action is {does}, and {world.name} takes {takes_}; give an "
            "agent of this environment."
        )


def _zipped(path: Path) -> tuple[Weights, Mapping[str, Any]]:
    """The tensors of an agent's zip, and the readable words of its `policy_kwargs`."""
    try:
        with zipfile.ZipFile(path) as inside:
            data = json.loads(inside.read("data"))
            tensors = io.BytesIO(inside.read("policy.pth"))
        weights = torch.load(tensors, map_location="cpu", weights_only=True)
        said = data.get("policy_kwargs") or {}
    except FileNotFoundError:
        raise ModelError(f"There is no file {path}.") from None
    except Exception as error:  # whatever is in a file that is no agent
        raise ModelError(
            f"{path} is no agent of stable-baselines3 ({_first(error)}); give the zip that its "
            "`save` wrote."
        ) from error
    return weights, said if isinstance(said, Mapping) else {}


def _safe(path: Path) -> Weights:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except FileNotFoundError:
        raise ModelError(f"There is no file {path}.") from None
    except SafetensorError as error:
        raise ModelError(f"{path} is damaged ({error}); copy it again.") from error


def _first(error: BaseException) -> str:
    lines = str(error).strip().strip("'\"").splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")
