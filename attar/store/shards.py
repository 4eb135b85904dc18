"""One shard: an immutable file of rows, whose name is its checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from attar.errors import StoreError
from attar.store.files import damaged, shard_name
from attar.store.index import Digests
from attar.store.keys import canonical, sha
from attar.store.precision import Kept
from attar.store.rows import LENGTH, SIZE, Form, Rows

_FIRST = {True: torch.float32, False: torch.float16}
"""What the first format kept logits in, and all else; where asked to, it kept them otherwise."""

_BROKEN = OSError, SafetensorError, AttributeError, LookupError, TypeError, ValueError
"""What reading a damaged header can end in."""


class Note(NamedTuple):
    """What a shard says of its rows: whose they are, of which form, how exactly kept.

    teacher: SHA-256 of the fingerprint
    kept: None in a shard of the first format
    """

    teacher: str
    form: Form
    kept: dict[str, Any] | None

    def sealed(self, keys: bytes) -> dict[str, Any]:
        """The note as JSON, with a checksum of it and of the keys of the rows."""
        facts = {name: value for name, value in self._asdict().items() if value is not None}
        return {**facts, "seal": sha(canonical(list(facts.values())) + keys)}

    def belongs(self, manifest: Mapping[str, Any]) -> bool:
        """Whether the rows are the same teacher's, kept the same way, as a manifest says."""
        kept = self.kept or Kept().facts()
        whose = sha(canonical(manifest["teacher"]))
        return self.teacher == whose and kept == manifest["kept"]


def encode(digests: Sequence[bytes], rows: Rows, note: Note) -> bytes:
    """The bytes of a shard."""
    keys = b"".join(digests)
    tensors = {
        "keys": torch.frombuffer(bytearray(keys), dtype=torch.uint8).view(len(rows), -1),
        "lengths": rows.lengths,
    }
    for name, shape in rows.shapes.items():
        part = rows.parts[name]
        tensors[name] = part if LENGTH in shape or SIZE in shape else part.view(len(rows), *shape)
    return bytes(save(tensors, {"attar": canonical(note.sealed(keys)).decode()}))


class Shard:
    """A file of rows, opened and not yet read.

    Opening it reads the keys, under a seal of their own, so that a store of many shards opens at
    once; the rows are mapped, and the whole file is hashed, when the first of them is asked for.
    """

    def __init__(self, path: Path, note: Note, size: int) -> None:
        self.path, self.note, self.size = path, note, size
        self._rows: Rows | None = None
        self._proven: tuple[int, ...] | None = None

    @classmethod
    def opened(cls, path: Path) -> tuple[Self, Digests]:
        """A shard, and the digests of its rows in their order; StoreError where it is damaged."""
        try:
            size = path.stat().st_size
            with safe_open(path, "pt") as file:
                told = json.loads(file.metadata()["attar"])
                keys = file.get_tensor("keys").numpy().tobytes()
            form = {name: tuple(shape) for name, shape in told["form"].items()}
            note = Note(str(told["teacher"]), form, told.get("kept"))
            digests = np.frombuffer(keys, f"S{form['keys'][0]}")
        except _BROKEN as error:
            raise damaged(path) from error
        if told != json.loads(canonical(note.sealed(keys))):
            raise damaged(path)
        return cls(path, note, size), digests

    def whole(self) -> bool:
        """Whether the file still is what was written."""
        try:
            with self.path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return False
        return self.path.name == shard_name(digest)

    def rows(self) -> Rows:
        """All rows, as views of the file, proven before the first of them is given."""
        if self._rows is None:
            self._rows = self._mapped()
        return self._rows

    def let_go(self) -> None:
        """Map the file no longer; it may be asked again."""
        self._rows = None

    def _mapped(self) -> Rows:
        try:
            stat = self.path.stat()
        except OSError as error:
            raise damaged(self.path) from error
        # Mapped again after it was let go, a file that nobody touched needs no second proof.
        state = stat.st_ino, stat.st_size, stat.st_mtime_ns
        if state != self._proven and not self.whole():
            raise damaged(self.path)
        self._proven = state
        shapes = Kept(**(self.note.kept or {})).shapes(self.note.form)
        with safe_open(self.path, "pt") as file:
            parts = {name: file.get_tensor(name).view(-1) for name in shapes}
            lengths = file.get_tensor("lengths")
        if self.note.kept is None and any(
            part.dtype != _FIRST[name == "logits"] for name, part in parts.items()
        ):
            raise refusal(self.path)
        return Rows(shapes, lengths, parts)


def refusal(path: Path) -> StoreError:
    """The sentence about a shard that lies in a store where it does not belong."""
    return StoreError(
        f"{path} holds another teacher's knowledge, or keeps it otherwise than this store does:"
        " move it to its own folder"
    )
