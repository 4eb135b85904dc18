"""The doctor: each check is content with what is well, and names what is not."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from attar import distill, teach
from attar.doctor import Finding, examine, machine
from attar.doctor import models as examined
from attar.tasks.text import classification

CLASSES = ("apple", "banana", "cherry")
NOISE = ("please", "give", "me", "one", "of", "these", "ripe", "red", "or", "yellow", "now", "here")
MACHINE = ("python", "torch", "threads", "processor", "precision", "extra text", "cache", "hub")

OWN = """
import torch
import torch.nn.functional as F
from torch import nn


class Own(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.tokenizer = inner, inner.tokenizer

    def forward(self, input_ids, attention_mask):
        return self.change(input_ids, attention_mask)

    def answer(self, input_ids, attention_mask):
        return self.inner(input_ids=input_ids, attention_mask=attention_mask).logits


class Dropping(Own):
    def change(self, input_ids, attention_mask):
        return F.dropout(self.answer(input_ids, attention_mask), 0.5)


class Peeping(Own):
    def change(self, input_ids, attention_mask):
        return self.answer(input_ids, torch.ones_like(attention_mask))


class Shouting(Own):
    def change(self, input_ids, attention_mask):
        return 100 * self.answer(input_ids, attention_mask)


class Renamed(Own):
    def __init__(self, inner):
        super().__init__(inner)
        self.config = inner.config
        self.config.id2label = dict(enumerate(reversed(inner.config.id2label.values())))

    def change(self, input_ids, attention_mask):
        return self.answer(input_ids, attention_mask)


def dropping(task, *, model: str):
    return task.load(Dropping(task.load(model)))


def peeping(task, *, model: str):
    return task.load(Peeping(task.load(model)))


def shouting(task, *, model: str):
    return task.load(Shouting(task.load(model)))


def renamed(task, *, model: str):
    return task.load(Renamed(task.load(model)))


def careless(teacher, load, *, model: str):
    return Peeping(load(model, new_head=True)).eval()
"""


def sentences(count: int, seed: int) -> list[tuple[str, str]]:
    """Texts of one to eight words, of which one names the class."""
    random = np.random.default_rng(seed)
    rows = []
    for n in range(count):
        words = [CLASSES[n % 3], *random.choice(NOISE, size=int(random.integers(0, 8)))]
        rows.append((" ".join(random.permutation(words)), CLASSES[n % 3]))
    return rows


def write(path: Path, rows: Sequence[tuple[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{text},{label}\n" for text, label in [("text", "label"), *rows]))


def wordlevel(texts: Sequence[str]) -> Any:
    raw = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    raw.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=special))
    pairs = [(piece, raw.token_to_id(piece)) for piece in ("[CLS]", "[SEP]")]
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=pairs
    )
    names = dict(zip(("pad", "unk", "cls", "sep"), special, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, **{f"{name}_token": piece for name, piece in names.items()}
    )


def tiny_bert(tokenizer: Any) -> BertForSequenceClassification:
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: n for n, name in enumerate(CLASSES)},
    )
    torch.manual_seed(0)
    model = BertForSequenceClassification(config)
    torch.nn.init.normal_(model.classifier.weight, std=0.02)  # as a new head begins
    return model


def save(model: BertForSequenceClassification, tokenizer: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a teacher that knows it, one that knows nothing, one whose head is in another order."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("world")
    write(folder / "data/train.csv", sentences(90, 0))
    write(folder / "data/test.csv", [row for row in sentences(99, 1) if len(row[0].split()) > 3])
    (folder / "own.py").write_text(OWN)
    tokenizer = wordlevel([text for text, _ in sentences(90, 0)])
    save(tiny_bert(tokenizer), tokenizer, folder / "new")
    task = classification(dataset=str(folder / "data"), max_length=12)
    teacher = task.load(str(folder / "new"))
    lessons = teach.alone(task.batches(batch_size=16))
    distill.train(teacher, lessons, [distill.term(task.loss)], task.forward, steps=80, lr=1e-2)
    assert task.score(teacher)["score"] == 1.0
    save(teacher, tokenizer, folder / "teacher")
    swapped = json.loads((folder / "teacher/config.json").read_text())
    save(teacher, tokenizer, folder / "swapped")
    names = {str(n): f"LABEL_{n}" for n in range(3)}
    swapped |= {"id2label": names, "label2id": {name: int(n) for n, name in names.items()}}
    with torch.no_grad():
        teacher.classifier.weight.copy_(teacher.classifier.weight.roll(1, 0))
        teacher.classifier.bias.copy_(teacher.classifier.bias.roll(1, 0))
    teacher.save_pretrained(folder / "swapped")
    (folder / "swapped/config.json").write_text(json.dumps(swapped))
    return folder


RECIPE = """
task: {text.classification: {dataset: WORLD/data, max_length: 12}}
teacher: {TEACHER: {model: WORLD/MODEL}}
student: {encoder: {layers: 1, width: 16}}
losses:
  - response.kl: {temperature: 2}
  - feature.cosine: {weight: 0.1, layers: auto}
steps:
  - distill: {steps: 30, lr: 5e-3, batch_size: 16}
engine: {local: {precision: fp32}}
"""


def found(
    world: Path, *overrides: str, teacher: str = "load", model: str = "teacher"
) -> dict[str, Finding]:
    """What the doctor finds in the recipe's data and models, by name."""
    text = RECIPE.replace("TEACHER", f'"{teacher}"').replace("MODEL", model)
    path = world / "recipe.yaml"
    path.write_text(text.replace("WORLD", str(world)))
    findings = list(examine(str(path), overrides, trust=True))
    return {each.name: each for each in findings[len(list(machine.environment())) :]}


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test in its own empty folder, with its own cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def healthy(world: Path) -> dict[str, Finding]:
    """A recipe in which nothing is wrong."""
    return found(world)


def own(world: Path, name: str) -> str:
    return f"{world}/own.py:{name}"


def test_a_healthy_recipe_passes_every_check(healthy: dict[str, Finding]) -> None:
    assert [each for each in healthy.values() if each.ok is False] == []
    passed = {name for name, each in healthy.items() if each.ok}
    assert passed >= {
        "recipe",
        "empty texts",
        "balance",
        "length",
        "tokenizers",
        "label order",
        "eval mode",
        "padding, teacher",
        "padding, student",
        "logit scale",
        "overfit",
    }


def test_the_doctor_writes_nothing(world: Path, tmp_path: Path) -> None:
    found(world, "teach.offline.store=kept")
    assert list(tmp_path.iterdir()) == []


def test_a_head_in_another_order_is_found_by_its_answers(world: Path) -> None:
    order = found(world, model="swapped")["label order"]
    assert order.ok is False
    assert "renamed" in order.says
    wrong = re.search(r"where it says '(\w+)', the data says '(\w+)'", order.says)
    assert wrong is not None
    # The head was moved down by one: what is class n to the data is n + 1 to the teacher.
    assert CLASSES.index(wrong[1]) == (CLASSES.index(wrong[2]) + 1) % 3


def test_a_teacher_that_names_its_classes_in_another_order_is_found(world: Path) -> None:
    order = found(world, teacher=own(world, "renamed"))["label order"]
    assert order.ok is False
    assert "'cherry', the data's is 'apple'" in order.says


def test_random_answers_are_chance_and_not_another_order() -> None:
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(77, (512,), generator=random)
    said = examined._agreement("x", torch.randn(512, 77, generator=random), labels, ["c"] * 77)
    assert "renamed" not in said.says


def test_dropout_that_stays_on_is_found(world: Path) -> None:
    mode = found(world, teacher=own(world, "dropping"))["eval mode"]
    assert mode.ok is False
    assert "dropout" in mode.says


def test_a_teacher_and_a_student_that_look_at_padding_are_found(world: Path) -> None:
    assert found(world, teacher=own(world, "peeping"))["padding, teacher"].ok is False
    options = json.dumps({own(world, "careless"): {"model": str(world / "new")}})
    careless = found(world, f"student={options}", "losses=[response.kl]")
    assert careless["padding, student"].ok is False
    assert careless["padding, teacher"].ok is True


def test_a_teacher_that_is_too_sure_is_told_to_be_warmer(world: Path) -> None:
    shouting = own(world, "shouting")
    cold = found(world, "losses=[response.kl]", teacher=shouting)["logit scale"]
    assert cold.ok is False
    assert "temperature" in cold.says
    assert found(world, teacher=shouting)["logit scale"].ok is True  # it is 2 there


def test_an_untrained_teacher_is_told_from_one_that_will_be_trained(world: Path) -> None:
    assert found(world, model="new")["logit scale"].ok is False
    later = found(world, "losses=[response.kl]", teacher="finetune", model="new")
    assert later["logit scale"].ok is None
    assert later["label order"].ok is True
    assert later["overfit"].ok is True
    assert "labels" in later["overfit"].says


@pytest.mark.parametrize("loss", ["response.soft_cross_entropy", "task", "response.mse"])
def test_a_student_learns_by_heart_whatever_the_least_loss_is(world: Path, loss: str) -> None:
    assert found(world, f"losses=[{loss}]")["overfit"].ok is True


def test_a_student_that_is_its_teacher_has_nothing_to_learn(world: Path) -> None:
    options = "student={layers: {keep: 2}}"
    assert found(world, options, "losses=[response.kl]")["overfit"].ok is True


def test_a_student_that_can_not_learn_is_found(world: Path) -> None:
    slow = found(world, "steps.0.distill.lr=1e-8")["overfit"]
    assert slow.ok is False
    assert "raise lr (1e-08)" in slow.says
    assert "200 steps" in slow.says


def test_a_loss_that_breaks_down_is_a_finding(world: Path) -> None:
    broken = found(world, "steps.0.distill.lr=1e30", "steps.0.distill.clip=0")["overfit"]
    assert broken.ok is False


def test_a_recipe_that_trains_nothing_is_not_asked_to_learn(world: Path) -> None:
    nothing = found(world, "student=null", "losses=[]", "steps=[prune.magnitude: {ratio: 0.5}]")
    assert nothing["overfit"].ok is None


def test_texts_that_are_cut_off_are_counted(world: Path) -> None:
    short = found(world, "task.max_length=4")["length"]
    assert short.ok is False
    cut = sum(len(text.split()) + 2 > 4 for text, _ in sentences(90, 0))
    said = re.match(r"(\d+) of (\d+)", short.says)
    assert said is not None
    assert int(said[1]) / int(said[2]) == pytest.approx(cut / 90, abs=0.05)


def test_other_pieces_are_told_of(world: Path) -> None:
    tokenizer = wordlevel(["apple banana cherry"])
    save(tiny_bert(tokenizer), tokenizer, world / "ignorant")
    options = "student={pretrained: {model: " + str(world / "ignorant") + "}}"
    pieces = found(world, options)["tokenizers"]
    assert pieces.ok is None
    assert "different pieces" in pieces.says
    assert "cut 0 of" not in pieces.says


def test_empty_and_leaking_texts_are_found(world: Path, tmp_path: Path) -> None:
    rows = sentences(60, 0)
    write(tmp_path / "train.csv", [*rows, ('" "', "apple"), ('"  "', "banana")])
    write(tmp_path / "test.csv", [*rows[:5], *sentences(60, 1)])
    sick = found(world, f"task.dataset={tmp_path}")
    assert sick["empty texts"].ok is False
    assert sick["leakage"].ok is False
    assert int(sick["leakage"].says.split()[0]) >= 4


def test_lopsided_classes_are_told_of(world: Path, tmp_path: Path) -> None:
    rows = sentences(150, 0)
    few = [row for row in rows if row[1] != "cherry"] + [r for r in rows if r[1] == "cherry"][:3]
    write(tmp_path / "rows.csv", few)
    assert "macro_f1" in found(world, f"task.dataset={tmp_path}/rows.csv")["balance"].says


@pytest.mark.parametrize(
    ("override", "name", "says"),
    [
        ("losses=[response.kll]", "recipe", "response.kl"),
        ("task.dataset=nowhere.csv", "data", "nowhere.csv"),
        ("teacher.load.model=./nowhere", "models", "nowhere"),
        ("losses=[feature.mse: {layers: {a: b}}]", "layers", "'b'"),
    ],
)
def test_whatever_is_wrong_becomes_a_finding(
    world: Path, override: str, name: str, says: str
) -> None:
    findings = found(world, override)
    assert findings[name].ok is False
    assert says in findings[name].says
    assert list(findings)[-1] == name


def test_the_machine_is_looked_at_without_a_recipe() -> None:
    findings = {each.name: each for each in examine()}
    assert findings.keys() >= set(MACHINE)
    assert torch.__version__ in findings["torch"].says
    assert findings["extra text"].ok is True


def test_a_busy_machine_is_told_to_use_fewer_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (999.0, 0.0, 0.0))
    busy = next(each for each in examine() if each.name == "threads")
    assert busy.ok is None  # it may pass
    assert "threads: 1" in busy.says


def test_more_threads_than_cores_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.torch, "get_num_threads", lambda: 1000)
    many = next(each for each in examine() if each.name == "threads")
    assert many.ok is False


def test_a_missing_library_comes_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "find_spec", lambda name: None if name == "onnx" else object())
    extras = {each.name: each for each in examine() if each.name.startswith("extra")}
    assert extras["extra onnx"].ok is None
    assert 'pip install "attar[onnx]"' in extras["extra onnx"].says
    assert extras["extra text"].ok is True


def test_a_cache_that_can_not_be_written_to_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "access", lambda *_: False)
    cache = next(each for each in examine() if each.name == "cache")
    assert cache.ok is False
    assert "ATTAR_CACHE" in cache.says


def test_a_processor_without_vnni_is_told_why_int8_is_held_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def pretend(flags: str) -> str:
        lines = f"processor : 0\nflags : fpu {flags}\n"
        monkeypatch.setattr(machine.Path, "read_text", lambda *_, **__: lines)
        return machine._processor().says

    assert "reduce_range" in pretend("avx2")
    assert "reduce_range" not in pretend("avx2 avx512f avx512_vnni")
    assert "AVX-512 yes" in pretend("avx512f")


def test_nobody_but_the_offline_variable_is_asked_about_the_hub(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "is 1" in next(each for each in examine() if each.name == "hub").says
