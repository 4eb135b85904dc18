"""MEASURE: what compression did to a model's answers, beyond its score."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from attar.measure.audit.answers import Array, agreement, breaks, changes, flips, kl
from attar.measure.audit.attribution import similarity
from attar.measure.audit.calibration import calibration
from attar.types import IGNORE, Amount

__all__ = ["Side", "audit", "broken_rows"]


@dataclass(frozen=True)
class Side:
    """What one model answers.

    logits: (rows, classes)
    held: logits and labels of held-out rows, where they are known
    """

    logits: Array
    held: tuple[Array, Array] | None = None


Layers = str | dict[str, str] | None


def audit(
    before: Side,
    after: Side,
    labels: Array,
    classes: Sequence[str],
    told: Callable[[int], dict[str, Any]] = lambda row: {"input": row},
    alike: Callable[[Layers], list[dict[str, Any]]] | None = None,
    explained: Callable[[int], Iterable[tuple[Array, Array]]] | None = None,
    imitated: Callable[[int], dict[str, Any]] | None = None,
    *,
    broken: Amount = 20,
    occlusion: Amount = 0,
    surrogate: Amount = 0,
    layers: str | dict[str, str] | None = None,
) -> dict[str, Any]:
    """Agreement, flips, worst class, calibration, and what broke, beside the teacher's answers.

    It is taken of every exported file and of the model to ship, against the teacher or, without
    one, against the row that it was made from; the model to ship has to pass the recipe's `gates`.

    labels: (rows,), `IGNORE` where not known
    told: what the report says of a row's input
    alike, explained, imitated: CKA of layers; attributions of some examples; a tree's fidelity
    broken: examples shown that were right before and are wrong after; all are kept in a file
    occlusion: examples of which the reasons are compared, by hiding words or patches (with captum)
    surrogate: depth of the decision trees that imitate both models (with scikit-learn); 0 for none
    layers: whose CKA is told, `auto` or {its layer: the other's}; left out, those that losses
        compare
    """
    labels = np.asarray(labels)
    known = labels != IGNORE
    found: dict[str, Any] = {
        "examples": len(labels),
        "agreement": agreement(before.logits, after.logits),
        "kl": kl(before.logits, after.logits),
    }
    if known.any():
        found |= _judged(before, after, labels, known, classes)
        hurt = broken_rows(before, after, labels, classes)
        found["broken"] = [told(row) | said for row, said in islice(hurt, broken)]
    if alike is not None and (pairs := alike(layers)):
        found["cka"] = pairs
    if explained is not None and occlusion:
        found["occlusion"] = similarity(explained(occlusion))
    if imitated is not None and surrogate:
        found["surrogate"] = imitated(surrogate)
    return found


def broken_rows(
    before: Side, after: Side, labels: Array, classes: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows with a label that were right before and are wrong after, most confident first."""
    known = np.flatnonzero(np.asarray(labels) != IGNORE)
    logits = np.asarray(before.logits)[known], np.asarray(after.logits)[known]
    for place, said in breaks(*logits, np.asarray(labels)[known], classes):
        yield int(known[place]), said


def _judged(
    before: Side, after: Side, labels: Array, known: Array, classes: Sequence[str]
) -> dict[str, Any]:
    """What only labels can tell."""
    was, now = np.asarray(before.logits)[known], np.asarray(after.logits)[known]
    labels = labels[known]
    return {
        "flips": flips(was, now, labels),
        "classes": changes(was, now, labels, classes),
        "calibration": {
            "before": calibration(was, labels, before.held),
            "after": calibration(now, labels, after.held),
        },
    }
