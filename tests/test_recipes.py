"""Every recipe in the repository resolves, and its tiny twin runs end to end on a tiny teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import storybook
import torch
from safetensors.torch import save_file

from attar import pipeline
from attar.comparing.planning import planned
from attar.pipeline import run
from attar.recipe import Recipe, check, read, read_comparison
from attar.report import SCHEMA, Report
from attar.resolve import chosen
from attar.setting import begin
from attar.students.residual import Residual

ROOT = Path(__file__).parent.parent
EVERY = sorted((ROOT / "recipes").rglob("*.yaml"))
COMPARISONS = [path for path in EVERY if "\narms:" in path.read_text(encoding="utf-8")]
RECIPES = [path for path in EVERY if path not in COMPARISONS]
MORE = {
    "schemes",
    "cartpole.yaml",
    "pendulum.yaml",
    "representation.yaml",
    "minatar.yaml",
    "kickstart.yaml",
}
TWINS = [
    pytest.param(path, marks=[pytest.mark.slow] * (not MORE.isdisjoint(path.parts)))
    for path in RECIPES
]
"""Schemes and further agents have tests of their own: that each of their recipes runs takes
minutes."""
FEW = {"states": 200, "episodes": 4}


def title(path: Path) -> str:
    return path.relative_to(ROOT / "recipes").with_suffix("").as_posix()


def tiny(path: Path, bank: Path, base: Path, folder: Path) -> Recipe:
    """The same recipe on three intents, two-step trainings and the tiny teacher.

    Pictures are those of the recipe, which are small enough; of states and episodes there are few.
    """
    said = read(path).to_dict()
    reads = "text.classification" in said["task"]
    if reads:
        said["task"]["text.classification"] |= {"dataset": str(bank), "validation": 0.2}
    written(said, folder)
    acts = (name for name, about in said["task"].items() if "environment" in about)
    said["task"] |= {name: said["task"][name] | FEW for name in acts}
    for name, teacher in (said["teacher"] or {}).items():
        if name == "reinforce":
            teacher |= {"steps": 200}
        elif name == "load":
            teacher["model"] = str(ROOT / teacher["model"])
        elif name == "distilled":
            assistant = folder / "assistant.yaml"
            assistant.write_text(tiny(ROOT / teacher["recipe"], bank, base, folder).to_yaml())
            teacher["recipe"] = str(assistant)
        else:
            teacher.update({"epochs": 1} | ({"model": str(base)} if reads else {}))
    if isinstance(said["teach"], dict) and "ensemble" in said["teach"]:
        others = [taught(bank, base, folder / n, seed=int(n)) for n in "12"]
        said["teach"]["ensemble"]["others"] = others
    if isinstance(said["teach"], dict) and "data_free" in said["teach"]:
        said["teach"]["data_free"]["iterations"] = 2
    for step in said["steps"]:
        if isinstance(step, dict) and "distill" in step:
            options = step["distill"]
            options.pop("epochs", None)
            step["distill"] = options | {"steps": 2, "batch_size": 8}
            if "evaluate" in options:
                step["distill"]["evaluate"] = 1
        if isinstance(step, dict) and "tree.viper" in step:
            step["tree.viper"] |= {"rounds": 2, "states": 50}
    said["measure"] = ["score", "parameters", "macs", "size"]
    return read(said)


def written(said: dict[str, Any], folder: Path) -> None:
    """A recipe of language models as one of tiny stories, a layer less for its student."""
    if reads := said["task"].get("text.generation"):
        model = str(storybook.saved(folder / "model"))
        reads |= {"dataset": str(storybook.book(folder / "book")), "tokenizer": model}
        said["teacher"] = {"load": {"model": model}}
        for step in said["steps"]:
            if "prune.layers" in step:
                step["prune.layers"]["drop"] = 1


def taught(bank: Path, base: Path, folder: Path, *, seed: int) -> str:
    """The folder of one more teacher."""
    said = tiny(ROOT / "recipes" / "quickstart.yaml", bank, base, folder).to_dict()
    alone = {"seed": seed, "student": None, "losses": [], "baselines": [], "measure": ["score"]}
    run(read(said | alone | {"teach": None, "steps": ["quantize.fp16"]}), folder)
    return str(folder / "teacher")


@pytest.mark.parametrize("path", RECIPES, ids=title)
def test_every_recipe_resolves_and_opens_with_its_command(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith(f"# attar run recipes/{title(path)}.yaml")
    resolved = check(read(path))
    assert resolved.steps


@pytest.mark.parametrize("path", TWINS, ids=title)
def test_the_tiny_twin_of_every_recipe_runs_end_to_end(
    path: Path, bank: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))
    recipe = tiny(path, bank, base, tmp_path)
    report = run(recipe, tmp_path / "out")
    names = [row.name for row in report.rows]
    controls = recipe.to_dict()["baselines"]
    shares = recipe.task.name.endswith(".classification")
    assert controls or not shares
    reads = recipe.task.name == "text.classification"
    floor = {"bag_of_words"} if reads else set()
    assert {*floor, *controls} - {"pseudo_labels"} <= set(names)
    assert any(name.startswith("student") for name in names)
    assert ("teacher" in names) == (recipe.teacher is not None)
    assert len(names) == len(set(names))
    if "labelled_per_class" in recipe.task.options and recipe.teacher is not None:
        assert ("pseudo_labels" in names) == ("pseudo_labels" in controls)
    for row in report.rows:
        assert row.score is not None
        if shares:
            assert 0 <= row.score <= 1
            assert row.metrics["examples"] == (30 if reads else 597)
    files = [name for name in names if name.endswith((".onnx", "-folder"))]
    assert files
    for name in files:
        assert (tmp_path / "out" / name.removesuffix("-folder")).exists()
    written = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert written["schema"] == SCHEMA
    assert Report.read(tmp_path / "out").to_dict() == written
    assert (tmp_path / "out" / "report.html").is_file()
    assert (tmp_path / "out" / "report.md").is_file()


def test_a_second_run_trains_nothing_again_and_scores_the_same(
    bank: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))
    recipe = tiny(ROOT / "recipes" / "quickstart.yaml", bank, base, tmp_path)
    first = run(recipe, tmp_path / "out")
    monkeypatch.setattr("attar.engine.local.at", None)  # whoever trains now fails
    second = run(recipe, tmp_path / "out")
    assert [(row.name, row.score) for row in first.rows] == [
        (row.name, row.score) for row in second.rows
    ]
    assert second.cost["seconds"]["student"] == first.cost["seconds"]["student"]


def test_the_baselines_start_from_the_student_s_own_weights_head_included(
    bank: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a learning rate of (almost) nothing, student and baselines stay where they began."""
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))
    said = tiny(ROOT / "recipes" / "quickstart.yaml", bank, base, tmp_path).to_dict()
    said["steps"][0]["distill"]["lr"] = 1e-12
    run(read(said), tmp_path / "out")
    from safetensors.torch import load_file

    arms = {
        folder.name.rpartition("-")[0]: load_file(folder / "model.safetensors")
        for folder in (tmp_path / "out" / "arms").iterdir()
    }
    assert set(arms) == {"student", "labels_only", "label_smoothing", "pseudo_labels"}
    for name, weights in arms.items():
        for key, weight in weights.items():
            assert torch.allclose(weight, arms["student"][key], atol=1e-7), (name, key)


def test_a_model_without_a_student_is_compressed_as_it_is(
    bank: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))
    said = tiny(ROOT / "recipes" / "quickstart.yaml", bank, base, tmp_path).to_dict()
    for key in ("student", "teach"):
        said[key] = None
    said |= {"losses": [], "baselines": []}
    said["steps"] = [{"prune.magnitude": {"ratio": 0.3}}, "quantize.int8_dynamic", "export.onnx"]
    report = run(read(said), tmp_path / "out")
    names = [row.name for row in report.rows]
    assert names == [
        "teacher",
        "student-magnitude",
        "student-magnitude-int8_dynamic.onnx",
        "bag_of_words",
    ]


def pictures(folder: Path) -> list[str]:
    """Settings that put a few small pictures, and networks for them, in place of a recipe's own."""
    random, classes = np.random.default_rng(0), [str(n) for n in range(3)]
    for split in ("train", "test"):
        shown = random.integers(0, 255, (60, 16, 16, 3), dtype=np.uint8)
        np.savez(folder / f"{split}.npz", image=shown, label=np.arange(60) % 3)
    for depth in (8, 14):
        save_file(Residual(classes, depth=depth).state_dict(), folder / f"{depth}.safetensors")
    models = (f"{key}.model={folder / name}" for key, name in MODELS.items())
    return [f"task.dataset={folder}", "task.validation=0.5", *models]


MODELS = {"teacher": "14.safetensors", "student": "8.safetensors"}


@pytest.mark.parametrize("path", COMPARISONS, ids=title)
def test_every_arm_of_every_comparison_can_be_run(
    path: Path, bank: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On tiny data and networks: all that a run meets before it trains."""
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))
    assert path.read_text(encoding="utf-8").startswith(
        f"# attar compare recipes/{title(path)}.yaml"
    )
    said = str(read_comparison(path).recipe)
    if "text.generation" in said:
        settings = stories(tmp_path)
    elif "text.classification" in said:
        settings = [f"task.dataset={bank}", "task.validation=0.2", f"teacher.model={base}"]
    else:
        settings = pictures(tmp_path)
    paper = read_comparison(path, settings)
    assert len(paper.seeds) >= 3
    assert len(planned(paper).lines) >= 5
    for arm in paper.runs():
        here = begin(paper.recipe_of(arm), tmp_path / "out")
        pipeline._rehearse(here)
        steps = [step.function for step in here.plan.steps if step.name == "distill"]
        assert sum(chosen(step, "steps") for step in steps) == STEPS[path.stem], arm.title


def stories(folder: Path) -> list[str]:
    """A book, and a Llama as deep as SmolLM2."""
    model = storybook.saved(folder / "deep", storybook.llama(30))
    book = storybook.book(folder / "book")
    return [f"task.dataset={book}", f"task.tokenizer={model}", f"teacher.model={model}"]


STEPS = {
    "compare-compression": 500,
    "compare-compression-cifar10": 300,
    "compare-smollm2": 60,
    "few-labels": 700,
}
"""The optimizer steps that every arm of a comparison takes."""
