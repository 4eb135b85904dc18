"""attar's own students on disk: safetensors, JSON and tokenizer files, nothing executable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from attar.errors import MissingExtra, ModelError
from attar.shapes import fit_
from attar.students.convolutional import Cnn
from attar.students.joined import Joined, join
from attar.students.recurrent import Lstm

PAPER = "attar.json"
WEIGHTS = "model.safetensors"
KINDS: dict[str, type[Lstm] | type[Cnn]] = {"lstm": Lstm, "cnn": Cnn}


def save(model: nn.Module, folder: str | Path) -> Path:
    """Write an LSTM, CNN or joined student: `model.safetensors`, `attar.json`, its tokenizer.

    Raises ModelError for another model (those of transformers have `save_pretrained`).
    """
    from safetensors.torch import save_file

    paper = paper_of(model)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    # Tied weights are one tensor under several names; safetensors wants each stored by itself.
    weights = {name: weight.cpu().clone() for name, weight in model.state_dict().items()}
    save_file(weights, target / WEIGHTS)
    tokenizer: Any = model.tokenizer
    tokenizer.save_pretrained(target)
    (target / PAPER).write_text(json.dumps(paper, indent=2) + "\n", encoding="utf-8")
    return target


def load(folder: str | Path) -> nn.Module:
    """The student that `save` wrote, in evaluation mode, on the CPU.

    Raises ModelError where the folder holds no such student.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise MissingExtra("transformers", "text", "a text student") from None
    from safetensors.torch import load_file

    source = Path(folder)
    try:
        paper = json.loads((source / PAPER).read_text(encoding="utf-8"))
        next(name for name in ("joined", *KINDS) if name in paper)
    except (FileNotFoundError, json.JSONDecodeError, StopIteration):
        raise ModelError(f"{source} holds no {PAPER} of a student that attar saved") from None
    student = _built(paper, AutoTokenizer.from_pretrained(source))
    weights = load_file(source / WEIGHTS)
    fit_(student, weights).load_state_dict(weights)  # its channels may have been pruned
    return student.eval()


def paper_of(model: nn.Module) -> dict[str, Any]:
    """What a student is built of, as JSON; ModelError where it is none that attar saves."""
    if isinstance(model, Lstm | Cnn):
        return model.recipe
    if not isinstance(model, Joined):
        raise ModelError(f"{type(model).__name__} is no lstm or cnn: use its save_pretrained")
    head: Any = model.head
    facts = {"width": head.in_features, "classes": head.out_features, "bias": head.bias is not None}
    if isinstance(model.body, Lstm | Cnn):
        return {"joined": facts, "body": model.body.recipe}
    try:
        config: Any = model.body.config
        return {"joined": facts, "body": {"transformers": json.loads(config.to_json_string(False))}}
    except AttributeError:
        raise ModelError(
            f"{type(model.body).__name__} inside of a joined student can't be written to a folder: "
            "use export.onnx"
        ) from None


def _built(paper: dict[str, Any], tokenizer: Any) -> nn.Module:
    """The student of a paper, its weights still to come."""
    if "joined" in paper:
        facts = paper["joined"]
        head = nn.Linear(facts["width"], facts["classes"], bias=facts["bias"])
        return join(_built(paper["body"], tokenizer), head)
    if "transformers" in paper:
        from transformers import AutoConfig, AutoModelForSequenceClassification

        config = AutoConfig.for_model(**paper["transformers"])
        body: Any = AutoModelForSequenceClassification.from_config(
            config, attn_implementation="eager"
        )
        body.tokenizer = tokenizer
        return body  # type: ignore[no-any-return]
    kind = next(name for name in KINDS if name in paper)
    return KINDS[kind](tokenizer, paper["classes"], paper["vocabulary_size"], **paper[kind])
