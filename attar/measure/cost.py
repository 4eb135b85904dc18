"""What a model costs: parameters, multiplications, bytes, milliseconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from attar.errors import AttarError, ModelError
from attar.types import Count, Example, Packed, Positive

WARM_UP = 10
"""Answers before the clock starts: allocations, caches, and what a runtime decides at first use."""

ROUND = 10
"""Answers of one model in a row, before it is another's turn."""


def parameters(model: nn.Module) -> int:
    """The number of stored weights, quantized ones (kept as integer buffers) included."""
    packed = [module for module in model.modules() if isinstance(module, Packed)]
    counted = {id(buffer) for module in packed for buffer in module.buffers()}
    # A lone integer is no weight: it is what zero became.
    quantized = [
        t
        for t in model.buffers()
        if t.dtype in (torch.int8, torch.uint8) and t.dim() and id(t) not in counted
    ]
    stored = sum(tensor.numel() for tensor in (*model.parameters(), *quantized))
    return stored + sum(module.weights for module in packed)


@torch.no_grad()
def macs(model: nn.Module, example: Example) -> int:
    """Multiply-accumulates of one answer to the example: products of matrices, convolutions.

    Attention and recurrent layers are counted by the products they are made of. Element-wise work
    and table look-ups are not counted, as in the published tables.
    """
    training = model.training
    try:
        with _unfused(), FlopCounterMode(display=False) as counter:
            model.eval()(**example(model))
    finally:
        model.train(training)
    return int(counter.get_total_flops()) // 2


@contextmanager
def _unfused() -> Iterator[None]:
    """torch in its plainest operators, since its counter sees nothing inside of fused ones."""
    backends: tuple[Any, ...] = (torch.backends.mkldnn, torch.backends.cudnn)
    before, fast = [each.enabled for each in backends], torch.backends.mha.get_fastpath_enabled()
    try:
        for each in backends:
            each.enabled = False
        torch.backends.mha.set_fastpath_enabled(False)
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for each, enabled in zip(backends, before, strict=True):
            each.enabled = enabled
        torch.backends.mha.set_fastpath_enabled(fast)


def size(model: nn.Module, path: Path | None = None) -> int:
    """Bytes of the file or of the weights in the folder at `path`; without one, of the weights.

    A tokenizer is not counted, wherever it lies. Raises ModelError where there are no weights.
    """
    if path is None:
        return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    files = [path] if path.is_file() else list(path.glob("*.safetensors"))
    if not files:
        raise ModelError(f"There are no weights at {path}.")
    return sum(file.stat().st_size for file in files)


def latency(
    answers: Mapping[str, Callable[[], object]],
    *,
    threads: Count = 1,
    batch: Count = 1,
    seconds: Positive = 1.5,
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
        turns = max(rounds.values(), default=0)
        for turn in range(turns):
            for name, answer in answers.items():
                # The few rounds of a slow model are spread over the turns of the others.
                if (turn + 1) * rounds[name] // turns > turn * rounds[name] // turns:
                    times[name] += [_clock(answer) for _ in range(ROUND)]
    finally:
        torch.set_num_threads(before)
    return {
        name: {"p50": float(np.percentile(found, 50)), "p95": float(np.percentile(found, 95))}
        for name, found in times.items()
    }


def _rounds(answer: Callable[[], object], seconds: float) -> int:
    """Warm up, and tell how many rounds fit into the time; from 3 to 50."""
    typical = max(float(np.median([_clock(answer) for _ in range(WARM_UP)])), 1e-3)
    return int(min(50, max(3, seconds * 1000 / (ROUND * typical))))


def _clock(answer: Callable[[], object]) -> float:
    start = time.perf_counter()
    with torch.inference_mode():
        answer()
    return (time.perf_counter() - start) * 1000
