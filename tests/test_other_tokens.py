"""A teacher with other tokens than its student's: the same under other ids, or really others."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import storybook
import tongues
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast

from attar.distill import Objective, term
from attar.errors import ModelError, RecipeError
from attar.heads import Foreign, dense
from attar.losses import response
from attar.pipeline import run
from attar.recipe import read
from attar.screen import Silent
from attar.store import Store
from attar.tasks.text import generation
from attar.tasks.text.readings import Renumbered
from attar.teach import ask
from attar.types import IGNORE, Batch, Knowledge, Lesson

Make = Callable[..., generation]
ORDER = torch.randperm(400, generator=torch.Generator().manual_seed(5)).tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return storybook.saved(tmp_path_factory.mktemp("model"))


@pytest.fixture
def make(folder: Path, tmp_path: Path) -> Make:
    data = storybook.book(tmp_path / "book")

    def made(**more: Any) -> generation:
        return generation(**{"dataset": str(data), "tokenizer": str(folder), "length": 48, **more})

    return made


def reordered(*extra: str) -> Any:
    """The story book's tokenizer with every token under another id, and some more tokens."""
    said = json.loads(storybook.tokenizer().backend_tokenizer.to_str())
    said["model"]["vocab"] = {token: ORDER[n] for token, n in said["model"]["vocab"].items()}
    for token in said["added_tokens"]:
        token["id"] = ORDER[token["id"]]
    said["added_tokens"].sort(key=lambda token: token["id"])
    reads = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(said)),
        pad_token="<pad>",
        eos_token="<|end|>",
    )
    reads.add_tokens(list(extra))
    return reads


def twins() -> tuple[Any, Any]:
    """A model with some padding, and the same one with its tokens in another order."""
    one, other = storybook.llama(2, padded=8), storybook.llama(2, padded=8)
    with torch.no_grad():
        other.model.embed_tokens.weight[ORDER] = one.model.embed_tokens.weight[:400]
    other.tokenizer = reordered("<new>")
    return one, other


def speaker(kind: str, **more: Any) -> Any:
    """A small Llama that reads in another tongue."""
    reads = tongues.tongue(kind)
    model: Any = storybook.llama(
        2, **{"vocab_size": len(reads) + 8, "max_position_embeddings": 512, **more}
    )
    model.tokenizer = reads
    return model


# --- the same tokens under other ids


def test_a_reordered_and_extended_teacher_answers_as_its_twin(make: Make) -> None:
    task = make()
    one, other = (task.load(each) for each in twins())
    packed = [n for n in task.rows["train"] if len(task._rows[n].ends) > 1]
    batch = task._batch([*packed[:3], *task.rows["train"][:3]])
    mine, its = (dense(ask(each, batch, task.forward).logits) for each in (one, other))
    assert its.shape == mine.shape == (6, mine.shape[1], 400)
    torch.testing.assert_close(its, mine, atol=1e-5, rtol=0)
    scores = [task.met(one).score(each, "test") for each in (one, other)]
    assert scores[1]["score"] == pytest.approx(scores[0]["score"], abs=1e-5)
    assert scores[1]["kl"] == pytest.approx(0, abs=1e-5)
    assert task.preprocessing(one) != task.preprocessing(other)  # a store is asked anew


def test_the_proof_is_told_for_padded_and_reordered_teachers(make: Make) -> None:
    task = make()
    one, other = (task.load(each) for each in twins())
    assert task.understood(task.load(storybook.llama(1))) == ""
    assert task.understood(one) == (
        "400 tokens are the same; of the teacher's 408 classes 8 are padding, as no token has them"
        " (400 to 407)"
    )
    says = task.understood(other)
    assert says.startswith(f"400 tokens are the same, {sum(n != m for n, m in enumerate(ORDER))}")
    assert "1 only the teacher's ('<new>')" in says


def test_a_saved_copy_of_a_reordered_model_keeps_its_own_tokenizer(
    make: Make, tmp_path: Path
) -> None:
    task = make()
    other = task.load(twins()[1])
    other.save_pretrained(tmp_path / "kept")
    task.save(other, tmp_path / "kept")
    again = task.load(str(tmp_path / "kept"))
    batch = next(task.sweep("test", batch_size=2))
    mine, its = (dense(ask(each, batch, task.forward).logits) for each in (other, again))
    assert torch.equal(mine, its)


def test_a_tokenizer_of_another_model_is_refused(make: Make) -> None:
    model: Any = storybook.llama(1)
    model.tokenizer = tongues.tongue("byte_level")
    with pytest.raises(ModelError, match="has 400 classes and its tokenizer ids up to 899"):
        make().load(model)


def test_a_token_that_a_student_wrote_and_its_teacher_lacks_is_not_shown_as_another() -> None:
    reading = Renumbered(torch.tensor([2, -1, 0]), "", "")
    assert reading.ids(torch.tensor([[0, 2]])).tolist() == [[2, 0]]
    with pytest.raises(ModelError, match="wrote a token that its teacher lacks"):
        reading.ids(torch.tensor([[0, 1]]))


def test_texts_with_a_token_that_the_teacher_lacks_are_told_it_letter_by_letter(
    folder: Path, tmp_path: Path
) -> None:
    reads = storybook.tokenizer()
    reads.add_tokens(["Mara"])
    reads.save_pretrained(tmp_path / "own")
    (tmp_path / "own" / "config.json").write_text((folder / "config.json").read_text())
    data = str(storybook.book(tmp_path / "book"))
    task = generation(dataset=data, tokenizer=str(tmp_path / "own"), length=48)
    said = task.understood(task.load(storybook.llama(1)))
    assert "the texts have 'Mara', which is none of the model's tokens" in said


# --- other tokens


def by_hand(model: Any, text: str, ended: bool) -> tuple[list[int], Tensor]:
    """The model's own ids for a text, and what `transformers` makes of them."""
    ids = model.tokenizer(text)["input_ids"]
    ids = [n for n in ids if n != model.tokenizer.eos_token_id]
    ids += [model.tokenizer.eos_token_id] * ended
    with torch.no_grad():
        return ids, model(input_ids=torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("kind", tongues.KINDS)
def test_it_answers_where_both_have_read_the_same(make: Make, kind: str) -> None:
    task = make(pack=False)
    model: Any = task.load(speaker(kind))
    row = max((task._rows[n] for n in task.rows["train"]), key=len)
    said = ask(model, task._of([row]), task.forward).logits
    assert isinstance(said, Foreign)
    assert said.shape == (1, len(row), len(model.tokenizer))
    reads = task.tokenizer
    text = reads.decode([n for n in row.ids if n != reads.eos_token_id])
    ids, answers = by_hand(model, text, bool(row.ids[-1] == reads.eos_token_id))
    places = said.known[0].nonzero()[:, 0].tolist()
    assert len(places) > len(row) // 3
    # Any that has read as much has given one of these answers, and in the same order.
    seen = -1
    for place in places:
        mine = said.dense()[0, place]
        there = (answers[:, : len(mine)] - mine).abs().amax(1).argmin()
        torch.testing.assert_close(mine, answers[there, : len(mine)], atol=1e-4, rtol=0)
        assert int(there) > seen
        seen = int(there)
        # What it has read is what the row has: compared where it is told in whole letters.
        read = reads.decode(row.ids[: place + 1], skip_special_tokens=True).strip()
        told = model.tokenizer.decode(ids[: seen + 1], skip_special_tokens=True).strip()
        if kind == "byte_level" and "\ufffd" not in read + told:
            assert told == read
        elif kind != "unigram" and read.isascii():
            assert "".join(told.lower().split()) == "".join(read.lower().split())


def test_the_score_of_other_tokens_is_in_nats_of_the_same_text(make: Make) -> None:
    """With a begin of its own it tells all of the text; the row's first token counts for none."""
    task = make(pack=False)
    model: Any = task.load(speaker("fallback"))
    lost, count, written = 0.0, 0, 0
    for number in task.rows["test"]:
        row = task._rows[number]
        reads = task.tokenizer
        ended = bool(row.ids[-1] == reads.eos_token_id)
        text = reads.decode(row.ids[: len(row) - ended])
        first = len(reads.decode(row.ids[:1]))
        ids, answers = by_hand(model, text, ended)
        nats = cross_entropy(
            answers[:-1, : len(model.tokenizer)], torch.tensor(ids[1:]), reduction="none"
        )
        read = [
            len(model.tokenizer.decode(ids[: n + 1], skip_special_tokens=True))
            for n in range(len(ids))
        ]
        lost += float(
            sum(each for each, so_far in zip(nats, read[1:], strict=True) if so_far > first)
        )
        count += int((row.labels(len(row)) != IGNORE).sum())
        written += row.written
    found = task.score(model, "test")
    assert found["score"] == pytest.approx(-lost / count, rel=2e-3)
    assert found["tokens"] == count
    assert found["bits_per_byte"] == pytest.approx(-found["score"] * count / math.log(2) / written)
    assert "accuracy" not in found
    assert "kl" not in task.met(model).score(task.load(storybook.llama(1)), "test")


def test_only_what_is_to_be_learned_counts_in_the_score(make: Make, tmp_path: Path) -> None:
    lines = [
        {"prompt": f"Question {n}: who sang in the rain?", "response": " An owl."}
        for n in range(30)
    ]
    path = tmp_path / "asked.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    task = make(dataset=str(path))
    model: Any = task.load(speaker("byte_level"))
    batch = next(task.sweep("test", batch_size=1))
    (lost,) = model.reading.lost(task._asked(model, batch.inputs)[0], batch.inputs)
    row = batch.inputs[0]
    text = task.tokenizer.decode(row.ids[:-1])
    ids, answers = by_hand(model, text, True)
    before = len(model.tokenizer(text.removesuffix(" An owl."))["input_ids"])
    expected = cross_entropy(
        answers[before - 1 : -1, :900], torch.tensor(ids[before:]), reduction="sum"
    )
    assert lost == pytest.approx(float(expected), rel=1e-4)


def test_what_can_not_be_had_of_other_tokens_is_refused(make: Make) -> None:
    task = make()
    model = task.load(speaker("byte_level"))
    batch = next(task.sweep("train", batch_size=2))
    with pytest.raises(ModelError, match="its layers can't be compared token by token"):
        task.forward(model, batch, ["model.layers.0"])
    with pytest.raises(ModelError, match="can't learn them; give the task the model's own"):
        task.loss(ask(model, batch, task.forward), batch)
    with pytest.raises(ModelError, match="writes tokens of its own"):
        task.write(model, batch, 0.5, 1.0)
    short = task.load(speaker("byte_level", max_position_embeddings=16))
    with pytest.raises(ModelError, match="takes at most 16; set `length` lower"):
        task.forward(short, batch)


# --- losses


def nearest() -> Tensor:
    """Which of six tokens is nearest to each of nine."""
    return torch.tensor([0, 1, 1, 5, 4, 4, 4, 2, 0])


def lesson(rows: int = 4, length: int = 5) -> tuple[Knowledge, Lesson]:
    torch.manual_seed(0)
    labels = torch.randint(6, (rows, length))
    labels[0, 2:] = IGNORE
    known = torch.rand(rows, length) > 0.4
    said = Foreign(torch.randn(rows, length, 9), known, nearest)
    mask = torch.ones(rows, length, dtype=torch.long)
    batch = Batch(tuple(range(rows)), labels, tuple("abcd"))
    return Knowledge(torch.randn(rows, length, 6, requires_grad=True), {}, mask), Lesson(
        batch, Knowledge(said, {}, mask)
    )


@pytest.mark.parametrize("loss", [response.uld, response.mined])
def test_the_parts_of_a_lesson_weigh_as_the_whole_however_much_is_known_of_each(loss: Any) -> None:
    student, whole = lesson()
    objective = Objective([term(loss)], student, whole.teacher)
    slope = torch.autograd.grad(objective(student, whole)[0], student.logits)[0]
    assert (slope[~whole.teacher.logits.known] == 0).all()  # type: ignore[union-attr]
    assert (slope[whole.batch.labels == IGNORE] == 0).all()
    total = torch.zeros_like(slope)
    for n in range(4):
        assert whole.teacher is not None
        part = Lesson(whole.batch.rows(n, n + 1), whole.teacher.rows(n, n + 1))
        value = objective(student.rows(n, n + 1), part)[0] * part.batch.weight / whole.batch.weight
        total += torch.autograd.grad(value, student.logits)[0]
    torch.testing.assert_close(total, slope, atol=1e-6, rtol=0)


def test_where_nothing_is_known_nothing_is_lost() -> None:
    student, whole = lesson()
    assert whole.teacher is not None
    nowhere = Foreign(
        whole.teacher.logits.logits,
        torch.zeros(4, 5, dtype=torch.bool),
        nearest,
    )
    none = Lesson(whole.batch, Knowledge(nowhere, {}, whole.teacher.mask))
    value, _ = Objective([term(response.mined)], student, none.teacher)(student, none)
    assert float(value.detach()) == 0


def test_a_loss_that_compares_class_by_class_is_refused() -> None:
    student, whole = lesson()
    with pytest.raises(
        RecipeError, match=r"kl compares class by class.*response.mined or response"
    ):
        Objective([term(response.kl)], student, whole.teacher)
    with pytest.raises(RecipeError, match="The student reads other tokens"):
        Objective([term(response.uld)], whole.teacher, whole.teacher)  # type: ignore[arg-type]


@pytest.mark.parametrize("kept", [{}, {"top": 3}, {"draws": 5, "top": 2, "features": "int8"}])
def test_a_store_gives_answers_in_other_tokens_back(tmp_path: Path, kept: dict[str, Any]) -> None:
    _, whole = lesson()
    keys = [f"{n:02x}" * 8 for n in range(4)]
    assert whole.teacher is not None
    with Store.open(tmp_path, {"weights": "x"}, **kept) as known:
        known.put(keys, whole.teacher)
    back = Store.found(tmp_path).get(keys).logits
    assert isinstance(back, Foreign)
    assert back.shape == (4, 5, 9)
    assert torch.equal(back.known, whole.teacher.logits.known)
    assert torch.equal(back.nearest(), whole.teacher.logits.nearest())
    if not kept:
        assert torch.equal(back.logits, whole.teacher.logits.logits)  # type: ignore[arg-type]


# --- recipes


class Told(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def said(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))
    data = str(storybook.book(tmp_path / "book"))
    return {
        "task": {"text.generation": {"dataset": data, "tokenizer": str(folder), "length": 48}},
        "student": {"llama": {"layers": 1, "width": 16, "heads": 2}},
        "steps": [{"distill": {"steps": 6, "batch_size": 6, "lr": 1e-2, "accumulate": 2}}],
        "measure": ["score"],
        "baselines": ["untrained"],
    }


@pytest.mark.parametrize("teach", ["online", {"offline": {"top": 20, "logits": "int8"}}])
@pytest.mark.parametrize("loss", ["response.uld", "response.mined"])
def test_a_teacher_of_other_tokens_teaches_from_a_recipe(
    said: dict[str, Any], tmp_path: Path, teach: Any, loss: str
) -> None:
    teacher = str(storybook.saved(tmp_path / "teacher", speaker("fallback")))
    more = {"teacher": {"load": {"model": teacher}}, "teach": teach, "losses": [loss, "task"]}
    screen = Told()
    report = run(read(said | more), tmp_path / "out", screen=screen)
    found = {row.name: row for row in report.rows}
    assert found["student"].score > found["untrained"].score
    assert "kl" not in found["student"].metrics
    proof = report.plan["tokens"]
    assert "of 800 and the task's 400 tokens" in proof
    assert f"The teacher's tokens: {proof}." in screen.lines
    points = report.history["student"]
    assert points[-1][loss] < points[0][loss] or loss == "response.uld"


def test_a_reordered_teacher_teaches_from_a_recipe_through_the_store(
    said: dict[str, Any], tmp_path: Path
) -> None:
    losses: dict[str, Any] = {}
    for name, model in zip(("one", "other"), twins(), strict=True):
        teacher = str(storybook.saved(tmp_path / name, model))
        more = {
            "teacher": {"load": {"model": teacher}},
            "teach": "offline",
            "losses": ["response.kl"],
        }
        report = run(read(said | more), tmp_path / f"out-{name}")
        losses[name] = [point["loss"] for point in report.history["student"]]
        assert "400 tokens are the same" in report.plan["tokens"]
    assert losses["one"] == pytest.approx(losses["other"], abs=1e-5)


def test_a_recipe_whose_loss_needs_the_same_classes_is_refused_before_training(
    said: dict[str, Any], tmp_path: Path
) -> None:
    teacher = str(storybook.saved(tmp_path / "teacher", speaker("byte_level")))
    more = {"teacher": {"load": {"model": teacher}}, "teach": "online", "losses": ["response.kl"]}
    with pytest.raises(RecipeError, match=r"take response.mined or response.uld"):
        run(read(said | more), tmp_path / "out")
    assert not (tmp_path / "out" / "arms").exists()
