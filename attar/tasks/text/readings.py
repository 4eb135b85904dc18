"""How a model with a tokenizer of its own is shown the task's rows, and what its answers say there.

Either it has the same tokens under other ids, and answers for them; or it is told the same text in
tokens of its own, and answers where one of them ends at the byte at which one of the row's ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from reprlib import repr as short
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attar.errors import ModelError, RecipeError
from attar.heads import Foreign, Headed, dense
from attar.tasks.text import tokenizing
from attar.tasks.text.nearest import nearest
from attar.tasks.text.packing import Ids, Row
from attar.tasks.text.spelling import Spelling, common
from attar.tasks.text.vocabularies import carried, matched, misfit

PROBE = "In 1969 the 3rd café – naïve, 日本語 and 🙂 – cost $4.99;\n\n\tdef f(x):  return x**2\n"
"""What two tokenizers have to cut alike to pass for one."""

TRIED = 32
"""Rows that they have to cut alike besides."""


@dataclass(frozen=True)
class Renumbered:
    """The task's tokens under ids of the model's own.

    index: (tokens of the task,) the model's id of each, -1 where it has none
    says: what proves it, in a sentence
    """

    index: Tensor
    says: str
    tokenizer: str

    @property
    def needs(self) -> int:
        """How many classes the model has at least."""
        return int(self.index.max()) + 1

    @property
    def facts(self) -> dict[str, Any]:
        """What decides, beside the weights, what the model makes of a row."""
        return {"own tokenizer": self.tokenizer}

    def ids(self, ids: Tensor) -> Tensor:
        """The model's ids for the task's."""
        its = self.index[ids]
        if (its < 0).any():
            raise ModelError(
                "A student wrote a token that its teacher lacks, so the teacher can't be asked "
                "about it; take a scheme over the data's own text, where there is none."
            )
        return its

    def answers(self, logits: Tensor | Headed, rows: Sequence[Row]) -> Any:  # noqa: ARG002
        """What the model says, over the task's tokens."""
        return _exact(carried(logits, self.index))


@dataclass(frozen=True)
class Piece:
    """A document of a row, or a piece of one, in both tokenizers' tokens.

    row, start: where in the rows it stands; ids: the model's tokens
    mine, its: where each token ends, in bytes; size: bytes of the text
    learned: which of the row's tokens are to be foretold
    """

    row: int
    start: int
    ids: Ids
    mine: Ids
    its: Ids
    size: int
    learned: np.ndarray[Any, Any]


class Retold:
    """A model of other tokens, which is told the text of a row in them.

    tokenizer: the model's; task: the one that rows are made of
    limit: tokens that the model takes, None where it does not say
    why: what says that the two are not the same
    """

    def __init__(self, tokenizer: Any, task: Any, limit: int | None, why: str) -> None:
        self.its, self.mine = Spelling(tokenizer), Spelling(task)
        self.limit, self.why = limit, why
        self.index = torch.tensor(sorted(tokenizer.get_vocab().values()))
        self.facts: dict[str, Any] = {"own tokenizer": tokenizing.digest(tokenizer)}

    @property
    def needs(self) -> int:
        """How many classes the model has at least."""
        return int(self.index.max()) + 1

    def told(self, rows: Sequence[Row]) -> list[Piece]:
        """The documents of rows in both tokens. Raises ModelError where one is too long."""
        cut = [
            (number, start, row.ids[start:stop], row.learned[start:stop])
            for number, row in enumerate(rows)
            for start, stop in zip((0, *row.ends[:-1]), row.ends, strict=True)
        ]
        said = [self.mine.told(ids) for _, _, ids, _ in cut]
        its = self.its.cut([text for text, _, _ in said], [ended for _, _, ended in said])
        found = []
        for (row, start, _, learned), (text, mine, _), (ids, ends) in zip(
            cut, said, its, strict=True
        ):
            if self.limit is not None and len(ids) > self.limit:
                raise ModelError(
                    f"A row of {len(mine)} tokens is {len(ids)} of a model's own, and it takes at "
                    f"most {self.limit}; set `length` lower."
                )
            found.append(Piece(row, start, ids, mine, ends, len(text.encode()), learned))
        return found

    def inputs(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """The model's own tokens, a line for each document: ids and mask (documents, length)."""
        pieces = self.told(rows)
        longest = max(1, *(len(piece.ids) for piece in pieces))
        ids = torch.full((len(pieces), longest), self.its.tokenizer.pad_token_id or 0)
        mask = torch.zeros_like(ids)
        for n, piece in enumerate(pieces):
            ids[n, : len(piece.ids)] = torch.from_numpy(piece.ids)
            mask[n, : len(piece.ids)] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def answers(self, logits: Tensor | Headed, rows: Sequence[Row]) -> Foreign:
        """What the model says at the rows' tokens, over its own: (rows, length, its tokens)."""
        shape = len(rows), max(len(row) for row in rows)
        line, place = torch.zeros(shape, dtype=torch.long), torch.full(shape, -1)
        for n, piece in enumerate(self.told(rows)):
            at = slice(piece.start, piece.start + len(piece.mine))
            line[piece.row, at] = n
            place[piece.row, at] = torch.from_numpy(common(piece.mine, piece.its))
        line, place = line.to(logits.device), place.to(logits.device)
        said = carried(logits[line, place.clamp_min(0)], self.index)
        return Foreign(_exact(said), place >= 0, self.nearest)

    @torch.no_grad()
    def lost(self, logits: Tensor | Headed, rows: Sequence[Row]) -> list[float]:
        """Of each row the nats in which the model tells the text that is to be foretold.

        Its tokens count that have a byte of that text; one whole that has others too. What begins a
        text without a token before it is foretold by neither.
        """
        lost = [0.0] * len(rows)
        place = torch.full((self.needs,), 0)
        place[self.index] = torch.arange(len(self.index))
        for n, piece in enumerate(self.told(rows)):
            said = dense(carried(logits[n, : len(piece.ids) - 1], self.index)).float()
            true = place[torch.from_numpy(piece.ids[1:])].to(said.device)
            nats = -said.log_softmax(-1).gather(1, true[:, None])[:, 0].double()
            lost[piece.row] += _counted(nats.tolist(), piece)
        return lost

    def says(self, rows: Sequence[Row]) -> str:
        """How far the two go together over some rows, in a sentence."""
        met = [(common(piece.mine, piece.its) >= 0, piece.learned) for piece in self.told(rows)]
        wanted = sum(int(learned[1:].sum()) for _, learned in met)
        found = sum(int((known[:-1] & learned[1:]).sum()) for known, learned in met)
        return (
            f"it reads the text in tokens of its own ({self.why}); of {wanted:,} tokens to be"
            f" foretold {found / max(1, wanted):.1%} begin at a byte at which one of its own"
            " begins, and there it teaches"
        )

    def nearest(self) -> Tensor:
        """(its tokens,) of each the task's token that is the same text, or nearest to it."""
        return self._nearest

    @cached_property
    def _nearest(self) -> Tensor:
        size = max(self.mine.parts.keys() - {None}) + 1
        mine = [self.mine.parts.get(n, b"") for n in range(size)]
        its = [self.its.parts[n] for n in self.index.tolist()]
        found = torch.from_numpy(nearest(tuple(its), tuple(mine)).copy())
        place = {n: row for row, n in enumerate(self.index.tolist())}
        for role, its_role in ((self.mine.begin, self.its.begin), (self.mine.end, self.its.end)):
            if role is not None and its_role is not None:
                found[place[its_role]] = role
        return found


Reading = Renumbered | Retold


def reading_of(
    tokenizer: Any, width: int | None, task: Any, rows: Sequence[Row], limit: int | None
) -> Reading:
    """How a model with this tokenizer reads rows of the task's tokens.

    width: how many classes the model has; None where it can't be told
    rows: all there are; limit: tokens that the model takes
    Raises ModelError where the tokenizer is another model's.
    """
    its, mine = tokenizer.get_vocab(), task.get_vocab()
    classes = max(its.values()) + 1 if width is None else width
    if unfit := misfit("model", its, classes):
        raise ModelError(unfit)
    try:
        index, says = matched(its, mine, (classes, max(len(task), *(n + 1 for n in mine.values()))))
    except RecipeError:
        same = len(its.keys() & mine.keys())
        why = f"of {len(its):,} and the task's {len(mine):,} tokens {same:,} are the same"
        return Retold(tokenizer, task, limit, why)
    used = np.unique(np.concatenate([row.ids for row in rows])).tolist()
    if unknown := [task.convert_ids_to_tokens(n) for n in used if index[n] < 0]:
        why = f"the texts have {unknown[0]!r}, which is none of the model's tokens"
        return Retold(tokenizer, task, limit, why)
    for text in (PROBE, *(Spelling(task).told(row.ids[: row.ends[0]])[0] for row in rows[:TRIED])):
        one, other = (
            each(text, add_special_tokens=False)["input_ids"] for each in (tokenizer, task)
        )
        if one != index[other].tolist():
            return Retold(tokenizer, task, limit, f"they cut {short(text)} into others of these")
    return Renumbered(index[: len(task)], says, tokenizing.digest(tokenizer))


def _exact(answers: Any) -> Any:
    """Logits that are made already in float32."""
    return answers.float() if isinstance(answers, Tensor) else answers


def _counted(nats: Sequence[float], piece: Piece) -> float:
    """The nats of those tokens that have a byte of what is to be foretold."""
    wanted, before = np.zeros(piece.size + 2, bool), max(0, int(piece.mine[0]))
    for end, learned in zip(piece.mine[1:].tolist(), piece.learned[1:].tolist(), strict=True):
        if end > before:
            wanted[before:end], before = learned, end
    lost, waiting, before = 0.0, 0.0, max(0, int(piece.its[0]))
    for end, each in zip(piece.its[1:].tolist(), nats, strict=True):
        waiting += each
        if end > before:
            lost += waiting if wanted[before:end].any() else 0.0
            waiting, before = 0.0, end
    return lost
