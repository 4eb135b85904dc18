"""Peak memory of a process that does nothing but load a model and answer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from torch import nn

from attar.types import Example

# The process must be new: in this one the peak already belongs to training. Peak resident memory
# comes from the process's own table, since what getrusage tells includes the parent's on Linux.
_PEAK = """
import sys
def peak():
    try:
        lines = open("/proc/self/status").read().splitlines()
        return 1024 * int(next(l for l in lines if l.startswith("VmHWM")).split()[1])
    except (OSError, StopIteration):
        import resource
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else 1024 * most
"""

_ANSWERS = {
    ".onnx": """
import numpy, onnxruntime
settings = onnxruntime.SessionOptions()
settings.intra_op_num_threads = 1
session = onnxruntime.InferenceSession({path!r}, settings, providers=["CPUExecutionProvider"])
shapes, types = {shapes!r}, {types!r}
feed = {{name: numpy.ones(shape, types[name]) for name, shape in shapes.items()}}
feed = {{entry.name: feed[entry.name] for entry in session.get_inputs()}}
for _ in range(3):
    session.run(None, feed)
""",
    ".xml": """
import numpy, openvino
settings = {{"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}}
compiled = openvino.Core().compile_model({path!r}, "CPU", settings)
shapes, types = {shapes!r}, {types!r}
feed = {{name: numpy.ones(shape, types[name]) for name, shape in shapes.items()}}
feed = {{entry.any_name: feed[entry.any_name] for entry in compiled.inputs}}
for _ in range(3):
    compiled(feed)
""",
    ".pte": """
import json, pathlib, torch
from executorch.runtime import Runtime
program = Runtime.get().load_program(pathlib.Path({path!r}))
names = json.loads(program.load_method("facts").execute([])[0])["inputs"]
shapes, types = {shapes!r}, {types!r}
feed = [torch.ones((1, *shapes[name][1:]), dtype=vars(torch)[types[name]]) for name in names]
forward = program.load_method("forward")
for _ in range(3):
    forward.execute(feed)
""",
}
"""By the ending of a file, Python that loads it and has it answer."""


def memory(
    model: nn.Module, example: Example, path: Path, answer: str | None = None
) -> subprocess.Popen[str]:
    """Start measuring the peak resident bytes of a fresh process that answers the example.

    The runtime is in the figure, since a device has to hold it too. The process runs beside this
    one: `finished` waits for its answer.

    path: an exported file; or, with `answer`, whatever that statement loads
    answer: Python that loads the model at `path` and has it answer; left out for an exported file
    """
    inputs = example(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
    types = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in inputs.items()}
    statement = (answer or _ANSWERS[path.suffix]).format(path=str(path), shapes=shapes, types=types)
    return subprocess.Popen(
        [sys.executable, "-c", f"{_PEAK}\n{statement}\nprint('peak', peak())"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finished(started: subprocess.Popen[str]) -> int | None:
    """The peak bytes that a measuring process found; None where it could not."""
    output, _ = started.communicate()
    found = [line.split()[1] for line in output.splitlines() if line.startswith("peak ")]
    return int(found[0]) if found else None
