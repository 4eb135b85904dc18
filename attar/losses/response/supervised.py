"""Losses in which the labels have a say beside the teacher."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .divergences import kl
from .softening import (
    TINY,
    Answers,
    Logits,
    divergence,
    labelled,
    log_answers,
    mean_over_known,
    rowwise,
    targets,
    whole,
)


def weighted(
    student: Logits,
    teacher: Logits,
    labels: Tensor,
    *,
    hard: float = 0.1,
    soft: float = 0.9,
    temperature: float = 4.0,
) -> Tensor:
    """hard · cross-entropy with the labels + soft · T² KL(teacher ‖ student): where it all began.

    hard: weight of the labels
    soft: weight of the teacher

    Any two weights will do; these, with T = 4, are those of the published tables on CIFAR-100.
    labels: (rows,) int64; rows labelled -100 (not known) are left out of the cross-entropy, which
    is the mean over the others, and stay in the KL.

    Raises ValueError if the temperature is not positive.
    Source: Hinton et al., Distilling the Knowledge in a Neural Network, 2015, section 2.
    """
    known = labelled(labels)
    told = F.cross_entropy(student[known].float(), labels[known], reduction="none")
    taught = kl(student, teacher, temperature=temperature)
    return hard * mean_over_known(told) + soft * taught


@rowwise
def wsl(student: Logits, teacher: Answers, labels: Tensor, *, temperature: float = 2.0) -> Tensor:
    """T² w KL(teacher ‖ student), w = 1 - exp(-student's cross-entropy / teacher's) of each row.

    An example that the student already knows better than the teacher counts little. The weights
    take T = 1 and send back no gradient. labels: (rows,) int64; of rows labelled -100 (not known)
    it is what the teacher finds likeliest. The paper writes a soft cross-entropy for the KL, which
    has the same gradient, and adds 2.5 times this to the cross-entropy with the labels.

    Raises ValueError if the temperature is not positive.
    Source: Zhou et al., Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance
    Tradeoff Perspective, ICLR 2021.
    """
    said = whole(teacher)
    told = targets(labels, said)
    mine = F.cross_entropy(student.detach().float(), told, reduction="none")
    its = F.cross_entropy(said.float(), told, reduction="none")
    weight = -(-mine / its.clamp_min(TINY)).expm1()
    apart = divergence(log_answers(said, temperature), log_answers(student, temperature))
    return temperature**2 * (weight * apart).mean()


def regression(student: Logits, teacher: Logits, labels: Tensor, *, margin: float = 0.0) -> Tensor:
    """‖student - label‖² of the rows where it + margin is more than the teacher's; of others zero.

    What is compared are values, not scores of classes: the teacher is no target but a bound, and a
    row in which the student is already better than it is left alone.
    labels: (rows, values), or (rows,) for one value; rows with a NaN (not known) are left out, of
    the mean too.

    Raises ValueError if there are not as many labels as values.
    Source: Chen et al., Learning Efficient Object Detection Models with Knowledge Distillation,
    NeurIPS 2017, equation 4 (teacher bounded regression loss).
    """
    if labels.numel() != student.numel():
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} do not fit values of {tuple(student.shape)}"
        )
    known = labelled(labels)
    truth = labels.reshape(student.shape)[known].float()
    mine = (student[known].float() - truth).square().sum(-1)
    its = (teacher.detach()[known].float() - truth).square().sum(-1)
    return mean_over_known(mine * (mine + margin > its))
