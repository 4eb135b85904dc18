"""The planner of precisions: harm measured layer by layer, the cheapest mixture in a bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from zoo import MODELS, Convolved, Mlp, answer, bert, calibration, example, score

from attar import export, measure
from attar.compress import quantize
from attar.compress.quantize.dynamic import Int8Embedding, Int8Linear
from attar.compress.quantize.integer import Int8Layer
from attar.compress.quantize.mixtures import Mixtures
from attar.compress.quantize.weight import PackedLinear
from attar.errors import ModelError
from attar.types import Quantized

Tables = dict[str, list[dict[str, Any]]]


def told(tables: Tables) -> Any:
    def tell(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        tables[title] = [dict(row) for row in rows]

    return tell


def always(_: nn.Module) -> dict[str, float]:
    return {"score": 0.5}


def log_probabilities(model: nn.Module, batch: Mapping[str, Tensor]) -> Any:
    with torch.no_grad():
        logits = answer(model, batch).double().numpy()
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def test_harm_is_how_far_the_answers_move_when_one_layer_alone_is_lowered() -> None:
    model, tables = Mlp(width=64).eval(), Tables()
    quantize.mixed(model, example, calibration, always, told(tables), batches=2)
    rows = {row["layer"]: row for row in tables["Harm by layer"]}
    assert list(rows) == ["embedding", "hidden", "head"]
    lowered = {
        "int8_dynamic": quantize.int8_dynamic(model),
        "int4_weight": quantize.int4_weight(model, calibration),
    }
    for name, whole in lowered.items():
        small = deepcopy(model)
        small.head = whole.head
        moved = []
        for _, batch in zip(range(2), calibration(model), strict=False):
            before, after = log_probabilities(model, batch), log_probabilities(small, batch)
            moved.append((np.exp(before) * (before - after)).sum(1))
        assert rows["head"][name] == pytest.approx(np.concatenate(moved).mean(), rel=1e-6)
    assert rows["head"]["weights"] == 65 * 3


class Fragile(nn.Module):
    """Of two equal layers the answers go through one, and the other hardly counts."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.loud = nn.Linear(32, 64)
        self.quiet = nn.Linear(32, 64)
        self.head = nn.Linear(64, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        seen = (self.embedding(input_ids) * attention_mask.unsqueeze(-1)).mean(1)
        return self.head(torch.tanh(self.loud(seen) + 0.01 * self.quiet(seen)))


def bytes_of(module: nn.Module) -> int:
    return measure.size(module)


@pytest.mark.parametrize("share", [0.25, 0.35, 0.5, 0.8, 0.95])
def test_no_other_mixture_is_as_small_and_harms_less(share: float) -> None:
    model, tables = Fragile().eval(), Tables()
    size = int(share * bytes_of(model))
    small = quantize.mixed(model, example, calibration, always, told(tables), size=size)
    assert bytes_of(small) <= size
    eight, four = quantize.int8_dynamic(model), quantize.int4_weight(model, calibration)
    sizes, harms = {}, {}
    for row in tables["Harm by layer"]:
        path = row["layer"]
        kinds = {"as it was": model, "int8_dynamic": eight, "int4_weight": four}
        sizes[path] = {kind: bytes_of(it.get_submodule(path)) for kind, it in kinds.items()}
        harms[path] = {"as it was": 0.0, **{k: row[k] for k in ("int8_dynamic", "int4_weight")}}
    chosen = {row["layer"]: row["chosen"] for row in tables["Harm by layer"]}
    spent = sum(sizes[path][kind] for path, kind in chosen.items())
    harmed = sum(harms[path][kind] for path, kind in chosen.items())
    assert spent == bytes_of(small)
    for kinds in product(("as it was", "int8_dynamic", "int4_weight"), repeat=4):
        other = dict(zip(chosen, kinds, strict=True))
        if sum(sizes[path][kind] for path, kind in other.items()) <= spent:
            assert sum(harms[path][kind] for path, kind in other.items()) >= harmed - 1e-15


def test_bits_go_where_they_are_needed() -> None:
    model = Fragile().eval()
    # More than the quiet layer can give in 8 bits; in 4 it can.
    size = bytes_of(model) - int(0.78 * bytes_of(model.quiet))
    small = quantize.mixed(
        model, example, calibration, always, told({}), size=size, exclude=["embedding", "head"]
    )
    assert isinstance(small.quiet, PackedLinear)
    assert type(small.loud) is nn.Linear
    assert type(small.head) is nn.Linear


def agreement(truth: nn.Module) -> Any:
    """The share of answers that are the same as another model's, over many rows."""
    rows = example(truth, rows=256, seed=77)
    wanted = answer(truth, rows).argmax(1)

    def judge(model: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            return {"score": float((answer(model, rows).argmax(1) == wanted).float().mean())}

    return judge


@pytest.mark.parametrize("drop", [0.0, 0.02, 0.2, 1.0])
def test_the_score_of_the_mixture_falls_by_no_more_than_the_drop(drop: float) -> None:
    model, tables = Fragile().eval(), Tables()
    judge = agreement(model)
    small = quantize.mixed(model, example, calibration, judge, told(tables), drop=drop)
    assert judge(small)["score"] >= 1 - drop
    tried = tables["Mixtures tried"]
    assert tried[0] == {"lowered": 0, "bytes": bytes_of(model), "score": 1.0}
    found = [row for row in tried if row["bytes"] == bytes_of(small)]
    assert found[-1]["score"] == judge(small)["score"]
    if drop == 1.0:
        assert len(tried) == 2
        assert isinstance(small.loud, PackedLinear)


def test_layers_are_put_back_until_the_bound_holds() -> None:
    model, tables = bert().eval(), Tables()

    def fragile(asked: nn.Module) -> dict[str, float]:
        lowered = sum(isinstance(m, Int8Linear | PackedLinear) for m in asked.modules())
        return {"score": 0.9 if lowered <= 5 else 0.5}

    small = quantize.mixed(
        model, example, calibration, fragile, told(tables), exclude=["bert.embeddings"], batches=1
    )
    lowered = [m for m in small.modules() if isinstance(m, Quantized)]
    assert len(lowered) == 5
    assert len(tables["Mixtures tried"]) < 9
    chosen = [row["chosen"] for row in tables["Harm by layer"]]
    assert len(chosen) - chosen.count("as it was") == 5


def test_bounds_that_can_not_be_met_are_refused_in_a_sentence() -> None:
    model = Mlp(width=64).eval()
    with pytest.raises(ModelError, match=r"^Mlp has \d+ bytes with all layers .* allows 100;"):
        quantize.mixed(model, example, calibration, always, told({}), size=100)
    least = bytes_of(quantize.int4_weight(model, calibration)) + 100

    def strict(asked: nn.Module) -> dict[str, float]:
        return {"score": float(not any(isinstance(m, Quantized) for m in asked.modules()))}

    with pytest.raises(ModelError, match=r"scores 0\.0000, and drop asks for 0\.9000; allow more"):
        quantize.mixed(model, example, calibration, strict, told({}), size=least, drop=0.1)
    with pytest.raises(ModelError, match="no batch to measure harm on: set batches to 1 or more"):
        quantize.mixed(model, example, calibration, always, told({}), batches=0)
    wrong: Any = ("int4",)
    with pytest.raises(ModelError, match="'int4' is no candidate; choose from"):
        quantize.mixed(model, example, calibration, always, told({}), candidates=wrong)


def test_one_candidate_alone_and_a_shared_layer_once() -> None:
    model, tables = bert().eval(), Tables()
    layers = model.bert.encoder.layer
    layers[1].output.dense = layers[0].output.dense
    small = quantize.mixed(
        model, example, calibration, always, told(tables), candidates=("int4_weight",), batches=1
    )
    twins = small.bert.encoder.layer
    assert isinstance(twins[0].output.dense, PackedLinear)
    assert twins[0].output.dense is twins[1].output.dense
    paths = [row["layer"] for row in tables["Harm by layer"]]
    assert "bert.encoder.layer.0.output.dense" in paths
    assert "bert.encoder.layer.1.output.dense" not in paths
    assert set(tables["Harm by layer"][0]) == {"layer", "weights", "int4_weight", "chosen"}


@pytest.mark.parametrize("make", ["cnn", "llama"])
def test_the_same_table_comes_out_twice(make: str) -> None:
    first, second = Tables(), Tables()
    for tables in (first, second):
        torch.manual_seed(0)
        model = MODELS[make]().eval()
        quantize.mixed(model, example, calibration, score, told(tables), batches=1)
    assert first == second


def test_layers_that_one_candidate_alone_can_lower_have_that_one() -> None:
    model, tables = MODELS["lstm"]().eval(), Tables()
    small = quantize.mixed(
        model,
        example,
        calibration,
        always,
        told(tables),
        candidates=("fp16", "int4_weight"),
        exclude=["embedding"],
    )
    chosen = {row["layer"]: row["chosen"] for row in tables["Harm by layer"]}
    assert chosen == {"rightward.0": "fp16", "leftward.0": "fp16", "head": "int4_weight"}
    assert isinstance(small.head, PackedLinear)
    assert answer(small).isfinite().all()


# layers with fixed ranges between them

STATIC: Any = ("int8_static", "int4_static")


def alike(name: str, model: nn.Module, exclude: list[str] | None = None) -> nn.Module:
    """All layers at one static candidate, as the compressors have it that know no mixtures."""
    if name == "int8_static":
        return quantize.int8_static(model, example, calibration, exclude=exclude)
    rounded = quantize.qat(model, example, calibration, bits=4, ranges="moving", exclude=exclude)
    return quantize.int8_static(rounded, example, calibration)


def mixtures(model: nn.Module, *candidates: str) -> Mixtures:
    return Mixtures(model, example, calibration, candidates, 8, None)


def normed() -> Convolved:
    """A network whose norms are not as they begin, and whose answers are far from one another."""
    model = Convolved().eval()
    for norm in (model.norm, model.block.norm):
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
        norm.weight.data.uniform_(0.5, 2)
    model.head.weight.data *= 20
    return model


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("name", STATIC)
def test_a_mixture_of_one_static_candidate_is_that_compressor(name: str, make: str) -> None:
    model = MODELS[make]().eval()
    ways = mixtures(model, name)
    small = ways.of(dict.fromkeys(ways.choices(), name))
    inputs = example(model, rows=8, seed=9)
    assert torch.equal(answer(small, inputs), answer(alike(name, model), inputs))


@pytest.mark.parametrize("kept", [["block"], ["stem"], ["head", "block.second"], ["block.first"]])
def test_what_stays_in_float_is_rounded_as_if_it_had_been_left_out(kept: list[str]) -> None:
    model = normed()
    ways = mixtures(model, "int8_static", "int4_static")
    lowered = [path for path in ways.choices() if not path.startswith(tuple(kept))]
    inputs = example(model, rows=8, seed=9)
    for name in STATIC:
        small, wanted = ways.of(dict.fromkeys(lowered, name)), alike(name, model, exclude=kept)
        assert torch.allclose(answer(small, inputs), answer(wanted, inputs), rtol=1e-6, atol=1e-6)


def test_the_harm_of_a_convolution_is_how_far_the_answers_move() -> None:
    model, tables = normed(), Tables()
    quantize.mixed(model, example, calibration, always, told(tables), candidates=STATIC, batches=3)
    rows = {row["layer"]: row for row in tables["Harm by layer"]}
    assert list(rows) == ["stem", "block.first", "block.second", "head"]
    for path, name in product(rows, STATIC):
        small = alike(name, model, exclude=[each for each in rows if each != path])
        moved = []
        for batch in calibration(model):
            before, after = log_probabilities(model, batch), log_probabilities(small, batch)
            moved.append((np.exp(before) * (before - after)).sum(1))
        assert rows[path][name] == pytest.approx(np.concatenate(moved).mean(), rel=1e-2, abs=1e-7)
    assert all(row["int4_static"] > row["int8_static"] > 0 for row in rows.values())


def test_norms_are_folded_once_and_that_is_no_layers_harm() -> None:
    model = normed()

    def untouched(asked: nn.Module) -> dict[str, float]:
        return {"score": float(not any(isinstance(m, Quantized) for m in asked.modules()))}

    small = quantize.mixed(
        model, example, calibration, untouched, told({}), candidates=STATIC, drop=0.0
    )
    assert not any(isinstance(each, nn.BatchNorm2d) for each in small.modules())
    assert type(small.stem) is nn.Conv2d
    inputs = example(model, rows=8, seed=9)
    assert torch.allclose(answer(small, inputs), answer(model, inputs), rtol=1e-4, atol=1e-4)


class Doubled(nn.Module):
    """Of two equal convolutions the answers go through one, and the other hardly counts."""

    def __init__(self) -> None:
        super().__init__()
        self.loud = nn.Conv2d(3, 32, 3)
        self.quiet = nn.Conv2d(3, 32, 3)
        self.head = nn.Linear(32, 3)

    def forward(self, pixel_values: Tensor) -> Tensor:
        seen = self.loud(pixel_values) + 0.01 * self.quiet(pixel_values)
        return self.head(torch.relu(seen).mean((2, 3)))


def pictures(_model: nn.Module, rows: int = 2, seed: int = 0) -> dict[str, Tensor]:
    return example(Convolved(), rows, seed)


def albums(model: nn.Module) -> Any:
    return (pictures(model, rows=8, seed=seed) for seed in range(1, 4))


def test_convolutions_have_four_bits_where_eight_are_not_needed() -> None:
    model, tables = Doubled().eval(), Tables()
    eight = quantize.int8_static(model, pictures, albums)
    # Half of one convolution less than with 8 bits throughout: it can only be one of the two.
    size = bytes_of(eight) - 3 * 9 * 32 // 2
    small = quantize.mixed(
        model, pictures, albums, always, told(tables), candidates=STATIC, size=size
    )
    assert bytes_of(small) <= size
    chosen = {row["layer"]: row["chosen"] for row in tables["Harm by layer"]}
    assert chosen["loud"] != "int4_static"
    assert chosen["quiet"] == "int4_static"
    assert [small.get_submodule(path).bits for path in ("loud", "quiet")] == [8, 4]
    (row,) = [row for row in tables["Mixtures tried"] if row["lowered"]]
    assert row["bytes"] == bytes_of(small)


def test_tables_have_eight_bits_in_either_width() -> None:
    ways = mixtures(Mlp(), *STATIC)
    for name in STATIC:
        table = ways.of({"embedding": name}).get_submodule("embedding")
        assert isinstance(table, Int8Embedding)
        assert table.bits == 8


def test_one_mixture_leaves_the_next_alone() -> None:
    model = normed()
    ways = mixtures(model, *STATIC, "fp16")
    some: dict[str, str] = {"stem": "int8_static", "block.first": "fp16", "head": "int4_static"}
    inputs = example(model)
    first = ways.of(some)
    before = answer(first, inputs)
    truth = answer(ways.model, inputs)
    for name in (*STATIC, "fp16"):
        ways.of(dict.fromkeys(ways.choices(), name))
    assert torch.equal(answer(ways.of(some), inputs), before)
    assert torch.equal(answer(first, inputs), before)
    assert torch.equal(answer(ways.of({}), inputs), truth)
    assert torch.equal(answer(ways.model, inputs), truth)


def test_ranges_are_looked_at_once_for_all_mixtures() -> None:
    passes = []

    def counted(model: nn.Module) -> Any:
        passes.append(1)
        return calibration(model)

    def falling(asked: nn.Module) -> dict[str, float]:
        return {"score": -float(sum(isinstance(m, Int8Layer) for m in asked.modules()))}

    quantize.mixed(
        normed(), example, counted, falling, told({}), candidates=STATIC, drop=2.0, batches=2
    )
    # One to show the batches that harm is measured on, and one for the ranges.
    assert len(passes) == 2


MIXED: list[tuple[str, dict[str, str]]] = [
    ("cnn", {"stem": "int8_static", "block.first": "int4_static", "head": "int8_static"}),
    ("cnn", {"stem": "int4_static", "block.second": "fp16", "head": "int8_dynamic"}),
    ("text_cnn", {"embedding": "int4_static", "convolutions.1": "int4_static"}),
]


@pytest.mark.parametrize(("make", "lowered"), MIXED)
def test_the_file_of_a_mixture_answers_as_it_was_scored(
    make: str, lowered: dict[str, str], tmp_path: Path
) -> None:
    model = normed() if make == "cnn" else MODELS[make]().eval()
    small = mixtures(model, *STATIC, "fp16", "int8_dynamic").of(lowered)
    file = export.onnx(small, example, tmp_path / "mixture")
    inputs = example(model, rows=5, seed=3)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {name: each.numpy() for name, each in inputs.items()})
    truth = answer(small, inputs).detach().numpy()
    assert np.abs(found - truth).max() < np.abs(truth).max() / 255
    whole = answer(model, inputs).detach().numpy()
    assert np.abs(truth - whole).max() > 1e-4 * np.abs(whole).max()
