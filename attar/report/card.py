"""The model card: what a file is, from whom, how good, how fast, how to load and repeat it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attar.report import figures, sentences
from attar.report.markdown import fenced, recipe_text
from attar.report.rows import Row
from attar.report.table import escape, markdown
from attar.report.weighing import points, share, standard_error

if TYPE_CHECKING:
    from attar.report.paper import Report

MARK = "<!-- written by attar; a run writes it anew -->"
"""By this a card is known as one that may be overwritten."""

UNSTATED = "licence of the teacher not stated: find out before you ship"

LICENCES = re.compile(
    r"apache-2\.0|mit|bsd(-[23]-clause)?|isc|cc0-1\.0|cc-by(-(sa|nc|nd))*-[34]\.0|"
    r"[al]?gpl-[23]\.[01]|mpl-2\.0|openrail|unlicense|llama[23](\.\d)?|gemma"
)
"""Licences that model hubs know by these names; of others they are told `other`."""


@dataclass(frozen=True)
class Teacher:
    """Whose work a student is made of.

    licence: None where nobody states it; told_by: who does
    hub: whether the name is a model hub's
    """

    name: str
    licence: str | None = None
    told_by: str = ""
    hub: bool = False


@dataclass(frozen=True)
class About:
    """What a card says beyond the report's figures.

    kind: the task, as model hubs call it
    tells: what it answers with: `77 classes`, `2 actions`
    limit: of an input, in a sentence; empty where there is none
    data: the name of the data
    library: what loads it: `onnx`, `openvino`, `executorch`, `transformers` or
        `attar`
    load: lines of Python that load it and have it answer; tokenizer: where that lies
    teachers: whose work it is made of
    """

    kind: str
    tells: str
    limit: str
    data: str
    library: str
    load: str
    tokenizer: str
    teachers: tuple[Teacher, ...] = ()


def card(report: Report, names: Sequence[str], about: About) -> str:
    """The card of the models that lie in one folder, with the front matter that hubs read.

    names: their rows in the report
    """
    rows = [row for row in report.rows if row.name in names]
    return "\n\n".join("\n".join(block) for block in _blocks(report, rows, about)) + "\n"


def _blocks(report: Report, rows: Sequence[Row], about: About) -> Iterator[list[str]]:
    name = str(report.recipe.get("name", "model"))
    teacher = [row for row in report.rows if row.name == "teacher" and row not in rows]
    yield ["---", *_yaml(dict(_front(report, rows, about))), "---"]
    yield [MARK]
    yield [f"# {escape(name)}"]
    yield [_what(report, rows, about)]
    yield ["## Figures", "", *markdown([*teacher, *rows], report.score_name)]
    yield [" ".join(_measured(report, rows))]
    if about.load:
        yield ["## Use it", "", "In this folder:", "", *fenced(about.load, "python")]
    if about.tokenizer:
        yield [f"The tokenizer lies in {about.tokenizer}."]
    yield ["## Limits", "", *(f"- {sentence}" for sentence in _limits(report, rows, about))]
    yield ["## Licence", "", *(f"- {sentence}" for sentence in _licences(about))]
    yield ["## Repeat it", "", *_again(report)]


def _front(report: Report, rows: Sequence[Row], about: About) -> Iterator[tuple[str, Any]]:
    """What a hub reads: only what is known."""
    licences = {teacher.licence for teacher in about.teachers}
    if len(licences) == 1 and (stated := licences.pop()) is not None:
        known = stated.lower()
        yield "license", known if LICENCES.fullmatch(known) else "other"
        if not LICENCES.fullmatch(known):
            yield "license_name", stated
    if bases := [teacher.name for teacher in about.teachers if teacher.hub]:
        yield "base_model", bases
    yield "library_name", about.library
    yield "pipeline_tag", about.kind
    taught = ["knowledge-distillation"] if "distill" in _steps(report) else []
    yield "tags", ["attar", *taught, "model-compression"]
    if results := [_result(row, report.score_name, about) for row in rows if row.score is not None]:
        yield "model-index", results


def _result(row: Row, score_name: str, about: About) -> dict[str, Any]:
    scored: dict[str, Any] = {name: x for name, x in row.metrics.items() if isinstance(x, float)}
    scored.pop("validation", None)
    if row.score not in scored.values():
        scored[score_name] = row.score
    dataset = {"name": about.data, "type": about.data, "split": "test"}
    metrics = [{"type": name, "value": value} for name, value in scored.items()]
    result = {"task": {"type": about.kind}, "dataset": dataset, "metrics": metrics}
    return {"name": row.name, "results": [result]}


def _yaml(value: Any) -> Iterator[str]:
    """The lines of YAML that say it; what is no list and no mapping as JSON, which YAML reads."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            lines = list(_yaml(item))
            nested = isinstance(item, Mapping | list)
            yield f"{key}:" if nested else f"{key}: {lines[0]}"
            yield from (f"  {line}" for line in lines * nested)
    elif isinstance(value, list):
        for first, *rest in map(list, map(_yaml, value)):
            yield f"- {first}"
            yield from (f"  {line}" for line in rest)
    else:
        # YAML ends lines, and begins texts, at more signs than JSON.
        said = json.dumps(value, ensure_ascii=False)
        yield re.sub(r"[\x7f-\x9f\u2028\u2029\ufeff]", lambda x: f"\\u{ord(x[0]):04x}", said)


def _what(report: Report, rows: Sequence[Row], about: About) -> str:
    names = " and ".join(f"`{row.name}`" for row in rows)
    whose = " and ".join(escape(teacher.name) for teacher in about.teachers)
    told = f"{names}: {about.kind.replace('-', ' ')}, {about.tells}"
    by = f"attar {report.environment.get('attar', '')}".rstrip()
    if all(row.role == "teacher" for row in rows):
        return f"{told}, trained by {by} on the labels{f', from {whose}' * bool(whose)}."
    found = _steps(report)
    steps = f" (its steps: {', '.join(found)})" if found else ""
    origin = f", {'taught by' if 'distill' in found else 'from'} {whose}" if whose else ""
    return f"{told}, made by {by} after the recipe below{steps}{origin}."


def _steps(report: Report) -> list[str]:
    return list(_named(report.recipe.get("steps")))


def _named(steps: object) -> Iterator[str]:
    """The names of steps, those that are repeated once."""
    for each in steps if isinstance(steps, list | tuple) else ():
        if isinstance(each, Mapping) and "repeat" in each:
            yield from _named(each["repeat"]["steps"])
        else:
            yield str(next(iter(each), "")) if isinstance(each, Mapping) else str(each)


def _measured(report: Report, rows: Sequence[Row]) -> Iterator[str]:
    """On what the scores stand, and on which machine the times were taken."""
    sure = [(row.examples, standard_error(row)) for row in rows]
    for examples, error in [each for each in sure if each[0]][:1]:
        told = "" if error is None else points(error, share(rows))
        off = f", with a standard error of {told}" if told else ""
        yield f"The {report.score_name} is of {examples:,} test examples{off}."
    if any(row.latency_ms for row in rows):
        known = report.environment
        lengths = "latency_tokens" if "latency_tokens" in known else "tokens"
        machine = "; ".join(
            f"{key.replace('_', ' ')} {figures.inline(known[key])}"
            for key in ("cpu", "cpu_flags", "threads", "batch", lengths)
            if key in known
        )
        yield f"p50 and p95 are of one call after warm-up, in ms, measured with {escape(machine)}."


def _limits(report: Report, rows: Sequence[Row], about: About) -> Iterator[str]:
    yield "It answers whatever it is given, and has no answer for the unknown."
    if about.limit:
        yield about.limit
    yield (
        f"It was measured on the test split of {escape(about.data)}: measure it on your own data "
        "and on your own machine before you ship it."
    )
    if about.teachers:
        yield "What its teacher gets wrong, it may have learned."
    if len([row for row in report.rows if row.score is not None]) > 1:
        yield escape(sentences.caution(report.rows))
    yield from (f"{row.name}: {escape(row.note)}." for row in rows if row.note)


def _licences(about: About) -> Iterator[str]:
    for teacher in about.teachers:
        if teacher.licence is None:
            yield f"{escape(teacher.name)}: {UNSTATED}."
        else:
            yield f"{escape(teacher.name)}: {escape(teacher.licence)}, as {teacher.told_by} says."
    yield "The data it was trained on has a licence of its own."


def _again(report: Report) -> Iterator[str]:
    if command := report.recipe.get("command"):
        yield from (*fenced(str(command), "sh"), "")
    yield from fenced(recipe_text(report.recipe), "yaml")
