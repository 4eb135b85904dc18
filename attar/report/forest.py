"""Forest plots: means with their intervals, a line each, beside the line where nothing changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from attar.report.drawing import RIGHT, WIDTH, Axis, figure, linear, shortened, text

EDGE = 10
"""Room left of the lowest value."""

TOP, STEP, FOOT = 22, 38, 44
"""Room above the first line, of each line with its name, and below the last for the ticks."""

LETTERS = 30
"""As long as a name may be to leave the figures room."""


@dataclass(frozen=True)
class Line:
    """A mean, its interval, the values it is the mean of, and what is said of it.

    sure: whether its sign is resolved: it is drawn full then, else hollow
    figures: what stands to the right of the name
    """

    name: str
    mean: float
    low: float | None
    high: float | None
    sure: bool
    figures: str
    dots: tuple[float, ...] = ()

    @property
    def told(self) -> str:
        """The line in words."""
        return f"{self.name}: {self.figures}"


def forest(lines: Sequence[Line], *, title: str, x_title: str, told: str, slug: str) -> str:
    """Each line's name and figures, below them its interval; zero is the upright line."""
    values = [
        value
        for line in lines
        for value in (line.mean, line.low, line.high, *line.dots)
        if value is not None
    ]
    across = linear([0.0, *values], EDGE, RIGHT, pad=0.06)
    said = "; ".join(line.told for line in lines)
    drawn = [
        *_frame(across, len(lines), x_title),
        *(part for place, line in enumerate(lines) for part in _drawn(line, place, across)),
    ]
    return figure(slug, title, f"{told} {said}.", drawn, TOP + STEP * len(lines) + FOOT)


def _frame(across: Axis, lines: int, x_title: str) -> Iterator[str]:
    """Ticks below, and upright lines that leave the names and figures out."""
    foot = TOP + STEP * lines
    for tick in across.ticks:
        x = across.at(tick)
        if tick:
            yield f'<path class="grid" d="{_upright(x, lines)}"/>'
        yield text(across.told(tick), x, foot + 17, "tick middle")
    zero = across.at(0.0)
    yield f'<path class="zero" d="{_upright(zero, lines)}"/>'
    yield text(x_title, WIDTH / 2, foot + 38, "title middle")
    if zero - EDGE > 60:
        yield text("← lower", zero - 6, TOP - 8, "hint end")
    if RIGHT - zero > 60:
        yield text("higher →", zero + 6, TOP - 8, "hint")


def _upright(x: float, lines: int) -> str:
    return " ".join(f"M{x:.1f},{TOP + STEP * n + 16} v18" for n in range(lines))


def _drawn(line: Line, place: int, across: Axis) -> Iterator[str]:
    top = TOP + STEP * place
    y, x = top + 25, across.at(line.mean)
    yield text(shortened(line.name, LETTERS), EDGE, top + 12, "label name")
    yield text(line.figures, RIGHT, top + 12, "label end")
    yield f"<g><title>{escape(line.told)}</title>"
    if line.low is not None and line.high is not None:
        low, high = across.at(line.low), across.at(line.high)
        yield (
            f'<path class="spread{"" if line.sure else " unsure"}" '
            f'd="M{low:.1f},{y - 4} v8 m0,-4 H{high:.1f} m0,-4 v8"/>'
        )
    for value in line.dots:
        yield f'<circle class="dot" cx="{across.at(value):.1f}" cy="{y}" r="2.2"/>'
    corners = " ".join(
        f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in ((0, -6), (6, 0), (0, 6), (-6, 0))
    )
    yield f'<polygon class="mean{"" if line.sure else " unsure"}" points="{corners}"/></g>'
