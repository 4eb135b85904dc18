"""What int8 with fixed ranges gains in ONNX Runtime: the same network as a float and an int8 file.

    python benchmarks/int8_speed.py [--blocks 3] [--width 16] [--side 32] [--threads 1]

The weights are random, so only speed and size say something. Printed are milliseconds of one
picture, p50 and p95, taken in turns (A B A B ...), and which operators the runtime fused. What the
processor can do decides: with VNNI int8 is about three times as fast, with AVX2 alone less.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import onnx
import onnxruntime
import torch
from residual import Residual
from torch import Tensor, nn

from attar import export, measure
from attar.compress import quantize


def main() -> None:
    """Print times, ratio, sizes and operators."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in {"blocks": 3, "width": 16, "side": 32, "threads": 1}.items():
        options.add_argument(f"--{name}", type=int, default=default)
    given = options.parse_args()
    torch.manual_seed(0)
    model = Residual(given.blocks, width=given.width).eval()
    picture = {"pixel_values": torch.randn(1, 3, given.side, given.side)}

    def example(_model: nn.Module) -> Mapping[str, Tensor]:
        return picture

    def calibration(_model: nn.Module) -> Iterator[Mapping[str, Tensor]]:
        yield from (picture for _ in range(2))

    small = quantize.int8_static(model, example, calibration)
    with tempfile.TemporaryDirectory() as folder:
        files = {
            "float": export.onnx(model, example, Path(folder) / "float"),
            "int8": export.onnx(small, example, Path(folder) / "int8"),
        }
        answers = {name: answering(file, picture, given.threads) for name, file in files.items()}
        times = measure.latency(answers, threads=given.threads, seconds=5)
        for name, file in files.items():
            found = times[name]
            print(f"{name:6} {file.stat().st_size / 1e6:6.2f} MB  ", end="")
            print(f"p50 {found['p50']:.3f} ms  p95 {found['p95']:.3f} ms")
        print(f"int8 is {times['float']['p50'] / times['int8']['p50']:.2f} times as fast")
        print(dict(fused(files["int8"], Path(folder))))


def answering(file: Path, inputs: Mapping[str, Tensor], threads: int) -> Callable[[], object]:
    """What makes one answer of a file."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
    return partial(session.run, None, {name: each.numpy() for name, each in inputs.items()})


def fused(file: Path, folder: Path) -> Counter[str]:
    """The operators that the runtime made of a file."""
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath = str(folder / "optimized.onnx")
    settings.log_severity_level = 3
    onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
    graph = onnx.load(folder / "optimized.onnx").graph
    return Counter(node.op_type for node in graph.node)


if __name__ == "__main__":
    main()
