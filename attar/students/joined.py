"""A student that answers through its teacher's own head: body, projector, head (SimKD)."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from torch import Tensor, nn


class Joined(nn.Module):
    """The student's body, a projector to the teacher's width, and a copy of the teacher's head.

    Teach it with `feature.simkd` alone, between its `projector` and what enters the teacher's head:
    body and projector learn, the head stays as it is. All three are the student: they are counted,
    saved, measured and exported together. The projector is two hidden layers of half the teacher's
    width with batch normalization and ReLU, and ends in a linear map (the paper's is convolutional
    and ends in a ReLU, as its teachers' features do).

    body: gives the student's last feature, (rows, width), from whatever it is called with
    head: what makes the teacher's logits of the teacher's last feature, (rows, target)
    Source: Chen et al., Knowledge Distillation with the Reused Teacher Classifier, CVPR 2022.
    """

    def __init__(self, body: nn.Module, head: nn.Module, *, width: int, target: int) -> None:
        super().__init__()
        hidden = max(1, target // 2)
        self.body = body
        self.projector = nn.Sequential(
            *(nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()),
            *(nn.Linear(hidden, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()),
            nn.Linear(hidden, target),
        )
        self.head = deepcopy(head).requires_grad_(False)

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """The logits that the teacher's head gives for the projected feature."""
        logits: Tensor = self.head(self.projector(self.body(*inputs, **named)))
        return logits
