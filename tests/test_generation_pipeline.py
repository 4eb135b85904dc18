"""A language model through the whole house: cut, taught, written, loaded without attar."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import storybook
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from attar.forecast import forecast
from attar.pipeline import run
from attar.recipe import read
from attar.report import Report
from attar.setting import begin


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))
    model = str(storybook.saved(tmp_path / "model"))
    data = str(storybook.book(tmp_path / "book"))
    return {
        "task": {"text.generation": {"dataset": data, "tokenizer": model, "length": 48}},
        "teacher": {"load": {"model": model}},
        "student": "teacher",
        "teach": "online",
        "losses": [{"response.kl": {"temperature": 1}}, {"task": {"weight": 0.5}}],
        "steps": [
            {"prune.layers": {"drop": 2, "batches": 2}},
            {"distill": {"steps": 6, "batch_size": 6, "lr": 1e-3}},
            "export.transformers",
        ],
        "measure": ["score", "parameters", "macs", "size"],
        "baselines": ["untrained", "labels_only"],
    }


def rows(report: Report) -> dict[str, Any]:
    return {row.name: row for row in report.rows}


def test_a_model_is_cut_taught_and_written_so_that_transformers_loads_it(
    said: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    report = run(read(said), out)
    found = rows(report)
    assert list(found) == [
        "teacher",
        "student-layers-distill",
        "student-layers-distill-folder",
        "untrained",
        "labels_only",
    ]
    taught, file = found["student-layers-distill"], found["student-layers-distill-folder"]
    assert file.score == pytest.approx(taught.score, abs=1e-6)
    assert taught.parameters < found["teacher"].parameters
    assert found["untrained"].parameters == taught.parameters
    assert found["untrained"].score < taught.score  # higher is better
    assert taught.metrics["perplexity"] == pytest.approx(math.exp(-taught.score))
    assert found["teacher"].metrics["agreement"] == pytest.approx(1, abs=0.02)
    assert 0 < taught.metrics["agreement"] < 1
    low, high = taught.interval
    assert low < taught.score < high
    folder = out / "student-layers-distill"
    assert not json.loads((folder / "config.json").read_text()).get("quantization_config")
    assert AutoTokenizer.from_pretrained(folder)("the fox")["input_ids"]
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder)
    here = begin(read(said), out)
    model: Any = here.task.load(str(folder))
    batch = next(here.task.sweep("test", batch_size=2))
    with torch.no_grad():
        mine = here.task.forward(model, batch).logits
        its = loaded(**here.task.encode(loaded, batch.inputs)).logits
    assert torch.equal(mine, its)
    card = (folder / "README.md").read_text("utf-8")
    assert 'pipeline_tag: "text-generation"' in card
    assert "0 classes" not in card
    kept = load_file(out / "predictions.safetensors")
    assert np.mean(kept["teacher"]) == pytest.approx(found["teacher"].score)


def test_a_store_of_the_likeliest_tokens_teaches_too(said: dict[str, Any], tmp_path: Path) -> None:
    said["teach"] = {"offline": {"top": 8}}
    said["losses"] = ["response.kl"]
    said["baselines"] = ["untrained"]
    found = rows(run(read(said), tmp_path / "out"))
    assert found["student-layers-distill"].score > found["untrained"].score


def test_a_student_may_be_some_of_the_teachers_layers(said: dict[str, Any], tmp_path: Path) -> None:
    said["student"] = {"layers": {"keep": 2}}
    said["steps"] = [{"distill": {"steps": 2, "batch_size": 4}}]
    said["losses"] = [{"feature.mse": {"weight": 0.1, "layers": "auto"}}, "response.reverse_kl"]
    report = run(read(said), tmp_path / "out")
    assert math.isfinite(rows(report)["student"].score)
    assert len(report.plan["layers"]["feature.mse"]) > 0


def test_what_a_run_will_take_is_told_beforehand(said: dict[str, Any], tmp_path: Path) -> None:
    told = forecast(begin(read(said), tmp_path / "out"))
    assert told.tokens > 10
    assert {stage.name for stage in told.stages} >= {"student-layers-distill", "labels_only"}
