"""Tables of texts and labels from csv, tsv, jsonl, parquet, a folder of these, or `datasets`."""

from __future__ import annotations

import csv
import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import BufferedReader, TextIOWrapper
from pathlib import Path
from typing import Any

from attar.errors import DataError, MissingExtra, nearest
from attar.tasks.tables import SPLITS, Table, column_of, hub, named, named_after, names_of, reason

USUAL = {
    "text": ("sentence", "question", "query", "utterance", "content", "document", "review"),
    "label": ("labels", "intent", "category", "class", "target", "topic", "sentiment"),
}
"""Names that columns of a role go by, where none has the role's own name."""


@dataclass(frozen=True)
class Content:
    """What a source holds, before it is known which columns matter."""

    columns: dict[str, list[Any]]
    lines: Sequence[int]
    unit: str = "line"


def read(
    dataset: str, columns: dict[str, str] | None = None, only: str | None = None
) -> dict[str, Table]:
    """The splits of a dataset, by name: train, and validation, test, unlabelled where there are.

    dataset: a file, a folder with a file per split, or a name the `datasets` library knows
    columns: {"text": name, "label": name}; what is left out is found by its usual names
    only: read a single file as this split
    Raises DataError with what is wrong and what to do.
    """
    columns = columns or {}
    if unknown := set(columns) - {"text", "label"}:
        word = min(unknown)
        raise DataError(f"columns has no {word!r}; {nearest(word, ('text', 'label'))}")
    if not dataset.strip():
        raise DataError("The name of the dataset is empty; give a file, a folder or a hub name.")
    path = Path(dataset).expanduser()
    if path.is_file():
        name = only or "train"
        return {name: _table(str(path), whole(path), columns, name != "unlabelled")}
    if path.is_dir() and only is not None:
        raise DataError(f"{path} is a folder; give the one file to {only} on.")
    if path.is_dir():
        return _read_folder(path, columns)
    if only is not None or path.suffix.lower() in _FILES or dataset[0] in "./~":
        raise DataError(f"There is no file {dataset!r} (looked in {Path.cwd()}).")
    return _read_datasets(dataset, columns)


def peek(dataset: str) -> Content:
    """What a file, or the training file of a folder, holds before its columns have a meaning."""
    path = Path(dataset).expanduser()
    inside = sorted(path.iterdir()) if path.is_dir() else []
    train = [file for file in inside if named_after("train", file)]
    return whole(next((file for file in train if _reader(file)), path))


def known(path: Path) -> bool:
    """Whether a file is of a kind that can be read, by its name."""
    return _reader(path) is not None


def _read_folder(folder: Path, columns: dict[str, str]) -> dict[str, Table]:
    entries = sorted(folder.iterdir())
    tables = {}
    for split in SPLITS:
        files = [path for path in entries if named_after(split, path) and known(path)]
        if len(files) > 1:
            names = ", ".join(path.name for path in files)
            raise DataError(f"{folder} has more than one file for {split}: {names}; keep one.")
        if files:
            content = whole(files[0])
            tables[split] = _table(str(files[0]), content, columns, split != "unlabelled")
    if "train" not in tables:
        listed = ", ".join(path.name for path in entries[:9]) or "nothing"
        raise DataError(
            f"{folder} has no train file (train.csv, .tsv, .jsonl or .parquet); it has {listed}."
        )
    return tables


def _read_datasets(name: str, columns: dict[str, str]) -> dict[str, Table]:
    tables = {}
    for split, (source, rows) in hub(name).items():
        content = {column: list(rows[column]) for column in rows.column_names}
        for column, feature in rows.features.items():
            if names := names_of(feature):
                content[column] = [named(names, n) for n in content[column]]
        rows_of = Content(content, range(1, len(rows) + 1), "row")
        tables[split] = _table(source, rows_of, columns, split != "unlabelled")
    return tables


def _table(source: str, content: Content, columns: dict[str, str], labelled: bool) -> Table:
    if not content.lines:
        raise DataError(f"{source} holds no rows.")
    names = list(content.columns)
    if len(set(columns.values())) < len(columns):
        raise DataError(f"{source}: {columns['text']!r} can't be both the text and the label.")
    rest = [name for name in names if name != columns.get("text")]
    label = column_of(source, rest, "label", USUAL, columns.get("label"), needed=labelled)
    rest = [name for name in names if name != label]
    text = column_of(source, rest, "text", USUAL, columns.get("text"), alone=True)
    texts = tuple(_plain(source, content, text, n) or "" for n in range(len(content.lines)))
    labels: tuple[str | None, ...] = (None,) * len(texts)
    if label is not None:
        labels = tuple(_label(_plain(source, content, label, n)) for n in range(len(texts)))
    return Table(source, texts, labels, content.lines, content.unit)


def _plain(source: str, content: Content, column: str | None, row: int) -> str | None:
    """A value as a string; None where it is missing."""
    value = content.columns[column or ""][row]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    place = f"{source}, {content.unit} {content.lines[row]}"
    if isinstance(value, list | tuple | dict | bytes):
        kind = type(value).__name__
        raise DataError(f"{place}: the column {column!r} holds {kind}, where one string is needed.")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        raise DataError(
            f"{place}: the column {column!r} holds {half}, half a character."
        ) from error
    return text


def _label(text: str | None) -> str | None:
    text = (text or "").strip()
    return None if text == "" or text.lower() == "nan" else text


def whole(path: Path) -> Content:
    """What one file holds, by its columns. Raises DataError where it can't be read."""
    reader = _reader(path)
    if reader is None:
        raise DataError(f"{path} is of no known kind; give csv, tsv, jsonl (or .gz), or parquet.")
    try:
        return _decoded(reader, path)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} can't be read: {reason(error)}") from error


def _decoded(reader: Callable[[Path], Content], path: Path) -> Content:
    try:
        return reader(path)
    except UnicodeDecodeError as error:
        line = _not_utf8(path)
        raise DataError(f"{path}, line {line} is not UTF-8; re-save it as UTF-8.") from error


def _reader(path: Path) -> Callable[[Path], Content] | None:
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    return _READERS.get(suffixes[-1]) if suffixes else None


def _binary(path: Path) -> gzip.GzipFile | BufferedReader:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")


def _open(path: Path) -> TextIOWrapper:
    return TextIOWrapper(_binary(path), encoding="utf-8-sig", newline="")


def _not_utf8(path: Path) -> int:
    """The first line that can't be decoded; no character of UTF-8 reaches over a line's end."""
    with _binary(path) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


def _read_delimited(path: Path) -> Content:
    csv.field_size_limit(2**31 - 1)
    with _open(path) as file:
        head = file.readline()
        file.seek(0)
        signs = "\t,;|" if ".tsv" in path.name.lower() else ",;\t|"
        delimiter = max(signs, key=lambda sign: len(next(csv.reader([head], delimiter=sign), [])))
        rows = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            return _columns(path, rows)
        except csv.Error as error:
            raise DataError(
                f"{path}, line {rows.line_num} is not well-formed: {error}; check its quotes."
            ) from error


def _columns(path: Path, rows: Any) -> Content:
    names: list[str] = next(rows, [])
    if double := {name for name in names if names.count(name) > 1}:
        raise DataError(f"{path} names the column {min(double)!r} twice; rename one.")
    cells: list[list[str]] = []
    lines: list[int] = []
    line = rows.line_num + 1
    for row in rows:
        if row and len(row) != len(names):
            raise DataError(
                f"{path}, line {line}: {len(names)} columns are named in the first line, but this "
                f"one has {len(row)}; quote texts that hold the delimiter."
            )
        if row:
            cells.append(row)
            lines.append(line)
        line = rows.line_num + 1
    columns = zip(*cells, strict=True) if cells else ([] for _ in names)
    return Content({name: list(column) for name, column in zip(names, columns, strict=True)}, lines)


def _read_jsonl(path: Path) -> Content:
    rows: list[Any] = []
    lines: list[int] = []
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except ValueError as error:
                    raise DataError(f"{path}, line {number} is not JSON: {error}.") from error
                lines.append(number)
    return _objects(path, rows, lines, "line")


def _read_json(path: Path) -> Content:
    """A list of objects; or, since many call it so, JSON lines."""
    with _open(path) as file:
        if file.read(64).lstrip()[:1] != "[":
            return _read_jsonl(path)
        file.seek(0)
        try:
            rows = json.load(file)
        except ValueError as error:
            raise DataError(f"{path} is not JSON: {error}.") from error
    return _objects(path, rows, range(1, len(rows) + 1), "row")


def _objects(path: Path, rows: list[Any], lines: Sequence[int], unit: str) -> Content:
    for row, line in zip(rows, lines, strict=True):
        if not isinstance(row, dict):
            raise DataError(f"{path}, {unit} {line} is not a JSON object.")
    names: Iterable[str] = dict.fromkeys(name for row in rows for name in row)
    return Content({name: [row.get(name) for row in rows] for name in names}, lines, unit)


def _read_parquet(path: Path) -> Content:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "data", f"reading {path.name}") from error
    try:
        table = pyarrow.parquet.read_table(path)
        columns: dict[str, list[Any]] = table.to_pydict()
    except (pyarrow.ArrowException, ValueError) as error:
        raise DataError(f"{path} can't be read as parquet: {reason(error)}") from error
    return Content(columns, range(1, table.num_rows + 1), "row")


_READERS: dict[str, Callable[[Path], Content]] = {
    ".csv": _read_delimited,
    ".tsv": _read_delimited,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
_FILES = (*_READERS, ".gz", ".txt", ".xlsx", ".xls", ".zip")
"""Endings that no name of a dataset has, so that a missing file is not looked for on the hub."""
