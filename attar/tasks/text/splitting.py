"""Which rows are trained on, which serve choices, which test; and which labels may be seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attar.errors import DataError, nearest
from attar.tasks.text.reading import Table
from attar.types import IGNORE

HELD_OUT = 0.2
"""Share of a single file that becomes the test split."""


@dataclass(frozen=True)
class Split:
    """All rows in one list, and the row numbers of each part.

    rows: train (labelled and pool), labelled, validation, test
    labels: every row's class number, IGNORE where the data has none
    shown: the same, with the labels of the pool and of nothing else hidden
    notes: what was decided that the user did not write down
    """

    texts: tuple[str, ...]
    labels: list[int]
    shown: list[int]
    rows: dict[str, tuple[int, ...]]
    classes: tuple[str, ...]
    notes: tuple[str, ...]


def split(
    tables: dict[str, Table], seed: int, labelled_per_class: int | None, validation: float
) -> Split:
    """Divide what was read; the same seed gives the same division.

    Raises DataError for labels that are missing, unknown to the training data, or of one class.
    """
    if not 0 < validation < 1:
        raise DataError(f"validation is a share between 0 and 1, not {validation}.")
    if labelled_per_class is not None and labelled_per_class < 1:
        raise DataError(f"labelled_per_class is at least 1, not {labelled_per_class}.")
    classes = _classes(tables["train"])
    random = np.random.default_rng(seed)
    rows, texts, labels = _gather(tables, classes)
    notes = []
    if not rows["test"]:
        rows["train"], rows["test"] = _hold_out(rows["train"], labels, HELD_OUT, random)
        notes.append(f"No test split was given: {HELD_OUT:.0%} of the data is held out as one.")
    if not rows["validation"]:
        rows["train"], rows["validation"] = _hold_out(rows["train"], labels, validation, random)
    if not rows["test"] or not rows["validation"]:
        raise DataError("There are too few rows to hold some out; give more data or a test file.")
    labelled, hidden = _choose(rows["train"], labels, labelled_per_class, random)
    shown = list(labels)
    for row in hidden:
        shown[row] = IGNORE
    if alone := sum(1 for n in np.unique([labels[r] for r in labelled], return_counts=True)[1] if n == 1):
        notes.append(f"{alone} of {len(classes)} classes have a single labelled example to learn from.")
    return Split(
        tuple(texts),
        labels,
        shown,
        {
            "train": tuple(sorted([*labelled, *hidden, *rows["unlabelled"]])),
            "labelled": tuple(sorted(labelled)),
            "validation": tuple(rows["validation"]),
            "test": tuple(rows["test"]),
        },
        classes,
        tuple(notes),
    )


def _classes(train: Table) -> tuple[str, ...]:
    found = {label for label in train.labels if label is not None}
    if missing := [n for n, label in enumerate(train.labels, 2) if label is None]:
        raise DataError(
            f"{train.source} has {len(missing)} rows without a label (the first on line "
            f"{missing[0]}); remove them, or put them into a file named unlabelled beside it."
        )
    if len(found) < 2:
        raise DataError(f"{train.source} has {len(found)} class; classification needs at least 2.")
    if all(label.lstrip("-").isdigit() for label in found):
        return tuple(sorted(found, key=int))
    return tuple(sorted(found))


def _gather(
    tables: dict[str, Table], classes: Sequence[str]
) -> tuple[dict[str, list[int]], list[str], list[int]]:
    """One list of texts and of class numbers for all tables, and each table's row numbers in it."""
    number = {name: n for n, name in enumerate(classes)}
    rows: dict[str, list[int]] = {part: [] for part in ("train", "validation", "test", "unlabelled")}
    texts: list[str] = []
    labels: list[int] = []
    for part, table in tables.items():
        for line, (text, label) in enumerate(zip(table.texts, table.labels, strict=True), 2):
            if part == "unlabelled":
                label = None
            elif label is None:
                raise DataError(f"{table.source}, line {line} has no label; remove the row.")
            elif label not in number:
                raise DataError(
                    f"{table.source}, line {line} has the label {label!r}, which the training "
                    f"data never has; {nearest(label, classes)}"
                )
            rows[part].append(len(texts))
            texts.append(text)
            labels.append(IGNORE if label is None else number[label])
    return rows, texts, labels


def _hold_out(
    rows: Sequence[int], labels: Sequence[int], share: float, random: np.random.Generator
) -> tuple[list[int], list[int]]:
    """(kept, held out): the same share of each class, and one example of each class always kept."""
    kept: list[int] = []
    held: list[int] = []
    carried = 0.0
    for members in _by_class(rows, labels):
        shuffled = random.permutation(members).tolist()
        # What rounding takes from one class the next ones give back, so that the total is right
        # even where every class is smaller than 1 / share.
        carried += share * len(shuffled)
        count = min(int(carried + 0.5), len(shuffled) - 1)
        carried -= count
        held += shuffled[:count]
        kept += shuffled[count:]
    return sorted(kept), sorted(held)


def _choose(
    rows: Sequence[int],
    labels: Sequence[int],
    per_class: int | None,
    random: np.random.Generator,
) -> tuple[list[int], list[int]]:
    """(labelled, hidden): so many rows of each class drawn by seed, and all the others."""
    if per_class is None:
        return list(rows), []
    labelled: list[int] = []
    hidden: list[int] = []
    for members in _by_class(rows, labels):
        shuffled = random.permutation(members).tolist()
        labelled += shuffled[:per_class]
        hidden += shuffled[per_class:]
    return labelled, hidden


def _by_class(rows: Sequence[int], labels: Sequence[int]) -> list[list[int]]:
    members: dict[int, list[int]] = {}
    for row in rows:
        members.setdefault(labels[row], []).append(row)
    return [members[label] for label in sorted(members)]
