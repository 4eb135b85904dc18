"""Whole layers gone: those that change least what passes through them."""

from __future__ import annotations

import math
from contextlib import ExitStack
from functools import partial
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.depth import blocks, with_layers
from attar.errors import ModelError
from attar.taps import evaluating, first_tensor
from attar.types import Calibration, Count, Tell

FIRM = math.inf
"""The influence of a layer that can't be left out."""


def layers(
    model: nn.Module, calibration: Calibration, tell: Tell, *, drop: Count = 1, batches: Count = 8
) -> nn.Module:
    """Fewer layers: those go whose output is most like their input (ShortGPT, Men et al. 2024).

    The influence of a layer is 1 less the cosine between what enters and what leaves a token,
    the mean over calibration. What is left are the other layers in their order, those that change
    the shape of what passes among them; a model of `transformers` loads again by `from_pretrained`.

    drop: how many layers go
    batches: of calibration

    Returns a copy. Raises ModelError where a model has no stack of like layers, or not so many.
    """
    paths = blocks(model)
    if not paths:
        raise ModelError(f"{type(model).__name__} has no stack of like layers left to prune.")
    influence = influences(model, paths, calibration, batches)
    free = [n for n, each in enumerate(influence) if each < FIRM]
    if drop > len(free) or drop == len(paths):
        raise ModelError(
            f"drop is {drop}, and {type(model).__name__} has no more than {len(paths)} layers, of "
            f"which {max(1, len(paths) - len(free))} must stay."
        )
    gone = sorted(free, key=influence.__getitem__)[:drop]
    rows = [
        {"layer": path, "influence": round(each, 4), "stays": n not in gone}
        for n, (path, each) in enumerate(zip(paths, influence, strict=True))
        if each < FIRM
    ]
    tell("Influence of each layer", rows)
    return with_layers(model, [n for n in range(len(paths)) if n not in gone])


@torch.no_grad()
def influences(
    model: nn.Module, paths: list[str], calibration: Calibration, batches: int
) -> list[float]:
    """How much each block changes what passes through it: 0 not at all, 1 into something else.

    `FIRM` for one whose output has another shape: nothing can stand in its place.
    """
    sums, counts = [0.0] * len(paths), [0] * len(paths)
    mask: Tensor | None = None

    def listen(n: int, _: nn.Module, given: tuple[Any, ...], named: Any, output: Any) -> None:
        before = given[0] if given else next(iter(named.values()))
        after = first_tensor(output)
        if after is None or before.shape != after.shape:
            sums[n] = FIRM
            return
        turned = 1 - F.cosine_similarity(_rows(before, mask), _rows(after, mask), dim=-1)
        sums[n] += float(turned.sum())
        counts[n] += len(turned)

    with evaluating(model), ExitStack() as hooks:
        for n, path in enumerate(paths):
            hear = partial(listen, n)
            block = model.get_submodule(path)
            hooks.callback(block.register_forward_hook(hear, with_kwargs=True).remove)
        for inputs in islice(calibration(model), batches):
            mask = inputs.get("attention_mask")
            model(**inputs)
    return [total / max(1, count) for total, count in zip(sums, counts, strict=True)]


def _rows(tensor: Tensor, mask: Tensor | None) -> Tensor:
    """(rows, ..., width) as real tokens; a map's places are its tokens."""
    if mask is not None and tensor.shape[:2] == mask.shape:
        return tensor[mask.bool()].float()
    if tensor.dim() == 4:
        tensor = tensor.movedim(1, -1)
    return tensor.float().flatten(0, -2)
