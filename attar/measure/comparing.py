"""Several models in one table, each measured by the same functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from attar.measure.cost import latency, macs, nonzero, parameters, size, zipped
from attar.report import Report, Row, verdict
from attar.types import Example, Quantized

FORMATS = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float64: "fp64"}
"""How number formats are called, beside fp32."""


class Judged(Protocol):
    """What of a task is needed to measure models."""

    @property
    def example(self) -> Example: ...

    def score(self, model: nn.Module, part: str = "validation") -> dict[str, float]: ...


@runtime_checkable
class Foreign(Protocol):
    """A network that is a file, run by another runtime, which PyTorch can't see into."""

    runtime: str
    path: Path


def compare(task: Judged, part: str = "test", **models: nn.Module) -> Report:
    """Score, parameters, MACs, bytes and latency (batch 1, 1 thread) of models, as a report.

    A quantized model has no latency here: PyTorch only imitates it. Its exported file has.
    """
    times = latency(
        {name: answer(model, task.example) for name, model in models.items() if not emulated(model)}
    )
    rows = tuple(
        row(
            name,
            model,
            task.score(model, part),
            task.example,
            latency_ms=times.get(name),
        )
        for name, model in models.items()
    )
    environment = {"torch": torch.__version__, "threads": 1, "batch": 1}
    return Report({}, environment, rows, {"seconds": {}}, verdict=verdict(rows, threads=1))


def row(
    name: str,
    model: nn.Module,
    metrics: Mapping[str, float],
    example: Example,
    wanted: Sequence[str] = ("parameters", "macs", "size"),
    path: Path | None = None,
    **given: Any,
) -> Row:
    """The row of one model: what was scored, what is counted here, and what else is given.

    wanted: which of parameters, nonzero, macs, size and zipped to count
    path: the file it is, where it is one
    given: further figures of the row, or others in place of those above
    """
    counted: dict[str, Any] = {}
    if isinstance(model, Foreign):
        path = path or model.path
    else:
        counted["parameters"] = parameters(model) if "parameters" in wanted else None
        counted["nonzero"] = nonzero(model) if "nonzero" in wanted else None
        counted["macs"] = macs(model, example) if "macs" in wanted else None
    if "size" in wanted:
        counted["size_bytes"] = size(model, path)
    if "zipped" in wanted:
        counted["zipped_bytes"] = zipped(model, path)
    return Row(
        **{
            "name": name,
            "runtime": runtime(model),
            "score": metrics.get("score"),
            "metrics": {key: value for key, value in metrics.items() if key != "score"},
            **counted,
            **given,
        }
    )


def answer(model: nn.Module, example: Example) -> partial[Any]:
    """What makes one answer of a model to the example, its inputs ready."""
    return partial(model.eval(), **example(model))


def runtime(model: nn.Module) -> str:
    """What runs this model, as a row names it."""
    if isinstance(model, Foreign):
        return model.runtime
    version = torch.__version__.partition("+")[0]
    if widths := _widths(model):
        return f"PyTorch {version}, {' and '.join(f'int{bits}' for bits in widths)} emulated"
    return f"PyTorch {version} {_format(model)}"


def emulated(model: nn.Module) -> bool:
    """Whether some of the model is quantized, which PyTorch only imitates, slowly."""
    return bool(_widths(model))


def _widths(model: nn.Module) -> list[int]:
    """The bits that quantized layers keep a weight in, fewest first."""
    return sorted({module.bits for module in model.modules() if isinstance(module, Quantized)})


def _format(model: nn.Module) -> str:
    """The number format of most of the weights."""
    found = Counter[torch.dtype]()
    for weight in model.parameters():
        found[weight.dtype] += weight.numel()
    return FORMATS.get(max(found, key=found.__getitem__, default=torch.float32), "fp32")
