"""Small SVG drawings: scores against a cost on a logarithmic axis, and curves over steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from attar.report.rows import Role

WIDTH, HEIGHT = 480, 350
LEFT, RIGHT, TOP, BOTTOM = 52, 468, 24, 302
LETTER, LINE = 6.7, 15
"""Room a label's letter takes and a label's height, at the style sheet's 12 pixels."""

DASHES = ("", "6 3", "2 3", "9 3 2 3", "1 4")

_DRAWN: dict[Role, int] = {"baseline": 0, "export": 1, "teacher": 2, "student": 3}


@dataclass(frozen=True)
class Point:
    """One model in a plot: its part, its place, and what hovering over it tells."""

    name: str
    role: Role
    x: float
    y: float
    told: str


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


@dataclass(frozen=True)
class Box:
    """A rectangle of pixels."""

    x: float
    y: float
    width: float
    height: float

    def overlap(self, other: Box) -> float:
        """The area two boxes share."""
        across = min(self.x + self.width, other.x + other.width) - max(self.x, other.x)
        down = min(self.y + self.height, other.y + other.height) - max(self.y, other.y)
        return max(across, 0) * max(down, 0)


def scatter(
    points: Sequence[Point],
    *,
    x_title: str,
    y_title: str,
    show_x: Callable[[float], str],
    slug: str,
) -> str:
    """Points on a logarithmic x axis, each with its name beside it."""
    across = logarithmic([point.x for point in points], LEFT, RIGHT)
    up = linear([point.y for point in points], BOTTOM, TOP)
    places = [(across.at(point.x), up.at(point.y)) for point in points]
    labels = [shortened(point.name) for point in points]
    boxes = place(places, [len(label) * LETTER for label in labels])
    names = ", ".join(point.told for point in points)
    return _figure(
        slug,
        f"{y_title} against {x_title}",
        f"Each point is one model; up and to the left is better. {names}.",
        [
            *_axes(across, up, x_title, y_title, show_x),
            f'<text class="hint end" x="{RIGHT}" y="{TOP - 11}">↖ better</text>',
            *(_leader(spot, box) for spot, box in zip(places, boxes, strict=True)),
            *(
                f"<g>{mark(point.role, x, y)}<title>{escape(point.told)}</title></g>"
                # Baselines first, the student last: where marks meet, hers is seen.
                for point, (x, y) in sorted(
                    zip(points, places, strict=True), key=lambda pair: _DRAWN[pair[0].role]
                )
            ),
            *(
                _label(label, point.role, spot, box)
                for label, point, spot, box in zip(labels, points, places, boxes, strict=True)
            ),
        ],
    )


def curves(
    arms: Mapping[str, Sequence[tuple[float, float]]],
    roles: Mapping[str, Role],
    *,
    y_title: str,
    slug: str,
) -> str:
    """One line per arm over the steps, its name at its end."""
    across = linear([x for arm in arms.values() for x, _ in arm], LEFT, RIGHT - 108, pad=0)
    up = linear([y for arm in arms.values() for _, y in arm], BOTTOM, TOP)
    ends = spread([up.at(arm[-1][1]) for arm in arms.values()])
    baselines = [name for name in arms if roles[name] == "baseline"]
    lines = []
    for (name, arm), end in zip(arms.items(), ends, strict=True):
        dash = DASHES[1 + baselines.index(name) % 4] if name in baselines else ""
        path = " ".join(f"{across.at(x):.1f},{up.at(y):.1f}" for x, y in arm)
        x, y = across.at(arm[-1][0]), up.at(arm[-1][1])
        lines += [
            f'<polyline class="curve {roles[name]}" stroke-dasharray="{dash}" points="{path}">'
            f"<title>{escape(name)}</title></polyline>",
            f'<path class="leader" d="M{x + 2:.1f},{y:.1f} L{RIGHT - 102},{end:.1f}"/>',
            _text(shortened(name, 16), RIGHT - 99, end + 4, f"label {roles[name]}"),
        ]
    told = f"One line per arm: {', '.join(arms)}."
    frame = _axes(across, up, "step", y_title, lambda step: f"{step:,.0f}")
    return _figure(slug, f"{y_title} over the steps", told, [*frame, *lines])


def mark(role: Role, x: float, y: float) -> str:
    """The sign of a part, told apart by shape as well as by colour."""
    if role == "teacher":
        return f'<circle class="mark {role}" cx="{x:.1f}" cy="{y:.1f}" r="5.5"/>'
    corners = {
        "student": ((0, -7), (7, 0), (0, 7), (-7, 0)),
        "export": ((-5, -5), (5, -5), (5, 5), (-5, 5)),
        "baseline": ((0, -6), (6, 5), (-6, 5)),
    }[role]
    outline = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return f'<polygon class="mark {role}" points="{outline}"/>'


def place(places: Sequence[tuple[float, float]], widths: Sequence[float]) -> list[Box]:
    """A box for each label: near its point, inside the frame, over nothing else if it can be."""
    taken = [Box(x - 7, y - 7, 14, 14) for x, y in places]
    boxes: list[Box] = []
    for (x, y), width in zip(places, widths, strict=True):
        options = list(_around(x, y, width))
        box = min(options, key=lambda box: _crowding(box, taken) + 0.1 * options.index(box))
        taken.append(box)
        boxes.append(box)
    return boxes


def _around(x: float, y: float, width: float) -> Iterator[Box]:
    """Where a label may stand, the best place first."""
    for distance in range(0, 10 * LINE, 5):
        for down in {distance: None, -distance: None}:
            yield Box(x + 11, y + down - LINE / 2, width, LINE)
            yield Box(x - 11 - width, y + down - LINE / 2, width, LINE)
            if distance >= LINE:
                yield Box(x - width / 2, y + down - LINE / 2, width, LINE)


def _crowding(box: Box, taken: Sequence[Box]) -> float:
    inside = box.overlap(Box(LEFT + 2, TOP - 8, WIDTH - LEFT - 4, BOTTOM - TOP + 6))
    return sum(map(box.overlap, taken)) + 4 * (box.width * box.height - inside)


def spread(heights: Sequence[float]) -> list[float]:
    """The heights moved apart by at least a line, their order kept, within the frame."""
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    moved = list(heights)
    for above, below in pairwise(order):
        moved[below] = max(moved[below], moved[above] + LINE)
    limit = float(BOTTOM)
    for index in reversed(order):
        moved[index] = min(moved[index], limit)
        limit = moved[index] - LINE
    return moved


def linear(values: Sequence[float], start: float, end: float, pad: float = 0.1) -> Axis:
    """A straight axis over the values, with ticks at round numbers."""
    low, high = min(values), max(values)
    span = high - low or abs(high) or 1.0
    low, high = low - pad * span, high + pad * span
    high = high if high > low else low + span
    magnitude = 10 ** math.floor(math.log10((high - low) / 4))
    step = next(s for s in (1, 2, 2.5, 5, 10) if s * magnitude >= (high - low) / 6) * magnitude
    first, last = math.ceil(low / step), math.floor(high / step)
    ticks = tuple(round(step * n, 12) for n in range(first, last + 1))
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


def shortened(name: str, letters: int = 30) -> str:
    """The name, its middle left out where it is too long to draw."""
    if len(name) <= letters:
        return name
    return f"{name[: letters // 2]}…{name[-(letters // 2 - 1) :]}"


def _axes(
    across: Axis, up: Axis, x_title: str, y_title: str, show_x: Callable[[float], str]
) -> Iterator[str]:
    step = up.ticks[1] - up.ticks[0] if len(up.ticks) > 1 else 1.0
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    # A step of 0.025 needs the third decimal that its size alone does not show.
    decimals += round(step * 10**decimals, 6) % 1 != 0
    for tick in up.ticks:
        y = up.at(tick)
        yield f'<path class="grid" d="M{LEFT},{y:.1f} H{across.end:.1f}"/>'
        yield _text(f"{tick:,.{decimals}f}", LEFT - 7, y + 4, "tick end")
    for tick in across.ticks:
        x = across.at(tick)
        yield f'<path class="rule" d="M{x:.1f},{BOTTOM} v5"/>'
        yield _text(show_x(tick), x, BOTTOM + 18, "tick middle")
    yield f'<path class="rule" d="M{LEFT},{BOTTOM} H{across.end:.1f}"/>'
    yield _text(x_title, (LEFT + across.end) / 2, BOTTOM + 39, "title middle")
    yield _text(y_title, 6, TOP - 11, "title")


def _leader(spot: tuple[float, float], box: Box) -> str:
    """A thin line from a point to a label that had to move away from it."""
    x, y = spot
    near_x = min(max(x, box.x), box.x + box.width)
    near_y = min(max(y, box.y + 3), box.y + box.height - 3)
    if math.hypot(near_x - x, near_y - y) < 14:
        return ""
    return f'<path class="leader" d="M{x:.1f},{y:.1f} L{near_x:.1f},{near_y:.1f}"/>'


def _label(label: str, role: Role, spot: tuple[float, float], box: Box) -> str:
    """A label set against its point: in a font of another width it grows away from the mark."""
    left = box.x + box.width <= spot[0]
    x = box.x + box.width if left else box.x
    return _text(label, x, box.y + 0.75 * LINE, f"label {role}{' end' * left}")


def _text(text: str, x: float, y: float, style: str) -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _figure(slug: str, title: str, told: str, drawn: Sequence[str]) -> str:
    name = f"plot-{slug}"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-labelledby="{name}-title {name}-told">'
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-told">{escape(told)}</desc>{"".join(drawn)}</svg>'
    )
