"""What each line of a comparison scored with each seed, and every line weighed against some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from attar.comparing.planning import Job
from attar.errors import AttarError, DataError
from attar.measure.statistics import Difference, corrected, interval, weigh
from attar.recipe import Line
from attar.report import Report, Row
from attar.results import PREDICTIONS

Hits = np.ndarray[Any, Any]
"""Whether each test example was answered right; or what each was worth, as returns are."""


@dataclass(frozen=True)
class Result:
    """A line's row with each seed, which examples it had right, and why seeds are missing.

    tests: by seed, the hash of the test split
    """

    line: Line
    reports: Mapping[int, Report]
    rows: Mapping[int, Row]
    hits: Mapping[int, Hits]
    tests: Mapping[int, str]
    faults: Mapping[int, str]

    @property
    def row(self) -> Row:
        """The row of the first seed, from which all that seeds have in common is taken."""
        return self.rows[min(self.rows)]

    @property
    def by_seed(self) -> tuple[float, ...]:
        return tuple(float(hits.mean()) for _, hits in sorted(self.hits.items()))

    @property
    def score(self) -> float:
        return float(np.mean(self.by_seed))

    @cached_property
    def interval(self) -> tuple[float, float]:
        values = [hits.astype(float) for _, hits in sorted(self.hits.items())]
        low, high = interval(values, crossed=len(set(self.tests.values())) == 1)
        return low, high

    @property
    def budgets(self) -> list[Mapping[str, Any]]:
        """Optimizer steps and seconds of its training with each seed; nothing where it had none."""
        told = ((self.reports[seed].plan, row.name) for seed, row in self.rows.items())
        return [plan["budget"][name] for plan, name in told if name in plan["budget"]]


def results(
    lines: Sequence[Line], jobs: Sequence[Job], faults: Mapping[Job, str]
) -> tuple[Result, ...]:
    """Read what the runs have left."""
    reports = {job: Report.read(job.folder) for job in jobs if job not in faults}
    return tuple(_result(line, jobs, reports, faults) for line in lines)


def _result(
    line: Line, jobs: Sequence[Job], reports: Mapping[Job, Report], faults: Mapping[Job, str]
) -> Result:
    rows: dict[int, Row] = {}
    hits: dict[int, Hits] = {}
    tests: dict[int, str] = {}
    why = {job.seed: faults[job] for job in jobs if job.run == line.run and job in faults}
    mine = {job.seed: job for job in jobs if job.run == line.run and job in reports}
    for seed, job in mine.items():
        try:
            row = _row(reports[job], line.row)
            hits[seed], tests[seed] = _hits(job.folder / PREDICTIONS, row.name)
            rows[seed] = row
        except AttarError as error:
            why[seed] = str(error).removesuffix(".")
    return Result(line, {seed: reports[job] for seed, job in mine.items()}, rows, hits, tests, why)


def _row(report: Report, name: str | None) -> Row:
    """The row that a line is; where it names none, the last that the run's steps made."""
    if name is not None:
        return report.row(name)
    made = [row for row in report.rows if row.role in ("student", "export")]
    if not made:
        raise DataError("its steps made nothing that could be measured")
    return made[-1]


def _hits(file: Path, row: str) -> tuple[Hits, str]:
    with safe_open(file, framework="numpy") as kept:
        if row not in kept.keys():  # noqa: SIM118  (it is no mapping)
            raise DataError(f"{file} keeps no answers of {row}")
        found = kept.get_tensor(row)
        if "truth" in kept.keys():  # noqa: SIM118
            found = found == kept.get_tensor("truth")
        return found, kept.metadata()["test_hash"]


@dataclass(frozen=True)
class Weighed:
    """A line beside the one it is weighed against."""

    result: Result
    against: Result
    found: Difference

    def told(self) -> dict[str, Any]:
        """As the report keeps it."""
        found = self.found
        return {
            "row": self.result.line.name,
            "against": self.against.line.name,
            "mean": found.mean,
            "low": found.low,
            "high": found.high,
            "p": found.p,
            "resolved": found.resolved,
            "by_seed": list(found.by_seed),
            "examples": found.examples,
            "why": found.why,
        }


def weighed(found: Sequence[Result], arm: str) -> list[Weighed]:
    """Every other line against that arm's of the same size, p corrected for them all (Holm)."""
    pairs = [
        (result, other, _difference(result, other))
        for result in found
        if result.line.arm != arm and (other := _counterpart(found, arm, result.line.size))
    ]
    known = [(result, other, found) for result, other, found in pairs if found is not None]
    fixed = corrected([found for *_, found in known])
    return [Weighed(a, b, found) for (a, b, _), found in zip(known, fixed, strict=True)]


def _counterpart(found: Sequence[Result], arm: str, size: str | None) -> Result | None:
    """An arm's line of a size; where it has no such, its only or its biggest one."""
    its = [result for result in found if result.line.arm == arm]
    return next((each for each in its if each.line.size == size), its[-1] if its else None)


def _difference(one: Result, other: Result) -> Difference | None:
    """Over the seeds that both have; None where there is none, or they were tested otherwise."""
    seeds = [seed for seed in sorted(one.hits) if one.tests[seed] == other.tests.get(seed)]
    if not seeds:
        return None
    crossed = len({one.tests[seed] for seed in seeds}) == 1
    mine, its = ([each.hits[seed] for seed in seeds] for each in (one, other))
    return weigh(mine, its, crossed=crossed)
