"""What a store promises: content in, the same content out, whatever happens in between."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from attar.errors import StoreError
from attar.store import MANIFEST, STALE, Store, fingerprint, key
from attar.store.shards import Shard
from attar.types import Knowledge

TEACHER = {
    "weights": "5d41",
    "preprocessing": {"max_length": 64, "lowercase": True},
    "dtype": "float32",
    "classes": ["card", "cash", "transfer"],
    "layers": ["encoder.3", "pooler"],
}


def keys_of(count: int, prefix: str = "text") -> list[str]:
    return [key(f"{prefix} {number}") for number in range(count)]


def pooled(rows: int, classes: int = 3, width: int = 4) -> Knowledge:
    return Knowledge(torch.randn(rows, classes), {"pooler": torch.randn(rows, width)})


def ragged(lengths: list[int], heads: int = 2, width: int = 4) -> Knowledge:
    """Knowledge of texts of these lengths, zero where it is padding."""
    longest = max(lengths)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    square = mask[:, None, :, None] * mask[:, None, None, :]
    features = {
        "encoder.3": torch.randn(len(lengths), longest, width) * mask[:, :, None],
        "encoder.3.attention": torch.rand(len(lengths), heads, longest, longest) * square,
        "pooler": torch.randn(len(lengths), width),
    }
    return Knowledge(torch.randn(len(lengths), 3), features, mask)


def as_stored(tensor: Tensor) -> Tensor:
    """What is left of a feature after NumPy rounded it to sixteen bits."""
    return torch.from_numpy(tensor.numpy().astype(np.float16).astype(np.float32))


def assert_same(got: Knowledge, put: Knowledge) -> None:
    assert torch.equal(got.logits, put.logits)
    assert got.features.keys() == put.features.keys()
    for path, feature in put.features.items():
        assert got.features[path].dtype == torch.float32
        assert torch.equal(got.features[path], as_stored(feature)), path
    if put.mask is None:
        assert got.mask is None
    else:
        assert got.mask is not None
        assert torch.equal(got.mask, put.mask)


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*.safetensors"))


def filled(folder: Path, rows: int = 8, **options: Any) -> tuple[list[str], Knowledge]:
    keys, knowledge = keys_of(rows), pooled(rows)
    with Store.open(folder, TEACHER, **options) as store:
        store.put(keys, knowledge)
    return keys, knowledge


def flip(path: Path, position: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[position] ^= 1
    path.write_bytes(raw)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A disk on which no file grows beyond a size; a write beyond it fails half way."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# what goes in comes out


@pytest.mark.parametrize("seed", range(12))
def test_what_was_put_is_what_one_gets_for_any_shape(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    torch.manual_seed(seed)
    lengths = [dice.randint(0, 7) for _ in range(dice.randint(1, 20))] + [dice.randint(1, 7)]
    put = ragged(lengths, heads=dice.randint(1, 3), width=dice.randint(1, 9))
    if dice.random() < 0.3:
        shapes = [dice.randint(1, 5) for _ in range(dice.randint(1, 3))]
        put = Knowledge(put.logits, {"map": torch.randn(len(lengths), *shapes)})
    keys = keys_of(len(lengths))
    with Store.open(tmp_path, TEACHER, shard_rows=dice.randint(1, 9)) as store:
        store.put(keys, put)
        assert_same(store.get(keys), put)
    assert_same(Store.open(tmp_path, TEACHER).get(keys), put)


def test_the_order_in_which_rows_were_put_does_not_matter(tmp_path: Path) -> None:
    keys, knowledge = keys_of(20), pooled(20)
    shuffled = torch.randperm(20).tolist()
    for folder, order in (("straight", list(range(20))), ("shuffled", shuffled)):
        with Store.open(tmp_path / folder, TEACHER, shard_rows=6) as store:
            for row in order:
                store.put([keys[row]], knowledge.rows(row, row + 1))
    asked = [keys[row] for row in reversed(range(20))]
    one, other = (Store.open(tmp_path / name, TEACHER) for name in ("straight", "shuffled"))
    assert torch.equal(one.get(asked).logits, knowledge.logits.flip(0))
    assert_same(other.get(keys), knowledge)


def test_rows_come_in_the_order_asked_and_as_often_as_asked(tmp_path: Path) -> None:
    keys, knowledge = filled(tmp_path, shard_rows=3)
    rows = [5, 0, 7, 5, 5]
    got = Store.open(tmp_path, TEACHER).get([keys[row] for row in rows])
    assert torch.equal(got.logits, knowledge.logits[rows])


def test_rows_not_yet_on_disk_are_as_they_will_be_on_disk(tmp_path: Path) -> None:
    with Store.open(tmp_path, TEACHER) as store:
        store.put(keys_of(3), ragged([2, 5, 1]))
        before = store.get(keys_of(3))
        assert not shards(tmp_path)
        store.flush()
        after = store.get(keys_of(3))
    assert len(shards(tmp_path)) == 1
    assert torch.equal(before.features["encoder.3"], after.features["encoder.3"])


def test_padding_is_cut_to_the_longest_row_asked(tmp_path: Path) -> None:
    put = ragged([2, 7, 3])
    with Store.open(tmp_path, TEACHER) as store:
        store.put(keys_of(3), put)
    got = Store.open(tmp_path, TEACHER).get([keys_of(3)[2], keys_of(3)[0]])
    assert got.mask is not None
    assert got.mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert torch.equal(got.features["encoder.3"][0], as_stored(put.features["encoder.3"])[2, :3])
    assert torch.equal(
        got.features["encoder.3.attention"][1, :, :2, :2],
        as_stored(put.features["encoder.3.attention"])[0, :, :2, :2],
    )
    assert got.features["encoder.3.attention"][1, :, 2].abs().sum() == 0


def test_what_stands_in_the_padding_is_not_kept(tmp_path: Path) -> None:
    put = ragged([2, 7, 3])
    assert put.mask is not None
    put.features["encoder.3"][put.mask == 0] = float("inf")
    with Store.open(tmp_path, TEACHER) as store:
        store.put(keys_of(3), put)
    got = Store.open(tmp_path, TEACHER).get(keys_of(3))
    assert torch.equal(got.features["encoder.3"][put.mask == 0], torch.zeros(5 + 4, 4))


def test_padding_costs_no_bytes(tmp_path: Path) -> None:
    sizes = []
    for padded_to in (4, 400):
        mask = (torch.arange(padded_to) < 4).long().expand(16, -1)
        features = {"encoder.3": torch.ones(16, padded_to, 8)}
        with Store.open(tmp_path / str(padded_to), TEACHER) as store:
            store.put(keys_of(16), Knowledge(torch.ones(16, 3), features, mask))
        sizes.append(store.bytes)
    assert sizes[0] == sizes[1]


def test_a_row_costs_its_numbers_and_its_key(tmp_path: Path) -> None:
    filled(tmp_path, rows=1000)
    per_row = 3 * 4 + 4 * 2 + 16 + 4
    size = shards(tmp_path)[0].stat().st_size
    assert per_row * 1000 < size < per_row * 1000 + 1000


def test_a_text_without_a_token_is_kept_like_any_other(tmp_path: Path) -> None:
    put = ragged([0, 3, 0])
    with Store.open(tmp_path, TEACHER) as store:
        store.put([key(""), key("one"), key(" ")], put)
    store = Store.open(tmp_path, TEACHER)
    assert_same(store.get([key(""), key("one"), key(" ")]), put)
    alone = store.get([key("")])
    assert alone.features["encoder.3"].shape == (1, 0, 4)
    assert alone.mask is not None
    assert alone.mask.shape == (1, 0)


def test_a_shard_of_nothing_but_empty_texts_can_be_read(tmp_path: Path) -> None:
    mask = torch.zeros(2, 3, dtype=torch.int64)
    put = Knowledge(torch.randn(2, 3), {"encoder.3": torch.randn(2, 3, 4)}, mask)
    with Store.open(tmp_path, TEACHER) as store:
        store.put(keys_of(2), put)
    got = Store.open(tmp_path, TEACHER).get(keys_of(2))
    assert torch.equal(got.logits, put.logits)
    assert got.features["encoder.3"].shape == (2, 0, 4)


def test_changing_a_tensor_after_it_was_put_changes_nothing(tmp_path: Path) -> None:
    put = pooled(3)
    logits = put.logits.clone()
    with Store.open(tmp_path, TEACHER, features="fp32") as store:
        store.put(keys_of(3), put)
        put.logits.zero_()
        assert torch.equal(store.get(keys_of(3)).logits, logits)


def test_what_comes_out_carries_no_gradient_and_can_be_written_to(tmp_path: Path) -> None:
    put = Knowledge(torch.randn(2, 3, requires_grad=True))
    with Store.open(tmp_path, TEACHER) as store:
        store.put(keys_of(2), put)
    store = Store.open(tmp_path, TEACHER)
    got = store.get(keys_of(2))
    assert not got.logits.requires_grad
    got.logits.zero_()
    assert torch.equal(store.get(keys_of(2)).logits, put.logits.detach())
    assert store.verify() == 1


def test_a_layer_may_have_any_name(tmp_path: Path) -> None:
    names = ("logits", "mask", "keys", "lengths", "feature:logits", "", "couche.é")
    put = Knowledge(torch.randn(2, 3), {name: torch.randn(2, 5) for name in names})
    with Store.open(tmp_path, TEACHER) as store:
        store.put(keys_of(2), put)
    assert_same(Store.open(tmp_path, TEACHER).get(keys_of(2)), put)


# keys


def test_equal_keys_are_asked_once_and_the_first_row_wins(tmp_path: Path) -> None:
    first, second = keys_of(2)
    store = Store.open(tmp_path, TEACHER)
    assert store.missing([first, second, first, second]) == [0, 1]
    put = pooled(3)
    store.put([first, second, first], put)
    store.put([second], pooled(1))
    assert len(store) == 2
    assert torch.equal(store.get([first, second]).logits, put.logits[:2])
    assert store.missing([second, key("new"), first, key("new")]) == [1]


def test_a_key_is_in_the_store_once_it_was_put(tmp_path: Path) -> None:
    keys, _ = filled(tmp_path)
    store = Store.open(tmp_path, TEACHER)
    assert all(each in store for each in keys)
    assert key("new") not in store
    assert 3 not in store
    assert len(store) == 8
    with pytest.raises(StoreError, match=r"lacks 1 of the 2 keys.*put them first"):
        store.get([keys[0], key("new")])
    with pytest.raises(StoreError, match="not hexadecimal"):
        store.missing(["row 7"])


def test_a_key_depends_on_the_content_alone() -> None:
    # the published digest of the empty message (FIPS 180-4)
    assert key("") == "e3b0c44298fc1c149afbf4c8996fb924"
    assert key("é") == key("é".encode())
    assert key("a") != key("a ")
    assert len(key("\ud800")) == 32


# whose knowledge it is


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"weights": "6e52"}, "teacher.weights is '5d41' there and '6e52' here"),
        (
            {"preprocessing": {"max_length": 128, "lowercase": True}},
            "teacher.preprocessing.max_length is 64 there and 128 here",
        ),
        ({"classes": ["card", "coin", "transfer"]}, "classes[1] is 'cash' there and 'coin' here"),
        ({"layers": ["pooler"]}, "layers is ['encoder.3', 'pooler'] there and ['pooler'] here"),
        ({"dtype": None}, "teacher.dtype is 'float32' there and None here"),
        ({"revision": 2}, "teacher.revision is None there and 2 here"),
    ],
)
def test_another_teacher_is_refused_by_the_first_fact_that_differs(
    tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    filled(tmp_path)
    with pytest.raises(StoreError) as refusal:
        Store.open(tmp_path, {**TEACHER, **change})
    assert sentence in str(refusal.value)
    assert str(tmp_path) in str(refusal.value)
    assert "choose another folder" in str(refusal.value)


def test_the_same_teacher_told_in_another_order_is_welcome(tmp_path: Path) -> None:
    keys, knowledge = filled(tmp_path)
    told = {**dict(reversed(TEACHER.items())), "classes": ("card", "cash", "transfer")}
    assert_same(Store.open(tmp_path, told).get(keys), knowledge)


def test_a_fingerprint_that_is_not_json_is_refused(tmp_path: Path) -> None:
    for fact in (torch.float32, float("nan")):
        with pytest.raises(StoreError, match="not JSON"):
            Store.open(tmp_path, {"dtype": fact})
    assert not (tmp_path / MANIFEST).exists()


def test_a_shard_of_another_teacher_is_refused_even_without_a_manifest(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(StoreError, match=r"another teacher.*move it"):
        Store.open(tmp_path, {**TEACHER, "weights": "6e52"})


def test_a_fingerprint_changes_with_any_weight_name_shape_or_dtype() -> None:
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    before = fingerprint(module, classes=["a"])
    assert fingerprint(module, classes=["a"]) == before
    assert before["classes"] == ["a"]
    assert fingerprint(module.to(torch.bfloat16))["weights"] != before["weights"]
    module = module.float()
    weights = {fingerprint(module)["weights"], before["weights"]}
    with torch.no_grad():
        module[0].weight[1, 2] += 1
    weights.add(fingerprint(module)["weights"])
    module[1].running_mean += 1
    weights.add(fingerprint(module)["weights"])
    assert len(weights) == 4
    flat, tall = nn.Linear(4, 1, bias=False), nn.Linear(1, 4, bias=False)
    with torch.no_grad():
        flat.weight.fill_(1), tall.weight.fill_(1)
    assert fingerprint(flat) != fingerprint(tall)


def test_a_module_with_more_than_tensors_in_its_state_is_refused() -> None:
    class Packed(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"bits": 8}

    with pytest.raises(StoreError, match="_extra_state is no tensor"):
        fingerprint(Packed(2, 2))


# what does not fit


def test_padding_on_the_left_or_in_between_is_refused(tmp_path: Path) -> None:
    for wrong in ([0, 1, 1], [1, 0, 1]):
        put = ragged([3, 3])
        assert put.mask is not None
        put.mask[1] = torch.tensor(wrong)
        with pytest.raises(StoreError, match=r"row 1 has padding before.*on the right"):
            Store.open(tmp_path, TEACHER).put(keys_of(2), put)


def test_rows_of_another_form_are_refused_with_both_shapes(tmp_path: Path) -> None:
    filled(tmp_path)
    store = Store.open(tmp_path, TEACHER)
    with pytest.raises(StoreError, match=r"logits is \(3,\) there and \(4,\) here"):
        store.put([key("new")], pooled(1, classes=4))
    with pytest.raises(StoreError, match=r"feature:pooler is \(4,\) there and None here"):
        store.put([key("new")], Knowledge(torch.randn(1, 3)))
    masked = Knowledge(torch.randn(1, 3), {"pooler": torch.randn(1, 4)}, torch.ones(1, 2))
    with pytest.raises(StoreError, match=r"mask is None there and \(-1,\) here.*a mask or none"):
        store.put([key("new")], masked)
    assert len(store) == 8


def test_a_feature_that_does_not_fit_the_mask_is_refused(tmp_path: Path) -> None:
    store, mask = Store.open(tmp_path, TEACHER), torch.ones(2, 3)
    for shape in ((2, 4, 8), (2, 5, 3, 4), (2, 5, 3, 3, 3)):
        put = Knowledge(torch.randn(2, 3), {"deep": torch.randn(shape)}, mask)
        with pytest.raises(StoreError, match=r"do not fit a mask of length 3"):
            store.put(keys_of(2), put)


def test_as_many_rows_as_keys_are_needed(tmp_path: Path) -> None:
    store = Store.open(tmp_path, TEACHER)
    with pytest.raises(StoreError, match="as many rows"):
        store.put(keys_of(3), pooled(2))
    with pytest.raises(StoreError, match="keys one length"):
        store.put([key("a"), key("b")[:8]], pooled(2))
    store.put([], pooled(0))
    assert len(store) == 0


def test_a_value_too_large_for_its_dtype_is_refused(tmp_path: Path) -> None:
    put = Knowledge(torch.zeros(1, 3), {"pooler": torch.tensor([[1e5]])})
    with pytest.raises(StoreError, match=r"feature:pooler has values beyond 65504"):
        Store.open(tmp_path, TEACHER).put([key("a")], put)
    wide = Store.open(tmp_path / "wide", TEACHER, features="fp32")
    wide.put([key("a")], put)
    assert float(wide.get([key("a")]).features["pooler"]) == 1e5


# damage


def test_a_flipped_byte_anywhere_in_a_shard_is_found_before_its_rows_are_used(
    tmp_path: Path,
) -> None:
    keys, _ = filled(tmp_path, rows=4)
    (path,) = shards(tmp_path)
    whole = path.read_bytes()
    for position in range(len(whole)):
        flip(path, position)
        with pytest.raises(StoreError, match=f"{path.name} is not what was written: delete it"):
            Store.open(tmp_path, TEACHER).get(keys[:1])
        path.write_bytes(whole)
    assert Store.open(tmp_path, TEACHER).verify() == 1


def test_a_flipped_byte_anywhere_in_the_manifest_is_found(tmp_path: Path) -> None:
    filled(tmp_path)
    path = tmp_path / MANIFEST
    whole = path.read_bytes()
    for position in range(len(whole)):
        flip(path, position)
        with pytest.raises(StoreError, match=r"manifest.json is not what was written"):
            Store.open(tmp_path, TEACHER)
        path.write_bytes(whole)
    for damage in (b"", whole[:-1], whole[:40], b"[]", b"{}", whole + b" "):
        path.write_bytes(damage)
        with pytest.raises(StoreError, match=r"manifest.json is not what was written"):
            Store.open(tmp_path, TEACHER)


def test_a_shard_cut_short_or_renamed_is_found(tmp_path: Path) -> None:
    keys, _ = filled(tmp_path)
    (path,) = shards(tmp_path)
    whole = path.read_bytes()
    for length in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(StoreError, match="is not what was written"):
            Store.open(tmp_path, TEACHER).get(keys)
    path.unlink()
    path.with_name(f"shard-{'0' * 32}.safetensors").write_bytes(whole)
    with pytest.raises(StoreError, match="is not what was written"):
        Store.open(tmp_path, TEACHER).get(keys)


def test_verify_names_every_damaged_shard(tmp_path: Path) -> None:
    filled(tmp_path, rows=9, shard_rows=3)
    store = Store.open(tmp_path, TEACHER)
    assert store.verify() == 3
    damaged = shards(tmp_path)[::2]
    for path in damaged:
        flip(path, path.stat().st_size - 1)
    with pytest.raises(StoreError) as error:
        store.verify()
    assert all(path.name in str(error.value) for path in damaged)
    assert shards(tmp_path)[1].name not in str(error.value)


def test_only_the_rows_of_a_deleted_shard_are_asked_again(tmp_path: Path) -> None:
    keys, knowledge = filled(tmp_path, rows=9, shard_rows=3)
    lost = shards(tmp_path)[1]
    lost.unlink()
    with Store.open(tmp_path, TEACHER) as store:
        rows = store.missing(keys)
        assert len(rows) == 3
        for row in rows:
            store.put([keys[row]], knowledge.rows(row, row + 1))
    assert shards(tmp_path)[1] == lost  # the same content has the same name
    assert_same(Store.open(tmp_path, TEACHER).get(keys), knowledge)


def test_a_deleted_manifest_is_written_again(tmp_path: Path) -> None:
    keys, knowledge = filled(tmp_path)
    before = (tmp_path / MANIFEST).read_bytes()
    (tmp_path / MANIFEST).unlink()
    assert_same(Store.open(tmp_path, TEACHER).get(keys), knowledge)
    assert (tmp_path / MANIFEST).read_bytes() == before


# crashes, full disks, company


def test_a_crash_at_any_step_of_writing_leaves_a_store_that_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    put = pooled(2)
    for step in ("os.fsync", "pathlib.Path.replace"):
        store = Store.open(tmp_path, TEACHER)
        store.put(keys_of(2), put)
        with monkeypatch.context() as patch:
            patch.setattr(step, killed)
            patch.setattr("pathlib.Path.unlink", killed)  # the dead remove nothing
            with pytest.raises(Killed):
                store.flush()
        assert len(Store.open(tmp_path, TEACHER)) == 0
    assert len(list(tmp_path.glob("*.tmp"))) == 2
    with Store.open(tmp_path, TEACHER) as store:
        store.put(keys_of(2), put)
    assert_same(Store.open(tmp_path, TEACHER).get(keys_of(2)), put)


def test_temporary_files_are_ignored_and_removed_when_old(tmp_path: Path) -> None:
    keys, knowledge = filled(tmp_path)
    young, old = tmp_path / "shard-1.safetensors.ab.tmp", tmp_path / f"{MANIFEST}.cd.tmp"
    others = tmp_path / "notes.tmp"
    for path in (young, old, others):
        path.write_bytes(b"half a sh")
    long_ago = time.time() - STALE - 60
    os.utime(old, (long_ago, long_ago))
    os.utime(others, (long_ago, long_ago))
    assert_same(Store.open(tmp_path, TEACHER).get(keys), knowledge)
    assert young.exists()
    assert others.exists()
    assert not old.exists()


def test_what_another_wrote_is_seen_on_refresh(tmp_path: Path) -> None:
    mine, other = Store.open(tmp_path, TEACHER), Store.open(tmp_path, TEACHER)
    put = pooled(4)
    mine.put(keys_of(4)[:3], put.rows(0, 3))
    other.put(keys_of(4)[1:], pooled(3))
    other.flush()
    assert len(mine) == 3
    mine.refresh()
    assert len(mine) == 4
    assert mine.missing(keys_of(4)) == []
    assert torch.equal(mine.get(keys_of(4)[:1]).logits, put.logits[:1])
    mine.flush()
    assert len(load_file(shards(tmp_path)[0])["keys"]) in (1, 3)
    assert sum(len(load_file(path)["keys"]) for path in shards(tmp_path)) == 4


def test_a_full_disk_ends_in_a_sentence_and_a_store_that_opens(tmp_path: Path) -> None:
    keys, knowledge = filled(tmp_path)
    store = Store.open(tmp_path, TEACHER)
    more = pooled(500)
    store.put(keys_of(500, "more"), more)
    with largest_file(4000), pytest.raises(StoreError, match=r"can't be written.*make room for"):
        store.flush()
    assert not list(tmp_path.glob("*.tmp"))
    assert_same(Store.open(tmp_path, TEACHER).get(keys), knowledge)
    store.flush()  # room was made, nothing is lost
    assert_same(Store.open(tmp_path, TEACHER).get(keys_of(500, "more")), more)


def test_a_disk_full_at_the_first_byte_leaves_no_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(StoreError, match=r"No space left on device.*run again"):
            Store.open(tmp_path / "new", TEACHER)
    assert list((tmp_path / "new").iterdir()) == []
    assert len(Store.open(tmp_path / "new", TEACHER)) == 0


def test_a_file_in_the_place_of_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="choose a folder"):
        Store.open(tmp_path / "file", TEACHER)


def test_what_was_answered_before_an_error_is_kept(tmp_path: Path) -> None:
    def stumble() -> None:
        with Store.open(tmp_path, TEACHER) as store:
            store.put(keys_of(2), pooled(2))
            raise KeyError("the teacher fell over")

    with pytest.raises(KeyError, match="fell over"):
        stumble()
    assert len(Store.open(tmp_path, TEACHER)) == 2


def test_a_full_disk_does_not_hide_the_error_before_it(tmp_path: Path) -> None:
    def stumble() -> None:
        with Store.open(tmp_path, TEACHER) as store:
            store.put(keys_of(500), pooled(500))
            raise KeyError("the teacher fell over")

    Store.open(tmp_path, TEACHER)
    with largest_file(4000), pytest.raises(KeyError, match="fell over"):
        stumble()
    assert len(Store.open(tmp_path, TEACHER)) == 0


# shards


def test_a_shard_is_written_when_it_reaches_its_rows_or_its_bytes(tmp_path: Path) -> None:
    filled(tmp_path / "rows", rows=25, shard_rows=10)
    sizes = sorted(len(load_file(path)["keys"]) for path in shards(tmp_path / "rows"))
    assert sizes == [5, 10, 10]
    filled(tmp_path / "bytes", rows=25, shard_bytes=100)  # 20 bytes a row
    sizes = [len(load_file(path)["keys"]) for path in shards(tmp_path / "bytes")]
    assert sizes == [5, 5, 5, 5, 5]


def test_a_shard_is_plain_safetensors(tmp_path: Path) -> None:
    keys, knowledge = filled(tmp_path)
    (path,) = shards(tmp_path)
    tensors = load_file(path)
    assert bytes(tensors["keys"].numpy()).hex() == "".join(keys)
    assert torch.equal(tensors["logits"], knowledge.logits)
    assert torch.equal(tensors["feature:pooler"], knowledge.features["pooler"].half())


def test_info_tells_what_lies_where(tmp_path: Path) -> None:
    filled(tmp_path, rows=7, shard_rows=5)
    store = Store.open(tmp_path, TEACHER)
    store.put([key("new")], pooled(1))
    info = json.loads(json.dumps(store.info()))
    assert (info["rows"], info["buffered"], info["shards"]) == (8, 1, 2)
    assert info["bytes"] == store.bytes == sum(path.stat().st_size for path in shards(tmp_path))
    assert info["form"] == {"keys": [16], "logits": [3], "feature:pooler": [4]}
    assert info["teacher"] == TEACHER
    assert info["version"] == 2
    assert info["kept"] == {"logits": "fp32", "top": None, "features": "fp16"}


def test_nothing_asked_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="lacks 0 of the 0 keys"):
        Store.open(tmp_path, TEACHER).get([])


def test_a_shard_is_hashed_once_and_only_when_its_rows_are_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, _ = filled(tmp_path, rows=6, shard_rows=3)
    hashed: list[Path] = []
    whole = Shard.whole

    def counted(shard: Shard) -> bool:
        hashed.append(shard.path)
        return whole(shard)

    monkeypatch.setattr(Shard, "whole", counted)
    store = Store.open(tmp_path, TEACHER)
    assert hashed == []
    for _ in range(3):
        store.get(keys[:2])
    assert len(hashed) == 1
    store.get(keys)
    assert sorted(hashed) == shards(tmp_path)
