"""Whole numbers in few bits: of one width, of a width each, and rising ids by their gaps."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]
Raw = npt.NDArray[np.uint8]

WIDEST = 24
"""Bits of the largest number: a window of 32 has room for it wherever in a byte it begins."""
_SHIFT = 5
"""Bits of a shift from 0 to WIDEST."""


class Writer:
    """Numbers on their way into bytes, the lowest bit of each first."""

    def __init__(self) -> None:
        self._bits: list[Raw] = []

    def put(self, numbers: npt.NDArray[Any], widths: int | Numbers) -> None:
        """Numbers (count,), each in so many bits."""
        widths = np.broadcast_to(np.asarray(widths, np.int64), numbers.shape)
        starts = np.repeat(widths.cumsum() - widths, widths)
        places = np.arange(int(widths.sum())) - starts
        self._bits.append(((np.repeat(numbers, widths) >> places) & 1).astype(np.uint8))

    def unary(self, numbers: npt.NDArray[Any]) -> None:
        """Numbers (count,), each as so many zeros and a one."""
        ends = (numbers + 1).cumsum() - 1
        bits = np.zeros(int(ends[-1]) + 1 if len(ends) else 0, np.uint8)
        bits[ends] = 1
        self._bits.append(bits)

    def bytes(self) -> Raw:
        """All that was put, in its order."""
        return np.packbits(np.concatenate(self._bits or [np.empty(0, np.uint8)]), bitorder="little")


class Reader:
    """Gives back what a `Writer` was given, in the same order."""

    def __init__(self, raw: Raw) -> None:
        self._bits = np.unpackbits(raw, bitorder="little")
        self._raw = np.pad(raw, (0, 4)).astype(np.uint32)
        self._at = 0

    def get(self, count: int, widths: int | Numbers) -> Numbers:
        """Numbers (count,), of so many bits each."""
        widths = np.broadcast_to(np.asarray(widths, np.int64), (count,))
        starts = self._at + widths.cumsum() - widths
        self._at += int(widths.sum())
        first, raw = starts >> 3, self._raw
        window: Numbers = (
            raw[first] | raw[first + 1] << 8 | raw[first + 2] << 16 | raw[first + 3] << 24
        )
        window = window.astype(np.int64)
        return (window >> (starts & 7)) & ((1 << widths) - 1)

    def flags(self, count: int) -> Raw:
        """Numbers (count,) of one bit."""
        self._at += count
        return self._bits[self._at - count : self._at]

    def unary(self, count: int) -> Numbers:
        """Numbers (count,) that were put as zeros and a one; nothing can be read after them."""
        ends = np.flatnonzero(self._bits[self._at :])[:count]
        return np.diff(ends, prepend=-1) - 1


def gaps(ids: Numbers, counts: Numbers) -> Numbers:
    """Of rising ids, group after group, how many were left out before each of its group."""
    before: Numbers = np.concatenate([[-1], ids[:-1]])
    before[_starts(counts)] = -1
    return ids - before - 1


def ids_of(left_out: Numbers, counts: Numbers) -> Numbers:
    """The rising ids that have these gaps."""
    summed: Numbers = (left_out + 1).cumsum()
    starts = _starts(counts)
    base = summed[starts] - left_out[starts] - 1
    return summed - np.repeat(base, counts[counts > 0]) - 1


def shifts(left_out: Numbers, counts: Numbers) -> Numbers:
    """For each group how many low bits of its gaps are best kept apart (Rice, 1979).

    A gap g costs g >> shift zeros, a one and the shift: least where 2^shift is about the mean.
    """
    group = np.repeat(np.arange(len(counts)), counts)
    costs = [
        np.bincount(group, (left_out >> shift) + shift, len(counts)) for shift in range(WIDEST + 1)
    ]
    best: Numbers = np.argmin(costs, 0)
    return best


def put_shifts(writer: Writer, each: Numbers) -> None:
    """What `get_shifts` reads."""
    writer.put(each, _SHIFT)


def get_shifts(reader: Reader, count: int) -> Numbers:
    """The shift of each group."""
    return reader.get(count, _SHIFT)


def _starts(counts: Numbers) -> Numbers:
    """Where each group begins that has anything in it."""
    return (counts.cumsum() - counts)[counts > 0]
