"""What is read of a dataset before it is divided: rows with their labels, split by split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "eval"),
    "unlabelled": ("unlabelled", "unlabeled", "pool"),
}
"""Names that the files, folders and splits of a dataset go by."""


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
