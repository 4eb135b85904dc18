"""What a run stands on before any model does: the paper read, the data at hand, a book to keep."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from attar import arms, distill
from attar.distill.loop import Watch
from attar.engine import local
from attar.errors import RecipeError
from attar.recipe import Recipe, Resolved, check, read
from attar.resolve import ask
from attar.screen import Screen, Silent
from attar.tasks.task import Task
from attar.tracking import Tracking
from attar.types import Batch, Knowledge


@dataclass(frozen=True)
class Heard:
    """What a teacher said that is no network here.

    recall: of a batch of its text what it said of each token; None where of the text alone
    facts: what decides that, as JSON
    """

    recall: Callable[[Batch], Knowledge | None]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Setting:
    """What stands before any model does: the recipe, its names looked up, its data read.

    trust: whether names with a colon may run the user's own code
    track: who else is told how trainings go
    heard: what an endpoint said, once it was asked; the task then has its text to learn from
    """

    recipe: Recipe
    plan: Resolved
    task: Task
    engine: local
    out: Path
    cache: Path
    screen: Screen
    command: str
    trust: bool = False
    track: Tracking = field(default_factory=Tracking)
    heard: Heard | None = None

    def with_states(self, teacher: nn.Module | None) -> Setting:
        """The same with what the teacher meets, where a task's data come of who acts in it."""
        return self if teacher is None else replace(self, task=self.task.met(teacher))

    @property
    def afar(self) -> bool:
        """Whether the teacher is no network here, but is asked and its answers are kept."""
        return self.plan.afar

    def taught_by(self, scheme: str) -> bool:
        """Whether the recipe's scheme is the one of this name."""
        return self.plan.teach is not None and self.plan.teach.name == scheme

    def trained(
        self,
        name: str,
        folder: Path,
        build: Callable[[], nn.Module],
        train: Callable[[local, Watch], nn.Module],
    ) -> tuple[nn.Module, arms.Curve]:
        """A trained model and its curve, as `arms.trained` gives them; whoever tracks is told."""
        title = f"Training {'the ' * (name == 'teacher')}{name}"
        told = self.track.watch(name, folder.name)
        model, curve, _ = arms.trained(title, folder, self.engine, self.screen, build, train, told)
        return model, curve


@dataclass
class Book:
    """What a run writes down on its way."""

    seconds: dict[str, float] = field(default_factory=dict)
    history: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    teacher: Path | None = None
    best: dict[str, Callable[[], nn.Module]] = field(default_factory=dict)
    """By training, gives the model that scored best on the validation split, where there is one."""
    shown: dict[str, Any] = field(default_factory=dict)
    """How inputs are prepared for the models whose files lie in the run's own folder."""

    def tell(self, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write down what a step found out, as a table for the report."""
        again = 1 + sum(told.partition(" (")[0] == title for told in self.tables)
        name = title if again == 1 else f"{title} ({again})"
        self.tables[name] = [dict(row) for row in rows]

    def note(self, name: str, curve: arms.Curve) -> None:
        """Write down how a training went."""
        self.seconds[name] = curve.seconds
        self.history[name] = curve.points


@dataclass(frozen=True)
class Teaching:
    """How the student is taught: terms, whose layers they read, and where lessons come from."""

    terms: tuple[distill.Term, ...]
    student_layers: tuple[str, ...]
    teacher_layers: tuple[str, ...]


@dataclass(frozen=True)
class Cast:
    """A recipe's models before anything is trained, and how the student is to be taught.

    trained: whether the teacher already knows the task
    """

    teacher: nn.Module | None
    trained: bool
    student: nn.Module
    taught: Teaching


def begin(
    recipe: Recipe | str | Path,
    out: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    trust: bool = False,
    screen: Screen | None = None,
    command: str = "",
) -> Setting:
    """Every name of a recipe looked up and its data read; no model touched yet."""
    name = "recipe" if isinstance(recipe, Recipe) else Path(recipe).stem
    paper = recipe if isinstance(recipe, Recipe) else read(recipe, overrides)
    plan = check(paper, trust=trust)
    folder = Path(out) if out is not None else Path("runs") / (paper.name or name)
    screen = screen or Silent()
    task = ask(plan.task.function, {"seed": paper.seed, "trust": trust})
    _check_lengths(plan, task)
    if any(piece.name == "audit" for piece in plan.measure):
        task.audited()
    for note in task.notes:
        screen.say(note)
    screen.say(task.summary)
    engine = ask(plan.engine.function, {})
    return Setting(paper, plan, task, engine, folder, cache_folder(), screen, command, trust)


def _check_lengths(plan: Resolved, task: Task) -> None:
    """Raises RecipeError where answers are to be timed at more tokens than the task ever gives."""
    limit = task.facts.get("max_length")
    for piece in plan.measure:
        longest = max(piece.function.keywords.get("tokens") or [0])
        if longest and limit is None:
            raise RecipeError(
                f"latency is to be timed at {longest} tokens, but {task.noun} have none; leave its "
                "option tokens out."
            )
        if limit is not None and longest > limit:
            raise RecipeError(
                f"latency is to be timed at {longest} tokens, but max_length is {limit}, "
                "and models need to take no more: raise it, or ask for fewer."
            )


def cache_folder() -> Path:
    """Where teachers and knowledge are kept between runs: $ATTAR_CACHE, or ~/.cache/attar."""
    return Path(os.environ.get("ATTAR_CACHE", "~/.cache/attar")).expanduser()
