"""Answers over a large vocabulary, kept of a few classes: the likeliest, and draws from others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attar.heads import Headed, Sparse, dense
from attar.store.bits import (
    Numbers,
    Raw,
    Reader,
    Writer,
    gaps,
    get_shifts,
    ids_of,
    put_shifts,
    shifts,
)

_CODES, _DEPTH = 255, 20.0
"""The largest code of a probability, and minus its logarithm: what is less likely than e^-20, two
in a billion, is kept as that."""
_AT_ONCE = 1 << 22
"""Probabilities that are made at a time: 32 MB in double precision."""
_WORTH = np.exp(-_DEPTH * (np.arange(_CODES + 1) / _CODES) ** 2)
"""What each code is worth: even steps in the root of the logarithm, fine where much is at stake."""


@dataclass(frozen=True)
class Few:
    """How a row's answers are cut: the `top` likeliest classes, and `draws` from all others."""

    top: int
    draws: int
    classes: int

    def packed(self, logits: Tensor | Headed | Sparse, digest: bytes) -> Raw:
        """The answers of a row (tokens, classes) as bytes; chance depends on the digest alone.

        What is Sparse already is kept as it is, where it has just the top.

        Probabilities are rounded up or down by chance, so that they are right on average; what is
        drawn is a systematic sample (Kitagawa 1996: one random number a token, even steps), which
        never misses a class that has 1/draws of what it is drawn from, and is unbiased.
        """
        chance = _Chance(digest)
        step = max(1, _AT_ONCE // self.classes)
        if isinstance(logits, Sparse) and self._has_just(logits):
            step = max(1, len(logits))
        found = [
            self._cut(logits[start : start + step], chance) for start in range(0, len(logits), step)
        ] or [self._cut(torch.zeros(0, self.classes), chance)]
        ids, codes, rest, drawn = (np.concatenate(each) for each in zip(*found, strict=True))
        writer, parts = Writer(), []
        if self.top:
            whole = np.full(len(ids), self.top)
            parts.append((gaps(ids.ravel(), whole), whole))
            writer.put(codes.ravel(), 8)
            writer.put(rest, 8)
        if self.draws:
            new = np.diff(drawn, axis=1, prepend=-1) > 0
            writer.put(new.ravel().astype(np.int64), 1)
            counts = new.sum(1)
            parts.append((gaps(drawn[new], counts), counts))
        _put_gaps(writer, parts)
        return writer.bytes()

    def unpacked(self, raw: Raw, tokens: int) -> tuple[Numbers, npt.NDArray[np.float32], Any]:
        """Ids and weights (tokens, entries) of a row, and (tokens,) the mass of all but the top."""
        reader = Reader(raw)
        head, rest = np.zeros((tokens, 0)), np.ones(tokens)
        groups: list[Numbers] = []
        if self.top:
            head = _WORTH[reader.get(tokens * self.top, 8)].reshape(tokens, self.top)
            rest = _WORTH[reader.get(tokens, 8)]
            groups.append(np.full(tokens, self.top))
        if self.draws:
            new = reader.flags(tokens * self.draws).reshape(tokens, self.draws)
            groups.append(new.sum(1, dtype=np.int64))
        found = _get_gaps(reader, groups)
        most = int(groups[-1].max(initial=0)) if self.draws else 0
        ids = np.zeros((tokens, self.top + most), np.int64)
        weights = np.zeros((tokens, self.top + most), np.float32)
        if self.top:
            ids[:, : self.top], weights[:, : self.top] = found[0].reshape(tokens, self.top), head
        if self.draws:
            own = np.arange(most) < groups[-1][:, None]
            share = np.repeat(rest / self.draws, groups[-1])
            ids[:, self.top :][own] = found[-1]
            weights[:, self.top :][own] = share * _times(new)
        return ids, weights, rest

    def _has_just(self, few: Sparse) -> bool:
        return not self.draws and few.head == self.top == few.ids.shape[-1]

    def _cut(
        self, logits: Tensor | Headed | Sparse, chance: _Chance
    ) -> tuple[npt.NDArray[Any], ...]:
        """Of some tokens the head's rising ids, its codes, that of the rest, and what is drawn."""
        if isinstance(logits, Sparse) and self._has_just(logits):
            known, order = logits.ids.sort(-1)
            told = logits.weights.double().gather(-1, order).cpu().numpy()
            others = _coded(logits.rest.double().cpu().numpy(), chance)
            return known.cpu().numpy(), _coded(told, chance), others, np.zeros((len(told), 0))
        p = dense(logits).detach().double().softmax(-1)
        ids = p.topk(self.top).indices.sort(-1).values
        head = p.gather(-1, ids)
        rest = p.scatter_(-1, ids, 0).sum(-1) if self.top else p.new_ones(len(p))
        steps = torch.from_numpy(chance.numbers(len(p)))[:, None] + torch.arange(self.draws)
        drawn = torch.empty(len(p), 0)
        if self.draws:
            whole = p.cumsum_(-1)
            steps = steps.to(whole.device) / self.draws * whole[:, -1:]
            drawn = torch.searchsorted(whole, steps, right=True).clamp_max(self.classes - 1)
        numbers, sure, rests, picked = (each.cpu().numpy() for each in (ids, head, rest, drawn))
        return numbers, _coded(sure, chance), _coded(rests, chance), picked


class _Chance:
    """Random numbers that depend on a key alone, the same on every machine and in every order."""

    def __init__(self, digest: bytes) -> None:
        self._bits = np.random.Philox(key=int.from_bytes(digest[:16], "little"))

    def numbers(self, *shape: int) -> npt.NDArray[np.float64]:
        """Of [0, 1), 53 bits each."""
        raw = self._bits.random_raw(int(np.prod(shape)))
        drawn: npt.NDArray[np.float64] = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return drawn.reshape(shape)


def _coded(p: npt.NDArray[np.float64], chance: _Chance) -> Numbers:
    """A code for each probability, the next above or below, so that on average it is right."""
    depth = -np.log(np.maximum(p, _WORTH[-1]))
    below = np.minimum(_CODES * np.sqrt(np.maximum(depth, 0) / _DEPTH), _CODES - 1).astype(np.int64)
    high, low = _WORTH[below], _WORTH[below + 1]
    codes: Numbers = below + (chance.numbers(*p.shape) >= (p - low) / (high - low))
    return codes


def _times(new: Raw) -> Numbers:
    """How often each was drawn, of flags (tokens, draws) that are 1 where another one begins."""
    return np.diff(np.flatnonzero(new), append=new.size)


def _put_gaps(writer: Writer, parts: list[tuple[Numbers, Numbers]]) -> None:
    """Gaps and how many each token has: all shifts, all low bits, then all that is above them."""
    each = [shifts(left_out, counts) for left_out, counts in parts]
    for own in each:
        put_shifts(writer, own)
    spread = [np.repeat(own, counts) for own, (_, counts) in zip(each, parts, strict=True)]
    for own, (left_out, _) in zip(spread, parts, strict=True):
        writer.put(left_out & ((1 << own) - 1), own)
    for own, (left_out, _) in zip(spread, parts, strict=True):
        writer.unary(left_out >> own)


def _get_gaps(reader: Reader, groups: list[Numbers]) -> list[Numbers]:
    """The ids of each part, as they were before their gaps were put."""
    each = [np.repeat(get_shifts(reader, len(counts)), counts) for counts in groups]
    low = [reader.get(len(own), own) for own in each]
    high = reader.unary(sum(map(len, each)))
    ends = np.cumsum([len(own) for own in each])[:-1]
    above = np.split(high, ends)
    return [
        ids_of(top << own | bottom, counts)
        for top, own, bottom, counts in zip(above, each, low, groups, strict=True)
    ]


def quality(logits: Tensor, few: Sparse) -> dict[str, float]:
    """How near what is kept of some tokens is to their logits (tokens, classes).

    mass: what the classes known one by one have of it
    kl: KL(kept ‖ whole), in nats
    cosine: between the gradients that both send to the logits of a student, which is as unsure as
        the teacher at a temperature of 2
    """
    log_p = logits.float().log_softmax(-1)
    ids, above, floor = few.estimate()
    kept = floor[:, None].repeat(1, few.classes).scatter_add_(-1, ids, above)
    student = (logits.float() / 2).softmax(-1)
    slopes = student - log_p.exp(), student * kept.sum(-1, keepdim=True) - kept
    apart = (torch.special.xlogy(kept, kept) - kept * log_p).sum(-1)
    return {
        "mass": float((1 - few.rest).mean()) if few.head else 0.0,
        "kl": float(apart.mean()),
        "cosine": float(torch.cosine_similarity(*slopes).mean()),
    }
