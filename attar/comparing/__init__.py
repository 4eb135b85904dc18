"""Many arms, many seeds, one report: what `attar compare` does, from its paper to its verdict."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
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
from attar.tracking import named

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
    track: Sequence[str] = (),
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
    track: who is told live how trainings go: `tensorboard`, `mlflow` or `wandb`, with `:WHERE`
    Raises a child of AttarError for whatever the user can mend; a run that fails is a row.
    """
    started, screen = time.monotonic(), screen or Silent()
    paper = (
        comparison if isinstance(comparison, Comparison) else read_comparison(comparison, overrides)
    )
    folder = Path(out) if out is not None else Path("runs") / _name(paper, comparison)
    plan, data = planned(paper, trust=trust), Data(trust)
    first = plan.jobs(paper.seeds, folder)[0]
    plan = controlled(plan, data.of(first, screen))
    todo = plan.jobs(paper.seeds, folder)
    limit, threads = shares(todo, jobs)
    screen.say(
        f"{len(plan.recipes)} runs with {len(paper.seeds)} seeds each, {limit} at a time on "
        f"{threads} thread{'s' * (threads > 1)}."
    )
    words = [*["--trust"] * trust, *(f"--track={each}" for each in named(track))]
    crew = Crew(todo, data.done, screen, limit, threads, folder / "trainings", words)
    faults = crew.work()
    found = weighing.results(plan.lines, todo, faults)
    if not any(result.rows for result in found):
        why = next(iter(faults.values()), "its run has not the rows that were asked for")
        raise AttarError(f"Every arm failed, the first because: {why}.")
    costs = _costs(plan, found, todo, data, screen)
    said = {"name": _name(paper, folder), "text": paper.to_yaml(), "command": command}
    where = {"runs_at_a_time": limit, "training_threads": threads}
    report = _report(paper, plan, found, costs, said, where, started)
    report.write(folder)
    return report


def _name(paper: Comparison, source: Any) -> str:
    """What a comparison is called: as it says, or as its file or folder is."""
    named = isinstance(source, str | Path) and "\n" not in str(source)
    return paper.name or (Path(source).stem if named else "comparison")


def shares(todo: Sequence[Job], jobs: int | None = None) -> tuple[int, int]:
    """How many runs at a time, and threads of each: what the recipe says, or a fair share."""
    said = todo[0].recipe.engine.options.get("threads")
    own = said if isinstance(said, int) else None
    limit = max(1, min(len(todo), jobs or cores() // (own or 1)))
    return limit, own or max(1, cores() // limit)


class Data:
    """The data of each task and seed, read once."""

    def __init__(self, trust: bool = False) -> None:
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


def _costs(
    plan: Plan, found: Sequence[weighing.Result], todo: Sequence[Job], data: Data, screen: Screen
) -> timing.Costs:
    """What the arms ship measured side by side, each as its first seed has it."""
    jobs = {(job.run, job.seed): job for job in todo}
    firsts = {each.line.name: jobs[each.line.run, min(each.rows)] for each in found if each.rows}
    measures = plan.resolved[todo[0].run].measure
    wanted = {piece.name: piece.function for piece in measures if piece.name in TIMED}
    if wanted:
        screen.say(f"Measuring {' and '.join(wanted)} of what the arms ship, in turns ...")
    settings = {name: data.of(job) for name, job in firsts.items()}
    return timing.costs(found, settings, {name: job.folder for name, job in firsts.items()}, wanted)


def _report(
    paper: Comparison,
    plan: Plan,
    found: Sequence[weighing.Result],
    costs: timing.Costs,
    said: Mapping[str, Any],
    where: Mapping[str, Any],
    started: float,
) -> Report:
    bases = paper.weighed_against()
    weighed = {arm: weighing.weighed(found, arm) for arm in bases}
    rows = telling.rows(found, costs, bases[0])
    first = next(each for each in found if each.rows)
    told = first.reports[min(first.rows)]
    timed = {"threads": costs.timing.threads, "batch": costs.timing.batch}
    seconds = telling.seconds(found) | {"total": round(time.monotonic() - started, 2)}
    return Report(
        recipe=said,
        environment={**told.environment, **timed, **where},
        rows=rows,
        cost={"seconds": seconds},
        plan=_plan(paper, plan, found, rows, told.plan["data"]),
        verdict=telling.verdict(found, weighed, plan.notes, paper.seeds),
        history=telling.history(found),
        score_name=told.score_name,
        audits=telling.audits(found),
        differences=tuple(each.told() for some in weighed.values() for each in some),
    )


def _plan(
    paper: Comparison,
    plan: Plan,
    found: Sequence[weighing.Result],
    rows: Sequence[Row],
    data: Mapping[str, Any],
) -> dict[str, Any]:
    tests = sorted({test for each in found for test in each.tests.values()})
    return {
        "arms": {name: arm.plain() or "the recipe itself" for name, arm in paper.arms.items()},
        "seeds": list(paper.seeds),
        "sizes": {size: change or {} for size, change in paper.sweep.items()},
        "untaught": [line.name for line in plan.lines if plan.resolved[line.run].teach is None],
        "weighed_against": list(paper.weighed_against()),
        "data": {**data, "test_hash": tests[0] if len(tests) == 1 else tests},
        "budget": telling.budget(found),
        "tables": telling.tables(rows, found),
    }
