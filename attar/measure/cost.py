"""What a model costs: parameters, multiplications, bytes, milliseconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from attar.errors import AttarError
from attar.types import Example

WARM_UP = 10
"""Answers before the clock starts: allocations, caches, and what a runtime decides at first use."""


def parameters(model: nn.Module) -> int:
    """The number of stored weights, quantized ones (kept as integer buffers) included."""
    shared = {id(tensor): tensor for tensor in model.parameters()}
    quantized = [t for t in model.buffers() if t.dtype in (torch.int8, torch.uint8)]
    return sum(tensor.numel() for tensor in (*shared.values(), *quantized))


@torch.no_grad()
def macs(model: nn.Module, example: Example) -> int:
    """Multiply-accumulates of one answer to the example: matrix products, convolutions, attention.

    Element-wise work and table look-ups are not counted, as in the published tables. Recurrent
    layers, which torch runs as one operator that its counter does not see, are counted by
    formula: gates x hidden x (input + hidden) for every step and direction.
    """
    recurrent = 0

    def count(module: nn.Module, inputs: tuple[Any, ...], _output: Any) -> None:
        nonlocal recurrent
        assert isinstance(module, nn.RNNBase)
        rows = inputs[0].data.shape[0] if not isinstance(inputs[0], Tensor) else None
        steps = rows if rows is not None else inputs[0].shape[:-1].numel()
        weights = [w for name, w in module.named_parameters() if name.startswith("weight")]
        recurrent += steps * sum(weight.numel() for weight in weights)

    handles = [
        m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.RNNBase)
    ]
    training = model.training
    try:
        with FlopCounterMode(display=False) as counter:
            model.eval()(**example(model))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return counter.get_total_flops() // 2 + recurrent


def size(model: nn.Module, path: Path | None = None) -> int:
    """Bytes on the device: of the file (or the weights in a folder), else of the weights alone."""
    if path is None:
        tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    files = [path] if path.is_file() else [*path.glob("*.safetensors"), *path.glob("*.json")]
    return sum(file.stat().st_size for file in files)


def latency(
    answers: Mapping[str, Callable[[], object]],
    *,
    threads: int = 1,
    batch: int = 1,
    seconds: float = 1.5,
) -> dict[str, dict[str, float]]:
    """Milliseconds of one answer, p50 and p95, of each of several models.

    The models take turns, A B C A B C, so that a machine whose speed drifts is fair to all.

    answers: by name, what makes one answer
    threads: threads of the arithmetic (of PyTorch here; a file's session is opened with as many)
    batch: rows of one answer
    seconds: time spent on each model, about
    """
    if threads < 1 or batch < 1 or seconds <= 0:
        raise AttarError("latency needs threads and batch of at least 1 and seconds above 0.")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rounds = {name: _rounds(answer, seconds) for name, answer in answers.items()}
        times: dict[str, list[float]] = {name: [] for name in answers}
        for turn in range(max(rounds.values(), default=0)):
            for name, answer in answers.items():
                if turn < rounds[name]:
                    times[name] += [_clock(answer) for _ in range(10)]
    finally:
        torch.set_num_threads(before)
    return {
        name: {"p50": float(np.percentile(found, 50)), "p95": float(np.percentile(found, 95))}
        for name, found in times.items()
    }


def _rounds(answer: Callable[[], object], seconds: float) -> int:
    """Warm up, and tell how many rounds of ten answers fit into the time; at least three."""
    warm = [_clock(answer) for _ in range(WARM_UP)]
    return int(min(50, max(3, seconds * 1000 / (10 * float(np.median(warm))))))


def _clock(answer: Callable[[], object]) -> float:
    start = time.perf_counter()
    with torch.inference_mode():
        answer()
    return (time.perf_counter() - start) * 1000
