"""Whether two models answer for the same reasons: what hiding parts of an input takes from each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attar.errors import MissingExtra
from attar.measure.audit.answers import Array

AT_ONCE = 64
"""Inputs that are asked about together."""


def occlusion(answer: Callable[[Tensor], Tensor], pieces: int) -> Array:
    """What hiding each piece of one input takes from an answer; works on whatever can be called.

    answer: from (rows, pieces), 1 where a piece is seen and 0 where it is hidden, to (rows,)
    pieces: how many the input has
    Source: Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014.
    Raises MissingExtra without captum.
    """
    try:
        from captum.attr import Occlusion
    except ImportError as error:
        raise MissingExtra("captum", "audit", "the occlusion of an audit") from error
    found: Tensor = Occlusion(answer).attribute(
        torch.ones(1, pieces),
        sliding_window_shapes=(1,),
        baselines=0,
        perturbations_per_eval=AT_ONCE,
    )
    return found[0].double().numpy()


def spearman(one: Array, other: Array) -> float | None:
    """Spearman's rank correlation, ties at their mean rank; None where one has a single value."""
    left, right = _ranks(one), _ranks(other)
    left, right = left - left.mean(), right - right.mean()
    size = float(np.sqrt((left**2).sum() * (right**2).sum()))
    return float((left * right).sum() / size) if size > 0 else None


def _ranks(values: Array) -> Array:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    ranks: Array = (last - (count - 1) / 2)[place.reshape(-1)]
    return ranks


def similarity(explained: Iterable[tuple[Array, Array]]) -> dict[str, Any]:
    """The mean of Spearman's correlation over inputs, and of how many it could be told.

    explained: for each input what hiding its pieces takes from the one answer and the other
    """
    found = [each for one, other in explained if (each := spearman(one, other)) is not None]
    mean = float(np.mean(found)) if found else None
    return {"similarity": mean, "examples": len(found)}
