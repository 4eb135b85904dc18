"""Fewer weights: zeros where they matter least, or whole rows, heads, channels and layers gone."""

from attar.compress.prune.sparse import magnitude
from attar.compress.prune.structured import structured

__all__ = ["magnitude", "structured"]
