"""From the paper of a comparison to the runs it takes, every name looked up before one begins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from attar.compressing import called
from attar.errors import RecipeError, nearest
from attar.recipe import ROOMS, Comparison, Line, Recipe, Resolved, Run, check, read
from attar.resolve import names
from attar.setting import Setting

TIMED = ("latency", "memory", "energy")
"""What is measured at the end, when nothing runs beside it."""

PSEUDO = "pseudo_labels"

ENDINGS = {"onnx": ".onnx", "openvino": ".xml", "executorch": ".pte", "gguf": ".gguf"}
"""How the row of an exported file ends; what is exported as a folder ends in `-folder`."""


@dataclass(frozen=True, eq=False)
class Job:
    """One run with one seed, and the folder it is done in."""

    run: Run
    seed: int
    recipe: Recipe
    folder: Path

    @property
    def title(self) -> str:
        """`kd @ small, seed 0`."""
        return f"{self.run.title}, seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """What is compared, and the recipes of the runs, looked up.

    notes: what the reader has to know of it
    """

    lines: tuple[Line, ...]
    recipes: Mapping[Run, Recipe]
    resolved: Mapping[Run, Resolved]
    notes: tuple[str, ...] = ()

    def jobs(self, seeds: Sequence[int], out: Path) -> list[Job]:
        """Every run with every seed; the seeds of an arm in a row, so that all teachers begin."""
        return [
            Job(
                run,
                seed,
                self._recipe(run, seed),
                out / run.arm / (run.size or "") / f"seed-{seed}",
            )
            for run in self.recipes
            for seed in seeds
        ]

    def _recipe(self, run: Run, seed: int) -> Recipe:
        """A run's recipe as its process gets it: without timing, with the baselines asked for."""
        recipe = self.recipes[run]
        said = recipe.to_dict()
        known = {choice.name: choice.plain() for choice in recipe.baselines}
        asked = dict.fromkeys(line.row for line in self.lines if line.run == run)
        baselines = [known.get(row, row) for row in asked if row in names(ROOMS["baselines"])]
        figures = [each.plain() for each in recipe.measure if each.name not in (*TIMED, "score")]
        title = " ".join(filter(None, (run.arm, run.size, f"seed {seed}")))
        said |= {"name": title, "seed": seed, "baselines": baselines}
        return read(said | {"measure": ["score", *figures]})


def planned(paper: Comparison, *, trust: bool = False) -> Plan:
    """Every recipe of a comparison looked up. Raises RecipeError for the first thing not right."""
    recipes = {run: paper.recipe_of(run) for run in paper.runs()}
    resolved = {run: check(recipe, trust=trust) for run, recipe in recipes.items()}
    for line in paper.lines():
        rows = {*_rows(resolved[line.run]), *names(ROOMS["baselines"])}
        if line.row is not None and line.row not in rows:
            place = paper.place("arms", line.arm, "row")
            told = nearest(line.row, rows)
            raise RecipeError(
                f"{place}: the run of {line.run.title} has no row {line.row!r}; {told}"
            )
    return Plan(paper.lines(), recipes, resolved)


def _rows(plan: Resolved) -> Iterator[str]:
    """The rows that a run may have, its baselines aside."""
    if plan.teacher is not None and not plan.afar:
        yield "teacher"
    if plan.task.name.startswith("text."):
        yield "bag_of_words"
    name, trained = "student", False
    for step in plan.steps:
        word, _, kind = step.name.partition(".")
        if word == "export":
            yield f"{name}{ENDINGS.get(kind, '-folder')}"
            continue
        if step.name != "distill" or trained or name != "student":
            name = called(name, step.name)
        trained = trained or step.name == "distill"
        yield name


def controlled(plan: Plan, here: Setting) -> Plan:
    """With hard pseudo-labels as a control where there are unlabelled examples and none such is.

    here: the setting of the first run
    """
    if not here.task.has_pool or any(line.row == PSEUDO for line in plan.lines):
        return plan
    first = next(iter(plan.recipes)).arm
    if here.plan.teacher is None or any(line.arm == PSEUDO for line in plan.lines):
        told = (
            "Unlabelled examples are used and no arm learns from hard pseudo-labels: what is won "
            "may come from the examples rather than from how they are learned."
        )
        return replace(plan, notes=(*plan.notes, told))
    added = [Line(PSEUDO, run.size, run, PSEUDO) for run in plan.recipes if run.arm == first]
    told = (
        f"{PSEUDO} was added as a control, since unlabelled examples are used: the student of "
        f"{first} with the teacher's hard answers in place of the labels nobody gave."
    )
    return replace(plan, lines=(*plan.lines, *added), notes=(*plan.notes, told))
