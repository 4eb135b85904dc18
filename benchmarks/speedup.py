"""How much faster the files of a run answer than its teacher, in PyTorch and in ONNX Runtime.

    attar run recipes/intents-small.yaml --out runs/small
    python benchmarks/speedup.py runs/small [--tokens 16 64] [--threads 1] [--seconds 5]

Part of a speed-up is the other runtime's and not the student's. So the teacher is exported as well,
and all of them take turns (A B C A B C ...) at batch 1. Printed are medians in milliseconds, and
how many times faster each file is than the teacher in either runtime.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from torch import nn

from attar import export, measure, tasks
from attar.measure.comparing import answer
from attar.measure.questions import question

DATA = Path(__file__).parent.parent / "data" / "banking77"


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("run", type=Path, help="the folder of a run on Banking77")
    options.add_argument("--tokens", type=int, nargs="+", default=[16, 64])
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--seconds", type=float, default=5.0, help="for each model and length")
    given = options.parse_args()

    task = tasks.text.classification(dataset=str(DATA), max_length=max(given.tokens))
    teacher = task.load(str(given.run / "teacher"))
    models: dict[str, nn.Module] = {"teacher, PyTorch": teacher}
    with tempfile.TemporaryDirectory() as folder:
        task.save(teacher, Path(folder) / "tokenizer")
        file = export.onnx(teacher, task.example, Path(folder) / "teacher")
        models["teacher, ONNX Runtime"] = task.load(str(file), threads=given.threads)
        for path in sorted(given.run.rglob("*.onnx")):
            models[path.name] = task.load(str(path), threads=given.threads)
        answers = {
            (name, tokens): answer(model, question(task.example, tokens=tokens))
            for name, model in models.items()
            for tokens in given.tokens
        }
        times = measure.latency(answers, threads=given.threads, seconds=given.seconds)

    print("| model | tokens | p50 ms | against PyTorch | against ONNX Runtime |")
    print("| :--- | ---: | ---: | ---: | ---: |")
    for (name, tokens), found in times.items():
        ratios = [
            times[f"teacher, {runtime}", tokens]["p50"] / found["p50"]
            for runtime in ("PyTorch", "ONNX Runtime")
        ]
        print(f"| {name} | {tokens} | {found['p50']:.3f} | {ratios[0]:.1f} | {ratios[1]:.1f} |")


if __name__ == "__main__":
    main()
