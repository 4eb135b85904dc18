"""Whose work a student is made of: its teachers' names and licences, where anybody states them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

from attar.errors import AttarError
from attar.recipe import Resolved, check, read
from attar.report.card import Teacher
from attar.tasks.loading import folder_of

OWN = ("train", "reinforce")
"""Ways to a teacher that begin with nobody's work."""

LONGEST = 60
"""Letters of a licence's name; what is longer is its text."""


def teachers(plan: Resolved, trust: bool = False) -> tuple[Teacher, ...]:
    """The recipe's teacher, and those that it is mixed with.

    Where the student of another recipe teaches, it is that recipe's teachers.
    """
    found: list[Teacher] = []
    if (piece := plan.teacher) is not None and "recipe" in piece.function.keywords:
        other = check(read(piece.function.keywords["recipe"]), trust=trust)
        found += teachers(other, trust)
    elif piece is not None and "url" in piece.function.keywords:  # a name of that place alone
        found.append(Teacher(f"{piece.function.keywords['model']}, by an endpoint"))
    elif piece is not None and piece.name not in OWN:  # else it is one's own
        found.append(teacher(str(piece.function.keywords.get("model", piece.name))))
    if plan.teach is not None:
        found += map(teacher, plan.teach.function.keywords.get("others") or ())
    return tuple(dict.fromkeys(found))


def teacher(name: str) -> Teacher:
    """A teacher by the name a recipe gives it, with what its card or its package says."""
    folder = _folder(name)
    package = name.removeprefix("package:")
    if folder is None or not folder.is_dir():
        return Teacher(name, hub=re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None)
    # Where it lies on this machine is nobody else's business.
    called = package if package != name else Path(name).name
    if said := _carded(folder):
        return Teacher(called, said, "its model card")
    if package != name and (said := _packaged(package)):
        return Teacher(called, said, "its package")
    return Teacher(called)


def facts(known: Sequence[Teacher]) -> dict[str, str]:
    """The same in plain strings, for the metadata of a file; nothing where nobody taught."""
    if not known:
        return {}
    return {
        "teacher": "; ".join(each.name for each in known),
        "teacher_licence": "; ".join(each.licence or "not stated" for each in known),
    }


def _folder(name: str) -> Path | None:
    """The folder that a model and its card lie in; None where it is on a hub, or made by code."""
    path = Path(name).expanduser()
    if path.is_file():
        return path.parent
    try:
        return Path(folder_of(name))
    except AttarError:
        return None


def _carded(folder: Path) -> str | None:
    """What the front matter of a model card says of the licence."""
    for file in (folder / "README.md", folder / "MODEL_CARD.md"):
        text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
        front = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
        lines = re.findall(r"^(license\w*):(.*)$", front[1] if front else "", re.MULTILINE)
        said: dict[str, str] = {key: value.strip(" \t\r\"'") for key, value in lines}
        stated = said.get("license", "")
        if stated == "other":
            stated = said.get("license_name", "")
        if 0 < len(stated) <= LONGEST:
            return stated
    return None


def _packaged(name: str) -> str | None:
    """What the metadata of an installed package says of the licence."""
    try:
        told = metadata(name)
    except PackageNotFoundError:
        return None
    classified = [
        each.rpartition(" :: ")[2]
        for each in told.get_all("Classifier") or ()
        if each.startswith("License :: OSI Approved :: ")
    ]
    stated = [*(told.get_all(key) or () for key in ("License-Expression", "License")), classified]
    known: list[str] = [str(each) for group in stated for each in group]
    return next((each for each in known if len(each) <= LONGEST), None)
