"""The errors a user can meet; each says in one sentence what is wrong and what to do next."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class AttarError(Exception):
    """Anything the user can mend: printed as one sentence, exit code 2."""


class RecipeError(AttarError):
    """The recipe is not right; nothing has been loaded yet."""


class DataError(AttarError):
    """The data is missing, unreadable or contradicts the recipe."""


class ModelError(AttarError):
    """A model can't be loaded, or does not fit the task."""


class LayerError(ModelError):
    """A layer path names nothing, or two layers can't be compared."""


class StoreError(AttarError):
    """The knowledge on disk is damaged, or was made by another teacher."""


class EndpointError(AttarError):
    """Who is asked over the network does not answer, or asks for what it is not given."""


class ExportError(AttarError):
    """A file could not be written, or does not answer like the model it was made from."""


class EngineError(AttarError):
    """Training can't start, go on, or be resumed."""


class MissingExtra(AttarError):
    """An optional library is needed and not installed."""

    def __init__(self, library: str, extra: str, purpose: str) -> None:
        super().__init__(f'{purpose} needs {library}: pip install "attar[{extra}]"')


def nearest(word: str, words: Iterable[str]) -> str:
    """The words to offer after a misspelling: the nearest one, else all of them."""
    choices = sorted(words)
    close = get_close_matches(word, choices, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return "choose from: " + ", ".join(choices) if choices else "there is nothing to choose from"
