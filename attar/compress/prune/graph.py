"""Channels of any network, followed through its graph by Torch-Pruning (DepGraph, Fang 2023)."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attar.compress.choosing import chosen
from attar.compress.prune.importance import Importance, columns, scales
from attar.errors import MissingExtra, ModelError
from attar.types import Calibration, Example, Losses

PATIENCE = 120.0
"""Seconds for one network. Torch-Pruning takes a few; on some graphs it never comes to an end."""


DENSE = [nn.Linear, nn.Conv1d, nn.Conv2d]
"""Layers whose channels are pruned; Torch-Pruning's way with recurrent layers breaks on some."""


@dataclass(frozen=True)
class Measure:
    """How the channels are judged, and on what."""

    how: Importance
    example: Example
    calibration: Calibration
    losses: Losses
    batches: int

    def by_layer(self, model: nn.Module, paths: list[str]) -> dict[nn.Module, Tensor]:
        """What each channel is worth to a layer that reads it, or by the batch norm it leaves.

        paths: of the layers that read
        """
        if self.how == "scale":
            return scales(model)
        worth = columns(model, paths, self.how, self.calibration, self.losses, self.batches)
        # Each layer by its own measure, so that one of large weights does not outvote others.
        return {
            model.get_submodule(path): each / each.mean().clamp(min=torch.finfo(each.dtype).tiny)
            for path, each in worth.items()
        }


def cut(
    model: nn.Module,
    ratio: float,
    measure: Measure,
    *,
    together: bool,
    round_to: int,
    exclude: list[str] | None,
) -> nn.Module:
    """Prune the channels of a network in place.

    together: one threshold for all channels, where one share for each layer is the other choice
    Raises ModelError where there is nothing to prune or no end is found, MissingExtra.
    """
    try:
        import torch_pruning as pruning
    except ImportError as error:
        raise MissingExtra("torch-pruning", "prune", "pruning channels") from error
    free = chosen(model, is_dense, exclude, "linear or convolution layer left to prune")
    inputs = dict(measure.example(model))
    every = {path: module for path, module in model.named_modules() if is_dense(module)}
    called = _called(model, every, inputs)
    by_layer = measure.by_layer(model, called)
    kept = [module for path, module in every.items() if path not in free or path == called[-1]]
    before = sum(each.numel() for each in model.parameters())

    def prune() -> None:
        pruner = pruning.BasePruner(
            model,
            inputs,
            importance=lambda group: _worth(group, by_layer),
            global_pruning=together,
            pruning_ratio=ratio,
            ignored_layers=kept,
            root_module_types=DENSE,
            round_to=round_to,
            forward_fn=_asked,
        )
        pruner.step()

    _within(PATIENCE, prune, type(model).__name__)
    if ratio > 0 and sum(each.numel() for each in model.parameters()) == before:
        raise ModelError(
            f"{type(model).__name__} has no channels that can be pruned: recurrent layers keep "
            f"theirs, the last layer too, and {round_to} (`round_to`) of the others stay at least."
        )
    return model


def is_dense(module: nn.Module) -> bool:
    """Whether a layer multiplies by a matrix of its own, and is no embedding or recurrent layer."""
    return isinstance(module, tuple(DENSE))


def _asked(model: nn.Module, inputs: dict[str, Tensor]) -> Any:
    return model(**inputs)


@torch.no_grad()
def _called(model: nn.Module, layers: dict[str, nn.Module], inputs: dict[str, Tensor]) -> list[str]:
    """The layers that take part in an answer, in the order of their last calls."""
    order: dict[str, None] = {}

    def note(path: str) -> Callable[..., None]:
        def hear(*_: Any) -> None:
            order.pop(path, None)
            order[path] = None

        return hear

    with ExitStack() as hooks:
        for path, layer in layers.items():
            hooks.callback(layer.register_forward_hook(note(path)).remove)
        model(**inputs)
    return list(order)


def _worth(group: Any, by_layer: dict[nn.Module, Tensor]) -> Tensor | None:
    """What the channels of a group are worth, summed over its layers; None where none is judged.

    Torch-Pruning leaves such a group alone: what a recurrent layer reads, for one.
    """
    from torch_pruning.pruner import function

    judges = (
        function.prune_conv_in_channels,
        function.prune_linear_in_channels,
        function.prune_batchnorm_out_channels,
    )
    total = torch.zeros(1 + max(max(each.root_idxs) for each in group))
    judged = False
    for index, (dependency, places) in enumerate(group):
        worth = by_layer.get(dependency.target.module)
        if worth is not None and dependency.handler in judges:
            roots = torch.tensor(group[index].root_idxs)
            total.scatter_add_(0, roots, worth[places].float().cpu())
            judged = True
    return total if judged else None


class _TooLong(Exception):
    """Raised inside of work that has taken too long."""


def _within(seconds: float, work: Callable[[], None], name: str) -> None:
    """Do something that may never end. Raises ModelError after so many seconds."""
    raised: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:  # handed on to the caller's thread
            raised.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        # The work is Python, between whose steps an exception can be raised from outside.
        ident = ctypes.c_ulong(thread.ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(_TooLong))
        raise ModelError(
            f"The graph of {name} was not understood within {seconds:.0f} seconds; its channels "
            "can't be pruned. Take factorize or quantize, or exclude the unusual part."
        )
    if raised:
        raise raised[0]
