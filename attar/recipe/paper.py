"""The paper itself: a recipe as frozen data.

One grammar holds throughout: a choice is `name` or `name: {options}`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from reprlib import repr as short
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PrivateAttr,
    StrictFloat,
    StrictInt,
)

from attar.recipe.dialect import Trail, written

LISTS = ("losses", "steps", "measure", "baselines")
"""The keys that hold a list of choices; every other room's key holds one choice."""

PLAIN = ("name", "seed", "gates")
"""The keys that hold no choices."""


class Choice(BaseModel):
    """A name and the options that are set: `name` or `name: {options}`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    options: dict[str, JsonValue] = {}

    def plain(self) -> Any:
        """As it is written in a recipe."""
        # A copy, because whoever varies a recipe changes what it gets from here.
        return {self.name: deepcopy(self.options)} if self.options else self.name


def as_choice(said: object) -> Any:
    """What is written as a choice, in the fields of `Choice`; `ValueError` if it isn't one."""
    if isinstance(said, str):
        return Choice(name=said)
    if isinstance(said, Mapping) and len(said) == 1:
        [(name, options)] = said.items()
        if options is None or isinstance(options, Mapping):
            return {"name": name, "options": options or {}}
    if isinstance(said, Choice):
        return said
    raise ValueError(f"a choice is written `name` or `name: {{options}}`, not {short(said)}")


def _not_empty(steps: tuple[Choice, ...]) -> tuple[Choice, ...]:
    if not steps:
        raise ValueError("the list of steps is empty; a recipe does at least one thing")
    return steps


def plain_name(name: str) -> str:
    """The name of a run, which is also that of a folder; `ValueError` where it can be none."""
    # It becomes a folder below `runs`, and must not lead out of there.
    if not re.fullmatch(r"\w[\w .+-]*", name):
        raise ValueError(f"the name of a run is letters, digits, '.', '-' and '_', not {name!r}")
    return name


Written = Annotated[Choice, BeforeValidator(as_choice)]
MEASURES = ("score", "parameters", "macs", "size", "latency", "memory")


@dataclass(frozen=True)
class Places:
    """Where everything in a recipe is written; two recipes never differ by it.

    source: the file, as the user named it
    known: from the path of keys and indexes down to an entry, to its place in words
    """

    source: str = field(default="recipe", compare=False)
    known: Mapping[Trail, str] = field(default_factory=dict, compare=False)

    def of(self, path: Trail) -> str:
        """The place of an entry, or of the nearest thing that encloses it."""
        while path and path not in self.known:
            path = path[:-1]
        return self.known[path] if path else self.source


class Recipe(BaseModel):
    """What to do, as frozen data. Nothing is looked up or loaded by it; `check` does the one.

    name: what to call the run; seed: of everything random in it
    task: what the problem is; teacher: the big model; student: the small one
    teach: where lessons come from; losses: what the student is taught by; steps: what is done
    measure: what is reported; gates: what the result has to keep, by name, with each one's limit
    baselines: what the result is compared with; engine: where it runs
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, AfterValidator(plain_name)] | None = None
    seed: Annotated[StrictInt, Field(ge=0)] = 0
    task: Written
    teacher: Written | None = None
    student: Written | None = None
    teach: Written | None = Choice(name="online")
    losses: tuple[Written, ...] = ()
    steps: Annotated[tuple[Written, ...], AfterValidator(_not_empty)]
    measure: tuple[Written, ...] = tuple(Choice(name=name) for name in MEASURES)
    gates: Mapping[str, StrictFloat] = {}
    baselines: tuple[Written, ...] = ()
    engine: Written = Choice(name="local")

    _places: Places = PrivateAttr(default_factory=Places)

    def place(self, *path: str | int) -> str:
        """Where something is written: `recipe.place("losses", 1)` is `recipes/intents.yaml:9`."""
        return self._places.of(path)

    def to_dict(self) -> dict[str, Any]:
        """Everything the recipe says, its defaults too, in plain words that JSON can hold."""
        return {key: plain(vars(self)[key]) for key in type(self).model_fields}

    def to_yaml(self) -> str:
        """The recipe as YAML, which reads back as the same recipe; what it leaves out is unsaid."""
        fields = type(self).model_fields
        said = {
            key: value
            for key, value in self.to_dict().items()
            if value not in (None, [], {}) or value != plain(fields[key].default)
        }
        return written(said)

    def digest(self) -> str:
        """64 hexadecimal digits that change when anything the recipe says does (SHA-256)."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def plain(value: Any) -> Any:
    """The value of a key as it is written in a recipe."""
    if isinstance(value, tuple):
        return [choice.plain() for choice in value]
    if isinstance(value, Mapping):
        return dict(value)
    return value.plain() if isinstance(value, Choice) else value
