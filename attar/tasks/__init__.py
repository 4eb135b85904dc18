"""LOAD: what the problem is: data, networks, forward, loss, score."""

from attar.tasks import text, vision

__all__ = ["text", "vision"]
