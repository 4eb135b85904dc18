"""A loss in chunks of rows: for logits so wide that what is made of them does not fit at once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .response.softening import labelled


def chunked(loss: Callable[..., Tensor], rows: int = 1024) -> Callable[..., Tensor]:
    """The same loss, of the same signature, computed `rows` rows at a time and again for gradients.

    What a loss makes of its logits, several float32 tensors of their size, exists for one chunk at
    a time; of the whole there are only the logits and their gradient. Costs a second forward pass.

    Exact for losses over logits that are a mean over rows, each seen by itself, or over the rows
    whose values are known: all of `response` but `dist` and `mlkd`, which compare rows, and
    `weighted` where some labels are not known, as it takes one mean over each (use two terms).
    Nothing can be told from outside about a loss of one's own.

    Raises ValueError if `rows` is not positive.
    """
    if rows < 1:
        raise ValueError(f"rows is {rows}, not at least 1")

    signature = inspect.signature(loss)

    @wraps(loss)
    def in_chunks(*given: Any, **options: Any) -> Tensor:
        bound = signature.bind(*given, **options).arguments
        whole = len(bound["student"])
        # A split has one gradient, put together at the end; each slice would make one of full size.
        parts = {
            name: value.split(rows)
            for name, value in bound.items()
            if isinstance(value, Tensor) and value.ndim and len(value) == whole
        }
        values, weights = [], []
        for n, student in enumerate(parts["student"]):
            chunk = {name: part[n] for name, part in parts.items()}
            values.append(checkpoint(loss, use_reentrant=False, **(bound | chunk)))
            weights.append(_counted(student, chunk.get("labels")))
        weight = torch.stack(weights).float()
        return (torch.stack(values) * weight).sum() / weight.sum().clamp_min(1)

    return in_chunks


def _counted(student: Tensor, labels: Tensor | None) -> Tensor:
    """How many rows a loss takes its mean over; values that are not known (NaN) are left out."""
    if labels is not None and labels.is_floating_point():
        return labelled(labels).sum().to(student.device)
    return torch.tensor(len(student), device=student.device)
