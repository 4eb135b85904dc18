"""What models cost beyond the plain figures: zipped, non-zero, quantized, at lengths, on what."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from test_measure import Judge
from test_measure import Mlp as Words
from torch import Tensor, nn
from zoo import MODELS, Mlp, answer, example

from attar import measure
from attar.compress import prune, quantize
from attar.errors import AttarError, ModelError, RecipeError
from attar.measure import cost, machine
from attar.measure.comparing import emulated
from attar.measure.memory import finished
from attar.measure.questions import by_name, length, question
from attar.recipe import read
from attar.report.table import columns
from attar.resolve import options
from attar.setting import begin

IDS = torch.tensor([[2, 7, 9, 3]])


class Packed(nn.Module):
    """A linear layer of 4-bit weights, two to a byte, with zero points and a range for inputs."""

    bits = 4

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        values = torch.round(linear.weight.detach() / linear.weight.abs().max() * 7).to(torch.int8)
        both = (values[:, ::2] + 8) + 16 * (values[:, 1::2] + 8)
        self.register_buffer("weight", both.to(torch.uint8))
        self.register_buffer("zero", torch.full((len(values),), 8, dtype=torch.uint8))
        self.register_buffer("scale", linear.weight.detach().abs().max() / 7)
        self.register_buffer("seen", torch.zeros(2))
        self.bias = nn.Parameter(linear.bias.detach().clone())

    def values(self) -> Tensor:
        low, high = self.weight % 16, self.weight // 16  # type: ignore[operator]
        both = torch.stack([low, high], -1).flatten(1).to(self.scale.dtype)  # type: ignore[arg-type]
        return both - self.zero[:, None]  # type: ignore[index]

    def forward(self, inputs: Tensor) -> Tensor:
        # As integer products are put together: one product, and another to take the zero off.
        weight = self.values() * self.scale
        product = inputs @ (weight + 8).T - inputs @ torch.full_like(weight, 8).T
        return product + self.bias

    def dequantized(self) -> nn.Linear:
        weight = self.values() * self.scale
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.weight.data, linear.bias.data = weight, self.bias.data
        return linear


class Bytes(nn.Module):
    """A linear layer of somebody else's: int8 weights, zero points, no word about bits."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(out, into, dtype=torch.int8))
        self.register_buffer("zeros", torch.zeros(out, dtype=torch.int8))

    def forward(self, inputs: Tensor) -> Tensor:
        return F.linear(inputs, self.weight.to(inputs.dtype))  # type: ignore[operator]


def packed() -> tuple[nn.Module, nn.Module]:
    """A model and the same with a layer packed in 4 bits."""
    model = Mlp().eval()
    small = Mlp().eval()
    small.load_state_dict(model.state_dict())
    small.set_submodule("hidden", Packed(model.hidden))
    return model, small


# ---- weights that are there, and those that are not zero


def test_weights_that_are_zero_are_stored_and_not_counted_as_non_zero() -> None:
    model = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.eye(4))
    assert measure.parameters(model) == 16
    assert measure.nonzero(model) == 4


def test_a_pruned_model_has_as_many_non_zero_weights_as_were_left() -> None:
    model = prune.magnitude(Mlp(), ratio=0.75)
    dense = 50 * 8 + 16 + 3
    assert measure.parameters(model) == dense + 8 * 16 + 16 * 3
    assert measure.nonzero(model) == dense + (8 * 16 + 16 * 3) // 4


def test_a_pruned_model_that_is_quantized_keeps_its_zeros() -> None:
    pruned = prune.magnitude(Mlp(), ratio=0.75)
    kept = sum(int(layer.weight.count_nonzero()) for layer in (pruned.hidden, pruned.head))
    small = quantize.int8_dynamic(pruned, exclude=["embedding"])
    assert measure.nonzero(small) <= 400 + kept + 19
    assert measure.nonzero(small) > 400 + kept // 2


@pytest.mark.parametrize("make", MODELS)
def test_a_quantized_model_stores_as_many_weights_as_the_float_one(make: str) -> None:
    model = MODELS[make]().eval()
    assert measure.parameters(quantize.int8_dynamic(model)) == measure.parameters(model)


def test_weights_packed_two_to_a_byte_are_two_and_their_scales_are_none() -> None:
    model, small = packed()
    assert measure.parameters(small) == measure.parameters(model)
    assert measure.nonzero(small) < measure.nonzero(model)
    assert measure.size(small) < measure.size(model)


def test_bytes_that_somebody_else_multiplies_are_weights_and_a_row_of_zero_points_is_not() -> None:
    assert measure.parameters(Bytes(8, 3)) == measure.nonzero(Bytes(8, 3)) == 24


def test_counting_moves_nobodys_dice() -> None:
    small = quantize.int8_dynamic(Mlp())
    before = torch.get_rng_state()
    measure.parameters(small)
    measure.macs(small, example)
    assert torch.equal(torch.get_rng_state(), before)


# ---- macs


@pytest.mark.parametrize("make", MODELS)
def test_a_quantized_model_multiplies_as_often_as_the_float_one(make: str) -> None:
    model = MODELS[make]().eval()
    wanted = measure.macs(model, example)
    assert measure.macs(quantize.int8_dynamic(model), example) == wanted > 0


def test_how_a_quantized_layer_is_imitated_is_not_counted() -> None:
    model, small = packed()
    assert measure.macs(small, example) == measure.macs(model, example) == 2 * (8 * 16 + 16 * 3)


def test_a_layer_that_is_quantized_itself_and_one_in_half_precision_are_counted() -> None:
    layer = Packed(nn.Linear(8, 16))
    whole = quantize.int8_dynamic(nn.Sequential(nn.Linear(8, 16)))
    assert measure.macs(layer, lambda _: {"input": torch.randn(3, 8)}) == 3 * 8 * 16
    for dtype in (torch.float16, torch.bfloat16):
        halved = whole.to(dtype)
        assert measure.macs(halved, lambda _: {"input": torch.randn(3, 8, dtype=dtype)}) == 384  # noqa: B023


def test_integer_products_and_those_of_a_single_vector_are_counted_too() -> None:
    class Integers(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            product: Tensor = torch._int_mm(inputs, torch.ones(32, 8, dtype=torch.int8))
            return product.float() @ torch.ones(8)

    inputs = {"inputs": torch.ones(24, 32, dtype=torch.int8)}
    assert measure.macs(Integers(), lambda _: inputs) == 24 * 32 * 8 + 24 * 8


def test_single_zeros_save_no_multiplication_and_missing_rows_do() -> None:
    model = Mlp().eval()
    wanted = measure.macs(model, example)
    assert measure.macs(prune.magnitude(model, ratio=0.9), example) == wanted
    assert measure.macs(Mlp(width=8), example) == wanted // 2


def test_counting_a_quantized_model_leaves_it_as_it_was() -> None:
    small = quantize.int8_dynamic(Mlp()).train()
    kinds, weights = [type(each) for each in small.modules()], dict(small.state_dict())
    measure.macs(small, example)
    assert [type(each) for each in small.modules()] == kinds
    assert all(torch.equal(weights[name], now) for name, now in small.state_dict().items())
    assert small.training
    assert small.hidden.training
    assert answer(small).shape == (2, 3)


# ---- bytes


def test_the_zipped_size_of_a_file_is_what_gzip_makes_of_it(tmp_path: Path) -> None:
    content = np.random.default_rng(0).integers(0, 4, 3 << 20, dtype=np.uint8).tobytes()
    file = tmp_path / "a.onnx"
    file.write_bytes(content)
    header, trailer = 10, 8
    packed = len(gzip.compress(content, 6)) - header - trailer
    # Without zlib's own frame of 2 and 4 bytes; the rest is the same stream, cut otherwise.
    assert measure.zipped(nn.Identity(), file) - 6 == pytest.approx(packed, rel=1e-4)
    assert measure.zipped(nn.Identity(), file) < 0.3 * len(content)


def test_the_zipped_size_of_a_folder_is_that_of_its_weights(tmp_path: Path) -> None:
    for n in "12":
        (tmp_path / f"model-{n}.safetensors").write_bytes(b"x" * 100_000)
    (tmp_path / "tokenizer.json").write_bytes(bytes(range(256)) * 100)
    assert measure.zipped(nn.Identity(), tmp_path) == 2 * len(zlib.compress(b"x" * 100_000, 6))
    with pytest.raises(ModelError, match="There are no weights at"):
        measure.zipped(nn.Identity(), tmp_path / "missing")


def test_zeros_make_a_model_no_smaller_until_it_is_zipped() -> None:
    model = nn.Linear(128, 128)
    sparse = prune.magnitude(nn.Sequential(model), ratio=0.9)
    assert measure.size(sparse) == measure.size(model)
    assert measure.zipped(sparse) < 0.25 * measure.zipped(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_every_format_can_be_zipped(dtype: torch.dtype) -> None:
    model = nn.BatchNorm1d(6).to(dtype)
    assert measure.zipped(model) > 0


# ---- rows and their columns


def test_a_row_has_the_new_figures_where_they_are_wanted_and_columns_show_them() -> None:
    wanted = ("parameters", "nonzero", "size", "zipped")
    model = prune.magnitude(Mlp(), ratio=0.5)
    row = measure.row("student", model, {}, example, wanted, energy_j=0.0013)
    assert row.nonzero == measure.nonzero(model)
    assert row.zipped_bytes == measure.zipped(model)
    assert [column.title for column in columns([row])] == [
        *("parameters", "non-zero", "size", "zipped", "energy")
    ]
    assert columns([row])[-1].text(row) == "1.3 mJ"
    plain = measure.row("student", model, {}, example)
    assert (plain.nonzero, plain.zipped_bytes, plain.energy_j) == (None, None, None)
    assert "zipped" not in [column.title for column in columns([plain])]


def test_the_runtime_tells_the_bits_that_are_imitated_and_the_format_of_the_weights() -> None:
    _, small = packed()
    assert measure.runtime(small).endswith(", int4 emulated")
    both = quantize.int8_dynamic(small, exclude=["embedding"])
    assert measure.runtime(both).endswith(", int4 and int8 emulated")
    assert emulated(both)
    assert measure.runtime(Mlp().half()).endswith(" fp16")
    assert measure.runtime(Mlp().to(torch.bfloat16)).endswith(" bf16")


# ---- lengths


@pytest.mark.parametrize("tokens", [1, 3, 4, 16, 64])
def test_an_example_is_repeated_or_cut_to_so_many_real_tokens(tokens: int) -> None:
    known = {"input_ids": IDS, "attention_mask": torch.tensor([[1, 1, 1, 0]])}
    asked = question(lambda _: known, rows=3, tokens=tokens)(Mlp())
    assert asked["input_ids"].shape == asked["attention_mask"].shape == (3, tokens)
    assert asked["attention_mask"].sum() == 3 * tokens
    wanted = np.resize([2, 7, 9, 3], tokens)
    assert (asked["input_ids"].numpy() == wanted).all()
    assert length(asked) == tokens


def test_without_a_length_the_example_is_as_long_as_it_is() -> None:
    known = {"input_ids": IDS}
    assert torch.equal(question(lambda _: known)(Mlp())["input_ids"], IDS)
    pictures = {"pixel_values": torch.randn(1, 3, 4, 4)}
    asked = question(lambda _: pictures, rows=5)(Mlp())
    assert asked["pixel_values"].shape == (5, 3, 4, 4)
    assert length(pictures) is None


def test_a_picture_has_no_length_and_the_sentence_says_so() -> None:
    pictures = {"pixel_values": torch.randn(1, 3, 4, 4)}
    with pytest.raises(AttarError, match="the model reads pixel_values; leave its option tokens"):
        question(lambda _: pictures, tokens=16)(Mlp())


def test_every_model_takes_its_turn_at_every_length(monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked = [0.0], []

    class Slow(nn.Module):
        def forward(self, input_ids: Tensor) -> None:
            asked.append(input_ids.shape[1])
            now[0] += input_ids.shape[1] / 1000

    def example(_: nn.Module) -> Mapping[str, Tensor]:
        return {"input_ids": IDS}

    monkeypatch.setattr(cost.time, "perf_counter", lambda: now[0])
    answers = {
        ("a", n): measure.comparing.answer(Slow(), question(example, tokens=n)) for n in (16, 64)
    }
    found = by_name(measure.latency(answers, tokens=[16, 64], seconds=0.001))
    assert found["a"] == {
        key: pytest.approx(ms)
        for key, ms in {"p50": 16, "p95": 16, "p50@16": 16, "p95@16": 16, "p50@64": 64}.items()
    } | {"p95@64": pytest.approx(64)}
    turns = asked[2 * cost.WARM_UP :: cost.ROUND]
    assert turns == [16, 64] * 3
    row = measure.row("a", Mlp(), {}, example, (), latency_ms=found["a"])
    assert row.lengths == [16, 64]
    assert {c.title: c.text(row) for c in columns([row])} == {
        "p50 ms @16": "16.0",
        "p95 ms @16": "16.0",
        "p50 ms @64": "64.0",
        "p95 ms @64": "64.0",
    }


def test_without_lengths_a_time_stands_under_its_plain_name() -> None:
    assert by_name({("a", None): {"p50": 1.0}}) == {"a": {"p50": 1.0}}


@pytest.mark.parametrize("wrong", [[], [0], [16, -1], [8, 8]])
def test_lengths_that_make_no_sense_are_refused(wrong: list[int]) -> None:
    with pytest.raises(AttarError, match="lengths of at least 1, each once"):
        measure.latency({}, tokens=wrong)


def test_a_recipe_can_set_lengths_and_too_long_ones_are_refused_before_anything_else(
    bank: Path, base: Path, tmp_path: Path
) -> None:
    assert options(measure.latency)["tokens"].type == "list[int] or None"
    said: dict[str, Any] = {
        "task": {"text.classification": {"dataset": str(bank), "max_length": 32}},
        "teacher": {"finetune": {"model": str(base)}},
        "steps": ["quantize.int8_dynamic"],
        "measure": [{"latency": {"tokens": [16, 32]}}],
    }
    assert begin(read(said), tmp_path).plan.measure[0].function.keywords == {"tokens": [16, 32]}
    said["measure"] = [{"latency": {"tokens": [16, 64]}}]
    with pytest.raises(RecipeError, match="at 64 tokens, but max_length is 32"):
        begin(read(said), tmp_path)


# ---- the machine, and memory


@pytest.mark.parametrize(
    ("told", "name", "flags"),
    [
        (
            "processor\t: 0\nmodel name\t: A CPU\nflags\t: fpu avx2 avx512f avx512_vnni amx_int8\n",
            "A CPU",
            ["avx2", "avx512f", "avx512_vnni", "amx_int8"],
        ),
        ("processor : 0\nFeatures : fp asimd asimddp i8mm bf16\n", "", None),
        ("nothing that is known\n", "", []),
    ],
)
def test_the_processor_is_told_as_far_as_the_system_tells_it(
    told: str, name: str, flags: list[str] | None, tmp_path: Path
) -> None:
    (tmp_path / "cpuinfo").write_text(told)
    arm = ["asimd", "asimddp", "i8mm", "bf16"]
    assert machine.flags(tmp_path / "cpuinfo") == (arm if flags is None else flags)
    assert machine.processor(tmp_path / "cpuinfo") == name or not name
    assert machine.flags(tmp_path / "missing") == []


def test_the_memory_of_a_file_that_reads_pictures_can_be_measured(tmp_path: Path) -> None:
    shape = ["rows", 3, 4, 4]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["pixel_values"], ["logits"])],
        "identity",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
    )
    opset = helper.make_opsetid("", 20)
    file = tmp_path / "a.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=9), file)
    pictures = {"pixel_values": torch.randn(1, 3, 4, 4)}
    found = finished(measure.memory(nn.Identity(), lambda _: pictures, file))
    assert found is not None
    assert 20e6 < found < 200e6


def test_a_comparison_still_has_what_it_had() -> None:
    report = measure.compare(Judge(), student=Words())
    assert report.rows[0].latency_ms is not None
    assert set(report.rows[0].latency_ms) == {"p50", "p95"}
