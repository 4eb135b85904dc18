"""From YAML to a recipe: `read`, its `--set path=value` overrides, and what can be wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from reprlib import repr as short
from typing import Any

from pydantic import ValidationError

from attar.errors import RecipeError, nearest
from attar.recipe.dialect import Trail, parsed
from attar.recipe.paper import LISTS, PLAIN, Places, Recipe, plain


def read(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from a file, from YAML text (anything with a line break), or from `to_dict`'s words.

    overrides: `path=value`, as in `losses.1.weight=0.5`; the value is YAML, and the name of a
        choice may be left out of the path
    Errors: `RecipeError` with the line for what is not YAML, not a key, or not of the right type;
        the names and options of choices are left to `check`.
    """
    data, places = opened(source)
    for setting in overrides:
        data, places = overridden(data, places, setting)
    return validated(data, places)


def validated(data: Mapping[str, Any], places: Places) -> Recipe:
    """The recipe that these words are. Errors: `RecipeError` with the place of the first fault."""
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as refused:
        raise RecipeError(fault(refused, places, "recipe", Recipe.model_fields)) from None
    recipe._places = places
    return recipe


def opened(
    source: str | Path | Mapping[str, Any], noun: str = "recipe", needs: str = "task and steps"
) -> tuple[dict[str, Any], Places]:
    """The words of a file, a YAML text or a mapping, unjudged, and where each of them stands."""
    if isinstance(source, Mapping):
        return dict(source), Places()
    is_text = isinstance(source, str) and "\n" in source
    try:
        text = str(source) if is_text else Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{source}: the {noun} can't be read: {error}") from None
    origin = noun if is_text else str(source)
    data, lines = parsed(text, origin)
    if not isinstance(data, dict):
        raise RecipeError(f"{origin}: a {noun} is made of lines `key: value`, at least {needs}")
    return data, Places(origin, {trail: f"{origin}:{line}" for trail, line in lines})


def fault(refused: ValidationError, places: Places, noun: str, fields: Iterable[str]) -> str:
    """The first thing that is wrong, in a sentence with its place."""
    # A misspelt key is a missing key too: say first that it is misspelt.
    errors = sorted(refused.errors(), key=lambda error: error["type"] != "extra_forbidden")
    trail, kind, got = errors[0]["loc"], errors[0]["type"], errors[0]["input"]
    place, key = places.of(trail), trail[0]
    if kind == "extra_forbidden":
        return f"{place}: unknown key {key!r} in the {noun}; {nearest(str(key), fields)}"
    if kind == "missing":
        return f"{place}: the {noun} needs the key {key!r}"
    if kind == "value_error":
        return f"{place}: {errors[0]['ctx']['error']}"
    wanted = errors[0]["msg"].removeprefix("Input ").replace("tuple", "list")
    return f"{place}: {key!r} {wanted}, not {short(got)}"


def overridden(data: dict[str, Any], places: Places, setting: str) -> tuple[dict[str, Any], Places]:
    """The words of a recipe with one setting, `path=value`, in place of what stood there."""
    route, equals, text = setting.partition("=")
    said = f"--set {setting}"
    if not equals:
        raise RecipeError(f"{said}: write path=value, as in losses.0.weight=0.5")
    return changed(data, places, route, parsed(text, said)[0], said)


def changed(
    data: dict[str, Any],
    places: Places,
    route: str,
    value: Any,
    said: str,
    inside: Mapping[Trail, str] | None = None,
) -> tuple[dict[str, Any], Places]:
    """The words of a recipe with one value in them changed.

    route: keys and indexes with dots between; the name of a choice may be left out
    said: the place of the change, in words; inside: the places of what the value holds
    """
    key, *_ = parts = route.split(".")
    fields = Recipe.model_fields
    if key not in fields:
        raise RecipeError(f"{said}: unknown key {key!r} in the recipe; {nearest(key, fields)}")
    default = None if fields[key].is_required() else plain(fields[key].default)
    try:
        tree, trail = _put({key: default, **data}, parts, value)
    except RecipeError as error:
        raise RecipeError(f"{said}: {error}") from None
    known = {old: at for old, at in places.known.items() if old[: len(trail)] != trail}
    known |= {(*trail, *rest): at for rest, at in (inside or {}).items()}
    return tree, Places(places.source, {**known, trail: said})


def _put(tree: Any, parts: list[str], value: Any, trail: Trail = ()) -> tuple[Any, Trail]:
    """The tree with one value in it changed, and the trail to where that is."""
    if not parts:
        return value, trail
    if isinstance(tree, list):
        index = _index(tree, parts[0], trail)
        inner, landed = _put(tree[index], parts[1:], value, (*trail, index))
        return [*tree[:index], inner, *tree[index + 1 :]], landed
    depth = 2 if trail[:1] and trail[0] in LISTS else 1
    is_choice = len(trail) == depth and trail[0] not in PLAIN
    if is_choice and isinstance(tree, str):
        tree = {tree: {}}
    if not isinstance(tree, dict):
        raise RecipeError(f"{_dotted(trail)} is {short(tree)}, and nothing is under it")
    key, rest = _next(tree, parts, trail, is_choice)
    below = {} if is_choice and tree.get(key) is None else tree.get(key)
    inner, landed = _put(below, rest, value, (*trail, key))
    return {**tree, key: inner}, landed


def _next(
    tree: dict[str, Any], parts: list[str], trail: Trail, is_choice: bool
) -> tuple[str, list[str]]:
    # Names have dots in them, so the longest key that is there is the one that is meant.
    for stop in range(len(parts), 0, -1):
        if ".".join(parts[:stop]) in tree:
            return ".".join(parts[:stop]), parts[stop:]
    if is_choice and len(tree) == 1:
        return next(iter(tree)), parts
    if len(parts) == 1:
        return parts[0], []
    word = ".".join(parts[:-1])
    known = [*tree, *map(str, trail[-1:])]
    raise RecipeError(f"{_dotted(trail)} has no {word!r}; {nearest(word, known)}")


def _index(items: list[Any], part: str, trail: Trail) -> int:
    if not part.isdecimal() or int(part) >= len(items):
        raise RecipeError(
            f"{_dotted(trail)} is a list of {len(items)}, counted from 0; {part!r} is not in it"
        )
    return int(part)


def _dotted(trail: Trail) -> str:
    return ".".join(map(str, trail))
