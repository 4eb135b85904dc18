"""The report as Markdown, for a repository or a pull request."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from attar.report import audits, figures, pairs, steps
from attar.report.contract import plain
from attar.report.table import escape, markdown, numeric, ruled, told

if TYPE_CHECKING:
    from attar.report.paper import Report


def document(report: Report) -> str:
    """The whole report; what it does not hold leaves no heading behind."""
    return "\n\n".join("\n".join(block) for block in _blocks(report)) + "\n"


def _blocks(report: Report) -> Iterator[list[str]]:
    yield [f"# {escape(str(report.recipe.get('name', 'Distillation report')))}"]
    if report.headline:
        yield [f"**{escape(report.headline)}**"]
    if gates := [f"- {escape(line)}" for line in audits.gates(report.audits)]:
        yield gates
    if report.verdict:
        yield [f"- {escape(sentence)}" for sentence in report.verdict]
    yield markdown(report.rows, report.score_name)
    yield [f"A {figures.MISSING} is a figure that was not measured."]
    if report.pairs:
        lines = [list(pairs.HEAD), *(pair.cells() for pair in report.pairs)]
        yield ["## Differences", "", *ruled(lines, {2, 3, 4})]
    yield from _steps(report)
    if report.audits:
        yield ["## Audit", "", *ruled([list(audits.HEAD), *audits.cells(report.audits)])]
    if report.environment:
        yield ["## Measured on", "", *_items(report.environment)]
    for title, rows in report.tables.items():
        yield [f"## {escape(title)}", "", *ruled(told(rows), numeric(rows))]
    if plan := report.decided:
        yield ["## Plan", "", *fenced(json.dumps(plain(plan), indent=2), "json")]
    if seconds := report.cost.get("seconds"):
        taken = {name: figures.duration(time) for name, time in seconds.items()}
        yield ["## Cost", "", *_items(taken)]
    yield ["## Recipe", "", *fenced(recipe_text(report.recipe), "yaml")]
    if command := report.recipe.get("command"):
        yield ["## Repeat it", "", *fenced(str(command), "sh")]


def _steps(report: Report) -> Iterator[list[str]]:
    found = [(step, step.changes(report.score_name)) for step in steps.steps(report.rows)]
    titles = list(dict.fromkeys(name for _, changes in found for name in changes))
    if titles:
        lines = [
            [step.row.name, step.before.name, *(_changed(changes.get(title)) for title in titles)]
            for step, changes in found
        ]
        yield ["## Step by step", "", *ruled([["model", "made from", *titles], *lines])]


def _changed(change: steps.Change | None) -> str:
    if change is None:
        return figures.MISSING
    return change.now + f" ({change.told})" * bool(change.told)


def recipe_text(recipe: Mapping[str, Any]) -> str:
    """The recipe as it was written where that is known, else as JSON, which YAML can read."""
    if "text" in recipe:
        return str(recipe["text"])
    return json.dumps(plain(recipe), indent=2, ensure_ascii=False)


def _items(facts: Mapping[str, Any]) -> list[str]:
    return [
        f"- {escape(str(name))}: {escape(figures.inline(value))}" for name, value in facts.items()
    ]


def fenced(text: str, language: str) -> list[str]:
    """A code block whose fence is longer than any within the text."""
    fence = "```"
    while fence in text:
        fence += "`"
    return [f"{fence}{language}", text.rstrip("\n"), fence]
