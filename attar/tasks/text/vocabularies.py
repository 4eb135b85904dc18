"""One tokenizer under other ids: padded, extended, reordered vocabularies, matched by tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from attar.errors import RecipeError
from attar.heads import Headed, Sparse

SAME = 0.99
"""Share of the larger vocabulary that has to be in the other one: few tokens may be added."""
NEVER = -100.0
"""How far below the others the logit of a class lies that the teacher does not have: it has a
probability of zero, with a finite log."""
_SHOWN = 3
"""Tokens, or ranges of ids, that a sentence names."""


def matched(
    teacher: Mapping[str, int], student: Mapping[str, int], widths: tuple[int, int]
) -> tuple[Tensor, str]:
    """The teacher's id for each of the student's, and a sentence that proves it.

    teacher, student: every token of either with its id, as `tokenizer.get_vocab()` gives them
    widths: how many classes teacher and student have; ids that no token has are padding

    Gives (student's classes,) int64, -1 where the teacher has no such token, for `carried`.
    Raises RecipeError where it is not one tokenizer, or a model has no class for a token.
    """
    for whose, tokens, width in (("teacher", teacher, widths[0]), ("student", student, widths[1])):
        if unfit := misfit(whose, tokens, width):
            raise RecipeError(unfit)
    shared = teacher.keys() & student.keys()
    if len(shared) < SAME * max(len(teacher), len(student), 1):
        alone = [token for token in student if token not in teacher][:_SHOWN]
        alone = alone or [token for token in teacher if token not in student][:_SHOWN]
        raise RecipeError(
            f"Teacher and student do not share a tokenizer: of {len(teacher):,} and"
            f" {len(student):,} tokens {len(shared):,} are the same, not such as"
            f" {', '.join(map(repr, alone))}; answers over other tokens can't be compared class by"
            " class."
        )
    index = torch.full((widths[1],), -1)
    index[[student[token] for token in shared]] = torch.tensor([teacher[each] for each in shared])
    moved = sum(teacher[token] != student[token] for token in shared)
    says = [f"{len(shared):,} tokens are the same" + (f", {moved:,} under other ids" * bool(moved))]
    for whose, tokens, width in (("teacher", teacher, widths[0]), ("student", student, widths[1])):
        own = [token for token in tokens if token not in shared]
        if own:
            says.append(f"{len(own):,} only the {whose}'s ({', '.join(map(repr, own[:_SHOWN]))})")
        if padding := sorted(set(range(width)) - set(tokens.values())):
            says.append(
                f"of the {whose}'s {width:,} classes {len(padding):,} are padding, as no token has"
                f" them ({_ranges(padding)})"
            )
    return index, "; ".join(says)


def misfit(whose: str, tokens: Mapping[str, int], width: int) -> str | None:
    """What is wrong where a model has no class for a token of its tokenizer, in a sentence."""
    if not tokens or max(tokens.values()) < width:
        return None
    return (
        f"The {whose} has {width:,} classes and its tokenizer ids up to {max(tokens.values()):,}:"
        " this tokenizer is another model's."
    )


def carried(logits: Tensor | Headed | Sparse, index: Tensor) -> Tensor | Headed | Sparse:
    """A teacher's answers (..., its classes) over the student's classes, as `matched` maps them.

    Padding of the teacher is left out, so its probabilities sum to one over what are tokens.
    Raises ValueError where of few classes one is kept that the student does not have.
    """
    index = index.to(logits.device)
    none, at = index < 0, index.clamp_min(0)
    if not isinstance(logits, Sparse) and torch.equal(index, _counting(index)):
        # Often only padding is to be left out: no copy.
        rest = len(index)
        return logits[..., :rest] if isinstance(logits, Tensor) else logits.first(rest)
    if isinstance(logits, Headed):
        weight = logits.weight[at]
        if logits.bias is None and not none.any():
            return Headed(logits.states, weight)
        bias = weight.new_zeros(len(at)) if logits.bias is None else logits.bias[at]
        # Far below the mean of the others: logits have no zero of their own.
        weight = torch.where(none[:, None], weight[~none].mean(0), weight)
        bias = torch.where(none, bias[~none].mean() + NEVER, bias)
        return Headed(logits.states, weight, bias)
    if isinstance(logits, Tensor):
        kept = logits[..., at]
        low = kept.masked_fill(none, -torch.inf).amax(-1, keepdim=True) + NEVER
        return torch.where(none, low, kept)
    back = torch.full((logits.classes,), -1, device=index.device)
    back[at[~none]] = (~none).nonzero()[:, 0]
    ids = back[logits.ids]
    lost = (ids < 0) & (logits.weights > 0)
    if lost.any():
        raise ValueError(
            f"the teacher answers {int(logits.ids[lost][0])}, a class that the student has no token"
            " for: ask it again with the student's tokenizer"
        )
    return Sparse(ids.clamp_min(0), logits.weights, logits.rest, logits.head, len(index))


def _counting(index: Tensor) -> Tensor:
    return torch.arange(len(index), device=index.device)


def _ranges(ids: Sequence[int]) -> str:
    """Rising ids as ranges; of many the first few."""
    ends = [n for n, (one, other) in enumerate(pairwise(ids)) if other > one + 1]
    starts = [0, *(n + 1 for n in ends)]
    found = [
        f"{ids[first]:,}" if first == last else f"{ids[first]:,} to {ids[last]:,}"
        for first, last in zip(starts, [*ends, len(ids) - 1], strict=True)
    ]
    return ", ".join(found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
