"""A model as an OpenVINO file pair (.xml and .bin), checked against the model before it counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from attar.errors import ExportError
from attar.export import parity
from attar.export.onnx_file import drawn
from attar.export.writing import check_libraries, check_trained, ended, quiet, told, written
from attar.types import Example

PRECISE = {"INFERENCE_PRECISION_HINT": "f32"}
"""Without it OpenVINO rounds to bfloat16 on processors that have it, and to nothing on others."""

FUSED = {"Add", "Relu", "Clamp", "Convolution", "GroupConvolution"}
"""Behind these OpenVINO computes the rounding to 8 bits within the layer, and computes it right.

Behind others (2026.4 met with `Concat` of `ReduceMax`, and with `Transpose`) it moves the rounding
before them and then answers wrong.
"""

HALVES = (torch.float16, torch.bfloat16)
"""Formats in which a weight is kept where each of its numbers is one of theirs."""

LARGE = 256
"""Numbers of a constant from which on half of its bytes are worth an operator more."""

ADVICE = (
    "Put quantize.int8_dynamic in place of the step that quantizes: its weights are what OpenVINO "
    "reads best; or leave the last layers out of it by `exclude`."
)


def openvino(
    model: nn.Module, example: Example, path: str | Path, facts: Mapping[str, Any] | None = None
) -> Path:
    """Write a model as OpenVINO's .xml with its .bin, any batch and length, and check it there.

    The graph is the one of `export.onnx`, in operators that OpenVINO computes fast: layers of
    int8_dynamic keep their integer weights, and what they read is rounded to 8 bits by OpenVINO
    itself on processors that gain by it, else not at all; rounding to fixed ranges is fused where
    that is done right, and spelled out elsewhere; weights of 16 bits stay so. It is run in
    OpenVINO on the example, and on more rows of another length, and must answer as the model
    does: logits within 0.1 % of the largest for float, 5 % for int8. What was found is written
    into the file's `rt_info` below `attar`, as `parity`, together with the facts.

    example: gives the model's named inputs: tokens (rows, length), of any length in the file; or
        pictures and other numbers (rows, ...), of the same size in the file
    facts: strings, and what JSON can say
    Returns the path of the .xml. Raises ExportError where the file can't be made or answers
    otherwise; then nothing is written.
    """
    check_libraries("openvino")
    check_trained(model, "openvino")
    twin, inputs = parity.twin(model, example)
    graph = drawn(twin, inputs)
    _keep_weights_(graph.graph)
    network = _read(graph.SerializeToString(), twin)
    asked = [inputs, parity.unlike(inputs)]
    found = parity.difference(twin, _compiled(network), asked, "OpenVINO")
    parity.check_answers(found, twin, ADVICE)
    _note_(network, {"producer": "attar", "parity": f"{found:.2e}", **(facts or {})})
    return _saved(network, ended(path, ".xml"))


def noted(path: Path, facts: Mapping[str, Any]) -> Path:
    """Add facts to the metadata of a file that is written already, such as its measured score.

    What it said under the same names is replaced; the graph and its weights stay as they are.
    facts: strings, and what JSON can say
    Raises ExportError where the file can't be written; then it stays as it was.
    """
    network = _opened().read_model(path)
    _note_(network, facts)
    return _saved(network, path)


def _note_(network: Any, facts: Mapping[str, Any]) -> None:
    for name, fact in told(facts).items():
        network.set_rt_info(fact, ["attar", name])


def _opened() -> Any:
    import openvino

    opened = openvino.Core()
    # A file that is mapped into memory could not be replaced on every system.
    opened.set_property({"ENABLE_MMAP": False})
    return opened


def _read(graph: bytes, model: nn.Module) -> Any:
    """OpenVINO's network of an ONNX graph."""
    try:
        # `convert_model` would do too, but it may report its use to Intel.
        network = _opened().read_model(graph)
        for node in network.get_ordered_ops():
            if node.get_type_name() == "FakeQuantize":
                _spell_out_(node)
            if node.get_type_name() == "Constant":
                _halve_(node)
        return network
    except RuntimeError as error:
        raise ExportError(
            f"{type(model).__name__} can't be written for OpenVINO ({parity.reason(error)})."
        ) from error


def _keep_weights_(graph: Any) -> None:
    """Put products with dequantized weights in the place of ONNX's dynamic int8 products.

    Those OpenVINO takes apart into operators that are slower than float. Of weights that are
    dequantized before a product it makes one operator, which rounds what comes in by itself.
    """
    from onnx import helper

    makes = {output: node for node in graph.node for output in node.output}
    reads = {taken: node for node in graph.node for taken in node.input}
    for product in [node for node in graph.node if node.op_type == "MatMulInteger"]:
        rounded, weight, _ = product.input
        scaled = reads[reads[product.output[0]].output[0]]
        # Product, cast, times the steps of both: of the weights, and of what came in.
        steps = next(makes[each] for each in scaled.input if makes[each].op_type == "Mul")
        scale = next(each for each in steps.input if each not in makes[rounded].output)
        plain = f"{product.output[0]}_weight"
        place = list(graph.node).index(scaled)
        multiply = helper.make_node("MatMul", [makes[rounded].input[0], plain], scaled.output)
        graph.node[place].CopyFrom(multiply)
        dequantize = helper.make_node("DequantizeLinear", [weight, scale], [plain], axis=1)
        graph.node.insert(place, dequantize)


def _spell_out_(node: Any) -> None:
    """The same rounding in plain operators, unless OpenVINO is to compute it within a layer."""
    from openvino import opset13 as operators

    if node.input_value(0).get_node().get_type_name() in FUSED:
        return
    low, high, first, last = (float(node.input_value(n).get_node().data) for n in range(1, 5))
    step = (high - low) / (node.get_attributes()["levels"] - 1)
    steps = operators.round(operators.divide(node.input_value(0), np.float32(step)), "half_to_even")
    zero = np.float32(first - round(low / step))
    grid = operators.clamp(operators.add(steps, zero), first, last)
    node.output(0).replace(grid.output(0))


def _halve_(node: Any) -> None:
    """Keep a float constant in 16 bits where that changes none of its numbers."""
    import openvino
    from openvino import opset13 as operators

    if node.get_element_type() != openvino.Type.f32 or np.size(node.data) < LARGE:
        return
    values = torch.tensor(node.data)
    for dtype in HALVES:
        if torch.equal(values.to(dtype).float(), values):
            bits = values.to(dtype).view(torch.int16).numpy()
            kind = openvino.Type.f16 if dtype == torch.float16 else openvino.Type.bf16
            tensor = openvino.Tensor(bits, values.shape, kind)
            kept = openvino.op.Constant(tensor, shared_memory=False)
            node.output(0).replace(operators.convert(kept, "f32").output(0))
            return


def _compiled(network: Any) -> Callable[[parity.Inputs], Any]:
    """What answers in OpenVINO."""

    def answer(inputs: parity.Inputs) -> Any:
        compiled = _opened().compile_model(network, "CPU", PRECISE)
        return compiled({name: each.numpy() for name, each in inputs.items()})[0]

    return answer


def _saved(network: Any, path: Path) -> Path:
    """Put both files in their places, the weights first: without them the .xml says nothing."""
    import openvino

    with TemporaryDirectory() as folder, quiet():
        made = Path(folder) / "model.xml"
        openvino.save_model(network, made, compress_to_fp16=False)
        weights, graph = made.with_suffix(".bin").read_bytes(), made.read_bytes()
    written(weights, path.with_suffix(".bin"))
    return written(graph, path)
