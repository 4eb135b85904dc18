"""Tables of texts and labels from csv, tsv, jsonl, parquet, a folder of these, or `datasets`."""

from __future__ import annotations

import csv
import gzip
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from attar.errors import DataError, MissingExtra, nearest

TEXT_NAMES = ("text", "sentence", "question", "query", "utterance", "content", "document", "review")
LABEL_NAMES = ("label", "labels", "intent", "category", "class", "target", "topic", "sentiment")
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "eval"),
    "unlabelled": ("unlabelled", "unlabeled", "pool"),
}


@dataclass(frozen=True)
class Table:
    """Texts with their labels; a label is None where the source leaves it open."""

    source: str
    texts: tuple[str, ...]
    labels: tuple[str | None, ...]


Columns = dict[str, list[Any]]


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
    path = Path(dataset).expanduser()
    if path.is_file():
        name = only or "train"
        return {name: _table(path.name, _read_file(path), columns, name != "unlabelled")}
    if path.is_dir():
        return _read_folder(path, columns)
    if only is not None or path.suffix in _READERS or path.suffix == ".gz" or dataset[0] in "./~":
        raise DataError(f"There is no file {dataset!r} (looked in {Path.cwd()}).")
    return _read_datasets(dataset, columns)


def _read_folder(folder: Path, columns: dict[str, str]) -> dict[str, Table]:
    tables = {}
    for split, stems in SPLITS.items():
        files = [
            path
            for path in sorted(folder.iterdir())
            if path.name.split(".")[0].lower() in stems and _reader(path) is not None
        ]
        if len(files) > 1:
            names = ", ".join(path.name for path in files)
            raise DataError(f"{folder} has more than one file for {split}: {names}; keep one.")
        if files:
            content = _read_file(files[0])
            tables[split] = _table(files[0].name, content, columns, split != "unlabelled")
    if "train" not in tables:
        raise DataError(f"{folder} has no train file (train.csv, .tsv, .jsonl or .parquet).")
    return tables


def _read_datasets(name: str, columns: dict[str, str]) -> dict[str, Table]:
    try:
        import datasets
    except ImportError as error:
        missing = f"{name!r} is no file or folder here; reading it as a dataset's name"
        raise MissingExtra("datasets", "data", missing) from error
    repository, _, configuration = name.partition(":")
    try:
        splits = datasets.load_dataset(repository, configuration or None)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{name!r} is no file here and `datasets` can't load it: {reason}") from error
    tables = {}
    for split, stems in SPLITS.items():
        if found := next((stem for stem in stems if stem in splits), None):
            rows = splits[found]
            content: Columns = {column: list(rows[column]) for column in rows.column_names}
            for column, feature in rows.features.items():
                if isinstance(feature, datasets.ClassLabel):
                    content[column] = [feature.names[n] for n in content[column]]
            tables[split] = _table(f"{name}/{found}", content, columns, split != "unlabelled")
    if "train" not in tables:
        raise DataError(f"{name!r} has no train split, only {', '.join(splits)}.")
    return tables


def _table(source: str, content: Columns, columns: dict[str, str], labelled: bool) -> Table:
    if not content or not any(content.values()):
        raise DataError(f"{source} holds no rows.")
    label = _column(source, content, "label", columns.get("label"), LABEL_NAMES, labelled)
    text = _column(source, content, "text", columns.get("text"), TEXT_NAMES, True, spare=label)
    texts = tuple("" if _missing(value) else str(value) for value in content[text or ""])
    if label is None:
        return Table(source, texts, (None,) * len(texts))
    return Table(source, texts, tuple(_label(value) for value in content[label]))


def _column(
    source: str,
    content: Columns,
    role: str,
    named: str | None,
    usual: Sequence[str],
    needed: bool,
    spare: str | None = None,
) -> str | None:
    if named is not None:
        if named not in content:
            if not needed:
                return None
            raise DataError(f"{source} has no column {named!r}; {nearest(named, content)}")
        return named
    lowered = {str(column).strip().lower(): column for column in content}
    if found := next((lowered[name] for name in usual if name in lowered), None):
        return found
    others = [column for column in content if column != spare]
    if role == "text" and len(others) == 1:
        return others[0]
    if not needed:
        return None
    listed = ", ".join(map(str, content))
    raise DataError(
        f"{source} has no column that is plainly the {role} (it has: {listed}); "
        f"name it with `columns: {{{role}: NAME}}`."
    )


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _label(value: Any) -> str | None:
    if _missing(value):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip()
    return None if text == "" or text.lower() == "nan" else text


def _read_file(path: Path) -> Columns:
    reader = _reader(path)
    if reader is None:
        raise DataError(f"{path} is of no known kind; give csv, tsv, jsonl (or .gz), or parquet.")
    try:
        return reader(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); re-save it.") from error
    except (OSError, EOFError) as error:
        raise DataError(f"{path} can't be read: {error}") from error


def _reader(path: Path) -> Callable[[Path], Columns] | None:
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    return _READERS.get(suffixes[-1].lower()) if suffixes else None


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _read_delimited(path: Path) -> Columns:
    csv.field_size_limit(2**31 - 1)
    with _open(path) as file:
        head = file.readline()
        file.seek(0)
        delimiter = "\t" if ".tsv" in path.suffixes else max(",;\t", key=head.count)
        try:
            return _columns(path, csv.DictReader(file, delimiter=delimiter, strict=True))
        except csv.Error as error:
            raise DataError(f"{path} is not well-formed: {error}.") from error


def _columns(path: Path, rows: csv.DictReader[str]) -> Columns:
    names = rows.fieldnames or []
    content: Columns = {name: [] for name in names}
    for row in rows:
        if row.get(None) or None in row.values():  # type: ignore[call-overload]
            raise DataError(
                f"{path}, line {rows.line_num}: {len(names)} columns are named in the first line, "
                "but this one has another number; quote texts that hold the delimiter."
            )
        for name in names:
            content[name].append(row[name])
    return content


def _read_jsonl(path: Path) -> Columns:
    rows: list[dict[str, Any]] = []
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise DataError(f"{path}, line {number} is not JSON: {error}.") from error
                if not isinstance(row, dict):
                    raise DataError(f"{path}, line {number} is not a JSON object.")
                rows.append(row)
    names: Iterable[str] = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _read_parquet(path: Path) -> Columns:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "data", f"reading {path.name}") from error
    try:
        content: Columns = pyarrow.parquet.read_table(path).to_pydict()
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a parquet file: {error}.") from error
    return content


_READERS: dict[str, Callable[[Path], Columns]] = {
    ".csv": _read_delimited,
    ".tsv": _read_delimited,
    ".jsonl": _read_jsonl,
    ".json": _read_jsonl,
    ".parquet": _read_parquet,
}
