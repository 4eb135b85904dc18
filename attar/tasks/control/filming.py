"""A few pictures of one episode for each who acts, taken at the same steps, as PNG in text."""

from __future__ import annotations

import base64
import os
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from attar.errors import DataError, MissingExtra
from attar.tasks.control.playing import Answer, Seat, play
from attar.tasks.control.worlds import Numbers, World
from attar.tasks.tables import reason

SCREEN = "SDL_VIDEODRIVER"
"""Where SDL, by which environments draw, is told what its screen is."""

FRAMES = 8
"""Pictures of an episode: as many as stand beside one another on a page."""

SIDE = 160
"""Pixels of a picture's longer side, at most."""

COLOURS = np.array(
    [
        (24, 20, 28),
        (86, 180, 233),
        (240, 228, 66),
        (213, 94, 0),
        (0, 158, 115),
        (204, 121, 167),
        (230, 159, 0),
        (0, 114, 178),
        (255, 255, 255),
    ],
    np.uint8,
)
"""Nothing, then each channel of yes and no: Okabe and Ito's, which the colour-blind tell apart."""


def film(world: World, actors: Mapping[str, Answer], seed: int) -> dict[str, Any]:
    """What an environment looked like at the same steps of one seed's episode, whoever acted.

    Gives `steps`, counted from 1 and spread over the longest episode, and a record for each who
    acts: its `return`, its `length`, and as many `pictures` (PNG, base64) as there are steps
    before its end. Where the environment can't be drawn there are none, and `why` says so.
    """
    told: dict[str, Any] = {"environment": world.name, "seed": seed, "steps": [], "rows": []}
    episodes = {name: play(world, answer, [seed])[0] for name, answer in actors.items()}
    longest = max(len(each.rewards) for each in episodes.values())
    at = np.unique(np.linspace(0, longest - 1, FRAMES).astype(int)).tolist()
    try:
        shown = {name: list(_pictures(world, actors[name], seed, at)) for name in actors}
    except (DataError, MissingExtra) as error:
        return told | {"why": str(error)}
    rows = [
        {
            "name": name,
            "return": episode.total,
            "length": len(episode.rewards),
            "pictures": [base64.b64encode(png(each)).decode() for each in shown[name]],
        }
        for name, episode in episodes.items()
    ]
    return told | {"steps": [step + 1 for step in at], "rows": rows, "why": ""}


def _pictures(world: World, answer: Answer, seed: int, at: list[int]) -> Iterator[Numbers]:
    """The pictures (height, width, 3) at some steps of an episode, as far as it goes."""
    with _windowless(), closing(Seat(world, drawn=True)) as seat:
        seat.begin(seed)
        for step in range(at[-1] + 1):
            if step in at:
                yield _scaled(_coloured(seat.shown(), world) if world.picture else _drawn(seat))
            if seat.step(answer(seat.shown()[None])[0], 0.0, None, False) is not None:
                return


@contextmanager
def _windowless() -> Iterator[None]:
    """Without a screen for SDL, which complains where there is none and needs none to draw."""
    before = os.environ.get(SCREEN)
    os.environ.setdefault(SCREEN, "dummy")
    try:
        yield
    finally:
        if before is None:
            del os.environ[SCREEN]


def _drawn(seat: Seat) -> Numbers:
    """How the environment draws itself. Raises DataError where it fails to."""
    name = seat.world.name
    try:
        with warnings.catch_warnings():
            # Libraries that draw warn of one another's ways; nobody who reads a report can help it.
            warnings.simplefilter("ignore")
            picture = np.asarray(seat.environment.render())
    except Exception as error:  # an environment may raise anything
        said = reason(error).rstrip(".")
        raise DataError(f"{name} could not be drawn: {said}.") from error
    if picture.ndim != 3 or picture.shape[2] != 3:
        raise DataError(f"{name} draws nothing.")
    return picture.astype(np.uint8)


def _coloured(shown: Numbers, world: World) -> Numbers:
    """What a model sees of pixels as colours: (channels, height, width) to (height, width, 3)."""
    last = shown[-(shown.shape[0] // world.view.frames) :]
    if world.highest == 1:
        top = (last.astype(int) * np.arange(1, len(last) + 1)[:, None, None]).max(0)
        return COLOURS[np.where(top > 0, (top - 1) % (len(COLOURS) - 1) + 1, 0)]
    colours = last if len(last) == 3 else np.repeat(last.mean(0, keepdims=True), 3, 0)
    return np.ascontiguousarray(np.moveaxis(colours, 0, -1)).astype(np.uint8)


def _scaled(picture: Numbers) -> Numbers:
    """A picture brought near to the size it is shown in: pixels repeated, or many made one."""
    longest = max(picture.shape[:2])
    if longest <= SIDE:
        return picture.repeat(SIDE // longest, 0).repeat(SIDE // longest, 1)
    pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float()
    sides = tuple(round(side * SIDE / longest) for side in picture.shape[:2])
    smaller = F.interpolate(pixels, sides, mode="bilinear", antialias=True)
    return smaller[0].permute(1, 2, 0).round().clamp(0, 255).numpy().astype(np.uint8)


def png(picture: Numbers) -> bytes:
    """A picture (height, width, 3) uint8 as a PNG file.

    Each line is kept as what differs from the one above, of which there is little.
    Source: W3C, Portable Network Graphics Specification, 2003, sections 5, 9 and 11.
    """
    height, width, _ = picture.shape
    lines = picture.reshape(height, -1)
    above = np.vstack([np.zeros_like(lines[:1]), lines[:-1]])
    up = np.full((height, 1), 2, np.uint8)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(np.hstack([up, lines - above]).tobytes(), 9)
    chunks = ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
