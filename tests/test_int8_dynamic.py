"""Dynamic int8: what ONNX defines, worked out in NumPy, and near the float model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from zoo import MODELS, Mlp, answer, bert

from attar import measure
from attar.compress import quantize
from attar.compress.quantize import dynamic
from attar.types import Quantized


def reference(inputs: Any, weight: Any, bias: Any, most: int) -> Any:
    """ONNX's DynamicQuantizeLinear and MatMulInteger, from their pages, in NumPy."""
    low, high = min(inputs.min(), 0.0), max(inputs.max(), 0.0)
    step = np.float32((high - low) / 255) if high > low else np.float32(1)
    zero = int(np.clip(np.rint(-low / step), 0, 255))
    seen = np.clip(np.rint(inputs / step) + zero, 0, 255).astype(np.uint8)
    scale = np.abs(weight).max(1) / most
    scale[scale == 0] = 1
    integers = np.rint(weight / scale[:, None]).astype(np.int8)
    product = (seen.astype(np.int32) - zero) @ integers.T.astype(np.int32)
    return product * (step * scale).astype(np.float64) + bias


@pytest.mark.parametrize("most", [64, 127])
@pytest.mark.parametrize("shift", [0.0, 5.0, -5.0])
def test_a_quantized_linear_layer_computes_what_onnx_defines(most: int, shift: float) -> None:
    linear = nn.Linear(24, 7)
    inputs = torch.randn(3, 5, 24) + shift
    wanted = reference(
        inputs.numpy(), linear.weight.detach().numpy(), linear.bias.detach().numpy(), most
    )
    found = dynamic.Int8Linear(linear, most)(inputs).detach().numpy()
    assert np.abs(found - wanted).max() < 2e-5 * np.abs(wanted).max()


def test_a_quantized_linear_layer_is_right_where_everything_is_zero() -> None:
    linear = nn.Linear(4, 2)
    linear.weight.data[0] = 0.0
    small = dynamic.Int8Linear(linear, 64)
    assert torch.equal(small(torch.zeros(2, 4)), linear.bias.expand(2, 2))
    assert small(torch.ones(1, 4))[0, 0] == linear.bias[0]


def test_weights_have_a_scale_for_each_output() -> None:
    linear = nn.Linear(2, 2, bias=False)
    linear.weight.data = torch.tensor([[1.0, -0.5], [0.01, 0.005]])
    small = dynamic.Int8Linear(linear, 64)
    assert small.weight.tolist() == [[64, 64], [-32, 32]]
    assert torch.allclose(small.scale, torch.tensor([1 / 64, 0.01 / 64]))
    assert torch.allclose(small.dequantized().weight, linear.weight)


def test_seven_bits_keep_the_sum_of_two_products_in_sixteen() -> None:
    linear = nn.Linear(32, 8)
    seven, eight = (dynamic.Int8Linear(linear, most).weight.abs().max() for most in (64, 127))
    assert 2 * 255 * int(seven) <= 2**15 - 1 < 2 * 255 * int(eight)


def test_a_quantized_table_has_one_scale_and_zero_point() -> None:
    embedding = nn.Embedding(3, 2, padding_idx=0)
    embedding.weight.data = torch.tensor([[0.0, 0.0], [-1.0, 1.55], [0.004, 0.006]])
    small = dynamic.Int8Embedding(embedding)
    # (1.55 + 1) / 255 = 0.01, so -1 is 0, zero is 100, and 0.006 rounds up.
    assert small.weight.tolist() == [[100, 100], [0, 255], [100, 101]]
    wanted = torch.tensor([[[-1.0, 1.55], [0.0, 0.01]]])
    assert torch.allclose(small(torch.tensor([[1, 2]])), wanted, atol=1e-6)
    table = small.dequantized()
    assert torch.equal(table(torch.tensor([[1, 2]])), small(torch.tensor([[1, 2]])))
    assert table.padding_idx == 0


def test_a_float_twin_answers_as_the_quantized_layer_but_for_the_inputs_rounding() -> None:
    linear = nn.Linear(24, 7)
    inputs = torch.randn(5, 24)
    small = dynamic.Int8Linear(linear, 64)
    step = (inputs.amax() - inputs.amin()) / 255
    most = small.dequantized().weight.abs().sum(1).max() * step / 2
    assert (small(inputs) - small.dequantized()(inputs)).abs().max() <= most * 1.01


@pytest.mark.parametrize("make", MODELS.values())
def test_a_quantized_model_stays_near_the_original(make: Callable[[], nn.Module]) -> None:
    model = make().eval()
    truth = answer(model)
    assert (answer(quantize.int8_dynamic(model)) - truth).abs().max() < 0.1 * truth.abs().max()


def test_quantizing_keeps_the_number_of_parameters_and_takes_most_of_the_bytes() -> None:
    model = Mlp(width=512)
    small = quantize.int8_dynamic(model)
    assert measure.parameters(small) == measure.parameters(model) == 50 * 8 + 9 * 512 + 513 * 3
    assert measure.size(small) < 0.6 * measure.size(model)


def test_excluded_modules_and_what_is_in_them_stay_in_float() -> None:
    model = bert().eval()
    small = quantize.int8_dynamic(model, exclude=["bert.embeddings", "classifier"])
    quantized = {path for path, m in small.named_modules() if isinstance(m, Quantized)}
    linear = {path for path, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert quantized == linear - {"classifier"}


class Scaled(nn.Embedding):
    """A table that is more than a look-up."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * 100


def test_a_layer_of_a_kind_of_its_own_is_left_alone() -> None:
    model = nn.Sequential(Scaled(9, 4), nn.Linear(4, 2)).eval()
    small = quantize.int8_dynamic(model)
    assert isinstance(small[0], Scaled)
    assert isinstance(small[1], dynamic.Int8Linear)


def test_a_layer_in_two_places_stays_one_layer() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[3] = model[1]
    small = quantize.int8_dynamic(model)
    assert isinstance(small[1], dynamic.Int8Linear)
    assert small[1] is small[3]


def test_torchs_own_transformer_can_be_quantized() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.Embedding(9, 8), layer, nn.Linear(8, 2)).eval()
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        truth, small = model(ids), quantize.int8_dynamic(model)(ids)
    assert (small - truth).abs().max() < 0.1 * truth.abs().max()
