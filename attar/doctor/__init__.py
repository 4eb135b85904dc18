"""The doctor: what is wrong, or will go wrong, before hours are spent on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from attar import pipeline
from attar.doctor.finding import Finding
from attar.doctor.machine import environment
from attar.doctor.models import data, eval_mode, label_order, logit_scale, parity, tokens
from attar.doctor.overfit import overfit
from attar.errors import AttarError, DataError, LayerError, ModelError
from attar.setting import Book, Cast, Setting, begin

__all__ = ["Finding", "examine"]

CHECKS: dict[str, Callable[[Setting, Cast], Iterator[Finding]]] = {
    "tokenizers": tokens,
    "label order": label_order,
    "eval mode": eval_mode,
    "padding": parity,
    "logit scale": logit_scale,
    "overfit": overfit,
}
"""What is looked at in a recipe's models, in this order."""


def examine(
    recipe: str | None = None, overrides: Sequence[str] = (), trust: bool = False
) -> Iterator[Finding]:
    """Look at this machine, and at a recipe, before any long run; nothing is kept of it.

    Nothing is trained but a copy of the student, on two batches; nothing is written into the
    recipe's folder, the cache or the store. Whatever a check meets becomes a finding.

    recipe: its file; overrides: `path=value` settings over it
    trust: let names with a colon run the user's own code
    """
    yield from environment()
    if recipe is None:
        return
    try:
        here = begin(recipe, overrides=overrides, trust=trust)
    except AttarError as error:
        yield _told("recipe", error)
        return
    yield Finding("recipe", True, f"{recipe}: every name and option is known.")
    yield from data(here)
    try:
        cast = pipeline.cast(here, Book())
        here = here.with_states(cast.teacher)
    except AttarError as error:
        yield _told("models", error)
        return
    for name, check in CHECKS.items():
        try:
            yield from check(here, cast)
        except AttarError as error:
            yield _told(name, error)


def _told(name: str, error: AttarError) -> Finding:
    names = {DataError: "data", ModelError: "models", LayerError: "layers"}
    return Finding(names.get(type(error), name), False, str(error))
