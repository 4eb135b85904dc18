"""Losses that compare an example with those that came before, of which they keep a memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import blake2b
from typing import Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..feature.layers import linear, seeded
from ..response.softening import soften
from .examples import FLAT

Rows: TypeAlias = Tensor  # (rows, width)

NOBODY = -1


class Keyed(Protocol):
    """A batch: one string an example, the same whenever the same example comes again."""

    @property
    def keys(self) -> Sequence[str]: ...


class crd(nn.Module):  # noqa: N801
    """Telling the teacher's view of the same example from its views of others, and the reverse.

    Both sides are embedded (linear, length one; both learned). With x = ours · theirs / temperature
    the critic is h = eˣ / (eˣ + N c): N the number of negatives, c what eˣ is by chance, its mean
    over the first batch. The loss of a row is -log h of its pair and -Σ log(1 - h) of its embedding
    with the other side's remembered ones, summed over both directions; never with its own.

    batch: its `keys` say which example a row is
    width: of the embeddings
    negatives: how many embeddings are remembered; best no more than there are examples
    momentum: how much of what is remembered of an example stays when the example comes again

    The authors keep one place for each example of the training set and draw 16384 negatives from
    it (with labels: of other classes). Here there are `negatives` places, all of them negatives
    at each step: random directions at first, as there; a new example takes the oldest place,
    a known one is updated in its own. With a place for every example it is the authors' memory.
    The pair itself is not read from memory, as it is in their code, but from the batch, as in
    their formula. Nothing is remembered in eval mode.

    Weight 0.8 in the paper. Published above plain KD (ResNet-56 -> 20: 71.16 against 70.66).
    Raises ValueError if the temperature is not positive, or nothing is to be remembered.
    Source: Tian et al., Contrastive Representation Distillation, ICLR 2020 (L_critic, with
    the normalization by chance of the authors' code).
    """

    memory: Tensor
    whose: Tensor
    oldest: Tensor
    chance: Tensor

    def __init__(
        self,
        student: Rows,
        teacher: Rows,
        *,
        width: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
    ) -> None:
        super().__init__()
        if negatives < 1:
            raise ValueError(f"negatives is {negatives}: there has to be at least 1 to tell from")
        self.temperature, self.momentum = temperature, momentum
        random = seeded()
        self.ours = linear(student.shape[-1], width, random)
        self.theirs = linear(teacher.shape[-1], width, random)
        # What is remembered of the student, and of the teacher.
        self.register_buffer("memory", _directions((2, negatives, width), random))
        self.register_buffer("whose", torch.full((negatives,), NOBODY))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.long))
        # Logarithms of c for either direction, until they are known.
        self.register_buffer("chance", torch.full((2,), math.nan))
        self.to(student.device)

    def forward(self, student: Rows, teacher: Rows, batch: Keyed) -> Tensor:
        who = _identities(batch.keys).to(student.device)
        with torch.autocast(student.device.type, enabled=False):
            ours = F.normalize(self.ours(student.float()), dim=-1)
            theirs = F.normalize(self.theirs(teacher.detach().float()), dim=-1)
            views = torch.stack([ours, theirs])
            pairs = soften((ours * theirs).sum(-1), self.temperature)
            scores = soften(views @ self.memory.flip(0).mT, self.temperature)
        others = self.whose != who[:, None]
        noise = self._chance(pairs, scores)[:, None] + others.sum(-1).clamp_min(1).log()
        same = F.softplus(noise - pairs)
        different = (F.softplus(scores - noise[:, :, None]) * others).sum(-1)
        if self.training:
            self._remember(views.detach(), who)
        return (same + different).sum(0).mean()

    @torch.no_grad()
    def _chance(self, pairs: Tensor, scores: Tensor) -> Tensor:
        """(2,) log c of either direction, settled by the first batch that is trained on."""
        every = torch.cat([pairs.expand(2, -1), scores.flatten(1)], 1)
        chance = self.chance.where(
            self.chance.isfinite(), every.logsumexp(1) - math.log(every.shape[1])
        )
        if self.training:
            self.chance = chance
        return chance

    @torch.no_grad()
    def _remember(self, views: Tensor, who: Tensor) -> None:
        """Update the known examples where they stand, and put the new ones in the oldest places."""
        # Never in place: the backward pass still needs what was remembered before.
        once = (who[:, None] == who).int().argmax(1) == torch.arange(len(who), device=who.device)
        views, who = views[:, once], who[once]
        found = self.whose == who[:, None]
        known = found.any(1)
        places = found.int().argmax(1)[known]
        mixed = torch.lerp(views[:, known], self.memory[:, places], self.momentum)
        memory = self.memory.index_copy(1, places, F.normalize(mixed, dim=-1))
        size = len(self.whose)
        new, fresh = who[~known][-size:], views[:, ~known][:, -size:]
        places = _oldest(self.oldest, len(new), size)
        self.memory = memory.index_copy(1, places, fresh)
        self.whose = self.whose.index_copy(0, places, new)
        self.oldest = (self.oldest + len(new)) % size


class seed(nn.Module):  # noqa: N801
    """-Σ teacher log student of how like an example is to those that the teacher saw before.

    The student is projected to the teacher's width (linear, learned), both are scaled to length
    one, and compared by inner product with the teacher's embeddings in a queue and with its
    embedding of the example itself; a softmax over these is what teacher and student say. Its least
    is the teacher's entropy. The mean is over rows.

    queue: how many embeddings are remembered: random directions at first, then the latest; the
        paper's 65536 are for more than a million images
    temperature: of the student's softmax
    teacher_temperature: of the teacher's

    Nothing is remembered in eval mode.
    Raises ValueError if a temperature is not positive, or nothing is to be remembered.
    Source: Fang et al., SEED: Self-supervised Distillation for Visual Representation, ICLR 2021.
    """

    memory: Tensor
    oldest: Tensor

    def __init__(
        self,
        student: Rows,
        teacher: Rows,
        *,
        queue: int = 4096,
        temperature: float = 0.2,
        teacher_temperature: float = 0.01,
    ) -> None:
        super().__init__()
        if queue < 1:
            raise ValueError(f"queue is {queue}: there has to be at least 1 to be compared with")
        self.temperature = temperature
        self.teacher_temperature = teacher_temperature
        random = seeded()
        self.ours = linear(student.shape[-1], teacher.shape[-1], random)
        self.register_buffer("memory", _directions((queue, teacher.shape[-1]), random))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.long))
        self.to(student.device)

    def forward(self, student: Rows, teacher: Rows) -> Tensor:
        with torch.autocast(student.device.type, enabled=False):
            ours = F.normalize(self.ours(student.float()), dim=-1)
            theirs = F.normalize(teacher.detach().float(), dim=-1, eps=FLAT)
            answers = soften(self._likeness(ours, theirs), self.temperature)
            wanted = soften(self._likeness(theirs, theirs), self.teacher_temperature)
        if self.training:
            self._remember(theirs)
        return F.cross_entropy(answers, wanted.softmax(-1))

    def _likeness(self, rows: Tensor, own: Tensor) -> Tensor:
        """(rows, 1 + queue): to the teacher's view of the example, and to what is remembered."""
        return torch.cat([(rows * own).sum(-1, keepdim=True), rows @ self.memory.mT], 1)

    @torch.no_grad()
    def _remember(self, theirs: Tensor) -> None:
        size = len(self.memory)
        places = _oldest(self.oldest, len(theirs[-size:]), size)
        self.memory = self.memory.index_copy(0, places, theirs[-size:])
        self.oldest = (self.oldest + len(places)) % size


def _directions(shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    return F.normalize(torch.randn(shape, generator=random), dim=-1)


def _identities(keys: Sequence[str]) -> Tensor:
    """(rows,) of each example's key a number that no process and no machine changes."""
    digests = [blake2b(key.encode(), digest_size=8).digest() for key in keys]
    return torch.tensor([int.from_bytes(digest) >> 1 for digest in digests])


def _oldest(first: Tensor, count: int, size: int) -> Tensor:
    return (first + torch.arange(count, device=first.device)) % size
