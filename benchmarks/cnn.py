"""A CNN pruned, taught by what it was, and rounded to int8: what each step costs and saves.

    python benchmarks/cnn.py ../shared/data --out runs/cnn [--tune 2] [--epochs 4] [--seed 0]

The teacher is ResNet-56 for CIFAR-10 with its published weights, tuned to these pictures (JPEG).
Two students are cut from it: `half` has one block less and half of the channels inside of the
others, `few` has a quarter of the blocks. Each is repaired by distillation for some epochs, beside
the same network on labels alone, and written as an int8 ONNX file. Printed are test accuracy,
multiply-adds, and file size and latency in ONNX Runtime on one thread, as shares of the teacher's
float file. What was trained stays in the folder, and a second call goes on from there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from precision import Pictures, cifar, forward, label_loss
from residual import Residual
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from attar import distill, export, teach
from attar.compress import prune, quantize
from attar.losses import response
from attar.measure import cost
from attar.types import Batch, Knowledge, Lesson

ROWS = 128
"""Pictures of a step."""


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("data", type=Path)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--tune", type=int, default=2)
    options.add_argument("--epochs", type=int, default=4)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    pictures = cifar(given.data, 50_000, 10_000)
    train = partial(trained, pictures, out=given.out, seed=given.seed)
    teacher = Residual(9)
    teacher.load_state_dict(load_file(given.data / "cifar10-resnet" / "resnet56.safetensors"))
    teacher = train("teacher", teacher, teach.alone, epochs=given.tune)
    asked = partial(remembered, teacher=teacher, answers=[])
    small = {"half": half(teacher, pictures), "few": few(teacher, pictures)}
    rows: dict[str, nn.Module] = {"teacher": teacher}
    for lessons, how in ((asked, "taught"), (teach.alone, "labels")):
        for name, cut in small.items():
            rows[f"{name}, {how}"] = train(f"{name}-{how}", cut, lessons, epochs=given.epochs)
    report(rows | {f"{name}, cut": cut for name, cut in small.items()}, pictures, given.out)


def half(teacher: nn.Module, pictures: Pictures) -> nn.Module:
    """The block gone that changes least, and half of the channels inside of the others."""
    fewer = prune.layers(teacher, pictures.calibration, untold, drop=1)
    passing = [path for path, _ in fewer.named_modules() if path.endswith("conv2")]
    return prune.structured(
        fewer,
        pictures.example,
        pictures.calibration,
        pictures.losses,
        ratio=0.5,
        importance="taylor",
        batches=32,
        exclude=["conv1", *passing],
    )


def few(teacher: nn.Module, pictures: Pictures) -> nn.Module:
    """Seven of the 27 blocks: those that change most."""
    return prune.layers(teacher, pictures.calibration, untold, drop=20)


def untold(title: str, rows: Any) -> None:
    """Print the table of a step."""
    print(title, *rows, sep="\n  ", flush=True)


def remembered(
    batches: Iterator[Batch], teacher: nn.Module, answers: list[Tensor]
) -> Iterator[Lesson]:
    """Lessons of a teacher that is asked once about each batch; every student sees the same."""
    for n, batch in enumerate(batches):
        if n == len(answers):
            answers.append(teach.ask(teacher, batch, forward).logits)
        yield Lesson(batch, Knowledge(answers[n]))


def trained(
    pictures: Pictures,
    name: str,
    model: nn.Module,
    lessons: Callable[[Iterator[Batch]], Iterator[Lesson]],
    *,
    epochs: int,
    out: Path,
    seed: int,
) -> nn.Module:
    """A copy of a model after some epochs, found in the folder or trained now."""
    student = deepcopy(model)
    path = out / f"{name}-{epochs}-{seed}.safetensors"
    if path.exists():
        student.load_state_dict(load_file(path))
        return student.eval()
    torch.manual_seed(seed)
    steps = epochs * len(pictures.train[1]) // ROWS
    losses = [distill.term(label_loss)]
    if lessons is not teach.alone:
        losses = [distill.term(label_loss, 0.3), distill.term(response.kl, 0.7, temperature=2.0)]
    batches = pictures.batches(steps, seed, ROWS)
    student.to(memory_format=torch.channels_last)
    distill.train(student, lessons(batches), losses, forward, steps=steps, lr=1e-3, watch=told)
    student.to(memory_format=torch.contiguous_format)
    save_file(student.state_dict(), path)
    return student


def told(record: Mapping[str, Any]) -> None:
    """Print the loss now and then."""
    if record["step"] % 50 == 0:
        print(f"  step {record['step']} of {record['steps']}: {record['loss']:.3f}", flush=True)


def report(rows: Mapping[str, nn.Module], pictures: Pictures, out: Path) -> None:
    """One line for each network, as it is and rounded to int8."""
    files: dict[str, Path] = {}
    macs = cost.macs(rows["teacher"], pictures.example)
    for name, model in rows.items():
        print(f"{name:16} {pictures.score(model):6.2f} %  ", end="")
        print(
            f"{100 * cost.macs(model, pictures.example) / macs:5.1f} % of multiply-adds", flush=True
        )
        files[name] = export.onnx(model, pictures.example, out / f"{name}.onnx")
        small = quantize.int8_static(model, pictures.example, pictures.calibration, batches=16)
        print(f"{name + ', int8':16} {pictures.score(small):6.2f} %", flush=True)
        files[f"{name}, int8"] = export.onnx(small, pictures.example, out / f"{name}-int8.onnx")
    size = files["teacher"].stat().st_size
    for name, path in files.items():
        ratio = faster(files["teacher"], path)
        print(f"{name:22} {size / path.stat().st_size:5.1f} x smaller, {ratio:5.2f} x faster")


def faster(before: Path, after: Path) -> float:
    """How often the second file answers one picture while the first does once, one thread."""
    spent: dict[Path, list[float]] = {before: [], after: []}
    sessions = {path: session(path) for path in spent}
    picture = {"pixel_values": np.zeros((1, 3, 32, 32), np.float32)}
    for _ in range(20):  # A B A B, so that both meet the same disturbances
        for path, asked in sessions.items():
            start = time.perf_counter()
            for _ in range(20):
                asked.run(None, picture)
            spent[path].append(time.perf_counter() - start)
    return float(np.median(spent[before]) / np.median(spent[after]))


def session(path: Path) -> Any:
    """ONNX Runtime on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
