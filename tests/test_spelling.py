"""Two tokenizations of one text are laid beside each other by bytes, against brute force."""

from __future__ import annotations

import re
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import smollm
import tongues
from transformers.convert_slow_tokenizer import bytes_to_unicode

from attar.tasks.text import causal
from attar.tasks.text.nearest import nearest
from attar.tasks.text.spelling import INSIDE, Spelling, common

LETTERS = {letter: byte for byte, letter in bytes_to_unicode().items()}
SMOLLM2 = pytest.param("smollm2", marks=pytest.mark.slow)  # seconds to unpack
EXACT = ("byte_level", "fallback", SMOLLM2)
END = b"<the end of the text>"


@cache
def tokenizer(kind: str) -> Any:
    return causal.tokenizer_of(smollm.name()) if kind == "smollm2" else tongues.tongue(kind)


@cache
def spelling(kind: str) -> Spelling:
    return Spelling(tokenizer(kind))


def read_by_bytes(kind: str, ids: list[int]) -> list[bytes]:
    """What is read by each token, every byte of it, by another table than attar's."""
    reads = tokenizer(kind)
    read, whole = b"", []
    for n, token in zip(ids, reads.convert_ids_to_tokens(ids), strict=True):
        if n == reads.eos_token_id and len(whole) == len(ids) - 1:
            read += END
        elif kind == "fallback" and token == "<s>":
            pass
        elif token in reads.all_special_tokens:
            read += token.encode()
        elif kind == "fallback":
            bytes_ = re.fullmatch(r"<0x(..)>", token)
            read += bytes([int(bytes_[1], 16)]) if bytes_ else token.encode()
        else:
            read += bytes(LETTERS[letter] for letter in token)
        whole.append(read)
    if kind == "fallback":  # a mark before the first word stands for no space
        marked = [each.replace(tongues.SPACE.encode(), b" ") for each in whole]
        return [each.removeprefix(b" ") for each in marked]
    return whole


def brute(mine: list[bytes], its: list[bytes]) -> list[int]:
    """Of all pairs of places those that have read the same, the last ones of either."""
    found = []
    for place, read in enumerate(mine):
        same = [there for there, other in enumerate(its) if other == read]
        found.append(same[-1] if same and read not in mine[place + 1 :] else -1)
    return found


@pytest.mark.parametrize("name", tongues.TEXTS)
@pytest.mark.parametrize("its", EXACT)
@pytest.mark.parametrize("mine", EXACT)
def test_common_places_are_those_that_brute_force_finds(mine: str, its: str, name: str) -> None:
    text, reads = tongues.TEXTS[name], tokenizer(mine)
    ids = [*reads(text)["input_ids"], reads.eos_token_id]
    told, ends, ended = spelling(mine).told(np.array(ids))
    assert (told, ended) == (text, True)
    ((its_ids, its_ends),) = spelling(its).cut([text], [True])
    expected = brute(read_by_bytes(mine, ids), read_by_bytes(its, its_ids.tolist()))
    assert common(ends, its_ends).tolist() == expected
    assert max(expected) == len(its_ids) - 1  # both ends of the text have met
    if mine == its:
        assert sum(place >= 0 for place in expected) >= len(ids) - 1  # but for a mark of no space


@pytest.mark.parametrize("name", tongues.TEXTS)
@pytest.mark.parametrize("its", ["unigram", "word_pieces"])
@pytest.mark.parametrize("mine", EXACT)
def test_a_tokenizer_that_drops_letters_is_met_where_characters_end(
    mine: str, its: str, name: str
) -> None:
    """Its own table from characters to tokens says how far it has read, where it says anything."""
    text, reads = tongues.TEXTS[name], tokenizer(mine)
    ids = [*reads(text)["input_ids"], reads.eos_token_id]
    told, ends, _ = spelling(mine).told(np.array(ids))
    ((its_ids, its_ends),) = spelling(its).cut([told], [True])
    said = tokenizer(its)(told)
    seen: dict[int, int] = {}
    for number in range(len(told)):
        token = said.char_to_token(number)
        if token is not None:
            seen[token] = len(told[: number + 1].encode())
    mine_read = read_by_bytes(mine, ids)
    places = common(ends, its_ends).tolist()
    assert any(place >= 0 for place in places)
    spans = [said.token_to_chars(n) for n in range(len(said["input_ids"]))]
    # What shares a character with the next token ends inside it: the table can't tell where.
    sure = {
        n
        for n, (here, after) in enumerate(pairwise([*spans, None]))
        if n in seen and (after is None or here.end <= after.start)
    }
    for place, there in enumerate(places[:-1]):
        if there in sure:
            assert len(mine_read[place]) == seen[there]
            assert text.encode()[: seen[there]] == mine_read[place]
    assert {seen[n] for n in sure} <= {int(end) for end in its_ends if end >= 0}
    assert places[-1] == len(its_ids) - 1


@pytest.mark.parametrize("its", [*EXACT, "unigram", "word_pieces"])
@pytest.mark.parametrize("mine", ["byte_level", SMOLLM2])
def test_special_tokens_of_one_side_are_letters_to_the_other(mine: str, its: str) -> None:
    text, reads = tongues.SPECIAL, tokenizer(mine)
    told, ends, _ = spelling(mine).told(np.array(reads(text)["input_ids"]))
    assert told == text
    ((_, its_ends),) = spelling(its).cut([text], [False])
    met = {int(end) for end, place in zip(ends, common(ends, its_ends), strict=True) if place >= 0}
    words = [
        found
        for word in re.findall(r"[a-z]{3,}", "before between others after all")
        for found in [text.index(word) + len(word)]
    ]
    assert set(words) <= met


def test_numbers_worked_by_hand() -> None:
    """Digits one by one beside digits together, and a begin that only one of them has."""
    mine, its = np.array([1, 2, 3, 7, 8]), np.array([0, 3, 3, 7, 8])
    assert common(mine, its).tolist() == [-1, -1, 2, 3, 4]
    inside = np.array([INSIDE, 3, INSIDE, 8])
    assert common(inside, inside).tolist() == [-1, 1, -1, 3]


def test_a_piece_that_begins_and_ends_inside_a_letter_is_met_between() -> None:
    reads = tokenizer("byte_level")
    ids = np.array(reads("日本 and 語")["input_ids"])
    whole = read_by_bytes("byte_level", ids.tolist())
    cut = next(n for n, read in enumerate(whole) if len(read) in (1, 2)) + 1
    last = next(
        n for n, read in enumerate(whole) if read.startswith("日本 and ".encode() + b"\xe8")
    )
    text, ends, ended = spelling("byte_level").told(ids[cut : last + 1])
    assert text == "本 and "
    assert not ended
    assert ends[-1] == INSIDE
    whole_ends = [end for end in ends.tolist() if end >= 0]
    assert whole_ends == sorted(whole_ends)
    assert max(whole_ends) == len(text.encode())


def levenshtein(one: bytes, other: bytes) -> int:
    """The textbook's table, a cell at a time."""
    rows = [list(range(len(other) + 1))]
    for n, a in enumerate(one, 1):
        rows.append([n])
        for m, b in enumerate(other, 1):
            rows[n].append(
                min(rows[n - 1][m] + 1, rows[n][m - 1] + 1, rows[n - 1][m - 1] + (a != b))
            )
    return rows[-1][-1]


def test_the_nearest_token_is_the_first_of_the_least_distance_among_those_that_begin_so() -> None:
    words = [word.encode() for text in tongues.paragraphs(4) for word in re.findall(r" ?\w+", text)]
    mine, its = tuple(dict.fromkeys(words[::2])), tuple(dict.fromkeys(words[1::2]))[:120]
    its = (*its, "日".encode(), b"z", "é".encode())
    found = nearest(its, mine)
    for part, number in zip(its, found.tolist(), strict=True):
        size = next(
            n
            for n in (4, 3, 2, 1, 0)
            if any(each[:n] == part[:n] for each in mine if len(each) >= n <= len(part))
        )
        among = [
            n for n, each in enumerate(mine) if len(each) >= size and each[:size] == part[:size]
        ]
        least = min(levenshtein(part, mine[n]) for n in among)
        expected = next(n for n in among if levenshtein(part, mine[n]) == least)
        assert number == (mine.index(part) if part in mine else expected), part
