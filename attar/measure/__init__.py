"""MEASURE: model -> numbers. Teacher, student, baseline and file go through the same functions."""

from attar.measure.audit import audit
from attar.measure.comparing import compare as compare
from attar.measure.comparing import row as row
from attar.measure.comparing import runtime as runtime
from attar.measure.cost import latency, macs, nonzero, parameters, size, zipped
from attar.measure.energy import energy
from attar.measure.memory import memory
from attar.measure.scoring import score

__all__ = [
    "audit",
    "energy",
    "latency",
    "macs",
    "memory",
    "nonzero",
    "parameters",
    "score",
    "size",
    "zipped",
]
