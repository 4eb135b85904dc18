"""Files that are there whole or not at all, at whatever moment the power fails."""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from attar.errors import StoreError

MANIFEST = "manifest.json"
STALE = 3600.0
"""Seconds after which a temporary file can't belong to a living writer."""


def publish(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, sync it, and give it its own; StoreError if it can't."""
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


def shard_files(folder: Path) -> list[Path]:
    """The shards of a folder, by name."""
    return sorted(folder.glob("shard-*.safetensors"))


def shard_name(digest: str) -> str:
    """What the shard is called whose bytes have this SHA-256."""
    return f"shard-{digest[:32]}.safetensors"


def abandoned(folder: Path) -> Iterator[Path]:
    """What writers killed long ago left half written."""
    for path in sorted([*folder.glob("shard-*.tmp"), *folder.glob(f"{MANIFEST}.*.tmp")]):
        with suppress(OSError):  # another process may sweep at the same time
            if time.time() - path.stat().st_mtime > STALE:
                yield path


def sweep(folder: Path) -> None:
    """Remove what is abandoned."""
    for path in abandoned(folder):
        with suppress(OSError):
            path.unlink()


def damaged(*paths: Path) -> StoreError:
    """The sentence about files that are not what was written."""
    return StoreError(
        f"{', '.join(map(str, paths))} is not what was written: delete it (attar store prune does)"
        " and run again; what it held will be asked of the teacher again"
    )
