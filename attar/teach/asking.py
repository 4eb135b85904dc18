"""Schemes that ask a fixed teacher: as each batch comes, or once and from disk ever after."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attar import store as knowledge_store
from attar.errors import RecipeError
from attar.taps import evaluating
from attar.types import Batch, Forward, Knowledge, Lesson


def online(
    batches: Iterable[Batch], teachers: Sequence[nn.Module], forward: Forward
) -> Iterator[Lesson]:
    """The teacher answers each batch as it comes: any augmentation, nothing on disk.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (2015).
    """
    teacher = _only(teachers)
    for batch in batches:
        yield Lesson(batch, ask(teacher, batch, forward))


def offline(
    batches: Iterable[Batch],
    teachers: Sequence[nn.Module],
    forward: Forward,
    facts: dict[str, Any] | None = None,
    cache: Path | None = None,
    *,
    store: str | None = None,
) -> Iterator[Lesson]:
    """The teacher is asked once for each example; every later epoch and run reads it from disk.

    facts: what decides the teacher's answers beside its weights (preprocessing, layers)
    cache: the folder to keep knowledge in where no store is named
    store: the folder of the knowledge; each teacher has its own below it
    """
    teacher = _only(teachers)
    with open_store(store_folder(store, cache), teacher, facts or {}) as known:
        for batch in batches:
            if missing := known.missing(batch.keys):
                _learn(known, _some(batch, missing), teacher, forward)
            yield Lesson(batch, known.get(batch.keys))


def fill(
    known: knowledge_store.Store,
    batches: Iterable[Batch],
    teacher: nn.Module,
    forward: Forward,
    progress: Callable[[int], None] = lambda _: None,
) -> int:
    """Ask the teacher for whatever the store lacks of the batches; gives the number of rows asked.

    progress: is told the number of rows of each batch that is now known
    """
    asked = 0
    for batch in batches:
        if missing := known.missing(batch.keys):
            _learn(known, _some(batch, missing), teacher, forward)
            asked += len(missing)
        progress(len(batch))
    known.flush()
    return asked


def store_folder(store: str | None, cache: Path | None) -> Path:
    """Where knowledge is kept: where the recipe says, else in the cache, else here."""
    return Path(store).expanduser() if store is not None else (cache or Path()) / "knowledge"


def open_store(
    folder: str | Path, teacher: nn.Module, facts: dict[str, Any]
) -> knowledge_store.Store:
    """The store of one teacher below a folder; other teachers have theirs beside it."""
    fingerprint = knowledge_store.fingerprint(teacher, **facts)
    return knowledge_store.Store.open(Path(folder) / _name(fingerprint), fingerprint)


def found_store(
    folder: str | Path, teacher: nn.Module, facts: dict[str, Any]
) -> knowledge_store.Store | None:
    """The store of one teacher where it has been asked before; nothing is made."""
    fingerprint = knowledge_store.fingerprint(teacher, **facts)
    place = Path(folder) / _name(fingerprint)
    there = (place / knowledge_store.MANIFEST).is_file()
    return knowledge_store.Store.open(place, fingerprint) if there else None


def _name(fingerprint: dict[str, Any]) -> str:
    return knowledge_store.key(repr(sorted(fingerprint.items())))[:12]


def ask(teacher: nn.Module, batch: Batch, forward: Forward) -> Knowledge:
    """What a teacher makes of a batch: in eval mode, detached, its own mode restored."""
    with evaluating(teacher), torch.no_grad():
        return forward(teacher, batch).detach()


def _only(teachers: Sequence[nn.Module]) -> nn.Module:
    if len(teachers) != 1:
        raise RecipeError(f"This scheme asks one teacher, not {len(teachers)}.")
    return teachers[0]


def _learn(
    known: knowledge_store.Store, batch: Batch, teacher: nn.Module, forward: Forward
) -> None:
    known.put(batch.keys, ask(teacher, batch, forward))


def _some(batch: Batch, positions: Sequence[int]) -> Batch:
    """Chosen rows of a batch."""
    inputs = (
        batch.inputs[torch.tensor(positions)]
        if isinstance(batch.inputs, torch.Tensor)
        else tuple(batch.inputs[n] for n in positions)
    )
    return Batch(inputs, batch.labels[list(positions)], tuple(batch.keys[n] for n in positions))
