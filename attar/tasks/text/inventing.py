"""Texts that nobody wrote, for a teacher to answer: made from those that are there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DROPPED = 0.2
"""Chance of each word of a text to be left out."""


def invent(texts: Sequence[str], count: int, seed: int) -> list[str]:
    """So many new texts; the same seed gives the same ones.

    In turns one text loses words and has two neighbours change places, and the beginning of one
    text is followed by the end of another. Nobody knows their labels: what they are good for is a
    teacher's answer, which on its own training texts says little more than their labels do.

    Source: the masking and n-gram rules of Tang et al., Distilling Task-Specific Knowledge from
    BERT into Simple Neural Networks, 2019, section 3.3.
    """
    random = np.random.default_rng(seed)
    known, made = set(texts), dict[str, None]()
    sources = [words for text in texts if len(words := text.split()) > 1]
    # Short texts give few new ones, so what comes out twice is tried again, but not for ever.
    for trial in range(10 * count if sources else 0):
        if len(made) == count:
            break
        words = sources[random.integers(len(sources))]
        other = sources[random.integers(len(sources))]
        new = " ".join(_thinned(words, random) if trial % 2 else _spliced(words, other, random))
        if new not in known:
            made[new] = None
    return list(made)


def _thinned(words: Sequence[str], random: np.random.Generator) -> list[str]:
    """Some words fewer, at least one left, and two neighbours changed about."""
    kept = [word for word in words if random.random() > DROPPED] or list(words[:1])
    if len(kept) > 2:
        at = int(random.integers(len(kept) - 1))
        kept[at], kept[at + 1] = kept[at + 1], kept[at]
    return kept


def _spliced(first: Sequence[str], second: Sequence[str], random: np.random.Generator) -> list[str]:
    """The beginning of one text and the end of another, at least a word of each."""
    start = int(random.integers(1, len(first)))
    return [*first[:start], *second[int(random.integers(1, len(second))) :]]
