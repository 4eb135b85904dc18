"""The drawings of a report, each in a figure with its caption, and the legend they share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from attar.report import figures, plot, weighing
from attar.report.audits import changed
from attar.report.forest import Line, forest
from attar.report.pairs import Pair, by_rival
from attar.report.rows import Role, Row, finite

if TYPE_CHECKING:
    from attar.report.paper import Report

_PARTS: dict[Role, str] = {
    "teacher": "teacher",
    "student": "student",
    "export": "compressed or exported",
    "baseline": "baseline",
}

POINTS = 240
"""Points of one curve: no screen shows more."""

ALL_POINTS = 2400
"""Points of all the curves in one drawing, so that a page of many arms stays small."""

CLASSES = 12
"""Classes that an audit draws, the worst of them first; its file has them all."""


def scatters(report: Report) -> str:
    """Score against latency and against size."""
    latency = ("latency", "latency, median of one call (ms)")
    drawn = [
        _scatter(report, "size", "size on disk", lambda row: row.size_bytes, _size),
        _scatter(report, *latency, lambda row: row.percentile("p50"), lambda x: f"{x:g}"),
    ]
    if not any(drawn):
        return ""
    present = dict.fromkeys(row.role for row in report.rows)
    legend = "".join(f"<li>{swatch(role)}{_PARTS[role]}</li>" for role in present)
    legend += f"<li>{_dashes('front')}Pareto front</li>"
    if any(row.interval for row in report.rows):
        legend += f"<li>{_dashes('spread')}95 % interval of the mean</li>"
    return f'<ul class="legend">{legend}</ul>{_plots(drawn)}'


def swatch(role: Role) -> str:
    """The sign of a part, as the plots have it."""
    return f'<svg viewBox="-8 -8 16 16" aria-hidden="true">{plot.mark(role, 0, 0)}</svg>'


def _dashes(kind: str) -> str:
    drawn = f'<path class="{kind}" d="M-8,0 H8"/>'
    return f'<svg viewBox="-8 -8 16 16" aria-hidden="true">{drawn}</svg>'


def _plots(drawn: Iterable[str]) -> str:
    return f'<div class="plots">{"".join(drawn)}</div>'


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _size(size: float) -> str:
    return figures.size(size).replace(".0 ", " ")


def _scatter(
    report: Report,
    slug: str,
    title: str,
    value: Callable[[Row], float | None],
    show: Callable[[float], str],
) -> str:
    """One plot of the score; the caption names whoever has no figure to be drawn by."""
    unit = " ms" if slug == "latency" else ""
    points = [
        plot.Point(row.name, row.role, x, row.score, told, row.interval, row.by_seed)
        for row in report.rows
        if row.score is not None and (x := value(row)) and x > 0
        for told in [f"{row.name} ({_scored(row)}, {show(float(f'{x:.3g}'))}{unit})"]
    ]
    if not points:
        return ""
    svg = plot.scatter(points, x_title=title, y_title=report.score_name, show_x=show, slug=slug)
    return _figure(svg, " ".join(_caption(report, points, slug)))


def _scored(row: Row) -> str:
    shown = figures.score(row.score) if row.score is not None else figures.MISSING
    return f"{shown} {weighing.spread(row)}".rstrip()


def _caption(report: Report, points: Sequence[plot.Point], slug: str) -> Iterable[str]:
    best = ", ".join(point.name for point in plot.front(points))
    yield f"{report.score_name.capitalize()} against {slug}, on a logarithmic axis."
    yield f"On the Pareto front: {best}."
    if len(plot.named(points)) < len(points):
        yield "Only the front and the teacher bear their names; hover to read the others."
    if low := ", ".join(point.name for point in plot.fallen(points)):
        yield f"Far below the axis, on its edge: {low}."
    drawn = {point.name for point in points}
    if absent := ", ".join(row.name for row in report.rows if row.name not in drawn):
        yield f"Not drawn, for want of a figure: {absent}."


def training(report: Report) -> str:
    """Loss and validation score of every training over its steps."""
    about = {
        "loss": "Each arm minimizes its own objective: compare shapes, not heights.",
        "score": f"{report.score_name.capitalize()} on the validation split.",
    }
    drawn = [_curves(report, key, caption) for key, caption in about.items()]
    return _plots(drawn) if any(drawn) else ""


def _curves(report: Report, key: str, caption: str) -> str:
    arms = {name: _points(entries, key) for name, entries in report.history.items()}
    arms = {name: points for name, points in arms.items() if points}
    if not arms:
        return ""
    most = min(POINTS, max(ALL_POINTS // len(arms), 2))
    parts = {row.name: row.role for row in report.rows}
    roles = {name: parts.get(name, Row(name, "").role) for name in arms}
    thin = {name: thinned(points, most) for name, points in arms.items()}
    title = report.score_name if key == "score" else key
    many = " Hover over a line to read whose it is." if len(arms) > plot.NAMED else ""
    return _figure(plot.curves(thin, roles, y_title=title, slug=key), caption + many)


def _points(entries: Iterable[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    pairs = ((number(entry, "step"), number(entry, key)) for entry in entries)
    return [(x, y) for x, y in pairs if x is not None and y is not None]


def number(entry: Mapping[str, Any], key: str) -> float | None:
    """The number that stands there; None for anything else."""
    value = entry.get(key)
    return finite(value) if isinstance(value, int | float) else None


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most so many points, each the mean of its neighbours."""
    width = -(-len(points) // most)
    groups = [points[start : start + width] for start in range(0, len(points), width)]
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]


def differences(found: Sequence[Pair], score_name: str) -> str:
    """A forest plot for each row that others are weighed against."""
    return _plots(
        _against(against, pairs, score_name, place)
        for place, (against, pairs) in enumerate(by_rival(found))
    )


def _against(against: str, found: Sequence[Pair], score_name: str, place: int) -> str:
    shares = found[0].shares
    scale = 100 if shares else 1
    lines = [
        Line(
            pair.row,
            scale * pair.mean,
            None if pair.low is None else scale * pair.low,
            None if pair.high is None else scale * pair.high,
            pair.resolved,
            _signs(pair),
            tuple(scale * each for each in pair.by_seed),
        )
        for pair in found
    ]
    unit = " (points)" if shares else ""
    svg = forest(
        lines,
        title=f"{score_name} less that of {against}",
        x_title=f"difference in {score_name}{unit}",
        told=f"Each line is a model's {score_name} less that of {against}, with its 95 % interval.",
        slug=f"differences-{place}",
    )
    resolved = sum(pair.resolved for pair in found)
    caption = (
        f"Against {against}: {resolved} of {len(found)} resolved. Full signs are resolved; "
        "hollow ones, on dashes, are not."
    )
    return _figure(svg, caption)


def _signs(pair: Pair) -> str:
    amount = weighing.signed(pair.mean, pair.shares, unit=False)
    interval = f" ({pair.interval})" if pair.interval else ""
    return f"{amount}{interval} {'✓' if pair.resolved else '?'}"


def classes(name: str, entries: Sequence[Mapping[str, Any]], slug: str) -> str:
    """The classes that lost most between two models, with their intervals."""
    lines = [_class(entry) for entry in entries[:CLASSES] if entry.get("change") is not None]
    if not lines:
        return ""
    svg = forest(
        lines,
        title=f"Change of each class in {name}",
        x_title="change of the share answered right (points)",
        told="Each line is a class: how many more of its examples are answered right, in points.",
        slug=slug,
    )
    shown = f"The {len(lines)} of {len(entries)} classes that lost most"
    caption = "Every class" if len(lines) == len(entries) else shown
    return _figure(svg, f"{caption}, with 95 % intervals. Full signs exclude zero.")


def _class(entry: Mapping[str, Any]) -> Line:
    """One class: its change in points, sure where the interval leaves out zero."""
    low, high = (number(entry, key) for key in ("low", "high"))
    told, sure = changed(entry), False
    if low is not None and high is not None:
        told += f" ({changed(entry, 'low')} to {changed(entry, 'high')})"
        sure, low, high = not low <= 0 <= high, 100 * low, 100 * high
    return Line(str(entry.get("class")), 100 * entry["change"], low, high, sure, told)
