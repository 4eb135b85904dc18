"""Activations made anew in the backward pass, in place of all that are kept for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from attar.depth import blocks
from attar.errors import EngineError
from attar.types import InTraining


def recomputable(model: nn.Module) -> list[nn.Module]:
    """The blocks whose activations can be made anew.

    Raises EngineError where there is no stack of like blocks, or one notes what passes through it,
    which would be noted twice.
    """
    found = [model.get_submodule(path) for path in blocks(model)]
    cure = "leave `recompute` out, and set `accumulate` to save memory."
    if not found:
        raise EngineError(
            f"{type(model).__name__} has no stack of like blocks whose activations could be made "
            f"anew; {cure}"
        )
    for block in found:
        for module in block.modules():
            if isinstance(module, _BatchNorm | InTraining):
                raise EngineError(
                    f"A {type(module).__name__} notes what passes through it, and would twice; "
                    f"{cure}"
                )
    return found


@contextmanager
def recomputed(model: nn.Module) -> Iterator[None]:
    """Of each block of a model only the input is kept; dropout falls alike both times.

    Raises EngineError as `recomputable` does.
    Source: Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016.
    """
    found = recomputable(model)
    before = [dict(vars(block)) for block in found]
    for block in found:
        vars(block)["forward"] = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block, was in zip(found, before, strict=True):
            vars(block).pop("forward")
            vars(block).update({"forward": was["forward"]} if "forward" in was else {})
