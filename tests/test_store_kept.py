"""How exactly a store keeps things, in which format, for whom, and what it holds in memory."""

from __future__ import annotations

import gc
import hashlib
import json
import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from attar.errors import StoreError
from attar.store import MANIFEST, VERSION, Kept, Store, key
from attar.store.index import ABSENT, Index
from attar.types import Knowledge

TEACHER: dict[str, Any] = {
    "weights": "5d41",
    "max_length": 64,
    "classes": ["card", "cash", "fee", "rate", "transfer"],
}
CLASSES = 5
LENGTHS = [3, 0, 5, 1]


def keys_of(count: int) -> list[str]:
    return [key(f"text {number}") for number in range(count)]


def ragged(lengths: list[int] = LENGTHS, seed: int = 0) -> Knowledge:
    """Knowledge of texts; in the padding of its features stands what nobody may see."""
    torch.manual_seed(seed)
    rows, longest = len(lengths), max(lengths)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    square = mask[:, None, :, None] * mask[:, None, None, :]
    features = {
        "encoder.3": torch.randn(rows, longest, 4).masked_fill(mask[:, :, None] == 0, math.inf),
        "attention": torch.rand(rows, 2, longest, longest).masked_fill(square == 0, math.inf),
        "pooler": torch.randn(rows, 6),
    }
    return Knowledge(3 * torch.randn(rows, CLASSES), features, mask)


def through(folder: Path, put: Knowledge, **options: Any) -> Knowledge:
    """What a store gives back after it was closed and opened again."""
    keys = keys_of(len(put.logits))
    with Store.open(folder, TEACHER, **options) as store:
        store.put(keys, put)
        buffered = store.get(keys)
    got = Store.open(folder, TEACHER, **options).get(keys)
    for one, other in zip(parts(buffered), parts(got), strict=True):
        assert torch.equal(one, other)
    return got


def parts(knowledge: Knowledge) -> list[Tensor]:
    mask = [] if knowledge.mask is None else [knowledge.mask]
    features = [feature for _, feature in sorted(knowledge.features.items())]
    return [knowledge.logits, *features, *mask]


# --- the top of the logits


def spread(logits: np.ndarray[Any, Any], top: int) -> np.ndarray[Any, Any]:
    """The reference: each row's `top` largest as they are, what is left shared evenly."""
    given = logits.astype(np.float64)
    answer = np.empty_like(given)
    for row, values in enumerate(given):
        order = np.argsort(-values)
        rest = np.exp(values[order[top:]]).sum()
        answer[row] = math.log(rest / (len(values) - top))
        answer[row, order[:top]] = values[order[:top]]
    return answer


@pytest.mark.parametrize("top", [1, 2, 4])
def test_the_top_is_kept_exactly_and_the_rest_is_spread_evenly(tmp_path: Path, top: int) -> None:
    put = ragged()
    got = through(tmp_path, put, top=top)
    np.testing.assert_allclose(got.logits, spread(put.logits.numpy(), top), rtol=1e-5, atol=1e-6)
    largest = put.logits.topk(top)
    assert torch.equal(got.logits.gather(1, largest.indices), largest.values)


def test_a_row_worked_by_hand(tmp_path: Path) -> None:
    # probabilities 1/2, 1/4, 1/8, 1/16, 1/16: the last three have 1/4 together, 1/12 each
    put = Knowledge(torch.tensor([[1 / 8, 1 / 2, 1 / 16, 1 / 4, 1 / 16]]).log())
    got = through(tmp_path, put, top=2).logits.softmax(1)
    torch.testing.assert_close(got, torch.tensor([[1 / 12, 1 / 2, 1 / 12, 1 / 4, 1 / 12]]))


def test_the_mass_of_the_rest_is_what_it_was(tmp_path: Path) -> None:
    put = Knowledge(5 * torch.randn(40, 300))
    got = through(tmp_path, put, top=32)
    largest = put.logits.topk(32).indices
    for asked in (put, got):
        asked.logits.sub_(asked.logits.logsumexp(1, keepdim=True))
    torch.testing.assert_close(got.logits.gather(1, largest), put.logits.gather(1, largest))
    torch.testing.assert_close(got.logits.exp().sum(1), torch.ones(40))


@pytest.mark.parametrize("top", [5, 9])
def test_a_top_of_all_classes_is_the_logits_themselves(tmp_path: Path, top: int) -> None:
    put = ragged()
    assert torch.equal(through(tmp_path, put, top=top).logits, put.logits)


def test_classes_that_can_not_be_stay_so(tmp_path: Path) -> None:
    put = Knowledge(torch.tensor([[0.0, -math.inf, 1.0, -math.inf, -math.inf]]))
    assert torch.equal(through(tmp_path, put, top=2).logits, put.logits)


def test_the_top_of_logits_of_each_token_is_kept_without_padding(tmp_path: Path) -> None:
    whole = ragged()
    assert whole.mask is not None
    logits = torch.randn(4, 5, 7).masked_fill(whole.mask[:, :, None] == 0, math.nan)
    got = through(tmp_path, Knowledge(logits, {}, whole.mask), top=3).logits
    real = whole.mask.bool()
    np.testing.assert_allclose(got[real], spread(logits[real].numpy(), 3), rtol=1e-5, atol=1e-6)
    assert torch.equal(got[~real], torch.zeros(11, 7))


def test_the_top_costs_as_much_as_it_keeps(tmp_path: Path) -> None:
    through(tmp_path, Knowledge(torch.randn(500, 2000)), top=8)
    with Store.open(tmp_path, TEACHER, top=8) as store:
        # values of four bytes, classes of two, the mass of the rest, key and length
        per_row = 8 * (4 + 2) + 4 + 16 + 4
        assert per_row * 500 < store.bytes < per_row * 500 + 1000


def test_a_class_beyond_what_two_bytes_count_is_kept(tmp_path: Path) -> None:
    logits = torch.zeros(1, 2**15 + 10)
    logits[0, -1] = 9.0
    assert int(through(tmp_path, Knowledge(logits), top=1).logits.argmax()) == 2**15 + 9


# --- precision


@pytest.mark.parametrize("kept", ["fp32", "fp16", "bf16"])
def test_a_float_errs_by_half_of_its_last_bit(tmp_path: Path, kept: str) -> None:
    put, bits = ragged(), {"fp32": 40, "fp16": 11, "bf16": 8}[kept]
    got = through(tmp_path, put, features=kept, logits=kept)
    assert put.mask is not None
    torch.testing.assert_close(got.logits, put.logits, rtol=2.0**-bits, atol=6e-8)
    real = put.mask.bool()
    for path, at in (("encoder.3", real), ("pooler", slice(None))):
        one, other = got.features[path][at], put.features[path][at]
        torch.testing.assert_close(one, other, rtol=2.0**-bits, atol=6e-8)
        assert torch.equal(one, other) is (kept == "fp32")
    assert not got.features["encoder.3"][~real].any()


def test_a_code_of_eight_bits_errs_by_half_a_step_of_its_vectors_scale(tmp_path: Path) -> None:
    put = ragged()
    got = through(tmp_path, put, features="int8")
    assert torch.equal(got.logits, put.logits)
    for row, length in enumerate(LENGTHS):
        for path, own in (
            ("pooler", np.s_[row]),
            ("encoder.3", np.s_[row, :length]),
            ("attention", np.s_[row, :, :length, :length]),
        ):
            one, other = got.features[path][own], put.features[path][own]
            step = other.abs().numpy().max(-1, keepdims=True, initial=0) / 127
            assert (abs(one - other).numpy() <= step * (0.5 + 1e-5)).all(), path
            assert not one.numel() or path == "attention" or bool((one != other).any())
            assert not one.numel() or torch.equal(one.abs().argmax(-1), other.abs().argmax(-1))


def test_codes_worked_by_hand(tmp_path: Path) -> None:
    # scales 2 and 0.5: a step of the code each
    put = Knowledge(
        torch.zeros(2, 2), {"a": torch.tensor([[254.0, -3.1, 0.9], [63.5, 0.3, -63.5]])}
    )
    got = through(tmp_path, put, features="int8").features["a"]
    torch.testing.assert_close(got, torch.tensor([[254.0, -4.0, 0.0], [63.5, 0.5, -63.5]]))
    (path,) = tmp_path.glob("shard-*")
    held = load_file(path)
    assert held["feature:a"].tolist() == [[127, -2, 0], [127, 1, -127]]
    assert held["scale:a"].tolist() == [2.0, 0.5]


def test_vectors_of_zeros_and_of_the_least_floats_keep_their_sense(tmp_path: Path) -> None:
    put = Knowledge(
        torch.zeros(3, 2), {"a": torch.tensor([[0.0, 0.0], [1e-44, -1e-44], [3e38, 1]])}
    )
    got = through(tmp_path, put, features="int8").features["a"]
    assert got.isfinite().all()
    assert torch.equal(got[0], torch.zeros(2))
    assert got[1].abs().max() < 1e-37
    torch.testing.assert_close(got[2], torch.tensor([3e38, 0.0]))


def test_a_feature_of_one_number_a_row_can_be_coded(tmp_path: Path) -> None:
    put = Knowledge(torch.zeros(3, 2), {"a": torch.tensor([1.5, -2.0, 0.0])})
    got = through(tmp_path, put, features="int8")
    torch.testing.assert_close(got.features["a"], put.features["a"])


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_has_no_code_is_refused(tmp_path: Path, value: float) -> None:
    put = Knowledge(torch.zeros(1, 2), {"a": torch.tensor([[1.0, value]])})
    with pytest.raises(StoreError, match=r"feature:a .* not finite.* keep features in fp16"):
        Store.open(tmp_path, TEACHER, features="int8").put(keys_of(1), put)


def test_fewer_bytes_are_fewer_bytes(tmp_path: Path) -> None:
    put, sizes = Knowledge(torch.randn(100, 3), {"a": torch.randn(100, 256)}), []
    for kept in ("int8", "fp16", "fp32"):
        through(tmp_path / kept, put, features=kept)
        sizes.append(Store.open(tmp_path / kept, TEACHER, features=kept).bytes)  # type: ignore[arg-type]
    assert sizes[1] - sizes[0] == pytest.approx(100 * (256 - 4), abs=100)
    assert sizes[2] - sizes[1] == pytest.approx(100 * 512, abs=100)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"features": "fp8"}, "features can be kept in fp32, fp16, bf16, int8, not in 'fp8'"),
        ({"logits": "fp8"}, "logits can be kept in fp32, fp16, bf16, int8, not in 'fp8'"),
        ({"logits": "int8"}, "those of a few classes: say how many .`top`, `draws`., or keep them"),
        ({"draws": 0}, "draws is how many classes are drawn: 1 or more, not 0"),
        ({"draws": 4, "logits": "bf16"}, "draws are kept in eight bits, not in bf16: leave it out"),
        ({"top": 0}, "top is how many classes are kept: 1 or more, not 0"),
    ],
)
def test_what_can_not_be_kept_is_said(
    tmp_path: Path, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(StoreError, match=sentence):
        Store.open(tmp_path, TEACHER, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"top": 2}, "kept.top is 3 there and 2 here"),
        ({"top": 3, "features": "fp16"}, "kept.features is 'int8' there and 'fp16' here"),
        ({"top": 3, "logits": "bf16"}, "kept.logits is 'fp32' there and 'bf16' here"),
    ],
)
def test_a_store_is_not_kept_in_two_ways(
    tmp_path: Path, options: dict[str, Any], sentence: str
) -> None:
    through(tmp_path, ragged(), top=3, features="int8")
    with pytest.raises(StoreError, match=sentence):
        Store.open(tmp_path, TEACHER, **{"features": "int8", **options})
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(StoreError, match=r"keeps it otherwise than this store does: move it"):
        Store.open(tmp_path, TEACHER, **{"features": "int8", **options})


@pytest.mark.parametrize("options", [{}, {"top": 2, "features": "int8"}])
def test_a_flipped_byte_is_found_before_training_however_things_are_kept(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    through(tmp_path, ragged(), **options)
    (path,) = tmp_path.glob("shard-*")
    whole = path.read_bytes()
    for position in range(0, len(whole), 3):
        raw = bytearray(whole)
        raw[position] ^= 0x10
        path.write_bytes(raw)
        with pytest.raises(StoreError, match="is not what was written"):
            Store.found(tmp_path).get(keys_of(4)[:1])


# --- alone


def test_a_store_can_be_read_without_its_teacher(tmp_path: Path) -> None:
    put = ragged()
    whole = through(tmp_path, put, top=2, features="int8")
    store = Store.found(tmp_path, {"classes": tuple(TEACHER["classes"]), "max_length": 64})
    assert store.kept == Kept("fp32", 2, "int8")
    for one, other in zip(parts(store.get(keys_of(4))), parts(whole), strict=True):
        assert torch.equal(one, other)
    assert Store.found(tmp_path, {"colour": "not told, not compared"}).info()["rows"] == 4


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"weights": "6e52"}, "teacher.weights is '5d41' there and '6e52' here"),
        ({"max_length": 128}, "teacher.max_length is 64 there and 128 here"),
        ({"classes": ["a"]}, "teacher.classes is ['card', 'cash', 'fee', 'rate', 'transfer'] the"),
    ],
)
def test_another_teacher_preprocessing_or_label_set_is_refused_by_both_names(
    tmp_path: Path, facts: dict[str, Any], sentence: str
) -> None:
    through(tmp_path, ragged())
    with pytest.raises(StoreError) as refusal:
        Store.found(tmp_path, facts)
    assert sentence in str(refusal.value)
    assert str(tmp_path) in str(refusal.value)


def test_where_no_store_is_those_below_are_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is no store of knowledge: `attar teach` makes one"):
        Store.found(tmp_path)
    assert not list(tmp_path.iterdir())
    for name in ("one", "two"):
        through(tmp_path / name, ragged())
    with pytest.raises(StoreError, match=r"no store of knowledge: name one of .*one, .*two"):
        Store.found(tmp_path)


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_readers_of_any_world_size_read_the_same_rows(tmp_path: Path, world: int) -> None:
    put, keys = Knowledge(torch.randn(50, CLASSES), {"a": torch.randn(50, 3)}), keys_of(50)
    with Store.open(tmp_path, TEACHER, features="fp32", shard_rows=8) as store:
        store.put(keys, put)
    read = torch.full((50, CLASSES), math.nan)
    for rank in range(world):
        reader = Store.found(tmp_path)
        for start in range(rank, 50, 4 * world):
            own = list(range(start, min(50, start + 4 * world), world))
            read[own] = reader.get([keys[row] for row in own]).logits
    assert torch.equal(read, put.logits)


# --- the format


def sealed(facts: dict[str, Any]) -> bytes:
    """A manifest as `docs/store.md` tells it."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return json.dumps({**facts, "sha256": digest}, indent=2, sort_keys=True).encode() + b"\n"


def first_format(folder: Path, dtype: torch.dtype = torch.float16) -> tuple[list[str], Knowledge]:
    """A folder of version 1, written by the page that describes it."""
    keys, logits, feature = keys_of(3), torch.randn(3, 5), torch.randn(3, 4).half().float()
    raw = b"".join(map(bytes.fromhex, keys))
    form = {"keys": [16], "logits": [5], "feature:a": [4]}
    teacher = hashlib.sha256(json.dumps(TEACHER, sort_keys=True).encode()).hexdigest()
    told = json.dumps([teacher, form], sort_keys=True).encode()
    note = {"teacher": teacher, "form": form, "seal": hashlib.sha256(told + raw).hexdigest()}
    tensors = {
        "keys": torch.tensor(list(raw), dtype=torch.uint8).view(3, 16),
        "lengths": torch.zeros(3, dtype=torch.int32),
        "logits": logits,
        "feature:a": feature.to(dtype),
    }
    data = save(tensors, {"attar": json.dumps(note, sort_keys=True)})
    folder.mkdir()
    name = f"shard-{hashlib.sha256(data).hexdigest()[:32]}.safetensors"
    (folder / name).write_bytes(data)
    facts = {"format": "attar knowledge store", "version": 1, "created_by": "attar 0.1.0"}
    (folder / MANIFEST).write_bytes(sealed({**facts, "teacher": TEACHER}))
    return keys, Knowledge(logits, {"a": feature})


def test_a_folder_of_the_first_format_is_read_and_written_on(tmp_path: Path) -> None:
    keys, knowledge = first_format(tmp_path / "old")
    more = Knowledge(torch.randn(1, 5), {"a": torch.zeros(1, 4)})
    with Store.open(tmp_path / "old", TEACHER) as store:
        assert store.missing(keys) == []
        store.put([key("new")], more)
    store = Store.found(tmp_path / "old")
    assert store.verify() == 2
    assert torch.equal(store.get(keys).features["a"], knowledge.features["a"])
    assert torch.equal(
        store.get([key("new"), keys[1]]).logits, torch.stack([more.logits[0], knowledge.logits[1]])
    )
    for path in (tmp_path / "old").glob("shard-*"):
        assert load_file(path).keys() == {"keys", "lengths", "logits", "feature:a"}
    with pytest.raises(StoreError, match=r"kept.features is 'fp16' there and 'int8' here"):
        Store.open(tmp_path / "old", TEACHER, features="int8")


def test_what_the_first_format_kept_otherwise_is_refused(tmp_path: Path) -> None:
    keys, _ = first_format(tmp_path / "old", torch.float32)
    with pytest.raises(StoreError, match="keeps it otherwise"):
        Store.open(tmp_path / "old", TEACHER).get(keys)


@pytest.mark.parametrize("change", [{"version": VERSION + 1}, {"format": "a tale"}])
def test_a_newer_or_unknown_format_is_refused_in_a_sentence(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    through(tmp_path, ragged())
    facts = json.loads((tmp_path / MANIFEST).read_bytes())
    del facts["sha256"]
    (tmp_path / MANIFEST).write_bytes(sealed({**facts, "new": [1], **change}))
    for opened in (lambda: Store.open(tmp_path, TEACHER), lambda: Store.found(tmp_path)):
        with pytest.raises(StoreError, match=r"reads .* up to format 3: install a newer attar"):
            opened()


def test_a_format_that_is_too_old_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_format(tmp_path / "old")
    monkeypatch.setattr("attar.store.manifest.OLDEST", 2)
    with pytest.raises(StoreError, match=r"format 1, and this attar reads formats 2 to 3"):
        Store.open(tmp_path / "old", TEACHER)


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parent.parent / "docs" / "store.md").read_text("utf-8")
    code = page.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(code, "store.md", "exec"), names)
    assert names["knowledge"].logits.shape == (2, 3)
    assert len(Store.found(tmp_path / "knowledge")) == 2
    assert f"## The format, version {VERSION}\n" in page


# --- memory


def held(work: Callable[[], Any]) -> int:
    """Bytes that are still held after some work, as long as what it gives is kept."""
    gc.collect()
    tracemalloc.start()
    kept = work()
    gc.collect()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del kept
    return size


def test_reading_ten_times_the_data_holds_the_same_memory_but_for_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attar.store.folder.MAPPED", 2)
    counts = (2_000, 20_000)
    for count in counts:
        with Store.open(tmp_path / str(count), TEACHER, shard_rows=500) as store:
            put = Knowledge(torch.randn(count, 20), {"a": torch.randn(count, 30)})
            store.put(keys_of(count), put)

    keys = {count: keys_of(count) for count in counts}

    def epoch(count: int) -> Store:
        store = Store.found(tmp_path / str(count))
        for start in range(0, count, 32):
            store.get(keys[count][start : start + 32])
        return store

    few, many = (held(lambda count=count: epoch(count)) for count in counts)  # type: ignore[misc]
    # 24 bytes a key, and what is known of each shard of 500 rows; a row itself has 140 bytes.
    assert many - few < 18_000 * 32


def test_no_more_shards_are_mapped_than_agreed_however_many_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attar.store.folder.MAPPED", 3)
    keys, put = keys_of(60), Knowledge(torch.randn(60, CLASSES))
    with Store.open(tmp_path, TEACHER, shard_rows=5) as store:
        store.put(keys, put)
    store = Store.found(tmp_path)
    for order in (list(range(60)), torch.randperm(60).tolist()):
        for start in range(0, 60, 4):
            rows = order[start : start + 4]
            assert torch.equal(store.get([keys[row] for row in rows]).logits, put.logits[rows])
            lines = Path("/proc/self/maps").read_text().splitlines()
            assert len({line.split()[-1] for line in lines if str(tmp_path) in line}) <= 3


def test_a_shard_that_was_let_go_is_proven_again_only_if_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = keys_of(4)
    with Store.open(tmp_path, TEACHER, shard_rows=2) as store:
        store.put(keys, Knowledge(torch.randn(4, CLASSES)))
    monkeypatch.setattr("attar.store.folder.MAPPED", 1)
    store = Store.found(tmp_path)
    hashed: list[str] = []
    proof = hashlib.file_digest
    monkeypatch.setattr(
        hashlib, "file_digest", lambda file, kind: hashed.append(file.name) or proof(file, kind)
    )
    for _ in range(3):
        store.get(keys[:2])
        store.get(keys[2:])
    assert len(hashed) == 2
    path = Path(hashed[0])  # that of the first two keys, which is let go now
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(StoreError, match=f"{path.name} is not what was written"):
        store.get(keys[:2])


def test_an_index_finds_what_a_dictionary_finds_in_24_bytes_a_key() -> None:
    digests = np.random.default_rng(0).integers(0, 3, (40_000, 8), dtype=np.uint8)
    digests[::2] = np.random.default_rng(1).integers(0, 256, (20_000, 8), dtype=np.uint8)
    rows = [bytes(each) for each in digests]
    index, known = Index(), dict[bytes, int]()
    for shard in range(4):
        own = rows[shard * 5_000 : (shard + 1) * 5_000]
        index.add(np.frombuffer(b"".join(own), "S8"), shard)
        for position, digest in enumerate(own):
            known.setdefault(digest, (shard << 32) + position)
        assert len(index) == len(known)
    asked = [*rows, b"", b"\0", b"\0" * 8, rows[0] + b"\0", rows[0][:7]]
    wanted = [known.get(digest, ABSENT) for digest in asked]
    assert index.find(asked).tolist() == wanted
    assert index.find([]).tolist() == Index().find([]).tolist() == []
    assert Index().find([b"a"]).tolist() == [ABSENT]

    def filled() -> Index:
        index = Index()
        index.add(np.arange(100_000).astype(">u8").view("S8").copy(), 0)
        len(index)
        return index

    assert held(filled) < 100_000 * (8 + 8) * 1.01 + 10_000
