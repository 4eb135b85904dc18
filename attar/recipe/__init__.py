"""The paper that comes in: frozen data, YAML both ways, checked against the rooms, JSON schema."""

from __future__ import annotations

from attar.recipe.checking import ROOMS, Piece, Resolved, Term, check, teaches_alone
from attar.recipe.comparison import Comparison, Line, Run, read_comparison
from attar.recipe.editor import comparison_schema, json_schema
from attar.recipe.paper import Choice, Recipe
from attar.recipe.reading import read

__all__ = [
    "ROOMS",
    "Choice",
    "Comparison",
    "Line",
    "Piece",
    "Recipe",
    "Resolved",
    "Run",
    "Term",
    "check",
    "comparison_schema",
    "json_schema",
    "read",
    "read_comparison",
    "teaches_alone",
]
