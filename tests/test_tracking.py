"""Trackers: each is told every step once, also by a run that was interrupted and went on."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from test_pipeline import said

from attar.errors import AttarError, MissingExtra
from attar.pipeline import run
from attar.recipe import read
from attar.report import Report, Row
from attar.screen import Advance
from attar.tracking import KEPT, TRACKERS, Known, Tracking, opened

__all__ = ["said"]

STEPS = {"steps": [{"distill": {"steps": 6, "batch_size": 8, "evaluate": 3}}]}
ROWS = Report(
    {}, {}, (Row("student (x)", "torch", 0.5, size_bytes=9, latency_ms={"p50@64": 2.0}),), {}
)


class Power:
    """A screen on which the power fails when the student has taken four steps."""

    def say(self, sentence: str) -> None:
        """Nothing."""

    @contextmanager
    def bar(self, title: str) -> Iterator[Advance]:
        def advance(done: int, total: int, word: str) -> None:  # noqa: ARG001
            if title == "Training student" and done == 4:
                raise KeyboardInterrupt

        yield advance


def record(step: int, **more: float) -> dict[str, Any]:
    return {"response.kl": 0.3, "loss": 1 / step, "step": step, "steps": 9, **more}


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    """What TensorBoard itself shows of a folder of event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return [(event.step, event.value) for event in read.Scalars(tag)]


# ---- TensorBoard, the real one


@pytest.mark.parametrize("checkpoint", [0.0, 3600.0], ids=["goes on", "begins again"])
def test_tensorboard_shows_every_step_once_after_an_interrupt(
    said: dict[str, Any], tmp_path: Path, checkpoint: float
) -> None:
    recipe = read(said | STEPS | {"engine": {"local": {"checkpoint": checkpoint}}})
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(recipe, out, screen=Power(), track=["tensorboard"])
    assert [step for step, _ in scalars(out / "tensorboard/student", "loss")] == [1, 2, 3]
    report = run(recipe, out, track=["tensorboard"])
    told = scalars(out / "tensorboard/student", "loss")
    assert [step for step, _ in told] == [1, 2, 3, 4, 5, 6]
    curve = {point["step"]: point["loss"] for point in report.history["student"]}
    assert dict(told) == pytest.approx(curve, rel=1e-6)
    assert [step for step, _ in scalars(out / "tensorboard/student", "score")] == [3, 6]
    assert scalars(out / "tensorboard/student", "response.kl")
    assert {path.name for path in (out / "tensorboard").iterdir()} == {
        *report.history,
        "rows",
    }
    for row in report.rows:
        assert scalars(out / "tensorboard/rows", f"score/{row.name}") == [
            (0, pytest.approx(row.score, rel=1e-6))
        ]


def test_a_run_that_is_not_tracked_writes_nothing_for_trackers(
    said: dict[str, Any], tmp_path: Path
) -> None:
    run(read(said), tmp_path / "out")
    assert not (tmp_path / "out" / "tensorboard").exists()
    assert not (tmp_path / "out" / KEPT).exists()


def test_event_files_stand_where_they_are_asked_for_those_of_each_run_apart(tmp_path: Path) -> None:
    told = opened([f"tensorboard:{tmp_path / 'events'}"], tmp_path / "out", "r")
    told.of("other").watch("student", "a")(record(1))
    told.close()
    assert scalars(tmp_path / "events/r/other/student", "loss") == [(1, 1.0)]
    assert not (tmp_path / "out").exists()


# ---- MLflow and Weights & Biases, by modules with their calls


class MlflowException(Exception):
    pass


class Server:
    """What an MLflow server would keep."""

    def __init__(self) -> None:
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, dict[str, Any]] = {}


class MlflowClient:
    """The calls of mlflow.MlflowClient that are made here, with its parameters."""

    server = Server()

    def __init__(self, tracking_uri: str | None = None, registry_uri: str | None = None) -> None:
        if tracking_uri == "nowhere":
            raise MlflowException("no such store")
        del registry_uri

    def get_experiment_by_name(self, name: str) -> Any:
        known = self.server.experiments
        return thing(experiment_id=known[name]) if name in known else None

    def create_experiment(self, name: str, artifact_location: str | None = None) -> str:
        del artifact_location
        assert name not in self.server.experiments
        return self.server.experiments.setdefault(name, "7")

    def create_run(
        self,
        experiment_id: str,
        start_time: int | None = None,
        tags: dict[str, Any] | None = None,
        run_name: str | None = None,
    ) -> Any:
        del start_time, tags
        assert experiment_id in self.server.experiments.values()
        name = f"run-{len(self.server.runs)}"
        self.server.runs[name] = {"name": run_name, "status": "RUNNING", "told": []}
        return thing(info=thing(run_id=name))

    def update_run(self, run_id: str, status: str | None = None, name: str | None = None) -> None:
        del name
        if run_id not in self.server.runs:
            raise MlflowException("deleted")
        self.server.runs[run_id]["status"] = status

    def log_metric(
        self,
        run_id: str,
        key: str,
        value: float,
        timestamp: int | None = None,
        step: int | None = None,
    ) -> None:
        del timestamp
        self.server.runs[run_id]["told"].append((key, step, value))

    def set_terminated(
        self, run_id: str, status: str | None = None, end_time: int | None = None
    ) -> None:
        del end_time
        self.server.runs[run_id]["status"] = status


class WandbRun:
    """The calls of wandb's Run that are made here, with its parameters."""

    def __init__(self) -> None:
        self.metrics: dict[str, str | None] = {}
        self.told: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.finished = False

    def define_metric(
        self,
        name: str,
        step_metric: str | None = None,
        step_sync: bool | None = None,
        hidden: bool | None = None,
    ) -> None:
        del step_sync, hidden
        self.metrics[name] = step_metric

    def log(self, data: dict[str, Any], step: int | None = None) -> None:
        assert step is None, "steps of one training would forbid those of the next"
        self.told.append(data)

    def finish(self, exit_code: int | None = None) -> None:
        del exit_code
        self.finished = True


def thing(**known: Any) -> Any:
    return type("Thing", (), known)()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    """An MLflow that keeps what it is told in memory."""
    module, errors = ModuleType("mlflow"), ModuleType("mlflow.exceptions")
    monkeypatch.setattr(MlflowClient, "server", Server())
    vars(module)["MlflowClient"] = MlflowClient
    vars(errors)["MlflowException"] = MlflowException
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.exceptions", errors)
    return MlflowClient.server


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], WandbRun]]:
    """The runs of a Weights & Biases that keeps them in memory, with how each was begun."""
    runs: list[tuple[dict[str, Any], WandbRun]] = []

    def init(
        *,
        project: str,
        name: str,
        id: str,
        resume: str,
        dir: str,
        mode: str,
    ) -> WandbRun:
        assert resume == "allow"
        assert Path(dir).is_dir()
        runs.append(({"project": project, "name": name, "id": id, "mode": mode}, WandbRun()))
        return runs[-1][1]

    module = ModuleType("wandb")
    vars(module)["init"] = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return runs


def twice(kind: str, out: Path) -> None:
    """A training that is interrupted after its fourth step and goes on from its second."""
    first = opened([kind], out, "intents")
    for step in (1, 2, 3, 4):
        first.watch("student", "student-a1")(record(step))
    first.close()
    second = opened([kind], out, "intents")
    for step in (3, 4, 5):
        second.watch("student", "student-a1")(record(step))
    second.end(ROWS)
    second.close()


def test_mlflow_goes_on_with_one_run_and_is_told_no_step_twice(
    server: Server, tmp_path: Path
) -> None:
    twice("mlflow", tmp_path)
    assert list(server.experiments) == ["attar"]
    (known,) = server.runs.values()
    assert (known["name"], known["status"]) == ("intents", "FINISHED")
    losses = [(step, value) for key, step, value in known["told"] if key == "student/loss"]
    assert losses == [(step, 1 / step) for step in (1, 2, 3, 4, 5)]
    rows = {key: value for key, step, value in known["told"] if step is None}
    name = "rows/student _x_"
    assert rows == {f"{name}/score": 0.5, f"{name}/size_bytes": 9.0, f"{name}/p50_64": 2.0}


def test_an_interrupted_run_is_told_to_mlflow_as_killed_and_a_deleted_one_begins_again(
    server: Server, tmp_path: Path
) -> None:
    told = opened(["mlflow"], tmp_path, "r")
    told.watch("student", "a")(record(1))
    told.close()
    assert server.runs["run-0"]["status"] == "KILLED"
    server.runs.clear()
    told = opened(["mlflow"], tmp_path, "r")
    told.watch("student", "a")(record(2))
    told.close()
    assert [step for _, step, _ in server.runs["run-0"]["told"]] == [2, 2]


def test_wandb_goes_on_under_its_id_offline_and_is_told_no_step_twice(
    begun: list[tuple[dict[str, Any], WandbRun]], tmp_path: Path
) -> None:
    twice("wandb", tmp_path)
    (how, first), (again, second) = begun
    assert how == again
    assert (how["project"], how["name"], how["mode"]) == ("attar", "intents", "offline")
    assert [each["student/step"] for each in first.told + second.told] == [1, 2, 3, 4, 5]
    assert second.told == [{"student/step": 5, "student/response.kl": 0.3, "student/loss": 0.2}]
    assert second.metrics == {"student/step": None, "student/*": "student/step"}
    assert second.summary["rows/student (x)/score"] == 0.5
    assert first.finished
    assert second.finished
    opened(["wandb:online"], tmp_path / "b", "r").close()
    assert begun[-1][0]["mode"] == "online"
    assert begun[-1][0]["id"] != how["id"]


def test_another_training_of_the_same_name_is_told_from_its_first_step(
    server: Server, tmp_path: Path
) -> None:
    for key, steps in (("a", (1, 2)), ("b", (1, 2, 3))):
        told = opened(["mlflow"], tmp_path, "r")
        for step in steps:
            told.watch("student", key)(record(step))
        told.close()
    steps = [step for key, step, _ in server.runs["run-0"]["told"] if key == "student/loss"]
    assert steps == [1, 2, 1, 2, 3]


def test_a_whole_run_is_told_to_all_that_were_asked_for(
    said: dict[str, Any],
    server: Server,
    begun: list[tuple[dict[str, Any], WandbRun]],
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    recipe = read(said | {"engine": {"local": {"checkpoint": 0.0}}} | STEPS)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, out, screen=Power(), track=["mlflow", "wandb"])
    assert begun[0][1].finished
    report = run(recipe, out, track=["mlflow", "wandb"])
    for name, points in report.history.items():
        steps = [point["step"] for point in points]
        (kept,) = server.runs.values()
        assert [step for key, step, _ in kept["told"] if key == f"{name}/loss"] == steps
        every = [each for _, known in begun for each in known.told]
        assert [each[f"{name}/step"] for each in every if f"{name}/step" in each] == steps
    assert set(json.loads((out / KEPT).read_text())) == {"mlflow", "wandb"}


# ---- what can go wrong


def test_an_unknown_tracker_is_answered_with_the_nearest_before_anything_is_trained(
    said: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(AttarError, match="did you mean 'tensorboard'"):
        run(read(said), tmp_path / "out", track=["tensorbord:events"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "modules"),
    [
        ("tensorboard", ["tensorboard", "torch.utils.tensorboard"]),
        ("mlflow", ["mlflow"]),
        ("wandb", ["wandb"]),
    ],
)
def test_a_tracker_that_is_not_installed_names_its_extra(
    kind: str, modules: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in modules:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=rf"attar\[{kind}\]"):
        opened([kind], tmp_path, "r")
    extras = Path(__file__).parent.parent.joinpath("pyproject.toml").read_text("utf-8")
    assert f'\n{kind} = ["{kind}>=' in extras


@pytest.mark.usefixtures("server")
def test_a_store_that_mlflow_refuses_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(AttarError, match="MLflow can't track here: no such store"):
        opened(["mlflow:nowhere"], tmp_path, "r")


def test_what_was_told_is_kept_for_each_tracker_and_a_damaged_file_is_begun_anew(
    tmp_path: Path,
) -> None:
    file = tmp_path / "new" / KEPT
    assert Known(file, "a").new("student", "k", 3)
    Known(file, "b").run = "x"
    assert not Known(file, "a").new("student", "k", 3)
    assert Known(file, "a").new("student", "k", 4)
    assert Known(file, "b").run == "x"
    file.write_text("{")
    assert Known(file, "a").new("student", "k", 3)


def test_nothing_is_told_to_nobody() -> None:
    none = Tracking()
    none.watch("student", "a")(record(1))
    none.end(ROWS)
    none.close()
    assert set(TRACKERS) == {"tensorboard", "mlflow", "wandb"}
