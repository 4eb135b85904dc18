"""A recipe is read, refused with the line, overridden, and written back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from attar.errors import RecipeError
from attar.recipe import Choice, Recipe, read

INTENTS = """\
# a comment
task:
  text: {dataset: data/banking77.parquet, max_length: 64}
teacher: {finetune: {model: big, epochs: 4, lr: 5e-5}}
student: {encoder: {layers: 2, width: 128}}
teach: {offline: {store: knowledge/}}
losses:
  - task: {weight: 0.3}
  - kl: {weight: 0.7, temperature: 4}
  - kl:
      weight: {linear: {start: 0, end: 1}}
      layers: {a.0: b.1}
steps:
  - distill: {epochs: 20, lr: 5e-4}
  - quantize.int8
  - export.onnx
measure: [score, size, audit]
baselines: [labels_only]
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Writes a text to `x.yaml` in the directory one stands in."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> Path:
        Path("x.yaml").write_text(text)
        return Path("x.yaml")

    return write


def told(error: pytest.ExceptionInfo[RecipeError]) -> str:
    """The sentence a user sees; it is one, and on one line."""
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_recipe_is_read_key_by_key(file: Callable[[str], Path]) -> None:
    recipe = read(file(INTENTS))
    assert recipe.name is None
    assert recipe.seed == 0
    dataset = {"dataset": "data/banking77.parquet", "max_length": 64}
    assert recipe.task == Choice(name="text", options=dataset)
    assert recipe.losses[1] == Choice(name="kl", options={"weight": 0.7, "temperature": 4})
    assert recipe.steps[1] == Choice(name="quantize.int8")
    assert [choice.name for choice in recipe.measure] == ["score", "size", "audit"]
    assert recipe.engine == Choice(name="local")


def test_what_a_recipe_leaves_out_has_the_default_of_the_design() -> None:
    recipe = read("task: text\nsteps: [distill]\n")
    assert recipe.teach == Choice(name="online")
    assert (recipe.teacher, recipe.student, recipe.losses, recipe.baselines) == (None, None, (), ())
    assert [choice.name for choice in recipe.measure] == [
        "score", "parameters", "macs", "size", "latency", "memory",
    ]  # fmt: skip
    assert read("task: text\nsteps: [distill]\nteach:\n").teach is None


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("5e-5", 5e-5), ("1e3", 1000.0), ("-2.5E+3", -2500.0), ("1.", 1.0), (".5", 0.5),
        ("1.0e-4", 1e-4), (".inf", float("inf")), ("20", 20), ("1_000", 1000), ("-3", -3),
        ("0x1F", 31), ("true", True), ("no", "no"), ("on", "on"), ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"), ("e5", "e5"), ("1e", "1e"), ("'5e-5'", "5e-5"),
        ("null", None), ("~", None), ("1.2.3", "1.2.3"), ("-", None), ("010", "010"), (".", "."),
    ],
)  # fmt: skip
def test_a_word_of_yaml_is_what_it_looks_like(word: str, value: object) -> None:
    if word == "-":
        value = [None]
    got = read(f"task:\n  text:\n    dataset:\n      {word}\nsteps: [x]\n").task.options["dataset"]
    assert got == value
    assert type(got) is type(value)


def test_an_alias_and_a_merge_say_the_same_twice() -> None:
    text = "task: {a: &x {lr: 1e-3, k: 1}}\nteacher: {b: {<<: *x, k: 2}}\nsteps: [{c: *x}]\n"
    recipe = read(text)
    assert recipe.teacher == Choice(name="b", options={"lr": 1e-3, "k": 2})
    assert recipe.steps[0].options == recipe.task.options
    assert read(recipe.to_yaml()) == recipe


def test_an_override_of_an_alias_leaves_the_other_as_it_was() -> None:
    text = "task: {a: &x {k: 1}}\nsteps: [{c: *x}]\n"
    recipe = read(text, ["task.a.k=5"])
    assert (recipe.task.options, recipe.steps[0].options) == ({"k": 5}, {"k": 1})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("task: t\nstudnet: s\nsteps: [x]\n",
         "x.yaml:2: unknown key 'studnet' in the recipe; did you mean 'student'?"),
        ("task: t\nstpes: [x]\n",
         "x.yaml:2: unknown key 'stpes' in the recipe; did you mean 'steps'?"),
        ("task: t\n", "x.yaml: the recipe needs the key 'steps'"),
        ("task: t\nseed: one\nsteps: [x]\n",
         "x.yaml:2: 'seed' should be a valid integer, not 'one'"),
        ("task: t\nseed: true\nsteps: [x]\n",
         "x.yaml:2: 'seed' should be a valid integer, not True"),
        ("name: 3\ntask: t\nsteps: [x]\n", "x.yaml:1: 'name' should be a valid string, not 3"),
        ("task: t\nlosses: {kl: {}}\nsteps: [x]\n",
         "x.yaml:2: 'losses' should be a valid list, not {'kl': {}}"),
        ("task: t\n\nsteps: []\n",
         "x.yaml:3: the list of steps is empty; a recipe does at least one thing"),
        ("task: t\nlosses:\n  - kl\n  - kl: 0.5\nsteps: [x]\n",
         "x.yaml:4: a choice is written `name` or `name: {options}`, not {'kl': 0.5}"),
        ("task: t\nlosses:\n  - kl: {}\n    weight: 2\nsteps: [x]\n",
         "x.yaml:3: a choice is written `name` or `name: {options}`, not {'kl': {}, 'weight': 2}"),
        ("task: t\nseed: 1\nseed: 2\nsteps: [x]\n",
         "x.yaml:3: this is not good YAML: 'seed' stands here twice"),
        ("task: {t: {a: 1,\n  a: 2}}\nsteps: [x]\n",
         "x.yaml:2: this is not good YAML: 'a' stands here twice"),
        ("task: {t: {1: 2}}\nsteps: [x]\n",
         "x.yaml:1: this is not good YAML: a key must be a word (or in quotes)"),
        ("task: t\nsteps: [x\n",
         "x.yaml:3: this is not good YAML: expected ',' or ']', but got '<stream end>'"),
        ("task: t\nsteps: !!python/object:os.system [x]\n",
         "x.yaml:2: this is not good YAML: could not determine a constructor for the tag "
         "'tag:yaml.org,2002:python/object:os.system'"),
        ("", "x.yaml: a recipe is made of lines `key: value`, at least task and steps"),
        ("- task\n", "x.yaml: a recipe is made of lines `key: value`, at least task and steps"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence_with_its_line(
    file: Callable[[str], Path], text: str, sentence: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        read(file(text))
    assert told(caught) == sentence


def test_data_that_no_recipe_can_hold_is_refused_with_its_line(file: Callable[[str], Path]) -> None:
    with pytest.raises(RecipeError, match=r"x\.yaml:2: 'teacher'.*JSON"):
        read(file("task: t\nteacher: {a: {b: !!timestamp 2024-01-01}}\nsteps: [x]\n"))


def test_a_recipe_inside_itself_is_refused(file: Callable[[str], Path]) -> None:
    with pytest.raises(RecipeError, match="this is not good YAML"):
        read(file("task: &a {t: {b: *a}}\nsteps: [x]\n"))


def test_a_file_that_is_not_there_or_not_text_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"absent\.yaml: the recipe can't be read: .*No such"):
        read(tmp_path / "absent.yaml")
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(RecipeError, match=r"x\.yaml: the recipe can't be read"):
        read(str(tmp_path / "x.yaml"))


def test_a_text_is_called_recipe_in_errors() -> None:
    with pytest.raises(RecipeError, match=r"^recipe:2: unknown key 'tasks'"):
        read("steps: [x]\ntasks: t\n")


@pytest.mark.parametrize(
    ("setting", "look", "value"),
    [
        ("seed=3", "seed", 3),
        ("name=first try", "name", "first try"),
        ("losses.1.weight=0.5", "losses.1.kl.weight", 0.5),
        ("losses.1.kl.weight=5e-1", "losses.1.kl.weight", 0.5),
        ("losses.2.weight.linear.end=2", "losses.2.kl.weight.linear.end", 2),
        ("losses.2.layers.a.0=c.2", "losses.2.kl.layers", {"a.0": "c.2"}),
        ("losses.0.weight={linear: {end: 2}}", "losses.0.task.weight", {"linear": {"end": 2}}),
        ("steps.0.distill.lr=1e-3", "steps.0.distill.lr", 1e-3),
        ("steps.1.quantize.int8.kind=static", "steps.1", {"quantize.int8": {"kind": "static"}}),
        ("steps.1.kind=static", "steps.1", {"quantize.int8": {"kind": "static"}}),
        ("steps.2.export.onnx={opset: 17}", "steps.2", {"export.onnx": {"opset": 17}}),
        ("steps.1=distill", "steps.1", "distill"),
        ("steps=[distill]", "steps", ["distill"]),
        ("task.text.dataset=x", "task.text.dataset", "x"),
        ("teach.offline.store=there", "teach.offline.store", "there"),
        ("teach=online", "teach", "online"),
        ("teach=", "teach", None),
        ("engine.local.precision=fp32", "engine.local.precision", "fp32"),
        ("engine.precision=fp32", "engine.local.precision", "fp32"),
        ("measure.0=memory", "measure.0", "memory"),
    ],
)
def test_an_override_changes_one_thing_and_nothing_else(
    setting: str, look: str, value: object
) -> None:
    was, now = read(INTENTS).to_dict(), read(INTENTS, [setting]).to_dict()
    key = look.partition(".")[0]
    assert {**now, key: was[key]} == was
    assert now != was
    found: Any = now
    for part in look.split("."):
        found = found[int(part)] if isinstance(found, list) else found[part]
    assert found == value


def test_overrides_are_taken_one_after_another() -> None:
    recipe = read(INTENTS, ["student=lstm", "student.lstm.width=8", "student.depth=1", "seed=1"])
    assert recipe.student == Choice(name="lstm", options={"width": 8, "depth": 1})
    assert recipe.seed == 1


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("studnet=x", "unknown key 'studnet' in the recipe; did you mean 'student'?"),
        ("losess.1.weight=2", "unknown key 'losess' in the recipe; did you mean 'losses'?"),
        ("losses.7.weight=2", "losses is a list of 3, counted from 0; '7' is not in it"),
        ("losses.kl.weight=2", "losses is a list of 3, counted from 0; 'kl' is not in it"),
        ("steps.0.distil.lr=1", "steps.0.distill has no 'distil'; did you mean 'distill'?"),
        ("losses.2.wieght.linear.end=1", "losses.2.kl has no 'wieght.linear'; choose from: "),
        ("steps.0.lr.x=1", "steps.0.distill.lr is 0.0005, and nothing is under it"),
        ("seed.x=1", "seed is 0, and nothing is under it"),
        ("seed", "write path=value, as in losses.0.weight=0.5"),
        ("seed=one", "'seed' should be a valid integer, not 'one'"),
        ("losses.1={a: 1, b: 2}", "a choice is written `name` or `name: {options}`, not"),
    ],
)
def test_an_override_that_fits_nowhere_says_so(setting: str, sentence: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read(INTENTS, [setting])
    assert told(caught).startswith(f"--set {setting}: {sentence}")


def test_an_override_that_is_not_yaml_says_so() -> None:
    with pytest.raises(RecipeError, match=r"^--set seed=\[1:1: this is not good YAML"):
        read(INTENTS, ["seed=[1"])


def test_yaml_keeps_the_order_of_the_flow_and_prints_plain_names_plainly() -> None:
    text = "steps: [distill: {}, export.onnx: {opset: 17}]\nteach:\nseed: 2\ntask: text\n"
    assert read(text).to_yaml() == (
        "seed: 2\n"
        "task: text\n"
        "teach: null\n"
        "steps:\n"
        "- distill\n"
        "- export.onnx: {opset: 17}\n"
        "measure: [score, parameters, macs, size, latency, memory]\n"
        "engine: local\n"
    )


@pytest.mark.parametrize(
    "value", ["5e-5", "1.", "yes", "null", "", "a: b", "1_0", "é\n", 5e-5, 1e20, 1e-300, -0.0, [[]]]
)
def test_every_value_survives_being_written(value: object) -> None:
    recipe = Recipe.model_validate({"task": {"t": {"x": value}}, "steps": ["s"]})
    assert read(recipe.to_yaml()).task.options["x"] == value
    assert read(recipe.to_dict()) == recipe
    assert json.loads(json.dumps(recipe.to_dict())) == recipe.to_dict()


def test_where_a_recipe_stands_is_no_part_of_what_it_says(file: Callable[[str], Path]) -> None:
    here, there = read(file(INTENTS)), read("# moved\n" + INTENTS)
    assert here.place("losses", 1) == "x.yaml:9"
    assert here.place("losses", 2, "kl", "layers") == "x.yaml:12"
    assert there.place("losses", 1) == "recipe:10"
    assert here.place("losses", 1, "kl", "absent") == "x.yaml:9"
    assert here.place("engine") == "x.yaml"
    assert here == there
    assert here.digest() == there.digest()
    assert repr(here) == repr(there)


def test_the_digest_is_of_what_is_said_and_not_of_how() -> None:
    recipe = read(INTENTS)
    assert read(INTENTS + "seed: 0\n").digest() == recipe.digest()
    assert read(INTENTS.replace("epochs: 20, lr: 5e-4", "lr: 0.0005, epochs: 20")).digest() == (
        recipe.digest()
    )
    assert read(INTENTS, ["seed=1"]).digest() != recipe.digest()
    assert read(INTENTS, ["losses.1.weight=0.71"]).digest() != recipe.digest()

    said = (
        '{"baselines": [], "engine": "local", "gates": {}, "losses": [], '
        '"measure": ["score"], "name": null, '
        '"seed": 0, "steps": ["s"], "student": null, "task": "t", "teach": "online", '
        '"teacher": null}'
    )
    short = read("task: t\nsteps: [s]\nmeasure: [score]\n")
    assert short.digest() == hashlib.sha256(said.encode()).hexdigest()


def test_a_recipe_is_frozen_and_what_it_gives_away_is_a_copy() -> None:
    recipe = read(INTENTS)
    with pytest.raises(ValidationError, match="frozen"):
        recipe.seed = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        recipe.task.name = "x"  # type: ignore[misc]
    recipe.to_dict()["losses"][1]["kl"]["weight"] = 9
    assert recipe == read(INTENTS)


def test_yaml_that_is_nested_too_deep_is_a_sentence() -> None:
    with pytest.raises(RecipeError, match="not good YAML: it is nested too deep"):
        read("task: x\nsteps: " + "[" * 5000)
