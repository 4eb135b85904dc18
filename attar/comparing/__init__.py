"""Many arms, many seeds, one report: what `attar compare` does, from its paper to its verdict."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from attar.comparing import telling, timing, weighing
from attar.comparing.planning import TIMED, Job, Plan, controlled, planned
from attar.comparing.running import Crew, cores
from attar.errors import AttarError
from attar.recipe import Comparison, read_comparison
from attar.report import Report, Row
from attar.screen import Screen, Silent
from attar.setting import Setting, begin

__all__ = ["compare"]


def compare(
    comparison: Comparison | str | Path | Mapping[str, Any],
    out: str | Path | None = None,
    *,
    jobs: int | None = None,
    overrides: Sequence[str] = (),
    trust: bool = False,
    screen: Screen | None = None,
    command: str = "",
) -> Report:
    """Run every arm with every seed, weigh them in pairs, and report it.

    What is done already in the folder is not run again; what was interrupted goes on.

    comparison: its file, its words, or the paper itself
    out: the folder for runs and report; `runs/NAME` where left out
    jobs: runs at a time; as many as there are cores where left out
    overrides: `path=value` settings over it, or over the recipes it varies
    trust: let names with a colon run the user's own code
    screen: where sentences and progress go
    command: what the user typed, for the report
    Raises a child of AttarError for whatever the user can mend; a run that fails is a row.
    """
    started = time.monotonic()
    screen = screen or Silent()
    is_file = isinstance(comparison, str | Path) and "\n" not in str(comparison)
    usual = Path(str(comparison)).stem if is_file else "comparison"
    paper = (
        comparison if isinstance(comparison, Comparison) else read_comparison(comparison, overrides)
    )
    folder = Path(out) if out is not None else Path("runs") / (paper.name or usual)
    plan = planned(paper, trust=trust)
    known = _Data(trust)
    first = plan.jobs(paper.seeds, folder)[0]
    plan = controlled(plan, known.of(first, screen))
    todo = plan.jobs(paper.seeds, folder)
    limit, threads = shares(todo, jobs)
    screen.say(
        f"{len(todo)} runs ({len(plan.recipes)} of {len(paper.seeds)} seeds), {limit} at a time "
        f"with {threads} thread{'s' * (threads > 1)} each."
    )
    crew = Crew(
        todo,
        known.done,
        screen,
        limit=limit,
        threads=threads,
        shared=folder / "trainings",
        trust=trust,
    )
    faults = crew.work()
    found = weighing.results(plan.lines, todo, faults)
    if not any(result.rows for result in found):
        why = next(iter(faults.values()), "no run has the rows that were asked for")
        raise AttarError(f"Every arm failed; the first because: {why}.")
    report = _report(paper, plan, found, todo, known, screen)
    report = replace(
        report,
        recipe={"name": paper.name or folder.name, "text": paper.to_yaml(), "command": command},
        environment={**report.environment, "runs_at_a_time": limit, "training_threads": threads},
        cost={"seconds": {**report.cost["seconds"], "total": round(time.monotonic() - started, 2)}},
    )
    report.write(folder)
    return report


def shares(todo: Sequence[Job], jobs: int | None) -> tuple[int, int]:
    """How many runs at a time, and threads of each: what the recipe says, or a fair share."""
    has = cores()
    said = todo[0].recipe.engine.options.get("threads")
    threads = said if isinstance(said, int) else 1
    limit = max(1, min(len(todo), jobs or has // threads))
    return limit, said if isinstance(said, int) else max(1, has // limit)


class _Data:
    """The data of each task and seed, read once."""

    def __init__(self, trust: bool) -> None:
        self._trust = trust
        self._known: dict[str, Setting] = {}

    def of(self, job: Job, screen: Screen | None = None) -> Setting:
        """What a job stands on."""
        said = job.recipe.to_dict()
        key = json.dumps([said["task"], job.seed], sort_keys=True)
        if key not in self._known:
            self._known[key] = begin(job.recipe, job.folder, trust=self._trust, screen=screen)
        return self._known[key]

    def done(self, job: Job) -> bool:
        """Whether a job's report is there, of the same recipe and the same data."""
        try:
            report = Report.read(job.folder)
        except AttarError:
            return False
        if report.recipe.get("text") != job.recipe.to_yaml():
            return False
        task, told = self.of(job).task, report.plan["data"]
        return (told.get("hash"), told.get("test_hash")) == (task.digest(), task.hash_of("test"))


def _report(
    paper: Comparison,
    plan: Plan,
    found: Sequence[weighing.Result],
    todo: Sequence[Job],
    known: _Data,
    screen: Screen,
) -> Report:
    jobs = {(job.run, job.seed): job for job in todo}
    firsts = {each.line.name: jobs[each.line.run, min(each.rows)] for each in found if each.rows}
    pieces = plan.resolved[todo[0].run].measure
    wanted: dict[str, partial[Any]] = {
        piece.name: piece.function for piece in pieces if piece.name in TIMED
    }
    if wanted:
        screen.say("Timing what the arms ship, in turns ...")
    settings = {name: known.of(job) for name, job in firsts.items()}
    folders = {name: job.folder for name, job in firsts.items()}
    start = time.monotonic()
    times, peaks, how = timing.costs(found, settings, folders, wanted)
    measured = time.monotonic() - start
    controls = paper.weighed_against()
    weighed = {arm: weighing.weighed(found, arm) for arm in controls}
    rows = telling.rows(found, times, peaks, controls[:1])
    first = next(each for each in found if each.rows)
    report = first.reports[min(first.rows)]
    return Report(
        recipe={},
        environment={
            **report.environment,
            "threads": how.threads,
            "batch": how.batch,
        },
        rows=rows,
        cost={"seconds": {**_seconds(found), "measuring": round(measured, 2)}},
        plan=_plan(paper, found, rows),
        verdict=telling.verdict(found, weighed, plan.notes, paper.seeds),
        history=telling.history(found),
        score_name=report.score_name,
        differences=tuple(each.told() for some in weighed.values() for each in some),
    )


def _seconds(found: Sequence[weighing.Result]) -> dict[str, float]:
    """What the runs took, all seeds together, by run."""
    total: dict[str, float] = {}
    for each in found:
        spent = sum(report.cost["seconds"]["total"] for report in each.reports.values())
        total[each.line.run.title] = round(spent, 2)
    return total


def _plan(
    paper: Comparison, found: Sequence[weighing.Result], rows: Sequence[Row]
) -> dict[str, Any]:
    first = next(each for each in found if each.rows)
    data = first.reports[min(first.rows)].plan["data"]
    tests = sorted({test for each in found for test in each.tests.values()})
    return {
        "arms": {name: arm.plain() or "the recipe itself" for name, arm in paper.arms.items()},
        "seeds": list(paper.seeds),
        "sizes": {size: change or {} for size, change in paper.sweep.items()},
        "weighed_against": list(paper.weighed_against()),
        "data": {**data, "test_hash": tests[0] if len(tests) == 1 else tests},
        "equal_budget": telling.budget(found),
        "tables": telling.tables(rows, found),
    }
