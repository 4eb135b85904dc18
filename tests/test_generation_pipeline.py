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
import yaml
from safetensors.numpy import load_file
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, AutoTokenizer

from attar import export
from attar.compress import prune
from attar.doctor import examine
from attar.errors import ExportError
from attar.forecast import forecast
from attar.heads import dense
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
        mine = dense(here.task.forward(model, batch).logits)
        its = loaded(**here.task.encode(loaded, batch.inputs)).logits
    assert torch.equal(mine, its)
    card = (folder / "README.md").read_text("utf-8")
    assert 'pipeline_tag: "text-generation"' in card
    assert "text generation, 400 tokens" in card
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


def test_the_doctor_finds_nothing_wrong_with_a_healthy_model(
    said: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(said | {"student": "llama"}))
    found = {each.name: each for each in examine(str(tmp_path / "recipe.yaml"))}
    looked = ("data", "eval mode", "padding, teacher", "padding, student", "logit scale", "overfit")
    assert [found[name].says for name in looked if found[name].ok is not True] == []
    assert "400 tokens" in found["data"].says
    assert found["label order"].ok is None


def test_a_fresh_llama_learns_from_what_its_teacher_writes(
    said: dict[str, Any], tmp_path: Path
) -> None:
    said["task"]["text.generation"]["prompts"] = 2
    said["student"] = {"llama": {"layers": 1, "width": 16, "heads": 2, "groups": 1}}
    said["teach"] = {"teacher_text": {"prompt": 0.3}}
    said["losses"] = ["task"]
    said["steps"] = [{"distill": {"steps": 3, "batch_size": 4}}]
    said["baselines"] = []
    report = run(read(said), tmp_path / "out")
    means, lines = report.tables.values()
    assert [line["model"] for line in means] == ["teacher", "student"]
    assert [line["model"] for line in lines] == ["the text itself", "teacher", "student"] * 2
    assert all(0 <= line["ROUGE-L"] <= 1 for line in means)


@pytest.mark.parametrize("ratio", [{"ffn": 0.5}, {"heads": 0.5}, {"hidden": 0.25}])
def test_a_model_is_cut_in_width_groups_of_heads_whole_and_embeddings_tied(
    said: dict[str, Any], tmp_path: Path, ratio: dict[str, float]
) -> None:
    here = begin(read(said), tmp_path / "out")
    model = here.task.load(storybook.llama(hidden_size=64, intermediate_size=96))
    small: Any = prune.structured(
        model, here.task.example, here.task.calibration, here.task.losses, ratio=ratio, batches=2
    )
    config = small.config
    assert small.lm_head.weight is small.model.embed_tokens.weight
    assert config.num_attention_heads == 2 * config.num_key_value_heads
    path = export.transformers(small, tmp_path / "small", here.task.save)
    batch = next(here.task.sweep("test", batch_size=2))
    again = here.task.load(str(path))
    with torch.no_grad():
        one, other = (dense(here.task.forward(each, batch).logits) for each in (small, again))
    assert torch.equal(one, other)


def test_an_onnx_file_scores_as_the_model_that_it_was_written_from(
    said: dict[str, Any], tmp_path: Path
) -> None:
    here = begin(read(said), tmp_path / "out")
    model = here.task.load(storybook.llama(2))
    here.task.save(model, tmp_path / "tokenizer")
    file = here.task.load(str(export.onnx(model, here.task.example, tmp_path / "small")))
    scored = here.task.score(model, "test")["score"]
    assert here.task.score(file, "test")["score"] == pytest.approx(scored, abs=1e-4)


def rounded(weight: np.ndarray[Any, Any], form: str) -> np.ndarray[Any, Any]:
    """A matrix as a form of GGUF keeps it, worked out apart from the library."""
    if form == "f32" or weight.ndim < 2:
        return weight
    if form == "f16" or weight.shape[1] % 32:
        return weight.astype(np.float16).astype(np.float32)
    blocks = weight.reshape(-1, 32)
    scale = np.maximum(np.abs(blocks).max(1, keepdims=True), 1e-30) / 127
    codes = np.round(blocks / scale)
    return (codes * scale.astype(np.float16).astype(np.float32)).reshape(weight.shape)


@pytest.mark.parametrize("form", ["f32", "f16", "q8_0"])
def test_a_gguf_file_is_read_by_transformers_as_the_model_it_was(
    said: dict[str, Any], tmp_path: Path, form: str
) -> None:
    here = begin(read(said), tmp_path / "out")
    model = here.task.load(storybook.llama(2, padded=8))
    path = export.gguf(model, tmp_path / "small", form=form)  # type: ignore[arg-type]
    again: Any = here.task.load(str(path))
    for weight in model.parameters():
        weight.data = torch.from_numpy(rounded(weight.detach().numpy(), form))
    assert "quantization_config" not in again.config.to_dict()
    batch = next(here.task.sweep("test", batch_size=2))
    with torch.no_grad():
        one, other = (dense(here.task.forward(each, batch).logits) for each in (model, again))
    torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
    talk = [{"role": "user", "content": "Who sang?"}]
    texts = [each.tokenizer.apply_chat_template(talk, tokenize=False) for each in (model, again)]
    assert texts[0] == texts[1]


def test_what_gguf_has_no_form_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="is no Llama"):
        export.gguf(torch.nn.Linear(2, 2), tmp_path / "x")
    model: Any = storybook.llama(1)
    model.tokenizer.backend_tokenizer.pre_tokenizer = Whitespace()
    with pytest.raises(ExportError, match="cuts texts by Whitespace"):
        export.gguf(model, tmp_path / "x")
