"""Albums of pictures and labels: a folder per class, npz, parquet, arrow, or `datasets`."""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from attar.errors import DataError, MissingExtra, nearest
from attar.tasks.tables import SPLITS, column_of, hub, named_after, names_of, reason

PICTURES = {
    *(".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm"),
}
"""Endings of the files that are taken for pictures; whatever else lies beside them is not read."""
USUAL = {
    "image": ("images", "img", "x", "picture", "pictures", "pixel_values"),
    "label": ("labels", "y", "class", "category", "target", "fine_label"),
}
"""Names that columns of a role go by, where none has the role's own name."""
NAMED = ("names", "classes", "class_names")
"""Where an npz has the names of the classes that its labels number."""

Raw = bytes | Path | np.ndarray[Any, Any]
"""A picture before it is decoded: a file's content, the file, or an array of its pixels."""


class Rows(Protocol):
    """Pictures before they are decoded, one for each row."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Any: ...


@dataclass(frozen=True)
class Album:
    """Pictures as their source holds them; a label is None where the source leaves it open.

    lines: where each stands in the source, counted in its `unit`s (row or file)
    classes: all there are, in the source's own order, where it names them
    strange: what is wrong with a row's label, by the number of the row
    """

    source: str
    pictures: Rows
    labels: Sequence[str | None]
    lines: Sequence[int | str]
    unit: str
    classes: tuple[str, ...]
    strange: Mapping[int, str]


def read(
    dataset: str, columns: dict[str, str] | None = None, only: str | None = None
) -> dict[str, Album]:
    """The splits of a dataset, by name: train, and validation, test, unlabelled where there are.

    dataset: a file, a folder with a file or a folder per split, a folder with a folder per class,
        or a name the `datasets` library knows
    columns: {"image": name, "label": name}; what is left out is found by its usual names
    only: read a single file, or a folder with a folder per class, as this split
    Raises DataError with what is wrong and what to do.
    """
    columns = columns or {}
    if unknown := set(columns) - set(USUAL):
        word = min(unknown)
        raise DataError(f"columns has no {word!r}; {nearest(word, USUAL)}")
    if not dataset.strip():
        raise DataError("The name of the dataset is empty; give a file, a folder or a hub name.")
    path = Path(dataset).expanduser()
    if path.is_file():
        return {only or "train": _read_file(path, columns, only != "unlabelled")}
    if path.is_dir() and only is not None:
        return {only: _by_folder(path)}
    if path.is_dir():
        return _read_folder(path, columns)
    if only is not None or path.suffix.lower() in _READERS or dataset[0] in "./~":
        raise DataError(f"There is no file or folder {dataset!r} (looked in {Path.cwd()}).")
    return _read_datasets(dataset, columns)


def _read_folder(folder: Path, columns: dict[str, str]) -> dict[str, Album]:
    """A file per split, a folder per split, or nothing but classes, all of them to train on."""
    albums = {}
    for split in SPLITS:
        found = [
            path
            for path in sorted(folder.iterdir())
            if named_after(split, path) and (path.is_dir() or path.suffix.lower() in _READERS)
        ]
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise DataError(f"{folder} has more than one {split} part: {names}; keep one.")
        if found and found[0].is_file():
            albums[split] = _read_file(found[0], columns, split != "unlabelled")
        elif found:
            albums[split] = (_pool if split == "unlabelled" else _by_folder)(found[0])
    if albums and "train" not in albums:
        raise DataError(f"{folder} has parts ({', '.join(albums)}), but none to train on.")
    return albums or {"train": _by_folder(folder)}


def _by_folder(folder: Path) -> Album:
    """Pictures in folders that are named for their classes."""
    classes = [path for path in sorted(folder.iterdir()) if _shown(path) and path.is_dir()]
    if not classes:
        listed = ", ".join(sorted(path.name for path in folder.iterdir())[:9]) or "nothing"
        raise DataError(
            f"{folder} has no folder for each class and no train file; it has {listed}."
        )
    files, labels = [], []
    for each in classes:
        inside = _pictures_in(each)
        if not inside:
            raise DataError(f"{each} holds no pictures; remove it, or put some there.")
        files += inside
        labels += [each.name] * len(inside)
    return _files(folder, files, labels)


def _pool(folder: Path) -> Album:
    files = _pictures_in(folder)
    if not files:
        raise DataError(f"{folder} holds no pictures; remove it, or put some there.")
    return _files(folder, files, [None] * len(files))


def _files(folder: Path, files: list[Path], labels: Sequence[str | None]) -> Album:
    lines = [str(file.relative_to(folder)) for file in files]
    return Album(str(folder), files, labels, lines, "file", (), {})


def _pictures_in(folder: Path) -> list[Path]:
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in PICTURES and _shown(path) and path.is_file()
    ]


def _shown(path: Path) -> bool:
    return not path.name.startswith(".")


def _read_file(path: Path, columns: dict[str, str], labelled: bool) -> Album:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path} is of no known kind; give npz, parquet, arrow or a folder.")
    try:
        return reader(path, columns, labelled)
    except (OSError, EOFError, TypeError, ValueError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(f"{path} can't be read: {reason(error)}") from error


def _album(
    source: str, pictures: Rows, values: Sequence[Any] | None, classes: tuple[str, ...]
) -> Album:
    """Rows of a table, their labels as strings."""
    count = len(pictures)
    if not count:
        raise DataError(f"{source} holds no pictures.")
    if values is not None and len(values) != count:
        raise DataError(f"{source} has {count} pictures and {len(values)} labels.")
    labels: list[str | None] = []
    strange: dict[int, str] = {}
    for row, value in enumerate(values if values is not None else [None] * count):
        label, wrong = _label(value, classes)
        labels.append(label)
        if wrong:
            strange[row] = wrong
    return Album(source, pictures, labels, range(1, count + 1), "row", classes, strange)


def _label(value: Any, classes: Sequence[str]) -> tuple[str | None, str]:
    """A label as the name of a class, and what is wrong with it, if anything is."""
    if value in (None, "") or (isinstance(value, float) and math.isnan(value)):
        return None, ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int):
        return None, f"has a label of type {type(value).__name__}, where a class is needed"
    if not classes:
        return str(value), ""
    if value in classes:
        return str(value), ""
    if isinstance(value, str) or not -1 <= value < len(classes):
        return None, f"has the class {value!r}, and there are {len(classes)} named classes"
    return (None if value == -1 else classes[value]), ""  # `datasets` keeps a secret with -1


@dataclass(frozen=True)
class Blob:
    """Files of pictures one behind the other in one array, each from its offset to the next."""

    content: np.ndarray[Any, Any]
    offsets: np.ndarray[Any, Any]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: Any) -> Any:
        return self.content[self.offsets[row] : self.offsets[row + 1]].tobytes()


def _read_npz(path: Path, columns: dict[str, str], labelled: bool) -> Album:
    with np.load(path, allow_pickle=False) as file:
        held = {name: file[name] for name in file.files}
    names = next((held.pop(name) for name in NAMED if name in held), None)
    classes = () if names is None else tuple(names.reshape(-1).astype(str).tolist())
    if len({*classes}) < len(classes):
        raise DataError(f"{path} names a class twice: {', '.join(classes)}.")
    column = column_of(str(path), list(held), "label", USUAL, columns.get("label"), needed=labelled)
    values = None if column is None else held[column]
    if values is not None and values.size != len(values):
        raise DataError(
            f"{path}: {column!r} has the shape {values.shape}; give one class for each picture."
        )
    numbers = None if values is None else values.reshape(-1).tolist()
    return _album(str(path), _pixels(path, held, columns, column), numbers, classes)


def _pixels(path: Path, held: dict[str, Any], columns: dict[str, str], label: str | None) -> Rows:
    if {"blob", "offsets"} <= set(held):
        blob, offsets = held["blob"], held["offsets"].astype(np.int64)
        if blob.dtype != np.uint8 or (np.diff(offsets, append=blob.size) < 0).any():
            raise DataError(f"{path}: `offsets` must ascend within the bytes of `blob`.")
        return Blob(blob, offsets)
    rest = [name for name in held if name != label]
    column = column_of(str(path), rest, "image", USUAL, columns.get("image"))
    array = held[column or ""]
    if array.ndim == 4 and array.shape[-1] not in (1, 3, 4) and array.shape[1] in (1, 3, 4):
        array = np.moveaxis(array, 1, -1)
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[-1] not in (1, 3, 4)):
        raise DataError(
            f"{path}: {column!r} has the shape {array.shape}; pictures are (rows, height, width) "
            "or (rows, height, width, channels)."
        )
    return array  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Column:
    """A column of pictures, each its bytes, a path, or both as `datasets` writes them."""

    values: Any
    folder: Path

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, row: Any) -> Any:
        value = self.values[row]
        value = value if isinstance(value, dict | bytes | str) else value.as_py()
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        return self.folder / value if isinstance(value, str) else value or b""


def _read_arrow(path: Path, columns: dict[str, str], labelled: bool) -> Album:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "data", f"reading {path.name}") from error
    if path.suffix.lower() == ".parquet":
        table = pyarrow.parquet.read_table(path, memory_map=True)
    else:
        source = pyarrow.memory_map(str(path))
        try:
            table = pyarrow.ipc.open_file(source).read_all()
        except pyarrow.ArrowInvalid:  # `datasets` writes streams
            table = pyarrow.ipc.open_stream(source).read_all()
    names = table.column_names
    label = column_of(str(path), names, "label", USUAL, columns.get("label"), needed=labelled)
    rest = [name for name in names if name != label]
    image = column_of(str(path), rest, "image", USUAL, columns.get("image"), alone=True)
    _check_column(path, image, table.schema.field(image).type, pyarrow)
    values = None if label is None else table.column(label).to_pylist()
    classes = () if label is None else _classes_in(table.schema.metadata or {}, label)
    return _album(str(path), Column(table.column(image), path.parent), values, classes)


def _check_column(path: Path, name: str | None, kind: Any, pyarrow: Any) -> None:
    """Raises DataError where a column holds neither pictures nor their paths."""
    is_ = pyarrow.types
    single = (is_.is_binary, is_.is_large_binary, is_.is_string, is_.is_large_string)
    fields = {field.name for field in kind} if is_.is_struct(kind) else set()
    if not any(each(kind) for each in single) and not fields & {"bytes", "path"}:
        raise DataError(
            f"{path}: the column {name!r} holds {kind}; pictures are bytes of their files, or "
            "{bytes, path} as `datasets` writes them."
        )


def _classes_in(metadata: Mapping[bytes, bytes], label: str) -> tuple[str, ...]:
    """The classes that `datasets` wrote beside a table, by the numbers that stand in it."""
    told = json.loads(metadata.get(b"huggingface", b"{}"))
    for name in ("info", "features", label):
        told = told.get(name) or {}
    return tuple(told.get("names") or ())


@dataclass(frozen=True)
class Field:
    """A column of a dataset, read from disk row by row."""

    rows: Any
    column: str

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: Any) -> Any:
        return self.rows[row][self.column]


def _read_datasets(name: str, columns: dict[str, str]) -> dict[str, Album]:
    albums = {}
    for split, (source, rows) in hub(name).items():
        import datasets

        names = rows.column_names
        needed = split != "unlabelled"
        label = column_of(source, names, "label", USUAL, columns.get("label"), needed=needed)
        rest = [column for column in names if column != label]
        image = column_of(source, rest, "image", USUAL, columns.get("image"), alone=True) or ""
        pictures = rows.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        values = None if label is None else list(rows[label])
        classes = () if label is None else names_of(rows.features[label])
        albums[split] = _album(source, Column(Field(pictures, image), Path()), values, classes)
    return albums


_READERS: dict[str, Callable[[Path, dict[str, str], bool], Album]] = {
    ".npz": _read_npz,
    ".parquet": _read_arrow,
    ".arrow": _read_arrow,
}
