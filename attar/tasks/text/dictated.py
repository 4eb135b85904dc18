"""Text that somebody else writes behind the beginnings of documents, as rows to learn from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from attar.errors import DataError
from attar.heads import Sparse
from attar.tasks.text import corpora, packing
from attar.tasks.text.corpora import Document
from attar.tasks.text.packing import Ids, Row
from attar.tasks.text.writing import opening
from attar.types import Answer, Question

By = Literal["chat", "completions"]
"""Whether one is asked by messages, or goes on from a text."""

LEAST = 1e-8
"""What all tokens have together of which nothing is told: none of them is impossible."""

_AT_ONCE = 64
"""Rows whose likely tokens are put together."""


@dataclass(frozen=True)
class Place:
    """Where an answer belongs.

    before: the text that it stands behind, as the student reads it
    turns: of a conversation, its messages so far
    lead: blanks between what was said in messages and the answer to it
    """

    before: str
    turns: tuple[Mapping[str, Any], ...] = ()
    lead: str = ""


def questions(
    documents: Sequence[Document],
    tokenizer: Any,
    length: int,
    *,
    prompt: float,
    most: int | None,
    by: By | None,
) -> Iterator[Question]:
    """What each document, or each piece of a long one, is begun with.

    Of conversations it is all before the first answer, asked by messages; of prompts with a
    response the prompt; of text its first part. Where a beginning fills a row, nothing is asked.

    length: tokens of a row; prompt: share of a text that is the beginning
    most: tokens of an answer; None for what is left of the row
    by: how it is asked, whatever it is
    """
    for document in documents:
        if document.turns:
            assert document.learned is not None
            begun = [(document.text[: document.learned[0][0]], "")]
        else:
            begun = list(_beginnings(document, tokenizer, length, prompt))
        for before, after in begun:
            whole = tokenizer(before, add_special_tokens=not document.turns)["input_ids"]
            left = length - len(whole)
            if left > 0:
                asked = _asked(before, after, document.turns, by)
                yield Question(asked[0], min(left, most or left), len(whole), asked[1])


def _asked(
    before: str, after: str, turns: tuple[Mapping[str, Any], ...], by: By | None
) -> tuple[Any, Place]:
    """What is sent, and where the answer to it belongs."""
    if by == "completions" or (by is None and not turns):
        return before, Place(before, turns)
    if turns:
        return turns, Place(before, turns)
    # An answer does not begin as a text goes on: the blank is taken from what stood there.
    lead = after[: len(after) - len(after.lstrip())]
    return ({"role": "user", "content": before},), Place(before, lead=lead)


def _beginnings(
    document: Document, tokenizer: Any, length: int, prompt: float
) -> Iterator[tuple[str, str]]:
    """Of each piece of a document its beginning, and what stood behind it."""
    for piece in packing.rows([document], tokenizer, length, pack=False):
        begun = len(opening(piece.ids, piece.learned, prompt))
        yield _text(piece.ids[:begun], tokenizer), _text(piece.ids[begun:], tokenizer)


def _text(ids: Ids, tokenizer: Any) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


@dataclass(frozen=True)
class Likely:
    """What is said of the tokens of a row: of a few how likely they are, (length, entries) each.

    rest: (length,) the mass of all others
    """

    ids: Ids
    weights: npt.NDArray[np.float32]
    rest: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Dictated:
    """Answers as rows.

    rows: packed as the task packs; pieces: what is said of each document in them, by its key
    answers: how many became rows; alike: in how many of them the writer's tokens are the student's
    """

    rows: tuple[Row, ...]
    pieces: Mapping[str, Likely]
    answers: int
    alike: int
    classes: int

    def known(self) -> Iterator[tuple[tuple[str, ...], Sparse, torch.Tensor]]:
        """Of some rows at a time their keys, what is said of their tokens, and which are real."""
        for start in range(0, len(self.rows), _AT_ONCE):
            some = self.rows[start : start + _AT_ONCE]
            yield tuple(row.key for row in some), *self._together(some)

    def _together(self, rows: Sequence[Row]) -> tuple[Sparse, torch.Tensor]:
        said = [[self.pieces[piece.key] for piece in pieces_of(row)] for row in rows]
        longest, entries = max(map(len, rows)), said[0][0].ids.shape[1]
        ids = np.tile(np.arange(entries), (len(rows), longest, 1))
        weights = np.zeros((len(rows), longest, entries), np.float32)
        rest, mask = np.ones((len(rows), longest), np.float32), np.zeros((len(rows), longest), int)
        for n, (row, likely) in enumerate(zip(rows, said, strict=True)):
            own = slice(len(row))
            ids[n, own] = np.concatenate([each.ids for each in likely])
            weights[n, own] = np.concatenate([each.weights for each in likely])
            rest[n, own] = np.concatenate([each.rest for each in likely])
            mask[n, own] = 1
        numbers, shares, others = (torch.from_numpy(each) for each in (ids, weights, rest))
        return Sparse(numbers, shares, others, entries, self.classes), torch.from_numpy(mask)


def dictated(
    pairs: Iterable[tuple[Question, Answer]],
    tokenizer: Any,
    length: int,
    *,
    pack: bool,
    top: int | None,
) -> Dictated:
    """Beginnings with what was written behind them, of which the latter is learned.

    Answers without a word are left out.

    top: how many likely tokens the writer was asked for; None where for the text alone
    Raises DataError where nothing was answered, or a template can't hold an answer.
    """
    spelled = Spelled(tokenizer)
    rows: dict[str, Row] = {}
    said: dict[str, Likely] = {}
    answers = alike = 0
    for question, answer in pairs:
        if not answer.text.strip():
            continue
        row = written(question.place, answer, tokenizer, length)
        if not row.learned[1:].any():
            continue
        answers, rows[row.key] = answers + 1, row
        if top is not None:
            told = spelled.told(row, answer)
            alike += told
            # Itself may stand beside the likeliest ones.
            said[row.key] = spelled.likely(row, answer if told else None, top + 1)
    if not rows:
        raise DataError("The teacher answered nothing that could be learned from.")
    whole = list(rows.values())
    packed = packing.side_by_side(whole, length) if pack else whole
    unique = {row.key: row for row in packed}
    return Dictated(tuple(unique.values()), said, answers, alike, len(tokenizer))


def sure(comes: torch.Tensor, classes: int) -> Sparse:
    """What is said by who is sure of the tokens that come, (rows, length)."""
    ids = comes.clamp_min(0)[..., None]
    return Sparse(ids, torch.ones(ids.shape), torch.full(comes.shape, LEAST), 1, classes)


def written(place: Place, answer: Answer, tokenizer: Any, length: int) -> Row:
    """A beginning and an answer to it as one row, with an end where the answer has one."""
    if place.turns and answer.ended:
        said = [*place.turns, {"role": "assistant", "content": answer.text}]
        document = corpora.conversation("An answer of the teacher", said, tokenizer)
    else:
        text = place.before + place.lead + answer.text
        spans = ((len(place.before), len(text)),)
        document = Document(text, spans, ended=bool(place.turns))
    ids, learned, _ = next(packing.encoded([document], tokenizer))
    if not (answer.ended or document.ended) and tokenizer.eos_token_id is not None:
        ids, learned = ids[:-1], learned[:-1]
    ids, learned = ids[:length], learned[:length]
    return Row(ids, learned, (len(ids),), 0)


def pieces_of(row: Row) -> list[Row]:
    """The documents of a row, each as a row of its own."""
    starts = (0, *row.ends[:-1])
    return [
        Row(row.ids[start:end], row.learned[start:end], (end - start,), 0)
        for start, end in zip(starts, row.ends, strict=True)
    ]


class Spelled:
    """The tokens of a tokenizer by what they spell, for whoever names tokens by their text."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @cached_property
    def texts(self) -> list[str]:
        """What each token adds to a text; behind a letter, as some leave out the first blank."""
        letter = self.tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        pairs = [[*letter, n] for n in range(len(self.tokenizer))]
        said = self.tokenizer.batch_decode(pairs, clean_up_tokenization_spaces=False)
        before = len(self.tokenizer.decode(letter, clean_up_tokenization_spaces=False))
        return [text[before:] for text in said]

    @cached_property
    def ids(self) -> dict[str, int]:
        """The token that spells a text, where it is one alone and whole letters."""
        found: dict[str, int] = {}
        several = {""}
        for number, text in enumerate(self.texts):
            if text in found or "\ufffd" in text:
                several.add(text)
            found[text] = number
        return {text: number for text, number in found.items() if text not in several}

    def told(self, row: Row, answer: Answer) -> bool:
        """Whether the writer's tokens are the ones that the student reads the answer in."""
        start = int(np.flatnonzero(row.learned)[0])
        read = [self.texts[n] for n in row.ids[start:].tolist()]
        text, count = "", 0
        for token in answer.tokens:  # the writer may name the end of its text as well
            if len(text) >= len(answer.text):
                break
            text, count = text + token, count + 1
        same = answer.tokens[: min(count, len(read))] == tuple(read[:count])
        return count > 0 and text == answer.text and same

    def likely(self, row: Row, answer: Answer | None, entries: int) -> Likely:
        """How likely the tokens of a row are; where nobody tells, the one that comes is sure.

        answer: whose tokens are those of the row; None where nothing is told of them
        """
        places = {} if answer is None else self._places(row, answer)
        comes = np.append(row.ids[1:], row.ids[-1]).tolist()
        found = [
            _filled(places.get(n, {token: 1.0}), entries, len(self.texts))
            for n, token in enumerate(comes)
        ]
        ids, weights, rest = zip(*found, strict=True)
        return Likely(
            np.array(ids, np.int64), np.array(weights, np.float32), np.array(rest, np.float32)
        )

    def _places(self, row: Row, answer: Answer) -> dict[int, dict[int, float]]:
        """Of each place what is told of the token that comes next, by its number."""
        start = int(np.flatnonzero(row.learned)[0])
        found = {}
        for n, (token, likely) in enumerate(zip(answer.tokens, answer.likely, strict=True)):
            place = start + n - 1
            own = int(row.ids[place + 1]) if 0 <= place < len(row) - 1 else None
            if own is None or self.texts[own] != token:
                continue
            known = {own if text == token else self.ids.get(text): p for text, p in likely}
            found[place] = {n: float(np.exp(p)) for n, p in known.items() if n is not None}
        return found


def _filled(
    known: Mapping[int, float], entries: int, classes: int
) -> tuple[list[int], list[float], float]:
    """Exactly so many tokens, the likeliest that are known, and what all others have.

    Where too few are known, others stand in with the share that is spread over all of them.
    """
    best = sorted(known.items(), key=lambda each: -each[1])[:entries]
    whole = max(1.0, sum(known.values()))
    ids, weights = [n for n, _ in best], [p / whole for _, p in best]
    rest = max(LEAST, 1.0 - sum(weights))
    others = (n for n in range(classes) if n not in known)
    share = rest / max(1, classes - len(ids))
    while len(ids) < min(entries, classes):
        ids.append(next(others))
        weights.append(share)
        rest -= share
    return ids, weights, max(LEAST, rest)
