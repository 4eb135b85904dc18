"""`attar audit A B`, and how a command ends whose gates are not passed."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attar.cli.ending import GATE
from attar.cli.terminal import clean, complain, screen, watched

if TYPE_CHECKING:
    from attar.report import Report

SHOWN = 5
"""Classes, and broken examples, that a terminal is shown; the report has more."""

WIDE = 60
"""Letters of an example that a terminal is shown."""


def with_audit(app: typer.Typer) -> typer.Typer:
    """The command line with this command in it."""
    app.command()(audit)
    return app


def audit(
    context: typer.Context,
    before: Annotated[str, typer.Argument(metavar="A", help="Model, file, run, recipe or store.")],
    after: Annotated[str, typer.Argument(metavar="B", help="The same, to be weighed against A.")],
    *,
    recipe: Annotated[
        Path, typer.Option(metavar="RECIPE", help="Whose task and data both are asked about.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for the report.", show_default="runs/NAME-audit"),
    ] = None,
    gates: Annotated[
        list[str] | None,
        typer.Option("--gate", metavar="NAME=LIMIT", help="What B has to pass: ece=0.05."),
    ] = None,
    part: Annotated[str, typer.Option(metavar="PART", help="Part of the data.")] = "test",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Change the recipe."),
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Let names with a colon run code of your own.")
    ] = False,
) -> None:
    """Say what became of A's answers in B, and whether B passes the gates."""
    from dataclasses import replace

    from attar import subjects
    from attar.setting import begin

    overrides = [*(settings or []), *(f"gates.{gate}" for gate in gates or [])]
    here = begin(
        recipe, out, overrides=overrides, trust=trust, screen=screen(), command=context.obj
    )
    if out is None:
        here = replace(here, out=here.out.with_name(f"{here.out.name}-audit"))
    report = subjects.audit(here, before, after, part)
    show_audit(report)
    print(f"\nReport: {clean(str(here.out / 'report.html'))}")
    end_by_gates(report)


def end_by_gates(report: Report) -> None:
    """Name every gate that is not passed, and end with its exit code."""
    for gate in report.failed_gates:
        found, limit = gate["found"], gate["limit"]
        if found is None:
            says = "it could not be measured"
        else:
            side = "above" if found > limit else "below"
            says = f"{found:.4g} is {side} its limit {limit:g}"
        complain(f"Gate {gate['gate']} is not passed by {gate['row']}: {says}.")
    if report.failed_gates:
        raise typer.Exit(GATE)


def show_audit(report: Report) -> None:
    """The two rows, then the audit in figures, its worst classes and what broke."""
    from attar.cli.tables import show_report

    show_report(report)
    for name, audit in report.audits.items():
        for title, table in _tables(name, audit):
            _show(title, table)


Table = list[tuple[str, ...]]


def _tables(name: str, audit: Mapping[str, Any]) -> Iterator[tuple[str, Table]]:
    """Each with its first row as head."""
    figures = [("figure", audit["against"], name), *_figures(audit)]
    yield "", figures
    if worst := [each for each in audit.get("classes", ()) if each["change"] < 0][:SHOWN]:
        head = ("class", "examples", "before", "after", "change")
        yield "Classes that lost most", [head, *map(_class, worst)]
    if broken := audit.get("broken", ())[:SHOWN]:
        yield (
            f"Broken (all in {audit['broken_file']})",
            [("example", "right", "now", "sure"), *map(_broken, broken)],
        )
    if pairs := audit.get("cka"):
        title = (f"layer of {name}", f"layer of {audit['against']}", "CKA")
        yield "Layers", [title, *((p["one"], p["other"], _number(p["cka"])) for p in pairs)]
    if gates := audit.get("gates"):
        yield "Gates", [("gate", "limit", "found", ""), *map(_gate, gates)]


def _figures(audit: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    yield "agreement", "", _number(audit["agreement"])
    yield "KL", "", _number(audit["kl"])
    if flips := audit.get("flips"):
        yield "right to wrong", "", f"{flips['right_to_wrong']:,}"
        yield "wrong to right", "", f"{flips['wrong_to_right']:,}"
    if calibrated := audit.get("calibration"):
        for key, title in _CALIBRATION.items():
            yield title, _number(calibrated["before"][key]), _number(calibrated["after"][key])
    if reasons := audit.get("occlusion"):
        yield f"same reasons ({reasons['examples']})", "", _number(reasons["similarity"])
    if tree := audit.get("surrogate"):
        title = f"told by a tree of depth {tree['depth']}"
        yield title, _number(tree["before"]), _number(tree["after"])


_CALIBRATION = {
    "ece": "ECE",
    "brier": "Brier",
    "temperature": "temperature",
    "ece_scaled": "ECE, scaled",
    "brier_scaled": "Brier, scaled",
}


def _class(each: Mapping[str, Any]) -> tuple[str, ...]:
    change = f"{each['change']:+.3f} ({each['low']:+.3f} to {each['high']:+.3f})"
    return (
        each["class"],
        str(each["examples"]),
        *map(_number, (each["before"], each["after"])),
        change,
    )


def _broken(each: Mapping[str, Any]) -> tuple[str, ...]:
    said = str(each["input"])
    short = said if len(said) <= WIDE else f"{said[: WIDE - 1]}…"
    return short, each["label"], each["after"], f"{each['confidence']:.2f}"


def _gate(each: Mapping[str, Any]) -> tuple[str, ...]:
    passed = "passed" if each["ok"] else "NOT passed"
    return each["gate"], f"{each['limit']:g}", _number(each["found"]), passed


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _show(title: str, table: Table) -> None:
    rows = [tuple(clean(cell) for cell in row) for row in table]
    print(f"\n{clean(title)}" if title else "")
    if watched(sys.stdout):
        _draw(rows)
        return
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip())


def _draw(rows: Table) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    for title in rows[0]:
        table.add_column(Text(title), overflow="fold")
    for row in rows[1:]:
        table.add_row(*map(Text, row), style="bold red" if row[-1] == "NOT passed" else "")
    Console(highlight=False).print(table)
