"""Of a large vocabulary a few classes are kept: in few bytes, without bias, in any order alike."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attar.distill import Objective, term
from attar.errors import RecipeError, StoreError
from attar.heads import Headed, Sparse, in_chunks
from attar.losses import response
from attar.store import MANIFEST, Store, key
from attar.store.bits import Reader, Writer, gaps, ids_of, shifts
from attar.store.drawing import Few
from attar.types import Batch, Knowledge, Lesson

TEACHER: dict[str, Any] = {"weights": "5d41", "tokenizer": "9c", "real_tokens": 300}
CLASSES, LENGTHS = 311, [5, 0, 9, 1]
KINDS = [{"draws": 20}, {"top": 6, "logits": "int8"}, {"top": 6, "draws": 5}]
kinds = pytest.mark.parametrize("options", KINDS, ids=["draws", "top", "hybrid"])


def zipf(*shape: int, classes: int = CLASSES, seed: int = 0, slope: float = 1.1) -> Tensor:
    """Logits as unsure as a language model's, with the likely classes among the low ids."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(*shape, classes, generator=generator)
    return 2.0 * noise - slope * torch.arange(1, classes + 1).log()


def keys_of(count: int) -> list[str]:
    return [key(f"text {number}") for number in range(count)]


def texts(seed: int = 0) -> Knowledge:
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    return Knowledge(zipf(*mask.shape, seed=seed), mask=mask)


def through(folder: Path, put: Knowledge, **options: Any) -> Sparse:
    keys = keys_of(len(put.logits))
    with Store.open(folder, TEACHER, **options) as store:
        store.put(keys, put)
    got = Store.found(folder).get(keys).logits
    assert isinstance(got, Sparse)
    return got


def estimated(few: Sparse) -> Tensor:
    ids, above, floor = few.estimate()
    whole = floor[..., None].repeat(*(1 for _ in floor.shape), few.classes)
    return whole.scatter_add(-1, ids, above)


# --- bits


@pytest.mark.parametrize("seed", range(5))
def test_numbers_of_any_width_come_back(seed: int) -> None:
    random = np.random.default_rng(seed)
    widths = random.integers(0, 25, 200)
    numbers = random.integers(0, 1 << 24, 200) & ((1 << widths) - 1)
    flags, steps = random.integers(0, 2, 37), random.integers(0, 40, 50)
    writer = Writer()
    writer.put(numbers, widths)
    writer.put(flags, 1)
    writer.put(numbers & 31, 5)
    writer.unary(steps)
    reader = Reader(writer.bytes())
    assert reader.get(200, widths).tolist() == numbers.tolist()
    assert reader.flags(37).tolist() == flags.tolist()
    assert reader.get(200, 5).tolist() == (numbers & 31).tolist()
    assert reader.unary(50).tolist() == steps.tolist()


def test_rising_ids_come_back_from_their_gaps_whatever_the_groups() -> None:
    groups = [[3, 4, 900], [], [0], [0, 1, 2, (1 << 24) - 1], []]
    counts, ids = (
        np.array([len(group) for group in groups]),
        np.array([each for group in groups for each in group]),
    )
    left_out = gaps(ids, counts)
    assert left_out.tolist() == [3, 0, 895, 0, 0, 0, 0, (1 << 24) - 4]
    assert ids_of(left_out, counts).tolist() == ids.tolist()
    costs = [
        sum((g >> s) + 1 + s for g in left_out[:3]) for s in range(25)
    ]  # by Rice's own definition
    assert costs[shifts(left_out, counts)[0]] == min(costs)


# --- what is kept


@kinds
def test_the_likeliest_are_kept_exactly_those_and_near_what_they_are(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    put = texts()
    got, real = through(tmp_path, put, **options), put.mask.bool()  # type: ignore[union-attr]
    assert got.shape == put.logits.shape
    p = put.logits.softmax(-1)[real]
    few = got[real]
    assert few.head == options.get("top", 0)
    wanted = p.topk(few.head).indices.sort(-1).values
    assert torch.equal(few.ids[:, : few.head], wanted)
    known = few.weights[:, : few.head]
    torch.testing.assert_close(known, p.gather(-1, wanted), rtol=0.12, atol=1e-6)
    rest = 1 - p.gather(-1, wanted).sum(-1)
    torch.testing.assert_close(few.rest, rest, rtol=0.12, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{"draws": 20}, {"top": 6, "draws": 5}], ids=["draws", "hybrid"]
)
def test_on_average_what_is_kept_is_the_truth(
    options: dict[str, Any],
) -> None:
    tokens, few = 4000, Few(options.get("top", 0), options["draws"], CLASSES)
    logits = zipf(1)
    p = logits.double().softmax(-1)[0].numpy()
    raw = few.packed(logits.expand(tokens, -1), bytes.fromhex(key("a text")))
    ids, weights, _ = few.unpacked(raw, tokens)
    found = np.zeros((tokens, CLASSES))
    np.add.at(found, (np.arange(tokens)[:, None], ids), weights)
    mean, deviation = found.mean(0), found.std(0) / tokens**0.5
    often = ((found > 0).sum(0) > 30) & (deviation > 1e-9)
    assert often.sum() > 50
    score = (mean - p)[often] / deviation[often]
    assert np.abs(score).max() < 5
    assert np.abs(score).mean() < 1.0  # of a standard normal it is 0.8
    assert abs(mean[~often].sum() - p[~often].sum()) < 2e-3
    assert abs(mean.sum() - 1) < 2e-3


def test_even_steps_miss_no_class_that_is_due_and_are_nearer_than_chance() -> None:
    logits, draws = zipf(200), 20
    p = logits.softmax(-1)
    ids, weights, _ = Few(0, draws, CLASSES).unpacked(
        Few(0, draws, CLASSES).packed(logits, b"\7" * 16), 200
    )
    found = torch.zeros(200, CLASSES).scatter_add_(
        -1, torch.from_numpy(ids), torch.from_numpy(weights)
    )
    times = (found * draws).round()
    assert torch.equal(times.sum(-1), torch.full((200,), float(draws)))
    assert ((times - p * draws).abs() < 1).all()
    chance = torch.zeros_like(p).scatter_add_(
        -1, p.multinomial(draws, replacement=True), torch.full((200, draws), 1 / draws)
    )
    assert (found - p).square().sum() < 0.5 * (chance - p).square().sum()


@kinds
def test_a_row_is_the_same_in_any_order_batch_padding_or_device_of_other_rows(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    """Where a peer's cache goes by the step, shuffled data get another row's knowledge."""
    put = texts()
    keys, whole = keys_of(4), through(tmp_path / "whole", put, **options)
    with Store.open(tmp_path / "one", TEACHER, **options) as store:
        for row in (2, 0, 3, 1):  # each alone, and padded no further than itself
            own = max(1, LENGTHS[row])
            alone = Knowledge(put.logits[[row], :own], mask=put.mask[[row], :own])  # type: ignore[index]
            store.put([keys[row]], alone)
    other = Store.found(tmp_path / "one").get(keys).logits
    for number, length in enumerate(LENGTHS):
        for a, b in zip(
            (whole.ids, whole.weights, whole.rest),
            (other.ids, other.weights, other.rest),
            strict=True,
        ):
            assert torch.equal(a[number, :length], b[number, :length])


def test_chance_depends_on_the_key_and_on_nothing_else() -> None:
    logits, few = zipf(6), Few(4, 6, CLASSES)
    torch.manual_seed(1)
    one = few.packed(logits, b"\1" * 16)
    torch.manual_seed(2)
    assert np.array_equal(one, few.packed(logits, b"\1" * 16))
    assert not np.array_equal(one, few.packed(logits, b"\2" * 16))


def test_two_numbers_of_chance_are_those_of_every_machine() -> None:
    """By Philox 4x64 of Salmon et al. (2011): the raw stream is a promise of NumPy's."""
    raw = np.random.Philox(key=int.from_bytes(b"\1" * 16, "little")).random_raw(1)[0]
    u = float(raw >> np.uint64(11)) * 2.0**-53
    logits = torch.zeros(1, 10)
    ids, weights, rest = Few(0, 1, 10).unpacked(Few(0, 1, 10).packed(logits, b"\1" * 16), 1)
    assert ids.tolist() == [[int(10 * u)]]
    assert weights.tolist() == [[1.0]]
    assert rest.tolist() == [1.0]


@pytest.mark.parametrize("world", [1, 2, 3])
@kinds
def test_readers_of_any_world_size_read_the_same(
    tmp_path: Path, options: dict[str, Any], world: int
) -> None:
    put = Knowledge(zipf(12, 3))
    whole, keys = through(tmp_path, put, **options), keys_of(12)
    for rank in range(world):
        own = list(range(rank, 12, world))
        got = Store.found(tmp_path).get([keys[row] for row in own]).logits
        assert torch.equal(estimated(got), estimated(whole[own]))


@pytest.mark.parametrize("options", [{"top": 4, "draws": 3}, {"draws": 7}], ids=["hybrid", "draws"])
def test_a_vocabulary_may_have_sixteen_million_classes(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    logits = torch.full((1, 1 << 24), -20.0)
    last = (1 << 24) - 1
    logits[0, [5, 9_999_999, last]] = torch.tensor([2.0, 3.0, 4.0])
    got = through(tmp_path, Knowledge(logits), **options)
    assert {5, 9_999_999, last} <= set(got.ids[0].tolist()) or "top" not in options
    assert last in got.ids[0].tolist()
    assert got.shape == (1, 1 << 24)


@kinds
def test_rows_without_a_length_or_a_mask_are_kept_too(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    for name, logits in {"rows": zipf(5), "texts": zipf(5, 3)}.items():
        got = through(tmp_path / name, Knowledge(logits), **options)
        assert got.shape == logits.shape
        p = logits.softmax(-1)
        assert (estimated(got) - p).abs().max() < 0.2
        assert ((estimated(got) - p).abs().sum(-1) < 1.2).all()


def test_where_there_are_no_more_classes_than_the_top_all_are_known(tmp_path: Path) -> None:
    logits = zipf(40, classes=4, slope=0)
    got = through(tmp_path, Knowledge(logits), top=9, draws=2)
    torch.testing.assert_close(got.dense().softmax(-1), logits.softmax(-1), rtol=0.1, atol=0.02)


@kinds
def test_logits_that_are_never_whole_are_kept_as_those_that_are(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    put = texts()
    states, weight = torch.randn(4, 9, 6), torch.randn(CLASSES, 6)
    head = Headed(states, weight)
    lean = through(tmp_path / "lean", Knowledge(head, mask=put.mask), **options)
    whole = through(tmp_path / "whole", Knowledge(head.dense(), mask=put.mask), **options)
    torch.testing.assert_close(estimated(lean), estimated(whole), atol=0.06, rtol=0)


def test_what_somebody_tells_of_a_few_classes_is_kept_as_it_is(tmp_path: Path) -> None:
    mask = texts().mask
    assert mask is not None
    p, ids = zipf(*mask.shape).softmax(-1).topk(6)
    order = torch.rand(p.shape).argsort(-1)
    ids, p = ids.gather(-1, order), p.gather(-1, order)
    told = Sparse(ids, p, 1 - p.sum(-1), 6, CLASSES)
    got = through(tmp_path, Knowledge(told, mask=mask), top=6, logits="int8")
    real = mask.bool()
    assert torch.equal(got.ids[real], ids.sort(-1).values[real])
    near = partial(torch.testing.assert_close, rtol=0.08, atol=1e-4)
    near(estimated(got)[real], estimated(told)[real])
    near(got.rest[real], told.rest[real])
    cut = through(tmp_path / "less", Knowledge(told, mask=mask), top=3, logits="int8")
    best = p.topk(3)
    assert torch.equal(cut.ids[real], ids.gather(-1, best.indices).sort(-1).values[real])


@kinds
def test_a_mask_of_tokens_does_not_cut_logits_that_have_none(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    mask = (torch.arange(5) < torch.tensor([3, 0, 5])[:, None]).long()
    put = Knowledge(zipf(3), {"a": torch.randn(3, 5, 4)}, mask)
    got = through(tmp_path / "few", put, **options)
    assert got.shape == (3, CLASSES)
    assert torch.equal(
        estimated(got), estimated(through(tmp_path / "no", Knowledge(put.logits), **options))
    )


@kinds
def test_a_flipped_byte_is_found_before_training(tmp_path: Path, options: dict[str, Any]) -> None:
    through(tmp_path, texts(), **options)
    (path,) = tmp_path.glob("shard-*")
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        raw = bytearray(whole)
        raw[position] ^= 0x10
        path.write_bytes(raw)
        with pytest.raises(StoreError, match="is not what was written"):
            Store.found(tmp_path).get(keys_of(1))


# --- how few bytes, and how good


@pytest.mark.parametrize(
    ("options", "most"),
    [({"draws": 40}, 40), ({"top": 16, "draws": 24}, 80), ({"top": 32, "logits": "int8"}, 80)],
)
@pytest.mark.parametrize("classes", [49_152, 128_256])
def test_a_token_costs_few_bytes(
    tmp_path: Path, options: dict[str, Any], most: int, classes: int
) -> None:
    with Store.open(tmp_path, TEACHER, **options) as store:
        store.put(keys_of(1), Knowledge(zipf(1, 64, classes=classes, slope=1.35)))
        store.flush()
        size = sum(path.stat().st_size for path in tmp_path.glob("shard-*"))
        told = store.info()["quality"]
    assert told["bytes_per_token"] <= most
    assert size / 64 == pytest.approx(told["bytes_per_token"], abs=20)  # the header of one shard


def test_the_manifest_says_how_good_what_is_kept_is(tmp_path: Path) -> None:
    put = Knowledge(zipf(1, 50))
    got = through(tmp_path, put, top=6, draws=5)
    told = json.loads((tmp_path / MANIFEST).read_bytes())["quality"]
    assert told == Store.found(tmp_path).info()["quality"]
    kept, p = estimated(got)[0].double().numpy(), put.logits[0].double().softmax(-1).numpy()
    own = [
        row[row > 0] @ np.log(row[row > 0] / true[row > 0])
        for row, true in zip(kept, p, strict=True)
    ]
    assert told["kl"] == pytest.approx(np.mean(own), rel=1e-4)
    assert told["mass"] == pytest.approx(1 - float(got.rest.mean()), rel=1e-5)
    q = (put.logits[0].double() / 2).softmax(-1).numpy()
    one, other = q - p, q * kept.sum(1, keepdims=True) - kept
    cosine = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    assert told["cosine"] == pytest.approx(cosine.mean(), rel=1e-4)
    assert told["tokens"] == 50
    assert 0.7 < told["cosine"] < 1
    assert Store.open(tmp_path, TEACHER, top=6, draws=5).verify() == 1


@kinds
def test_a_folder_says_the_oldest_version_that_can_read_it(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    through(tmp_path / "few", Knowledge(zipf(2)), **options)
    Store.open(tmp_path / "whole", TEACHER, top=3)
    assert Store.found(tmp_path / "few").manifest["version"] == 3
    whole = Store.found(tmp_path / "whole").manifest
    assert whole["version"] == 2
    assert whole["kept"] == {"logits": "fp32", "top": 3, "features": "fp16"}
    with pytest.raises(StoreError, match=r"kept\.\w+ is .* there and .* here"):
        Store.open(tmp_path / "few", TEACHER)


# --- and taught with


def taught(loss: Any, few: Sparse, student: Tensor) -> Tensor:
    keys = tuple(map(str, range(len(student))))
    objective = Objective([term(loss)], Knowledge(student), Knowledge(few))
    batch = Batch(keys, torch.zeros(len(student)).long(), keys)
    value: Tensor = objective(Knowledge(student), Lesson(batch, Knowledge(few)))[0]
    return value


@pytest.mark.parametrize(
    "loss",
    [response.reverse_kl, response.jsd, response.adaptive_kl, partial(response.kl, temperature=2)],
    ids=["reverse", "jsd", "adaptive", "warm"],
)
def test_every_divergence_reads_the_head_and_only_draws_are_refused(
    tmp_path: Path, loss: Any
) -> None:
    logits, student = zipf(30), zipf(30, seed=1)
    hybrid = through(tmp_path / "hybrid", Knowledge(logits), top=24, draws=5)
    near = taught(loss, hybrid, student)
    torch.testing.assert_close(near, loss(student, hybrid.dense()), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(near, loss(student, logits), rtol=0.25, atol=0.02)
    draws = through(tmp_path / "draws", Knowledge(logits), draws=30)
    with pytest.raises(RecipeError, match="only draws are kept"):
        taught(loss, draws, student)


def test_the_gradient_of_what_is_kept_points_where_that_of_all_points(tmp_path: Path) -> None:
    """Draws and the hybrid average to the dense gradient; a top that is renormalised does not."""
    tokens, student = 3000, zipf(1, seed=3)
    put = Knowledge(zipf(1).expand(1, tokens, -1))
    wanted = student.softmax(-1) - put.logits[0, :1].softmax(-1)

    def apart(few: Sparse) -> float:
        shown = student.repeat(tokens, 1).requires_grad_()
        in_chunks(response.kl, {"student": shown, "teacher": few}).backward()
        return float((shown.grad.sum(0) - wanted).norm())  # type: ignore[union-attr]

    p = put.logits[0].softmax(-1).topk(6)
    sure = p.values / p.values.sum(-1, keepdim=True)
    cut = Sparse(p.indices, sure, torch.full((tokens,), 1e-9), 6, CLASSES)
    assert apart(through(tmp_path / "draws", put, draws=20)[0]) < 0.01
    assert apart(through(tmp_path / "hybrid", put, top=6, draws=5)[0]) < 0.01
    assert apart(cut) > 0.05
