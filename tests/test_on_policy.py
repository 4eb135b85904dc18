"""What a student writes itself, and what it learns of it: mixed, kept, resumed, its gradient."""

from __future__ import annotations

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
from attar.forecast import forecast
from attar.heads import dense
from attar.losses import response
from attar.pipeline import run
from attar.recipe import read
from attar.setting import begin
from attar.tasks.text import generation, writing
from attar.types import IGNORE, Batch, Lesson


def engine(folder: Path | None = None) -> local:
    return local(folder, precision="fp32", device="cpu", checkpoint=0.0)


@pytest.fixture
def task(tmp_path: Path) -> generation:
    folder, data = storybook.saved(tmp_path / "model"), storybook.book(tmp_path / "book", 12)
    return generation(dataset=str(data), tokenizer=str(folder), length=24, pack=False)


def models(task: generation) -> tuple[nn.Module, nn.Module]:
    """A teacher, and a student that is another."""
    return task.load(storybook.llama(1)), task.load(storybook.llama(1, seed=1))


def lessons(
    task: generation,
    batches: Any,
    teacher: nn.Module,
    student: nn.Module,
    here: local | None = None,
    steps: int = 8,
    **options: Any,
) -> Iterator[Lesson]:
    pen = {"forward": task.forward, "write": task.write, "note": task.note, "read": task.read}
    return teach.on_policy(
        batches, [teacher], student, **pen, engine=here or engine(), steps=steps, **options
    )


def some(task: generation, many: int, size: int = 3) -> list[Batch]:
    stream = iter(task.batches(batch_size=size))
    return [next(stream) for _ in range(many)]


def learned(lesson: Lesson) -> list[list[int]]:
    return [[int(n) for n in row if n != IGNORE] for row in lesson.batch.labels]


def test_a_share_of_none_is_online_whatever_else_is_asked_for(task: generation) -> None:
    teacher, student = models(task)
    batches = some(task, 4)
    before = torch.get_rng_state()
    own = list(lessons(task, batches, teacher, student, share=0.0, replay=3, fresh=0.5))
    assert torch.equal(torch.get_rng_state(), before)  # so that dropout is the same too
    usual = teach.online(batches, [teacher], task.forward)
    for one, other in zip(own, usual, strict=True):
        assert one.batch is other.batch
        assert one.teacher is not None
        assert other.teacher is not None
        assert torch.equal(dense(one.teacher.logits), dense(other.teacher.logits))


def test_a_share_of_all_shows_nothing_of_the_data_but_its_beginnings(task: generation) -> None:
    teacher, student = models(task)
    batches = some(task, 4)
    for batch, lesson in zip(
        batches, lessons(task, batches, teacher, student, share=1.0, prompt=0.5), strict=True
    ):
        for row, new in zip(batch.inputs, lesson.batch.inputs, strict=True):
            begun = max(1, round(0.5 * len(row)))
            assert new.ids[:begun].tolist() == row.ids[:begun].tolist()
            assert not new.learned[:begun].any()
            assert new.learned[begun:].all()
            assert len(new) > begun
        assert learned(lesson) != [[int(n) for n in row if n != IGNORE] for row in batch.labels]


def test_the_share_is_how_often_the_student_writes(task: generation) -> None:
    teacher, student = models(task)
    torch.manual_seed(0)
    (batch,) = some(task, 1, size=1)
    told = lessons(task, [batch] * 200, teacher, student, share=0.3, prompt=0.9, steps=200)
    own = sum(lesson.batch is not batch for lesson in told)
    assert abs(own - 60) < 4 * np.sqrt(200 * 0.3 * 0.7)


def test_what_is_drawn_follows_the_students_own_probabilities(task: generation) -> None:
    _, student = models(task)
    prompt = np.array([7, 80, 120])
    torch.manual_seed(0)
    many = writing.continued(student, [prompt] * 2000, 1, task.tokenizer, 0.7)
    with torch.no_grad():
        said: Tensor = student(input_ids=torch.from_numpy(prompt)[None]).logits[0, -1]
    wanted = (said[: task.vocabulary].double() / 0.7).softmax(0).numpy()
    counts = np.bincount([int(new[0]) for new in many], minlength=task.vocabulary)
    often = wanted > 0.01
    spread = np.sqrt(2000 * wanted * (1 - wanted))
    assert often.sum() > 5
    assert (np.abs(counts - 2000 * wanted) < 4.5 * spread)[often].all()


def test_a_teacher_that_helps_is_mixed_in_by_its_share(task: generation) -> None:
    teacher, student = (task.load(storybook.llama(1, seed=n, padded=4 * n)) for n in (0, 1))
    prompts = [np.array([7, 80, 120]), np.array([9, 33])]
    torch.manual_seed(0)
    many = writing.continued(student, prompts * 800, 2, task.tokenizer, 1.0, (teacher, 0.3))
    for number, prompt in enumerate(prompts):
        written = [new for new in many[number::2] if len(new) == 2]
        first = [int(new[0]) for new in many[number::2]]
        likeliest = max({int(new[0]) for new in written}, key=first.count)
        after = [int(new[1]) for new in written if int(new[0]) == likeliest]
        for ids, drawn in ((prompt, first), ([*prompt, likeliest], after)):
            p, q = (_next(model, ids, task.vocabulary) for model in (teacher, student))
            wanted = 0.3 * p + 0.7 * q
            counts = np.bincount(drawn, minlength=task.vocabulary)
            spread = np.sqrt(len(drawn) * wanted * (1 - wanted)) + 1
            assert (np.abs(counts - len(drawn) * wanted) < 4.5 * spread).all()


def _next(model: Any, ids: Any, vocabulary: int) -> np.ndarray[Any, Any]:
    """The probabilities of what comes next, worked out without anything kept."""
    with torch.no_grad():
        said = model(input_ids=torch.tensor([[int(n) for n in ids]])).logits[0, -1]
    return said[:vocabulary].double().softmax(0).numpy()  # type: ignore[no-any-return]


def test_the_gradient_is_that_of_the_divergence_on_what_was_drawn_and_none_flows_through_drawing(
    task: generation,
) -> None:
    teacher, student = models(task)
    torch.manual_seed(3)
    (lesson,) = lessons(task, some(task, 1), teacher, student, share=1.0)
    assert lesson.teacher is not None
    assert all(weight.grad is None for weight in student.parameters())
    objective = distill.Objective(
        [distill.term(response.reverse_kl)], task.forward(student, lesson.batch), lesson.teacher
    )
    loss, _ = objective(task.forward(student, lesson.batch), lesson)
    loss.backward()
    mine = [weight.grad.clone() for weight in student.parameters()]  # type: ignore[union-attr]
    student.zero_grad()
    sums, tokens = torch.zeros(()), 0
    for row in lesson.batch.inputs:  # each text by itself, without padding
        ids = torch.from_numpy(row.ids)[None]
        at = np.flatnonzero(row.learned) - 1
        its: Any = student(input_ids=ids).logits[0, at]
        with torch.no_grad():
            there: Any = teacher(input_ids=ids).logits[0, at]
        q, p = its[:, : task.vocabulary].log_softmax(1), there[:, : task.vocabulary].log_softmax(1)
        sums, tokens = sums + (q.exp() * (q - p)).sum(), tokens + len(at)
    (sums / tokens).backward()
    torch.testing.assert_close(loss, sums / tokens, rtol=1e-5, atol=1e-6)
    for one, weight in zip(mine, student.parameters(), strict=True):
        torch.testing.assert_close(one, weight.grad, rtol=1e-4, atol=1e-6)


def test_what_was_written_last_is_kept_and_learned_from_again(task: generation) -> None:
    teacher, student = models(task)
    torch.manual_seed(0)
    batches = some(task, 30, size=1)
    told = lessons(
        task, batches, teacher, student, steps=30, share=1.0, replay=2, fresh=0.4, prompt=0.8
    )
    keys = [lesson.batch.keys for lesson in told]
    anew = [key for n, key in enumerate(keys) if key not in keys[:n]]
    assert 4 < len(anew) < 24
    for n, key in enumerate(keys[1:], 1):
        if key in keys[:n]:
            written = [each for each in anew if each in keys[:n]]
            assert key in written[-2:]


def test_a_replay_that_fades_writes_less_and_less(task: generation) -> None:
    teacher, student = models(task)
    torch.manual_seed(0)
    batches = some(task, 40, size=1)
    told = lessons(
        task, batches, teacher, student, steps=40, share=1.0, replay=50, fade=True, prompt=0.8
    )
    keys = [lesson.batch.keys for lesson in told]
    anew = [key not in keys[:n] for n, key in enumerate(keys)]
    assert sum(anew[:20]) > sum(anew[20:]) + 4


class Killed(Exception):
    """Stops a training where it stands."""


@pytest.mark.parametrize("died", [3, 7])
def test_a_replay_that_was_killed_goes_on_as_if_it_had_not_been(
    task: generation, tmp_path: Path, died: int
) -> None:
    def train(folder: Path, until: int = 99) -> tuple[nn.Module, list[tuple[str, ...]]]:
        teacher, student = models(task)
        here, met = engine(folder), []
        torch.manual_seed(5)
        options = {"share": 0.7, "replay": 3, "fresh": 0.5, "prompt": 0.6}
        stream = here.feed(task.batches(batch_size=2))
        told = lessons(task, stream, teacher, student, here, 10, **options)

        def noted() -> Iterator[Lesson]:
            for lesson in told:
                met.append(lesson.batch.keys)
                yield lesson

        def watch(record: Any) -> None:
            if record["step"] == until:
                raise Killed

        terms = [distill.term(response.jsd)]
        distill.train(student, noted(), terms, task.forward, here, watch=watch, steps=10, lr=0.01)
        return student, met

    whole, all_met = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "killed", died)
    torch.manual_seed(77)
    resumed, met = train(tmp_path / "killed")
    assert met == all_met[-len(met) :]
    assert len(met) > 10 - died
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_text_without_anything_to_learn_is_passed_over(task: generation) -> None:
    teacher, student = models(task)
    before = [weight.clone() for weight in student.parameters()]

    def silent(_: nn.Module, batch: Batch, *__: Any) -> Batch:
        return Batch(batch.inputs, torch.full_like(batch.labels, IGNORE), batch.keys)

    told = teach.on_policy(
        some(task, 2),
        [teacher],
        student,
        task.forward,
        silent,
        task.note,
        task.read,
        engine(),
        2,
        share=1.0,
    )
    distill.train(student, told, [distill.term(response.kl)], task.forward, engine(), steps=2)
    assert all(
        torch.isfinite(now).all() and torch.allclose(now, then, atol=1e-3)
        for now, then in zip(student.parameters(), before, strict=True)
    )


def test_a_text_that_ends_at_once_has_its_end_to_learn(task: generation) -> None:
    _, student = models(task)
    with torch.no_grad():  # nothing is as likely as the end
        student.get_output_embeddings().weight[task.tokenizer.eos_token_id] = 0.0  # type: ignore
    for batch in some(task, 2):
        wrote = task.write(student, batch, 1.0, 0.0)
        assert all(len(row) >= 1 for row in learned(Lesson(wrote, None)))


def test_only_language_models_write(task: generation) -> None:
    with pytest.raises(RecipeError, match="one teacher, not 0"):
        next(
            teach.on_policy(
                [], [], nn.Linear(1, 1), task.forward, task.write, task.note, task.read, engine(), 1
            )
        )


def test_a_recipe_teaches_on_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))
    model = str(storybook.saved(tmp_path / "model"))
    data = str(storybook.book(tmp_path / "book"))
    said = {
        "task": {"text.generation": {"dataset": data, "tokenizer": model, "length": 24}},
        "teacher": {"load": {"model": model}},
        "student": {"llama": {"layers": 1, "width": 16, "heads": 2}},
        "teach": {"on_policy": {"share": 0.5, "replay": 4, "fresh": 0.5}},
        "losses": [{"response.jsd": {"beta": 0.5}}],
        "steps": [{"distill": {"steps": 4, "batch_size": 2}}],
        "measure": ["score"],
        "baselines": ["labels_only"],
    }
    assert forecast(begin(read(said), tmp_path / "out")).stages
    rows = {row.name: row for row in run(read(said), tmp_path / "out").rows}
    assert np.isfinite(rows["student"].score)
