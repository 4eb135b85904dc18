"""The teacher's knowledge on disk: keyed by content, sharded, checksummed, resumable."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from attar.errors import StoreError
from attar.types import Knowledge

FORMAT, VERSION, MANIFEST = "attar knowledge store", 1, "manifest.json"
LENGTH = -1
"""In the shape of a row: a dimension as long as that row's text."""
STALE = 3600.0
"""Seconds after which a temporary file can't belong to a living writer."""

Digest = bytes
Form = dict[str, tuple[int, ...]]
"""The parts of a row by name, and the shape of each."""


def key(content: str | bytes) -> str:
    """The address of an example's knowledge: 32 hexadecimal digits of its content's SHA-256."""
    raw = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    return _sha(raw)[:32]


def fingerprint(module: nn.Module, **facts: Any) -> dict[str, Any]:
    """Who answers: the SHA-256 of a module's weights, and the facts that shape its answers.

    The names, dtypes, shapes and bytes of the state dict are hashed, wherever they lie; what is
    not a weight (preprocessing, labels, layers, precision) has to be told in `facts`, as JSON.
    StoreError where the state dict holds something other than tensors.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if not isinstance(tensor, Tensor):
            raise StoreError(f"{name} is no tensor and can't be hashed: take a teacher in float")
        digest.update(_canonical([name, str(tensor.dtype), list(tensor.shape)]))
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return {"weights": digest.hexdigest(), **facts}


class Store:
    """Rows of one teacher's knowledge in a folder; any number of processes may write to it.

    Open it with `Store.open`. As a context manager it writes what is still buffered on leaving.
    Memory holds the buffer (one shard at most) and about 200 bytes a key; rows are mapped.
    """

    _dtypes = torch.float32, torch.float16
    _limits = 16 << 20, 4096

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest
        self._teacher = _sha(_canonical(manifest["teacher"]))
        self._form: Form = {}
        self._shards: dict[str, _Shard] = {}
        self._index: dict[Digest, tuple[_Shard, int]] = {}
        self._buffer: dict[Digest, _Row] = {}
        self._buffered = 0

    @classmethod
    def open(
        cls,
        folder: Path,
        teacher: Mapping[str, Any],
        *,
        logits_dtype: torch.dtype = torch.float32,
        feature_dtype: torch.dtype = torch.float16,
        shard_bytes: int = 16 << 20,
        shard_rows: int = 4096,
    ) -> Self:
        """The store in a folder, made if it is not there.

        teacher: the fingerprint of whoever answers, as JSON
        logits_dtype, feature_dtype: what is kept on disk; `get` gives float32 whatever was kept
        shard_bytes, shard_rows: a shard is written as soon as it reaches either

        StoreError where the folder holds the knowledge of another teacher, or is damaged.
        """
        store = cls(folder, _agreed_manifest(folder, teacher))
        store._dtypes = logits_dtype, feature_dtype
        store._limits = shard_bytes, shard_rows
        _sweep(folder)
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
        return isinstance(key, str) and self._holds(_digest(key))

    @property
    def bytes(self) -> int:
        """The size of all shards on disk; what is buffered does not count."""
        return sum(shard.size for shard in self._shards.values())

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
        for position, digest in enumerate(map(_digest, keys)):
            first.setdefault(digest, position)
        return [position for digest, position in first.items() if not self._holds(digest)]

    def put(self, keys: Sequence[str], knowledge: Knowledge) -> None:
        """Keep one row a key; keys already here stay as they are.

        The rows are on disk after the next full shard or `flush`. With a mask, what has the shape
        (rows, length, width) or (rows, heads, length, length) is kept without its padding;
        without one every row is kept whole, and all have to be of one shape.
        StoreError where the rows differ in form from those already here, the mask is not padded
        on the right, a value does not fit its dtype, or the disk is full.
        """
        if not keys:
            return
        digests = [_digest(key) for key in keys]
        form = _form(digests, knowledge)
        rows = _split(knowledge, form, *self._dtypes)
        self._agree(form, "this batch")
        for digest, row in zip(digests, rows, strict=True):
            if not self._holds(digest):
                self._add(digest, row)

    def get(self, keys: Sequence[str]) -> Knowledge:
        """The knowledge of these keys, row by row in the order asked, in float32 on the CPU.

        What was kept without padding is padded with zeros to the longest row asked; the mask
        (rows, length) int64 is there if the rows were put with one.
        StoreError where a key is not here, or the shard that holds it is damaged.
        """
        digests = [_digest(key) for key in keys]
        absent = [key for key, digest in zip(keys, digests, strict=True) if not self._holds(digest)]
        if absent or not keys:
            raise StoreError(
                f"{self.folder} lacks {len(absent)} of the {len(keys)} keys asked, such as"
                f" {absent[:1]}: ask the teacher for the rows in `missing` and put them first"
            )
        return _join([self._row(digest) for digest in digests], self._form)

    def flush(self) -> None:
        """Write what is buffered as one shard; StoreError, and nothing lost, where that fails."""
        if self._buffer:
            data = _encode(self._buffer, self._form, self._teacher)
            path = self.folder / _shard_name(_sha(data))
            _publish(path, data)
            self._admit(path)

    def refresh(self) -> None:
        """See the shards that other processes wrote since."""
        for path in sorted(self.folder.glob("shard-*.safetensors")):
            if path.name not in self._shards:
                self._admit(path)

    def verify(self) -> int:
        """Read every byte again; the number of shards, or StoreError naming all damaged ones."""
        _read_manifest(self.folder / MANIFEST)
        self.refresh()
        damaged = [shard.path for shard in self._shards.values() if not shard.whole()]
        if damaged:
            raise _damaged(*damaged)
        return len(self._shards)

    def _holds(self, digest: Digest) -> bool:
        return digest in self._index or digest in self._buffer

    def _row(self, digest: Digest) -> _Row:
        if digest in self._buffer:
            return self._buffer[digest]
        shard, position = self._index[digest]
        return shard.row(position)

    def _add(self, digest: Digest, row: _Row) -> None:
        self._buffer[digest] = row
        self._buffered += row.size
        size, rows = self._limits
        if self._buffered >= size or len(self._buffer) >= rows:
            self.flush()

    def _agree(self, form: Form, whose: str) -> None:
        self._form = self._form or form
        unlike = _difference(self._form, form)
        if unlike:
            raise StoreError(
                f"{whose} does not fit the rows in {self.folder}: {unlike} ({LENGTH} is a length"
                " under a mask); give every batch the same layers, and all a mask or none"
            )

    def _admit(self, path: Path) -> None:
        shard = _Shard(path)
        if shard.teacher != self._teacher:
            raise StoreError(f"{path} holds another teacher's knowledge: move it to its own folder")
        self._agree(shard.form, path.name)
        self._shards[path.name] = shard
        for position, digest in enumerate(shard.digests()):
            self._index.setdefault(digest, (shard, position))
            row = self._buffer.pop(digest, None)
            self._buffered -= row.size if row else 0


class _Row(NamedTuple):
    """One example: how long its text is (0 without a mask), and its parts, flat, unpadded."""

    length: int
    parts: dict[str, Tensor]

    @property
    def size(self) -> int:
        return sum(part.nbytes for part in self.parts.values())


class _Shard:
    """One immutable file of rows, whose name is its checksum.

    Opening it reads the keys, under a seal of their own, so that a store of many shards opens at
    once; the rows are mapped, and the whole file is hashed, when the first of them is asked for.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.size = path.stat().st_size
            with safe_open(path, "pt") as file:
                note = json.loads(file.metadata()["attar"])
                self._keys: Digest = file.get_tensor("keys").numpy().tobytes()
            seal, self.teacher = note["seal"], str(note["teacher"])
            self.form: Form = {name: tuple(shape) for name, shape in note["form"].items()}
        except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
            raise _damaged(path) from error
        if seal != _seal(self.teacher, self.form, self._keys):
            raise _damaged(path)
        self._flat: dict[str, Tensor] = {}
        self._starts: dict[str, Tensor] = {}

    def digests(self) -> Iterator[Digest]:
        """The keys of the rows, in their order."""
        (width,) = self.form["keys"]
        return (self._keys[at : at + width] for at in range(0, len(self._keys), width))

    def whole(self) -> bool:
        """Whether the file still is what was written."""
        try:
            with self.path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return False
        return self.path.name == _shard_name(digest)

    def row(self, position: int) -> _Row:
        """One row, as views of the file."""
        if not self._flat:
            self._map()
        flat, starts = self._flat, self._starts
        return _Row(
            int(flat["lengths"][position]),
            {name: flat[name][at[position] : at[position + 1]] for name, at in starts.items()},
        )

    def _map(self) -> None:
        if not self.whole():
            raise _damaged(self.path)
        with safe_open(self.path, "pt") as file:
            flat = {
                name: file.get_tensor(name).view(-1) for name in ("lengths", *_parts(self.form))
            }
        for name in _parts(self.form):
            counts = _counts(self.form[name], flat["lengths"].long())
            self._starts[name] = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        self._flat = flat


def _form(digests: Sequence[Digest], knowledge: Knowledge) -> Form:
    tensors, mask = _named(knowledge), knowledge.mask
    rows = {len(digests), *map(len, tensors.values()), *([] if mask is None else [len(mask)])}
    widths = {len(digest) for digest in digests}
    if len(rows) > 1 or len(widths) > 1:
        raise StoreError("keys, logits, features and mask need as many rows, and keys one length")
    length = None if mask is None else mask.shape[1]
    return {
        "keys": (widths.pop(),),
        **({} if mask is None else {"mask": (LENGTH,)}),
        **{name: _row_shape(name, tensor.shape[1:], length) for name, tensor in tensors.items()},
    }


def _row_shape(name: str, shape: tuple[int, ...], length: int | None) -> tuple[int, ...]:
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


def _named(knowledge: Knowledge) -> dict[str, Tensor]:
    features = {f"feature:{path}": feature for path, feature in knowledge.features.items()}
    return {"logits": knowledge.logits, **features}


def _parts(form: Form) -> list[str]:
    return [name for name in form if name not in ("keys", "mask")]


def _counts(shape: tuple[int, ...], lengths: Tensor) -> Tensor:
    fixed = math.prod(size for size in shape if size != LENGTH)
    return fixed * lengths ** shape.count(LENGTH)


def _split(
    knowledge: Knowledge, form: Form, logits_dtype: torch.dtype, feature_dtype: torch.dtype
) -> list[_Row]:
    whole = torch.zeros(len(knowledge.logits), 0)
    real = (whole if knowledge.mask is None else knowledge.mask.detach().cpu()) != 0
    lengths = real.sum(1)
    unlike = (real != (torch.arange(real.shape[1]) < lengths[:, None])).any(1)
    if unlike.any():
        raise StoreError(
            f"the mask of row {int(unlike.int().argmax())} has padding before or between what is"
            " real: let the tokenizer pad on the right"
        )
    parts = {}
    for name, tensor in _named(knowledge).items():
        kept = _unpadded(tensor.detach().cpu(), form[name], real)
        flat = _cast(name, kept, logits_dtype if name == "logits" else feature_dtype)
        parts[name] = torch.split_with_sizes(flat, _counts(form[name], lengths).tolist())
    return [
        _Row(length, {name: rows[row] for name, rows in parts.items()})
        for row, length in enumerate(lengths.tolist())
    ]


def _unpadded(tensor: Tensor, shape: tuple[int, ...], real: Tensor) -> Tensor:
    if LENGTH not in shape:
        return tensor.flatten()
    if len(shape) == 2:
        return tensor.masked_select(real[:, :, None])
    return tensor.masked_select(real[:, None, :, None] & real[:, None, None, :])


def _cast(name: str, values: Tensor, dtype: torch.dtype) -> Tensor:
    kept = values.to(dtype, copy=True)  # the caller may change its own tensor afterwards
    if not torch.equal(kept.isfinite(), values.isfinite()):
        raise StoreError(
            f"{name} has values beyond {torch.finfo(dtype).max:g}, the most that {dtype} holds:"
            " open the store with a wider logits_dtype or feature_dtype"
        )
    return kept


def _join(rows: Sequence[_Row], form: Form) -> Knowledge:
    lengths = [row.length for row in rows]
    parts = {
        name: _padded([row.parts[name] for row in rows], lengths, form[name])
        for name in _parts(form)
    }
    logits = parts.pop("logits")
    features = {name.removeprefix("feature:"): part for name, part in parts.items()}
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return Knowledge(logits, features, real.long() if "mask" in form else None)


def _padded(flat: Sequence[Tensor], lengths: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    if LENGTH not in shape:
        return torch.stack(list(flat)).float().view(-1, *shape)
    padded = torch.zeros(len(flat), *_sized(shape, max(lengths)))
    for place, values, length in zip(padded, flat, lengths, strict=True):
        own = _sized(shape, length)
        place[tuple(map(slice, own))] = values.view(own)
    return padded


def _sized(shape: tuple[int, ...], length: int) -> tuple[int, ...]:
    return tuple(length if size == LENGTH else size for size in shape)


def _encode(rows: Mapping[Digest, _Row], form: Form, teacher: str) -> Digest:
    keys = b"".join(rows)
    tensors = {
        "keys": torch.frombuffer(bytearray(keys), dtype=torch.uint8).view(len(rows), -1),
        "lengths": torch.tensor([row.length for row in rows.values()], dtype=torch.int32),
    }
    for name in _parts(form):
        flat = torch.cat([row.parts[name] for row in rows.values()])
        tensors[name] = flat if LENGTH in form[name] else flat.view(len(rows), *form[name])
    note = {"teacher": teacher, "form": form, "seal": _seal(teacher, form, keys)}
    return bytes(save(tensors, {"attar": _canonical(note).decode()}))


def _seal(teacher: str, form: Form, keys: Digest) -> str:
    return _sha(_canonical([teacher, form]) + keys)


def _agreed_manifest(folder: Path, teacher: Mapping[str, Any]) -> dict[str, Any]:
    try:
        facts = json.loads(_canonical(teacher))
    except (TypeError, ValueError) as error:
        raise StoreError(f"the fingerprint is not JSON ({error}): give plain facts") from error
    asked, path = {"format": FORMAT, "version": VERSION, "teacher": facts}, folder / MANIFEST
    if not path.exists():
        _publish(path, _render({**asked, "created_by": _creator()}))
    found = _read_manifest(path)
    unlike = _difference({name: found.get(name) for name in asked}, asked)
    if unlike:
        raise StoreError(
            f"{folder} holds other knowledge than is asked for: {unlike}; choose another folder,"
            " or delete this one to ask the teacher again"
        )
    return found


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        raw = path.read_bytes()
        facts: dict[str, Any] = json.loads(raw)
        del facts["sha256"]
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise _damaged(path) from error
    if raw != _render(facts):  # rendered again, not only hashed: even a changed blank is found
        raise _damaged(path)
    return facts


def _render(facts: Mapping[str, Any]) -> Digest:
    sealed = {**facts, "sha256": _sha(_canonical(facts))}
    return json.dumps(sealed, indent=2, sort_keys=True).encode() + b"\n"


def _creator() -> str:
    try:
        return f"attar {metadata.version('attar')}"
    except metadata.PackageNotFoundError:
        return "attar, not installed"


def _difference(there: Any, now: Any, field: str = "") -> str | None:
    """The first field in which two values of JSON differ, with both values; None where none."""
    if isinstance(there, dict) and isinstance(now, dict):
        inner = [
            (there.get(name), now.get(name), f"{field}.{name}".lstrip("."))
            for name in {**now, **there}
        ]
    elif isinstance(there, list) and isinstance(now, list) and len(there) == len(now):
        inner = [(*pair, f"{field}[{i}]") for i, pair in enumerate(zip(there, now, strict=True))]
    else:
        return None if there == now else f"{field} is {there!r:.200} there and {now!r:.200} here"
    return next(filter(None, (_difference(*each) for each in inner)), None)


def _publish(path: Path, data: Digest) -> None:
    """Write a file that is there whole or not at all, at whatever moment the power fails."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync(path.parent)  # else the rename itself may be forgotten
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        cure = f"make room for {len(data):,} bytes" if full else "choose a folder one can write to"
        raise StoreError(
            f"{path} can't be written ({error.strerror}): {cure} and run again;"
            " everything written before is kept"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _sync(folder: Path) -> None:
    if os.name == "posix":  # elsewhere a folder can't be opened
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _sweep(folder: Path) -> None:
    """Remove what writers killed long ago left half written."""
    for path in [*folder.glob("shard-*.tmp"), *folder.glob(f"{MANIFEST}.*.tmp")]:
        with suppress(OSError):  # another process may sweep at the same time
            if time.time() - path.stat().st_mtime > STALE:
                path.unlink()


def _damaged(*paths: Path) -> StoreError:
    return StoreError(
        f"{', '.join(map(str, paths))} is not what was written: delete it and run again;"
        " what it held will be asked of the teacher again"
    )


def _shard_name(digest: str) -> str:
    return f"shard-{digest[:32]}.safetensors"


def _digest(key: str) -> Digest:
    try:
        return bytes.fromhex(key)
    except ValueError as error:
        raise StoreError(f"{key!r} is not hexadecimal: make keys with attar.store.key") from error


def _canonical(value: Any) -> Digest:
    return json.dumps(value, sort_keys=True, allow_nan=False).encode()


def _sha(data: Digest) -> str:
    return hashlib.sha256(data).hexdigest()
