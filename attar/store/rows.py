"""Rows of knowledge without their padding: cut from batches, taken from shards, padded again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

from attar.errors import StoreError
from attar.types import Knowledge

LENGTH = -1
"""In the shape of a row: a dimension as long as that row's text."""

SIZE = -2
"""In the shape of a row: as many bytes as its part `sizes` says."""

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
Form = dict[str, Shape]
"""The parts of a row by name, and the shape of each."""


class Rows:
    """Some rows: how long the text of each is (0 without a mask), and their parts.

    lengths: (rows,) int32
    parts: each flat, one row after another, of every row what its shape says and no padding
    """

    def __init__(self, shapes: Form, lengths: Tensor, parts: Mapping[str, Tensor]) -> None:
        self.shapes, self.lengths, self.parts = shapes, lengths, parts

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.parts.values())

    @classmethod
    def join(cls, some: Sequence[Self]) -> Self:
        """Rows after rows; of at least one."""
        parts = {name: torch.cat([rows.parts[name] for rows in some]) for name in some[0].shapes}
        return cls(some[0].shapes, torch.cat([rows.lengths for rows in some]), parts)

    def each(self) -> list[Self]:
        """Every row by itself."""
        split = {
            name: torch.split_with_sizes(self.parts[name], self._counts(shape).tolist())
            for name, shape in self.shapes.items()
        }
        kind = type(self)
        return [
            kind(
                self.shapes, self.lengths[n : n + 1], {name: own[n] for name, own in split.items()}
            )
            for n in range(len(self))
        ]

    def bits(self, name: str, position: int) -> Array:
        """A part of one row, flat and without its padding; bfloat16 as the integers of its bits."""
        fixed, depth = self._steps[name]
        if depth == 0 and SIZE not in self.shapes[name]:
            return self._arrays[name][fixed * position : fixed * (position + 1)]
        ends = self._ends[SIZE if SIZE in self.shapes[name] else depth]
        return self._arrays[name][fixed * ends[position] : fixed * ends[position + 1]]

    def length(self, position: int) -> int:
        """How long the text of one row is."""
        return int(self._lengths[position])

    def _counts(self, shape: Shape) -> Tensor:
        """(rows,): how many numbers each has of a part of this shape."""
        if SIZE in shape:
            return self.parts["sizes"].long()
        return _fixed(shape) * self.lengths.long() ** shape.count(LENGTH)

    @cached_property
    def _lengths(self) -> Array:
        return _bits(self.lengths)

    @cached_property
    def _arrays(self) -> dict[str, Array]:
        return {name: _bits(part) for name, part in self.parts.items()}

    @cached_property
    def _steps(self) -> dict[str, tuple[int, int]]:
        return {name: (_fixed(shape), shape.count(LENGTH)) for name, shape in self.shapes.items()}

    @cached_property
    def _ends(self) -> dict[int, Array]:
        """Where each row begins and ends, were every place one number: by how ragged a part is."""
        depths = {depth for _, depth in self._steps.values()}
        counts = {depth: self._counts((LENGTH,) * depth) for depth in depths - {0}}
        if "sizes" in self.parts:
            counts[SIZE] = self._counts((SIZE,))
        return {depth: pad(count.cumsum(0), (1, 0)).numpy() for depth, count in counts.items()}


def gathered(picks: Sequence[tuple[Rows, int]]) -> tuple[dict[str, Tensor], Tensor]:
    """Rows from here and there, each a position in some rows, padded with zeros to the longest.

    Gives every part as (rows, *shape), floats and codes of one byte as float32, other whole numbers
    as int64, bytes as bytes; and (rows, longest) of bool, which places are real.
    """
    first, _ = picks[0]
    lengths = [rows.length(position) for rows, position in picks]
    longest = max(lengths)
    parts = {
        name: _padded(picks, name, _sized(shape, longest), lengths)
        for name, shape in first.shapes.items()
        if SIZE not in shape
    }
    for name in first.shapes.keys() - parts.keys():
        parts[name] = _padded(picks, name, (int(parts["sizes"].max()),), parts["sizes"].tolist())
    return parts, torch.arange(longest) < torch.tensor(lengths)[:, None]


def _padded(
    picks: Sequence[tuple[Rows, int]], name: str, size: Shape, lengths: Sequence[int]
) -> Tensor:
    # Row by row through NumPy: with a few dozen rows a step, calls cost more than copies do.
    first, _ = picks[0]
    shape, dtype = first.shapes[name], first.parts[name].dtype
    batch = np.zeros((len(picks), *size), _bits(first.parts[name]).dtype)
    for number, (rows, position) in enumerate(picks):
        values = rows.bits(name, position)
        if LENGTH in shape or SIZE in shape:
            own = _sized(shape, lengths[number])
            batch[number][tuple(map(slice, own))] = values.reshape(own)
        else:
            batch[number] = values.reshape(shape)
    part = torch.from_numpy(batch).view(dtype)
    if dtype == torch.uint8:
        return part
    return part.float() if dtype.is_floating_point or dtype == torch.int8 else part.long()


def _bits(part: Tensor) -> Array:
    """A tensor as NumPy knows it, which has no bfloat16."""
    array: Array = (part.view(torch.int16) if part.dtype == torch.bfloat16 else part).numpy()
    return array


def form_of(width: int, knowledge: Knowledge) -> Form:
    """The form of a batch's rows, its parts named as in `named`.

    width: bytes of a key
    StoreError where a part does not fit the mask.
    """
    length = None if knowledge.mask is None else knowledge.mask.shape[1]
    parts = named(knowledge).items()
    return {
        "keys": (width,),
        **({} if length is None else {"mask": (LENGTH,)}),
        **{name: _row_shape(name, tensor.shape[1:], length) for name, tensor in parts},
    }


def _row_shape(name: str, shape: Shape, length: int | None) -> Shape:
    if length is None or len(shape) < 2:
        return tuple(shape)
    if len(shape) == 2 and shape[0] == length:
        return LENGTH, shape[1]
    if len(shape) == 3 and shape[1] == shape[2] == length:
        return shape[0], LENGTH, LENGTH
    raise StoreError(
        f"{name} has rows of shape {tuple(shape)}, which do not fit a mask of length {length}:"
        " give (rows, width), (rows, length, width) or (rows, heads, length, length), or no mask"
    )


def named(knowledge: Knowledge) -> dict[str, Any]:
    """The parts of knowledge, each under the name it has on disk; logits may be Headed."""
    features = {f"feature:{path}": feature for path, feature in knowledge.features.items()}
    return {"logits": knowledge.logits, **features}


def parts_of(form: Form) -> Form:
    """What of a form is knowledge."""
    return {name: shape for name, shape in form.items() if name not in ("keys", "mask")}


def real_of(knowledge: Knowledge) -> Tensor:
    """(rows, length) of bool: what is no padding; StoreError unless all padding is on the right."""
    whole = torch.zeros(len(knowledge.logits), 0)
    real = (whole if knowledge.mask is None else knowledge.mask.detach().cpu()) != 0
    unlike = (real != (torch.arange(real.shape[1]) < real.sum(1)[:, None])).any(1)
    if unlike.any():
        raise StoreError(
            f"the mask of row {int(unlike.int().argmax())} has padding before or between what is"
            " real: let the tokenizer pad on the right"
        )
    return real


def unpadded(tensor: Tensor, shape: Shape, real: Tensor) -> Tensor:
    """A part (rows, *shape) flat, one row after another, without its padding."""
    return (tensor if LENGTH not in shape else tensor[places(shape, real)]).flatten()


def places(shape: Shape, real: Tensor) -> Tensor:
    """Where a part (rows, *shape) is real; without the dimensions after the last ragged one."""
    before, _ = _around(shape)
    found = real.new_ones(len(real), *_sized(before, real.shape[1]))
    for axis, size in enumerate(before, 1):
        if size == LENGTH:
            found &= real.view(len(real), *(-1 if n == axis else 1 for n in range(1, found.dim())))
    return found


def _around(shape: Shape) -> tuple[Shape, Shape]:
    """A shape up to its last ragged dimension, and what stands after it."""
    end = len(shape) - shape[::-1].index(LENGTH)
    return shape[:end], shape[end:]


def _fixed(shape: Shape) -> int:
    return math.prod(size for size in shape if size not in (LENGTH, SIZE))


def _sized(shape: Shape, length: int) -> Shape:
    return tuple(length if size in (LENGTH, SIZE) else size for size in shape)
