"""The paper of a comparison: arms, seeds and sizes as frozen data, and the recipes they stand for.

An arm is a recipe with some of its words changed, or a row of the run of another arm.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PrivateAttr,
    StrictInt,
    ValidationError,
    model_validator,
)

from attar.errors import RecipeError, nearest
from attar.recipe.dialect import Trail, parsed, written
from attar.recipe.paper import Places, Recipe, plain_name
from attar.recipe.reading import changed, fault, opened, overridden, validated

AT = " @ "
"""Stands between an arm and its size: `kd @ small`."""

Changes = dict[str, JsonValue]
"""By a key of a recipe, or a path as in `--set`: what stands there instead."""


class Arm(BaseModel):
    """One of the things compared: a recipe changed, or a row of another arm's run.

    recipe: the file it is a variation of; left out, the comparison's
    of: the arm whose run it is a row of (at one size: `kd @ small`); nothing is trained then
    row: which row of the run is weighed; left out, the last that its steps made
    at: what the sizes of the sweep mean to it; left out, what the sweep says
    changes: what it says otherwise than its recipe; every other key stands for one
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str | None = None
    of: str | None = None
    row: str | None = None
    at: dict[str, Changes | None] | None = None
    changes: Changes = {}

    @model_validator(mode="before")
    @classmethod
    def _sorted(cls, said: Any) -> Any:
        if isinstance(said, Arm):
            return said
        if said is not None and not isinstance(said, Mapping):
            raise ValueError(f"an arm is `name: {{changes}}`, and it is {short(said)}")
        said = {} if said is None else said
        own = {key: value for key, value in said.items() if key in ARM}
        return own | {"changes": {key: said[key] for key in said if key not in ARM}}

    def plain(self) -> dict[str, Any]:
        """As it is written in a comparison."""
        own = {key: vars(self)[key] for key in ARM if vars(self)[key] is not None}
        return deepcopy(own | self.changes)


ARM = ("recipe", "of", "row", "at")
"""The words of an arm that are no key of a recipe."""


def _arm_names(arms: dict[str, Arm]) -> dict[str, Arm]:
    if not arms:
        raise ValueError("there are no arms; a comparison has at least one, `arms: {kd: {}}`")
    return {_name(name): arm for name, arm in arms.items()}


def _size_names(sizes: dict[str, Any]) -> dict[str, Any]:
    return {_name(name): size or {} for name, size in sizes.items()}


def _name(name: str) -> str:
    # It becomes a folder, and must stay apart from the path behind it in `--set arms.NAME.path`.
    if not re.fullmatch(r"\w[\w+-]*", name):
        raise ValueError(
            f"the name of an arm or size is letters, digits, '-' and '_', not {name!r}"
        )
    return name


def _distinct(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if not seeds:
        raise ValueError("there are no seeds; name at least one, as in `seeds: [0, 1, 2]`")
    if twice := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
        raise ValueError(f"the seed {twice[0]} stands here twice")
    return seeds


@dataclass(frozen=True)
class Run:
    """A recipe that is run with every seed: an arm, at a size where there are sizes."""

    arm: str
    size: str | None = None

    @property
    def title(self) -> str:
        """`kd`, or `kd @ small`."""
        return self.arm if self.size is None else f"{self.arm}{AT}{self.size}"


@dataclass(frozen=True)
class Line:
    """A line of the result: the run it is read from, and which row of it (None: the last made)."""

    arm: str
    size: str | None
    run: Run
    row: str | None

    @property
    def name(self) -> str:
        """`kd`, or `kd @ small`."""
        return Run(self.arm, self.size).title


class Comparison(BaseModel):
    """What to compare, as frozen data; `recipe_of` gives the recipe of each run.

    name: what to call it; seeds: each arm is run with every one of them
    recipe: a recipe's file, or the recipe itself, that the arms are variations of
    arms: what is compared; sweep: the sizes that each trained arm is run at, from small to big
    control: the arm that all others are weighed against; against: further ones
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, AfterValidator(plain_name)] | None = None
    seeds: Annotated[tuple[Annotated[StrictInt, Field(ge=0)], ...], AfterValidator(_distinct)] = (
        0,
        1,
        2,
    )
    recipe: str | Changes | None = None
    arms: Annotated[dict[str, Arm], AfterValidator(_arm_names)]
    sweep: Annotated[dict[str, Changes | None], AfterValidator(_size_names)] = {}
    control: str | None = None
    against: tuple[str, ...] = ()

    _places: Places = PrivateAttr(default_factory=Places)
    _settings: tuple[str, ...] = PrivateAttr(default=())

    def place(self, *path: str | int) -> str:
        """Where something is written."""
        return self._places.of(path)

    def weighed_against(self) -> tuple[str, ...]:
        """The control, and the further arms that everybody is weighed against."""
        usual = "labels_only" if "labels_only" in self.arms else next(iter(self.arms))
        return tuple(dict.fromkeys((self.control or usual, *self.against)))

    def sizes_of(self, arm: str) -> tuple[str | None, ...]:
        """The sizes an arm stands at: its own, the sweep's, or None where there are none."""
        at = self.arms[arm].at
        return tuple(self.sweep if at is None else at) or (None,)

    def runs(self) -> tuple[Run, ...]:
        """What is run with every seed: the arms that are no row of another."""
        own = [arm for arm, said in self.arms.items() if said.of is None]
        return tuple(Run(arm, size) for arm in own for size in self.sizes_of(arm))

    def lines(self) -> tuple[Line, ...]:
        """What is compared, in the order of the arms."""
        return tuple(line for arm in self.arms for line in self.lines_of(arm))

    def lines_of(self, arm: str) -> Iterator[Line]:
        """The lines of one arm: one for each of its sizes."""
        said = self.arms[arm]
        if said.of is None:
            yield from (Line(arm, at, Run(arm, at), said.row) for at in self.sizes_of(arm))
            return
        other, at, size = said.of.partition(AT)
        for line in self.lines_of(other):
            if not at or line.size == size:
                yield Line(arm, None if at else line.size, line.run, said.row)

    def recipe_of(self, run: Run) -> Recipe:
        """The recipe of a run, its seed aside. Errors: `RecipeError` with the line."""
        said = self.arms[run.arm]
        data, places = self._stem(said)
        for setting in self._settings:
            data, places = overridden(data, places, setting)
        trail: Trail = ("arms", run.arm)
        data, places = self._changed(data, places, said.changes, trail)
        if run.size is not None:
            at = said.at or {}
            trail = (*trail, "at", run.size) if run.size in at else ("sweep", run.size)
            size = at[run.size] if run.size in at else self.sweep[run.size]
            data, places = self._changed(data, places, size or {}, trail)
        return validated(data, places)

    def _stem(self, arm: Arm) -> tuple[dict[str, Any], Places]:
        """The recipe that an arm is a variation of, in words."""
        stem = arm.recipe or self.recipe
        assert stem is not None  # `read_comparison` refuses it
        if isinstance(stem, str):
            return opened(Path(stem))
        known = self._places.known
        inside = {trail[1:]: at for trail, at in known.items() if trail[:1] == ("recipe",)}
        return deepcopy(dict(stem)), Places(self.place("recipe"), inside)

    def _changed(
        self, data: dict[str, Any], places: Places, changes: Changes, trail: Trail
    ) -> tuple[dict[str, Any], Places]:
        for route, value in changes.items():
            here = (*trail, route)
            known = self._places.known
            inside = {t[len(here) :]: at for t, at in known.items() if t[: len(here)] == here}
            said = self.place(*here)
            data, places = changed(data, places, route, deepcopy(value), said, inside)
        return data, places

    def to_yaml(self) -> str:
        """The comparison as YAML; what it leaves out is unsaid."""
        said = {key: value for key, value in self.model_dump(mode="json").items() if value}
        said["arms"] = {name: arm.plain() for name, arm in self.arms.items()}
        return written(said)


def read_comparison(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()
) -> Comparison:
    """A comparison from a file, from YAML text, or from its words.

    overrides: `path=value`; a key of the comparison (`seeds=[0]`, `arms.kd.seed=3`) is changed
        here, a key of recipes (`task.dataset=data/mine`) in every recipe that arms vary
    Errors: `RecipeError` with the line, for the first thing that is not right.
    """
    data, places = opened(source, "comparison", "recipe and arms")
    settings = []
    for each in overrides:
        setting = each.removeprefix("recipe.")  # whichever recipe it is
        key = re.split("[.=]", setting)[0]
        if key in Comparison.model_fields or key not in Recipe.model_fields:
            data, places = _set(data, places, setting)
        else:
            settings.append(setting)
    try:
        found = Comparison.model_validate(data)
    except ValidationError as refused:
        fields = Comparison.model_fields
        raise RecipeError(fault(refused, places, "comparison", fields)) from None
    found._places, found._settings = places, tuple(settings)
    for trail, sentence in _nonsense(found):
        raise RecipeError(f"{found.place(*trail)}: {sentence}")
    return found


def _set(data: dict[str, Any], places: Places, setting: str) -> tuple[dict[str, Any], Places]:
    """The words of a comparison with one setting in place of what stood there."""
    route, equals, text = setting.partition("=")
    said, fields = f"--set {setting}", [*Comparison.model_fields, *Recipe.model_fields]
    key, *trail = route.split(".", 2)
    if not equals:
        raise RecipeError(f"{said}: write path=value, as in seeds=[0]")
    if key not in fields:
        raise RecipeError(f"{said}: unknown key {key!r}; {nearest(key, fields)}")
    value, _ = parsed(text, said)
    for inner in reversed(trail):
        value = {inner: value}
    merged = _merged(data.get(key), value) if trail else value
    known = {old: at for old, at in places.known.items() if old[: 1 + len(trail)] != (key, *trail)}
    return data | {key: merged}, Places(places.source, {**known, (key, *trail): said})


def _merged(old: Any, new: Any) -> Any:
    """A mapping with one entry more, at whatever depth."""
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return new
    return dict(old) | {key: _merged(old.get(key), value) for key, value in new.items()}


def _nonsense(found: Comparison) -> Iterator[tuple[Trail, str]]:
    for name, arm in found.arms.items():
        yield from _of_nobody(found, name, arm)
        if arm.of is None and arm.recipe is None and found.recipe is None:
            yield ("arms", name), f"the arm {name} varies no recipe: add the key recipe"
        for size in arm.at or ():
            if size not in found.sweep:
                told = nearest(size, found.sweep)
                yield ("arms", name, "at", size), f"the sweep has no size {size!r}; {told}"
        for route in arm.changes:
            if (key := route.partition(".")[0]) not in Recipe.model_fields:
                told = nearest(key, [*ARM, *Recipe.model_fields])
                yield ("arms", name, route), f"unknown key {key!r} in the arm {name}; {told}"
    for key in ("control", "against"):
        said = vars(found)[key] or ()
        for name in (said,) if isinstance(said, str) else said:
            if name not in found.arms:
                yield (key,), f"there is no arm {name!r}; {nearest(name, found.arms)}"


def _of_nobody(found: Comparison, name: str, arm: Arm) -> Iterator[tuple[Trail, str]]:
    """What can be wrong with an arm that is a row of another's run."""
    if arm.of is None:
        return
    trail: Trail = ("arms", name, "of")
    other, at, size = arm.of.partition(AT)
    if other not in found.arms:
        yield trail, f"there is no arm {other!r}; {nearest(other, found.arms)}"
    if _in_a_circle(found, name):
        yield trail, f"the arm {name} is a row of its own: {' of '.join(_chain(found, name))}"
    sizes = {line.size or "" for line in found.lines_of(other)}
    if at and size not in sizes:
        yield trail, f"the arm {other} has no size {size!r}; {nearest(size, sizes - {''})}"
    if arm.row is None:
        yield ("arms", name), f"which row of {other} is the arm {name}? Add the key row"
    if extra := [*arm.changes, *(key for key in ("recipe", "at") if vars(arm)[key] is not None)]:
        yield (
            ("arms", name, extra[0]),
            f"the arm {name} is a row of {other}'s run and can change nothing: leave out "
            f"{extra[0]!r}, or `of`",
        )


def _chain(found: Comparison, name: str) -> list[str]:
    """The arm, the arm it is a row of, and so on, to the end or to the first that comes again."""
    chain = [name]
    while (of := found.arms[chain[-1]].of) is not None:
        other = of.partition(AT)[0]
        if other not in found.arms:
            break
        chain.append(other)
        if chain.count(other) > 1:
            break
    return chain


def _in_a_circle(found: Comparison, name: str) -> bool:
    chain = _chain(found, name)
    return chain.count(chain[-1]) > 1
