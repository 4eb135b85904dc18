"""A student that answers through its teacher's own head: body, projector, head (SimKD)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from attar.errors import ModelError
from attar.resolve import ask, bind, find
from attar.students.vocabulary import tokenizer_of
from attar.taps import first_tensor


def joined(
    texts: Sequence[str],
    classes: list[str],
    teacher: nn.Module,
    max_length: int,
    load: Callable[..., nn.Module] | None = None,
    *,
    student: str | dict[str, Any] = "layers",
) -> nn.Module:
    """Another student without its head, a projector, and the teacher's head (SimKD, Chen 2022).

    student: the other one, by its name alone or with its options: `layers: {keep: [0]}`

    Teach it with `feature.simkd: {layers: auto}` and no other loss. Raises ModelError where the
    other student or the teacher has no linear head for the classes.
    """
    name, options = (student, {}) if isinstance(student, str) else next(iter(student.items()))
    # Whether the user's own code may run was asked when the recipe was checked.
    make = bind(find("attar.students", name, trust=True), options or {})
    given = {"texts": texts, "classes": classes, "teacher": teacher, "max_length": max_length}
    _, head = _head(teacher, len(classes))
    return join(ask(make, given | {"load": load}), head)


def join(student: nn.Module, head: nn.Linear) -> Joined:
    """A student with a projector and a copy of another's head in place of its own."""
    path, own = _head(student, head.out_features)
    tokenizer = tokenizer_of(student)
    student.set_submodule(path, nn.Identity())
    whole = Joined(student, head, width=own.in_features, target=head.in_features)
    vars(whole)["tokenizer"] = tokenizer
    return whole


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
            *(nn.Linear(width, hidden, bias=False), _Norm(hidden), nn.ReLU()),
            *(nn.Linear(hidden, hidden, bias=False), _Norm(hidden), nn.ReLU()),
            nn.Linear(hidden, target),
        )
        self.head = deepcopy(head).requires_grad_(False)

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """The logits that the teacher's head gives for the projected feature."""
        logits: Tensor = self.head(self.projector(first_tensor(self.body(*inputs, **named))))
        return logits


class _Norm(nn.BatchNorm1d):
    """Batch normalization that takes a batch of one row too, by what it remembers of others."""

    def forward(self, rows: Tensor) -> Tensor:
        if self.training and len(rows) == 1:
            remembered = self.running_mean, self.running_var
            return F.batch_norm(rows, *remembered, self.weight, self.bias, eps=self.eps)
        return super().forward(rows)


def _head(model: nn.Module, classes: int) -> tuple[str, nn.Linear]:
    """Where a model makes its logits: its last linear map to so many classes."""
    heads = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == classes
    ]
    if not heads:
        raise ModelError(f"{type(model).__name__} has no linear head for {classes} classes to join")
    return heads[-1]
