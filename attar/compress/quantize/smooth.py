"""Outliers of activations moved into the weights that multiply them, where 8 bits bear them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from attar.compress.choosing import chosen
from attar.compress.placing import replace_
from attar.compress.quantize.flow import Flow, watched
from attar.compress.watching import watch
from attar.errors import ModelError
from attar.types import Calibration, Count, Example

WHAT = "norm or linear layer that directly feeds a linear layer left to smooth"

ROUNDING = 1e-4
"""What a norm with divided weights may be off, relatively, to count as one that can be divided."""


def smooth(
    model: nn.Module,
    example: Example,
    calibration: Calibration,
    *,
    alpha: float = 0.5,
    batches: Count = 8,
    exclude: list[str] | None = None,
) -> nn.Module:
    """Divide what goes into linear layers by a scale for each input, and multiply the weights.

    SmoothQuant (Xiao 2023, equation 4). The answers stay as they were; an int8 step that follows
    loses less, since a few large inputs no longer take the whole range. By itself it does nothing.

    Found by following one forward pass: linear layers whose input comes straight from a norm or
    from another linear layer. Where that feeds nothing else (ViT, Llama), its weights take the
    division, at no cost. Where a residual passes by as well (BERT), a product of its own stands
    before the layer, which a `transformers` folder can't hold.

    alpha: how much of the outliers the weights take, 0 to 1
    batches: calibration batches to find the largest inputs in
    exclude: paths of modules, with all that is in them, that stay as they are
    Returns a copy. Raises ModelError for a path that names nothing, where no linear layer is fed
    so, and for an alpha beyond its range.
    """
    if not 0 <= alpha <= 1:
        raise ModelError(f"alpha is {alpha}; it can be from 0 to 1.")
    small = deepcopy(model).eval()
    layers = chosen(small, lambda module: type(module) is nn.Linear, exclude, WHAT)
    inputs = example(small)
    feeding = _feeding(small, watched(small, inputs))
    shared = _shared(small)
    takers = {
        source: [each for each in fed if each in layers.values() and each not in shared]
        for source, fed in feeding.taken().items()
    }
    takers = {source: fed for source, fed in takers.items() if fed}
    if not takers:
        raise ModelError(f"{type(model).__name__} has no {WHAT}.")
    seen = _first_seen(small, takers, inputs)
    largest = _largest(small, takers, calibration, batches)
    for source, fed in takers.items():
        scales = _scales(largest[source], fed, alpha)
        alone = source not in feeding.elsewhere | shared and set(fed) == feeding.fed[source]
        if not (alone and _divided_(source, scales, seen[source])):
            replace_(small, layers, {each: nn.Sequential(Divided(scales), each) for each in fed})
        with torch.no_grad():
            for each in fed:
                each.weight.mul_(scales)
    return small


class Divided(nn.Module):
    """Inputs divided by a scale each; `relief` (inputs,) is what they are multiplied by."""

    relief: Tensor

    def __init__(self, scales: Tensor) -> None:
        super().__init__()
        self.register_buffer("relief", 1 / scales)

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., inputs) to the same."""
        return inputs * self.relief


@dataclass
class _Feeding:
    """Where the outputs of norms and linear layers went during one forward pass.

    fed: the linear layers that took a source's output as it was
    elsewhere: sources of which something else was computed as well, or that are part of the answer
    sources: what fed a linear layer, each time it was called (None: something else)
    """

    fed: dict[nn.Module, set[nn.Linear]] = field(default_factory=lambda: defaultdict(set))
    elsewhere: set[nn.Module] = field(default_factory=set)
    sources: dict[nn.Linear, set[nn.Module | None]] = field(
        default_factory=lambda: defaultdict(set)
    )

    def taken(self) -> dict[nn.Module, list[nn.Linear]]:
        """The linear layers that a source feeds, and nothing else does; in the order of calls."""
        return {
            source: [each for each in self.sources if self.sources[each] == {source}]
            for source in self.fed
        }


def _feeding(model: nn.Module, flow: Flow) -> _Feeding:
    """What a flow shows of the linear layers of a model and of what may feed them."""
    modules, feeding = dict(model.named_modules()), _Feeding()
    linears = {path: each for path, each in modules.items() if type(each) is nn.Linear}
    given = {
        visit.gives: modules[visit.path]
        for visit in flow.visits
        if visit.gives is not None and _is_source(modules[visit.path])
    }
    for visit in flow.visits:
        if visit.path in linears:
            linear = linears[visit.path]
            source = None if visit.takes is None else given.get(visit.takes)
            feeding.sources[linear].add(source)
            if source is not None:
                feeding.fed[source].add(linear)
    # One reader more than there are calls is whoever gets the model's answer.
    readers = [*(call.module in linears for call in flow.calls), False]
    for value, source in given.items():
        if not all(readers[n] for n in flow.readers(value)):
            feeding.elsewhere.add(source)
    return feeding


@torch.no_grad()
def _first_seen(
    model: nn.Module, modules: Iterable[nn.Module], inputs: Mapping[str, Tensor]
) -> dict[nn.Module, Tensor]:
    """What goes into some modules the first time that they run."""
    seen: dict[nn.Module, Tensor] = {}

    def see(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen.setdefault(module, given[0])

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_pre_hook(see).remove)
        model(**inputs)
    return seen


def _is_source(module: nn.Module) -> bool:
    """A linear layer, or what looks like a norm: a weight for each channel, and maybe a bias."""
    weights = dict(module.named_parameters())
    flat = all(weight.dim() == 1 for weight in weights.values())
    return type(module) is nn.Linear or ("weight" in weights and weights.keys() <= WEIGHTS and flat)


WEIGHTS = {"weight", "bias"}


def _shared(model: nn.Module) -> set[nn.Module]:
    """The modules of which a weight is another module's as well."""
    owners: dict[nn.Parameter, list[nn.Module]] = defaultdict(list)
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            owners[weight].append(module)
    return {module for found in owners.values() if len(found) > 1 for module in found}


def _largest(
    model: nn.Module,
    takers: Mapping[nn.Module, list[nn.Linear]],
    calibration: Calibration,
    batches: int,
) -> dict[nn.Module, Tensor]:
    """The largest size of each channel that a source feeds, over the calibration batches."""
    # All that a source feeds see the same, so one of them is enough to listen at.
    source_of: dict[nn.Module, nn.Module] = {fed[0]: source for source, fed in takers.items()}
    largest: dict[nn.Module, Tensor] = {}

    def see(layer: nn.Module, rows: Tensor) -> None:
        source = source_of[layer]
        most = rows.abs().amax(0)
        largest[source] = torch.maximum(largest.get(source, most), most)

    watch(model, source_of, calibration, batches, see)
    return largest


def _scales(largest: Tensor, fed: list[nn.Linear], alpha: float) -> Tensor:
    """Equation 4: max|X| ** alpha / max|W| ** (1 - alpha); 1 where a channel is nothing."""
    weights = torch.stack([each.weight.detach().abs().amax(0) for each in fed]).amax(0)
    scales = largest**alpha / weights ** (1 - alpha)
    return torch.where((largest > 0) & (weights > 0), scales, torch.ones_like(scales))


@torch.no_grad()
def _divided_(source: nn.Module, scales: Tensor, inputs: Tensor) -> bool:
    """Divide what a source gives by dividing its weights; False, and nothing done, where it can't.

    Not every norm multiplies by its weight as it is (Gemma's adds 1), so it is tried.
    """
    wanted = source(inputs) / scales
    whole = {name: weight.clone() for name, weight in source.named_parameters()}
    for weight in source.parameters():
        weight.div_(scales.view(-1, *[1] * (weight.dim() - 1)))
    off = (source(inputs) - wanted).abs().amax()
    if off <= ROUNDING * wanted.abs().amax():
        return True
    for name, weight in source.named_parameters():
        weight.copy_(whole[name])
    return False
