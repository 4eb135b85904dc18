"""Which layers of a model a compressor works on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from attar.errors import ModelError, nearest
from attar.types import Quantized


def chosen(
    model: nn.Module,
    wanted: Callable[[nn.Module], bool],
    exclude: Sequence[str] | None,
    what: str,
) -> dict[str, nn.Module]:
    """The wanted layers by path, without those that are excluded or inside of what is.

    A layer that stands in several places is there once for each. What is inside of a quantized
    module is left to that.

    exclude: paths, in which a star stands for anything (`*.conv2`)
    what: the layers and the verb, for the sentence where there are none
    Raises ModelError for an excluded path that names nothing, and where none is left.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    places = set(modules) - {""}
    done = {path for path, module in modules.items() if isinstance(module, Quantized)}
    found = {
        path: module
        for path, module in modules.items()
        if path and wanted(module) and not done.intersection(_around(path)[:-1])
    }
    apart: set[str] = set()
    for name in exclude or ():
        if not (meant := {path for path in places if fnmatchcase(path, name)}):
            raise ModelError(f"exclude names {name!r}, where nothing is; {nearest(name, places)}")
        apart |= meant
    left = {path: module for path, module in found.items() if not apart & set(_around(path))}
    if not left:
        raise ModelError(f"{type(model).__name__} has no {what}.")
    return left


def _around(path: str) -> list[str]:
    """A path and those of all that it is inside of."""
    parts = path.split(".")
    return [".".join(parts[: n + 1]) for n in range(len(parts))]
