"""Numbers as people read them: counts, bytes, milliseconds, scores, seconds, ratios."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

from attar.report.rows import finite

MISSING = "–"
"""What stands where nothing was measured."""


def count(number: float) -> str:
    """Parameters or multiply-accumulates: 770, 3.1M, 22.7M, 1.4G."""
    return _scaled(number, ("", "K", "M", "G", "T"))


def size(number: float) -> str:
    """Bytes in decimal units, as shops and file managers count them: 3.2 MB."""
    return _scaled(number, (" B", " KB", " MB", " GB", " TB"))


def _scaled(number: float, units: tuple[str, ...]) -> str:
    if number < 1000:
        return f"{number:.0f}{units[0]}"
    for unit in units[1:]:
        number /= 1000
        # 999,960 is 1.0M: the unit is chosen after rounding.
        if round(number, 1) < 1000 or unit == units[-1]:
            break
    return f"{number:.1f}{unit}" if round(number, 1) < 100 else f"{number:.0f}{unit}"


def milliseconds(number: float) -> str:
    """A latency's two or three significant digits, without its unit: 0.25, 8.90, 12.3, 140."""
    if number >= 100:
        return f"{number:,.0f}"
    if number >= 10:
        return f"{number:.1f}"
    return f"{number:.2f}" if number >= 0.1 or number == 0 else f"{number:.2g}"


def energy(joules: float) -> str:
    """An energy in the unit that leaves one to three digits before the point: 42 µJ, 1.3 mJ."""
    for unit, scale in (("J", 1.0), ("mJ", 1e3), ("µJ", 1e6)):
        if joules * scale >= 1 or unit == "µJ":
            break
    return f"{joules * scale:.3g} {unit}"


def score(number: float) -> str:
    """Three decimals of a share; four significant digits of anything larger."""
    return f"{number:.3f}" if abs(number) <= 1 else f"{number:,.4g}"


def ratio(number: float) -> str:
    """How many times: 5.6×, 28×."""
    return f"{number:.1f}×" if round(number, 1) < 10 else f"{number:,.0f}×"


def metric(number: float) -> str:
    """Anything scored: whole numbers as they are, shares like a score, the tiny in two digits."""
    if isinstance(number, int):
        return f"{number:,}"
    return f"{number:.2g}" if 0 < abs(number) < 0.001 else score(number)


def duration(seconds: float | None) -> str:
    """A time to wait: 0.42 s, 8.3 s, 6 min 40 s, 2 h 05 min."""
    if finite(seconds) is None or seconds is None:
        return MISSING
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def anything(value: Any) -> str:
    """A value whose meaning is not known here: a metric, a setting."""
    if value is None or (isinstance(value, float) and finite(value) is None):
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, Real):
        return f"{float(value):.4g}"
    return str(value)


def inline(value: Any) -> str:
    """Nested facts on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {inline(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(inline, value))
    return anything(value)
