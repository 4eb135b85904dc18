"""sequence.minillm and sequence.distillm2: gradients against all texts there are, and by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import storybook
import torch
from torch import Tensor, nn

from attar import distill, teach
from attar.engine import local
from attar.errors import RecipeError
from attar.heads import Sparse
from attar.losses import response, sequence
from attar.pipeline import run
from attar.recipe import read
from attar.tasks.text import generation
from attar.teach.weighed import likelihoods
from attar.types import IGNORE, Batch, Knowledge, Lesson

WORDS, LONGEST, END = 3, 3, 0
TEXTS = [
    text
    for size in range(1, LONGEST + 1)
    for text in itertools.product(range(WORDS), repeat=size)
    if END not in text[:-1] and (text[-1] == END or size == LONGEST)
]
"""All texts there can be: each ends with the word 0, or is as long as one may be."""


class Tables(nn.Module):
    """Any distribution over texts: logits of its own for what comes behind each beginning."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.rows = nn.Parameter(torch.randn((WORDS + 1) ** LONGEST, WORDS))

    def forward(self, text: tuple[int, ...]) -> Tensor:
        begun = [sum((word + 1) * (WORDS + 1) ** n for n, word in enumerate(text[:size]))
                 for size in range(LONGEST)]  # fmt: skip
        return self.rows[begun]

    def log(self, text: tuple[int, ...]) -> Tensor:
        """Of each word its log-probability."""
        return self(text).log_softmax(1)[range(len(text)), text]


def forward(model: nn.Module, batch: Batch, /) -> Knowledge:
    return Knowledge(torch.stack([model(text) for text in batch.inputs]))


def batch_of(*texts: tuple[int, ...]) -> Batch:
    labels = torch.full((len(texts), LONGEST), IGNORE)
    for row, text in zip(labels, texts, strict=True):
        row[: len(text)] = torch.tensor(text)
    return Batch(texts, labels, tuple(map(str, texts)))


def slope(lesson: Lesson, student: nn.Module, loss: Any) -> Tensor:
    """The gradient of a lesson of one text, as a sum over its words."""
    said = forward(student, lesson.batch)
    value, _ = distill.Objective([distill.term(loss)], said, lesson.teacher)(said, lesson)
    return torch.autograd.grad(value * lesson.batch.weight, list(student.parameters()))[0]


def expected(teacher: Tables, student: Tables, helped: float, normalized: bool) -> Tensor:
    """The mean gradient that MiniLLM takes, over all texts by how often they are drawn."""
    total = torch.zeros_like(student.rows)
    with torch.no_grad():
        drawn = [
            (helped * teacher.log(text).exp() + (1 - helped) * student.log(text).exp()).prod()
            for text in TEXTS
        ]
    assert float(sum(drawn)) == pytest.approx(1, abs=1e-6)
    lessons = teach.minillm(
        [batch_of(text) for text in TEXTS],
        [teacher],
        student,
        forward,
        lambda _model, batch, *_: batch,
        helped=helped,
        normalized=normalized,
    )
    for often, lesson in zip(drawn, lessons, strict=True):
        total += often * slope(lesson, student, sequence.minillm)
    return total


def test_the_mean_gradient_of_minillm_is_that_of_the_reverse_kl_of_whole_texts() -> None:
    teacher, student = Tables(0), Tables(1)
    apart = torch.zeros(())
    for text in TEXTS:
        q, p = student.log(text).sum(), teacher.log(text).sum().detach()
        apart = apart + q.exp() * (q - p)
    (wanted,) = torch.autograd.grad(apart, student.rows)
    got = expected(teacher, student, 0.0, normalized=False)
    torch.testing.assert_close(got, wanted, atol=2e-6, rtol=1e-4)
    assert wanted.abs().max() > 0.1
    # No token's own divergence alone would do: later ones depend on what is drawn before.
    tokens = sum(
        student.log(text).sum().exp().detach()
        * slope(Lesson(batch_of(text), forward(teacher, batch_of(text)).detach()), student,
                response.reverse_kl)
        for text in TEXTS
    )  # fmt: skip
    assert (tokens - wanted).abs().max() > 0.01


@pytest.mark.parametrize("normalized", [True, False])
def test_with_help_and_normalized_it_is_the_papers_formula(normalized: bool) -> None:
    teacher, student, helped = Tables(2), Tables(3), 0.2
    wanted = torch.zeros_like(student.rows)
    for text in TEXTS:
        q, p = student.log(text), teacher.log(text).detach()
        now = q.detach()
        mixed = helped * p.exp() + (1 - helped) * now.exp()
        loss = torch.zeros(())
        for t in range(len(text)):
            left = len(text) - t - 1
            later = float((p - now)[t + 1 :].sum()) / (max(1, left) if normalized else 1)
            own, its = student(text)[t].log_softmax(0), teacher(text)[t].log_softmax(0).detach()
            loss = loss + (own.exp() * (own - its)).sum()
            loss = loss - float(now[t].exp() / mixed[t]) * later * q[t]
        wanted += mixed.prod() * torch.autograd.grad(loss, student.rows)[0]
    got = expected(teacher, student, helped, normalized)
    torch.testing.assert_close(got, wanted, atol=2e-6, rtol=1e-4)


def test_what_a_word_is_worth_depends_on_what_was_drawn_behind_it() -> None:
    teacher, student = Tables(0), Tables(1)

    def worth(text: tuple[int, ...]) -> list[float]:
        told = teach.minillm(
            [batch_of(text)], [teacher], student, forward, lambda _m, batch, *_: batch, helped=0.0
        )
        return [round(float(n), 4) for n in next(told).batch.notes["worth"][0]]

    assert len({worth((1, 1, last))[0] for last in range(WORDS)}) == WORDS
    assert all(worth((1, 1, last))[2] == 0 for last in range(WORDS))
    assert worth((1, 0))[2] == 0


def test_a_teacher_that_tells_of_few_words_has_no_reward_to_give() -> None:
    some = Sparse(torch.zeros(1, 3, 1).long(), torch.ones(1, 3, 1), torch.zeros(1, 3), 1, WORDS)
    with pytest.raises(RecipeError, match="none of the few tokens"):
        likelihoods(Knowledge(some), batch_of((1, 2, 0)))


def test_a_divergence_of_what_others_wrote_is_refused_by_name() -> None:
    teacher, student = Tables(0), Tables(1)
    batch = batch_of((1, 2, 0))
    lesson = Lesson(batch, forward(teacher, batch).detach())
    with pytest.raises(RecipeError, match="asks for the 'worth' of each token"):
        slope(lesson, student, sequence.minillm)


# --- DistiLLM-2


def test_the_loss_of_distillm2_is_what_is_worked_by_hand() -> None:
    student = torch.tensor([[0.9, 0.1], [0.9, 0.1]]).log()
    teacher = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()
    # the teacher's: KL((.5, .5) | (.86, .14)); the student's: KL((.9, .1) | (.54, .46))
    its = 0.5 * math.log(0.5 / 0.86) + 0.5 * math.log(0.5 / 0.14)
    mine = 0.9 * math.log(0.9 / 0.54) + 0.1 * math.log(0.1 / 0.46)
    told: Any = (teacher, torch.tensor([0.0, 1.0]), torch.tensor([0.1, 0.1]))
    assert float(sequence.distillm2(student, *told)) == pytest.approx((its + mine) / 2, rel=1e-5)
    late = float(sequence.distillm2(student, *told, balance=0.75))
    assert late == pytest.approx((0.5 * its + 1.5 * mine) / 2, rel=1e-5)
    with pytest.raises(ValueError, match="balance is 2"):
        sequence.distillm2(student, *told, balance=2)


@pytest.mark.parametrize("alpha", [0.05, 0.3])
def test_with_one_side_alone_it_is_the_skew_divergences(alpha: float) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(7, 5), torch.randn(7, 5)
    for own, loss in ((0.0, response.skew_kl), (1.0, response.skew_reverse_kl)):
        both = sequence.distillm2(student, teacher, torch.full((7,), own), torch.full((7,), alpha))
        torch.testing.assert_close(both, loss(student, teacher, alpha=alpha))


def paired(teacher: Tables, student: Tables, **options: Any) -> Lesson:
    """The teacher wrote (1, 0) and (1, 2, 0), the student (2, 0) and (2, 2, 2)."""
    wrote = {id(teacher): batch_of((1, 0), (1, 2, 0)), id(student): batch_of((2, 0), (2, 2, 2))}

    def write(model: nn.Module, *_: Any) -> Batch:
        return wrote[id(model)]

    data = batch_of((1, 1, 1), (2, 1, 0))
    return next(teach.distillm2([data], [teacher], student, forward, write, **options))


def test_texts_of_teacher_and_student_stand_in_one_lesson_and_are_told_apart() -> None:
    lesson = paired(Tables(0), Tables(1))
    assert lesson.batch.inputs == ((1, 0), (1, 2, 0), (2, 0), (2, 2, 2))
    assert lesson.batch.notes["own"][:, 0].tolist() == [0, 0, 1, 1]
    assert paired(Tables(0), Tables(1), text="data").batch.inputs[:2] == ((1, 1, 1), (2, 1, 0))
    assert lesson.batch.rows(1, 3).notes["own"][:, 0].tolist() == [0, 1]
    assert lesson.batch.some([3, 0]).notes["own"][:, 0].tolist() == [1, 0]


@pytest.mark.parametrize("seed", range(6))
def test_texts_are_mixed_the_more_the_further_apart_the_two_are(seed: int) -> None:
    teacher, student = Tables(seed), Tables(seed + 10)
    lesson = paired(teacher, student, skew=0.3)
    wanted = []
    for own in (False, True):
        apart = []
        for text in lesson.batch.inputs[2:] if own else lesson.batch.inputs[:2]:
            p, q = (float(each.log(text).detach().mean().exp()) for each in (teacher, student))
            apart.append(q - p if own else p - q)
        wanted += [min(0.3, max(0.01, 1 - 0.7 * np.mean(apart) / each)) for each in apart]
    assert lesson.batch.notes["skew"][:, 0].tolist() == pytest.approx(wanted, rel=1e-3)


def test_two_models_that_are_the_same_have_a_skew_too() -> None:
    lesson = paired(Tables(0), Tables(0))
    assert torch.isfinite(lesson.batch.notes["skew"]).all()
    assert float(lesson.batch.notes["skew"].min()) >= 0.01


# --- on language models


@pytest.fixture
def task(tmp_path: Path) -> generation:
    folder, data = storybook.saved(tmp_path / "model"), storybook.book(tmp_path / "book", 12)
    return generation(dataset=str(data), tokenizer=str(folder), length=24, pack=False)


def test_the_likelihood_of_a_text_is_that_of_the_model_alone(task: generation) -> None:
    model = task.load(storybook.llama(1, padded=5))
    batch = next(iter(task.batches(batch_size=3)))
    with torch.no_grad():
        found = likelihoods(task.forward(model, batch), batch)
        for row, mine in zip(batch.inputs, found, strict=True):
            said = model(input_ids=torch.from_numpy(row.ids)[None]).logits[0, :, : task.vocabulary]
            logs = said.log_softmax(1)[range(len(row) - 1), row.ids[1:]]
            torch.testing.assert_close(mine[: len(row) - 1], logs, atol=1e-5, rtol=0)
            assert not mine[len(row) - 1 :].any()


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize(
    ("scheme", "loss"),
    [(teach.minillm, sequence.minillm), (teach.distillm2, sequence.distillm2)],
    ids=["minillm", "distillm2"],
)
def test_a_lesson_in_parts_has_the_same_gradient(
    task: generation, scheme: Any, loss: Any, parts: int
) -> None:
    def moved(accumulate: int) -> list[Tensor]:
        teacher, student = task.load(storybook.llama(1)), task.load(storybook.llama(1, seed=1))
        before = [weight.detach().clone() for weight in student.parameters()]
        torch.manual_seed(0)
        batches = [next(iter(task.batches(batch_size=4)))]
        told: Iterator[Lesson] = scheme(batches, [teacher], student, task.forward, task.write)
        here = local(precision="fp32", device="cpu")
        how = {"optimizer": "sgd", "lr": 1.0, "warmup": 0.0, "weight_decay": 0.0, "clip": 0.0}
        how |= {"decay": "constant", "steps": 1, "accumulate": accumulate}
        distill.train(student, told, [distill.term(loss)], task.forward, here, **how)
        return [now.detach() - old for now, old in zip(student.parameters(), before, strict=True)]

    for one, other in zip(moved(1), moved(parts), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["minillm", "distillm2"])
def test_a_recipe_teaches_so(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))
    model = str(storybook.saved(tmp_path / "model"))
    data = str(storybook.book(tmp_path / "book"))
    said = {
        "task": {"text.generation": {"dataset": data, "tokenizer": model, "length": 24}},
        "teacher": {"load": {"model": model}},
        "student": {"llama": {"layers": 1, "width": 16, "heads": 2}},
        "teach": {name: {"prompt": 0.5}},
        "losses": [f"sequence.{name}"],
        "steps": [{"distill": {"steps": 3, "batch_size": 2}}],
        "measure": ["score"],
        "baselines": ["labels_only"],
    }
    rows = {row.name: row for row in run(read(said), tmp_path / "out").rows}
    assert np.isfinite(rows["student"].score)
    assert rows["student"].score != rows["labels_only"].score
