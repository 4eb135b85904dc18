"""Networks of other libraries, called like any network of torch: exported files, a Keras model."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attar.errors import MissingExtra, ModelError
from attar.tasks.text.tokenizing import tokenizer_at, told

NUMBERED = re.compile(r'_\d+"')
"""How a name ends that nobody gave: Keras counts on, so that each building has names of its own."""


class OnnxNetwork(nn.Module):
    """An ONNX file run by ONNX Runtime, called like any other network.

    The folder of the file, or `tokenizer/` in it, holds the tokenizer it was exported with.
    """

    runtime: str

    def __init__(self, path: Path, threads: int = 1) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtra("onnxruntime", "onnx", f"running {path.name}") from error
        _check_file(path)
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
        self.names = [entry.name for entry in self.session.get_inputs()]
        _check_inputs(str(path), self.names)
        self.tokenizer = _tokenizer_beside(path)

    def forward(self, **inputs: Tensor) -> Tensor:
        """Logits (rows, classes)."""
        given = {name: inputs[name].numpy() for name in self.names}
        with told(f"{self.path} gives no answer"):
            (first, *_) = self.session.run(None, given)
        return torch.from_numpy(first)


class OpenvinoNetwork(nn.Module):
    """An .xml with its .bin run by OpenVINO, called like any other network.

    The folder of the file, or `tokenizer/` in it, holds the tokenizer it was exported with. It
    computes in 32 bits on every processor, so that it answers the same on all of them.
    """

    runtime: str

    def __init__(self, path: Path, threads: int = 1) -> None:
        super().__init__()
        try:
            import openvino
        except ImportError as error:
            raise MissingExtra("openvino", "openvino", f"running {path.name}") from error
        _check_file(path)
        _check_file(path.with_suffix(".bin"))
        opened = openvino.Core()
        # A file that is mapped into memory could not be replaced on every system.
        opened.set_property({"ENABLE_MMAP": False})
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
        }
        with told(f"OpenVINO can't load {path}"):
            self.compiled = opened.compile_model(path, "CPU", settings)
        self.path = path
        self.register_buffer("digest", _digest(path, path.with_suffix(".bin")))
        self.runtime = f"OpenVINO {openvino.__version__.partition('-')[0]}"
        self.names = [entry.any_name for entry in self.compiled.inputs]
        _check_inputs(str(path), self.names)
        self.tokenizer = _tokenizer_beside(path)

    def forward(self, **inputs: Tensor) -> Tensor:
        """Logits (rows, classes)."""
        given = {name: inputs[name].numpy() for name in self.names}
        with told(f"{self.path} gives no answer"):
            # Copied, since the next answer is written to the same place.
            return torch.tensor(self.compiled(given)[0])


class ExecutorchNetwork(nn.Module):
    """A .pte of attar's run by ExecuTorch, called like any other network: row by row.

    The folder of the file, or `tokenizer/` in it, holds the tokenizer it was exported with.
    """

    runtime: str

    def __init__(self, path: Path, threads: int = 1) -> None:
        super().__init__()
        _check_file(path)
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
        _check_inputs(str(path), self.names)
        self.tokenizer = _tokenizer_beside(path)

    def forward(self, **inputs: Tensor) -> Tensor:
        """Logits (rows, classes)."""
        rows = zip(*(inputs[name].split(1) for name in self.names), strict=True)
        with told(f"{self.path} gives no answer"):
            # Copied, since the next answer is written to the same place.
            given = ([each.contiguous() for each in row] for row in rows)
            return torch.cat([self.method.execute(row)[0].clone() for row in given])


class KerasNetwork(nn.Module):
    """A Keras 3 model on the torch backend, called like any other network.

    It is a functional model whose inputs are named input_ids and attention_mask (or input_ids
    alone), and it has to give logits: a last layer without softmax. Its layers stand at the paths
    `layers.NAME`. In eval mode they run with `training=False`.
    """

    def __init__(self, model: Any, name: str) -> None:
        super().__init__()
        keras = _keras(name)
        try:
            # Of a Sequential only the list of its one input is public.
            entries = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
            self.names = keras.tree.map_structure(lambda entry: entry.name, entries)
        except (AttributeError, ValueError, LookupError, TypeError) as error:
            raise ModelError(
                f"{name} is no functional model of Keras; build it of keras.Input layers named "
                "input_ids and attention_mask."
            ) from error
        _check_inputs(name, keras.tree.flatten(self.names))
        self.model, self.name = model, name
        # Keras keeps its layers in a plain list, in which torch finds no paths.
        self.layers = nn.Module()
        for layer in model.layers:
            self.layers.add_module(layer.name, layer)
        # Like weights make another teacher under other activations.
        digest = hashlib.sha256(NUMBERED.sub('"', model.to_json()).encode()).digest()
        self.register_buffer("digest", torch.frombuffer(bytearray(digest), dtype=torch.int64))
        self.register_state_dict_post_hook(_by_number)

    @classmethod
    def read(cls, path: Path) -> KerasNetwork:
        """The model in a file; its folder, or `tokenizer/` in it, holds the tokenizer.

        Keras's safe mode is on: code that lies in a file is never run.
        """
        keras = _keras(path.name)
        _check_file(path)
        with told(f"Keras can't load {path}"):
            try:
                model = keras.saving.load_model(path, compile=False, safe_mode=True)
            except (TypeError, ValueError) as error:
                if "Lambda" not in str(error):
                    raise
                raise ModelError(
                    f"{path} has a Lambda layer, which is code inside of a file and is never run: "
                    "put a layer of Keras in its place, or build the model in code of your own."
                ) from error
        network = cls(model, str(path))
        network.tokenizer = _tokenizer_beside(path)
        return network.eval()

    def forward(self, **inputs: Tensor) -> Any:
        """Logits (rows, classes)."""
        from keras import tree

        given = tree.map_structure(inputs.__getitem__, self.names)
        with told(f"{self.name} gives no answer"):
            return self.model(given, training=self.training)


def _by_number(network: Any, state: dict[str, Any], prefix: str, _: object) -> None:
    """The weights in Keras's own order, without what dropout draws from: it decides no answer."""
    for name in [name for name in state if name.startswith(prefix)]:
        del state[name]
    state[f"{prefix}digest"] = network.digest
    for number, weight in enumerate(network.model.weights):
        state[f"{prefix}weights.{number}"] = weight.value.detach()


def is_keras(model: object) -> bool:
    """Whether something is a model of Keras 3; where Keras was never imported nothing is."""
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(model, keras.Model)


def _keras(name: str) -> Any:
    """Keras on the torch backend. Raises ModelError where it runs on another."""
    if find_spec("keras") is None:
        raise MissingExtra("keras", "keras", f"running {name}")
    if "keras" not in sys.modules:
        os.environ.setdefault("KERAS_BACKEND", "torch")
    with told("Keras can't be imported"):
        import keras
    if keras.config.backend() != "torch":
        raise ModelError(
            f"Keras runs on {keras.config.backend()} here, and {name} is needed on torch: set "
            "KERAS_BACKEND=torch before Python starts."
        )
    return keras


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise ModelError(f"There is no file {path}.")


def _digest(*files: Path) -> Tensor:
    """A state like any other network's, so that another file is another teacher."""
    hashed = hashlib.sha256()
    for file in files:
        hashed.update(file.read_bytes())
    return torch.frombuffer(bytearray(hashed.digest()), dtype=torch.uint8)


def _check_inputs(name: str, inputs: Iterable[str]) -> None:
    if strange := set(inputs) - {"input_ids", "attention_mask"}:
        raise ModelError(
            f"{name} asks for {min(strange)!r}; a text network takes input_ids and attention_mask."
        )


def _tokenizer_beside(path: Path) -> Any:
    folder = path.parent / "tokenizer"
    return tokenizer_at(str(folder if folder.is_dir() else path.parent))
