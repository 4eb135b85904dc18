"""The tables of the HTML page: every model, step by step, other metrics, what steps told of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from attar.report import figures, plot
from attar.report import steps as stepped
from attar.report.rows import Role, Row, finite
from attar.report.table import columns, numeric, told

if TYPE_CHECKING:
    from attar.report.paper import Report

_HEAD = '<th scope="col">model</th>'


def every(report: Report) -> str:
    """Every model with all its figures."""
    figured = columns(report.rows, report.score_name)
    noted = any(row.note for row in report.rows)
    heads = "".join(f'<th scope="col" class="figure">{escape(c.title)}</th>' for c in figured)
    body = "".join(
        f"<tr>{_named(row, row.runtime)}"
        + "".join(_cell(column.value(row), column.text(row)) for column in figured)
        + f'<td class="note">{escape(row.note)}</td>' * noted
        + "</tr>"
        for row in report.rows
    )
    heads += '<th scope="col">note</th>' * noted
    return _grid(_HEAD + heads, body, "Every model", "sortable")


def _named(row: Row, under: str = "") -> str:
    """The head of a row: the model's sign and name, and what stands under it."""
    small = f"<small>{escape(under)}</small>" if under else ""
    return f'<th scope="row">{swatch(row.role)}{escape(row.name)}{small}</th>'


def _grid(heads: str, body: str, label: str, kind: str) -> str:
    """A table that scrolls by itself where it is too wide."""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">'
        f'<table class="{kind}"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(value: float | None, text: str = "") -> str:
    """One figure, with its exact value for sorting."""
    if value is None:
        return f'<td class="figure missing" data-value="">{figures.MISSING}</td>'
    shown = text or figures.metric(value)
    return f'<td class="figure" data-value="{value!r}">{escape(shown)}</td>'


def swatch(role: Role) -> str:
    """The sign of a part, as the plots have it."""
    return f'<svg viewBox="-8 -8 16 16" aria-hidden="true">{plot.mark(role, 0, 0)}</svg>'


def metrics(rows: Sequence[Row]) -> str:
    """Whatever else was scored, one column a metric."""
    scored = [(row, dict(_flat(row.metrics))) for row in rows]
    names = list(dict.fromkeys(name for _, found in scored for name in found))
    if not names:
        return ""
    head = "".join(f'<th scope="col" class="figure">{escape(name)}</th>' for name in names)
    body = "".join(
        f"<tr>{_named(row)}{''.join(_cell(found.get(name)) for name in names)}</tr>"
        for row, found in scored
        if found
    )
    return _grid(_HEAD + head, body, "Other metrics", "sortable")


def _flat(metrics: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name} ")
        elif isinstance(value, int | float) and finite(value) is not None:
            yield f"{before}{name}", value


def steps(report: Report) -> str:
    """Each row that a step made: its figures, and under each what the step did to it."""
    found = [(step, step.changes(report.score_name)) for step in stepped.steps(report.rows)]
    titles = dict.fromkeys(name for _, changes in found for name in changes)
    if not titles:
        return ""
    heads = "".join(f'<th scope="col" class="figure">{escape(title)}</th>' for title in titles)
    body = "".join(
        f"<tr>{_named(step.row, f'from {step.before.name}')}"
        f"{''.join(_changed(changes.get(title)) for title in titles)}</tr>"
        for step, changes in found
    )
    return _grid(_HEAD + heads, body, "Step by step", "changes") + (
        '<p class="quiet">Under each figure stands what the step did to it. Times are compared '
        "only where one program runs both; where that is another model than the one before the "
        "step, it is named.</p>"
    )


def _changed(change: stepped.Change | None) -> str:
    if change is None:
        return f'<td class="figure missing">{figures.MISSING}</td>'
    did = f'<small class="{change.effect}">{escape(change.told)}</small>' * bool(change.told)
    return f'<td class="figure">{escape(change.now)}{did}</td>'


def tables(report: Report) -> str:
    """What steps told of on their way, a table each."""
    return "".join(
        f"<h3>{escape(title)}</h3>{_records(title, rows)}" for title, rows in report.tables.items()
    )


def _records(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Alike or unlike records as a table, figures to the right."""
    names, *lines = told(rows)
    kinds = [' class="figure"' * (place in numeric(rows)) for place in range(len(names))]
    heads = "".join(
        f'<th scope="col"{kind}>{escape(name)}</th>'
        for kind, name in zip(kinds, names, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(f"<td{k}>{escape(cell)}</td>" for k, cell in zip(kinds, line, strict=True))
        + "</tr>"
        for line in lines
    )
    return _grid(heads, body, title, "records")
