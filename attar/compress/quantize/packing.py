"""Codes of few bits, several in a byte."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LANES = (2, 4, 8)
"""Bits that a code can take of a byte."""


def lane_of(bits: int) -> int:
    """The bits of a byte that a code of so many bits takes."""
    return next(lane for lane in LANES if bits <= lane)


def pack(codes: Tensor, lane: int) -> Tensor:
    """Codes (..., count) in bytes (..., ceil(count * lane / 8)), the first in the lowest bits."""
    shifts = torch.arange(0, 8, lane, dtype=torch.int32, device=codes.device)
    filled = F.pad(codes, (0, -codes.shape[-1] % len(shifts))).to(torch.int32)
    bytes_: Tensor = (filled.unflatten(-1, (-1, len(shifts))) << shifts).sum(-1)
    return bytes_.to(torch.uint8)


def unpack(packed: Tensor, lane: int) -> Tensor:
    """The codes of bytes, those that fill up the last byte included."""
    shifts = torch.arange(0, 8, lane, dtype=torch.uint8, device=packed.device)
    spread = packed.unsqueeze(-1)
    if torch.onnx.is_in_onnx_export():
        # What torch writes for a shift mixes signed bytes with unsigned ones.
        shifted = torch.onnx.ops.symbolic(
            "BitShift",
            [spread, shifts],
            {"direction": "RIGHT"},
            dtype=torch.uint8,
            shape=(*packed.shape, len(shifts)),
        )
    else:
        shifted = spread >> shifts
    codes: Tensor = shifted & (2**lane - 1)
    return codes.flatten(-2)
