"""Schemes with more to choose from than one teacher's answer to everything."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.errors import LayerError, RecipeError
from attar.teach.asking import ask
from attar.types import IGNORE, Batch, Forward, Knowledge, Lesson

Load = Callable[[str], nn.Module]
How = Literal["average", "confidence", "entropy", "best"]


def ensemble(
    batches: Iterable[Batch],
    teachers: Sequence[nn.Module],
    forward: Forward,
    load: Load | None = None,
    *,
    others: tuple[str, ...] = (),
    how: How = "average",
    weights: tuple[float, ...] = (),
) -> Iterator[Lesson]:
    """Several teachers at once: their probabilities, and the features of each layer, are mixed.

    At temperature 1 a divergence from the mixture has the gradient of the weighted divergences.
    Mixing features is for teachers that began from the same weights; their widths must agree.

    load: makes a model of what `others` names
    others: teachers beside those given: folders or hub names
    how: what a teacher's share of a row's mixture is decided by: all alike; its cross-entropy with
        the true label (CA-MKD: the nearer, the more); its entropy (the surer, the more); or the
        one best teacher alone. Where a label is not known, entropy stands in for cross-entropy
    weights: fixed shares instead, one a teacher
    Source: Zhang et al., Confidence-Aware Multi-Teacher Knowledge Distillation, ICASSP 2022,
    equation 4; Kwon et al., Adaptive Knowledge Distillation based on Entropy, ICASSP 2020.
    Raises RecipeError where the weights are not one positive number a teacher, LayerError where
    the teachers' features are of different shapes.
    """
    if others and load is None:
        raise RecipeError("ensemble can't load its other teachers here; give them as models.")
    if not teachers and not others:
        raise RecipeError("ensemble asks at least one teacher.")
    teachers = [*teachers, *(load(name) for name in others if load is not None)]
    if weights and (len(weights) != len(teachers) or min(weights) <= 0):
        raise RecipeError(
            f"ensemble has {len(teachers)} teachers and the weights {list(weights)}; give one "
            "number above 0 for each."
        )
    for batch in batches:
        said = [ask(teacher, batch, forward) for teacher in teachers]
        logs = torch.stack([each.logits.float().log_softmax(1) for each in said])
        shares = (
            (torch.tensor(weights) / sum(weights))[:, None].expand(-1, len(batch))
            if weights
            else _shares(logs, batch.labels.to(logs.device), how)
        )
        shares = shares.to(logs.device)
        mixture = (logs + shares.log().unsqueeze(2)).logsumexp(0)
        features = {path: _mixed(path, said, shares) for path in said[0].features}
        yield Lesson(batch, Knowledge(mixture, features, said[0].mask))


def _mixed(path: str, said: Sequence[Knowledge], shares: Tensor) -> Tensor:
    """The teachers' features of one layer, each row by the teachers' shares of it."""
    features = [knowledge.features[path] for knowledge in said]
    if len({feature.shape for feature in features}) > 1:
        shapes = " and ".join(str(tuple(feature.shape)) for feature in features)
        raise LayerError(
            f"ensemble mixes the features of {path}, and the teachers' have the shapes {shapes}; "
            "take losses over logits, or teachers of one shape."
        )
    stacked = torch.stack(features)
    return (stacked * shares.view(*shares.shape, *[1] * (stacked.dim() - 2))).sum(0)


def _shares(logs: Tensor, labels: Tensor, how: How) -> Tensor:
    """(teachers, rows): how much each has to say of a row; a row's shares sum to one."""
    if how == "average" or len(logs) == 1:
        return torch.full(logs.shape[:2], 1 / len(logs), device=logs.device)
    entropy = -(logs.exp() * logs).sum(2)
    wrong = F.nll_loss(logs.flatten(0, 1), labels.repeat(len(logs)).clamp(min=0), reduction="none")
    wrong = torch.where(labels == IGNORE, entropy, wrong.view_as(entropy))
    if how == "entropy":
        return (-entropy).softmax(0)
    if how == "best":
        return F.one_hot(wrong.argmin(0), len(logs)).T.float()
    return (1 - wrong.softmax(0)) / (len(logs) - 1)


def uncertain(
    batches: Iterable[Batch],
    teachers: Sequence[nn.Module],
    student: nn.Module,
    forward: Forward,
    *,
    share: float = 0.25,
) -> Iterator[Lesson]:
    """The teacher is asked about what the student is least sure of, and about nothing else.

    For teachers whose answers cost money or time. Of the other rows the student's own answer is the
    lesson, from which it has nothing to learn but to stay as it is.

    share: of the rows of a batch that are asked about, rounded up
    Source: Li et al., Dynamic Knowledge Distillation for Pre-trained Language Models, EMNLP 2021
    (section 4: entropy of the student's answer; a tenth of the rows did as well as all).
    Raises RecipeError for several teachers, and where layers are compared: the student has none of
    the teacher's.
    """
    if len(teachers) != 1:
        raise RecipeError(f"uncertain asks one teacher, not {len(teachers)}.")
    if not 0 < share <= 1:
        raise RecipeError(
            f"The share that uncertain asks about is above 0 and at most 1, not {share}."
        )
    for batch in batches:
        logits = ask(student, batch, forward).logits.float()
        logs = logits.log_softmax(1)
        doubt = -(logs.exp() * logs).sum(1)
        rows = doubt.topk(math.ceil(share * len(batch))).indices.tolist()
        answer = ask(teachers[0], batch.some(rows), forward)
        if answer.features:
            raise RecipeError("uncertain can't compare layers; take losses over logits.")
        logits[rows] = answer.logits.float().to(logits.device)
        yield Lesson(batch, Knowledge(logits))
