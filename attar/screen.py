"""What a run tells whoever watches: sentences, and how far long work has come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int, int, str], None]
"""Says that so many of so many are done, and a word about it."""


class Screen(Protocol):
    """Where a run's words go."""

    def say(self, sentence: str) -> None: ...

    def bar(self, title: str) -> AbstractContextManager[Advance]: ...


class Silent:
    """Tells nobody: how the Python API runs."""

    def say(self, sentence: str) -> None:
        """Nothing."""

    @contextmanager
    def bar(self, title: str) -> Iterator[Advance]:  # noqa: ARG002
        """Nothing."""
        yield _ignore


def _ignore(done: int, total: int, word: str) -> None:
    """Nothing."""
