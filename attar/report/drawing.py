"""What every drawing of the report is made of: axes with ticks, texts, the SVG around them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 420, 330
"""Narrow enough that its letters can still be read on a phone."""

LEFT, RIGHT, TOP, BOTTOM = 48, 410, 24, 282
LETTER, LINE = 7.2, 15
"""Room a label's letter takes and a label's height, with what a phone's style sheet adds."""


@dataclass(frozen=True)
class Axis:
    """A range of values laid along pixels, straight or logarithmic, with its ticks."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """The pixel where a value stands."""
        bend = math.log if self.logarithmic else float
        share = (bend(value) - bend(self.low)) / (bend(self.high) - bend(self.low))
        return self.start + share * (self.end - self.start)

    def told(self, tick: float) -> str:
        """A tick of a straight axis with as many decimals as tell it from the next."""
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else 1.0
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        # A step of 0.025 needs the third decimal that its size alone does not show.
        decimals += round(step * 10**decimals, 6) % 1 != 0
        return f"{tick:,.{decimals}f}".replace("-", "−")


def linear(values: Sequence[float], start: float, end: float, pad: float = 0.1) -> Axis:
    """A straight axis over the values, with ticks at round numbers."""
    low, high = min(values), max(values)
    span = high - low or abs(high) or 1.0
    low, high = low - pad * span, high + pad * span
    high = high if high > low else low + span
    magnitude = 10 ** math.floor(math.log10((high - low) / 4))
    step = next(s for s in (1, 2, 2.5, 5, 10) if s * magnitude >= (high - low) / 6) * magnitude
    first, last = math.ceil(low / step), math.floor(high / step)
    # Adding 0 turns a minus zero into zero.
    ticks = tuple(round(step * n, 12) + 0.0 for n in range(first, last + 1))
    return Axis(low, high, start, end, ticks)


def logarithmic(values: Sequence[float], start: float, end: float) -> Axis:
    """A logarithmic axis over positive values, wide enough to hold two ticks."""
    low, high = min(values), max(values)
    widen = max(1.4, math.sqrt(5.5 * low / high))
    low, high = low / widen, high * widen
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits = (1, 2, 5) if high / low < 300 else (1,)
    ticks = [float(f"{digit}e{decade}") for decade in decades for digit in digits]
    return Axis(low, high, start, end, tuple(t for t in ticks if low <= t <= high), True)


def axes(
    across: Axis, up: Axis, x_title: str, y_title: str, show_x: Callable[[float], str]
) -> Iterator[str]:
    """Both axes of a plot: grid, ticks and titles."""
    for tick in up.ticks:
        y = up.at(tick)
        yield f'<path class="grid" d="M{LEFT},{y:.1f} H{across.end:.1f}"/>'
        yield text(up.told(tick), LEFT - 7, y + 4, "tick end")
    for tick in across.ticks:
        x = across.at(tick)
        yield f'<path class="rule" d="M{x:.1f},{BOTTOM} v5"/>'
        yield text(show_x(tick), x, BOTTOM + 19, "tick middle")
    yield f'<path class="rule" d="M{LEFT},{BOTTOM} H{across.end:.1f}"/>'
    yield text(x_title, (LEFT + across.end) / 2, BOTTOM + 40, "title middle")
    yield text(y_title, 6, TOP - 11, "title")


def shortened(name: str, letters: int = 26) -> str:
    """The name, its middle left out where it is too long to draw."""
    if len(name) <= letters:
        return name
    return f"{name[: letters // 2]}…{name[-(letters // 2 - 1) :]}"


def text(told: str, x: float, y: float, style: str) -> str:
    """A text in a drawing; whatever it says is shown as it stands."""
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{escape(told)}</text>'


def figure(slug: str, title: str, told: str, drawn: Sequence[str], height: float = HEIGHT) -> str:
    """A drawing with its name and, for whoever can't see it, what it shows."""
    name = f"plot-{slug}"
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-labelledby="{name}-title {name}-told">'
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-told">{escape(told)}</desc>{"".join(drawn)}</svg>'
    )
