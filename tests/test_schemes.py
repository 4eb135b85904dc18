"""Schemes that are more than one fixed teacher: what each promises beside what all do."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar import distill, teach
from attar.engine import local
from attar.errors import LayerError, RecipeError
from attar.losses import response
from attar.tasks.sampling import Batches
from attar.types import IGNORE, Batch, Knowledge, Lesson

ROWS, INPUTS, CLASSES, SIZE = 24, 5, 4, 6


class Network(nn.Module):
    def __init__(self, seed: int, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body, self.dropout = nn.Linear(INPUTS, width), nn.Dropout(0.3)
        self.norm, self.head = nn.BatchNorm1d(width), nn.Linear(width, CLASSES)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        states = torch.tanh(self.norm(self.body(inputs)))
        return self.head(self.dropout(states)), states


X = torch.randn(ROWS, INPUTS, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(ROWS) % CLASSES


def batch_of(rows: Sequence[int], labels: Tensor = LABELS) -> Batch:
    chosen = list(rows)
    return Batch(X[chosen], labels[chosen], tuple(f"{row:032x}" for row in chosen))


def stream(many: int) -> Iterator[Batch]:
    for number in range(many):
        yield batch_of([(number * SIZE + n) % ROWS for n in range(SIZE)])


def forward(model: nn.Module, batch: Batch, /, layers: bool = False) -> Knowledge:
    logits, states = model(batch.inputs)
    return Knowledge(logits, {"body": states} if layers else {})


def engine(folder: Path | None = None) -> local:
    return local(folder, precision="fp32", device="cpu", checkpoint=0)


judge = partial(distill.Objective, [distill.term(response.kl)])
"""What peers minimise, built from one answer of each side."""


def probabilities(model: nn.Module, batch: Batch) -> np.ndarray:
    with torch.no_grad():
        logits = copy.deepcopy(model).eval()(batch.inputs)[0].double().numpy()
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def told(lesson: Lesson) -> np.ndarray:
    assert lesson.teacher is not None
    return lesson.teacher.logits.double().softmax(1).numpy()


# --- self_ema


def test_the_average_follows_the_student_and_weighs_old_weights_by_the_decay() -> None:
    student = Network(0)
    expected = {name: p.detach().double().numpy() for name, p in student.named_parameters()}
    lessons = teach.self_ema(stream(40), student, forward, engine(), decay=0.8)
    first = next(lessons)
    np.testing.assert_allclose(told(first), probabilities(student, first.batch), rtol=1e-5)
    for step in range(1, 30):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        keep = min(0.8, step / (step + 10))
        for name, parameter in student.named_parameters():
            new = parameter.detach().double().numpy()
            expected[name] = keep * expected[name] + (1 - keep) * new
        lesson = next(lessons)
    average = copy.deepcopy(student)
    average.load_state_dict(
        average.state_dict() | {name: torch.tensor(a).float() for name, a in expected.items()}
    )
    np.testing.assert_allclose(told(lesson), probabilities(average, lesson.batch), rtol=1e-4)


def test_the_average_takes_over_running_statistics() -> None:
    student = Network(0)
    lessons = teach.self_ema(stream(3), student, forward, engine(), decay=0.999)
    next(lessons)
    student.norm.running_mean += 3.0
    lesson = next(lessons)
    np.testing.assert_allclose(told(lesson), probabilities(student, lesson.batch), rtol=1e-5)


# --- own


def test_own_gives_the_students_answer_of_the_moment() -> None:
    student = Network(0)
    for lesson in teach.own(stream(3), student, forward):
        np.testing.assert_allclose(told(lesson), probabilities(student, lesson.batch), rtol=1e-5)
        with torch.no_grad():
            student.head.weight.mul_(2)


# --- virtual


@pytest.mark.parametrize("confidence", [0.9, 0.99])
def test_a_virtual_teacher_is_as_sure_of_the_truth_as_it_is_told(confidence: float) -> None:
    (lesson,) = teach.virtual([batch_of([2])], Network(0), forward, "abcd", confidence=confidence)
    rest = (1 - confidence) / 3
    np.testing.assert_allclose(told(lesson), [[rest, rest, confidence, rest]], rtol=1e-5)


def test_a_virtual_teacher_has_nothing_to_say_where_no_label_is_known() -> None:
    student, labels = Network(0), LABELS.clone()
    labels[3] = IGNORE
    batch = batch_of([2, 3], labels)
    (lesson,) = teach.virtual([batch], student, forward, "abcd")
    np.testing.assert_allclose(told(lesson)[1], probabilities(student, batch)[1], rtol=1e-5)
    np.testing.assert_allclose(told(lesson)[0, 2], 0.9, rtol=1e-5)


@pytest.mark.parametrize("confidence", [0.25, 0.1, 1.0])
def test_a_virtual_teacher_that_prefers_no_truth_is_refused(confidence: float) -> None:
    with pytest.raises(RecipeError, match=r"between 0\.25 and 1"):
        next(teach.virtual(stream(1), Network(0), forward, "abcd", confidence=confidence))


# --- mutual


def peers_of(student: nn.Module, many: int = 8, **options: Any) -> Iterator[Lesson]:
    make = partial(Network)
    return teach.mutual(
        stream(many), student, forward, engine(), make, judge, many, **({"lr": 0.01} | options)
    )


def test_the_first_lesson_is_the_mean_of_the_untrained_peers() -> None:
    lesson = next(peers_of(Network(0), peers=3))
    wanted = np.mean([probabilities(Network(n), lesson.batch) for n in (1, 2, 3)], axis=0)
    np.testing.assert_allclose(told(lesson), wanted, rtol=1e-5)


def test_peers_learn_from_the_student_after_its_step() -> None:
    student, made = Network(0), dict[int, Network]()

    def make(number: int) -> nn.Module:
        made[number] = Network(number)
        return made[number]

    batches = [batch_of(range(SIZE))] * 200
    lessons = teach.mutual(batches, student, forward, engine(), make, judge, 200, lr=0.05)
    next(lessons)
    start = {name: p.clone() for name, p in made[1].named_parameters()}
    apart = np.abs(probabilities(made[1], batches[0]) - probabilities(student, batches[0])).max()
    next(lessons)
    assert any(not torch.equal(p, start[name]) for name, p in made[1].named_parameters())
    for _ in lessons:
        pass
    near = np.abs(probabilities(made[1], batches[0]) - probabilities(student, batches[0])).max()
    assert near < 0.3 * apart


def test_each_peer_is_taught_by_the_others_and_not_by_itself() -> None:
    heard: list[tuple[Tensor, Tensor]] = []

    class Listening(nn.Module):
        def forward(
            self, knowledge: Knowledge, lesson: Lesson, _: float
        ) -> tuple[Tensor, dict[str, float]]:
            assert lesson.teacher is not None
            heard.append((lesson.teacher.logits.softmax(1), lesson.batch.inputs))
            return knowledge.logits.square().mean(), {}

    def listen(*_: Knowledge) -> nn.Module:
        return Listening()

    student = Network(0)
    lessons = teach.mutual(stream(2), student, forward, engine(), Network, listen, 2, peers=2)
    lesson = next(lessons)
    before = [probabilities(network, lesson.batch) for network in (student, Network(1), Network(2))]
    next(lessons)
    for number, (taught, _) in enumerate(heard[:2], 1):
        others = [answer for n, answer in enumerate(before) if n != number]
        np.testing.assert_allclose(taught.numpy(), np.mean(others, axis=0), rtol=1e-4)


def test_what_a_peer_minimises_moves_on_and_learns_with_the_peer() -> None:
    class Counting(nn.Module):
        def __init__(self, *_: Knowledge) -> None:
            super().__init__()
            self.learned, self.told = nn.Parameter(torch.zeros(())), list[float]()
            made.append(self)

        def forward(
            self, knowledge: Knowledge, _: Lesson, progress: float
        ) -> tuple[Tensor, dict[str, float]]:
            self.told.append(progress)
            return knowledge.logits.square().mean() - self.learned, {}

    made: list[Counting] = []
    lessons = teach.mutual(
        stream(4), Network(0), forward, engine(), Network, Counting, 4, peers=2, lr=0.01
    )
    assert len(list(lessons)) == 4
    assert [each.told for each in made] == [[0, 0.25, 0.5, 0.75]] * 2
    assert all(each.learned > 0.01 for each in made)


def test_no_peer_at_all_is_refused() -> None:
    with pytest.raises(RecipeError, match="at least 1 peer, not 0"):
        next(peers_of(Network(0), peers=0))


# --- ensemble


def three() -> list[nn.Module]:
    return [Network(seed).eval() for seed in (1, 2, 3)]


def mixed(batch: Batch, **options: Any) -> tuple[np.ndarray, list[np.ndarray]]:
    teachers = three()
    (lesson,) = teach.ensemble([batch], teachers, forward, **options)
    return told(lesson), [probabilities(teacher, batch) for teacher in teachers]


def test_an_average_is_the_mean_of_the_probabilities() -> None:
    mixture, each = mixed(batch_of(range(SIZE)))
    np.testing.assert_allclose(mixture, np.mean(each, axis=0), rtol=1e-5)


def test_weights_are_shares_whatever_their_sum() -> None:
    mixture, each = mixed(batch_of(range(SIZE)), weights=(1, 2, 5))
    np.testing.assert_allclose(mixture, (each[0] + 2 * each[1] + 5 * each[2]) / 8, rtol=1e-5)


def test_confidence_weighs_a_teacher_by_its_cross_entropy_with_the_label() -> None:
    """Zhang et al. 2022, equation 4: w_k = (1 - exp(L_k) / Σ exp(L_j)) / (K - 1)."""
    batch = batch_of(range(SIZE))
    mixture, each = mixed(batch, how="confidence")
    for row, label in enumerate(batch.labels.tolist()):
        powers = [math.exp(-math.log(answer[row, label])) for answer in each]
        shares = [(1 - power / sum(powers)) / 2 for power in powers]
        expected = sum(share * answer[row] for share, answer in zip(shares, each, strict=True))
        np.testing.assert_allclose(mixture[row], expected, rtol=1e-4)


def test_entropy_weighs_the_sure_more_and_stands_in_where_no_label_is_known() -> None:
    labels = torch.full_like(LABELS, IGNORE)
    batch = batch_of(range(SIZE), labels)
    mixture, each = mixed(batch, how="entropy")
    for row in range(SIZE):
        entropies = [-(answer[row] * np.log(answer[row])).sum() for answer in each]
        powers = np.exp(-np.array(entropies))
        expected = sum(p / powers.sum() * a[row] for p, a in zip(powers, each, strict=True))
        np.testing.assert_allclose(mixture[row], expected, rtol=1e-4)
    surest, _ = mixed(batch, how="best")
    for row in range(SIZE):
        entropies = [-(answer[row] * np.log(answer[row])).sum() for answer in each]
        np.testing.assert_allclose(surest[row], each[int(np.argmin(entropies))][row], rtol=1e-4)


def test_the_best_is_the_one_with_the_likeliest_truth() -> None:
    batch = batch_of(range(SIZE))
    mixture, each = mixed(batch, how="best")
    for row, label in enumerate(batch.labels.tolist()):
        best = int(np.argmax([answer[row, label] for answer in each]))
        np.testing.assert_allclose(mixture[row], each[best][row], rtol=1e-4)


def test_few_classes_do_not_make_a_teacher_sure() -> None:
    class Says(nn.Module):
        def __init__(self, chances: list[float]) -> None:
            super().__init__()
            self.register_buffer("logits", torch.tensor(chances).log())

        def forward(self, inputs: Tensor) -> tuple[Tensor, None]:
            return self.logits.expand(len(inputs), -1), None

    narrow = Says([0.6, 0.4, 0, 0])  # 0.67 nats, all but as many as two classes can have
    wide = Says([0.05, 0.05, 0.8, 0.1])  # 0.71 nats, half of what four can have
    batch = batch_of([0], torch.full_like(LABELS, IGNORE))
    (lesson,) = teach.ensemble([batch], [narrow, wide], forward, how="best")
    np.testing.assert_allclose(told(lesson)[0], [0.05, 0.05, 0.8, 0.1], rtol=1e-4)


def test_other_teachers_are_loaded_by_name_and_features_are_mixed_by_the_same_shares() -> None:
    networks = {"a": Network(1).eval(), "b": Network(2).eval()}
    batch = batch_of(range(SIZE))
    look = partial(forward, layers=True)
    (lesson,) = teach.ensemble(
        [batch], [networks["a"]], look, networks.__getitem__, others=("b",), weights=(3, 1)
    )
    assert lesson.teacher is not None
    states = [network(batch.inputs)[1].detach() for network in networks.values()]
    expected = 0.75 * states[0] + 0.25 * states[1]
    torch.testing.assert_close(lesson.teacher.features["body"], expected)


def test_features_of_other_widths_and_wrong_weights_are_refused() -> None:
    look = partial(forward, layers=True)
    with pytest.raises(LayerError, match=r"shapes \(6, 8\) and \(6, 3\)"):
        next(teach.ensemble(stream(1), [Network(1), Network(2, 3)], look))
    for weights in ((1.0,), (1.0, 0.0)):
        with pytest.raises(RecipeError, match="one number above 0 for each"):
            next(teach.ensemble(stream(1), [Network(1), Network(2)], forward, weights=weights))
    with pytest.raises(RecipeError, match="give them as models"):
        next(teach.ensemble(stream(1), [Network(1)], forward, others=("b",)))


# --- uncertain


@pytest.mark.parametrize(("share", "asked"), [(0.01, 1), (0.5, 3), (0.51, 4), (1.0, 6)])
def test_the_teacher_is_asked_about_just_the_least_certain_rows(share: float, asked: int) -> None:
    student, teacher, rows = Network(0), Network(1), []

    def listen(model: nn.Module, batch: Batch, /) -> Knowledge:
        if model is teacher:
            rows.append(batch.keys)
        return forward(model, batch)

    batch = batch_of(range(SIZE))
    (lesson,) = teach.uncertain([batch], [teacher], student, listen, share=share)
    own, its = probabilities(student, batch), probabilities(teacher, batch)
    doubt = -(own * np.log(own)).sum(1)
    chosen = set(np.argsort(-doubt)[:asked].tolist())
    assert [set(keys) for keys in rows] == [{batch.keys[row] for row in chosen}]
    for row in range(SIZE):
        wanted = its if row in chosen else own
        np.testing.assert_allclose(told(lesson)[row], wanted[row], rtol=1e-5)


def test_rows_nobody_was_asked_about_pull_the_student_nowhere() -> None:
    student = Network(0).eval()
    batch = batch_of(range(SIZE))
    (lesson,) = teach.uncertain([batch], [Network(1)], student, forward, share=0.2)
    assert lesson.teacher is not None
    logits = student(batch.inputs)[0].detach().requires_grad_()
    response.kl(logits, lesson.teacher.logits).backward()
    assert logits.grad is not None
    assert int((logits.grad.abs().amax(1) > 1e-6).sum()) == 2


@pytest.mark.parametrize(
    ("teachers", "share", "how", "sentence"),
    [
        (0, 0.5, forward, "asks one teacher, not 0"),
        (2, 0.5, forward, "asks one teacher, not 2"),
        (1, 0.0, forward, "above 0 and at most 1, not 0.0"),
        (1, 1.5, forward, "above 0 and at most 1, not 1.5"),
        (1, 0.5, partial(forward, layers=True), "can't compare layers"),
    ],
)
def test_what_uncertain_can_not_do_is_told(
    teachers: int, share: float, how: Any, sentence: str
) -> None:
    many = [Network(1)] * teachers
    with pytest.raises(RecipeError, match=sentence):
        next(teach.uncertain(stream(1), many, Network(0), how, share=share))


# --- across a crash


def by_average(batches: Any, student: nn.Module, here: local) -> Iterator[Lesson]:
    return teach.self_ema(batches, student, forward, here, decay=0.9)


def by_peers(batches: Any, student: nn.Module, here: local) -> Iterator[Lesson]:
    return teach.mutual(batches, student, forward, here, Network, judge, 12, peers=2, lr=0.01)


def right(student: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(student, labels)


class Stop(Exception):
    pass


@pytest.mark.parametrize("scheme", [by_average, by_peers])
@pytest.mark.parametrize("stop", [1, 5, 11])
def test_a_scheme_with_a_state_goes_on_exactly_where_it_was(
    scheme: Callable[..., Iterator[Lesson]], stop: int, tmp_path: Path
) -> None:
    def train(folder: Path, until: int | None) -> nn.Module:
        torch.manual_seed(7)
        student, here = Network(0), engine(folder)
        batches = Batches(batch_of, range(ROWS), [1] * ROWS, batch_size=SIZE, seed=0)

        def watch(record: Any) -> None:
            if record["step"] == until:
                raise Stop

        losses = [
            distill.term(response.kl),
            distill.term(right),
        ]
        lessons = scheme(here.feed(batches), student, here)
        return distill.train(
            student, lessons, losses, forward, here, watch=watch, steps=12, lr=0.01
        )

    whole = train(tmp_path / "whole", None).state_dict()
    with pytest.raises(Stop):
        train(tmp_path / "cut", stop)
    resumed = train(tmp_path / "cut", None).state_dict()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
