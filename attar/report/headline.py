"""The verdict in one sentence: what shrank, what it cost, whether the teacher helped, how sure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attar.report import audits, figures
from attar.report.pairs import Pair
from attar.report.rows import WITHOUT_TEACHER, Row
from attar.report.sentences import best, gain
from attar.report.weighing import level, points, share, standard_error, times, within_noise

BY_THE_TEACHER = ("pseudo_labels", "bag_of_words")
"""Baselines that can't tell whether a teacher helps: it labels for one, the other learns else."""


def headline(
    rows: Sequence[Row],
    score_name: str,
    differences: Sequence[Pair] = (),
    audited: Mapping[str, Mapping[str, Any]] | None = None,
    alone: Sequence[str] = (),
) -> str:
    """One sentence for whoever reads no other; empty where nothing can be said.

    alone: rows, beside the baselines, that no teacher taught; they can't tell whether one helps
    """
    teacher = next((row for row in rows if row.role == "teacher"), None)
    file = best(rows)
    clauses: list[str] = []
    if teacher and file:
        clauses += _paid(teacher, file, score_name, differences)
    taught = [row for row in rows if row.name not in alone or row.role == "baseline"]
    clauses += _helped(taught, file, differences)
    clauses += _gates(audited or {}, file)
    told = "; ".join(clauses)
    return f"{told}." if told else ""


def _paid(teacher: Row, file: Row, score_name: str, differences: Sequence[Pair]) -> Iterator[str]:
    """What shrank and what it cost; what was not measured, or is the same, is not spoken of."""
    shrank = " and ".join(_shrank(teacher, file))
    cost = _cost(teacher, file, score_name, differences, alone=not shrank)
    if shrank:
        yield f"{file.name} is {shrank} than its teacher{_programs(teacher, file)}{cost}"
    elif cost:
        yield f"{file.name}{cost}"


def _shrank(teacher: Row, file: Row) -> Iterator[str]:
    """How many times smaller and faster; what rounds to once is not worth a word."""
    folds = (
        (teacher.size_bytes, file.size_bytes, "smaller", "larger"),
        (teacher.percentile("p50"), file.percentile("p50"), "faster", "slower"),
    )
    for before, after, less, more in folds:
        if before and after:
            told = times(before, after, less, more)
            if not told.startswith(f"{figures.ratio(1)} "):
                yield told


def _programs(teacher: Row, file: Row) -> str:
    """What ran them where that differs, or a faster runtime would pass for a better model."""
    timed = teacher.percentile("p50") and file.percentile("p50")
    other = timed and file.program != teacher.program
    return f" ({file.program} against {teacher.program})" if other else ""


def _cost(
    teacher: Row, file: Row, score_name: str, differences: Sequence[Pair], *, alone: bool
) -> str:
    """What became of the score; alone: where nothing is said before it."""
    if teacher.score is None or file.score is None:
        return ""
    known = [pair for pair in differences if (pair.row, pair.against) == (file.name, teacher.name)]
    difference = known[0].mean if known else file.score - teacher.score
    shares = share([teacher, file])
    both = f"{figures.score(file.score)} against {figures.score(teacher.score)}"
    if level(difference, shares):
        verb = " has its teacher's" if alone else ", at the same"
        return f"{verb} {score_name} ({both})"
    verb = "gains" if difference > 0 else "loses"
    verb = f" {verb}" if alone else " and gains" if difference > 0 else " for"
    sure = _sure(known[0]) if known else _noise(file, teacher)
    beside = " beside its teacher" if alone else ""
    return f"{verb} {points(difference, shares)} of {score_name}{beside} ({both}; {sure})"


def _helped(rows: Sequence[Row], file: Row | None, differences: Sequence[Pair]) -> Iterator[str]:
    """Whether the teacher helped: by the differences where there are any, else by one seed."""
    if pair := deciding(rows, file, differences):
        yield _verdict(pair, pair.resolved, _sure(pair))
    elif found := gain(rows):
        student, arm, difference = found
        beyond, shares = not within_noise(student, arm), share([student, arm])
        pair = Pair(student.name, arm.name, difference, beyond, shares=shares)
        yield _verdict(pair, beyond, f"{_noise(student, arm)}, on one seed")


def _verdict(pair: Pair, resolved: bool, sure: str) -> str:
    """What a pair says of the teacher, or of whatever else its other side went without."""
    same, up = level(pair.mean, pair.shares), pair.mean > 0
    gap = points(pair.mean, pair.shares)
    where = f"{pair.row} is {gap} {'above' if up else 'below'} {pair.against} ({sure})"
    where = f"{pair.against} scores as well ({sure})" if same else where
    if not untaught(pair.against):
        return where
    if not resolved:
        return f"it is not resolved whether the teacher helped: {where}"
    return f"the teacher {'helped' if up else 'did not help'}: {where}"


def untaught(name: str) -> bool:
    """Whether a row is, by its name, the student without a teacher."""
    return any(arm in name for arm in WITHOUT_TEACHER)


def deciding(rows: Sequence[Row], file: Row | None, differences: Sequence[Pair]) -> Pair | None:
    """The pair that tells best whether a teacher helps: of the model to ship, if it can be.

    Its other side is the best of the baselines without a teacher, or else of the others.
    """
    named = {row.name: row for row in rows}
    taught = {row.name for row in rows if row.role in ("student", "export")}
    alone = {
        row.name: row.score or 0.0
        for row in rows
        if row.role == "baseline" and not any(word in row.name for word in BY_THE_TEACHER)
    }
    known = [pair for pair in differences if pair.row in taught and pair.against in alone]
    line = list(_line(file, named))

    def rank(pair: Pair) -> tuple[bool, int, float, float]:
        place = line.index(pair.row) if pair.row in line else len(line)
        scored = -(named[pair.row].score or 0.0), -alone[pair.against]
        return not untaught(pair.against), place, *scored

    return min(known, key=rank, default=None)


def _line(row: Row | None, named: Mapping[str, Row]) -> Iterator[str]:
    """The row, what it was made from, and so on."""
    seen: set[str] = set()
    while row is not None and row.name not in seen:
        seen.add(row.name)
        yield row.name
        row = named.get(row.after)


def _sure(pair: Pair) -> str:
    """What a difference over seeds stands on."""
    known = f"95 % interval {pair.interval}" if pair.interval else ""
    word = "resolved" if pair.resolved else "not resolved"
    return ", ".join(part for part in (word, known, pair.seeds) if part)


def _noise(one: Row, other: Row) -> str:
    """How sure one seed's difference is, as far as the test split can tell."""
    examples = min(one.examples or 0, other.examples or 0)
    if standard_error(one) is None or standard_error(other) is None:
        return "how sure is not known"
    within = "within" if within_noise(one, other) else "beyond"
    return f"{within} the noise of {examples:,} test examples"


def several(rows: Sequence[Row], score_name: str, runs: int, alike: bool) -> str:
    """The same for runs side by side, of which each has its own teacher and its own baselines.

    alike: whether all were tested on the same examples
    """
    told = f"{runs} runs side by side"
    ships = [row for row in rows if row.role in ("student", "export") and row.score is not None]
    if not alike:
        return f"{told}, not tested on the same examples: their scores can't be compared."
    if not ships:
        return f"{told}."
    top = max(ships, key=lambda row: row.score or 0.0)
    small = best(rows)
    size = f", {figures.size(small.size_bytes)}" if small and small.size_bytes else ""
    second = (
        f"; the smallest to ship within a point of its peers is {small.name} "
        f"({figures.score(small.score)}{size})"
        if small and small.score is not None and small is not top
        else ""
    )
    highest = f"{figures.score(top.score or 0)} ({top.name})"
    return f"{told}: the best {score_name} is {highest}{second}."


def _gates(audited: Mapping[str, Mapping[str, Any]], file: Row | None) -> Iterator[str]:
    """The gates that don't hold; the file's own first."""
    broken = {name: audits.failed(audit) for name, audit in audited.items()}
    broken = {name: gates for name, gates in broken.items() if gates}
    if file is not None and file.name in broken:
        names = ", ".join(str(gate.get("gate")) for gate in broken[file.name])
        yield f"{file.name} fails its gate{'s' * (len(broken[file.name]) != 1)}: {names}"
    elif broken:
        yield f"{', '.join(broken)} fail{'s' * (len(broken) == 1)} a gate"
