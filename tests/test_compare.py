"""Comparisons: their paper, processes that share and survive, a report that claims little."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml
from safetensors import safe_open
from safetensors.numpy import save_file

import attar
from attar.casting import build_student
from attar.comparing import Data, compare, running, shares, telling, weighing
from attar.comparing.planning import controlled, planned
from attar.comparing.running import Crew
from attar.errors import AttarError, DataError, RecipeError
from attar.recipe import comparison_schema, read_comparison
from attar.report import Report, Row, schema
from attar.screen import Advance, Silent
from attar.setting import begin

STRIPES, TESTED = 3, 120


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def draw(folder: Path) -> Path:
    """Small grey pictures with a stripe to the left, in the middle or to the right."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count, seed in (("train", 48, 1), ("test", TESTED, 2)):
        random = np.random.default_rng(seed)
        pictures = random.integers(0, 120, (count, 8, 8)).astype(np.uint8)
        labels = np.arange(count) % STRIPES
        for picture, label in zip(pictures, labels, strict=True):
            picture[:, 3 * label : 3 * label + 2] += 60
        np.savez(folder / f"{split}.npz", image=pictures, label=labels)
    return folder


def words(data: Path, **more: Any) -> dict[str, Any]:
    """A comparison of small networks."""
    net = {"resnet": {"depth": 8, "width": 4}}
    train = {"network": net, "epochs": 10, "lr": 1e-2, "batch_size": 12}
    step = {"distill": {"steps": 24, "lr": 1e-2, "batch_size": 12}}
    recipe = {
        "task": {"vision.classification": {"dataset": str(data), "validation": 0.25}},
        "teacher": {"train": train},
        "student": net,
        "teach": "online",
        "losses": ["response.kl"],
        "steps": [step],
        "measure": ["score", "parameters", "size"],
    }
    return {"seeds": [0, 1], "recipe": recipe, "arms": {"kd": {}}} | more


# --- the paper


TEXT = """
name: two
seeds: [0, 3]
recipe:
  task: {vision.classification: {dataset: data/digits}}
  teacher: {train: {network: resnet, epochs: 2}}
  student:
    resnet: {depth: 8}
  losses: [response.kl]
  steps:
    - distill: {epochs: 1}
    - export.onnx
arms:
  kd: {}
  longer: {steps.0.epochs: 3, student: {resnet: {depth: 14}}}
  cut:
    steps: [{distill: {epochs: 1}}, {prune.magnitude: {ratio: 0.5}}]
    at: {small: {steps.1.ratio: 0.9}}
  labels_only: {of: kd, row: labels_only}
  big: {of: kd @ large, row: student}
sweep:
  small: {student.width: 4}
  large: {student.width: 32}
against: [kd]
"""


def test_an_arm_is_the_recipe_with_some_words_changed_and_a_size_changes_more() -> None:
    paper = read_comparison(TEXT)
    recipes = {run.title: paper.recipe_of(run).to_dict() for run in paper.runs()}
    assert list(recipes) == [
        *("kd @ small", "kd @ large", "longer @ small", "longer @ large"),
        "cut @ small",
    ]
    assert recipes["kd @ small"]["student"] == {"resnet": {"depth": 8, "width": 4}}
    assert recipes["longer @ large"]["student"] == {"resnet": {"depth": 14, "width": 32}}
    assert recipes["longer @ large"]["steps"] == [{"distill": {"epochs": 3}}, "export.onnx"]
    assert recipes["cut @ small"]["student"] == {"resnet": {"depth": 8}}
    assert recipes["cut @ small"]["steps"][1] == {"prune.magnitude": {"ratio": 0.9}}
    plain = recipes["kd @ small"] | {"student": {"resnet": {"depth": 8}}}
    assert plain == attar.read(yaml.safe_load(TEXT)["recipe"]).to_dict()


def test_a_row_of_another_arm_stands_at_its_sizes_or_at_one_of_them() -> None:
    lines = {line.name: (line.run.title, line.row) for line in read_comparison(TEXT).lines()}
    assert lines["labels_only @ small"] == ("kd @ small", "labels_only")
    assert lines["labels_only @ large"] == ("kd @ large", "labels_only")
    assert lines["big"] == ("kd @ large", "student")
    assert lines["kd @ large"] == ("kd @ large", None)


def test_what_all_are_weighed_against_is_labels_only_or_the_first() -> None:
    assert read_comparison(TEXT).weighed_against() == ("labels_only", "kd")
    arms = {"a": {}, "b": {}}
    said = words(Path("x"), arms=arms)
    assert read_comparison(said).weighed_against() == ("a",)
    assert read_comparison(said | {"control": "b"}).weighed_against() == ("b",)


def test_a_comparison_is_written_as_it_is_read() -> None:
    paper = read_comparison(TEXT)
    again = read_comparison(paper.to_yaml())
    assert again == paper
    assert [again.recipe_of(run) for run in again.runs()] == [
        paper.recipe_of(run) for run in paper.runs()
    ]


def test_settings_change_the_comparison_or_the_recipes_that_arms_vary() -> None:
    settings = [
        *("seeds=[7]", "task.dataset=mine", "recipe.teacher.epochs=9"),
        *("arms.kd.steps.0.epochs=5", "sweep.small.student.width=2"),
    ]
    paper = read_comparison(TEXT, settings)
    assert paper.seeds == (7,)
    said = {run.title: paper.recipe_of(run).to_dict() for run in paper.runs()}
    for recipe in said.values():
        assert recipe["task"] == {"vision.classification": {"dataset": "mine"}}
        assert recipe["teacher"]["train"]["epochs"] == 9
    assert said["kd @ small"]["steps"][0] == {"distill": {"epochs": 5}}
    assert said["kd @ small"]["student"]["resnet"]["width"] == 2
    assert said["longer @ small"]["steps"][0] == {"distill": {"epochs": 3}}


def test_an_arm_may_vary_a_recipe_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "other.yaml"
    recipe = yaml.safe_load(TEXT)["recipe"]
    file.write_text(yaml.safe_dump(recipe | {"seed": 5}))
    arms = {"a": {"recipe": str(file)}, "b": {"recipe": str(file), "steps.0.epochs": 4}}
    paper = read_comparison({"arms": arms, "seeds": [0]})
    first, second = (paper.recipe_of(run) for run in paper.runs())
    assert first.seed == 5
    assert second.to_dict()["steps"][0] == {"distill": {"epochs": 4}}


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("seeds: [0, 3]", "seeds: []", ":3: there are no seeds"),
        ("seeds: [0, 3]", "seeds: [1, 1]", ":3: the seed 1 stands here twice"),
        ("seeds: [0, 3]", "seeds: [-1]", ":3: .*greater than or equal to 0"),
        ("against: [kd]", "aganst: [kd]", "unknown key 'aganst' .* 'against'"),
        ("against: [kd]", "against: [kdd]", "no arm 'kdd'; did you mean 'kd'"),
        ("against: [kd]", "control: label_only", "no arm 'label_only'; did you mean"),
        ("{of: kd, row: labels_only}", "{of: kdd, row: labels_only}", "no arm 'kdd'; did you"),
        ("{of: kd, row: labels_only}", "{of: big, row: a}\n  kd2: {of: kd2, row: b}", "kd2 of kd2"),
        ("{of: kd, row: labels_only}", "{of: kd}", "which row of kd is the arm labels_only"),
        ("{of: kd, row: labels_only}", "{of: kd, row: a, seed: 3}", "leave out 'seed', or `of`"),
        ("of: kd @ large", "of: kd @ lage", "has no size 'lage'; did you mean 'large'"),
        ("of: kd @ large", "of: labels_only @ tiny", "has no size 'tiny'; choose from"),
        ("at: {small:", "at: {smal:", "the sweep has no size 'smal'; did you mean 'small'"),
        (
            "longer: {steps.0",
            "longer: {stepz.0",
            "unknown key 'stepz' in the arm longer; .*'steps'",
        ),
        ("longer: {steps.0", "lon/ger: {steps.0", "the name of an arm or size is letters"),
        ("kd: {}", "kd: 3", "an arm is `name: {changes}`, and it is 3"),
        ("name: two", "name: ../two", "the name of a run is letters"),
    ],
)
def test_a_bad_comparison_is_told_in_one_sentence_with_its_place(
    before: str, after: str, sentence: str, tmp_path: Path
) -> None:
    assert before in TEXT
    file = tmp_path / "bad.yaml"
    file.write_text(TEXT.replace(before, after))
    with pytest.raises(RecipeError, match=sentence) as told:
        read_comparison(file)
    assert str(told.value).startswith(f"{file}:")
    assert "\n" not in str(told.value)


def test_arms_in_a_circle_are_refused() -> None:
    arms = {"a": {"of": "b", "row": "x"}, "b": {"of": "a", "row": "x"}}
    with pytest.raises(RecipeError, match="a is a row of its own: a of b of a"):
        read_comparison({"arms": arms, "recipe": "x.yaml"})


def test_a_comparison_without_a_recipe_or_without_arms_is_refused() -> None:
    with pytest.raises(RecipeError, match="the arm a varies no recipe"):
        read_comparison({"arms": {"a": {}}})
    with pytest.raises(RecipeError, match="there are no arms"):
        read_comparison({"arms": {}, "recipe": "x.yaml"})
    with pytest.raises(RecipeError, match="needs the key 'arms'"):
        read_comparison({"recipe": "x.yaml"})


@pytest.mark.parametrize(
    ("before", "after", "place", "sentence"),
    [
        ("steps.0.epochs: 3", "steps.0.epocs: 3", 15, "distill has no option 'epocs'"),
        ("steps.0.epochs: 3", "steps.7.epochs: 3", 15, "a list of 2, counted from 0"),
        ("{student.width: 4}", "{student.widht: 4}", 22, "resnet has no option 'widht'"),
        ("{ratio: 0.5}", "{rato: 0.5}", 17, "has no option 'rato'"),
        ("    - export.onnx", "    - export.onx", 12, "'export.onx'"),
        (
            "{of: kd, row: labels_only}",
            "{of: kd, row: label_only}",
            19,
            "did you mean 'labels_only'",
        ),
    ],
)
def test_names_and_options_of_every_arm_are_looked_up_before_anything_runs(
    before: str, after: str, place: int, sentence: str, tmp_path: Path
) -> None:
    assert before in TEXT
    file = tmp_path / "bad.yaml"
    file.write_text(TEXT.replace(before, after))
    with pytest.raises(RecipeError, match=sentence) as told:
        compare(file, tmp_path / "out")
    assert str(told.value).startswith(f"{file}:{place}:")
    assert not (tmp_path / "out").exists()


def test_the_schema_takes_what_is_right_and_refuses_what_is_not() -> None:
    rule = comparison_schema()
    jsonschema.Draft202012Validator.check_schema(rule)
    right = yaml.safe_load(TEXT)
    jsonschema.validate(right, rule)
    jsonschema.validate({"recipe": "a.yaml", "arms": {"a": None}}, rule)
    wrong: list[dict[str, Any]] = [
        {"seeds": []},
        {"arms": {"a": {"stepz.0": 1}}},
        {"arms": {"a": {"steps": ["distil"]}}},
    ]
    for change in wrong:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(right | change, rule)


# --- the plan


def test_arms_of_one_seed_have_the_same_split_order_and_initial_weights(tmp_path: Path) -> None:
    arms = {"kd": {}, "hot": {"losses": [{"response.kl": {"temperature": 4}}]}}
    paper = read_comparison(words(draw(tmp_path / "data"), arms=arms))
    found: dict[int, list[Any]] = {0: [], 1: []}
    for job in planned(paper).jobs(paper.seeds, tmp_path):
        here = begin(job.recipe, job.folder)
        stream = iter(here.task.batches("train", batch_size=7))
        order = [key for _ in range(20) for key in next(stream).keys]
        weights = {name: x.tolist() for name, x in build_student(here, None).state_dict().items()}
        found[job.seed].append((here.task.rows, here.task.hash_of("test"), order, weights))
    for first, second in found.values():
        assert first == second
    assert found[0][0] != found[1][0]
    assert found[0][0][1] == found[1][0][1]


def test_a_run_trains_only_the_baselines_that_are_asked_for_and_times_nothing(
    tmp_path: Path,
) -> None:
    said = words(tmp_path, arms={"kd": {}, "soft": {"of": "kd", "row": "label_smoothing"}})
    said["recipe"] |= {
        "baselines": ["labels_only", {"label_smoothing": {"smoothing": 0.3}}],
        "measure": ["latency", "memory", "size"],
    }
    (job, _) = planned(paper := read_comparison(said)).jobs(paper.seeds, tmp_path / "out")
    child = job.recipe.to_dict()
    assert child["baselines"] == [{"label_smoothing": {"smoothing": 0.3}}]
    assert child["measure"] == ["score", "size"]
    assert (child["name"], child["seed"]) == ("kd seed 0", 0)
    assert job.folder == tmp_path / "out" / "kd" / "seed-0"


def test_where_nothing_is_labelled_for_some_hard_pseudo_labels_are_a_control(
    tmp_path: Path,
) -> None:
    said = words(draw(tmp_path / "data"))
    task = said["recipe"]["task"]["vision.classification"]

    def lines(more: Mapping[str, Any]) -> tuple[list[str], tuple[str, ...]]:
        paper = read_comparison(said | more)
        plan = planned(paper)
        here = begin(plan.jobs([0], tmp_path)[0].recipe)
        plan = controlled(plan, here)
        return [line.name for line in plan.lines], plan.notes

    assert lines({}) == (["kd"], ())
    task["labelled_per_class"] = 3
    names, notes = lines({})
    assert names == ["kd", "pseudo_labels"]
    assert "added as a control" in notes[0]
    hard = {"kd": {}, "hard": {"of": "kd", "row": "pseudo_labels"}}
    assert lines({"arms": hard}) == (["kd", "hard"], ())
    names, notes = lines({"arms": {"kd": {}, "pseudo_labels": {"of": "kd", "row": "student"}}})
    assert names == ["kd", "pseudo_labels"]
    assert "no arm learns from hard pseudo-labels" in notes[0]


def test_cores_are_shared_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def of(recipe: Mapping[str, Any], cores: int, jobs: int | None = None) -> tuple[int, int]:
        monkeypatch.setattr("attar.comparing.cores", lambda: cores)
        said = words(tmp_path)
        paper = read_comparison(said | {"seeds": [0, 1, 2], "recipe": said["recipe"] | recipe})
        return shares(planned(paper).jobs(paper.seeds, tmp_path), jobs)

    assert of({}, 2) == (2, 1)
    assert of({}, 64) == (3, 21)
    assert of({}, 8, jobs=2) == (2, 4)
    assert of({"engine": {"local": {"threads": 4}}}, 8) == (2, 4)
    assert of({"engine": {"local": {"threads": 4}}}, 2) == (1, 4)


# --- processes, with a stand-in for `attar run`


PRETENDER = """
import json, os, sys, time
from pathlib import Path
import numpy as np
from safetensors.numpy import save_file
from attar.recipe import read
from attar.report import Report, Row

recipe, out, play = read(sys.argv[1]), Path(sys.argv[3]), Path(os.environ["PLAY"])
(play / f"{recipe.name}.words").write_text(" ".join(sys.argv[4:]))
arm = recipe.name.split()[0]
with (play / "log").open("a") as log:
    log.write(f"{recipe.name} begins {time.monotonic()}\\n")
print("Training student ...", flush=True)
if arm == "broken":
    print("Error: The disk is full.")
    sys.exit(2)
if arm == "killed":
    os.kill(os.getpid(), 9)
while arm == "nap" and (play / "log").read_text().count("begins") < 2:
    time.sleep(0.02)
if arm == "slow":
    while not (play / "go").exists():
        time.sleep(0.02)
truth = np.arange(120, dtype=np.int32) % 3
right = {"kd": 100, "same": 100, "useless": 40, "slow": 100, "nap": 90}[arm] + recipe.seed
answers = np.where(np.arange(120) < right, truth, (truth + 1) % 3).astype(np.int32)
data = json.loads((play / "data.json").read_text())[str(recipe.seed)]
save_file({"truth": truth, "student": answers}, out / "predictions.safetensors",
          {"test_hash": data["test_hash"]})
score = right / 120
row = Row("student", "here", score, {"examples": 120}, size_bytes=1000)
plan = {"data": data, "budget": {"student": {"steps": 7, "seconds": 1.0, "trainings": ["student"]}}}
Report({"text": recipe.to_yaml()}, {}, (row,), {"seconds": {"total": 1.0}}, plan,
       history={"student": [{"step": 7, "loss": 0.1}]}).write(out)
with (play / "log").open("a") as log:
    log.write(f"{recipe.name} ends {time.monotonic()}\\n")
"""


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which a stand-in for `attar run` leaves what it does."""
    folder = tmp_path / "play"
    folder.mkdir()
    (folder / "run.py").write_text(PRETENDER)
    known = {}
    for seed in range(3):
        here = begin(attar.read(words(draw(tmp_path / "data"))["recipe"] | {"seed": seed}))
        known[seed] = {"hash": here.task.digest(), "test_hash": here.task.hash_of("test")}
    (folder / "data.json").write_text(json.dumps(known))
    monkeypatch.setenv("PLAY", str(folder))
    monkeypatch.setattr(running, "COMMAND", (str(folder / "run.py"),))
    return folder


def begun(play: Path) -> list[str]:
    """The runs that began, in order."""
    lines = (play / "log").read_text().splitlines()
    return [line.partition(" begins")[0] for line in lines if "begins" in line]


def until(true: Callable[[], bool]) -> None:
    """Wait for something to happen."""
    end = time.monotonic() + 300
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


class Ear(Silent):
    """Hears what is said."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def say(self, sentence: str) -> None:
        self.heard.append(sentence)

    @contextmanager
    def bar(self, title: str) -> Iterator[Advance]:
        def advance(done: int, total: int, word: str) -> None:
            self.heard.append(f"{title}: {done}/{total} {word}")

        yield advance


def test_identical_arms_are_not_resolved_a_useless_one_does_not_help_a_broken_one_is_a_row(
    play: Path, tmp_path: Path
) -> None:
    assert play.is_dir()
    arms = {"kd": {}, "same": {}, "useless": {}, "broken": {}, "killed": {}}
    said = words(tmp_path / "data", arms=arms, control="kd")
    ear = Ear()
    report = compare(said, tmp_path / "out", jobs=2, screen=ear, command="attar compare x.yaml")
    found = {each["row"]: each for each in report.differences}
    assert found["same"]["mean"] == 0
    assert not found["same"]["resolved"]
    assert found["useless"]["resolved"]
    assert found["useless"]["mean"] == pytest.approx(-0.5)
    assert found["useless"]["by_seed"] == pytest.approx([-0.5] * 2)
    told = " ".join(report.verdict)
    assert "Not resolved against kd: same +0.0 points" in told
    assert "Below kd, and resolved: useless −50.0 points" in told
    assert "That does not help." in told
    assert "Equal budget: yes, 7 optimizer steps each" in told
    rows = {row.name: row for row in report.rows}
    assert rows["kd"].by_seed == pytest.approx((100 / 120, 101 / 120))
    assert rows["kd"].score == pytest.approx(100.5 / 120)
    assert rows["kd"].role == "baseline"
    low, high = rows["useless"].interval or (1, 0)
    assert low < 40.5 / 120 < high
    assert rows["broken"].score is None
    assert rows["broken"].note == "failed (seeds 0, 1): The disk is full"
    assert "SIGKILL" in rows["killed"].note
    assert "broken failed (seeds 0, 1): The disk is full." in report.verdict
    assert report.recipe["command"] == "attar compare x.yaml"
    jsonschema.validate(report.to_dict(), schema())
    assert Report.read(tmp_path / "out").to_dict() == report.to_dict()
    assert (tmp_path / "out" / "report.html").is_file()
    assert "Comparing: 10/10 runs" in ear.heard


def test_no_more_run_at_once_than_there_is_room_for(play: Path, tmp_path: Path) -> None:
    said = words(tmp_path / "data", arms={"nap": {}}, seeds=[0, 1, 2])
    compare(said, tmp_path / "out", jobs=2)
    events = [line.rpartition(" ") for line in (play / "log").read_text().splitlines()]
    at_once, most = 0, 0
    for what, _, _ in sorted(events, key=lambda event: float(event[2])):
        at_once += 1 if what.endswith("begins") else -1
        most = max(most, at_once)
    assert most == 2


def test_only_what_is_missing_or_changed_is_run_again(play: Path, tmp_path: Path) -> None:
    said = words(tmp_path / "data", arms={"kd": {}, "same": {}}, seeds=[1])
    out = tmp_path / "out"

    def again(**more: Any) -> tuple[list[str], Report]:
        (play / "log").write_text("")
        report = compare(said | more, out)
        return sorted(begun(play)), report

    names, first = again()
    assert names == ["kd seed 1", "same seed 1"]
    (out / "same" / "seed-1" / "report.json").unlink()
    names, second = again()
    assert names == ["same seed 1"]
    assert [row.by_seed for row in second.rows] == [row.by_seed for row in first.rows]
    names, _ = again(arms={"kd": {}, "same": {"losses": ["response.jsd"]}})
    assert names == ["same seed 1"]
    with np.load(tmp_path / "data" / "test.npz") as kept:
        held = dict(kept)
    held["label"][:3] = held["label"][[1, 2, 0]]
    np.savez(tmp_path / "data" / "test.npz", **held)
    names, _ = again(arms={"kd": {}})
    assert names == ["kd seed 1"], "other data, other results"


def test_a_comparison_that_was_killed_runs_only_what_is_missing(play: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "c.yaml", tmp_path / "out"
    said = words(tmp_path / "data", arms={"kd": {}, "slow": {}, "same": {}}, seeds=[0])
    file.write_text(yaml.safe_dump(said, sort_keys=False))
    script = (
        f"from attar.comparing import running\nrunning.COMMAND = ({str(play / 'run.py')!r},)\n"
        f"from attar.cli import main\nmain(['compare', {str(file)!r}, '--out', {str(out)!r}, "
        "'--jobs', '1'])"
    )
    root = str(Path(attar.__path__[0]).parent)
    parent = subprocess.Popen([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": root})
    until(lambda: (play / "log").is_file() and "slow seed 0" in begun(play))
    parent.kill()
    parent.wait()
    assert begun(play) == ["kd seed 0", "slow seed 0"]

    class Impatient(Ear):
        def say(self, sentence: str) -> None:
            super().say(sentence)
            if "kd, seed 0: found" in sentence:
                (play / "go").touch()  # what the killed one left running goes on, and is waited for

    ear = Impatient()
    report = compare(file, out, jobs=1, screen=ear)
    assert begun(play) == ["kd seed 0", "slow seed 0", "same seed 0"]
    assert all(row.score == pytest.approx(100 / 120) for row in report.rows)


def test_an_interrupted_comparison_leaves_no_process_behind(play: Path, tmp_path: Path) -> None:
    class Stop(Silent):
        @contextmanager
        def bar(self, title: str) -> Iterator[Advance]:  # noqa: ARG002
            def advance(done: int, total: int, word: str) -> None:  # noqa: ARG001
                if word == "Training student":
                    raise KeyboardInterrupt

            yield advance

    paper = read_comparison(words(tmp_path / "data", arms={"slow": {}}, seeds=[0]))
    jobs = planned(paper).jobs(paper.seeds, tmp_path / "out")
    crew = Crew(jobs, Data().done, Stop(), 1, 1, tmp_path / "shared")
    with pytest.raises(KeyboardInterrupt):
        crew.work()
    (play / "go").touch()
    time.sleep(0.3)
    assert "ends" not in (play / "log").read_text()


def test_every_run_is_tracked_where_the_comparison_is(play: Path, tmp_path: Path) -> None:
    said = words(tmp_path / "data", arms={"kd": {}}, seeds=[0, 1])
    with pytest.raises(AttarError, match="did you mean 'mlflow'"):
        compare(said, tmp_path / "out", track=["mflow:server"])
    assert not (play / "log").exists()
    compare(said, tmp_path / "out", track=["tensorboard", "mlflow:server"])
    for seed in (0, 1):
        told = (play / f"kd seed {seed}.words").read_text().split()
        assert told == ["--track=tensorboard", "--track=mlflow:server"]


def test_a_comparison_whose_arms_all_fail_says_why(play: Path, tmp_path: Path) -> None:
    assert play.is_dir()
    said = words(tmp_path / "data", arms={"broken": {}}, seeds=[0])
    with pytest.raises(AttarError, match="Every arm failed, the first because: The disk is full"):
        compare(said, tmp_path / "out")


def test_one_seed_is_said_to_tell_nothing_of_luck(play: Path, tmp_path: Path) -> None:
    assert play.is_dir()
    said = words(tmp_path / "data", arms={"kd": {}, "useless": {}}, seeds=[1])
    report = compare(said, tmp_path / "out")
    (found,) = report.differences
    assert not found["resolved"]
    assert "one seed tells nothing of training's luck" in found["why"]
    assert any(sentence.startswith("There is one seed") for sentence in report.verdict)


# --- with real runs


def test_a_comparison_of_real_runs_shares_what_is_alike_and_tells_what_does_not_help(
    tmp_path: Path,
) -> None:
    """Two arms alike, and one whose teacher knows nothing; one test, since runs take seconds."""
    root = tmp_path
    arms = {
        "kd": {},
        "same": {},
        "random": {"teacher.epochs": 1, "teacher.lr": 1e-9},
        "labels_only": {"of": "kd", "row": "labels_only"},
        "teacher": {"of": "kd", "row": "teacher"},
    }
    said = words(draw(root / "data"), arms=arms)
    said["recipe"] |= {"measure": ["score", "parameters", "size", {"latency": {"seconds": 0.05}}]}
    said["recipe"]["steps"][0]["distill"]["evaluate"] = 12
    report = compare(said, root / "out", screen=(ear := Ear()), jobs=2)
    a_teacher_that_knows_nothing_is_said_not_to_help(report)
    arms_that_are_alike_answer_alike_and_train_once(root, report)
    a_run_keeps_its_answers_and_the_hash_of_its_test_split(root, report)
    the_last_weights_and_the_best_by_validation_are_both_scored(root, report)
    what_arms_ship_is_timed_by_the_parent_and_budgets_are_told(root, report, ear)


def a_teacher_that_knows_nothing_is_said_not_to_help(report: Report) -> None:
    found = {(each["row"], each["against"]): each for each in report.differences}
    random = found["random", "labels_only"]
    assert random["mean"] < -0.2
    assert random["resolved"]
    assert any(
        sentence.startswith("Below labels_only, and resolved: random")
        and sentence.endswith("That does not help.")
        for sentence in report.verdict
    )


def arms_that_are_alike_answer_alike_and_train_once(root: Path, report: Report) -> None:
    kd, same = report.row("kd"), report.row("same")
    assert kd.by_seed == same.by_seed
    trained = [folder.name.rpartition("-")[0] for folder in (root / "out" / "trainings").iterdir()]
    assert sorted(name for name in trained if name == "student") == ["student"] * 4
    assert len(list((root / "cache" / "teachers").iterdir())) == 4
    logs = [path.read_text() for path in (root / "out").rglob("log.txt")]
    assert len(logs) == 6
    asked = [log for log in logs if "Training the teacher: found" not in log]
    assert len(asked) == 4, "two seeds of two teachers, each trained once"


def a_run_keeps_its_answers_and_the_hash_of_its_test_split(root: Path, report: Report) -> None:
    folder = root / "out" / "kd" / "seed-0"
    told = Report.read(folder)
    with safe_open(folder / "predictions.safetensors", framework="numpy") as kept:
        assert set(kept.keys()) == {"truth", "teacher", "student", "labels_only"}
        about = kept.metadata()
        truth = kept.get_tensor("truth")
        for row in told.rows:
            answers = kept.get_tensor(row.name)
            assert answers.dtype == np.int32
            assert row.score == pytest.approx((answers == truth).mean())
    assert truth.tolist() == [n % STRIPES for n in range(TESTED)]
    assert json.loads(about["classes"]) == ["0", "1", "2"]
    assert about["part"] == "test"
    assert about["test_hash"] == told.plan["data"]["test_hash"] == report.plan["data"]["test_hash"]


def the_last_weights_and_the_best_by_validation_are_both_scored(root: Path, report: Report) -> None:
    row = Report.read(root / "out" / "kd" / "seed-0").row("student")
    assert 0 <= row.metrics["best_on_validation"] <= 1
    assert 0 <= report.row("kd").metrics["best_on_validation"] <= 1


def what_arms_ship_is_timed_by_the_parent_and_budgets_are_told(
    root: Path, report: Report, ear: Ear
) -> None:
    assert (report.row("teacher").latency_ms or {})["p50"] > 0
    assert report.row("kd").latency_ms is None, "a network in memory is no file to ship"
    assert Report.read(root / "out" / "kd" / "seed-0").row("teacher").latency_ms is None
    assert any("Measuring latency" in each for each in ear.heard)
    assert {row.name: row.metrics.get("steps") for row in report.rows} == {
        **dict.fromkeys(("kd", "same", "random", "labels_only"), 24),
        "teacher": None,
    }
    assert any(each.startswith("Equal budget: yes, 24 optimizer") for each in report.verdict)
    assert report.history["kd"][-1]["step"] == 24
    files = [root / "out" / "kd" / f"seed-{n}" / "teacher" / "model.safetensors" for n in (0, 1)]
    same = root / "out" / "same" / "seed-0" / "teacher" / "model.safetensors"
    assert same.stat().st_ino == files[0].stat().st_ino != files[1].stat().st_ino


# --- what is told


def test_the_best_at_each_size_is_whoever_scores_more_than_all_smaller_ones() -> None:
    known = [("a", 100, 0.5), ("b", 200, 0.4), ("c", 300, 0.9), ("d", 400, 0.9), ("e", 100, 0.6)]
    rows = [Row(name, "", score, size_bytes=size) for name, size, score in known]
    table = telling.tables([*rows, Row("failed", "")], [])
    assert table == {
        "Best at a size": [
            {"size from": "100 B", "best": "e", "score": 0.6},
            {"size from": "300 B", "best": "c", "score": 0.9},
        ]
    }


def test_a_store_is_filled_by_one_run_while_the_other_waits(
    bank: Path, base: Path, tmp_path: Path
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from attar.pipeline import cast
    from attar.schooling import fill_store
    from attar.setting import Book

    said = {
        "task": {"text.classification": {"dataset": str(bank), "max_length": 32}},
        "teacher": {"finetune": {"model": str(base), "epochs": 1}},
        "student": {"layers": {"keep": [0]}},
        "teach": "offline",
        "losses": ["response.kl"],
        "steps": [{"distill": {"steps": 1}}],
    }
    ears = [Ear(), Ear()]
    # Cast one after the other: both have the same teacher, drawn from random numbers they share.
    ready = [begin(attar.read(said), tmp_path / str(n), screen=ear) for n, ear in enumerate(ears)]
    models = [cast(here, Book()) for here in ready]

    def fill(number: int) -> None:
        found = models[number]
        fill_store(ready[number], found.teacher, found.taught, Book())

    with ThreadPoolExecutor(2) as both:
        list(both.map(fill, (0, 1)))
    told = [sentence for ear in ears for sentence in ear.heard if sentence.startswith("Knowledge")]
    asked = sorted(int(sentence.split("; ")[1].split()[0]) for sentence in told)
    assert asked[0] == 0
    assert asked[1] > 0


def test_answers_that_are_neither_right_nor_wrong_are_refused_in_a_sentence(
    tmp_path: Path,
) -> None:
    save_file({"student": np.zeros(3, np.int32)}, file := tmp_path / "p.safetensors", {})
    with pytest.raises(DataError, match="answered right or wrong"):
        weighing._hits(file, "student")
    with pytest.raises(DataError, match="keeps no answers of teacher"):
        weighing._hits(file, "teacher")


def test_a_process_ended_from_outside_is_told_by_its_signal() -> None:
    assert "SIGTERM" in running._reason(-signal.SIGTERM, [])
    assert (
        running._reason(1, ["ValueError: no", "This is a bug in attar: please"]) == "ValueError: no"
    )
    assert running._reason(3, []) == "exit code 3"
