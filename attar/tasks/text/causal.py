"""Causal language models: of `transformers`, a GGUF file, a package, an ONNX file, or one's own.

One is called as `model(input_ids=..., attention_mask=...)`, each (rows, length) int64, and gives
logits (rows, length, vocabulary) or an object with `.logits`. Rows that hold several documents it
is given with `position_ids` in place of the mask, which begin anew with each of them.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stderr, suppress
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from attar.errors import MissingExtra, ModelError
from attar.tasks.files import opened
from attar.tasks.loading import folder_of, packaged, quiet, told
from attar.tasks.text import tokenizing
from attar.tasks.text.foreign import INPUTS, tokenizer_beside
from attar.tasks.text.packing import Row
from attar.tasks.text.readings import PROBE, Reading, Retold, reading_of
from attar.tasks.text.vocabularies import matched

SHOWN = 64
"""Rows by which it is told how far two tokenizers go together."""


def load(name: str, threads: int, lent: Any = None) -> nn.Module:
    """A language model by name, in eval mode and float32, its tokenizer as `.tokenizer`.

    lent: the tokenizer of that name, where it is at hand
    """
    if (network := opened(name, threads, INPUTS, "text")) is not None:
        vars(network)["tokenizer"] = tokenizer_beside(Path(name))
        return network
    folder, more = source(name)
    with (
        quiet("text") as transformers,
        told(f"{name!r} can't be loaded as a language model"),
        redirect_stderr(StringIO()) if more else nullcontext(),  # its bar has no switch
    ):
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa", **more
        )
    # It is unpacked: written again, it is an ordinary folder.
    vars(model.config).pop("quantization_config", None)
    vars(model).pop("hf_quantizer", None)
    model.tokenizer = lent or tokenizer_of(name)
    return model.eval()  # type: ignore[no-any-return]


def tokenizer_of(name: str) -> Any:
    """The tokenizer of a language model by the model's name."""
    folder, more = source(name)
    return tokenizing.tokenizer_at(folder, **more)


def source(name: str) -> tuple[str, dict[str, str]]:
    """The folder or hub name behind a name, and which GGUF file in it, where it is one.

    Raises ModelError where there is none, MissingExtra where GGUF can't be read.
    """
    file = Path(name).expanduser()
    if name.startswith("package:"):
        file = packaged(name.removeprefix("package:"))
    if file.suffix != ".gguf":
        return folder_of(name), {}
    if not file.is_file():
        raise ModelError(f"There is no file {name!r} (looked in {Path.cwd()}).")
    for library in ("gguf", "accelerate"):
        if importlib.util.find_spec(library) is None:
            raise MissingExtra(library, "gguf", f"reading {file.name}")
    return str(file.parent), {"gguf_file": file.name}


def adopt(model: Any, tokenizer: Any) -> nn.Module:
    """The user's own model, given the task's tokenizer where it brings none."""
    kind = type(model).__name__
    if not isinstance(model, nn.Module):
        raise ModelError(f"What should be a language model is of type {kind}; give a torch module.")
    try:
        inspect.signature(model.forward).bind(input_ids=None, attention_mask=None)
    except TypeError as error:
        raise ModelError(
            f"{kind} can't be called as `model(input_ids=..., attention_mask=...)`: {error}."
        ) from error
    own: Any = None
    with suppress(AttributeError):
        own = model.tokenizer
    lent: Any = own or tokenizer
    model.tokenizer = lent
    return model


def prepare_(model: Any, tokenizer: Any, rows: Sequence[Row], length: int) -> None:
    """Make a model ready for the task's rows. Raises ModelError where it can't read them.

    One with a tokenizer of its own keeps that, and is asked as its `.reading` says.
    """
    name = type(model).__name__
    if "config" in vars(model):
        # Packed documents are told apart only where nothing is kept for the next token.
        model.config.use_cache = False
    width, limit = tokens_of(model), _positions(model)
    vars(model).pop("reading", None)
    if alike(model.tokenizer, tokenizer, width):
        model.tokenizer = tokenizer
    else:
        model.reading = reading_of(model.tokenizer, width, tokenizer, rows, limit)
        if isinstance(model.reading, Retold):
            return
    if limit is not None and length > limit:
        raise ModelError(f"length is {length}, but {name} takes at most {limit} tokens.")
    if any(len(row.ends) > 1 for row in rows) and not _packs(model):
        raise ModelError(
            f"{name} takes no position_ids, so it can't tell documents of one row apart; set "
            "`pack: false`."
        )


def alike(one: Any, other: Any, tokens: int | None = None) -> bool:
    """Whether two tokenizers have the same tokens and cut texts into them alike.

    tokens: how many there can be in the first; what it names beyond them is none of its model's
    """
    if one is other:
        return True
    known = {token: n for token, n in one.get_vocab().items() if tokens is None or n < tokens}
    if known != other.get_vocab():
        return False
    return bool(one(PROBE)["input_ids"] == other(PROBE)["input_ids"])


def reading(model: nn.Module) -> Reading | None:
    """How a model reads the task's rows where its tokenizer is another; None where it is not."""
    return vars(model).get("reading")


def understood(model: nn.Module, tokenizer: Any, rows: Sequence[Row]) -> str:
    """What proves that a model reads these rows, where not all its classes are their tokens."""
    own, width, tokens = reading(model), tokens_of(model), tokenizer.get_vocab()
    if isinstance(own, Retold):
        return own.says([rows[n] for n in np.linspace(0, len(rows) - 1, SHOWN, dtype=int)])
    if own is not None or width in (None, len(tokenizer)):
        return "" if own is None else own.says
    classes = max(len(tokenizer), *(n + 1 for n in tokens.values()))
    _, proof = matched(tokens, tokens, (width, classes))
    return proof


def tokens_of(model: Any) -> int | None:
    """How many tokens a model of `transformers` has embeddings of; None for others."""
    return model.get_input_embeddings().num_embeddings if "config" in vars(model) else None


def _positions(model: Any) -> int | None:
    """How many tokens a model of `transformers` takes; None where it does not say."""
    config: Any = vars(model).get("config")
    said: Mapping[str, Any] = {} if config is None else config.to_dict()
    return said.get("max_position_embeddings")


def _packs(model: nn.Module) -> bool:
    """Whether a model takes position_ids; a file is only asked about documents by themselves."""
    known = inspect.signature(model.forward).parameters
    return "position_ids" in known or not any(True for _ in model.parameters())
