"""attar's own students on disk: safetensors, JSON and tokenizer files, nothing executable."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attar.depth import blocks, with_layers
from attar.errors import MissingExtra, ModelError
from attar.shapes import fit_
from attar.students.convolutional import Cnn
from attar.students.dense import Convnet, Mlp
from attar.students.joined import Joined, join
from attar.students.mobile import Mobile
from attar.students.pictures import PARTS
from attar.students.recurrent import Lstm
from attar.students.residual import Residual
from attar.students.wide import Wide

PAPER = "attar.json"
WEIGHTS = "model.safetensors"
TEXTS: dict[str, type[Lstm] | type[Cnn]] = {"lstm": Lstm, "cnn": Cnn}
PICTURES: dict[str, type[Residual] | type[Mobile] | type[Wide]] = {
    "resnet": Residual,
    "mobilenet": Mobile,
    "wideresnet": Wide,
}
STATES: dict[str, type[Mlp] | type[Convnet]] = {"mlp": Mlp, "convnet": Convnet}


def save(model: nn.Module, folder: str | Path) -> Path:
    """Write one of attar's own students: `model.safetensors`, `attar.json`, and its tokenizer.

    A network for pictures has no tokenizer; how its pictures are normalized stands in `attar.json`.
    A text classifier of transformers is saved too where its heads were pruned: the shapes of its
    weights say what its configuration can't.
    Raises ModelError for another model (those of transformers have `save_pretrained`).
    """
    from safetensors.torch import save_file

    paper = paper_of(model)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    # Tied weights are one tensor under several names; safetensors wants each stored by itself.
    weights = {name: weight.cpu().clone() for name, weight in model.state_dict().items()}
    save_file(weights, target / WEIGHTS)
    if not _sees(paper):
        tokenizer: Any = model.tokenizer
        tokenizer.save_pretrained(target)
    (target / PAPER).write_text(json.dumps(paper, indent=2) + "\n", encoding="utf-8")
    return target


def load(folder: str | Path) -> nn.Module:
    """The student that `save` wrote, in evaluation mode, on the CPU.

    folder: or a .safetensors file of a resnet that was trained elsewhere
    Raises ModelError where there is no such student.
    """
    source = Path(folder)
    if source.suffix == ".safetensors":
        return _resnet(source, _weights(source)).eval()
    try:
        paper = json.loads((source / PAPER).read_text(encoding="utf-8"))
        next(n for n in ("joined", "transformers", *TEXTS, *PICTURES, *STATES) if n in paper)
    except (FileNotFoundError, json.JSONDecodeError, StopIteration):
        raise ModelError(f"{source} holds no {PAPER} of a student that attar saved") from None
    weights = _weights(source / WEIGHTS)
    student = _as_deep(_built(paper, None if _sees(paper) else _tokenizer_in(source)), weights)
    fit_(student, weights).load_state_dict(weights)  # its channels may have been pruned
    return student.eval()


def _weights(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(file))
    except FileNotFoundError:
        raise ModelError(f"There is no file {file}.") from None
    except SafetensorError as error:
        raise ModelError(f"{file} is damaged ({error}); copy it again.") from error


def _as_deep(student: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """The student without the blocks that have no weights: they were pruned."""
    paths = blocks(student)
    there = [n for n, path in enumerate(paths) if any(w.startswith(f"{path}.") for w in weights)]
    return student if len(there) == len(paths) else with_layers(student, there)


def _resnet(source: Path, weights: Mapping[str, Tensor]) -> nn.Module:
    """A resnet that is as deep and wide as weights by the names that these networks have."""
    try:
        width, channels = weights["conv1.weight"].shape[:2]
        classes = [str(n) for n in range(len(weights["linear.weight"]))]
        blocks = len([name for name in weights if name.endswith("conv1.weight")]) // 3
        student = Residual(classes, depth=PARTS * blocks + 2, width=width, channels=channels)
        student.load_state_dict(dict(weights))
    except (KeyError, RuntimeError) as error:
        raise ModelError(
            f"{source} holds no weights of a resnet for small pictures (conv1, layer1.0.conv1, "
            "..., linear); give the folder of a model."
        ) from error
    return student


def _tokenizer_in(source: Path) -> Any:
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise MissingExtra("transformers", "text", "a text student") from None
    return AutoTokenizer.from_pretrained(source)


def _sees(paper: Mapping[str, Any]) -> bool:
    """Whether a student is shown pictures, or the states of an environment, and no texts."""
    return any(kind in paper for kind in (*PICTURES, *STATES))


def paper_of(model: nn.Module) -> dict[str, Any]:
    """What a student is built of, as JSON; ModelError where it is none that attar saves."""
    if isinstance(model, Residual | Mobile | Wide):
        carried = vars(model).get("normalization")
        return model.recipe | ({} if carried is None else {"normalization": carried})
    if isinstance(model, Lstm | Cnn | Mlp | Convnet):
        return model.recipe
    if _narrowed(model):
        narrowed: Any = model
        return {"transformers": json.loads(narrowed.config.to_json_string(False))}
    if not isinstance(model, Joined):
        raise ModelError(
            f"{type(model).__name__} is no lstm or cnn, nor one of attar's networks for pictures "
            "or states: use its save_pretrained"
        )
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


def _narrowed(model: nn.Module) -> bool:
    """Whether a text classifier of transformers has its class's layers, but in other shapes."""
    if not {"config", "tokenizer"} <= set(vars(model)):
        return False
    kind: Any = type(model)
    with torch.device("meta"):
        known = kind(deepcopy(vars(model)["config"])).state_dict()
    own = model.state_dict()
    shapes = [{name: tuple(each.shape) for name, each in all_.items()} for all_ in (own, known)]
    return own.keys() == known.keys() and shapes[0] != shapes[1]


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
    if _sees(paper):
        return _seeing(paper)
    kind = next(name for name in TEXTS if name in paper)
    return TEXTS[kind](tokenizer, paper["classes"], paper["vocabulary_size"], **paper[kind])


def _seeing(paper: dict[str, Any]) -> nn.Module:
    known: dict[str, Any] = {**PICTURES, **STATES}
    kind = next(name for name in known if name in paper)
    student: nn.Module = known[kind](paper["classes"], **paper[kind])
    if "normalization" in paper:
        vars(student)["normalization"] = paper["normalization"]
    return student
