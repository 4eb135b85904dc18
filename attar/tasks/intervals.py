"""Between which bounds a mean likely lies, whatever examples it was taken over."""

from __future__ import annotations

from typing import Any

import numpy as np

Numbers = np.ndarray[Any, Any]

DRAWS = 2000
"""Samples that an interval is the middle of."""


def interval(sums: Numbers, counts: Numbers | None = None) -> tuple[float, float]:
    """The 95 % bootstrap interval of a mean, whole examples drawn anew.

    sums: (examples,) of each what it adds
    counts: (examples,) of how many it is the sum; of one each where None
    Source: Efron, Bootstrap Methods: Another Look at the Jackknife, Annals of Statistics 1979
    (percentiles of the means of samples).
    """
    drawn = np.random.default_rng(0).integers(len(sums), size=(DRAWS, len(sums)))
    sizes = len(sums) if counts is None else counts[drawn].sum(1)
    low, high = np.percentile(sums[drawn].sum(1) / sizes, [2.5, 97.5])
    return float(low), float(high)
