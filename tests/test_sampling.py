"""Sampling: each epoch shows every row once, in even batches, and can be taken up anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np
import pytest
import torch

from attar.tasks.sampling import BUCKET, Batches
from attar.types import Batch

LENGTHS = np.random.default_rng(0).integers(1, 200, 3000).tolist()


def make(rows: Sequence[int]) -> Batch:
    return Batch(tuple(rows), torch.tensor(rows), tuple(map(str, rows)))


def batches(count: int, size: int, seed: int = 0) -> Batches:
    return Batches(make, range(count), LENGTHS, batch_size=size, seed=seed)


def shown(stream: Batches, number: int) -> list[tuple[int, ...]]:
    return [batch.inputs for batch in islice(iter(stream), number)]


@pytest.mark.parametrize(("count", "size"), [(1, 1), (1, 8), (7, 2), (9, 8), (64, 8), (3000, 7)])
def test_every_epoch_shows_each_row_once_in_even_batches(count: int, size: int) -> None:
    stream = batches(count, size)
    for _ in range(3):
        epoch = shown(stream, len(stream))
        assert sorted(row for rows in epoch for row in rows) == list(range(count))
        sizes = {len(rows) for rows in epoch}
        assert max(sizes) <= size
        assert max(sizes) - min(sizes) <= 1


def test_only_the_given_rows_are_drawn() -> None:
    rows = [5, 17, 2, 900, 33]
    stream = Batches(make, rows, LENGTHS, batch_size=2, seed=0)
    assert sorted(row for batch in shown(stream, len(stream)) for row in batch) == sorted(rows)


def test_epochs_differ_and_so_do_seeds_but_not_two_runs() -> None:
    stream = batches(100, 8)
    first, second = shown(stream, 13), shown(stream, 13)
    assert first != second
    assert shown(batches(100, 8), 26) == first + second
    assert shown(batches(100, 8, seed=1), 13) != first


@pytest.mark.parametrize("position", [0, 1, 5, 12, 13, 14, 26, 30])
def test_a_stream_taken_up_anywhere_goes_on_as_if_never_left(position: int) -> None:
    whole = shown(batches(100, 8), 40)
    left = batches(100, 8)
    assert shown(left, position) == whole[:position]
    taken_up = batches(100, 8)
    taken_up.load_state_dict(left.state_dict())
    assert taken_up.position == position
    assert shown(taken_up, 40 - position) == whole[position:]


def test_the_position_counts_the_batch_that_is_out() -> None:
    stream = batches(100, 8)
    walk = iter(stream)
    for number in range(1, 20):
        next(walk)
        assert stream.state_dict() == {"position": number}


def test_rows_of_like_length_share_a_batch() -> None:
    def padding(epoch: list[tuple[int, ...]]) -> int:
        return sum(max(LENGTHS[row] for row in rows) - LENGTHS[r] for rows in epoch for r in rows)

    stream = batches(3000, 16)
    by_length = padding(shown(stream, len(stream)))
    shuffled = np.random.default_rng(1).permutation(3000)
    by_chance = padding([tuple(part) for part in np.array_split(shuffled, len(stream))])
    assert by_length < by_chance / 10


@pytest.mark.parametrize("count", [64, 770])
def test_rows_meet_others_in_every_epoch_however_few_they_are(count: int) -> None:
    stream = batches(count, 16)
    epochs = [shown(stream, len(stream)) for _ in range(2)]
    first, second = ({frozenset(rows) for rows in epoch} for epoch in epochs)
    assert not first & second


def test_batches_of_short_and_long_rows_are_mixed() -> None:
    stream = batches(16 * BUCKET, 16)
    means = [np.mean([LENGTHS[row] for row in rows]) for rows in shown(stream, len(stream))]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.5
