"""Schedules: functions from the progress of a run, 0 at its start and 1 at its end, to a number."""

from __future__ import annotations

import math

from attar.types import Moment


def constant(progress: float, *, value: float = 1.0) -> float:  # noqa: ARG001
    """`value` throughout."""
    return value


def linear(progress: float, *, start: float = 0.0, end: float = 1.0) -> float:
    """From `start` to `end` at an even pace."""
    return (1 - progress) * start + progress * end


def cosine(progress: float, *, start: float = 0.0, end: float = 1.0) -> float:
    """From `start` to `end` along half a cosine: slow, fast, slow.

    Source: Loshchilov and Hutter, SGDR, ICLR 2017, equation 5.
    """
    return linear((1 - math.cos(math.pi * progress)) / 2, start=start, end=end)


def cubic(progress: float, *, start: float = 0.0, end: float = 1.0) -> float:
    """From `start` to `end`, fast at first and slower and slower: for the share that is pruned.

    Source: Zhu and Gupta, To prune, or not to prune, 2017, equation 1.
    """
    return end + (start - end) * (1 - progress) ** 3


def step(progress: float, *, start: float = 0.0, end: float = 1.0, at: Moment = 0.5) -> float:
    """`start` before the progress `at`, `end` from there on."""
    return end if progress >= at else start
