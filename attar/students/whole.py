"""The teacher itself as the student: what it loses in the steps, what it was teaches it again."""

from __future__ import annotations

from copy import deepcopy

from torch import nn


def teacher(teacher: nn.Module) -> nn.Module:
    """A copy of the teacher, all its layers, for steps that prune, factorize or quantize it.

    A `distill` step behind them is the repair.
    """
    return deepcopy(teacher)
