"""Where the row of each key lies, in 24 bytes a key."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Digests = npt.NDArray[np.bytes_]
"""(keys,) of bytes, all of one width."""
Places = npt.NDArray[np.int64]

ABSENT = -1


class Index:
    """From digests to places, for as many keys as there are rows on disk.

    A place is a number of 64 bits: the shard's above, the row's in it below.
    """

    def __init__(self) -> None:
        self._digests: Digests = np.empty(0, "S1")
        self._places: Places = np.empty(0, np.int64)
        self._new: list[tuple[Digests, Places]] = []

    def __len__(self) -> int:
        self._merge()
        return len(self._digests)

    def add(self, digests: Digests, shard: int) -> None:
        """The rows of one shard, in their order; a key that is here already stays where it is."""
        self._new.append((digests, (shard << 32) + np.arange(len(digests), dtype=np.int64)))

    def find(self, digests: Sequence[bytes]) -> Places:
        """The place of each, ABSENT for those that are not here."""
        self._merge()
        width = self._digests.itemsize
        # In an array of bytes a longer one would be cut, and a shorter one filled with zeros.
        fits = np.array([len(digest) == width for digest in digests], bool)
        asked = np.array([digest[:width] for digest in digests], f"S{width}")
        return np.where(fits, self.locate(asked), ABSENT)

    def locate(self, digests: Digests) -> Places:
        """The same of digests that are as wide as those here."""
        self._merge()
        if not len(self._digests):
            return np.full(len(digests), ABSENT)
        near = np.searchsorted(self._digests, digests).clip(max=len(self._digests) - 1)
        return np.where(self._digests[near] == digests, self._places[near], ABSENT)

    def _merge(self) -> None:
        if self._new:
            digests, places = zip((self._digests, self._places), *self._new, strict=True)
            self._new = []
            every = np.concatenate([each for each in digests if len(each)])
            self._digests, first = np.unique(every, return_index=True)
            self._places = np.concatenate(places)[first]


def shard_of(place: int) -> int:
    """The number of the shard a place is in."""
    return place >> 32


def row_of(place: int) -> int:
    """Which of its shard's rows a place is."""
    return place & 0xFFFFFFFF
