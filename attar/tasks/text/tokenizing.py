"""Tokenizers of text models: where a model has its own, what one does, and how it is read."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Protocol, runtime_checkable

from torch import nn

from attar.errors import ModelError
from attar.tasks.loading import quiet, told


@runtime_checkable
class Tokenizer(Protocol):
    """What is asked of a tokenizer; the fast ones of `transformers` have it."""

    backend_tokenizer: Any
    model_max_length: int
    pad_token_id: int | None
    truncation_side: str

    def __call__(self, text: list[str], /, *, truncation: bool, max_length: int) -> Any: ...


def tokenizer_of(model: nn.Module) -> Any:
    """The tokenizer a model carries."""
    try:
        return model.tokenizer
    except AttributeError:
        raise ModelError(
            f"{type(model).__name__} carries no tokenizer; pass it through `task.load(module)`."
        ) from None


def digest(tokenizer: Any) -> str:
    """A hash of everything a fast tokenizer does, whatever it was last called with."""
    what = json.loads(tokenizer.backend_tokenizer.to_str())
    # Each call leaves its own truncation and padding behind in here.
    what |= {"truncation": tokenizer.truncation_side, "padding": tokenizer.pad_token_id}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def tokenizer_at(name: str, **more: str) -> Any:
    """The tokenizer in a folder or behind a hub name, able to pad.

    more: what else `from_pretrained` is told, such as `gguf_file`
    """
    with quiet("text") as transformers, told(f"{name} has no tokenizer that can be loaded"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, **more)
    if not tokenizer.is_fast:
        raise ModelError(f"The tokenizer of {name} has no fast form (tokenizer.json).")
    # Where there is no file of it, `transformers` makes one that knows no word.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise ModelError(f"{name} has no tokenizer beside it: put tokenizer.json there.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
