"""LOAD: what the problem is: data, networks, forward, loss, score."""

from attar.tasks import control, text, vision

__all__ = ["control", "text", "vision"]
