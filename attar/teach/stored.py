"""Lessons from a store alone: the teacher answered before, and need not be there any more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from reprlib import repr as short
from typing import Any

from attar.errors import StoreError, nearest
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

    facts: what the answers must have been made with (preprocessing), and the `layers` of them that
        are read here
    classes: the labels, in the order of the logits
    store: the folder of the knowledge, or one that holds a single store
    StoreError where the store tells a fact otherwise, or an example is not in it.
    """
    known = opened(store, facts, classes)
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


def opened(
    store: str, facts: dict[str, Any] | None = None, classes: Sequence[str] | None = None
) -> Store:
    """The store that `stored` reads; StoreError where it was made otherwise or lacks a layer."""
    asked = {} if classes is None else {"classes": list(classes)}
    asked |= facts or {}
    layers = asked.pop("layers", [])
    known = Store.found(_only(Path(store).expanduser()), asked)
    held = known.manifest["teacher"].get("layers", layers)
    if missing := [layer for layer in layers if layer not in held]:
        raise StoreError(
            f"{known.folder} does not hold the layer {missing[0]!r}; {nearest(missing[0], held)}"
        )
    return known


def _only(folder: Path) -> Path:
    below = stores(folder)
    return below[0] if len(below) == 1 and not (folder / MANIFEST).exists() else folder
