"""Fewer weights: zeros where they matter least, or whole rows, heads, channels and layers gone."""

from attar.compress.prune.sparse import magnitude

__all__ = ["magnitude"]
