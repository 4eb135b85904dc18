"""What a language model is scored by: nats of held-out text, and how far it answers as another."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor

from attar import heads
from attar.tasks.intervals import interval
from attar.tasks.task import Worths
from attar.types import Batch, Knowledge


def lost(said: Knowledge, batch: Batch) -> list[tuple[float, int, int]]:
    """Of each row: nats that are lost, tokens whose likeliest came, and tokens."""
    found = []
    for answers, labels in zip(said.logits, batch.labels, strict=True):
        said_there, truth = heads.at_labels(answers, labels.to(answers.device))
        nats, right = 0.0, 0
        for part, told in heads.parts(said_there):
            nats += float(F.cross_entropy(told, truth[part], reduction="sum").double())
            right += int((told.argmax(1) == truth[part]).sum())
        found.append((nats, right, len(truth)))
    return found


def summed(
    lost: Worths, right: Worths, count: Worths, written: int
) -> tuple[Worths, dict[str, float]]:
    """Of each row its share of the log-likelihood per token, and all rows' figures.

    lost, right, count: (rows,), as `lost` gives them; written: bytes of all rows
    """
    nats = float(lost.sum() / count.sum())
    low, high = interval(-lost, count)
    return -lost * len(count) / count.sum(), {
        "score": -nats,
        "low": low,
        "high": high,
        "perplexity": math.exp(min(nats, 700)),
        "bits_per_byte": float(lost.sum()) / math.log(2) / max(1, written),
        "accuracy": float(right.sum() / count.sum()),
        "examples": len(count),
        "tokens": int(count.sum()),
    }


def beside(answers: Iterable[tuple[Tensor, Tensor, Tensor]]) -> dict[str, float]:
    """How often the likeliest token is the teacher's, and the mean KL(teacher | model) in nats.

    answers: logits (tokens, vocabulary) of model and teacher, and the teacher's likeliest token
    """
    same, apart, count = 0.0, 0.0, 0
    for said, its, likeliest in answers:
        mine, truth = said.log_softmax(1), its.float().log_softmax(1)
        same += float((mine.argmax(1) == likeliest).sum())
        apart += float((truth.exp() * (truth - mine)).sum())
        count += len(mine)
    return {"agreement": same / count, "kl": apart / count, "compared": count}
