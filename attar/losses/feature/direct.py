"""Losses that compare one feature with another, number by number or angle by angle."""

from __future__ import annotations

from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .places import FLAT, tokens

Features: TypeAlias = Tensor  # (rows, length, width) or pooled (rows, width)
Reused: TypeAlias = Tensor  # what enters the head that both have, as above


def mse(student: Features, teacher: Features, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference of the features, over real tokens and their width.

    mask: (rows, length) of 1 for real and 0 for padding; pooled features ignore it.
    Source: FitNet's hint (Romero et al., FitNets, ICLR 2015, L_HT) and TinyBERT's hidden
    and embedding losses (Jiao et al., 2020, equations 8 and 9), each through a bridge: with the
    layers for the first, with the embeddings' module for the second.
    Published below plain KD (FitNet, ResNet-56 -> 20: 69.21 against 70.66, Tian et al. 2020).
    """
    return (tokens(student, mask) - tokens(teacher.detach(), mask)).square().mean()


def l1(student: Features, teacher: Features, mask: Tensor | None = None) -> Tensor:
    """Mean absolute difference of the features, over real tokens and their width.

    mask: as in `mse`. The few numbers in which a transformer's features are very large weigh less
    than in `mse`. Source: FitNet's hint (Romero et al., ICLR 2015) with the norm of order one.
    """
    return (tokens(student, mask) - tokens(teacher.detach(), mask)).abs().mean()


def cosine(student: Features, teacher: Features, mask: Tensor | None = None) -> Tensor:
    """1 - cosine of the angle between the features of a token, whatever their size.

    mask: as in `mse`. Computed as half the squared distance of the unit vectors, which for features
    that are zero is still defined. Source: Sanh et al., DistilBERT, 2019 (L_cos).
    """
    return _unit_distances(tokens(student, mask), tokens(teacher.detach(), mask)).mean() / 2


def pkd(student: Features, teacher: Features) -> Tensor:
    """‖s / ‖s‖ - t / ‖t‖‖² of each row's first token (BERT's [CLS]), mean over the rows.

    Pooled features are compared as they are. The paper sums it over the layers.
    Source: Sun et al., Patient Knowledge Distillation for BERT, EMNLP 2019, equation 7 (L_PT).
    """
    return _unit_distances(_first(student), _first(teacher.detach())).mean()


def ab(
    student: Features, teacher: Features, mask: Tensor | None = None, *, margin: float = 1.0
) -> Tensor:
    """[t > 0] max(0, margin - s)² + [t ≤ 0] max(0, margin + s)², mean over tokens and width.

    Only where the teacher's neurons are on is told, never how far: give it layers before their
    ReLU. It is not least at the teacher's own numbers, but wherever each neuron is on the teacher's
    side by the margin. The paper trains on it before the task is begun: a weight that ends early.

    margin: how far on its side of zero a neuron has to be
    mask: as in `mse`. The authors' code takes the sum over a row, times 3 / 1000.
    Raises ValueError if the margin is not positive.
    Source: Heo et al., Knowledge Transfer via Distillation of Activation Boundaries, AAAI 2019
    (the alternative loss).
    Published below plain KD (ResNet-56 -> 20: 69.47 against 70.66, Tian et al. 2020).
    """
    if not margin > 0:
        raise ValueError(f"margin is {margin}, not above 0: no neuron would be pushed to its side")
    ours, theirs = tokens(student, mask), tokens(teacher.detach(), mask)
    side = torch.where(theirs > 0, 1.0, -1.0)
    return (margin - side * ours).relu().square().mean()


class simkd(nn.Module):  # noqa: N801
    """Mean squared difference of the projected last feature of the student and the teacher's last.

    The projector is part of the student and is shipped and counted with it: body, projector, and
    the teacher's own classifier in place of the student's. In a recipe that is the student
    `joined: {student: {layers: {keep: [0]}}}` with this loss alone and `layers: auto`, which
    compares what enters the two classifiers and refuses a student that has one of its own.
    Nothing is learned here. It is a class because a class is given the features without a bridge:
    a bridge would be left behind in training, and the classifier would then meet features unlike
    any it knows.

    Raises ValueError if the widths differ: the projector has to end in the teacher's.
    Source: Chen et al., Knowledge Distillation with the Reused Teacher Classifier, CVPR 2022
    (the paper uses no other loss).
    """

    def __init__(self, student: Reused, teacher: Reused) -> None:
        super().__init__()
        ours, theirs = student.shape[-1], teacher.shape[-1]
        if ours != theirs:
            raise ValueError(
                f"the student's projector gives width {ours} and the teacher's feature has width "
                f"{theirs}: the teacher's classifier needs a projector that gives {theirs}"
            )

    def forward(self, student: Reused, teacher: Reused, mask: Tensor | None = None) -> Tensor:
        return mse(student, teacher, mask)


def _first(features: Tensor) -> Tensor:
    return (features if features.ndim == 2 else features[:, 0]).float()


def _unit_distances(ours: Tensor, theirs: Tensor) -> Tensor:
    units = (F.normalize(each, dim=-1, eps=FLAT) for each in (ours, theirs))
    return torch.sub(*units).square().sum(-1)
