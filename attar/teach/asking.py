"""Schemes that ask a fixed teacher: as each batch comes, or once and from disk ever after."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attar import store as knowledge_store
from attar.errors import RecipeError
from attar.heads import Foreign, dense
from attar.store import Coded
from attar.taps import evaluating
from attar.types import Batch, Count, Forward, Knowledge, Lesson


def online(
    batches: Iterable[Batch], teachers: Sequence[nn.Module], forward: Forward
) -> Iterator[Lesson]:
    """The teacher answers each batch as it comes: any augmentation, nothing on disk.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (2015).
    """
    teacher = only(teachers)
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
    top: Count | None = None,
    draws: Count | None = None,
    logits: Coded = "fp32",
    features: Coded = "fp16",
) -> Iterator[Lesson]:
    """The teacher is asked once for each example; every later epoch and run reads it from disk.

    facts: what decides the teacher's answers beside its weights (preprocessing, layers)
    cache: the folder to keep knowledge in where no store is named
    store: the folder of the knowledge; each teacher has its own below it
    top: classes kept of each example, the most likely ones; the mass of all others is kept as one
        number, and given back spread evenly over them
    draws: classes drawn of all others, or without a top of all; on average they say what the
        teacher says, for the losses kl and soft_cross_entropy at temperature 1
    logits: what they are kept in; int8 keeps a top in a byte or two a class, of any vocabulary
    features: what the layers are kept in; int8 has a scale for each vector
    """
    teacher, folder = only(teachers), store_folder(store, cache)
    kept: dict[str, Any] = {"top": top, "draws": draws, "logits": logits, "features": features}
    with open_store(folder, teacher, facts or {}, **kept) as known:
        for batch in batches:
            if missing := known.missing(batch.keys):
                _learn(known, batch.some(missing), teacher, forward)
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
            _learn(known, batch.some(missing), teacher, forward)
            asked += len(missing)
        progress(len(batch))
    known.flush()
    return asked


def store_folder(store: str | None, cache: Path | None) -> Path:
    """Where knowledge is kept: where the recipe says, else in the cache, else here."""
    return Path(store).expanduser() if store is not None else (cache or Path()) / "knowledge"


def open_store(
    folder: str | Path, teacher: nn.Module, facts: dict[str, Any], **kept: Any
) -> knowledge_store.Store:
    """The store of one teacher below a folder; other teachers have theirs beside it.

    kept: how exactly, as the options of `Store.open` say
    """
    fingerprint = knowledge_store.fingerprint(teacher, **facts)
    place = Path(folder) / _name(fingerprint, kept)
    return knowledge_store.Store.open(place, fingerprint, **kept)


def found_store(
    folder: str | Path, teacher: nn.Module, facts: dict[str, Any], **kept: Any
) -> knowledge_store.Store | None:
    """The store of one teacher where it has been asked before; nothing is made."""
    fingerprint = knowledge_store.fingerprint(teacher, **facts)
    place = Path(folder) / _name(fingerprint, kept)
    if not (place / knowledge_store.MANIFEST).is_file():
        return None
    return knowledge_store.Store.open(place, fingerprint, **kept)


def _name(fingerprint: dict[str, Any], kept: Mapping[str, Any]) -> str:
    """A store's folder: whose it is, and where it is less than what a store keeps, how much."""
    whose = knowledge_store.key(repr(sorted(fingerprint.items())))[:12]
    usual = knowledge_store.Kept()
    cuts = [f"-{name}{kept[name]}" for name in ("top", "draws") if kept.get(name) is not None]
    if kept.get("logits", usual.logits) != usual.logits:
        cuts.append(f"-logits-{kept['logits']}")
    if kept.get("features", usual.features) != usual.features:
        cuts.append(f"-{kept['features']}")
    return whose + "".join(cuts)


def ask(teacher: nn.Module, batch: Batch, forward: Forward) -> Knowledge:
    """What a teacher makes of a batch: in eval mode, detached, its own mode restored."""
    with evaluating(teacher), torch.no_grad():
        return forward(teacher, batch).detach()


def told(knowledge: Knowledge) -> Tensor:
    """The logarithms of a model's answers, (..., classes), all of them made.

    Raises RecipeError as `check_classes` does.
    """
    check_classes(knowledge)
    return dense(knowledge.logits).float().log_softmax(-1)


def check_classes(knowledge: Knowledge) -> None:
    """Raises RecipeError for answers in a model's own tokens, which are nobody else's classes."""
    if isinstance(knowledge.logits, Foreign):
        raise RecipeError(
            "This scheme works class by class, and the teacher answers in tokens of its own; take "
            "online or offline, with response.mined or response.uld."
        )


def mixable(exclusive: bool, scheme: str) -> None:
    """Raises RecipeError where answers are no classes, so that they have no probabilities."""
    if not exclusive:
        raise RecipeError(
            f"{scheme} works with the probabilities of classes, and answers here are numbers; take "
            "another scheme."
        )


def only(teachers: Sequence[nn.Module], scheme: str = "This scheme") -> nn.Module:
    """The one teacher. Raises RecipeError where there are more, or none."""
    if len(teachers) != 1:
        raise RecipeError(f"{scheme} asks one teacher, not {len(teachers)}.")
    return teachers[0]


def _learn(
    known: knowledge_store.Store, batch: Batch, teacher: nn.Module, forward: Forward
) -> None:
    known.put(batch.keys, ask(teacher, batch, forward))
