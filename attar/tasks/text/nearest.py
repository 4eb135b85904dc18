"""Which of one tokenizer's tokens comes nearest to each of another's, by edit distance."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from attar.tasks.text.packing import Ids

LONGEST = 32
"""Bytes of a token that are compared: beyond them are rules and runs of spaces."""
SHARED = (2, 1, 0)
"""So many first bytes of a token the nearest has too, if any has: what is said next begins so."""


def nearest(its: Sequence[bytes], mine: Sequence[bytes]) -> Ids:
    """For each of its tokens the number of mine that is the same, or the nearest by edit distance.

    its, mine: the tokens as the text that they stand for; an empty one of mine is never taken

    Among those that begin with the same two bytes; where there is none, the same byte; else all. Of
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
    tables: dict[bytes, tuple[Any, Any]] = {}
    found = np.zeros(len(its), np.int64)
    for number, part in enumerate(its):
        if part in known:
            found[number] = known[part]
            continue
        begins = next(part[:size] for size in SHARED if len(part) >= size and part[:size] in among)
        if begins not in tables:
            tables[begins] = _table([mine[n] for n in among[begins]])
        found[number] = among[begins][int(distances(part, *tables[begins]).argmin())]
    return found


def _table(parts: Sequence[bytes]) -> tuple[npt.NDArray[np.uint8], Ids]:
    """(tokens, bytes) of their bytes, and how many each has."""
    sizes = np.array([min(len(part), LONGEST) for part in parts])
    table = np.zeros((len(parts), int(sizes.max())), np.uint8)
    for row, part, size in zip(table, parts, sizes, strict=True):
        row[:size] = np.frombuffer(part[:size], np.uint8)
    return table, sizes


def distances(token: bytes, table: npt.NDArray[np.uint8], sizes: Ids) -> Ids:
    """The Levenshtein distance of a token from each of a table's, all of them at once."""
    steps = np.arange(table.shape[1] + 1, dtype=np.int16)
    row = np.repeat(steps[None], len(table), 0)
    for place, byte in enumerate(token[:LONGEST], 1):
        changed = np.minimum(row[:, :-1] + (table != byte), row[:, 1:] + 1)
        begun = np.full((len(table), 1), place, np.int16)
        # To take in some bytes more costs one each, which a running minimum finds at once.
        row = np.minimum.accumulate(np.hstack([begun, changed]) - steps, 1) + steps
    return row[np.arange(len(table)), sizes].astype(np.int64)
