"""Attention transfer and MiniLM against loops over plain numbers, and what else they promise."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch

from attar.losses import attention

Array = np.ndarray
MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 1, 0]], dtype=bool)


def activity(maps: Array, mask: Array, power: float) -> list[Array]:
    """Of each example, how active its real places are, as a vector of length one."""
    found = []
    for example, real in zip(maps, mask, strict=True):
        places = [sum(abs(c) ** power for c in place) for place in example[real]]
        found.append(np.array(places) / math.sqrt(sum(a * a for a in places)))
    return found


def maps(s: Array, t: Array, mask: Array, power: float = 2.0) -> float:
    ours, theirs = (np.concatenate(activity(each, mask, power)) for each in (s, t))
    return float(np.mean([(a - b) ** 2 for a, b in zip(ours, theirs, strict=True)]))


def relation(values: Array, heads: int, head: int, query: int) -> Array:
    width = values.shape[-1] // heads
    part = values[:, head * width : (head + 1) * width]
    powers = np.array([math.exp(part[query] @ other / math.sqrt(width)) for other in part])
    return powers / powers.sum()


def minilm(s: Array, t: Array, mask: Array, heads: int = 12) -> float:
    gaps = []
    for ours, theirs, real in zip(s, t, mask, strict=True):
        for head, query in product(range(heads), range(int(real.sum()))):
            p = relation(theirs[real], heads, head, query)
            q = relation(ours[real], heads, head, query)
            gaps.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    return float(np.mean(gaps))


@pytest.fixture
def activations() -> tuple[Array, Array]:
    random = np.random.default_rng(3)
    return random.normal(size=(3, 4, 5)), 4 * random.normal(size=(3, 4, 7))


@pytest.mark.parametrize("power", [None, 1.0, 2.0, 3.5])
def test_maps_is_the_number_numpy_works_out(
    activations: tuple[Array, Array], power: float | None
) -> None:
    options = {} if power is None else {"power": power}
    expected = maps(*activations, MASK, **options)
    given = [torch.from_numpy(each) for each in (*activations, MASK)]
    assert expected > 0.001
    assert attention.maps(*given, **options).item() == pytest.approx(expected, rel=1e-5)


def test_maps_by_hand() -> None:
    student = torch.tensor([[[3.0, 0.0], [0.0, 0.0]]])  # looks at the first place only
    teacher = torch.tensor([[[-1.0], [1.0]]])  # at both alike
    half = 0.5**0.5
    expected = ((1 - half) ** 2 + half**2) / 2
    assert attention.maps(student, teacher).item() == pytest.approx(expected, abs=1e-6)
    wide = torch.cat([student, torch.zeros(1, 2, 5000)], -1)
    assert attention.maps(wide, teacher).item() == pytest.approx(expected, abs=1e-6)


def test_maps_sees_neither_the_sign_nor_the_scale_of_an_activation() -> None:
    student, teacher = torch.randn(2, 3, 4, 5)
    plain = attention.maps(student, teacher)
    torch.testing.assert_close(attention.maps(-7 * student, 0.3 * teacher), plain)
    torch.testing.assert_close(attention.maps(3e4 * student, 1e-2 * teacher, power=2), plain)
    small, large = (attention.maps(n * student.abs(), teacher, power=4) for n in (1.0, -3e4))
    torch.testing.assert_close(large, small)


def test_maps_of_layers_of_any_width_are_compared() -> None:
    teacher = torch.randn(3, 4, 5)
    assert attention.maps(torch.cat([teacher, -teacher, teacher], -1), teacher) < 1e-12


@pytest.mark.parametrize("content", [50.0, math.nan])
def test_padding_changes_neither_maps_nor_its_gradient(content: float) -> None:
    mask = torch.from_numpy(MASK)
    student, teacher = torch.randn(2, 3, 4, 5)
    slopes, values = [], []
    for filling in (0.0, content):
        ours = student.masked_fill(~mask[:, :, None], filling).requires_grad_()
        theirs = teacher.masked_fill(~mask[:, :, None], filling)
        values.append(attention.maps(ours, theirs, mask))
        slopes += torch.autograd.grad(values[-1], ours)
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*slopes)
    cut = attention.maps(student[1:2, :2], teacher[1:2, :2])
    torch.testing.assert_close(attention.maps(student[1:2], teacher[1:2], mask[1:2].long()), cut)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [0.0, 1e-7, 1e-4, 1.0, 3e4])
def test_maps_stays_finite_with_a_finite_gradient(dtype: torch.dtype, scale: float) -> None:
    student, teacher = torch.rand(2, 3, 4, 5)
    ours = (scale * student).to(dtype).requires_grad_()
    loss = attention.maps(ours, (scale * teacher).to(dtype), power=4)
    (slope,) = torch.autograd.grad(loss, ours)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(slope).all()


def test_silent_channels_have_a_gradient_of_zero_at_power_one_and_none_is_taken_below() -> None:
    student = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]], requires_grad=True)
    teacher = torch.tensor([[[1.0], [2.0]]])
    (slope,) = torch.autograd.grad(attention.maps(student, teacher, power=1), student)
    assert slope[0, :, 1].tolist() == [0, 0]
    assert slope[0, 0, 0] > 0 > slope[0, 1, 0]
    with pytest.raises(ValueError, match=r"power is 0\.5"):
        attention.maps(student, teacher, power=0.5)


@pytest.mark.parametrize("options", [{}, {"heads": 2}])
def test_minilm_is_the_number_numpy_works_out(options: dict[str, int]) -> None:
    random = np.random.default_rng(5)
    values = random.normal(size=(3, 4, 24)), random.normal(size=(3, 4, 48))
    expected = minilm(*values, MASK, **options)
    given = [torch.from_numpy(each) for each in (*values, MASK)]
    assert expected > 0.01
    assert attention.minilm(*given, **options).item() == pytest.approx(expected, rel=1e-5)


def test_minilm_by_hand() -> None:
    student = torch.tensor([[[math.sqrt(math.log(3))], [0.0]]])  # relates 3 to 1, then 1 to 1
    loss = attention.minilm(student, torch.zeros(1, 2, 1), heads=1)
    assert loss.item() == pytest.approx(math.log(4 / 3) / 4, abs=1e-6)


def test_minilm_refuses_heads_that_do_not_divide_a_width() -> None:
    with pytest.raises(ValueError, match=r"12 relation heads.*20 and 24: .*, 1, 2 or 4$"):
        attention.minilm(torch.zeros(1, 2, 20), torch.zeros(1, 2, 24))


def test_heads_that_fit_are_no_more_than_were_wanted() -> None:
    with pytest.raises(ValueError, match=r"both, 1, 2, 4 or 8$"):
        attention.minilm_v2(torch.zeros(1, 2, 128), torch.zeros(1, 2, 384))
    with pytest.raises(ValueError, match=r"0 relation heads.* both, 1$"):
        attention.minilm_v2(torch.zeros(1, 2, 8), torch.zeros(1, 2, 8), heads=0)
