"""Invented texts: new, made of words that are there, and never a copy of what is held out."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from attar.tasks.text import classification
from attar.tasks.text.inventing import invent
from attar.types import IGNORE

TEXTS = [
    f"where is my {thing} from number {n}" for n, thing in enumerate(["card", "東京", "été"] * 9)
]


@pytest.mark.parametrize("count", [1, 2, 50, 500])
def test_as_many_new_texts_come_as_were_asked_for_each_of_words_that_are_there(count: int) -> None:
    new = invent(TEXTS, count, seed=3)
    assert len(new) == len(set(new)) == count
    assert not set(new) & set(TEXTS)
    words = {word for text in TEXTS for word in text.split()}
    assert all(text.split() and set(text.split()) <= words for text in new)


def test_a_seed_decides_them_all() -> None:
    assert invent(TEXTS, 40, seed=1) == invent(TEXTS, 40, seed=1)
    assert invent(TEXTS, 40, seed=1) != invent(TEXTS, 40, seed=2)


@pytest.mark.parametrize(("texts", "most"), [([], 0), ([""], 0), (["one"], 0), (["a b"], 3)])
def test_where_little_can_be_made_it_ends_with_less(texts: list[str], most: int) -> None:
    assert len(invent(texts, 100, seed=0)) <= most


def bank(folder: Path, **options: float) -> classification:
    labels = ["a", "b", "c"] * 30
    texts = [f"{label} says {n % 10} {('yes', 'no')[n % 2]} {n}" for n, label in enumerate(labels)]
    with (folder / "d.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *zip(texts, labels, strict=True)])
    return classification(0, dataset=str(folder / "d.csv"), **options)  # type: ignore[arg-type]


def test_they_join_the_pool_and_nothing_else_moves(tmp_path: Path) -> None:
    plain, more = bank(tmp_path), bank(tmp_path, invented=1.5)
    for part in ("labelled", "validation", "test"):
        assert plain.texts_of(part) == more.texts_of(part)
    train = plain.size("train")
    assert more.texts_of("train")[:train] == plain.texts_of("train")
    assert more.size("train") == train + round(1.5 * train)
    assert more.has_pool
    assert not plain.has_pool
    assert more._median == plain._median
    assert f"{round(1.5 * train)} texts without a label are invented" in more.notes[-1]


def test_none_has_a_label_and_none_is_a_text_that_is_held_out(tmp_path: Path) -> None:
    task = bank(tmp_path, invented=20.0, validation=0.3)
    labelled, train = set(task.texts_of("labelled")), task.texts_of("train")
    held = {*task.texts_of("validation"), *task.texts_of("test")}
    assert not held & set(train)
    labels = {
        text: int(label)
        for batch in task.sweep("train")
        for text, label in zip(batch.inputs, batch.labels, strict=True)
    }
    assert all((labels[text] == IGNORE) == (text not in labelled) for text in train)


def test_they_are_part_of_what_names_a_training(tmp_path: Path) -> None:
    digests = {bank(tmp_path, invented=share).digest() for share in (0.0, 1.0, 2.0)}
    assert len(digests) == 3
