"""How well a model does what the task asks."""

from __future__ import annotations

from torch import nn

from attar.types import Score


def score(model: nn.Module, judge: Score) -> dict[str, float]:
    """The task's own metrics on the test split; `score` among them is the one that counts.

    judge: the task's scorer, bound to the split
    """
    return dict(judge(model))
