"""A store: rows of one teacher's knowledge in a folder, written and read by key."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, Self

from attar.errors import StoreError
from attar.store.files import damaged, publish, shard_files, shard_name, sweep
from attar.store.foreign import apart, joined
from attar.store.index import ABSENT, Index, row_of, shard_of
from attar.store.keys import Digest, canonical, digest_of, sha
from attar.store.manifest import agreed, difference, found, noted, read
from attar.store.precision import Coded, Kept, decoded, encoded, probed
from attar.store.rows import LENGTH, Form, Rows, gathered
from attar.store.shards import Note, Shard, encode, refusal
from attar.types import Knowledge

MAPPED = 1024
"""Shards that are mapped at once; operating systems end a process that maps tens of thousands."""


class Store:
    """Rows of one teacher's knowledge in a folder; any number of processes may write to it.

    Open it with `Store.open`, or `Store.found` where the teacher is not at hand. As a context
    manager it writes what is still buffered on leaving. Memory holds the buffer (one shard at
    most) and 24 bytes a key; rows are mapped.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest
        self.kept = Kept(**manifest["kept"])
        self._limits = 16 << 20, 4096
        self._form: Form = {}
        self._index = Index()
        self._shards: list[Shard] = []
        self._names: set[str] = set()
        self._mapped: OrderedDict[int, None] = OrderedDict()
        self._buffer: dict[Digest, Rows] = {}
        self._buffered = 0
        self._quality: dict[str, float] = {}

    @classmethod
    def open(
        cls,
        folder: Path,
        teacher: Mapping[str, Any],
        *,
        top: int | None = None,
        draws: int | None = None,
        logits: Coded = "fp32",
        features: Coded = "fp16",
        shard_bytes: int = 16 << 20,
        shard_rows: int = 4096,
    ) -> Self:
        """The store in a folder, made if it is not there.

        teacher: the fingerprint of whoever answers, as JSON
        top: how many classes of each row are kept, the most likely ones; None for all
        draws: how many are drawn of all others, or where `top` is None of all
        logits, features: what they are kept in; `get` gives float32 whatever was kept
        shard_bytes, shard_rows: a shard is written as soon as it reaches either

        StoreError where the folder holds the knowledge of another teacher, keeps it otherwise, or
        is damaged.
        """
        store = cls(folder, agreed(folder, teacher, Kept(logits, top, features, draws)))
        store._limits = shard_bytes, shard_rows
        sweep(folder)
        store.refresh()
        return store

    @classmethod
    def found(cls, folder: Path, facts: Mapping[str, Any] | None = None) -> Self:
        """The store in a folder as it stands: knowledge without the teacher's model.

        facts: what the answers must have been made with (preprocessing, classes, layers), as
            JSON; a fact that the store's fingerprint does not tell is not compared
        StoreError where there is no store, a fact differs, or the folder is damaged.
        """
        store = cls(folder, found(folder, facts or {}))
        store.refresh()
        return store

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        with suppress(StoreError) if kind else nullcontext():  # the first error is the one to tell
            self.flush()

    def __len__(self) -> int:
        return len(self._index) + len(self._buffer)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and not self.missing([key])

    @property
    def bytes(self) -> int:
        """The size of all shards on disk; what is buffered does not count."""
        return sum(shard.size for shard in self._shards)

    def info(self) -> dict[str, Any]:
        """Facts for a report, as JSON: where, whose, how much, and the form of a row."""
        return {
            "folder": str(self.folder),
            "rows": len(self),
            "buffered": len(self._buffer),
            "shards": len(self._shards),
            "bytes": self.bytes,
            "form": {name: list(shape) for name, shape in self._form.items()},
            **self.manifest,
        }

    def missing(self, keys: Sequence[str]) -> list[int]:
        """The positions whose knowledge is not here; of equal keys only the first counts."""
        first: dict[Digest, int] = {}
        for position, digest in enumerate(map(digest_of, keys)):
            first.setdefault(digest, position)
        places = self._index.find(list(first)).tolist()
        return [
            position
            for (digest, position), place in zip(first.items(), places, strict=True)
            if place == ABSENT and digest not in self._buffer
        ]

    def put(self, keys: Sequence[str], knowledge: Knowledge) -> None:
        """Keep one row a key; keys already here stay as they are.

        The rows are on disk after the next full shard or `flush`. With a mask, what has the shape
        (rows, length, width) or (rows, heads, length, length) is kept without its padding;
        without one every row is kept whole, and all have to be of one shape.
        StoreError where the rows differ in form from those already here, the mask is not padded
        on the right, a value does not fit what it is kept in, or the disk is full.
        """
        if not keys:
            return
        digests, knowledge = [digest_of(key) for key in keys], apart(knowledge, self.folder)
        form, rows = encoded(knowledge, _checked(digests, knowledge), self.kept)
        self._agree(form, "this batch")
        every = rows.each()
        if self.kept.packs and "quality" not in self.manifest and not self._quality:
            self._quality = probed(knowledge, every, form, self.kept)
        for position in self.missing(keys):
            self._add(digests[position], every[position])

    def get(self, keys: Sequence[str]) -> Knowledge:
        """The knowledge of these keys, row by row in the order asked, in float32 on the CPU.

        What was kept without padding is padded with zeros to the longest row asked; the mask
        (rows, length) int64 is there if the rows were put with one. Of logits kept by their top,
        the mass of all others is spread evenly over them; packed ones (int8, draws) are `Sparse`.
        StoreError where a key is not here, or the shard that holds it is damaged.
        """
        digests = [digest_of(key) for key in keys]
        places = self._index.find(digests).tolist()
        absent = [
            key
            for key, digest, place in zip(keys, digests, places, strict=True)
            if place == ABSENT and digest not in self._buffer
        ]
        if absent or not keys:
            raise StoreError(
                f"{self.folder} lacks {len(absent)} of the {len(keys)} keys asked, such as"
                f" {absent[:1]}: ask the teacher for the rows in `missing` and put them first"
            )
        picks = [self._pick(*each) for each in zip(digests, places, strict=True)]
        return joined(decoded(*gathered(picks), self._form, self.kept), self.folder)

    def flush(self) -> None:
        """Write what is buffered as one shard; StoreError, and nothing lost, where that fails."""
        if self._buffer:
            # Into a folder of the first format only what its readers understand is written.
            kept = self.kept.facts() if self.manifest["version"] > 1 else None
            whose = sha(canonical(self.manifest["teacher"]))
            note = Note(whose, self._form, kept)
            data = encode(list(self._buffer), Rows.join(list(self._buffer.values())), note)
            path = self.folder / shard_name(sha(data))
            publish(path, data)
            self._admit(path)
            if self._quality and "quality" not in self.manifest:
                self.manifest = noted(self.folder, self._quality)

    def refresh(self) -> None:
        """See the shards that other processes wrote since."""
        for path in shard_files(self.folder):
            if path.name not in self._names:
                self._admit(path)

    def verify(self) -> int:
        """Read every byte again; the number of shards, or StoreError naming all damaged ones."""
        read(self.folder)
        self.refresh()
        broken = [shard.path for shard in self._shards if not shard.whole()]
        if broken:
            raise damaged(*broken)
        return len(self._shards)

    def _pick(self, digest: Digest, place: int) -> tuple[Rows, int]:
        if place == ABSENT:
            return self._buffer[digest], 0
        return self._rows(shard_of(place)), row_of(place)

    def _rows(self, shard: int) -> Rows:
        rows = self._shards[shard].rows()
        self._mapped[shard] = None
        self._mapped.move_to_end(shard)
        if len(self._mapped) > MAPPED:
            unused, _ = self._mapped.popitem(last=False)
            self._shards[unused].let_go()
        return rows

    def _add(self, digest: Digest, row: Rows) -> None:
        self._buffer[digest] = row
        self._buffered += row.size
        size, rows = self._limits
        if self._buffered >= size or len(self._buffer) >= rows:
            self.flush()

    def _agree(self, form: Form, whose: str) -> None:
        self._form = self._form or form
        unlike = difference(self._form, form)
        if unlike:
            raise StoreError(
                f"{whose} does not fit the rows in {self.folder}: {unlike} ({LENGTH} is a length"
                " under a mask); give every batch the same layers, and all a mask or none"
            )

    def _admit(self, path: Path) -> None:
        shard, digests = Shard.opened(path)
        if not shard.note.belongs(self.manifest):
            raise refusal(path)
        self._agree(shard.note.form, path.name)
        self._index.add(digests, len(self._shards))
        self._shards.append(shard)
        self._names.add(path.name)
        if self._buffer:
            held = list(self._buffer)
            for digest, place in zip(held, self._index.find(held).tolist(), strict=True):
                if place != ABSENT:
                    self._buffered -= self._buffer.pop(digest).size


def _checked(digests: Sequence[Digest], knowledge: Knowledge) -> Sequence[Digest]:
    parts = [knowledge.logits, *knowledge.features.values()]
    parts += [] if knowledge.mask is None else [knowledge.mask]
    rows, widths = {len(digests), *map(len, parts)}, {len(digest) for digest in digests}
    if len(rows) > 1 or len(widths) > 1:
        raise StoreError("keys, logits, features and mask need as many rows, and keys one length")
    return digests
