"""A precision for each layer: what each would harm, measured, and the cheapest that is allowed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from attar.compress.placing import replace_
from attar.compress.quantize.dynamic import int8_dynamic
from attar.compress.quantize.halves import bf16, fp16
from attar.compress.quantize.weight import int4_weight
from attar.errors import ModelError, nearest
from attar.types import Calibration, Count, Score, Tell

DROP = 0.01
"""The loss of score that is allowed where no bound is said."""

Candidate = Literal["bf16", "fp16", "int8_dynamic", "int4_weight"]
Batch = Mapping[str, Tensor]
Twins = Mapping[str, Mapping[nn.Module, nn.Module]]
Harms = Mapping[nn.Module, Mapping[str, float]]


class Move(NamedTuple):
    """A layer lowered to a candidate, from float or from a candidate it was lowered to before."""

    layer: nn.Module
    candidate: str
    price: float


def mixed(
    model: nn.Module,
    calibration: Calibration,
    score: Score,
    tell: Tell,
    *,
    drop: float | None = None,
    size: int | None = None,
    candidates: tuple[Candidate, ...] = ("int8_dynamic", "int4_weight"),
    batches: Count = 8,
    exclude: list[str] | None = None,
) -> nn.Module:
    """Few bits where they harm little and more where they harm much, within a drop or a size.

    Every layer is tried alone at every candidate. Its harm is how far the answers to calibration
    batches move: the KL divergence from the float model's, which tells apart what a score on some
    hundred rows can't. Layers are lowered in the order of harm for each byte saved. How far, the
    score decides: of the whole mixture, since harms don't add up; what was lowered last is put
    back until the bound holds. The harms, and the mixtures tried, become tables of the report.

    drop: largest loss of score on validation, 0.01 being one point of a hundred, which is the
        bound where none is said
    size: largest number of bytes of the weights; of the layers, no more are lowered than it needs
    candidates: what a layer can become where it does not stay as it is: fp16, bf16, int8_dynamic,
        int4_weight
    batches: calibration batches to measure harm on
    exclude: paths of modules, with all that is in them, that stay as they are
    Returns a copy. Raises ModelError for a path that names nothing, where nothing is left, and
    where `size` can't be met; where `drop` can't be, all layers stay as they are.
    """
    small = deepcopy(model).eval()
    twins: dict[str, Mapping[nn.Module, nn.Module]] = {
        name: _twins(small, _made(name, calibration, exclude)(small))
        for name in dict.fromkeys(candidates)
    }
    layers = {
        path: layer
        for path, layer in small.named_modules(remove_duplicate=False)
        if any(layer in found for found in twins.values())
    }
    harms = _harms(small, layers, twins, list(islice(calibration(small), batches)))
    moves = _ordered(harms, twins)
    plan = _Plan(small, layers, twins, moves)
    if drop is None and size is None:
        drop = DROP
    tried: list[dict[str, float]] = []
    made = _settled(plan, drop, size, partial(_scored, plan, score, tried))
    tell("Harm by layer", _rows(plan, made, harms))
    tell("Mixtures tried", tried)
    return plan.after(made)


def _made(
    name: str, calibration: Calibration, exclude: list[str] | None
) -> Callable[[nn.Module], nn.Module]:
    """What lowers all layers of a model to a candidate."""
    known: dict[str, Callable[[nn.Module], nn.Module]] = {
        "bf16": partial(bf16, exclude=exclude),
        "fp16": partial(fp16, exclude=exclude),
        "int8_dynamic": partial(int8_dynamic, exclude=exclude),
        "int4_weight": partial(int4_weight, calibration=calibration, exclude=exclude),
    }
    if name not in known:
        raise ModelError(f"{name!r} is no candidate; {nearest(name, known)}")
    return known[name]


def _twins(model: nn.Module, lowered: nn.Module) -> dict[nn.Module, nn.Module]:
    """What stands in the lowered model where a layer of another type stands in the model."""
    others = dict(lowered.named_modules(remove_duplicate=False))
    return {
        layer: others[path]
        for path, layer in model.named_modules(remove_duplicate=False)
        if path in others and type(others[path]) is not type(layer)
    }


@torch.no_grad()
def _harms(
    model: nn.Module, layers: Mapping[str, nn.Module], twins: Twins, shown: Sequence[Batch]
) -> Harms:
    """How far the answers move when one layer is lowered to one candidate."""
    if not shown:
        raise ModelError("There is no batch to measure harm on: set batches to 1 or more.")
    # Nothing replaced yet; but torch's fused layers would not be what the twins are compared with.
    replace_(model, {}, {})
    truth = [_answers(model, batch) for batch in shown]
    harms: dict[nn.Module, dict[str, float]] = {layer: {} for layer in layers.values()}
    for name, found in twins.items():
        for layer, twin in found.items():
            replace_(model, layers, {layer: twin})
            moved = [_answers(model, batch) for batch in shown]
            harms[layer][name] = _divergence(truth, moved)
            replace_(model, layers, {layer: layer})
    return harms


def _answers(model: nn.Module, batch: Batch) -> Tensor:
    """The logarithms of the probabilities a model gives, one row for each that counts."""
    output = model(**batch)
    logits = output if isinstance(output, Tensor) else output.logits
    mask = batch.get("attention_mask")
    if logits.dim() == 3 and mask is not None and mask.shape == logits.shape[:2]:
        logits = logits[mask.bool()]
    return logits.double().flatten(0, -2).log_softmax(-1)


def _divergence(truth: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The mean KL divergence over the rows of all batches, in nats."""
    before, after = torch.cat(list(truth)), torch.cat(list(found))
    return float((before.exp() * (before - after)).sum(-1).mean())


def _ordered(harms: Harms, twins: Twins) -> list[Move]:
    """Every step down that is worth taking, the least harm for each byte first."""
    moves = [move for layer in harms for move in _steps_down(layer, harms[layer], twins)]
    return sorted(moves, key=lambda move: move.price)


def _steps_down(layer: nn.Module, harm: Mapping[str, float], twins: Twins) -> Iterator[Move]:
    """A layer's candidates on the lower hull of harm over bytes, from float down.

    Along it each byte saved costs more than the one before, so moves of all layers can be sorted
    by price, and any first part of them is the least harm, as a sum, at its own size.
    """
    sizes = {name: _bytes(twins[name][layer]) for name in harm}
    here, so_far = _bytes(layer), 0.0
    while smaller := {name: here - size for name, size in sizes.items() if size < here}:
        prices = {name: (harm[name] - so_far) / saved for name, saved in smaller.items()}
        name = min(prices, key=lambda each: (prices[each], sizes[each]))
        yield Move(layer, name, prices[name])
        here, so_far = sizes[name], harm[name]


def _bytes(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


@dataclass(frozen=True)
class _Plan:
    """A model and the moves that can be made in it, one after the other."""

    model: nn.Module
    layers: Mapping[str, nn.Module]
    twins: Twins
    moves: Sequence[Move]

    def lowered(self, made: int) -> dict[nn.Module, str]:
        """The candidate of each layer that the first so many moves lower."""
        return {move.layer: move.candidate for move in self.moves[:made]}

    def after(self, made: int) -> nn.Module:
        """The model with the first so many moves made, and no others."""
        lowered = self.lowered(made)
        standing = {
            layer: self.twins[lowered[layer]][layer] if layer in lowered else layer
            for layer in self.layers.values()
        }
        replace_(self.model, self.layers, standing)
        return self.model


def _scored(plan: _Plan, score: Score, tried: list[dict[str, float]], made: int) -> float:
    """The score after so many moves, written down."""
    model = plan.after(made)
    found = float(score(model)["score"])
    tried.append({"lowered": len(plan.lowered(made)), "bytes": _bytes(model), "score": found})
    return found


def _settled(
    plan: _Plan, drop: float | None, size: int | None, scored: Callable[[int], float]
) -> int:
    """How many moves to make: no more than a size needs; without one, all that a drop allows."""
    every = len(plan.moves)
    least = scored(0) - (torch.inf if drop is None else drop)
    if size is None:
        return _last(every, lambda made: scored(made) >= least)
    name = type(plan.model).__name__
    fitting = next((n for n in range(every + 1) if _bytes(plan.after(n)) <= size), None)
    if fitting is None:
        smallest = _bytes(plan.after(every))
        raise ModelError(
            f"{name} has {smallest} bytes with all layers at their fewest bits, and size allows "
            f"{size}; take fewer bits, fewer layers, or more bytes."
        )
    if (found := scored(fitting)) < least:
        raise ModelError(
            f"{name} within {size} bytes scores {found:.4f}, and drop asks for {least:.4f}; allow "
            "more bytes or a larger drop."
        )
    return fitting


def _last(most: int, holds: Callable[[int], bool]) -> int:
    """The largest count up to `most` for which it holds, found by halving; 0 is taken to hold."""
    if holds(most):
        return most
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _rows(plan: _Plan, made: int, harms: Harms) -> list[dict[str, Any]]:
    """The table of harms: a row for each layer, by the path where it stands first."""
    first: dict[nn.Module, str] = {}
    for path, layer in plan.layers.items():
        first.setdefault(layer, path)
    lowered = plan.lowered(made)
    return [
        {
            "layer": path,
            "weights": sum(each.numel() for each in layer.parameters()),
            **harms[layer],
            "chosen": lowered.get(layer, "as it was"),
        }
        for layer, path in first.items()
    ]
