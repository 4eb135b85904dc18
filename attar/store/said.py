"""What somebody said, by the hash of what was asked: lines that are added and never changed."""

from __future__ import annotations

import json
import os
import secrets
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

from attar.errors import StoreError
from attar.store.files import publish
from attar.store.keys import canonical, sha

PAPER, FORMAT = "answers.json", "attar answers"
"""The file that says what was asked of whom, and what it calls itself."""

_SEAL = 16
"""Hexadecimal digits of its own hash that a line begins with."""


class Said:
    """Answers in a folder, each on the disk before the next thing is done; safe among threads.

    Every writer has a file of its own, so that what one that was killed left half written is the
    end of a file and nobody's beginning. Memory holds where each answer lies and no answer.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self.folder, self.facts = folder, dict(facts)
        self.damaged = 0
        self._at: dict[str, tuple[Path, int]] = {}
        self._lock, self._file = threading.Lock(), None

    _file: BinaryIO | None

    @classmethod
    def below(cls, folder: Path) -> list[Self]:
        """All that was said in a folder and in those right below it."""
        papers = [*folder.glob(PAPER), *sorted(folder.glob(f"*/{PAPER}"))]
        found = []
        for paper in papers:
            try:
                facts = json.loads(paper.read_bytes())["asked"]
            except (OSError, ValueError, LookupError, TypeError) as error:
                raise StoreError(f"{paper} can't be read: delete it, the answers stay") from error
            found.append(cls.open(paper.parent, facts))
        return found

    @classmethod
    def open(cls, folder: Path, facts: Mapping[str, Any]) -> Self:
        """The answers in a folder, made if it is not there.

        facts: what all of them were asked with, as JSON
        StoreError where the folder holds answers to other questions, or can't be read.
        """
        paper = folder / PAPER
        told = {"format": FORMAT, "version": 1, "asked": json.loads(canonical(dict(facts)))}
        if not paper.exists():
            publish(paper, json.dumps(told, indent=2, sort_keys=True).encode() + b"\n")
        try:
            found = json.loads(paper.read_bytes())
        except (OSError, ValueError) as error:
            raise StoreError(f"{paper} can't be read: delete it, the answers stay") from error
        if found != told:
            raise StoreError(f"{folder} holds answers to other questions: choose another folder")
        said = cls(folder, facts)
        said._read()
        return said

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __len__(self) -> int:
        return len(self._at)

    def __contains__(self, key: object) -> bool:
        return key in self._at

    def put(self, key: str, record: Mapping[str, Any]) -> None:
        """Keep a record; it is on the disk when this returns. StoreError where the disk is full."""
        line = canonical({"key": key, **record})
        with self._lock:
            try:
                file = self._file = self._file or self._begun()
                at = file.tell()
                file.write(sha(line)[:_SEAL].encode() + b" " + line + b"\n")
                file.flush()
                os.fsync(file.fileno())
            except OSError as error:
                raise StoreError(
                    f"{self.folder} can't be written ({error.strerror}): make room and run again;"
                    " what was answered before is kept"
                ) from error
            if "answer" in record:
                self._at[key] = Path(file.name), at

    def get(self, key: str) -> dict[str, Any]:
        """The record of a key that is here."""
        path, at = self._at[key]
        with path.open("rb") as file:
            file.seek(at)
            record = _unsealed(file.readline())
        if record is None:
            raise StoreError(f"{path} is not what was written: run again, and it is asked again")
        return record

    def records(self) -> Iterator[dict[str, Any]]:
        """All that was kept: answers, and what was paid for nothing."""
        for path in sorted(self.folder.glob("said-*.jsonl")):
            with path.open("rb") as file:
                yield from filter(None, map(_unsealed, file))

    def _begun(self) -> BinaryIO:
        return (self.folder / f"said-{secrets.token_hex(6)}.jsonl").open("xb")

    def _read(self) -> None:
        for path in sorted(self.folder.glob("said-*.jsonl")):
            at = 0
            with path.open("rb") as file:
                for line in file:
                    record = _unsealed(line)
                    if record is None:
                        self.damaged += 1
                    elif "answer" in record:
                        self._at.setdefault(record["key"], (path, at))
                    at += len(line)


def _unsealed(line: bytes) -> dict[str, Any] | None:
    """What a line says; None where it is not whole."""
    seal, _, told = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or sha(told)[:_SEAL].encode() != seal:
        return None
    record: dict[str, Any] = json.loads(told)
    return record
