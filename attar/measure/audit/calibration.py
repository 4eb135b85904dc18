"""Whether a model is as sure as it may be, and the temperature that mends it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from attar.measure.audit.answers import Array, log_shares, right

BINS = 15
"""Bins of equal width, as in the paper's tables."""

CLOSE = 1e-12
"""A step this small, as a share of where it stands, is the optimum in float64."""


def ece(logits: Array, labels: Array) -> float:
    """How far confidence is from accuracy, over 15 bins weighted by their rows.

    logits: (rows, classes); labels: (rows,), all known
    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 3.
    """
    sure, hit = np.exp(log_shares(logits).max(1)), right(logits, labels)
    place = np.digitize(sure, np.linspace(0, 1, BINS + 1)[1:-1], right=True)
    gap = np.bincount(place, weights=hit - sure, minlength=BINS)
    return float(np.abs(gap).sum() / len(sure))


def brier(logits: Array, labels: Array) -> float:
    """The mean over rows of the squared error summed over the classes: 0 is best, 2 is worst.

    logits: (rows, classes); labels: (rows,), all known
    Source: Brier, Verification of Forecasts Expressed in Terms of Probability, 1950.
    """
    shares = np.exp(log_shares(logits))
    shares[np.arange(len(shares)), np.asarray(labels)] -= 1
    return float((shares**2).sum(1).mean())


def temperature(logits: Array, labels: Array) -> float | None:
    """The T whose softmax(logits / T) gives the labels the least negative log-likelihood.

    That is convex in 1 / T: Newton's steps inside a bracket find its one minimum exactly. None
    where there is none: all answers are right (sharper is always better), or they say less of the
    labels than a draw by lot.

    logits: (rows, classes) of held-out rows; labels: (rows,), all known
    Source: Guo et al. 2017, section 4.2.
    """
    logits = np.asarray(logits, dtype=np.float64)
    moved = logits - logits.max(1, keepdims=True)
    said = moved[np.arange(len(moved)), np.asarray(labels)]
    known = np.isfinite(moved)
    moved = np.where(known, moved, 0.0)

    def slope(inverse: float) -> tuple[float, float]:
        weight = np.where(known, np.exp(inverse * moved), 0.0)
        weight /= weight.sum(1, keepdims=True)
        mean = (weight * moved).sum(1)
        spread = (weight * moved**2).sum(1) - mean**2
        return float((mean - said).mean()), float(spread.mean())

    if not np.isfinite(said).all() or not said.any() or slope(0.0)[0] >= 0:
        return None
    low, high = 0.0, 1.0
    while slope(high)[0] < 0:
        low, high = high, 2 * high
    return 1 / _root(slope, low, high)


def _root(slope: Callable[[float], tuple[float, float]], low: float, high: float) -> float:
    """Where a rising slope is 0 between two places."""
    at = (low + high) / 2
    while True:
        rise, bend = slope(at)
        if rise == 0:
            return at
        low, high = (at, high) if rise < 0 else (low, at)
        step = at - rise / bend if bend > 0 else low
        new = step if low < step < high else (low + high) / 2
        if abs(new - at) <= CLOSE * at:
            return new
        at = new


def calibration(
    logits: Array, labels: Array, held: tuple[Array, Array] | None = None
) -> dict[str, float | None]:
    """ECE and Brier score as the model answers, and once its logits are divided by a temperature.

    logits, labels: what is judged
    held: logits and labels of other rows, which the temperature is fitted to
    """
    found = temperature(*held) if held is not None and len(held[1]) else None
    cooled = None if found is None else np.asarray(logits, dtype=np.float64) / found
    return {
        "ece": ece(logits, labels),
        "brier": brier(logits, labels),
        "temperature": found,
        "ece_scaled": None if cooled is None else ece(cooled, labels),
        "brier_scaled": None if cooled is None else brier(cooled, labels),
    }
