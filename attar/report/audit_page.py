"""The audits on the page: gates first, then all in one table, then each by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from attar.report import audits, charts, figures, grids

FEW = 2
"""Audits that stand open; more of them are folded, and the table above tells their headlines."""

BROKEN = 12
"""Examples that compression breaks which are shown; the file beside the page has them all."""

CALIBRATED = {
    "ece": "ECE",
    "brier": "Brier",
    "temperature": "best temperature",
    "ece_scaled": "ECE, after temperature scaling",
    "brier_scaled": "Brier, after temperature scaling",
}

OTHERS = {"occlusion": "Attribution by occlusion", "surrogate": "A decision tree in its place"}


def gates(audited: Mapping[str, audits.Audit]) -> str:
    """Who fails which gate, told by a word and a sign; then who passes all."""
    judged = {name: audit for name, audit in audited.items() if audit.get("gates")}
    whole = [name for name, audit in judged.items() if not audits.failed(audit)]
    items = [_gate(name, audit) for name, audit in judged.items() if name not in whole]
    if len(whole) == 1:
        items.append(_gate(whole[0], judged[whole[0]]))
    elif whole:
        names = escape(", ".join(whole))
        items.append(
            f'<li class="passed"><strong>✓ {len(whole)} pass all gates</strong>{names}</li>'
        )
    return f'<ul class="gates" aria-label="Gates">{"".join(items)}</ul>' if items else ""


def _gate(name: str, audit: audits.Audit) -> str:
    lost, every = audits.failed(audit), audit["gates"]
    told = f"✗ fails {len(lost)} of {len(every)} gates" if lost else "✓ passes its gates"
    lines = "".join(
        f"<li>{'✓' if entry.get('ok') else '✗'} {escape(audits.gate(entry))}</li>"
        for entry in sorted(every, key=lambda entry: bool(entry.get("ok")))
    )
    return (
        f'<li class="{"failed" if lost else "passed"}"><strong>{told}</strong>{escape(name)}'
        f"<ul>{lines}</ul></li>"
    )


def section(audited: Mapping[str, audits.Audit]) -> str:
    """The whole audit."""
    if not audited:
        return ""
    summary = grids.against(audits.HEAD, list(audits.cells(audited)), "Every audit")
    method = (
        '<p class="quiet">Agreement is the share of examples that both models answer alike, KL how '
        "far their probabilities are apart (nats), ECE how far confidence is from being right.</p>"
    )
    each = [
        _folded(name, audit, place, len(audited) > FEW)
        for place, (name, audit) in enumerate(audited.items())
    ]
    return summary + method + "".join(each)


def _folded(name: str, audit: audits.Audit, place: int, fold: bool) -> str:
    inside = "".join(_parts(name, audit, place))
    title = f"{escape(name)} <small>against {escape(str(audit['against']))}</small>"
    if fold:
        return f"<details><summary><h3>{title}</h3></summary>{inside}</details>"
    return f"<h3>{title}</h3>{inside}"


def _parts(name: str, audit: audits.Audit, place: int) -> Iterator[str]:
    told = " ".join([audits.sentence(name, audit), *audits.gates({name: audit})])
    yield f"<p>{escape(told)}</p>"
    beside = _flips(audit) + _calibration(audit)
    worst = charts.classes(name, audit.get("classes", ()), f"classes-{place}")
    if beside or worst:
        yield f'<div class="plots">{f"<div>{beside}</div>" if beside else ""}{worst}</div>'
    if audit.get("broken"):
        yield _broken(name, audit)
    if audit.get("cka"):
        title = f"CKA of paired layers, {name}"
        yield f"<h4>How alike paired layers are (CKA)</h4>{grids.records(title, audit['cka'])}"
    for key, about in OTHERS.items():
        if facts := audit.get(key):
            yield f"<p>{about}: {escape(figures.inline(facts))}.</p>"


def _flips(audit: audits.Audit) -> str:
    """What was right and what is right now, two by two."""
    if not audit.get("flips"):
        return ""
    lost, won = audits.flips(audit)
    right, wrong = audits.unchanged(audit)
    against = escape(str(audit["against"]))
    return (
        '<table class="small"><caption>Answers that changed sides</caption><thead><tr><td></td>'
        '<th scope="col">right now</th><th scope="col">wrong now</th></tr></thead><tbody>'
        f'<tr><th scope="row">{against} was right</th><td>{right}</td>'
        f'<td class="harm"><b>{lost}</b></td></tr><tr><th scope="row">{against} was wrong</th>'
        f'<td class="gain"><b>{won}</b></td><td>{wrong}</td></tr></tbody></table>'
    )


def _calibration(audit: audits.Audit) -> str:
    """How far confidence is from being right, before and after, as it is and scaled."""
    sides = audit.get("calibration", {})
    before, after = (sides.get(side, {}) for side in ("before", "after"))
    body = "".join(
        f'<tr><th scope="row">{title}</th><td>{_figure(before.get(key))}</td>'
        f"<td>{_figure(after.get(key))}</td></tr>"
        for key, title in CALIBRATED.items()
        if key in before or key in after
    )
    heads = '<th scope="col">before</th><th scope="col">after</th>'
    return (
        f'<table class="small"><caption>Calibration</caption><thead><tr><td></td>{heads}</tr>'
        f"</thead><tbody>{body}</tbody></table>"
        if body
        else ""
    )


def _figure(value: Any) -> str:
    return figures.MISSING if value is None else escape(figures.metric(value))


def _broken(name: str, audit: audits.Audit) -> str:
    file = audit.get("broken_file")
    whole = f" All of them: <code>{escape(str(file))}</code>." if file else ""
    return (
        "<h4>Right before, wrong now</h4>"
        f"{grids.records(f'Examples that {name} breaks', audit['broken'][:BROKEN], 'broken')}"
        f'<p class="quiet">Answers that {escape(str(audit["against"]))} gets right and '
        f"{escape(name)} gets wrong, the surest of them first.{whole}</p>"
    )
