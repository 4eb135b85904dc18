"""Losses that compare the logits as the numbers they are."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .softening import FLAT, Answers, Logits, rowwise, whole


@rowwise
def mse(student: Logits, teacher: Answers) -> Tensor:
    """Mean squared difference of the logits, over rows and classes.

    Source: Ba and Caruana, Do Deep Nets Really Need to be Deep?, NeurIPS 2014, equation 1.
    """
    return (student.float() - whole(teacher).float()).square().mean()


@rowwise
def cosine(student: Logits, teacher: Answers) -> Tensor:
    """1 - cosine of the angle between the logits of a row, whatever their size.

    Computed as half the squared distance of the unit vectors, which is defined at zero logits too.
    """
    ours = F.normalize(student.float(), eps=FLAT)
    theirs = F.normalize(whole(teacher).float(), eps=FLAT)
    return (ours - theirs).square().sum(-1).mean() / 2
