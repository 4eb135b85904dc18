"""Lessons from a store alone: the teacher answered before, and need not be there any more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from reprlib import repr as short
from typing import Any

from attar.errors import StoreError
from attar.store import MANIFEST, Store, stores
from attar.types import Batch, Lesson


def stored(
    batches: Iterable[Batch],
    facts: dict[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    *,
    store: str,
) -> Iterator[Lesson]:
    """The knowledge in a folder teaches, without the model it came from.

    facts: what the answers must have been made with (preprocessing, layers)
    classes: the labels, in the order of the logits
    store: the folder of the knowledge, or one that holds a single store
    StoreError where the store tells a fact otherwise, or an example is not in it.
    """
    known = Store.found(_only(Path(store).expanduser()), _facts(facts, classes))
    for batch in batches:
        if missing := known.missing(batch.keys):
            known.refresh()  # somebody may be filling it at this moment
            missing = known.missing(batch.keys)
        if missing:
            first = missing[0]
            raise StoreError(
                f"{known.folder} knows nothing of the example {short(batch.inputs[first])} (key"
                f" {batch.keys[first]}): ask its teacher with `teach: offline`, or leave it out"
            )
        yield Lesson(batch, known.get(batch.keys))


def _only(folder: Path) -> Path:
    below = stores(folder)
    return below[0] if len(below) == 1 and not (folder / MANIFEST).exists() else folder


def _facts(facts: dict[str, Any] | None, classes: Sequence[str] | None) -> dict[str, Any]:
    return {**({} if classes is None else {"classes": list(classes)}), **(facts or {})}
