"""The report as one HTML page that needs no network, no script and no other file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from attar.report import audit_page, charts, figures, grids, headline, sentences, strips, weighing
from attar.report.markdown import recipe_text
from attar.report.rows import Row

if TYPE_CHECKING:
    from attar.report.paper import Report

LISTED = 16
"""As many texts stand in a list; a longer one is folded."""

_GAIN = "gained by having a teacher"

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
"""The browser itself refuses the page any network; pictures stand in the page."""


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
<p class="headline">{escape(report.headline)}</p>
{audit_page.gates(report.audits)}{_tiles(report)}
{_body(report)}<footer class="quiet">Written by attar. For machines: report.json.</footer>
</main>
<script>{_asset("page.js")}</script>
</body>
</html>
"""


def _asset(name: str) -> str:
    return files("attar.report").joinpath(name).read_text("utf-8")


def _sections(report: Report) -> Iterator[tuple[str, str]]:
    """Each section's title and content, in the order they are read."""
    yield "In words", _list("verdict", report.verdict)
    yield "Every model, measured", grids.every(report) + _method(report)
    yield "Differences", _differences(report)
    yield "Step by step", grids.steps(report)
    yield "At play", "".join(map(strips.strip, report.films))
    yield "Score against cost", charts.scatters(report)
    yield "The audit", audit_page.section(report.audits)
    yield "Training", charts.training(report)
    yield "Other metrics", grids.metrics(report.rows)
    yield "What the steps found", grids.tables(report)
    yield "The plan", structure(plan, "plan") if (plan := report.decided) else ""
    yield "What the run cost", _cost(report.cost)
    yield "Where it was measured", structure(report.environment, "environment")
    yield "The recipe", _code(recipe_text(report.recipe))
    command = report.recipe.get("command")
    yield "Repeat it", _code(str(command)) if command else ""


def _body(report: Report) -> str:
    """A way into the sections, and the sections."""
    found = [(title, content) for title, content in _sections(report) if content]
    links = "".join(f'<li><a href="#{_slug(title)}">{title}</a></li>' for title, _ in found)
    sections = "".join(
        f'<section aria-labelledby="{_slug(title)}"><h2 id="{_slug(title)}">{title}</h2>'
        f"{content}</section>\n"
        for title, content in found
    )
    return f'<nav aria-label="Contents"><ul>{links}</ul></nav>{sections}'


def _slug(title: str) -> str:
    return title.lower().replace(",", "").replace(" ", "-")


def _list(kind: str, texts: Sequence[str]) -> str:
    return f'<ul class="{kind}">{_each("li", texts)}</ul>' if texts else ""


def _differences(report: Report) -> str:
    """The forest plots, then the same figures as a table."""
    if not report.pairs:
        return ""
    return (
        charts.differences(report.pairs, report.score_name)
        + grids.differences(report.pairs)
        + '<p class="quiet">Each difference is the mean over seeds, paired: the same data, order '
        "and initial weights on both sides. Resolved means that its sign is known.</p>"
    )


def _each(tag: str, texts: Iterable[str]) -> str:
    return "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts)


def _code(text: str) -> str:
    return f'<pre tabindex="0"><code>{escape(text.strip())}</code></pre>'


def _tiles(report: Report) -> str:
    """The few figures a reader came for; what was not measured has no tile."""
    tiles = "".join(
        f'<div><dt>{escape(label)}</dt><dd class="big">{big}<small>{unit}</small></dd>'
        f'<dd class="why">{escape(why)}</dd></div>'
        for big, unit, label, why in _headlines(report)
    )
    return f'<dl class="tiles">{tiles}</dl>' if tiles else ""


def _headlines(report: Report) -> Iterator[tuple[str, str, str, str]]:
    rows = () if report.joined else report.rows
    teacher = next((row for row in rows if row.role == "teacher"), None)
    file = sentences.best(rows)
    if teacher and file:
        if teacher.score and teacher.score > 0 and file.score is not None:
            why = f"{figures.score(file.score)} against {figures.score(teacher.score)}"
            kept = f"{100 * file.score / teacher.score:.1f}"
            yield kept, "%", f"of the teacher's {report.score_name}", why
        yield from _fold(
            teacher.size_bytes, file.size_bytes, ("smaller", "larger"), figures.size, ""
        )
        slow, fast = teacher.percentile("p50"), file.percentile("p50")
        yield from _fold(slow, fast, ("faster", "slower"), figures.milliseconds, " ms")
    if pair := headline.deciding(rows, file, report.pairs):
        amount, _, unit = pair.amount.partition(" ")
        word = "resolved" if pair.resolved else "not resolved"
        label = _GAIN if headline.untaught(pair.against) else f"against {pair.against}"
        yield amount, unit, label, f"{pair.row} against {pair.against}, {word}"
    elif found := sentences.gain(rows):
        yield _gained(*found)


def _gained(student: Row, arm: Row, difference: float) -> tuple[str, str, str, str]:
    shares = weighing.share([student, arm])
    amount, _, unit = weighing.signed(difference, shares).partition(" ")
    noise = ", within the noise" if weighing.within_noise(student, arm) else ""
    why = f"student against {arm.name}{noise}"
    return amount, unit, _GAIN, why


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


def structure(value: Any, name: str) -> str:
    """Nested facts as nested lists; a list of alike records as a table.

    name: where the value stands, by which its tables are told apart
    """
    if isinstance(value, Mapping):
        facts = "".join(
            f"<dt>{escape(str(key))}</dt><dd>{structure(item, f'{name}, {key}')}</dd>"
            for key, item in value.items()
        )
        return f'<dl class="facts">{facts}</dl>' if facts else ""
    if not isinstance(value, list | tuple):
        return escape(figures.anything(value))
    if value and all(
        isinstance(item, Mapping) and item.keys() == value[0].keys() for item in value
    ):
        return grids.records(name, value)
    if any(isinstance(item, Mapping | list | tuple) for item in value):
        items = (structure(item, f"{name}, {place}") for place, item in enumerate(value, 1))
        return f'<ul class="plain">{"".join(f"<li>{item}</li>" for item in items)}</ul>'
    told = escape(figures.inline(value))
    if len(value) <= LISTED:
        return told
    return f"<details><summary>{len(value)} of them</summary>{told}</details>"


def _cost(cost: Mapping[str, Any]) -> str:
    seconds = {
        name: charts.number(cost["seconds"], name) or 0.0 for name in cost.get("seconds", {})
    }
    others = structure({name: item for name, item in cost.items() if name != "seconds"}, "cost")
    longest = max(seconds.values(), default=0.0) or 1.0
    bars = "".join(
        f"<dt>{escape(name)}</dt><dd>{figures.duration(time)}</dd>"
        f'<dd><i style="width:{100 * time / longest:.1f}%"></i></dd>'
        for name, time in seconds.items()
    )
    return (f'<dl class="facts bars">{bars}</dl>' if bars else "") + others
