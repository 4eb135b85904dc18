"""A representation: states in, features out, on which a linear head acts; scored by its return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.errors import RecipeError
from attar.taps import tapped
from attar.tasks.control import agents
from attar.tasks.control.acting import policy
from attar.tasks.control.playing import Answer
from attar.tasks.control.states import beside
from attar.tasks.control.worlds import Numbers
from attar.tasks.loading import logits
from attar.types import Batch, Count, Knowledge, Moment

HEAD_STEPS, RIDGE = 200, 1e-4
"""Of L-BFGS, in which a linear head is fitted; what its squared weights cost."""


class representation(policy):  # noqa: N801  (a recipe names it)
    """What an agent makes of what it sees, before its head: features from which it could act.

    The teacher is an agent without its head. Whatever is scored is frozen, a new linear head is
    fitted on its features to what the agent does, and that plays: a student's, a file's, and the
    teacher's own alike. Compare features by losses over layers: `{"": ""}` is the whole network.

    environment: its id, as CartPole-v1
    settings: what `gymnasium.make` is given beside the id
    width: features of a student
    states: how many states the agent meets for the student to learn from
    exploration: share of its steps that chance takes
    episodes: played to score each model
    """

    kind = "control.representation"

    def __init__(
        self,
        seed: int = 0,
        trust: bool = False,
        *,
        environment: str,
        settings: dict[str, Any] | None = None,
        width: Count = 8,
        states: Count = 20_000,
        exploration: Moment = 0.05,
        episodes: Count = 100,
    ) -> None:
        super().__init__(
            seed,
            trust,
            environment=environment,
            settings=settings,
            states=states,
            exploration=exploration,
            episodes=episodes,
        )
        self.classes = tuple(f"feature {n}" for n in range(width))

    def forward(self, model: nn.Module, batch: Batch, layers: Sequence[str] = ()) -> Knowledge:
        """What a model makes of a batch: features (rows, as many as it has)."""
        with tapped(model, layers) as heard:
            features = logits(model(**self.encode(model, batch.inputs))).float()
        return Knowledge(features, heard(None))

    def judged(self, model: nn.Module, part: str) -> tuple[Numbers, dict[str, float]]:
        """The return of each episode that a new head on a model's features plays.

        `agreement` is that head's linear-probe score: how often it does what the agent does.
        """
        return super().judged(self._headed(model), part)

    def films(self, models: Mapping[str, nn.Module]) -> tuple[dict[str, Any], ...]:
        """As each model plays under a head that was fitted to what the agent does."""
        return super().films({name: self._headed(model) for name, model in models.items()})

    def loss(self, *_: Any, **__: Any) -> Tensor:
        """Nobody labels states with features. Raises RecipeError."""
        raise RecipeError(
            "control.representation has no labels; compare features, by feature.mse with "
            'layers: {"": ""}.'
        )

    def actor(self, model: nn.Module) -> Answer:
        """How the agent acts whose features a model gives; a new head acts by itself."""
        if isinstance(model, _Headed):
            return super().actor(model)
        return beside(self, model)

    def beginner(self, *_: Any, **__: Any) -> nn.Module:
        """Raises RecipeError: what is trained by reward is kept as a whole."""
        raise RecipeError("control.representation needs an agent: use `teacher: load`.")

    def losses(self, model: nn.Module) -> Any:
        """What a new head on a model's features loses by what the agent does."""
        return super().losses(self._headed(model))

    def _read(self, path: Path) -> nn.Module:
        acting = agents.read(path, self.world)
        features = Features(acting)
        vars(features)["acts"] = acting
        return features

    def _headed(self, model: nn.Module) -> nn.Module:
        """A model's features under a head that was fitted to what the agent does."""
        rows = list(self.rows["train"])
        seen = self.said(model, self._states[rows])
        return _Headed(model, *fitted(seen, self._acts[rows], self.world.choices))


class Features(nn.Module):
    """An agent without its head."""

    def __init__(self, agent: Any) -> None:
        super().__init__()
        inner: Any = agent.agent if isinstance(agent, agents.Squashed) else agent
        self.eyes: nn.Module = inner.eyes
        self.hidden: nn.Module = inner.hidden

    def forward(self, observation: Tensor) -> Tensor:
        """Features (rows, width of the last hidden layer)."""
        features: Tensor = self.hidden(self.eyes(observation))
        return features


class _Headed(nn.Module):
    """A network's features under a linear head."""

    def __init__(self, model: nn.Module, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.network = model
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, observation: Tensor) -> Tensor:
        features = logits(self.network(observation=observation)).float()
        return F.linear(features, self.weight.to(features), self.bias.to(features))


def fitted(features: Tensor, acts: Tensor, choices: int) -> tuple[Tensor, Tensor]:
    """Weight and bias of the linear head on some features that does best what was done.

    Choices by the cross-entropy, numbers by the squares, both with a small cost of large weights;
    features are brought to one scale first, and the head takes that back.

    acts: (rows,) choices, or (rows, numbers)
    """
    centre, scale = features.mean(0), features.std(0).clamp(min=1e-6)
    seen = ((features - centre) / scale).double()
    wide = choices or acts.shape[1]
    head = torch.zeros(wide, seen.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([head], max_iter=HEAD_STEPS, line_search_fn="strong_wolfe")

    def cost() -> Tensor:
        solver.zero_grad()
        said = F.linear(seen, head[:, 1:], head[:, 0])
        off = F.cross_entropy(said, acts) if choices else (said - acts).square().mean()
        loss = off + RIDGE * head[:, 1:].square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    solver.step(cost)  # type: ignore[no-untyped-call]
    weight = (head[:, 1:].detach() / scale).float()
    return weight, (head[:, 0].detach() - weight.double() @ centre.double()).float()
