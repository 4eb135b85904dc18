"""What tasks over the states of an environment have in common: whence they come, who sees them."""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attar.errors import DataError, ModelError
from attar.taps import evaluating
from attar.tasks.classes import Classification
from attar.tasks.control import agents, learning
from attar.tasks.control.playing import Answer, Episode, play, returns, steps
from attar.tasks.control.worlds import Numbers, World
from attar.tasks.files import opened
from attar.tasks.loading import device_of, told
from attar.tasks.sampling import Batches
from attar.tasks.task import Task
from attar.types import IGNORE, Batch

PARTS = {"teacher": 0, "train": 1, "validation": 2, "test": 3, "driven": 4}
"""What episodes are played for: each has seeds that no other meets."""

APART = 400_000_000
"""Between the first seeds of two parts."""

EACH = 100_000
"""Seeds of environments that a seed of a recipe has to itself."""

REHEARSED = 64
"""States of chance that stand in for a part until there is a teacher to gather it."""

LOOKED = 20
"""Episodes that are played whenever it is looked how far an agent has learned."""

AT_ONCE = 4096
"""States that a model is asked about together."""

HELD = 0.1
"""States of the held-out parts, as a share of those to learn from."""


class States(Classification):
    """A task over what is seen in an environment: states, each a row, in three disjoint parts.

    Until a teacher has played, chance has, a little, so that everything can be rehearsed. No part
    has labels: `rows["labelled"]` is empty, and what a teacher does in a state is its answer.
    """

    tag = "reinforcement-learning"
    noun = "states"
    beside = "observation"
    formats = (".zip", ".safetensors")
    world: World
    _states: Tensor
    _acts: Tensor
    _size: int
    _explore: float

    def _start(self, world: World, seed: int, size: int, explore: float) -> None:
        """Open the world and let chance play in it."""
        self.world, self._seed, self._size, self._explore = world, seed, size, explore
        self.notes = ()
        self._gathering = self._gathered = False
        parts = {
            part: self._some(self._played(self._idle, part, REHEARSED, 1.0), REHEARSED)
            for part in ("train", "validation", "test")
        }
        self._keep(parts)

    def met(self, teacher: nn.Module) -> States:
        """The same task with the states that a teacher meets, whatever chance met before."""
        there = copy.copy(self)
        there._gathering = True
        act = there.actor(teacher)
        sizes = {"train": self._size}
        sizes |= dict.fromkeys(("validation", "test"), max(REHEARSED, int(HELD * self._size)))
        parts = {
            part: there._some(there._played(act, part, size, self._explore), size)
            for part, size in sizes.items()
        }
        there._keep(parts)
        there._acts, there._gathered = there._answered(teacher), True
        return there

    @abstractmethod
    def judged(self, model: nn.Module, part: str) -> tuple[Numbers, dict[str, float]]:
        """What each episode or state of a part is worth by a model, and what they come to."""

    def audited(self) -> Classification:
        """Raises RecipeError: no action is right or wrong in itself."""
        return Task.audited(self)

    def truth(self, part: str) -> None:
        """Nothing is right or wrong: each episode or state has a worth."""

    def seeds(self, part: str, number: int, start: int = 0) -> list[int]:
        """Seeds of environments for a part; those of the test are the same for every recipe's."""
        own = 0 if part == "test" else self._seed % 1000 * EACH
        first = PARTS[part] * APART + own + start
        return list(range(first, first + number))

    def act(
        self, model: nn.Module, states: int, start: int, beta: float, other: nn.Module
    ) -> Batch:
        """The states that a model meets where it acts itself, for schemes that are driven by it.

        states: how many; start: episodes that were played so before
        beta: share of steps in which `other` moves in its place
        """
        seeds = self.seeds("driven", EACH - 1, start)
        episodes = play(
            self.world,
            self.actor(model),
            seeds[: max(1, states)],
            explore=beta,
            other=self.actor(other),
            keep=True,
            enough=states,
        )
        shown = self._some(episodes, states)
        return Batch(torch.from_numpy(shown), torch.full((len(shown),), IGNORE), self._named(shown))

    def beginner(self, algorithm: str, widths: Sequence[int]) -> nn.Module:
        """The network of an agent that has learned nothing yet."""
        learner = self._learner(algorithm=algorithm, widths=widths)
        return learning.network(learner, self.world)

    def reinforced(
        self, watch: Callable[[Mapping[str, Any]], None] | None, steps: int, **how: Any
    ) -> nn.Module:
        """The network of an agent that is trained by reward; see `learning.agent` and `learn`."""
        seeds = self.seeds("teacher", LOOKED, EACH // 2)

        def judge(model: nn.Module) -> float:
            return float(returns(play(self.world, self.actor(model), seeds)).mean())

        return learning.learn(self._learner(**how), self.world, steps, judge, watch)

    def actor(self, model: nn.Module) -> Answer:
        """How a model acts on what is seen: the action of its answer."""

        def answer(shown: Numbers) -> Numbers:
            return self.actions(self.said(model, torch.from_numpy(shown)))

        return answer

    @torch.no_grad()
    def said(self, model: nn.Module, shown: Tensor) -> Tensor:
        """What a model answers to states (rows, ...): (rows, answers), in evaluation mode."""
        with evaluating(model):
            parts = [
                self.forward(model, Batch(each, torch.empty(0), ("",) * len(each))).logits.cpu()
                for each in shown.split(AT_ONCE)
            ]
        return torch.cat(parts)

    def actions(self, answers: Tensor) -> Numbers:
        """What is done after some answers (rows, classes): a choice's number, or numbers."""
        if self.world.choices:
            return answers.argmax(1).numpy()
        return answers[:, : self.world.low.size].numpy()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what a model sees."""
        return self.world.shape

    @property
    def choices(self) -> int:
        return self.world.choices

    @property
    def facts(self) -> dict[str, Any]:
        return self.world.facts() | {"classes": list(self.classes)}

    @property
    def limit(self) -> str:
        shown = " x ".join(str(n) for n in self.shape)
        return f"It acts in {self.world.name}, and sees {shown} numbers at a time."

    @property
    def offers(self) -> Mapping[str, Any]:
        """The states to learn from, by which a network finds the scale of what it sees."""
        shown = self._states[list(self.rows["train"])]
        return {"observations": shown, "highest": self.world.highest}

    @property
    def summary(self) -> str:
        shown = " x ".join(str(n) for n in self.shape)
        return (
            f"Environment: {self.world.name}, which shows {shown} numbers; "
            f"{self._size} states to learn from, {len(self.classes)} answers."
        )

    def load(
        self,
        name: str | nn.Module,
        *,
        new_head: bool = False,
        partly: bool = False,  # noqa: ARG002  (nobody knows some of the actions alone)
        threads: int = 1,
    ) -> nn.Module:
        """A network that acts: an agent of stable-baselines3, a file, or the user's own module.

        name: a .zip or .safetensors with an agent, an .onnx file, or a module that is called as
            `model(observation=...)`
        Raises ModelError where it can't be had, or is for other observations or actions.
        """
        if new_head:
            raise ModelError("An agent is taken as it is; there is no `finetune` of agents.")
        if isinstance(name, nn.Module):
            return self._fitting(_adopted(name), type(name).__name__)
        network = opened(name, threads, ("observation",), "control")
        if network is None and Path(name).suffix not in self.formats:
            raise ModelError(
                f"{name} is no agent: give the .zip or .safetensors of one, an .onnx file, or "
                "my_agent.py:build."
            )
        return self._fitting(network or self._read(Path(name).expanduser()), name)

    def batches(
        self, part: str = "train", *, batch_size: int = 32, seed: int | None = None
    ) -> Batches:
        """An endless, seeded, resumable stream over the states to learn from."""
        rows = self._part(part)
        if not rows:
            raise DataError(
                f"There is no {part} state: nobody knows what is right in it but a teacher."
            )
        drawn = self._seed if seed is None else seed
        return Batches(self._batch, rows, [1] * len(self._keys), batch_size=batch_size, seed=drawn)

    def example(self, model: nn.Module) -> Mapping[str, Tensor]:
        """What a model sees in one state."""
        return self.encode(model, self._states[list(self.rows["train"][:1])])

    def encode(self, model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
        """Observations (rows, ...) float, in the environment's own units, where the model is."""
        return {"observation": inputs.to(device_of(model)).float()}

    def preprocessing(self, model: nn.Module) -> dict[str, Any]:  # noqa: ARG002
        """What decides what a model sees: its scaling it carries inside."""
        return self.facts

    def save(self, model: nn.Module, folder: Path) -> None:  # noqa: ARG002
        """Write beside a model what it is shown, and what its answers mean."""
        folder.mkdir(parents=True, exist_ok=True)
        paper = json.dumps(self.facts, indent=2) + "\n"
        (folder / "observation.json").write_text(paper, encoding="utf-8")

    def told(self, part: str, row: int) -> dict[str, Any]:
        """A state: its key, and its numbers where they are few enough to be read."""
        at = self._part(part)[row]
        numbers = [] if self.world.picture else self._states[at].tolist()
        return {"key": self._keys[at], "state": numbers}

    def pieces(self, inputs: Tensor) -> int:
        """The numbers of a state."""
        return inputs[0].numel()

    def seen(self, inputs: Tensor, kept: Tensor) -> Tensor:
        """A state once for each row of `kept`, its other numbers as they are on the mean."""
        means = self._states[list(self.rows["train"])].float().mean(0).to(inputs.dtype)
        return torch.where(kept.view(len(kept), *inputs.shape[1:]), inputs, means)

    def counts(self) -> dict[str, int]:
        """How often the teacher takes each action where it played."""
        if not self.world.choices:
            return {}
        taken = self._acts[list(self.rows["train"])].tolist()
        return {name: taken.count(n) for n, name in enumerate(self.classes) if n in taken}

    def losses(self, model: nn.Module) -> Iterator[Tensor]:
        """What a model loses on each batch of 32 states by the teacher's own actions."""
        for batch in self._shuffled("train"):
            rows = [self._at[key] for key in batch.keys]
            answered = self.forward(model, batch).logits
            yield self._apart(answered, self._acts[rows].to(answered.device))

    def digest(self) -> str:
        """A hash of the environment, and of the states, where a teacher has gathered them."""
        state = hashlib.sha256(json.dumps(self.world.facts(), sort_keys=True).encode())
        if self._gathered:
            for part in ("train", "validation"):
                state.update(" ".join(self._keys[row] for row in self.rows[part]).encode())
        return state.hexdigest()[:16]

    def _apart(self, answers: Tensor, acts: Tensor) -> Tensor:
        """How far answers are from actions."""
        if self.world.choices:
            return nn.functional.cross_entropy(answers, acts)
        return (answers[:, : acts.shape[1]] - acts).square().mean()

    def _learner(self, **how: Any) -> Any:
        return learning.agent(self.world, self.seeds("teacher", 1)[0], **how)

    def _read(self, path: Path) -> nn.Module:
        return agents.read(path, self.world)

    def nothing(self, rows: int) -> Numbers:
        """The first choice, or zeros, for each of so many rows."""
        wide = () if self.world.choices else (self.world.low.size,)
        return np.zeros((rows, *wide), int)

    def _idle(self, shown: Numbers) -> Numbers:
        return self.nothing(len(shown))

    def _played(self, act: Answer, part: str, states: int, explore: float) -> list[Episode]:
        seeds = self.seeds(part, min(states, EACH - 1) if self._gathering else 2)
        return play(self.world, act, seeds, explore=explore, keep=True, enough=states)

    def _some(self, episodes: Sequence[Episode], number: int) -> Numbers:
        """So many states of some episodes, drawn evenly from all of them."""
        every = np.stack(list(steps(episodes)))
        if len(every) <= number:
            return every
        drawn = np.random.default_rng(self._seed).choice(len(every), number, replace=False)
        return every[np.sort(drawn)]

    def _keep(self, parts: Mapping[str, Numbers]) -> None:
        """Take in the states of all parts."""
        shown = np.concatenate(list(parts.values()))
        self._states = torch.from_numpy(shown)
        ends = np.cumsum([0, *map(len, parts.values())])
        self.rows = {part: tuple(range(ends[n], ends[n + 1])) for n, part in enumerate(parts)} | {
            "labelled": ()
        }
        self._keys = self._named(shown)
        self._at = {key: row for row, key in enumerate(self._keys)}
        self._labels = self._shown = torch.full((len(shown),), IGNORE)
        wide = () if self.world.choices else (self.world.low.size,)
        whole = torch.long if self.world.choices else torch.float32
        self._acts = torch.zeros((len(shown), *wide), dtype=whole)

    def _answered(self, teacher: nn.Module) -> Tensor:
        """What the teacher does in every state."""
        act = self.actor(teacher)
        return torch.from_numpy(act(self._states.numpy()))

    def _named(self, shown: Numbers) -> tuple[str, ...]:
        return tuple(hashlib.sha256(each.tobytes()).hexdigest()[:32] for each in shown)

    def _fitting(self, model: nn.Module, name: str) -> nn.Module:
        """The model, if it answers for what this environment shows.

        Raises ModelError otherwise.
        """
        with told(f"{name} can't act in {self.world.name}, which shows {list(self.shape)}"):
            self.actor(model)(self._states[:2].numpy())
        return model

    def _batch(self, rows: Sequence[int]) -> Batch:
        keys = tuple(self._keys[row] for row in rows)
        return Batch(self._states[list(rows)], self._shown[list(rows)], keys)


def _adopted(model: Any) -> nn.Module:
    """The user's own network. Raises ModelError where it can't be called by name."""
    kind = type(model).__name__
    try:
        inspect.signature(model.forward).bind(observation=None)
    except TypeError as error:
        raise ModelError(f"{kind} can't be called as `model(observation=...)`: {error}.") from error
    return model  # type: ignore[no-any-return]


def beside(task: States, model: nn.Module) -> Answer:
    """How the agent acts that a model is a part of; a student, which is of none, does nothing.

    An agent is carried beside its part, not in it: it is neither taught nor counted.
    """
    acting: nn.Module | None = vars(model).get("acts")

    def answer(shown: Numbers) -> Numbers:
        seen = torch.from_numpy(shown)
        if acting is None:
            task.said(model, seen)  # whether it can be asked
            return task.nothing(len(shown))
        with torch.no_grad():
            return task.actions(acting(observation=seen.float()))

    return answer
