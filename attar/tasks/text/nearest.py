"""Which of one tokenizer's tokens comes nearest to each of another's, by edit distance."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from attar.tasks.text.packing import Ids

LONGEST = 32
"""Bytes of a token that are compared: beyond them are rules and runs of spaces."""
SHARED = (4, 3, 2, 1, 0)
"""So many first bytes of a token the nearest has too, if any has: what is said next begins so."""


@cache
def nearest(its: tuple[bytes, ...], mine: tuple[bytes, ...]) -> Ids:
    """For each of its tokens the number of mine that is the same, or the nearest by edit distance.

    its, mine: the tokens as the text that they stand for; an empty one of mine is never taken

    Among those that begin with the same four bytes, where there is none three, and so on. Of
    equally near ones the first is taken: in most vocabularies it is the most frequent.
    Source: Wan et al., Knowledge Fusion of Large Language Models, ICLR 2024, section 3.2 (MinED,
    there over all tokens whatever they begin with).
    """
    known = {part: n for n, part in reversed(list(enumerate(mine))) if part}
    among: dict[bytes, list[int]] = defaultdict(list)
    for n, part in enumerate(mine):
        for size in SHARED if part else ():
            if len(part) >= size:
                among[part[:size]].append(n)
    tables: dict[bytes, _Table] = {}
    found = np.zeros(len(its), np.int64)
    for number, part in enumerate(its):
        if part in known:
            found[number] = known[part]
            continue
        begins = next(part[:size] for size in SHARED if len(part) >= size and part[:size] in among)
        if begins not in tables:
            tables[begins] = _Table.of(among[begins], mine)
        found[number] = tables[begins].nearest(part[:LONGEST], len(begins))
    return found


class _Table(NamedTuple):
    """Tokens from the shortest to the longest: their numbers, bytes (tokens, most), and sizes."""

    numbers: Ids
    table: npt.NDArray[np.uint8]
    sizes: Ids

    @classmethod
    def of(cls, numbers: Sequence[int], parts: Sequence[bytes]) -> _Table:
        ordered = sorted(numbers, key=lambda n: (len(parts[n]), n))
        sizes = np.array([min(len(parts[n]), LONGEST) for n in ordered])
        table = np.zeros((len(ordered), int(sizes[-1])), np.uint8)
        for row, n, size in zip(table, ordered, sizes, strict=True):
            row[:size] = np.frombuffer(parts[n][:size], np.uint8)
        return cls(np.array(ordered), table, sizes)

    def nearest(self, token: bytes, shared: int) -> int:
        """The number of the nearest; all begin with so many bytes that are the token's too."""
        # The shortest is this near at least, so that none which is longer by more is nearer.
        near = max(len(token), int(self.sizes[0])) - shared
        few = int(np.searchsorted(self.sizes, len(token) + near, side="right"))
        table = self.table[:few, : self.sizes[few - 1]]
        apart = distances(token, table, self.sizes[:few])
        return int(self.numbers[:few][apart == apart.min()].min())


def distances(token: bytes, table: npt.NDArray[np.uint8], sizes: Ids) -> Ids:
    """The Levenshtein distance of a token from each of a table's, all of them at once."""
    steps = np.arange(table.shape[1] + 1, dtype=np.int16)
    row = np.repeat(steps[None], len(table), 0)
    for place, byte in enumerate(token, 1):
        changed = np.minimum(row[:, :-1] + (table != byte), row[:, 1:] + 1)
        begun = np.full((len(table), 1), place, np.int16)
        # To take in some bytes more costs one each, which a running minimum finds at once.
        row = np.minimum.accumulate(np.hstack([begun, changed]) - steps, 1) + steps
    return row[np.arange(len(table)), sizes].astype(np.int64)
