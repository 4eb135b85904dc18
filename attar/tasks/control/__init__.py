"""Tasks over the states of environments."""

from attar.tasks.control.acting import policy

__all__ = ["policy"]
