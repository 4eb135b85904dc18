"""Tasks over text."""

from attar.tasks.text.labelled import classification

__all__ = ["classification"]
