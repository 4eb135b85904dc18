"""Several runs in one report: side by side, never weighed across, and what differs is said."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from test_page import audit, difference
from test_report import Reader, measured

from attar.cli import main
from attar.errors import DataError
from attar.report import Report, join, schema, verdict
from attar.report.joining import titles


def run(seed: int = 0, **changes: Any) -> Report:
    """A run as `attar run` reports it."""
    rows = measured()
    rows = (*rows[:2], replace(rows[2], after="student"), *rows[3:])
    recipe = {
        "name": "intents",
        "seed": seed,
        "task": {"text.classification": {"dataset": "bank", "max_length": 64}},
        "losses": ["response.kl"],
        "text": f"seed: {seed}\nlosses: [response.kl]",
        "command": f"attar run intents.yaml --seed {seed}",
    }
    report = Report(
        recipe=recipe,
        environment={"cpu": "a cpu", "threads": 1, "torch": "2.13"},
        rows=rows,
        cost={"seconds": {"student": 4.0, "total": 9.0}},
        plan={
            "data": {"train": 9, "test": 3080},
            "classes": 77,
            "tables": {"Harm": [{"layer": "layer.0", "harm": 0.1}]},
        },
        verdict=verdict(rows, "accuracy", threads=1),
        history={"student": [{"step": 1, "loss": 2.0}]},
        score_name="accuracy",
        differences=(difference("student", "labels_only", 0.043),),
        audits={"student-int8_dynamic.onnx": audit()},
    )
    return replace(report, **changes)


@pytest.fixture
def joined() -> Report:
    return join({"a": run(), "b": run(seed=1)})


def test_every_row_of_every_run_is_there_once_under_its_run(joined: Report) -> None:
    names = [f"{name}: {row.name}" for name in "ab" for row in run().rows]
    assert [row.name for row in joined.rows] == names
    assert joined.row("b: student-int8_dynamic.onnx").after == "b: student"
    for row, known in zip(joined.rows, (*run().rows, *run().rows), strict=True):
        assert row.role == known.role
        assert replace(row, name=known.name, after=known.after, part=known.part) == known


def test_nothing_of_one_run_is_weighed_against_another(joined: Report) -> None:
    for pair in joined.pairs:
        assert pair.row.partition(": ")[0] == pair.against.partition(": ")[0]
    for name, each in joined.audits.items():
        assert name.partition(": ")[0] == each["against"].partition(": ")[0]
    assert len(joined.pairs) == len(joined.audits) == 2
    text = str(joined)
    for row in joined.rows:
        other = "b" if row.name.startswith("a") else "a"
        assert f"{row.name}, from {other}: " not in text


def test_what_runs_hold_besides_rows_stays_apart_by_run(joined: Report) -> None:
    assert set(joined.history) == {"a: student", "b: student"}
    assert joined.cost["seconds"] == {
        "a: student": 4.0,
        "a: total": 9.0,
        "b: student": 4.0,
        "b: total": 9.0,
    }
    assert set(joined.tables) == {"a: Harm", "b: Harm"}
    assert set(joined.decided) == {"a", "b"}
    assert "# a\nseed: 0" in joined.recipe["text"]
    assert "# b\nseed: 1" in joined.recipe["text"]
    assert joined.recipe["command"].splitlines() == [
        "attar run intents.yaml --seed 0",
        "attar run intents.yaml --seed 1",
    ]


def test_each_run_keeps_its_own_verdict_and_the_page_opens_with_both(joined: Report) -> None:
    for name in "ab":
        assert f"{name}: {run().headline}" in joined.verdict
    assert joined.headline == (
        "2 runs side by side: the best accuracy is 0.800 (a: student); the smallest to ship within "
        "a point of its peers is a: student-int8_dynamic.onnx (0.799, 3.2 MB)."
    )
    assert joined.html().count('class="big"') == 0


def test_the_seeds_are_said_to_differ_and_equal_environments_are_not(joined: Report) -> None:
    said = " ".join(joined.verdict)
    assert "Their seeds differ: 0 in a, 1 in b." in said
    assert "measured otherwise" not in said
    assert "recipes differ" not in said
    assert joined.environment == run().environment


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"environment": {"cpu": "another", "threads": 1, "torch": "2.13"}},
            "They were measured otherwise (cpu: a cpu in a, another in b): their times can't be",
        ),
        (
            {"environment": {"cpu": "a cpu", "threads": 1, "torch": "2.14"}},
            "Their environments differ too in torch: 2.13 in a, 2.14 in b.",
        ),
        (
            {"recipe": run().recipe | {"losses": ["response.dkd"], "baselines": []}},
            "Their recipes differ in losses, baselines; all are below.",
        ),
        (
            {"plan": {"data": {"test": 100}, "classes": 77}},
            "The runs were not tested on the same examples: their scores can't be compared.",
        ),
        (
            {"recipe": run().recipe | {"task": {"text.classification": {"dataset": "other"}}}},
            "The runs were not tested on the same examples: their scores can't be compared.",
        ),
    ],
)
def test_whatever_differs_is_said(change: dict[str, Any], sentence: str) -> None:
    assert sentence in " ".join(join({"a": run(), "b": run(**change)}).verdict)


def test_a_hash_of_the_test_split_decides_where_both_have_one() -> None:
    def tested(test_hash: str) -> Report:
        return run(plan={"data": {"test": 3080, "test_hash": test_hash}, "classes": 77})

    same = join({"a": tested("1f"), "b": tested("1f")})
    assert same.headline.startswith("2 runs side by side: the best")
    other = join({"a": tested("1f"), "b": tested("2f")})
    assert other.headline == (
        "2 runs side by side, not tested on the same examples: their scores can't be compared."
    )
    assert other.verdict[0].startswith("The runs were not tested on the same examples")


def test_other_kinds_of_scores_are_refused() -> None:
    with pytest.raises(DataError, match="accuracy in a, return in b"):
        join({"a": run(), "b": run(score_name="return")})


def test_a_joined_report_keeps_the_contract_and_shows_itself_everywhere(joined: Report) -> None:
    content = json.loads(json.dumps(joined.to_dict(), allow_nan=False))
    jsonschema.validate(content, schema())
    assert Report.from_dict(content) == joined
    reader = Reader(joined.html())
    assert reader.open == []
    labels = [value for name, value in reader.attributes if name == "aria-label"]
    assert len(labels) == len(set(labels))
    for row in joined.rows:
        assert row.name in reader.text
        assert row.name in joined.markdown()
        assert row.name in str(joined)


def test_runs_are_called_by_as_much_of_their_path_as_tells_them_apart(tmp_path: Path) -> None:
    assert titles([Path("runs/a"), Path("runs/b")]) == ["a", "b"]
    assert titles([Path("x/run"), Path("y/run")]) == ["x/run", "y/run"]
    assert titles([Path("x")]) == ["x"]
    assert titles([Path("x/report.json"), Path("y/old.json")]) == ["x", "old.json"]
    assert titles([tmp_path / "a", tmp_path / "b" / "a"])[1] == "b/a"
    with pytest.raises(DataError, match="named twice"):
        titles([Path("runs/a"), Path("runs/../runs/a")])


# ---- the command


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    run().write("runs/a")
    run(seed=1).write("runs/b")
    return tmp_path


def test_one_run_is_written_again_where_it_is(house: Path, capsys: Any) -> None:
    page = house / "runs/a/report.html"
    page.unlink()
    before = (house / "runs/a/report.json").read_bytes()
    assert main(["report", "runs/a"]) == 0
    assert page.is_file()
    assert (house / "runs/a/report.json").read_bytes() == before
    assert "Report: runs/a/report.html" in capsys.readouterr().out


def test_several_runs_are_joined_in_a_folder_of_their_own(house: Path, capsys: Any) -> None:
    assert main(["report", "runs/a", "runs/b/report.json", "--out", "both"]) == 0
    assert "Report: both/report.html" in capsys.readouterr().out
    found = Report.read(house / "both")
    assert found.row("a: student").score == found.row("b: student").score == 0.8
    assert {path.name for path in (house / "both").iterdir()} == {
        "report.json",
        "report.md",
        "report.html",
    }
    assert main(["report", "runs/a", "runs/b"]) == 0
    assert Report.read("runs/joined").joined


def test_one_run_with_a_folder_is_copied_there_unchanged(house: Path) -> None:
    assert main(["report", "runs/a", "--out", "copy"]) == 0
    assert Report.read(house / "copy") == Report.read(house / "runs/a")


def test_what_can_t_be_joined_is_one_sentence_and_writes_nothing(house: Path, capsys: Any) -> None:
    assert main(["report", "runs/a", "runs/none", "--out", "both"]) == 2
    assert main(["report", "runs/a", "runs/a", "--out", "both"]) == 2
    assert re.search(r"named twice", capsys.readouterr().err)
    assert not (house / "both").exists()


def test_the_schema_of_reports_is_printed_and_accepts_a_report(house: Path, capsys: Any) -> None:
    assert main(["schema", "--of", "report"]) == 0
    published = json.loads(capsys.readouterr().out)
    assert published == schema()
    jsonschema.validate(json.loads((house / "runs/a/report.json").read_text()), published)
    assert main(["schema", "--of", "rapport"]) == 2
