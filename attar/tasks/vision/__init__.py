"""Tasks over pictures."""

from attar.tasks.vision.labelled import classification

__all__ = ["classification"]
