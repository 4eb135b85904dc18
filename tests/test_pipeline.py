"""The corridor: what is kept is found again only for the same thing, and trouble comes early."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
import yaml
from safetensors.numpy import load_file
from torch import Tensor, nn

from attar import casting
from attar.arms import trained
from attar.baselines import Arm, bag_of_words
from attar.distill.loop import Watch
from attar.engine import local
from attar.errors import AttarError, EngineError, ModelError, RecipeError
from attar.forecast import forecast
from attar.pipeline import baseline_arms, cast, run
from attar.recipe import read
from attar.schooling import arm_folder, asking, lessons, teachers_answers
from attar.screen import Silent
from attar.setting import Book, begin
from attar.tasks.classes import Classification
from attar.tasks.text.tokenizing import tokenizer_at

SAID: dict[str, Any] = {
    "teacher": {"finetune": {"epochs": 1, "batch_size": 8}},
    "student": {"lstm": {"width": 8, "embedding": 12}},
    "losses": ["response.kl"],
    "steps": [{"distill": {"steps": 2, "batch_size": 8}}],
    "baselines": ["label_smoothing"],
    "measure": ["score"],
}


@pytest.fixture
def said(bank: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A recipe on the tiny bank with the tiny BERT, caches in a folder of the test's own."""
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))
    task = {"text.classification": {"dataset": str(bank), "max_length": 32, "validation": 0.2}}
    teacher = {"finetune": SAID["teacher"]["finetune"] | {"model": str(base)}}
    return SAID | {"task": task, "teacher": teacher}


def folders(said: dict[str, Any], out: Path) -> dict[str, str]:
    """Where a recipe's trainings would be kept."""
    here = begin(read(said), out)
    found = cast(here, Book())
    step = here.plan.steps[0].function
    scheme = partial(lessons, here, found.teacher, found.taught)
    arms = [Arm("student", "train", scheme, found.taught.terms)]
    arms += baseline_arms(here, found.teacher, found.taught, scheme)
    kept = {
        arm.name: arm_folder(here, arm, found.student, step, found.teacher, found.taught).name
        for arm in arms
    }
    teacher = casting.teacher_kept(here)
    assert teacher is not None
    return kept | {"teacher": teacher.name}


@pytest.mark.parametrize(
    ("change", "moved"),
    [
        ({"seed": 1}, {"teacher", "student", "label_smoothing"}),
        ({"student": {"lstm": SAID["student"]["lstm"] | {"dropout": 0.5}}}, {"student"}),
        ({"losses": [{"response.kl": {"temperature": 2}}]}, {"student"}),
        ({"baselines": [{"label_smoothing": {"smoothing": 0.3}}]}, {"label_smoothing"}),
        ({"steps": [{"distill": {"steps": 3, "batch_size": 8}}]}, {"student", "label_smoothing"}),
        ({"measure": ["score", "size"]}, set()),
    ],
    ids=["seed", "dropout", "temperature", "smoothing", "steps", "measure"],
)
def test_whatever_decides_a_training_gives_it_another_place(
    said: dict[str, Any], change: dict[str, Any], moved: set[str], tmp_path: Path
) -> None:
    before, after = folders(said, tmp_path / "out"), folders(said | change, tmp_path / "out")
    assert moved <= {name for name in before if before[name] != after[name]}
    if not moved:
        assert before == after
    if "student" not in change and "seed" not in change:
        assert before["teacher"] == after["teacher"]


def test_a_network_without_a_head_can_t_teach_as_it_is(
    said: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="no classification head"):
        run(read(said | {"teacher": {"load": {"model": str(base)}}}), tmp_path / "out")


def test_trouble_comes_before_the_teacher_is_trained(
    said: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attar.arms.trained", None)  # whoever trains now fails otherwise
    (tmp_path / "file").write_text("not a folder")
    wrong: list[tuple[dict[str, Any], Path, type[AttarError], str]] = [
        ({}, tmp_path / "file", EngineError, "can't be written"),
        ({"student": {"layers": {"keep": [9]}}}, tmp_path / "out", ModelError, "0 to 5"),
        (
            {"steps": [{"distill": {"steps": 1, "epochs": 1}}]},
            tmp_path / "out",
            RecipeError,
            "eith",
        ),
    ]
    for change, out, kind, words in wrong:
        with pytest.raises(kind, match=words):
            run(read(said | change), out)


LAYERS = {"student": {"layers": {"keep": [0]}}, "measure": ["score", "parameters"]}
PRUNE = {"prune.structured": {"ratio": 0.5, "round_to": 1}}


def test_baselines_take_as_many_steps_as_all_trainings_of_the_student(
    said: dict[str, Any], tmp_path: Path
) -> None:
    steps = [*SAID["steps"], PRUNE, {"distill": {"steps": 3, "batch_size": 8}}]
    report = run(read(said | LAYERS | {"steps": steps}), tmp_path / "out")
    last = {name: points[-1]["step"] for name, points in report.history.items()}
    del last["teacher"]
    assert last == {"student": 2, "student-structured-distill": 3, "label_smoothing": 5}


def test_every_step_has_a_row_and_a_repair_has_its_own(
    said: dict[str, Any], tmp_path: Path
) -> None:
    steps = [*SAID["steps"], PRUNE, *SAID["steps"], "quantize.int8_dynamic", "export.onnx"]
    report = run(read(said | LAYERS | {"steps": steps}), tmp_path / "out")
    names = [row.name for row in report.rows if row.name.startswith("student")]
    repaired = "student-structured-distill"
    assert names == ["student", "student-structured", repaired, f"{repaired}-int8_dynamic.onnx"]
    whole, pruned, again = (report.row(name).parameters for name in names[:3])
    assert whole is not None
    assert pruned is not None
    assert again == pruned < whole


def test_every_row_says_from_which_a_step_made_it(said: dict[str, Any], tmp_path: Path) -> None:
    steps = [*SAID["steps"], PRUNE, *SAID["steps"], "quantize.int8_dynamic", "export.onnx"]
    report = run(read(said | LAYERS | {"steps": steps}), tmp_path / "out")
    after = {row.name: row.after for row in report.rows if row.name.startswith("student")}
    repaired = "student-structured-distill"
    assert after == {
        "student": "",
        "student-structured": "student",
        repaired: "student-structured",
        f"{repaired}-int8_dynamic.onnx": repaired,
    }


def test_files_of_two_vocabularies_keep_each_its_own_tokenizer(
    said: dict[str, Any], tmp_path: Path
) -> None:
    steps = [*SAID["steps"], "export.onnx", "prune.vocabulary", "export.onnx"]
    out = tmp_path / "out"
    report = run(read(said | LAYERS | {"steps": steps}), out)
    assert report.row("student-vocabulary.onnx").score == report.row("student.onnx").score
    small = out / "student-vocabulary"
    sizes = [len(tokenizer_at(str(each / "tokenizer"))) for each in (out, small)]
    assert sizes[1] < sizes[0]
    assert (small / "student-vocabulary.onnx").is_file()


def test_what_is_done_to_a_student_that_knows_nothing_yet_has_no_row(
    said: dict[str, Any], tmp_path: Path
) -> None:
    report = run(read(said | LAYERS | {"steps": [PRUNE, *SAID["steps"]]}), tmp_path / "out")
    names = [row.name for row in report.rows if row.name.startswith("student")]
    assert names == ["student-structured-distill"]


def test_two_trainings_in_a_row_have_each_a_row(said: dict[str, Any], tmp_path: Path) -> None:
    report = run(read(said | LAYERS | {"steps": [*SAID["steps"] * 2]}), tmp_path / "out")
    names = [row.name for row in report.rows if row.name.startswith("student")]
    assert names == ["student", "student-distill"]


def test_a_look_ahead_finds_trainings_behind_a_compressor_done(
    said: dict[str, Any], tmp_path: Path
) -> None:
    recipe = read(said | LAYERS | {"steps": [PRUNE, *SAID["steps"]]})
    run(recipe, tmp_path / "out")
    stages = forecast(begin(recipe, tmp_path / "out")).stages
    done = {stage.name for stage in stages if stage.done}
    assert {"teacher", "student-structured-distill", "label_smoothing"} <= done


def test_layers_are_paired_with_those_that_are_left(said: dict[str, Any], tmp_path: Path) -> None:
    steps = ["prune.layers", *SAID["steps"]]
    features = ["response.kl", {"feature.mse": {"layers": "auto"}}]
    student = {"student": {"layers": {"keep": 4}}, "losses": features, "steps": steps}
    report = run(read(said | LAYERS | student), tmp_path / "out")
    assert "student-layers-distill" in [row.name for row in report.rows]


def test_a_student_pruned_little_by_little_keeps_its_zeros_and_tells_each_round(
    said: dict[str, Any], tmp_path: Path
) -> None:
    steps = [
        {
            "repeat": {
                "times": 2,
                "steps": [
                    {"prune.magnitude": {"ratio": {"linear": {"end": 0.6}}}},
                    {"distill": {"steps": 4}},
                ],
            }
        },
        "export.onnx",
    ]
    measured = {"steps": steps, "measure": ["score", "parameters", "nonzero"]}
    report = run(read(said | measured), tmp_path / "out")
    rows = {row.name: row for row in report.rows}
    ends = ["student-magnitude-distill", "student-magnitude-distill-x2"]
    zeros = [1 - rows[name].nonzero / rows[name].parameters for name in ends]
    assert 0 < zeros[0] < zeros[1]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "(its steps: prune.magnitude, distill, export.onnx)" in card


def test_a_model_that_is_trained_already_is_compressed_and_exported_alone(
    said: dict[str, Any], tmp_path: Path
) -> None:
    run(read(said), tmp_path / "first")
    alone = {
        "task": said["task"],
        "teacher": {"load": {"model": str(tmp_path / "first" / "teacher")}},
        "steps": [PRUNE, "quantize.int8_dynamic", "export.onnx"],
        "measure": said["measure"],
    }
    report = run(read(alone), tmp_path / "second")
    names = [row.name for row in report.rows]
    assert names[:2] == ["teacher", "student-structured"]
    assert "student-structured-int8_dynamic.onnx" in names


@pytest.mark.parametrize(
    "step",
    [
        {"prune.structured": {"ratio": {"channels": 0.5}}},
        {"prune.layers": {"drop": 7}},
        {"prune.magnitude": {}},
        {"quantize.int8_dynamic": {"exclude": ["nothing.here"]}},
    ],
)
def test_a_compressor_that_can_t_do_it_says_so_before_anything_is_trained(
    said: dict[str, Any], step: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(AttarError):
        run(read(said | LAYERS | {"steps": [*SAID["steps"], step]}), tmp_path / "out")
    assert not (tmp_path / "out" / "arms").exists()


@pytest.mark.parametrize(
    ("steps", "sentence"),
    [
        (["quantize.int8_dynamic", *SAID["steps"]], "can't train integers"),
        (
            ["quantize.qat", *SAID["steps"], "export.onnx"],
            "quantize.int8_static before",
        ),
    ],
)
def test_an_order_that_leads_nowhere_is_refused_before_anything_is_trained(
    said: dict[str, Any], steps: list[Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(AttarError, match=sentence):
        run(read(said | LAYERS | {"steps": [*SAID["steps"], *steps]}), tmp_path / "out")
    assert not (tmp_path / "out" / "arms").exists()


def test_a_student_is_trained_for_few_bits_and_exported_as_it_was_trained(
    said: dict[str, Any], tmp_path: Path
) -> None:
    fewer: list[Any] = [{"quantize.qat": {"bits": 4}}, *SAID["steps"], "quantize.int8_static"]
    report = run(
        read(said | LAYERS | {"steps": [*SAID["steps"], *fewer, "export.onnx"]}), tmp_path / "out"
    )
    names = [row.name for row in report.rows if row.name.startswith("student")]
    assert names[0] == "student"
    assert names[-1] == "student-qat-distill-int8_static.onnx"
    assert report.row(names[-1]).score is not None


@pytest.mark.parametrize("teach", ["offline", "virtual", "self_ema", {"uncertain": {"share": 0.1}}])
def test_hard_labels_are_the_teachers_whoever_teaches(
    said: dict[str, Any], teach: Any, tmp_path: Path
) -> None:
    here = begin(read(said | {"teach": teach}), tmp_path / "out")
    found = cast(here, Book())
    batch = next(here.task.sweep("train", batch_size=8))
    assert found.teacher is not None
    wanted = asking(here, found.taught)(found.teacher, batch).logits
    scheme = teachers_answers(here, found.teacher, found.taught)
    (lesson,) = scheme([batch], found.student, here.engine, 1)
    assert lesson.teacher is not None
    torch.testing.assert_close(lesson.teacher.logits, wanted, rtol=1e-2, atol=1e-2)


def test_the_floor_is_fitted_once_for_the_same_data_but_where_it_is_timed(
    said: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[str] = []

    def counted(task: Any, part: str) -> dict[str, Any]:
        fitted.append(part)
        return bag_of_words(task, part)

    monkeypatch.setattr("attar.floor.bag_of_words", counted)
    rows = []
    for out, change in (("one", {}), ("two", {"student": {"lstm": {"width": 4}}})):
        rows.append(run(read(said | change), tmp_path / out).row("bag_of_words"))
        kept = load_file(tmp_path / out / "predictions.safetensors")
        assert (kept["bag_of_words"] == kept["truth"]).mean() == rows[-1].score
    assert rows[0] == rows[1]
    assert len(fitted) == 1
    run(read(said | {"measure": ["score", "latency"]}), tmp_path / "three")
    run(read(said | {"seed": 1}), tmp_path / "four")
    assert len(fitted) == 3


def test_the_teachers_answers_outlast_the_run_and_what_is_damaged_is_asked_again(
    said: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    answers = Classification.answers

    def counted(task: Classification, model: nn.Module, *rest: Any) -> Tensor:
        asked.append(type(model).__name__)
        return answers(task, model, *rest)

    monkeypatch.setattr(Classification, "answers", counted)

    def scored(out: str, **change: Any) -> tuple[Any, int]:
        asked.clear()
        row = run(read(said | change), tmp_path / out).row("teacher")
        return (row.score, row.metrics), sum("Bert" in name for name in asked)

    first, times = scored("one")
    assert times == 1
    assert scored("two", student={"lstm": {"width": 4}}) == (first, 0)
    (kept,) = (tmp_path / "cache" / "answers").glob("*/test-*.safetensors")
    kept.write_bytes(b"damaged")
    assert scored("three") == (first, 1)
    _, other = scored("four", teacher={"finetune": said["teacher"]["finetune"] | {"epochs": 2}})
    assert other == 1


def test_two_runs_that_want_the_same_training_share_it(tmp_path: Path) -> None:
    trainings, heard = [], []
    waiting = Event()

    class Ear(Silent):
        def say(self, sentence: str) -> None:
            heard.append(sentence)
            if "waiting" in sentence:
                waiting.set()

    def train(_: object, watch: Watch) -> nn.Module:
        assert waiting.wait(30)  # until the other one has come
        trainings.append(1)
        watch({"step": 1, "steps": 1, "loss": 0.5})
        return nn.Linear(2, 2)

    def one() -> dict[str, Tensor]:
        model, _, _ = trained("A", tmp_path, local(), Ear(), lambda: nn.Linear(2, 2), train)
        return model.state_dict()

    with ThreadPoolExecutor(2) as both:
        first, second = [job.result() for job in (both.submit(one), both.submit(one))]
    assert trainings == [1]
    assert any("waiting" in sentence for sentence in heard)
    for name, weight in first.items():
        assert torch.equal(weight, second[name])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("measure", "[{latency: {threads: 0}}]"),
        ("measure", "[{latency: {batch: -1}}]"),
        ("steps", "[{distill: {steps: 0}}]"),
        ("steps", "[{distill: {steps: 5, lr: 0}}]"),
        ("teacher.finetune.epochs", "0"),
    ],
)
def test_a_number_that_makes_no_sense_is_refused_before_the_data_is_read(
    path: str, value: str, said: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(said | {"task": {"text.classification": {"dataset": "none"}}}))
    with pytest.raises(RecipeError, match=r"^--set .*greater than"):
        begin(file, tmp_path / "out", overrides=[f"{path}={value}"])
