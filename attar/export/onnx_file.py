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
from attar.types import Example, Quantized

FLOAT_TOLERANCE = 1e-3
"""Largest difference of a logit, as a share of the largest logit, for a float file."""

INT8_TOLERANCE = 0.05
"""The same for an int8 file: a rounding that falls the other way moves a value by a whole step."""


def onnx(
    model: nn.Module,
    example: Example,
    path: str | Path,
    facts: Mapping[str, Any] | None = None,
    *,
    opset: int = 20,
) -> Path:
    """Write a model as one ONNX file with any batch and length, and check it in ONNX Runtime.

    Quantized modules become ONNX Runtime's own dynamic int8 operators. The file is run on the
    example and must answer as the model does: logits within 0.1 % of the largest for float, 5 % for
    int8, where single values are rounded the other way; what was found is written beside it into
    the metadata, together with the facts.

    example: gives the model's named inputs, each (rows, length)
    opset: ONNX operator set
    Raises ExportError where the file can't be made or answers otherwise.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        path = path.with_name(f"{path.name}.onnx")
    inputs = {name: tensor.cpu() for name, tensor in example(model).items()}
    plain, weights = _float_twin(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        drawn = Path(folder) / "float.onnx"
        _draw(plain, inputs, drawn, opset)
        if weights:
            _quantize(drawn, Path(folder) / "int8.onnx", weights, _reduced(model))
            drawn = Path(folder) / "int8.onnx"
        difference = _parity(model, drawn, inputs, INT8_TOLERANCE if weights else FLOAT_TOLERANCE)
        _describe(drawn, {"producer": "attar", "parity": f"{difference:.2e}", **(facts or {})})
        os.replace(drawn, path)
    return path


def _float_twin(model: nn.Module) -> tuple[nn.Module, list[np.ndarray[Any, Any]]]:
    """A copy in which every quantized module is its float twin, and these twins' weights."""
    if not any(isinstance(module, Quantized) for module in model.modules()):
        return model, []
    plain = deepcopy(model)
    weights = []
    for path, module in list(plain.named_modules()):
        if isinstance(module, Quantized):
            twin = module.dequantized()
            plain.set_submodule(path, twin)
            weights.append(twin.weight.detach().numpy())  # type: ignore[operator, union-attr]
    return plain, weights


def _reduced(model: nn.Module) -> bool:
    """Whether the int8 weights of linear layers use 7 bits only."""
    largest = [
        int(module.weight.abs().max())  # type: ignore[operator, union-attr]
        for module in model.modules()
        if isinstance(module, Quantized) and isinstance(module.dequantized(), nn.Linear)
    ]
    return bool(largest) and max(largest) <= 64


class _Named(nn.Module):
    """A model called with its inputs in order, giving logits alone, as the exporter wants it."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: Tensor) -> Tensor:
        output = self.model(**dict(zip(self.names, inputs, strict=True)))
        return output if isinstance(output, Tensor) else output.logits


def _draw(model: nn.Module, inputs: Mapping[str, Tensor], path: Path, opset: int) -> None:
    """Export the float graph, batch and length free."""
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtra("onnx and onnxscript", "onnx", "exporting to ONNX") from error
    names = list(inputs)
    # Two rows of more than one token: a dimension of 1 would be taken for a constant.
    traced = tuple(torch.cat([tensor, tensor]) for tensor in inputs.values())
    free = tuple({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for _ in names)
    training = model.training
    try:
        with _quiet():
            torch.onnx.export(
                _Named(model, names).eval().cpu(),
                traced,
                path,
                input_names=names,
                output_names=["logits"],
                dynamic_shapes={"inputs": free},
                opset_version=opset,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise ExportError(
            f"{type(model).__name__} can't be written as ONNX ({type(error).__name__}: {reason})."
        ) from error
    finally:
        model.train(training)


def _quantize(
    source: Path, target: Path, weights: list[np.ndarray[Any, Any]], reduce_range: bool
) -> None:
    """ONNX Runtime's dynamic quantization of just the nodes that hold the given weights."""
    import onnx
    from onnx import numpy_helper
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(source)
    # Shapes noted by the exporter are stale once weights are transposed, and stop the quantizer.
    del graph.graph.value_info[:]
    _matmul_from_gemm_(graph)
    onnx.save(graph, source)
    held = {each.name: numpy_helper.to_array(each) for each in graph.graph.initializer}
    kinds = ("MatMul", "Gather")
    chosen = [
        node.name
        for node in graph.graph.node
        if node.op_type in kinds
        and any(_is_one_of(held[name], weights) for name in node.input if name in held)
    ]
    with _quiet():
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=list(kinds),
            nodes_to_quantize=chosen,
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
        )


def _matmul_from_gemm_(graph: Any) -> None:
    """Write each Gemm with a constant weight as MatMul and Add, which are what runs in int8."""
    from onnx import helper, numpy_helper

    held = {each.name: each for each in graph.graph.initializer}
    nodes = []
    for node in graph.graph.node:
        settings = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        plain = settings.get("alpha", 1.0) == 1.0 and settings.get("beta", 1.0) == 1.0
        if node.op_type != "Gemm" or settings.get("transA") or not plain or node.input[1] not in held:
            nodes.append(node)
            continue
        weight = numpy_helper.to_array(held[node.input[1]])
        name = f"{node.input[1]}_matmul"
        turned = weight.T.copy() if settings.get("transB") else weight
        graph.graph.initializer.append(numpy_helper.from_array(turned, name))
        product = f"{node.output[0]}_product" if len(node.input) > 2 else node.output[0]
        nodes.append(
            helper.make_node("MatMul", [node.input[0], name], [product], name=f"{node.name}_matmul")
        )
        if len(node.input) > 2:
            nodes.append(
                helper.make_node(
                    "Add", [product, node.input[2]], [node.output[0]], name=f"{node.name}_add"
                )
            )
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    unused = [each for each in graph.graph.initializer if each.name not in used]
    for each in unused:
        graph.graph.initializer.remove(each)


def _is_one_of(array: np.ndarray[Any, Any], weights: list[np.ndarray[Any, Any]]) -> bool:
    return any(np.array_equal(array, w) or np.array_equal(array, w.T) for w in weights)


def _parity(model: nn.Module, path: Path, inputs: Mapping[str, Tensor], tolerance: float) -> float:
    """The largest difference of the file's logits from the model's, as a share of the largest."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtra("onnxruntime", "onnx", "checking the exported file") from error
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (answer, *_) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    except Exception as error:
        raise ExportError(f"ONNX Runtime can't run the exported file: {error}") from error
    training = model.training
    with torch.no_grad():
        output = model.eval()(**inputs)
    model.train(training)
    truth = (output if isinstance(output, Tensor) else output.logits).float().numpy()
    difference = float(np.abs(answer - truth).max() / max(np.abs(truth).max(), 1e-6))
    if not difference <= tolerance:
        raise ExportError(
            f"The exported file answers otherwise than the model: its logits differ by up to "
            f"{difference:.1%} of the largest (allowed {tolerance:.1%}); nothing was written."
        )
    return difference


def _describe(path: Path, facts: Mapping[str, Any]) -> None:
    """Write facts about the model into the file's metadata."""
    import onnx

    graph = onnx.load(path)
    onnx.helper.set_model_props(
        graph,
        {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()},
    )
    onnx.save(graph, path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's and the quantizer's notes, which are not for attar's user."""
    noisy = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "root", "")]
    levels = [logger.level for logger in noisy]
    for logger in noisy:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(noisy, levels, strict=True):
            logger.setLevel(level)
