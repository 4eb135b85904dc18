"""Differences between arms, their intervals and tests, beside SciPy, statsmodels and hand work."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from attar.measure import statistics
from attar.measure.statistics import Difference, corrected, interval, least_p, sign_flip, weigh

Hits = np.ndarray[Any, Any]


def answered(
    share: float, *, seeds: int = 3, examples: int = 400, luck: float = 0.02, seed: int = 0
) -> list[Hits]:
    """Hits of an arm of that skill: some examples are hard for all, some seeds are lucky."""
    random = np.random.default_rng(seed)
    hard = np.random.default_rng(99).random(examples)
    skill = share + luck * random.standard_normal(seeds)
    noise = 0.2 * random.standard_normal((seeds, examples))
    return list(hard + noise < skill[:, None])


# --- the interval


def test_with_one_seed_the_interval_is_that_of_scipy_s_paired_bootstrap() -> None:
    (one,), (other,) = answered(0.8, seeds=1), answered(0.7, seeds=1, seed=1)
    wanted = stats.bootstrap(
        (one.astype(float), other.astype(float)),
        lambda a, b, axis: a.mean(axis) - b.mean(axis),
        paired=True,
        method="percentile",
        n_resamples=10_000,
        rng=np.random.default_rng(5),
    ).confidence_interval
    found = weigh([one], [other])
    # An answer in 400 more or less: a resample's mean can't be told more exactly.
    assert abs(found.low - wanted.low) <= 1.01 / 400
    assert abs(found.high - wanted.high) <= 1.01 / 400


@pytest.mark.parametrize("crossed", [True, False])
def test_seeds_and_examples_are_both_resampled(crossed: bool) -> None:
    """Beside the same drawn index by index."""
    apart = np.subtract(answered(0.8), answered(0.7, seed=1), dtype=float)
    random, means = np.random.default_rng(3), []
    for _ in range(10_000):
        seeds = random.integers(0, 3, 3)
        if crossed:
            drawn = apart[:, random.integers(0, 400, 400)].mean(1)
        else:
            drawn = np.array([each[random.integers(0, 400, 400)].mean() for each in apart])
        means.append(drawn[seeds].mean())
    low, high = interval(list(apart.astype(int)), crossed=crossed)
    wanted = np.quantile(means, [0.025, 0.975])
    assert abs(low - wanted[0]) < 0.002
    assert abs(high - wanted[1]) < 0.002


def test_the_interval_of_one_arm_s_score_is_about_its_binomial_error() -> None:
    hits = [np.arange(1000) < 800]
    low, high = interval(hits)
    error = 1.96 * np.sqrt(0.8 * 0.2 / 1000)
    np.testing.assert_allclose([low, high], [0.8 - error, 0.8 + error], atol=0.0015)


def test_seeds_that_differ_widen_the_interval() -> None:
    steady = weigh(answered(0.8, luck=0.0), answered(0.7, luck=0.0, seed=1))
    lucky = weigh(answered(0.8, luck=0.1), answered(0.7, luck=0.1, seed=1))
    assert lucky.high - lucky.low > 1.5 * (steady.high - steady.low)


def test_answers_of_any_number_are_weighed_by_example() -> None:
    """Scores that are no hits, each of a kind of its own."""
    values = np.random.default_rng(0).normal(0.3, 1.0, (1, 500))
    low, high = interval(list(values))
    error = 1.96 * values.std() / np.sqrt(500)
    middle = values.mean()
    np.testing.assert_allclose([low, high], [middle - error, middle + error], atol=0.01)


# --- the test


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (3, 0), (9, 2), (40, 25), (300, 280)])
def test_on_hits_of_one_seed_the_test_is_mcnemar_s(won: int, lost: int) -> None:
    differences = np.array([1] * won + [-1] * lost + [0] * 50)
    table = [[10, won], [lost, 20]]
    wanted = mcnemar(table, exact=True).pvalue if won + lost else 1.0
    assert sign_flip(differences) == pytest.approx(wanted, rel=1e-9)
    if won + lost:
        coin = stats.binomtest(won, won + lost).pvalue
        assert sign_flip(differences) == pytest.approx(coin, rel=1e-9)


def test_on_sums_over_seeds_the_test_is_the_count_of_all_signs() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        values = random.integers(-3, 5, 11)
        signs = np.array(list(product([1, -1], repeat=len(values))))
        far = np.abs((signs * values).sum(1)) >= abs(values.sum())
        assert sign_flip(values) == pytest.approx(far.mean(), rel=1e-9)


def test_it_is_scipy_s_permutation_test() -> None:
    values = np.array([3, 1, -1, 2, 2, 0, -1, 3])
    wanted = stats.permutation_test(
        (values, np.zeros_like(values)),
        lambda a, b, axis: (a - b).mean(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    ).pvalue
    assert sign_flip(values) == pytest.approx(wanted, rel=1e-9)


def test_a_tail_is_exact_where_it_is_tiny() -> None:
    """60 coins on one side: 2 / 2^60."""
    assert sign_flip(np.ones(60, int)) == pytest.approx(float(Fraction(2, 2**60)), rel=1e-9)


@pytest.mark.parametrize("seeds", [1, 2, 3, 5, 6])
def test_no_p_over_seeds_is_below_the_least(seeds: int) -> None:
    """Worked by hand: of 2^n signs only all plus and all minus are as far."""
    sums = np.arange(1, seeds + 1)
    assert sign_flip(sums) == pytest.approx(2 / 2**seeds if seeds > 1 else 1.0)
    assert least_p(seeds) == pytest.approx(sign_flip(sums))


# --- many arms against one


def test_holm_s_correction_is_statsmodels_own() -> None:
    raw = [0.04, 0.001, 0.2, 0.012, 0.012]
    told = [Difference(0.1, 0.05, 0.2, p, 0.25, (0.1, 0.1, 0.1), 100) for p in raw]
    fixed = corrected(told)
    assert [each.p for each in fixed] == pytest.approx(multipletests(raw, method="holm")[1])
    assert {each.family for each in fixed} == {5}
    assert [each.mean for each in fixed] == [0.1] * 5
    assert corrected([]) == []


# --- what is resolved


def test_two_identical_arms_are_not_resolved() -> None:
    found = weigh(answered(0.8), answered(0.8))
    assert (found.mean, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)
    assert not found.resolved
    assert found.why == "they have the same examples right"


def test_a_clear_difference_is_resolved_and_says_what_the_seeds_could_show() -> None:
    found = weigh(answered(0.9), answered(0.6, seed=1))
    assert found.resolved
    assert found.low > 0
    assert found.examples == 400
    assert found.mean == pytest.approx(np.mean(found.by_seed))
    assert "3 seeds could show no p below 0.25" in found.why
    worse = weigh(answered(0.6, seed=1), answered(0.9))
    assert worse.resolved
    assert worse.high < 0


def test_one_seed_resolves_nothing() -> None:
    found = weigh(answered(0.9, seeds=1), answered(0.6, seeds=1, seed=1))
    assert found.p < 1e-6
    assert not found.resolved
    assert found.why == "one seed tells nothing of training's luck"


def test_seeds_that_disagree_resolve_nothing_however_many_examples_there_are() -> None:
    one = [np.ones(5000, bool)] * 3
    other = [np.arange(5000) < 4000, np.arange(5000) < 3900, np.ones(5000, bool)]
    one[2] = np.arange(5000) < 4990
    found = weigh(one, other)
    assert found.p < 1e-6
    assert not found.borne
    assert not found.resolved


def test_six_seeds_have_to_say_it_themselves() -> None:
    told = [Difference(0.1, 0.05, 0.2, 0.001, p, (0.1,) * 6, 100) for p in (2 / 64, 4 / 64)]
    assert [each.resolved for each in told] == [True, False]
    assert "the seeds don't bear it" in told[1].why


def test_what_only_holm_s_correction_takes_away_is_said_so() -> None:
    told = Difference(0.1, 0.05, 0.2, 0.03, 0.25, (0.1,) * 3, 100)
    assert told.resolved
    fixed = corrected([told] * 4)
    assert not fixed[0].resolved
    assert (
        fixed[0].why == "the test over examples gives p = 0.12 after Holm's correction for 4 arms"
    )


def test_of_many_comparisons_of_equals_few_are_resolved() -> None:
    found = [
        weigh(answered(0.8, seed=2 * n), answered(0.8, seed=2 * n + 1)).resolved for n in range(100)
    ]
    assert sum(found) <= 5


def test_seeds_with_examples_of_their_own_are_weighed_too() -> None:
    lengths = (300, 400, 350)
    one = [np.arange(n) < 0.9 * n for n in lengths]
    other = [np.arange(n) < 0.7 * n for n in lengths]
    found = weigh(one, other, crossed=False)
    assert found.resolved
    assert found.mean == pytest.approx(0.2)
    assert found.examples == 300
    assert found.seeds_p == pytest.approx(0.25)


def test_the_same_arms_always_have_the_same_interval() -> None:
    pair = answered(0.8), answered(0.75, seed=1)
    assert weigh(*pair) == weigh(*pair)
    assert statistics.RESAMPLES == 10_000


def test_what_examples_are_worth_is_weighed_as_hits_are() -> None:
    random = np.random.default_rng(5)
    one, other = (random.integers(2, size=(3, 40)).astype(bool) for _ in range(2))
    hits = weigh(list(one), list(other))
    worth = weigh(list(500.0 * one), list(500.0 * other))
    assert worth.mean == pytest.approx(500 * hits.mean)
    assert (worth.low, worth.high) == pytest.approx((500 * hits.low, 500 * hits.high))
    assert worth.p == pytest.approx(hits.p)
    assert worth.seeds_p == pytest.approx(hits.seeds_p)


def test_worths_that_are_not_whole_are_weighed_in_small_steps() -> None:
    random = np.random.default_rng(6)
    one, other = random.normal(200, 30, 12), random.normal(190, 30, 12)
    found = weigh([one], [other])
    signs = np.array(list(product([-1, 1], repeat=12)))
    sums = np.abs(signs @ (one - other))
    assert found.p == pytest.approx((sums >= abs((one - other).sum()) - 1e-9).mean(), abs=2e-3)
    assert found.mean == pytest.approx((one - other).mean())
