"""Several models in one table, each measured by the same functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from attar.measure.cost import latency, macs, parameters, size
from attar.report import Report, Row, verdict
from attar.types import Example, Quantized


class Judged(Protocol):
    """What of a task is needed to measure models."""

    @property
    def example(self) -> Example: ...

    def score(self, model: nn.Module, part: str = "validation") -> dict[str, float]: ...


def compare(task: Judged, part: str = "test", **models: nn.Module) -> Report:
    """Score, parameters, MACs, bytes and latency (batch 1, 1 thread) of models, as a report."""
    times = latency({name: answer(model, task.example) for name, model in models.items()})
    rows = tuple(
        row(
            name,
            model,
            task.score(model, part),
            task.example,
            latency_ms=None if emulated(model) else times[name],
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

    wanted: which of parameters, macs and size to count
    path: the file it is, where it is one
    """
    counted: dict[str, Any] = {}
    if "parameters" in wanted:
        counted["parameters"] = parameters(model)
    if "macs" in wanted:
        counted["macs"] = macs(model, example)
    if "size" in wanted:
        counted["size_bytes"] = size(model, path)
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
    version = torch.__version__.partition("+")[0]
    if emulated(model):
        return f"PyTorch {version}, int8 emulated"
    return f"PyTorch {version} fp32"


def emulated(model: nn.Module) -> bool:
    """Whether some of the model is quantized, which PyTorch only imitates, slowly."""
    return any(isinstance(module, Quantized) for module in model.modules())
