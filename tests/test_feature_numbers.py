"""What the feature losses are worth: by hand, and loop by loop in NumPy's double precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.losses import feature
from attar.losses.feature.layers import Convolution, Standardization, linear
from attar.losses.feature.places import averaging, laid_out
from attar.resolve import names
from attar.students.joined import Joined
from attar.taps import tapped

Array = np.ndarray
Loss = Callable[..., Tensor]

ROWS, LENGTH, OURS, THEIRS = 4, 5, 6, 8
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 0]], dtype=bool)
REAL = torch.from_numpy(MASK)


def numbers(*shape: int, seed: int = 7) -> Array:
    return np.random.default_rng(seed).normal(size=shape)


def given(array: Any) -> Any:
    """The same numbers in float32, of one layer or of several."""
    if isinstance(array, Array):
        return torch.from_numpy(array).float()
    return [given(each) for each in array]


def real_tokens(features: Array, mask: Array | None) -> list[Array]:
    """The real tokens one by one; a pooled feature is one itself."""
    if features.ndim == 2:
        return list(features)
    rows, length, _ = features.shape
    pairs = product(range(rows), range(length))
    return [features[i, j] for i, j in pairs if mask is None or mask[i, j]]


def unit(vector: Array) -> Array:
    return vector / math.sqrt(sum(x * x for x in vector.flat))


def mean_of(function: Callable[..., float], *groups: Sequence[Any]) -> float:
    return float(np.mean([function(*each) for each in zip(*groups, strict=True)]))


# --- by hand


def tensor(*values: Any) -> Tensor:
    return torch.tensor(values)


BY_HAND: list[tuple[Loss, Any, Any, float]] = [
    (feature.l1, tensor([[0.0, 0.0]]), tensor([[1.0, -4.0]]), 2.5),
    (feature.pkd, tensor([3.0, 0.0]), tensor([0.0, 2.0]), 2.0),
    (feature.pkd, tensor([[0.0, 1.0], [9.0, 9.0]]), tensor([[1.0, 1.0], [5.0, 2.0]]), 2 - 2**0.5),
    # On by 1 where off by more is wanted, and half the margin where on is: 4 and 0.25.
    (feature.ab, tensor([1.0, 0.5]), tensor([-3.0, 9.0]), 4.25 / 2),
    (feature.ab, tensor([-1.0, 2.0]), tensor([0.0, 0.1]), 0.0),
    # Rows at right angles are alike by 1/2, equal ones by 1: 1/3 and 2/3 against halves.
    (
        feature.pkt,
        tensor([1.0, 0.0], [1.0, 0.0], [1.0, 0.0]),
        tensor([1.0, 0.0], [2.0, 0.0], [0.0, 3.0]),
        2 * (math.log(4 / 3) * 2 / 3 + math.log(2 / 3) / 3) / 3,
    ),
    # Opposite rows are alike by 1e-7 and not by nothing: 2e-7 of a likelihood, against halves.
    (
        feature.pkt,
        tensor([1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]),
        torch.eye(3),
        -(math.log(4e-7) + math.log(2)) / 3,
    ),
    # One neuron that looks at the first place, against one that looks at the second.
    (feature.nst, tensor([[5.0], [0.0]]), tensor([[0.0], [2.0]]), 2.0),
    # Two neurons, one at each place, are half alike: 1 + 1/2 - 2 * 1/2.
    (feature.nst, tensor([[5.0], [0.0]]), tensor([[1.0, 0.0], [0.0, 3.0]]), 0.5),
    # (1 * 3 + 2 * 4) / 2 against (1 * 1 + 1 * 1) / 2
    (
        feature.fsp,
        [tensor([[1.0], [2.0]]), tensor([[3.0], [4.0]])],
        [tensor([[1.0], [1.0]])] * 2,
        4.5**2,
    ),
    # (3 + 5) / 2 * 7, the longer layer pooled, against 0
    (
        feature.fsp,
        [tensor([[3.0], [5.0]]), tensor([[7.0]])],
        [tensor([[0.0], [0.0]]), tensor([[7.0]])],
        28.0**2,
    ),
]


@pytest.mark.parametrize(("loss", "student", "teacher", "expected"), BY_HAND)
def test_a_loss_is_the_number_worked_out_by_hand(
    loss: Loss, student: Any, teacher: Any, expected: float
) -> None:
    assert loss(student, teacher).item() == pytest.approx(expected, abs=1e-6)


def test_simkd_is_the_plain_difference_by_hand() -> None:
    student, teacher = tensor([[1.0, 2.0], [9.0, 9.0]]), tensor([[0.0, 0.0], [0.0, 0.0]])
    loss = feature.simkd(student, teacher)
    assert loss(student, teacher, tensor([1, 0])).item() == 2.5
    assert loss(student[:, 0], teacher[:, 0]).item() == 2.5
    assert not list(loss.parameters())


def test_vid_by_hand() -> None:
    """A student of which nothing is made leaves t² / 2σ² + log σ."""
    loss = feature.vid(torch.zeros(1, 2), torch.zeros(1, 2), variance=2.0)
    nn.init.zeros_(loss.mean[4].weight)
    nn.init.zeros_(loss.mean[4].bias)
    value = loss(torch.ones(1, 2), tensor([1.0, 3.0]))
    assert value.item() == pytest.approx(10 / 8 + math.log(2) / 2, abs=1e-6)


def test_vid_is_never_surer_than_its_floor() -> None:
    loss = feature.vid(torch.zeros(1, 2), torch.zeros(1, 2))
    nn.init.constant_(loss.spread, -1000.0)
    nn.init.zeros_(loss.mean[4].weight)
    nn.init.zeros_(loss.mean[4].bias)
    value = loss(torch.ones(1, 2), torch.zeros(1, 2))
    assert value.item() == pytest.approx(math.log(1e-5) / 2, rel=1e-5)


def test_srd_by_hand() -> None:
    """Two rows are always 1 and -1 apart from rounding: a student the wrong way round is 2 off."""
    student, teacher = tensor([1.0], [-1.0]) * 100, tensor([-1.0], [1.0]) * 100
    for power in (1.0, 2.0, 4.0):
        loss = feature.srd(student, teacher, power=power)
        nn.init.ones_(loss.project.weight)
        assert loss(student, teacher).item() == pytest.approx(math.log(2**power + 1e-3**power))
    assert loss(-student, teacher).item() == pytest.approx(math.log(1e-12))


def test_srd_blows_up_no_variance_of_a_ten_thousandth() -> None:
    """Rows of 0.01 and -0.01 vary by 1e-4, to which as much is added: they are ±1 / √2."""
    student, teacher = tensor([0.01], [-0.01]), tensor([-100.0], [100.0])
    loss = feature.srd(student, teacher, power=2.0)
    nn.init.ones_(loss.project.weight)
    expected = 2 * math.log(1 + 0.5**0.5)
    assert loss(student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_ft_of_a_teacher_that_says_nothing_by_hand() -> None:
    """Its mean square counts as a thousandth squared; so a reconstruction of 1/500 is 4 off."""
    nothing = torch.zeros(2, 3, 4)
    loss = feature.ft(nothing, nothing)
    for each in loss.parameters():
        nn.init.zeros_(each)
    nn.init.constant_(loss.reader[2].bias, 2e-3)
    assert loss(nothing, nothing).item() == pytest.approx(4.0, rel=1e-5)


def test_ofd_by_hand() -> None:
    """Two rows are 1 and -1 once standardized; beside the teacher's 3, -1 and -3 the margin is -2.

    The row at 1 is asked for 3, and the row at -1 for max(-3, -2), below which it must get.
    """
    student, teacher = tensor([100.0], [-100.0]), tensor([3.0], [-3.0])
    loss = feature.ofd(student, teacher)
    nn.init.ones_(loss.project.weight)
    loss(student, tensor([2.0], [-1.0]))
    assert loss.margin.item() == -1
    assert loss(student, teacher).item() == pytest.approx((2.0**2 + 1.0**2) / 2, abs=1e-5)
    assert loss.margin.item() == -2
    # Nothing is asked of the row at -1 where it need only get below 0, nor where it is below m.
    loss.shift = loss.standardize.shift.data.fill_(-1.5)
    assert loss(student, teacher).item() == pytest.approx(3.5**2 / 2, abs=1e-5)


def test_ofd_asks_nothing_below_a_neuron_that_is_off_and_counts_it_for_no_margin() -> None:
    """The rows are 1 and -1 once standardized; both are to be 0, of which the second need not."""
    student = tensor([100.0], [-100.0])
    loss = feature.ofd(student, torch.zeros(2, 1))
    nn.init.ones_(loss.project.weight)
    assert loss(student, torch.zeros(2, 1)).item() == pytest.approx(0.5, abs=1e-5)
    assert loss.negatives.item() == 0


# --- by NumPy: losses that learn nothing


def l1(s: Array, t: Array, mask: Array) -> float:
    pairs = zip(real_tokens(s, mask), real_tokens(t, mask), strict=True)
    return float(
        np.mean([abs(a - b) for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True)])
    )


def pkd(s: Array, t: Array) -> float:
    return mean_of(lambda a, b: sum((unit(a[0]) - unit(b[0])) ** 2), s, t)


def ab(s: Array, t: Array, mask: Array, margin: float = 1.0) -> float:
    values = []
    for ours, theirs in zip(real_tokens(s, mask), real_tokens(t, mask), strict=True):
        for x, y in zip(ours, theirs, strict=True):
            lacking = margin - x if y > 0 else margin + x
            values.append(lacking**2 if lacking > 0 else 0.0)
    return float(np.mean(values))


def neighbours(rows: Array, i: int) -> list[float]:
    alike = [(1 + unit(rows[i]) @ unit(rows[j])) / 2 for j in range(len(rows)) if j != i]
    return [each / sum(alike) for each in alike]


def pkt(s: Array, t: Array) -> float:
    total = 0.0
    for i in range(len(s)):
        pairs = zip(neighbours(t, i), neighbours(s, i), strict=True)
        total += sum(p * math.log(p / q) for p, q in pairs)
    return total / len(s)


def nst(s: Array, t: Array, mask: Array) -> float:
    values = []
    for i in range(len(s)):
        ours = [unit(s[i, mask[i], c]) for c in range(s.shape[2])]
        theirs = [unit(t[i, mask[i], c]) for c in range(t.shape[2])]

        def alike(some: list[Array], others: list[Array]) -> float:
            return float(np.mean([(a @ b) ** 2 for a in some for b in others]))

        values.append(alike(ours, ours) + alike(theirs, theirs) - 2 * alike(ours, theirs))
    return float(np.mean(values))


def flow(first: Array, second: Array, kept: Array) -> Array:
    places = np.flatnonzero(kept)
    return sum(np.outer(first[p], second[p]) for p in places) / len(places)


def fsp(s: Sequence[Array], t: Sequence[Array], mask: Array) -> float:
    total = 0.0
    for n in range(len(s) - 1):
        gaps = [
            flow(s[n][i], s[n + 1][i], mask[i]) - flow(t[n][i], t[n + 1][i], mask[i])
            for i in range(len(mask))
        ]
        total += float(np.mean(np.square(gaps)))
    return total


PAIR = (numbers(ROWS, LENGTH, THEIRS), numbers(ROWS, LENGTH, THEIRS, seed=8))
NARROW = numbers(ROWS, LENGTH, OURS)
STAGES = [[numbers(ROWS, LENGTH, w, seed=s) for w, s in ((3, 1), (4, 2), (2, 3))] for _ in "s"]
STAGES.append([numbers(ROWS, LENGTH, w, seed=s) for w, s in ((3, 4), (4, 5), (2, 6))])
ROW_PAIR = (NARROW[:, 0], PAIR[1][:, 0])
PLAIN: list[tuple[Loss, Callable[..., float], tuple[Any, ...], dict[str, Any]]] = [
    (feature.l1, l1, (*PAIR, MASK), {}),
    (feature.pkd, pkd, PAIR, {}),
    (feature.ab, ab, (*PAIR, MASK), {}),
    (feature.ab, ab, (*PAIR, MASK), {"margin": 0.4}),
    (feature.pkt, pkt, ROW_PAIR, {}),
    (feature.nst, nst, (NARROW, PAIR[1], MASK), {}),
    (feature.fsp, fsp, (*STAGES, MASK), {}),
]


@pytest.mark.parametrize(("loss", "reference", "arrays", "options"), PLAIN)
def test_a_loss_is_the_number_numpy_works_out(
    loss: Loss, reference: Callable[..., float], arrays: Any, options: dict[str, Any]
) -> None:
    expected = reference(*arrays, **options)
    assert expected > 0.01
    assert loss(*map(given, arrays), **options).item() == pytest.approx(expected, rel=1e-5)


def test_flows_between_square_maps_are_pooled_in_both_directions() -> None:
    student = [numbers(2, 16, 3, seed=1), numbers(2, 4, 2, seed=2)]
    teacher = [numbers(2, 16, 3, seed=3), numbers(2, 4, 2, seed=4)]

    def halved(maps: Array) -> Array:
        return maps.reshape(2, 2, 2, 2, 2, 3).mean((2, 4)).reshape(2, 4, 3)

    everything = np.ones((2, 4), dtype=bool)
    expected = fsp(*([halved(first), last] for first, last in (student, teacher)), everything)
    assert feature.fsp(given(student), given(teacher)).item() == pytest.approx(expected, rel=1e-5)
    square = feature.fsp(given(student), given(teacher), places="square").item()
    assert square == pytest.approx(expected, rel=1e-5)
    line = [[f.reshape(2, 4, 4, 3).mean(2), last] for f, last in (student, teacher)]
    expected = fsp(*line, everything)
    flat = feature.fsp(given(student), given(teacher), places="line").item()
    assert flat == pytest.approx(expected, rel=1e-5)


# --- by NumPy: losses that learn


def learned(module: nn.Module) -> dict[str, Array]:
    return {name: each.detach().double().numpy() for name, each in module.named_parameters()}


def dense(p: dict[str, Array], name: str, x: Array) -> Array:
    return p[f"{name}.weight"] @ x + p.get(f"{name}.bias", 0.0)


def convolved(p: dict[str, Array], name: str, maps: Array, kept: Array) -> Array:
    """One row (length, width): at each place what the three around it say, kept ones alone."""
    weight, length = p[f"{name}.weight"], len(maps)
    made = np.zeros((length, len(weight))) + p.get(f"{name}.bias", 0.0)
    for place, step in product(range(length), range(3)):
        seen = place + step - 1
        if 0 <= seen < length:
            made[place] += weight[:, :, step] @ (maps[seen] * kept[seen])
    return made


def normal(tokens: list[Array], least: float) -> list[Array]:
    mean = sum(tokens) / len(tokens)
    variance = sum((token - mean) ** 2 for token in tokens) / len(tokens)
    return [(token - mean) / np.sqrt(variance + least) for token in tokens]


def srd(p: dict[str, Array], s: Array, t: Array, mask: Array | None, power: float = 4.0) -> float:
    ours = normal([dense(p, "project", each) for each in real_tokens(s, mask)], 1e-4)
    theirs = normal(real_tokens(t, mask), 1e-4)
    gaps = [sum(abs(a - b) ** power) for a, b in zip(ours, theirs, strict=True)]
    return math.log(np.mean(gaps) + 1e-3**power)


def vid(
    p: dict[str, Array], s: Array, t: Array, mask: Array | None, variance: float = 5.0
) -> float:
    values = []
    for ours, theirs in zip(real_tokens(s, mask), real_tokens(t, mask), strict=True):
        inner = np.maximum(0, dense(p, "mean.0", ours))
        made = dense(p, "mean.4", np.maximum(0, dense(p, "mean.2", inner)))
        values += [(y - x) ** 2 / (2 * variance) for x, y in zip(made, theirs, strict=True)]
    return float(np.mean(values)) + math.log(math.sqrt(variance))


def ofd(p: dict[str, Array], s: Array, t: Array, mask: Array | None) -> float:
    theirs = real_tokens(t, mask)
    ours = normal([dense(p, "project", each) for each in real_tokens(s, mask)], 1e-5)
    ours = [x * p["standardize.scale"] + p["standardize.shift"] for x in ours]
    values = []
    for c in range(t.shape[-1]):
        negative = [token[c] for token in theirs if token[c] < 0]
        margin = sum(negative) / len(negative)
        for x, y in zip(ours, theirs, strict=True):
            target = max(y[c], margin)
            nothing = x[c] <= target <= 0
            values.append(0.0 if nothing else (x[c] - target) ** 2)
    return float(np.mean(values))


def mgd(p: dict[str, Array], s: Array, t: Array, mask: Array | None, ratio: float = 0.15) -> float:
    pooled = s.ndim == 2
    maps, goal = (s[:, None], t[:, None]) if pooled else (s, t)
    real = np.ones(maps.shape[:2], dtype=bool) if mask is None or pooled else mask
    seen = np.array([[dense(p, "project", token) for token in row] for row in maps])
    # What the loss draws after this seed: a number each real token, or each number if pooled.
    torch.manual_seed(3)
    kept = np.zeros(seen.shape)
    if pooled:
        kept[:] = (torch.rand(seen.shape) >= ratio).numpy()
    else:
        kept[real] = (torch.rand(int(real.sum())) >= ratio).numpy()[:, None]
    values: list[float] = []
    for row in range(len(maps)):
        part = np.maximum(0, convolved(p, "first", seen[row], kept[row]))
        made = convolved(p, "second", part, real[row][:, None])
        values += list(((made - goal[row])[real[row]] ** 2).flat)
    return float(np.mean(values))


def leaky(x: Array) -> Array:
    return np.where(x > 0, x, 0.1 * x)


def ft(p: dict[str, Array], s: Array, t: Array, mask: Array | None) -> float:
    pooled = s.ndim == 2
    s, t = (s[:, None], t[:, None]) if pooled else (s, t)
    real = np.ones(s.shape[:2], dtype=bool) if mask is None or pooled else mask
    transfers, errors = [], []
    for ours, theirs, kept in zip(s, t, real[:, :, None], strict=True):
        factor, phrase = ours, theirs
        for n in range(3):
            factor = leaky(convolved(p, f"translator.{n}", factor, kept))
            phrase = leaky(convolved(p, f"paraphraser.{n}", phrase, kept))
        there = kept[:, 0]
        transfers.append(abs(unit(phrase[there]) - unit(factor[there])).sum())
        again = phrase
        for n in range(2):
            again = leaky(convolved(p, f"reader.{n}", again, kept))
        again = convolved(p, "reader.2", again, kept)
        errors += list(((again - theirs)[there] ** 2).flat)
    squares = [x**2 for token in real_tokens(t, real) for x in token]
    return float(np.mean(transfers) + np.mean(errors) / np.mean(squares))


def bins(places: Array, count: int) -> list[Array]:
    """The mean of the places of each bin, as torch's adaptive pooling draws its borders."""
    n = len(places)
    return [
        places[math.floor(i * n / count) : math.ceil((i + 1) * n / count)].mean(0)
        for i in range(count)
    ]


def hierarchical(made: Array, goal: Array) -> float:
    """Of one row's real places."""
    total, weights = float(np.mean((made - goal) ** 2)), 1.0
    levels = [level for level in (4, 2, 1) if level < len(made)]
    for level, weight in zip(levels, (1 / 2, 1 / 4, 1 / 8), strict=False):
        gap = np.array(bins(made, level)) - np.array(bins(goal, level))
        total, weights = total + weight * float(np.mean(gap**2)), weights + weight
    return total / weights


def normal_maps(p: dict[str, Array], name: str, maps: Array, real: Array) -> Array:
    made = np.zeros_like(maps)
    made[real] = np.array(normal(list(maps[real]), 1e-5))
    return (made * p[f"{name}.scale"] + p[f"{name}.shift"]) * real[:, :, None]


def review(
    p: dict[str, Array], s: Sequence[Array], t: Sequence[Array], mask: Array | None
) -> float:
    real = np.ones(s[0].shape[:2], dtype=bool) if mask is None else mask
    deeper, total = None, 0.0
    for n in (2, 1, 0):
        name = f"fusions.{n}"
        x = np.array([[dense(p, f"{name}.enter", token) for token in row] for row in s[n]])
        x = normal_maps(p, f"{name}.entered", x, real)
        if deeper is not None:
            for i, j in product(range(x.shape[0]), range(x.shape[1])):
                both = dense(p, f"{name}.gates", np.concatenate([x[i, j], deeper[i, j]]))
                g, h = 1 / (1 + np.exp(-both))
                x[i, j] = g * x[i, j] + h * deeper[i, j]
        deeper = x
        left = [convolved(p, f"{name}.leave", x[i], real[i][:, None]) for i in range(len(x))]
        made = normal_maps(p, f"{name}.left", np.array(left), real)
        rows = zip(made, t[n], real, strict=True)
        total += float(np.mean([hierarchical(a[kept], b[kept]) for a, b, kept in rows]))
    return total


OUR_STAGES = [numbers(ROWS, LENGTH, w, seed=w) for w in (3, 4, 5)]
THEIR_STAGES = [numbers(ROWS, LENGTH, w, seed=w) for w in (6, 7, 8)]
WIDE = PAIR[1]
POOLED = (NARROW[:, 0], WIDE[:, 0])
LEARNED: list[tuple[Callable[..., nn.Module], Callable[..., float], Any, Any, dict[str, Any]]] = [
    (feature.srd, srd, NARROW, WIDE, {}),
    (feature.srd, srd, NARROW, WIDE, {"power": 1.5}),
    (feature.vid, vid, NARROW, WIDE, {}),
    (feature.vid, vid, NARROW, WIDE, {"variance": 0.3}),
    (feature.ofd, ofd, NARROW, WIDE, {}),
    (feature.mgd, mgd, NARROW, WIDE, {}),
    (feature.mgd, mgd, NARROW, WIDE, {"ratio": 0.6}),
    (feature.mgd, mgd, NARROW, WIDE, {"ratio": 0.0}),
    (feature.ft, ft, NARROW, WIDE, {}),
    (feature.ft, ft, NARROW, WIDE, {"rate": 0.3}),
    (feature.review, review, OUR_STAGES, THEIR_STAGES, {}),
]
every_learned = pytest.mark.parametrize(
    ("make", "ours", "theirs", "options"), [(make, *rest) for make, _, *rest in LEARNED]
)


def shaken(module: nn.Module) -> nn.Module:
    """Also what begins as 1 or 0 is some number, so that leaving it out would show."""
    for name, each in module.named_parameters():
        if name.endswith(("scale", "shift")):
            each.data += 0.3 * torch.randn_like(each)
    return module


def value_of(module: nn.Module, *arguments: Any) -> Tensor:
    torch.manual_seed(3)
    return module(*arguments)


@pytest.mark.parametrize(("make", "reference", "ours", "theirs", "options"), LEARNED)
@pytest.mark.parametrize("masked", [False, True])
def test_a_learned_loss_is_the_number_numpy_works_out(
    make: Any, reference: Any, ours: Any, theirs: Any, options: Any, masked: bool
) -> None:
    student, teacher = given(ours), given(theirs)
    module = shaken(make(student, teacher, **options))
    numeric = {name: option for name, option in options.items() if name != "rate"}
    expected = reference(learned(module), ours, theirs, MASK if masked else None, **numeric)
    value = value_of(module, student, teacher, REAL if masked else None)
    assert value.shape == ()
    assert value.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("row", [0, 2, 4, 6, 8])
def test_a_learned_loss_takes_pooled_features(row: int) -> None:
    make, reference, _, _, options = LEARNED[row]
    student, teacher = map(given, POOLED)
    module = shaken(make(student, teacher, **options))
    value = value_of(module, student, teacher, REAL)
    expected = reference(learned(module), *POOLED, None, **options)
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_the_factor_is_as_wide_as_the_rate_says() -> None:
    student, teacher = given(NARROW), given(WIDE)
    for rate, width in (({}, 4), ({"rate": 0.3}, 2), ({"rate": 0.01}, 1), ({"rate": 2.0}, 16)):
        module = feature.ft(student, teacher, **rate)
        assert module.paraphraser[2].bias.shape == (width,)
        assert module.translator[2].bias.shape == (width,)


# --- square maps, against torch's own


def test_bins_are_those_of_torchs_pooling_and_of_its_nearest_neighbours() -> None:
    maps = torch.randn(2, 16, 3)
    channels, kept = maps.mT, torch.ones(2, 16, dtype=torch.bool)
    for count in (1, 2, 3, 5, 16):
        pooled = F.adaptive_avg_pool1d(channels, count).mT
        torch.testing.assert_close(averaging(kept, count, "line") @ maps, pooled)
    torch.testing.assert_close(
        averaging(kept, 32, "line") @ maps, F.interpolate(channels, 32, mode="nearest").mT
    )
    square = channels.unflatten(2, (4, 4))
    for count in (1, 2, 3, 4):
        pooled = F.adaptive_avg_pool2d(square, count).flatten(2).mT
        torch.testing.assert_close(averaging(kept, count, "square") @ maps, pooled)
    larger = F.interpolate(square, (8, 8), mode="nearest").flatten(2).mT
    torch.testing.assert_close(averaging(kept, 8, "square") @ maps, larger)


def test_a_convolution_of_square_maps_is_torchs_own() -> None:
    layer, maps = (
        Convolution(3, 4, "square", torch.Generator().manual_seed(1)),
        torch.randn(2, 9, 3),
    )
    kept = torch.rand(2, 9, 1) > 0.3
    seen = (maps * kept).mT.unflatten(2, (3, 3))
    expected = F.conv2d(seen, layer.weight, layer.bias, padding=1).flatten(2).mT
    torch.testing.assert_close(layer(maps, kept), expected)


def test_standardization_is_torchs_batch_normalization() -> None:
    for scale in (3, 0.003):  # the second varies by no more than what is added
        features = scale * torch.randn(ROWS, LENGTH, OURS) + 1
        expected = F.batch_norm(features[REAL], None, None, training=True)
        layer = Standardization(OURS)
        torch.testing.assert_close(layer(features, REAL)[REAL], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(layer(features[REAL]), expected, rtol=1e-4, atol=1e-4)


def test_layers_begin_as_widely_as_torchs_own() -> None:
    random = torch.Generator().manual_seed(1)
    layers = (
        linear(16, 64, random),
        *(Convolution(16, 64, way, random) for way in ("line", "square")),
    )
    for layer, seen in zip(layers, (16, 48, 144), strict=True):
        for each in (layer.weight, layer.bias):
            assert 0.9 * seen**-0.5 < each.abs().max() <= seen**-0.5
            assert each.mean().abs() < 0.2 * seen**-0.5


def test_layers_of_several_square_sizes_are_taken_for_maps_and_others_for_lines() -> None:
    def of(*lengths: int) -> list[Tensor]:
        return [torch.zeros(1, length, 2) for length in lengths]

    assert laid_out(of(64, 16, 4, 1)) == "square"
    assert laid_out(of(16, 16)) == "line"
    assert laid_out(of(32, 16)) == "line"


def torch_review(module: Any, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """The review of square maps in torch's own two-dimensional words."""

    def maps(places: Tensor) -> Tensor:
        side = math.isqrt(places.shape[1])
        return places.mT.unflatten(2, (side, side))

    def normalized(layer: Standardization, x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, layer.scale, layer.shift, training=True)

    deeper, total = None, torch.zeros(())
    for fusion, ours, theirs in zip(
        module.fusions[::-1], student[::-1], teacher[::-1], strict=True
    ):
        x = maps(ours)
        x = F.conv2d(x, fusion.enter.weight[:, :, None, None], fusion.enter.bias)
        x = normalized(fusion.entered, x)
        if deeper is not None:
            y = F.interpolate(deeper, x.shape[2:], mode="nearest")
            both = torch.cat([x, y], 1)
            z = F.conv2d(both, fusion.gates.weight[:, :, None, None], fusion.gates.bias).sigmoid()
            x = x * z[:, :1] + y * z[:, 1:]
        deeper = x
        made = F.conv2d(x, fusion.leave.weight, fusion.leave.bias, padding=1)
        made, goal = normalized(fusion.left, made), maps(theirs)
        value, weights, weight = F.mse_loss(made, goal), 1.0, 1.0
        for level in (4, 2, 1):
            if level < x.shape[2]:
                weight /= 2
                pooled = [F.adaptive_avg_pool2d(each, level) for each in (made, goal)]
                value, weights = value + weight * F.mse_loss(*pooled), weights + weight
        total = total + value / weights
    return total


@pytest.mark.parametrize("options", [{}, {"places": "square"}])
def test_the_review_of_square_maps_is_what_torch_makes_of_them(options: dict[str, Any]) -> None:
    student = [torch.randn(3, n, w) for n, w in ((64, 3), (16, 5), (4, 4), (1, 4))]
    teacher = [torch.randn(3, n, w) for n, w in ((64, 6), (16, 7), (4, 8), (1, 8))]
    module = shaken(feature.review(student, teacher, **options))
    torch.testing.assert_close(module(student, teacher), torch_review(module, student, teacher))
    if options:
        line = feature.review(student, teacher, places="line")
        assert line.fusions[0].leave.weight.dim() == 3


@pytest.mark.parametrize("make", [feature.mgd, feature.ft])
def test_square_maps_are_seen_three_by_three(make: Any) -> None:
    """What changes in one corner is felt across the map's rows, not along their line."""
    student, teacher = torch.randn(1, 16, 3, requires_grad=True), torch.randn(1, 16, 3)
    module = make(student, teacher, places="square")
    layer = module.first if make is feature.mgd else module.translator[0]
    made = layer(student, torch.ones(1, 16, 1, dtype=torch.bool))
    (slope,) = torch.autograd.grad(made[0, 0].sum(), student)
    assert slope.abs().sum(-1).nonzero()[:, 1].tolist() == [0, 1, 4, 5]
    assert torch.isfinite(module(student, teacher))


# --- promises of what learns


def leaves(features: Any) -> list[Tensor]:
    return [features] if isinstance(features, Tensor) else features


def with_gradients(features: Any) -> Any:
    if isinstance(features, Tensor):
        return features.detach().clone().requires_grad_()
    return [with_gradients(each) for each in features]


def changed(features: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(features, Tensor):
        return change(features)
    return [change(each) for each in features]


@every_learned
@pytest.mark.parametrize("content", [50.0, math.nan])
def test_what_stands_in_the_padding_changes_no_value_and_no_gradient(
    make: Any, ours: Any, theirs: Any, options: Any, content: float
) -> None:
    found = []
    for fill in (0.0, content):
        put = partial(torch.Tensor.masked_fill, mask=~REAL[:, :, None], value=fill)
        student = with_gradients(changed(given(ours), put))
        module = make(student, given(theirs), **options)
        value = value_of(module, student, changed(given(theirs), put), REAL)
        value.backward()
        slopes = [each.grad for each in (*leaves(student), *module.parameters())]
        found.append([value.detach(), *slopes, *module.buffers()])
        assert all(not each.grad[~REAL].any() for each in leaves(student))
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second)


@every_learned
def test_padding_counts_no_more_than_if_it_were_cut_off(
    make: Any, ours: Any, theirs: Any, options: Any
) -> None:
    student, teacher = (changed(given(each), lambda x: x[1:2]) for each in (ours, theirs))
    module = make(student, teacher, **options).eval()
    cut = [changed(each, lambda x: x[:, :3]) for each in (student, teacher)]
    padded = value_of(module, student, teacher, REAL[1:2].long())
    torch.testing.assert_close(padded, value_of(module, *cut))
    assert not torch.isclose(padded, value_of(module, student, teacher))


@every_learned
def test_all_that_is_learned_gets_a_gradient_and_the_teacher_none(
    make: Any, ours: Any, theirs: Any, options: Any
) -> None:
    student, teacher = with_gradients(given(ours)), with_gradients(given(theirs))
    module = make(student, teacher, **options)
    value_of(module, student, teacher, REAL).backward()
    assert all(each.grad is None for each in leaves(teacher))
    assert all(each.grad[REAL].any() for each in leaves(student))
    for name, each in module.named_parameters():
        assert each.grad is not None, name
        assert each.grad.abs().max() > 1e-5, name


@every_learned
def test_student_and_module_learn(make: Any, ours: Any, theirs: Any, options: Any) -> None:
    for of_module in (False, True):
        student = with_gradients(given(ours))
        module = make(student, given(theirs), **options)
        learning = list(module.parameters()) if of_module else leaves(student)
        optimizer = torch.optim.Adam(learning, lr=0.02)
        before = value_of(module, student, given(theirs), REAL).item()
        for _ in range(20):
            optimizer.zero_grad()
            value_of(module, student, given(theirs), REAL).backward()
            optimizer.step()
        assert value_of(module, student, given(theirs), REAL).item() < before - 0.004


@every_learned
def test_building_a_loss_moves_no_random_stream_and_gives_the_same_each_time(
    make: Any, ours: Any, theirs: Any, options: Any
) -> None:
    before = torch.get_rng_state()
    first = make(given(ours), given(theirs), **options)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    second = make(given(ours), given(theirs), **options)
    for name, each in first.state_dict().items():
        assert torch.equal(each, second.state_dict()[name])
    assert all(each.std() > 0 for each in first.parameters() if each.dim() > 1)


@every_learned
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1000.0])
def test_half_precision_in_gives_single_precision_out(
    make: Any, ours: Any, theirs: Any, options: Any, dtype: Any, scale: float
) -> None:
    student, teacher = (
        changed(given(each), lambda x: (scale * x).to(dtype)) for each in (ours, theirs)
    )
    student = with_gradients(student)
    module = make(student, teacher, **options)
    value = value_of(module, student, teacher, REAL)
    value.backward()
    single = make(student, teacher, **options)
    expected = value_of(single, *(changed(each, Tensor.float) for each in (student, teacher)), REAL)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected)
    assert all(torch.isfinite(each.grad).all() for each in leaves(student))
    assert all(torch.isfinite(each.grad).all() for each in module.parameters())


@every_learned
def test_mixed_precision_changes_nothing(make: Any, ours: Any, theirs: Any, options: Any) -> None:
    student, teacher = given(ours), given(theirs)
    expected = value_of(make(student, teacher, **options), student, teacher, REAL)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = value_of(make(student, teacher, **options), student, teacher, REAL)
    torch.testing.assert_close(mixed, expected, rtol=1e-6, atol=1e-7)


@every_learned
@pytest.mark.parametrize("constant", [None, 0.0, 0.1])
def test_one_row_of_one_place_and_features_without_variance_stay_finite(
    make: Any, ours: Any, theirs: Any, options: Any, constant: float | None
) -> None:
    def few(features: Tensor) -> Tensor:
        return features[:1, :1] if constant is None else torch.full_like(features, constant)

    student, teacher = with_gradients(changed(given(ours), few)), changed(given(theirs), few)
    module = make(student, teacher, **options)
    value = value_of(module, student, teacher)
    value.backward()
    assert torch.isfinite(value)
    assert all(torch.isfinite(each.grad).all() for each in leaves(student))


def test_a_single_row_has_no_neighbour() -> None:
    student = torch.randn(1, 3, requires_grad=True)
    loss = feature.pkt(student, torch.randn(1, 4))
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None
    assert not student.grad.any()


def test_rows_that_are_opposite_still_have_a_likelihood() -> None:
    student = tensor([1.0, 0.0], [-1.0, 0.0], [0.5, 0.5]).requires_grad_()
    loss = feature.pkt(student, torch.randn(3, 2))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


# --- what each is for


def test_ofd_learns_its_margins_from_all_batches_and_in_training_alone() -> None:
    batches = [numbers(3, THEIRS, seed=seed) for seed in (1, 2, 3)]
    module = feature.ofd(torch.zeros(3, OURS), given(batches[0]))
    for batch in batches:
        module(torch.randn(3, OURS), given(batch))
    module.eval()
    module(torch.randn(3, OURS), torch.full((3, THEIRS), -50.0))
    for c in range(THEIRS):
        negative = [batch[i, c] for batch in batches for i in range(3) if batch[i, c] < 0]
        assert module.margin[c].item() == pytest.approx(np.mean(negative or [0.0]), rel=1e-5)
        assert module.negatives[c].item() == len(negative)


def test_ofd_goes_on_from_its_checkpoint() -> None:
    first, second = (given(numbers(3, THEIRS, seed=seed)) for seed in (1, 2))
    student = torch.randn(3, OURS)
    whole = feature.ofd(student, first)
    whole(student, first)
    resumed = feature.ofd(student, second)
    resumed.load_state_dict(whole.state_dict())
    assert torch.equal(resumed(student, second), whole(student, second))
    assert torch.equal(resumed.margin, whole.margin)


def test_mgd_hides_another_share_each_time_and_about_as_much_as_it_is_told() -> None:
    student, teacher = torch.randn(40, 50, OURS), torch.randn(40, 50, OURS)
    module = feature.mgd(student, teacher, ratio=0.3)
    assert module(student, teacher) != module(student, teacher)
    hidden = []
    layer = module.first.register_forward_pre_hook(lambda _, seen: hidden.append(~seen[1]))
    module(student, teacher)
    module(student[:, 0], teacher[:, 0])
    layer.remove()
    assert hidden[0].shape == (40, 50, 1)
    assert hidden[0].float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert hidden[1].shape == (40, 1, OURS)
    assert hidden[1].float().mean().item() == pytest.approx(0.3, abs=0.1)


def test_mgd_projects_only_where_the_widths_differ() -> None:
    narrow, wide = torch.zeros(1, 2, 3), torch.zeros(1, 2, 4)
    assert isinstance(feature.mgd(narrow, narrow).project, nn.Identity)
    assert feature.mgd(narrow, wide).project.weight.shape == (4, 3)


def test_a_review_is_as_wide_as_the_deepest_stage_but_never_wider_than_512() -> None:
    for deepest, width in ((3, 3), (600, 512)):
        stages = [torch.zeros(1, 2, 4), torch.zeros(1, 2, deepest)]
        shapes = [each.enter.weight.shape for each in feature.review(stages, stages).fusions]
        assert shapes == [(width, 4), (width, deepest)]


def test_the_paraphraser_learns_from_its_reconstruction_alone() -> None:
    student, teacher = given(NARROW), given(WIDE)
    module = feature.ft(student, teacher)
    slopes = []
    for scale in (1.0, -7.0):
        module.zero_grad()
        module(with_gradients(scale * student), teacher).backward()
        parts = (*module.paraphraser.parameters(), *module.reader.parameters())
        slopes.append([each.grad.clone() for each in parts])
    for first, second in zip(*slopes, strict=True):
        torch.testing.assert_close(first, second)


def test_batch_normalized_losses_do_not_see_the_scale_of_the_teacher() -> None:
    student, teacher = given(NARROW), given(WIDE)
    module = feature.srd(student, teacher)
    torch.testing.assert_close(
        module(student, 1000 * teacher + 30), module(student, 100 * teacher), rtol=1e-3, atol=1e-4
    )


def test_relations_do_not_see_scale_nor_nst_the_order_of_neurons() -> None:
    student, teacher = given(NARROW), given(WIDE)
    expected = feature.nst(student, teacher)
    turned = student[:, :, torch.randperm(OURS)]
    torch.testing.assert_close(feature.nst(3 * turned, 0.5 * teacher), expected)
    expected = feature.pkt(student[:, 0], teacher[:, 0])
    torch.testing.assert_close(feature.pkt(3 * student[:, 0], 0.5 * teacher[:, 0]), expected)


# --- refusals


def refused() -> list[tuple[Callable[[], Any], str]]:
    two, three = torch.zeros(1, 5, 2), torch.zeros(1, 5, 3)
    mask = torch.ones(1, 5)
    longer = torch.zeros(1, 10, 2)
    return [
        (lambda: feature.ab(two, two, margin=0.0), "margin is 0"),
        (lambda: feature.simkd(two, three), r"width 2 .* width 3"),
        (lambda: feature.srd(two, three, power=0.5), "power is 0.5"),
        (lambda: feature.vid(two, three, variance=1e-5), "variance is 1e-05"),
        (lambda: feature.mgd(two, three, ratio=1.0), "ratio is 1.0"),
        (lambda: feature.mgd(two, three, ratio=-0.1), "ratio is -0.1"),
        (lambda: feature.ft(two, three, rate=0.0), "rate is 0"),
        (lambda: feature.mgd(two, three, places="square")(two, three), "5 places are no square"),
        (lambda: feature.fsp([two], [two]), "two layers or more"),
        (lambda: feature.fsp([two, two], [two, three]), "2 and 3"),
        (lambda: feature.fsp([two, two], [two]), "shorter"),
        (lambda: feature.fsp([longer, two], [longer, two], mask), "10 places .* 5 tokens"),
        (
            lambda: feature.review([longer, two], [longer, two])(
                [longer, two], [longer, two], mask
            ),
            "10 places .* 5 tokens",
        ),
    ]


@pytest.mark.parametrize("row", range(len(refused())))
def test_what_can_not_be_is_refused_in_a_sentence(row: int) -> None:
    make, sentence = refused()[row]
    with pytest.raises(ValueError, match=sentence):
        make()


# --- the room


def test_every_feature_loss_has_its_plain_name() -> None:
    found = {
        name.partition(".")[2] for name in names("attar.losses") if name.startswith("feature.")
    }
    assert found == set(feature.__all__)
    tested = {"mse", "cosine", "simkd", *(row[0].__name__ for row in (*PLAIN, *LEARNED))}
    assert found == tested


def test_what_is_published_below_plain_kd_says_so_with_its_figure() -> None:
    below = {
        "mse": 69.21,
        "vid": 70.38,
        "pkt": 70.34,
        "ab": 69.47,
        "ft": 69.84,
        "fsp": 69.95,
        "nst": 69.60,
    }
    for name in feature.__all__:
        says = vars(feature)[name].__doc__
        figure = f"{below.get(name, 0):.2f} against 70.66"
        assert (name in below) == ("Published below plain KD" in says) == (figure in says), name


def test_simkd_teaches_a_student_to_answer_through_its_teachers_head() -> None:
    body, teacher = nn.Linear(4, 3), nn.Linear(4, 6)
    head = nn.Linear(6, 2)
    student = Joined(body, head, width=3, target=6)
    projector = 3 * 3 + 3 * 3 + (3 * 6 + 6) + 2 * (3 + 3)
    parts = 4 * 3 + 3, projector, 6 * 2 + 2
    assert sum(each.numel() for each in student.parameters()) == sum(parts)
    learning = [each for each in student.parameters() if each.requires_grad]
    assert sum(each.numel() for each in learning) == sum(parts[:2])

    inputs = torch.randn(64, 4)
    goal = teacher(inputs).detach()
    loss = feature.simkd(student.projector(body(inputs)), goal)
    optimizer = torch.optim.Adam(learning, lr=0.03)
    apart = (student(inputs) - head(goal)).square().mean()
    for _ in range(150):
        optimizer.zero_grad()
        with tapped(student, ["projector"]) as heard:
            student(inputs)
        loss(heard(None)["projector"], goal).backward()
        optimizer.step()
    assert (student(inputs) - head(goal)).square().mean() < 0.1 * apart
    assert torch.equal(student.head.weight, head.weight)
    assert student.head.weight is not head.weight
