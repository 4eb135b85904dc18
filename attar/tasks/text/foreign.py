"""A Keras model, called like any network of torch."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attar.errors import MissingExtra, ModelError
from attar.tasks.files import check_file, check_inputs
from attar.tasks.loading import told
from attar.tasks.text.tokenizing import tokenizer_at

INPUTS = ("input_ids", "attention_mask")
"""What a text network may ask for."""

NUMBERED = re.compile(r'_\d+"')
"""How a name ends that nobody gave: Keras counts on, so that each building has names of its own."""


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
        check_inputs(name, keras.tree.flatten(self.names), INPUTS, "text")
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
        check_file(path)
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
        network.tokenizer = tokenizer_beside(path)
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


def tokenizer_beside(path: Path) -> Any:
    """The tokenizer in `tokenizer/` beside a file, or in its own folder."""
    folder = path.parent / "tokenizer"
    return tokenizer_at(str(folder if folder.is_dir() else path.parent))
