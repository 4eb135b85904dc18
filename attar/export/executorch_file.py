"""A model as an ExecuTorch program (.pte), checked against the model before it counts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attar.errors import ExportError
from attar.export import parity
from attar.export.writing import check_libraries, check_trained, ended, quiet, written
from attar.types import Count, Example, Quantized

ROOM = 4096
"""Letters kept free behind the facts for what is known later, as a program can't grow."""

UNROLLED = (nn.LSTM, nn.GRU, nn.RNN)
"""What torch traces token by token, so that the number of tokens would be fixed."""


def executorch(
    model: nn.Module,
    example: Example,
    path: str | Path,
    facts: Mapping[str, Any] | None = None,
    *,
    tokens: Count | None = None,
) -> Path:
    """Write a float model as an ExecuTorch program for phones and other devices, and check it.

    It goes through torch.export and is lowered to XNNPACK, as far as that computes it, else to
    ExecuTorch's portable operators. The program takes one row at a time, of any length up to a
    largest. It is run in ExecuTorch's Python runtime on the example, shorter ones, and the longest,
    and must answer as the model does: logits within 0.1 % of the largest. What was found is
    written down as `parity` together with the facts and the names of the inputs in their order: as
    JSON, which the program's method `facts` answers. Measured with ExecuTorch 1.5.1 and torch 2.13.

    example: gives the model's named inputs: tokens (rows, length), or pictures and other numbers
        (rows, ...), of the same size in the file
    facts: strings, and what JSON can say; `max_length` among them is the largest length
    tokens: the largest length, where it is another one; memory for it is planned ahead
    Raises ExportError for quantized and recurrent layers, and where the file can't be made or
    answers otherwise; then nothing is written.
    """
    check_libraries("executorch")
    check_kind(model)
    twin, inputs = parity.twin(model, example)
    inputs = {name: each[:1] for name, each in inputs.items()}
    longest = int(tokens or (facts or {}).get("max_length") or _length(inputs))
    if longest < _length(inputs):
        raise ExportError(f"tokens is {longest}, and the example has {_length(inputs)} already.")
    note = {"producer": "attar", "inputs": list(inputs), **(facts or {})}
    with quiet(), _hushed():
        file = _lowered(twin, inputs, longest, json.dumps(note | {"parity": "0.00e+00"}))
        asked = [inputs, parity.unlike(inputs), _stretched(inputs, longest)]
        found = parity.difference(twin, _program(file), asked, "ExecuTorch")
    parity.check_answers(found, twin, "")
    return written(_noted(file, {"parity": f"{found:.2e}"}), ended(path, ".pte"))


def noted(path: Path, facts: Mapping[str, Any]) -> Path:
    """Add facts to those of a file that is written already, such as its measured score.

    What it said under the same names is replaced; the rest of the file stays as it is.
    facts: what JSON can say
    Raises ExportError where the file can't be written, or has no room for so much.
    """
    return written(_noted(path.read_bytes(), facts), path)


def check_kind(model: nn.Module) -> None:
    """Raises ExportError for layers that no program can be made of."""
    check_trained(model, "executorch")
    if any(isinstance(module, Quantized) for module in model.modules()):
        raise ExportError(
            "ExecuTorch has no form for these quantized weights; put export.executorch before the "
            "step that quantizes, or use export.onnx or export.openvino."
        )
    if recurrent := [type(each).__name__ for each in model.modules() if type(each) in UNROLLED]:
        raise ExportError(
            f"An {recurrent[0]} would be unrolled to one length for ExecuTorch; use export.onnx or "
            "export.openvino, or a student without recurrent layers."
        )


def _length(inputs: parity.Inputs) -> int:
    """The tokens of an example; 0 where it is of no tokens."""
    return max((each.shape[1] for each in inputs.values() if parity.has_length(each)), default=0)


def _stretched(inputs: parity.Inputs, length: int) -> dict[str, Tensor]:
    """The same inputs repeated to so many tokens."""
    return {
        name: each.repeat(1, -(-length // each.shape[1]))[:, :length]
        if parity.has_length(each)
        else each
        for name, each in inputs.items()
    }


def _lowered(model: nn.Module, inputs: parity.Inputs, longest: int, facts: str) -> bytes:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    # A length of 1 would be taken for a constant, and no dimension may have a single size.
    tokens = torch.export.Dim("tokens", min=1, max=max(2, longest))
    traced = _stretched(inputs, max(2, _length(inputs)))
    free = tuple({1: tokens} if parity.has_length(each) else None for each in traced.values())
    try:
        program = torch.export.export(
            parity.Named(model, list(traced)).eval(),
            tuple(traced.values()),
            dynamic_shapes={"inputs": free},
        )
        lowered = to_edge_transform_and_lower(
            program,
            partitioner=[XnnpackPartitioner()],
            constant_methods={"facts": facts + " " * ROOM},
        )
        return bytes(lowered.to_executorch().buffer)
    except Exception as error:
        raise ExportError(
            f"{type(model).__name__} can't be written for ExecuTorch ({parity.reason(error)})."
        ) from error


def _noted(file: bytes, facts: Mapping[str, Any]) -> bytes:
    """The same file with other facts in their place."""
    from executorch.runtime import Runtime

    (before,) = Runtime.get().load_program(file).load_method("facts").execute([])
    after = json.dumps(json.loads(before) | dict(facts)).ljust(len(before))
    if len(after) > len(before):
        raise ExportError(
            f"The file has room for {len(before)} letters of facts, not {len(after)}."
        )
    return file.replace(before.encode(), after.encode())


def _program(file: bytes) -> Callable[[parity.Inputs], Any]:
    """What answers in ExecuTorch, row by row."""
    from executorch.runtime import Runtime

    def answer(inputs: parity.Inputs) -> Any:
        program = Runtime.get().load_program(file)
        forward = program.load_method("forward")
        rows = zip(*(each.split(1) for each in inputs.values()), strict=True)
        answers = [forward.execute([each.contiguous() for each in row])[0].clone() for row in rows]
        return torch.cat(answers).numpy()

    return answer


@contextmanager
def _hushed() -> Iterator[None]:
    """Without what native code tells of the processor, past Python."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
