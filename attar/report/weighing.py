"""One figure weighed against another: how much less or more it is, and whether that is noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

from attar.report import figures
from attar.report.rows import Row

WIDTH = 2 * 1.96
"""Standard errors in a 95 % interval, if what is in it is normal."""

NOTHING = 1e-4
"""A difference of scores that are no shares below which they are level: rounding in a runtime."""

EVEN = 0.75
"""The nearer end of an interval as a part of the farther one from which it is told as ±."""


def share(rows: Sequence[Row]) -> bool:
    """Whether the scores can be read as shares of the examples: all within [0, 1]."""
    return all(0 <= row.score <= 1 for row in rows if row.score is not None)


def times(before: float, after: float, less: str, more: str) -> str:
    """How much less (or more) there is after than before: "28× smaller"."""
    factor = before / after
    return (
        f"{figures.ratio(factor)} {less}" if factor >= 1 else f"{figures.ratio(1 / factor)} {more}"
    )


def points(difference: float, shares: bool) -> str:
    """The size of a difference in scores, without its sign."""
    return f"{abs(100 * difference):.1f} points" if shares else f"{abs(difference):.3g}"


def level(difference: float, shares: bool) -> bool:
    """Whether the difference vanishes at the precision it is told in."""
    return round(100 * difference, 1) == 0 if shares else abs(difference) < NOTHING


def standard_error(row: Row) -> float | None:
    """Standard error of the row's score over the test split; None where unknown.

    Of a share it is binomial. Of other scores, as returns are, it is told by their interval, where
    that is of one seed.
    """
    if row.score is not None and row.interval is not None and row.examples and not row.by_seed:
        low, high = row.interval
        return (high - low) / WIDTH
    if row.score is None or not row.examples or not 0 <= row.score <= 1:
        return None
    return math.sqrt(row.score * (1 - row.score) / row.examples)


def within_noise(one: Row, other: Row) -> bool:
    """Whether two scores differ by less than two standard errors of their difference.

    Of several seeds the report's differences tell that better, and this says nothing.
    """
    if len(one.by_seed) > 1 and len(other.by_seed) > 1:
        return False
    errors = standard_error(one), standard_error(other)
    if errors[0] is None or errors[1] is None or one.score is None or other.score is None:
        return False
    return abs(one.score - other.score) < 2 * math.hypot(errors[0], errors[1])


def signed(difference: float, shares: bool, unit: bool = True) -> str:
    """A difference with its sign: "+3.2 points", "−0.4 points", "0.0 points"."""
    amount, _, word = points(difference, shares).partition(" ")
    sign = "" if level(difference, shares) else "−" if difference < 0 else "+"
    return f"{sign}{amount} {word}".rstrip() if unit else sign + amount


def spread(row: Row) -> str:
    """How far the mean score of several seeds may be off: "±0.004", or both ends where uneven."""
    if row.score is None or row.interval is None:
        return ""
    low, high = row.interval
    near, far = sorted((row.score - low, high - row.score))
    if near >= EVEN * far:
        return f"±{figures.score(far)}"
    return f"({figures.score(low)} to {figures.score(high)})"
