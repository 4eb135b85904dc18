"""Layers as the product of two thinner ones."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from attar.compress.choosing import chosen
from attar.compress.placing import replace_
from attar.compress.watching import moments
from attar.errors import ModelError
from attar.types import Calibration, Count

DAMPING = 1e-3
"""What is added to the moments' diagonal, as a share of its mean: inputs may depend on each other,
and sums of squares in 32 bits are off by about the number of inputs times 1e-7."""


def svd(
    model: nn.Module,
    calibration: Calibration,
    *,
    ratio: float | None = None,
    energy: float | None = None,
    batches: Count = 16,
    exclude: list[str] | None = None,
) -> nn.Module:
    """Linear and 1x1 convolution layers as two thinner ones, by what their inputs make of them.

    Of all pairs of that rank, the two give the output nearest to the layer's on the calibration
    inputs: a truncated SVD of the weight times the root of the inputs' second moments (SVD-LLM,
    Wang 2024, section 3.1). A layer stays whole where two would not be smaller.
    Fewer multiplications; whether it is faster depends on the runtime, since thin products use
    processors worse. A `transformers` folder can't hold such a model: export.onnx does.

    ratio: share of a layer's weights that the two may have, between 0 and 1; or
    energy: share of the output's mean square that must be kept, above 0 and below 1
    batches: calibration batches to see inputs in
    exclude: paths of modules, with all that is in them, that stay whole; a classifier's last
        layer often should
    Returns a copy. Raises ModelError for a path that names nothing, where no layer would get
    smaller, and unless one of ratio and energy is given.
    """
    share = _share(ratio, energy)
    thin = deepcopy(model).eval()
    layers = chosen(thin, _is_product, exclude, "linear or 1x1 convolution layer left to factorize")
    made = False
    for layer, moment in moments(thin, dict.fromkeys(layers.values()), calibration, batches):
        if twin := _two(layer, moment, share, by_energy=ratio is None):
            replace_(thin, layers, {layer: twin})
            made = True
    if not made:
        said = f"energy {energy}" if ratio is None else f"ratio {ratio}"
        raise ModelError(
            f"{type(model).__name__} has no layer that two would be smaller than at {said}; "
            "take less."
        )
    return thin


def _share(ratio: float | None, energy: float | None) -> float:
    given: Sequence[float] = [each for each in (ratio, energy) if each is not None]
    if len(given) != 1:
        raise ModelError("factorize.svd needs either ratio or energy.")
    if not 0 < given[0] < 1:
        raise ModelError(f"ratio and energy are shares between 0 and 1, not {given[0]}.")
    return given[0]


def _is_product(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        plain = module.kernel_size == (1, 1) and module.groups == 1
        return plain and type(module) is nn.Conv2d and module.padding in ("same", "valid", (0, 0))
    return type(module) is nn.Linear


def _two(
    layer: nn.Module, moment: Tensor, share: float, *, by_energy: bool
) -> nn.Sequential | None:
    """The two layers for one; None where they would have as many weights."""
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    weight = layer.weight.detach().flatten(1)
    outputs, inputs = weight.shape
    left, values, right = _whitened(weight, moment)
    if by_energy:
        kept = values.square().cumsum(0) / values.square().sum()
        rank = int((kept < share).sum()) + 1
    else:
        rank = max(1, int(share * weight.numel() / (outputs + inputs)))
    if rank * (outputs + inputs) >= weight.numel():
        return None
    root = values[:rank].sqrt()
    return _thin(layer, root[:, None] * right[:rank], left[:, :rank] * root)


def _whitened(weight: Tensor, moment: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, S and V of `weight = U diag(S) V`, where U diag(S) are what it makes of white inputs.

    weight: (outputs, inputs); moment: second moments of the inputs
    Each singular value is the root mean square that its direction adds to the output.
    """
    moment = moment.double()
    level = moment.diagonal().mean()
    # Inputs that nobody has seen are taken to be alike.
    level = torch.where(level > 0, level * DAMPING, torch.ones_like(level))
    root = torch.linalg.cholesky(moment + level * torch.eye(len(moment)).to(moment))
    left, values, right = torch.linalg.svd(weight.double() @ root, full_matrices=False)
    right = torch.linalg.solve_triangular(root, right, upper=False, left=False)
    return left, values, right


@torch.no_grad()
def _thin(layer: nn.Linear | nn.Conv2d, first: Tensor, second: Tensor) -> nn.Sequential:
    """Two layers with these weights: the first without bias, the second with the layer's."""
    rank, inputs = first.shape
    outputs, biased = len(second), layer.bias is not None
    if isinstance(layer, nn.Conv2d):
        down, across = layer.stride
        pair = nn.Sequential(
            nn.Conv2d(inputs, rank, 1, stride=(down, across), bias=False),
            nn.Conv2d(rank, outputs, 1, bias=biased),
        )
    else:
        pair = nn.Sequential(
            nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=biased)
        )
    pair = pair.to(layer.weight)
    for thin, weight in zip(pair, (first, second), strict=True):
        assert isinstance(thin, nn.Linear | nn.Conv2d)
        thin.weight.copy_(weight.view_as(thin.weight))
    if layer.bias is not None:
        pair[1].bias.copy_(layer.bias)  # type: ignore[operator,union-attr]
    return pair.eval()
