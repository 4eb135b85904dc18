"""Plots as small SVG drawings: scores against a cost with their Pareto front, curves over steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from attar.report.drawing import (
    BOTTOM,
    LEFT,
    LETTER,
    LINE,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    axes,
    figure,
    linear,
    logarithmic,
    shortened,
    text,
)
from attar.report.rows import Role

DASHES = ("", "6 3", "2 3", "9 3 2 3", "1 4")

NAMED = 12
"""Points, or curves, that may all bear their names; of more, only those that matter do."""

GAP = 0.75
"""The part of all scores' range that a gap must be for what is below it to leave the axis."""

EDGE = BOTTOM - 9
"""Where points stand that are below the axis."""

_DRAWN: dict[Role, int] = {"baseline": 0, "export": 1, "teacher": 2, "student": 3}


@dataclass(frozen=True)
class Point:
    """One model in a plot: its part, its place, and what hovering over it tells.

    interval: the lowest and the highest y that is likely; None where nobody knows
    dots: the y of each seed
    """

    name: str
    role: Role
    x: float
    y: float
    told: str
    interval: tuple[float, float] | None = None
    dots: tuple[float, ...] = ()


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


def front(points: Sequence[Point]) -> list[Point]:
    """The Pareto front from the cheapest on: those that none beats in y at their x or less."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (point.x, -point.y)):
        if not kept or point.y > kept[-1].y:
            kept.append(point)
    return kept


def named(points: Sequence[Point]) -> list[Point]:
    """The points that bear their names: all where they are few, else the front and teachers."""
    if len(points) <= NAMED:
        return list(points)
    best = front(points)
    return [point for point in points if point in best or point.role == "teacher"]


def fallen(points: Sequence[Point]) -> list[Point]:
    """Points so far below all others that an axis which holds them would press those together."""
    order = sorted(points, key=lambda point: point.y)
    gaps = [above.y - below.y for below, above in pairwise(order)]
    if not gaps or max(gaps) <= GAP * (order[-1].y - order[0].y):
        return []
    below = order[: 1 + gaps.index(max(gaps))]
    return below if len(below) <= len(order) / 3 else []


def scatter(
    points: Sequence[Point],
    *,
    x_title: str,
    y_title: str,
    show_x: Callable[[float], str],
    slug: str,
) -> str:
    """Points on a logarithmic x axis with their names, the Pareto front through the best."""
    low = fallen(points)
    across = logarithmic([point.x for point in points], LEFT, RIGHT)
    held = [point for point in points if point not in low]
    heights = [y for point in held for y in (point.y, *(point.interval or ()), *point.dots)]
    up = linear(heights, BOTTOM, TOP)

    def spot(point: Point) -> tuple[float, float]:
        return across.at(point.x), EDGE if point in low else up.at(point.y)

    # Baselines first, the student last: where marks meet, hers is seen.
    layers = sorted(points, key=lambda point: _DRAWN[point.role])
    spots = {point.name: spot(point) for point in points}
    return figure(
        slug,
        f"{y_title} against {x_title}",
        _told(points, low),
        [
            *axes(across, up, x_title, y_title, show_x),
            text("↖ better", RIGHT, TOP - 11, "hint end"),
            _stairs([spots[point.name] for point in front(points)], across.end),
            *(_spread(point, across, up) for point in layers if point not in low),
            *_names(points, spots, {point.name for point in low}),
            *(
                f"<g>{mark(point.role, *spots[point.name])}<title>{escape(point.told)}</title></g>"
                for point in layers
            ),
        ],
    )


def _told(points: Sequence[Point], low: Sequence[Point]) -> str:
    """The plot for whoever can't see it."""
    best = front(points)
    on_it = "; ".join(point.told for point in best)
    others = "; ".join(point.told for point in points if point not in best)
    names = ", ".join(point.name for point in low)
    return (
        "Each point is one model; up and to the left is better. On the Pareto front, where none "
        f"is both better and cheaper, from the cheapest: {on_it}."
        + f" Beaten by one of these: {others}." * bool(others)
        + f" Far below the axis: {names}." * bool(low)
    )


def _stairs(best: Sequence[tuple[float, float]], end: float) -> str:
    """The front as stairs: to the right of a point its score can be had too."""
    first, *rest = best
    climb = " ".join(f"H{x:.1f} V{y:.1f}" for x, y in rest)
    return f'<path class="front" d="M{first[0]:.1f},{first[1]:.1f} {climb} H{end:.1f}"/>'


def _spread(point: Point, across: Axis, up: Axis) -> str:
    """The interval of a point, and a dot for each seed."""
    x = across.at(point.x)
    dots = "".join(
        f'<circle class="dot {point.role}" cx="{x:.1f}" cy="{up.at(y):.1f}" r="2.2"/>'
        for y in point.dots
    )
    if point.interval is None:
        return dots
    low, high = (up.at(y) for y in point.interval)
    return (
        f'<path class="spread {point.role}" d="M{x - 4:.1f},{low:.1f} h8 m-4,0 V{high:.1f} '
        f'm-4,0 h8"/>{dots}'
    )


def _names(
    points: Sequence[Point], spots: Mapping[str, tuple[float, float]], low: Container[str]
) -> Iterator[str]:
    """Each name near its point, and a line to it where it had to move away."""
    shown = named(points)
    places = [spots[point.name] for point in shown]
    others = [spots[point.name] for point in points if point not in shown]
    labels = [
        f"{shortened(point.name, 18)} ↓ {point.y:.3g}"
        if point.name in low
        else shortened(point.name)
        for point in shown
    ]
    boxes = place(places, [len(label) * LETTER for label in labels], others)
    yield from (_leader(spot, box) for spot, box in zip(places, boxes, strict=True))
    for label, point, spot, box in zip(labels, shown, places, boxes, strict=True):
        yield _label(label, point.role, spot, box)


def curves(
    arms: Mapping[str, Sequence[tuple[float, float]]],
    roles: Mapping[str, Role],
    *,
    y_title: str,
    slug: str,
) -> str:
    """One line per arm over the steps, its name at its end where there is room for all names."""
    few = len(arms) <= NAMED
    end = RIGHT - 102 if few else RIGHT
    across = linear([x for arm in arms.values() for x, _ in arm], LEFT, end, pad=0)
    up = linear([y for arm in arms.values() for _, y in arm], BOTTOM, TOP)
    ends = spread([up.at(arm[-1][1]) for arm in arms.values()])
    baselines = [name for name in arms if roles[name] == "baseline"]
    lines = []
    for (name, arm), height in zip(arms.items(), ends, strict=True):
        dash = DASHES[1 + baselines.index(name) % 4] if name in baselines else ""
        path = " ".join(f"{across.at(x):.1f},{up.at(y):.1f}" for x, y in arm)
        x, y = across.at(arm[-1][0]), up.at(arm[-1][1])
        lines.append(
            f'<polyline class="curve {roles[name]}{"" if few else " many"}" '
            f'stroke-dasharray="{dash}" points="{path}"><title>{escape(name)}</title></polyline>'
        )
        if few:
            lines += [
                f'<path class="leader" d="M{x + 2:.1f},{y:.1f} L{end + 6:.1f},{height:.1f}"/>',
                text(shortened(name, 14), end + 9, height + 4, f"label {roles[name]}"),
            ]
    last = "; ".join(f"{name} ends at {arm[-1][1]:.3g}" for name, arm in arms.items())
    told = f"One line per training: {last}."
    frame = axes(across, up, "step", y_title, lambda step: f"{step:,.0f}")
    return figure(slug, f"{y_title} over the steps", told, [*frame, *lines])


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


def place(
    places: Sequence[tuple[float, float]],
    widths: Sequence[float],
    others: Sequence[tuple[float, float]] = (),
) -> list[Box]:
    """A box for each label: near its point, inside the frame, over nothing else if it can be.

    others: points without a label, to be left free
    """
    taken = [Box(x - 7, y - 7, 14, 14) for x, y in (*places, *others)]
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
    return text(label, x, box.y + 0.75 * LINE, f"label {role}{' end' * left}")
