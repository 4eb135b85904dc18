"""What each loss and scheme is worth on Banking77: one budget, several seeds, one table.

    python benchmarks/methods.py [--steps 300] [--seeds 0 1 2] [--out runs/methods] [--only WORD]

Every arm is the quickstart with one thing changed: the same teacher, the same 770 labels and pool,
the same student from the same initial weights, the same number of steps. Schemes in which labels
decide have recipes with all labels, and controls of their own there. Runs that are done are
found again, so it can be stopped at any time. The table is written to OUT/methods.md; differences
are paired by seed and given with a 95 % t-interval. Nothing is tuned on the test split: options
are those of the papers, or the library's defaults.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from attar.casting import build_student
from attar.errors import AttarError
from attar.pipeline import cast, find_teacher, follow_steps, train_baselines
from attar.recipe import check, read
from attar.resolve import names, options
from attar.results import Entry
from attar.schooling import fill_store, teaching
from attar.screen import Silent
from attar.setting import Book, begin

ROOT = Path(__file__).parent.parent
SCHEMES = ROOT / "recipes" / "schemes"
QUICK = read(ROOT / "recipes" / "quickstart.yaml").to_dict()

Scores = dict[str, float]
"""Accuracy on the test split, by what was trained."""

T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Two-sided 95 % quantiles of Student's t, by degrees of freedom."""

KL: list[Any] = ["response.kl"]
STEPS = 300
"""Of every arm, but of a scheme whose recipe needs more; its control then takes as many."""


ALONE = ("feature", "attention", "relation")
"""Rooms whose losses say nothing of the classes: they stand beside `response.kl`, weight 1."""

NOT_HERE = {
    "response.regression": "for tasks whose answer is a number",
    "response.binary": "for tasks with several labels an example",
    "relation.entity": "for tagging",
    "relation.arcs": "for parsing",
    "feature.simkd": "for a student that answers by its teacher's head: it is the scheme simkd",
    "feature.fsp": "of what flows from layer to layer, and this student has one layer",
}
"""Losses that this data can't show."""


def arms() -> Iterator[tuple[str, dict[str, Any], str]]:
    """Every arm: its name, what it changes in the quickstart, and the arm it is compared with."""
    for name in names("attar.losses"):
        if name not in NOT_HERE:
            beside = KL if name.partition(".")[0] in ALONE else []
            yield name, {"losses": [*beside, name]}, CONTROL
    for temperature in (2, 4):
        choice = {"response.kl": {"temperature": temperature}}
        yield f"response.kl, temperature {temperature}", {"losses": [choice]}, CONTROL
    for name, function in names("attar.losses").items():
        if "standardize" in options(function):
            hot = {"temperature": 2} if "temperature" in options(function) else {}
            yield (
                f"{name}, standardized",
                {"losses": [{name: {"standardize": True} | hot}]},
                CONTROL,
            )
    fewer = QUICK["steps"][0]["distill"] | {"steps": STEPS, "batch_size": 8}
    yield f"{CONTROL}, batches of 8", {"losses": KL, "steps": [{"distill": fewer}]}, CONTROL
    told = {CONTROL}
    for file in sorted(SCHEMES.glob("*.yaml")):
        said = read(file).to_dict()
        change = {key: said[key] for key in ("task", "teacher", "student", "teach", "losses")}
        change |= {"steps": said["steps"][:1], "baselines": said["baselines"]}
        control = CONTROL
        if said["task"] != QUICK["task"]:
            control += ", all labels"
        if said["student"] != QUICK["student"]:
            control += f", student of {file.stem}"
        if (steps := said["steps"][0]["distill"]["steps"]) != STEPS:
            control += f", {steps} steps"
        if control not in told:
            told.add(control)
            yield control, change | {"teach": "offline", "losses": KL}, control
        yield f"scheme: {file.stem}", change, control


def every_layer(folder: Path) -> tuple[str, ...]:
    """All layers that any arm reads, so that one asking of the teacher serves every arm."""
    found: dict[str, None] = {}
    here = begin(read(QUICK), folder, screen=Silent())
    models = cast(here, Book())
    for name, change, _ in arms():
        if not name.startswith("scheme") and "student" not in change:
            plan = check(read(QUICK | change))
            with suppress(AttarError):  # it will be told when the arm's turn has come
                taught = teaching(replace(here, plan=plan), models.teacher, models.student, Book())
                found |= dict.fromkeys(taught.teacher_layers)
    return tuple(sorted(found))


def scores(
    given: argparse.Namespace, name: str, change: dict[str, Any], control: str, seed: int
) -> Scores:
    """One arm with one seed, trained and scored on the test split, or found."""
    folder = given.out / "".join(each if each.isalnum() else "-" for each in name) / f"seed-{seed}"
    if (folder / "scores.json").is_file():
        return json.loads((folder / "scores.json").read_text())  # type: ignore[no-any-return]
    said = QUICK | {"seed": seed} | change
    if "steps" not in change:  # a scheme's recipe knows how many it needs
        said["steps"] = [{"distill": said["steps"][0]["distill"] | {"steps": given.steps}}]
    if "ensemble" in said["teach"]:  # the control, which comes first, has left all teachers there
        kept = sorted((given.out / "response-kl").glob("seed-*/teacher"))
        others = [str(path) for path in kept if path.parent.name != folder.name]
        said["teach"]["ensemble"]["others"] = others
    if name != control:  # what nobody teaches is trained once for each student
        said["baselines"] = []
    here = begin(read(said), folder, screen=Silent())
    book = Book()
    teacher = find_teacher(here, book)
    student = build_student(here, teacher)
    taught = teaching(here, teacher, student, book)
    usual = said["teacher"] == QUICK["teacher"] and said["student"] == QUICK["student"]
    if usual and taught.teacher_layers:
        taught = replace(taught, teacher_layers=given.layers)
    fill_store(here, teacher, taught, book)
    entries, begun = follow_steps(here, teacher, student, taught, book)
    assert begun is not None
    entries += train_baselines(here, teacher, taught, book, *begun)
    if name == CONTROL and teacher is not None:
        entries.append(Entry("teacher", teacher))
    found = {each.name: here.task.score(each.model, part="test")["score"] for each in entries}
    (folder / "scores.json").write_text(json.dumps(found))
    return found


CONTROL = "response.kl"
"""Plain distillation: what everything is compared with, and where the baselines are trained."""


def row(name: str, found: dict[int, float], control: dict[int, float]) -> str:
    """A line of the table: mean, and the paired difference to plain distillation."""
    mean = 100 * statistics.fmean(found.values())
    shared = sorted(found.keys() & control.keys())
    differences = [100 * (found[seed] - control[seed]) for seed in shared]
    each = " ".join(f"{100 * found[seed]:.1f}" for seed in sorted(found))
    if found is control or len(differences) < 2:
        return f"| {name} | {mean:.1f} | {each} | |"
    wide = T95[len(differences) - 1] * statistics.stdev(differences) / math.sqrt(len(differences))
    middle = statistics.fmean(differences)
    word = "" if abs(middle) <= wide else " **better**" if middle > 0 else " **worse**"
    return f"| {name} | {mean:.1f} | {each} | {middle:+.1f} ± {wide:.1f}{word} |"


def main() -> None:
    """Run every arm with every seed, and write the table after each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--only", default="", help="arms whose name contains this word")
    given = parser.parse_args()
    given.out = given.out.absolute()
    os.chdir(ROOT)  # where the recipes' paths begin
    given.layers = every_layer(given.out)

    found: dict[str, dict[int, float]] = {}
    wrong: dict[str, str] = {}
    against: dict[str, str] = {}
    for name, change, control in sorted(arms(), key=lambda arm: arm[0] != CONTROL):
        if given.only not in name and not name.startswith(CONTROL):
            continue
        for seed in given.seeds:
            try:
                scored = scores(given, name, change, control, seed)
            except Exception as error:  # one arm that fails must not cost a night
                wrong[name] = f"{type(error).__name__}: {error}"
                break
            for each, score in scored.items():
                title = name if each == "student" else f"{each}{name.removeprefix(CONTROL)}"
                found.setdefault(title, {})[seed] = score
                against[title] = control
        given.out.mkdir(parents=True, exist_ok=True)
        text = table(found, wrong, against)
        (given.out / "methods.md").write_text(text, encoding="utf-8")
        print(wrong.get(name) or row(name, found[name], found[against[name]]), flush=True)


def table(
    found: dict[str, dict[int, float]], wrong: dict[str, str], against: dict[str, str]
) -> str:
    """The whole table, best mean first; what failed stands below it."""
    order = sorted(found, key=lambda name: -statistics.fmean(found[name].values()))
    lines = ["| arm | mean | each seed | against plain KD |", "| :--- | ---: | :--- | :--- |"]
    lines += [row(name, found[name], found[against[name]]) for name in order]
    lines += [f"| {name} | failed | {why} | |" for name, why in wrong.items()]
    lines += ["", *(f"- {name} is not here: it is {why}." for name, why in NOT_HERE.items())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
