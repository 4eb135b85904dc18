"""A precision for each layer: what each would harm, measured, and the cheapest that is allowed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attar.compress.quantize.mixtures import Candidate, Mixtures
from attar.errors import ModelError
from attar.types import Calibration, Count, Example, Score, Tell

DROP = 0.01
"""The loss of score that is allowed where no bound is said."""

Batch = Mapping[str, Tensor]
Trials = Mapping[str, Mapping[str, "Trial"]]
"""By the path of a layer, and by candidate."""


class Trial(NamedTuple):
    """What came of it when one layer alone was lowered to one candidate."""

    harm: float
    saved: int


class Move(NamedTuple):
    """A layer lowered to a candidate, from float or from a candidate it was lowered to before."""

    path: str
    candidate: str
    price: float


def mixed(
    model: nn.Module,
    example: Example,
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
    candidates: what a layer can become where it does not stay as it is: fp16, bf16; int8_dynamic,
        int4_weight; and for convolutions as well int8_static, int4_static, of 8-bit activations
        with fixed ranges as in quantize.int8_static, for which batch norms are folded first
    batches: calibration batches to measure harm on, and to take fixed ranges from
    exclude: paths of modules, with all that is in them, that stay as they are
    Returns a copy. Raises ModelError for a path that names nothing, where nothing is left, and
    where `size` can't be met; where `drop` can't be, all layers stay as they are.
    """
    mixtures = Mixtures(model, example, calibration, candidates, batches, exclude)
    trials = _trials(mixtures, list(islice(calibration(mixtures.model), batches)))
    plan = _Plan(mixtures, _ordered(trials))
    if drop is None and size is None:
        drop = DROP
    tried: list[dict[str, float]] = []
    made = _settled(plan, drop, size, partial(_scored, plan, score, tried))
    tell("Harm by layer", _rows(plan, made, trials))
    tell("Mixtures tried", tried)
    return plan.after(made)


@torch.no_grad()
def _trials(mixtures: Mixtures, shown: Sequence[Batch]) -> Trials:
    """How far the answers move, and how many bytes go, when one layer is lowered."""
    if not shown:
        raise ModelError("There is no batch to measure harm on: set batches to 1 or more.")
    truth = [_answers(mixtures.model, batch) for batch in shown]

    def trial(path: str, name: str) -> Trial:
        lowered = mixtures.of({path: name})
        moved = [_answers(lowered, batch) for batch in shown]
        before, after = (_bytes(each.get_submodule(path)) for each in (mixtures.model, lowered))
        return Trial(_divergence(truth, moved), before - after)

    return {
        path: {name: trial(path, name) for name in names}
        for path, names in mixtures.choices().items()
    }


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


def _ordered(trials: Trials) -> list[Move]:
    """Every step down that is worth taking, the least harm for each byte first."""
    moves = [move for path, found in trials.items() for move in _steps_down(path, found)]
    return sorted(moves, key=lambda move: move.price)


def _steps_down(path: str, trials: Mapping[str, Trial]) -> Iterator[Move]:
    """A layer's candidates on the lower hull of harm over bytes, from float down.

    Along it each byte saved costs more than the one before, so moves of all layers can be sorted
    by price, and any first part of them is the least harm, as a sum, at its own size.
    """
    here = Trial(harm=0.0, saved=0)
    while smaller := {name: each for name, each in trials.items() if each.saved > here.saved}:
        prices = {
            name: (each.harm - here.harm) / (each.saved - here.saved)
            for name, each in smaller.items()
        }
        name = min(prices, key=lambda each: (prices[each], -smaller[each].saved))
        yield Move(path, name, prices[name])
        here = smaller[name]


def _bytes(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


@dataclass(frozen=True)
class _Plan:
    """The moves that can be made in a model, one after the other."""

    mixtures: Mixtures
    moves: Sequence[Move]

    def lowered(self, made: int) -> dict[str, str]:
        """The candidate of each layer that the first so many moves lower."""
        return {move.path: move.candidate for move in self.moves[:made]}

    def after(self, made: int) -> nn.Module:
        """The model with the first so many moves made, and no others."""
        return self.mixtures.of(self.lowered(made))


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
    name = type(plan.mixtures.model).__name__
    smallest = _bytes(plan.after(every))
    if smallest > size:
        raise ModelError(
            f"{name} has {smallest} bytes with all layers at their fewest bits, and size allows "
            f"{size}; take fewer bits, fewer layers, or more bytes."
        )
    fitting = every - _last(every, lambda spared: _bytes(plan.after(every - spared)) <= size)
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


def _rows(plan: _Plan, made: int, trials: Trials) -> list[dict[str, Any]]:
    """The table of harms: a row for each layer, by the path where it stands first."""
    lowered, layers = plan.lowered(made), dict(plan.mixtures.model.named_modules())
    return [
        {
            "layer": path,
            "weights": sum(each.numel() for each in layers[path].parameters()),
            **{name: trial.harm for name, trial in found.items()},
            "chosen": lowered.get(path, "as it was"),
        }
        for path, found in trials.items()
    ]
