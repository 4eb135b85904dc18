"""Control through a whole recipe: an agent found or trained, a student taught, written, played."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import environments as _environments  # noqa: F401  (registers them)
import numpy as np
import onnxruntime
import pytest
import torch
from test_control_task import Home
from torch import nn
from typer.testing import CliRunner

from attar import distill, students, tasks, teach
from attar.cli.commands import app
from attar.engine import local
from attar.errors import AttarError, RecipeError
from attar.forecast import forecast
from attar.losses import policy as losses
from attar.pipeline import run
from attar.recipe import read
from attar.setting import begin
from attar.types import Batch

LINE = "attar/Line-v0"


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """An agent trained by reward on a line, and a student of a few weights."""
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))
    train = {"n_steps": 16, "batch_size": 64, "n_epochs": 10}
    reinforce = {"steps": 2500, "widths": [16], "environments": 4, "lr": 5e-3, "settings": train}
    return {
        "task": {"control.policy": {"environment": LINE, "states": 400, "episodes": 30}},
        "teacher": {"reinforce": reinforce},
        "student": {"mlp": {"widths": [4]}},
        "losses": [{"policy.kl": {"temperature": 1}}],
        "steps": [{"distill": {"steps": 150, "lr": 1e-2}}],
        "measure": ["score", "parameters", "size"],
    }


def test_a_policy_goes_the_whole_way_to_an_int8_file_that_plays_as_well(
    said: dict[str, Any], tmp_path: Path
) -> None:
    later = ["export.onnx", "quantize.int8_static", "export.onnx", "export.safetensors"]
    later = later[:1] + later[3:] + later[1:3]
    change = {"steps": [*said["steps"], *later], "baselines": ["pseudo_labels"]}
    report = run(read(said | change), tmp_path / "out")
    rows = {row.name: row for row in report.rows}
    assert report.score_name == "return"
    assert rows["teacher"].score > 1.5  # chance makes nothing, and who is lost -8
    for name in ("student", "student.onnx", "student-folder", "student-int8_static.onnx"):
        assert rows[name].score == pytest.approx(rows["teacher"].score, abs=0.3)
        assert rows[name].metrics["agreement"] > 0.9
        assert rows[name].metrics["examples"] == 30
        low, high = rows[name].interval
        assert low <= rows[name].score <= high
    assert rows["student.onnx"].score == rows["student"].score
    assert "pseudo_labels" in rows
    assert rows["student"].parameters == 4 + 4 + 8 + 2
    assert "return" in (tmp_path / "out" / "report.md").read_text()
    # What the card says a user does, without attar.
    session = onnxruntime.InferenceSession(tmp_path / "out" / "student.onnx")
    (answers,) = session.run(None, {"observation": np.array([[4.0], [-4.0]], np.float32)})
    assert answers.argmax(1).tolist() == [0, 1]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "observation" in card
    assert "reinforcement-learning" in card
    # A second run finds the agent that the first one trained, and the same states.
    again = run(read(said), tmp_path / "again")
    assert again.row("student").score == rows["student"].score
    assert again.row("teacher").score == rows["teacher"].score


def test_a_look_ahead_and_the_doctor_know_what_acts(said: dict[str, Any], tmp_path: Path) -> None:
    found = forecast(begin(read(said), tmp_path / "out"))
    assert {"teacher", "student"} <= {stage.name for stage in found.stages}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(read(said).to_yaml())
    told = CliRunner().invoke(app, ["doctor", str(recipe)])
    assert "No states have labels" in told.output
    assert "bug" not in told.output


def test_numbers_are_taught_as_gaussians(
    said: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Home(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.way = nn.Parameter(torch.tensor(-1.0))\n\n"
        "    def forward(self, observation):\n"
        "        mean = (self.way * observation).clamp(-1, 1)\n"
        "        return torch.cat([mean, torch.full_like(mean, -1.0)], 1)\n\n\n"
        "def build():\n    return Home()\n"
    )
    change = {
        "task": {"control.policy": {"environment": "attar/Numbers-v0", "states": 400}},
        "teacher": {"load": {"model": "mine.py:build"}},
        "losses": ["policy.gaussian_kl"],
        "student": {"mlp": {"widths": [8]}},
        "steps": [{"distill": {"steps": 300, "lr": 1e-2}}, "export.onnx"],
    }
    report = run(read(said | change), tmp_path / "out", trust=True)
    teacher, student, file = report.rows
    assert teacher.metrics["agreement"] == 1.0
    assert student.score > 0.9 * teacher.score
    assert file.score == pytest.approx(student.score, abs=1e-3)


# Who drives


class Wayward(nn.Module):
    """A student that always goes right, whatever it is taught."""

    def __init__(self) -> None:
        super().__init__()
        self.way = nn.Parameter(torch.tensor([-5.0, 5.0]))

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return self.way.expand(len(observation), 2)


def driven(**options: Any) -> tuple[list[Batch], Any]:
    task: Any = tasks.control.policy(environment=LINE, states=300, exploration=0.0)
    home = task.load(Home())
    task = task.met(home)
    scheme = teach.student_driven(
        iter(task.batches("train", batch_size=60)),
        [home],
        Wayward(),
        task.forward,
        task.act,
        local(precision="fp32", device="cpu"),
        10,
        task.size("train"),
        **options,
    )
    return [next(scheme).batch for _ in range(10)], task


def test_a_student_that_drives_is_taught_where_it_gets_itself_into() -> None:
    batches, _ = driven(rounds=1, states=300)
    furthest = [float(batch.inputs.max()) for batch in batches]
    assert max(furthest[:5]) <= 5  # so far its teacher has moved
    assert max(furthest[5:]) > 8
    assert all(len(batch) == 60 == len(batch.inputs) for batch in batches)
    # As many states of the student's as of the teacher's: half of the rows are its own.
    beyond = [int((batch.inputs > 5).sum()) for batch in batches[5:]]
    assert 5 < np.mean(beyond) < 35


def test_where_the_teacher_takes_over_every_step_nothing_new_is_met() -> None:
    batches, _ = driven(rounds=2, states=300, beta=1.0)
    assert max(float(batch.inputs.abs().max()) for batch in batches) <= 5


def test_lessons_of_a_driving_student_are_the_teachers_answers() -> None:
    batches, task = driven(rounds=3, states=50)
    home = Home()
    rounds = [sum(key not in set(task._keys) for key in batch.keys) for batch in batches]
    assert rounds[0] == 0
    for batch in batches:
        answers = teach.ask(home, batch, task.forward).logits
        assert torch.equal(answers.argmax(1), (batch.inputs[:, 0] < 0).long())


def test_a_driven_training_that_was_killed_ends_with_the_same_weights(tmp_path: Path) -> None:
    task: Any = tasks.control.policy(environment=LINE, states=200)
    home = task.load(Home())
    task = task.met(home)

    class Killed(Exception):
        pass

    def trained(folder: Path, stop: int | None) -> nn.Module:
        def watch(record: Any) -> None:
            if record["step"] == stop:
                raise Killed

        torch.manual_seed(0)
        student = students.mlp(task.classes, task.offers["observations"], widths=[4])
        engine = local(folder, precision="fp32", device="cpu", checkpoint=0.0)
        lessons = teach.student_driven(
            engine.feed(task.batches("train", batch_size=32)),
            [home],
            student,
            task.forward,
            task.act,
            engine,
            40,
            task.size("train"),
            rounds=3,
            states=60,
        )
        terms = [distill.term(losses.nll)]
        return distill.train(student, lessons, terms, task.forward, engine, watch=watch, steps=40)

    whole = trained(tmp_path / "whole", None)
    with pytest.raises(Killed):
        trained(tmp_path / "killed", 27)
    again = trained(tmp_path / "killed", None)
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_student_drives_in_a_recipe(said: dict[str, Any], tmp_path: Path) -> None:
    change = {"teach": {"student_driven": {"rounds": 2, "states": 100}}}
    report = run(read(said | change), tmp_path / "out")
    assert report.row("student").score == pytest.approx(report.row("teacher").score, abs=0.3)


# What goes wrong, in a sentence


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"teacher": {"finetune": {"model": "agent.zip"}}}, "there is no `finetune` of agents"),
        ({"teacher": {"reinforce": {"algorithm": "sac"}}}, "sac can't learn attar/Line-v0"),
        ({"teacher": {"reinforce": {"algorithm": "ppx"}}}, "'ppo'"),
        ({"teacher": {"load": {"model": "agent.zip"}}}, "There is no file agent.zip"),
        ({"baselines": ["labels_only"]}, "There is no labelled state"),
        ({"losses": ["policy.gaussian_kl", "policy.nll"], "student": {"lstm": {}}}, "texts"),
        ({"measure": ["score", "audit"]}, "audit weighs answers that are right or wrong"),
        ({"measure": [{"latency": {"tokens": [16]}}]}, "states have none"),
    ],
)
def test_what_a_policy_can_not_do_is_said_in_a_sentence(
    said: dict[str, Any], change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(AttarError, match=sentence):
        run(read(said | change), tmp_path / "out")


def test_what_is_for_those_that_act_says_so_of_texts(tmp_path: Path) -> None:
    lines = [f"text {n},{'ab'[n % 2]}" for n in range(40)]
    (tmp_path / "data.csv").write_text("\n".join(["text,label", *lines]))
    task = {"text.classification": {"dataset": str(tmp_path / "data.csv")}}
    here = begin(read({"task": task, "teacher": {"reinforce": {}}, "steps": ["export.onnx"]}))
    with pytest.raises(RecipeError, match="reinforce is for tasks of control; texts give no rewa"):
        here.task.beginner()
    with pytest.raises(RecipeError, match="Acting is for tasks of control; texts are only"):
        here.task.act()


def test_an_environment_that_fails_ends_with_a_sentence_and_code_2(
    said: dict[str, Any], tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    crash = {"control.policy": {"environment": "attar/Crashes-v0"}}
    recipe.write_text(read(said | {"task": crash}).to_yaml())
    ended = CliRunner().invoke(app, ["run", str(recipe), "--out", str(tmp_path / "out")])
    assert ended.exit_code == 2
    assert "the rope tore in step 3" in " ".join(ended.output.split())
