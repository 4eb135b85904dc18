"""Sequence classifiers from `transformers`, from a package, from an ONNX file, or the user's own.

A text network is called as `model(input_ids=..., attention_mask=...)`, each (rows, length) int64,
and gives logits (rows, classes) or an object with `.logits`. It carries its tokenizer as
`model.tokenizer`, so that teacher and student may cut a text into tokens differently.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from attar.errors import MissingExtra, ModelError

UNBOUNDED = 1_000_000
"""Tokenizers without a limit of their own give a number far above this."""


@runtime_checkable
class _HasLogits(Protocol):
    logits: Tensor


def load(name: str, classes: Sequence[str], *, new_head: bool = False) -> nn.Module:
    """A network by name, in eval mode, in float32, its classes in the task's order."""
    if name.endswith(".onnx"):
        return OnnxNetwork(Path(name))
    return _load_transformers(_folder(name), classes, new_head)


def adopt(module: nn.Module, tokenizer: Any) -> nn.Module:
    """The user's own module, given the task's tokenizer where it brings none."""
    if "tokenizer" not in vars(module):
        if tokenizer is None:
            raise ModelError(
                f"{type(module).__name__} has no tokenizer: set `module.tokenizer`, or load the "
                "teacher first so that the task has one to lend."
            )
        module.tokenizer = tokenizer
    return module


def tokenizer_of(model: nn.Module) -> Any:
    """The tokenizer a model carries."""
    try:
        return model.tokenizer
    except AttributeError:
        raise ModelError(
            f"{type(model).__name__} carries no tokenizer; pass it through `task.load(module)`."
        ) from None


def digest(tokenizer: Any) -> str:
    """A hash of everything a fast tokenizer does."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()[:16]


def device_of(model: nn.Module) -> torch.device:
    """Where a model's first weight is; the CPU for a model without weights of its own."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def logits(output: Any) -> Tensor:
    """The logits in whatever a network returned."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, _HasLogits):
        return output.logits
    raise ModelError(
        f"The network returned {type(output).__name__}; it must give logits (rows, classes), "
        "as a tensor or as an object with `.logits`."
    )


def check_length(model: nn.Module, max_length: int) -> None:
    """Raises ModelError where texts may be longer than the model has positions for."""
    limit = tokenizer_of(model).model_max_length
    if max_length > limit and limit < UNBOUNDED:
        raise ModelError(
            f"max_length is {max_length}, but {type(model).__name__} takes at most {limit} tokens."
        )
    if max_length < 3:
        raise ModelError(f"max_length is {max_length}; a text needs at least 3 tokens.")


class OnnxNetwork(nn.Module):
    """An ONNX file run by ONNX Runtime, called like any other network.

    The folder of the file, or `tokenizer/` in it, holds the tokenizer it was exported with.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtra("onnxruntime", "onnx", f"running {path.name}") from error
        if not path.is_file():
            raise ModelError(f"There is no file {path}.")
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(
                path, settings, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise ModelError(f"ONNX Runtime can't load {path}: {error}") from error
        self.names = [entry.name for entry in self.session.get_inputs()]
        folder = path.parent / "tokenizer"
        self.tokenizer = _tokenizer(str(folder if folder.is_dir() else path.parent))

    def forward(self, **inputs: Tensor) -> Tensor:
        """Logits (rows, classes)."""
        (first, *_) = self.session.run(None, {name: inputs[name].numpy() for name in self.names})
        return torch.from_numpy(first)


def _folder(name: str) -> str:
    """The folder or hub name behind a name; `package:NAME` is looked for in an installed package."""
    if not name.startswith("package:"):
        path = Path(name).expanduser()
        if path.is_dir() and not (path / "config.json").is_file():
            raise ModelError(f"{name} has no config.json, so it is no model folder.")
        return str(path) if path.is_dir() else name
    package = name.removeprefix("package:")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"The package {package!r} is not installed: pip install {package.replace('_', '-')}"
        )
    root = Path(spec.submodule_search_locations[0])
    for config in sorted(root.rglob("config.json"), key=lambda path: len(path.parts)):
        if list(config.parent.glob("*.safetensors")):
            return str(config.parent)
    raise ModelError(f"The package {package!r} carries no model (config.json with safetensors).")


def _load_transformers(name: str, classes: Sequence[str], new_head: bool) -> nn.Module:
    with _quiet() as transformers:
        try:
            config = transformers.AutoConfig.from_pretrained(name)
            own = _own_classes(config)
            if own and len(own) != len(classes) and not new_head:
                raise ModelError(
                    f"{name} answers for {len(own)} classes, but the data has {len(classes)}; "
                    "give a model of these classes, or use `finetune` for a new head."
                )
            model: nn.Module = transformers.AutoModelForSequenceClassification.from_pretrained(
                name,
                num_labels=len(classes),
                ignore_mismatched_sizes=new_head,
                attn_implementation="eager",
                dtype=torch.float32,
                use_safetensors=True,
            )
        except (OSError, ValueError, ImportError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelError(
                f"The model {name!r} can't be loaded ({reason}); give a `transformers` folder, a "
                "hub name, or package:NAME of an installed package."
            ) from error
    if own and not new_head:
        _reorder_(model, own, classes)
    model.config.id2label = dict(enumerate(classes))
    model.config.label2id = {name: n for n, name in enumerate(classes)}
    model.tokenizer = _tokenizer(name)
    limit = getattr(model.config, "max_position_embeddings", None)  # not every family has positions
    if limit is not None:
        offset = 2 if "roberta" in model.config.model_type else 0
        model.tokenizer.model_max_length = min(model.tokenizer.model_max_length, limit - offset)
    return model.eval()


def _own_classes(config: Any) -> list[str]:
    """The classes a checkpoint was trained for, in order; none where it has no such head."""
    if not any("SequenceClassification" in name for name in config.architectures or ()):
        return []
    return [config.id2label[n] for n in range(config.num_labels)]


def _reorder_(model: nn.Module, own: Sequence[str], classes: Sequence[str]) -> None:
    """Put the rows of the head into the task's order; a head of unnamed classes stays as it is."""
    if list(own) == list(classes) or all(name.startswith("LABEL_") for name in own):
        return
    if set(own) != set(classes):
        other = next(name for name in own if name not in classes)
        raise ModelError(
            f"The model answers for the class {other!r}, which the data does not have; "
            "rename the labels of the data, or use `finetune` with `new_head: true`."
        )
    order = [list(own).index(name) for name in classes]
    head = [
        m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == len(classes)
    ][-1]
    with torch.no_grad():
        head.weight.copy_(head.weight[order])
        if head.bias is not None:
            head.bias.copy_(head.bias[order])


def _tokenizer(name: str) -> Any:
    with _quiet() as transformers:
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise ModelError(f"{name} has no tokenizer that `transformers` can load.") from error
    if not tokenizer.is_fast:
        raise ModelError(f"The tokenizer of {name} has no fast form (tokenizer.json).")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@contextmanager
def _quiet() -> Iterator[Any]:
    """`transformers` without its load report and bars, which would break into ours."""
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("transformers", "text", "a text model") from error
    logging = transformers.utils.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield transformers
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
