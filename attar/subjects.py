"""`audit`: two of whatever answers (a model, a file, a run, a recipe, a store), weighed by name."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attar import casting, pipeline
from attar.auditing import Subject, audited, gated, sentences, subject
from attar.errors import DataError, ModelError
from attar.measure.audit.answers import Array
from attar.measure.comparing import row
from attar.measure.machine import processor
from attar.report import Report, Row
from attar.report.rows import Role
from attar.report.sentences import best
from attar.setting import Setting, begin
from attar.store import MANIFEST, Store, stores
from attar.teach.stored import opened
from attar.types import IGNORE

COUNTED = ("parameters", "nonzero", "size")
"""What is counted of the two; what takes time to measure is a run's to tell."""

ROWS = 1024
"""Rows of a store that are read at once."""


def audit(here: Setting, before: str, after: str, part: str = "test") -> Report:
    """A report of two models side by side, `after` audited against `before` and by the gates.

    before, after: a folder or file of a model, a run's folder (the file that it ships), a recipe
        (its trained student), a store (its teacher's answers), or a name that a teacher can have
    part: of the data; where one is a store that has nothing of it, what the store has
    Raises a child of AttarError for whatever is not to be audited.
    """
    started = time.monotonic()
    here.task.audited()
    pair = named(here, before), named(here, after)
    if pair[0].name == pair[1].name:
        pair[1].name += " (2)"
    part = _part(here, pair, part)
    here.out.mkdir(parents=True, exist_ok=True)
    for who in pair:
        _ask(here, who, part)
    found = audited(here, *pair, part)
    if here.plan.gates:
        found["gates"] = gated(here, found)
    rows = np.intersect1d(pair[0].covered(here, part), pair[1].covered(here, part))
    roles: tuple[Role, Role] = ("teacher", "student" if pair[1].network else "export")
    told = tuple(_row(here, who, role, part, rows) for who, role in zip(pair, roles, strict=True))
    report = _report(here, told, found, part, time.monotonic() - started)
    report.write(here.out)
    return report


def named(here: Setting, name: str) -> Subject:
    """Whatever a name on the command line stands for, ready to be asked."""
    path = Path(name).expanduser()
    if path.suffix in (".yaml", ".yml"):
        there = begin(name, trust=here.trust, screen=here.screen)
        casting.check_other(here, there, name)
        return subject(path.stem, here.task.load(pipeline.student_of(there)))
    if (path / "report.json").is_file():
        path = _shipped(path)
    elif path.is_dir() and not (path / "config.json").is_file() and _is_store(path):
        return _stored(here, path)
    model = casting.load(here, str(path) if path.exists() else name)
    if "untrained_head" in vars(model):
        raise ModelError(f"{name} has no classification head of its own, so it has no answers.")
    return subject(path.resolve().name if path.exists() else name, model)


def _shipped(run: Path) -> Path:
    """The file, or folder, of a run that its report says is to be shipped."""
    chosen = best(Report.read(run).rows)
    name = "" if chosen is None else chosen.name.removesuffix("-folder")
    for path in (run / name, run / Path(name).stem / name):
        if name and path.exists():
            return path
    raise ModelError(
        f"{run} exported nothing that could be audited; name the recipe instead, or give it a step "
        "such as export.onnx."
    )


def _is_store(folder: Path) -> bool:
    return any((each / MANIFEST).exists() for each in stores(folder))


def _stored(here: Setting, folder: Path) -> Subject:
    """What a store keeps of its teacher, by parts of the data. Raises StoreError for other data."""
    known = opened(str(folder), here.task.facts)
    found = Subject(folder.name, None)
    for part in ("test", "validation", "train"):
        keys = here.task.keys(part)
        absent = set(known.missing(keys))
        missing = {keys[n] for n in absent}
        rows = [n for n, key in enumerate(keys) if key not in missing]
        if rows:
            found.rows[part] = np.array(rows)
            found.known[part] = _logits(known, [keys[n] for n in rows])
    if not found.known:
        raise DataError(
            f"{known.folder} knows none of this data's {here.task.noun}: it was made of other "
            "data, or of changing views."
        )
    return found


def _logits(known: Store, keys: Sequence[str]) -> torch.Tensor:
    parts = [known.get(keys[n : n + ROWS]).logits for n in range(0, len(keys), ROWS)]
    return torch.cat(parts)


def _part(here: Setting, pair: Sequence[Subject], part: str) -> str:
    """The part of the data that both can be asked about; a store has only what it has."""
    here.task.size(part)  # a part that there is
    for each in (part, "train", "validation", "test"):
        if all(len(who.covered(here, each)) for who in pair):
            if any(who.model is None for who in pair):
                rows = min(len(who.covered(here, each)) for who in pair)
                here.screen.say(f"Audited on the {rows} {each} {here.task.noun} that are stored.")
            return each
    raise DataError(f"{pair[0].name} and {pair[1].name} have no {here.task.noun} in common.")


def _ask(here: Setting, who: Subject, part: str) -> None:
    """Every answer that the audit needs of a model, behind a bar."""
    if who.model is None:
        return
    total, done = sum(here.task.size(each) for each in {part, "validation"}), 0
    with here.screen.bar(f"Asking {who.name}") as advance:

        def progress(rows: int) -> None:
            nonlocal done
            done += rows
            advance(done, total, here.task.noun)

        for each in dict.fromkeys((part, "validation")):
            who.answers(here, each, progress)
    for each, answers in who.known.items():
        if bool(answers.isnan().any()):
            raise ModelError(
                f"{who.name} answers to some {each} {here.task.noun} with what is no number (NaN)."
            )


def _row(here: Setting, who: Subject, role: Role, part: str, rows: Array) -> Row:
    """One of the two as a row: its score on the examples that both answered, and its size."""
    task = here.task.audited()
    known = rows[task.labels(part)[rows] != IGNORE]
    place = np.searchsorted(who.covered(here, part), known)
    metrics = task.judge(who.predicted(here, part)[place], part, known) if len(known) else {}
    if who.model is None:
        metrics = dict(metrics)
        return Row(who.name, "stored answers", metrics.pop("score", None), metrics, part=role)
    return row(who.name, who.model, metrics, here.task.example, COUNTED, part=role)


def _report(
    here: Setting, rows: tuple[Row, ...], found: Mapping[str, Any], part: str, seconds: float
) -> Report:
    name = f"{rows[1].name} beside {rows[0].name}"
    return Report(
        recipe={"name": name, "text": here.recipe.to_yaml(), "command": here.command},
        environment={"cpu": processor(), "cores": os.cpu_count(), "torch": torch.__version__},
        rows=rows,
        cost={"seconds": {"total": round(seconds, 2)}},
        plan={"data": {part: found["examples"]}, "classes": len(here.task.classes)},
        verdict=tuple(sentences(rows[1].name, found)),
        audits={rows[1].name: found},
    )
