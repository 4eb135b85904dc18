"""The manifest: whose knowledge a folder holds, how exactly it is kept, and in which format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from attar.errors import StoreError
from attar.store.files import MANIFEST, damaged, publish, shard_files
from attar.store.keys import canonical, sha
from attar.store.precision import Kept

FORMAT, VERSION, OLDEST = "attar knowledge store", 3, 1
"""What attar writes, and the oldest version of it that attar still reads."""
_UNPACKED = 2
"""The version that says all of a folder in which no answers are packed."""


def agreed(folder: Path, teacher: Mapping[str, Any], kept: Kept) -> dict[str, Any]:
    """The manifest of a folder, written if there is none; StoreError unless it says this."""
    try:
        facts = json.loads(canonical(teacher))
    except (TypeError, ValueError) as error:
        raise StoreError(f"the fingerprint is not JSON ({error}): give plain facts") from error
    asked = {"teacher": facts, "kept": kept.facts()}
    if not (folder / MANIFEST).exists():
        version = VERSION if kept.packs else _UNPACKED
        sealed = {"format": FORMAT, "version": version, "created_by": _creator(), **asked}
        publish(folder / MANIFEST, _render(sealed))
    found = read(folder)
    unlike = difference({name: found[name] for name in asked}, asked)
    if unlike:
        raise StoreError(
            f"{folder} holds other knowledge than is asked for: {unlike}; choose another folder,"
            " or delete this one to ask the teacher again"
        )
    return found


def noted(folder: Path, quality: Mapping[str, float]) -> dict[str, Any]:
    """The manifest of a folder, which from now on says how good what it keeps is."""
    publish(folder / MANIFEST, _render({**unread(folder), "quality": dict(quality)}))
    return read(folder)


def found(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a folder; StoreError if there is none, or it tells a fact otherwise."""
    refuse_headless(folder)
    if not (folder / MANIFEST).exists():
        below = ", ".join(map(str, stores(folder)))
        cure = f"name one of {below}" if below else "`attar teach` makes one"
        raise StoreError(f"{folder} is no store of knowledge: {cure}")
    manifest, asked = read(folder), json.loads(canonical(dict(facts)))
    told = {name: manifest["teacher"].get(name, fact) for name, fact in asked.items()}
    if unlike := difference({"teacher": told}, {"teacher": asked}):
        raise StoreError(
            f"{folder} holds other knowledge than is asked for: {unlike}; name another store, or"
            " ask the teacher again"
        )
    return manifest


def refuse_headless(folder: Path) -> None:
    """StoreError where there are shards and no manifest that says whose they are."""
    if shard_files(folder) and not (folder / MANIFEST).exists():
        raise StoreError(
            f"{folder} has lost its {MANIFEST}, which says whose knowledge it is: run the recipe"
            " that filled it (`teach: offline` with the same teacher), and it is written again"
        )


def read(folder: Path) -> dict[str, Any]:
    """The manifest of a folder; StoreError if it is damaged or of a format unknown here."""
    found = unread(folder)
    name, version = found.get("format"), found.get("version", 0)
    if name != FORMAT or version > VERSION:
        raise StoreError(
            f"{folder} is written in format {version} of {name!r}, and this attar reads {FORMAT!r}"
            f" up to format {VERSION}: install a newer attar, or choose another folder"
        )
    if version < OLDEST:
        raise StoreError(
            f"{folder} is written in format {version}, and this attar reads formats {OLDEST} to"
            f" {VERSION}: attar store prune removes it, and the teacher will be asked again"
        )
    # Version 1 did not say how exactly it kept what it kept: it knew this one way only.
    return {"kept": Kept().facts(), **found}


def unread(folder: Path) -> dict[str, Any]:
    """The manifest of a folder whatever its version says; StoreError if it is damaged."""
    path = folder / MANIFEST
    try:
        raw = path.read_bytes()
        facts: dict[str, Any] = json.loads(raw)
        del facts["sha256"]
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise damaged(path) from error
    if raw != _render(facts):  # rendered again, not only hashed: even a changed blank is found
        raise damaged(path)
    return facts


def stores(folder: Path) -> list[Path]:
    """The stores of a folder: itself, or those right below it, one a teacher."""
    below = sorted(path for path in folder.glob("*") if path.is_dir())
    return [path for path in (folder, *below) if (path / MANIFEST).exists() or shard_files(path)]


def difference(there: Any, now: Any, field: str = "") -> str | None:
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
    return next(filter(None, (difference(*each) for each in inner)), None)


def _render(facts: Mapping[str, Any]) -> bytes:
    sealed = {**facts, "sha256": sha(canonical(facts))}
    return json.dumps(sealed, indent=2, sort_keys=True).encode() + b"\n"


def _creator() -> str:
    try:
        return f"attar {metadata.version('attar')}"
    except metadata.PackageNotFoundError:
        return "attar, not installed"
