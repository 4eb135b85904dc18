"""Losses that compare features: what the layers of student and teacher say, token by token.

Each takes features of any float type and of one width (a bridge makes them so), works in float32,
returns a float32 scalar, and sends no gradient to the teacher. The mean is over the real tokens
of the batch where `mask` is (rows, length), and over rows where the features are pooled.
"""

from __future__ import annotations

from typing import TypeAlias

import torch.nn.functional as F
from torch import Tensor

Features: TypeAlias = Tensor  # (rows, length, width) or pooled (rows, width)

# Less length than this is rounding, not a direction; dividing by less would send back gradients
# that no half-precision float can hold.
FLAT = 1e-3


def mse(student: Features, teacher: Features, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference of the features, over real tokens and their width.

    mask: (rows, length) of 1 for real and 0 for padding; pooled features ignore it.
    Source: FitNet's hint (Romero et al., FitNets, ICLR 2015, L_HT) and TinyBERT's hidden
    and embedding losses (Jiao et al., 2020, equations 8 and 9).
    """
    return (_tokens(student, mask) - _tokens(teacher.detach(), mask)).square().mean()


def cosine(student: Features, teacher: Features, mask: Tensor | None = None) -> Tensor:
    """1 - cosine of the angle between the features of a token, whatever their size.

    mask: as in `mse`. Computed as half the squared distance of the unit vectors, which for features
    that are zero is still defined. Source: Sanh et al., DistilBERT, 2019 (L_cos).
    """
    ours = F.normalize(_tokens(student, mask), dim=-1, eps=FLAT)
    theirs = F.normalize(_tokens(teacher.detach(), mask), dim=-1, eps=FLAT)
    return (ours - theirs).square().sum(-1).mean() / 2


def _tokens(features: Tensor, mask: Tensor | None) -> Tensor:
    """What is compared; padding is taken out before any arithmetic, whatever stands in it."""
    pooled = features.ndim == 2
    return features.float() if mask is None or pooled else features[mask.bool()].float()
