"""From what a source holds to pixels: eight bits, three channels, one size."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attar.errors import DataError, MissingExtra
from attar.store import key
from attar.tasks.tables import Table
from attar.tasks.vision.reading import Album, Raw

KEPT = 2**29
"""Bytes of pixels that are kept in memory; pictures that need more are decoded batch by batch."""
LISTED = 9
"""Bad pictures that a note names; of the others it gives the number."""
WHITE = 65535
"""The brightest of 16 bits."""

ORIENTATION = 274
"""The number of Exif's tag for how the camera was held."""

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


class Bad(Exception):
    """A picture that can't be used; says why, as the end of a sentence."""


def decoded(raw: Raw, side: int | None = None) -> Pixels:
    """The pixels (height, width, 3) of a picture.

    side: scaled so that the shorter side is so long, and the middle cut out
    Raises Bad where it is damaged or of another kind.
    """
    pixels = _of_array(raw) if isinstance(raw, np.ndarray) else _of_file(raw)
    if side is not None and pixels.shape[:2] != (side, side):
        from PIL import Image, ImageOps

        image = Image.fromarray(pixels)
        pixels = np.asarray(ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC))
    return np.ascontiguousarray(pixels)


def _of_array(array: np.ndarray[Any, Any]) -> Pixels:
    if array.dtype == np.bool_:
        array = array * np.uint8(255)
    elif array.dtype.kind == "u" and array.itemsize == 2:  # in either order of the bytes
        array = _of_sixteen(array)
    elif array.dtype.kind == "f":
        if not ((array >= 0) & (array <= 1)).all():
            raise Bad("holds decimal numbers outside of 0 to 1: scale them, or give whole ones")
        array = np.rint(array * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise Bad(f"holds {array.dtype}, and pixels are uint8, uint16, or decimals from 0 to 1")
    grey = array[..., None] if array.ndim == 2 else array
    return np.repeat(grey, 3, axis=2) if grey.shape[2] == 1 else grey[..., :3]


def _of_file(raw: bytes | Path) -> Pixels:
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise MissingExtra("Pillow", "vision", "decoding pictures") from error
    try:
        content = raw.read_bytes() if isinstance(raw, Path) else raw
        if not content:
            raise Bad("is empty (zero bytes)")
        with Image.open(BytesIO(content)) as image:
            # Asked of every picture, a turn that none of them needs would double the time.
            turned = image.getexif().get(ORIENTATION, 1) != 1
            upright = ImageOps.exif_transpose(image) if turned else image
            if upright.mode == "F":
                raise Bad("holds decimal numbers, which say nothing of black and white")
            if upright.mode.startswith("I"):
                upright = Image.fromarray(_of_sixteen(np.asarray(upright)))
            return np.asarray(upright.convert("RGB"))
    except UnidentifiedImageError:
        raise Bad("is no picture that Pillow knows") from None
    except Bad:
        raise
    except Exception as error:  # each of Pillow's decoders raises what it likes
        said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise Bad(f"can't be decoded ({said})") from error


def _of_sixteen(array: np.ndarray[Any, Any]) -> Pixels:
    """Eight bits of sixteen: from black at 0 to white at 65535."""
    if array.min() < 0 or array.max() > WHITE:
        raise Bad("holds numbers outside of 16 bits")
    return ((array.astype(np.int64) * 255 + WHITE // 2) // WHITE).astype(np.uint8)


@dataclass(frozen=True)
class Pictures:
    """All pictures of a task by row, as pixels or, where those are too many, as files.

    shape: (height, width) of all
    places: where each comes from, in words
    """

    raw: Sequence[tuple[Album, int]]
    side: int | None
    shape: tuple[int, int]
    pixels: Tensor | None
    places: Sequence[str]

    def at(self, rows: Sequence[int]) -> Tensor:
        """The pixels (rows, 3, height, width) uint8 of some rows."""
        if self.pixels is not None:
            return self.pixels[list(rows)]
        return torch.stack([_channels_first(self._decoded(row)) for row in rows])

    def _decoded(self, row: int) -> Pixels:
        album, number = self.raw[row]
        try:
            return decoded(album.pictures[number], self.side)
        except Bad as error:
            raise DataError(f"{_place(album, number)} {error}.") from error


def look_through(
    albums: dict[str, Album], side: int | None, skip_bad: bool
) -> tuple[Pictures, dict[str, Table], list[str]]:
    """Every picture decoded once: which are good, what tells them apart, and what to note.

    skip_bad: leave out the bad ones, and list them, instead of raising DataError at the first
    """
    total = sum(len(album.pictures) for album in albums.values())
    raw: list[tuple[Album, int]] = []
    keys: dict[str, list[str]] = {part: [] for part in albums}
    rows: dict[str, list[int]] = {part: [] for part in albums}
    kept, shape, bad = None, (0, 0), list[str]()
    for part, row, seen in _good(albums, side, skip_bad, bad):
        if not raw:
            shape = (seen.shape[0], seen.shape[1])
            if total * 3 * shape[0] * shape[1] <= KEPT:
                kept = torch.empty(total, 3, *shape, dtype=torch.uint8)
        if seen.shape[:2] != shape:
            raise DataError(_other_size(_place(albums[part], row), seen.shape, shape))
        if kept is not None:
            kept[len(raw)] = _channels_first(seen)
        raw.append((albums[part], row))
        rows[part].append(row)
        keys[part].append(key(f"{seen.shape}".encode() + seen.tobytes()))
    tables = {part: _table(album, rows[part], keys[part]) for part, album in albums.items()}
    pixels = None if kept is None else kept[: len(raw)]
    places = [_place(*each) for each in raw]
    pictures = Pictures(raw if pixels is None else (), side, shape, pixels, places)
    return pictures, tables, _told(bad) + _lost(albums["train"], tables["train"])


def _good(
    albums: dict[str, Album], side: int | None, skip_bad: bool, bad: list[str]
) -> Iterator[tuple[str, int, Pixels]]:
    """The good pictures with their part and row; what is wrong with the others goes into `bad`."""
    known = {*albums["train"].classes, *albums["train"].labels}
    for part, album in albums.items():
        for row in range(len(album.pictures)):
            try:
                if wrong := _wrong(album, row, None if part == "unlabelled" else known):
                    raise Bad(wrong)
                seen = decoded(album.pictures[row], side)
            except Bad as error:
                bad.append(f"{_place(album, row)} {error}")
                if not skip_bad:
                    raise DataError(
                        f"{bad[0]}; mend or remove it, or set `skip_bad: true`."
                    ) from error
            else:
                yield part, row, seen


def _wrong(album: Album, row: int, known: Container[str | None] | None) -> str:
    """What is wrong with a label, where one is needed; nothing if all is well."""
    if known is None:
        return ""
    label = album.labels[row]
    if row in album.strange or label is None:
        return album.strange.get(row, "has no label")
    return "" if label in known else f"has the class {label!r}, which the training data never has"


def _table(album: Album, rows: Sequence[int], keys: Sequence[str]) -> Table:
    if not rows:
        raise DataError(f"{album.source} holds no good picture; look at one of them.")
    labels = tuple(album.labels[row] for row in rows)
    lines = [album.lines[row] for row in rows]
    return Table(album.source, tuple(keys), labels, lines, album.unit, album.classes)


def _told(bad: Sequence[str]) -> list[str]:
    """A note of the pictures that are left out."""
    if not bad:
        return []
    more = f"; and {len(bad) - LISTED} more" if len(bad) > LISTED else ""
    return [f"{len(bad)} bad pictures are left out: {'; '.join(bad[:LISTED])}{more}."]


def _lost(album: Album, table: Table) -> list[str]:
    """A note of the classes that no good picture is left of."""
    lost = sorted({label for label in album.labels if label is not None} - {*table.labels})
    return [f"Every picture of {', '.join(lost)} in {album.source} was bad."] if lost else []


def _place(album: Album, row: int) -> str:
    return f"{album.source}, {album.unit} {album.lines[row]}"


def _other_size(place: str, shape: Sequence[int], first: Sequence[int]) -> str:
    return (
        f"{place} is {shape[1]} x {shape[0]} pixels, and those before it are {first[1]} x "
        f"{first[0]}: set `size`, the side in pixels that all are brought to."
    )


def _channels_first(pixels: Pixels) -> Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)
