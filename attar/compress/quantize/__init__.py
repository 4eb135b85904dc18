"""Fewer bits for each weight, in the arithmetic of the runtime that will run the file."""

from attar.compress.quantize.dynamic import int8_dynamic
from attar.compress.quantize.halves import bf16, fp16
from attar.compress.quantize.mixed import mixed
from attar.compress.quantize.smooth import smooth
from attar.compress.quantize.static import int8_static
from attar.compress.quantize.training import qat
from attar.compress.quantize.weight import int4_weight

__all__ = [
    "bf16",
    "fp16",
    "int4_weight",
    "int8_dynamic",
    "int8_static",
    "mixed",
    "qat",
    "smooth",
]
