"""Measuring: what is counted is worked out by hand here, and what is timed is timed fairly."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from attar import measure
from attar.compress import quantize
from attar.errors import AttarError, ModelError
from attar.measure import cost
from attar.measure.comparing import Foreign, answer, emulated
from attar.measure.memory import finished
from attar.report import Row
from attar.resolve import names
from attar.students.recurrent import Lstm

IDS = torch.tensor([[1, 2, 3, 4, 5]])


class Takes(nn.Module):
    """A layer as a network that is called by name."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, inputs: Tensor) -> Tensor:
        output = self.layer(inputs)
        seen: Tensor = output[0] if isinstance(output, tuple) else output
        return seen


class Mlp(nn.Module):
    """The mean of the embeddings, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.hidden = nn.Linear(8, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, input_ids: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.hidden(self.embedding(input_ids).mean(1))))
        return logits


def words(_model: nn.Module) -> dict[str, Tensor]:
    return {"input_ids": IDS}


def macs_of(layer: nn.Module, *shape: int) -> int:
    return measure.macs(Takes(layer), lambda _: {"inputs": torch.randn(shape)})


# parameters and size


def test_the_room_has_the_figures_that_recipes_name() -> None:
    assert set(names("attar.measure")) == {
        "audit",
        "energy",
        "latency",
        "macs",
        "memory",
        "nonzero",
        "parameters",
        "score",
        "size",
        "zipped",
    }


def test_parameters_are_counted_one_by_one() -> None:
    assert measure.parameters(Mlp()) == 50 * 8 + 8 * 16 + 16 + 16 * 3 + 3


def test_a_tied_weight_is_counted_and_stored_once() -> None:
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10, bias=False))
    model[1].weight = model[0].weight
    assert measure.parameters(model) == 40
    assert measure.size(model) == 160


def test_quantized_weights_are_counted_and_their_scales_are_not() -> None:
    small = quantize.int8_dynamic(Mlp())
    assert measure.parameters(small) == measure.parameters(Mlp())
    # A byte a weight; biases and the scales of the linear layers in float; a table's scale, zero.
    assert measure.size(small) == (400 + 128 + 48) + 4 * (16 + 3) + 4 * (16 + 3) + 4 + 1


def test_statistics_kept_beside_the_weights_are_bytes_and_no_parameters() -> None:
    model = nn.BatchNorm1d(6)
    assert measure.parameters(model) == 12
    assert measure.size(model) == 4 * 24 + 8


def test_the_size_of_a_file_is_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"x" * 1234)
    assert measure.size(Mlp(), tmp_path / "a.onnx") == 1234


def test_the_size_of_a_folder_is_that_of_its_weights(tmp_path: Path) -> None:
    (tmp_path / "model-1.safetensors").write_bytes(b"x" * 1000)
    (tmp_path / "model-2.safetensors").write_bytes(b"x" * 10)
    (tmp_path / "tokenizer.json").write_bytes(b"x" * 5000)
    assert measure.size(Mlp(), tmp_path) == 1010


def test_a_place_without_weights_has_no_size(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "missing.onnx"):
        with pytest.raises(ModelError, match="There are no weights at"):
            measure.size(Mlp(), place)


# macs


@pytest.mark.parametrize("rows", [1, 3])
def test_the_macs_of_single_layers_are_those_worked_out_by_hand(rows: int) -> None:
    assert macs_of(nn.Linear(8, 16), rows, 8) == rows * 8 * 16
    assert macs_of(nn.Linear(8, 16), rows, 5, 8) == rows * 5 * 8 * 16
    # 6 channels out of 3, 3 x 3 each, at 7 x 5 places; 2 strides leave 4 x 3 of them.
    assert macs_of(nn.Conv2d(3, 6, 3, padding=1), rows, 3, 7, 5) == rows * 35 * 6 * 3 * 9
    assert macs_of(nn.Conv2d(3, 6, 3, 2, 1), rows, 3, 7, 5) == rows * 12 * 6 * 3 * 9
    assert macs_of(nn.Conv2d(3, 6, 3, padding=1, groups=3), rows, 3, 7, 5) == rows * 35 * 6 * 9
    assert macs_of(nn.Conv1d(3, 6, 3), rows, 3, 7) == rows * 5 * 6 * 3 * 3


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_the_macs_of_recurrent_layers_are_gates_by_hidden_by_what_comes_in(
    kind: Callable[..., nn.Module], gates: int, both: bool, rows: int
) -> None:
    directions = 1 + both
    layer = kind(8, 16, num_layers=2, batch_first=True, bidirectional=both)
    a_step = directions * gates * 16 * ((8 + 16) + (directions * 16 + 16))
    assert macs_of(layer, rows, 5, 8) == rows * 5 * a_step


def test_a_recurrent_layer_in_double_precision_is_not_counted_twice() -> None:
    model = Takes(nn.LSTM(8, 16, batch_first=True).double())
    inputs = torch.randn(2, 5, 8, dtype=torch.float64)
    assert measure.macs(model, lambda _: {"inputs": inputs}) == 2 * 5 * 4 * 16 * (8 + 16)


def test_the_macs_of_attars_lstm_are_those_of_its_two_directions_and_its_head() -> None:
    sizes = {"width": 16, "layers": 1, "embedding": 8, "bidirectional": True, "dropout": 0.1}
    model = Lstm(None, ["a", "b", "c"], 50, **sizes)
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    assert measure.macs(model, lambda _: inputs) == 5 * 2 * 4 * 16 * (8 + 16) + 64 * 3


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("rows", [1, 3])
def test_the_macs_of_a_bert_are_its_formula(rows: int, attention: str) -> None:
    width, inner, length, layers, classes = 16, 64, 5, 2, 3
    config = BertConfig(
        vocab_size=50,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=inner,
        num_labels=classes,
        attn_implementation=attention,
    )
    inputs = {"input_ids": IDS.repeat(rows, 1), "attention_mask": torch.ones(rows, length)}
    # Queries, keys, values, output; scores and their sum; up and down.
    a_layer = length * 4 * width**2 + 2 * length**2 * width + length * 2 * width * inner
    wanted = rows * (layers * a_layer + width**2 + width * classes)
    assert measure.macs(BertForSequenceClassification(config), lambda _: inputs) == wanted


def test_what_torch_fuses_is_counted_too() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert macs_of(layer, 1, 5, 8) == 5 * 4 * 64 + 2 * 25 * 8 + 5 * 2 * 8 * 16


def test_counting_leaves_torch_and_the_model_as_they_were() -> None:
    model = Mlp().train()
    backends: tuple[Any, ...] = (torch.backends.mkldnn, torch.backends.cudnn)

    def state() -> list[bool]:
        return [each.enabled for each in backends] + [torch.backends.mha.get_fastpath_enabled()]

    before = state()
    measure.macs(model, words)
    assert model.training
    with pytest.raises(IndexError):
        measure.macs(model, lambda _: {"input_ids": torch.tensor([[99]])})
    assert model.training
    assert state() == before


def test_a_quantized_model_multiplies_as_often_as_the_float_one() -> None:
    assert measure.macs(quantize.int8_dynamic(Mlp()), words) == 8 * 16 + 16 * 3


# latency


def clockwork(
    monkeypatch: pytest.MonkeyPatch, costs: Mapping[str, float]
) -> tuple[dict[str, Callable[[], None]], list[str]]:
    """Answers that cost so many seconds of a clock that nothing else moves, and who answered."""
    now, log = [0.0], []

    def answering(name: str) -> Callable[[], None]:
        def reply() -> None:
            log.append(name)
            now[0] += costs[name]

        return reply

    monkeypatch.setattr(cost.time, "perf_counter", lambda: now[0])
    return {name: answering(name) for name in costs}, log


def turns(log: list[str]) -> str:
    """Who answered, ten answers a letter, without the warm-up."""
    asked = log[cost.WARM_UP * len(set(log)) :]
    return "".join(asked[:: cost.ROUND])


def test_models_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    answers, log = clockwork(monkeypatch, {"a": 0.01, "b": 0.01, "c": 0.01})
    measure.latency(answers, seconds=0.45)
    assert turns(log) == "abc" * 4


def test_the_few_turns_of_a_slow_model_are_spread_over_those_of_a_fast_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers, log = clockwork(monkeypatch, {"slow": 0.5, "fast": 0.01})
    measure.latency({"s": answers["slow"], "f": answers["fast"]}, seconds=0.95)
    asked = log[2 * cost.WARM_UP :: cost.ROUND]
    assert "".join(name[0] for name in asked) == "ffsfffsfffsf"


def test_every_model_is_warmed_up_and_asked_as_often_as_the_time_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers, log = clockwork(monkeypatch, {"free": 0.0, "slow": 9.0})
    measure.latency(answers, seconds=1.5)
    assert log.count("free") == cost.WARM_UP + 50 * cost.ROUND
    assert log.count("slow") == cost.WARM_UP + 3 * cost.ROUND
    assert log[: 2 * cost.WARM_UP] == ["free"] * cost.WARM_UP + ["slow"] * cost.WARM_UP


def test_times_are_milliseconds_and_the_tail_is_not_below_the_middle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers, _ = clockwork(monkeypatch, {"steady": 0.002})
    found = measure.latency(answers)["steady"]
    assert found == {"p50": pytest.approx(2.0), "p95": pytest.approx(2.0)}
    model = answer(Mlp(), words)
    monkeypatch.undo()
    real = measure.latency({"mlp": model}, seconds=0.01)["mlp"]
    assert 0 < real["p50"] <= real["p95"]


def test_the_percentiles_are_those_of_all_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = iter([0.001] * cost.WARM_UP + [n / 1000 for n in range(1, 31)])
    now = [0.0]

    def reply() -> None:
        now[0] += next(costs)

    monkeypatch.setattr(cost.time, "perf_counter", lambda: now[0])
    found = measure.latency({"a": reply}, seconds=0.001)["a"]
    assert found["p50"] == pytest.approx(15.5)
    assert found["p95"] == pytest.approx(np.percentile(range(1, 31), 95))


def test_answers_are_made_with_the_threads_asked_for_and_without_gradients() -> None:
    before = torch.get_num_threads()
    seen = set()

    def reply() -> None:
        seen.add((torch.get_num_threads(), torch.is_inference_mode_enabled()))

    measure.latency({"a": reply}, threads=2, seconds=0.001)
    assert seen == {(2, True)}
    assert torch.get_num_threads() == before


def test_the_threads_are_put_back_when_an_answer_fails() -> None:
    before = torch.get_num_threads()

    def fail() -> None:
        raise RuntimeError("no answer")

    with pytest.raises(RuntimeError, match="no answer"):
        measure.latency({"a": fail}, threads=before + 1)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("wrong", [{"threads": 0}, {"batch": 0}, {"seconds": 0.0}])
def test_threads_batch_and_seconds_must_be_positive(wrong: dict[str, Any]) -> None:
    with pytest.raises(AttarError, match="latency needs threads and batch of at least 1"):
        measure.latency({}, **wrong)


def test_nothing_to_time_is_no_error() -> None:
    assert measure.latency({}) == {}


# memory


@pytest.fixture
def identity(tmp_path: Path) -> Path:
    """An ONNX file that gives back what it gets; its name holds all that a path may hold."""
    shape = ["rows", "length"]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["input_ids"], ["logits"])],
        "identity",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.INT64, shape)],
    )
    path = tmp_path / "it's {a} file.onnx"
    opset = helper.make_opsetid("", 20)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=9), path)
    return path


def test_the_memory_of_a_file_is_that_of_a_process_that_only_answers(identity: Path) -> None:
    found = finished(measure.memory(Mlp(), words, identity))
    assert found is not None
    # torch is not in it.
    assert 20e6 < found < 200e6


def test_memory_that_could_not_be_measured_is_none(tmp_path: Path) -> None:
    assert finished(measure.memory(Mlp(), words, tmp_path / "missing.onnx")) is None


def test_another_way_to_answer_can_be_told_and_is_in_the_figure(tmp_path: Path) -> None:
    shown = tmp_path / "shown.json"
    program = "import json; json.dump([{path!r}, {shapes!r}], open({path!r}, 'w')); x = b'1' * {n}"
    small, large = (
        finished(measure.memory(Mlp(), words, shown, program.replace("{n}", str(n))))
        for n in (1, 50_000_000)
    )
    assert json.loads(shown.read_text()) == [str(shown), {"input_ids": [1, 5]}]
    assert small is not None
    assert large is not None
    assert large - small == pytest.approx(50e6, rel=0.1)


# rows and tables


class Judge:
    """As much of a task as measuring asks for."""

    example = staticmethod(words)

    def score(self, model: nn.Module, part: str = "validation") -> dict[str, float]:
        assert (part, model.training) == ("test", False)
        return {"score": 0.75, "accuracy": 0.75, "examples": 4}


class File(nn.Module):
    """A network that another runtime runs."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.runtime = "ONNX Runtime 1.31"

    def forward(self, input_ids: Tensor) -> Tensor:
        return F.one_hot(input_ids[:, 0], 3).float()


def test_score_is_what_the_judge_says() -> None:
    assert measure.score(Mlp(), lambda _: {"score": 0.5, "loss": 1.0}) == {
        "score": 0.5,
        "loss": 1.0,
    }


def test_a_row_has_everything_that_was_wanted() -> None:
    metrics = {"score": 0.5, "macro_f1": 0.25}
    row = measure.row("student", Mlp(), metrics, words, latency_ms={"p50": 1.0, "p95": 2.0})
    assert row == Row(
        name="student",
        runtime=f"PyTorch {torch.__version__.partition('+')[0]} fp32",
        score=0.5,
        metrics={"macro_f1": 0.25},
        parameters=595,
        macs=176,
        size_bytes=4 * 595,
        latency_ms={"p50": 1.0, "p95": 2.0},
    )


def test_a_row_has_nothing_that_was_not_wanted() -> None:
    row = measure.row("student", Mlp(), {}, words, wanted=("macs",))
    assert (row.score, row.parameters, row.size_bytes, row.macs) == (None, None, None, 176)


def test_what_is_given_to_a_row_takes_the_place_of_what_is_counted() -> None:
    row = measure.row("student.onnx", Mlp(), {}, words, runtime="ONNX Runtime 1.31")
    assert row.runtime == "ONNX Runtime 1.31"


def test_the_runtime_is_named_and_emulated_int8_is_called_so(tmp_path: Path) -> None:
    small = quantize.int8_dynamic(Mlp())
    assert measure.runtime(Mlp()).endswith(" fp32")
    assert measure.runtime(small).endswith(", int8 emulated")
    assert measure.runtime(File(tmp_path)) == "ONNX Runtime 1.31"
    assert [emulated(each) for each in (Mlp(), small, File(tmp_path))] == [False, True, False]


def test_a_network_that_is_a_file_has_the_files_bytes_and_nothing_that_torch_would_count(
    tmp_path: Path,
) -> None:
    file = tmp_path / "a.onnx"
    file.write_bytes(b"x" * 99)
    assert isinstance(File(file), Foreign)
    row = measure.row("teacher", File(file), {"score": 1.0}, words)
    assert (row.size_bytes, row.parameters, row.macs) == (99, None, None)


def test_a_comparison_prints_a_table_whose_rows_have_everything(tmp_path: Path) -> None:
    file = tmp_path / "a.onnx"
    file.write_bytes(b"x" * 99)
    small = quantize.int8_dynamic(Mlp())
    report = measure.compare(Judge(), teacher=Mlp(), small=small, shipped=File(file))
    rows = {row.name: row for row in report.rows}
    assert list(rows) == ["teacher", "small", "shipped"]
    assert all(row.score == 0.75 and row.metrics["examples"] == 4 for row in rows.values())
    assert all(row.size_bytes for row in rows.values())
    assert rows["teacher"].latency_ms is not None
    assert rows["small"].latency_ms is None
    assert rows["shipped"].latency_ms is not None
    assert (rows["small"].parameters, rows["small"].macs) == (595, 176)
    table = str(report)
    assert all(word in table for word in (*rows, "ONNX Runtime 1.31", "int8 emulated", "75"))
