"""What of a store is of use: damaged and unused files found, and removed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attar.errors import StoreError
from attar.store.files import MANIFEST, abandoned, shard_files
from attar.store.index import ABSENT, Digests, Index
from attar.store.manifest import OLDEST, read, refuse_headless, unread
from attar.store.shards import Shard


@dataclass(frozen=True)
class Finding:
    """A file of a store that is of no use, and why."""

    path: Path
    size: int
    why: str
    damaged: bool = False


def examine(folder: Path) -> list[Finding]:
    """What is damaged or unused in the folder of a store; every byte is read, nothing changed.

    Damaged is a file that is not what was written. Unused is a shard that belongs to another
    teacher, or whose rows all lie in other shards too; a file of a format that is not read any
    more; and what a writer killed long ago left half written.
    StoreError where the folder is of a newer format, or has no manifest: attar can't tell what is
    of use in it.
    """
    refuse_headless(folder)
    path = folder / MANIFEST
    manifest: dict[str, Any] | None = None
    found = []
    with suppress(FileNotFoundError):
        found = [_finding(path, "damaged", damaged=True)]
        with suppress(StoreError):
            manifest, found = unread(folder), []
    if manifest is not None and manifest["version"] < OLDEST:
        why = f"of format {manifest['version']}, which is not read any more"
        return [_finding(path, why) for path in (path, *shard_files(folder))]
    if manifest is not None:
        manifest = read(folder)
    found += _useless(folder, manifest)
    return [*found, *(_finding(path, "left half written") for path in abandoned(folder))]


def prune(folder: Path) -> list[Finding]:
    """Remove what `examine` finds; the rest is read as before, and lost rows are asked again."""
    found = examine(folder)
    for finding in found:
        with suppress(FileNotFoundError):  # another process may prune at the same time
            finding.path.unlink()
    return found


def _useless(folder: Path, manifest: Mapping[str, Any] | None) -> Iterator[Finding]:
    kept: list[tuple[Shard, Digests]] = []
    for path in shard_files(folder):
        try:
            shard, digests = Shard.opened(path)
        except StoreError:
            yield _finding(path, "damaged", damaged=True)
            continue
        if not shard.whole():
            yield _finding(path, "damaged", damaged=True)
        elif manifest is not None and not shard.note.belongs(manifest):
            yield _finding(path, "of another teacher, or kept otherwise than the rest")
        else:
            kept.append((shard, digests))
    seen = Index()
    # The longest first: then a shard that lies in another whole comes after it.
    for number, (shard, digests) in enumerate(sorted(kept, key=lambda pair: -len(pair[1]))):
        if (seen.locate(digests) != ABSENT).all():
            yield _finding(shard.path, "every row lies in another shard too")
        seen.add(digests, number)


def _finding(path: Path, why: str, *, damaged: bool = False) -> Finding:
    return Finding(path, path.stat().st_size, why, damaged)
