"""How exactly knowledge is kept: floats of some width, the top of the logits, eight-bit codes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import pad

from attar.errors import StoreError
from attar.store.rows import (
    LENGTH,
    Form,
    Rows,
    Shape,
    form_of,
    named,
    parts_of,
    places,
    real_of,
    unpadded,
)
from attar.types import Knowledge

Float = Literal["fp32", "fp16", "bf16"]
Coded = Literal["fp32", "fp16", "bf16", "int8"]

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_CODES = 127
"""The largest code of eight bits; the smallest is its negative, so that zero is exact."""
_SMALLEST = torch.finfo(torch.float32).tiny
"""The least scale: below it a float loses digits, and a vector of zeros would be 0 / 0."""


@dataclass(frozen=True)
class Kept:
    """How exactly a store keeps what it is given; `get` gives float32 whatever was kept.

    logits: the float they are kept in
    top: how many of the classes are kept; None for all
    features: the float they are kept in, or int8 with a float32 scale for each vector
    """

    logits: Float = "fp32"
    top: int | None = None
    features: Coded = "fp16"

    def __post_init__(self) -> None:
        for name, kind in (("logits", Float), ("features", Coded)):
            if vars(self)[name] not in get_args(kind):
                known = ", ".join(get_args(kind))
                raise StoreError(f"{name} can be kept in {known}, not in {vars(self)[name]!r}")
        if self.top is not None and self.top < 1:
            raise StoreError(f"top is how many classes are kept: 1 or more, not {self.top}")

    def facts(self) -> dict[str, Any]:
        """The same as JSON."""
        return asdict(self)

    def shapes(self, form: Form) -> Form:
        """The parts of a row as they lie on disk, and the shape of each."""
        shapes: Form = {}
        for name, shape in parts_of(form).items():
            shapes[name] = shape
            if name == "logits" and self.cuts(shape):
                shapes["logits"] = shapes["classes"] = (*shape[:-1], self.top or 0)
                shapes["rest"] = shape[:-1]
            elif name != "logits" and self.features == "int8":
                shapes[_scale(name)] = shape[:-1]
        return shapes

    def cuts(self, shape: Shape) -> bool:
        """Whether logits of this shape have classes that are not kept one by one."""
        return self.top is not None and len(shape) > 0 and self.top < shape[-1]


def encoded(knowledge: Knowledge, width: int, kept: Kept) -> tuple[Form, Rows]:
    """Rows as they are kept, and their form.

    width: bytes of a key
    StoreError where padding is not on the right, or a value does not fit what it is kept in.
    """
    form, real = form_of(width, knowledge), real_of(knowledge)
    shapes, parts = kept.shapes(form), dict[str, Tensor]()
    for name, tensor in named(knowledge).items():
        given = _without_padding(tensor.detach().cpu(), form[name], real)
        for part, values in _encoded(name, given, form[name], kept).items():
            parts[part] = unpadded(values, shapes[part], real)
    return form, Rows(shapes, real.sum(1).int(), parts)


def decoded(parts: dict[str, Tensor], real: Tensor, form: Form, kept: Kept) -> Knowledge:
    """Knowledge as it was before it was kept, in float32.

    parts: what is kept of it, (rows, *shape) each; real: (rows, length) of bool, no padding
    """
    names = parts_of(form)
    if kept.cuts(names["logits"]):
        parts["logits"] = _spread(parts, names["logits"], real)
    if kept.features == "int8":
        for name in names.keys() - {"logits"}:
            parts[name] *= _beside(parts[_scale(name)], parts[name])
    features = {name.removeprefix("feature:"): parts[name] for name in names if name != "logits"}
    return Knowledge(parts["logits"], features, real.long() if "mask" in form else None)


def _encoded(name: str, values: Tensor, shape: Shape, kept: Kept) -> dict[str, Tensor]:
    if name != "logits":
        if kept.features == "int8":
            return _coded(name, values)
        return {name: _cast(name, values, kept.features)}
    if not kept.cuts(shape):
        return {name: _cast(name, values, kept.logits)}
    values = values.float()
    top, classes = values.topk(kept.top or 0)
    rest = values.scatter(-1, classes, -math.inf).logsumexp(-1)
    few = shape[-1] <= torch.iinfo(torch.int16).max
    return {
        name: _cast(name, top, kept.logits),
        "classes": classes.to(torch.int16 if few else torch.int32),
        "rest": rest,
    }


def _spread(parts: Mapping[str, Tensor], shape: Shape, real: Tensor) -> Tensor:
    """Logits of all classes: the top as it is, what is left shared evenly by all others."""
    top, classes, rest = parts["logits"], parts["classes"], parts["rest"]
    others = rest - math.log(shape[-1] - top.shape[-1])
    whole = others[..., None].repeat(*(1 for _ in others.shape), shape[-1])
    whole.scatter_(-1, classes, top)
    if LENGTH in shape:
        whole[~places(shape, real)] = 0.0
    return whole


def _coded(name: str, values: Tensor) -> dict[str, Tensor]:
    """Eight-bit codes, and for each vector of them what one step of the code is worth."""
    values = values.float()
    if not values.isfinite().all():
        raise StoreError(
            f"{name} has values that are not finite, for which int8 has no code: keep features in"
            " fp16, bf16 or fp32"
        )
    # A vector without a number, of a text without a token, has a largest one too: the added zero.
    vectors = values if values.dim() > 1 else values[:, None]
    scale = (pad(vectors.abs(), (0, 1)).amax(-1) / _CODES).clamp_min(_SMALLEST)
    codes = (vectors / scale[..., None]).round().to(torch.int8)
    return {name: codes.view(values.shape), _scale(name): scale}


def _cast(name: str, values: Tensor, kept: str) -> Tensor:
    dtype = _DTYPES[kept]
    cast = values.to(dtype, copy=True)  # the caller may change its own tensor afterwards
    if not torch.equal(cast.isfinite(), values.isfinite()):
        option = "logits" if name == "logits" else "features"
        raise StoreError(
            f"{name} has values beyond {torch.finfo(dtype).max:g}, the most that {kept} holds:"
            f" keep {option} in bf16 or fp32"
        )
    return cast


def _without_padding(tensor: Tensor, shape: Shape, real: Tensor) -> Tensor:
    """The same with zeros for whatever stands in the padding."""
    if LENGTH not in shape:
        return tensor
    return tensor.masked_fill(~_beside(places(shape, real), tensor), 0)


def _beside(few: Tensor, many: Tensor) -> Tensor:
    """A tensor with as many dimensions as another, of which it has the first ones."""
    return few.view(*few.shape, *(1 for _ in range(many.dim() - few.dim())))


def _scale(name: str) -> str:
    return f"scale:{name.removeprefix('feature:')}"
