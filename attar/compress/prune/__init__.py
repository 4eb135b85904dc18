"""Fewer weights: zeros where they matter least, or whole rows, heads, channels and layers gone."""

from attar.compress.prune.layers import layers
from attar.compress.prune.sparse import magnitude, wanda
from attar.compress.prune.structured import structured
from attar.compress.prune.vocabulary import vocabulary

__all__ = ["layers", "magnitude", "structured", "vocabulary", "wanda"]
