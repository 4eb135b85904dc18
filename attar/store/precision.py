"""How exactly knowledge is kept: floats of some width, few of many classes, eight-bit codes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from attar.errors import StoreError
from attar.heads import Sparse, dense
from attar.store.drawing import Few, quality
from attar.store.keys import Digest
from attar.store.rows import (
    LENGTH,
    SIZE,
    Form,
    Rows,
    Shape,
    form_of,
    gathered,
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

    logits: the float they are kept in, or int8: a few probabilities, in eight bits each
    top: how many of the classes are kept; None for all, or with draws for none
    features: the float they are kept in, or int8 with a float32 scale for each vector
    draws: how many classes are drawn, from all or from those that are not the top
    """

    logits: Coded = "fp32"
    top: int | None = None
    features: Coded = "fp16"
    draws: int | None = None

    def __post_init__(self) -> None:
        for name in ("logits", "features"):
            if vars(self)[name] not in get_args(Coded):
                known = ", ".join(get_args(Coded))
                raise StoreError(f"{name} can be kept in {known}, not in {vars(self)[name]!r}")
        if self.top is not None and self.top < 1:
            raise StoreError(f"top is how many classes are kept: 1 or more, not {self.top}")
        if self.draws is not None and self.draws < 1:
            raise StoreError(f"draws is how many classes are drawn: 1 or more, not {self.draws}")
        if self.logits == "int8" and self.top is None and self.draws is None:
            raise StoreError(
                "logits in int8 are those of a few classes: say how many (`top`, `draws`), or keep"
                " them in fp32, fp16 or bf16"
            )
        if self.logits in ("fp16", "bf16") and self.draws is not None:
            raise StoreError(f"draws are kept in eight bits, not in {self.logits}: leave it out")

    def facts(self) -> dict[str, Any]:
        """The same as JSON; what attar had no word for once is told where it is used."""
        return {name: value for name, value in asdict(self).items() if (name, value) != UNSAID}

    @property
    def packs(self) -> bool:
        """Whether a few probabilities of each token are kept, and not logits."""
        return self.draws is not None or self.logits == "int8"

    def few(self, shape: Shape) -> Few:
        """How answers of this shape are cut, where they are packed."""
        return Few(min(self.top or 0, shape[-1]), self.draws or 0, shape[-1])

    def shapes(self, form: Form) -> Form:
        """The parts of a row as they lie on disk, and the shape of each."""
        shapes: Form = {}
        for name, shape in parts_of(form).items():
            if name == "logits" and self.packs:
                shapes |= {"sizes": (), "packed": (SIZE,)}
                continue
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


PROBED = 256
"""Tokens that the quality of what is packed is measured on."""

UNSAID = ("draws", None)
"""The option that folders of version 2 do not speak of."""


def encoded(knowledge: Knowledge, digests: Sequence[Digest], kept: Kept) -> tuple[Form, Rows]:
    """Rows as they are kept, and their form.

    StoreError where padding is not on the right, or a value does not fit what it is kept in.
    """
    form, real = form_of(len(digests[0]), knowledge), real_of(knowledge)
    shapes, parts = kept.shapes(form), dict[str, Tensor]()
    for name, tensor in named(knowledge).items():
        if name == "logits" and kept.packs:
            parts |= _packed(
                tensor, digests, kept.few(form[name]), real if LENGTH in form[name] else None
            )
            continue
        given = _without_padding(dense(tensor).detach().cpu(), form[name], real)
        for part, values in _encoded(name, given, form[name], kept).items():
            parts[part] = unpadded(values, shapes[part], real)
    return form, Rows(shapes, real.sum(1).int(), parts)


def decoded(parts: dict[str, Tensor], real: Tensor, form: Form, kept: Kept) -> Knowledge:
    """Knowledge as it was before it was kept, in float32.

    parts: what is kept of it, (rows, *shape) each; real: (rows, length) of bool, no padding
    """
    names = parts_of(form)
    logits: Tensor | Sparse
    if kept.packs:
        logits = _unpacked(parts, names["logits"], real, kept)
    elif kept.cuts(names["logits"]):
        logits = _spread(parts, names["logits"], real)
    else:
        logits = parts["logits"]
    if kept.features == "int8":
        for name in names.keys() - {"logits"}:
            parts[name] *= _beside(parts[_scale(name)], parts[name])
    features = {name.removeprefix("feature:"): parts[name] for name in names if name != "logits"}
    return Knowledge(logits, features, real.long() if "mask" in form else None)


def probed(knowledge: Knowledge, rows: Sequence[Rows], form: Form, kept: Kept) -> dict[str, float]:
    """What packing costs and keeps of the first tokens: bytes a token, and `quality` of these."""
    few = min(len(rows), -(-PROBED // max(1, math.prod(knowledge.logits.shape[1:-1]))))
    parts, real = gathered([(row, 0) for row in rows[:few]])
    size = int(parts["sizes"].sum())
    known = decoded(parts, real, form, kept).logits
    whole = dense(knowledge.logits[:few].detach()).cpu()
    if LENGTH in form["logits"]:
        known, whole = known[real], whole[:, : real.shape[1]][real]
    else:
        known, whole = known.flat(), whole.view(-1, known.classes)
    if not len(whole):
        return {}
    told = quality(whole[:PROBED], known[:PROBED])
    return {"bytes_per_token": size / len(whole), "tokens": min(PROBED, len(whole)), **told}


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


def _packed(
    logits: Any, digests: Sequence[Digest], few: Few, real: Tensor | None
) -> dict[str, Tensor]:
    """The bytes of each row's answers, one row after another, and how many each has."""
    if logits.dim() > 3:
        raise StoreError(
            f"rows of logits of shape {tuple(logits.shape[1:])} can't be packed: give (rows,"
            " classes) or (rows, length, classes)"
        )
    rows = []
    for number, digest in enumerate(digests):
        own = logits[number]
        own = own if real is None else own[: int(real[number].sum())]
        rows.append(few.packed((own if own.dim() > 1 else own[None]).detach(), digest))
    sizes = torch.tensor([len(row) for row in rows], dtype=torch.int32)
    return {"sizes": sizes, "packed": torch.from_numpy(np.concatenate(rows))}


def _unpacked(parts: Mapping[str, Tensor], shape: Shape, real: Tensor, kept: Kept) -> Sparse:
    """What is known of each place's answers; of padding nothing."""
    few, places = kept.few(shape), real.shape[1] if LENGTH in shape else math.prod(shape[:-1])
    found = [
        few.unpacked(row[:size].numpy(), int(own.sum()) if LENGTH in shape else places)
        for row, size, own in zip(parts["packed"], parts["sizes"].tolist(), real, strict=True)
    ]
    most = max(ids.shape[1] for ids, _, _ in found)
    whole = len(found), places, most
    ids, weights = torch.zeros(whole, dtype=torch.long), torch.zeros(whole)
    rest = torch.ones(whole[:2])
    for number, row in enumerate(found):
        tokens, entries = row[0].shape
        for part, values in zip((ids, weights), row, strict=False):
            part[number, :tokens, :entries] = torch.from_numpy(values)
        rest[number, :tokens] = torch.from_numpy(row[2])
    if len(shape) == 1:
        ids, weights, rest = ids[:, 0], weights[:, 0], rest[:, 0]
    return Sparse(ids, weights, rest, few.top, few.classes)


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
