"""The language modelling task: what is read, what is foretold, and what a model is scored by."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import storybook
import torch
from torch import Tensor, nn

from attar.distill import Objective, term, train
from attar.errors import AttarError, DataError, ModelError, RecipeError
from attar.heads import dense
from attar.losses import response
from attar.tasks.text import corpora, generation, packing, writing
from attar.tasks.text.corpora import Document
from attar.teach import ask, online, teacher_text
from attar.types import IGNORE, Batch, Knowledge, Lesson

Make = Callable[..., generation]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return storybook.saved(tmp_path_factory.mktemp("model"))


@pytest.fixture
def make(folder: Path, tmp_path: Path) -> Make:
    data = storybook.book(tmp_path / "book")

    def made(**more: Any) -> generation:
        return generation(**{"dataset": str(data), "tokenizer": str(folder), "length": 48, **more})

    return made


def alone(model: Any, ids: np.ndarray[Any, Any]) -> Tensor:
    """What `transformers` itself makes of one document."""
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(ids)[None]).logits[0]  # type: ignore[no-any-return]


# --- rows


def test_every_token_of_a_text_but_the_first_is_foretold_exactly_once() -> None:
    reads = storybook.tokenizer()
    texts = storybook.stories(5)
    rows = packing.rows([Document(text) for text in texts], reads, 16, pack=False)
    ids = [[*reads(text)["input_ids"], reads.eos_token_id] for text in texts]
    foretold = [int(n) for row in rows for n in row.labels(16) if n != IGNORE]
    assert sorted(foretold) == sorted(token for text in ids for token in text[1:])
    assert max(map(len, rows)) == 16
    assert sum(row.written for row in rows) == sum(
        len(text.encode()) - len(reads.decode(row[:1]).encode())
        for text, row in zip(texts, ids, strict=True)
    )


def test_a_label_is_the_next_token_and_the_last_of_a_document_has_none() -> None:
    row = packing.Row(
        np.array([5, 6, 7, 8, 9]), np.array([True, True, False, True, True]), (3, 5), 9
    )
    assert row.labels(7).tolist() == [6, IGNORE, IGNORE, 9, IGNORE, IGNORE, IGNORE]
    assert row.positions.tolist() == [0, 1, 2, 0, 1]


def test_packing_loses_no_token_and_fills_its_rows() -> None:
    reads = storybook.tokenizer()
    documents = [Document(text) for text in storybook.stories(60)]
    apart = packing.rows(documents, reads, 64, pack=False)
    packed = packing.rows(documents, reads, 64, pack=True)

    def pieces(rows: list[packing.Row]) -> list[bytes]:
        cut = [np.split(row.ids, row.ends[:-1]) for row in rows]
        return sorted(piece.tobytes() for some in cut for piece in some)

    assert pieces(apart) == pieces(packed)
    assert (
        sum(map(len, packed)) / (64 * len(packed)) > 0.95 > sum(map(len, apart)) / (64 * len(apart))
    )


def test_documents_of_one_row_answer_as_each_does_alone(make: Make) -> None:
    task = make()
    model = task.load(storybook.llama())
    row = next(n for n in task.rows["train"] if len(task._rows[n].ends) > 2)
    other = next(n for n in task.rows["train"] if len(task._rows[n].ends) == 1)
    said = dense(ask(model, task._batch([row, other]), task.forward).logits)[0]
    for piece, mine in zip(
        np.split(task._rows[row].ids, task._rows[row].ends[:-1]),
        np.split(said[: len(task._rows[row])].numpy(), task._rows[row].ends[:-1]),
        strict=True,
    ):
        np.testing.assert_allclose(mine, alone(model, piece).numpy(), atol=1e-5)


def test_padding_changes_no_answer(make: Make) -> None:
    task = make(pack=False)
    model = task.load(storybook.llama())
    rows = sorted(task.rows["train"], key=lambda n: len(task._rows[n]))
    short, long = rows[0], rows[-1]
    said = ask(model, task._batch([short, long]), task.forward)
    ids = task._rows[short].ids
    assert len(ids) < len(task._rows[long].ids)
    told = dense(said.logits)[0, : len(ids)]
    torch.testing.assert_close(told, alone(model, ids), atol=1e-5, rtol=0)
    assert said.rows(0, 1).logits.shape[1] == len(ids)


def test_a_key_is_of_tokens_boundaries_and_what_counts() -> None:
    ids, all_ = np.arange(6), np.ones(6, bool)
    first = packing.Row(ids, all_, (6,), 6)
    masked = packing.Row(ids, np.arange(6) > 2, (6,), 6)
    split = packing.Row(ids, all_, (3, 6), 6)
    assert len({each.key for each in (first, masked, split)}) == 3
    assert first.key == packing.Row(ids.copy(), all_.copy(), (6,), 1).key


def test_batches_go_on_where_they_stood_and_are_seeded(make: Make) -> None:
    task = make()
    whole, again = task.batches(batch_size=4), task.batches(batch_size=4)
    stream = iter(whole)
    for _ in range(3):
        next(stream)
    again.load_state_dict(dict(whole.state_dict()))
    assert next(stream).keys == next(iter(again)).keys
    other = task.batches(batch_size=4, seed=1)
    assert next(iter(other)).keys != next(iter(task.batches(batch_size=4))).keys


# --- what is learned


def test_of_a_conversation_only_what_the_assistant_says_is_learned() -> None:
    reads = storybook.tokenizer()
    talk = [
        {"role": "user", "content": "Who sang?"},
        {"role": "assistant", "content": "the fox"},
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "in the rain"},
    ]
    document = corpora.conversation("here", talk, reads)
    assert document.text == reads.apply_chat_template(talk, tokenize=False)
    (row,) = packing.rows([document], reads, 200, pack=False)
    learned = reads.decode(row.ids[row.learned])
    assert learned == "the fox<|end|>in the rain<|end|>"
    assert row.ids[-1] == reads.eos_token_id
    assert row.ids[-2] != reads.eos_token_id  # the template ends it, and nobody again


def test_of_a_prompt_and_its_response_the_response_is_learned(folder: Path, tmp_path: Path) -> None:
    lines = [{"prompt": f"Say {n}:", "completion": f" the owl {n}."} for n in range(12)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    task = generation(dataset=str(path), tokenizer=str(folder), length=64, pack=False)
    row = task._rows[task.rows["train"][0]]
    told = task.tokenizer.decode(row.ids[row.learned])
    assert told.startswith(" the owl ")
    assert told.endswith(".<|end|>")
    assert {part: task.size(part) for part in ("train", "validation", "test")} == {
        "train": 9,
        "validation": 1,
        "test": 2,
    }


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"words": "x"}, "none of `text`"),
        ({"text": 3}, "'text' is a int"),
        ({"messages": "hello"}, "no list of"),
        ({"messages": [{"role": "user", "content": "x"}]}, "no assistant says"),
    ],
)
def test_a_row_that_is_no_document_is_refused_with_its_place(
    folder: Path, tmp_path: Path, line: dict[str, Any], said: str
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"text": "fine"}) + "\n" + json.dumps(line) + "\n", "utf-8")
    with pytest.raises(DataError, match=f"line 2.*{said}|{said}"):
        generation(dataset=str(path), tokenizer=str(folder))


def test_a_template_that_writes_earlier_turns_anew_is_refused() -> None:
    reads = storybook.tokenizer()
    reads.chat_template = (
        "{% for m in messages %}{{ loop.revindex }}{{ m['role'] }}{{ m['content'] }}{% endfor %}"
    )
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(DataError, match="writes earlier turns otherwise"):
        corpora.conversation("here", [*talk, *talk], reads)


# --- models


def test_a_model_with_another_tokenizer_is_refused(make: Make) -> None:
    model: Any = storybook.llama(padded=8)
    words = model.tokenizer.get_vocab()
    model.tokenizer.add_tokens(["brand-new"])
    assert len(model.tokenizer) > len(words)
    with pytest.raises(ModelError, match="reads other tokens"):
        make().load(model)


def test_a_row_longer_than_a_model_reads_is_refused(make: Make) -> None:
    with pytest.raises(ModelError, match="at most 32 tokens"):
        make().load(storybook.llama(max_position_embeddings=32))


def test_a_model_that_can_not_tell_packed_documents_apart_is_refused(make: Make) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(400, 400)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return self.table(input_ids) * attention_mask[..., None]  # type: ignore[no-any-return]

    with pytest.raises(ModelError, match="pack: false"):
        make().load(Plain())
    task = make(pack=False)
    assert math.isfinite(task.score(task.load(Plain()))["score"])


def test_a_padded_vocabulary_is_cut_to_the_tokens_that_there_are(make: Make) -> None:
    task = make()
    teacher, student = task.load(storybook.llama(padded=24)), task.load(storybook.llama(2))
    batch = next(iter(task.batches(batch_size=2)))
    knowledge = ask(teacher, batch, task.forward)
    assert knowledge.logits.shape[2] == task.vocabulary == 400
    whole = teacher(**task.encode(teacher, batch.inputs)).logits
    assert whole.shape[2] == 424
    torch.testing.assert_close(dense(knowledge.logits), whole[..., :400].detach())
    objective = Objective([term(response.kl)], task.forward(student, batch), knowledge)
    loss, _ = objective(task.forward(student, batch), Lesson(batch, knowledge))
    assert loss > 0


# --- scores


def test_the_score_is_what_transformers_itself_would_say(make: Make) -> None:
    task = make()
    model: Any = task.load(storybook.llama())
    lost, count = 0.0, 0
    for n in task.rows["test"]:
        ids = torch.from_numpy(task._rows[n].ids)[None]
        mean = float(model(input_ids=ids, labels=ids).loss.detach())
        lost, count = lost + mean * (ids.shape[1] - 1), count + ids.shape[1] - 1
    each, found = task.judged(model, "test")
    assert found["score"] == pytest.approx(-lost / count, abs=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(lost / count), rel=1e-4)
    assert each.mean() == pytest.approx(found["score"], abs=1e-9)
    assert found["low"] < found["score"] < found["high"]
    assert found["tokens"] == count
    lines = (Path(task._dataset) / "test.jsonl").read_text("utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    firsts = sum(len(task.tokenizer.decode(task.tokenizer(t)["input_ids"][:1])) for t in texts)
    size = sum(len(text.encode()) for text in texts) - firsts
    assert found["bits_per_byte"] == pytest.approx(lost / math.log(2) / size, rel=1e-5)


def test_beside_its_teacher_a_model_is_told_how_far_it_agrees(make: Make) -> None:
    task = make()
    teacher, other = task.load(storybook.llama()), task.load(storybook.llama(seed=1))
    assert "kl" not in task.score(teacher)
    there = task.met(teacher)
    same = there.score(teacher, "test")
    assert same["agreement"] == 1
    assert same["kl"] == pytest.approx(0, abs=1e-5)
    found = there.score(other, "test")
    apart, count = 0.0, 0
    for n in there.rows["test"]:
        ids = there._rows[n].ids
        p, q = (alone(each, ids)[:-1].double().log_softmax(1) for each in (teacher, other))
        apart, count = apart + float((p.exp() * (p - q)).sum()), count + len(ids) - 1
    assert found["compared"] == count
    assert found["kl"] == pytest.approx(apart / count, rel=1e-3)


# --- training


def test_an_objective_sees_only_the_tokens_that_are_to_be_learned(make: Make) -> None:
    task = make()
    teacher, student = task.load(storybook.llama()), task.load(storybook.llama(2, seed=1))
    batch = next(iter(task.batches(batch_size=3)))
    its, mine = ask(teacher, batch, task.forward), task.forward(student, batch)
    terms = [term(response.kl, 0.5, temperature=2.0), term(task.loss, 2.0)]
    loss, parts = Objective(terms, mine, its)(mine, Lesson(batch, its))
    divergences, lost = [], []
    for row, (p, q) in enumerate(zip(dense(its.logits), dense(mine.logits), strict=True)):
        for place, label in enumerate(batch.labels[row, : len(p)].tolist()):
            if label != IGNORE:
                a, b = ((x[place].double() / 2).log_softmax(0) for x in (p, q.detach()))
                divergences.append(4 * float((a.exp() * (a - b)).sum()))
                lost.append(-float(q[place].detach().double().log_softmax(0)[label]))
    assert parts["response.kl"] == pytest.approx(np.mean(divergences), rel=1e-5)
    assert float(loss.detach()) == pytest.approx(
        0.5 * np.mean(divergences) + 2 * np.mean(lost), rel=1e-5
    )


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_a_lesson_in_parts_has_the_gradient_of_the_whole(make: Make, parts: int) -> None:
    task = make(pack=False)  # so that rows have very different numbers of tokens
    teacher = task.load(storybook.llama())

    def moved(accumulate: int) -> list[Tensor]:
        student = task.load(storybook.llama(2, seed=1))
        before = [each.detach().clone() for each in student.parameters()]
        lessons = online(task.batches(batch_size=8), [teacher], task.forward)
        losses = [term(response.kl), term(task.loss)]
        train(
            student,
            lessons,
            losses,
            task.forward,
            steps=1,
            optimizer="sgd",
            lr=1.0,
            warmup=0.0,
            weight_decay=0.0,
            clip=0.0,
            decay="constant",
            accumulate=accumulate,
        )
        return [
            after.detach() - old for after, old in zip(student.parameters(), before, strict=True)
        ]

    for one, other in zip(moved(1), moved(parts), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_a_part_of_padding_alone_is_passed_over() -> None:
    labels = torch.tensor([[1, 2], [IGNORE, IGNORE]])
    batch = Batch(("a", "b"), labels, ("0a", "0b"))
    assert [batch.weight, batch.rows(0, 1).weight, batch.rows(1, 2).weight] == [2, 2, 0]


def test_sides_that_answer_for_other_tokens_are_refused() -> None:
    batch = Batch(("a",), torch.tensor([[1, 2]]), ("0a",))
    mine, its = (Knowledge(torch.zeros(1, 2, size)) for size in (5, 6))
    with pytest.raises(RecipeError, match="not of the same tokens"):
        Objective([term(response.kl)], mine, its)(mine, Lesson(batch, its))


def test_an_audit_of_a_language_model_is_refused(make: Make) -> None:
    with pytest.raises(AttarError, match="log-likelihood per token instead"):
        make().audited()


# --- writing


@pytest.mark.parametrize(
    ("written", "truth", "near"),
    [
        ("the fox sang", "the fox sang", 1.0),
        # the common subsequence is "police the gunman": 3 of 4 words on both sides
        ("police kill the gunman", "Police, the gunman killed!", 0.75),
        ("a b c d", "d c b a", 0.25),
        ("", "the fox", 0.0),
    ],
)
def test_rouge_l_is_what_is_worked_by_hand(written: str, truth: str, near: float) -> None:
    assert writing.rouge_l(written, truth) == pytest.approx(near)


def test_prompts_of_different_lengths_are_continued_as_transformers_does_each_alone() -> None:
    model: Any = storybook.llama(padded=8)
    reads = model.tokenizer
    prompts = [np.array(reads(text)["input_ids"]) for text in ("the fox", "Mara sang in the", "a")]
    for prompt, new in zip(prompts, writing.continued(model, prompts, 12, reads), strict=True):
        said = model.generate(
            input_ids=torch.from_numpy(prompt)[None],
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=12,
            do_sample=False,
            suppress_tokens=list(range(len(reads), len(reads) + 8)),
        )
        assert new.tolist() == said[0, len(prompt) :].tolist()


def test_what_a_teacher_writes_is_learned_and_its_prompt_is_not(make: Make) -> None:
    task = make()
    teacher = task.load(storybook.llama())
    batch = next(iter(task.batches(batch_size=2)))
    lesson = next(teacher_text([batch], [teacher], task.write, prompt=0.25, temperature=0.0))
    assert lesson.teacher is None
    documents = [each for row in batch.inputs for each in np.split(row.ids, row.ends[:-1])]
    assert len(lesson.batch) == len(documents)
    for row, ids, labels in zip(lesson.batch.inputs, documents, lesson.batch.labels, strict=True):
        start = max(1, round(0.25 * len(ids)))
        assert row.ids[:start].tolist() == ids[:start].tolist()
        assert (labels[: start - 1] == IGNORE).all()
        likeliest = alone(teacher, row.ids)[..., : task.vocabulary].argmax(1)
        assert labels[start - 1 : len(row) - 1].tolist() == likeliest[start - 1 : -1].tolist()


def test_nothing_but_a_language_model_writes(make: Make) -> None:
    task = make(pack=False)
    with pytest.raises(ModelError, match="can't write"):
        task.write(nn.Linear(2, 2), next(task.sweep("train")), 0.5, 0.0)
