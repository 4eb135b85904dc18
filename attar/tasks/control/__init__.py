"""Tasks over the states of environments."""

from attar.tasks.control.acting import policy
from attar.tasks.control.representing import representation
from attar.tasks.control.valuing import value

__all__ = ["policy", "representation", "value"]
