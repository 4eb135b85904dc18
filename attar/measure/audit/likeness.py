"""How alike two layers see the same examples: linear CKA, batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from attar.measure.audit.answers import Array

Seen = Mapping[str, Any]
"""By layer, what it gave for some rows, (rows, ...)."""


class _Sums:
    """What has to be known of two layers' features, however many rows there are."""

    def __init__(self, one: Array, other: Array) -> None:
        # Moved to about 0 first, or large means would drown what differs.
        self.origins = one.mean(0), other.mean(0)
        self.rows, self.sums = 0, (0.0, 0.0)
        self.products: tuple[Any, Any, Any] = (0.0, 0.0, 0.0)

    def add(self, one: Array, other: Array) -> None:
        one, other = one - self.origins[0], other - self.origins[1]
        self.rows += len(one)
        self.sums = self.sums[0] + one.sum(0), self.sums[1] + other.sum(0)
        own, its, between = self.products
        self.products = own + one.T @ one, its + other.T @ other, between + one.T @ other

    def likeness(self) -> float | None:
        (x, y), (own, its, between) = self.sums, self.products
        own, its = own - np.outer(x, x) / self.rows, its - np.outer(y, y) / self.rows
        between = between - np.outer(x, y) / self.rows
        size = float(np.linalg.norm(own) * np.linalg.norm(its))
        return float((between**2).sum()) / size if size > 0 else None


def cka(batches: Iterable[tuple[Seen, Seen]], layers: Mapping[str, str]) -> list[dict[str, Any]]:
    """Linear centred kernel alignment of paired layers: 1 for the same up to rotation and scale.

    Of few rows and many features it is too high; show it beside behaviour, never alone.

    batches: what the layers of both models gave for the same rows
    layers: which layer of the one is paired with which of the other
    Source: Kornblith et al., Similarity of Neural Network Representations Revisited, ICML 2019.
    """
    known: dict[str, _Sums] = {}
    for one, other in batches:
        for mine, its in layers.items():
            pair = _flat(one[mine]), _flat(other[its])
            known.setdefault(mine, _Sums(*pair)).add(*pair)
    return [{"one": n, "other": layers[n], "cka": sums.likeness()} for n, sums in known.items()]


def _flat(features: Any) -> Array:
    found = np.asarray(features, dtype=np.float64)
    return found.reshape(len(found), -1)
