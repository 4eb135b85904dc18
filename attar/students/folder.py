"""attar's own students on disk: safetensors, JSON and tokenizer files, nothing executable."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from attar.errors import MissingExtra, ModelError
from attar.students.convolutional import Cnn
from attar.students.recurrent import Lstm

PAPER = "attar.json"
WEIGHTS = "model.safetensors"
KINDS: dict[str, type[Lstm] | type[Cnn]] = {"lstm": Lstm, "cnn": Cnn}


def save(model: nn.Module, folder: str | Path) -> Path:
    """Write an LSTM or CNN student: `model.safetensors`, `attar.json` and its tokenizer.

    Raises ModelError for another model (those of transformers have `save_pretrained`).
    """
    from safetensors.torch import save_file

    if not isinstance(model, Lstm | Cnn):
        raise ModelError(f"{type(model).__name__} is no lstm or cnn: use its save_pretrained")
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.cpu().contiguous() for name, weight in model.state_dict().items()}
    save_file(weights, target / WEIGHTS)
    model.tokenizer.save_pretrained(target)
    (target / PAPER).write_text(json.dumps(model.recipe, indent=2) + "\n", encoding="utf-8")
    return target


def load(folder: str | Path) -> nn.Module:
    """The LSTM or CNN student that `save` wrote, in evaluation mode, on the CPU.

    Raises ModelError where the folder holds no such student.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise MissingExtra("transformers", "text", "a text student") from None
    from safetensors.torch import load_file

    source = Path(folder)
    try:
        recipe = json.loads((source / PAPER).read_text(encoding="utf-8"))
        kind = next(name for name in KINDS if name in recipe)
    except (FileNotFoundError, json.JSONDecodeError, StopIteration):
        raise ModelError(f"{source} holds no {PAPER} of an lstm or cnn that attar saved") from None
    tokenizer = AutoTokenizer.from_pretrained(source)
    student = KINDS[kind](tokenizer, recipe["classes"], recipe["vocabulary_size"], **recipe[kind])
    student.load_state_dict(load_file(source / WEIGHTS))
    return student.eval()
