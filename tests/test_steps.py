"""Step by step: what each step harmed and gained, told against the right row and in plain words."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from test_report import ONNX, TORCH, Reader, row

from attar.report import Report, Row, verdict
from attar.report import steps as stepped
from attar.report.rows import Row as Plain
from attar.setting import Book

EMULATED = "PyTorch 2.13, int8 emulated"


def made(name: str, after: str, score: float, size: int, ms: float, runtime: str = TORCH) -> Row:
    return replace(row(name, score, size, ms, runtime), after=after, zipped_bytes=size - size // 10)


def followed() -> tuple[Row, ...]:
    """Distilled, written, pruned, repaired, written, quantized, written; and a baseline."""
    return (
        made("teacher", "", 0.84, 91_000_000, 9.0),
        made("student", "", 0.83, 12_000_000, 4.0),
        made("student.onnx", "student", 0.83, 12_400_000, 0.5, ONNX),
        made("student-structured", "student", 0.70, 6_000_000, 2.5),
        made("student-structured-distill", "student-structured", 0.82, 6_000_000, 2.5),
        made(
            "student-structured-distill.onnx",
            "student-structured-distill",
            0.82,
            6_000_000,
            0.25,
            ONNX,
        ),
        made(
            "student-structured-distill-int8_dynamic.onnx",
            "student-structured-distill",
            0.8195,
            1_600_000,
            0.3,
            ONNX,
        ),
        made("labels_only", "", 0.75, 12_000_000, 4.0),
    )


def told(rows: tuple[Row, ...] = ()) -> dict[str, dict[str, tuple[str, str]]]:
    """By row and figure, what the step did and whether that is good."""
    return {
        step.row.name: {name: (c.told, c.effect) for name, c in step.changes().items()}
        for step in stepped.steps(rows or followed())
    }


@pytest.fixture
def report() -> Report:
    rows = followed()
    tables = {
        "Harm per layer": [
            {"layer": "encoder.0", "bits": 4, "drop": 0.0123},
            {"layer": "encoder.1", "bits": 8, "drop": None, "kept": "<b>yes</b>"},
        ]
    }
    plan = {"layers": [{"student": "a", "teacher": "b"}], "tables": tables}
    return Report(
        {"name": "Intents"}, {"cpu": "a cpu"}, rows, {}, plan, verdict(rows, "accuracy", threads=1)
    )


# ---- what is compared with what


def test_only_rows_that_a_step_made_are_steps() -> None:
    assert [(step.row.name, step.before.name) for step in stepped.steps(followed())] == [
        ("student.onnx", "student"),
        ("student-structured", "student"),
        ("student-structured-distill", "student-structured"),
        ("student-structured-distill.onnx", "student-structured-distill"),
        ("student-structured-distill-int8_dynamic.onnx", "student-structured-distill"),
    ]


def test_a_row_after_one_that_is_not_there_is_no_step_and_a_circle_ends() -> None:
    assert stepped.steps([replace(row("student", 0.8, 1, 1.0), after="gone")]) == ()
    assert stepped.steps([replace(row("student", 0.8, 1, 1.0), after="student")]) == ()
    circle = [
        replace(row("a", 0.8, 1, 1.0), after="b"),
        replace(row("b", 0.8, 1, 1.0, ONNX), after="a"),
    ]
    assert [step.rival for step in stepped.steps(circle)] == [None, None]


def test_each_figure_is_told_against_the_row_before_the_step() -> None:
    changes = told()
    assert changes["student-structured"] == {
        "score": ("13.0 points lower", "harm"),
        "size": ("2.0× smaller", "gain"),
        "zipped": ("2.0× smaller", "gain"),
        "p50 ms": ("1.6× faster", "gain"),
    }
    assert changes["student-structured-distill"] == {
        "score": ("12.0 points higher", "gain"),
        "size": ("the same", "neither"),
        "zipped": ("the same", "neither"),
        "p50 ms": ("the same", "neither"),
    }
    int8 = changes["student-structured-distill-int8_dynamic.onnx"]
    assert int8["size"] == ("3.8× smaller", "gain")


def test_a_difference_within_the_noise_is_neither_harm_nor_gain() -> None:
    rows = (
        made("student", "", 0.80, 10, 1.0),
        made("student-a", "student", 0.797, 10, 1.0),
        made("student-b", "student", 0.7999, 10, 1.0),
    )
    assert told(rows)["student-a"]["score"] == ("0.3 points lower, within the noise", "neither")
    assert told(rows)["student-b"]["score"] == ("level", "neither")


def test_a_time_is_told_against_the_nearest_model_that_the_same_program_runs() -> None:
    changes = told()
    # Its own torch twin is no measure of a file, and there is no other file yet.
    assert changes["student.onnx"]["p50 ms"] == ("", "neither")
    # The float file of the same model ...
    int8 = changes["student-structured-distill-int8_dynamic.onnx"]["p50 ms"]
    assert int8 == ("1.2× slower than student-structured-distill.onnx", "harm")
    # ... or of the one before it.
    file = changes["student-structured-distill.onnx"]["p50 ms"]
    assert file == ("2.0× faster than student.onnx", "gain")


def test_a_number_format_is_no_other_program_and_another_version_is() -> None:
    assert Plain("a", TORCH).program == Plain("a", EMULATED).program == "PyTorch 2.13"
    assert Plain("a", "PyTorch 2.13 bf16").program == "PyTorch 2.13"
    assert Plain("a", ONNX).program == "ONNX Runtime 1.31"
    assert Plain("a", "ExecuTorch").program == "ExecuTorch"
    rows = (
        made("student.onnx", "", 0.8, 10, 1.0, "ONNX Runtime 1.30"),
        made("student-int8.onnx", "student.onnx", 0.8, 5, 2.0, ONNX),
    )
    assert told(rows)["student-int8.onnx"]["p50 ms"] == ("", "neither")
    assert stepped.warnings(rows) == []


def test_what_was_not_measured_is_not_told() -> None:
    rows = (Row("student", TORCH), Row("student-a", TORCH, after="student"))
    assert told(rows) == {"student-a": {}}
    assert stepped.sentences(rows) == []
    report = Report({}, {}, rows, {})
    assert "Step by step" not in report.html() + report.markdown()


# ---- what the verdict says


def test_the_verdict_says_which_step_made_it_slower_in_the_same_runtime() -> None:
    said = verdict(followed(), "accuracy", threads=1)
    assert (
        "int8_dynamic made it 1.2 times slower on this machine: "
        "student-structured-distill-int8_dynamic.onnx answers in 0.30 ms, "
        "student-structured-distill.onnx in 0.25 ms, both in ONNX Runtime 1.31."
    ) in said
    assert sum("made it" in sentence for sentence in said) == 1


def test_the_verdict_says_which_step_made_it_bigger() -> None:
    rows = (
        made("student", "", 0.8, 10_000_000, 1.0),
        made("student-factorize", "student", 0.8, 10_500_000, 1.0),
        made("student-factorize-int8", "student-factorize", 0.8, 42_000_000, 12.5),
    )
    assert stepped.warnings(rows) == [
        "factorize made it 1.05 times bigger: student-factorize takes 10.5 MB, student 10.0 MB.",
        "int8 made it 12 times slower on this machine: student-factorize-int8 answers in 12.5 ms, "
        "student-factorize in 1.00 ms, both in PyTorch 2.13.",
        "int8 made it 4 times bigger: student-factorize-int8 takes 42.0 MB, student-factorize "
        "10.5 MB.",
    ]


def test_what_timings_vary_by_is_no_slowing_down() -> None:
    rows = (
        made("student", "", 0.8, 1_000_000, 1.0),
        made("student-a", "student", 0.8, 1_001_000, 1.09),
        made("student-b", "student", 0.8, 1_011_000, 1.11),
    )
    warned = stepped.warnings(rows)
    assert len(warned) == 2
    assert all(sentence.startswith("b made it ") for sentence in warned)


# ---- where it stands


def test_a_terminal_gets_a_sentence_for_each_step(report: Report) -> None:
    text = " ".join(str(report).split())
    assert (
        "- student-structured, from student: score 13.0 points lower; size 2.0× smaller; zipped "
        "2.0× smaller; p50 1.6× faster."
    ) in text
    assert len(report.steps()) == 5


def test_the_page_has_a_section_with_every_step_and_marks_harm_and_gain(report: Report) -> None:
    page = Reader(report.html())
    assert page.open == []
    section = page.text.split("Step by step", 2)[2].partition("Score against cost")[0]
    for step in stepped.steps(report.rows):
        assert f"{step.row.name}from {step.before.name}" in section
    for said in ("13.0 points lower", "1.2× slower than student-structured-distill.onnx"):
        assert said in section
    html = report.html()
    assert '<small class="harm">13.0 points lower</small>' in html
    assert '<small class="gain">12.0 points higher</small>' in html


def test_markdown_has_a_table_of_the_steps(report: Report) -> None:
    block = report.markdown().partition("## Step by step\n\n")[2].partition("\n\n")[0]
    lines = block.splitlines()
    assert lines[0] == "| model | made from | score | size | zipped | p50 ms |"
    assert len(lines) == 2 + len(stepped.steps(report.rows))
    assert lines[3] == (
        "| student-structured | student | 0.700 (13.0 points lower) | 6.0 MB (2.0× smaller) | "
        "5.4 MB (2.0× smaller) | 2.50 (1.6× faster) |"
    )


def test_a_report_keeps_what_made_a_row(report: Report) -> None:
    content = json.loads(json.dumps(report.to_dict()))
    assert Report.from_dict(content) == report
    assert content["rows"][2]["after"] == "student"


# ---- what steps told of


def test_what_a_step_tells_becomes_a_table_and_leaves_the_plan(report: Report) -> None:
    page = Reader(report.html())
    assert page.open == []
    found, _, plan = page.text.split("What the steps found", 2)[2].partition("The plan")
    assert "Harm per layer" in found
    assert "layerbitsdropkept" in found
    assert "encoder.140.0123" not in found
    assert "encoder.0" in found
    assert "0.0123" in found
    assert "<b>yes</b>" in found
    assert "encoder.0" not in plan
    assert '<th scope="col" class="figure">drop</th>' in report.html()
    assert '<th scope="col">kept</th>' in report.html()


def test_markdown_shows_such_a_table_under_its_title(report: Report) -> None:
    text = report.markdown()
    assert (
        "## Harm per layer\n\n"
        "| layer | bits | drop | kept |\n"
        "| :--- | ---: | ---: | :--- |\n"
        "| encoder.0 | 4 | 0.0123 | – |\n"
        "| encoder.1 | 8 | – | \\<b>yes\\</b> |"
    ) in text
    assert '"tables"' not in text
    assert '"layers"' in text


def test_a_plan_of_tables_alone_leaves_no_empty_section(report: Report) -> None:
    book = Book()
    book.tell("Chosen", [{"layer": "a", "bits": 8}])
    alone = replace(report, plan={"tables": book.tables})
    assert alone.tables == {"Chosen": [{"layer": "a", "bits": 8}]}
    assert "The plan" not in Reader(alone.html()).text
    assert "## Plan" not in alone.markdown()


@pytest.mark.parametrize("plan", [None, "words", {"tables": "words"}, {"tables": {"a": [1, 2]}}])
def test_what_is_no_table_stays_in_the_plan(report: Report, plan: object) -> None:
    other = replace(report, plan=plan)
    assert other.tables == {}
    assert other.decided == plan
    assert Reader(other.html()).open == []
