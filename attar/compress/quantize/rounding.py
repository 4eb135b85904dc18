"""Weights to codes of few bits, group by group: to the nearest, by GPTQ, by AWQ's scales."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

DAMPING = 0.01
"""What GPTQ adds to the moments' diagonal, as a share of its mean (Frantar 2023, section 3.3)."""

POWERS = 20
"""How many exponents AWQ tries from 0 on (Lin 2024, section 3.2: a grid of 20)."""

QUIETEST = 1e-2
"""Inputs quieter than this share of the mean are scaled like one of it: they tell nothing."""


class Codes(NamedTuple):
    """Weights as codes: each stands for `(code - zero) * scale`, over groups of inputs.

    values: (outputs, inputs) from 0 to 2 ** bits - 1
    scale, zero: (outputs, groups)
    """

    values: Tensor
    scale: Tensor
    zero: Tensor

    def weights(self, group: int) -> Tensor:
        """What the codes stand for, (outputs, inputs)."""
        inputs = self.values.shape[1]
        zero, scale = (_spread(each, group, inputs) for each in (self.zero, self.scale))
        return (self.values - zero) * scale


def _spread(each: Tensor, group: int, inputs: int) -> Tensor:
    return each.repeat_interleave(group, 1)[:, :inputs]


def grid(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale and zero point, (outputs, 1) each, that span the weights (outputs, inputs) and 0."""
    low = weight.amin(1, keepdim=True).clamp(max=0)
    high = weight.amax(1, keepdim=True).clamp(min=0)
    top = 2**bits - 1
    scale = ((high - low) / top).clamp(min=torch.finfo(torch.float32).tiny)
    return scale, torch.round(-low / scale).clamp(0, top)


def coded(weight: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """The nearest code of each weight."""
    return (torch.round(weight / scale) + zero).clamp(0, 2**bits - 1)


def nearest(weight: Tensor, bits: int, group: int) -> Codes:
    """Every weight to the nearest code of its group's grid."""
    parts = []
    for columns in weight.split(group, 1):
        scale, zero = grid(columns, bits)
        parts.append(Codes(coded(columns, scale, zero, bits), scale, zero))
    return Codes(*(torch.cat(each, 1) for each in zip(*parts, strict=True)))


def gptq(weight: Tensor, moments: Tensor, bits: int, group: int) -> Codes:
    """Codes whose errors are made up for by the weights that are still to be rounded.

    Frantar et al. 2023, algorithm 1, with the grid of a group laid when its turn comes; the
    updates of all later groups wait until a group is done, as the paper's blocks do.

    moments: second moments of the inputs, (inputs, inputs)
    """
    left = weight.double().clone()
    root = _root_of_inverse(moments.double())
    inputs = weight.shape[1]
    parts = []
    for start in range(0, inputs, group):
        stop = min(start + group, inputs)
        scale, zero = grid(left[:, start:stop], bits)
        values = torch.zeros_like(left[:, start:stop])
        errors = torch.zeros_like(values)
        for n in range(start, stop):
            column = left[:, n : n + 1]
            code = coded(column, scale, zero, bits)
            error = (column - (code - zero) * scale) / root[n, n]
            left[:, n:stop] -= error * root[n, n:stop]
            values[:, n - start : n - start + 1] = code
            errors[:, n - start : n - start + 1] = error
        left[:, stop:] -= errors @ root[start:stop, stop:]
        parts.append(Codes(values, scale, zero))
    return Codes(*(torch.cat(each, 1).to(weight.dtype) for each in zip(*parts, strict=True)))


def _root_of_inverse(moments: Tensor) -> Tensor:
    """The upper triangular U with UᵀU the inverse of the damped moments."""
    damping = (DAMPING * moments.diagonal().mean()).clamp(min=torch.finfo(torch.float32).tiny)
    damped = moments + damping * torch.eye(len(moments)).to(moments)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    root: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return root


def awq(weight: Tensor, moments: Tensor, bits: int, group: int) -> tuple[Codes, Tensor]:
    """Codes of the weights times a scale for each input, and those scales (inputs,).

    Lin et al. 2024, equations 4 and 5: the scale is the input's typical size to the power, of
    a grid that begins with 0 (no scaling), with which the layer's output changes least.

    moments: second moments of the inputs; an input's typical size is the root of its own
    """
    size = moments.diagonal().sqrt()
    size = (size / size.mean().clamp(min=torch.finfo(size.dtype).tiny)).clamp(min=QUIETEST)
    best, least = (nearest(weight, bits, group), torch.ones_like(size)), torch.inf
    for power in range(POWERS):
        scales = size ** (power / POWERS)
        scales = scales / (scales.amax() * scales.amin()).sqrt()
        codes = nearest(weight * scales, bits, group)
        found = float(harm(weight - codes.weights(group) / scales, moments))
        if found < least:
            best, least = (codes, scales), found
    return best


def harm(difference: Tensor, moments: Tensor) -> Tensor:
    """The mean square that a difference of weights makes in the output, summed over outputs."""
    return ((difference @ moments) * difference).sum()
