"""The range of a tensor that 8 bits are spent on, found out batch by batch in flat memory."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ranges = Literal["minmax", "percentile", "entropy"]

BINS = 2048
"""Bins of a histogram on each side of zero; a power of two, so that widening loses nothing."""

LEVELS = 256
"""What 8 bits tell apart."""

CANDIDATES = 128
"""Thresholds that are tried for the least entropy lost."""

OUTSIDE = 1e-4
"""The share of all values that a percentile range leaves outside, half of it on each side."""

UNSEEN = 0.5
"""The count that stands for what was never seen, where the logarithm of none is asked for."""

Counts = NDArray[np.float64]


class Histogram:
    """How often which values were seen, in bins that are symmetric about zero.

    When a value does not fit, the width doubles and bins are joined in pairs, which is exact; so
    memory does not grow, and at least half of the bins are always in use.
    """

    def __init__(self) -> None:
        self.counts: Counts = np.zeros(2 * BINS)
        self.zeros = 0
        self.width = 0.0
        self.low = self.high = 0.0

    def add(self, values: Tensor) -> None:
        """Count some values; zero is always among what was seen."""
        if not values.numel():
            return
        values = values.detach().float()
        self.low = min(self.low, float(values.amin()))
        self.high = max(self.high, float(values.amax()))
        self._widen_(max(-self.low, self.high))
        if self.width:
            # Zeros apart: they lose nothing, as every grid has a zero, and after a relu are many.
            other = values[values != 0].cpu()
            self.zeros += values.numel() - other.numel()
            found = torch.histc(other, 2 * BINS, -self.width, self.width)
            self.counts += found.double().numpy()

    def _widen_(self, most: float) -> None:
        # A power of two, so that the bins do not depend on which batch came first.
        while self.width < most:
            if not self.width:
                self.width = float(2.0 ** np.ceil(np.log2(most)))
                continue
            joined = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.pad(joined, BINS // 2)
            self.width *= 2

    def edges(self) -> Counts:
        """The limits of the bins, one more than there are bins."""
        return np.linspace(-self.width, self.width, 2 * BINS + 1)

    def range(self, kind: Ranges) -> tuple[float, float]:
        """The range that is kept; what lies outside is moved to its ends.

        minmax: all that was seen
        percentile: all but one in ten thousand
        entropy: that by which the least is lost of the distribution (Migacz 2017)
        """
        if kind == "minmax" or not self.counts.any():
            return self.low, self.high
        low, high = self._percentile() if kind == "percentile" else self._entropy()
        return max(low, self.low), min(high, self.high)

    def _percentile(self) -> tuple[float, float]:
        counts = self.counts.copy()
        counts[BINS] += self.zeros
        share = counts.cumsum() / counts.sum()
        first = int(np.searchsorted(share, OUTSIDE / 2, side="right"))
        last = int(np.searchsorted(share, 1 - OUTSIDE / 2, side="left"))
        return min(0.0, float(self.edges()[first])), max(0.0, float(self.edges()[last + 1]))

    def _entropy(self) -> tuple[float, float]:
        # Windows about zero, from a bin for each level on; where nothing was seen they are cut.
        used = np.flatnonzero(self.counts)
        reach = int(max(BINS - used[0], used[-1] + 1 - BINS))
        sizes = np.unique(np.linspace(min(LEVELS, reach), reach, CANDIDATES).astype(int))
        lost = [self._lost(size) for size in sizes]
        edge = float(sizes[int(np.argmin(lost))]) / BINS * self.width
        return -edge, edge

    def _lost(self, size: int) -> float:
        """The entropy lost when values are moved into a window and told apart in 256 levels."""
        used = np.flatnonzero(self.counts)
        start = max(BINS - size, min(int(used[0]), BINS))
        stop = min(BINS + size, max(int(used[-1]) + 1, BINS))
        inside = self.counts[start:stop]
        moved = inside.copy()
        moved[0] += self.counts[:start].sum()
        moved[-1] += self.counts[stop:].sum()
        return _divergence(moved, _told_apart(inside, moved > 0))


def _told_apart(counts: Counts, in_use: NDArray[np.bool_]) -> Counts:
    """Counts as 256 levels leave them: those of a level spread evenly over its bins in use."""
    level = np.arange(len(counts)) * LEVELS // len(counts)
    sums = np.bincount(level, counts, LEVELS)
    numbers = np.bincount(level, in_use, LEVELS)
    return np.where(in_use, (sums / np.maximum(numbers, 1))[level], 0.0)


def _divergence(truth: Counts, told: Counts) -> float:
    """Kullback and Leibler's, of two histograms of as many values.

    What was moved into the window is in the first only, and so it is missed in the second: else a
    window that nothing falls into would be the best of all.
    """
    seen = truth > 0
    ratios = np.log(truth[seen] / np.maximum(told[seen], UNSEEN))
    return float((truth[seen] * ratios).sum() / truth.sum())
