"""Weights of few bits: GPTQ and AWQ worked out in NumPy, the layout as ONNX Runtime reads it."""

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
from attar.compress import quantize
from attar.compress.quantize import rounding, weight
from attar.compress.quantize.packing import pack, unpack
from attar.compress.quantize.weight import PackedLinear
from attar.compress.watching import moments
from attar.errors import ModelError


def correlated(rows: int, width: int, seed: int = 0) -> Tensor:
    """Inputs made of a few causes and a little noise, as activations are, some far larger."""
    fixed, chance = torch.Generator().manual_seed(99), torch.Generator().manual_seed(seed)
    causes = torch.randn(rows, width // 5, generator=chance)
    inputs = causes @ torch.randn(width // 5, width, generator=fixed)
    inputs = inputs + 0.3 * torch.randn(rows, width, generator=chance)
    return inputs * torch.linspace(0.2, 4, width)[torch.randperm(width, generator=fixed)]


def lone(linear: nn.Linear) -> nn.Module:
    """A model of one linear layer, called by name."""

    class Lone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = linear

        def forward(self, rows: Tensor) -> Tensor:
            return self.linear(rows)

    return Lone().eval()


def shown(_: nn.Module) -> Iterator[Mapping[str, Tensor]]:
    return ({"rows": correlated(64, 40, seed)} for seed in range(4))


# --- codes, worked out by hand and in NumPy


def test_each_group_has_its_own_grid_with_zero_on_it() -> None:
    rows = torch.tensor([[0.0, 1.5, -0.6, 0.3, 3.0, 30.0]])
    codes = rounding.nearest(rows, 2, 3)
    # (1.5 + 0.6) / 3 = 0.7: -0.6 is code 0 and zero is code 1; then 30 / 3 = 10.
    assert codes.values.tolist() == [[1, 3, 0, 0, 0, 3]]
    assert torch.allclose(codes.scale, torch.tensor([[0.7, 10.0]]))
    assert codes.zero.tolist() == [[1, 0]]
    assert torch.allclose(codes.weights(3), torch.tensor([[0.0, 1.4, -0.7, 0.0, 0.0, 30.0]]))


def test_codes_lie_in_bytes_from_the_lowest_bits_on() -> None:
    codes = torch.tensor([[1, 2, 15], [0, 9, 3]])
    assert pack(codes, 4).tolist() == [[0x21, 0x0F], [0x90, 0x03]]
    assert pack(torch.tensor([1, 2, 3, 0, 3]), 2).tolist() == [0b00111001, 0b11]
    for lane in (2, 4, 8):
        many = torch.randint(0, 2**lane, (3, 2, 16))
        assert torch.equal(unpack(pack(many, lane), lane), many)


def gptq_reference(rows: Any, hessian: Any, bits: int, group: int) -> Any:
    """Optimal brain quantization in a fixed order, the inverse shrunk by elimination each time."""
    left, top = rows.copy(), 2**bits - 1
    damped = hessian + 0.01 * hessian.diagonal().mean() * np.eye(len(hessian))
    inverse = np.linalg.inv(damped)
    found = np.zeros_like(rows)
    for n in range(rows.shape[1]):
        if n % group == 0:
            part = left[:, n : n + group]
            low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
            scale = (high - low) / top
            zero = np.clip(np.rint(-low / scale), 0, top)
        for row in range(len(rows)):
            code = np.clip(np.rint(left[row, n] / scale[row]) + zero[row], 0, top)
            found[row, n] = (code - zero[row]) * scale[row]
            share = (left[row, n] - found[row, n]) / inverse[n, n]
            for later in range(n + 1, rows.shape[1]):
                left[row, later] -= share * inverse[n, later]
        inverse = inverse - np.outer(inverse[:, n], inverse[n]) / inverse[n, n]
    return found


@pytest.mark.parametrize("group", [3, 8])
def test_gptq_is_optimal_brain_quantization_in_order(group: int) -> None:
    rows = torch.randn(8, 8, dtype=torch.float64)
    inputs = correlated(50, 8).double()
    hessian = inputs.T @ inputs / 50
    found = rounding.gptq(rows, hessian, 3, group).weights(group)
    wanted = gptq_reference(rows.numpy(), hessian.numpy(), 3, group)
    assert np.abs(found.numpy() - wanted).max() < 1e-9
    assert (found - rounding.nearest(rows, 3, group).weights(group)).abs().max() > 0.1


def output_error(linear: nn.Linear, how: Any, **options: Any) -> float:
    small = quantize.int4_weight(lone(linear), shown, how=how, **options).linear
    twin = small.dequantized()
    inputs = correlated(200, 40, seed=9)
    with torch.no_grad():
        return float((twin(inputs) - linear(inputs)).square().mean())


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("group", [16, -1])
def test_gptq_and_awq_change_the_output_less_than_the_nearest_codes(bits: int, group: int) -> None:
    linear = nn.Linear(40, 24)
    plain = output_error(linear, "nearest", bits=bits, group=group)
    assert output_error(linear, "gptq", bits=bits, group=group) < 0.7 * plain
    assert output_error(linear, "awq", bits=bits, group=group) < 0.95 * plain


def test_awq_is_the_best_of_its_scales_and_undoes_them_on_the_input() -> None:
    rows, inputs = torch.randn(6, 16), correlated(60, 16)
    hessian = inputs.T @ inputs / 60
    codes, scales = rounding.awq(rows, hessian, 3, 16)
    size = inputs.square().mean(0).sqrt()
    errors = {}
    for power in np.arange(20) / 20:
        by = (size / size.mean()) ** power
        by = by / (by.max() * by.min()).sqrt()
        off = rows - rounding.nearest(rows * by, 3, 16).weights(16) / by
        errors[float(((inputs @ off.T) ** 2).sum())] = by
    assert torch.allclose(scales, errors[min(errors)], rtol=1e-4)
    assert float(((inputs @ (rows - codes.weights(16) / scales).T) ** 2).sum()) == pytest.approx(
        min(errors), rel=1e-4
    )
    linear = nn.Linear(16, 6)
    linear.weight.data = rows
    small = weight.PackedLinear(linear, codes, scales, 3, 16)
    assert torch.allclose(small.dequantized().weight, codes.weights(16) / scales, atol=1e-6)


def test_a_layer_that_no_batch_came_through_has_the_nearest_codes() -> None:
    linear = nn.Linear(40, 8)
    nothing = torch.zeros(40, 40)
    wanted = rounding.nearest(linear.weight.detach(), 4, 32)
    assert torch.equal(rounding.gptq(linear.weight.detach(), nothing, 4, 32).values, wanted.values)
    codes, scales = rounding.awq(linear.weight.detach(), nothing, 4, 32)
    assert torch.equal(codes.values, wanted.values)
    assert torch.equal(scales, torch.ones(40))


# --- what goes into a layer


def test_moments_leave_padding_out() -> None:
    model = bert().eval()
    heard: list[Tensor] = []
    layer = model.bert.encoder.layer[0].output.dense
    layer.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0]))
    ((found, moment),) = moments(model, [layer], calibration, 2)
    real = [
        each[inputs["attention_mask"].bool()]
        for each, inputs in zip(heard, calibration(model), strict=False)
    ]
    rows = torch.cat(real).double()
    assert found is layer
    assert len(rows) == 2 * (8 * 5 - 2)
    assert torch.allclose(moment.double(), rows.T @ rows / len(rows), atol=1e-6)


def test_layers_that_do_not_fit_in_one_pass_see_what_stands_before_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, passes = bert().eval(), []

    def counted(asked: nn.Module) -> Iterator[Mapping[str, Tensor]]:
        passes.append(sum(isinstance(m, PackedLinear) for m in asked.modules()))
        return calibration(asked)

    quantize.int4_weight(model, counted, batches=2)
    assert passes == [0]
    monkeypatch.setattr("attar.compress.watching.HELD", 1)
    quantize.int4_weight(model, counted, batches=2)
    linears = sum(isinstance(m, nn.Linear) for m in model.modules())
    assert passes[1:] == list(range(linears))


def test_layers_inside_torchs_fused_transformer_are_seen() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = lone(layer)

    def batches(_: nn.Module) -> Iterator[Mapping[str, Tensor]]:
        yield {"rows": torch.randn(4, 3, 8)}

    found = dict(moments(model, [layer.linear1, layer.linear2], batches, 1))
    assert all(moment.diagonal().min() > 0 for moment in found.values())


def test_no_batch_to_calibrate_with_is_refused_in_a_sentence() -> None:
    with pytest.raises(ModelError, match="no batch to calibrate with: set batches to 1 or more"):
        quantize.int4_weight(Mlp(), calibration, batches=0)


# --- the model


@pytest.mark.parametrize("how", ["nearest", "gptq", "awq"])
@pytest.mark.parametrize("make", MODELS)
def test_eight_bits_stay_near_the_original(make: str, how: Any) -> None:
    model = MODELS[make]().eval()
    truth = answer(model)
    small = quantize.int4_weight(model, calibration, bits=8, how=how)
    assert (answer(small) - truth).abs().max() < 0.05 * truth.abs().max()


def test_four_bits_take_an_eighth_of_the_bytes_and_what_the_scales_need() -> None:
    model = Mlp(width=1024)
    small = quantize.int4_weight(model, calibration, group=128, how="nearest")
    # embedding: 400 bytes, scale, zero; hidden: 8 inputs padded to a block; head: 8 blocks a row
    hidden, head = 1024 * (64 + 4 + 1) + 4 * 1024, 3 * (512 + 8 * 4 + 4) + 4 * 3
    assert measure.size(small) == 400 + 4 + 1 + hidden + head
    assert measure.parameters(small) == measure.parameters(model) == 50 * 8 + 9 * 1024 + 1025 * 3
    inputs = example(model)
    assert measure.macs(small, lambda _: inputs) == measure.macs(model, lambda _: inputs)


@pytest.mark.parametrize("inputs", [24, 100, 384, 600])
def test_one_scale_a_row_lies_in_the_blocks_that_take_the_fewest_bytes(inputs: int) -> None:
    linear = nn.Linear(inputs, 2, bias=False)
    small = quantize.int4_weight(lone(linear), shown, group=-1, how="nearest").linear
    assert small.scale.unique(dim=1).shape[1] == 1
    sizes = [-(-inputs // block) * (block / 2 + 4) for block in (16, 32, 64, 128, 256)]
    assert small.weight.numel() + small.scale.numel() * 4 == 2 * min(sizes)
    wanted = rounding.nearest(linear.weight.detach(), 4, inputs).weights(inputs)
    assert torch.allclose(small.dequantized().weight, wanted)


def test_embeddings_can_stay_in_float_and_a_layer_in_two_places_is_one() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[3] = model[1]
    small = quantize.int4_weight(model, calibration, how="nearest", embeddings=False)
    assert type(small[0]) is nn.Embedding
    assert isinstance(small[1], weight.PackedLinear)
    assert small[1] is small[3]


@pytest.mark.parametrize("wrong", [{"bits": 1}, {"bits": 9}, {"group": 48}, {"group": 512}])
def test_what_the_runtime_can_not_multiply_is_refused_in_a_sentence(wrong: dict[str, int]) -> None:
    with pytest.raises(ModelError, match=r"^(bits|group) is \d+; .* (2 to 8|256, or -1)\.$"):
        quantize.int4_weight(Mlp(), calibration, **wrong)


# --- the file


def answered(path: Path, inputs: Mapping[str, Tensor]) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {name: each.numpy() for name, each in inputs.items()})[0]


@pytest.mark.parametrize(
    ("bits", "group", "how"), [(4, 32, "gptq"), (3, -1, "awq"), (8, 16, "nearest")]
)
def test_onnx_runtime_multiplies_as_the_model_does(
    tmp_path: Path, bits: int, group: int, how: Any
) -> None:
    import onnx

    model = Mlp(width=72).eval()
    small = quantize.int4_weight(model, calibration, bits=bits, group=group, how=how)
    path = export.onnx(small, example, tmp_path / "small")
    inputs = example(model, rows=7, seed=5)
    with torch.no_grad():
        truth = answer(small, inputs).numpy()
    assert np.abs(answered(path, inputs) - truth).max() < 1e-5 * np.abs(truth).max()
    graph = onnx.load(path)
    assert [node.op_type for node in graph.graph.node].count("MatMulNBits") == 2
    assert {each.domain: each.version for each in graph.opset_import}["com.microsoft"] == 1


def test_a_file_is_smaller_by_what_the_weights_are(tmp_path: Path) -> None:
    model = Mlp(width=4096).eval()
    small = quantize.int4_weight(model, calibration, how="nearest")
    whole = export.onnx(model, example, tmp_path / "whole").stat().st_size
    file = export.onnx(small, example, tmp_path / "small").stat().st_size
    assert whole - file == pytest.approx(measure.size(model) - measure.size(small), abs=3000)
