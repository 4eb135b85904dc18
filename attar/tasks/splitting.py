"""Which rows are trained on, which serve choices, which test; and which labels may be seen."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from attar.errors import DataError, nearest
from attar.tasks.tables import Table
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

    def with_pool(self, invent: Callable[[Sequence[str], int], list[str]], share: float) -> Split:
        """The same, its training texts joined by new ones without a label.

        share: how many, as a multiple of the training texts
        """
        train = self.rows["train"]
        new = invent([self.texts[row] for row in train], round(share * len(train)))
        held = {self.texts[row] for part in ("validation", "test") for row in self.rows[part]}
        new = [text for text in new if text not in held]
        rows = range(len(self.texts), len(self.texts) + len(new))
        blank = [IGNORE] * len(new)
        return replace(
            self,
            texts=(*self.texts, *new),
            labels=self.labels + blank,
            shown=self.shown + blank,
            rows=self.rows | {"train": (*train, *rows)},
            notes=(*self.notes, f"{len(new)} texts without a label are invented from them."),
        )


def split(
    tables: dict[str, Table],
    seed: int,
    labelled_per_class: int | None,
    validation: float,
    noun: str = "texts",
) -> Split:
    """Divide what was read; the same seed gives the same division.

    noun: what the rows are, for the sentences
    Raises DataError for labels that are missing, unknown to the training data, or of one class.
    """
    if not 0 < validation < 1:
        raise DataError(f"validation is a share between 0 and 1, not {validation}.")
    if labelled_per_class is not None and labelled_per_class < 1:
        raise DataError(f"labelled_per_class is at least 1, not {labelled_per_class}.")
    classes = _classes(tables["train"])
    random = np.random.default_rng(seed)
    rows, texts, labels = _gather(tables, classes)
    notes = _hold_out_(rows, texts, labels, validation, random)
    if not rows["test"] or not rows["validation"]:
        raise DataError(
            f"{tables['train'].source} has {len(tables['train'].labels)} rows of {len(classes)} "
            f"classes, too few different {noun} to hold some out; give more, or files for test "
            "and validation."
        )
    notes += _part_(rows, texts, noun)
    labelled, hidden = _choose(rows["train"], labels, labelled_per_class, random)
    shown = list(labels)
    for row in hidden:
        shown[row] = IGNORE
    notes += _scarce([labels[row] for row in labelled], len(classes), labelled_per_class or 2)
    if empty := sum(not text.strip() for text in texts):
        notes.append(f"{empty} of {len(texts)} texts are empty.")
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
    if missing := [row for row, label in enumerate(train.labels) if label is None]:
        raise DataError(
            f"{train.at(missing[0])} has no label ({len(missing)} rows have none); remove "
            "such rows, or put them into a file named unlabelled beside it."
        )
    if len(found) < 2:
        raise DataError(f"{train.source} has {len(found)} class; classification needs at least 2.")
    if train.classes:
        return train.classes
    if all(re.fullmatch(r"-?\d{1,18}", label) for label in found):
        return tuple(sorted(found, key=lambda label: (int(label), label)))
    return tuple(sorted(found))


def _gather(
    tables: dict[str, Table], classes: Sequence[str]
) -> tuple[dict[str, list[int]], list[str], list[int]]:
    """One list of texts and of class numbers for all tables, and each table's row numbers in it."""
    number = {name: n for n, name in enumerate(classes)}
    rows: dict[str, list[int]] = {
        part: [] for part in ("train", "validation", "test", "unlabelled")
    }
    texts: list[str] = []
    labels: list[int] = []
    for part, table in tables.items():
        rows[part] = list(range(len(texts), len(texts) + len(table.texts)))
        texts += table.texts
        if part == "unlabelled":
            labels += [IGNORE] * len(table.texts)
            continue
        for row, label in enumerate(table.labels):
            if label not in number:
                raise DataError(f"{table.at(row)} has {_stranger(label, classes)}")
            labels.append(number[label])
    return rows, texts, labels


def _stranger(label: str | None, classes: Sequence[str]) -> str:
    """What is wrong with a label; all classes are named only where a sentence can hold them."""
    if label is None:
        return "no label; remove the row."
    offer = nearest(label, classes)
    if len(offer) > 300:
        offer = "remove the row, or add such rows to the training data."
    return f"the label {label!r}, which the training data never has; {offer}"


def _hold_out_(
    rows: dict[str, list[int]],
    texts: Sequence[str],
    labels: Sequence[int],
    validation: float,
    random: np.random.Generator,
) -> list[str]:
    """Take what serves to test and to choose out of the training rows, where no file gives it."""
    notes = []
    for part, share in (("test", HELD_OUT), ("validation", validation)):
        if not rows[part]:
            classes = [
                _twins_together(random.permutation(members).tolist(), texts)
                for members in _by_class(rows["train"], labels)
            ]
            cuts = _cuts(classes, texts, share)
            cut = list(zip(classes, cuts, strict=True))
            rows["train"] = sorted(row for members, at in cut for row in members[at:])
            rows[part] = sorted(row for members, at in cut for row in members[:at])
            if part == "test":
                notes.append(
                    f"No test split was given: {share:.0%} of the data is held out as one."
                )
    return notes


def _cuts(classes: Sequence[Sequence[int]], texts: Sequence[str], share: float) -> list[int]:
    """How many rows each class gives: its share, but neither its last text nor one of two twins."""
    cuts = []
    carried = 0.0
    for rows in classes:
        # What rounding takes from one class the next ones give back, so that the total is right
        # even where every class is smaller than 1 / share; but no class gives twice its share.
        due = share * len(rows)
        wanted = due + min(carried, due + 0.5)
        starts = [n for n in range(1, len(rows)) if texts[rows[n]] != texts[rows[n - 1]]]
        cuts.append(min([0, *starts], key=lambda start: (abs(start - wanted), -start)))
        carried = wanted - cuts[-1]
    return cuts


def _twins_together(rows: Sequence[int], texts: Sequence[str]) -> list[int]:
    """The rows with those of equal text side by side, so that a cut can spare them."""
    first: dict[str, int] = {}
    for row in rows:
        first.setdefault(texts[row], len(first))
    return sorted(rows, key=lambda row: first[texts[row]])


def _part_(rows: dict[str, list[int]], texts: Sequence[str], noun: str) -> list[str]:
    """Take held-out rows out of the unlabelled ones; tell where the labelled ones have some."""
    notes = []
    for part in ("validation", "test"):
        held = {texts[row] for row in rows[part]}
        fresh = [row for row in rows["unlabelled"] if texts[row] not in held]
        if dropped := len(rows["unlabelled"]) - len(fresh):
            notes.append(f"{dropped} unlabelled {noun} are left out: they are {part} {noun}.")
        rows["unlabelled"] = fresh
        if shared := len(held & {texts[row] for row in rows["train"]}):
            notes.append(f"{shared} {part} {noun} are training {noun} as well.")
    return notes


def _scarce(labels: Sequence[int], classes: int, wanted: int) -> list[str]:
    """A note where some classes have fewer labelled examples than wanted."""
    few = int((np.bincount(labels, minlength=classes) < wanted).sum())
    return (
        [f"{few} of {classes} classes have fewer than {wanted} labelled examples."] if few else []
    )


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
