"""The number of each loss over logits: by hand, and by NumPy in double precision, loop by loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from test_losses import LOSSES, built, given, title
from torch import Tensor

from attar.losses import response

Array = np.ndarray
Loss = Callable[..., Any]
LABELS = np.array([3, 0, -100, 4])
HALF_WAY = 0.5  # of the training


def logs(*probabilities: float) -> Tensor:
    return torch.tensor([probabilities]).log()


# By hand


EVEN, SURE = logs(0.5, 0.5), logs(0.75, 0.25)
KL = 0.75 * math.log(1.5) - 0.25 * math.log(2)  # of SURE from EVEN
REVERSE = math.log(4 / 3) / 2
FROM_TEACHER = (math.log(0.75 / 0.625) * 0.75 + math.log(0.25 / 0.375) * 0.25) / 2
FROM_STUDENT = (math.log(0.5 / 0.625) * 0.5 + math.log(0.5 / 0.375) * 0.5) / 2
SKEWED = 0.75 * math.log(0.75 / 0.525) + 0.25 * math.log(0.25 / 0.475)
BY_HAND: list[tuple[Loss, Tensor, Tensor, float]] = [
    (response.kl, EVEN, SURE, KL),
    (response.reverse_kl, EVEN, SURE, REVERSE),
    (response.jeffreys, EVEN, SURE, math.log(3) / 4),
    (response.jsd, EVEN, SURE, FROM_TEACHER + FROM_STUDENT),
    (response.skew_kl, EVEN, SURE, SKEWED),
    (partial(response.skew_kl, alpha=0), EVEN, SURE, KL),
    (response.skew_reverse_kl, SURE, EVEN, SKEWED),
    (partial(response.skew_reverse_kl, alpha=0), EVEN, SURE, REVERSE),
    (response.total_variation, EVEN, SURE, 0.25),
    (response.adaptive_kl, EVEN, SURE, (KL + REVERSE) / 2),
    (partial(response.adaptive_kl, head=1.0), EVEN, SURE, KL),
    (partial(response.alpha_beta, alpha=1, beta=0), EVEN, SURE, KL),
    (partial(response.alpha_beta, alpha=0, beta=1), EVEN, SURE, REVERSE),
    (partial(response.alpha_beta, alpha=1, beta=1), EVEN, SURE, 1 / 16),
    (
        partial(response.alpha_beta, alpha=0, beta=0),
        *(EVEN, SURE),
        (math.log(1.5) ** 2 + math.log(2) ** 2) / 2,
    ),
    (
        partial(response.alpha_beta, alpha=0, beta=0, temperature=2),
        EVEN.repeat(3, 1),
        logs(0.9, 0.1).repeat(3, 1),  # softened it is SURE
        2 * (math.log(1.5) ** 2 + math.log(2) ** 2),
    ),
    (response.binary, torch.zeros(1, 2), torch.full((1, 2), math.log(3)), 2 * KL),
    (response.soft_cross_entropy, EVEN, SURE, math.log(2)),
    (response.mse, torch.zeros(1, 2), torch.tensor([[1.0, 3.0]]), 5.0),
    (response.cosine, torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 3.0]]), 1 - 2**-0.5),
    (response.cosine, torch.tensor([[1.0, 2.0]]), torch.tensor([[-2.0, -4.0]]), 2.0),
    (partial(response.taid, progress=1.0), EVEN, SURE, KL),
    (partial(response.taid, progress=0.5, start=0), EVEN, logs(0.9, 0.1), KL),
    (partial(response.wttm, temperature=1), EVEN, SURE, KL),
    (partial(response.wttm, temperature=2), EVEN, logs(0.9, 0.1), 0.4 * 10**0.5 * KL),
    (partial(response.mlkd, temperatures=(1,)), EVEN, SURE, KL + 0.125**2 + 0.140625 / 2),
    (response.dist, logs(0.5, 0.375, 0.125), logs(0.2, 0.3, 0.5), 2.0),
]


@pytest.mark.parametrize(("loss", "student", "teacher", "expected"), BY_HAND)
def test_a_loss_is_the_number_worked_out_by_hand(
    loss: Loss, student: Tensor, teacher: Tensor, expected: float
) -> None:
    assert loss(student, teacher).item() == pytest.approx(expected, abs=1e-6)


THIRD, HALF, TARGET = logs(0.25, 0.25, 0.5), logs(0.5, 0.25, 0.25), torch.tensor([0])


def test_dkd_by_hand() -> None:
    target, others = math.log(4 / 3) / 2, math.log(9 / 8) / 2
    loss = response.dkd(THIRD, HALF, TARGET, alpha=3, beta=2, temperature=1)
    assert loss.item() == pytest.approx(3 * target + 2 * others, abs=1e-6)


def test_nkd_by_hand() -> None:
    target, others = math.log(4) / 2, math.log(9 / 2) / 2
    assert response.nkd(THIRD, HALF, TARGET).item() == pytest.approx(target + 1.5 * others)


def test_wsl_by_hand() -> None:
    loss = response.wsl(THIRD, HALF, TARGET, temperature=1)
    assert loss.item() == pytest.approx((1 - math.exp(-2)) * math.log(2) / 4)


def test_wsl_counts_little_where_the_student_already_knows_better() -> None:
    right, wrong = torch.tensor([[20.0, 0.0]]), torch.tensor([[0.0, 20.0]])
    assert response.wsl(right, wrong, TARGET) < 1e-6
    assert response.wsl(wrong, right, TARGET) > 10


def test_weighted_by_hand() -> None:
    loss = response.weighted(THIRD, HALF, TARGET, hard=3, soft=2, temperature=1)
    assert loss.item() == pytest.approx(3 * math.log(4) + 2 * math.log(2) / 4)


def test_weighted_leaves_rows_without_a_label_to_the_teacher() -> None:
    student, teacher, labels = torch.randn(3, 4), torch.randn(3, 4), torch.tensor([1, -100, -100])
    told = torch.nn.functional.cross_entropy(student[:1], labels[:1])
    taught = response.kl(student, teacher, temperature=4)
    loss = response.weighted(student, teacher, labels)
    torch.testing.assert_close(loss, 0.1 * told + 0.9 * taught)
    unlabelled = response.weighted(student, teacher, torch.full((3,), -100))
    torch.testing.assert_close(unlabelled, 0.9 * taught)


def test_regression_leaves_alone_what_the_student_does_better_than_the_teacher() -> None:
    student = torch.tensor([[2.0, 0.0], [1.0, 1.0], [3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[1.0, 0.0], [5.0, 1.0], [3.0, 4.0], [0.0, 0.0]])
    labels = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [math.nan, 0.0]])
    loss = response.regression(student, teacher, labels)
    assert loss.item() == pytest.approx(4 / 3)
    (slope,) = torch.autograd.grad(loss, student)
    assert slope.tolist() == [[pytest.approx(4 / 3), 0], [0, 0], [0, 0], [0, 0]]
    for margin, expected in [(1.0, 29 / 3), (25.0, 31 / 3)]:
        bounded = response.regression(student, teacher, labels, margin=margin)
        assert bounded.item() == pytest.approx(expected)


def test_regression_takes_one_value_a_row() -> None:
    student, teacher = torch.tensor([[2.0], [1.0]]), torch.tensor([[0.5], [1.0]])
    assert response.regression(student, teacher, torch.tensor([1.0, math.nan])) == 1
    with pytest.raises(ValueError, match=r"labels of shape \(2,\) do not fit values of \(2, 3\)"):
        response.regression(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2))


def test_hot_answers_compare_centred_logits_whatever_the_temperature() -> None:
    """Hinton et al. 2015, equation 4: T² KL tends to half the variance of the difference."""
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])
    for temperature in (100.0, 200.0):
        loss = response.kl(student, teacher, temperature=temperature)
        assert loss.item() == pytest.approx(0.5, rel=1e-2)


def test_standardized_logits_are_compared_by_shape_alone() -> None:
    student, teacher = torch.randn(2, 6, 5)
    plain = response.kl(student, teacher, standardize=True)
    moved = response.kl(7 * student - 2, 0.3 * teacher + 5, standardize=True)
    torch.testing.assert_close(moved, plain)


def test_what_is_flatter_than_a_thousandth_is_not_blown_up() -> None:
    student, teacher = torch.tensor([[1e-4, -1e-4]]), torch.tensor([[1.0, -1.0]])
    shapes = torch.tensor([[0.1, -0.1]]), torch.tensor([[0.5**0.5, -(0.5**0.5)]])
    flat = response.kl(student, teacher, standardize=True)
    torch.testing.assert_close(flat, response.kl(*shapes))
    small = response.cosine(torch.tensor([[1e-4, 0.0]]), torch.tensor([[1.0, 0.0]]))
    assert small.item() == pytest.approx(0.9**2 / 2)


@pytest.mark.parametrize(("edge", "near"), [((1, 0), (1, 1e-5)), ((0, 1), (1e-5, 1))])
def test_alpha_beta_runs_into_its_edges_smoothly(
    edge: tuple[float, float], near: tuple[float, float]
) -> None:
    student, teacher = torch.randn(2, 6, 5)
    there, close = (
        response.alpha_beta(student, teacher, alpha=alpha, beta=beta)
        for alpha, beta in (edge, near)
    )
    torch.testing.assert_close(close, there, rtol=1e-4, atol=0)


def test_skewed_divergences_are_bounded_however_wrong_the_student_is() -> None:
    student, teacher = torch.tensor([[0.0, 1000.0]]), torch.tensor([[1000.0, 0.0]])
    for loss in (response.skew_kl, response.skew_reverse_kl):
        assert loss(student, teacher).item() == pytest.approx(math.log(10))
        assert loss(student, teacher, alpha=0.5).item() == pytest.approx(math.log(2))


def test_wttm_is_least_where_the_student_equals_the_softened_teacher() -> None:
    teacher = torch.randn(6, 5)
    student = (teacher / 4).requires_grad_()
    loss = response.wttm(student, teacher)
    (slope,) = torch.autograd.grad(loss, student)
    assert loss.abs() < 1e-6
    assert slope.abs().max() < 1e-6


def test_the_weights_of_adaptive_kl_and_wsl_send_back_no_gradient() -> None:
    student, teacher = torch.randn(2, 1, 5)
    student.requires_grad_()
    forward, reverse = response.kl(student, teacher), response.reverse_kl(student, teacher)
    slopes = [torch.autograd.grad(part, student)[0] for part in (forward, reverse)]
    (mixed,) = torch.autograd.grad(response.adaptive_kl(student, teacher), student)
    ways = torch.stack(slopes).flatten(1).mT
    shares = torch.linalg.lstsq(ways, mixed.flatten()[:, None]).solution.flatten()
    torch.testing.assert_close(ways @ shares, mixed.flatten())
    assert shares.sum().item() == pytest.approx(1, abs=1e-4)
    (slope,) = torch.autograd.grad(response.wsl(student, teacher, TARGET), student)
    heated = response.kl(student, teacher, temperature=2)
    (plain,) = torch.autograd.grad(heated, student)
    ratio = slope / plain
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))


def test_taid_sends_no_gradient_through_what_lies_between() -> None:
    student, teacher = torch.randn(2, 6, 5)
    between = (0.7 * teacher + 0.3 * student).softmax(-1)
    student.requires_grad_()
    (slope,) = torch.autograd.grad(response.taid(student, teacher, HALF_WAY), student)
    torch.testing.assert_close(slope, (student.softmax(-1) - between).detach() / 6)


# The temperature that learns


def test_ctkd_turns_the_gradient_of_its_temperature_around() -> None:
    student, teacher = torch.randn(2, 6, 5)
    loss = response.ctkd(student, teacher, ramp=0.5)
    heat = loss.heat.detach().double().requires_grad_()
    temperature = 1 + 20 * heat.sigmoid()
    assert temperature.item() == pytest.approx(15.62, abs=0.01)
    value = temperature**2 * response_kl(student, teacher, temperature)
    (plain,) = torch.autograd.grad(value, heat)
    for progress, reversal in [(0.0, 0.0), (0.125, 0.5 - 0.125**0.5), (0.25, 0.5), (0.9, 1.0)]:
        (slope,) = torch.autograd.grad(loss(student, teacher, progress), loss.heat)
        assert slope.item() == pytest.approx(-reversal * plain.item(), rel=1e-3, abs=1e-7)
        assert loss(student, teacher, progress).item() == pytest.approx(value.item(), rel=1e-4)


def response_kl(student: Tensor, teacher: Tensor, temperature: Tensor) -> Tensor:
    p = (teacher.double() / temperature).softmax(-1)
    q = (student.double() / temperature).softmax(-1)
    return (p * (p / q).log()).sum(-1).mean()


def test_ctkd_reverses_from_the_start_where_there_is_no_ramp_and_fully_after_its_own() -> None:
    student, teacher = torch.randn(2, 6, 5)
    at_once, usual = response.ctkd(student, teacher, ramp=0), response.ctkd(student, teacher)
    (first,) = torch.autograd.grad(at_once(student, teacher, 0.0), at_once.heat)
    (late,) = torch.autograd.grad(usual(student, teacher, 0.04), usual.heat)
    (early,) = torch.autograd.grad(usual(student, teacher, 0.03), usual.heat)
    torch.testing.assert_close(first, late)
    assert 0 < early / late < 0.9


def test_ctkd_makes_its_task_harder() -> None:
    student, teacher = torch.randn(2, 6, 5)
    loss = response.ctkd(student, teacher)
    before = loss(student, teacher, 1.0)
    before.backward()
    assert loss.heat.grad is not None
    with torch.no_grad():
        loss.heat -= 0.1 * loss.heat.grad / loss.heat.grad.abs()
    assert loss(student, teacher, 1.0) > before


@pytest.mark.parametrize("options", [{"lowest": 0.0}, {"span": -1.0}])
def test_ctkd_refuses_a_temperature_that_could_be_zero(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="T must stay above 0"):
        response.ctkd(torch.zeros(1, 2), torch.zeros(1, 2), **options)


def test_ctkd_without_a_span_stays_at_its_lowest_temperature() -> None:
    student, teacher = torch.randn(2, 6, 5)
    fixed = response.ctkd(student, teacher, lowest=0.5, span=0)(student, teacher, 1.0)
    torch.testing.assert_close(fixed, response.kl(student, teacher, temperature=0.5))


# What is refused


@pytest.mark.parametrize("beta", [0.0, 1.0, 1.5])
def test_jsd_refuses_to_change_its_scale(beta: float) -> None:
    with pytest.raises(ValueError, match="use kl for 0"):
        response.jsd(EVEN, SURE, beta=beta)


@pytest.mark.parametrize("loss", [response.skew_kl, response.skew_reverse_kl])
@pytest.mark.parametrize("alpha", [-0.1, 1.0])
def test_a_skew_that_leaves_nothing_to_learn_is_refused(loss: Loss, alpha: float) -> None:
    with pytest.raises(ValueError, match="not at least 0 and below 1"):
        loss(EVEN, SURE, alpha=alpha)


@pytest.mark.parametrize("powers", [(-0.1, 0.5), (0.5, -0.1)])
def test_alpha_beta_refuses_negative_powers(powers: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="neither may be below 0"):
        response.alpha_beta(EVEN, SURE, alpha=powers[0], beta=powers[1])


@pytest.mark.parametrize("start", [-0.1, 1.1])
def test_taid_refuses_to_start_beyond_the_two(start: float) -> None:
    with pytest.raises(ValueError, match="start is"):
        response.taid(EVEN, SURE, 0.5, start=start)


@pytest.mark.parametrize("head", [0.0, 7])
def test_adaptive_kl_refuses_a_head_that_is_no_share(head: float) -> None:
    with pytest.raises(ValueError, match=f"head is {head}, not above 0 and at most 1"):
        response.adaptive_kl(EVEN, SURE, head=head)


def test_a_falling_temperature_is_a_falling_weight_of_dist() -> None:
    teacher = 3 * torch.randn(6, 5)
    slopes = []
    for temperature in (1.0, 4.0, 16.0):
        student = torch.zeros(6, 5).copy_(teacher.roll(1)).requires_grad_()
        response.dist(student, teacher, temperature=temperature).backward()
        assert student.grad is not None
        slopes.append(student.grad.norm().item())
    assert slopes[0] < slopes[1] < slopes[2]


def test_dist_correlates_classes_that_hardly_any_row_answers() -> None:
    random = np.random.default_rng(3)
    student, teacher = random.normal(size=(2, 4, 5)) - [0, 0, 0, 0, 14]  # to one in a million
    expected = dist(student, teacher)
    value = response.dist(torch.from_numpy(student), torch.from_numpy(teacher))
    assert value.item() == pytest.approx(expected, rel=1e-4)


def test_mlkd_refuses_to_compare_nothing() -> None:
    with pytest.raises(ValueError, match="name at least one"):
        response.mlkd(EVEN, SURE, temperatures=())
    with pytest.raises(ValueError, match="temperature is 0"):
        response.mlkd(EVEN, SURE, temperatures=(2, 0))


# The references: plain sums over plain numbers, each from its paper's formula


def soft(scores: Array, temperature: float = 1.0) -> Array:
    powers = np.array([math.exp(score / temperature) for score in scores])
    return powers / powers.sum()


def divergence(p: Array, q: Array) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def shape(scores: Array, standardize: bool) -> Array:
    return (scores - np.mean(scores)) / np.std(scores, ddof=1) if standardize else scores


def softened(scores: Array, temperature: float, standardize: bool = False) -> list[Array]:
    return [soft(shape(row, standardize), temperature) for row in scores]


def each_row(measure: Callable[[Array, Array], float]) -> Callable[..., float]:
    """T² times the mean of what is measured of the teacher's p and the student's q."""

    def mean(s: Array, t: Array, temperature: float = 1.0, **options: Any) -> float:
        rows = zip(softened(t, temperature), softened(s, temperature), strict=True)
        return temperature**2 * float(np.mean([measure(p, q, **options) for p, q in rows]))

    return mean


def kl(s: Array, t: Array, temperature: float = 1.0, standardize: bool = False) -> float:
    answers = softened(t, temperature, standardize), softened(s, temperature, standardize)
    return temperature**2 * float(np.mean([*map(divergence, *answers)]))


def jsd(p: Array, q: Array, beta: float = 0.5) -> float:
    middle = beta * p + (1 - beta) * q
    return beta * divergence(p, middle) + (1 - beta) * divergence(q, middle)


def skewed(p: Array, q: Array, alpha: float = 0.1) -> float:
    return divergence(p, alpha * p + (1 - alpha) * q)


def total_variation(s: Array, t: Array, temperature: float = 1.0) -> float:
    rows = zip(softened(t, temperature), softened(s, temperature), strict=True)
    most = [sum(max(a - b, 0) for a, b in zip(p, q, strict=True)) for p, q in rows]
    return temperature * float(np.mean(most))


def adaptive(p: Array, q: Array, head: float = 0.5) -> float:
    inside, outside, mass = 0.0, 0.0, 0.0
    for rank, label in enumerate(sorted(range(len(p)), key=lambda label: -p[label])):
        mass += p[label]
        if rank == 0 or mass <= head:
            inside += abs(p[label] - q[label])
        else:
            outside += abs(p[label] - q[label])
    share = inside / (inside + outside)
    return share * divergence(p, q) + (1 - share) * divergence(q, p)


def alpha_beta(p: Array, q: Array, alpha: float = 0.2, beta: float = 0.7) -> float:
    both = alpha + beta
    total = 0.0
    for a, b in zip(p, q, strict=True):
        total += a**alpha * b**beta - alpha / both * a**both - beta / both * b**both
    return -total / (alpha * beta)


def alone(p: Array, q: Array) -> float:
    return divergence(q, p)


def told(p: Array, q: Array) -> float:
    return -sum(a * math.log(b) for a, b in zip(p, q, strict=True))


def binary(s: Array, t: Array, temperature: float = 1.0) -> float:
    total = 0.0
    for a, b in zip(t.flat, s.flat, strict=True):
        p, q = (1 / (1 + math.exp(-x / temperature)) for x in (a, b))
        total += divergence([p, 1 - p], [q, 1 - q])
    return temperature**2 * total / len(s)


def squares(s: Array, t: Array) -> float:
    return float(np.mean([(a - b) ** 2 for a, b in zip(s.flat, t.flat, strict=True)]))


def angles(s: Array, t: Array) -> float:
    lengths = [math.hypot(*a) * math.hypot(*b) for a, b in zip(s, t, strict=True)]
    return float(np.mean([1 - a @ b / length for a, b, length in zip(s, t, lengths, strict=True)]))


def without(p: Array, label: int) -> Array:
    return np.delete(p, label) / (1 - p[label])


def stood_in(labels: Array, t: Array) -> list[int]:
    """Where no label is known, the class of the teacher's largest logit."""
    pairs = zip(labels, t, strict=True)
    return [int(label) if label != -100 else list(row).index(max(row)) for label, row in pairs]


def dkd(
    s: Array,
    t: Array,
    labels: Array,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    standardize: bool = False,
) -> float:
    losses = []
    answers = softened(t, temperature, standardize), softened(s, temperature, standardize)
    for p, q, label in zip(*answers, stood_in(labels, t), strict=True):
        target = divergence([p[label], 1 - p[label]], [q[label], 1 - q[label]])
        others = divergence(without(p, label), without(q, label))
        losses.append(alpha * target + beta * others)
    return temperature**2 * sum(losses) / len(losses)


def nkd(
    s: Array, t: Array, labels: Array, *, gamma: float = 1.5, temperature: float = 1.0
) -> float:
    losses = []
    for mine, its, label in zip(s, t, stood_in(labels, t), strict=True):
        target = soft(its)[label] * math.log(soft(mine)[label])
        p, q = soft(its, temperature), soft(mine, temperature)
        others = told(without(p, label), without(q, label))
        losses.append(-target + gamma * temperature**2 * others)
    return sum(losses) / len(losses)


def wsl(s: Array, t: Array, labels: Array, *, temperature: float = 2.0) -> float:
    losses = []
    for mine, its, label in zip(s, t, stood_in(labels, t), strict=True):
        ratio = math.log(soft(mine)[label]) / math.log(soft(its)[label])
        apart = divergence(soft(its, temperature), soft(mine, temperature))
        losses.append((1 - math.exp(-ratio)) * apart)
    return temperature**2 * sum(losses) / len(losses)


def weighted(
    s: Array,
    t: Array,
    labels: Array,
    *,
    hard: float = 0.1,
    soft: float = 0.9,
    temperature: float = 4.0,
) -> float:
    rows = zip(softened(s, 1), labels, strict=True)
    right = [-math.log(q[label]) for q, label in rows if label != -100]
    return hard * sum(right) / len(right) + soft * kl(s, t, temperature)


def regression(s: Array, t: Array, labels: Array, *, margin: float = 0.0) -> float:
    losses = []
    for mine, its, truth in zip(s, t, labels, strict=True):
        if not any(math.isnan(value) for value in truth):
            ours = sum((a - b) ** 2 for a, b in zip(mine, truth, strict=True))
            theirs = sum((a - b) ** 2 for a, b in zip(its, truth, strict=True))
            losses.append(ours if ours + margin > theirs else 0)
    return float(np.mean(losses))


def dist(
    s: Array, t: Array, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0
) -> float:
    p, q = np.array(softened(t, temperature)), np.array(softened(s, temperature))
    rows = np.mean([1 - np.corrcoef(p[i], q[i])[0, 1] for i in range(p.shape[0])])
    classes = np.mean([1 - np.corrcoef(p[:, j], q[:, j])[0, 1] for j in range(p.shape[1])])
    return float(temperature**2 * (beta * rows + gamma * classes))


def mlkd(
    s: Array,
    t: Array,
    temperatures: tuple[float, ...] = (2, 3, 4, 5, 6),
    standardize: bool = False,
) -> float:
    total = 0.0
    for temperature in temperatures:
        total += kl(s, t, temperature, standardize)
        p, q = np.array(softened(t, temperature)), np.array(softened(s, temperature))
        for ours, theirs in [(q, p), (q.T, p.T)]:
            size = range(len(ours))
            gaps = [(ours[i] @ ours[j] - theirs[i] @ theirs[j]) ** 2 for i in size for j in size]
            total += sum(gaps) / len(ours)
    return total


def wttm(s: Array, t: Array, temperature: float = 4.0) -> float:
    losses = []
    for mine, its in zip(s, t, strict=True):
        powers = np.array([p ** (1 / temperature) for p in soft(its)])
        losses.append(powers.sum() * divergence(powers / powers.sum(), soft(mine)))
    return float(np.mean(losses))


def taid(s: Array, t: Array, start: float = 0.4, temperature: float = 1.0) -> float:
    way = start + (1 - start) * HALF_WAY
    return kl(s, (1 - way) * s + way * t, temperature)


def ctkd(s: Array, t: Array, lowest: float = 1.0, span: float = 20.0, ramp: float = 0.04) -> float:
    del ramp  # of the gradient alone
    return kl(s, t, lowest + span / (1 + math.exp(-1)))


REFERENCES: dict[Loss, Callable[..., float]] = {
    response.adaptive_kl: each_row(adaptive),
    response.alpha_beta: each_row(alpha_beta),
    response.binary: binary,
    response.cosine: angles,
    response.ctkd: ctkd,
    response.dist: dist,
    response.dkd: dkd,
    response.jeffreys: each_row(lambda p, q: divergence(p, q) + divergence(q, p)),
    response.jsd: each_row(jsd),
    response.kl: kl,
    response.mlkd: mlkd,
    response.mse: squares,
    response.nkd: nkd,
    response.regression: regression,
    response.reverse_kl: each_row(alone),
    response.skew_kl: each_row(skewed),
    response.skew_reverse_kl: each_row(lambda p, q, **alpha: skewed(q, p, **alpha)),
    response.soft_cross_entropy: each_row(told),
    response.taid: taid,
    response.total_variation: total_variation,
    response.weighted: weighted,
    response.wsl: wsl,
    response.wttm: wttm,
}
OPTIONS: list[tuple[Loss, dict[str, Any]]] = [
    (response.adaptive_kl, {"head": 0.8, "temperature": 3.0}),
    (response.alpha_beta, {"alpha": 1.3, "beta": 0.4, "temperature": 2.0}),
    (response.alpha_beta, {"alpha": 0.4, "beta": 1.3}),
    (response.alpha_beta, {"alpha": 0.6, "beta": 0.6}),
    (response.binary, {"temperature": 3.0}),
    (response.ctkd, {"lowest": 2.0, "span": 3.0, "ramp": 0.0}),
    (response.dist, {"beta": 0.5, "gamma": 3.0, "temperature": 2.0}),
    (response.dkd, {"alpha": 0.5, "beta": 2.0, "temperature": 2.0}),
    (response.dkd, {"standardize": True}),
    (response.jeffreys, {"temperature": 3.0}),
    (response.jsd, {"beta": 0.1, "temperature": 2.0}),
    (response.kl, {"temperature": 3.0}),
    (response.kl, {"temperature": 2.0, "standardize": True}),
    (response.mlkd, {"temperatures": (1.0, 3.0), "standardize": True}),
    (response.nkd, {"gamma": 0.5, "temperature": 3.0}),
    (response.regression, {"margin": 5.0}),
    (response.reverse_kl, {"temperature": 3.0}),
    (response.skew_kl, {"alpha": 0.4, "temperature": 2.0}),
    (response.skew_reverse_kl, {"alpha": 0.4, "temperature": 2.0}),
    (response.soft_cross_entropy, {"temperature": 3.0}),
    (response.taid, {"start": 0.1, "temperature": 2.0}),
    (response.total_variation, {"temperature": 3.0}),
    (response.weighted, {"hard": 0.7, "soft": 0.2, "temperature": 2.0}),
    (response.wsl, {"temperature": 3.0}),
    (response.wttm, {"temperature": 2.0}),
    *[(loss, {}) for loss in REFERENCES],
]


def test_every_loss_over_logits_has_a_reference() -> None:
    foreign = {response.mined, response.uld}  # tests/test_foreign_numbers.py
    room = {loss for loss in LOSSES if title(loss).startswith("response.")}
    assert set(REFERENCES) == room - foreign


@pytest.mark.parametrize(
    ("loss", "options"), OPTIONS, ids=[f"{title(loss)}-{chosen}" for loss, chosen in OPTIONS]
)
def test_a_loss_is_the_number_numpy_works_out(loss: Loss, options: dict[str, Any]) -> None:
    random = np.random.default_rng(7)
    numbers = [2 * random.normal(size=(4, 5)) for _ in range(2)]
    if loss is response.regression:
        truth = 2 * random.normal(size=(4, 5))
        truth[2, 1] = math.nan
        numbers.append(truth)
    elif "labels" in given(loss):
        numbers.append(LABELS)
    expected = REFERENCES[loss](*numbers, **options)
    student, teacher, *more = [torch.from_numpy(number) for number in numbers]
    if "progress" in given(loss):
        more.append(HALF_WAY)
    value = built(loss, student, teacher, **options)(student, teacher, *more)
    assert expected > 0.01
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected, rel=1e-5)
