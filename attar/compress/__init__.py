"""COMPRESS: model -> smaller model. Every compressor has one type, so they stand in any order."""

from attar.compress import prune, quantize

__all__ = ["prune", "quantize"]
