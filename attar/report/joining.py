"""Several runs in one report: their rows side by side, and whatever differs between them said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from attar.errors import DataError
from attar.report import figures
from attar.report.markdown import recipe_text
from attar.report.paper import Report

UNTOLD = ("name", "text", "command", "seed")
"""What two recipes may differ in without being said to: their texts are all shown."""

TIMED = ("cpu", "cores", "threads", "batch", "tokens", "latency_tokens", "device", "system")
"""What times depend on."""


def join(reports: Mapping[str, Report]) -> Report:
    """One report of several runs; every name in it becomes `RUN: name`.

    reports: by the name of the run
    What was measured beside one another stays so: no row is weighed against another run's.
    Raises DataError where the runs' scores are of different kinds.
    """
    first = next(iter(reports.values()))
    kinds = {name: report.score_name for name, report in reports.items()}
    if len(set(kinds.values())) > 1:
        told = ", ".join(f"{kind} in {name}" for name, kind in kinds.items())
        raise DataError(f"the runs measure different things ({told}): report each by itself")
    own = {name: _named(name, report) for name, report in reports.items()}
    return Report(
        recipe=_recipes(reports),
        environment=_environment(reports),
        rows=tuple(row for report in own.values() for row in report.rows),
        cost={"seconds": _merged(report.cost.get("seconds", {}) for report in own.values())},
        plan={
            **_merged({name: report.decided} for name, report in reports.items() if report.decided),
            "tables": _merged(report.tables for report in own.values()),
        },
        verdict=(*_differing(reports), *_headlines(reports)),
        history=_merged(report.history for report in own.values()),
        score_name=first.score_name,
        differences=tuple(each for report in own.values() for each in report.differences),
        audits=_merged(report.audits for report in own.values()),
        films=tuple(each for report in own.values() for each in report.films),
    )


def titles(paths: Sequence[Path]) -> list[str]:
    """A name for each run's folder or file: as much of the end of its path as tells them apart."""
    folders = [path.parent if path.name == "report.json" else path for path in paths]
    parts = [folder.resolve().parts for folder in folders]
    for taken in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-taken:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    raise DataError("a run is named twice: give each once")


def _merged(found: Any) -> dict[str, Any]:
    return {name: value for each in found for name, value in each.items()}


def _named(run: str, report: Report) -> Report:
    """The report with the run before every name; the parts that names told are written down."""

    def called(name: str) -> str:
        return f"{run}: {name}" if name else ""

    rows = tuple(
        replace(row, name=called(row.name), after=called(row.after), part=row.role)
        for row in report.rows
    )
    weighed = ("row", "against")
    return replace(
        report,
        rows=rows,
        cost={"seconds": {called(k): v for k, v in report.cost.get("seconds", {}).items()}},
        plan={"tables": {called(title): table for title, table in report.tables.items()}},
        history={called(name): curve for name, curve in report.history.items()},
        differences=tuple(
            {key: called(value) if key in weighed else value for key, value in each.items()}
            for each in report.differences
        ),
        audits={
            called(name): {**audit, "against": called(str(audit["against"]))}
            for name, audit in report.audits.items()
        },
        films=tuple(
            {**film, "rows": [{**row, "name": called(row["name"])} for row in film["rows"]]}
            for film in report.films
        ),
    )


def _recipes(reports: Mapping[str, Report]) -> dict[str, Any]:
    texts = (f"# {name}\n{recipe_text(report.recipe)}" for name, report in reports.items())
    commands = (str(report.recipe.get("command", "")) for report in reports.values())
    return {
        "name": " and ".join(reports),
        "text": "\n\n".join(text.strip() for text in texts),
        "command": "\n".join(command for command in commands if command),
        "runs": {name: dict(report.recipe) for name, report in reports.items()},
        "same_test": _same_test(list(reports.values())),
    }


def _environment(reports: Mapping[str, Report]) -> dict[str, Any]:
    """What all share, then by key what each run has of its own."""
    known = [report.environment for report in reports.values()]
    keys = dict.fromkeys(key for each in known for key in each)
    shared = [key for key in keys if all(each.get(key) == known[0].get(key) for each in known)]
    return {key: known[0][key] for key in shared} | {
        key: {name: report.environment.get(key) for name, report in reports.items()}
        for key in keys
        if key not in shared
    }


def _same_test(reports: Sequence[Report]) -> bool:
    """Whether all scores are of the same examples: by their hash, else by all that is known."""
    return len({str(_test(report)) for report in reports}) == 1


def _test(report: Report) -> Any:
    plan = report.plan if isinstance(report.plan, Mapping) else {}
    data = plan.get("data", {})
    if "test_hash" in data:
        return data["test_hash"]
    counts = sorted({row.examples for row in report.rows if row.examples})
    return data.get("test"), plan.get("classes"), counts, _dataset(report.recipe.get("task"))


def _dataset(task: Any) -> Any:
    """The part of a task that says whose examples these are."""
    if not isinstance(task, Mapping):
        return task
    return {
        name: {key: said.get(key) for key in ("dataset", "test")}
        for name, said in task.items()
        if isinstance(said, Mapping)
    }


def _differing(reports: Mapping[str, Report]) -> Iterator[str]:
    """What a reader has to know before comparing the runs."""
    if not _same_test(list(reports.values())):
        yield "The runs were not tested on the same examples: their scores can't be compared."
    elif len(reports) > 1:
        yield "The runs were tested on the same examples, as far as their reports tell."
    environment = _environment(reports)
    apart = {key: told for key, told in environment.items() if _differs(told, reports)}
    if slow := [key for key in TIMED if key in apart]:
        told = "; ".join(f"{key}: {_by_run(apart[key])}" for key in slow)
        yield f"They were measured otherwise ({told}): their times can't be compared."
    if others := [key for key in apart if key not in TIMED]:
        told = "; ".join(f"{key}: {_by_run(apart[key])}" for key in others)
        yield f"Their environments differ too in {told}."
    yield from _recipes_apart(reports)


def _differs(told: Any, reports: Mapping[str, Report]) -> bool:
    return isinstance(told, Mapping) and told.keys() == reports.keys()


def _by_run(told: Mapping[str, Any]) -> str:
    return ", ".join(f"{figures.inline(value)} in {name}" for name, value in told.items())


def _recipes_apart(reports: Mapping[str, Report]) -> Iterator[str]:
    known = [report.recipe for report in reports.values()]
    keys = dict.fromkeys(key for each in known for key in each if key not in UNTOLD)
    apart = [key for key in keys if any(each.get(key) != known[0].get(key) for each in known)]
    if apart:
        yield f"Their recipes differ in {', '.join(apart)}; all are below."
    seeds = {name: report.recipe.get("seed") for name, report in reports.items()}
    if len(set(seeds.values())) > 1:
        yield f"Their seeds differ: {_by_run(seeds)}."


def _headlines(reports: Mapping[str, Report]) -> Iterator[str]:
    """The verdict of each run, which stands on its own teacher and its own baselines."""
    for name, report in reports.items():
        if report.headline:
            yield f"{name}: {report.headline}"
