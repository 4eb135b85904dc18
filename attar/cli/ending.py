"""How a command ends: its exit code, and the one sentence that explains it."""

from __future__ import annotations

import errno
import logging
import os
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from attar.cli.terminal import complain
from attar.errors import AttarError

BUG, USER, GATE, INTERRUPTED, UNREAD, TERMINATED = 1, 2, 3, 130, 141, 143

EXIT_CODES = (
    f"Exit codes: 0 ok, {USER} something you can mend (one sentence says what), {GATE} a gate "
    f"of the audit is not passed, {BUG} a bug in attar, {INTERRUPTED} interrupted."
)

RESUMED = ("run", "teach", "compare")
"""Commands that go on from their last checkpoint."""

_OF_THE_MACHINE = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EEXIST,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}
"""What an operating system refuses that no program can help: rights, space, kinds of files."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a run as Ctrl-C does: after tidying up."""


class Commands(TyperGroup):
    """Commands that know how they were called, and end in a sentence rather than a traceback."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep the words as they were typed: the report shows how to repeat a run."""
        ctx.obj = shlex.join(["attar", *args])
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            answer = super().invoke(ctx)
            sys.stdout.flush()
            return answer
        except AttarError as error:
            raise _refused(str(error)) from error
        except BrokenPipeError as error:
            raise typer.Exit(_unread()) from error
        except OSError as error:
            if error.errno not in _OF_THE_MACHINE:
                raise
            raise _refused(f"{error.filename or 'A file'}: {error.strerror}.") from error
        except KeyboardInterrupt as stop:
            again = "; run the same command to go on from the last checkpoint"
            complain(f"Interrupted{again if ctx.invoked_subcommand in RESUMED else ''}.")
            code = TERMINATED if isinstance(stop, Terminated) else INTERRUPTED
            raise typer.Exit(code) from stop


def _refused(sentence: str) -> typer.Exit:
    if debugging():
        traceback.print_exc()
    complain(sentence, error=True)
    return typer.Exit(USER)


def _unread() -> int:
    """Nobody reads the output any more, as in `attar list | head`: throw the rest away."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return UNREAD


def bug() -> None:
    """Tell of an error that is not the user's."""
    traceback.print_exc()
    complain("This is a bug in attar: please report it with your recipe and the lines above.")


def debugging() -> bool:
    """Whether ATTAR_DEBUG asks for every warning and every traceback."""
    return bool(os.environ.get("ATTAR_DEBUG"))


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings and notes of libraries, which would break into the output."""
    if debugging():
        yield
        return
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Some libraries put filters of their own before this one when they are imported.
        warnings.showwarning = lambda *_, **__: None
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises `Terminated` in here."""

    def stop(number: int, frame: Any) -> None:  # noqa: ARG001
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
