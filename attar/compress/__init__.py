"""COMPRESS: model -> smaller model. Every compressor has one type, so they stand in any order."""

from attar.compress import factorize, prune, quantize, tree

__all__ = ["factorize", "prune", "quantize", "tree"]
