"""A language model's logits are not made before they are needed, and are what they would be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import storybook
import torch
from largest import Largest
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM

from attar import heads
from attar.distill import Objective, term
from attar.engine import local
from attar.errors import RecipeError
from attar.heads import Headed, dense
from attar.losses import response
from attar.tasks.text import answers, generation
from attar.teach import ask, ensemble, mutual, pseudo_labels, uncertain
from attar.types import IGNORE, Batch, Knowledge, Lesson

SMALL: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}


@pytest.fixture
def task(tmp_path: Path) -> generation:
    data, folder = storybook.book(tmp_path / "book"), storybook.saved(tmp_path / "model")
    return generation(dataset=str(data), tokenizer=str(folder), length=48)


@pytest.fixture
def batch(task: generation) -> Batch:
    return task._batch(task.rows["train"][:4])


def transformers_says(task: generation, model: Any, batch: Batch) -> Tensor:
    return model(**task.encode(model, batch.inputs)).logits  # type: ignore[no-any-return]


def other(kind: str) -> nn.Module:
    """Models that go on with their logits: one caps them, one scales them."""
    torch.manual_seed(0)
    if kind == "capped":
        return Gemma2ForCausalLM(Gemma2Config(**SMALL, final_logit_softcapping=0.01)).eval()
    return GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=7.0)).eval()


def test_logits_that_nobody_asked_for_are_not_made(task: generation, batch: Batch) -> None:
    model = task.load(storybook.llama(padded=24))
    said = task.forward(model, batch)
    assert isinstance(said.logits, Headed)
    assert said.logits.shape == (4, 48, 400)
    whole = transformers_says(task, model, batch)
    torch.testing.assert_close(dense(said.logits), whole[..., :400])
    torch.testing.assert_close(transformers_says(task, model, batch), whole)


@pytest.mark.parametrize("kind", ["capped", "scaled"])
def test_what_a_model_does_to_its_logits_is_done(task: generation, batch: Batch, kind: str) -> None:
    model = task.load(other(kind))
    whole = transformers_says(task, model, batch)
    for _ in range(2):  # at the second time it is known
        said = task.forward(model, batch).logits
        assert isinstance(said, Tensor)
        assert torch.equal(said, whole)


def test_a_model_that_goes_on_with_its_logits_is_asked_twice_once_alone(
    task: generation, batch: Batch
) -> None:
    model = task.load(other("scaled"))
    asked: list[nn.Module] = []
    model.register_forward_pre_hook(lambda module, _: asked.append(module))
    task.forward(model, batch)
    task.forward(model, batch)
    assert len(asked) == 3


def test_who_listens_to_a_head_hears_what_it_says(task: generation, batch: Batch) -> None:
    model = task.load(storybook.llama())
    whole = transformers_says(task, model, batch)
    said = task.forward(model, batch, ["lm_head"])
    assert torch.equal(said.features["lm_head"], whole)
    assert torch.equal(dense(said.logits), whole)


@pytest.mark.parametrize("made", ["factors", "linear"])
def test_a_head_that_is_no_plain_layer_is_asked_as_ever(
    task: generation, batch: Batch, made: str
) -> None:
    model: Any = task.load(storybook.llama(tie_word_embeddings=False))
    if made == "factors":
        model.lm_head = nn.Sequential(nn.Linear(32, 4), nn.Linear(4, 400))
    else:
        model.lm_head = type("Louder", (nn.Linear,), {})(32, 400)
    assert isinstance(task.forward(model, batch).logits, Tensor)
    assert torch.equal(task.forward(model, batch).logits, transformers_says(task, model, batch))


def test_a_failure_in_between_leaves_the_head_as_it_was(task: generation, batch: Batch) -> None:
    model: Any = task.load(storybook.llama())

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    handle = model.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        answers.answered(model, task.encode(model, batch.inputs))
    handle.remove()
    assert "forward" not in vars(model.lm_head)
    assert transformers_says(task, model, batch).any()


def slopes(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}  # type: ignore[union-attr]


def test_a_step_has_the_gradient_of_all_logits_and_never_makes_them(
    task: generation, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, model = task.load(storybook.llama()), task.load(storybook.llama(2, seed=1))
    at = batch.labels != IGNORE
    its, mine = (transformers_says(task, each, batch)[at] for each in (teacher, model))
    surprise = nn.functional.cross_entropy(mine, batch.labels[at], label_smoothing=0.1)
    wanted = slopes(model, response.kl(mine, its.detach(), temperature=2.0) + 0.5 * surprise)
    monkeypatch.setattr(heads, "CHUNK", 8 * 400)
    terms = [
        term(response.kl, temperature=2.0),
        term(task.loss, 0.5, label_smoothing=0.1),
    ]
    with Largest() as seen:
        lesson = Lesson(batch, ask(teacher, batch, task.forward))
        student = task.forward(model, batch)
        loss, _ = Objective(terms, student, lesson.teacher)(student, lesson)
        found = slopes(model, loss)
    for name, slope in wanted.items():
        torch.testing.assert_close(found[name], slope, atol=1e-5, rtol=1e-4, msg=name)
    assert max(seen.sizes) <= 400 * 32  # the gradient of the head
    assert 3 * max(seen.sizes) < int(at.sum()) * 400


def test_scores_are_made_of_a_few_logits_at_a_time(
    task: generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = task.load(storybook.llama())
    _, whole = task.judged(model, "test")
    monkeypatch.setattr(heads, "CHUNK", 3 * 400)
    with Largest() as seen:
        _, found = task.judged(model, "test")
    assert found == pytest.approx(whole)
    assert 5 * max(seen.sizes) < found["tokens"] * 400


# --- schemes over answers that are not made yet


def test_of_two_teachers_the_mean_of_their_probabilities_is_learned(
    task: generation, batch: Batch
) -> None:
    teachers = [task.load(storybook.llama(seed=seed)) for seed in (0, 1)]
    lesson = next(ensemble([batch], teachers, task.forward, weights=(3.0, 1.0)))
    one, two = (
        transformers_says(task, each, batch).detach().double().softmax(-1) for each in teachers
    )
    assert lesson.teacher is not None
    np.testing.assert_allclose(
        lesson.teacher.logits.double().softmax(-1), 0.75 * one + 0.25 * two, atol=1e-6
    )


@pytest.mark.parametrize("how", ["confidence", "entropy", "best"])
def test_of_each_token_the_surer_teacher_says_more(
    task: generation, batch: Batch, how: Any
) -> None:
    sure, unsure = (task.load(storybook.llama(initializer_range=size)) for size in (0.9, 0.01))
    place = "model.layers.0"
    lesson = next(
        ensemble(
            [batch],
            [sure, unsure],
            lambda model, some: task.forward(model, some, [place]),
            how=how,
        )
    )
    assert lesson.teacher is not None
    logs = [transformers_says(task, each, batch).log_softmax(-1) for each in (sure, unsure)]
    at, row = int((batch.labels[0] != IGNORE).nonzero()[0]), 0
    label = int(batch.labels[row, at])
    lost = [-float(each[row, at, label].detach()) for each in logs]
    doubt = [float(torch.special.entr(each[row, at].exp()).sum().detach()) for each in logs]
    if how == "best":
        wanted = np.array([lost[0] < lost[1], lost[0] >= lost[1]], float)
    elif how == "entropy":
        wanted = np.exp(-np.array(doubt)) / np.exp(-np.array(doubt)).sum()
    else:
        wanted = 1 - np.exp(lost) / np.exp(lost).sum()
    mixed = sum(
        share * each[row, at].exp() for share, each in zip(wanted.tolist(), logs, strict=True)
    )
    said = lesson.teacher.logits[row, at].exp()
    torch.testing.assert_close(said, mixed.detach(), atol=1e-5, rtol=1e-4)  # type: ignore[union-attr]
    features = [task.forward(each, batch, [place]).features[place] for each in (sure, unsure)]
    heard = sum(
        share * each[row, at] for share, each in zip(wanted.tolist(), features, strict=True)
    )
    torch.testing.assert_close(
        lesson.teacher.features[place][row, at],
        heard.detach(),  # type: ignore[union-attr]
        atol=1e-5,
        rtol=1e-4,
    )


def test_peers_that_write_learn_from_one_another(task: generation, batch: Batch) -> None:
    one, two = task.load(storybook.llama(2)), task.load(storybook.llama(2, seed=1))

    def judge(student: Knowledge, teacher: Knowledge) -> nn.Module:
        return Objective([term(response.kl)], student, teacher)

    lessons = mutual([batch], one, task.forward, local(), lambda _: two, judge, 1)
    lesson = next(lessons)
    assert lesson.teacher is not None
    wanted = transformers_says(task, two, batch).log_softmax(-1)
    torch.testing.assert_close(lesson.teacher.logits, wanted.detach(), atol=1e-5, rtol=1e-4)
    assert lesson.teacher.mask is not None
    assert next(lessons, None) is None  # the peer took its step


def test_hard_answers_stand_for_labels_that_nobody_knows(task: generation, batch: Batch) -> None:
    teacher = task.load(storybook.llama())
    unknown = Batch(batch.inputs, torch.full_like(batch.labels, IGNORE), batch.keys)
    lesson = next(pseudo_labels([Lesson(unknown, ask(teacher, batch, task.forward))]))
    likeliest = transformers_says(task, teacher, batch).argmax(-1)
    assert torch.equal(lesson.batch.labels, likeliest)


def test_rows_of_text_are_no_rows_to_be_unsure_of(task: generation, batch: Batch) -> None:
    model = task.load(storybook.llama())
    with pytest.raises(RecipeError, match="rows that have one answer"):
        next(uncertain([batch], [model], model, task.forward))
