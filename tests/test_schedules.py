"""Promises that every schedule keeps, found by looking into the room, and numbers worked out."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import pytest

from attar.distill import schedules
from attar.errors import RecipeError
from attar.resolve import bind

Schedule = Callable[..., float]
SCHEDULES = [
    function
    for name, function in inspect.getmembers(schedules, inspect.isfunction)
    if not name.startswith("_") and function.__module__ == schedules.__name__
]
TWO_ENDED = [
    function for function in SCHEDULES if "start" in inspect.signature(function).parameters
]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda entry: entry.__name__)
every_two_ended = pytest.mark.parametrize("schedule", TWO_ENDED, ids=lambda entry: entry.__name__)
HUNDREDTHS = [hundredth / 100 for hundredth in range(101)]


@every_schedule
def test_a_schedule_is_given_progress_and_a_recipe_sets_the_rest(schedule: Schedule) -> None:
    progress, *options = inspect.signature(schedule).parameters.values()
    assert progress.name == "progress"
    assert all(option.kind is option.KEYWORD_ONLY for option in options)
    assert all(isinstance(option.default, float) for option in options)


@every_schedule
def test_a_schedule_gives_a_finite_float_at_every_moment(schedule: Schedule) -> None:
    values = [schedule(progress) for progress in HUNDREDTHS]
    assert all(isinstance(value, float) and math.isfinite(value) for value in values)


@every_two_ended
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (4.0, 1.0), (-2.0, 0.5), (0.1, 0.3)])
def test_a_schedule_goes_from_start_to_end_and_never_back(
    schedule: Schedule, start: float, end: float
) -> None:
    values = [schedule(progress, start=start, end=end) for progress in HUNDREDTHS]
    assert (values[0], values[-1]) == (start, end)
    assert values == sorted(values, reverse=start > end)


@every_two_ended
def test_a_schedule_whose_ends_are_equal_stays_there(schedule: Schedule) -> None:
    values = [schedule(progress, start=0.3, end=0.3) for progress in HUNDREDTHS]
    assert values == pytest.approx([0.3] * 101)


def test_constant_is_its_value() -> None:
    assert [schedules.constant(progress, value=0.7) for progress in (0, 0.5, 1)] == [0.7] * 3
    assert schedules.constant(0.5) == 1


def test_linear_has_done_as_much_as_the_run() -> None:
    assert schedules.linear(0.25) == 0.25
    assert schedules.linear(0.75, start=4, end=2) == 2.5


def test_cosine_is_slow_at_both_ends_and_half_done_in_the_middle() -> None:
    assert schedules.cosine(0.25) == pytest.approx((1 - math.sqrt(0.5)) / 2)
    assert schedules.cosine(0.5, start=4, end=2) == pytest.approx(3)
    assert schedules.cosine(1 / 3, start=1, end=0) == pytest.approx(0.75)


def test_step_changes_at_its_moment() -> None:
    assert schedules.step(0.499, start=2, end=5) == 2
    assert schedules.step(0.5, start=2, end=5) == 5
    assert schedules.step(0.5, start=2, end=5, at=0.9) == 2
    assert schedules.step(0.9, start=2, end=5, at=0.9) == 5


@pytest.mark.parametrize("at", [-0.1, 1.1, 7])
def test_a_step_beyond_the_training_is_refused(at: float) -> None:
    with pytest.raises(RecipeError, match=r"option 'at' of step must be float, not .* equal to "):
        bind(schedules.step, {"at": at})
    assert bind(schedules.step, {"at": 1})(0.99) == 0
