"""Lessons in what models write, each token weighed by how likely student and teacher find it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from attar.errors import RecipeError
from attar.heads import Sparse, at_labels, parts
from attar.teach.asking import ask, check_classes, only
from attar.teach.written import Write
from attar.types import IGNORE, Batch, Decay, Forward, Knowledge, Lesson, Moment, Share

LEAST = 0.01
"""The smallest skew there is; without any, a divergence knows no bound."""

ALIKE = 1e-5
"""How far apart two likelihoods are at least when something is divided by their distance."""


def minillm(
    batches: Iterable[Batch],
    teachers: Sequence[nn.Module],
    student: nn.Module,
    forward: Forward,
    write: Write,
    *,
    prompt: Moment = 0.25,
    helped: Decay = 0.2,
    normalized: bool = True,
) -> Iterator[Lesson]:
    """The student writes with some help, and hears of each token what came of it in the end.

    The loss is `sequence.minillm`. A token's worth is the sum of log p/q over all tokens behind it,
    p the teacher's probability and q the student's: the sum is a reward that only what was drawn
    decides, so it needs the teacher's whole answers. Each text is learned from once, so nothing is
    clipped, and what the authors add of a pretraining corpus is left out.

    write: has a model write
    prompt: share of a text that the student is given; of conversations what comes before the answer
    helped: the teacher's share of the probability that a token is drawn by; the worth is weighted
        by how much likelier the student alone would have drawn it
    normalized: divide the sum by how many tokens it is over, or long texts are never worth it
    Source: Gu et al., MiniLLM, ICLR 2024, section 2.2 (single-step split, teacher-mixed sampling
    with the weight of the token alone, length normalization).
    """
    teacher = only(teachers, "minillm")
    for batch in batches:
        wrote = write(student, batch, prompt, 1.0, teacher if helped else None, helped)
        its = ask(teacher, wrote, forward)
        gained = likelihoods(its, wrote) - likelihoods(ask(student, wrote, forward), wrote)
        later = _behind(gained)
        if normalized:
            later /= _behind((wrote.labels != IGNORE).to(gained)).clamp_min(1)
        drawn = helped * gained.exp() + 1 - helped  # as a multiple of the student's probability
        yield Lesson(replace(wrote, notes={"worth": later / drawn}), its)


def distillm2(
    batches: Iterable[Batch],
    teachers: Sequence[nn.Module],
    student: nn.Module,
    forward: Forward,
    write: Write,
    *,
    prompt: Moment = 0.25,
    temperature: Share = 1.0,
    skew: Decay = 0.1,
    text: Literal["teacher", "data"] = "teacher",
) -> Iterator[Lesson]:
    """The same beginnings as teacher and student go on from them, twice the rows of a batch.

    The loss is `sequence.distillm2`: what the teacher wrote shall become likelier, what the student
    wrote less so. How far the two are mixed in it depends on the text: the further apart they are,
    in the likelihood of its mean token, the more.

    write: has a model write
    prompt: share of a text that both are given; of conversations what comes before the answer
    temperature: that both draw at
    skew: the largest share of the one in the other
    text: what stands on the teacher's side; that of the data costs no writing
    Source: Ko et al., DistiLLM-2, ICML 2025 (adaptive α); its mean is over a batch.
    """
    teacher = only(teachers, "distillm2")
    for batch in batches:
        wanted = write(teacher, batch, prompt, temperature) if text == "teacher" else batch
        wrote = write(student, batch, prompt, temperature)
        both = _joined(wanted, wrote)
        its = ask(teacher, both, forward)
        p, q = (_mean_token(each, both) for each in (its, ask(student, both, forward)))
        own = torch.arange(len(both)) >= len(wanted)
        mixed = torch.cat([_skew((p - q)[~own], skew), _skew((q - p)[own], skew)])
        notes = {"own": _of_tokens(own, both.labels), "skew": _of_tokens(mixed, both.labels)}
        yield Lesson(replace(both, notes=notes), its)


@torch.no_grad()
def likelihoods(said: Knowledge, batch: Batch) -> Tensor:
    """The logarithm of a model's probability of each label, and 0 where there is none.

    Raises RecipeError where few of its answers are kept: others have no likelihood of their own.
    """
    check_classes(said)
    if isinstance(said.logits, Sparse):
        raise RecipeError(
            "What was drawn may be none of the few tokens that this teacher tells about; weighing "
            "it needs all its answers. Take `on_policy`, or a teacher that gives them."
        )
    logits, labels = at_labels(said.logits, batch.labels)
    found = torch.zeros(len(labels))
    for part, told in parts(logits):
        found[part] = told.log_softmax(-1).cpu().gather(-1, labels[part, None])[:, 0]
    known = batch.labels != IGNORE
    return torch.zeros(known.shape).masked_scatter(known, found)


def _behind(values: Tensor) -> Tensor:
    """Of each token the sum over all that stand behind it in its row."""
    return values.flip(-1).cumsum(-1).flip(-1) - values


def _mean_token(said: Knowledge, batch: Batch) -> Tensor:
    """(rows,): how likely a model finds a row's tokens, their geometric mean."""
    many = (batch.labels != IGNORE).view(len(batch), -1).sum(1)
    return (likelihoods(said, batch).view(len(batch), -1).sum(1) / many.clamp_min(1)).exp()


def _skew(apart: Tensor, most: float) -> Tensor:
    """(texts,): by how much each may be mixed so that all are about equally hard."""
    near = torch.where(apart.abs() < ALIKE, ALIKE, apart)
    return (1 - (1 - most) * apart.mean() / near).clamp(min(LEAST, most), most)


def _joined(one: Batch, other: Batch) -> Batch:
    labels = torch.cat([one.labels, other.labels])
    return Batch((*one.inputs, *other.inputs), labels, (*one.keys, *other.keys))


def _of_tokens(rows: Tensor, labels: Tensor) -> Tensor:
    """What is told of rows, said of each of their tokens."""
    return rows.float().view(-1, *(1 for _ in labels.shape[1:])).expand(labels.shape)
