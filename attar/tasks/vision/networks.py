"""Picture classifiers: of `transformers`, `timm`, `torchvision`, an ONNX file, or the user's own.

A picture network is called as `model(pixel_values=...)`, (rows, 3, height, width) float, and gives
logits (rows, classes) or an object with `.logits`. How its pictures are normalized it carries as
`model.normalization`, so that teacher and student may be used to different numbers.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from attar.errors import MissingExtra, ModelError
from attar.tasks.files import check_classes, opened
from attar.tasks.loading import device_of, folder_of, load_transformers, quiet, told

PAPER = "preprocessor_config.json"
"""Where `transformers` keeps how pictures are prepared."""
BESIDE = (".", "preprocessing", "tokenizer")
"""Where it may lie, seen from the folder of an ONNX file."""
IMAGENET: dict[str, Any] = {
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "side": None,
}
"""The mean and spread of ImageNet's channels, which most picture networks are trained with."""

Normalization = Mapping[str, Any]
"""mean, std: of each channel, of pixels from 0 to 1; side: pictures are scaled to it, or None."""


def load(
    name: str,
    classes: Sequence[str],
    *,
    new_head: bool = False,
    partly: bool = False,
    threads: int = 1,
) -> nn.Module:
    """A network by name, in eval mode, in float32, its classes in the task's order."""
    source, colon, rest = name.partition(":")
    if (network := opened(name, threads, ("pixel_values",), "picture")) is not None:
        check_classes(network, classes)
        folders = [Path(name).parent / each for each in BESIDE]
        found = [folder / PAPER for folder in folders if (folder / PAPER).is_file()]
        return _with(network, _told_by(_json(found[0])) if found else IMAGENET)
    if colon and source in _LIBRARIES:
        return _LIBRARIES[source](rest, len(classes), new_head)
    if name.endswith(".safetensors") or (Path(name).expanduser() / "attar.json").is_file():
        raise ModelError(
            f"{name} is a student of attar's own: load it with attar.students.load and give the "
            "module."
        )
    return _of_transformers(folder_of(name), classes, new_head, partly)


def adopt(model: Any, classes: int, new_head: bool) -> nn.Module:
    """The user's own model, normalized as it says, or as for ImageNet where it says nothing."""
    kind = type(model).__name__
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"What should be a model is of type {kind}; give a torch.nn.Module or a name."
        )
    try:
        inspect.signature(model.forward).bind(pixel_values=None)
    except TypeError as error:
        raise ModelError(
            f"{kind} can't be called as `model(pixel_values=...)`: {error}."
        ) from error
    return _with(_new_head_(model, classes) if new_head else model, normalization_of(model))


def normalization_of(model: Any) -> Normalization:
    """How a model's pictures are normalized; as for ImageNet where it carries nothing of it.

    Raises ModelError where it carries something else.
    """
    own: Any = IMAGENET
    with suppress(AttributeError):
        own = model.normalization
    return _checked(own, type(model).__name__)


def _checked(own: Any, whose: str) -> Normalization:
    """The numbers of a normalization. Raises ModelError where it is none."""
    try:
        side = own.get("side")
        found = {name: [float(each) for each in own[name]] for name in ("mean", "std")}
    except (AttributeError, KeyError, TypeError, ValueError):
        found, side = {}, None
    if [len(each) for each in found.values()] != [3, 3] or min(found["std"]) <= 0:
        raise ModelError(
            f"The normalization of {whose} must be {{'mean': ..., 'std': ...}} with "
            f"3 numbers each, none of std 0, not {own!r}."
        )
    return {**found, "side": side}


def normalized(model: nn.Module, pictures: Tensor) -> Tensor:
    """Pictures (rows, 3, height, width) uint8 as a model takes them, where the model is.

    Floats are what a scheme made for the model and not pixels: they are taken as they are.
    """
    if pictures.is_floating_point():
        return pictures.to(device_of(model))
    how = normalization_of(model)
    seen = pictures.to(device_of(model)).float()
    side = how["side"]
    if side is not None and seen.shape[2:] != (side, side):
        seen = F.interpolate(seen, (side, side), mode="bilinear", antialias=True)
    mean, std = (seen.new_tensor(how[name])[:, None, None] for name in ("mean", "std"))
    return (seen / 255 - mean) / std


def save_beside(model: nn.Module, folder: Path) -> None:
    """Write how a model's pictures are normalized, in the form of `transformers`."""
    how = normalization_of(model)
    side = how["side"]
    folder.mkdir(parents=True, exist_ok=True)
    paper = {
        "image_processor_type": "ViTImageProcessor",
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": how["mean"],
        "image_std": how["std"],
        "do_resize": side is not None,
    }
    if side is not None:
        paper |= {"size": {"height": side, "width": side}, "resample": 2}
    (folder / PAPER).write_text(json.dumps(paper, indent=2) + "\n", encoding="utf-8")


def _json(path: Path) -> Mapping[str, Any]:
    with told(f"{path} can't be read"):
        return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def _told_by(paper: Mapping[str, Any]) -> Normalization:
    """What a `preprocessor_config.json` says of pixels from 0 to 1."""
    scale = 255 * paper.get("rescale_factor", 1 / 255) if paper.get("do_rescale", True) else 255
    plain = not paper.get("do_normalize", True)
    mean = [0.0] * 3 if plain else paper.get("image_mean") or IMAGENET["mean"]
    std = [1.0] * 3 if plain else paper.get("image_std") or IMAGENET["std"]
    side = None
    if paper.get("do_resize", True):
        size = paper.get("crop_size") if paper.get("do_center_crop") else paper.get("size")
        sides = size.values() if isinstance(size, Mapping) else [size]
        side = next((each for each in sides if isinstance(each, int)), None)
    return {
        "mean": [each / scale for each in mean],
        "std": [each / scale for each in std],
        "side": side,
    }


def _of_transformers(name: str, classes: Sequence[str], new_head: bool, partly: bool) -> nn.Module:
    model = load_transformers(
        name, classes, "ImageClassification", "vision", new_head=new_head, partly=partly
    )
    paper: Mapping[str, Any] | None = None
    with quiet("vision"), suppress(OSError):
        from transformers.image_processing_base import ImageProcessingMixin

        paper, _ = ImageProcessingMixin.get_image_processor_dict(name)
    return _with(model, IMAGENET if paper is None else _told_by(paper))


class ByName(nn.Module):
    """A network that takes its pictures by place, called like any other; it lies at `network`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor) -> Any:
        """Logits (rows, classes)."""
        return self.network(pixel_values)


def _of_timm(name: str, classes: int, new_head: bool) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise MissingExtra("timm", "timm", f"timm:{name}") from error
    with told(f"timm can't load {name!r}"):
        network = timm.create_model(name, pretrained=True)
        facts = timm.data.resolve_model_data_config(network)
    return _of_library(network, classes, new_head, name, facts, facts["input_size"][-1])


def _of_torchvision(name: str, classes: int, new_head: bool) -> nn.Module:
    try:
        import torchvision
    except ImportError as error:
        raise MissingExtra("torchvision", "torchvision", f"torchvision:{name}") from error
    with told(f"torchvision can't load {name!r}"):
        weights = torchvision.models.get_model_weights(name).DEFAULT
        network = torchvision.models.get_model(name, weights=weights)
        shown = weights.transforms()
        facts = {"mean": shown.mean, "std": shown.std}
    return _of_library(network, classes, new_head, name, facts, shown.crop_size[0])


_LIBRARIES = {"timm": _of_timm, "torchvision": _of_torchvision}


def _of_library(
    network: nn.Module,
    classes: int,
    new_head: bool,
    name: str,
    facts: Mapping[str, Any],
    side: int,
) -> nn.Module:
    """A network as it was trained for other classes, or with a new head."""
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    own = linear[-1].out_features if linear else 0
    if own != classes and not new_head:
        raise ModelError(
            f"{name} answers for {own} classes, but the data has {classes}; give a model of these "
            "classes, or use `finetune` for a new head."
        )
    network = _new_head_(network, classes) if new_head else network
    how = {"mean": facts["mean"], "std": facts["std"], "side": side}
    return _with(ByName(network.float()).eval(), how)


def _new_head_(model: nn.Module, classes: int) -> nn.Module:
    """The last linear layer made anew where it answers for another number of classes, in place."""
    linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ModelError(f"{type(model).__name__} has no linear layer that could be a new head.")
    parent, _, child = linear[-1].rpartition(".")
    head: Any = model.get_submodule(linear[-1])
    if head.out_features != classes:
        fresh = nn.Linear(head.in_features, classes, bias=head.bias is not None)
        setattr(model.get_submodule(parent), child, fresh.to(head.weight.device))
        vars(model)["untrained_head"] = True
    return model


def _with(model: nn.Module, how: Normalization) -> nn.Module:
    """The model with its normalization, as plain numbers that any room can write down."""
    vars(model)["normalization"] = _checked(how, type(model).__name__)
    return model
