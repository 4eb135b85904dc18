"""Losses that compare relations: how examples, or the parts of one, stand to one another.

Each takes tensors of any float type, works in float32, returns a float32 scalar, and sends no
gradient to the teacher. Relations have no width, so that of student and teacher may differ. With
one example there is nothing to relate: `distance`, `angle`, `similarity`, `correlation` and
`graph` are then zero, with a gradient of zero.
"""

from .examples import angle, correlation, distance, similarity
from .graphs import graph
from .memory import crd, seed
from .structure import arcs, entity

__all__ = [
    "angle",
    "arcs",
    "correlation",
    "crd",
    "distance",
    "entity",
    "graph",
    "seed",
    "similarity",
]
