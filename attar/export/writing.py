"""What all exporters of files share: libraries, silence, and a file that is whole or not there."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from attar.errors import ExportError, MissingExtra
from attar.types import InTraining

LIBRARIES = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "executorch": ("executorch.exir", "executorch.runtime"),
    "gguf": ("gguf",),
}
"""What is imported for each form of a file; the extra has the form's name."""

TITLES = {"onnx": "ONNX", "openvino": "OpenVINO", "executorch": "ExecuTorch", "gguf": "GGUF"}


def check_libraries(form: str) -> None:
    """Raises MissingExtra where a library is missing that files of a form are made with."""
    try:
        with quiet():
            for library in LIBRARIES.get(form, ()):
                import_module(library)
    except ImportError as error:
        *first, last = dict.fromkeys(each.partition(".")[0] for each in LIBRARIES[form])
        named = f"{', '.join(first)} and {last}" if first else last
        raise MissingExtra(named, form, f"exporting to {TITLES[form]}") from error


def check_trained(model: nn.Module, form: str) -> None:
    """Raises ExportError for a model that is still in training for fewer bits."""
    if any(isinstance(module, InTraining) for module in model.modules()):
        raise ExportError(
            f"{type(model).__name__} is still in training for fewer bits; put quantize.int8_static "
            f"before export.{form}."
        )


def ended(path: str | Path, ending: str) -> Path:
    """The path with the ending of its form, added where it is missing."""
    path = Path(path)
    return path if path.suffix == ending else path.with_name(f"{path.name}{ending}")


def told(facts: Mapping[str, Any]) -> dict[str, str]:
    """Facts as strings: those that are none as JSON."""
    return {name: x if isinstance(x, str) else json.dumps(x) for name, x in facts.items()}


def written(file: bytes, path: Path) -> Path:
    """Put the file in its place whole: what stood there stays until the new one is complete."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            new = Path(folder) / path.name
            new.write_bytes(file)
            os.replace(new, path)
    except OSError as error:
        raise ExportError(f"{path} can't be written ({error.strerror or error}).") from error
    return path


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's notes, which are not for attar's user."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    notes = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(notes),
            contextlib.redirect_stderr(notes),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
