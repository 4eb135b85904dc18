"""Two thin layers for one: the best pair for the inputs seen, never larger than the one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from zoo import MODELS, Mlp, answer, bert, calibration, example

from attar import export, measure
from attar.compress import factorize
from attar.errors import ModelError


class Lone(nn.Module):
    """A model of one layer, called by name."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, rows: Tensor) -> Tensor:
        return self.layer(rows)


MIXING = torch.randn(16, 16, generator=torch.Generator().manual_seed(1)).matrix_power(2)


def inputs_of(batch: int) -> Tensor:
    chance = torch.Generator().manual_seed(batch)
    return torch.randn(64, 16, generator=chance) @ MIXING + 0.5


def shown(_: nn.Module) -> Iterator[Mapping[str, Tensor]]:
    return ({"rows": inputs_of(batch)} for batch in range(4))


SEEN = torch.cat([inputs_of(batch) for batch in range(4)]).double().numpy()


def off(first: Any, second: Any) -> float:
    """How far two weights' outputs are apart on all that was seen."""
    return float(((SEEN @ (first - second).T) ** 2).sum())


def product(pair: nn.Sequential) -> Any:
    one, two = (layer.weight.detach().double().flatten(1).numpy() for layer in pair)
    return two @ one


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_no_pair_of_that_rank_is_nearer_on_the_inputs_seen(rank: int) -> None:
    linear = nn.Linear(16, 12)
    # 28 weights a rank, of 192.
    thin = factorize.svd(Lone(linear), shown, ratio=(28 * rank + 1) / 192).layer
    weight = linear.weight.detach().double().numpy()
    assert [tuple(layer.weight.shape) for layer in thin] == [(rank, 16), (12, rank)]
    # The best approximation of the outputs themselves has rows in the span of the weight's, so
    # its error (Eckart and Young 1936) is a bound that no pair of layers can be below.
    values = np.linalg.svd(SEEN @ weight.T, compute_uv=False)
    least = float((values[rank:] ** 2).sum())
    assert least <= off(product(thin), weight) * (1 + 1e-9)
    assert off(product(thin), weight) < 1.001 * least + 1e-3
    u, s, v = np.linalg.svd(weight)
    plain = u[:, :rank] * s[:rank] @ v[:rank]
    assert off(product(thin), weight) < 0.9 * off(plain, weight)


def test_energy_is_the_share_of_the_output_that_stays() -> None:
    linear = nn.Linear(16, 16, bias=False)
    weight = linear.weight.detach().double().numpy()
    thin = factorize.svd(Lone(linear), shown, energy=0.8).layer
    values = np.linalg.svd(SEEN @ weight.T, compute_uv=False) ** 2
    rank = len(thin[0].weight)
    assert values[: rank - 1].sum() < 0.8 * values.sum() <= values[:rank].sum()
    assert off(product(thin), weight) < 0.2 * off(0 * weight, weight)


def test_a_layer_of_low_rank_is_the_same_in_two() -> None:
    linear = nn.Linear(16, 12)
    linear.weight.data = torch.randn(12, 2) @ torch.randn(2, 16)
    thin = factorize.svd(Lone(linear), shown, ratio=0.3)
    assert len(thin.layer[0].weight) == 2
    assert torch.allclose(thin(inputs_of(7)), linear(inputs_of(7)), atol=1e-4)


def test_a_convolution_of_single_places_is_two_such() -> None:
    conv = nn.Conv2d(8, 8, 1, stride=2)
    conv.weight.data = (torch.randn(8, 2) @ torch.randn(2, 8)).view(8, 8, 1, 1)
    chance = torch.randn(4, 8, 6, 6)
    thin = factorize.svd(Lone(conv), lambda _: iter([{"rows": chance}]), ratio=0.5).layer
    assert [type(layer) for layer in thin] == [nn.Conv2d, nn.Conv2d]
    assert torch.allclose(thin(chance), conv(chance), atol=1e-4)
    whole = [nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 8, 1, padding=1)]
    for each in whole:
        with pytest.raises(ModelError, match="no linear or 1x1 convolution layer"):
            factorize.svd(Lone(each), lambda _: iter([{"rows": chance}]), ratio=0.5)


def test_a_layer_stays_whole_where_two_would_not_be_smaller() -> None:
    model = nn.ModuleDict({"flat": nn.Linear(16, 1), "square": nn.Linear(16, 16)})

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both = model

        def forward(self, rows: Tensor) -> Tensor:
            return self.both["flat"](self.both["square"](rows))

    thin = factorize.svd(Both(), shown, ratio=0.5)
    assert type(thin.both["flat"]) is nn.Linear
    assert len(thin.both["square"]) == 2
    with pytest.raises(ModelError, match=r"^Lone has no layer that two would be smaller than at"):
        factorize.svd(Lone(model["flat"]), shown, ratio=0.9)
    with pytest.raises(ModelError, match=r"energy 0\.999999; take less\.$"):
        factorize.svd(Lone(model["square"]), shown, energy=0.999999)


@pytest.mark.parametrize("make", MODELS)
def test_half_the_weights_of_each_layer_are_at_most_half(make: str) -> None:
    model = MODELS[make]().eval()
    thin = factorize.svd(model, calibration, ratio=0.5)
    for path, layer in model.named_modules():
        twin = thin.get_submodule(path)
        if isinstance(twin, nn.Sequential) and not isinstance(layer, nn.Sequential):
            weights = sum(each.weight.numel() for each in twin)
            rank = len(twin[0].weight)
            assert weights <= layer.weight.numel() / 2 or rank == 1
            assert twin[1].bias is None or torch.equal(twin[1].bias, layer.bias)
    inputs = example(model)
    assert measure.macs(thin, lambda _: inputs) < measure.macs(model, lambda _: inputs)


def test_a_shared_layer_stays_shared_and_excluded_ones_stay_whole() -> None:
    model = bert().eval()
    layers = model.bert.encoder.layer
    layers[1].output.dense = layers[0].output.dense
    thin = factorize.svd(model, calibration, ratio=0.4, exclude=["classifier", "bert.pooler"])
    twins = thin.bert.encoder.layer
    assert isinstance(twins[0].output.dense, nn.Sequential)
    assert twins[0].output.dense is twins[1].output.dense
    assert type(thin.classifier) is nn.Linear
    assert type(thin.bert.pooler.dense) is nn.Linear


@pytest.mark.parametrize("wrong", [{}, {"ratio": 0.5, "energy": 0.5}])
def test_one_of_ratio_and_energy_is_needed(wrong: dict[str, float]) -> None:
    with pytest.raises(ModelError, match="needs either ratio or energy"):
        factorize.svd(Mlp(), calibration, **wrong)


@pytest.mark.parametrize("wrong", [{"ratio": 0.0}, {"ratio": 1.0}, {"energy": 1.5}])
def test_a_share_lies_between_nothing_and_all(wrong: dict[str, float]) -> None:
    with pytest.raises(ModelError, match=r"between 0 and 1, not \d"):
        factorize.svd(Mlp(), calibration, **wrong)


def test_the_file_of_a_factorized_model_answers_as_it_does(tmp_path: Path) -> None:
    import onnxruntime

    thin = factorize.svd(Mlp(width=64).eval(), calibration, ratio=0.6)
    path = export.onnx(thin, example, tmp_path / "thin")
    inputs = example(thin, rows=5, seed=3)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {name: each.numpy() for name, each in inputs.items()})
    with torch.no_grad():
        assert np.abs(found - answer(thin, inputs).numpy()).max() < 1e-5
