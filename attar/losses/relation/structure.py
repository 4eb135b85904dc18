"""Losses over the structure of one text: which tag follows which, which word depends on which."""

from __future__ import annotations

from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from ..response.softening import divergence, soften

Scores: TypeAlias = Tensor  # (rows, length, tags or heads): no hidden width


def entity(
    student: Scores,
    teacher: Scores,
    mask: Tensor | None = None,
    *,
    tags: int | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """T² KL(teacher ‖ student) of whole tag sequences, exact, for each real token.

    student, teacher: (rows, length, tags), scores of independent tags, or (rows, length, tags²),
        a linear chain's (CRF's) scores of a tag after a tag: previous x tags + this one, what
        comes before the first token being tag 0. One may be a chain and the other not.
        `layers` has to name what gives them: no word can stand for it.
    mask: (rows, length); a padded token is skipped: the tag before it stays the previous one
    tags: how many there are; by default the smaller width, so that two chains have to say it

    The KL of a chain is that of each tag given the previous one, in the mean over the teacher's
    marginals of the previous one. Summed over sequences, divided by the number of tokens; of
    independent tags it is `response.kl`, token by token.

    Raises ValueError if a width is neither tags nor tags², or the temperature is not positive.
    Source: Wang et al., Structural Knowledge Distillation, ACL 2021 (the factorized objective:
    chain or independent teacher and student), with the entropy of the teacher subtracted.
    """
    count = min(student.shape[-1], teacher.shape[-1]) if tags is None else tags
    real = _real(mask, student)
    answers = _chain(_tag_scores(student, real, count, temperature), real)
    wanted = _chain(_tag_scores(teacher.detach(), real, count, temperature), real)
    expected = (_previous(wanted.exp(), real) * divergence(wanted, answers)).sum(-1)
    return temperature**2 * expected[real].mean()


def arcs(
    student: Scores, teacher: Scores, mask: Tensor | None = None, *, temperature: float = 1.0
) -> Tensor:
    """T² KL(teacher ‖ student) of which token is the head of a token, over the real tokens.

    student, teacher: (rows, length, length) arc scores, a dependent a row and a head a column;
        columns beyond the length are padding. A root is a token of its own (or a token's own
        column), and every real token may be the head of any. `layers` has to name what gives them:
        no word can stand for it.

    A parser that chooses each head by itself gives a set of arcs the product of their
    probabilities, so this is the KL of the whole set, divided by the number of tokens.

    Raises ValueError if there are fewer columns than tokens, or the temperature is not positive.
    Source: Wang et al., Structural Knowledge Distillation, ACL 2021 (dependency parsing, arcs).
    """
    real = _real(mask, student)
    answers = _heads(student, real, temperature)
    wanted = _heads(teacher.detach(), real, temperature)
    return temperature**2 * divergence(wanted, answers).mean()


def _real(mask: Tensor | None, like: Tensor) -> Tensor:
    """(rows, length), True for what is not padding."""
    if mask is not None:
        return mask.bool()
    return torch.ones(like.shape[:2], dtype=torch.bool, device=like.device)


def _tag_scores(maps: Tensor, real: Tensor, tags: int, temperature: float) -> Tensor:
    """(rows, length, previous tags, tags); one previous tag for all where tags are independent."""
    if maps.shape[-1] not in (tags, tags**2):
        raise ValueError(
            f"a width of {maps.shape[-1]} is neither {tags} tags nor their {tags**2} pairs: "
            "say with `tags` how many there are"
        )
    scores = soften(maps.masked_fill(~real[:, :, None], 0), temperature)
    paired: Tensor = scores.unflatten(-1, (-1, tags))
    return paired


def _chain(scores: Tensor, real: Tensor) -> Tensor:
    """Log probability of a tag given the previous one and all the scores, from the end backward."""
    later = scores.new_zeros(len(scores), 1)
    steps = []
    for step, here in zip(scores.unbind(1)[::-1], real.unbind(1)[::-1], strict=True):
        reached = step + later[:, None, :]
        steps.append(reached.log_softmax(-1))
        later = torch.where(here[:, None], reached.logsumexp(-1), later)
    return torch.stack(steps[::-1], 1)


def _previous(chain: Tensor, real: Tensor) -> Tensor:
    """(rows, length, tags): how probable each tag is as the previous one."""
    before = F.one_hot(torch.zeros_like(real[:, 0], dtype=torch.long), chain.shape[-1]).float()
    marginals = []
    for step, here in zip(chain.unbind(1), real.unbind(1), strict=True):
        marginals.append(before)
        before = torch.where(here[:, None], (before[:, :, None] * step).sum(1), before)
    return torch.stack(marginals, 1)


def _heads(maps: Tensor, real: Tensor, temperature: float) -> Tensor:
    """(real tokens, length) log probabilities; padding is nobody's head."""
    length = maps.shape[1]
    if maps.shape[2] < length:
        raise ValueError(f"arc scores for {maps.shape[2]} heads of {length} tokens: too few")
    scores = soften(maps[..., :length][real], temperature)
    heads = real[:, None].expand(-1, length, -1)[real]
    return scores.masked_fill(~heads, torch.finfo(scores.dtype).min).log_softmax(-1)
