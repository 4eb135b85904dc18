"""Whether one arm's score is above another's: paired intervals and tests over seeds and examples.

Arms are given by their hits: which test examples each seed's model answers right; or by what each
example was worth. Both arms answer
the same examples from the same seeds, so all is computed on their differences, pair by pair.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

LEVEL, ALPHA = 0.95, 0.05
"""How likely an interval holds the truth; the p below which chance is ruled out."""

RESAMPLES = 10_000
"""Enough for the ends of a 95 % interval to stand still in the third digit of their distance."""

ROUNDED = 1 + 1e-9
"""How much more a sum of chances may be for how floats are added."""

STEPS = 1_000
"""Whole numbers from 0 to the largest of differences that are none."""

AT_ONCE = 1_000
"""Resamples in memory at a time."""

Numbers = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Difference:
    """How far the score of one arm is from that of another, and what that may rest on.

    low, high: of the 95 % interval over seeds and test examples
    p: of the sign-flip test over the test examples, after Holm's correction for `family` tests
    seeds_p: of the same test over the seeds
    by_seed: the difference of each seed
    """

    mean: float
    low: float
    high: float
    p: float
    seeds_p: float
    by_seed: tuple[float, ...]
    examples: int
    family: int = 1

    @property
    def one_sided(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0

    @property
    def borne(self) -> bool:
        """Whether the seeds agree as clearly as so many can.

        The test over fewer than 6 seeds can't come below 0.05: then all have to be on one side.
        """
        seeds = len(self.by_seed)
        return seeds > 1 and (self.seeds_p < ALPHA or self.seeds_p <= least_p(seeds) * ROUNDED)

    @property
    def resolved(self) -> bool:
        """Whether interval, test and seeds all say that there is a difference."""
        return self.one_sided and self.p < ALPHA and self.borne

    @property
    def why(self) -> str:
        """What speaks for it being resolved, or what stands against it."""
        seeds = len(self.by_seed)
        if seeds == 1:
            return "one seed tells nothing of training's luck"
        if self.low == self.high == 0:
            return "they have the same examples right"
        limit = f"{seeds} seeds could show no p below {least_p(seeds):.2g}"
        if not self.one_sided:
            return "the interval holds 0"
        if self.p >= ALPHA:
            return f"the test over examples gives p = {self.p:.2g}{self._corrected}"
        if not self.borne:
            return f"the seeds don't bear it: p = {self.seeds_p:.2g} over them; {limit}"
        told = "p < 0.001" if self.p < 0.001 else f"p = {self.p:.2g}"
        return f"{told}{self._corrected}; p = {self.seeds_p:.2g} over seeds ({limit})"

    @property
    def _corrected(self) -> str:
        return f" after Holm's correction for {self.family} arms" if self.family > 1 else ""


def weigh(one: Sequence[Numbers], other: Sequence[Numbers], *, crossed: bool = True) -> Difference:
    """One arm's hits against another's: mean difference in score, interval and tests.

    one, other: for each seed, whether each test example was answered right, or what it was worth,
        in the same order
    crossed: whether all seeds were tested on the same examples; else each has its own
    """
    counted = all(each.dtype == np.bool_ for each in (*one, *other))
    form = np.int64 if counted else np.float64
    apart = [np.subtract(a, b, dtype=form) for a, b in zip(one, other, strict=True)]
    low, high = interval(apart, crossed=crossed)
    by_example = np.sum(apart, axis=0) if crossed else np.concatenate(apart)
    by_seed = tuple(float(each.mean()) for each in apart)
    # Whole numbers, and of one length where crossed; else means are flipped as they are told.
    sums = [int(each.sum()) for each in apart] if crossed else _whole(by_seed)
    if not counted:
        by_example, sums = np.array(_scaled(by_example)), _scaled(by_seed)
    return Difference(
        mean=float(np.mean(by_seed)),
        low=low,
        high=high,
        p=sign_flip(by_example),
        seeds_p=sign_flip(np.array(sums)),
        by_seed=by_seed,
        examples=min(map(len, apart)),
    )


def interval(values: Sequence[Numbers], *, crossed: bool = True, seed: int = 0) -> Any:
    """The 95 % interval (low, high) of a mean over seeds and examples, both resampled.

    Percentiles of the bootstrap in which rows and columns are drawn by themselves, which is rather
    too wide than too narrow (Owen, "The pigeonhole bootstrap", 2007). Seeds are not resampled
    where there is one.

    values: for each seed, a number of each example
    crossed: whether the examples of all seeds are the same; else each seed's are drawn apart
    """
    random = np.random.default_rng(seed)
    means = np.concatenate(list(_resampled(list(values), crossed, random)))
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _resampled(
    values: list[Numbers], crossed: bool, random: np.random.Generator
) -> Iterator[Numbers]:
    """Means of resamples, some at a time."""
    seeds = len(values)
    groups = [np.stack(values)] if crossed else [each[None] for each in values]
    # Examples that fare alike under every seed are of one kind: drawing examples is drawing kinds.
    kinds = [np.unique(group, axis=1, return_counts=True) for group in groups]
    for start in range(0, RESAMPLES, AT_ONCE):
        rows = min(AT_ONCE, RESAMPLES - start)
        means = [
            random.multinomial(counts.sum(), counts / counts.sum(), rows) @ kind.T / counts.sum()
            for kind, counts in kinds
        ]
        drawn = random.multinomial(seeds, np.full(seeds, 1 / seeds), rows) / seeds
        yield (np.concatenate(means, axis=1) * drawn).sum(1)


def sign_flip(differences: Numbers) -> float:
    """How likely a sum so far from 0 is, if each difference might as well have the other sign.

    Exact and two-sided: the distribution over all 2^n signs, added up size by size (Fisher, "The
    Design of Experiments", 1935, section 21). For differences of 1 and -1 it is McNemar's test.

    differences: whole numbers
    """
    moved = np.abs(differences[differences != 0])
    chances = np.ones(1)  # that the sizes with a plus add up to the place
    sizes, counts = np.unique(moved, return_counts=True)
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        wider = np.zeros(size * count + len(chances))
        for plus, chance in enumerate(_coins(count)):
            wider[size * plus : size * plus + len(chances)] += chance * chances
        chances = wider
    sums = 2 * np.arange(len(chances)) - (len(chances) - 1)
    return min(1.0, float(chances[np.abs(sums) >= abs(int(differences.sum()))].sum()))


def _coins(count: int) -> Numbers:
    """How likely 0, 1, 2 ... of so many coins fall on one side."""
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])
    chances: Numbers = np.exp(logs[-1] - logs - logs[::-1] - count * np.log(2))
    return chances


def _whole(means: Sequence[float]) -> list[int]:
    """Means as whole numbers of millionths."""
    return [round(1e6 * each) for each in means]


def _scaled(values: Sequence[float] | Numbers) -> list[int]:
    """Values as whole numbers: as they are where they are such and small, else rounded.

    Rounded they are thousandths of the largest; what is whole is told by its greatest measure.
    """
    whole = np.rint(values).astype(np.int64)
    measure = int(np.gcd.reduce(whole)) or 1
    if np.array_equal(whole, values) and np.abs(whole).max() <= STEPS * measure:
        return (whole // measure).tolist()  # type: ignore[no-any-return]
    largest = float(np.abs(values).max())
    return [round(STEPS * float(each) / largest) for each in values]


def least_p(seeds: int) -> float:
    """The smallest p that the sign-flip test can give on so many differences."""
    return min(1.0, 2.0 ** (1 - seeds))


def corrected(differences: Sequence[Difference]) -> list[Difference]:
    """The same with p as Holm corrects it for so many tests (1979): each above those before it."""
    order = sorted(range(len(differences)), key=lambda n: differences[n].p)
    found, most = list(differences), 0.0
    for rank, n in enumerate(order):
        most = max(most, min(1.0, (len(order) - rank) * differences[n].p))
        found[n] = replace(differences[n], p=most, family=len(order))
    return found
