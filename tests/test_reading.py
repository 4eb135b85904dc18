"""Reading: every file a user may have is read exactly, or one sentence says what is wrong."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest

from attar.errors import AttarError, DataError
from attar.tasks.text.reading import Table, peek, read

TEXTS = (
    "plain",
    "a, comma; a semicolon\tand a tab | and a bar",
    'she said "no"',
    "two\nlines",
    "two\r\nWindows lines",
    "Zürich, 東京, привет, مرحبا, 🙂, e\u0301",
    "",
    "  spaces around  ",
    "NULL",
    "\x00 and \u2028 within",
)
ZIPPED = gzip.compress(b"text,label\n" + b"a,x\n" * 99, mtime=0)
LABELS = tuple(f"class {n % 3}" for n in range(len(TEXTS)))


def write_csv(path: Path, columns: dict[str, Any], **form: Any) -> Path:
    """A file as the csv module of the standard library writes it."""
    with path.open("w", newline="", encoding=form.pop("encoding", "utf-8")) as file:
        writer = csv.writer(file, **form)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, columns: dict[str, Any]) -> Path:
    pandas.DataFrame(columns).to_parquet(path)
    return path


def train(path: Path | str, **columns: str) -> Table:
    """The one table of a file."""
    (table,) = read(str(path), columns).values()
    return table


def said(call: Callable[[], Any]) -> str:
    """The sentence a user meets: a child of AttarError, on one line, with nothing cut off."""
    with pytest.raises(AttarError) as caught:
        call()
    message = str(caught.value)
    assert isinstance(caught.value, DataError)
    assert "\n" not in message
    assert len(message) > 20
    return message


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_csv_of_any_delimiter_line_end_and_mark_is_read_to_the_letter(
    tmp_path: Path, delimiter: str, ending: str, encoding: str
) -> None:
    columns = {"text": TEXTS, "label": LABELS}
    path = write_csv(
        tmp_path / "data.csv",
        columns,
        delimiter=delimiter,
        lineterminator=ending,
        encoding=encoding,
    )
    table = train(path)
    assert table.texts == TEXTS
    assert table.labels == LABELS


@pytest.mark.parametrize("name", ["d.csv", "d.CSV", "d.v2.tsv", "D.TSV", "d.csv.gz", "d.tsv.GZ"])
def test_endings_are_understood_in_either_case_and_compressed(tmp_path: Path, name: str) -> None:
    plain = write_csv(
        tmp_path / "plain",
        {"text": TEXTS, "label": LABELS},
        delimiter="\t" if "tsv" in name.lower() else ",",
    )
    path = tmp_path / name
    raw = plain.read_bytes()
    path.write_bytes(gzip.compress(raw) if name.lower().endswith("gz") else raw)
    assert train(path).texts == TEXTS


@pytest.mark.parametrize("zipped", [False, True])
def test_jsonl_and_json_lists_are_read_to_the_letter(tmp_path: Path, zipped: bool) -> None:
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]
    lines = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    for name, content in {
        "a.jsonl": "\ufeff" + lines,
        "b.json": lines,
        "c.json": "\n " + json.dumps(rows, indent=2),
    }.items():
        path = tmp_path / (name + ".gz" * zipped)
        raw = content.encode()
        path.write_bytes(gzip.compress(raw) if zipped else raw)
        table = train(path)
        assert (table.texts, table.labels) == (TEXTS, LABELS)


def test_parquet_is_read_to_the_letter(tmp_path: Path) -> None:
    table = train(write_parquet(tmp_path / "d.parquet", {"text": TEXTS, "label": LABELS}))
    assert (table.texts, table.labels) == (TEXTS, LABELS)


def test_labels_that_are_numbers_or_truths_become_names(tmp_path: Path) -> None:
    cases = {
        "integers": ([0, 1, 10], ("0", "1", "10")),
        "floats": ([0.0, 1.0, 2.5], ("0", "1", "2.5")),
        "truths": ([True, False, True], ("True", "False", "True")),
        "negative": ([-1, 0, 1], ("-1", "0", "1")),
    }
    for name, (values, names) in cases.items():
        columns = {"text": ["a", "b", "c"], "label": values}
        assert train(write_parquet(tmp_path / f"{name}.parquet", columns)).labels == names
        rows = [{"text": "a", "label": value} for value in values]
        assert train(write_jsonl(tmp_path / f"{name}.jsonl", rows)).labels == names


def test_missing_texts_are_empty_and_missing_labels_are_none(tmp_path: Path) -> None:
    columns = {"text": ["a", None, "c", "d"], "label": ["x", "y", None, "z"]}
    from_parquet = train(write_parquet(tmp_path / "d.parquet", columns))
    from_csv = train(
        write_csv(tmp_path / "d.csv", {"text": "abcd", "label": [" x ", "", "NaN", "None"]})
    )
    rows = [{"text": "a", "label": float("nan")}, {"label": None, "text": None}, {"text": "c"}]
    from_json = train(write_jsonl(tmp_path / "d.jsonl", rows))
    assert from_parquet.texts == ("a", "", "c", "d")
    assert from_parquet.labels == ("x", "y", None, "z")
    assert from_csv.labels == ("x", None, None, "None")
    assert from_json.texts == ("a", "", "c")
    assert from_json.labels == (None, None, None)


def test_a_row_knows_the_line_it_begins_on(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text('text,label\n"one\ntwo",a\n\n\nthree,b\n"f\n\nour",c\nfive,d\n')
    table = train(path)
    assert list(table.lines) == [2, 6, 7, 10]
    assert table.at(3) == f"{path}, line 10"
    lines = tmp_path / "d.jsonl"
    lines.write_text('\n{"text": "a", "label": "x"}\n\n{"text": "b", "label": "x"}\n')
    assert list(train(lines).lines) == [2, 4]
    rows = write_parquet(tmp_path / "d.parquet", {"text": ["a", "b"], "label": ["x", "y"]})
    assert train(rows).at(1) == f"{rows}, row 2"


@pytest.mark.parametrize(
    ("header", "text", "label"),
    [
        ("label,text", "text", "label"),
        ("Sentence, Intent", "Sentence", " Intent"),
        ("id,text,sentence,label,category", "text", "label"),
        ("customer words,category", "customer words", "category"),
    ],
)
def test_columns_are_found_by_their_usual_names(
    tmp_path: Path, header: str, text: str, label: str
) -> None:
    names = header.split(",")
    path = tmp_path / "d.csv"
    path.write_text(header + "\n" + ",".join(f"in {name}" for name in names))
    table = train(path)
    assert table.texts == (f"in {text}",)
    assert table.labels == (f"in {label}".strip(),)


def test_columns_are_taken_as_the_user_names_them(tmp_path: Path) -> None:
    path = write_csv(
        tmp_path / "d.csv", {"text": ["no"], "label": ["no"], "Frage": ["ja"], "Absicht": ["gut"]}
    )
    table = train(path, text="Frage", label="Absicht")
    assert (table.texts, table.labels) == (("ja",), ("gut",))
    assert train(path, text="label", label="text").labels == ("no",)


@pytest.mark.parametrize(
    ("header", "columns", "expected"),
    [
        (
            "question,content,label",
            {},
            "several columns that could be the text (question, content)",
        ),
        ("text,intent,category", {}, "several columns that could be the label (intent, category)"),
        ("text,Label,label", {}, "several columns that could be the label (Label, label)"),
        ("one,two,label", {}, "no column that is plainly the text (it has: one, two); name it"),
        ("text,klass", {}, "no column that is plainly the label (it has: text, klass)"),
        ("text,label", {"text": "txet"}, "has no column 'txet'; did you mean 'text'?"),
        ("text,label", {"label": "Label"}, "has no column 'Label'; did you mean 'label'?"),
        ("text,label", {"label": "text", "text": "text"}, "can't be both the text and the label"),
        ("text,label", {"lable": "label"}, "columns has no 'lable'; did you mean 'label'?"),
        ("text,label,text", {}, "names the column 'text' twice"),
        ("text", {}, "no column that is plainly the label"),
    ],
)
def test_columns_that_are_wrong_or_doubtful_are_named_in_one_sentence(
    tmp_path: Path, header: str, columns: dict[str, str], expected: str
) -> None:
    path = tmp_path / "d.csv"
    path.write_text(header + "\n" + ",".join("x" for _ in header.split(",")) + "\n")
    assert expected in said(lambda: read(str(path), columns))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("empty.csv", b"", "holds no rows"),
        ("empty.jsonl", b"", "holds no rows"),
        ("empty.json", b"[]", "holds no rows"),
        ("header.csv", b"text,label\n", "holds no rows"),
        ("bom.csv", b"\xef\xbb\xbftext,label\r\n\r\n", "holds no rows"),
        ("more.csv", b"text,label\na,x\nb,y,z\n", "line 3: 2 columns are named in the first line"),
        ("less.csv", b"text,label\n\na,x\nb\n", "line 4: 2 columns are named in the first line"),
        ("open.csv", b'text,label\n"a,x\nb,y\n', "not well-formed"),
        ("quote.csv", b'text,label\na,x\n"b" c,y\n', "line 3 is not well-formed"),
        ("latin.csv", "text,label\na,x\nZürich,y\n".encode("latin-1"), "line 3 is not UTF-8"),
        ("wide.csv", "text,label\na,x\n".encode("utf-16"), "line 1 is not UTF-8"),
        ("latin.jsonl", '\n\n{"text": "Zürich"}'.encode("latin-1"), "line 3 is not UTF-8"),
        ("broken.csv.gz", b"no gzip at all", "can't be read: Not a gzipped file"),
        ("short.csv.gz", ZIPPED[:-9], "can't be read"),
        ("bad.csv.gz", ZIPPED[:12] + b"\xff" * 30, "can't be read"),
        ("bad.jsonl", b'{"text": "a", "label": "x"}\n{"text": \n', "line 2 is not JSON"),
        ("list.jsonl", b'\n["a", "x"]\n', "line 2 is not a JSON object"),
        ("bad.json", b'[{"text": "a"', "is not JSON"),
        ("words.json", b'[{"text": "a", "label": "x"}, "b"]', "row 2 is not a JSON object"),
        ("frame.json", b'{"text": {"0": "a"}, "label": {"0": "x"}}', "'text' holds dict"),
        (
            "many.jsonl",
            b'{"text": "a", "label": ["x", "y"]}',
            "line 1: the column 'label' holds list",
        ),
        ("half.jsonl", b'{"text": "\\ud83d", "label": "x"}', "holds '\\ud83d', half a character"),
        ("bad.parquet", b"PAR1 and then nothing", "can't be read"),
        ("empty.parquet", b"", "can't be read"),
        ("book.xlsx", b"PK\x03\x04", "is of no known kind"),
        ("notes.txt", b"text,label\na,x\n", "is of no known kind"),
        ("nothing", b"text,label\na,x\n", "is of no known kind"),
        ("only.gz", ZIPPED, "is of no known kind"),
    ],
)
def test_files_that_cannot_be_read_say_why_and_where(
    tmp_path: Path, name: str, content: bytes, expected: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    message = said(lambda: read(str(path)))
    assert expected in message
    assert name in message


def test_a_parquet_file_that_was_cut_off_says_so(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "d.parquet", {"text": ["a"] * 99, "label": ["x"] * 99})
    path.write_bytes(path.read_bytes()[:-20])
    assert "can't be read" in said(lambda: read(str(path)))


def test_bytes_in_a_parquet_column_are_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "d.parquet", {"text": [b"a"], "label": ["x"]})
    assert "row 1: the column 'text' holds bytes" in said(lambda: read(str(path)))


@pytest.mark.parametrize("name", ["no.csv", "no.csv.gz", "no.xlsx", "./no", "/no/such", "~/no"])
def test_a_missing_file_is_not_looked_for_on_the_hub(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "load_dataset", None)
    assert f"There is no file {name!r}" in said(lambda: read(name))


def test_a_name_that_is_nowhere_says_where_it_was_looked_for() -> None:
    assert "'nobody/nothing' is no file here" in said(lambda: read("nobody/nothing"))
    assert "empty" in said(lambda: read(" "))


def test_a_folder_gives_a_table_for_each_split(tmp_path: Path) -> None:
    columns = {"text": ["a"], "label": ["x"]}
    write_csv(tmp_path / "train.csv", columns)
    write_csv(tmp_path / "dev.tsv", columns, delimiter="\t")
    write_parquet(tmp_path / "Test.parquet", columns)
    write_csv(tmp_path / "unlabeled.csv", {"anything": ["b"]})
    (tmp_path / "README.md").write_text("notes")
    (tmp_path / "train.md").write_text("notes")
    tables = read(str(tmp_path))
    assert set(tables) == {"train", "validation", "test", "unlabelled"}
    assert tables["unlabelled"].texts == ("b",)
    assert tables["unlabelled"].labels == (None,)


def test_an_unlabelled_file_may_have_labels_or_not(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", {"words": ["a"], "what": ["x"]})
    write_csv(tmp_path / "unlabelled.csv", {"words": ["b"], "id": ["7"]})
    tables = read(str(tmp_path), {"text": "words", "label": "what"})
    assert tables["unlabelled"].texts == ("b",)


def test_folders_that_are_not_whole_or_not_clear_say_so(tmp_path: Path) -> None:
    columns = {"text": ["a"], "label": ["x"]}
    assert "it has nothing" in said(lambda: read(str(tmp_path)))
    write_csv(tmp_path / "test.csv", columns)
    assert "has no train file" in said(lambda: read(str(tmp_path)))
    assert "it has test.csv" in said(lambda: read(str(tmp_path)))
    write_csv(tmp_path / "train.csv", columns)
    write_jsonl(tmp_path / "training.jsonl", [{"text": "a", "label": "x"}])
    message = said(lambda: read(str(tmp_path)))
    assert "more than one file for train: train.csv, training.jsonl" in message
    assert "is a folder" in said(lambda: read(str(tmp_path), only="test"))


def test_peeking_shows_the_columns_of_a_file_or_of_a_folders_training_file(tmp_path: Path) -> None:
    write_csv(tmp_path / "test.csv", {"other": ["b"]})
    path = write_csv(tmp_path / "train.csv", {"words": ["a"], "what": ["x"]})
    (tmp_path / "train.md").write_text("notes")
    for place in (path, tmp_path):
        assert peek(str(place)).columns == {"words": ["a"], "what": ["x"]}
    path.unlink()
    for place in (path, tmp_path):
        assert str(place) in said(lambda place=place: peek(str(place)))


class Hub:
    """Stands in for the hub."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked: tuple[Any, ...] = ()

    def __call__(self, *names: Any) -> Any:
        self.asked = names
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_a_dataset_of_the_hub_is_read_with_its_class_names(monkeypatch: pytest.MonkeyPatch) -> None:
    feature = datasets.ClassLabel(names=["yes", "no"])
    kinds = datasets.Features({"sentence": datasets.Value("string"), "label": feature})
    rows = {"sentence": ["a", "b", "c"], "label": [1, 0, -1]}
    data = datasets.Dataset.from_dict(rows, features=kinds)
    hub = Hub(datasets.DatasetDict({"train": data, "validation": data.select([0])}))
    monkeypatch.setattr(datasets, "load_dataset", hub)
    tables = read("some/data:small")
    assert hub.asked == ("some/data", "small")
    assert tables["train"].labels == ("no", "yes", None)
    assert tables["validation"].texts == ("a",)
    assert tables["train"].at(2) == "some/data:small/train, row 3"


def test_a_dataset_of_the_hub_without_train_or_with_a_silent_error_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = datasets.Dataset.from_dict({"text": ["a"], "label": ["x"]})
    monkeypatch.setattr(datasets, "load_dataset", Hub(datasets.DatasetDict({"test": data})))
    assert "has no train split, only test" in said(lambda: read("some/data"))
    monkeypatch.setattr(datasets, "load_dataset", Hub(RuntimeError()))
    assert "can't load it: RuntimeError" in said(lambda: read("some/data"))
    monkeypatch.setattr(datasets, "load_dataset", Hub(ValueError("first\nsecond")))
    assert said(lambda: read("some/data")).endswith("can't load it: first")


def test_banking77_is_whole() -> None:
    tables = read(str(Path(__file__).parents[1] / "data" / "banking77"))
    assert {name: len(table.texts) for name, table in tables.items()} == {
        "train": 10_003,
        "test": 3_080,
    }
    assert len(set(tables["train"].labels)) == 77
    assert set(tables["test"].labels) == set(tables["train"].labels)
    assert all(text == text.strip() != "" for text in tables["train"].texts)
