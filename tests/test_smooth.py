"""SmoothQuant: the same answers to the last digits, and less lost when 8 bits follow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from zoo import MODELS, answer, calibration, example

from attar import export, measure
from attar.compress import quantize
from attar.compress.quantize.smooth import Divided
from attar.errors import ModelError

WIDTH = 6


class Around(nn.Module):
    """A norm, two linear layers on it, and something else that may take what the norm gives."""

    def __init__(self, norm: nn.Module, also: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.norm = norm
        self.left, self.right = nn.Linear(WIDTH, 4), nn.Linear(WIDTH, 4)
        self.also = also

    def forward(self, rows: Tensor) -> Tensor:
        seen = self.norm(rows)
        assert seen.shape[-1] == WIDTH
        out = self.left(seen) * self.right(seen)
        return out if self.also is None else out + self.also(seen)


def rows(seed: int = 0) -> Tensor:
    chance = torch.Generator().manual_seed(seed)
    return torch.randn(32, WIDTH, generator=chance) * torch.tensor([1, 1, 20, 1, 1, 0.1])


def one(_: nn.Module) -> dict[str, Tensor]:
    return {"rows": rows()}


def three(_: nn.Module) -> Iterator[Mapping[str, Tensor]]:
    return ({"rows": rows(seed)} for seed in range(3))


def norm() -> nn.Module:
    made = nn.LayerNorm(WIDTH)
    made.weight.data = torch.tensor([1.0, -2.0, 30.0, 0.5, 1.0, 1.0])
    made.bias.data = torch.randn(WIDTH)
    return made


def has_product(model: nn.Module) -> bool:
    return any(isinstance(module, Divided) for module in model.modules())


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8, 1.0])
def test_scales_are_those_of_the_paper(alpha: float) -> None:
    model = Around(norm()).eval()
    small = quantize.smooth(model, one, three, alpha=alpha)
    with torch.no_grad():
        seen = torch.cat([model.norm(rows(seed)) for seed in range(3)]).double().numpy()
    weights = np.stack(
        [each.weight.detach().double().numpy() for each in (model.left, model.right)]
    )
    scales = np.abs(seen).max(0) ** alpha / np.abs(weights).max((0, 1)) ** (1 - alpha)
    for name in ("left", "right"):
        ratio = small.get_submodule(name).weight / model.get_submodule(name).weight
        assert np.allclose(ratio.detach().numpy(), scales, rtol=1e-4)
    assert np.allclose((model.norm.weight / small.norm.weight).detach().numpy(), scales, rtol=1e-4)
    assert torch.allclose(small(rows(9)), model(rows(9)), rtol=1e-4, atol=1e-5)


def loud(make: str) -> nn.Module:
    """A model of the zoo with weights of ordinary size and a few loud channels in its norms."""
    model = MODELS[make]().eval()
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "embed" not in name:
                weight.normal_(0, weight.shape[1] ** -0.5, generator=chance)
            elif "norm" in name.lower() and name.endswith("weight"):
                weight[1::7] = 40.0
                # Few of the weights are large where the inputs are.
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Linear) and layer.in_features > 3 and "class" not in name:
                layer.weight[:, 1::7] /= 40
    return model


@pytest.mark.parametrize("make", ["bert", "vit", "llama"])
@torch.no_grad()
def test_the_answers_stay_as_they_were(make: str) -> None:
    model = loud(make)
    small = quantize.smooth(model, example, calibration)
    inputs = example(model, rows=4, seed=5)
    truth = answer(model, inputs)
    assert (answer(small, inputs) - truth).abs().max() < 1e-5 * max(1.0, float(truth.abs().max()))
    before = [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)]
    after = [layer.weight for layer in small.modules() if isinstance(layer, nn.Linear)]
    changed = sum(not torch.equal(*each) for each in zip(before, after, strict=True))
    assert changed >= 8


@pytest.mark.parametrize("make", ["bert", "vit", "llama"])
@torch.no_grad()
def test_int8_loses_less_where_some_channels_are_loud(make: str) -> None:
    model = loud(make)
    smoothed = quantize.smooth(model, example, calibration)
    truth = [answer(model, inputs) for inputs in calibration(model)]
    plain = {
        path for path, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Embedding)
    }
    fed = ("query", "key", "value", "intermediate", "proj", "fc1", "score")
    others = [path for path in plain if not any(word in path for word in fed)]

    def lost(float_model: nn.Module) -> float:
        small = quantize.int8_dynamic(float_model, exclude=others)
        found = [answer(small, inputs) for inputs in calibration(model)]
        return float((torch.cat(found) - torch.cat(truth)).square().mean().sqrt())

    assert lost(smoothed) < 0.2 * lost(model)


@pytest.mark.parametrize(("make", "products"), [("bert", 8), ("vit", 0), ("llama", 0)])
def test_norms_take_the_scales_where_no_residual_passes_by(make: str, products: int) -> None:
    model = MODELS[make]().eval()
    small = quantize.smooth(model, example, calibration)
    assert sum(isinstance(module, Divided) for module in small.modules()) == products
    assert measure.parameters(small) == measure.parameters(model)
    assert measure.size(small) == measure.size(model) + products * 16 * 4


ELSEWHERE: dict[str, Callable[[Tensor], Tensor]] = {
    "added": lambda seen: seen[..., :4],
    "changed in place": lambda seen: seen.mul_(2).sum(-1, keepdim=True),
    "in a list": lambda seen: torch.cat([seen, seen], -1)[..., :4],
    "by name": lambda seen: torch.sum(input=seen, dim=-1, keepdim=True),
}


@pytest.mark.parametrize("also", ELSEWHERE.values(), ids=ELSEWHERE)
def test_what_else_a_norm_feeds_does_not_change(also: Callable[[Tensor], Tensor]) -> None:
    model = Around(norm(), also).eval()
    small = quantize.smooth(model, one, three)
    assert has_product(small)
    assert torch.equal(small.norm.weight, model.norm.weight)
    assert torch.allclose(small(rows(9)), model(rows(9)), rtol=1e-4, atol=1e-4)


class Told(nn.Module):
    """A model that hands out what its norm gives, beside its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = norm(), nn.Linear(WIDTH, 4)

    def forward(self, rows: Tensor) -> dict[str, Tensor]:
        seen = self.norm(rows)
        return {"logits": self.linear(seen), "features": seen}


def test_what_a_model_hands_out_does_not_change() -> None:
    model = Told().eval()
    small = quantize.smooth(model, one, three)
    assert isinstance(small.linear[0], Divided)
    for name, truth in model(rows(9)).items():
        assert torch.allclose(small(rows(9))[name], truth, rtol=1e-4, atol=1e-5)


def test_to_look_at_a_shape_is_not_to_compute() -> None:
    def shape(seen: Tensor) -> Tensor:
        return torch.zeros(seen.shape[0], seen.size(-1) - 2, dtype=seen.dtype)

    model = Around(norm(), shape).eval()
    assert not has_product(quantize.smooth(model, one, three))


class OnePlus(nn.Module):
    """A norm that adds 1 to its weight, as Gemma's does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH))

    def forward(self, seen: Tensor) -> Tensor:
        return seen / seen.square().mean(-1, keepdim=True).sqrt() * (1 + self.weight)


def test_a_norm_that_does_not_multiply_by_its_weight_keeps_it() -> None:
    model = Around(OnePlus()).eval()
    small = quantize.smooth(model, one, three)
    assert has_product(small)
    assert torch.equal(small.norm.weight, model.norm.weight)
    assert torch.allclose(small(rows(9)), model(rows(9)), rtol=1e-4, atol=1e-5)


def test_a_linear_layer_can_feed_and_one_left_out_keeps_its_source_whole() -> None:
    model = Around(nn.Linear(WIDTH, WIDTH)).eval()
    small = quantize.smooth(model, one, three)
    assert not has_product(small)
    assert not torch.equal(small.norm.weight, model.norm.weight)
    assert torch.allclose(small(rows(9)), model(rows(9)), rtol=1e-4, atol=1e-5)
    partly = quantize.smooth(model, one, three, exclude=["left"])
    assert isinstance(partly.right[0], Divided)
    assert torch.equal(partly.left.weight, model.left.weight)
    assert torch.equal(partly.norm.weight, model.norm.weight)
    assert torch.allclose(partly(rows(9)), model(rows(9)), rtol=1e-4, atol=1e-5)


def test_weights_that_something_else_shares_are_left_alone() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(9, WIDTH)
            self.norm = nn.LayerNorm(WIDTH)
            self.head = nn.Linear(WIDTH, 9, bias=False)
            self.head.weight = self.table.weight
            self.other = nn.Linear(WIDTH, 9)

        def forward(self, ids: Tensor) -> Tensor:
            seen = self.norm(self.table(ids))
            return self.head(seen) + self.other(seen)

    model, ids = Tied().eval(), {"ids": torch.arange(9)}
    small = quantize.smooth(model, lambda _: ids, lambda _: iter([ids]))
    assert small.head.weight is small.table.weight
    assert torch.equal(small.head.weight, model.head.weight)
    assert isinstance(small.other[0], Divided)
    assert torch.allclose(small(**ids), model(**ids), rtol=1e-4, atol=1e-5)


def test_a_layer_fed_by_two_is_left_alone() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.linear = nn.Linear(WIDTH, WIDTH)

        def forward(self, rows: Tensor) -> Tensor:
            return self.linear(self.two(torch.relu(self.linear(self.one(rows)))))

    with pytest.raises(ModelError, match=r"^Twice has no norm or linear layer that directly feeds"):
        quantize.smooth(Twice(), one, three)


def test_an_alpha_beyond_its_range_is_refused_in_a_sentence() -> None:
    with pytest.raises(ModelError, match=r"^alpha is 1\.5; it can be from 0 to 1\.$"):
        quantize.smooth(Around(norm()), one, three, alpha=1.5)


class Passed(nn.Module):
    """Embeddings, a norm, and a linear layer that a residual goes round."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.norm = nn.LayerNorm(16)
        self.linear = nn.Linear(16, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        seen = self.norm(self.embedding(input_ids) * attention_mask.unsqueeze(-1))
        return self.head((seen + self.linear(seen)).mean(1))


def test_a_smoothed_model_becomes_an_int8_file(tmp_path: Path) -> None:
    import onnxruntime

    smoothed = quantize.smooth(Passed().eval(), example, calibration)
    assert isinstance(smoothed.linear[0], Divided)
    small = quantize.int8_dynamic(smoothed)
    file = export.onnx(small, example, tmp_path / "small")
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    inputs = example(small, rows=3, seed=4)
    (found,) = session.run(None, {key: each.numpy() for key, each in inputs.items()})
    with torch.no_grad():
        truth = answer(small, inputs).numpy()
    assert np.abs(found - truth).max() < 1e-4 * np.abs(truth).max()
