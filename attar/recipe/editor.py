"""The grammar of recipes as a JSON Schema, so that an editor completes and checks them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from attar.recipe.checking import ROOMS
from attar.recipe.paper import LISTS, Recipe
from attar.resolve import Function, Room, describe, names, schema

OWN_CODE = "^.+:[^:]+$"
"""How a name looks that is looked up in the user's own file."""

_SCHEDULE = {"$ref": "#/$defs/weight"}

_TERM: dict[str, Any] = {
    "weight": {
        "description": "how much the loss counts: a number, or a schedule",
        "oneOf": [{"type": "number"}, _SCHEDULE],
        "default": 1.0,
    },
    "layers": {
        "description": "`auto`, or student path: teacher path",
        "type": ["string", "object", "null"],
        "additionalProperties": {"type": "string"},
    },
}

# What the task's own loss may be told depends on the task, which only `check` can see.
_TASK_LOSS: dict[str, Any] = {
    "description": "The task's own loss: the true labels.",
    "type": ["object", "null"],
    "properties": {},
}


def json_schema(rooms: Mapping[str, Room] = ROOMS) -> dict[str, Any]:
    """A JSON Schema (draft 2020-12) of recipes over these rooms.

    It knows everything `check` knows but what one key means to another, such as losses that
    need a teacher.
    """
    shared: dict[str, Any] = {}
    for key, room in rooms.items():
        known = {name: _options(key, name, f, shared) for name, f in names(room).items()}
        if key == "losses":
            known = {
                name: about | {"properties": _TERM | about["properties"]}
                for name, about in (known | {"task": _TASK_LOSS}).items()
            }
        if "repeat" in known:
            known["repeat"]["properties"]["steps"]["items"] = {"$ref": f"#/$defs/{key}"}
        shared[key] = _limits(known) if key == "gates" else _choice(known)
    shared.setdefault("gates", _limits({}))
    fields = Recipe.model_fields
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "attar recipe",
        "type": "object",
        "properties": {key: _key(key) for key in fields},
        "required": [key for key, about in fields.items() if about.is_required()],
        "additionalProperties": False,
        "$defs": shared,
    }


def comparison_schema(rooms: Mapping[str, Room] = ROOMS) -> dict[str, Any]:
    """A JSON Schema (draft 2020-12) of comparisons over these rooms."""
    recipe = json_schema(rooms)
    keys = recipe["properties"]
    changes = {
        "type": ["object", "null"],
        "properties": keys,
        "patternProperties": {rf"^({'|'.join(keys)})\..+": {}},
        "additionalProperties": False,
    }
    word = {"type": "string"}
    sizes = {"type": "object", "additionalProperties": changes}
    own = {"recipe": word, "of": word, "row": word, "at": sizes}
    arm = changes | {"properties": keys | own}
    seed = {"type": "integer", "minimum": 0}
    stem = {key: recipe[key] for key in ("type", "properties", "additionalProperties")}
    said = {
        "name": keys["name"],
        "seeds": {"type": "array", "items": seed, "minItems": 1, "uniqueItems": True},
        "recipe": {"oneOf": [word, stem]},
        "arms": {"type": "object", "additionalProperties": arm, "minProperties": 1},
        "sweep": sizes,
        "control": word,
        "against": {"type": "array", "items": word},
    }
    return recipe | {"title": "attar comparison", "properties": said, "required": ["arms"]}


def _moving(option: dict[str, Any]) -> dict[str, Any]:
    """An option of a loss that is a number, or follows a schedule."""
    if option.get("type") != "number":
        return option
    told = {key: option[key] for key in ("default", "description") if key in option}
    number = {key: value for key, value in option.items() if key not in told}
    return told | {"oneOf": [number, _SCHEDULE]}


def _key(key: str) -> dict[str, Any]:
    if key == "name":
        return {"type": ["string", "null"]}
    if key == "seed":
        return {"type": "integer", "default": 0}
    choice = {"$ref": f"#/$defs/{key}"}
    if key == "gates":
        return choice
    if key in LISTS:
        return {"type": "array", "items": choice, "minItems": 1 if key == "steps" else 0}
    return choice if key in ("task", "engine") else {"oneOf": [choice, {"type": "null"}]}


def _limits(known: dict[str, Any]) -> dict[str, Any]:
    """Gates, each with its limit."""
    limits = {
        name: {**about["properties"]["limit"], "title": name, "description": about["description"]}
        for name, about in known.items()
    }
    return {
        "type": "object",
        "properties": limits,
        "patternProperties": {OWN_CODE: {"type": "number"}},
        "additionalProperties": False,
    }


def _choice(known: dict[str, Any]) -> dict[str, Any]:
    own = {"type": ["object", "null"]}
    return {
        "oneOf": [
            {"enum": [name for name, about in known.items() if not about.get("required")]},
            {"type": "string", "pattern": OWN_CODE},
            {
                "type": "object",
                "properties": known,
                "patternProperties": {OWN_CODE: own},
                "additionalProperties": False,
                "minProperties": 1,
                "maxProperties": 1,
            },
        ]
    }


def _options(key: str, name: str, function: Function, shared: dict[str, Any]) -> dict[str, Any]:
    about = schema(function).model_json_schema()
    shared |= about.pop("$defs", {})
    options = {
        option: {key: value for key, value in said.items() if key != "title"}
        for option, said in about.get("properties", {}).items()
    }
    if key == "losses" and not inspect.isclass(function):  # what is built once can't move
        options = {option: _moving(said) for option, said in options.items()}
    # `name:` with nothing after it sets no option, which is right where none is required.
    type_ = "object" if about.get("required") else ["object", "null"]
    return about | {
        "title": name,
        "description": describe(function).says,
        "type": type_,
        "properties": options,
    }
