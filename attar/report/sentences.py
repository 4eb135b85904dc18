"""The verdict: what the rows say, in plain words, and no more than they can bear."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from attar.report import figures, steps
from attar.report.rows import BASELINES, WITHOUT_TEACHER, Row
from attar.report.weighing import level, points, share, standard_error, times, within_noise

REPAIRED = re.compile(r"-distill(-x\d+)?$")
"""The end of the name of a student that was trained after it was cut."""

_MEANING = {
    "labels_only": "the same student without a teacher",
    "label_smoothing": "the same student, smoothed labels, no teacher",
    "reward_only": "the same student by its reward alone",
    "pseudo_labels": "the teacher's answers as hard labels",
    "bag_of_words": "word counts and a linear model",
}


def verdict(
    rows: Sequence[Row], score_name: str = "score", *, threads: int | None = None
) -> tuple[str, ...]:
    """What shrank and by how much, which step harmed, whether the teacher helped, how sure that is.

    Scores within [0, 1] are taken for shares of the test examples: their differences are told
    in points (hundredths) and weighed against the binomial standard error, sqrt(p (1 - p) / n).
    Two models answer the same examples, so treating them as independent, as here, overstates
    the noise rather than the gain.
    """
    named = {row.name: row for row in rows}
    teacher, file, student = named.get("teacher"), best(rows), trained(rows)
    sentences: list[str] = []
    if teacher and file:
        sentences += _size(teacher, file) + _latency(teacher, file, student, threads)
        sentences += _score(teacher, file, score_name)
    sentences += steps.warnings(rows)
    if student and student.score is not None:
        sentences += _help(rows) + _baselines(named, student)
    if len([row for row in rows if row.score is not None]) > 1:
        sentences.append(caution(rows))
    return tuple(sentences)


def best(rows: Sequence[Row]) -> Row | None:
    """The model to ship: the smallest export within a point of the best export's score.

    It is a choice, so it stands on the validation scores where every export has one. Where nothing
    was exported it is chosen among the students. Of those that are as small, the best scores.
    """
    exports = [row for row in rows if row.role == "export"]
    exports = exports or [row for row in rows if row.role == "student"]
    scores = [row.validation for row in exports]
    if None in scores:
        scores = [row.score for row in exports]
    pairs = zip(exports, scores, strict=True)
    known = {row.name: score for row, score in pairs if score is not None}
    if known:
        most = max(known.values())
        floor = most - (0.01 if share(exports) else 0.01 * abs(most))
        exports = [row for row in exports if known.get(row.name, -math.inf) >= floor]
    least = min((row.size_bytes or math.inf for row in exports), default=math.inf)
    small = [row for row in exports if (row.size_bytes or math.inf) <= steps.LARGER * least]
    return min(small, key=lambda row: (-known.get(row.name, 0.0), _latency_of(row)), default=None)


def trained(rows: Sequence[Row]) -> Row | None:
    """The student once all its training is over: what baselines of as many steps compare with."""
    names = [row for row in rows if row.name == "student" or REPAIRED.search(row.name)]
    return names[-1] if names else None


def _latency_of(row: Row) -> float:
    latency = row.percentile("p50")
    return math.inf if latency is None else latency


def gain(rows: Sequence[Row]) -> tuple[Row, Row, float] | None:
    """The student, the best arm without a teacher, and the student's score less that arm's."""
    named = {row.name: row for row in rows}
    student = trained(rows)
    arms = [named[name] for name in WITHOUT_TEACHER if name in named]
    scored = [(arm.score, arm) for arm in arms if arm.score is not None]
    if student is None or student.score is None or not scored:
        return None
    score, arm = max(scored, key=lambda pair: pair[0])
    return student, arm, student.score - score


def _size(teacher: Row, file: Row) -> list[str]:
    if not teacher.size_bytes or not file.size_bytes:
        return []
    small, big = figures.size(file.size_bytes), figures.size(teacher.size_bytes)
    how = times(teacher.size_bytes, file.size_bytes, "smaller", "larger")
    return [f"{file.name} takes {small} against the teacher's {big}: {how}."]


def _latency(teacher: Row, file: Row, student: Row | None, threads: int | None) -> list[str]:
    slow, fast = teacher.percentile("p50"), file.percentile("p50")
    if not slow or not fast:
        return []
    where = "" if threads is None else f" on {threads} thread{'s' * (threads != 1)}"
    sentence = (
        f"{file.name} answers in {figures.milliseconds(fast)} ms ({file.runtime}) against "
        f"{figures.milliseconds(slow)} ms ({teacher.runtime}), median{where}: "
        f"{times(slow, fast, 'faster', 'slower')}"
    )
    plain = student.percentile("p50") if student and student.runtime == teacher.runtime else None
    if plain and file.runtime != teacher.runtime:
        # Or a faster runtime would pass for a better student.
        sentence += (
            f"; the student in the teacher's own runtime: {times(slow, plain, 'faster', 'slower')}"
        )
    return [sentence + "."]


def _score(teacher: Row, file: Row, score_name: str) -> list[str]:
    if teacher.score is None or file.score is None:
        return []
    return [
        f"{file.name} has {score_name} {figures.score(file.score)} against the teacher's "
        f"{figures.score(teacher.score)}: {_compared(file, teacher)}."
    ]


def _compared(one: Row, other: Row) -> str:
    """How one score stands to the other, in words: "2.2 points lower"."""
    if one.score is None or other.score is None:
        return "not measured"
    difference, shares = one.score - other.score, share([one, other])
    if level(difference, shares):
        return "level"
    direction = "higher" if difference > 0 else "lower"
    return f"{points(difference, shares)} {direction}{_noise_note(one, other)}"


def _help(rows: Sequence[Row]) -> list[str]:
    """Did the teacher help? Against the best arm that had none."""
    found = gain(rows)
    if found is None:
        return []
    student, arm, difference = found
    shares, noise = share([student, arm]), within_noise(student, arm)
    amount = points(difference, shares)
    if level(difference, shares):
        return [f"The teacher did not help: {arm.name} scored as well without it."]
    if difference < 0 and noise:
        return [
            f"The teacher did not help: {arm.name} scored as well without it "
            f"({amount} higher{_noise_note(student, arm)})."
        ]
    if difference < 0:
        return [f"The teacher did not help: {arm.name} scored {amount} higher without it."]
    if noise:
        return [
            f"It is not shown that the teacher helped: the student is {amount} above "
            f"{arm.name}{_noise_note(student, arm)}."
        ]
    return [
        f"The teacher helped: the student is {amount} above {arm.name}, "
        f"the best arm without a teacher."
    ]


def _baselines(named: Mapping[str, Row], student: Row) -> list[str]:
    """The student against each baseline there is, one sentence each."""
    return [
        f"Student against {name} ({_MEANING[name]}): {_compared(student, named[name])}."
        for name in BASELINES
        if name in named
    ]


def _noise_note(one: Row, other: Row) -> str:
    if not within_noise(one, other):
        return ""
    examples = min(one.examples or 0, other.examples or 0)
    return f", within the noise of {examples:,} test examples"


def caution(rows: Sequence[Row]) -> str:
    """What so many seeds and one test split can't tell."""
    seeds = min((len(row.by_seed) for row in rows if row.score is not None), default=0)
    if seeds > 1:
        return (
            f"Every score is a mean over {seeds} seeds at least, on one test split: another split "
            "may move them all."
        )
    errors = [(standard_error(row), row) for row in rows]
    known = [(error, row) for error, row in errors if error is not None]
    if not known:
        return "Every difference is from one seed: repeat with others before trusting a small one."
    error, row = max(known, key=lambda pair: pair[0])
    return (
        f"Every difference is from one seed, and each score carries a standard error of up to "
        f"{points(error, share(rows))} ({row.examples:,} test examples): repeat with other seeds "
        f"before trusting a small one."
    )
