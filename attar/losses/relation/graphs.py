"""A loss over several layers at once: the graphs that the examples make, and how they change."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from .examples import FLAT, apart

Stages: TypeAlias = Sequence[Tensor]  # each (rows, length, width), shallow to deep


def graph(
    student: Stages, teacher: Stages, mask: Tensor | None = None, *, transformation: float = 1.0
) -> Tensor:
    """How examples stand to one another in every stage, and how that changes from stage to stage.

    The edges of a stage are the squared distances of the flattened examples, divided by the
    largest. The first part is their mean squared difference, over pairs and stages. The second is
    the squared difference of how much the edges change (in the mean square) from one stage to the
    next, plus, where both models keep their shape between the two, the mean squared difference of
    how far each example moves (squared, divided by the farthest).

    mask: (rows, length); used for stages of this length
    transformation: the weight of the second part, over pairs of stages in a row

    The paper's instance features, the logits in its experiments, are `response.mse`: a term of its
    own. Source: Liu et al., Knowledge Distillation via Instance Relationship Graph, CVPR 2019
    (L_IRG without its vertices, and L_IRG-t).
    """
    ours = [_flat(stage, mask) for stage in student]
    theirs = [_flat(stage.detach(), mask) for stage in teacher]
    layers = zip(ours, theirs, strict=True)
    loss = torch.stack([F.mse_loss(_edges(mine), _edges(its)) for mine, its in layers]).mean()
    steps = zip(pairwise(ours), pairwise(theirs), strict=True)
    changes = [_change_gap(mine, its) for mine, its in steps]
    return loss + transformation * torch.stack(changes).mean() if changes else loss


def _flat(stage: Tensor, mask: Tensor | None) -> Tensor:
    if mask is not None and stage.shape[:-1] == mask.shape:
        stage = stage.masked_fill(~mask.bool()[:, :, None], 0)
    return stage.float().flatten(1)


def _edges(rows: Tensor) -> Tensor:
    return _squares(apart(rows))


def _change_gap(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> Tensor:
    """How differently the graph of the student and that of the teacher change over one step."""
    gap = (_edge_change(*ours) - _edge_change(*theirs)).square()
    if all(before.shape == after.shape for before, after in (ours, theirs)):
        gap = gap + F.mse_loss(_moves(*ours), _moves(*theirs))
    return gap


def _edge_change(before: Tensor, after: Tensor) -> Tensor:
    return F.mse_loss(_edges(before), _edges(after))


def _moves(before: Tensor, after: Tensor) -> Tensor:
    return _squares(torch.linalg.vector_norm(after - before, dim=-1))


def _squares(distances: Tensor) -> Tensor:
    """Squared, and divided by the largest."""
    return (distances / distances.max().clamp_min(FLAT)).square()
