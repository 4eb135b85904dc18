"""Views of pictures: flipped, shifted, cropped, mixed with others; the same for whoever asks."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attar.store import key
from attar.types import Batch, Mixture

View = Literal["flip", "shift", "crop", "cutout", "mixup", "cutmix"]

SHIFTED = 1 / 8
"""Share of the side that a picture is moved by at most: 4 of 32 pixels (He et al. 2015)."""
AREA = (0.25, 1.0)
"""Share of a picture's area that a crop shows: less mean of what is left of a small picture."""
STRETCHED = 4 / 3
"""A crop's longer side by its shorter one at most (Szegedy et al. 2015)."""
HOLE = 1 / 2
"""Share of the side that a hole is wide: 16 of 32 pixels (DeVries and Taylor 2017)."""

DRAWS = 15
"""Random numbers that a view is made of; each kind always reads the same ones."""
STEPS = 2**16
"""Values that such a number can have."""


def viewed(batch: Batch, kinds: Sequence[View], view: str) -> Batch:
    """The pictures of a batch as they look in one view.

    Picture and view alone decide what is drawn: a teacher and a student that are asked for the same
    view see the same, and the key, which is of both, is the address of what was answered to it.
    """
    keys = tuple(key(f"{each} {'+'.join(kinds)} {view}") for each in batch.keys)
    drawn, pictures = _drawn(keys), batch.inputs
    for kind, change in CHANGES.items():
        if kind in kinds:
            pictures = change(pictures, drawn)
    return replace(batch, inputs=pictures, keys=keys)


def partners(batch: Batch, among: Sequence[int]) -> list[int]:
    """Which row is mixed into each picture of a viewed batch.

    among: the rows to choose from
    """
    fine = _drawn(batch.keys)[:, 9:11].double() @ torch.tensor([1.0, 1 / STEPS]).double()
    return [among[place] for place in (fine * len(among)).long().tolist()]


def mixed(batch: Batch, other: Batch, kinds: Sequence[View]) -> Batch:
    """A viewed batch, each picture with some of another's in it: at most half.

    With both kinds each picture has one of them, as its key decides. Shares are drawn evenly, as of
    Beta(1, 1); a share above a half would be another picture's with less.

    other: the viewed pictures that are mixed in, row by row
    Sources: Zhang et al., mixup, ICLR 2018; Yun et al., CutMix, ICCV 2019.
    """
    drawn = _drawn(batch.keys)
    share, pasted = drawn[:, 12] / 2, _pasted(drawn, batch.inputs.shape)
    cut = torch.full_like(share, "cutmix" in kinds, dtype=torch.bool)
    if {"mixup", "cutmix"} <= set(kinds):
        cut = drawn[:, 11] < 0.5
    blend = torch.where(cut[:, None, None, None], pasted.float(), share[:, None, None, None])
    pictures = batch.inputs + blend * (other.inputs.float() - batch.inputs)
    known = Mixture(other.labels, torch.where(cut, pasted.float().mean((1, 2, 3)), share))
    both = zip(batch.keys, other.keys, strict=True)
    keys = tuple(key(f"{one} with {another}") for one, another in both)
    return replace(batch, inputs=pictures.round().to(torch.uint8), keys=keys, mixed=known)


def _pasted(drawn: Tensor, shape: Sequence[int]) -> Tensor:
    """Where (rows, 1, height, width) a box of another picture is put, which the edge may cut."""
    half = (drawn[:, 12] / 2).sqrt() / 2
    inside = []
    for n, side in ((13, shape[2]), (14, shape[3])):
        away = (torch.arange(side) + 0.5) / side - drawn[:, n, None]
        inside.append(away.abs() < half[:, None])
    return (inside[0][:, :, None] & inside[1][:, None, :]).unsqueeze(1)


def _drawn(addresses: Sequence[str]) -> Tensor:
    return torch.from_numpy(np.stack([_draws(each) for each in addresses]))


def _draws(address: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Numbers from 0 up to 1 that a key decides, in steps of 2 to the -16."""
    numbers = np.frombuffer(hashlib.sha256(address.encode()).digest(), "<u2")
    return (numbers[:DRAWS] / STEPS).astype(np.float32)


def _flipped(pictures: Tensor, drawn: Tensor) -> Tensor:
    return torch.where(drawn[:, 0, None, None, None] < 0.5, pictures.flip(3), pictures)


def _shifted(pictures: Tensor, drawn: Tensor) -> Tensor:
    """Moved by whole pixels, black where nothing was."""
    height, width = pictures.shape[2:]
    down, across = (round(SHIFTED * side) for side in (height, width))
    padded = F.pad(pictures, (across, across, down, down))
    top = (drawn[:, 1] * (2 * down + 1)).long()
    left = (drawn[:, 2] * (2 * across + 1)).long()
    corners = zip(padded, top.tolist(), left.tolist(), strict=True)
    return torch.stack([each[:, y : y + height, x : x + width] for each, y, x in corners])


def _cropped(pictures: Tensor, drawn: Tensor) -> Tensor:
    """A part of each picture, of some area and proportion, scaled to the size of the whole."""
    area = AREA[0] + (AREA[1] - AREA[0]) * drawn[:, 3]
    stretch = torch.exp((2 * drawn[:, 4] - 1) * math.log(STRETCHED) / 2)
    wide, high = ((area.sqrt() * each).clamp(max=1) for each in (stretch, 1 / stretch))
    # Places run from -1 to 1, so a part as wide as `wide` may be moved by 1 - wide either way.
    middle = torch.stack([(1 - each) * (2 * drawn[:, n] - 1) for n, each in ((5, wide), (6, high))])
    zero = torch.zeros_like(wide)
    turn = torch.stack([wide, zero, middle[0], zero, high, middle[1]], 1).view(-1, 2, 3)
    places = F.affine_grid(turn, list(pictures.shape), align_corners=False)
    seen = F.grid_sample(pictures.float(), places, padding_mode="border", align_corners=False)
    return seen.round().to(torch.uint8)


def _with_hole(pictures: Tensor, drawn: Tensor) -> Tensor:
    """A square of grey, which may reach over the edge."""
    height, width = pictures.shape[2:]
    inside = []
    for n, side in ((7, height), (8, width)):
        away = torch.arange(side) - (drawn[:, n, None] * side).floor()
        inside.append((away >= -HOLE * side / 2) & (away < HOLE * side / 2))
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return pictures.masked_fill(hole, GREY)


GREY = 128
"""What a hole shows: about the mean of all pictures, which normalization takes to zero."""

CHANGES = {"flip": _flipped, "shift": _shifted, "crop": _cropped, "cutout": _with_hole}
"""What each kind makes of pictures (rows, 3, height, width) and the numbers drawn for each."""
MIXTURES = ("mixup", "cutmix")
"""The kinds that put some of another picture into each."""
