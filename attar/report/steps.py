"""Step by step: what each step of a recipe changed, for better and for worse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from attar.report import figures
from attar.report.rows import Row
from attar.report.weighing import level, points, share, times, within_noise

SLOWER = 1.1
"""Times as slow from which a step is said to slow a model down; less is how timings vary."""

LARGER = 1.01
"""Times as many bytes from which a step is said to have made a model bigger."""

Effect = Literal["gain", "harm", "neither"]


@dataclass(frozen=True)
class Change:
    """One figure as a step left it, what that is to what it was, and whether that is good.

    told: empty where there is nothing to compare it with
    """

    now: str
    told: str = ""
    effect: Effect = "neither"


@dataclass(frozen=True)
class Step:
    """A row, the row it was made from, and the row that its time can be compared with.

    rival: the nearest of those before it that the same program runs, in which only the model
        differs; None where there is none
    """

    row: Row
    before: Row
    rival: Row | None

    def changes(self, score_name: str = "score") -> dict[str, Change]:
        """The figures that both sides have."""
        found = {
            score_name: self._score(),
            "size": self._fold("size_bytes", ("smaller", "bigger")),
            "zipped": self._fold("zipped_bytes", ("smaller", "bigger")),
            "p50 ms": self._latency(),
        }
        return {name: change for name, change in found.items() if change is not None}

    def _score(self) -> Change | None:
        now, was = self.row.score, self.before.score
        if now is None or was is None:
            return None
        shares = share([self.row, self.before])
        if level(now - was, shares):
            return Change(figures.score(now), "level")
        told = f"{points(now - was, shares)} {'higher' if now > was else 'lower'}"
        if within_noise(self.row, self.before):
            return Change(figures.score(now), f"{told}, within the noise")
        return Change(figures.score(now), told, "gain" if now > was else "harm")

    def _fold(self, name: str, words: tuple[str, str]) -> Change | None:
        now, was = vars(self.row)[name], vars(self.before)[name]
        return _folded(was, now, figures.size(now), words) if now and was else None

    def _latency(self) -> Change | None:
        now, rival = self.row.percentile("p50"), self.rival
        was = None if rival is None else rival.percentile("p50")
        if not now or not was or rival is None:
            return Change(figures.milliseconds(now)) if now else None
        change = _folded(was, now, figures.milliseconds(now), ("faster", "slower"))
        if rival is self.before:
            return change
        same = change.effect == "neither"
        return replace(change, told=f"{change.told} {'as' if same else 'than'} {rival.name}")


def _folded(was: float, now: float, shown: str, words: tuple[str, str]) -> Change:
    """How many times less or more there is; what rounds to once is the same."""
    told = times(was, now, *words)
    if told.startswith(f"{figures.ratio(1)} "):
        return Change(shown, "the same")
    return Change(shown, told, "gain" if now < was else "harm")


def steps(rows: Sequence[Row]) -> tuple[Step, ...]:
    """Every row that a step made from another that is there too, in the order of the rows."""
    named = {row.name: row for row in rows}
    made = [row for row in rows if row.after in named and row.after != row.name]
    return tuple(Step(row, named[row.after], _rival(row, rows, named)) for row in made)


def _rival(row: Row, rows: Sequence[Row], named: Mapping[str, Row]) -> Row | None:
    """The nearest model before the row's own that its program runs too.

    At each model on the way back it is that model itself or what stands before the row and was
    made of it, such as the float file beside an int8 file.
    """
    earlier = list(rows[: rows.index(row)])
    for origin in _origins(row, named):
        made = [each for each in earlier if each.after == origin.name]
        for each in (origin, *reversed(made)):
            if each.program == row.program:
                return each
    return None


def _origins(row: Row, named: Mapping[str, Row]) -> Iterator[Row]:
    """What the row was made from, and what that was made from, and so on."""
    seen = {row.name}
    while row.after in named and row.after not in seen:
        row = named[row.after]
        seen.add(row.name)
        yield row


def sentences(rows: Sequence[Row], score_name: str = "score") -> list[str]:
    """One sentence for each step: its harm and its gain."""
    told = []
    for step in steps(rows):
        parts = [
            f"{name.removesuffix(' ms')} {change.told}"
            for name, change in step.changes(score_name).items()
            if change.told
        ]
        if parts:
            told.append(f"{step.row.name}, from {step.before.name}: {'; '.join(parts)}.")
    return told


def warnings(rows: Sequence[Row]) -> list[str]:
    """A sentence for each step that made the model slower or bigger than it was, run alike."""
    return [sentence for step in steps(rows) if step.rival for sentence in _grown(step, step.rival)]


def _grown(step: Step, rival: Row) -> Iterator[str]:
    maker, row = _maker(step), step.row
    slow, fast = row.percentile("p50"), rival.percentile("p50")
    if slow and fast and slow >= SLOWER * fast:
        yield (
            f"{maker} made it {_times(slow / fast)} times slower on this machine: {row.name} "
            f"answers in {figures.milliseconds(slow)} ms, {rival.name} in "
            f"{figures.milliseconds(fast)} ms, both in {row.program}."
        )
    big, small = row.size_bytes, rival.size_bytes
    if big and small and big >= LARGER * small:
        yield (
            f"{maker} made it {_times(big / small)} times bigger: {row.name} takes "
            f"{figures.size(big)}, {rival.name} {figures.size(small)}."
        )


def _times(factor: float) -> str:
    return f"{factor:.2f}" if factor < 1.1 else f"{factor:.2g}" if factor < 10 else f"{factor:.0f}"


def _maker(step: Step) -> str:
    """What made the row: the steps that its name tells beyond the other's; else its whole name."""
    made, was = (_stem(name) for name in (step.row.name, (step.rival or step.before).name))
    beyond = made.removeprefix(f"{was}-")
    return beyond if beyond != made else step.row.name


def _stem(name: str) -> str:
    return name.removesuffix("-folder").partition(".")[0]
