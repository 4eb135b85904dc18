"""Teachers of any make keep the same promises, and teachers of unlike classes teach as one."""

from __future__ import annotations

import os

os.environ.setdefault("KERAS_BACKEND", "torch")

import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from attar import casting, teach
from attar.cli import main
from attar.errors import AttarError, MissingExtra, ModelError, RecipeError, StoreError
from attar.pipeline import cast, run
from attar.recipe import read
from attar.schooling import lessons, who_answers
from attar.setting import Book, Cast, Setting, begin
from attar.store import fingerprint
from attar.tasks.text import classification
from attar.tasks.text.foreign import KerasNetwork
from attar.types import IGNORE, Batch, Knowledge, Lesson

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its own imports
    import keras

CLASSES = ("card", "rate", "top_up")
WIDTH, PIECES = 6, 200

NETWORKS = '''
import torch
from torch import nn
from transformers import AutoTokenizer


class Mean(nn.Module):
    """A linear layer over the mean of the real tokens, behind dropout."""

    def __init__(self, seed, classes):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding({pieces}, {width})
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear({width}, classes)
        self.tokenizer = AutoTokenizer.from_pretrained({tokenizer!r})

    def forward(self, input_ids, attention_mask):
        real = attention_mask.unsqueeze(-1)
        mean = (self.drop(self.embedding(input_ids)) * real).sum(1) / real.sum(1)
        return self.head(mean)


def build():
    network = Mean({seed}, {classes})
    with torch.no_grad():
        network.head.bias[1] += 5
    return network


def student(classes):
    return Mean(77, len(classes))


def fails():
    raise ValueError("no weights here\\nat all")


def nothing():
    return {{}}


def keras_model():
    from test_teachers import keras_net

    model = keras_net({seed}, {classes})
    model.tokenizer = AutoTokenizer.from_pretrained({tokenizer!r})
    return model
'''


def own_code(home: Path, seed: int = 0, classes: int = 3) -> Path:
    """The user's own file; each has a name of its own, as a module is imported once."""
    file = home / f"mine_{seed}_{classes}.py"
    facts = {"pieces": PIECES, "width": WIDTH, "tokenizer": str(home / "base")}
    file.write_text(NETWORKS.format(seed=seed, classes=classes, **facts))
    return file


def weights(seed: int, classes: int) -> tuple[np.ndarray[Any, Any], ...]:
    draw = np.random.default_rng(seed)
    table, head = draw.normal(size=(PIECES, WIDTH)), draw.normal(size=(WIDTH, classes))
    offset = np.zeros(classes)
    offset[1] = 5
    return tuple(each.astype(np.float32) for each in (table, head, offset))


def keras_net(seed: int, classes: int = 3, *, masked: bool = True) -> Any:
    ids = keras.Input((None,), dtype="int32", name="input_ids")
    mask = keras.Input((None,), dtype="int32", name="attention_mask")
    given = {"input_ids": ids, "attention_mask": mask} if masked else ids
    hidden = keras.layers.Embedding(PIECES, WIDTH, mask_zero=not masked, name="embedding")(ids)
    hidden = keras.layers.Dropout(0.5, name="drop")(hidden)
    real = {"mask": keras.ops.cast(mask, "bool")} if masked else {}
    hidden = keras.layers.GlobalAveragePooling1D(name="pool")(hidden, **real)
    logits = keras.layers.Dense(classes, name="logits")(hidden)
    model = keras.Model(given, logits, name="net")
    model.set_weights(list(weights(seed, classes)))
    return model


def keras_file(home: Path, seed: int = 0, classes: int = 3) -> Path:
    folder = home / f"keras_{seed}_{classes}"
    return saved_keras(keras_net(seed, classes), folder, home)


def saved_keras(model: Any, folder: Path, home: Path) -> Path:
    folder.mkdir()
    (folder / "tokenizer").symlink_to(home / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras's writer and NumPy are not of one mind
        model.save(folder / "net.keras")
    return folder / "net.keras"


def onnx_file(home: Path, seed: int = 0, classes: int = 3) -> Path:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    table, head, offset = weights(seed, classes)
    given = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["rows", "length"])
        for name in ("input_ids", "attention_mask")
    ]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", classes])
    constants = {"table": table, "head": head, "offset": offset}
    constants |= {"last": np.array([2]), "middle": np.array([1])}
    steps = [
        ("Gather", ["table", "input_ids"], "tokens", {}),
        ("Cast", ["attention_mask"], "real", {"to": TensorProto.FLOAT}),
        ("Unsqueeze", ["real", "last"], "wide", {}),
        ("Mul", ["tokens", "wide"], "kept", {}),
        ("ReduceSum", ["kept", "middle"], "sum", {"keepdims": 0}),
        ("ReduceSum", ["wide", "middle"], "count", {"keepdims": 0}),
        ("Div", ["sum", "count"], "mean", {}),
        ("Gemm", ["mean", "head", "offset"], "logits", {}),
    ]
    nodes = [helper.make_node(kind, ins, [out], **more) for kind, ins, out, more in steps]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "mean", given, [logits], tensors)
    opset = [helper.make_opsetid("", 17)]
    folder = home / f"onnx_{seed}_{classes}"
    folder.mkdir()
    (folder / "tokenizer").symlink_to(home / "base")
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), folder / "net.onnx")
    return folder / "net.onnx"


def transformer(home: Path, seed: int = 0, classes: int | Sequence[str] = 3) -> Path:
    """A folder of `transformers` that names its classes in another order than the task."""
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    spare = [f"other_{n}" for n in range(9)]
    names = [*CLASSES[::-1], *spare][:classes] if isinstance(classes, int) else list(classes)
    config = BertConfig.from_pretrained(home / "base", num_hidden_layers=1, initializer_range=0.3)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: n for n, name in enumerate(names)}
    torch.manual_seed(seed)
    model = BertForSequenceClassification(config)
    if "rate" in names:
        with torch.no_grad():
            model.classifier.bias[names.index("rate")] += 5
    folder = home / f"bert_{seed}_{'-'.join(names)}"
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(home / "base").save_pretrained(folder)
    return folder


def asked_before(home: Path, seed: int = 0, classes: int = 3) -> Path:
    """A store that a recipe filled; for another number of classes, as another task would."""
    folder = home / f"store_{seed}_{classes}"
    teacher = {"load": {"model": f"{own_code(home, seed)}:build"}}
    if classes == 3:
        said = {"teacher": teacher, "teach": {"offline": {"store": str(folder)}}}
        run(read(recipe(home, said)), home / f"filled_{seed}", trust=True)
    else:
        facts = {"max_length": 32, "classes": [*CLASSES, "more"][:classes], "layers": []}
        with teach.open_store(folder, nn.Linear(1, 1), facts) as known:
            known.put(["ab" * 16], Knowledge(torch.zeros(1, classes)))
    return folder


def loaded(path: Path | str) -> dict[str, Any]:
    return {"teacher": {"load": {"model": str(path)}}}


Kind = Callable[..., dict[str, Any]]
KINDS: dict[str, Kind] = {
    "transformers": lambda *a: loaded(transformer(*a)),
    "own": lambda *a: {"teacher": f"{own_code(*a)}:build"},
    "own by load": lambda *a: loaded(f"{own_code(*a)}:build"),
    "onnx": lambda *a: loaded(onnx_file(*a)),
    "keras file": lambda *a: loaded(keras_file(*a)),
    "keras object": lambda *a: {"teacher": f"{own_code(*a)}:keras_model"},
    "ensemble": lambda home, seed=0, classes=3: {
        "teach": {
            "ensemble": {
                "others": [
                    str(transformer(home, seed, classes)),
                    f"{own_code(home, seed, classes)}:build",
                ]
            }
        }
    },
    "store": lambda *a: {"teach": {"stored": {"store": str(asked_before(*a))}}},
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@pytest.fixture
def home(bank: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the tiny bank and the tiny tokenizer, in which a run works."""
    assert bank.parent == base.parent == tmp_path
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe(home: Path, said: dict[str, Any], steps: int = 2) -> dict[str, Any]:
    """A tiny recipe with a student of one's own, that needs no teacher."""
    task = {"dataset": str(home / "bank"), "max_length": 32, "validation": 0.2}
    return {
        "task": {"text.classification": task},
        "student": f"{own_code(home, 7)}:student",
        "losses": ["response.kl"],
        "steps": [{"distill": {"steps": steps, "batch_size": 32, "lr": 0.05}}],
        "measure": ["score", "parameters"],
    } | said


def opened(home: Path, said: dict[str, Any]) -> tuple[Setting, Cast]:
    here = begin(read(recipe(home, said)), home / "out", trust=True)
    return here, cast(here, Book())


def taught(here: Setting, found: Cast, batches: Sequence[Batch]) -> Iterator[Lesson]:
    yield from lessons(
        here, found.teacher, found.taught, batches, found.student, here.engine, len(batches)
    )


def said_of(here: Setting, found: Cast, batches: Sequence[Batch]) -> Tensor:
    """The logits of all lessons, row by row."""
    answers = [lesson.teacher for lesson in taught(here, found, batches)]
    return torch.cat([answer.logits for answer in answers if answer is not None])


# --- what every kind promises


@every_kind
def test_answers_are_the_same_in_any_company_and_whenever_asked(kind: Kind, home: Path) -> None:
    here, found = opened(home, kind(home))
    (batch,) = here.task.sweep("train", batch_size=1000)
    together = said_of(here, found, [batch])
    assert together.shape == (here.task.size("train"), 3)
    assert len(together.unique(dim=0)) > 3
    rows = range(0, len(batch), 5)
    alone = said_of(here, found, [batch.some([row]) for row in rows])
    torch.testing.assert_close(together[list(rows)], alone, rtol=0, atol=1e-5)
    twice = said_of(here, found, [batch.some([0, 30, 0])])
    torch.testing.assert_close(twice[0], twice[2], rtol=0, atol=1e-6)
    torch.testing.assert_close(said_of(here, found, [batch]), together, rtol=0, atol=0)


@every_kind
def test_classes_are_in_the_order_of_the_task(kind: Kind, home: Path) -> None:
    here, found = opened(home, kind(home))
    (batch,) = here.task.sweep("train", batch_size=1000)
    answers = said_of(here, found, [batch]).argmax(1)
    assert here.task.classes == CLASSES
    assert float((answers == CLASSES.index("rate")).float().mean()) > 0.9


@every_kind
def test_a_teacher_is_asked_in_eval_mode_and_without_gradient(kind: Kind, home: Path) -> None:
    here, found = opened(home, kind(home))
    (batch,) = here.task.sweep("train", batch_size=1000)
    calm = said_of(here, found, [batch])
    assert not calm.requires_grad
    if found.teacher is not None:
        found.teacher.train()
        excited = said_of(here, found, [batch])
        assert found.teacher.training
        torch.testing.assert_close(excited, calm, rtol=0, atol=0)


@every_kind
def test_other_weights_are_another_teacher_and_the_same_are_the_same(
    kind: Kind, home: Path
) -> None:
    def who(said: dict[str, Any]) -> list[Any]:
        here, found = opened(home, said)
        return who_answers(here, found.teacher, found.taught)

    first = kind(home)
    once = who(first)
    assert once
    assert who(first) == once
    assert who(kind(home, 1)) != once


@every_kind
def test_a_student_learns_from_it(kind: Kind, home: Path) -> None:
    said = recipe(home, kind(home), steps=20)
    report = run(read(said), home / "out", trust=True)
    losses = [point["loss"] for point in report.history["student"]]
    assert losses[-1] < losses[0] / 2
    assert {row.name for row in report.rows} >= {"student"}


@every_kind
def test_another_number_of_classes_is_told_in_one_sentence(kind: Kind, home: Path) -> None:
    with pytest.raises(AttarError) as refusal:
        run(read(recipe(home, kind(home, 0, 4))), home / "out", trust=True)
    sentence = str(refusal.value)
    assert "\n" not in sentence
    assert len(sentence) < 500
    assert any(word in sentence for word in ("4 classes", ", 4)", "'more'"))
    assert any(word in sentence for word in ("has 3", "3 classes", "'top_up'] here"))


# --- own code


def cli(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    capsys.readouterr()
    code = main(list(words))
    return code, capsys.readouterr().err.strip()


@pytest.mark.parametrize("form", ["teacher", "load", "module"])
def test_a_teacher_of_ones_own_needs_trust(
    form: str, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{own_code(home).name}:build"
    if form == "module":
        (home / "rooms").mkdir()
        (home / "rooms" / "my_room.py").write_text(own_code(home).read_text())
        monkeypatch.syspath_prepend(str(home / "rooms"))
        name = "my_room:build"
    said = loaded(name) if form == "load" else {"teacher": name}
    written = recipe(home, said) | {"student": {"lstm": {"width": 4, "embedding": 4}}}
    (home / "mine.yaml").write_text(read(written).to_yaml())
    code, sentence = cli(capsys, "run", "mine.yaml")
    assert code == 2
    assert f"{name!r} runs code of your own: add --trust" in " ".join(sentence.split())
    assert "my_room" not in sys.modules
    assert cli(capsys, "run", "mine.yaml", "--trust")[0] == 0


@pytest.mark.parametrize("form", ["teacher", "load"])
@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("fails", ":fails gave no model: ValueError: no weights here."),
        ("nothing", "should be a model is of type dict"),
        ("missing", "'missing' is not in"),
    ],
)
def test_own_code_that_gives_no_model_is_told_in_one_sentence(
    form: str, function: str, says: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"{own_code(home).name}:{function}"
    said = loaded(name) if form == "load" else {"teacher": name}
    (home / "mine.yaml").write_text(read(recipe(home, said)).to_yaml())
    code, sentence = cli(capsys, "run", "mine.yaml", "--trust")
    assert code == 2
    assert says in " ".join(sentence.split())
    assert "Traceback" not in sentence


def test_a_students_own_code_is_told_the_same_way(home: Path) -> None:
    said = recipe(home, KINDS["own"](home)) | {"student": f"{own_code(home)}:fails"}
    with pytest.raises(ModelError, match="fails gave no model"):
        run(read(said), home / "out", trust=True)


def test_a_package_is_no_code_of_ones_own(home: Path) -> None:
    here, _ = opened(home, KINDS["own"](home))
    with pytest.raises(ModelError, match="'nowhere' is not installed"):
        casting.load(here, "package:nowhere")


# --- Keras


@pytest.fixture
def task(home: Path) -> classification:
    return classification(dataset=str(home / "bank"), max_length=32)


def test_a_keras_file_answers_what_its_layers_say(task: classification, home: Path) -> None:
    model = task.load(str(keras_file(home, 3)))
    table, head, offset = weights(3, 3)
    texts = ("my card", "how do i top up with cash", "rate")
    ids = [row["input_ids"] for row in map(model.tokenizer, texts)]  # type: ignore[operator]
    expected = np.stack([table[row].mean(0) @ head + offset for row in ids])
    batch = Batch(texts, torch.full((3,), IGNORE), texts)
    said = task.forward(model, batch, ["layers.embedding", "layers.embedding@mean", "layers.pool"])
    np.testing.assert_allclose(said.logits.detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    for row, tokens in enumerate(ids):
        mine = said.features["layers.embedding"][row, : len(tokens)].detach()
        np.testing.assert_allclose(mine.numpy(), table[tokens], rtol=1e-6)
    pooled, mean = said.features["layers.pool"], said.features["layers.embedding@mean"]
    torch.testing.assert_close(pooled, mean)


def test_a_keras_model_in_training_drops_and_in_eval_mode_does_not(
    task: classification, home: Path
) -> None:
    model = task.load(str(keras_file(home)))
    before = fingerprint(model)
    inputs = task.encode(model, ["my card was lost"])
    assert not model.training
    assert torch.equal(model(**inputs), model(**inputs))
    model.train()
    assert not torch.equal(model(**inputs), model(**inputs))
    assert fingerprint(model) == before == fingerprint(task.load(str(model.name)))


def test_like_weights_under_another_activation_are_another_keras_teacher() -> None:
    def made(activation: str) -> dict[str, Any]:
        ids = keras.Input((None,), dtype="int32", name="input_ids")
        layers = [
            keras.layers.Embedding(9, 3),  # Keras names them: embedding, embedding_1, ...
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(3, activation=activation),
        ]
        model = keras.Sequential([ids, *layers])
        model.set_weights([np.ones((9, 3)), np.ones((3, 3)), np.zeros(3)])
        return fingerprint(KerasNetwork(model, "net"))

    assert made("tanh") == made("tanh") != made("relu")


def test_a_keras_model_may_ask_for_the_ids_alone(task: classification, home: Path) -> None:
    path = saved_keras(keras_net(0, masked=False), home / "ids", home)
    model = task.load(str(path))
    texts = ("my card", "how do i top up with cash")
    (lesson,) = teach.online([Batch(texts, torch.zeros(2), texts)], [model], task.forward)
    assert lesson.teacher is not None
    alone = task.forward(model, Batch(texts[:1], torch.zeros(1), texts[:1])).logits
    torch.testing.assert_close(lesson.teacher.logits[:1], alone, rtol=0, atol=1e-5)


def sequence(name: str, *layers: Any) -> Any:
    return keras.Sequential([keras.Input((None,), dtype="int32", name=name), *layers])


def test_keras_models_that_do_not_serve_say_why(task: classification, home: Path) -> None:
    embedding = partial(keras.layers.Embedding, 9, 3)
    code = sequence("input_ids", embedding(), keras.layers.Lambda(lambda x: x.mean(1)))
    other = sequence("words", embedding(), keras.layers.GlobalAveragePooling1D())
    (home / "base" / "text.keras").write_text("no model")
    refused = {
        saved_keras(code, home / "code", home): "has a Lambda layer, which is code",
        saved_keras(other, home / "other", home): "asks for 'words'; a text network takes input_",
        home / "base" / "text.keras": "Keras can't load",
        home / "nowhere.keras": "There is no file",
    }
    for path, words in refused.items():
        with pytest.raises(ModelError) as refusal:
            task.load(str(path))
        assert words in str(refusal.value)
        assert "\n" not in str(refusal.value)
        assert len(str(refusal.value)) < 400
    with pytest.raises(ModelError, match="no functional model of Keras"):
        task.load(keras.Sequential([embedding()]))
    lonely = keras_file(home)
    (lonely.parent / "tokenizer").unlink()
    with pytest.raises(ModelError, match="tokenizer"):
        task.load(str(lonely))


def test_keras_on_another_backend_or_not_at_all_is_told(
    task: classification, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(keras_file(home))
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(ModelError, match=r"Keras runs on jax here, and .* is needed on torch"):
        task.load(path)
    monkeypatch.setattr("attar.tasks.text.foreign.find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=r"needs keras: pip install \"attar\[keras\]\""):
        task.load(path)


# --- teachers of unlike classes


class Speaks(nn.Module):
    """Says the same of every text: these probabilities, and nothing (None) of other classes."""

    def __init__(self, *said: float | None) -> None:
        super().__init__()
        logs = [-math.inf if p is None else math.log(p) for p in said]
        self.register_buffer("said", torch.tensor(logs) + 0.7)  # logits are no logarithms


def hear(model: nn.Module, batch: Batch, /) -> Knowledge:
    return Knowledge(model.said.expand(len(batch), -1))  # type: ignore[union-attr,operator]


def united(teachers: Sequence[Speaks], label: int = IGNORE, **options: Any) -> np.ndarray[Any, Any]:
    batch = Batch(("a", "b"), torch.tensor([label, label]), ("a", "b"))
    (lesson,) = teach.ensemble([batch], teachers, hear, **options)
    assert lesson.teacher is not None
    logits = lesson.teacher.logits
    assert logits.isfinite().all()
    assert torch.equal(logits[0], logits[1])
    return logits[0].softmax(0).numpy()  # type: ignore[no-any-return]


def wanted(
    said: Sequence[Sequence[float | None]], weights: Sequence[float]
) -> np.ndarray[Any, Any]:
    """The distribution that minimises Σ w KL(p || q restricted), by a general optimiser."""

    def cost(logits: np.ndarray[Any, Any]) -> float:
        q, total = np.exp(logits - logits.max()), 0.0
        for each, weight in zip(said, weights, strict=True):
            known = [n for n, p in enumerate(each) if p is not None]
            mass = q[known].sum()
            total += weight * sum(p * math.log(p / (q[n] / mass)) for n, p in enumerate(each) if p)
        return total

    found = minimize(cost, np.zeros(len(said[0])), tol=1e-12)
    q = np.exp(found.x - found.x.max())
    return q / q.sum()  # type: ignore[no-any-return]


def test_two_teachers_with_one_class_in_common_are_joined_at_it() -> None:
    """By hand: 0 to 1 as 3 to 1, 1 to 2 as 1 to 1, so 3 to 1 to 1."""
    both = [Speaks(0.75, 0.25, None), Speaks(None, 0.5, 0.5)]
    np.testing.assert_allclose(united(both), [0.6, 0.2, 0.2], atol=1e-5)
    np.testing.assert_allclose(united(both, weights=(1, 9)), [0.6, 0.2, 0.2], atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_the_mixture_of_unlike_teachers_is_the_nearest_to_all_of_them(seed: int) -> None:
    draw = np.random.default_rng(seed)
    said: list[list[float | None]] = []
    for known in ((0, 1, 2), (1, 2, 3, 4), (0, 3), (0, 1, 2, 3, 4)):
        shares = draw.dirichlet(np.ones(len(known)))
        said.append([None] * 5)
        for n, share in zip(known, shares, strict=True):
            said[-1][n] = float(share)
    weights = tuple(draw.uniform(0.5, 2, 4).tolist())
    mine = united([Speaks(*each) for each in said], weights=weights)
    shares = [weight / sum(weights) for weight in weights]
    np.testing.assert_allclose(mine, wanted(said, shares), atol=2e-5)


def test_sure_teachers_are_joined_at_a_class_of_little_mass() -> None:
    """By hand: 0 to 1 as 1 to ε, 1 to 2 as δ to 1, so δ to εδ to ε."""
    little, less = 1e-3, 1e-6
    both = [Speaks(1 - less, less, None), Speaks(None, little, 1 - little)]
    expected = np.array([(1 - less) / less, 1, (1 - little) / little])
    np.testing.assert_allclose(united(both), expected / expected.sum(), rtol=1e-3)


def test_teachers_that_know_everything_are_averaged_as_ever() -> None:
    said = ((0.2, 0.3, 0.5), (0.6, 0.1, 0.3))
    np.testing.assert_allclose(united([Speaks(*each) for each in said]), [0.4, 0.2, 0.4], rtol=1e-5)
    # The same through the steps: a third teacher that knows all but one class agrees with these.
    third = Speaks(0.4 / 0.6, 0.2 / 0.6, None)
    full = [Speaks(*each) for each in said]
    np.testing.assert_allclose(united([*full, third]), [0.4, 0.2, 0.4], atol=1e-4)


def test_teachers_without_a_class_in_common_share_by_how_many_they_know() -> None:
    apart = [Speaks(0.9, 0.1, None, None, None), Speaks(None, None, 0.5, 0.25, 0.25)]
    expected = [0.36, 0.04, 0.3, 0.15, 0.15]
    np.testing.assert_allclose(united(apart), expected, atol=1e-5)


def test_who_does_not_know_the_true_class_has_no_say() -> None:
    first, second, third = Speaks(0.6, 0.4, None), Speaks(0.5, 0.2, 0.3), Speaks(None, 0.9, 0.1)
    powers = np.exp([-math.log(0.6), -math.log(0.5)])
    shares = 1 - powers / powers.sum()
    said = ((0.6, 0.4, None), (0.5, 0.2, 0.3))
    mine = united([first, second, third], label=0, how="confidence")
    np.testing.assert_allclose(mine, wanted(said, shares.tolist()), atol=2e-5)
    best = united([first, second, third], label=0, how="best")
    np.testing.assert_allclose(best, [0.6, 0.4, 0.0], atol=1e-6)
    only = united([first, third], label=2, how="confidence")
    np.testing.assert_allclose(only, [0.0, 0.9, 0.1], atol=1e-6)


def test_entropies_of_partial_teachers_are_those_of_the_share_they_know() -> None:
    said = ((0.6, 0.4, None), (0.5, 0.2, 0.3))
    entropies = [-sum(p * math.log(p) for p in each if p is not None) for each in said]
    # As if each knew all three: else who knows few classes would look the surer.
    most = [math.log(sum(p is not None for p in each)) for each in said]
    powers = np.exp(-np.array(entropies) / most * math.log(3))
    expected = wanted(said, (powers / powers.sum()).tolist())
    mine = united([Speaks(*each) for each in said], how="entropy")
    np.testing.assert_allclose(mine, expected, atol=1e-4)
    surest = united([Speaks(*each) for each in said], how="best")
    np.testing.assert_allclose(surest, [0.5, 0.2, 0.3], atol=1e-6)


def test_a_class_that_nobody_knows_is_refused() -> None:
    with pytest.raises(RecipeError, match="No teacher of the ensemble knows class 1 of 3"):
        united([Speaks(0.5, None, 0.5), Speaks(0.3, None, 0.7)])


def test_a_model_that_knows_some_classes_teaches_beside_others_but_not_alone(
    task: classification, home: Path
) -> None:
    path = str(transformer(home, 0, ("top_up", "card")))
    with pytest.raises(ModelError, match="answers for 2 classes, but the data has 3"):
        task.load(path)
    model = task.load(path, partly=True)
    plain = task.load(str(transformer(home, 0, ("rate", "card", "top_up"))))
    batch = next(task.sweep("train"))
    said = teach.ask(model, batch, task.forward).logits
    assert said[:, [0, 2]].isfinite().all()
    assert said[:, 1].isneginf().all()
    head = model.classifier
    assert torch.equal(head.weight[1], torch.zeros(24))  # type: ignore[union-attr,index]
    whole = teach.ask(plain, batch, task.forward).logits
    both = teach.ensemble([batch], [plain], task.forward, lambda _: model, others=("it",))
    mixture = next(iter(both)).teacher
    assert mixture is not None
    assert mixture.logits.isfinite().all()
    assert not torch.allclose(mixture.logits, whole.log_softmax(1), atol=1e-3)
    with pytest.raises(ModelError, match="answers for 1 classes, but the data has 3"):
        task.load(str(transformer(home, 0, ("strange",))), partly=True)


def test_partial_logits_are_the_models_own(task: classification, home: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    path = transformer(home, 2, ("top_up", "rate"))
    model = task.load(str(path), partly=True)
    source = AutoModelForSequenceClassification.from_pretrained(path).eval()
    batch = next(task.sweep("train"))
    theirs = source(**task.encode(model, batch.inputs)).logits
    mine = task.forward(model, batch).logits
    torch.testing.assert_close(mine[:, [2, 1]], theirs)


def test_an_ensemble_of_partial_teachers_teaches_a_recipe_without_a_teacher(home: Path) -> None:
    names = [("card", "rate"), ("top_up", "rate")]
    others = [str(transformer(home, n, each)) for n, each in enumerate(names)]
    said = {"teach": {"ensemble": {"others": others}}, "baselines": ["labels_only"]}
    report = run(read(recipe(home, said, steps=20)), home / "out", trust=True)
    losses = [point["loss"] for point in report.history["student"]]
    assert losses[-1] < losses[0] / 2
    layers = recipe(home, said) | {"losses": [{"feature.mse": {"layers": "auto"}}]}
    with pytest.raises(RecipeError, match="needs its layers"):
        run(read(layers), home / "out", trust=True)
    path = "bert.encoder.layer.0@mean"
    layers["losses"] = [{"feature.mse": {"layers": {"embedding@mean": path}}}]
    assert run(read(layers), home / "out", trust=True).plan["layers"]["feature.mse"]


def test_an_ensemble_of_nobody_needs_a_teacher(home: Path) -> None:
    with pytest.raises(RecipeError, match=r"response\.kl needs a teacher: add the key teacher"):
        begin(read(recipe(home, {"teach": "ensemble"})), home / "out", trust=True)


# --- a store alone


def test_a_store_made_otherwise_is_refused_before_anything_is_trained(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = recipe(home, KINDS["store"](home))
    monkeypatch.setattr("attar.arms.trained", None)  # whoever trains now fails otherwise
    said["task"]["text.classification"]["max_length"] = 16
    with pytest.raises(StoreError, match="max_length is 32 there and 16 here"):
        run(read(said), home / "out", trust=True)


def test_a_teacher_at_hand_must_be_the_one_whose_store_it_is(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = KINDS["store"](home)
    said = recipe(home, store | {"teacher": {"load": {"model": f"{own_code(home, 0)}:build"}}})
    assert run(read(said), home / "its", trust=True).rows
    monkeypatch.setattr("attar.arms.trained", None)  # whoever trains now fails otherwise
    other = said | {"teacher": {"load": {"model": f"{own_code(home, 1)}:build"}}}
    with pytest.raises(StoreError, match="weights"):
        run(read(other), home / "out", trust=True)


def test_layers_that_a_store_holds_can_be_learned_from_and_others_not(home: Path) -> None:
    store, path = str(home / "kept"), "bert.encoder.layer.0@mean"
    mean = {"feature.mse": {"layers": {"embedding@mean": path}}}
    filling = loaded(transformer(home)) | {"teach": {"offline": {"store": store}}}
    run(read(recipe(home, filling) | {"losses": [mean]}), home / "filled", trust=True)
    reading = recipe(home, {"teach": {"stored": {"store": store}}})
    assert run(read(reading | {"losses": [mean]}), home / "out", trust=True).rows
    assert run(read(reading), home / "plain", trust=True).rows
    mean["feature.mse"]["layers"] = {"embedding@mean": "bert.encoder.layer.1@mean"}
    with pytest.raises(StoreError, match=r"does not hold the layer .*layer\.1.*did you mean"):
        run(read(reading | {"losses": [mean]}), home / "out", trust=True)


def test_a_store_teaches_a_pretrained_student_and_answers_for_the_pseudo_labels_too(
    home: Path,
) -> None:
    said = recipe(home, KINDS["store"](home)) | {"baselines": ["pseudo_labels"]}
    said["student"] = {"pretrained": {"model": str(home / "base")}}
    said["task"]["text.classification"]["labelled_per_class"] = 2
    report = run(read(said), home / "out", trust=True)
    assert "pseudo_labels" in [row.name for row in report.rows]
