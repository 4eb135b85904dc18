"""From trained models to the report: every row measured by the same functions, at the end, once."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import nn

from attar import auditing, measure
from attar.auditing import Subject
from attar.cards import write_cards
from attar.export import executorch_file, onnx_file, openvino_file
from attar.floor import BAG, floor, row_of
from attar.lineage import facts, teachers
from attar.measure.comparing import answer, emulated, row
from attar.measure.cost import WARM_UP
from attar.measure.energy import POWERCAP, zones
from attar.measure.machine import flags, processor
from attar.measure.memory import finished
from attar.measure.questions import by_name, length, question
from attar.report import Report, Row, verdict

if TYPE_CHECKING:
    from attar.setting import Book, Setting

TEST, PREDICTIONS = "test", "predictions.safetensors"
PARTS = ("train", "labelled", "validation", TEST)
LIBRARIES = (
    *("attar", "torch", "transformers", "onnx", "onnxruntime", "openvino"),
    *("executorch", "scikit-learn", "numpy"),
)

Classes = np.ndarray[Any, Any]
"""The class of each example, by its number."""

NOTED = {
    ".onnx": onnx_file.noted,
    ".xml": openvino_file.noted,
    ".pte": executorch_file.noted,
}
"""How facts are added to a file, by its ending."""

SIGNED = ("score", "examples", "temperature")
"""What an exported file is told of itself, where it is known."""

CALIBRATION = "calibration.json"
"""Where a folder says what its logits are to be divided by; a file says it in its metadata."""

ANSWER = """
import json, torch, transformers
shapes, types = {shapes!r}, {types!r}
with open({path!r} + "/config.json", encoding="utf-8") as paper:
    kind = getattr(transformers, json.load(paper)["architectures"][0])
model = kind.from_pretrained({path!r}).eval()
feed = {{name: torch.ones(shape, dtype=vars(torch)[types[name]]) for name, shape in shapes.items()}}
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
    after: the name of the entry that a step made it from; empty where none did
    trainings: the names of those of the student that it went through
    """

    name: str
    model: nn.Module
    path: Path | None = None
    source: nn.Module | None = None
    after: str = ""
    trainings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Timing:
    """How answers are timed: on so many threads, so many rows, at these lengths or as they are."""

    threads: int = 1
    batch: int = 1
    tokens: Sequence[int | None] = (None,)

    @classmethod
    def wanted(cls, function: partial[Any]) -> Timing:
        """As the options of a measure say."""
        said = function.keywords
        lengths = said.get("tokens") or (None,)
        return cls(said.get("threads", 1), said.get("batch", 1), lengths)


def assemble(here: Setting, book: Book, entries: Sequence[Entry], started: float) -> Report:
    """Score every model on the test split, time them in turns, and write the report."""
    start = time.monotonic()
    wanted = {piece.name: piece.function for piece in here.plan.measure}
    timed = not wanted.keys().isdisjoint(("latency", "energy"))
    words = floor(here, TEST, timed=timed) if "score" in wanted else None
    subjects = {each.name: _subject(here, each) for each in entries}
    scores, predicted = _scores(here, book, entries, subjects) if "score" in wanted else ({}, {})
    for title, lines in here.task.shown({each.name: each.model for each in entries}).items():
        book.tell(title, lines)
    calibrated = _calibrated(here, entries, subjects) if "audit" in wanted else {}
    _sign(here, entries, scores, calibrated)
    for entry in entries:
        entry.model.cpu()  # where the files answer: one processor for all
    timing = Timing.wanted(wanted["latency"]) if "latency" in wanted else Timing()
    times: dict[str, dict[str, float]] = {}
    if "latency" in wanted:
        here.screen.say(
            f"Timing answers, in turns ({timing.threads} thread, batch {timing.batch}) ..."
        )
        times = by_name(wanted["latency"](answers(here, entries, words, timing)))
    joules = energies(here, entries, words, wanted["energy"]) if "energy" in wanted else {}
    bytes_of = memories(here, entries) if "memory" in wanted else {}
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
            energy_j=joules.get(entry.name),
            after=entry.after,
            interval=_interval(scores.get(entry.name, {})),
        )
        for entry in entries
    ]
    if words is not None:
        rows.append(row_of(words, times, joules, wanted))
        book.seconds[BAG] = words["seconds"]
        predicted[BAG] = words["predicted"]
    if predicted:
        _keep(here, predicted)
    book.plan["budget"] = {each.name: _budget(book, each) for each in entries if each.trainings}
    audits = auditing.audits(here, subjects, rows) if "audit" in wanted else {}
    book.seconds["measuring"] = time.monotonic() - start
    book.seconds["total"] = time.monotonic() - started
    tokens = length(here.task.example(entries[0].model))
    films = here.task.films({entry.name: entry.model for entry in entries[:2]})
    report = _written(here, book, tuple(rows), timing, tokens, audits, films)
    write_cards(here, report, {entry.name: entry.path for entry in entries if entry.path})
    return report


def _subject(here: Setting, entry: Entry) -> Subject:
    if entry.name == "teacher":
        return auditing.teacher(here, entry.name, entry.model)
    return auditing.subject(entry.name, entry.model, entry.source)


def _calibrated(
    here: Setting, entries: Sequence[Entry], subjects: Mapping[str, Subject]
) -> dict[str, dict[str, float]]:
    """The `temperature` that each exported model's logits are to be divided by, where one is best.

    It is fitted on the validation split.
    """
    exported = (entry.name for entry in entries if entry.source is not None)
    found = {name: subjects[name].temperature(here) for name in exported}
    return {name: {"temperature": fitted} for name, fitted in found.items() if fitted is not None}


def _sign(
    here: Setting,
    entries: Sequence[Entry],
    scores: Mapping[str, Mapping[str, float]],
    calibrated: Mapping[str, dict[str, float]],
) -> None:
    """Write into each exported file what it is made from, and how good that is.

    Before its bytes are counted: what is measured is what is shipped.
    """
    made = {"recipe": here.recipe.name or here.out.name, **facts(teachers(here.plan, here.trust))}
    made |= {name: known for name, known in _versions() if name == "attar"}
    for entry in entries:
        fitted = calibrated.get(entry.name, {})
        if entry.source is not None and entry.path is not None and entry.path.suffix in NOTED:
            said = {**scores.get(entry.name, {}), **fitted}
            note = NOTED[entry.path.suffix]
            note(entry.path, made | {k: said[k] for k in SIGNED if k in said})
        elif fitted and entry.path is not None:
            (entry.path / CALIBRATION).write_text(json.dumps(fitted) + "\n", "utf-8")


def _budget(book: Book, entry: Entry) -> dict[str, Any]:
    """Which trainings went into a student, the teacher's aside: their steps and seconds."""
    points = [book.history[name] for name in entry.trainings]
    return {
        "steps": sum(int(each[-1]["step"]) for each in points if each),
        "seconds": round(sum(book.seconds[name] for name in entry.trainings), 2),
        "trainings": list(entry.trainings),
    }


def _keep(here: Setting, predicted: Mapping[str, Classes]) -> None:
    """Write each row's answers to the test split beside the report, for paired comparisons."""
    told = {"classes": json.dumps(list(here.task.classes)), "part": TEST}
    told["test_hash"] = here.task.hash_of(TEST)
    truth = here.task.truth(TEST)
    answers = {**({} if truth is None else {"truth": truth}), **predicted}
    here.out.mkdir(parents=True, exist_ok=True)
    unfinished = here.out / f".{PREDICTIONS}.{os.getpid()}"
    form = np.float64 if truth is None else np.int32
    kept = {name: np.ascontiguousarray(each, dtype=form) for name, each in answers.items()}
    save_file(kept, unfinished, told)
    unfinished.replace(here.out / PREDICTIONS)


def _scores(
    here: Setting, book: Book, entries: Sequence[Entry], subjects: Mapping[str, Subject]
) -> tuple[dict[str, dict[str, float]], dict[str, Classes]]:
    """What each model scores on the test split, and the classes it answered."""
    found: dict[str, dict[str, float]] = {}
    predicted: dict[str, Classes] = {}

    with here.screen.bar("Scoring on the test split") as advance:
        for number, entry in enumerate(entries):
            advance(number, len(entries), entry.name)
            who = subjects[entry.name]
            predicted[entry.name], found[entry.name] = _judged(here, who, entry.model, TEST)
            if entry.name in book.best:
                scored = here.task.score(book.best[entry.name](), TEST)["score"]
                found[entry.name]["best_on_validation"] = scored
            if entry.path is not None and entry.source is not None:
                # Which of several files to ship is a choice, and no choice may see the test split.
                _, held = _judged(here, who, entry.model, "validation")
                found[entry.name]["validation"] = held["score"]
        advance(len(entries), len(entries), "")
    return found, predicted


def _judged(
    here: Setting, who: Subject, model: nn.Module, part: str
) -> tuple[Classes, dict[str, float]]:
    """What a model makes of each example of a part, or what its episodes return; how good it is."""
    if here.task.truth(part) is None:
        return here.task.judged(model, part)
    predicted = who.predicted(here, part)
    return predicted, here.task.audited().judge(predicted, part)


def _interval(scored: Mapping[str, float]) -> tuple[float, float] | None:
    """Where the mean score likely lies, where the task itself tells."""
    return (scored["low"], scored["high"]) if {"low", "high"} <= set(scored) else None


def answers(
    here: Setting, entries: Sequence[Entry], words: dict[str, Any] | None, timing: Timing
) -> dict[tuple[str, int | None], Callable[[], object]]:
    """What makes one answer of each row that can be timed fairly, at each length."""

    def timed(entry: Entry) -> nn.Module:
        is_file = timing.threads > 1 and entry.path is not None and entry.path.suffix in NOTED
        return here.task.load(str(entry.path), threads=timing.threads) if is_file else entry.model

    models = {entry.name: timed(entry) for entry in entries if not emulated(entry.model)}
    found: dict[tuple[str, int | None], Callable[[], object]] = {
        (name, tokens): answer(model, question(here.task.example, rows=timing.batch, tokens=tokens))
        for name, model in models.items()
        for tokens in timing.tokens
    }
    if words is not None and timing.batch == 1 and timing.tokens == (None,):
        found[BAG, None] = words["answer"]
    return found


def energies(
    here: Setting, entries: Sequence[Entry], words: dict[str, Any] | None, energy: partial[Any]
) -> dict[str, float]:
    """Energy of one answer; nothing at all where this machine does not tell."""
    if not zones(POWERCAP):
        here.screen.say("Energy is left out: this machine has no counter that may be read (RAPL).")
        return {}
    asked = answers(here, entries, words, Timing.wanted(energy))
    return {name: joules for (name, _), joules in energy(asked, POWERCAP).items()}


def memories(here: Setting, entries: Sequence[Entry]) -> dict[str, int | None]:
    """Peak memory of fresh processes, one for each row that is on disk."""
    started = {}
    for entry in entries:
        if entry.path is None or not entry.path.exists():
            continue
        if entry.path.suffix in NOTED:
            started[entry.name] = measure.memory(entry.model, here.task.example, entry.path)
        elif (entry.path / "config.json").is_file():
            started[entry.name] = measure.memory(entry.model, here.task.example, entry.path, ANSWER)
    return {name: finished(process) for name, process in started.items()}


def _written(
    here: Setting,
    book: Book,
    rows: tuple[Row, ...],
    timing: Timing,
    tokens: int | None,
    audits: Mapping[str, Mapping[str, Any]],
    films: tuple[Mapping[str, Any], ...],
) -> Report:
    said = {key: value for key, value in here.recipe.to_dict().items() if value is not None}
    name = here.recipe.name or here.out.name
    plan = {
        "data": {
            **{part: here.task.size(part) for part in PARTS},
            "hash": here.task.digest(),
            "test_hash": here.task.hash_of(TEST),
        },
        "classes": len(here.task.classes),
        "notes": list(here.task.notes),
        **book.plan,
        **({"tables": book.tables} if book.tables else {}),
    }
    report = Report(
        recipe={**said, "name": name, "text": here.recipe.to_yaml(), "command": here.command},
        environment=dict(_environment(here, timing, tokens)),
        rows=rows,
        cost={"seconds": {key: round(value, 2) for key, value in book.seconds.items()}},
        plan=plan,
        verdict=verdict(rows, here.task.score_name, threads=timing.threads),
        history=book.history,
        score_name=here.task.score_name,
        audits=audits,
        films=films,
    )
    report.write(here.out)
    return report


def _environment(here: Setting, timing: Timing, tokens: int | None) -> Iterator[tuple[str, Any]]:
    yield "cpu", processor()
    if has := flags():
        yield "cpu_flags", has
    yield "cores", os.cpu_count()
    yield "training_threads", torch.get_num_threads()
    yield "threads", timing.threads
    yield "batch", timing.batch
    if tokens is not None:
        yield "tokens", tokens
    if timing.tokens != (None,):
        yield "latency_tokens", list(timing.tokens)
    yield "warm_up", WARM_UP
    yield "precision", here.engine.precision
    yield "device", str(here.engine.device)
    yield "system", f"{platform.system()} {platform.machine()}"
    yield "python", sys.version.split()[0]
    yield from _versions()


def _versions() -> Iterator[tuple[str, str]]:
    for library in LIBRARIES:
        try:
            yield library, version(library)
        except PackageNotFoundError:
            continue
