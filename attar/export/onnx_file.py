"""A model as an ONNX file for ONNX Runtime, checked against the model before it counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attar.errors import ExportError
from attar.export import parity
from attar.export.remembering import Remembering, in_halves
from attar.export.writing import check_libraries, check_trained, ended, quiet, told, written
from attar.types import Example

LIMIT = 2_000_000_000
"""Bytes of weights that one file can hold, about: the format's own limit."""

OPSETS = range(18, 24)
"""The operator sets that torch writes."""

OPSET = 20
"""What ONNX Runtime reads from its version 1.17 on."""

ADVICE = "Where a step has reduce_range, turn it on: not every processor can do without."


def onnx(
    model: nn.Module,
    example: Example,
    path: str | Path,
    facts: Mapping[str, Any] | None = None,
    *,
    opset: int = OPSET,
    cache: bool = False,
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
    cache: of a causal model of `transformers`, give each layer's keys and values too and take those
        of earlier tokens, so that a text is written a token at a time without reading it anew
    Raises ExportError where the file can't be made or answers otherwise; then nothing is written.
    """
    check_libraries("onnx")
    twin, inputs = parity.twin(model, example)
    if cache:
        whole = Remembering(twin)
        graph = _remembering(whole, opset)
        answer = in_halves(whole, _session(graph.SerializeToString()))
    else:
        graph = drawn(twin, inputs, opset)
        run = _session(graph.SerializeToString())

        def answer(inputs: parity.Inputs) -> Any:
            return run(inputs)[0]

    asked = [inputs, parity.unlike(inputs)]
    found = parity.difference(twin, answer, asked, "ONNX Runtime")
    parity.check_answers(found, twin, ADVICE)
    _note_(graph, {"producer": "attar", "parity": f"{found:.2e}", **(facts or {})})
    return written(graph.SerializeToString(), ended(path, ".onnx"))


def noted(path: Path, facts: Mapping[str, Any]) -> Path:
    """Add facts to the metadata of a file that is written already, such as its measured score.

    What it said under the same names is replaced; the graph and its weights stay as they are.
    facts: strings, and what JSON can say
    Raises ExportError where the file can't be written; then it stays as it was.
    """
    import onnx

    graph = onnx.load(path)
    _note_(graph, facts)
    return written(graph.SerializeToString(), path)


def _note_(graph: Any, facts: Mapping[str, Any]) -> None:
    known = {entry.key: entry.value for entry in graph.metadata_props}
    del graph.metadata_props[:]
    for name, fact in (known | told(facts)).items():
        graph.metadata_props.add(key=name, value=fact)


def _check_request(model: nn.Module, opset: int) -> None:
    if opset not in OPSETS:
        raise ExportError(f"opset is {opset}; it can be {OPSETS[0]} to {OPSETS[-1]}.")
    check_trained(model, "onnx")
    size = sum(each.numel() * each.element_size() for each in model.state_dict().values())
    if size > LIMIT:
        raise ExportError(
            f"{type(model).__name__} has {size / 1e9:.1f} GB of weights, and one ONNX file holds "
            f"{LIMIT / 1e9:.0f} GB; export a smaller or a quantized model."
        )


def drawn(model: nn.Module, inputs: Mapping[str, Tensor], opset: int = OPSET) -> Any:
    """The model as an ONNX graph (a `ModelProto`), batch and length free.

    Raises ExportError where it can't be drawn, and where a file could not hold it.
    """
    _check_request(model, opset)
    names = list(inputs)
    # Two rows of two tokens at least: a dimension of 1 would be taken for a constant.
    traced = tuple(
        each.repeat(2, *[2 if parity.has_length(each) and n == 1 else 1 for n in each.shape[1:]])
        for each in inputs.values()
    )
    free = [(0, 1) if parity.has_length(each) else (0,) for each in traced]
    return _graph(parity.Named(model, names), traced, names, ["logits"], free, opset)


def _remembering(model: Remembering, opset: int) -> Any:
    """The graph of a model that takes what it remembers; batch, new and earlier tokens free."""
    _check_request(model.model, opset)
    traced = model.example()
    free = [(0, 2) if each.dim() == 4 else (0, 1) for each in traced]
    return _graph(model, traced, model.inputs, model.outputs, free, opset)


def _graph(
    module: parity.Named | Remembering,
    traced: tuple[Tensor, ...],
    names: list[str],
    gives: list[str],
    free: Sequence[Sequence[int]],
    opset: int,
) -> Any:
    """What a module does with some inputs, as a graph; free: dimensions of any size, by input."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    sizes = tuple(dict.fromkeys(each, torch.export.Dim.DYNAMIC) for each in free)
    try:
        with quiet():
            program = torch.onnx.export(
                module.eval(),
                traced,
                input_names=names,
                output_names=gives,
                dynamic_shapes={"inputs": sizes},
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
            f"{type(module.model).__name__} can't be written as ONNX ({parity.reason(error)})."
        ) from error


def _session(file: bytes) -> Callable[[parity.Inputs], Any]:
    """What runs in ONNX Runtime: gives all outputs."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    providers = ["CPUExecutionProvider"]

    def answer(inputs: parity.Inputs) -> Any:
        session = onnxruntime.InferenceSession(file, settings, providers=providers)
        return session.run(None, {name: each.numpy() for name, each in inputs.items()})

    return answer
