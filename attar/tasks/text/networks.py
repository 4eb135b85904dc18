"""Sequence classifiers: of `transformers`, a package, an ONNX or Keras file, or the user's own.

A text network is called as `model(input_ids=..., attention_mask=...)`, each (rows, length) int64,
and gives logits (rows, classes) or an object with `.logits`. It carries its tokenizer as
`model.tokenizer`, so that teacher and student may cut a text into tokens differently.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn

from attar.errors import ModelError
from attar.tasks.files import check_classes, opened
from attar.tasks.loading import folder_of, load_transformers
from attar.tasks.text.foreign import INPUTS, KerasNetwork, is_keras, tokenizer_beside
from attar.tasks.text.tokenizing import Tokenizer, tokenizer_at, tokenizer_of

UNBOUNDED = 1_000_000
"""Tokenizers without a limit of their own give a number far above this."""


def load(
    name: str,
    classes: Sequence[str],
    *,
    new_head: bool = False,
    partly: bool = False,
    threads: int = 1,
) -> nn.Module:
    """A network by name, in eval mode, in float32, its classes in the task's order."""
    if (network := opened(name, threads, INPUTS, "text")) is not None:
        check_classes(network, classes)
        vars(network)["tokenizer"] = tokenizer_beside(Path(name))
        return network
    if name.endswith(".keras"):
        return KerasNetwork.read(Path(name))
    return _load_transformers(folder_of(name), classes, new_head, partly)


def adopt(model: Any, tokenizer: Any) -> nn.Module:
    """The user's own model, given the task's tokenizer where it brings none."""
    kind = type(model).__name__
    own: Any = None
    with suppress(AttributeError):
        own = model.tokenizer
    module: Any = KerasNetwork(model, kind) if is_keras(model) else model
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"What should be a model is of type {kind}; give a torch.nn.Module, a Keras model on "
            "the torch backend, or the name of a model."
        )
    try:
        inspect.signature(module.forward).bind(input_ids=None, attention_mask=None)
    except TypeError as error:
        raise ModelError(
            f"{kind} can't be called as `model(input_ids=..., attention_mask=...)`: {error}."
        ) from error
    if own is None and tokenizer is None:
        raise ModelError(
            f"{kind} has no tokenizer: set `module.tokenizer`, or load the teacher first so that "
            "the task has one to lend."
        )
    if own is not None and not isinstance(own, Tokenizer):
        raise ModelError(
            f"The tokenizer of {kind} is of {type(own).__name__}; it must be a fast tokenizer of "
            "`transformers` (PreTrainedTokenizerFast)."
        )
    lent: Any = own or tokenizer
    module.tokenizer = lent
    return module


def check_length(model: nn.Module, max_length: int) -> None:
    """Raises ModelError where texts may be longer than the model has positions for."""
    limit = longest(model)
    if limit is not None and max_length > limit:
        raise ModelError(
            f"max_length is {max_length}, but {type(model).__name__} takes at most {limit} tokens."
        )
    if max_length < 3:
        raise ModelError(f"max_length is {max_length}; a text needs at least 3 tokens.")


def longest(model: Any) -> int | None:
    """The most tokens a model takes, by its tokenizer and its positions; None without a limit."""
    limit = tokenizer_of(model).model_max_length
    return min((n for n in (limit, _positions(model)) if 0 < n < UNBOUNDED), default=None)


def _positions(model: Any) -> int:
    """How many positions a model of `transformers` has; 0 where it counts otherwise."""
    try:
        count = int(model.config.max_position_embeddings)
    except (AttributeError, TypeError):
        return 0
    for path, table in model.named_modules():
        # RoBERTa and its kin begin to count behind the padding's own position.
        if path.endswith("position_embeddings") and isinstance(table, nn.Embedding):
            return count if table.padding_idx is None else count - table.padding_idx - 1
    return count


def _load_transformers(
    name: str, classes: Sequence[str], new_head: bool, partly: bool
) -> nn.Module:
    model = load_transformers(
        name, classes, "SequenceClassification", "text", new_head=new_head, partly=partly
    )
    model.tokenizer = tokenizer_at(name)
    model.config.pad_token_id = model.tokenizer.pad_token_id
    if (limit := longest(model)) is not None:
        model.tokenizer.model_max_length = limit
    return model.eval()  # type: ignore[no-any-return]
