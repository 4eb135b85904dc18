"""Inputs made of what a teacher remembers: what they are like, and what is learned of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from attar import distill, teach
from attar.engine import local
from attar.errors import RecipeError
from attar.losses import response
from attar.tasks.sampling import Batches
from attar.teach.remembered import Wish
from attar.types import IGNORE, Batch, Knowledge, Lesson

How = Literal["statistics", "generator"]
CLASSES, ROWS = 4, 6
EPS = 1e-5

every_form = pytest.mark.parametrize("how", ["statistics", "generator"])


def vectors(seed: int, width: int = 8) -> nn.Sequential:
    """A network over (rows, 5), in training mode but for a dropout that never drops here."""
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Linear(5, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.3)),
        *(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, CLASSES)),
    )


def taught(network: nn.Module, inputs: Tensor, steps: int = 60) -> nn.Module:
    """A network after some steps on classes that can be told apart."""
    labels = (2 * (inputs.flatten(1)[:, 0] > 0) + (inputs.flatten(1)[:, 1] > 0)).long()
    adam = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(steps):
        adam.zero_grad()
        F.cross_entropy(network(inputs), labels).backward()
        adam.step()
    adam.zero_grad()
    return network


def teacher_of(seed: int = 0) -> nn.Module:
    random = torch.Generator().manual_seed(seed)
    return taught(vectors(seed), torch.randn(200, 5, generator=random) @ MIXED)


MIXED = torch.randn(5, 5, generator=torch.Generator().manual_seed(9)) * 0.8
"""What makes the columns of the teacher's data depend on one another."""


def blank(*shape: int, many: int = 4, dtype: torch.dtype = torch.float32) -> Iterator[Batch]:
    """Batches without content."""
    for _ in range(many):
        inputs = torch.full(shape, torch.nan, dtype=dtype)
        yield Batch(inputs, torch.zeros(shape[0], dtype=torch.int64), ("same",) * shape[0])


def forward(model: nn.Module, batch: Batch, /) -> Knowledge:
    return Knowledge(model(batch.inputs))


def engine(folder: Path | None = None) -> local:
    return local(folder, precision="fp32", device="cpu", checkpoint=0)


def lessons(
    teacher: nn.Module, how: How, *shape: int, student: nn.Module | None = None, **options: Any
) -> Iterator[Lesson]:
    options = {"examples": 64, "iterations": 60} | options
    many = options.pop("many", 4)
    student = vectors(3) if student is None else student
    return teach.data_free(
        blank(*(shape or (ROWS, 5)), many=many), [teacher], student, forward, engine(), how=how,
        **options,
    )  # fmt: skip


# --- what the inputs are like


def apart(values: Tensor, mean: Tensor, variance: Tensor) -> float:
    """Mean over channels of the squared distance of means and of deviations."""
    channels = np.moveaxis(values.detach().double().numpy(), 1, 0).reshape(values.shape[1], -1)
    mine = [(row.mean(), np.sqrt(row.var() + EPS)) for row in channels]
    its = zip(mean.double().tolist(), np.sqrt(variance.double().numpy() + EPS), strict=True)
    both = zip(mine, its, strict=True)
    return float(np.mean([(m - n) ** 2 + (s - t) ** 2 for (m, s), (n, t) in both]))


def remembered(teacher: nn.Module, inputs: Tensor) -> float:
    """The same, summed over all normalizations of a teacher that is a sequence of layers."""
    total, values = 0.0, inputs
    for layer in copy.deepcopy(teacher).eval():  # type: ignore[attr-defined]
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            total += apart(values, layer.running_mean, layer.running_var)
        values = layer(values)
    return total


def maps(seed: int, channels: int = 2) -> nn.Module:
    torch.manual_seed(seed)
    network = nn.Sequential(
        *(nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Linear(6, CLASSES)),
    )
    return taught(network, torch.rand(100, channels, 9, 6).cumsum(3) - 2)


def rows_of(network: nn.Module, how: How, *shape: int, **options: Any) -> Tensor:
    made = lessons(network, how, *shape, many=1, **options)
    inputs: Tensor = next(made).batch.inputs
    return inputs


@every_form
@pytest.mark.parametrize("shape", [(5,), (2, 9, 6)])
def test_the_statistics_of_what_is_made_are_those_the_teacher_remembers(
    how: How, shape: tuple[int, ...]
) -> None:
    teacher = teacher_of() if len(shape) == 1 else maps(1)
    noise = remembered(teacher, torch.randn(64, *shape))
    options = {"aim": 0.0, "normal": 0.0, "iterations": 100}
    made = remembered(teacher, rows_of(teacher, how, 64, *shape, student=teacher, **options))
    assert made < (0.05 if how == "statistics" else 0.3) * noise


@every_form
def test_inputs_are_standardized_as_far_as_they_are_to_be(how: How) -> None:
    teacher = teacher_of()
    loose, tight = (
        apart(rows_of(teacher, how, 64, 5, normal=normal, aim=0.0), torch.zeros(5), torch.ones(5))
        for normal in (0.0, 100.0)
    )
    assert tight < 0.1
    assert tight < 0.2 * loose


@every_form
def test_with_an_aim_all_classes_come_up_alike(how: How) -> None:
    teacher = teacher_of()
    (lesson,) = lessons(teacher, how, 64, 5, many=1, aim=10.0, iterations=100)
    assert lesson.teacher is not None
    counts = lesson.teacher.logits.argmax(1).bincount(minlength=CLASSES)
    assert counts.min() >= 10
    assert counts.max() <= 22


@pytest.mark.parametrize("compete", [0.0, 0.7])
def test_the_cost_of_inputs_is_the_sum_that_the_scheme_tells(compete: float) -> None:
    teacher, student = teacher_of(), vectors(3)
    inputs = torch.randn(7, 5) * 1.5
    classes = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    cost = Wish(teacher, student, forward, 0.3, 0.2, compete).cost(inputs, classes)
    logits = [copy.deepcopy(each).eval()(inputs).double() for each in (teacher, student)]
    p, q = (each.softmax(1).detach().numpy() for each in logits)
    middle = (p + q) / 2
    shannon = 0.5 * (p * np.log(p / middle)).sum(1) + 0.5 * (q * np.log(q / middle)).sum(1)
    expected = remembered(teacher, inputs)
    expected += 0.2 * apart(inputs, torch.zeros(5), torch.ones(5))
    expected += 0.3 * -np.log(p[range(7), classes.numpy()]).mean()
    np.testing.assert_allclose(cost.item(), expected - compete * shannon.mean(), rtol=1e-4)


def test_a_generator_goes_for_what_the_student_has_not_learned() -> None:
    teacher, student = teacher_of(), teacher_of(3)

    def disagreement(compete: float) -> float:
        (lesson,) = lessons(
            teacher, "generator", 64, 5, student=student, many=1, iterations=60, compete=compete
        )
        assert lesson.teacher is not None
        its = lesson.teacher.logits.softmax(1)
        mine = teach.ask(student, lesson.batch, forward).logits.softmax(1)
        return float((its - mine).abs().sum(1).mean())

    assert disagreement(20.0) > 1.2 * disagreement(0.0)


# --- lessons


@every_form
def test_a_lesson_has_the_shape_of_its_batch_and_nothing_of_its_content(how: How) -> None:
    teacher = teacher_of().double()
    batches = list(blank(6, 5, dtype=torch.float64)) + list(blank(200, 5, dtype=torch.float64))
    given = list(
        teach.data_free(
            batches, [teacher], vectors(3).double(), forward, engine(), how=how,
            examples=16, iterations=2,
        )
    )  # fmt: skip
    assert [len(lesson.batch) for lesson in given] == [6] * 4 + [200] * 4
    for lesson in given:
        batch = lesson.batch
        assert batch.inputs.shape == (len(batch), 5)
        assert batch.inputs.dtype == torch.float64
        assert batch.inputs.isfinite().all()
        assert not batch.inputs.requires_grad
        assert batch.labels.tolist() == [IGNORE] * len(batch)
        assert batch.labels.dtype == torch.int64
        assert lesson.teacher is not None
        expected = teach.ask(teacher, batch, forward).logits
        torch.testing.assert_close(lesson.teacher.logits, expected)
        assert not lesson.teacher.logits.requires_grad


def test_a_pool_is_made_once_and_its_keys_name_its_inputs() -> None:
    given = [lesson.batch for lesson in lessons(teacher_of(), "statistics", examples=9, many=9)]
    assert all(len(set(batch.keys)) == ROWS for batch in given)
    by_key: dict[str, Tensor] = {}
    for batch in given:
        for key, row in zip(batch.keys, batch.inputs, strict=True):
            assert torch.equal(by_key.setdefault(key, row), row)
    assert len(by_key) == 9
    assert len(torch.stack(list(by_key.values())).unique(dim=0)) == 9
    assert len({batch.keys for batch in given}) > 1


def test_a_generator_makes_other_inputs_every_time() -> None:
    given = [lesson.batch for lesson in lessons(teacher_of(), "generator", many=5)]
    keys = [key for batch in given for key in batch.keys]
    assert len(set(keys)) == 5 * ROWS
    assert len(torch.cat([batch.inputs for batch in given]).unique(dim=0)) == 5 * ROWS


@every_form
def test_the_seed_of_torch_decides_and_its_stream_is_left_where_it_was(how: How) -> None:
    teacher, student, made = teacher_of(), vectors(3), []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        torch.rand(seed)
        before = torch.get_rng_state()
        given = list(lessons(teacher, how, student=student, iterations=3))
        assert torch.equal(torch.get_rng_state(), before)
        made.append(torch.cat([lesson.batch.inputs for lesson in given]))
    assert torch.equal(made[0], made[1])
    assert not torch.isclose(made[0], made[2]).any()


# --- what is left as it was


def hooks(model: nn.Module) -> int:
    return sum(
        len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()
    )


def state_of(model: nn.Module) -> list[Any]:
    gradients = [parameter.grad for parameter in model.parameters()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    tensors = [tensor.clone() for tensor in model.state_dict().values()]
    return [tensors, gradients, flags, modes, hooks(model)]


def same(one: list[Any], other: list[Any]) -> bool:
    tensors = all(map(torch.equal, one[0], other[0]))
    return tensors and all(a is b for a, b in zip(one[1], other[1], strict=True)) and (
        one[2:] == other[2:]
    )  # fmt: skip


@every_form
@pytest.mark.parametrize("on", [True, False])
def test_nothing_is_changed_neither_between_lessons_nor_half_way(how: How, on: bool) -> None:
    teacher, student = teacher_of(), vectors(3)
    for model in (teacher, student):
        model[1].eval()  # type: ignore[index]
        model[0].weight.requires_grad_(False)  # type: ignore[index]
        model[4].weight.grad = torch.ones(8, 8)  # type: ignore[index]
    before = [state_of(teacher), state_of(student)]
    with torch.set_grad_enabled(on):
        given = lessons(teacher, how, student=student, iterations=3)
        for _ in range(3):
            next(given)
            assert torch.is_grad_enabled() is on
            assert same(before[0], state_of(teacher))
            assert same(before[1], state_of(student))
        del given
        assert torch.is_grad_enabled() is on
    assert same(before[0], state_of(teacher))
    assert same(before[1], state_of(student))


@every_form
def test_a_teacher_that_fails_keeps_no_hook(how: How) -> None:
    teacher = teacher_of()
    before, calls = state_of(teacher), []

    def failing(model: nn.Module, batch: Batch, /) -> Knowledge:
        calls.append(hooks(model))
        if len(calls) == 4:
            raise ZeroDivisionError
        return forward(model, batch)

    student = vectors(3)
    with pytest.raises(ZeroDivisionError):
        next(teach.data_free(blank(ROWS, 5), [teacher], student, failing, engine(), how=how))
    assert max(calls) == 2
    assert same(before, state_of(teacher))
    assert torch.is_grad_enabled()


# --- what can't be done


@every_form
@pytest.mark.parametrize(
    "inputs", [("a text", "another"), torch.ones(2, 5, dtype=torch.int64), torch.ones(2)]
)
def test_inputs_that_are_no_numbers_are_refused(how: How, inputs: Any) -> None:
    batch = Batch(inputs, torch.zeros(2, dtype=torch.int64), ("a", "b"))
    for teacher in (teacher_of(), nn.Linear(5, 3)):
        with pytest.raises(RecipeError, match=r"makes inputs of numbers.*`invented`.*`offline`"):
            next(teach.data_free([batch], [teacher], vectors(3), forward, engine(), how=how))


@every_form
def test_a_teacher_that_remembers_nothing_is_refused(how: How) -> None:
    forgetful = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, track_running_stats=False))
    for teacher in (nn.Linear(5, 3), nn.Sequential(nn.LayerNorm(5)), forgetful):
        with pytest.raises(RecipeError, match=r"running statistics.*has none.*`online`"):
            next(lessons(teacher, how))


@every_form
def test_inputs_of_two_shapes_and_several_teachers_are_refused(how: How) -> None:
    teacher, student = teacher_of(), vectors(3)
    batches = [*blank(ROWS, 5, many=1), *blank(ROWS, 4, many=1)]
    given = teach.data_free(
        batches, [teacher], student, forward, engine(), how=how, examples=4, iterations=1
    )
    next(given)
    with pytest.raises(RecipeError, match=r"after \(5,\) comes \(4,\)"):
        next(given)
    for many in (0, 2):
        with pytest.raises(RecipeError, match=f"asks one teacher, not {many}"):
            next(teach.data_free(batches, [teacher] * many, student, forward, engine(), how=how))


# --- across a crash


class Stop(Exception):
    pass


@every_form
@pytest.mark.parametrize("stop", [1, 4, 7])
def test_imagining_goes_on_exactly_where_it_was(how: How, stop: int, tmp_path: Path) -> None:
    teacher = teacher_of()

    def empty(rows: Any) -> Batch:
        return next(blank(len(rows), 5))

    def train(folder: Path, until: int | None) -> nn.Module:
        torch.manual_seed(7)
        student, here = vectors(7), engine(folder)
        batches = Batches(empty, range(24), [1] * 24, batch_size=ROWS, seed=0)

        def watch(record: Any) -> None:
            if record["step"] == until:
                raise Stop

        given = teach.data_free(
            here.feed(batches), [teacher], student, forward, here, how=how,
            examples=20, iterations=5,
        )  # fmt: skip
        return distill.train(
            student,
            given,
            [distill.term(response.kl)],
            forward,
            here,
            watch=watch,
            steps=8,
            lr=0.01,
        )

    whole = train(tmp_path / "whole", None).state_dict()
    with pytest.raises(Stop):
        train(tmp_path / "cut", stop)
    torch.rand(3)
    resumed = train(tmp_path / "cut", None).state_dict()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_a_pool_is_not_sought_again_after_a_crash(tmp_path: Path) -> None:
    asked: list[int] = []

    def counting(model: nn.Module, batch: Batch, /) -> Knowledge:
        asked.append(len(batch))
        return forward(model, batch)

    teacher, student = teacher_of(), vectors(3)
    for expected in (1 + 5 + 2, 2):  # the classes, the search, two lessons; then lessons alone
        asked.clear()
        here = engine(tmp_path)
        here.resume()
        stream = Batches(lambda _: next(blank(ROWS, 5)), range(24), [1] * 24, batch_size=6, seed=0)
        given = teach.data_free(
            here.feed(stream), [teacher], student, counting, here, examples=20, iterations=5
        )
        list(islice(given, 2))
        assert len(asked) == expected


# --- a student of digits it never saw


def digits() -> tuple[Tensor, Tensor]:
    """Real images (rows, 1, 8, 8), standardized by the first 900, and what they show."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(data.images, dtype=torch.float32)[order].unsqueeze(1)
    images = (images - images[:900].mean()) / images[:900].std()
    return images, torch.tensor(data.target)[order]


def reader(width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        *(nn.BatchNorm2d(2 * width), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        nn.Linear(8 * width, 10),
    )


def share_right(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return (model.eval()(images).argmax(1) == labels).float().mean().item()


def noise(seed: int) -> Iterator[Batch]:
    random = torch.Generator().manual_seed(seed)
    while True:
        for batch in blank(64, 1, 8, 8):
            yield Batch(torch.randn(64, 1, 8, 8, generator=random), batch.labels, batch.keys)


@pytest.mark.slow
def test_a_student_learns_to_read_digits_that_neither_it_nor_the_scheme_ever_sees() -> None:
    images, labels = digits()
    seed = 0
    teacher, shuffled = reader(12, 100), torch.Generator().manual_seed(seed)
    adam = torch.optim.Adam(teacher.parameters(), 3e-3)
    for _ in range(150):
        rows = torch.randint(900, (64,), generator=shuffled)
        adam.zero_grad()
        F.cross_entropy(teacher(images[rows]), labels[rows]).backward()
        adam.step()

    def taught_by(how: How | None) -> float:
        student, here = reader(8, seed), engine()
        given = (
            teach.online(noise(seed), [teacher], forward)
            if how is None
            else teach.data_free(noise(1), [teacher], student, forward, here, how=how, **LITTLE)
        )
        losses = [distill.term(response.kl, temperature=2.0)]
        distill.train(student, given, losses, forward, here, steps=200, lr=4e-3)
        return share_right(student, images[1350:], labels[1350:])

    control, pool, generator = map(taught_by, (None, "statistics", "generator"))
    assert share_right(teacher, images[1350:], labels[1350:]) > 0.95
    assert pool > max(0.7, control + 0.15)
    assert generator > max(0.7, control + 0.15)


LITTLE: dict[str, Any] = {"examples": 256, "iterations": 100}
