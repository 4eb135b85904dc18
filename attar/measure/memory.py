"""Peak memory of a process that does nothing but load a model and answer."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
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

_ONNX = """
import numpy, onnxruntime
settings = onnxruntime.SessionOptions()
settings.intra_op_num_threads = 1
session = onnxruntime.InferenceSession({path!r}, settings, providers=["CPUExecutionProvider"])
kinds, shapes = {{"tensor(float)": numpy.float32}}, {shapes!r}
feed = {{
    entry.name: numpy.ones(shapes[entry.name], kinds.get(entry.type, numpy.int64))
    for entry in session.get_inputs()
}}
for _ in range(3):
    session.run(None, feed)
"""


def memory(
    model: nn.Module, example: Example, path: Path, answer: str | None = None
) -> subprocess.Popen[str]:
    """Start measuring the peak resident bytes of a fresh process that answers the example.

    The runtime is in the figure, since a device has to hold it too. The process runs beside this
    one: `finished` waits for its answer.

    path: the ONNX file; or, with `answer`, whatever that statement loads
    answer: Python that loads the model at `path` and has it answer; left out for an ONNX file
    """
    shapes: Mapping[str, tuple[int, ...]] = {
        name: tuple(tensor.shape) for name, tensor in example(model).items()
    }
    statement = (answer or _ONNX).format(path=str(path), shapes=dict(shapes))
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
