"""The audits in words: what became of each answer, which class lost most, which gates hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from attar.report import figures
from attar.report.rows import finite
from attar.report.weighing import signed

HEAD = (
    *("model", "against", "gates", "agreement", "KL", "right to wrong", "wrong to right"),
    *("worst class", "ECE"),
)

Audit = Mapping[str, Any]


def labelled(audit: Audit) -> int:
    """How many of the examples have a label, which alone can turn from right to wrong."""
    return sum(each.get("examples") or 0 for each in audit.get("classes", ())) or audit["examples"]


def share(value: Any, examples: int) -> float | None:
    """A share of the examples, whether it was told as one or counted."""
    if isinstance(value, bool) or not isinstance(value, int | float) or finite(value) is None:
        return None
    return value / examples if isinstance(value, int) and examples else float(value)


def percent(value: Any, examples: int = 0) -> str:
    """A share as people read it: 1.9 %."""
    known = share(value, examples)
    return figures.MISSING if known is None else f"{100 * known:.1f} %"


def flips(audit: Audit) -> tuple[str, str]:
    """The shares of the answers that turned from right to wrong, and from wrong to right."""
    found, examples = audit.get("flips", {}), labelled(audit)
    lost, won = (
        percent(found.get(name), examples) for name in ("right_to_wrong", "wrong_to_right")
    )
    return lost, won


def unchanged(audit: Audit) -> tuple[str, str]:
    """The shares of the answers that were right and still are, and that were and are wrong.

    They follow from the share that was right before, which the classes tell together.
    """
    found, examples = audit.get("flips", {}), labelled(audit)
    lost, won = (share(found.get(name), examples) for name in ("right_to_wrong", "wrong_to_right"))
    known = [each for each in audit.get("classes", ()) if each.get("before") is not None]
    if lost is None or won is None or sum(each["examples"] for each in known) != examples:
        return figures.MISSING, figures.MISSING
    right = sum(each["examples"] * each["before"] for each in known) / examples
    return percent(right - lost), percent(1 - right - won)


def worst(audit: Audit) -> str:
    """The class that lost most, and how many points: "refund: −12.0"."""
    if not (classes := audit.get("classes")) or classes[0].get("change") is None:
        return figures.MISSING
    return f"{classes[0].get('class')}: {changed(classes[0])}"


def changed(entry: Mapping[str, Any], key: str = "change") -> str:
    """The change of one class in points, with its sign."""
    return signed(entry[key], True, unit=False)


def calibration(audit: Audit) -> str:
    """The expected calibration error after and before: "0.031 (was 0.012)"."""
    found = audit.get("calibration", {})
    was, now = (found.get(side, {}).get("ece") for side in ("before", "after"))
    if now is None:
        return figures.MISSING
    return figures.score(now) + (f" (was {figures.score(was)})" if was is not None else "")


def gate(entry: Mapping[str, Any]) -> str:
    """A gate, what was found at it, and its limit: "ece: 0.031, limit 0.05"."""
    found, limit = (figures.anything(entry.get(key)) for key in ("found", "limit"))
    return f"{entry.get('gate')}: {found}, limit {limit}"


def failed(audit: Audit) -> list[Mapping[str, Any]]:
    """The gates that don't hold."""
    return [entry for entry in audit.get("gates", ()) if not entry.get("ok")]


def _gates(audit: Audit) -> str:
    gates = audit.get("gates", ())
    if not gates:
        return figures.MISSING
    names = ", ".join(str(entry.get("gate")) for entry in failed(audit))
    return f"fails {names}" if names else f"{len(gates)} passed"


def cells(audits: Mapping[str, Audit]) -> Iterator[list[str]]:
    """The headline of each audit, as a line of the table that `HEAD` is the head of."""
    for name, audit in audits.items():
        yield [
            name,
            str(audit["against"]),
            _gates(audit),
            percent(float(audit["agreement"])),
            figures.MISSING if (kl := audit.get("kl")) is None else f"{kl:.3g}",
            *flips(audit),
            worst(audit),
            calibration(audit),
        ]


def sentence(name: str, audit: Audit) -> str:
    """How the answers of one row changed."""
    lost, won = flips(audit)
    turned = f"; {lost} turned from right to wrong, {won} from wrong to right"
    loser = f"; the worst class is {worst(audit)} points" if audit.get("classes") else ""
    return (
        f"{name} answers as {audit['against']} in {percent(float(audit['agreement']))} of "
        f"{audit['examples']:,} examples{turned if audit.get('flips') else ''}{loser}."
    )


def gates(audits: Mapping[str, Audit]) -> Iterator[str]:
    """Who fails which gates, a sentence each; then who passes all."""
    whole = [name for name, audit in audits.items() if audit.get("gates") and not failed(audit)]
    for name, audit in audits.items():
        if lost := failed(audit):
            many = f"{len(lost)} of {len(audit['gates'])} gates"
            yield f"✗ {name} fails {many}: {'; '.join(map(gate, lost))}."
    if len(whole) == 1:
        passed = "; ".join(map(gate, audits[whole[0]]["gates"]))
        yield f"✓ {whole[0]} passes its gates: {passed}."
    elif whole:
        yield f"✓ All gates are passed by {', '.join(whole)}."
