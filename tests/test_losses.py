"""Promises that every loss keeps, found by looking into the room."""

from __future__ import annotations

import inspect
import math
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from attar import losses
from attar.losses import attention, response

FILES = [
    import_module(f"attar.losses.{file.name}") for file in pkgutil.iter_modules(losses.__path__)
]
LOSSES = [
    function
    for file in FILES
    for name, function in inspect.getmembers(file, inspect.isfunction)
    if not name.startswith("_") and function.__module__ == file.__name__
]
ROWS, HEADS, LENGTH, WIDTH, CLASSES = 6, 3, 5, 24, 5
KINDS = {  # what `student` can be, without its rows
    "Logits": (CLASSES,),
    "Features": (LENGTH, WIDTH),
    "Attentions": (HEADS, LENGTH, LENGTH),
    "Projections": (LENGTH, WIDTH),
}
MASK = torch.arange(LENGTH) < torch.tensor([5, 4, 3, 2, 1, 5])[:, None]
UNKNOWN = -100


def title(loss: Callable[..., Tensor]) -> str:
    return f"{loss.__module__.rpartition('.')[2]}.{loss.__name__}"


def given(loss: Callable[..., Tensor]) -> list[str]:
    """What the loss asks for, before the star."""
    parameters = inspect.signature(loss).parameters.values()
    return [entry.name for entry in parameters if entry.kind is not entry.KEYWORD_ONLY]


def options(loss: Callable[..., Tensor]) -> dict[str, Any]:
    parameters = inspect.signature(loss).parameters.values()
    return {entry.name: entry.default for entry in parameters if entry.kind is entry.KEYWORD_ONLY}


def kind(loss: Callable[..., Tensor]) -> str:
    return inspect.signature(loss).parameters["student"].annotation


CASES = [pytest.param(loss, {}, id=title(loss)) for loss in LOSSES] + [
    pytest.param(loss, {name: not value}, id=f"{title(loss)}-{name}")
    for loss in LOSSES
    for name, value in options(loss).items()
    if isinstance(value, bool)
]
every_loss = pytest.mark.parametrize(("loss", "chosen"), CASES)
masked_losses = pytest.mark.parametrize(
    "loss", [f for f in LOSSES if "mask" in given(f)], ids=title
)
labelled_losses = pytest.mark.parametrize(
    "loss", [f for f in LOSSES if "labels" in given(f)], ids=title
)


@dataclass(frozen=True)
class Scene:
    """Free numbers of student and teacher; `see` makes of them what the loss compares."""

    loss: Callable[..., Tensor]
    student: Tensor
    teacher: Tensor
    labels: Tensor
    mask: Tensor

    def see(self, numbers: Tensor) -> Tensor:
        if kind(self.loss) != "Attentions":
            return numbers
        padding = ~self.mask[:, None, None, :]
        return numbers.masked_fill(padding, -math.inf).softmax(-1)

    def value(self) -> Tensor:
        everything = {
            "student": self.see(self.student),
            "teacher": self.see(self.teacher),
            "labels": self.labels,
            "mask": self.mask,
        }
        return self.loss(**{name: everything[name] for name in given(self.loss)})

    def slope(self) -> Tensor:
        """The gradient that reaches the student's free numbers."""
        student = self.student.detach().requires_grad_()
        (slope,) = torch.autograd.grad(replace(self, student=student).value(), student)
        return slope

    def rows(self, index: Tensor) -> Scene:
        picked = (part[index] for part in (self.student, self.teacher, self.labels, self.mask))
        return Scene(self.loss, *picked)

    def to(self, dtype: torch.dtype) -> Scene:
        return replace(self, student=self.student.to(dtype), teacher=self.teacher.to(dtype))


def scene(
    loss: Callable[..., Tensor],
    chosen: dict[str, Any],
    *,
    apart: float = 0.3,
    classes: int = CLASSES,
) -> Scene:
    """A student `apart` from its teacher; two rows have no label."""
    shape = (classes,) if kind(loss) == "Logits" else KINDS[kind(loss)]
    teacher = torch.randn(ROWS, *shape)
    labels = torch.tensor([0, 1, UNKNOWN, 1, 0, UNKNOWN])
    student = teacher + apart * torch.randn_like(teacher)
    bound = partial(loss, **chosen)
    bound.__module__, bound.__name__ = loss.__module__, loss.__name__  # type: ignore[attr-defined]
    return Scene(bound, student, teacher, labels, MASK)


def finite(value: Tensor) -> bool:
    return bool(torch.isfinite(value).all())


@pytest.mark.parametrize("loss", LOSSES, ids=title)
def test_what_attar_gives_stands_before_the_star_and_what_a_recipe_sets_after_it(loss: Any) -> None:
    assert set(given(loss)) <= {"student", "teacher", "labels", "mask", "knowledge", "batch"}
    assert given(loss)[:2] == ["student", "teacher"]
    assert inspect.Parameter.empty not in options(loss).values()
    assert len(options(loss)) <= 6
    assert kind(loss) in KINDS
    assert loss.__doc__


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.__name__)
def test_a_loss_can_be_copied_out_of_the_house(file: Any) -> None:
    assert "attar" not in inspect.getsource(file)


@every_loss
@pytest.mark.parametrize("apart", [0.01, 0.3, 3.0])
def test_a_loss_is_least_where_student_equals_teacher(loss: Any, chosen: Any, apart: float) -> None:
    away = scene(loss, chosen, apart=apart)
    there = replace(away, student=away.teacher)
    assert there.value() < away.value()
    assert there.slope().abs().max() < 1e-5
    if loss is not response.soft_cross_entropy:  # at its least it is the teacher's entropy
        assert there.value().abs() < 1e-6


@every_loss
def test_a_step_down_the_gradient_brings_the_student_nearer_the_teacher(
    loss: Any, chosen: Any
) -> None:
    before = scene(loss, chosen)
    slope, way = before.slope(), before.teacher - before.student
    assert (-slope * way).sum() > 0.05 * slope.norm() * way.norm() > 0
    after = replace(before, student=before.student - 0.02 * way.norm() * slope / slope.norm())
    assert after.value() < before.value()
    assert (after.teacher - after.student).norm() < way.norm()


@every_loss
def test_no_gradient_reaches_the_teacher(loss: Any, chosen: Any) -> None:
    here = scene(loss, chosen)
    student, teacher = here.student.requires_grad_(), here.teacher.requires_grad_()
    replace(here, student=student, teacher=teacher).value().backward()
    assert student.grad is not None
    assert teacher.grad is None


@every_loss
def test_the_order_of_examples_does_not_matter(loss: Any, chosen: Any) -> None:
    here = scene(loss, chosen)
    torch.testing.assert_close(here.rows(torch.randperm(ROWS)).value(), here.value())


@every_loss
def test_a_batch_given_twice_over_costs_the_same(loss: Any, chosen: Any) -> None:
    here = scene(loss, chosen)
    twice = here.rows(torch.arange(ROWS).repeat(2))
    torch.testing.assert_close(twice.value(), here.value())
    torch.testing.assert_close(2 * twice.slope()[:ROWS], here.slope(), rtol=1e-4, atol=1e-6)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_in_gives_single_precision_out(loss: Any, chosen: Any, dtype: Any) -> None:
    half = scene(loss, chosen).to(dtype)
    assert half.value().dtype == torch.float32
    torch.testing.assert_close(half.value(), half.to(torch.float32).value(), rtol=0.02, atol=1e-4)
    assert half.slope().dtype == dtype
    assert finite(half.slope())


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [1e-4, 30.0, 1000.0])
def test_small_and_large_numbers_stay_finite(
    loss: Any, chosen: Any, dtype: Any, scale: float
) -> None:
    here = scene(loss, chosen, apart=1.0)
    here = replace(here, student=scale * here.student, teacher=scale * here.teacher).to(dtype)
    assert finite(here.value())
    assert finite(here.slope())


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_numbers_without_any_variance_stay_finite(loss: Any, chosen: Any, dtype: Any) -> None:
    here = scene(loss, chosen)
    for student, teacher in [(0, 1), (1, 0), (0, 0)]:
        flat = replace(here, student=student * here.student, teacher=teacher * here.teacher)
        assert finite(flat.to(dtype).value())
        assert finite(flat.to(dtype).slope())
    constant = replace(here, student=0 * here.student + 0.1)
    assert finite(constant.to(dtype).slope())


@every_loss
def test_one_example_is_enough(loss: Any, chosen: Any) -> None:
    alone = scene(loss, chosen).rows(torch.tensor([0]))
    assert finite(alone.value())
    assert finite(alone.slope())
    assert alone.slope().abs().max() > 0


@every_loss
@pytest.mark.parametrize("rows", [ROWS, 1])
def test_two_classes_are_enough(loss: Any, chosen: Any, rows: int) -> None:
    binary = scene(loss, chosen, classes=2).rows(torch.arange(rows))
    assert finite(binary.value())
    assert finite(binary.slope())


@every_loss
def test_mixed_precision_changes_nothing(loss: Any, chosen: Any) -> None:
    here = scene(loss, chosen)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = here.value()
    torch.testing.assert_close(mixed, here.value(), rtol=1e-5, atol=1e-7)


@masked_losses
@pytest.mark.parametrize("content", [50.0, -1e4, math.nan])
def test_what_stands_in_the_padding_changes_nothing(loss: Any, content: float) -> None:
    here = scene(loss, {})
    if kind(loss) == "Attentions":
        padding = ~(MASK[:, None, :, None] & MASK[:, None, None, :])
    else:
        padding = ~MASK[:, :, None]
    clean = here.see(here.student).detach().requires_grad_()
    teacher = here.see(here.teacher)
    filled = clean.detach().masked_fill(padding, content).requires_grad_()
    loss(clean, teacher, MASK).backward()
    value = loss(filled, teacher.masked_fill(padding, content), MASK)
    value.backward()
    assert clean.grad is not None
    assert filled.grad is not None
    torch.testing.assert_close(value, here.value())
    torch.testing.assert_close(filled.grad, clean.grad)
    assert not filled.grad.masked_select(padding).any()


@masked_losses
def test_padding_counts_no_more_than_if_it_were_cut_off(loss: Any) -> None:
    short = scene(loss, {}).rows(torch.tensor([2]))
    real = slice(0, 3)
    cut = (
        (slice(None), slice(None), real, real)
        if kind(loss) == "Attentions"
        else (slice(None), real)
    )
    student, teacher = short.see(short.student), short.see(short.teacher)
    expected = short.value()
    torch.testing.assert_close(loss(student[cut], teacher[cut]), expected)
    torch.testing.assert_close(loss(student, teacher, short.mask.long()), expected)
    assert not torch.isclose(loss(student, teacher), expected)


@pytest.mark.parametrize("loss", [f for f in LOSSES if kind(f) == "Features"], ids=title)
def test_pooled_features_have_no_padding_to_mask(loss: Any) -> None:
    student, teacher = torch.randn(2, LENGTH, WIDTH)
    torch.testing.assert_close(loss(student, teacher, MASK[:LENGTH]), loss(student, teacher))
    torch.testing.assert_close(loss(student[None], teacher[None]), loss(student, teacher))


@pytest.mark.parametrize("loss", [f for f in LOSSES if kind(f) == "Attentions"], ids=title)
def test_other_numbers_of_heads_are_compared_by_their_means(loss: Any) -> None:
    student, teacher = (
        torch.randn(ROWS, 2, 4, 4).softmax(-1),
        torch.randn(ROWS, 3, 4, 4).softmax(-1),
    )
    expected = loss(student.mean(1, keepdim=True), teacher.mean(1, keepdim=True))
    torch.testing.assert_close(loss(student, teacher), expected)


@labelled_losses
def test_rows_without_a_label_are_left_out(loss: Any) -> None:
    here = scene(loss, {})
    known = here.labels != UNKNOWN
    torch.testing.assert_close(here.value(), here.rows(known).value())
    assert not here.slope()[~known].any()
    assert here.slope()[known].any()


@labelled_losses
def test_a_batch_without_any_label_is_zero_and_still_has_a_graph(loss: Any) -> None:
    nothing = replace(scene(loss, {}), labels=torch.full((ROWS,), UNKNOWN))
    assert nothing.value() == 0
    assert not nothing.slope().any()


@pytest.mark.parametrize("loss", [f for f in LOSSES if "temperature" in options(f)], ids=title)
def test_a_temperature_that_is_not_positive_is_refused(loss: Any) -> None:
    with pytest.raises(ValueError, match="temperature is 0"):
        scene(loss, {"temperature": 0}).value()


@pytest.mark.parametrize("beta", [0.0, 1.0, 1.5])
def test_jsd_refuses_to_change_its_scale(beta: float) -> None:
    with pytest.raises(ValueError, match="use kl for 0"):
        response.jsd(torch.zeros(1, 2), torch.ones(1, 2), beta=beta)


def test_heads_that_do_not_divide_a_width_are_refused_naming_both() -> None:
    with pytest.raises(ValueError, match=r"5 relation heads.*20 and 24"):
        attention.minilm_v2(torch.zeros(1, 2, 20), torch.zeros(1, 2, 24), heads=5)
    with pytest.raises(ValueError, match=r"8 relation heads.*20 and 24"):
        attention.minilm_v2(torch.zeros(1, 2, 20), torch.zeros(1, 2, 24), heads=8)
    with pytest.raises(ValueError, match="0 relation heads"):
        attention.minilm_v2(torch.zeros(1, 2, 20), torch.zeros(1, 2, 24), heads=0)
