"""The audit's numbers, against scikit-learn, SciPy, statsmodels, NumPy and work by hand."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import FeatureAblation
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, rel_entr, softmax
from scipy.stats import spearmanr
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss, recall_score
from statsmodels.stats.proportion import confint_proportions_2indep

from attar.measure import gates
from attar.measure.audit import Side, audit
from attar.measure.audit.answers import agreement, breaks, changes, flips, interval, kl
from attar.measure.audit.attribution import occlusion, similarity, spearman
from attar.measure.audit.calibration import brier, calibration, ece, temperature
from attar.measure.audit.likeness import cka
from attar.measure.audit.surrogate import fidelity
from attar.resolve import ask, bind, names
from attar.types import IGNORE

CLASSES = ["a", "b", "c", "d", "e"]


@pytest.fixture
def data() -> tuple[Any, Any, Any]:
    """Logits of a model, of a worse one, and the labels of 400 rows."""
    random = np.random.default_rng(3)
    labels = random.integers(0, 5, 400)
    before = 2 * random.normal(size=(400, 5))
    before[np.arange(400), labels] += 3
    return before, before + 1.5 * random.normal(size=(400, 5)), labels


# ---- answers


def test_agreement_and_kl_are_those_of_scikit_learn_and_scipy(data: tuple[Any, Any, Any]) -> None:
    before, after, _ = data
    same = accuracy_score(before.argmax(1), after.argmax(1))
    assert agreement(before, after) == pytest.approx(same, abs=1e-15)
    wanted = rel_entr(softmax(before, 1), softmax(after, 1)).sum(1).mean()
    assert kl(before, after) == pytest.approx(wanted, rel=1e-12)
    assert kl(torch.tensor(before), torch.tensor(after)) == kl(before, after)  # type: ignore[arg-type]


def test_agreement_has_no_direction_and_kl_has_one(data: tuple[Any, Any, Any]) -> None:
    before, after, _ = data
    assert agreement(before, after) == agreement(after, before)
    assert kl(before, after) != kl(after, before)
    assert kl(before, before + 7.0) == pytest.approx(0, abs=1e-15)


def test_a_class_that_is_never_said_weighs_nothing_and_one_ruled_out_weighs_all() -> None:
    never = np.array([[0.0, 1.0, -np.inf]])
    assert kl(never, never) == 0
    assert kl(never, np.array([[0.0, 1.0, 0.0]])) == pytest.approx(np.log(1 + 1 / (1 + np.e)))
    assert kl(np.zeros((1, 3)), never) == np.inf


def test_flips_are_those_counted_by_hand() -> None:
    rows = np.eye(3)
    before, after = rows[[0, 0, 1, 1, 2, 2]], rows[[0, 1, 1, 2, 0, 1]]
    labels = np.array([0, 0, 1, 2, 2, 1])
    #  right before:  y  y  y  n  y  n      right after: y n y y n y
    found = flips(before, after, labels)
    assert found == {"right_to_wrong": 2, "wrong_to_right": 2, "negative_flips": 2 / 6}
    back = flips(after, before, labels)
    assert (back["right_to_wrong"], back["wrong_to_right"]) == (2, 2)


def test_flips_tell_the_whole_change_in_accuracy(data: tuple[Any, Any, Any]) -> None:
    before, after, labels = data
    found = flips(before, after, labels)
    lost = (found["right_to_wrong"] - found["wrong_to_right"]) / len(labels)
    was, now = (accuracy_score(labels, each.argmax(1)) for each in (before, after))
    assert was - now == pytest.approx(lost, abs=1e-12)


def test_each_classs_accuracy_is_scikit_learns_recall_and_the_worst_is_first(
    data: tuple[Any, Any, Any],
) -> None:
    before, after, labels = data
    found = changes(before, after, labels, CLASSES)
    was, now = (recall_score(labels, e.argmax(1), average=None) for e in (before, after))
    for each in found:
        n = CLASSES.index(each["class"])
        assert each["before"] == pytest.approx(was[n])
        assert each["after"] == pytest.approx(now[n])
        assert each["examples"] == (labels == n).sum()
        assert each["low"] <= each["change"] <= each["high"]
    assert found[0]["change"] == pytest.approx((now - was).min())
    assert [each["change"] for each in found] == sorted(each["change"] for each in found)


def test_a_class_that_never_occurs_has_no_change() -> None:
    found = changes(np.eye(3), np.eye(3), np.array([0, 0, 2]), ["x", "y", "z"])
    assert {each["class"] for each in found} == {"x", "z"}


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        # Fagerland, Lydersen and Laake 2014, table II: airways before and after transplantation.
        ((1, 1, 7, 12), 0.026, 0.507),
        # Altman, Statistics with Confidence, 2nd edition, page 52.
        ((14, 5, 0, 22), -0.226, -0.011),
    ],
)
def test_the_interval_of_a_paired_change_is_the_published_one(
    counts: tuple[int, ...], low: float, high: float
) -> None:
    assert interval(*counts) == pytest.approx((low, high), abs=5e-4)


@pytest.mark.parametrize(("lost", "rows"), [(0, 40), (1, 40), (7, 40), (40, 40)])
def test_the_interval_without_any_correlation_is_the_one_of_independent_shares(
    lost: int, rows: int
) -> None:
    low, high = confint_proportions_2indep(rows - lost, rows, rows, rows, method="newcomb")
    assert interval(rows - lost, lost, 0, 0) == pytest.approx((low, high), abs=1e-9)


def test_the_interval_of_the_way_back_is_the_mirrored_one() -> None:
    low, high = interval(20, 7, 3, 10)
    assert interval(20, 3, 7, 10) == pytest.approx((-high, -low), abs=1e-12)
    assert low < 0 < high


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    shares = np.array([0.7, 0.15, 0.05, 0.1])
    found = [interval(*map(int, draw)) for draw in random.multinomial(40, shares, 2000)]
    covered = np.mean([low <= 0.05 - 0.15 <= high for low, high in found])
    assert 0.93 < covered < 0.98


def test_what_breaks_is_right_before_and_wrong_after_the_surest_first(
    data: tuple[Any, Any, Any],
) -> None:
    before, after, labels = data
    found = list(breaks(before, after, labels, CLASSES))
    hurt = (before.argmax(1) == labels) & (after.argmax(1) != labels)
    assert {row for row, _ in found} == set(np.flatnonzero(hurt).tolist())
    sure = [said["confidence"] for _, said in found]
    assert sure == sorted(sure, reverse=True)
    row, said = found[0]
    assert said["confidence"] == pytest.approx(softmax(after[row]).max())
    assert said["label"] == said["before"] == CLASSES[labels[row]] != said["after"]


# ---- calibration


def reference_ece(logits: Any, labels: Any, bins: int = 15) -> float:
    """Equation 3 of Guo et al. written as it stands: a loop over half-open bins."""
    shares = softmax(logits, 1)
    sure, hit = shares.max(1), shares.argmax(1) == labels
    total = 0.0
    for low, high in zip(
        np.linspace(0, 1, bins + 1)[:-1], np.linspace(0, 1, bins + 1)[1:], strict=True
    ):
        inside = (sure > low) & (sure <= high)
        if inside.any():
            total += inside.sum() / len(labels) * abs(hit[inside].mean() - sure[inside].mean())
    return total


def test_ece_is_that_of_a_loop_over_the_bins(data: tuple[Any, Any, Any]) -> None:
    for logits in data[:2]:
        assert ece(logits, data[2]) == pytest.approx(reference_ece(logits, data[2]), abs=1e-14)


def test_ece_worked_by_hand() -> None:
    # Sure to 0.9 of four answers of which three are right, to 0.6 of two of which none is.
    rows = np.log([[0.9, 0.1]] * 4 + [[0.6, 0.4]] * 2)
    labels = np.array([0, 0, 0, 1, 1, 1])
    assert ece(rows, labels) == pytest.approx(4 / 6 * 0.15 + 2 / 6 * 0.6)


def test_brier_is_scikit_learns_over_all_classes(data: tuple[Any, Any, Any]) -> None:
    before, _, labels = data
    wanted = brier_score_loss(labels, softmax(before, 1), labels=range(5), scale_by_half=False)
    assert brier(before, labels) == pytest.approx(wanted, abs=1e-12)
    assert brier(np.array([[50.0, -50.0]]), np.array([1])) == pytest.approx(2)


@pytest.mark.parametrize("scale", [0.02, 0.5, 1.0, 9.0, 4000.0])
def test_the_temperature_is_the_optimum_that_scipy_finds(
    data: tuple[Any, Any, Any], scale: float
) -> None:
    _, after, labels = data
    logits = scale * after

    def loss(log: float) -> float:
        return float(log_loss(labels, softmax(logits / np.exp(log), 1)))

    found = temperature(logits, labels)
    assert found is not None
    around = np.log(found) + np.array([-1.0, 1.0])
    wanted = minimize_scalar(loss, bounds=around, method="bounded", options={"xatol": 1e-9}).x
    assert np.log(found) == pytest.approx(wanted, abs=1e-6)
    shares = log_softmax(logits / found, 1)
    # Where the slope over 1 / T is nothing: labels get on the mean what the model expects.
    gap = (np.exp(shares) * logits).sum(1) - logits[np.arange(400), labels]
    assert abs(gap.mean()) < 1e-9 * scale


def test_a_temperature_follows_the_scale_of_the_logits(data: tuple[Any, Any, Any]) -> None:
    _, after, labels = data
    first, second = temperature(after, labels), temperature(3 * after + 11, labels)
    assert first is not None
    assert second == pytest.approx(3 * first, rel=1e-10)


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (np.eye(3), [0, 1, 2]),  # all right: ever sharper is ever better
        (np.eye(3), [1, 2, 0]),  # worse than a draw by lot
        (np.zeros((3, 3)), [0, 1, 2]),
        (np.full((3, 3), np.nan), [0, 1, 2]),
        (np.array([[0.0, -np.inf], [1.0, 0.0]]), [1, 0]),  # a label that is ruled out
    ],
)
def test_where_no_temperature_is_best_there_is_none(logits: Any, labels: list[int]) -> None:
    assert temperature(logits, np.array(labels)) is None


def test_calibration_is_fitted_to_held_out_rows_and_told_of_the_others(
    data: tuple[Any, Any, Any],
) -> None:
    _, after, labels = data
    held, judged = slice(0, 200), slice(200, None)
    found = calibration(after[judged], labels[judged], (after[held], labels[held]))
    cool = temperature(after[held], labels[held])
    assert cool is not None
    assert found["temperature"] == cool
    assert found["ece_scaled"] == ece(after[judged] / cool, labels[judged])
    assert found["brier"] == brier(after[judged], labels[judged])
    assert calibration(after, labels)["temperature"] is None


# ---- layers


def hsic(one: Any, other: Any) -> float:
    """tr(K H L H) of linear kernels, as the paper defines it."""
    rows = len(one)
    centre = np.eye(rows) - np.ones((rows, rows)) / rows
    return float(np.trace(one @ one.T @ centre @ other @ other.T @ centre))


def alike(one: Any, other: Any, size: int = 20) -> float:
    batches = (
        ({"x": one[n : n + size]}, {"y": other[n : n + size]}) for n in range(0, len(one), size)
    )
    (found,) = cka(batches, {"x": "y"})
    assert (found["one"], found["other"]) == ("x", "y")
    return float(found["cka"])


@pytest.fixture
def layers() -> tuple[Any, Any]:
    random = np.random.default_rng(1)
    one = random.normal(size=(70, 12)) + 100
    return one, one[:, :7] @ random.normal(size=(7, 7)) + random.normal(size=(70, 7))


def test_cka_over_batches_is_its_form_by_kernels(layers: tuple[Any, Any]) -> None:
    one, other = layers
    wanted = hsic(one, other) / np.sqrt(hsic(one, one) * hsic(other, other))
    assert alike(one, other) == pytest.approx(wanted, rel=1e-9)
    assert alike(one, other, 7) == pytest.approx(wanted, rel=1e-9)


def test_cka_does_not_see_rotation_scale_shift_and_side(layers: tuple[Any, Any]) -> None:
    one, other = layers
    turn, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(12, 12)))
    assert alike(one, one) == pytest.approx(1)
    assert alike(one @ turn * 3 - 5, one) == pytest.approx(1)
    assert alike(one, other) == pytest.approx(alike(other, one))
    assert alike(one @ turn, other) == pytest.approx(alike(one, other))
    stretched = one * np.arange(1, 13)
    assert alike(stretched, one) < 0.99


def test_a_layer_that_always_says_the_same_is_like_none() -> None:
    (found,) = cka([({"x": np.ones((5, 2))}, {"y": np.eye(5)})], {"x": "y"})
    assert found["cka"] is None


# ---- reasons and rules


def test_occlusion_of_a_weighted_sum_is_its_weights() -> None:
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0])
    found = occlusion(lambda kept: (kept * weights).sum(1), 4)
    assert found.tolist() == weights.tolist()


def test_occlusion_is_captums_ablation_of_whatever_can_be_called() -> None:
    def answer(kept: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.tanh(kept.numpy() @ np.array([1.0, 2.0, 3.0]))).float()

    wanted = FeatureAblation(answer).attribute(torch.ones(1, 3))
    np.testing.assert_allclose(occlusion(answer, 3), wanted[0], atol=1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_spearman_is_scipys_with_ties_too(seed: int) -> None:
    random = np.random.default_rng(seed)
    one, other = random.integers(0, 6, 20), random.normal(size=20)
    assert spearman(one, other) == pytest.approx(spearmanr(one, other).statistic)
    assert spearman(other, np.exp(other)) == pytest.approx(1)


def test_where_no_order_is_no_similarity_can_be_told() -> None:
    flat, slope = np.ones(4), np.arange(4.0)
    assert spearman(flat, slope) is None
    assert similarity([(flat, slope), (slope, slope), (slope, -slope)]) == {
        "similarity": pytest.approx(0),
        "examples": 2,
    }
    assert similarity([])["similarity"] is None


def test_a_tree_follows_a_rule_of_words_and_no_coin() -> None:
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(["lost", "card", "rate", "fee"], 4)) for _ in range(200)]
    rule = np.array(["lost" in text for text in texts]).astype(int)
    coin = random.integers(0, 2, 200)
    told = partial(fidelity, texts[:100], depth=1)
    assert told(rule[:100], texts[100:], rule[100:]) == 1.0
    assert told(coin[:100], texts[100:], coin[100:]) < 0.7


def test_a_tree_sees_pictures_too() -> None:
    pictures = torch.randint(0, 255, (60, 3, 20, 20), dtype=torch.uint8)
    dark = (torch.arange(60) % 2).numpy()
    pictures[dark == 1] //= 8
    assert fidelity(pictures[:40], dark[:40], pictures[40:], dark[40:], depth=2) == 1.0


# ---- the whole


def whole(data: tuple[Any, Any, Any], **options: Any) -> dict[str, Any]:
    before, after, labels = data
    one, other = Side(before, (before, labels)), Side(after, (after, labels))
    return audit(one, other, labels, CLASSES, **options)


def test_a_model_beside_itself_has_lost_nothing(data: tuple[Any, Any, Any]) -> None:
    before, _, labels = data
    found = whole((before, before.copy(), labels))
    assert (found["agreement"], found["kl"]) == (1.0, 0.0)
    assert found["flips"]["negative_flips"] == 0
    assert found["broken"] == []
    assert all(each["change"] == 0 for each in found["classes"])
    assert found["calibration"]["before"] == found["calibration"]["after"]


def test_rows_without_a_label_count_for_agreement_alone(data: tuple[Any, Any, Any]) -> None:
    before, after, labels = data
    some = labels.copy()
    some[::2] = IGNORE
    found = audit(Side(before), Side(after), some, CLASSES)
    assert found["agreement"] == agreement(before, after)
    assert found["flips"] == flips(before[1::2], after[1::2], labels[1::2])
    assert all(each["input"] % 2 == 1 for each in found["broken"])
    none = audit(Side(before), Side(after), np.full(400, IGNORE), CLASSES)
    assert set(none) == {"examples", "agreement", "kl"}


def test_only_so_many_broken_examples_are_shown(data: tuple[Any, Any, Any]) -> None:
    assert len(whole(data, broken=3)["broken"]) == 3
    assert whole(data, broken=0)["broken"] == []


def test_what_takes_time_is_only_done_when_asked(data: tuple[Any, Any, Any]) -> None:
    def unwanted(_: object) -> Any:
        raise AssertionError

    found = whole(data, explained=unwanted, imitated=unwanted)
    assert "occlusion" not in found
    deep = whole(
        data,
        occlusion=2,
        surrogate=3,
        explained=lambda count: [(np.arange(3), np.arange(3))] * count,
        imitated=lambda depth: {"depth": depth},
        alike=lambda said: [{"said": said}],
    )
    assert deep["occlusion"] == {"similarity": 1.0, "examples": 2}
    assert deep["surrogate"] == {"depth": 3}
    assert deep["cka"] == [{"said": None}]


# ---- gates


FOUND: dict[str, Any] = {
    "agreement": 0.9,
    "kl": 0.2,
    "flips": {"right_to_wrong": 6, "wrong_to_right": 1, "negative_flips": 0.06},
    "classes": [{"change": -0.3, "examples": 20}, {"change": 0.0125, "examples": 80}],
    "calibration": {"after": {"ece": 0.04, "ece_scaled": None, "brier": 0.5}},
}


@pytest.mark.parametrize(
    ("gate", "figure"),
    [
        ("agreement", 0.9),
        ("kl", 0.2),
        ("score_drop", 0.05),
        ("worst_class_drop", 0.3),
        ("negative_flips", 0.06),
        ("ece", 0.04),
        ("brier", 0.5),
    ],
)
def test_a_gate_is_passed_at_its_limit_and_not_behind_it(gate: str, figure: float) -> None:
    function = names("attar.measure.gates")[gate]
    sign = 1 if gate == "agreement" else -1
    for limit, ok in ((figure, True), (figure - sign * 0.01, True), (figure + sign * 0.01, False)):
        outcome = ask(bind(function, {"limit": limit}), {"audit": FOUND})
        assert outcome == {"limit": limit, "found": pytest.approx(figure), "ok": ok}


def test_what_nobody_could_measure_has_not_passed() -> None:
    assert gates.ece_scaled(FOUND, limit=1.0) == {"limit": 1.0, "found": None, "ok": False}
    bare = {"agreement": 1.0, "kl": float("inf")}
    for gate in (gates.negative_flips, gates.worst_class_drop, gates.score_drop, gates.ece):
        assert not gate(bare, limit=1.0)["ok"]
    assert not gates.kl(bare, limit=1e9)["ok"]
    assert not gates.kl({"kl": float("nan")}, limit=1e9)["ok"]


def test_a_model_that_became_better_passes_every_limit_of_loss() -> None:
    better = FOUND | {
        "flips": {"right_to_wrong": 0, "wrong_to_right": 9, "negative_flips": 0.0},
        "classes": [{"change": 0.1, "examples": 90}],
    }
    assert gates.score_drop(better, limit=0.0)["ok"]
    assert gates.worst_class_drop(better, limit=0.0) == {"limit": 0.0, "found": 0.0, "ok": True}
