"""The paper that comes in: frozen data, YAML both ways, checked against the rooms, JSON schema."""

from __future__ import annotations

from attar.recipe.checking import ROOMS, Piece, Resolved, Term, check, teaches_alone
from attar.recipe.editor import json_schema
from attar.recipe.paper import Choice, Recipe
from attar.recipe.reading import read

__all__ = [
    "ROOMS",
    "Choice",
    "Piece",
    "Recipe",
    "Resolved",
    "Term",
    "check",
    "json_schema",
    "read",
    "teaches_alone",
]
