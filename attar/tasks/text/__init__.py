"""Tasks over text."""

from attar.tasks.text.generation import generation
from attar.tasks.text.labelled import classification

__all__ = ["classification", "generation"]
