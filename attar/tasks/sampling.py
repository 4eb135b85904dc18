"""Batches in a seeded order that can be taken up at any point, rows of like length together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from attar.types import Batch

BUCKET = 50
"""Batches that are sorted by length together; larger pads less, smaller mixes more."""

MIXES = 4
"""Buckets that an epoch has at least: in one alone, the same rows would always meet."""


class Batches:
    """An endless stream of shuffled batches; `position` is the number of the next one.

    make: gives the batch of some row numbers
    rows: the row numbers to draw from; an epoch shows each once
    lengths: of every row of the data, for bucketing (rows of like length share a batch)
    seen: what is made of a batch in an epoch, where its examples look different in each
    """

    def __init__(
        self,
        make: Callable[[Sequence[int]], Batch],
        rows: Sequence[int],
        lengths: Sequence[int],
        *,
        batch_size: int,
        seed: int,
        seen: Callable[[Batch, int], Batch] | None = None,
    ) -> None:
        self._make = make
        self._rows = np.asarray(rows)
        self._lengths = np.asarray(lengths)
        self._batch_size = batch_size
        self._seed = seed
        self._seen = seen or (lambda batch, _: batch)
        self.position = 0

    def __len__(self) -> int:
        """The number of batches of an epoch."""
        return math.ceil(len(self._rows) / self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            epoch, start = divmod(self.position, len(self))
            for rows in self._epoch(epoch)[start:]:
                self.position += 1
                yield self._seen(self._make(rows.tolist()), epoch)

    def state_dict(self) -> Mapping[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.position = state["position"]

    def _epoch(self, epoch: int) -> list[np.ndarray[Any, Any]]:
        random = np.random.default_rng([self._seed, epoch])
        shuffled = random.permutation(self._rows)
        size = max(1, min(BUCKET, len(self) // MIXES)) * self._batch_size
        buckets = [shuffled[start : start + size] for start in range(0, len(shuffled), size)]
        ordered = [bucket[np.argsort(self._lengths[bucket], kind="stable")] for bucket in buckets]
        # Even parts, so that no step is taken on a last batch of one row.
        batches = np.array_split(np.concatenate(ordered), len(self))
        return [batches[n] for n in random.permutation(len(self))]
