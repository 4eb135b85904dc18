"""A report and the rooms as tables: drawn on a terminal, plain aligned text elsewhere."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from attar.cli.terminal import clean, watched
from attar.report import Report
from attar.report.table import columns

if TYPE_CHECKING:
    from rich.table import Table

    from attar.resolve import Description

LEAST_FIRST = (
    *("non-zero", "MACs", "runtime", "p95 ms", "memory", "energy", "zipped"),
    *("seeds", "parameters", "p50 ms"),
)
"""The columns a narrow terminal goes without, the first of them first."""

STYLES = {"teacher": "", "student": "bold", "export": "bold", "baseline": "dim"}

MARKS = {True: ("✓", "green"), False: ("✗", "bold red"), None: ("·", "dim")}
PLAIN_MARKS = {True: "ok  ", False: "FAIL", None: "info"}

Columns = Mapping[str, list[str]]


def show_report(report: Report) -> None:
    """The rows, the headline, then everything in words."""
    if not watched(sys.stdout):
        print(clean(str(report)))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    written = _written(report)
    kept = _fitting(written, console.width)
    console.print(_drawn(kept, report))
    if left := [title for title in written if title not in kept]:
        console.print(Text(f"Too narrow for: {', '.join(left)}.", style="dim"))
    for row in report.rows:
        if row.note:
            console.print(Text(clean(f"{row.name}: {row.note}"), style="dim"))
    console.print()
    for line in report.weighed():
        console.print(Text(clean(line)), no_wrap=True, overflow="ellipsis")
    width = min(console.width, 96)
    if report.headline:
        told = textwrap.fill(clean(report.headline), width, break_on_hyphens=False)
        console.print(Text(told, style="bold"), end="\n\n")
    for sentence in report.sentences():
        told = textwrap.fill(
            clean(sentence),
            width,
            initial_indent="• ",
            subsequent_indent="  ",
            break_on_hyphens=False,
        )
        console.print(Text(told))


def _written(report: Report) -> dict[str, list[str]]:
    """Each column's title and cells."""
    figured = columns(report.rows, report.score_name)
    return {
        "model": [clean(row.name) for row in report.rows],
        **{column.title: [column.text(row) for row in report.rows] for column in figured},
        "runtime": [clean(row.runtime) for row in report.rows],
    }


def _fitting(written: Columns, width: int) -> Columns:
    """The columns that fit side by side, without the least important where all of them don't."""
    kept = dict(written)
    for title in LEAST_FIRST:
        if sum(max(map(len, [title, *cells])) + 3 for title, cells in kept.items()) <= width:
            break
        kept = {name: cells for name, cells in kept.items() if not name.startswith(title)}
    return kept


def _drawn(kept: Columns, report: Report) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    for title in kept:
        named = title in ("model", "runtime")
        table.add_column(Text(clean(title)), justify="left" if named else "right", overflow="fold")
    for row, *cells in zip(report.rows, *kept.values(), strict=True):
        table.add_row(*map(Text, cells), style=STYLES[row.role])
    return table


def show_artifacts(folder: Path, report: Report) -> None:
    """Where everything is: the files that the rows were measured from, and the page."""
    print(f"\nReport: {clean(str(folder / 'report.html'))}")
    names = [row.name.removesuffix("-folder") for row in report.rows]
    if there := [name for name in dict.fromkeys(names) if (folder / name).exists()]:
        print(f"Beside it: {clean(', '.join(there))}")


def show_finding(name: str, ok: bool | None, says: str) -> None:
    """One thing that `doctor` looked at, as soon as it is known."""
    if not watched(sys.stdout):
        print(clean(f"{PLAIN_MARKS[ok]} {name}: {says}"), flush=True)
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    mark, style = MARKS[ok]
    told = textwrap.fill(clean(f"{name}: {says}"), console.width - 2, subsequent_indent="  ")
    console.print(Text.assemble((f"{mark} ", style), told))


def show_rooms(rooms: Mapping[str, list[Description]]) -> None:
    """Everything that can stand under some keys of a recipe."""
    if not watched(sys.stdout):
        for room, known in rooms.items():
            print("\n".join(_listed(room, known)), end="\n\n")
        return
    from rich.console import Console

    console = Console(highlight=False)
    for room, known in rooms.items():
        console.print(_catalogue(room, known))


def _listed(room: str, known: list[Description]) -> Iterator[str]:
    wide = max(len(name) for entry in known for name, _ in _told(entry))
    yield f"{room}:"
    for entry in known:
        for name, words in _told(entry):
            yield f"  {name:<{wide}}  {words}"


def _catalogue(room: str, known: list[Description]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, expand=True)
    table.add_column(room, no_wrap=True)
    table.add_column("what it is; its options, with type and default", ratio=1)
    for entry in known:
        (name, says), *options = _told(entry)
        table.add_row(Text(name, "bold"), Text(says))
        for option, words in options:
            table.add_row(Text(option, "cyan"), Text(words, "dim"))
    table.add_row("", "")
    return table


def _told(entry: Description) -> Iterator[tuple[str, str]]:
    """A name and what it is; then each option, its type, its default, and what it is."""
    yield entry.name, entry.says
    for option in entry.options:
        default = "required" if option.required else repr(option.default)
        yield f"  {option.name}", f"{option.type}, {default}{': ' * bool(option.says)}{option.says}"
