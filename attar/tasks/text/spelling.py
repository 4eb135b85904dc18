"""The bytes of text behind tokens, by which two tokenizers are laid beside each other."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np

from attar.tasks.text.packing import Ids

INSIDE = -1
"""Where a token ends inside a character, of which no text tells the place."""

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""How SentencePiece writes a space."""


class Spelling:
    """What each token of a fast tokenizer stands for, as bytes of text.

    Its own marks are undone: bytes written as letters (ByteLevel) or as <0x0A>, a space written as
    a low line (Metaspace), or left out before words (WordPiece). Special tokens are as they are
    written; what is unknown is U+FFFD.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.begin, self.end = tokenizer.bos_token_id, tokenizer.eos_token_id

    @cached_property
    def parts(self) -> dict[int, bytes]:
        """The bytes of each token, by its id."""
        said = self.tokenizer.backend_tokenizer.decoder
        spelled = _by_decoder("" if said is None else str(said))
        found = {n: spelled(token) for token, n in self.tokenizer.get_vocab().items()}
        for n, token in self.tokenizer.added_tokens_decoder.items():
            found[n] = _byte(token.content) or token.content.encode()
        return found | {self.tokenizer.unk_token_id: "\N{REPLACEMENT CHARACTER}".encode()}

    @cached_property
    def spaced(self) -> bool:
        """Whether it puts a space before the first word, of which no text knows."""
        first = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        return b"".join(self.parts[n] for n in first).startswith(b" ")

    def told(self, ids: Ids) -> tuple[str, Ids, bool]:
        """The text that tokens stand for, where each of them ends in it, and whether it ends there.

        ids: those of a document, or of a piece of one

        Ends are in bytes of the text (UTF-8); `INSIDE` where a character is not whole. A begin of
        text ends at 0; what says that the text ends, a byte beyond it.
        """
        parts = [self.parts[n] for n in ids.tolist()]
        if ids[0] == self.begin:
            parts[0] = b""
        if ended := len(ids) > 1 and bool(ids[-1] == self.end):
            parts[-1] = b""
        if self.spaced and b"".join(parts).startswith(b" "):
            parts = _without_space(parts)
        text, at = _text(b"".join(parts))
        ends = at[np.cumsum([len(part) for part in parts])]
        if ended:
            ends[-1] = len(text.encode()) + 1
        return text, ends, ended

    def cut(self, texts: Sequence[str], ended: Sequence[bool]) -> Iterator[tuple[Ids, Ids]]:
        """Each text as tokens, with where each of them ends in it, as in `told`.

        ended: whether the text ends there: then a token says so, where the tokenizer has one
        """
        found = self.tokenizer(
            list(texts), return_offsets_mapping=True, return_special_tokens_mask=True
        )
        said = (found[name] for name in ("input_ids", "offset_mapping", "special_tokens_mask"))
        for text, ends_here, ids, spans, special in zip(texts, ended, *said, strict=True):
            # A special token behind the text says that it ends, whether it does or not.
            size = len(ids) - next((n for n, each in enumerate(special[::-1]) if not each), 0)
            ends = self._exact(text, ids[:size], special) or self._roughly(
                text, ids[:size], spans, special
            )
            mark = [self.end] if ends_here and self.end is not None else []
            whole = [*ids[:size], *mark]
            yield (
                np.array(whole, np.int64),
                np.array([*ends, *(len(text.encode()) + 1 for _ in mark)], np.int64),
            )

    def _exact(self, text: str, ids: Sequence[int], special: Sequence[int]) -> list[int] | None:
        """Ends where the tokens spell the text byte by byte; None where they do not."""
        parts = [b"" if mark else self.parts[n] for n, mark in zip(ids, special, strict=False)]
        said = b"".join(parts)
        if said != text.encode():
            if said != b" " + text.encode():
                return None
            parts = _without_space(parts)
        return np.cumsum([len(part) for part in parts]).tolist() if parts else None

    def _roughly(
        self,
        text: str,
        ids: Sequence[int],
        spans: Sequence[tuple[int, int]],
        special: Sequence[int],
    ) -> list[int]:
        """Ends as the tokenizer tells them, which knows characters alone."""
        sizes = np.cumsum([0, *(len(letter.encode("utf-8", "replace")) for letter in text)])
        ends, before = [], 0
        for n, mark, (_, stop) in zip(ids, special, spans, strict=False):
            before = before if mark else int(sizes[stop])
            # It may tell the end without the spaces that belong to the token.
            cut = not mark and self.parts[n].endswith(b" ") and not text[:stop][-1:].isspace()
            ends.append(INSIDE if cut else before)
        starts = [start for start, _ in spans[1 : len(ids)]]
        for place, start in enumerate(starts):
            if not special[place] and not special[place + 1] and start < spans[place][1]:
                ends[place] = INSIDE
        return ends


def common(mine: Ids, its: Ids) -> Ids:
    """For each of my tokens the other's that ends at the same byte, or -1 where none does.

    mine, its: where each token ends; of several that end at one byte (some have no bytes) the last
        counts on either side: behind it comes the next byte
    """
    last = {end: place for place, end in enumerate(its.tolist()) if end >= 0}
    places = np.full(len(mine), -1)
    for end, place in {end: place for place, end in enumerate(mine.tolist()) if end >= 0}.items():
        places[place] = last.get(end, -1)
    return places


def _by_decoder(said: str) -> Any:
    """How a token is spelled out, by what the tokenizer's decoder says of itself."""
    if "ByteLevel" in said:
        letters = _letters()
        return lambda token: bytes(chain.from_iterable(letters.get(c, c.encode()) for c in token))
    if "WordPiece" in said:
        return lambda token: token[2:].encode() if token.startswith("##") else b" " + token.encode()

    return lambda token: _byte(token) or token.replace(SPACE, " ").encode()


def _byte(token: str) -> bytes | None:
    """The byte that a token such as <0x0A> stands for; None where it is another one."""
    return bytes.fromhex(token[3:5]) if re.fullmatch("<0x[0-9A-F]{2}>", token) else None


def _letters() -> dict[str, bytes]:
    """The byte that each letter of a byte-level vocabulary stands for (GPT-2's table)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [n for n in range(256) if n not in shown]
    return {chr(n): bytes([n]) for n in shown} | {
        chr(256 + place): bytes([n]) for place, n in enumerate(others)
    }


def _without_space(parts: Sequence[bytes]) -> list[bytes]:
    """The parts without the space that they begin with."""
    first = next(n for n, part in enumerate(parts) if part)
    return [part[1:] if n == first else part for n, part in enumerate(parts)]


def _text(data: bytes) -> tuple[str, Ids]:
    """Bytes as text, without what is no character, and the place in it after so many of them."""
    at, said = np.full(len(data) + 1, INSIDE), ""
    at[0] = start = size = 0
    while start < len(data):
        try:
            more, stop, after = data[start:].decode(), len(data), len(data)
        except UnicodeDecodeError as error:
            stop, after = start + error.start, start + error.end
            more = data[start:stop].decode()
        at[start + 1 : stop + 1] = size + np.arange(1, stop - start + 1)
        said, start, size = said + more, after, size + stop - start
    return said, at
