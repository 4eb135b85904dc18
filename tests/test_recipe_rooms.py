"""A recipe is checked against rooms, and their JSON Schema says the same as the check."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from attar.errors import RecipeError
from attar.recipe import ROOMS, Recipe, check, json_schema, read

FILES = {
    "__init__": "",
    "tasks": """
        class text:
            def __init__(self, seed, *, dataset: str, max_length: int = 128): ...
            def loss(self, knowledge, batch, *, smoothing: float = 0.0): ...
        def made(seed, *, classes: int = 2) -> text: ...
        """,
    "teachers": "def finetune(task, *, model: str, epochs: int = 3, lr: float = 5e-5): ...",
    "students": """
        def encoder(texts, *, layers: int = 2, width: int = 128): ...
        def cut(teacher, *, keep: int = 1): ...
        def joined(texts, *, student: str | dict[str, Any] = "encoder"): ...
        """,
    "teach": """
        def alone(batches): ...
        def online(batches, teachers, forward): ...
        def offline(batches, teachers, forward, *, store: Path = Path("knowledge")): ...
        def self_ema(batches, student, forward, *, decay: float = 0.99): ...
        """,
    "losses": """
        def kl(student, teacher, *, temperature: float = 1.0):
            '''Hinton's loss.

            temperature: of both softmaxes
            '''
        def dkd(student, teacher, labels, *, alpha: float): ...
        def entropy(student): ...
        def hint(student: Features, teacher): ...
        def soft(student, teacher, *, heat: Annotated[float, Gt(0)] = 1.0): ...
        class crd:
            def __init__(self, student, teacher, *, temperature: float = 0.1): ...
        """,
    "schedules": """
        def linear(progress, *, start: float = 0.0, end: float = 1.0) -> float:
            return start + (end - start) * progress
        """,
    "loop": "def train(student, *, epochs: int = 1, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.99)): ...",  # noqa: E501
    "compress": "def int8(model, *, kind: Literal['static', 'dynamic'] = 'dynamic'): ...",
    "export": "def onnx(model, example, path, *, opset: int = 18): ...",
    "measure": "\n".join(
        f"def {name}(model): ..."
        for name in ("score", "parameters", "macs", "size", "latency", "memory", "audit")
    ),
    "baselines": "def labels_only(recipe): ...",
    "engine": "def local(*, precision: Literal['auto', 'fp32'] = 'auto'): ...",
}
MODULES: dict[str, Any] = {
    "task": "paper_rooms.tasks",
    "teacher": "paper_rooms.teachers",
    "student": "paper_rooms.students",
    "teach": "paper_rooms.teach",
    "losses": "paper_rooms.losses",
    "weight": "paper_rooms.schedules",
    "steps": (
        "distill=paper_rooms.loop:train",
        "quantize=paper_rooms.compress",
        "export=paper_rooms.export",
    ),
    "measure": "paper_rooms.measure",
    "baselines": "paper_rooms.baselines",
    "engine": "paper_rooms.engine",
}

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


@pytest.fixture(scope="module", autouse=True)
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Rooms of a file each, importable while this file is tested."""
    folder = tmp_path_factory.mktemp("rooms")
    (folder / "paper_rooms").mkdir()
    head = "from __future__ import annotations\nfrom pathlib import Path\nfrom typing import *\n"
    head += "from annotated_types import Gt\n"
    for name, text in FILES.items():
        body = head + text.replace("\n        ", "\n")
        (folder / "paper_rooms" / f"{name}.py").write_text(body)
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))
    for module in [name for name in sys.modules if name.partition(".")[0] == "paper_rooms"]:
        del sys.modules[module]


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


def test_a_checked_recipe_has_every_function_with_its_options_bound() -> None:
    found = check(read(INTENTS), MODULES)
    rooms = {key: vars(sys.modules[f"paper_rooms.{key}"]) for key in ("loop", "losses", "tasks")}
    assert found.steps[0].function.func is rooms["loop"]["train"]
    assert found.steps[0].function.keywords == {"epochs": 20, "lr": 5e-4}
    assert [piece.name for piece in found.steps] == ["distill", "quantize.int8", "export.onnx"]
    labels, kl, scheduled = found.losses
    assert labels.function.func is rooms["tasks"]["text"].loss
    assert (labels.weight, labels.layers, labels.function.keywords) == (0.3, None, {})
    assert kl.function.func is rooms["losses"]["kl"]
    assert (kl.weight, kl.function.keywords) == (0.7, {"temperature": 4.0})
    assert callable(scheduled.weight)
    assert scheduled.weight(0.25) == 0.25
    assert scheduled.layers == {"a.0": "b.1"}
    assert found.teach is not None
    assert found.teach.function.keywords == {"store": Path("knowledge")}
    assert found.engine.name == "local"


def test_the_task_of_a_function_is_what_the_function_says_it_makes() -> None:
    text = "task: made\nstudent: encoder\nlosses: [task: {smoothing: 0.1}]\nsteps: [distill]\n"
    found = check(read(text), MODULES)
    assert found.losses[0].function.func is sys.modules["paper_rooms.tasks"].text.loss
    assert found.losses[0].function.keywords == {"smoothing": 0.1}


def test_an_option_of_a_loss_may_be_a_schedule() -> None:
    text = "losses: [kl: {weight: 2, temperature: {linear: {start: 4, end: 1}}}]"
    (kl,) = check(read(text_of(text)), MODULES).losses
    assert kl.function.func is sys.modules["paper_rooms.losses"].kl
    temperature = kl.function.keywords["temperature"]
    assert [temperature(share) for share in (0.0, 0.5, 1.0)] == [4.0, 2.5, 1.0]
    assert kl.weight == 2
    (task,) = check(read(text_of("losses: [task: {smoothing: {linear: }}]")), MODULES).losses
    assert task.function.keywords["smoothing"](0.25) == 0.25


def test_an_option_that_a_recipe_requires_may_be_a_schedule_too() -> None:
    (dkd,) = check(read(text_of("losses: [dkd: {alpha: {linear: {end: 3}}}]")), MODULES).losses
    assert dkd.function.keywords["alpha"](0.5) == 1.5


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        ("losses:\n  - kl: {temperature: {linaer: {start: 4}}}",
         "x.yaml:3: 'linaer' is not in paper_rooms.schedules; did you mean 'linear'?"),
        ("losses:\n  - kl: {temperature: {linear: {stop: 4}}}",
         "x.yaml:3: linear has no option 'stop'; choose from: end, start"),
        ("losses:\n  - kl: {temperature: {linear: 4}}",
         "x.yaml:3: option 'temperature' of kl must be float, not {'linear': 4}"),
        ("losses:\n  - kl: {temprature: {linear: {start: 4}}}",
         "x.yaml:3: kl has no option 'temprature'; did you mean 'temperature'?"),
        ("losses:\n  - soft: {heat: {linear: {start: 4, end: 0}}}",
         "x.yaml:3: option 'heat' of soft must be float, not 0.0 (Input should be greater than 0)"),
        ("losses:\n  - crd: {temperature: {linear: {start: 4}}}",
         "x.yaml:3: crd is built once: its option 'temperature' can't be a schedule, its weight "
         "can"),
        ("steps:\n  - distill: {lr: {linear: {start: 4}}}",
         "x.yaml:3: option 'lr' of distill must be float, not {'linear': {'start': 4}}"),
    ],
)  # fmt: skip
def test_a_schedule_that_can_not_be_followed_is_told_with_its_line(
    file: Callable[[str], Path], part: str, sentence: str
) -> None:
    recipe = read(file(text_of(part)))
    with pytest.raises(RecipeError) as caught:
        check(recipe, MODULES)
    assert told(caught) == sentence


WRONG = [
    ("task: {txt: {dataset: d}}",
     "x.yaml:1: 'txt' is not in paper_rooms.tasks; did you mean 'text'?"),
    ("task:\n  text:\n    dataset: d\n    max_length: long",
     "x.yaml:4: option 'max_length' of text must be int, not 'long'"),
    ("task: {text: {dataset: d,\n  max_lenght: 3}}",
     "x.yaml:2: text has no option 'max_lenght'; did you mean 'max_length'?"),
    ("task: text", "x.yaml:1: text needs the option 'dataset' (str)"),
    ("teacher: {finetune: {model: m, lr: fast}}",
     "x.yaml:2: option 'lr' of finetune must be float, not 'fast'"),
    ("losses:\n  - kl\n  - task: {smoothin: 1}",
     "x.yaml:4: task has no option 'smoothin'; did you mean 'smoothing'?"),
    ("losses:\n  - kl: {temprature: 2}",
     "x.yaml:3: kl has no option 'temprature'; did you mean 'temperature'?"),
    ("losses:\n  - kl: {weight: true}",
     "x.yaml:3: the weight of kl must be a number or a schedule, not True"),
    ("losses:\n  - kl: {weight: {linear: {stop: 2}}}",
     "x.yaml:3: linear has no option 'stop'; choose from: end, start"),
    ("losses:\n  - kl: {weight: linaer}",
     "x.yaml:3: 'linaer' is not in paper_rooms.schedules; did you mean 'linear'?"),
    ("losses:\n  - kl: {layers: [1]}",
     "x.yaml:3: the layers of kl must be a word such as auto, or student path: teacher path, "
     "not [1]"),
    ("steps:\n  - distil",
     "x.yaml:3: 'distil' is not in paper_rooms.loop:train or paper_rooms.compress or "
     "paper_rooms.export; did you mean 'distill'?"),
    ("steps:\n  - distill: {betas: [1]}",
     "x.yaml:3: option 'betas' of distill must be tuple[float, float], not [1]"),
    ("steps:\n  - quantize.int8: {kind: dynamical}",
     "x.yaml:3: option 'kind' of quantize.int8 has no 'dynamical'; did you mean 'dynamic'?"),
    ("measure: [scores]",
     "x.yaml:2: 'scores' is not in paper_rooms.measure; did you mean 'score'?"),
    ("baselines: [label_only]",
     "x.yaml:2: 'label_only' is not in paper_rooms.baselines; did you mean 'labels_only'?"),
    ("engine: locl", "x.yaml:2: 'locl' is not in paper_rooms.engine; did you mean 'local'?"),
]  # fmt: skip

RIGHT = [
    "seed: 3",
    "name: null",
    "teach:\nlosses: []\nsteps: [quantize.int8]",
    "teach: {self_ema: {decay: 0}}",
    "teacher: null\nlosses: [task]",
    "teacher: null\nlosses: [entropy]",
    "teacher: null\nteach: self_ema\nlosses: [kl]",
    "student: null\nsteps: [quantize.int8, export.onnx: {opset: 17}]",
    "losses: [hint: {weight: 2, layers: auto}, kl: {weight: linear, layers: {a: b}}]",
    "losses: [kl: {temperature: {linear: {start: 4, end: 1}}}]",
    "losses: [dkd: {alpha: 1}]",
    "steps: [distill: {betas: [0.9, 1]}]",
    "steps: [distill: , quantize.int8: {kind: static}]",
    "measure: []",
    "measure: [score, audit]",
    "engine: {local: {precision: fp32}}",
    "baselines: [labels_only]",
]


def whole(part: str) -> dict[str, Any]:
    """A whole recipe with a part of it as given; the part's first line is the recipe's second."""
    return {
        "task": {"text": {"dataset": "d"}},
        "teacher": {"finetune": {"model": "m"}},
        "student": "encoder",
        "losses": ["kl"],
        "steps": ["distill"],
    } | yaml.safe_load(part)


def text_of(part: str) -> str:
    """The same as YAML, with the part in its own lines."""
    given = yaml.safe_load(part)
    rest = {key: value for key, value in whole(part).items() if key not in given}
    task = "" if "task" in given else f"task: {json.dumps(rest.pop('task'))}\n"
    return task + part + "\n" + "".join(f"{k}: {json.dumps(v)}\n" for k, v in rest.items())


@pytest.mark.parametrize(("part", "sentence"), WRONG, ids=[part for part, _ in WRONG])
def test_what_no_room_knows_is_one_sentence_with_its_line(
    file: Callable[[str], Path], part: str, sentence: str
) -> None:
    recipe = read(file(text_of(part)))
    with pytest.raises(RecipeError) as caught:
        check(recipe, MODULES)
    assert told(caught) == sentence


@pytest.mark.parametrize("part", RIGHT)
def test_what_the_rooms_know_is_taken_and_written_back_the_same(part: str) -> None:
    recipe = read(text_of(part))
    again = read(recipe.to_yaml())
    assert again == recipe
    assert again.digest() == recipe.digest()
    assert check(again, MODULES).task.name == "text"


def test_an_overridden_option_is_refused_in_the_words_of_the_command_line() -> None:
    with pytest.raises(RecipeError) as caught:
        check(read(INTENTS, ["steps.0.lr=fast"]), MODULES)
    assert told(caught) == "--set steps.0.lr=fast: option 'lr' of distill must be float, not 'fast'"


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        ("student: null\nsteps:\n  - distill",
         "x.yaml:4: distill needs a student to train: add the key student"),
        ("losses:\n  - hint: {layers: auto}\n  - kl: {layers: auto}",
         "x.yaml:4: kl compares logits and takes no layers"),
        ("teacher: null\nlosses: [task]\nstudent:\n  cut: {keep: 2}",
         "x.yaml:4: the student cut takes layers or words of the teacher, and the recipe has none: "
         "add the key teacher"),
        ("student:\n  joined:\n    student:\n      encodr: {width: 3}",
         "x.yaml:4: 'encodr' is not in paper_rooms.students; did you mean 'encoder'?"),
        ("student:\n  joined:\n    student:\n      encoder: {widht: 3}",
         "x.yaml:5: encoder has no option 'widht'; did you mean 'width'?"),
        ("student: {joined: {student: {encoder: 3}}}",
         "a choice is written `name` or `name: {options}`, not {'encoder': 3}"),
        ("losses: []", "distill needs something to learn from: add the key losses"),
        ("teacher: null\nlosses:\n  - task\n  - kl",
         "x.yaml:5: kl needs a teacher: add the key teacher"),
        ("teacher: null\nteach: alone\nlosses: [kl]",
         "x.yaml:4: kl needs a teacher: add the key teacher"),
        ("teach: null\nsteps: [distill]\nlosses: [kl]",
         "x.yaml:4: kl needs somebody to teach, and teach is null"),
        ("student: null\nteacher: null\nlosses: []\nsteps: [quantize.int8]",
         "x.yaml:5: there is no model to work on: name a student, a teacher, or both"),
    ],
)  # fmt: skip
def test_a_recipe_that_makes_no_sense_is_told_why(
    file: Callable[[str], Path], part: str, sentence: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        check(read(file(text_of(part))), MODULES)
    assert told(caught).endswith(sentence)


@pytest.mark.parametrize("chain", [("a", "a"), ("a", "b", "a"), ("a", "b", "b")])
def test_recipes_that_teach_in_a_circle_are_refused(
    chain: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rooms = MODULES | {"teacher": "attar.teachers"}
    for name, teacher in pairwise(chain):
        text = text_of(f"teacher:\n  distilled: {{recipe: {teacher}.yaml}}")
        Path(f"{name}.yaml").write_text(text)
    with pytest.raises(RecipeError, match=r"a\.yaml:\d: .* each other's teacher in a circle"):
        check(read("a.yaml"), rooms)
    Path(f"{chain[-2]}.yaml").write_text(text_of("teacher: {distilled: {recipe: gone.yaml}}"))
    assert check(read("a.yaml"), rooms)


def test_own_code_needs_trust_and_is_then_checked_like_any_other(
    file: Callable[[str], Path],
) -> None:
    Path(file("").parent / "mine.py").write_text(
        "def huber(student, teacher, *, delta: float = 1.0): ..."
    )
    recipe = read(text_of("losses: [mine:huber: {delta: 2}]"))
    assert recipe.losses[0].name == "mine:huber"
    with pytest.raises(RecipeError, match="add --trust"):
        check(recipe, MODULES)
    assert check(recipe, MODULES, trust=True).losses[0].function.keywords == {"delta": 2.0}


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    """The JSON Schema over the small rooms, itself checked."""
    schema = json.loads(json.dumps(json_schema(MODULES)))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.mark.parametrize("part", RIGHT)
def test_the_schema_takes_what_check_takes(validator: Draft202012Validator, part: str) -> None:
    assert list(validator.iter_errors(whole(part))) == []


# What one key means to another, and the options of the task's own loss, only `check` knows.
@pytest.mark.parametrize("part", [part for part, _ in WRONG if "smoothin" not in part])
def test_the_schema_refuses_what_check_refuses(validator: Draft202012Validator, part: str) -> None:
    assert not validator.is_valid(whole(part))


@pytest.mark.parametrize(
    "part",
    ["studnet: x", "seed: one", "steps: []", "losses: {kl: {}}", "task: null", "name: 3",
     "teach: {online: {}, offline: {}}", "losses: [kl: {}, 3]", "losses: [dkd]"],
)  # fmt: skip
def test_the_schema_refuses_what_is_not_a_recipe(
    validator: Draft202012Validator, part: str
) -> None:
    with pytest.raises(RecipeError):
        check(read(whole(part)), MODULES)
    assert not validator.is_valid(whole(part))


def test_the_schema_takes_the_recipe_of_the_design(validator: Draft202012Validator) -> None:
    assert list(validator.iter_errors(read(INTENTS).to_dict())) == []


def test_the_schema_tells_an_editor_types_defaults_and_what_things_are() -> None:
    kl = json_schema(MODULES)["$defs"]["losses"]["oneOf"][-1]["properties"]["kl"]
    assert kl["description"] == "Hinton's loss."
    assert kl["properties"]["temperature"] == {
        "default": 1.0,
        "description": "of both softmaxes",
        "oneOf": [{"type": "number"}, {"$ref": "#/$defs/weight"}],
    }
    assert list(kl["properties"]) == ["weight", "layers", "temperature"]


def test_every_key_with_choices_has_its_rooms() -> None:
    assert set(ROOMS) - {"weight"} == set(Recipe.model_fields) - {"name", "seed"}
