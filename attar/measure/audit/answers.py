"""What became of each answer: who agrees, what flipped, and which class pays for it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

Z = 1.959963984540054
"""The standard normal's 97.5 % point, for intervals of 95 %."""


def log_shares(logits: Array) -> Array:
    """Logarithms of the softmax of logits (rows, classes), in float64."""
    logits = np.asarray(logits, dtype=np.float64)
    moved = logits - logits.max(1, keepdims=True)
    lowered: Array = moved - np.log(np.exp(moved).sum(1, keepdims=True))
    return lowered


def right(logits: Array, labels: Array) -> Array:
    """Which rows have their label's class as the likeliest."""
    found: Array = np.asarray(logits).argmax(1) == np.asarray(labels)
    return found


def agreement(before: Array, after: Array) -> float:
    """The share of rows whose likeliest class is the same."""
    return float((np.asarray(before).argmax(1) == np.asarray(after).argmax(1)).mean())


def kl(before: Array, after: Array) -> float:
    """The mean over rows of KL(before || after) in nats; infinite where after rules out an answer.

    before, after: logits (rows, classes)
    """
    was, now = log_shares(before), log_shares(after)
    with np.errstate(invalid="ignore"):  # what is never said (-inf) weighs nothing
        parts = np.where(np.isneginf(was), 0.0, np.exp(was) * (was - now))
    return float(parts.sum(1).mean())


def flips(before: Array, after: Array, labels: Array) -> dict[str, Any]:
    """How many answers went from right to wrong, how many the other way, and the first's share.

    before, after: logits (rows, classes); labels: (rows,), all known
    Source: the negative flip rate of Yan et al., Positive-Congruent Training, CVPR 2021.
    """
    was, now = right(before, labels), right(after, labels)
    lost, won = int((was & ~now).sum()), int((~was & now).sum())
    return {"right_to_wrong": lost, "wrong_to_right": won, "negative_flips": lost / len(was)}


def changes(
    before: Array, after: Array, labels: Array, classes: Sequence[str]
) -> list[dict[str, Any]]:
    """What each class that occurs lost or won in accuracy, with a 95 % interval; the worst first.

    before, after: logits (rows, classes); labels: (rows,), all known
    """
    was, now, labels = right(before, labels), right(after, labels), np.asarray(labels)
    found = [
        _change(classes[n], was[labels == n], now[labels == n]) for n in np.unique(labels).tolist()
    ]
    return sorted(found, key=lambda each: (each["change"], -each["examples"], each["class"]))


def _change(name: str, was: Array, now: Array) -> dict[str, Any]:
    low, high = interval(
        int((was & now).sum()),
        int((was & ~now).sum()),
        int((~was & now).sum()),
        int((~was & ~now).sum()),
    )
    return {
        "class": name,
        "examples": len(was),
        "before": float(was.mean()),
        "after": float(now.mean()),
        "change": float((now.sum() - was.sum()) / len(was)),
        "low": low,
        "high": high,
    }


def interval(both: int, lost: int, won: int, neither: int) -> tuple[float, float]:
    """The 95 % interval of a paired change in a share, (won - lost) / rows.

    both, lost, won, neither: rows right before and after, only before, only after, never
    Source: Newcombe, Improved confidence intervals for the difference between binomial proportions
        based on paired data, Statistics in Medicine 17, 1998: method 10 (score intervals of the two
        shares, joined by their correlation).
    """
    rows = both + lost + won + neither
    was, now = (both + lost) / rows, (both + won) / rows
    (low_was, high_was), (low_now, high_now) = _score(was, rows), _score(now, rows)
    bond = _correlation(both, lost, won, neither)
    down, up = (now - low_now, high_was - was), (high_now - now, was - low_was)
    low, high = (math.sqrt(max(0.0, a * a - 2 * bond * a * b + b * b)) for a, b in (down, up))
    return now - was - low, now - was + high


def _score(share: float, rows: int) -> tuple[float, float]:
    """Wilson's interval of a share (1927)."""
    middle = share + Z**2 / (2 * rows)
    reach = Z * math.sqrt(share * (1 - share) / rows + Z**2 / (4 * rows**2))
    return (middle - reach) / (1 + Z**2 / rows), (middle + reach) / (1 + Z**2 / rows)


def _correlation(both: int, lost: int, won: int, neither: int) -> float:
    """Phi of the two answers, drawn toward 0 by half a row where it is positive."""
    margins = (both + lost) * (won + neither) * (both + won) * (lost + neither)
    product, half = both * neither - lost * won, (both + lost + won + neither) / 2
    drawn = product if product < 0 else max(0.0, product - half)
    return drawn / math.sqrt(margins) if margins else 0.0


def breaks(
    before: Array, after: Array, labels: Array, classes: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows that were right before and are wrong after, the surest of their error first.

    Yields the row, and its label, both answers and the probability of the wrong one.
    """
    hurt = np.flatnonzero(right(before, labels) & ~right(after, labels))
    shares = np.exp(log_shares(np.asarray(after)[hurt]))
    for place in np.argsort(-shares.max(1), kind="stable").tolist():
        row, said = int(hurt[place]), int(shares[place].argmax())
        label = classes[int(labels[row])]
        confidence = float(shares[place, said])
        yield (
            row,
            {"label": label, "before": label, "after": classes[said], "confidence": confidence},
        )
