"""Static int8: what ONNX defines, worked out in NumPy, and the file that ONNX Runtime fuses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from zoo import MODELS, Convolved, answer, bert, example, given

from attar import export, measure
from attar.compress import quantize
from attar.compress.quantize.dynamic import Int8Embedding
from attar.compress.quantize.flow import watched
from attar.compress.quantize.folding import fold_
from attar.compress.quantize.grids import Grid, scale_and_zero
from attar.compress.quantize.integer import Int8Layer, Stand, weight_scale
from attar.compress.quantize.ranges import BINS, OUTSIDE, Histogram
from attar.measure.memory import finished
from attar.resolve import ask
from attar.types import Quantized


def grid(low: float, high: float) -> Grid:
    return Grid(*scale_and_zero(torch.tensor(low), torch.tensor(high)))


def static(model: nn.Module, **options: Any) -> nn.Module:
    small = ask(partial(quantize.int8_static, **options), given(model))
    assert isinstance(small, nn.Module)
    return small


# grids


def on_grid(values: Any, scale: Any, zero: int) -> Any:
    """ONNX's QuantizeLinear and DequantizeLinear, from their pages, in NumPy."""
    quantized = np.clip(np.rint(values / scale) + zero, 0, 255).astype(np.uint8)
    return (quantized.astype(np.int32) - zero) * scale


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 6.0), (-3.0, 0.5), (2.0, 4.0)])
def test_a_grid_rounds_as_onnx_defines(low: float, high: float) -> None:
    values = torch.randn(1000) * 3
    found = grid(low, high)
    wanted = on_grid(values.numpy(), found.scale.numpy(), int(found.zero))
    assert np.array_equal(found(values).numpy(), wanted.astype(np.float32))
    assert len(found(values).unique()) <= 256


def test_a_grid_reaches_over_its_range_and_zero_is_on_it() -> None:
    found = grid(-0.3, 0.7)
    # 1 / 255 a step; zero is number 0.3 * 255 = 76.5, rounded to even 76.
    assert (round(float(found.scale) * 255, 6), int(found.zero)) == (1.0, 76)
    assert found(torch.tensor([0.0])) == 0
    assert torch.allclose(found(torch.tensor([-9.0, 9.0])), torch.tensor([-76 / 255, 179 / 255]))
    assert grid(2.0, 4.0).zero == 0
    assert grid(0.0, 0.0)(torch.tensor([0.0])) == 0


def test_halves_go_to_the_even_number() -> None:
    found = Grid(torch.tensor(1.0), torch.tensor(0.0))
    assert found(torch.tensor([0.5, 1.5, 2.5])).tolist() == [0, 2, 2]


# layers


def convolved(seen: Any, weight: Any, groups: int, stride: int, padding: int) -> Any:
    """A convolution of integers, by its definition."""
    rows, _, high, wide = seen.shape
    outputs, inputs, size, _ = weight.shape
    padded = np.pad(seen, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    down, along = ((n + 2 * padding - size) // stride + 1 for n in (high, wide))
    found = np.zeros((rows, outputs, down, along), np.int64)
    for channel in range(outputs):
        first = channel // (outputs // groups) * inputs
        for y in range(down):
            for x in range(along):
                part = padded[:, first : first + inputs, y * stride :, x * stride :]
                found[:, channel, y, x] = (part[:, :, :size, :size] * weight[channel]).sum(
                    (1, 2, 3)
                )
    return found


@pytest.mark.parametrize(("groups", "stride", "padding"), [(1, 1, 1), (2, 2, 0), (4, 1, 2)])
@pytest.mark.parametrize("most", [64, 127])
def test_a_convolution_computes_what_onnx_defines(
    groups: int, stride: int, padding: int, most: int
) -> None:
    layer = nn.Conv2d(4, 8, 3, stride, padding, groups=groups)
    inputs = torch.randn(2, 4, 6, 5)
    seen, said = grid(-2.5, 2.0), grid(-1.0, 1.0)
    scale = weight_scale(layer, most, seen.scale)
    found = Int8Layer(layer, scale, most, Stand(seen, said=said))(inputs)
    # QLinearConv: integers times integers, a 32-bit bias, and one rounding at the end.
    steps = np.clip(np.rint(inputs.numpy() / float(seen.scale)) + int(seen.zero), 0, 255)
    weight = layer.weight.detach().numpy()
    scales = np.abs(weight).max((1, 2, 3)) / most
    whole = np.rint(weight / scales[:, None, None, None]).astype(np.int64)
    product = convolved(steps.astype(np.int64) - int(seen.zero), whole, groups, stride, padding)
    step = scales * float(seen.scale)
    bias = np.rint(layer.bias.detach().numpy() / step).astype(np.int64)
    exact = (product + bias[:, None, None]) * step[:, None, None]
    wanted = on_grid(exact, float(said.scale), int(said.zero))
    off = np.abs(found.detach().numpy() - wanted) / float(said.scale)
    assert off.max() < 1.01
    assert (off > 0.5).mean() < 0.005


@pytest.mark.parametrize("shape", [(5, 12), (2, 3, 12)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_computes_what_onnx_defines(shape: tuple[int, ...], bias: bool) -> None:
    layer, inputs, seen = nn.Linear(12, 7, bias=bias), torch.randn(*shape), grid(-2.0, 2.5)
    small = Int8Layer(layer, weight_scale(layer, 64, seen.scale), 64, Stand(seen))
    weight = layer.weight.detach().numpy().astype(np.float64)
    scales = np.abs(weight).max(1) / 64
    whole = np.rint(weight / scales[:, None])
    wanted = (
        on_grid(inputs.numpy(), float(seen.scale), int(seen.zero)) @ (whole * scales[:, None]).T
    )
    if layer.bias is not None:
        step = scales * float(seen.scale)
        wanted = wanted + np.rint(layer.bias.detach().numpy() / step) * step
    assert np.abs(small(inputs).detach().numpy() - wanted).max() < 1e-5


def test_seven_bits_keep_the_sum_of_two_products_in_sixteen() -> None:
    (seven, eight) = (
        max(int(m.integers().abs().max()) for m in small.modules() if isinstance(m, Int8Layer))
        for small in (static(Convolved()), static(Convolved(), reduce_range=False))
    )
    assert 2 * 255 * seven <= 2**15 - 1 < 2 * 255 * eight


def test_a_channel_without_weights_still_has_its_bias() -> None:
    layer = nn.Conv2d(2, 3, 1)
    layer.weight.data[1] = 0.0
    layer.bias.data = torch.tensor([0.5, 1.7, -0.25])
    seen = grid(-1.0, 1.0)
    small = Int8Layer(layer, weight_scale(layer, 64, seen.scale), 64, Stand(seen))
    found = small(torch.zeros(1, 2, 1, 1)).flatten()
    assert torch.allclose(found, layer.bias, atol=1e-4)
    # The bias has to fit into the 32 bits that the runtime adds it in.
    assert (layer.bias / (seen.scale * small.scale)).abs().max() < 2**31


@pytest.mark.parametrize(("bits", "most"), [(2, 1), (3, 3), (4, 7)])
@pytest.mark.parametrize("make", [partial(nn.Conv2d, 3, 5, 3), partial(nn.Linear, 7, 5)])
def test_weights_of_few_bits_share_a_byte(make: Callable[[], Any], bits: int, most: int) -> None:
    layer, seen = make(), grid(-2.0, 2.0)
    scale = weight_scale(layer, most, seen.scale)
    small = Int8Layer(layer, scale, most, Stand(seen))
    wanted = np.rint(
        layer.weight.detach().numpy() / scale.view(-1, *[1] * (layer.weight.dim() - 1)).numpy()
    )
    wanted = wanted.T if isinstance(layer, nn.Linear) else wanted
    lane = 2 if bits == 2 else 4
    assert small.bits == bits
    assert small.kept.dtype == torch.uint8
    assert small.kept.numel() == -(-wanted.size * lane // 8)
    # The first in the lowest bits, each as far above the least there could be as it is above it.
    kept = small.kept.numpy()
    codes = np.stack([kept >> shift & (2**lane - 1) for shift in range(0, 8, lane)], 1).flatten()
    found = codes[: wanted.size].astype(int) - 2 ** (lane - 1)
    assert np.array_equal(found.reshape(wanted.shape), wanted)
    assert np.array_equal(small.integers().numpy(), wanted)
    assert small.integers().abs().max() == most


@pytest.mark.parametrize(
    "layer", [nn.Conv1d(4, 6, 3, 2, groups=2), nn.Conv2d(4, 6, 3, dilation=2), nn.Linear(4, 3)]
)
def test_a_float_twin_has_the_values_of_the_integers(layer: Any) -> None:
    seen = grid(-3.0, 3.0)
    small = Int8Layer(layer, weight_scale(layer, 127, seen.scale), 127, Stand(seen))
    twin = small.dequantized()
    assert type(twin) is type(layer)
    assert torch.equal(twin.weight, small.weight)
    most = layer.weight.abs().flatten(1).amax(1).max() / 127
    assert (twin.weight - layer.weight).abs().max() <= most / 2 + 1e-7
    inputs = seen(
        torch.randn(2, 4)
        if isinstance(layer, nn.Linear)
        else torch.randn(2, 4, *[9] * (layer.weight.dim() - 2))
    )
    assert (twin(inputs) - small(inputs)).abs().max() < 1e-3


# ranges


def counted(*batches: Tensor) -> Histogram:
    seen = Histogram()
    for batch in batches:
        seen.add(batch)
    return seen


def test_the_whole_range_is_from_the_least_to_the_greatest_and_holds_zero() -> None:
    assert counted(torch.tensor([1.0, -2.0]), torch.tensor([5.0])).range("minmax") == (-2.0, 5.0)
    assert counted(torch.tensor([3.0, 4.0])).range("minmax") == (0.0, 4.0)
    for kind in ("minmax", "percentile", "entropy"):
        assert counted(torch.zeros(9)).range(kind) == Histogram().range(kind) == (0.0, 0.0)


def test_batch_by_batch_is_as_all_at_once_in_flat_memory() -> None:
    batches = [torch.randn(300) * size for size in (0.01, 5.0, 0.3, 40.0)]
    parts, whole = counted(*batches), counted(torch.cat(batches))
    assert parts.counts.shape == (2 * BINS,)
    assert parts.width == whole.width == 64 * (1 + (whole.width > 64))
    assert parts.counts.sum() == whole.counts.sum() == 1200
    # Joining bins in pairs loses nothing but what falls on their limits.
    assert np.abs(parts.counts - whole.counts).sum() <= 2


def test_percentiles_are_those_of_numpy_to_a_bin() -> None:
    values = torch.cat([torch.randn(200_000), torch.zeros(100_000), torch.tensor([50.0, -30.0])])
    seen = counted(*values.split(7_000))
    low, high = seen.range("percentile")
    wanted = np.quantile(values.numpy(), [OUTSIDE / 2, 1 - OUTSIDE / 2])
    assert np.abs(np.array([low, high]) - wanted).max() <= 2 * seen.width / BINS
    assert (low, high) != seen.range("minmax")


def least_entropy(values: Any, width: float, sizes: list[int]) -> float:
    """Migacz 2017 by its words: for each threshold the divergence, in plain loops."""
    counts, _ = np.histogram(values[values != 0], BINS, (0, width))
    best = (np.inf, 0)
    for size in sizes:
        truth = counts[:size].astype(float)
        truth[-1] += counts[size:].sum()
        told = np.zeros(size)
        for level in range(256):
            bins = range(-(-level * size // 256), -(-(level + 1) * size // 256))
            used = [n for n in bins if truth[n] > 0]
            for n in used:
                told[n] = max(0.5, counts[bins].sum() / len(used))
        p, q = truth[truth > 0] / truth.sum(), told[truth > 0] / truth.sum()
        best = min(best, (float((p * np.log(p / q)).sum()), size))
    return best[1] / BINS * width


def test_the_entropy_range_loses_least_of_the_distribution() -> None:
    values = torch.cat([torch.randn(50_000).relu(), torch.tensor([15.5])])
    seen = counted(*values.split(9_000))
    reach = int(np.flatnonzero(seen.counts)[-1]) + 1 - BINS
    sizes = sorted({int(n) for n in np.linspace(256, reach, 128)})
    low, high = seen.range("entropy")
    assert low == 0.0
    assert high == pytest.approx(least_entropy(values.numpy(), seen.width, sizes))
    assert 2.0 < high < 8.0


def test_few_values_far_from_zero_are_not_cut_off_by_entropy() -> None:
    low, high = counted(torch.linspace(0.7, 0.9, 100)).range("entropy")
    assert (low, high) == (0.0, pytest.approx(0.9))


def test_both_sides_are_cut_alike_by_entropy() -> None:
    seen = counted(torch.cat([torch.randn(50_000), torch.tensor([-30.0])]))
    low, high = seen.range("entropy")
    assert -8 < low < -2
    assert 2 < high < 8


# folding


def grown(model: nn.Module) -> nn.Module:
    """A model whose batch norms have something to say."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (*module.parameters(), module.running_mean):
                tensor.data.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    return model.double().eval()


def norms(model: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in model.modules())


def test_a_folded_model_answers_as_before() -> None:
    model = grown(Convolved())
    inputs = {"pixel_values": torch.randn(3, 3, 8, 8, dtype=torch.float64)}
    truth = answer(model, inputs)
    fold_(model, inputs)
    assert norms(model) == 0
    assert (answer(model, inputs) - truth).abs().max() < 1e-12
    assert all(parameter.requires_grad for parameter in model.parameters())


class Several(nn.Module):
    """Norms that are no part of the layer before them, and two that are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4)
        self.twice, self.once = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.linear, self.flat = nn.Linear(4, 5), nn.BatchNorm1d(5, affine=False)
        self.long, self.across = nn.Linear(6, 6), nn.BatchNorm1d(6)

    def forward(self, inputs: Tensor) -> Tensor:
        seen = self.first(inputs)
        seen = self.norm(seen) + seen
        seen = self.once(self.twice(self.twice(seen)))
        seen = self.flat(self.linear(seen.mean((2, 3))))
        many = self.across(self.long(seen[:, :1, None].expand(-1, 6, 6)))
        return seen + many[:, :5, 0]


def test_only_a_norm_that_alone_reads_a_layer_that_runs_once_is_folded() -> None:
    model = grown(Several())
    inputs = {"inputs": torch.randn(3, 2, 4, 4, dtype=torch.float64)}
    truth = model(**inputs)
    fold_(model, inputs)
    assert (model(**inputs) - truth).abs().max() < 1e-12
    assert [type(each) for each in (model.norm, model.once, model.flat, model.across)] == [
        nn.BatchNorm2d,
        nn.BatchNorm2d,
        nn.Identity,
        nn.BatchNorm1d,
    ]


# what is watched, and what comes of it


class Changing(nn.Module):
    """Changes a tensor that two look at, and hands on what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.rest = nn.Linear(3, 3), nn.Dropout(0.5)

    def forward(self, inputs: Tensor) -> Tensor:
        seen = self.rest(self.layer(inputs))
        return seen.add_(1) * inputs


def test_a_tensor_that_is_changed_is_another_value() -> None:
    model = Changing().train()
    flow = watched(model, {"inputs": torch.ones(2, 3)})
    assert [call.name for call in flow.calls] == ["linear", "add_", "mul"]
    linear, added, product = flow.calls
    assert linear.module == "layer"
    assert added.reads == linear.writes != added.writes
    assert product.reads == (*added.writes, linear.reads[0])
    assert flow.next(linear.writes[0]) is added
    assert flow.next(linear.reads[0]) is None
    assert flow.next(product.writes[0]) is None
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_layers_that_read_one_value_share_its_grid() -> None:
    small = static(bert().eval())
    attention = small.get_submodule("bert.encoder.layer.0.attention.self")
    assert attention.query.seen is attention.key.seen is attention.value.seen


def test_the_sum_of_a_residual_block_is_rounded_where_it_leaves_the_block() -> None:
    small = static(Convolved())
    block = small.block
    assert block.taken is block.first.seen
    assert not block.first.rounds
    assert isinstance(block.given, Grid)
    # The first convolution's only reader rounds what it reads; of the second's one is the sum.
    assert block.first.said is None
    assert block.second.said is not None or isinstance(block.second, nn.Identity)


def test_a_copy_rounds_to_its_own_grids() -> None:
    small = static(Convolved())
    other = deepcopy(small)
    other.block.given.scale.fill_(100.0)
    inputs = example(small)
    assert not torch.equal(answer(other, inputs), answer(small, inputs))
    assert torch.equal(answer(deepcopy(small), inputs), answer(small, inputs))


class Odd(nn.Module):
    """A layer in two places, a layer that never runs, a convolution that others answer for."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Conv2d(3, 3, 3, padding=1)
        self.same = self.again
        self.never = nn.Linear(2, 2)
        self.round = nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular")

    def forward(self, pixel_values: Tensor) -> Tensor:
        seen = self.same(torch.relu(self.again(pixel_values)) * 3)
        return self.round(seen).mean((2, 3))


def odd_calibration(_model: nn.Module) -> Iterator[Mapping[str, Tensor]]:
    chance = torch.Generator().manual_seed(0)
    while True:
        yield {"pixel_values": torch.randn(4, 3, 6, 6, generator=chance)}


def test_what_runs_twice_has_one_grid_and_what_never_runs_stays_in_float() -> None:
    model = Odd().eval()
    inputs = next(odd_calibration(model))
    small = quantize.int8_static(model, lambda _: inputs, odd_calibration, batches=3)
    assert small.again is small.same
    assert isinstance(small.again, Int8Layer)
    assert [type(each) for each in (small.never, small.round)] == [nn.Linear, nn.Conv2d]
    truth = model(**inputs)
    assert (small(**inputs) - truth).abs().max() < 0.05 * truth.abs().max()


def test_as_many_batches_are_seen_as_was_said() -> None:
    drawn = []

    def counting(model: nn.Module) -> Iterator[Mapping[str, Tensor]]:
        for inputs in odd_calibration(model):
            drawn.append(inputs)
            yield inputs

    model = Odd().eval()
    quantize.int8_static(model, lambda m: next(odd_calibration(m)), counting, batches=5)
    assert len(drawn) == 5


@pytest.mark.parametrize("ranges", ["minmax", "percentile", "entropy"])
def test_the_answers_stay_near_those_of_the_float_model(
    ranges: Literal["minmax", "percentile", "entropy"],
) -> None:
    model = Convolved(width=32).eval()
    small = static(model, ranges=ranges)
    inputs = example(model, rows=16, seed=1)
    truth = answer(model, inputs)
    assert (answer(small, inputs) - truth).abs().max() < 0.1 * truth.abs().max()


def test_excluded_modules_and_what_is_in_them_stay_in_float() -> None:
    small = static(Convolved(), exclude=["block", "head"])
    quantized = {path for path, m in small.named_modules() if isinstance(m, Quantized)}
    assert quantized == {"stem"}


def test_quantizing_keeps_the_parameters_but_those_of_the_norms() -> None:
    model = Convolved()
    norms = 4 * 16 - 2 * 16  # two norms of 16 channels, for which two layers get a bias
    assert measure.parameters(static(model)) == measure.parameters(model) - norms


def test_a_table_is_quantized_as_with_dynamic_ranges() -> None:
    model = bert().eval()
    tables = [m for m in static(model).modules() if isinstance(m, Int8Embedding)]
    assert len(tables) == sum(isinstance(m, nn.Embedding) for m in model.modules()) == 3


# the file


@cache
def exported(make: str, folder: Path, how: str = "int8_static") -> tuple[nn.Module, Path]:
    torch.manual_seed(0)
    model = MODELS[make]().eval()
    if how != "float":
        model = ask(
            {"int8_static": quantize.int8_static, "int8_dynamic": quantize.int8_dynamic}[how],
            given(model),
        )
    return model, export.onnx(model, example, folder / f"{make}-{how}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


def run(file: Path, inputs: Mapping[str, Tensor]) -> Any:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (first,) = session.run(["logits"], {name: each.numpy() for name, each in inputs.items()})
    return first


def fused(file: Path, folder: Path) -> Counter[str]:
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath = str(folder / "optimized.onnx")
    settings.log_severity_level = 3
    onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def test_onnx_runtime_convolves_adds_and_multiplies_pictures_in_integers(
    folder: Path, tmp_path: Path
) -> None:
    _, file = exported("cnn", folder)
    found = fused(file, tmp_path)
    assert (found["QLinearConv"], found["QLinearAdd"], found["QGemm"]) == (3, 1, 1)
    assert found["Conv"] + found["Add"] + found["Gemm"] + found["Relu"] == 0
    # Pictures in, the mean, and out: nothing else changes between float and integers.
    assert (found["QuantizeLinear"], found["DequantizeLinear"]) == (2, 1)


def test_a_file_of_four_bits_is_half_as_large_and_multiplies_in_integers(tmp_path: Path) -> None:
    model = Convolved(width=64).eval()
    files = {}
    for bits in (8, 4):
        trained = ask(partial(quantize.qat, bits=bits, ranges="moving"), given(model))
        small = static(trained)
        files[bits] = export.onnx(small, example, tmp_path / f"{bits}")
        weights = sum(m.kept.numel() for m in small.modules() if isinstance(m, Int8Layer))
        assert weights == (64 * 9 * (3 + 64 + 32) + 64 * 3) * bits // 8
    eight, four = (files[bits].stat().st_size for bits in (8, 4))
    # Half of the weights, less what a file says of how to unpack them.
    assert eight - four > 0.4 * 64 * 9 * (3 + 64 + 32)
    # The runtime has unpacked them once, before it answers.
    assert fused(files[4], tmp_path) == fused(files[8], tmp_path)
    truth = answer(small).detach().numpy()
    assert np.abs(run(files[4], example(small)) - truth).max() < np.abs(truth).max() / 255


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_the_file_answers_as_the_model_does_for_any_number_of_pictures(
    folder: Path, rows: int
) -> None:
    model, file = exported("cnn", folder)
    inputs = example(model, rows, seed=3)
    truth = answer(model, inputs).detach().numpy()
    # A value may be rounded the other way: a step of the last grid is 1/255 of the largest.
    assert np.abs(run(file, inputs) - truth).max() < np.abs(truth).max() / 255


def test_a_file_of_text_convolutions_answers_for_any_length(folder: Path, tmp_path: Path) -> None:
    model, file = exported("text_cnn", folder)
    for rows, length in ((1, 3), (4, 9)):
        ids = torch.randint(1, 50, (rows, length))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        truth = answer(model, inputs).detach().numpy()
        assert np.abs(run(file, inputs) - truth).max() < np.abs(truth).max() / 255
    assert fused(file, tmp_path)["QLinearConv"] == 2


class Chain(nn.Module):
    """Two linear layers over rows of numbers, a relu between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.second(torch.relu(self.first(inputs)))
        return logits


@pytest.mark.parametrize(("shape", "kind"), [((6,), "QGemm"), ((4, 6), "MatMulIntegerToFloat")])
def test_linear_layers_multiply_in_integers_over_rows_and_over_sequences(
    shape: tuple[int, ...], kind: str, tmp_path: Path
) -> None:
    def batch(seed: int, rows: int = 1) -> dict[str, Tensor]:
        chance = torch.Generator().manual_seed(seed)
        return {"inputs": torch.randn(rows, *shape, generator=chance)}

    model = Chain().eval()
    small = quantize.int8_static(
        model, lambda _: batch(0), lambda _: map(partial(batch, rows=9), range(3))
    )
    file = export.onnx(small, lambda _: batch(0), tmp_path / "chain")
    found = fused(file, tmp_path)
    assert found[kind] == 2
    assert found["Gemm"] + found["MatMul"] == 0
    # Between the layers nothing is float where the runtime can put a relu into the rounding.
    assert found["Relu"] == 0
    inputs = batch(5, rows=3)
    truth = answer(small, inputs).detach().numpy()
    assert np.abs(run(file, inputs) - truth).max() < np.abs(truth).max() / 255


def test_pictures_of_another_size_are_refused_by_the_file(folder: Path) -> None:
    _, file = exported("cnn", folder)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (pixels,) = session.get_inputs()
    assert isinstance(pixels.shape[0], str)
    assert pixels.shape[1:] == [3, 8, 8]


def test_the_memory_of_a_file_that_takes_pictures_is_measured(folder: Path) -> None:
    model, file = exported("cnn", folder)
    peak = finished(measure.memory(model, example, file))
    assert peak is not None
    assert peak > 10_000_000


@pytest.mark.slow
@pytest.mark.parametrize("how", ["float", "int8_dynamic", "int8_static"])
@pytest.mark.parametrize("make", MODELS)
def test_every_make_of_model_is_written_and_answers_alike(
    make: str, how: str, folder: Path
) -> None:
    model, file = exported(make, folder, how)
    inputs = example(model, rows=3, seed=7)
    truth = answer(model, inputs).detach().numpy()
    assert np.abs(run(file, inputs) - truth).max() < 0.005 * np.abs(truth).max()
