"""`repeat`: some steps of a recipe, round after round, their numbers moving on the way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field


def repeat(
    *, steps: Annotated[list[Any], Field(min_length=1)], times: Annotated[int, Field(ge=1)] = 3
) -> Iterator[tuple[int, Any, float]]:
    """The same steps several times over: cut a little, repair, cut more (Han et al. 2015).

    A number of a compressor may be a schedule over the rounds, at its `end` in the last:
    `ratio: {cubic: {end: 0.9}}` (Zhu and Gupta 2017). Shares of `prune.structured` are of what is
    left; those of `prune.magnitude` and `prune.wanda` of all.

    steps: what a round consists of, as under the key steps
    times: the number of rounds

    Yields each step's place in its round, the step, and the progress after that round.
    """
    for turn in range(times):
        for place, step in enumerate(steps):
            yield place, step, (turn + 1) / times
