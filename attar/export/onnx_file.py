"""A model as an ONNX file for ONNX Runtime, checked against the model before it counts."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attar.errors import ExportError, MissingExtra
from attar.types import Example, InTraining, Quantized

FLOAT_TOLERANCE = 1e-3
"""Largest difference of a logit, as a share of the largest logit, for a float file."""

INT8_TOLERANCE = 0.05
"""The same for an int8 file: a rounding that falls the other way moves a value by a whole step."""

LIMIT = 2_000_000_000
"""Bytes of weights that one file can hold, about: the format's own limit."""

OPSETS = range(18, 24)
"""The operator sets that torch writes."""


def onnx(
    model: nn.Module,
    example: Example,
    path: str | Path,
    facts: Mapping[str, Any] | None = None,
    *,
    opset: int = 20,
) -> Path:
    """Write a model as one ONNX file with any batch and length, and check it in ONNX Runtime.

    Quantized modules become ONNX's own int8 operators, in the layout that ONNX Runtime fuses. The
    file is run on the example, and on more rows of another length, and must answer as the model
    does: logits within 0.1 % of the largest for float, 5 % for int8, where single values are
    rounded the other way. What was found is written into the metadata as `parity`, together with
    the facts.

    example: gives the model's named inputs: tokens (rows, length), of any length in the file; or
        pictures and other numbers (rows, ...), of the same size in the file
    facts: strings, and what JSON can say
    opset: ONNX operator set, 18 to 23; ONNX Runtime reads 20 from its version 1.17 on
    Raises ExportError where the file can't be made or answers otherwise; then nothing is written.
    """
    _check_libraries()
    _check_request(model, opset)
    path = Path(path)
    if path.suffix != ".onnx":
        path = path.with_name(f"{path.name}.onnx")
    inputs = {name: tensor.cpu() for name, tensor in example(model).items()}
    twin = deepcopy(model).cpu().eval()
    graph = _drawn(twin, inputs, opset)
    found = _difference(twin, graph.SerializeToString(), [inputs, _unlike(inputs)])
    _check_answers(found, any(isinstance(module, Quantized) for module in twin.modules()))
    _note_(graph, {"producer": "attar", "parity": f"{found:.2e}", **(facts or {})})
    return _written(graph.SerializeToString(), path)


def noted(path: Path, facts: Mapping[str, Any]) -> Path:
    """Add facts to the metadata of a file that is written already, such as its measured score.

    What it said under the same names is replaced; the graph and its weights stay as they are.
    facts: strings, and what JSON can say
    Raises ExportError where the file can't be written; then it stays as it was.
    """
    import onnx

    graph = onnx.load(path)
    _note_(graph, facts)
    return _written(graph.SerializeToString(), path)


def _note_(graph: Any, facts: Mapping[str, Any]) -> None:
    known = {entry.key: entry.value for entry in graph.metadata_props}
    told = {name: x if isinstance(x, str) else json.dumps(x) for name, x in facts.items()}
    del graph.metadata_props[:]
    for name, fact in (known | told).items():
        graph.metadata_props.add(key=name, value=fact)


def _check_libraries() -> None:
    try:
        with _quiet():
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
    except ImportError as error:
        missing = "onnx, onnxscript and onnxruntime"
        raise MissingExtra(missing, "onnx", "exporting to ONNX") from error


def _check_request(model: nn.Module, opset: int) -> None:
    if opset not in OPSETS:
        raise ExportError(f"opset is {opset}; it can be {OPSETS[0]} to {OPSETS[-1]}.")
    if any(isinstance(module, InTraining) for module in model.modules()):
        raise ExportError(
            f"{type(model).__name__} is still in training for fewer bits; put quantize.int8_static "
            f"before export.onnx."
        )
    size = sum(each.numel() * each.element_size() for each in model.state_dict().values())
    if size > LIMIT:
        raise ExportError(
            f"{type(model).__name__} has {size / 1e9:.1f} GB of weights, and one ONNX file holds "
            f"{LIMIT / 1e9:.0f} GB; export a smaller or a quantized model."
        )


class _Named(nn.Module):
    """A model called with its inputs in order, giving logits alone, as the exporter wants it."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: Tensor) -> Tensor:
        return _logits(self.model(**dict(zip(self.names, inputs, strict=True))))


def _logits(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.logits


def _drawn(model: nn.Module, inputs: Mapping[str, Tensor], opset: int) -> Any:
    """The model as an ONNX graph (a `ModelProto`), batch and length free."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    names = list(inputs)
    # Two rows of two tokens at least: a dimension of 1 would be taken for a constant.
    traced = tuple(
        each.repeat(2, *[2 if _has_length(each) and n == 1 else 1 for n in each.shape[1:]])
        for each in inputs.values()
    )
    free = tuple(dict.fromkeys(range(1 + _has_length(e)), torch.export.Dim.DYNAMIC) for e in traced)
    try:
        with _quiet():
            program = torch.onnx.export(
                _Named(model, names).eval(),
                traced,
                input_names=names,
                output_names=["logits"],
                dynamic_shapes={"inputs": free},
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
            assert program is not None
            # Where each node comes from: lines of source with the paths of this machine, and in
            # a small student more bytes than the weights.
            ClearMetadataAndDocStringPass()(program.model)
            return program.model_proto
    except Exception as error:
        raise ExportError(
            f"{type(model).__name__} can't be written as ONNX ({_reason(error)})."
        ) from error


def _has_length(tensor: Tensor) -> bool:
    """Whether an input is tokens or their mask, of which there may be more or fewer."""
    return tensor.dim() == 2 and not tensor.is_floating_point()


def _reason(error: BaseException) -> str:
    """What went wrong at the bottom, in a line, without the advice that is stacked upon it."""
    while error.__cause__ is not None:
        error = error.__cause__
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}".rstrip(".: ")


def _unlike(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same inputs in another shape: more rows, each a token shorter if it is of tokens."""
    return {
        name: (each[:, : max(1, each.shape[1] - 1)] if _has_length(each) else each).repeat(
            3, *[1] * (each.dim() - 1)
        )
        for name, each in inputs.items()
    }


def _difference(model: nn.Module, file: bytes, asked: list[dict[str, Tensor]]) -> float:
    """The largest difference of the file's logits from the model's, as a share of the largest."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    shares = []
    for inputs in asked:
        with torch.no_grad():
            truth = _logits(model(**inputs)).float().numpy()
        try:
            session = onnxruntime.InferenceSession(
                file, settings, providers=["CPUExecutionProvider"]
            )
            (answer, *_) = session.run(None, {name: each.numpy() for name, each in inputs.items()})
        except Exception as error:
            raise ExportError(
                f"ONNX Runtime can't run what {type(model).__name__} was exported to "
                f"({_reason(error)})."
            ) from error
        if answer.shape != truth.shape:
            raise ExportError(
                f"The exported file gives logits {answer.shape} where the model gives "
                f"{truth.shape}; nothing was written."
            )
        shares.append(float(np.abs(answer - truth).max() / max(np.abs(truth).max(), 1e-6)))
    return float(np.max(shares))


def _check_answers(difference: float, quantized: bool) -> None:
    """Raises ExportError where the file's logits are too far from the model's, or no numbers."""
    tolerance = INT8_TOLERANCE if quantized else FLOAT_TOLERANCE
    # Said with `not`, so that a difference that is no number is refused too.
    if not difference <= tolerance:
        advice = " Where a step has reduce_range, turn it on: not every processor can do without."
        raise ExportError(
            f"The exported file answers otherwise than the model: its logits differ by up to "
            f"{difference:.1%} of the largest (allowed {tolerance:.1%}); nothing was written."
            f"{advice if quantized else ''}"
        )


def _written(file: bytes, path: Path) -> Path:
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
def _quiet() -> Iterator[None]:
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
