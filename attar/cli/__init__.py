"""The command line, `attar WORD ...`; `commands` has the words."""

from __future__ import annotations

from collections.abc import Sequence

from attar.cli.commands import app
from attar.cli.ending import BUG, bug, quiet, terminable
from attar.cli.terminal import unbreakable

__all__ = ["app", "main"]


def main(words: Sequence[str] | None = None) -> int:
    """Do what a command line says; gives the exit code.

    words: what stands after `attar`; left out, what this process was called with
    """
    unbreakable()
    with quiet(), terminable():
        try:
            app(None if words is None else list(words), prog_name="attar")
        except SystemExit as ended:
            return ended.code if isinstance(ended.code, int) else 0
        except Exception:
            bug()
            return BUG
    return 0
