"""Networks in files of another runtime, called like any network of torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from attar.errors import MissingExtra, ModelError
from attar.tasks.loading import told

PAST = "past_key_values."
"""How inputs are named that hold what a language model remembers of earlier tokens."""


class OnnxNetwork(nn.Module):
    """An ONNX file run by ONNX Runtime, called like any other network.

    takes: the inputs that it may ask for
    kind: of network, for the sentence where it asks for others
    """

    runtime: str

    def __init__(self, path: Path, threads: int, takes: Sequence[str], kind: str) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtra("onnxruntime", "onnx", f"running {path.name}") from error
        check_file(path)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.log_severity_level = 4
        with told(f"ONNX Runtime can't load {path}"):
            self.session = onnxruntime.InferenceSession(
                path, settings, providers=["CPUExecutionProvider"]
            )
        self.path = path
        self.register_buffer("digest", _digest(path))
        self.runtime = f"ONNX Runtime {onnxruntime.__version__}"
        entries = {entry.name: entry.shape for entry in self.session.get_inputs()}
        self.past = {name: shape for name, shape in entries.items() if name.startswith(PAST)}
        self.names = [name for name in entries if name not in self.past]
        self.classes = self.session.get_modelmeta().custom_metadata_map.get("classes")
        check_inputs(str(path), self.names, takes, kind)

    def forward(self, **inputs: Tensor) -> Tensor:
        """Logits (rows, classes)."""
        given = {name: inputs[name].numpy() for name in self.names}
        for name, (_, heads, _, width) in self.past.items():  # here every text begins anew
            given[name] = np.zeros((len(given[self.names[0]]), heads, 0, width), np.float32)
        with told(f"{self.path} gives no answer"):
            (first, *_) = self.session.run(None, given)
        return torch.from_numpy(first)


class OpenvinoNetwork(nn.Module):
    """An .xml with its .bin run by OpenVINO, called like any other network.

    It computes in 32 bits on every processor, so that it answers the same on all of them.
    """

    runtime: str

    def __init__(self, path: Path, threads: int, takes: Sequence[str], kind: str) -> None:
        super().__init__()
        try:
            import openvino
        except ImportError as error:
            raise MissingExtra("openvino", "openvino", f"running {path.name}") from error
        check_file(path)
        check_file(path.with_suffix(".bin"))
        opened = openvino.Core()
        # A file that is mapped into memory could not be replaced on every system.
        opened.set_property({"ENABLE_MMAP": False})
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
        }
        with told(f"OpenVINO can't load {path}"):
            network = opened.read_model(path)
            self.compiled = opened.compile_model(network, "CPU", settings)
            named = network.has_rt_info(["attar", "classes"])
            self.classes = network.get_rt_info(["attar", "classes"]).value if named else None
        self.path = path
        self.register_buffer("digest", _digest(path, path.with_suffix(".bin")))
        self.runtime = f"OpenVINO {openvino.__version__.partition('-')[0]}"
        self.names = [entry.any_name for entry in self.compiled.inputs]
        check_inputs(str(path), self.names, takes, kind)

    def forward(self, **inputs: Tensor) -> Tensor:
        """Logits (rows, classes)."""
        given = {name: inputs[name].numpy() for name in self.names}
        with told(f"{self.path} gives no answer"):
            # Copied, since the next answer is written to the same place.
            return torch.tensor(self.compiled(given)[0])


class ExecutorchNetwork(nn.Module):
    """A .pte of attar's run by ExecuTorch, called like any other network: row by row."""

    runtime: str

    def __init__(self, path: Path, threads: int, takes: Sequence[str], kind: str) -> None:
        super().__init__()
        check_file(path)
        try:
            from executorch.extension.pybindings import portable_lib
            from executorch.runtime import Runtime
        except ImportError as error:
            raise MissingExtra("executorch", "executorch", f"running {path.name}") from error
        # For the whole process: ExecuTorch knows threads of no other kind.
        portable_lib._unsafe_reset_threadpool(threads)
        with told(f"ExecuTorch can't load {path}"):
            self.program = Runtime.get().load_program(path.read_bytes())
            if "facts" not in self.program.method_names:
                raise ModelError(f"{path} does not say what it is; export it with attar.")
            (facts,) = self.program.load_method("facts").execute([])
            self.method = self.program.load_method("forward")
        self.path = path
        self.register_buffer("digest", _digest(path))
        self.runtime = f"ExecuTorch {version('executorch')}"
        self.names = json.loads(facts)["inputs"]
        self.classes = json.dumps(json.loads(facts).get("classes"))
        check_inputs(str(path), self.names, takes, kind)

    def forward(self, **inputs: Tensor) -> Tensor:
        """Logits (rows, classes)."""
        rows = zip(*(inputs[name].split(1) for name in self.names), strict=True)
        with told(f"{self.path} gives no answer"):
            # Copied, since the next answer is written to the same place.
            given = ([each.contiguous() for each in row] for row in rows)
            return torch.cat([self.method.execute(row)[0].clone() for row in given])


KINDS: dict[str, type[OnnxNetwork] | type[OpenvinoNetwork] | type[ExecutorchNetwork]] = {
    ".onnx": OnnxNetwork,
    ".xml": OpenvinoNetwork,
    ".pte": ExecutorchNetwork,
}


def opened(name: str, threads: int, takes: Sequence[str], kind: str) -> nn.Module | None:
    """The network in a file, run by the runtime that the file's name tells; None by another."""
    found = KINDS.get(Path(name).suffix)
    return None if found is None else found(Path(name), threads, takes, kind)


def _digest(*files: Path) -> Tensor:
    """A state like any other network's, so that another file is another teacher."""
    hashed = hashlib.sha256()
    for file in files:
        hashed.update(file.read_bytes())
    return torch.frombuffer(bytearray(hashed.digest()), dtype=torch.uint8)


def check_file(path: Path) -> None:
    """Raises ModelError where there is no such file."""
    if not path.is_file():
        raise ModelError(f"There is no file {path}.")


def check_classes(network: nn.Module, classes: Sequence[str]) -> None:
    """Raises ModelError where a file says that it answers for other classes, or in another order.

    classes: the data's
    """
    if not isinstance(network, OnnxNetwork | OpenvinoNetwork | ExecutorchNetwork):
        return
    own = json.loads(network.classes or "null")
    named = own is not None and own != [str(n) for n in range(len(own))]
    if named and own != list(classes):
        order = "in another order" if sorted(own) == sorted(classes) else f"as {len(own)} others"
        raise ModelError(
            f"{network.path} answers for the data's classes {order}, beginning with {own[0]!r}; "
            "give a file that was made for this data."
        )


def check_inputs(name: str, inputs: Iterable[str], takes: Sequence[str], kind: str) -> None:
    """Raises ModelError where a network asks for what the task does not give."""
    if strange := set(inputs) - set(takes):
        raise ModelError(
            f"{name} asks for {min(strange)!r}; a {kind} network takes {' and '.join(takes)}."
        )
