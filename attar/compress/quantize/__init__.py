"""Fewer bits for each weight, in the arithmetic of the runtime that will run the file."""

from attar.compress.quantize.dynamic import int8_dynamic
from attar.compress.quantize.static import int8_static
from attar.compress.quantize.training import qat

__all__ = ["int8_dynamic", "int8_static", "qat"]
