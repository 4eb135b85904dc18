"""Read activations by module path, without touching the model.

A place to read is written `PATH`, `PATH[INDEX]` or either with `@POOL` behind it:

    bert.encoder.layer.5              what the module gives (its first tensor)
    bert.encoder.layer.5.attention.self[1]    the second of the tensors it gives
    bert.encoder.layer.5@mean         its mean over the real tokens; `@first` takes the first token
    bert.encoder.layer.5@time         all its tokens, to be compared with another number of them
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from attar.errors import LayerError, nearest
from attar.types import Knowledge

POOLS = ("mean", "first", "time")
"""What may stand behind a path; `time` pools nothing, and aligns when two layers are compared."""

TIME = "@time"

_PLACE = re.compile(r"^(?P<path>[^\[\]@]*)(?:\[(?P<index>\d+)\])?(?:@(?P<pool>\w+))?$")


@dataclass(frozen=True)
class Place:
    """Where to read: a module, which of its outputs, and how to pool it over the tokens."""

    path: str
    index: int
    pool: str | None


def place(text: str) -> Place:
    """Parse `PATH[INDEX]@POOL`. Raises LayerError for any other form."""
    match = _PLACE.match(text)
    if match is None:
        raise LayerError(
            f"{text!r} is not a layer: write a module path, as in 'encoder.layer.0@mean'."
        )
    pool = match["pool"]
    if pool is not None and pool not in POOLS:
        raise LayerError(f"{text!r} pools by {pool!r}; {nearest(pool, POOLS)}")
    return Place(match["path"], int(match["index"] or 0), pool)


def module_at(model: nn.Module, path: str) -> nn.Module:
    """The module at a path. Raises LayerError with the nearest path there is."""
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if path not in modules:
        raise LayerError(f"{type(model).__name__} has no layer {path!r}; {nearest(path, modules)}")
    return modules[path]


def first_tensor(output: Any, index: int = 0) -> Tensor | None:
    """The index-th tensor of whatever a module returned; None where there is none."""
    if isinstance(output, Tensor):
        return output if index == 0 else None
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, tuple | list) and index < len(output):
        return first_tensor(output[index])
    return None


def pooled(feature: Tensor, mask: Tensor | None, pool: str | None) -> Tensor:
    """A (rows, length, width) activation pooled to (rows, width) over its real tokens.

    What has no tokens any more stays as it is; maps (rows, channels, height, width) are pooled over
    their places. Raises LayerError where the mask (rows, length) is of other tokens, and for the
    first token of maps.
    """
    if pool in (None, "time") or feature.dim() < 3:
        return feature
    if feature.dim() > 3 and pool == "mean":
        return feature.flatten(2).mean(2)
    if feature.dim() > 3:
        raise LayerError(
            f"Maps of shape {tuple(feature.shape)} have no first token; pool them with @mean."
        )
    if pool == "first":
        return feature[:, 0]
    if mask is None:
        return feature.mean(1)
    if mask.shape != feature.shape[:2]:
        raise LayerError(
            f"An activation of shape {tuple(feature.shape)} has no {mask.shape[1]} tokens to pool "
            "over; name a layer that gives (rows, length, width)."
        )
    real = mask.to(feature.dtype).unsqueeze(-1)
    return (feature * real).sum(1) / real.sum(1).clamp(min=1)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode; afterwards each of its modules is in the mode it was in before."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield model.eval()
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def tapped(
    model: nn.Module, layers: Sequence[str]
) -> Iterator[Callable[[Tensor | None], dict[str, Tensor]]]:
    """Listen at the named places while the model runs inside the `with`.

    Yields a function of the mask (rows, length) that gives what was heard, by the name asked for.
    Raises LayerError where a path names nothing, or a module gave no such tensor.
    """
    places = {text: place(text) for text in layers}
    heard: dict[str, Any] = {}

    def listen(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            heard[path] = output

        return hook

    # All are looked up before the first is listened to, so that a wrong path leaves no hook behind.
    modules = {where.path: module_at(model, where.path) for where in places.values()}
    handles = [module.register_forward_hook(listen(path)) for path, module in modules.items()]

    def read(mask: Tensor | None) -> dict[str, Tensor]:
        features = {}
        for text, where in places.items():
            tensor = first_tensor(heard.get(where.path), where.index)
            if tensor is None:
                raise LayerError(
                    f"Layer {text!r} of {type(model).__name__} gave no tensor at index "
                    f"{where.index}; attention maps need a model loaded with "
                    "attn_implementation='eager'."
                )
            features[text] = pooled(tensor, mask, where.pool)
        return features

    try:
        yield read
    finally:
        for handle in handles:
            handle.remove()


def knowledge_of(model: nn.Module, inputs: Any, layers: Iterable[str] = ()) -> Knowledge:
    """What any model makes of its inputs, in a training loop of one's own.

    inputs: one tensor, several in a tuple, or a mapping of them by the names that the model's
        `forward` gives them; `attention_mask` among these is the mask
    layers: what to read beside the logits, which are what the model calls so, else what it gives
        first
    Raises LayerError where a path names nothing, or the model gave no tensor.
    """
    named = isinstance(inputs, Mapping)
    with tapped(model, [*layers]) as heard:
        if named:
            output = model(**inputs)
        else:
            output = model(*(inputs if isinstance(inputs, tuple | list) else (inputs,)))
    called = isinstance(output, Mapping) and "logits" in output
    logits = output["logits"] if called else first_tensor(output)
    if logits is None:
        raise LayerError(f"{type(model).__name__} gave no tensor to learn from.")
    mask = inputs["attention_mask"] if named and "attention_mask" in inputs else None
    return Knowledge(logits, heard(mask), mask)
