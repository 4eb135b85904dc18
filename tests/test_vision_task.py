"""The vision task: where pictures come from, what is wrong with them, and what a model is asked."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import f1_score
from torch import Tensor, nn
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from attar import export, students, teach
from attar.errors import AttarError, DataError, MissingExtra, ModelError
from attar.tasks.text import classification as of_texts
from attar.tasks.vision import augmenting, classification, decoding, networks, reading
from attar.tasks.vision.augmenting import viewed
from attar.types import IGNORE, Batch, Knowledge, Mixture

PIXELS, DIGITS = load_digits(return_X_y=True)
SEEN = np.rint(PIXELS.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
NAMES = ("zero", "one", "two")
ROWS = [row for row in range(240) if DIGITS[row] < 3]
Array = np.ndarray[Any, Any]


def few(count: int = 60) -> tuple[Array, list[int]]:
    """Handwritten zeros, ones and twos (rows, 8, 8), and which each is."""
    rows = ROWS[:count]
    return SEEN[rows], [int(DIGITS[row]) for row in rows]


def png(pixels: Array, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, options.pop("format", "PNG"), **options)
    return file.getvalue()


def by_class(folder: Path, pictures: Sequence[Array], labels: Sequence[int]) -> Path:
    for number, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        (folder / NAMES[label]).mkdir(parents=True, exist_ok=True)
        (folder / NAMES[label] / f"{number:03}.png").write_bytes(png(picture))
    return folder


def as_npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def as_blob(path: Path, files: Sequence[bytes], labels: Sequence[int]) -> Path:
    offsets = np.cumsum([0, *(len(file) for file in files)])
    blob = np.frombuffer(b"".join(files), np.uint8)
    return as_npz(path, blob=blob, offsets=offsets, labels=np.uint8(labels), names=list(NAMES))


def as_parquet(path: Path, files: Sequence[bytes], labels: Sequence[int]) -> Path:
    """A table as `datasets` leaves it."""
    kinds = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))}
    )
    rows = {"image": [{"bytes": each, "path": None} for each in files], "label": list(labels)}
    datasets.Dataset.from_dict(rows, features=kinds).to_parquet(path)
    return path


def as_arrow(path: Path, files: Sequence[bytes], labels: Sequence[int]) -> Path:
    table = pyarrow.table({"image": list(files), "label": [NAMES[each] for each in labels]})
    with pyarrow.ipc.new_stream(path, table.schema) as stream:
        stream.write_table(table)
    return path


@pytest.fixture
def task(tmp_path: Path) -> classification:
    return digits(tmp_path)


def digits(folder: Path, count: int = 60, **options: Any) -> classification:
    pictures, labels = few(count)
    path = as_npz(folder / "digits.npz", images=pictures, labels=labels, names=list(NAMES))
    return classification(dataset=str(path), **options)


def said(call: Callable[[], Any], kind: type[AttarError] = DataError) -> str:
    """The sentence a user meets instead of a traceback."""
    with pytest.raises(AttarError) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is kind
    assert "\n" not in message
    assert 20 < len(message) < 500
    return message


class Brightness(nn.Module):
    """The user's own network: the mean of each channel, then a layer."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.head = nn.Linear(3, classes)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.head(pixel_values.mean((2, 3)))


# where pictures come from

KINDS: dict[str, Callable[[Path, Array, list[int]], Path]] = {
    "folder": lambda to, seen, labels: by_class(to / "digits", seen, labels),
    "npz": lambda to, seen, y: as_npz(to / "d.npz", x=seen, y=y, names=list(NAMES)),
    "blob": lambda to, seen, labels: as_blob(to / "d.npz", list(map(png, seen)), labels),
    "parquet": lambda to, seen, y: as_parquet(to / "d.parquet", list(map(png, seen)), y),
    "arrow": lambda to, seen, labels: as_arrow(to / "d.arrow", list(map(png, seen)), labels),
}


def shown(task: classification, part: str = "train") -> dict[str, str]:
    """The class of every picture of a part, by its content."""
    batches = list(task.sweep(part))
    pairs = [pair for batch in batches for pair in zip(batch.keys, batch.labels, strict=True)]
    return {key: task.classes[int(label)] for key, label in pairs}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_pictures_are_read_from_every_kind_of_source(kind: str, tmp_path: Path) -> None:
    seen, labels = few()
    task = classification(dataset=str(KINDS[kind](tmp_path, seen, labels)))
    assert set(task.classes) == set(NAMES)
    assert task.shape == (8, 8)
    assert sum(task.size(part) for part in ("train", "validation", "test")) == len(seen)
    known = {key: name for part in task.rows for key, name in shown(task, part).items()}
    truth = {picture.tobytes(): NAMES[label] for picture, label in zip(seen, labels, strict=True)}
    assert len(known) == len(truth)
    for batch in task.sweep("train", batch_size=7):
        assert batch.inputs.dtype == torch.uint8
        assert batch.inputs.shape[1:] == (3, 8, 8)
        for picture, key in zip(batch.inputs, batch.keys, strict=True):
            assert torch.equal(picture[0], picture[2])
            assert truth[picture[0].numpy().tobytes()] == known[key]


def test_the_classes_stand_in_the_order_in_which_the_source_names_them(tmp_path: Path) -> None:
    assert digits(tmp_path).classes == NAMES
    seen, labels = few()
    assert classification(dataset=str(by_class(tmp_path / "d", seen, labels))).classes == (
        *("one", "two", "zero"),
    )
    unnamed = as_npz(tmp_path / "u.npz", images=seen, labels=np.array(labels) + 9)
    assert classification(dataset=str(unnamed)).classes == ("9", "10", "11")


def test_a_folder_may_hold_a_folder_or_a_file_for_each_split(tmp_path: Path) -> None:
    seen, labels = few(90)
    parts = {"train": slice(0, 50), "val": slice(50, 60), "test": slice(60, 72)}
    for name, part in parts.items():
        by_class(tmp_path / "a" / name, seen[part], labels[part])
        (tmp_path / "b").mkdir(exist_ok=True)
        as_blob(tmp_path / "b" / f"{name}.npz", list(map(png, seen[part])), labels[part])
    (tmp_path / "a" / "unlabelled").mkdir()
    for number, picture in enumerate(seen[72:]):
        (tmp_path / "a" / "unlabelled" / f"{number}.png").write_bytes(png(picture))
    (tmp_path / "a" / "train" / "one" / "notes.txt").write_text("no picture")
    as_npz(tmp_path / "b" / "pool.npz", images=seen[72:])
    for folder in ("a", "b"):
        task = classification(dataset=str(tmp_path / folder))
        sizes = [task.size(part) for part in ("labelled", "train", "validation", "test")]
        assert sizes == [50, 50 + len(seen[72:]), 10, 12]
        assert task.has_pool


def test_another_file_or_folder_may_be_tested_on(tmp_path: Path) -> None:
    seen, labels = few(60)
    train = as_blob(tmp_path / "a.npz", list(map(png, seen[:50])), labels[:50])
    test = as_blob(tmp_path / "b.npz", list(map(png, seen[50:])), labels[50:])
    folder = by_class(tmp_path / "c", seen[50:], labels[50:])
    for held in (test, folder):
        task = classification(dataset=str(train), test=str(held))
        assert task.size("test") == 10
        assert [task.classes[n] for n in task._labels[list(task.rows["test"])]] == [
            NAMES[n] for n in (labels[50:] if held == test else sorted(labels[50:], key=by_name))
        ]


def by_name(label: int) -> str:
    return NAMES[label]


def test_a_name_of_the_hub_is_read_row_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, labels = few()
    path = as_parquet(tmp_path / "d.parquet", list(map(png, seen)), labels)
    rows = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
    splits = datasets.DatasetDict({"train": rows})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: splits)
    task = classification(dataset="somebody/digits")
    assert task.classes == NAMES
    assert shown(task) == shown(classification(dataset=str(path)))


def test_pixels_may_be_bytes_sixteen_bits_decimals_or_channels_first(tmp_path: Path) -> None:
    seen, labels = few()
    forms = {
        "grey": seen,
        "one channel": seen[..., None],
        "three channels": np.repeat(seen[..., None], 3, 3),
        "channels first": np.repeat(seen[:, None], 3, 1),
        "opaque": np.stack([seen, seen, seen, np.full_like(seen, 9)], 3),
        "sixteen bits": seen.astype(np.uint16) * 257,
        "decimals": seen.astype(np.float32) / 255,
    }
    found = [
        shown(classification(dataset=str(as_npz(tmp_path / f"{name}.npz", images=form, y=labels))))
        for name, form in forms.items()
    ]
    assert all(each == found[0] for each in found)


@pytest.mark.parametrize(
    "content",
    [
        png(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000),
        png(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000, format="TIFF"),
        (np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000, "array"),
        ((np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).astype(">u2"), "array"),
    ],
    ids=["png", "tiff", "array", "array, high bytes first"],
)
def test_sixteen_bits_become_eight_as_worked_out(content: Any) -> None:
    raw = content[0] if isinstance(content, tuple) else content
    pixels = decoded(raw)
    truth = np.rint(np.arange(64) * 1000 / 65535 * 255)
    np.testing.assert_array_equal(pixels[..., 0].ravel(), truth)


def decoded(raw: Any, side: int | None = None) -> Array:
    return decoding.decoded(raw, side)


def test_grey_palettes_and_transparency_become_three_channels() -> None:
    grey = SEEN[0]
    three = np.repeat(grey[..., None], 3, 2)
    forms = [Image.fromarray(grey), Image.fromarray(three), Image.fromarray(three).convert("RGBA")]
    forms += [Image.fromarray(three).quantize(64), Image.fromarray(grey).convert("LA")]
    for form in forms:
        file = io.BytesIO()
        form.save(file, "PNG")
        np.testing.assert_array_equal(decoded(file.getvalue()), three)


def test_a_camera_that_was_held_sideways_is_turned_back() -> None:
    picture = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20)
    exif = Image.Exif()
    exif[decoding.ORIENTATION] = 6
    file = io.BytesIO()
    picture.save(file, "PNG", exif=exif)
    turned = np.rot90(np.asarray(picture), -1)
    np.testing.assert_array_equal(decoded(file.getvalue())[..., 0], turned)


def test_pictures_are_scaled_by_the_shorter_side_and_the_middle_is_cut_out() -> None:
    wide = np.zeros((8, 24), np.uint8)
    wide[:, 8:16] = 200
    assert decoded(png(wide), 8).min() == 200
    assert decoded(png(wide), 4).shape == (4, 4, 3)
    assert decoded(png(wide), 16).shape == (16, 16, 3)


def test_pictures_of_many_sizes_need_one_and_the_sentence_says_so(tmp_path: Path) -> None:
    seen, labels = few()
    files = [png(each if n != 7 else each[:6]) for n, each in enumerate(seen)]
    path = str(as_blob(tmp_path / "d.npz", files, labels))
    sentence = said(lambda: classification(dataset=path))
    assert "row 8 is 8 x 6 pixels, and those before it are 8 x 8" in sentence
    assert "size" in sentence
    assert classification(dataset=path, size=12).shape == (12, 12)


def test_too_many_pixels_for_memory_are_decoded_batch_by_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, labels = few()
    path = str(by_class(tmp_path / "d", seen, labels))
    kept = list(classification(dataset=path).sweep("train"))
    monkeypatch.setattr(decoding, "KEPT", 1000)
    task = classification(dataset=path)
    assert task._pictures.pixels is None
    read = list(task.sweep("train"))
    assert [batch.keys for batch in read] == [batch.keys for batch in kept]
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(read, kept, strict=True))
    for file in (tmp_path / "d").rglob("*.png"):
        file.write_bytes(b"gone bad")
    assert f"{tmp_path / 'd'}, file" in said(lambda: list(task.sweep("train")))


# what may be wrong


def spoilt(folder: Path, content: bytes) -> Path:
    seen, labels = few()
    by_class(folder, seen, labels)
    (folder / "two" / "bad.png").write_bytes(content)
    return folder


NOISE = np.random.default_rng(0).integers(0, 255, (99, 99, 3), np.uint8)
BAD = {
    "zero bytes": (b"", "is empty (zero bytes)"),
    "no picture": (b"<html>not found</html>" * 9, "is no picture that Pillow knows"),
    "half a picture": (
        png(NOISE)[:900],
        "can't",
    ),
}


@pytest.mark.parametrize("form", BAD)
def test_a_bad_file_is_named_in_a_sentence_or_left_out_with_a_note(
    form: str, tmp_path: Path
) -> None:
    content, reason = BAD[form]
    folder = spoilt(tmp_path / "d", content)
    sentence = said(lambda: classification(dataset=str(folder)))
    assert f"{folder}, file two/bad.png {reason}" in sentence
    assert "skip_bad" in sentence
    task = classification(dataset=str(folder), skip_bad=True)
    assert sum(task.size(part) for part in ("train", "validation", "test")) == 60
    assert task.notes[0].startswith("1 bad pictures are left out")
    assert "two/bad.png" in task.notes[0]


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ({5: 3}, "row 6 has the class 3, and there are 3 named classes"),
        ({5: -2}, "row 6 has the class -2"),
        ({5: -1}, "row 6 has no label"),
        ({5: -1, 9: 7}, "row 6 has no label"),
    ],
)
def test_a_class_that_nobody_named_is_refused_or_left_out(
    labels: dict[int, int], reason: str, tmp_path: Path
) -> None:
    seen, known = few()
    changed = [labels.get(row, label) for row, label in enumerate(known)]
    path = as_npz(tmp_path / "d.npz", images=seen, labels=changed, names=list(NAMES))
    assert reason in said(lambda: classification(dataset=str(path)))
    task = classification(dataset=str(path), skip_bad=True)
    assert task.notes[0].startswith(f"{len(labels)} bad pictures")
    assert sum(task.size(part) for part in ("train", "validation", "test")) == 60 - len(labels)


def test_a_class_that_only_the_test_pictures_have_is_refused_or_left_out(tmp_path: Path) -> None:
    seen, labels = few()
    train = by_class(tmp_path / "a", seen[:50], labels[:50])
    test = by_class(tmp_path / "b", seen[50:], labels[50:])
    (test / "three").mkdir()
    (test / "three" / "new.png").write_bytes(png(seen[0]))
    options = {"dataset": str(train), "test": str(test)}
    assert "file three/new.png has the class 'three'" in said(lambda: classification(**options))
    assert classification(**options, skip_bad=True).size("test") == 10


def test_a_long_list_of_bad_pictures_is_cut_short(tmp_path: Path) -> None:
    folder = spoilt(tmp_path / "d", b"")
    for number in range(20):
        (folder / "one" / f"bad{number}.png").write_bytes(b"")
    note = classification(dataset=str(folder), skip_bad=True).notes[0]
    assert note.startswith("21 bad pictures are left out")
    assert note.endswith("; and 12 more.")


def test_a_class_of_which_no_good_picture_is_left_is_noted(tmp_path: Path) -> None:
    folder = by_class(tmp_path / "d", *few())
    (folder / "nine").mkdir()
    (folder / "nine" / "bad.png").write_bytes(b"")
    notes = classification(dataset=str(folder), skip_bad=True).notes
    assert notes[1] == f"Every picture of nine in {folder} was bad."


def test_a_class_named_twice_is_refused(tmp_path: Path) -> None:
    seen, labels = few()
    path = as_npz(tmp_path / "d.npz", images=seen, labels=labels, names=["one", "two", "one"])
    assert "names a class twice: one, two, one" in said(lambda: classification(dataset=str(path)))


def refused(folder: Path) -> dict[str, tuple[Callable[[], Any], str]]:
    seen, labels = few()
    npz = folder / "d.npz"

    def of(**arrays: Any) -> Callable[[], Any]:
        return lambda: classification(dataset=str(as_npz(npz, **arrays)))

    (folder / "empty").mkdir()
    (folder / "hollow" / "a").mkdir(parents=True)
    (folder / "notest" / "test").mkdir(parents=True)
    (folder / "notest" / "test" / "a").mkdir()
    (folder / "notest" / "test" / "a" / "b.png").write_bytes(png(seen[0]))
    (folder / "bad.npz").write_bytes(b"PK nonsense")
    (folder / "bad.parquet").write_bytes(b"PAR1 nonsense")
    (folder / "bad.arrow").write_bytes(b"nonsense")
    pyarrow.parquet.write_table(
        pyarrow.table({"image": [1, 2], "label": [0, 1]}), folder / "numbers.parquet"
    )
    path = {name: str(folder / name) for name in ("empty", "hollow", "notest", "bad.npz")}
    path |= {name: str(folder / name) for name in ("bad.parquet", "bad.arrow", "numbers.parquet")}
    return {
        "flat": (of(images=seen.reshape(60, 64), labels=labels), "shape (60, 64)"),
        "no pictures": (of(labels=labels), "no column that is plainly the image"),
        "no labels": (of(images=seen), "no column that is plainly the label"),
        "fewer labels": (of(images=seen, labels=labels[1:]), "60 pictures and 59 labels"),
        "one hot": (of(images=seen, labels=np.eye(3)[labels]), "one class for each"),
        "wide decimals": (of(images=seen * 1.0, labels=labels), "outside of 0 to 1"),
        "integers": (of(images=seen.astype(np.int64), labels=labels), "holds int64"),
        "objects": (of(images=seen, labels=np.array(labels, object)), "can't be read"),
        "offsets": (
            of(blob=np.zeros(9, np.uint8), offsets=np.array([0, 8, 4]), labels=[0, 1]),
            "`offsets` must ascend",
        ),
        "one class": (of(images=seen, labels=[0] * 60), "at least 2"),
        "nothing": (lambda: classification(dataset=" "), "is empty"),
        "no such": (lambda: classification(dataset="./nowhere"), "There is no file or folder"),
        "no such file": (lambda: classification(dataset="nowhere.npz"), "There is no file"),
        "unknown kind": (lambda: classification(dataset=__file__), "of no known kind"),
        "columns": (lambda: digits(folder, columns={"text": "x"}), "columns has no 'text'"),
        "no column": (lambda: digits(folder, columns={"image": "imges"}), "did you mean 'images'"),
        "views": (lambda: digits(folder, views=3), "`augment`"),
        "augment": (lambda: digits(folder, augment=["flop"]), "did you mean 'flip'"),
        "share": (lambda: digits(folder, validation=1.5), "between 0 and 1"),
        "empty": (lambda: classification(dataset=path["empty"]), "no folder for each class"),
        "hollow": (lambda: classification(dataset=path["hollow"]), "holds no pictures"),
        "only test": (lambda: classification(dataset=path["notest"]), "none to train on"),
        "bad npz": (lambda: classification(dataset=path["bad.npz"]), "can't be read"),
        "bad parquet": (lambda: classification(dataset=path["bad.parquet"]), "can't be read"),
        "bad arrow": (lambda: classification(dataset=path["bad.arrow"]), "can't be read"),
        "numbers": (lambda: classification(dataset=path["numbers.parquet"]), "holds int64"),
    }


CASES = (
    *("flat", "no pictures", "no labels", "fewer labels", "one hot", "wide decimals", "integers"),
    *("objects", "offsets", "one class", "nothing", "no such", "no such file", "unknown kind"),
    *(
        "columns",
        "no column",
        "views",
        "augment",
        "share",
        "empty",
        "hollow",
        "only test",
        "bad npz",
    ),
    *("bad parquet", "bad arrow", "numbers"),
)


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_said_in_a_sentence(case: str, tmp_path: Path) -> None:
    call, words = refused(tmp_path)[case]
    assert words in said(call)


# how they are divided


def test_pictures_are_divided_as_texts_are(tmp_path: Path) -> None:
    """The reference: the same rows as texts, through the text task."""
    labels = few(90)[1]
    for options in ({}, {"labelled_per_class": 4, "validation": 0.2, "seed": 3}):
        task = digits(tmp_path, 90, **options)
        pairs = zip(task._keys, labels, strict=True)
        rows = [json.dumps({"text": key, "label": str(label)}) for key, label in pairs]
        (tmp_path / "d.jsonl").write_text("\n".join(rows))
        texts = of_texts(dataset=str(tmp_path / "d.jsonl"), **options)
        assert task.rows == texts.rows
        assert torch.equal(task._shown, texts._shown)
        assert task.has_pool == texts.has_pool


def test_the_digest_is_of_pictures_split_and_augmentation(tmp_path: Path) -> None:
    forms = [{}, {"seed": 1}, {"labelled_per_class": 3}, {"size": 9}, {"augment": ["flip"]}]
    forms += [{"augment": ["flip"], "views": 3}]
    assert len({digits(tmp_path, **form).digest() for form in forms}) == len(forms)
    assert digits(tmp_path).digest() == digits(tmp_path).digest()
    assert digits(tmp_path).digest() != digits(tmp_path, 59).digest()


# how they change


def views(task: classification, epochs: int = 1, **options: Any) -> list[Batch]:
    stream = task.batches(batch_size=16, **options)
    return list(islice(iter(stream), epochs * len(stream)))


def by_key(batches: Sequence[Batch]) -> dict[str, Tensor]:
    return {k: v for batch in batches for k, v in zip(batch.keys, batch.inputs, strict=True)}


KINDS_OF_VIEW = ("flip", "shift", "crop", "cutout", "mixup", "cutmix")


@pytest.mark.parametrize("kinds", [[kind] for kind in KINDS_OF_VIEW] + [list(KINDS_OF_VIEW)])
def test_a_view_depends_on_the_picture_and_the_epoch_alone(
    kinds: list[str], tmp_path: Path
) -> None:
    task = digits(tmp_path, augment=kinds)
    one, two = by_key(views(task, 3)), by_key(views(digits(tmp_path, augment=kinds), 3))
    assert len(one) == 3 * task.size("train")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    small = next(iter(task.batches(batch_size=3)))
    assert all(torch.equal(one[k], v) for k, v in by_key([small]).items())
    assert one.keys().isdisjoint(by_key(views(task, seed=1)))
    assert one.keys().isdisjoint(key for batch in task.sweep("train") for key in batch.keys)
    assert all(view.dtype == torch.uint8 and view.shape == (3, 8, 8) for view in one.values())


def test_views_are_the_same_for_every_seed_and_come_again(tmp_path: Path) -> None:
    task = digits(tmp_path, augment=["flip", "shift"], views=2)
    known = by_key(list(task.foreseen()))
    assert len(known) == 2 * task.size("train")
    met = by_key(views(task, 4))
    assert met.keys() == known.keys()
    assert all(torch.equal(met[key], known[key]) for key in met)
    assert by_key(views(task, 2, seed=9)).keys() == known.keys()


def test_what_can_be_asked_beforehand_is_all_or_nothing(tmp_path: Path) -> None:
    plain = digits(tmp_path)
    assert [b.keys for b in plain.foreseen()] == [b.keys for b in plain.sweep("train")]
    assert by_key(views(plain)).keys() == by_key(list(plain.foreseen())).keys()
    assert list(digits(tmp_path, augment=["flip"]).foreseen()) == []


@pytest.mark.parametrize("augment", [[], ["flip", "shift"], ["mixup", "cutmix"]])
@pytest.mark.parametrize("number", [None, 2])
def test_a_teacher_at_work_and_one_on_disk_say_the_same_of_every_view(
    augment: list[Any], number: int | None, tmp_path: Path
) -> None:
    task = digits(tmp_path, augment=augment, views=number if augment else None)
    teacher = task.load(Brightness()).eval()
    asked: list[int] = []

    def forward(model: nn.Module, batch: Batch) -> Knowledge:
        asked.append(len(batch))
        return task.forward(model, batch)

    with teach.open_store(tmp_path / "store", teacher, {}) as known:
        teach.fill(known, task.foreseen(), teacher, forward)
    beforehand = sum(asked)
    shown = views(task, 3)
    for _ in range(2):
        lessons = teach.offline(shown, [teacher], forward, {}, store=str(tmp_path / "store"))
        for batch, lesson in zip(shown, lessons, strict=True):
            truth = task.forward(teacher, batch).logits.detach()
            torch.testing.assert_close(lesson.teacher.logits, truth, atol=2e-3, rtol=2e-3)
    endless = bool(augment) and number is None
    assert sum(asked) == (3 if endless else number if augment else 1) * task.size("train")
    assert beforehand == (0 if endless else sum(asked))


def test_labels_stay_with_their_pictures_and_measuring_sees_them_as_they_are(
    tmp_path: Path,
) -> None:
    plain, task = digits(tmp_path), digits(tmp_path, augment=["flip", "cutout"])
    for batch, seen in zip(views(plain, 2), views(task, 2), strict=True):
        assert torch.equal(batch.labels, seen.labels)
        assert not torch.equal(batch.inputs, seen.inputs)
    for part in ("validation", "test"):
        assert by_key(list(task.sweep(part))).keys() == by_key(list(plain.sweep(part))).keys()


@pytest.mark.parametrize("kinds", [["mixup"], ["cutmix"], ["mixup", "cutmix"]])
def test_what_is_mixed_in_is_seen_by_its_share_and_never_more_than_half(kinds: list[str]) -> None:
    """Black pictures with white ones mixed in: how bright they are is the share."""
    black = viewed(marked(), kinds, "view 0")
    black, white = (replace(black, inputs=torch.full_like(black.inputs, v)) for v in (0, 255))
    white = replace(white, labels=torch.ones(400).long())
    found = augmenting.mixed(black, white, kinds)
    assert found.mixed is not None
    bright = found.inputs.double().mean((1, 2, 3)) / 255
    torch.testing.assert_close(bright, found.mixed.share.double(), atol=2e-3, rtol=0)
    assert torch.equal(found.labels, black.labels)
    assert torch.equal(found.mixed.labels, white.labels)
    assert 0 <= float(found.mixed.share.min()) < float(found.mixed.share.max()) <= 0.5 + 1 / 16
    boxed = (found.inputs.flatten(1) % 255 == 0).all(1)
    lost = float((boxed & (found.mixed.share > 0.01)).double().mean())
    assert abs(lost - {"mixup": 0, "cutmix": 0.95}.get("+".join(kinds), 0.5)) < 0.08


def test_partners_come_from_all_that_may_be_shown_alike_often() -> None:
    found = np.bincount(augmenting.partners(marked(4000), range(10, 20)))
    assert found[:10].sum() == 0
    assert abs(found[10:] - 400).max() < 5 * np.sqrt(400)  # five standard deviations


def test_both_labels_of_a_mixture_count_by_their_shares(tmp_path: Path) -> None:
    """The reference: cross-entropy with shares as targets, in NumPy; what nobody knows is left."""
    task, logits = digits(tmp_path), torch.randn(4, 3, dtype=torch.float64)
    own, other = torch.tensor([0, 1, -100, 2]), torch.tensor([2, 1, 0, -100])
    share = torch.tensor([0.25, 0.5, 0.4, 0.1])
    batch = Batch(torch.zeros(4, 3, 8, 8), own, tuple("abcd"), Mixture(other, share))
    logs = logits.numpy() - np.log(np.exp(logits.numpy()).sum(1, keepdims=True))
    counts = [(0, 0, 0.75), (0, 2, 0.25), (1, 1, 1.0), (2, 0, 0.4), (3, 2, 0.9)]
    truth = sum(-part * logs[row, label] for row, label, part in counts) / 3.3
    assert float(task.loss(Knowledge(logits), batch)) == pytest.approx(truth, rel=1e-6)
    halves = [task.loss(Knowledge(logits[a:b]), batch.rows(a, b)) for a, b in ((0, 1), (1, 4))]
    assert float(halves[0] * 1.0 + halves[1] * 2.3) == pytest.approx(truth * 3.3, rel=1e-6)
    assert batch.some([3, 0]).mixed.share.tolist() == share[[3, 0]].tolist()


def marked(count: int = 400, side: int = 16) -> Batch:
    """Pictures whose every pixel is another number, so that where each went can be seen."""
    numbers = torch.arange(side * side).to(torch.uint8).view(1, 1, side, side)
    keys = tuple(f"{n}" for n in range(count))
    return Batch(numbers.expand(count, 3, -1, -1).clone(), torch.zeros(count).long(), keys)


def test_half_are_flipped() -> None:
    batch = marked()
    seen = viewed(batch, ["flip"], "x").inputs
    same = (seen == batch.inputs).flatten(1).all(1)
    turned = (seen == batch.inputs.flip(3)).flatten(1).all(1)
    assert bool((same ^ turned).all())
    assert 160 < int(turned.sum()) < 240


def test_shifts_are_whole_pixels_in_all_directions_and_black_behind() -> None:
    batch = marked()
    batch.inputs.clamp_(min=1)
    seen = viewed(batch, ["shift"], "x").inputs
    framed = torch.zeros(3, 20, 20, dtype=torch.uint8)
    framed[:, 2:18, 2:18] = batch.inputs[0]
    moved = [framed[:, y : y + 16, x : x + 16] for y in range(5) for x in range(5)]
    met = [[torch.equal(view, each) for each in moved].index(True) for view in seen]
    assert set(met) == set(range(25))


def test_a_crop_shows_a_part_of_the_picture_in_its_order() -> None:
    ramp = torch.linspace(0, 255, 32).round().to(torch.uint8)
    both = torch.stack([ramp.expand(32, 32), ramp[:, None].expand(32, 32), ramp.expand(32, 32)])
    keys = tuple(map(str, range(300)))
    batch = Batch(both.expand(300, -1, -1, -1), torch.zeros(300).long(), keys)
    seen = viewed(batch, ["crop"], "x").inputs.float()
    spans = torch.stack(
        [seen[:, 0, 0, -1] - seen[:, 0, 0, 0], seen[:, 1, -1, 0] - seen[:, 1, 0, 0]]
    )
    area = (spans / 255).prod(0)
    assert bool((seen.diff(dim=3)[:, 0] >= 0).all())
    assert bool((seen.diff(dim=2)[:, 1] >= 0).all())
    assert 0.2 < float(area.min()) < 0.35
    assert float(area.max()) > 0.9
    assert 0.7 < float((spans[0] / spans[1]).min()) < 0.8


def test_a_hole_is_grey_half_a_side_wide_and_may_reach_over_the_edge() -> None:
    batch = marked()
    batch.inputs.fill_(9)
    seen = viewed(batch, ["cutout"], "x").inputs
    holes = (seen != 9).sum((2, 3))[:, 0]
    assert set(seen.unique().tolist()) == {9, 128}
    assert int(holes.max()) == 8 * 8
    assert int(holes.min()) == 4 * 4
    # Of 16 places for the middle 9 leave room for all 8 pixels, the others for 4 to 7.
    assert float(holes.float().mean()) == pytest.approx((112 / 16) ** 2, rel=0.05)


# what a model is asked


def test_a_model_sees_the_pixels_by_its_own_normalization(task: classification) -> None:
    model: Any = Brightness()
    model.normalization = {"mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3]}
    batch = next(task.sweep("train", batch_size=5))
    seen = task.encode(task.load(model), batch.inputs)["pixel_values"]
    truth = batch.inputs.numpy().astype(np.float64).transpose(0, 2, 3, 1) / 255
    truth = ((truth - [0.5, 0.4, 0.3]) / [0.1, 0.2, 0.3]).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(seen.numpy(), truth, rtol=1e-5, atol=1e-6)
    plain = task.encode(task.load(Brightness()), batch.inputs)["pixel_values"]
    middle = [[[0.485]], [[0.456]], [[0.406]]], [[[0.229]], [[0.224]], [[0.225]]]
    truth = (batch.inputs.numpy() / 255 - middle[0]) / middle[1]
    np.testing.assert_allclose(plain.numpy(), truth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "normalization",
    [3, {"mean": [0.5] * 3}, {"mean": [0.5], "std": [1.0]}, {"mean": [0] * 3, "std": [0, 1, 1]}],
)
def test_a_normalization_that_is_none_is_refused(normalization: Any, task: classification) -> None:
    model: Any = Brightness()
    model.normalization = normalization
    assert "normalization of Brightness" in said(lambda: task.load(model), ModelError)


def test_score_and_answers_are_those_of_an_independent_count(task: classification) -> None:
    model = task.load(Brightness()).train()
    answers = task.answers(model, "train")
    assert model.training
    rows = task.rows["train"]
    truth = task._labels[list(rows)].numpy()
    found = task.score(model, "train")
    predicted = answers.argmax(1).numpy()
    assert found["score"] == found["accuracy"] == (predicted == truth).mean()
    assert found["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert task.judge(truth, "train")["score"] == 1.0


def test_forward_gives_logits_and_layers(task: classification) -> None:
    student = students.resnet(list(task.classes), depth=8, width=4)
    batch = next(task.sweep("train", batch_size=5))
    known = task.forward(student, batch, ["layer2", "layer3@mean"])
    assert known.logits.shape == (5, 3)
    assert known.features["layer2"].shape == (5, 8, 4, 4)
    assert known.features["layer3@mean"].shape == (5, 16)
    assert known.mask is None
    wrong = students.resnet(["a", "b"], depth=8, width=4)
    assert "5 pictures; this task has 3 classes" in said(
        lambda: task.forward(wrong, batch), ModelError
    )


def test_the_loss_is_cross_entropy_over_the_rows_with_a_label(tmp_path: Path) -> None:
    task = digits(tmp_path, labelled_per_class=4)
    model = task.load(Brightness())
    batch = next(task.sweep("train", batch_size=40))
    known = task.forward(model, batch)
    rows = batch.labels != IGNORE
    logits = known.logits[rows].detach().double()
    truth = -torch.log_softmax(logits, 1)[range(int(rows.sum())), batch.labels[rows]].mean()
    assert 0 < int(rows.sum()) < 40
    torch.testing.assert_close(task.loss(known, batch).double(), truth)


def test_calibration_and_losses_show_every_training_picture_once(tmp_path: Path) -> None:
    task = digits(tmp_path, augment=["flip"], labelled_per_class=5)
    model = task.load(Brightness())
    shown = torch.cat([batch["pixel_values"] for batch in task.calibration(model)])
    assert len(shown) == task.size("train")
    whole = task.encode(model, torch.cat([batch.inputs for batch in task.sweep("train")]))
    torch.testing.assert_close(
        shown.flatten(1).sum(1).sort().values, whole["pixel_values"].flatten(1).sum(1).sort().values
    )
    assert len(list(task.losses(model))) == 1
    assert next(task.losses(model)).requires_grad
    pixels, labels = task.labelled
    assert len(pixels) == len(labels) == 15
    assert task.example(model)["pixel_values"].shape == (1, 3, 8, 8)


# where networks come from


def vit(folder: Path, names: Sequence[str] = NAMES, paper: dict[str, Any] | None = None) -> Path:
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=16,
        patch_size=8,
        id2label=dict(enumerate(names)),
        label2id={name: n for n, name in enumerate(names)},
        initializer_range=0.5,
    )
    return kept(ViTForImageClassification(config), folder, paper)


def kept(model: Any, folder: Path, paper: dict[str, Any] | None) -> Path:
    with networks.quiet("vision"):
        model.save_pretrained(folder)
    if paper is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(paper))
    return folder


PAPER = {
    "image_processor_type": "ViTImageProcessor",
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.25, 0.5, 0.5],
    "do_resize": True,
    "size": {"height": 16, "width": 16},
}


def test_a_classifier_of_transformers_answers_in_the_order_of_the_task(
    task: classification, tmp_path: Path
) -> None:
    folder = vit(tmp_path / "vit", ["two", "zero", "one"], PAPER)
    model = task.load(str(folder))
    assert task.preprocessing(model)["normalization"] == {
        "mean": [0.5] * 3,
        "std": [0.25, 0.5, 0.5],
        "side": 16,
    }
    batch = next(task.sweep("test", batch_size=4))
    inputs = task.encode(model, batch.inputs)
    assert inputs["pixel_values"].shape == (4, 3, 16, 16)
    own: Any = ViTForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        truth = own(**inputs).logits[:, [1, 2, 0]]
        torch.testing.assert_close(task.forward(model, batch).logits, truth)


def test_a_teacher_of_larger_pictures_sees_them_scaled(
    task: classification, tmp_path: Path
) -> None:
    model = task.load(str(vit(tmp_path / "vit", NAMES, PAPER)))
    whole = torch.full((1, 3, 8, 8), 51, dtype=torch.uint8)
    seen = task.encode(model, whole)["pixel_values"]
    torch.testing.assert_close(seen[0, 0], torch.full((16, 16), (0.2 - 0.5) / 0.25))
    ramp = torch.arange(8, dtype=torch.uint8).mul(30).expand(1, 3, 8, 8)
    grown = (task.encode(model, ramp)["pixel_values"][0, 1, 0] * 0.5 + 0.5) * 255
    truth = np.clip((np.arange(16) + 0.5) / 2 - 0.5, 0, 7) * 30
    np.testing.assert_allclose(grown.numpy(), truth, atol=1e-3)


def test_a_convolutional_network_of_transformers_takes_any_size(
    task: classification, tmp_path: Path
) -> None:
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], num_labels=3)
    config.id2label = dict(enumerate(NAMES))
    model = task.load(str(kept(ResNetForImageClassification(config), tmp_path / "r", None)))
    assert task.preprocessing(model)["normalization"]["mean"] == [0.485, 0.456, 0.406]
    assert task.score(model)["examples"] == task.size("validation")


def test_a_processor_without_rescaling_means_pixels_up_to_255(
    task: classification, tmp_path: Path
) -> None:
    paper = PAPER | {"do_rescale": False, "image_mean": [100.0] * 3, "image_std": [50.0] * 3}
    model = task.load(str(vit(tmp_path / "a", NAMES, paper)))
    whole = torch.full((1, 3, 16, 16), 200, dtype=torch.uint8)
    torch.testing.assert_close(
        task.encode(model, whole)["pixel_values"], torch.full((1, 3, 16, 16), 2.0)
    )
    paper = PAPER | {"do_normalize": False, "rescale_factor": 1 / 100}
    model = task.load(str(vit(tmp_path / "b", NAMES, paper)))
    torch.testing.assert_close(
        task.encode(model, whole)["pixel_values"], torch.full((1, 3, 16, 16), 2.0)
    )


def test_a_new_head_is_made_only_where_it_is_wanted(task: classification, tmp_path: Path) -> None:
    folder = str(vit(tmp_path / "vit", ["cat", "dog"], PAPER))
    assert "2 classes, but the data has 3" in said(lambda: task.load(folder), ModelError)
    model: Any = task.load(folder, new_head=True)
    assert model.untrained_head
    assert task.answers(model, "test").shape == (task.size("test"), 3)
    other = Brightness(7)
    assert task.load(other, new_head=True) is other
    assert other.head.out_features == 3
    same = Brightness()
    head = same.head
    assert task.load(same, new_head=True).head is head


def test_some_of_the_classes_will_do_where_that_is_said(
    task: classification, tmp_path: Path
) -> None:
    model = task.load(str(vit(tmp_path / "vit", ["two", "zero"], PAPER)), partly=True)
    answers = task.answers(model, "test")
    assert bool((answers[:, 1] == -torch.inf).all())
    assert bool(answers[:, [0, 2]].isfinite().all())


def test_an_onnx_file_answers_like_the_network_it_was_made_of(
    task: classification, tmp_path: Path
) -> None:
    student: Any = students.resnet(list(task.classes), depth=8, width=4).eval()
    student.normalization = {"mean": [0.1] * 3, "std": [0.9] * 3, "side": None}
    path = export.onnx(student, task.example, tmp_path / "student.onnx")
    task.save(student, tmp_path / "preprocessing")
    model = task.load(str(path))
    assert task.preprocessing(model) == task.preprocessing(student)
    torch.testing.assert_close(
        task.answers(model, "test"), task.answers(student, "test"), atol=1e-4, rtol=1e-4
    )


def test_what_is_saved_beside_a_model_is_what_transformers_reads(
    task: classification, tmp_path: Path
) -> None:
    model = task.load(str(vit(tmp_path / "vit", NAMES, PAPER)))
    task.save(model, tmp_path / "again")
    from transformers import ViTImageProcessorPil

    processor = ViTImageProcessorPil.from_pretrained(tmp_path / "again")
    picture = task.labelled[0][0]
    theirs = processor(Image.fromarray(picture.permute(1, 2, 0).numpy()), return_tensors="np")
    ours = task.encode(model, picture[None])["pixel_values"].numpy()
    # Pillow rounds the scaled pixels to whole ones, which is a 510th of the range either way.
    np.testing.assert_allclose(ours, theirs["pixel_values"], atol=0.5 / 255 / 0.25 + 1e-4)


class Unnamed(nn.Module):
    def forward(self, picture: Tensor) -> Tensor:
        return picture


def test_networks_that_do_not_fit_are_refused_in_a_sentence(
    task: classification, tmp_path: Path
) -> None:
    student = students.save(students.resnet(list(NAMES), depth=8, width=4), tmp_path / "student")
    cases: list[tuple[Any, str]] = [
        (Unnamed(), "pixel_values"),
        (3, "type int"),
        (str(tmp_path / "no.onnx"), "There is no file"),
        (str(tmp_path / "nowhere"), "There is no folder"),
        (str(tmp_path), "no config.json"),
        (str(student), "attar.students.load"),
        (str(tmp_path / "w.safetensors"), "attar.students.load"),
        (" ", "no name"),
    ]
    for name, words in cases:
        assert words in said(lambda name=name: task.load(name), ModelError)
    assert "no linear layer" in said(lambda: task.load(Headless(), new_head=True), ModelError)


class Headless(nn.Module):
    def forward(self, pixel_values: Tensor) -> Tensor:
        return pixel_values


def test_timm_and_torchvision_lend_networks_with_their_numbers(
    task: classification, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stand-ins with the functions that are asked of both libraries."""

    class Placed(Brightness):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    facts = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2), "input_size": (3, 12, 12)}
    timm = SimpleNamespace(
        create_model=lambda _, **__: Placed(7),
        data=SimpleNamespace(resolve_model_data_config=lambda _: facts),
    )
    shown = SimpleNamespace(mean=[0.5] * 3, std=[0.2] * 3, crop_size=[12])
    weights = SimpleNamespace(DEFAULT=SimpleNamespace(transforms=lambda: shown))
    models = SimpleNamespace(
        get_model_weights=lambda _: weights, get_model=lambda _, **__: Placed(7)
    )
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(models=models))
    for name in ("timm:net", "torchvision:net"):
        assert "7 classes" in said(lambda name=name: task.load(name), ModelError)
        model = task.load(name, new_head=True)
        assert task.preprocessing(model)["normalization"] == {
            "mean": [0.5] * 3,
            "std": [0.2] * 3,
            "side": 12,
        }
        assert task.score(model)["examples"] == task.size("validation")


@pytest.mark.parametrize(
    ("library", "call"),
    [
        ("timm", lambda task, _: task.load("timm:resnet18")),
        ("torchvision", lambda task, _: task.load("torchvision:resnet18")),
        ("PIL", lambda _, path: classification(dataset=path)),
    ],
)
def test_a_library_that_is_missing_is_named_with_its_extra(
    library: str,
    call: Callable[[Any, str], Any],
    task: classification,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen, labels = few()
    path = str(by_class(tmp_path / "d", seen, labels))
    monkeypatch.setitem(sys.modules, library, None)
    sentence = said(lambda: call(task, path), MissingExtra)
    assert f"attar[{'vision' if library == 'PIL' else library}]" in sentence


def test_arrays_of_their_own_size_need_no_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert digits(tmp_path).shape == (8, 8)


def test_reading_says_what_a_row_is_called(tmp_path: Path) -> None:
    seen, labels = few()
    album = reading.read(str(by_class(tmp_path / "d", seen, labels)))["train"]
    assert album.unit == "file"
    assert album.lines[0] == str(Path("one") / "001.png")
