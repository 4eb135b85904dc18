"""The planner of precisions: harm measured layer by layer, the cheapest mixture in a bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from zoo import MODELS, Mlp, answer, bert, calibration, example, score

from attar import measure
from attar.compress import quantize
from attar.compress.quantize.dynamic import Int8Linear
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
