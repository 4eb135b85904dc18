"""Splitting: parts never overlap, a seed decides them all, and no class is lost on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from attar.errors import DataError
from attar.tasks.splitting import HELD_OUT, Split, split
from attar.tasks.tables import Table
from attar.types import IGNORE

UNEVEN = [1, 1, 1, 2, 3, 7, 10, 19, 40, 101]


def table(
    labels: Sequence[str | None], texts: Sequence[str] = (), source: str = "train.csv"
) -> Table:
    texts = tuple(texts) or tuple(f"{source} {n}" for n in range(len(labels)))
    return Table(source, tuple(texts), tuple(labels), range(2, len(labels) + 2))


def of_sizes(sizes: Sequence[int], source: str = "train.csv") -> Table:
    """A table with so many rows of each class, the classes mixed."""
    labels = [f"c{n:04}" for n, size in enumerate(sizes) for _ in range(size)]
    return table(np.random.default_rng(0).permutation(labels).tolist(), source=source)


def divide(
    sizes: Sequence[int] = UNEVEN,
    seed: int = 0,
    per_class: int | None = None,
    validation: float = 0.1,
    **others: Table,
) -> Split:
    return split({"train": of_sizes(sizes)} | others, seed, per_class, validation)


def classes_of(found: Split, part: str) -> Counter[int]:
    return Counter(found.labels[row] for row in found.rows[part])


FORMS: dict[str, dict[str, Any]] = {
    "one file": {},
    "few labels": {"per_class": 2},
    "one label": {"per_class": 1},
    "more labels than there are": {"per_class": 1000},
    "half for validation": {"validation": 0.5},
    "nearly all for validation": {"validation": 0.95},
    "a test file": {"test": table(["c0001", "c0002"], source="test.csv")},
    "a validation file": {"validation_file": table(["c0001"], source="validation.csv")},
    "a pool": {"unlabelled": table([None] * 9, source="unlabelled.csv"), "per_class": 3},
}


def formed(form: str, seed: int = 0, sizes: Sequence[int] = UNEVEN) -> Split:
    options = dict(FORMS[form])
    if file := options.pop("validation_file", None):
        return split({"train": of_sizes(sizes), "validation": file}, seed, None, 0.1)
    return divide(sizes, seed, **options)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_parts_do_not_overlap_and_nothing_is_lost(form: str, seed: int) -> None:
    found = formed(form, seed)
    parts = [found.rows[part] for part in ("train", "validation", "test")]
    assert sorted(row for part in parts for row in part) == list(range(len(found.texts)))
    assert set(found.rows["labelled"]) <= set(found.rows["train"])
    assert all(len(set(part)) == len(part) > 0 for part in parts)
    texts = [{found.texts[row] for row in part} for part in parts]
    assert not texts[0] & (texts[1] | texts[2])
    assert not texts[1] & texts[2]


@pytest.mark.parametrize("form", FORMS)
def test_every_class_keeps_a_labelled_example_to_learn_from(form: str) -> None:
    for seed in range(4):
        assert len(classes_of(formed(form, seed), "labelled")) == len(UNEVEN)


@pytest.mark.parametrize("form", FORMS)
def test_the_same_seed_gives_the_same_parts_and_another_gives_others(form: str) -> None:
    first, again, other = formed(form), formed(form), formed(form, 1)
    assert first == again
    moved = [part for part in first.rows if first.rows[part] != other.rows[part]]
    assert moved or form == "a validation file"


@pytest.mark.parametrize("form", FORMS)
def test_only_the_labels_of_the_pool_are_hidden(form: str) -> None:
    found = formed(form)
    hidden = {row for row, label in enumerate(found.shown) if label == IGNORE}
    assert hidden == set(found.rows["train"]) - set(found.rows["labelled"])
    open_rows = [row for row in range(len(found.texts)) if row not in hidden]
    assert all(found.shown[row] == found.labels[row] for row in open_rows)


@pytest.mark.parametrize("per_class", [1, 3, 10])
def test_labelled_per_class_is_exact_where_there_are_enough(per_class: int) -> None:
    found = divide(per_class=per_class)
    kept = classes_of(found, "train")
    labelled = classes_of(found, "labelled")
    assert labelled == {label: min(size, per_class) for label, size in kept.items()}
    few = sum(size < per_class for size in labelled.values())
    said = f"{few} of {len(UNEVEN)} classes have fewer than {per_class} labelled examples."
    assert (said in found.notes) == (few > 0)


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3])
def test_what_is_held_out_is_the_share_of_each_class_and_of_the_whole(share: float) -> None:
    sizes = [40, 41, 55, 100, 3, 5, 7, 9] * 5
    found = divide(sizes, validation=share, test=table(["c0000"], source="test.csv"))
    held = classes_of(found, "validation")
    assert abs(sum(held.values()) - share * sum(sizes)) <= 1
    assert all(abs(held[n] - share * size) < 1.01 for n, size in enumerate(sizes))


def test_a_single_file_gives_a_fifth_to_test_and_says_so() -> None:
    found = divide([50] * 8)
    assert len(found.rows["test"]) == HELD_OUT * 400
    assert any("No test split" in note for note in found.notes)
    assert not any("No test split" in note for note in formed("a test file").notes)


def test_many_classes_of_one_row_do_not_empty_the_large_ones() -> None:
    found = divide([1] * 900 + [100])
    assert classes_of(found, "train")[900] >= 50
    assert len(classes_of(found, "train")) == 901


def test_small_classes_together_still_give_their_share() -> None:
    found = divide([4] * 200, test=table(["c0000"], source="test.csv"))
    assert len(found.rows["validation"]) == 80


@pytest.mark.parametrize("classes", [2, 3, 77, 1000])
def test_any_number_of_classes_from_two_to_a_thousand_is_divided(classes: int) -> None:
    found = divide([10] * classes, per_class=2)
    assert len(found.classes) == classes
    assert len(found.rows["labelled"]) == 2 * classes
    assert len(found.rows["validation"]) + len(found.rows["test"]) == pytest.approx(
        (0.2 + 0.8 * 0.1) * 10 * classes, abs=1
    )


def test_a_text_and_its_twin_are_never_on_two_sides() -> None:
    labels = ["a", "b"] * 60
    texts = [f"{label} {n // 2 % 15}" for n, label in enumerate(labels)]
    for seed in range(5):
        found = split({"train": table(labels, texts)}, seed, None, 0.2)
        sides = [
            {found.texts[row] for row in found.rows[part]}
            for part in ("train", "validation", "test")
        ]
        assert sum(map(len, sides)) == len(set(texts)) == 30
        assert len(found.rows["validation"]) >= 8


def test_a_text_under_two_labels_is_told() -> None:
    labels = ["a", "b"] * 20
    texts = [f"text {n // 2}" for n in range(40)]
    found = split({"train": table(labels, texts)}, 0, None, 0.2)
    assert any("training texts as well" in note for note in found.notes)


def test_the_unlabelled_file_joins_the_pool_without_texts_that_are_held_out() -> None:
    train = table(["a", "b"] * 10)
    test = table(["a", "b"], ["seen in test", "other"], "test.csv")
    pool = table([None] * 3, ["new", "seen in test", train.texts[0]], source="unlabelled.csv")
    found = split({"train": train, "test": test, "unlabelled": pool}, 0, 2, 0.2)
    joined = {found.texts[row] for row in found.rows["train"]}
    assert "new" in joined
    assert "seen in test" not in joined
    assert "1 unlabelled texts are left out: they are test texts." in found.notes
    held = {found.texts[row] for row in found.rows["validation"]}
    assert not held & joined
    assert found.shown[found.texts.index("new")] == IGNORE


def test_labels_in_an_unlabelled_file_are_not_looked_at() -> None:
    pool = table(["a", "never seen"], source="unlabelled.csv")
    found = split({"train": table(["a", "b"] * 10), "unlabelled": pool}, 0, None, 0.2)
    assert found.labels[-2:] == [IGNORE, IGNORE]
    assert found.classes == ("a", "b")


def test_given_files_serve_as_they_are() -> None:
    tables = {
        "train": table(["a", "b"] * 5),
        "validation": table(["b"], source="validation.csv"),
        "test": table(["a", "a"], source="test.csv"),
    }
    found = split(tables, 0, None, 0.1)
    assert [found.texts[row] for row in found.rows["train"]] == list(tables["train"].texts)
    assert [found.texts[row] for row in found.rows["validation"]] == ["validation.csv 0"]
    assert [found.labels[row] for row in found.rows["test"]] == [0, 0]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["10", "9", "1", "-2"], ("-2", "1", "9", "10")),
        (["10", "9", "b"], ("10", "9", "b")),
        (["1", "01", "001", "2"], ("001", "01", "1", "2")),
        (["²", "1"], ("1", "²")),
        (["9" * 5000, "1"], ("1", "9" * 5000)),
        (["é", "z", "a"], ("a", "z", "é")),
    ],
)
def test_classes_stand_in_the_order_of_numbers_or_else_of_letters(
    labels: list[str], classes: tuple[str, ...]
) -> None:
    assert split({"train": table(labels * 10)}, 0, None, 0.1).classes == classes


def test_empty_texts_are_kept_and_counted() -> None:
    found = split({"train": table(["a", "b"] * 10, ["", " ", *map(str, range(18))])}, 0, None, 0.2)
    assert "2 of 20 texts are empty." in found.notes
    assert sorted(found.texts)[0] == ""


WRONG: list[tuple[dict[str, Table], dict[str, Any], str]] = [
    ({"train": table(["a", None, "b", None])}, {}, "train.csv, line 3 has no label (2 rows have"),
    ({"train": table(["a"] * 9)}, {}, "train.csv has 1 class; classification needs at least 2"),
    ({"train": table(["a", "b"])}, {}, "has 2 rows of 2 classes, too few different texts"),
    (
        {"train": table([str(n) for n in range(500)])},
        {},
        "has 500 rows of 500 classes, too few different",
    ),
    (
        {"train": table(["card", "fee"] * 9), "test": table(["fee", "crad"], source="test.csv")},
        {},
        "test.csv, line 3 has the label 'crad', which the training data never has; did you mean",
    ),
    (
        {"train": table(["card", "fee"] * 9), "test": table(["fee", None], source="test.csv")},
        {},
        "test.csv, line 3 has no label; remove the row",
    ),
    (
        {"train": table(["card", "fee"] * 9), "validation": table([None], source="dev.csv")},
        {},
        "dev.csv, line 2 has no label",
    ),
    (
        {
            "train": of_sizes([3] * 1000),
            "test": table(["c0000", "?"], source="test.csv"),
        },
        {},
        "'?', which the training data never has; remove the row, or add",
    ),
    ({"train": table(["a", "b"] * 9)}, {"validation": 0.0}, "between 0 and 1, not 0.0"),
    ({"train": table(["a", "b"] * 9)}, {"validation": 1.0}, "between 0 and 1, not 1.0"),
    ({"train": table(["a", "b"] * 9)}, {"validation": float("nan")}, "between 0 and 1, not nan"),
    ({"train": table(["a", "b"] * 9)}, {"labelled_per_class": 0}, "at least 1, not 0"),
]


@pytest.mark.parametrize(("tables", "options", "expected"), WRONG, ids=[w[2][:40] for w in WRONG])
def test_what_cannot_be_divided_says_why_and_where(
    tables: dict[str, Table], options: dict[str, Any], expected: str
) -> None:
    settings: dict[str, Any] = {"labelled_per_class": None, "validation": 0.1} | options
    with pytest.raises(DataError) as caught:
        split(tables, 0, **settings)
    message = str(caught.value)
    assert expected in message
    assert "\n" not in message
    assert len(message) < 400
