"""What goes into the layers of a model while it answers the calibration batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor, nn

from attar.errors import ModelError
from attar.taps import evaluating
from attar.types import Calibration

HELD = 2**28
"""Numbers of second moments held at once (1 GB); a layer of n inputs has n times n of them."""


@torch.no_grad()
def watch(
    model: nn.Module,
    layers: Iterable[nn.Module],
    calibration: Calibration,
    batches: int,
    see: Callable[[nn.Module, Tensor], None],
) -> None:
    """Let a model answer some calibration batches and show what goes into some of its layers.

    see: is shown a layer and its input as rows (count, inputs), padding left out
    Raises ModelError where there is no batch.
    """
    mask: Tensor | None = None

    def hear(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        see(layer, _rows(layer, inputs[0], mask))

    hooks = [layer.register_forward_pre_hook(hear) for layer in layers]
    answered = 0
    try:
        with evaluating(model):
            for inputs in islice(calibration(model), batches):
                mask = inputs.get("attention_mask")
                model(**inputs)
                answered += 1
    finally:
        for hook in hooks:
            hook.remove()
    if not answered:
        raise ModelError("There is no batch to calibrate with: set batches to 1 or more.")


def _rows(layer: nn.Module, inputs: Tensor, mask: Tensor | None) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        down, across = layer.stride
        inputs = inputs[:, :, ::down, ::across]
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        return inputs.movedim(1, -1).flatten(0, -2)
    if mask is not None and inputs.dim() == 3 and mask.shape == inputs.shape[:2]:
        return inputs[mask.bool()]
    return inputs.flatten(0, -2)


def moments(
    model: nn.Module, layers: Iterable[nn.Module], calibration: Calibration, batches: int
) -> Iterator[tuple[nn.Module, Tensor]]:
    """Each layer with the second moments of its inputs, mean of x xᵀ: (inputs, inputs).

    As many layers share a pass over the calibration batches as fit into `HELD`. Whoever puts
    twins into the model meanwhile has the later layers see what those twins give. A layer that no
    batch came through has moments of zero.
    """
    for portion in _portions(layers):
        sums = {layer: torch.zeros(()) for layer in portion}
        rows = dict.fromkeys(portion, 0)

        def see(
            layer: nn.Module,
            seen: Tensor,
            sums: dict[nn.Module, Tensor] = sums,
            rows: dict[nn.Module, int] = rows,
        ) -> None:
            sums[layer] = sums[layer] + seen.float().T @ seen.float()
            rows[layer] += len(seen)

        watch(model, portion, calibration, batches, see)
        for layer in portion:
            width = inputs_of(layer)
            yield layer, (sums.pop(layer) / max(rows[layer], 1)).expand(width, width)


def inputs_of(layer: nn.Module) -> int:
    """How many inputs a linear or convolution layer takes."""
    if isinstance(layer, nn.Linear):
        return layer.in_features
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    return layer.in_channels


def _portions(layers: Iterable[nn.Module]) -> Iterator[list[nn.Module]]:
    portion: list[nn.Module] = []
    held = 0
    for layer in layers:
        needs = inputs_of(layer) ** 2
        if portion and held + needs > HELD:
            yield portion
            portion, held = [], 0
        portion.append(layer)
        held += needs
    if portion:
        yield portion
