"""attar: a big model in; the best small one you can ship, and an honest report, out."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attar.comparing import compare
    from attar.pipeline import run
    from attar.recipe import Recipe, read
    from attar.report import Report

__all__ = ["Recipe", "Report", "__version__", "compare", "read", "run"]

_MADE_IN = {
    "Recipe": "attar.recipe",
    "read": "attar.recipe",
    "Report": "attar.report",
    "run": "attar.pipeline",
    "compare": "attar.comparing",
}
_ROOMS = ("compress", "distill", "export", "losses", "measure", "students", "tasks", "teach")


def __getattr__(name: str) -> Any:
    # Lazily, so that `import attar` and `attar --help` wait for no torch.
    if name in _MADE_IN:
        return vars(import_module(_MADE_IN[name]))[name]
    if name in _ROOMS:
        return import_module(f"attar.{name}")
    if name == "__version__":
        return _version()
    raise AttributeError(f"module 'attar' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("attar")
    except PackageNotFoundError:
        return "unknown (not installed)"
