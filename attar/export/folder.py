"""A model as a folder: for `transformers`, or of safetensors for attar's own students."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from attar.errors import ExportError
from attar.types import Quantized


@runtime_checkable
class _Pretrained(Protocol):
    """What models of `transformers` can do."""

    config: Any

    def save_pretrained(self, folder: str | Path) -> Any: ...


def transformers(
    model: nn.Module,
    path: str | Path,
    prepare: Callable[[nn.Module, Path], None] | None = None,
) -> Path:
    """A folder that `transformers` loads without attar: safetensors, config, and what prepares.

    prepare: writes what prepares the model's inputs; its tokenizer where left out
    Raises ExportError for a quantized model, one of another make, and where it can't be written.
    """
    path = Path(path)
    _check(model, path, "transformers")
    check_class(model)
    assert isinstance(model, _Pretrained)
    with _without_bars():
        try:
            model.save_pretrained(path)
            (prepare or _with_tokenizer)(model, path)
        except OSError as error:
            raise ExportError(f"{path} can't be written ({error.strerror or error}).") from error
    return path


def safetensors(
    model: nn.Module, path: str | Path, save: Callable[[nn.Module, Path], Path]
) -> Path:
    """A folder of safetensors, `attar.json` and tokenizer that `attar.students.load` reads.

    save: writes one of attar's own students
    Raises ExportError for a quantized model; ModelError where it is no student of that kind.
    """
    path = Path(path)
    _check(model, path, "safetensors")
    return save(model, path)


def check_class(model: nn.Module) -> None:
    """Raises ExportError for another make, and other layers than its class builds from its config.

    `from_pretrained` would draw at random what it does not find.
    """
    kind: Any = type(model)
    if not isinstance(model, _Pretrained):
        raise ExportError(
            f"{kind.__name__} is no `transformers` model; use export.safetensors or export.onnx."
        )
    with torch.device("meta"):
        known = kind(deepcopy(model.config)).state_dict()
    other = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    if other != {name: tuple(weight.shape) for name, weight in known.items()}:
        raise ExportError(
            f"{kind.__name__} has other layers than its class builds (factorize, smooth and fewer "
            "heads make such), so `transformers` would not load it; use export.onnx, or for fewer "
            "heads export.safetensors."
        )


def _with_tokenizer(model: nn.Module, path: Path) -> None:
    tokenizer: Any
    try:
        tokenizer = model.tokenizer
    except AttributeError:
        raise ExportError(
            f"{type(model).__name__} carries no tokenizer as `.tokenizer`; give it one, or "
            "`prepare`, which writes what its inputs need."
        ) from None
    tokenizer.save_pretrained(path)


def _check(model: nn.Module, path: Path, form: str) -> None:
    if any(isinstance(module, Quantized) for module in model.modules()):
        raise ExportError(
            f"A {form} folder has no form for these quantized weights; put export.{form} before "
            "the step that quantizes, or use export.onnx."
        )
    if path.is_file():
        raise ExportError(f"{path} is a file, and a folder is to be written there.")


@contextmanager
def _without_bars() -> Iterator[None]:
    """Without the bars of `transformers`, which would break into ours."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()
