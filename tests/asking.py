"""What a command line gives, run in this process."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from attar.cli import main


@dataclass(frozen=True)
class Answer:
    """What a command gave."""

    code: int
    out: str
    err: str


Ask = Callable[[str], Answer]


def asking(capsys: pytest.CaptureFixture[str]) -> Ask:
    """What runs a command line, written as one string."""

    def ask(line: str) -> Answer:
        capsys.readouterr()
        code = main(shlex.split(line))
        return Answer(code, *capsys.readouterr())

    return ask
