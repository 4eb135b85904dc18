"""The contract of `report.json`: its JSON Schema, and the check that reading a report makes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from attar.errors import DataError, nearest

SCHEMA = 4
"""Version of the contract; it rises when a key is added, removed or changes its meaning."""

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) that every `report.json` satisfies."""
    count = {"type": ["integer", "null"], "minimum": 0}
    percentile = {"type": "number", "minimum": 0}
    row = {
        "name": {"type": "string"},
        "runtime": {"type": "string"},
        "score": {"type": ["number", "null"]},
        "metrics": {"type": "object"},
        "parameters": count,
        "macs": count,
        "size_bytes": count,
        "latency_ms": {"type": ["object", "null"], "additionalProperties": percentile},
        "memory_bytes": count,
        "note": {"type": "string"},
        "nonzero": count,
        "zipped_bytes": count,
        "energy_j": {"type": ["number", "null"], "minimum": 0},
        "after": {"type": "string"},
        "part": {"type": ["string", "null"]},
        "by_seed": {"type": "array", "items": {"type": "number"}},
        "interval": {"type": ["array", "null"], "items": {"type": "number"}},
    }
    seconds = {"type": "object", "additionalProperties": {"type": ["number", "null"]}}
    entries = {"type": "array", "items": {"type": "object"}}
    report = {
        "schema": {"const": SCHEMA},
        "score_name": {"type": "string"},
        "verdict": {"type": "array", "items": {"type": "string"}},
        "rows": {"type": "array", "items": _record(row, ["name", "runtime"])},
        "recipe": {"type": "object"},
        "environment": {"type": "object"},
        "cost": {"type": "object", "properties": {"seconds": seconds}},
        "plan": {},
        "history": {"type": "object", "additionalProperties": entries},
        "differences": {"type": "array", "items": _difference()},
        "audits": {"type": "object", "additionalProperties": _audit()},
        "films": {"type": "array", "items": _film()},
    }
    required = ["schema", "recipe", "environment", "rows", "cost", "plan"]
    draft = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": draft, "title": "attar report", **_record(report, required)}


def _difference() -> dict[str, Any]:
    """How far one row's score is from another's, and whether that is resolved."""
    number, maybe = {"type": "number"}, {"type": ["number", "null"]}
    known = {
        "row": {"type": "string"},
        "against": {"type": "string"},
        "mean": number,
        "low": maybe,
        "high": maybe,
        "p": maybe,
        "resolved": {"type": "boolean"},
        "by_seed": {"type": "array", "items": number},
        "examples": {"type": ["integer", "null"], "minimum": 0},
        "why": {"type": "string"},
    }
    return _record(known, ["row", "against", "mean", "resolved"])


def _audit() -> dict[str, Any]:
    """What became of each answer of one row, beside the row it was made from or is judged by."""
    table = {"type": "array", "items": {"type": "object"}}
    facts = {"type": "object"}
    known = {
        "against": {"type": "string"},
        "examples": {"type": "integer", "minimum": 0},
        "agreement": {"type": "number"},
        "kl": {"type": ["number", "null"]},
        "flips": facts,
        "classes": table,
        "calibration": facts,
        "broken": table,
        "broken_file": {"type": "string"},
        "cka": table,
        "occlusion": facts,
        "surrogate": facts,
        "gates": table,
    }
    return _record(known, ["against", "examples", "agreement"])


def _film() -> dict[str, Any]:
    """What an episode of one seed looked like at some steps, whoever acted in it."""
    text, count = {"type": "string"}, {"type": "integer", "minimum": 0}
    row = {
        "name": text,
        "return": {"type": "number"},
        "length": count,
        "pictures": {"type": "array", "items": text},
    }
    known = {
        "environment": text,
        "seed": count,
        "steps": {"type": "array", "items": count},
        "rows": {"type": "array", "items": _record(row, list(row))},
        "why": text,
    }
    return _record(known, list(known))


def _record(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def check(value: Any, rule: Mapping[str, Any], place: str = "report") -> None:
    """Refuse what breaks the contract; knows as much of JSON Schema as `schema` uses.

    Raises DataError with the place of the first thing that is wrong.
    """
    if "const" in rule and value != rule["const"]:
        raise DataError(f"{place} must be {rule['const']!r}, not {value!r}: use the attar it is of")
    if "type" in rule:
        _check_type(value, rule["type"], place)
    if isinstance(value, int | float) and value < rule.get("minimum", -math.inf):
        raise DataError(f"{place} is {value!r}, and can't be below {rule['minimum']}")
    if isinstance(value, list):
        for index, item in enumerate(value):
            check(item, rule.get("items", {}), f"{place}[{index}]")
    if isinstance(value, dict):
        _check_object(value, rule, place)


def _check_type(value: Any, types: str | list[str], place: str) -> None:
    names = [types] if isinstance(types, str) else types
    allowed = tuple(kind for name in names for kind in _TYPES[name])
    # To Python a truth value is a number too.
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        raise DataError(f"{place} must be {' or '.join(names)}, not {value!r}")


def _check_object(value: dict[str, Any], rule: Mapping[str, Any], place: str) -> None:
    properties, others = rule.get("properties", {}), rule.get("additionalProperties", {})
    for key in rule.get("required", ()):
        if key not in value:
            raise DataError(f"{place} has no {key!r}: it is not a report, or is cut short")
    for key, item in value.items():
        if key not in properties and others is False:
            raise DataError(f"{place} has an unknown key {key!r}; {nearest(key, properties)}")
        check(item, properties.get(key, others), f"{place}.{key}")


def plain(value: Any) -> Any:
    """The value as strict JSON can hold it: NaN and infinity become null, the unknown its text."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value)
