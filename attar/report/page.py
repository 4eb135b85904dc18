"""The report as one HTML page that needs no network, no script and no other file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from attar.report import figures, grids, plot, sentences, weighing
from attar.report.markdown import recipe_text
from attar.report.rows import Role, Row, finite

if TYPE_CHECKING:
    from attar.report.paper import Report

_PARTS: dict[Role, str] = {
    "teacher": "teacher",
    "student": "student",
    "export": "compressed or exported",
    "baseline": "baseline",
}

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""The browser itself refuses the page any network."""


def html(report: Report) -> str:
    """The whole page; whatever comes from data is shown as text, never read as a tag."""
    title = escape(str(report.recipe.get("name", "Distillation report")))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{title} · attar report</title>
<style>{_asset("page.css")}</style>
</head>
<body>
<main>
<p class="kicker">attar report</p>
<h1>{title}</h1>
{"".join(_sections(report))}
<footer class="quiet">Written by attar. The same figures for machines: report.json.</footer>
</main>
<script>{_asset("page.js")}</script>
</body>
</html>
"""


def _asset(name: str) -> str:
    return files("attar.report").joinpath(name).read_text("utf-8")


def _sections(report: Report) -> Iterator[str]:
    yield _tiles(report.rows, report.score_name)
    if report.verdict:
        yield f'<ul class="verdict">{_each("li", report.verdict)}</ul>'
    yield _section("Every model, measured", grids.every(report) + _method(report))
    yield _section("Step by step", grids.steps(report))
    yield _section("Score against cost", _scatters(report))
    yield _section("Training", _training(report))
    yield _section("Other metrics", grids.metrics(report.rows))
    yield _section("What the steps found", grids.tables(report))
    yield _section("The plan", structure(plan) if (plan := report.decided) else "")
    yield _section("What the run cost", _cost(report.cost))
    yield _section("Where it was measured", structure(report.environment))
    yield _section("The recipe", _code(recipe_text(report.recipe)))
    command = report.recipe.get("command")
    yield _section("Repeat it", _code(str(command)) if command else "")


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>\n" if content else ""


def _each(tag: str, texts: Iterable[str]) -> str:
    return "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts)


def _code(text: str) -> str:
    return f'<pre tabindex="0"><code>{escape(text.strip())}</code></pre>'


def _tiles(rows: Sequence[Row], score_name: str) -> str:
    """The few figures a reader came for; what was not measured has no tile."""
    tiles = "".join(
        f'<div><dt>{escape(label)}</dt><dd class="big">{big}<small>{unit}</small></dd>'
        f'<dd class="why">{escape(why)}</dd></div>'
        for big, unit, label, why in _headlines(rows, score_name)
    )
    file = sentences.best(rows)
    lede = f'<p class="lede">{escape(file.name)} against its teacher</p>' if tiles and file else ""
    return f'{lede}<dl class="tiles">{tiles}</dl>' if tiles else '<p class="lede"></p>'


def _headlines(rows: Sequence[Row], score_name: str) -> Iterator[tuple[str, str, str, str]]:
    teacher = next((row for row in rows if row.name == "teacher"), None)
    file = sentences.best(rows)
    if teacher and file:
        if teacher.score and teacher.score > 0 and file.score is not None:
            why = f"{figures.score(file.score)} against {figures.score(teacher.score)}"
            kept = f"{100 * file.score / teacher.score:.1f}"
            yield kept, "%", f"of the teacher's {score_name}", why
        yield from _fold(
            teacher.size_bytes, file.size_bytes, ("smaller", "larger"), figures.size, ""
        )
        slow, fast = teacher.percentile("p50"), file.percentile("p50")
        yield from _fold(slow, fast, ("faster", "slower"), figures.milliseconds, " ms")
    if found := sentences.gain(rows):
        yield _gained(*found)


def _gained(student: Row, arm: Row, difference: float) -> tuple[str, str, str, str]:
    shares = weighing.share([student, arm])
    amount, _, unit = weighing.points(difference, shares).partition(" ")
    sign = "" if weighing.level(difference, shares) else "−" if difference < 0 else "+"
    noise = ", within the noise" if weighing.within_noise(student, arm) else ""
    why = f"student against {arm.name}{noise}"
    return sign + amount, unit, "gained by having a teacher", why


def _fold(
    before: float | None,
    after: float | None,
    words: tuple[str, str],
    show: Callable[[float], str],
    unit: str,
) -> Iterator[tuple[str, str, str, str]]:
    """How many times smaller or faster, where both were measured."""
    if before and after:
        factor, _, word = weighing.times(before, after, *words).partition(" ")
        why = f"{show(after)}{unit} against {show(before)}{unit}"
        yield factor.rstrip("×"), "×", word, why


def _method(report: Report) -> str:
    """What a figure in the table means, so that nobody compares what can't be compared."""
    named = ("precision", "threads", "batch", "tokens", "latency_tokens", "cpu")
    told = "; ".join(
        f"{key.replace('_', ' ')} {figures.inline(report.environment[key])}"
        for key in named
        if key in report.environment
    )
    setting = f" Measured with {told}." if told else ""
    return (
        '<p class="quiet">Latency is the time of one call, its median (p50) and its 95th '
        "percentile (p95), in the runtime under the model's name; between two runtimes, "
        f"part of a difference is the runtime's.{escape(setting)} "
        f"A {figures.MISSING} was not measured.</p>"
    )


def _scatters(report: Report) -> str:
    latency = ("latency", "latency, median of one call (ms)")
    size = ("size", "size on disk")
    drawn = [
        _scatter(report, *latency, lambda row: row.percentile("p50"), lambda x: f"{x:g}"),
        _scatter(report, *size, lambda row: row.size_bytes, _tick),
    ]
    if not any(drawn):
        return ""
    present = dict.fromkeys(row.role for row in report.rows)
    legend = "".join(f"<li>{grids.swatch(role)}{_PARTS[role]}</li>" for role in present)
    return f'<ul class="legend">{legend}</ul><div class="plots">{"".join(drawn)}</div>'


def _tick(size: float) -> str:
    return figures.size(size).replace(".0 ", " ")


def _scatter(
    report: Report,
    slug: str,
    title: str,
    value: Callable[[Row], float | None],
    show: Callable[[float], str],
) -> str:
    """One plot of the score; the caption names whoever has no figure to be drawn by."""
    points = [
        plot.Point(row.name, row.role, x, row.score, f"{row.name}: {figures.score(row.score)}")
        for row in report.rows
        if row.score is not None and (x := value(row)) and x > 0
    ]
    if not points:
        return ""
    drawn = {point.name for point in points}
    absent = ", ".join(row.name for row in report.rows if row.name not in drawn)
    svg = plot.scatter(points, x_title=title, y_title=report.score_name, show_x=show, slug=slug)
    note = f" Not drawn, for want of a figure: {absent}." if absent else ""
    caption = f"{report.score_name.capitalize()} against {slug}, on a logarithmic axis.{note}"
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _training(report: Report) -> str:
    about = {
        "loss": "Each arm minimizes its own objective: compare shapes, not heights.",
        "score": f"{report.score_name.capitalize()} on the validation split.",
    }
    drawn = "".join(_curves(report, key, caption) for key, caption in about.items())
    return f'<div class="plots">{drawn}</div>' if drawn else ""


def _curves(report: Report, key: str, caption: str) -> str:
    arms = {name: _points(entries, key) for name, entries in report.history.items()}
    arms = {name: thinned(points) for name, points in arms.items() if points}
    if not arms:
        return ""
    roles = {name: Row(name, "").role for name in arms}
    title = report.score_name if key == "score" else key
    svg = plot.curves(arms, roles, y_title=title, slug=key)
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _points(entries: Iterable[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    pairs = ((_number(entry, "step"), _number(entry, key)) for entry in entries)
    return [(x, y) for x, y in pairs if x is not None and y is not None]


def _number(entry: Mapping[str, Any], key: str) -> float | None:
    value = entry.get(key)
    return finite(value) if isinstance(value, int | float) else None


def thinned(points: Sequence[tuple[float, float]], most: int = 240) -> list[tuple[float, float]]:
    """At most so many points, each the mean of its neighbours: no screen shows more."""
    width = -(-len(points) // most)
    groups = [points[start : start + width] for start in range(0, len(points), width)]
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]


def structure(value: Any) -> str:
    """Nested facts as nested lists; a list of alike records as a table."""
    if isinstance(value, Mapping):
        facts = "".join(
            f"<dt>{escape(str(key))}</dt><dd>{structure(item)}</dd>" for key, item in value.items()
        )
        return f'<dl class="facts">{facts}</dl>' if facts else ""
    if not isinstance(value, list | tuple):
        return escape(figures.anything(value))
    if value and all(
        isinstance(item, Mapping) and item.keys() == value[0].keys() for item in value
    ):
        head = _each("th", map(str, value[0]))
        body = "".join(
            f"<tr>{_each('td', map(figures.inline, item.values()))}</tr>" for item in value
        )
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        return f'<div class="scroll">{table}</div>'
    if any(isinstance(item, Mapping | list | tuple) for item in value):
        return f'<ul class="plain">{"".join(f"<li>{structure(item)}</li>" for item in value)}</ul>'
    return escape(figures.inline(value))


def _cost(cost: Mapping[str, Any]) -> str:
    seconds = {name: _number(cost["seconds"], name) or 0.0 for name in cost.get("seconds", {})}
    others = structure({name: item for name, item in cost.items() if name != "seconds"})
    longest = max(seconds.values(), default=0.0) or 1.0
    bars = "".join(
        f"<dt>{escape(name)}</dt><dd>{figures.duration(time)}</dd>"
        f'<dd><i style="width:{100 * time / longest:.1f}%"></i></dd>'
        for name, time in seconds.items()
    )
    return (f'<dl class="facts bars">{bars}</dl>' if bars else "") + others
