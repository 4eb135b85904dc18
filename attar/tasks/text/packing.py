"""Documents as rows of tokens: cut to a length, packed side by side, each reading only itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attar.store import key
from attar.tasks.text.corpora import Document
from attar.types import IGNORE

Ids = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

AT_ONCE = 256
"""Documents that are cut into tokens together."""


@dataclass(frozen=True)
class Row:
    """One or more pieces of documents, side by side.

    ids: (length,) its tokens; learned: (length,) which of them are to be foretold
    ends: behind which token each piece ends
    written: bytes of text that these tokens stand for
    """

    ids: Ids
    learned: Flags
    ends: tuple[int, ...]
    written: int

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def key(self) -> str:
        """The address of what a model makes of it: of its tokens, its pieces and what counts."""
        said = self.ids.tobytes() + self.learned.tobytes() + repr(self.ends).encode()
        return key(said)

    @property
    def positions(self) -> Ids:
        """(length,) of each token its place in its own piece."""
        sizes = np.diff([0, *self.ends])
        return np.concatenate([np.arange(size) for size in sizes])

    def labels(self, length: int) -> Ids:
        """(length,) at each place the token that comes next, IGNORE where none is to be foretold.

        The last token of a piece foretells nothing: what follows is of another document.
        """
        labels = np.full(length, IGNORE)
        labels[: len(self) - 1] = np.where(self.learned[1:], self.ids[1:], IGNORE)
        labels[np.array(self.ends) - 1] = IGNORE
        return labels


def rows(documents: Sequence[Document], tokenizer: Any, length: int, *, pack: bool) -> list[Row]:
    """Documents as rows of at most `length` tokens; each different one once.

    A longer document is cut into pieces that overlap by one token, so that each but the first is
    foretold exactly once. Behind a document stands the end-of-text token, but where its template
    says so itself.

    pack: put pieces that do not fill a row side by side
    """
    pieces = [
        piece for row in encoded(documents, tokenizer) for piece in _pieces(*row, length=length)
    ]
    pieces = [piece for piece in pieces if piece.learned[1:].any()]
    packed = side_by_side(pieces, length) if pack else pieces
    return list({row.key: row for row in packed}.values())


def noted(rows: Sequence[Row]) -> dict[str, Any]:
    """Rows in tensors and lists, as a checkpoint holds them."""
    return {
        "ids": torch.from_numpy(np.concatenate([row.ids for row in rows])),
        "learned": torch.from_numpy(np.concatenate([row.learned for row in rows])),
        "ends": [list(row.ends) for row in rows],
        "written": [row.written for row in rows],
    }


def read(note: Mapping[str, Any]) -> list[Row]:
    """The rows that were noted."""
    cuts = np.cumsum([ends[-1] for ends in note["ends"]])[:-1]
    ids, learned = (np.split(note[name].numpy(), cuts) for name in ("ids", "learned"))
    rest = note["ends"], note["written"]
    return [Row(i, flags, tuple(e), w) for i, flags, e, w in zip(ids, learned, *rest, strict=True)]


def encoded(
    documents: Sequence[Document], tokenizer: Any
) -> Iterator[tuple[Ids, Flags, list[int]]]:
    """Of each document its tokens, which are to be learned, and the byte of text each ends at."""
    for start in range(0, len(documents), AT_ONCE):
        some = documents[start : start + AT_ONCE]
        for whole in (True, False):
            told = [each for each in some if each.ended is not whole]
            if told:
                found = tokenizer(
                    [each.text for each in told],
                    add_special_tokens=whole,
                    return_offsets_mapping=True,
                    return_attention_mask=False,
                )
                for each, ids, spans in zip(
                    told, found["input_ids"], found["offset_mapping"], strict=True
                ):
                    yield _told(each, ids, spans, tokenizer.eos_token_id)


def _told(
    document: Document, ids: list[int], spans: list[tuple[int, int]], end: int | None
) -> tuple[Ids, Flags, list[int]]:
    sizes = np.cumsum([0, *(len(letter.encode("utf-8", "replace")) for letter in document.text)])
    ends = [int(sizes[stop]) for _, stop in spans]
    learned = [
        document.learned is None or any(at < stop and start < to for at, to in document.learned)
        for start, stop in spans
    ]
    if not document.ended and end is not None:
        ids, learned, ends = [*ids, end], [*learned, True], [*ends, int(sizes[-1])]
    return np.array(ids, np.int64), np.array(learned, bool), ends


def _pieces(ids: Ids, learned: Flags, ends: list[int], *, length: int) -> Iterator[Row]:
    for start in range(0, max(1, len(ids) - 1), length - 1):
        at = slice(start, start + length)
        size = len(ids[at])
        if size > 1:
            foretold = np.flatnonzero(learned[at][1:]) + start + 1
            written = sum(ends[n] - ends[n - 1] for n in foretold.tolist())
            yield Row(ids[at], learned[at], (size,), max(0, written))


def side_by_side(pieces: Sequence[Row], length: int) -> list[Row]:
    """Pieces side by side, the longest first, each into the fullest row that it still fits in."""
    by_room: dict[int, list[list[Row]]] = {}
    for piece in sorted(pieces, key=len, reverse=True):
        room = next((n for n in range(len(piece), length + 1) if by_room.get(n)), None)
        row: list[Row] = [] if room is None else by_room[room].pop()
        row.append(piece)
        by_room.setdefault((length if room is None else room) - len(piece), []).append(row)
    return [_joined(row) for some in by_room.values() for row in some]


def _joined(pieces: Sequence[Row]) -> Row:
    ends = np.cumsum([len(piece) for piece in pieces])
    return Row(
        np.concatenate([piece.ids for piece in pieces]),
        np.concatenate([piece.learned for piece in pieces]),
        tuple(ends.tolist()),
        sum(piece.written for piece in pieces),
    )


def padded(rows: Sequence[Row], pad: int) -> tuple[Tensor, Tensor]:
    """(rows, longest) of tokens, and of their positions; padding stands at position 0."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad)
    positions = torch.zeros_like(ids)
    for n, row in enumerate(rows):
        ids[n, : len(row)] = torch.from_numpy(row.ids)
        positions[n, : len(row)] = torch.from_numpy(row.positions)
    return ids, positions


def real(rows: Sequence[Row], length: int) -> Tensor:
    """(rows, length) of 1 for tokens and 0 for padding."""
    return (torch.arange(length) < torch.tensor([len(row) for row in rows])[:, None]).long()
