"""The tables of the HTML page: every model, step by step, other metrics, what steps told of."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from attar.report import figures
from attar.report import steps as stepped
from attar.report.charts import swatch
from attar.report.pairs import HEAD, Pair
from attar.report.rows import Row, finite
from attar.report.table import Column, columns, numeric, told

if TYPE_CHECKING:
    from attar.report.paper import Report

_HEAD = '<th scope="col">model</th>'


def every(report: Report) -> str:
    """Every model with all its figures."""
    figured = columns(report.rows, report.score_name)
    heads = "".join(f'<th scope="col" class="figure">{escape(c.title)}</th>' for c in figured)
    body = "".join(
        f"<tr>{_named(row, row.runtime, row.note)}"
        + "".join(_measured(column, row) for column in figured)
        + "</tr>"
        for row in report.rows
    )
    return _grid(_HEAD + heads, body, "Every model", "sortable")


def _named(row: Row, *under: str) -> str:
    """The head of a row: the model's sign and name, and what stands under it."""
    small = "".join(f"<small>{escape(each)}</small>" for each in under if each)
    return f'<th scope="row">{swatch(row.role)}{escape(row.name)}{small}</th>'


def _grid(heads: str, body: str, label: str, kind: str) -> str:
    table = f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody>"
    return scrolled(f'<table class="{kind}">{table}</table>', label)


def scrolled(table: str, label: str) -> str:
    """A table that scrolls by itself where it is too wide, also by the keyboard."""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Table: {escape(label)}">'
        f"{table}</div>"
    )


def _measured(column: Column, row: Row) -> str:
    """A figure, and under it how far it may be off."""
    value, beside = column.value(row), column.beside(row)
    if value is None or not beside:
        return _cell(value, column.text(row))
    both = f"{escape(column.show(value))}<small>{escape(beside)}</small>"
    return f'<td class="figure" data-value="{value!r}">{both}</td>'


def _cell(value: float | None, text: str = "") -> str:
    """One figure, with its exact value for sorting."""
    if value is None:
        return f'<td class="figure missing" data-value="">{figures.MISSING}</td>'
    shown = text or figures.metric(value)
    return f'<td class="figure" data-value="{value!r}">{escape(shown)}</td>'


def against(head: Sequence[str], body: Sequence[Sequence[str]], title: str) -> str:
    """A table of texts about pairs of models; the second of each stands under the first."""
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in (head[0], *head[2:]))
    cells = "".join(
        f"<tr>{_paired(one, other)}{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for one, other, *cells in body
    )
    return _grid(heads, cells, title, "paired")


def _paired(one: str, other: str) -> str:
    return f'<th scope="row">{escape(one)}<small>against {escape(other)}</small></th>'


def differences(pairs: Sequence[Pair]) -> str:
    """Every pair of rows: how far apart, how sure, over which seeds, and why it is not resolved."""
    _, _, *titles, why = HEAD
    kinds = [' class="figure"'] * 3 + [""] * 2
    heads = "".join(
        f'<th scope="col"{kind}>{title}</th>' for kind, title in zip(kinds, titles, strict=True)
    )
    body = "".join(
        f"<tr>{_paired(row, against)}"
        f'<td class="figure" data-value="{pair.mean!r}">{escape(amount)}</td>'
        f'<td class="figure" data-value="{"" if pair.low is None else pair.low!r}">{interval}</td>'
        f'<td class="figure" data-value="{"" if pair.p is None else pair.p!r}">{chance}</td>'
        f"<td>{escape(seeds)}</td><td>{'✓ yes' if pair.resolved else '? no'}</td>"
        f"<td>{escape(reason)}</td></tr>"
        for pair in pairs
        for row, against, amount, interval, chance, seeds, _, reason in [pair.cells()]
    )
    if not any(pair.why for pair in pairs):
        body = body.replace("<td></td></tr>", "</tr>")
    else:
        heads += f'<th scope="col">{why}</th>'
    return _grid(_HEAD + heads, body, "Differences", "sortable paired")


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
        f"<h3>{escape(title)}</h3>{records(title, rows)}" for title, rows in report.tables.items()
    )


def records(title: str, rows: Sequence[Mapping[str, Any]], kind: str = "records") -> str:
    """Alike or unlike records as a table, figures to the right."""
    return lines(told(rows), title, numeric(rows), kind)


def lines(
    grid: Sequence[Sequence[str]], title: str, right: Container[int] = (), kind: str = "records"
) -> str:
    """A table of texts whose first line is its head; the places of its figures are `right`."""
    head, *body = grid
    kinds = [' class="figure"' * (place in right) for place in range(len(head))]
    heads = "".join(
        f'<th scope="col"{kind}>{escape(name)}</th>' for kind, name in zip(kinds, head, strict=True)
    )
    cells = "".join(
        "<tr>"
        + "".join(f"<td{k}>{escape(cell)}</td>" for k, cell in zip(kinds, line, strict=True))
        + "</tr>"
        for line in body
    )
    return _grid(heads, cells, title, kind)
