"""What a comparison found out, as rows, tables and sentences that claim no more than it bears."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from attar.comparing.timing import Costs
from attar.comparing.weighing import Result, Weighed
from attar.measure.statistics import least_p
from attar.report import Row, figures
from attar.report.weighing import points

MEANT = ("macro_f1", "validation", "best_on_validation", "accuracy")
"""What of a row's metrics is told as the mean over the seeds."""


def rows(found: Sequence[Result], costs: Costs, control: str) -> tuple[Row, ...]:
    """One row for each line, its figures those of the first seed but for what seeds differ in."""
    return tuple(_row(each, costs, control) for each in found)


def _row(result: Result, costs: Costs, control: str) -> Row:
    name = result.line.name
    if not result.rows:
        return Row(name, "", note=_failed(result), part="student")
    return replace(
        result.row,
        name=name,
        score=result.score,
        metrics=_metrics(result),
        latency_ms=costs.times.get(name),
        memory_bytes=costs.peaks.get(name),
        energy_j=costs.joules.get(name),
        note="; ".join(filter(None, (result.row.note, _failed(result)))),
        after="",
        part="baseline" if result.line.arm == control else result.row.role,
        by_seed=result.by_seed,
        interval=result.interval,
    )


def _metrics(result: Result) -> dict[str, Any]:
    every = [row.metrics for row in result.rows.values()]
    known = [name for name in MEANT if all(name in each for each in every)]
    means = {name: float(np.mean([each[name] for each in every])) for name in known}
    means["examples"] = result.row.metrics["examples"]
    if budgets := result.budgets:
        means["steps"] = budgets[0]["steps"]
        means["seconds"] = round(float(np.mean([each["seconds"] for each in budgets])), 1)
    return means


def _failed(result: Result) -> str:
    """Which seeds failed, and why: one sentence for each reason."""
    by_reason: dict[str, list[int]] = {}
    for seed, why in sorted(result.faults.items()):
        by_reason.setdefault(why, []).append(seed)
    told = (f"failed ({_seeds(seeds)}): {why}" for why, seeds in by_reason.items())
    return "; ".join(told)


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


# --- tables


def tables(found: Sequence[Row], results: Sequence[Result]) -> dict[str, list[dict[str, Any]]]:
    """The best at each size and at each latency, and what each arm's training took."""
    known = {
        "Best at a size": _best_within(found, "size", lambda row: row.size_bytes, figures.size),
        "Best at a latency": _best_within(
            found, "p50 ms", lambda row: row.percentile("p50"), figures.milliseconds
        ),
        "Training": [_training(result) for result in results if result.rows and result.budgets],
    }
    return {title: table for title, table in known.items() if table}


def _best_within(found: Sequence[Row], title: str, cost: Any, show: Any) -> list[dict[str, Any]]:
    """Who scores best within each limit: from which on it is who, as far as the next."""
    scored = [row for row in found if row.score is not None and cost(row) is not None]
    table: list[dict[str, Any]] = []
    best = -math.inf
    for row in sorted(scored, key=lambda row: (cost(row), -(row.score or 0.0))):
        if row.score is not None and row.score > best:
            best = row.score
            limit = show(cost(row))
            table.append({f"{title} from": limit, "best": row.name, "score": round(best, 4)})
    return table


def _training(result: Result) -> dict[str, Any]:
    steps = sorted({each["steps"] for each in result.budgets})
    seconds = [each["seconds"] for each in result.budgets]
    return {
        "arm": result.line.name,
        "optimizer steps": steps[0] if len(steps) == 1 else f"{steps[0]} to {steps[-1]}",
        "seconds (mean)": round(float(np.mean(seconds)), 1),
    }


# --- sentences


def verdict(
    found: Sequence[Result],
    weighed: Mapping[str, Sequence[Weighed]],
    notes: Sequence[str],
    seeds: Sequence[int],
) -> tuple[str, ...]:
    """Who is best, who is above the control and whether that is resolved, who failed."""
    scored = [result for result in found if result.rows]
    sentences = list(_best(scored))
    for arm, each in weighed.items():
        sentences += _against(arm, each)
    if any(weighed.values()):
        sentences.append(_method(seeds))
    sentences += _budget(scored)
    sentences += notes
    sentences += [f"{each.line.name} {_failed(each)}." for each in found if each.faults]
    return tuple(sentences)


def _best(scored: Sequence[Result]) -> Iterator[str]:
    compared = [each for each in scored if each.row.role != "teacher"] or scored
    if compared:
        best = max(compared, key=lambda each: each.score)
        yield (
            f"{best.line.name} scores best: {figures.score(best.score)} "
            f"({_between(best.interval)}, {_counted(len(best.by_seed), 'seed')})."
        )
    for each in scored:
        if each.row.role == "teacher":
            name = each.line.name
            who = "The teacher" if name == "teacher" else f"The teacher ({name})"
            yield f"{who} scores {figures.score(each.score)} ({_between(each.interval)})."


def _between(interval: tuple[float, float]) -> str:
    low, high = map(figures.score, interval)
    return f"95 % interval {low} to {high}"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _against(arm: str, weighed: Sequence[Weighed]) -> Iterator[str]:
    """Who is above an arm, who is not, and where that can't be told."""
    above = [each for each in weighed if each.found.resolved and each.found.mean > 0]
    below = [each for each in weighed if each.found.resolved and each.found.mean < 0]
    level = [each for each in weighed if not each.found.resolved]
    lower = [each for each in level if each.found.mean < 0]
    open_ = [each for each in level if each.found.mean >= 0]
    if above:
        yield f"Above {arm}, and resolved: {_listed(above)}."
    if open_:
        yield f"Not resolved against {arm}: {_listed(open_, why=True)}."
    if lower:
        yield f"No better than {arm} (not resolved): {_listed(lower, why=True)}."
    if below:
        who = "That does" if len(below) == 1 else "Those do"
        yield f"Below {arm}, and resolved: {_listed(below)}. {who} not help."


def _listed(weighed: Sequence[Weighed], *, why: bool = False) -> str:
    ordered = sorted(weighed, key=lambda each: -each.found.mean)
    return "; ".join(_told(each, why) for each in ordered)


def _told(each: Weighed, why: bool) -> str:
    found = each.found
    shares = all(0 <= result.score <= 1 for result in (each.result, each.against))
    ends = " to ".join(_signed(end, shares) for end in (found.low, found.high))
    unit = " points" if shares else ""
    said = f"{each.result.line.name} {_signed(found.mean, shares)}{unit} ({ends}"
    return f"{said}; {found.why})" if why else f"{said})"


def _signed(difference: float, shares: bool) -> str:
    """A difference, of shares in points: "+1.2", "−0.3"."""
    below = round(100 * difference, 1) < 0 if shares else difference < 0
    return f"{'−' if below else '+'}{points(difference, shares).partition(' ')[0]}"


def _method(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return (
            "There is one seed, which tells nothing of training's luck: no difference is called "
            "resolved; give more seeds."
        )
    return (
        "Resolved means: the 95 % bootstrap interval over seeds and test examples (both paired) "
        "excludes 0, the exact sign-flip test over examples gives p < 0.05 after Holm's correction "
        f"for all arms weighed against the same one, and the seeds agree; {len(seeds)} seeds by "
        f"themselves could show no p below {least_p(len(seeds)):.2g}."
    )


def budget(found: Sequence[Result]) -> dict[str, Any]:
    """The fewest and the most optimizer steps, and whether they are the same; who had which."""
    steps = {
        each.line.name: max(b["steps"] for b in each.budgets) for each in found if each.budgets
    }
    if not steps:
        return {}
    few, many = min(steps, key=steps.__getitem__), max(steps, key=steps.__getitem__)
    return {
        "equal": steps[few] == steps[many],
        "fewest": {"arm": few, "steps": steps[few]},
        "most": {"arm": many, "steps": steps[many]},
    }


def _budget(found: Sequence[Result]) -> Iterator[str]:
    """Whether all had the same number of optimizer steps, and what time it took."""
    took = {
        each.line.name: float(np.mean([budget["seconds"] for budget in each.budgets]))
        for each in found
        if each.budgets
    }
    if len(took) < 2:
        return
    known = budget(found)
    few, many = known["fewest"], known["most"]
    short, long = min(took, key=took.__getitem__), max(took, key=took.__getitem__)
    time = (
        f"in {figures.duration(took[short])} ({short}) to {figures.duration(took[long])} ({long})"
    )
    if known["equal"]:
        yield f"Equal budget: yes, {few['steps']:,} optimizer steps each, {time}."
    else:
        yield (
            f"Equal budget: no, {few['steps']:,} ({few['arm']}) to {many['steps']:,} "
            f"({many['arm']}) optimizer steps, {time}."
        )


# --- curves and the plan


def history(found: Sequence[Result]) -> dict[str, list[dict[str, Any]]]:
    """How each line's model was trained with the first seed, its trainings one after another."""
    return {each.line.name: curve for each in found if each.rows and (curve := _curve(each))}


def _curve(result: Result) -> list[dict[str, Any]]:
    report = result.reports[min(result.rows)]
    budget = report.plan["budget"].get(result.row.name, {})
    points: list[dict[str, Any]] = []
    for name in budget.get("trainings", ()):
        done = points[-1]["step"] if points else 0
        points += [{**point, "step": point["step"] + done} for point in report.history[name]]
    return points


def seconds(found: Sequence[Result]) -> dict[str, float]:
    """What the runs took, all seeds together."""
    return {
        each.line.run.title: round(
            sum(report.cost["seconds"]["total"] for report in each.reports.values()), 2
        )
        for each in found
        if each.reports
    }


def audits(found: Sequence[Result]) -> dict[str, Mapping[str, Any]]:
    """What the run of each line's first seed audited of its row."""
    known: dict[str, Mapping[str, Any]] = {}
    for each in found:
        seed = min(each.rows, default=None)
        if seed is None or each.row.name not in each.reports[seed].audits:
            continue
        audit = dict(each.reports[seed].audits[each.row.name])
        if file := audit.get("broken_file"):
            run = each.line.run
            audit["broken_file"] = "/".join(filter(None, (run.arm, run.size, f"seed-{seed}", file)))
        known[each.line.name] = audit
    return known
