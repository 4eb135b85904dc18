"""The report as Markdown, for a repository or a pull request."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from attar.report import figures
from attar.report.contract import plain
from attar.report.table import escape, markdown

if TYPE_CHECKING:
    from attar.report.paper import Report


def document(report: Report) -> str:
    """The whole report; what it does not hold leaves no heading behind."""
    return "\n\n".join("\n".join(block) for block in _blocks(report)) + "\n"


def _blocks(report: Report) -> Iterator[list[str]]:
    yield [f"# {escape(str(report.recipe.get('name', 'Distillation report')))}"]
    if report.verdict:
        yield [f"- {escape(sentence)}" for sentence in report.verdict]
    yield markdown(report.rows, report.score_name)
    yield [f"A {figures.MISSING} is a figure that was not measured."]
    if report.environment:
        yield ["## Measured on", "", *_items(report.environment)]
    if report.plan:
        yield ["## Plan", "", *_fenced(json.dumps(plain(report.plan), indent=2), "json")]
    if seconds := report.cost.get("seconds"):
        told = {name: figures.duration(time) for name, time in seconds.items()}
        yield ["## Cost", "", *_items(told)]
    yield ["## Recipe", "", *_fenced(recipe_text(report.recipe), "yaml")]
    if command := report.recipe.get("command"):
        yield ["## Repeat it", "", *_fenced(str(command), "sh")]


def recipe_text(recipe: Mapping[str, Any]) -> str:
    """The recipe as it was written where that is known, else as JSON, which YAML can read."""
    if "text" in recipe:
        return str(recipe["text"])
    return json.dumps(plain(recipe), indent=2, ensure_ascii=False)


def _items(facts: Mapping[str, Any]) -> list[str]:
    return [f"- {escape(str(name))}: {escape(inline(value))}" for name, value in facts.items()]


def inline(value: Any) -> str:
    """Nested facts on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {inline(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(inline, value))
    return figures.anything(value)


def _fenced(text: str, language: str) -> list[str]:
    """A code block whose fence is longer than any within the text."""
    fence = "```"
    while fence in text:
        fence += "`"
    return [f"{fence}{language}", text.rstrip("\n"), fence]
