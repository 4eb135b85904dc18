"""What a model costs: parameters, multiplications, bytes, milliseconds."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from attar.errors import AttarError, ModelError
from attar.measure.floating import floating, weights
from attar.types import Count, Example, Positive

Key = TypeVar("Key", bound=Hashable)

WARM_UP = 10
"""Answers before the clock starts: allocations, caches, and what a runtime decides at first use."""

ROUND = 10
"""Answers of one model in a row, before it is another's turn."""


LEVEL = 6
"""How hard DEFLATE tries: what zip, gzip and web servers take unless they are told otherwise."""

CHUNK = 1 << 20
"""Bytes of a file that are read at a time."""


def parameters(model: nn.Module) -> int:
    """The number of stored weights, quantized ones (kept as integer buffers) included.

    Of a quantized layer it is those of the float layer it stands for, however they are packed:
    scales, zero points and calibrated ranges are no weights.
    """
    return sum(tensor.numel() for tensor in weights(model))


def nonzero(model: nn.Module) -> int:
    """The number of stored weights that are not zero; a quantized one counts by its value."""
    return sum(int(tensor.count_nonzero()) for tensor in weights(model))


@torch.no_grad()
def macs(model: nn.Module, example: Example) -> int:
    """Multiply-accumulates of one answer to the example: products of matrices, convolutions.

    Attention and recurrent layers are counted by the products they are made of. Element-wise work
    and table look-ups are not counted, as in the published tables. Quantized layers multiply as
    often as the float layers they stand for. Single weights that are zero are multiplied like all
    others and do NOT lower the count: rows, heads, channels and layers that are gone do.
    """
    training = model.training
    try:
        with _unfused(), FlopCounterMode(display=False, custom_mapping=_ALSO) as counter:
            floating(model).eval()(**example(model))
    finally:
        model.train(training)
    return int(counter.get_total_flops()) // 2


def _product(left: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    """Twice the multiplications of what torch's counter leaves out, from the operands' shapes."""
    return 2 * int(np.prod(out_shape)) * int(left[-1])


_ALSO = {torch.ops.aten.mv: _product, torch.ops.aten._int_mm: _product}


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
        return sum(t.numel() * t.element_size() for t in _stored(model))
    return sum(file.stat().st_size for file in _files(path))


def zipped(model: nn.Module, path: Path | None = None) -> int:
    """Bytes of the same after DEFLATE (zip, gzip): what a download costs.

    It is here that single weights set to zero are worth something.
    Raises ModelError where there are no weights.
    """
    if path is None:
        return _deflated(_bytes(tensor) for tensor in _stored(model))
    return sum(_deflated(_pieces(file)) for file in _files(path))


def _stored(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _files(path: Path) -> list[Path]:
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if path.is_file() and path.suffix == ".xml":  # OpenVINO's graph, whose weights lie beside it
        files += [path.with_suffix(".bin")]
    if not files:
        raise ModelError(f"There are no weights at {path}.")
    return files


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().data


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while piece := opened.read(CHUNK):
            yield piece


def _deflated(pieces: Iterable[bytes | memoryview]) -> int:
    packing = zlib.compressobj(LEVEL)
    return sum(len(packing.compress(piece)) for piece in pieces) + len(packing.flush())


def latency(
    answers: Mapping[Key, Callable[[], object]],
    *,
    threads: Count = 1,
    batch: Count = 1,
    tokens: list[int] | None = None,
    seconds: Positive = 1.5,
) -> dict[Key, dict[str, float]]:
    """Milliseconds of one answer, p50 and p95, of each of several models.

    The models take turns, A B C A B C, so that a machine whose speed drifts is fair to all.

    answers: by name, what makes one answer
    threads: threads of the arithmetic (of PyTorch here; a file's session is opened with as many)
    batch: rows of one answer
    tokens: lengths to time, as in [16, 64], where a model reads tokens: the example repeated or
        cut to so many; left out, the example as long as it is
    seconds: time spent on each model, about
    """
    if threads < 1 or batch < 1 or seconds <= 0:
        raise AttarError("latency needs threads and batch of at least 1 and seconds above 0.")
    if tokens is not None and (not tokens or min(tokens) < 1 or len({*tokens}) < len(tokens)):
        raise AttarError(f"latency's tokens are lengths of at least 1, each once, not {tokens}.")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rounds = {name: _rounds(answer, seconds) for name, answer in answers.items()}
        times: dict[Key, list[float]] = {name: [] for name in answers}
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
