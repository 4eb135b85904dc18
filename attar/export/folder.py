"""A model as a folder: for `transformers`, or of safetensors for attar's own students."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import nn

from attar.errors import ExportError
from attar.types import Quantized


@runtime_checkable
class _Pretrained(Protocol):
    """What `transformers` models can do."""

    config: Any

    def save_pretrained(self, folder: str | Path) -> Any: ...


def transformers(model: nn.Module, path: str | Path) -> Path:
    """A folder that `transformers` loads without attar: safetensors, config and tokenizer.

    Raises ExportError for a quantized model, or one of another make.
    """
    if any(isinstance(module, Quantized) for module in model.modules()):
        raise ExportError(
            "transformers has no form for these quantized weights; put export.transformers before "
            "the step that quantizes, or use export.onnx."
        )
    if not isinstance(model, _Pretrained):
        raise ExportError(
            f"{type(model).__name__} is no `transformers` model; use export.safetensors or export.onnx."
        )
    from transformers.utils import logging

    path = Path(path)
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    model.save_pretrained(path)
    if bars:
        logging.enable_progress_bar()
    model.tokenizer.save_pretrained(path)  # type: ignore[attr-defined]
    return path


def safetensors(
    model: nn.Module, path: str | Path, save: Callable[[nn.Module, Path], Path]
) -> Path:
    """A folder of safetensors, `attar.json` and tokenizer that `attar.students.load` reads.

    save: writes one of attar's own students
    """
    return save(model, Path(path))
