"""The differences between rows in words: which are resolved, how large each is, and why not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attar.report import figures
from attar.report.rows import Row
from attar.report.weighing import share, signed

HEAD = ("model", "against", "difference", "95 % interval", "p", "by seed", "resolved", "why")


@dataclass(frozen=True)
class Pair:
    """One row weighed against another, as `Report.differences` has it.

    shares: whether scores are shares of the examples, so that differences are told in points
    """

    row: str
    against: str
    mean: float
    resolved: bool
    low: float | None = None
    high: float | None = None
    p: float | None = None
    by_seed: Sequence[float] = ()
    examples: int | None = None
    why: str = ""
    shares: bool = True

    @property
    def amount(self) -> str:
        """The difference with its sign: "+3.2 points"."""
        return signed(self.mean, self.shares)

    @property
    def interval(self) -> str:
        """Both ends of the interval with their signs; empty where nobody knows them."""
        if self.low is None or self.high is None:
            return ""
        low, high = (signed(end, self.shares, unit=False) for end in (self.low, self.high))
        return f"{low} to {high}"

    @property
    def chance(self) -> str:
        """The test's p in two digits; empty where nothing was tested."""
        if self.p is None:
            return ""
        return f"{self.p:.2g}" if self.p >= 0.001 else "< 0.001"

    @property
    def seeds(self) -> str:
        """Over how many seeds it was found; empty where that is not said."""
        many = len(self.by_seed)
        return f"{many} seed{'s' * (many != 1)}" if many else ""

    def cells(self) -> list[str]:
        """A line of the table that `HEAD` is the head of."""
        return [
            self.row,
            self.against,
            self.amount,
            self.interval or figures.MISSING,
            self.chance or figures.MISSING,
            ", ".join(signed(each, self.shares, unit=False) for each in self.by_seed)
            or figures.MISSING,
            "yes" if self.resolved else "no",
            self.why,
        ]


def pairs(rows: Sequence[Row], differences: Sequence[Mapping[str, Any]]) -> tuple[Pair, ...]:
    """Every difference that a report holds, in its order."""
    shares = share(rows)
    return tuple(Pair(**each, shares=shares) for each in differences)


def by_rival(found: Sequence[Pair]) -> Iterator[tuple[str, list[Pair]]]:
    """The pairs that have the same row on their other side, together."""
    for against in dict.fromkeys(pair.against for pair in found):
        yield against, [pair for pair in found if pair.against == against]
