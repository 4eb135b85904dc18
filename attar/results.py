"""From trained models to the report: every row measured by the same functions, at the end, once."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from attar import measure
from attar.baselines import bag_of_words
from attar.measure.comparing import answer, emulated, row
from attar.measure.memory import finished
from attar.report import Report, Row, verdict

if TYPE_CHECKING:
    from attar.setting import Book, Setting

PARTS = ("train", "labelled", "validation", "test")
LIBRARIES = ("attar", "torch", "transformers", "onnx", "onnxruntime", "scikit-learn", "numpy")

ANSWER = """
import torch
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained({path!r}).eval()
feed = {{name: torch.ones(shape, dtype=torch.long) for name, shape in {shapes!r}.items()}}
with torch.inference_mode():
    for _ in range(3):
        model(**feed)
"""
"""How a process that only answers loads a `transformers` folder."""


@dataclass(frozen=True)
class Entry:
    """A model to be measured.

    path: its file or folder, where it has one; source: the network a file was made from, whose
    parameters and MACs it has
    """

    name: str
    model: nn.Module
    path: Path | None = None
    source: nn.Module | None = None


def assemble(here: Setting, book: Book, entries: Sequence[Entry], started: float) -> Report:
    """Score every model on the test split, time them in turns, and write the report."""
    start = time.monotonic()
    wanted = {piece.name: piece.function for piece in here.plan.measure}
    floor = bag_of_words(here.task, "test") if "score" in wanted else None
    scores = _scores(here, entries) if "score" in wanted else {}
    threads = batch = 1
    for entry in entries:
        entry.model.cpu()  # where the files answer: one processor for all
    times: dict[str, dict[str, float]] = {}
    if "latency" in wanted:
        options = wanted["latency"].keywords
        threads, batch = options.get("threads", 1), options.get("batch", 1)
        here.screen.say(f"Timing answers, in turns ({threads} thread, batch {batch}) ...")
        times = wanted["latency"](_answers(here, entries, floor, batch, threads))
    bytes_of = _memory(here, entries) if "memory" in wanted else {}
    rows = [
        row(
            entry.name,
            entry.source or entry.model,
            scores.get(entry.name, {}),
            here.task.example,
            tuple(wanted),
            entry.path if entry.source is not None else None,
            runtime=measure.runtime(entry.model),
            latency_ms=times.get(entry.name),
            memory_bytes=bytes_of.get(entry.name),
        )
        for entry in entries
    ]
    if floor is not None:
        rows.append(_floor_row(floor, times, wanted))
        book.seconds["bag_of_words"] = floor["seconds"]
    book.seconds["measuring"] = time.monotonic() - start
    book.seconds["total"] = time.monotonic() - started
    tokens = next(iter(here.task.example(entries[0].model).values())).shape[1]
    return _written(here, book, tuple(rows), threads, batch, tokens)


def _scores(here: Setting, entries: Sequence[Entry]) -> dict[str, dict[str, float]]:
    found = {}
    with here.screen.bar("Scoring on the test split") as advance:
        for number, entry in enumerate(entries):
            advance(number, len(entries), entry.name)
            found[entry.name] = measure.score(entry.model, partial(here.task.score, part="test"))
            if entry.path is not None and entry.source is not None:
                # Which of several files to ship is a choice, and no choice may see the test split.
                held = measure.score(entry.model, partial(here.task.score, part="validation"))
                found[entry.name]["validation"] = held["score"]
        advance(len(entries), len(entries), "")
    return found


def _answers(
    here: Setting,
    entries: Sequence[Entry],
    floor: dict[str, Any] | None,
    batch: int,
    threads: int,
) -> dict[str, Any]:
    """What makes one answer of each row that can be timed fairly."""

    def several(model: nn.Module) -> dict[str, torch.Tensor]:
        return {name: x.repeat(batch, 1) for name, x in here.task.example(model).items()}

    def timed(entry: Entry) -> nn.Module:
        is_file = threads > 1 and entry.path is not None and entry.path.suffix == ".onnx"
        return here.task.load(str(entry.path), threads=threads) if is_file else entry.model

    found: dict[str, Any] = {
        entry.name: answer(timed(entry), several) for entry in entries if not emulated(entry.model)
    }
    if floor is not None and batch == 1:
        found["bag_of_words"] = floor["answer"]
    return found


def _memory(here: Setting, entries: Sequence[Entry]) -> dict[str, int | None]:
    """Peak memory of fresh processes, one for each row that is on disk."""
    started = {}
    for entry in entries:
        if entry.path is None or not entry.path.exists():
            continue
        if entry.path.is_file():
            started[entry.name] = measure.memory(entry.model, here.task.example, entry.path)
        elif (entry.path / "config.json").is_file():
            started[entry.name] = measure.memory(entry.model, here.task.example, entry.path, ANSWER)
    return {name: finished(process) for name, process in started.items()}


def _floor_row(
    floor: dict[str, Any], times: dict[str, dict[str, float]], wanted: Container[str]
) -> Row:
    return Row(
        name="bag_of_words",
        runtime=floor["runtime"],
        score=floor["score"],
        metrics=floor["metrics"],
        parameters=floor["parameters"] if "parameters" in wanted else None,
        size_bytes=floor["size_bytes"] if "size" in wanted else None,
        latency_ms=times.get("bag_of_words"),
        note="its time includes cutting into words",
    )


def _written(
    here: Setting, book: Book, rows: tuple[Row, ...], threads: int, batch: int, tokens: int
) -> Report:
    said = {key: value for key, value in here.recipe.to_dict().items() if value is not None}
    name = here.recipe.name or here.out.name
    plan = {
        "data": {part: here.task.size(part) for part in PARTS},
        "classes": len(here.task.classes),
        "notes": list(here.task.notes),
        **book.plan,
        **({"tables": book.tables} if book.tables else {}),
    }
    report = Report(
        recipe={**said, "name": name, "text": here.recipe.to_yaml(), "command": here.command},
        environment=dict(_environment(here, threads, batch, tokens)),
        rows=rows,
        cost={"seconds": {key: round(value, 2) for key, value in book.seconds.items()}},
        plan=plan,
        verdict=verdict(rows, threads=threads),
        history=book.history,
    )
    report.write(here.out)
    return report


def _environment(here: Setting, threads: int, batch: int, tokens: int) -> Iterator[tuple[str, Any]]:
    yield "cpu", processor()
    yield "cores", os.cpu_count()
    yield "training_threads", torch.get_num_threads()
    yield "threads", threads
    yield "batch", batch
    yield "tokens", tokens
    yield "precision", here.engine.precision
    yield "device", str(here.engine.device)
    yield "system", f"{platform.system()} {platform.machine()}"
    yield "python", sys.version.split()[0]
    for library in LIBRARIES:
        try:
            yield library, version(library)
        except PackageNotFoundError:
            continue


def processor() -> str:
    """The processor's name, as well as this system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(x.partition(":")[2].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
