"""The rows as a table: which columns it has, and how it reads in a terminal and in Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

from attar.report import figures
from attar.report.rows import Row
from attar.report.weighing import spread


def _nothing(row: Row) -> str:  # noqa: ARG001
    return ""


@dataclass(frozen=True)
class Column:
    """One measured figure: what it is called, where it stands in a row, how it is written.

    beside: what stands behind the figure, such as how far it may be off
    """

    title: str
    value: Callable[[Row], float | None]
    show: Callable[[float], str]
    beside: Callable[[Row], str] = _nothing

    def text(self, row: Row) -> str:
        """The row's figure as people read it."""
        value = self.value(row)
        if value is None:
            return figures.MISSING
        return f"{self.show(value)} {self.beside(row)}".rstrip()


def columns(rows: Sequence[Row], score_name: str = "score") -> tuple[Column, ...]:
    """The columns in which at least one row has a figure."""
    every = (
        Column(score_name, lambda row: row.score, figures.score, spread),
        Column("seeds", lambda row: len(row.by_seed) or None, figures.count),
        Column("parameters", lambda row: row.parameters, figures.count),
        Column("non-zero", lambda row: row.nonzero, figures.count),
        Column("MACs", lambda row: row.macs, figures.count),
        Column("size", lambda row: row.size_bytes, figures.size),
        Column("zipped", lambda row: row.zipped_bytes, figures.size),
        *_percentiles(sorted({tokens for row in rows for tokens in row.lengths})),
        Column("energy", lambda row: row.energy_j, figures.energy),
        Column("memory", lambda row: row.memory_bytes, figures.size),
    )
    return tuple(column for column in every if any(column.value(row) is not None for row in rows))


def _percentiles(lengths: Sequence[int]) -> Iterator[Column]:
    """Median and tail of one call; at each length where several were timed."""
    for at in [f"@{tokens}" for tokens in lengths] or [""]:
        for name in ("p50", "p95"):
            value = partial(Row.percentile, name=name + at)
            yield Column(f"{name} ms {at}".rstrip(), value, figures.milliseconds)


def cells(rows: Sequence[Row], score_name: str) -> list[list[str]]:
    """The table as text, its head first: the name, each figure, the runtime, notes if any."""
    figured = columns(rows, score_name)
    noted = any(row.note for row in rows)
    head = ["model", *(column.title for column in figured), "runtime", *["note"] * noted]
    body = [
        [row.name, *(column.text(row) for column in figured), row.runtime, *[row.note] * noted]
        for row in rows
    ]
    return [head, *body]


def terminal(rows: Sequence[Row], score_name: str) -> list[str]:
    """Aligned lines of plain text: names to the left, figures to the right."""
    grid = cells(rows, score_name)
    return aligned(grid, range(1, 1 + len(columns(rows, score_name))))


def aligned(lines: Sequence[Sequence[str]], right: Container[int] = ()) -> list[str]:
    """A table of plain text whose first line is its head; `right` are the places of figures."""
    grid = [[" ".join(cell.split()) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    drawn = [
        "  ".join(
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in grid
    ]
    return [drawn[0], "  ".join("-" * width for width in widths), *drawn[1:]]


def markdown(rows: Sequence[Row], score_name: str) -> list[str]:
    """The lines of a Markdown table."""
    return ruled(cells(rows, score_name), range(1, 1 + len(columns(rows, score_name))))


def ruled(lines: Sequence[Sequence[str]], right: Container[int] = ()) -> list[str]:
    """The lines of a Markdown table whose first line is its head.

    right: the places of the columns that stand to the right, as figures do
    """
    head, *body = [[escape(cell) for cell in line] for line in lines]
    rule = ["---:" if place in right else ":---" for place in range(len(head))]
    return [f"| {' | '.join(line)} |" for line in (head, rule, *body)]


def told(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Records as the lines of a table: its head has every key of any of them."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [names, *([figures.inline(row.get(name)) for name in names] for row in rows)]


def numeric(rows: Sequence[Mapping[str, Any]]) -> set[int]:
    """The places of those keys that only numbers stand behind."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {
        place
        for place, name in enumerate(names)
        if all(isinstance(row.get(name), Real | None) for row in rows)
        and not any(isinstance(row.get(name), bool) for row in rows)
    }


def escape(text: str) -> str:
    """Text that Markdown shows as it stands: no tag, link, code or cell border begins in it."""
    return re.sub(r"([\\`*\[\]<|])", r"\\\1", " ".join(text.split()))
