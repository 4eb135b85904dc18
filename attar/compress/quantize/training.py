"""Training a model for the few bits that it will have: every weight and activation rounded."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from attar.compress.placing import swap_, unfuse_
from attar.compress.quantize.activations import observed, planned_, stood_
from attar.compress.quantize.dynamic import Int8Embedding
from attar.compress.quantize.folding import Layer
from attar.compress.quantize.grids import MOST, Grid, scale_and_zero
from attar.compress.quantize.integer import Int8Layer, Stand, largest, weight_scale
from attar.compress.quantize.ranges import Histogram
from attar.types import Bits, Calibration, Count, Example

MEMORY = 0.99
"""The share of a moving range that is kept at every step: that of the last hundred or so."""


def qat(
    model: nn.Module,
    example: Example,
    calibration: Calibration,
    *,
    bits: Bits = 8,
    ranges: Literal["learned", "moving"] = "learned",
    batches: Count = 8,
    reduce_range: bool = True,
    exclude: list[str] | None = None,
) -> nn.Module:
    """Round weights and activations in every answer, so that training makes up for it.

    A `distill` step trains what comes out, any of its losses on; then `quantize.int8_static` makes
    the integers that were trained for, without calibration, and nothing is rounded otherwise.
    Untrained, the model is what rounding to so many bits leaves of it. Batch norms become part of
    the layer before them first; gradients pass the rounding as if it were not there, and stop
    where a value was cut off (Bengio 2013; Jacob et al. 2018, section 3).

    bits: of the weights of linear and convolution layers, symmetric per output channel, from 2 to
        8; activations and embeddings have 8. In a file 3 and 4 bits take half a byte, 2 a quarter,
        and more take a byte
    ranges: learned trains the step of every range, of activations and of weights, by its own
        gradient (Esser et al. 2020); moving takes the averages of the latest least and greatest
        activations, and of weights the greatest as it is
    batches: how many batches of training examples the first ranges are taken from
    reduce_range: of 8 bits for weights only 7, as in `quantize.int8_static`
    exclude: paths of modules, with all that is in them, that stay in float
    Returns a copy, in eval mode; ranges move in training mode only. Raises ModelError for a path
    that names nothing, and where nothing is left.
    """
    trained = deepcopy(model).eval()
    unfuse_(trained)
    plan = planned_(trained, example, exclude)
    seen = observed(trained, plan.places, calibration, batches)
    learned = ranges == "learned"
    kind = LearnedGrid if learned else MovingGrid
    grids = [kind(seen[place.spot]) for place in plan.places]
    most = largest(bits, reduce_range)
    for path, stand in stood_(trained, plan, grids):
        layer = plan.layers[path]
        swap_(trained, layer, Snapped(layer, bits, most, stand, learned=learned))
    for table in plan.tables.values():
        swap_(trained, table, SnappedTable(table))
    return trained.eval()


def snapped(values: Tensor, step: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Values as multiples of a step, from `low` to `high` of them, as if that were smooth.

    The gradient of a value is 1 where it was not cut off and 0 where it was; that of the step is
    Esser et al. 2020, equation 3.
    """
    steps = (values / step).clamp(low, high)  # type: ignore[arg-type]
    return (steps + (torch.round(steps) - steps).detach()) * step


def learned_step(logarithm: Tensor, values: int, most: int) -> Tensor:
    """A step from its logarithm, whose gradient is scaled by how much depends on it.

    Esser et al. 2020, section 2.2: by 1 / sqrt(values * most). Adam moves everything by about its
    learning rate, so it is the logarithm that is trained (Jain et al. 2020): then it changes a step
    by that share, however small it is. And plain descent, by the gradient as it is passed here,
    changes the step itself as the paper has it.
    """
    step = logarithm.detach().exp()
    passed = 1 / (math.sqrt(values * most) * step)
    return step + (logarithm - logarithm.detach()) * passed


class LearnedGrid(nn.Module):
    """256 values whose distance is trained; which of them is zero stays as it was."""

    zero: Tensor

    def __init__(self, seen: Histogram) -> None:
        super().__init__()
        scale, zero = scale_and_zero(*map(torch.tensor, seen.range("minmax")))
        self.logarithm = nn.Parameter(scale.log())
        self.register_buffer("zero", zero)

    @property
    def step(self) -> Tensor:
        """The distance as it is."""
        return self.logarithm.detach().exp()

    def forward(self, inputs: Tensor) -> Tensor:
        """The nearest values on the grid."""
        step = learned_step(self.logarithm, inputs[0].numel(), MOST)
        return snapped(inputs, step, -self.zero, MOST - self.zero)

    def fixed(self) -> Grid:
        """The grid as it is now."""
        return Grid(self.step, self.zero)


class MovingGrid(nn.Module):
    """256 values over a range that follows what is seen in training."""

    low: Tensor
    high: Tensor

    def __init__(self, seen: Histogram) -> None:
        super().__init__()
        low, high = seen.range("minmax")
        self.register_buffer("low", torch.tensor(low))
        self.register_buffer("high", torch.tensor(high))

    @property
    def step(self) -> Tensor:
        """The distance as it is."""
        return scale_and_zero(self.low, self.high)[0]

    def forward(self, inputs: Tensor) -> Tensor:
        """The nearest values on the grid."""
        if self.training:
            with torch.no_grad():
                self.low.lerp_(inputs.amin(), 1 - MEMORY)
                self.high.lerp_(inputs.amax(), 1 - MEMORY)
        step, zero = scale_and_zero(self.low, self.high)
        return snapped(inputs, step, -zero, MOST - zero)

    def fixed(self) -> Grid:
        """The grid as it is now."""
        return Grid(*scale_and_zero(self.low, self.high))


class Snapped(nn.Module):
    """A linear layer or convolution whose weights are rounded each time they are used."""

    def __init__(
        self,
        layer: Layer,
        bits: int,
        most: int,
        stand: Stand[LearnedGrid | MovingGrid],
        *,
        learned: bool,
    ) -> None:
        super().__init__()
        self.layer, self.bits, self.most = layer, bits, most
        self.seen, self.rounds, self.said = stand.seen, stand.rounds, stand.said
        scale = weight_scale(layer, most, self.seen.step)
        self.logarithms = nn.Parameter(scale.log()) if learned else None

    @property
    def weight(self) -> Tensor:
        """The weights before they are rounded, for who reads a layer's weight or the type of it."""
        return self.layer.weight

    def scale(self) -> Tensor:
        """The step of the weights of each output channel, with its gradient."""
        if self.logarithms is None:
            return weight_scale(self.layer, self.most, self.seen.step)
        return learned_step(self.logarithms, self.layer.weight[0].numel(), self.most)

    def forward(self, inputs: Tensor) -> Tensor:
        """What the float layer takes and gives."""
        # Few bits are told apart in float32; bfloat16 would round once more.
        with torch.autocast(inputs.device.type, enabled=False):
            seen = self.seen(inputs.float()) if self.rounds else inputs.float()
            output: Tensor = functional_call(self.layer, self._rounded(), (seen,))
            return output if self.said is None else self.said(output)

    def _rounded(self) -> dict[str, Tensor]:
        scale, weight, bias = self.scale(), self.layer.weight, self.layer.bias
        along = scale.view(-1, *[1] * (weight.dim() - 1))
        rounded = {"weight": snapped(weight, along, -self.most, self.most)}
        if bias is not None:
            step = (scale * self.seen.step).detach()
            rounded["bias"] = bias + (torch.round(bias / step) * step - bias).detach()
        return rounded

    def dequantized(self) -> nn.Module:
        """The float layer with the weights as they are rounded now."""
        layer = deepcopy(self.layer)
        with torch.no_grad():
            layer.weight.copy_(self._rounded()["weight"])
        return layer

    def fixed(self) -> Int8Layer:
        """The integers that the layer computes with now; its grids have to be fixed before."""
        assert isinstance(self.seen, Grid)
        assert self.said is None or isinstance(self.said, Grid)
        scale = self.scale().detach()
        return Int8Layer(self.layer, scale, self.most, Stand(self.seen, self.rounds, self.said))


class SnappedTable(nn.Module):
    """An embedding table in 8 bits with one scale and zero point, rounded as it is looked up."""

    bits = 8

    def __init__(self, layer: nn.Embedding) -> None:
        super().__init__()
        self.layer = layer

    @property
    def weight(self) -> Tensor:
        """The table before it is rounded."""
        return self.layer.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Ids of any shape to embeddings (..., width)."""
        table = self.layer.weight
        scale, zero = scale_and_zero(table.detach().amin(), table.detach().amax())
        looked_up = F.embedding(ids, table, self.layer.padding_idx)
        return snapped(looked_up, scale, -zero, MOST - zero)

    def dequantized(self) -> nn.Embedding:
        """The float table with the values as they are rounded now."""
        return self.fixed().dequantized()

    def fixed(self) -> Int8Embedding:
        """The table in 8 bits."""
        return Int8Embedding(self.layer)
