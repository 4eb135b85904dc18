"""The losses over relations against loops over plain numbers, and what they remember."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attar.losses import relation

Array = np.ndarray
OVER_ROWS = [relation.distance, relation.angle, relation.similarity, relation.correlation]
every_row_loss = pytest.mark.parametrize("loss", OVER_ROWS, ids=lambda loss: loss.__name__)


def slope(loss: Callable[..., Tensor], student: Any, *rest: Any, **options: Any) -> Tensor:
    """The gradient that reaches the student, a tensor."""
    ours = student.detach().requires_grad_()
    (found,) = torch.autograd.grad(loss(ours, *rest, **options), ours)
    return found


# --- the references: plain sums over plain numbers, each from its paper's formula


def huber(gap: float) -> float:
    return gap**2 / 2 if abs(gap) <= 1 else abs(gap) - 0.5


def lengths(rows: Array) -> Array:
    return np.array([[math.dist(a, b) for b in rows] for a in rows])


def distance(s: Array, t: Array) -> float:
    ours, theirs = lengths(s), lengths(t)
    ours, theirs = ours / ours[ours > 0].mean(), theirs / theirs[theirs > 0].mean()
    return float(np.mean([huber(a - b) for a, b in zip(ours.flat, theirs.flat, strict=True)]))


def cosine_at(rows: Array, i: int, j: int, k: int) -> float:
    one, other = rows[i] - rows[j], rows[k] - rows[j]
    both = math.hypot(*one) * math.hypot(*other)
    return float(one @ other) / both if both else 0.0


def angle(s: Array, t: Array) -> float:
    triplets = list(product(range(len(s)), repeat=3))
    return sum(huber(cosine_at(s, *at) - cosine_at(t, *at)) for at in triplets) / len(triplets)


def similarity(s: Array, t: Array) -> float:
    total = 0.0
    for i in range(len(s)):
        ours, theirs = np.array([s[i] @ a for a in s]), np.array([t[i] @ a for a in t])
        gaps = ours / math.hypot(*ours) - theirs / math.hypot(*theirs)
        total += sum(gap**2 for gap in gaps)
    return total / len(s) ** 2


def kernel(a: Array, b: Array, gamma: float, order: int) -> float:
    cosine = a @ b / (math.hypot(*a) * math.hypot(*b))
    terms = [(2 * gamma * cosine) ** p / math.factorial(p) for p in range(order + 1)]
    return math.exp(-2 * gamma) * sum(terms)


def correlation(s: Array, t: Array, gamma: float = 0.4, order: int = 2) -> float:
    gaps = [
        kernel(s[i], s[j], gamma, order) - kernel(t[i], t[j], gamma, order)
        for i, j in product(range(len(s)), repeat=2)
    ]
    return float(np.mean(np.square(gaps)))


def edges(stage: Array) -> Array:
    squares = lengths(stage.reshape(len(stage), -1)) ** 2
    return squares / squares.max()


def moves(before: Array, after: Array) -> Array:
    squares = np.array([np.sum((b - a) ** 2) for a, b in zip(before, after, strict=True)])
    return squares / squares.max()


def change_gap(s: Sequence[Array], t: Sequence[Array]) -> float:
    mine, its = (np.mean((edges(b) - edges(a)) ** 2) for a, b in (s, t))
    gap = float(mine - its) ** 2
    if s[0].shape == s[1].shape and t[0].shape == t[1].shape:
        gap += float(np.mean((moves(*s) - moves(*t)) ** 2))
    return gap


def graph(s: Sequence[Array], t: Sequence[Array], transformation: float = 1.0) -> float:
    same = [np.mean((edges(a) - edges(b)) ** 2) for a, b in zip(s, t, strict=True)]
    changes = [change_gap(s[n : n + 2], t[n : n + 2]) for n in range(len(s) - 1)]
    return float(np.mean(same)) + transformation * float(np.mean(changes))


REFERENCES = {
    relation.distance: distance,
    relation.angle: angle,
    relation.similarity: similarity,
    relation.correlation: correlation,
}
OPTIONS: list[tuple[Any, dict[str, Any]]] = [
    *[(loss, {}) for loss in OVER_ROWS],
    (relation.correlation, {"gamma": 0.9}),
    (relation.correlation, {"order": 1}),
    (relation.correlation, {"gamma": 2.0, "order": 4}),
]


# --- how examples stand to one another


@pytest.mark.parametrize(
    ("loss", "options"), OPTIONS, ids=[f"{loss.__name__}-{chosen}" for loss, chosen in OPTIONS]
)
def test_a_loss_over_rows_is_the_number_numpy_works_out(loss: Any, options: dict[str, Any]) -> None:
    random = np.random.default_rng(11)
    s, t = random.normal(size=(7, 4)), 3 + 5 * random.normal(size=(7, 6))
    t[0] *= 9  # so far off that its distances leave the square part of Huber's loss
    expected = REFERENCES[loss](s, t, **options)
    value = loss(torch.from_numpy(s), torch.from_numpy(t), **options)
    assert expected > 0.004
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_distance_by_hand() -> None:
    student = torch.tensor([[0.0], [1.0], [2.0]])  # 1, 1 and 2 apart: in units of 4/3
    teacher = torch.tensor([[0.0, 0.0], [8.0, 0.0], [4.0, 48**0.5]])  # 8 from each to each
    expected = 2 * ((1 - 0.75) ** 2 / 2 * 2 + (1.5 - 1) ** 2 / 2) / 9
    assert relation.distance(student, teacher).item() == pytest.approx(expected, abs=1e-6)


def test_angle_by_hand() -> None:
    student = torch.tensor([[-1.0], [0.0], [1.0]])  # angles of 0, 180 and 0 degrees
    teacher = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])  # of 45, 90 and 45
    gap = 1 - 0.5**0.5
    expected = 2 * (2 * gap**2 / 2 + 1 / 2) / 27
    assert relation.angle(student, teacher).item() == pytest.approx(expected, abs=1e-6)


def test_similarity_by_hand() -> None:
    student, teacher = torch.eye(2), torch.tensor([[3.0], [3.0]])
    gap = (1 - 0.5**0.5) ** 2 + 0.5
    assert relation.similarity(student, teacher).item() == pytest.approx(gap / 2, abs=1e-6)


def test_correlation_by_hand() -> None:
    student, teacher = torch.eye(2), torch.tensor([[2.0], [5.0]])
    gap = math.exp(-0.8) * (0.8 + 0.8**2 / 2)  # of two that are the same, and two at a right angle
    assert relation.correlation(student, teacher).item() == pytest.approx(gap**2 / 2, abs=1e-6)


def test_a_correlation_of_high_order_is_the_gaussian_kernel() -> None:
    student, teacher = torch.randn(2, 5, 3).double()
    ours, theirs = (
        torch.exp(-0.7 * torch.cdist(rows / rows.norm(dim=1, keepdim=True), unit) ** 2)
        for rows in (student, teacher)
        for unit in [rows / rows.norm(dim=1, keepdim=True)]
    )
    expected = (ours - theirs).square().mean().float()
    value = relation.correlation(student, teacher, gamma=0.7, order=12)
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-7)


@every_row_loss
def test_turning_and_scaling_all_examples_changes_nothing(loss: Any) -> None:
    student, teacher = torch.randn(6, 4), torch.randn(6, 5)
    turn = torch.linalg.qr(torch.randn(4, 4))[0]
    torch.testing.assert_close(loss(40 * student @ turn, teacher), loss(student, teacher))
    torch.testing.assert_close(loss(student, 0.01 * teacher), loss(student, teacher))


@pytest.mark.parametrize("loss", [relation.distance, relation.angle])
def test_moving_all_examples_changes_nothing_where_ways_are_compared(loss: Any) -> None:
    student, teacher = torch.randn(2, 6, 4)
    moved = loss(student + torch.tensor([5.0, 0.0, -3.0, 1.0]), teacher - 2)
    torch.testing.assert_close(moved, loss(student, teacher))


@every_row_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_examples_that_coincide_have_a_finite_gradient(loss: Any, dtype: torch.dtype) -> None:
    some = torch.randn(4, 5)
    twice, once = some.repeat(2, 1).to(dtype), torch.randn(8, 5).to(dtype)
    equal = torch.ones(8, 5, dtype=dtype)
    for student, teacher in [(twice, once), (once, twice), (equal, once), (once, equal)]:
        assert torch.isfinite(loss(student, teacher))
        assert torch.isfinite(slope(loss, student, teacher)).all()
    assert loss(equal, equal) == 0
    assert not slope(loss, 0 * equal, 0 * equal).any()


@every_row_loss
def test_one_example_has_no_relations(loss: Any) -> None:
    student, teacher = torch.randn(1, 5), torch.randn(1, 3)
    assert loss(student, teacher).abs() < 1e-12
    assert slope(loss, student, teacher).abs().max() < 1e-6


@every_row_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e4])
def test_rows_small_and_large_stay_finite(loss: Any, dtype: Any, scale: float) -> None:
    student, teacher = (scale * torch.randn(2, 6, 4)).to(dtype)
    assert torch.isfinite(loss(student, teacher))
    assert torch.isfinite(slope(loss, student, teacher)).all()
    assert slope(loss, student, teacher).dtype == dtype


def test_a_batch_given_twice_over_costs_the_same_but_for_similarity_half() -> None:
    student, teacher = torch.randn(6, 4), torch.randn(6, 5)
    for loss in OVER_ROWS:
        share = 0.5 if loss is relation.similarity else 1
        twice = loss(student.repeat(2, 1), teacher.repeat(2, 1))
        torch.testing.assert_close(twice, share * loss(student, teacher))


@every_row_loss
def test_the_teacher_of_a_loss_over_rows_learns_nothing(loss: Any) -> None:
    student, teacher = (torch.randn(6, 4, requires_grad=True) for _ in range(2))
    loss(student, teacher).backward()
    assert student.grad is not None
    assert student.grad.any()
    assert teacher.grad is None


def test_angles_are_the_same_in_one_piece_and_in_many(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = torch.randn(20, 4), torch.randn(20, 5)
    whole = relation.angle(student, teacher), slope(relation.angle, student, teacher)
    monkeypatch.setitem(relation.angle.__globals__, "VERTICES", 3)
    parts = relation.angle(student, teacher), slope(relation.angle, student, teacher)
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-8)


def test_a_correlation_of_order_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="order is 0"):
        relation.correlation(torch.eye(2), torch.eye(2), order=0)


@pytest.mark.parametrize("gamma", [0.0, -0.4])
def test_a_correlation_that_does_not_fall_with_distance_is_refused(gamma: float) -> None:
    with pytest.raises(ValueError, match=f"gamma is {gamma}, not above 0"):
        relation.correlation(torch.eye(2), torch.eye(2), gamma=gamma)


# --- graphs


def stages(*shapes: tuple[int, ...], seed: int) -> list[Array]:
    random = np.random.default_rng(seed)
    return [random.normal(size=(5, *shape)) for shape in shapes]


@pytest.mark.parametrize("options", [{}, {"transformation": 3.0}])
@pytest.mark.parametrize(
    "its", [[(4, 2), (4, 2), (1, 3)], [(2, 6), (2, 5), (3, 1)]], ids=["one step alike", "none"]
)
def test_graph_is_the_number_numpy_works_out(its: Any, options: dict[str, float]) -> None:
    s, t = stages((4, 3), (4, 3), (2, 2), seed=1), stages(*its, seed=2)
    expected = graph(s, t, **options)
    given = [[torch.from_numpy(each) for each in side] for side in (s, t)]
    assert relation.graph(*given, **options).item() == pytest.approx(expected, rel=1e-5)


def test_graph_by_hand() -> None:
    near, far = torch.tensor([[[0.0]], [[1.0]], [[2.0]]]), torch.tensor([[[0.0]], [[3.0]], [[3.0]]])
    # Edges of near are 1/4, 1/4 and 1; of far 1, 0 and 1.
    gap = 2 * (0.75**2 + 0.25**2) / 9
    assert relation.graph([near], [far]).item() == pytest.approx(gap, abs=1e-6)
    # From near to far the edges change by the gap, and the examples move by 0, 2 and 1.
    steps = gap**2 + ((1 - 0) ** 2 + (0.25 - 0) ** 2) / 3
    value = relation.graph([near, far], [near, near])
    assert value.item() == pytest.approx(gap / 2 + steps, abs=1e-6)


def test_graph_leaves_out_the_padding_of_the_stages_that_have_any() -> None:
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]])
    sides = [[torch.randn(3, 3, 2), torch.randn(3, 4)] for _ in range(2)]
    clean = [[a.masked_fill(mask[:, :, None] == 0, 0), b] for a, b in sides]
    dirty = [[a.masked_fill(mask[:, :, None] == 0, math.nan), b] for a, b in sides]
    torch.testing.assert_close(relation.graph(*dirty, mask), relation.graph(*clean))
    assert not torch.isclose(relation.graph(*sides), relation.graph(*clean))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_graph_is_finite_for_equal_examples_and_for_one(dtype: torch.dtype) -> None:
    for student in (torch.zeros(4, 2, 3), torch.ones(4, 2, 3), torch.randn(1, 2, 3)):
        teacher = torch.randn(len(student), 2, 5).to(dtype)

        def both(ours: Tensor, theirs: Tensor = teacher) -> Tensor:
            return relation.graph([ours, 2 * ours], [theirs, theirs])

        assert torch.isfinite(both(student.to(dtype)))
        assert torch.isfinite(slope(both, student.to(dtype))).all()


def test_graph_sends_its_gradient_to_every_stage_of_the_student_and_none_to_the_teacher() -> None:
    student = [torch.randn(4, 2, 3, requires_grad=True) for _ in range(3)]
    teacher = [torch.randn(4, 2, 5, requires_grad=True) for _ in range(3)]
    relation.graph(student, teacher).backward()
    assert all(stage.grad is not None and stage.grad.any() for stage in student)
    assert all(stage.grad is None for stage in teacher)
    assert relation.graph(teacher, teacher).abs() < 1e-12


# --- structure


def all_tags(scores: Array, tags: int) -> dict[tuple[int, ...], float]:
    """The probability of every sequence of tags, by going through them all."""
    weights = {}
    for sequence in product(range(tags), repeat=len(scores)):
        total, before = 0.0, 0
        for row, tag in zip(scores, sequence, strict=True):
            total += row[before * tags + tag] if len(row) == tags**2 else row[tag]
            before = tag
        weights[sequence] = math.exp(total)
    whole = sum(weights.values())
    return {sequence: weight / whole for sequence, weight in weights.items()}


def entity(s: Array, t: Array, mask: Array, tags: int, temperature: float = 1.0) -> float:
    total = 0.0
    for ours, theirs, real in zip(s, t, mask, strict=True):
        q, p = all_tags(ours[real] / temperature, tags), all_tags(theirs[real] / temperature, tags)
        total += sum(p[each] * math.log(p[each] / q[each]) for each in p)
    return temperature**2 * total / mask.sum()


HOLES = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 1, 1]], dtype=bool)


@pytest.mark.parametrize("options", [{}, {"temperature": 2.5}])
@pytest.mark.parametrize("widths", [(3, 3), (3, 9), (9, 3), (9, 9)])
def test_entity_is_the_divergence_of_all_sequences_of_tags(
    widths: tuple[int, int], options: dict[str, float]
) -> None:
    random = np.random.default_rng(4)
    s, t = (2 * random.normal(size=(4, 4, width)) for width in widths)
    expected = entity(s, t, HOLES, 3, **options)
    given = [torch.from_numpy(each) for each in (s, t, HOLES)]
    value = relation.entity(*given, tags=3, **options)
    assert expected > 0.1
    assert value.item() == pytest.approx(expected, rel=1e-5)
    if widths != (9, 9):  # where one is no chain, the smaller width says how many tags there are
        torch.testing.assert_close(relation.entity(*given, **options), value)


def test_entity_by_hand() -> None:
    # Tags 0 and 1; the student follows each tag by the other, the teacher has no preference.
    other = math.log(3)
    student = torch.tensor([[[0.0, other, other, 0.0]] * 2])
    value = relation.entity(student, torch.zeros(1, 2, 4), tags=2)
    assert value.item() == pytest.approx(math.log(4 / 3) / 2, abs=1e-6)


def test_entity_of_independent_tags_is_the_divergence_token_by_token() -> None:
    student, teacher = torch.randn(2, 3, 4, 5)
    p, q = teacher.softmax(-1), student.softmax(-1)
    expected = (p * (p / q).log()).sum(-1).mean()
    torch.testing.assert_close(relation.entity(student, teacher), expected)


def arcs(s: Array, t: Array, mask: Array, temperature: float = 1.0) -> float:
    gaps = []
    for ours, theirs, real in zip(s, t, mask, strict=True):
        for word in np.flatnonzero(real):
            q, p = (np.exp(each[word, : len(real)][real] / temperature) for each in (ours, theirs))
            q, p = q / q.sum(), p / p.sum()
            gaps.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    return temperature**2 * float(np.mean(gaps))


@pytest.mark.parametrize("options", [{}, {"temperature": 2.5}])
@pytest.mark.parametrize("width", [4, 6])
def test_arcs_is_the_number_numpy_works_out(width: int, options: dict[str, float]) -> None:
    random = np.random.default_rng(6)
    s, t = random.normal(size=(4, 4, 4)), random.normal(size=(4, 4, width))
    expected = arcs(s, t, HOLES, **options)
    given = [torch.from_numpy(each) for each in (s, t, HOLES)]
    assert expected > 0.1
    assert relation.arcs(*given, **options).item() == pytest.approx(expected, rel=1e-5)


def test_arcs_is_the_divergence_of_all_sets_of_arcs() -> None:
    student, teacher = torch.randn(2, 1, 3, 3)
    q, p = student.softmax(-1)[0], teacher.softmax(-1)[0]
    total = 0.0
    for heads in product(range(3), repeat=3):
        ours, theirs = (math.prod(float(x[n, h]) for n, h in enumerate(heads)) for x in (q, p))
        total += theirs * math.log(theirs / ours)
    assert relation.arcs(student, teacher).item() == pytest.approx(total / 3, abs=1e-6)


def test_padding_is_nobodys_head_and_has_none() -> None:
    mask = torch.from_numpy(HOLES)
    pairs = mask[:, :, None] & mask[:, None, :]
    student, teacher = torch.randn(2, 4, 4, 4)
    clean = slope(relation.arcs, student, teacher, mask)
    for content in (50.0, -math.inf, math.nan):
        ours, theirs = student.masked_fill(~pairs, content), teacher.masked_fill(~pairs, content)
        torch.testing.assert_close(slope(relation.arcs, ours, theirs, mask), clean)
    assert not clean[~pairs].any()
    assert clean[pairs].any()


def test_padding_changes_no_tags() -> None:
    mask = torch.from_numpy(HOLES)
    student, teacher = torch.randn(2, 4, 4, 9)
    clean = slope(relation.entity, student, teacher, mask, tags=3)
    ours, theirs = (x.masked_fill(~mask[:, :, None], math.nan) for x in (student, teacher))
    torch.testing.assert_close(slope(relation.entity, ours, theirs, mask, tags=3), clean)
    assert not clean[~mask].any()


@pytest.mark.parametrize("loss", [relation.entity, relation.arcs])
def test_structure_at_its_extremes(loss: Any) -> None:
    student, teacher = 1e3 * torch.randn(2, 3, 4, 4)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert torch.isfinite(loss(student.to(dtype), teacher.to(dtype)))
        assert torch.isfinite(slope(loss, student.to(dtype), teacher.to(dtype))).all()
    assert loss(teacher, teacher) == 0
    assert loss(student[:, :1], teacher[:, :1], torch.ones(3, 1)).isfinite()
    with pytest.raises(ValueError, match="temperature is 0"):
        loss(student, teacher, temperature=0)


def test_structure_that_does_not_fit_is_refused_with_its_widths() -> None:
    with pytest.raises(ValueError, match="width of 10 is neither 3 tags nor their 9 pairs"):
        relation.entity(torch.zeros(1, 2, 3), torch.zeros(1, 2, 10))
    with pytest.raises(ValueError, match="3 heads of 4 tokens"):
        relation.arcs(torch.zeros(1, 4, 4), torch.zeros(1, 4, 3))


# --- memory


@dataclass(frozen=True)
class Examples:
    """What of a batch `crd` looks at."""

    keys: tuple[str, ...]


def examples(*keys: str) -> Examples:
    return Examples(keys)


FOUR = examples("a", "b", "c", "d")


def small_crd(**options: Any) -> Any:
    chosen = {"width": 3, "negatives": 6} | options
    return relation.crd(torch.zeros(1, 5), torch.zeros(1, 7), **chosen)


def embedded(layer: nn.Linear, rows: Tensor) -> Array:
    weight, bias = (each.detach().double().numpy() for each in (layer.weight, layer.bias))
    found = rows.double().numpy() @ weight.T + bias
    return np.array([row / math.hypot(*row) for row in found])


class Remembering:
    """CRD by the book: dictionaries and loops, of the same projections and first directions."""

    def __init__(self, loss: Any, temperature: float, momentum: float) -> None:
        self.loss, self.temperature, self.momentum = loss, temperature, momentum
        self.places = [
            (None, *vectors) for vectors in zip(*loss.memory.double().numpy(), strict=True)
        ]
        self.next = 0
        self.chance: list[float] = []

    def __call__(self, student: Tensor, teacher: Tensor, keys: Sequence[str]) -> float:
        ours, theirs = embedded(self.loss.ours, student), embedded(self.loss.theirs, teacher)
        total = 0.0
        for side, (mine, its) in enumerate([(ours, theirs), (theirs, ours)]):
            total += self.direction(side, mine, its, keys)
        self.remember(ours, theirs, keys)
        return total / len(keys)

    def power(self, one: Array, other: Array) -> float:
        return math.exp(one @ other / self.temperature)

    def direction(self, side: int, mine: Array, its: Array, keys: Sequence[str]) -> float:
        if len(self.chance) == side:
            every = [self.power(a, b) for a, b in zip(mine, its, strict=True)]
            # The pair of a row counts once, beside all that is remembered.
            every += [self.power(a, place[2 - side]) for a in mine for place in self.places]
            self.chance.append(sum(every) / len(every))
        total = 0.0
        for a, b, key in zip(mine, its, keys, strict=True):
            others = [place[2 - side] for place in self.places if place[0] != key]
            noise = len(others) * self.chance[side]
            same = self.power(a, b)
            total -= math.log(same / (same + noise))
            for other in others:
                different = self.power(a, other)
                total -= math.log(noise / (different + noise))
        return total

    def remember(self, ours: Array, theirs: Array, keys: Sequence[str]) -> None:
        known = [place[0] for place in self.places]
        new = []
        for n, key in enumerate(keys):
            if key in keys[:n]:
                continue
            if key not in known:
                new.append((key, ours[n], theirs[n]))
                continue
            place = self.places[known.index(key)]
            mixed = [
                self.momentum * old + (1 - self.momentum) * now
                for old, now in zip(place[1:], (ours[n], theirs[n]), strict=True)
            ]
            self.places[known.index(key)] = (key, *[each / math.hypot(*each) for each in mixed])
        for each in new[-len(self.places) :]:
            self.places[self.next % len(self.places)] = each
            self.next += 1


COMING = [  # new ones, known ones, one twice, known and new at once, more than there are places
    ("a", "b", "c", "d"),
    ("b", "e", "a", "b"),
    ("f", "c", "g", "a"),
    ("h", "i", "j", "k", "l", "m", "n", "i"),
    ("i", "m", "o", "n"),
]


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.5, "momentum": 0.9}, {"momentum": 0.0, "negatives": 9}]
)
def test_crd_is_the_number_that_a_plain_memory_gives(options: dict[str, Any]) -> None:
    loss = small_crd(**options)
    plain = Remembering(loss, options.get("temperature", 0.07), options.get("momentum", 0.5))
    for keys in COMING:
        student, teacher = torch.randn(len(keys), 5), torch.randn(len(keys), 7)
        expected = plain(student, teacher, keys)
        value = loss(student, teacher, Examples(keys))
        assert value.item() == pytest.approx(expected, rel=1e-4)
    assert len(plain.chance) == 2


def test_crd_by_hand() -> None:
    loss = relation.crd(torch.zeros(1, 2), torch.zeros(1, 2), width=2, negatives=1, temperature=1.0)
    with torch.no_grad():
        for layer in (loss.ours, loss.theirs):
            layer.weight.copy_(torch.eye(2))
            layer.bias.zero_()
        loss.memory.copy_(torch.tensor([[[0.0, 1.0]], [[0.0, 1.0]]]))
    # e of the pair and 1 of the one remembered, at a right angle: by chance their mean.
    chance = (math.e + 1) / 2
    expected = 2 * (math.log(1 + chance / math.e) + math.log(1 + 1 / chance))
    row = torch.tensor([[5.0, 0.0]])
    assert loss(row, row, examples("a")).item() == pytest.approx(expected, abs=1e-6)
    # Now only the example itself is remembered, and it is no negative: the pair is left.
    again = loss(row, row, examples("a"))
    assert again.item() == pytest.approx(2 * math.log(1 + chance / math.e), abs=1e-6)


def test_crd_defaults_are_the_papers() -> None:
    options = inspect.signature(relation.crd).parameters
    chosen = {name: options[name].default for name in ("width", "temperature", "momentum")}
    assert chosen == {"width": 128, "temperature": 0.07, "momentum": 0.5}
    loss = relation.crd(torch.zeros(1, 2), torch.zeros(1, 2))
    assert loss.memory.shape == (2, 16384, 128)


def test_an_example_is_never_its_own_negative() -> None:
    loss, student, teacher = small_crd(), torch.randn(4, 5), torch.randn(4, 7)
    loss(student, teacher, FOUR)
    loss.eval()
    memory = loss.memory.clone()
    loss.memory = memory.index_fill(1, torch.tensor([1]), 0)  # what is remembered of b
    alone = loss(student[1:2], teacher[1:2], examples("b"))
    loss.memory = memory
    torch.testing.assert_close(loss(student[1:2], teacher[1:2], examples("b")), alone)
    assert not torch.isclose(loss(student[1:2], teacher[1:2], examples("z")), alone)


def test_crd_trains_both_embeddings_and_the_student_and_not_the_teacher() -> None:
    loss = small_crd()
    student = torch.randn(4, 5, requires_grad=True)
    teacher = torch.randn(4, 7, requires_grad=True)
    loss(student, teacher, FOUR).backward()
    assert all(p.grad is not None and p.grad.any() for p in loss.parameters())
    assert student.grad is not None
    assert teacher.grad is None
    assert sum(p.numel() for p in loss.parameters()) == 3 * (5 + 1) + 3 * (7 + 1)


def test_the_pair_draws_the_student_towards_its_teacher() -> None:
    loss, student, teacher = small_crd(), torch.randn(4, 5), torch.randn(4, 7)
    optimizer = torch.optim.Adam([student.requires_grad_()], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        loss(student, teacher, FOUR).backward()
        optimizer.step()
    cosines = embedded(loss.ours, student.detach()) @ embedded(loss.theirs, teacher).T
    assert (cosines.argmax(1) == np.arange(4)).all()


def test_seed_is_the_number_numpy_works_out_while_its_queue_turns() -> None:
    for options in ({}, {"temperature": 0.5, "teacher_temperature": 0.1}):
        loss = relation.seed(torch.zeros(1, 5), torch.zeros(1, 3), queue=5, **options)
        assert {"temperature": 0.2, "teacher_temperature": 0.01, **options} == {
            "temperature": loss.temperature,
            "teacher_temperature": loss.teacher_temperature,
        }
        queue = list(loss.memory.double().numpy())
        turn = 0
        for rows in (3, 4, 2, 6):
            student, teacher = torch.randn(rows, 5), torch.randn(rows, 3)
            ours = embedded(loss.ours, student)
            theirs = np.array([row / math.hypot(*row) for row in teacher.double().numpy()])
            total = 0.0
            for mine, its in zip(ours, theirs, strict=True):
                seen = np.array([its, *queue])
                p, q = seen @ its / loss.teacher_temperature, seen @ mine / loss.temperature
                p = np.exp(p - p.max()) / np.exp(p - p.max()).sum()
                total -= p @ (q - math.log(sum(math.exp(x) for x in q)))
            value = loss(student, teacher)
            assert value.item() == pytest.approx(total / rows, rel=1e-4)
            for its in theirs[-5:]:
                queue[turn % 5] = its
                turn += 1


def test_seed_remembers_as_many_as_it_says() -> None:
    assert relation.seed(torch.zeros(1, 5), torch.zeros(1, 3)).memory.shape == (4096, 3)


def test_seed_by_hand() -> None:
    loss = relation.seed(
        torch.zeros(1, 2), torch.zeros(1, 2), queue=1, temperature=1.0, teacher_temperature=1.0
    )
    with torch.no_grad():
        loss.ours.weight.copy_(torch.eye(2))
        loss.ours.bias.zero_()
        loss.memory.copy_(torch.tensor([[0.0, 1.0]]))
    value = loss(torch.tensor([[0.0, 4.0]]), torch.tensor([[2.0, 0.0]]))
    # The teacher: e to 1 for itself; the student: 1 to e.
    log_self, log_other = -math.log(1 + math.e), 1 - math.log(1 + math.e)
    expected = -(math.e * log_self + log_other) / (math.e + 1)
    assert value.item() == pytest.approx(expected, abs=1e-6)


@dataclass(frozen=True)
class Kept:
    """A loss with a memory, and how to ask it for four rows."""

    make: Callable[..., Any]

    def ask(self, loss: Any, student: Tensor, teacher: Tensor) -> Tensor:
        keys = Examples(FOUR.keys[: len(student)])
        found = (
            loss(student, teacher, keys) if "crd" in type(loss).__name__ else loss(student, teacher)
        )
        assert isinstance(found, Tensor)
        return found


def small_seed(**options: Any) -> Any:
    return relation.seed(torch.zeros(1, 5), torch.zeros(1, 7), **({"queue": 6} | options))


with_memory = pytest.mark.parametrize(
    "kept", [Kept(small_crd), Kept(small_seed)], ids=["crd", "seed"]
)


@with_memory
def test_a_memory_that_was_saved_goes_on_as_if_nothing_had_happened(kept: Kept) -> None:
    one, other = kept.make(), kept.make()
    for _ in range(3):
        kept.ask(one, torch.randn(4, 5), torch.randn(4, 7))
    other.load_state_dict(one.state_dict())
    shapes = {name: value.shape for name, value in kept.make().state_dict().items()}
    assert {name: value.shape for name, value in one.state_dict().items()} == shapes
    for _ in range(2):
        student, teacher = torch.randn(4, 5), torch.randn(4, 7)
        assert kept.ask(one, student, teacher) == kept.ask(other, student, teacher)


@with_memory
def test_nothing_is_remembered_while_it_is_not_trained(kept: Kept) -> None:
    loss = kept.make().eval()
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    assert kept.ask(loss, torch.randn(4, 5), torch.randn(4, 7)).isfinite()
    for name, value in loss.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


@with_memory
def test_building_a_memory_moves_no_random_numbers_and_gives_the_same_each_time(kept: Kept) -> None:
    state = torch.get_rng_state()
    one, other = kept.make(), kept.make()
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(one.memory.norm(dim=-1), torch.ones(one.memory.shape[:-1]))


@with_memory
def test_a_loss_can_be_asked_twice_before_its_gradient_is_taken(kept: Kept) -> None:
    loss = kept.make()
    student = torch.randn(4, 5, requires_grad=True)
    total = sum(kept.ask(loss, student, torch.randn(4, 7)) for _ in range(2))
    assert isinstance(total, Tensor)
    total.backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@with_memory
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [0.0, 1e-4, 1e4])
def test_a_memory_stays_finite(kept: Kept, dtype: torch.dtype, scale: float) -> None:
    for rows in (4, 1):
        loss = kept.make()
        student = (scale * torch.randn(rows, 5)).to(dtype).requires_grad_()
        teacher = (scale * torch.randn(rows, 7)).to(dtype)
        for _ in range(2):
            value = kept.ask(loss, student, teacher)
            assert value.dtype == torch.float32
            (found,) = torch.autograd.grad(value, student)
            assert found.isfinite().all()


@with_memory
def test_mixed_precision_leaves_a_memory_alone(kept: Kept) -> None:
    student, teacher = torch.randn(4, 5), torch.randn(4, 7)
    plain = kept.ask(kept.make(), student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = kept.ask(kept.make(), student, teacher)
    torch.testing.assert_close(mixed, plain)


@pytest.mark.parametrize(
    ("kept", "option"),
    [
        (Kept(small_crd), "temperature"),
        (Kept(small_seed), "temperature"),
        (Kept(small_seed), "teacher_temperature"),
    ],
)
def test_a_memory_refuses_a_temperature_that_is_not_positive(kept: Kept, option: str) -> None:
    with pytest.raises(ValueError, match="temperature is 0"):
        kept.ask(kept.make(**{option: 0.0}), torch.randn(4, 5), torch.randn(4, 7))


@pytest.mark.parametrize(("kept", "option"), [(small_crd, "negatives"), (small_seed, "queue")])
@pytest.mark.parametrize("size", [0, -1])
def test_a_memory_of_nothing_is_refused(kept: Any, option: str, size: int) -> None:
    with pytest.raises(ValueError, match=f"{option} is {size}: there has to be at least 1"):
        kept(**{option: size})
