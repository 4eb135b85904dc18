"""What is read of a dataset before it is divided: rows with their labels, split by split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attar.errors import DataError, MissingExtra, nearest

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "eval"),
    "unlabelled": ("unlabelled", "unlabeled", "pool"),
}
"""Names that the files, folders and splits of a dataset go by."""


def named_after(split: str, path: Path) -> bool:
    """Whether a file is named after a split, whatever its endings."""
    return path.name.split(".")[0].lower() in SPLITS[split]


@dataclass(frozen=True)
class Table:
    """Texts with their labels; a label is None where the source leaves it open.

    texts: what tells rows apart; for pictures their content's hash
    lines: where each row stands in the source, counted in its `unit`s (line, row or file)
    classes: all there are, in the source's own order, where it names them
    """

    source: str
    texts: tuple[str, ...]
    labels: tuple[str | None, ...]
    lines: Sequence[int | str]
    unit: str = "line"
    classes: tuple[str, ...] = ()

    def at(self, row: int) -> str:
        """Where a row stands, as the beginning of a sentence."""
        return f"{self.source}, {self.unit} {self.lines[row]}"


def hub(name: str) -> dict[str, tuple[str, Any]]:
    """The splits of a dataset that the `datasets` library knows: what each is called, its rows."""
    try:
        import datasets
    except ImportError as error:
        missing = f"{name!r} is no file or folder here; reading it as a dataset's name"
        raise MissingExtra("datasets", "data", missing) from error
    repository, _, configuration = name.partition(":")
    try:
        splits = datasets.load_dataset(repository, configuration or None)
    except Exception as error:
        raise DataError(
            f"{name!r} is no file here and `datasets` can't load it: {reason(error)}"
        ) from error
    found = {}
    for split, stems in SPLITS.items():
        if stem := next((stem for stem in stems if stem in splits), None):
            found[split] = (f"{name}/{stem}", splits[stem])
    if "train" not in found:
        raise DataError(f"{name!r} has no train split, only {', '.join(splits)}.")
    return found


def names_of(feature: Any) -> tuple[str, ...]:
    """The classes that a column of `datasets` numbers; none where it is of another kind."""
    import datasets

    return tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else ()


def named(names: Sequence[str], number: int | None) -> str | None:
    """The name of a class; `datasets` writes -1 where a label is kept secret."""
    return None if number is None or number < 0 else names[number]


def column_of(
    source: str,
    names: Sequence[str],
    role: str,
    usual: Mapping[str, Sequence[str]],
    given: str | None,
    *,
    needed: bool = True,
    alone: bool = False,
) -> str | None:
    """The column of a role, by its given name or the usual ones; None where there may be none.

    alone: a column that is the only one has this role, whatever its name
    """
    if given is not None and (given in names or not needed):
        return given if given in names else None
    if given is not None:
        raise DataError(f"{source} has no column {given!r}; {nearest(given, names)}")
    found = [name for name in names if name.strip().lower() == role]
    found = found or [name for name in names if name.strip().lower() in usual[role]]
    if alone and len(names) == 1:
        found = list(names)
    if len(found) == 1 or not needed:
        return found[0] if len(found) == 1 else None
    several = f"several columns that could be the {role} ({', '.join(found)})"
    none = f"no column that is plainly the {role} (it has: {', '.join(names)})"
    raise DataError(
        f"{source} has {several if found else none}; name it with `columns: {{{role}: NAME}}`."
    )


def reason(error: Exception) -> str:
    """The first line of an error, which is all that a sentence has room for."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
