"""Pictures through a whole recipe: taught, pruned, rounded, written, read back and reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from sklearn.datasets import load_digits
from transformers import ViTConfig, ViTForImageClassification

from attar import casting, students, teach
from attar.cli.commands import app
from attar.engine import local
from attar.errors import AttarError, ModelError
from attar.forecast import forecast
from attar.pipeline import run
from attar.recipe import read
from attar.setting import begin

CLASSES = [str(n) for n in range(10)]


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """300 of scikit-learn's digits as an npz file, caches in a folder of the test's own."""
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))
    data: Any = load_digits()
    pictures = (data.images[:300] * 15.9).astype(np.uint8)
    np.savez(tmp_path / "digits.npz", images=pictures, labels=data.target[:300])
    return tmp_path / "digits.npz"


@pytest.fixture
def said(digits: Path, tmp_path: Path) -> dict[str, Any]:
    """A residual network that teaches a smaller one, views of the pictures changing."""
    big = students.save(students.resnet(CLASSES, depth=8, width=8), tmp_path / "big")
    return {
        "task": {"vision.classification": {"dataset": str(digits), "augment": ["shift"]}},
        "teacher": {"finetune": {"model": str(big), "keep_head": True, "epochs": 10, "lr": 5e-3}},
        "student": {"resnet": {"depth": 8, "width": 4}},
        "teach": "offline",
        "losses": [{"response.kl": {"temperature": 2}}],
        "steps": [{"distill": {"steps": 80, "lr": 5e-3}}],
        "measure": ["score", "parameters", "size", "latency", "memory"],
        "baselines": ["labels_only"],
    }


def test_pictures_go_the_whole_way_to_an_int8_file_that_answers_alone(
    said: dict[str, Any], digits: Path, tmp_path: Path
) -> None:
    cut = {"prune.structured": {"ratio": 0.25, "round_to": 1, "importance": "scale"}}
    later = [cut, {"distill": {"steps": 20}}, "quantize.int8_static", "export.onnx"]
    report = run(read(said | {"steps": [*said["steps"], *later]}), tmp_path / "out")
    rows = {row.name: row for row in report.rows}
    name = "student-structured-distill-int8_static.onnx"
    assert list(rows)[:3] == ["teacher", "student", "student-structured"]
    assert rows["teacher"].score > 0.6  # chance is 0.1
    assert rows[name].score == pytest.approx(rows["student-structured-distill"].score, abs=0.1)
    assert rows["student-structured"].parameters < rows["student"].parameters
    assert "labels_only" in rows
    assert "bag_of_words" not in rows
    assert "pictures of 8 x 8 pixels" in (tmp_path / "out" / "README.md").read_text()
    # What the card says a user does, without attar.
    how = json.loads((tmp_path / "out/preprocessing/preprocessor_config.json").read_text())
    picture = np.load(digits)["images"][:1, ..., None].repeat(3, 3) / 255
    pixels = ((picture - how["image_mean"]) / how["image_std"]).transpose(0, 3, 1, 2)
    session = onnxruntime.InferenceSession(tmp_path / "out" / name)
    (logits,) = session.run(None, {"pixel_values": pixels.astype(np.float32)})
    assert logits.shape == (1, 10)
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["shape"]) == [8, 8]


def test_a_transformers_network_teaches_pictures_and_is_left_as_its_own_folder(
    said: dict[str, Any], tmp_path: Path
) -> None:
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
    )
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    teacher = {"finetune": {"model": str(tmp_path / "vit"), "epochs": 1}}
    steps = [{"distill": {"steps": 2}}, "export.safetensors"]
    report = run(read(said | {"teacher": teacher, "steps": steps}), tmp_path / "out")
    assert [row.name for row in report.rows][:3] == ["teacher", "student", "student-folder"]
    assert report.rows[0].memory_bytes
    assert report.rows[2].score == report.rows[1].score
    again = ViTForImageClassification.from_pretrained(tmp_path / "out" / "teacher")
    assert again.config.num_labels == 10
    assert (tmp_path / "out" / "teacher" / "preprocessor_config.json").is_file()


def test_a_teacher_trained_from_the_start_is_pruned_and_repairs_itself(
    said: dict[str, Any], tmp_path: Path
) -> None:
    train = {"network": {"resnet": {"depth": 14, "width": 8}}, "epochs": 8, "lr": 5e-3}
    steps = [
        {"prune.layers": {"drop": 2}},
        {"prune.structured": {"ratio": 0.5, "exclude": ["conv1", "*.conv2"]}},
        *said["steps"],
        "export.safetensors",
    ]
    change = {"teacher": {"train": train}, "student": "teacher", "steps": steps}
    report = run(read(said | change), tmp_path / "out")
    rows = {row.name: row for row in report.rows}
    name = "student-layers-structured-distill"
    assert rows["teacher"].score > 0.6
    assert rows[name].parameters < 0.7 * rows["teacher"].parameters
    assert rows[f"{name}-folder"].score == rows[name].score
    again = students.load(tmp_path / "out" / name)
    assert sum(each.numel() for each in again.parameters()) == rows[name].parameters
    # A second run finds the teacher that the first one trained.
    there = begin(read(said | change), tmp_path / "out")
    assert {each.name for each in forecast(there).stages if each.done} >= {"teacher"}


def test_inputs_made_up_for_a_picture_network_are_shown_to_it_as_they_are(
    said: dict[str, Any], tmp_path: Path
) -> None:
    here = begin(read(said), tmp_path / "out")
    network = here.task.load(students.resnet(CLASSES, depth=8, width=4)).eval()
    batches = iter(here.task.batches("train", batch_size=4))
    engine = local(precision="fp32", device="cpu")
    given = (batches, [network], network, here.task.forward, engine)
    lesson = next(teach.data_free(*given, examples=40, iterations=2))
    made = lesson.batch.inputs
    assert (made.shape, made.dtype) == ((4, 3, 8, 8), torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(lesson.teacher.logits, network(pixel_values=made))


def test_a_student_of_other_classes_does_not_teach_and_under_a_new_head_it_learns_these(
    said: dict[str, Any], tmp_path: Path
) -> None:
    names = [f"digit {n}" for n in reversed(range(10))]
    other = students.save(students.resnet(names, depth=8, width=4), tmp_path / "other")
    loaded = {"teacher": {"load": {"model": str(other)}}}
    with pytest.raises(ModelError, match=r"answers for the classes digit 9, .*`finetune`"):
        run(read(said | loaded), tmp_path / "out")
    here = begin(read(said), tmp_path / "out")
    network: Any = casting.load(here, str(other), new_head=True)
    assert network.recipe["classes"] == CLASSES


def test_a_teacher_of_your_own_make_stays_in_the_cache(
    said: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.head = nn.Linear(192, 10)\n\n"
        "    def forward(self, pixel_values):\n"
        "        return self.head(pixel_values.flatten(1))\n\n\n"
        "def build():\n    return Net()\n"
    )
    teacher = {"finetune": {"model": "mine.py:build", "epochs": 1}}
    change = {"teacher": teacher, "baselines": [], "measure": ["score"]}
    for _ in range(2):
        report = run(read(said | change), tmp_path / "out", trust=True)
        assert [row.name for row in report.rows] == ["teacher", "student"]


def test_ways_of_training_a_teacher_do_not_pass_for_one_another(
    said: dict[str, Any], tmp_path: Path
) -> None:
    options = {"model": str(tmp_path / "big"), "epochs": 2, "lr": 5e-3}
    kept = {
        how: casting.teacher_kept(begin(read(said | {"teacher": {how: options}}), tmp_path / "out"))
        for how in ("finetune", "born_again")
    }
    assert kept["finetune"] != kept["born_again"]


def test_a_look_ahead_knows_pictures(said: dict[str, Any], tmp_path: Path) -> None:
    found = forecast(begin(read(said), tmp_path / "out"))
    assert "10 classes" in found.lines()[0]
    assert "tokens a text" not in found.lines()[0]
    assert {"teacher", "student", "labels_only"} <= {stage.name for stage in found.stages}


def test_the_doctor_looks_at_pictures(said: dict[str, Any], tmp_path: Path) -> None:
    from typer.testing import CliRunner

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(read(said).to_yaml())
    told = CliRunner().invoke(app, ["doctor", str(recipe)])
    assert "labelled pictures" in told.output
    assert "pictures by heart" in told.output
    assert "texts" not in told.output


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"steps": ["prune.vocabulary", "export.onnx"]}, "pictures have no words"),
        ({"measure": [{"latency": {"tokens": [16]}}]}, "pictures have none"),
        ({"steps": [{"distill": {"steps": 2}}, "export.transformers"]}, "no `transformers` model"),
        ({"student": {"lstm": {}}}, "lstm asks for 'texts'"),
        ({"teacher": {"train": {"network": "resnot"}}}, "did you mean 'resnet'"),
        ({"teacher": {"train": {"network": {"resnet": {"depht": 8}}}}}, "depth"),
        ({"teacher": {"train": {"network": "teacher"}}}, "teacher asks for 'teacher'"),
    ],
)
def test_what_is_for_texts_alone_says_so_of_pictures(
    said: dict[str, Any], change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(AttarError, match=sentence):
        run(read(said | change), tmp_path / "out")
