"""Networks in files of another runtime, called like any network of torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from attar.errors import MissingExtra, ModelError
from attar.tasks.loading import told


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
        # A state like any other network's, so that another file is another teacher.
        digest = hashlib.sha256(path.read_bytes()).digest()
        self.register_buffer("digest", torch.frombuffer(bytearray(digest), dtype=torch.uint8))
        self.runtime = f"ONNX Runtime {onnxruntime.__version__}"
        self.names = [entry.name for entry in self.session.get_inputs()]
        check_inputs(str(path), self.names, takes, kind)

    def forward(self, **inputs: Tensor) -> Tensor:
        """Logits (rows, classes)."""
        given = {name: inputs[name].numpy() for name in self.names}
        with told(f"{self.path} gives no answer"):
            (first, *_) = self.session.run(None, given)
        return torch.from_numpy(first)


def check_file(path: Path) -> None:
    """Raises ModelError where there is no such file."""
    if not path.is_file():
        raise ModelError(f"There is no file {path}.")


def check_inputs(name: str, inputs: Iterable[str], takes: Sequence[str], kind: str) -> None:
    """Raises ModelError where a network asks for what the task does not give."""
    if strange := set(inputs) - set(takes):
        raise ModelError(
            f"{name} asks for {min(strange)!r}; a {kind} network takes {' and '.join(takes)}."
        )
