"""The report: it reads the same everywhere, claims no more than was measured, runs nothing."""

from __future__ import annotations

import ast
import json
import math
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import attar.report
from attar.errors import DataError
from attar.report import (
    Report,
    Row,
    charts,
    drawing,
    figures,
    plot,
    schema,
    sentences,
    verdict,
)

TORCH, ONNX = "PyTorch 2.13 fp32", "ONNX Runtime 1.31"
SIMPLE = {"br", "hr", "img", "input", "link", "meta"}


def row(name: str, score: float | None, size: int, ms: float, runtime: str = TORCH) -> Row:
    latency = {"p50": ms, "p95": 1.2 * ms}
    return Row(name, runtime, score, {"examples": 3080}, size_bytes=size, latency_ms=latency)


def measured() -> tuple[Row, ...]:
    """The rows of a run that went well."""
    return (
        replace(row("teacher", 0.821, 91_000_000, 8.9), parameters=22_700_000, macs=682_000_000),
        replace(row("student", 0.8, 12_400_000, 1.6), parameters=3_100_000),
        row("student-int8_dynamic.onnx", 0.799, 3_200_000, 0.25, ONNX),
        row("student (transformers)", 0.8, 12_400_000, 1.7, "transformers 5.23"),
        row("labels_only", 0.757, 12_400_000, 1.6),
        row("label_smoothing", 0.768, 12_400_000, 1.6),
        row("pseudo_labels", 0.796, 12_400_000, 1.6),
        Row("bag_of_words", "scikit-learn", 0.72, {"examples": 3080, "ece": {"mean": 0.05}}),
    )


@pytest.fixture
def report() -> Report:
    rows = measured()
    return Report(
        recipe={"name": "Intents", "text": "task: text", "command": "attar run intents.yaml"},
        environment={"cpu": "a cpu", "threads": 1, "versions": {"onnxruntime": "1.31.1"}},
        rows=rows,
        cost={"seconds": {"distill": 402.7, "export": 6.1}},
        plan={"layers": [{"student": "layer.0", "teacher": "layer.2"}], "steps": ["distill"]},
        verdict=verdict(rows, "accuracy", threads=1),
        history={
            "student": [{"step": s, "loss": 1 / (1 + s), "score": s / 200} for s in range(100)],
            "labels_only": [{"step": s, "loss": 2 / (1 + s)} for s in range(100)],
        },
        score_name="accuracy",
    )


class Reader(HTMLParser):
    """Reads a page as a browser would: its tags, its text, and whether each tag is closed."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in SIMPLE:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


# ---- the contract of report.json


def test_json_comes_back_as_the_same_report(report: Report) -> None:
    text = json.dumps(report.to_dict(), allow_nan=False)
    assert Report.from_dict(json.loads(text)) == report


def test_json_satisfies_the_published_schema(report: Report) -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(report.to_dict(), schema())
    assert {"schema", "recipe", "environment", "rows", "cost", "plan"} <= report.to_dict().keys()
    assert report.to_dict()["schema"] == 4


def test_what_is_not_a_number_becomes_null_and_never_nan(report: Report) -> None:
    broken = Row(
        "x",
        TORCH,
        math.nan,
        {"ece": math.inf, "numpy": np.float32("nan")},
        latency_ms={"p50": math.nan, "p95": 2.0},
    )
    report = replace(report, rows=(broken,), cost={"seconds": {"distill": math.nan}})
    text = json.dumps(report.to_dict(), allow_nan=False)
    first = json.loads(text)["rows"][0]
    assert first["score"] is None
    assert first["metrics"] == {"ece": None, "numpy": None}
    assert first["latency_ms"] == {"p95": 2.0}
    jsonschema.validate(json.loads(text), schema())
    for shown in (str(report), report.markdown(), report.html()):
        assert not re.search(r"\b(nan|inf)\b", shown, re.IGNORECASE)


def test_numbers_of_numpy_and_unknown_things_can_be_written(report: Report) -> None:
    plan = {"count": np.int64(3), "ratio": np.float64(0.5), "where": Path("a"), "pair": (1, 2)}
    content = replace(report, plan=plan).to_dict()["plan"]
    assert content == {"count": 3, "ratio": 0.5, "where": "a", "pair": [1, 2]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema=1), "schema must be 4"),
        (lambda d: d.pop("rows"), "has no 'rows'"),
        (lambda d: d.update(envronment={}), "did you mean 'environment'"),
        (lambda d: d["rows"][0].update(score="high"), r"rows\[0\].score must be number or null"),
        (lambda d: d["rows"][0].update(parameters=-1), "can't be below 0"),
        (lambda d: d["rows"][0].update(parameters=True), "parameters must be integer"),
        (lambda d: d["rows"][0].pop("runtime"), "has no 'runtime'"),
        (lambda d: d["rows"].append(3), "must be object"),
        (lambda d: d.update(history={"student": [1]}), "must be object"),
    ],
)
def test_a_broken_contract_is_refused_with_its_place(report, change, message) -> None:
    content = report.to_dict()
    change(content)
    with pytest.raises(DataError, match=message):
        Report.from_dict(content)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, schema())


def test_a_written_folder_reads_back_and_leaves_nothing_half_done(report, tmp_path) -> None:
    folder = report.write(tmp_path / "new" / "run")
    assert Report.read(folder) == Report.read(folder / "report.json") == report
    assert {path.name for path in folder.iterdir()} == {"report.json", "report.md", "report.html"}
    assert (folder / "report.html").read_text("utf-8") == report.html()


def test_a_failed_write_leaves_the_old_file_whole(report, tmp_path, monkeypatch) -> None:
    report.write(tmp_path)
    before = (tmp_path / "report.json").read_bytes()

    def fail(*_: Path) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        replace(report, plan="another").write(tmp_path)
    assert (tmp_path / "report.json").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3


def test_what_is_no_report_is_told_in_one_sentence(tmp_path) -> None:
    with pytest.raises(DataError, match="can't be read"):
        Report.read(tmp_path)
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        Report.read(tmp_path)
    (tmp_path / "report.json").write_text("[]")
    with pytest.raises(DataError, match="must be object"):
        Report.read(tmp_path)


def test_a_row_is_found_by_name_and_a_misspelling_is_answered(report: Report) -> None:
    assert report.row("student").size_bytes == 12_400_000
    with pytest.raises(DataError, match="did you mean 'student'"):
        report.row("studnet")


# ---- figures


@pytest.mark.parametrize(
    ("show", "number", "text"),
    [
        (figures.count, 770, "770"),
        (figures.count, 3_100_000, "3.1M"),
        (figures.count, 22_713_216, "22.7M"),
        (figures.count, 682_000_000, "682M"),
        (figures.count, 999_960, "1.0M"),
        (figures.count, 3.4e15, "3400T"),
        (figures.size, 0, "0 B"),
        (figures.size, 999, "999 B"),
        (figures.size, 3_200_000, "3.2 MB"),
        (figures.size, 142_000_000, "142 MB"),
        (figures.milliseconds, 0.0123, "0.012"),
        (figures.milliseconds, 0.25, "0.25"),
        (figures.milliseconds, 8.9, "8.90"),
        (figures.milliseconds, 12.34, "12.3"),
        (figures.milliseconds, 1403.2, "1,403"),
        (figures.score, 0.8, "0.800"),
        (figures.score, 487.26, "487.3"),
        (figures.ratio, 5.56, "5.6×"),
        (figures.ratio, 28.4, "28×"),
        (figures.ratio, 9.97, "10×"),
        (figures.metric, 3080, "3,080"),
        (figures.metric, 0.00012, "0.00012"),
        (figures.duration, 0.42, "0.42 s"),
        (figures.duration, 8.3, "8.3 s"),
        (figures.duration, 59.96, "1 min 00 s"),
        (figures.duration, 400, "6 min 40 s"),
        (figures.duration, 7500, "2 h 05 min"),
        (figures.duration, math.nan, "–"),
        (figures.anything, None, "–"),
        (figures.anything, True, "yes"),
    ],
)
def test_numbers_are_written_as_people_read_them(show, number, text) -> None:
    assert show(number) == text


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("teacher", "teacher"),
        ("teacher.onnx", "teacher"),
        ("student", "student"),
        ("student.onnx", "export"),
        ("student (transformers)", "export"),
        ("intents.onnx", "export"),
        ("labels_only", "baseline"),
    ],
)
def test_a_row_plays_the_part_its_name_says(name, role) -> None:
    assert Row(name, TORCH).role == role


# ---- the verdict


def test_the_verdict_of_a_good_run_says_what_shrank_and_what_the_teacher_gave() -> None:
    said = verdict(measured(), "accuracy", threads=1)
    assert said[:5] == (
        "student-int8_dynamic.onnx takes 3.2 MB against the teacher's 91.0 MB: 28× smaller.",
        "student-int8_dynamic.onnx answers in 0.25 ms (ONNX Runtime 1.31) against 8.90 ms "
        "(PyTorch 2.13 fp32), median on 1 thread: 36× faster; the student in the teacher's own "
        "runtime: 5.6× faster.",
        "student-int8_dynamic.onnx has accuracy 0.799 against the teacher's 0.821: "
        "2.2 points lower.",
        "The teacher helped: the student is 3.2 points above label_smoothing, the best arm "
        "without a teacher.",
        "Student against labels_only (the same student without a teacher): 4.3 points higher.",
    )
    assert "one seed" in said[-1]
    # The largest error is bag_of_words': sqrt(0.72 * 0.28 / 3080) = 0.00809.
    assert "0.8 points (3,080 test examples)" in said[-1]


def test_a_difference_under_two_standard_errors_is_called_noise() -> None:
    said = "\n".join(verdict(measured()))
    hard = "Student against pseudo_labels (the teacher's answers as hard labels)"
    assert f"{hard}: 0.4 points higher, within the noise of 3,080 test examples." in said
    assert "8.0 points higher." in said


def test_noise_ends_where_the_formula_says() -> None:
    # p = 0.5 and 0.5 + d, n = 400: 2 sqrt(0.25/400 + (0.25 - d^2)/400) = 0.0706 at d = 0.07.
    one = Row("student", TORCH, 0.5, {"examples": 400})
    assert sentences.standard_error(one) == pytest.approx(0.025)
    assert sentences.within_noise(one, replace(one, score=0.570))
    assert not sentences.within_noise(one, replace(one, score=0.571))
    assert not sentences.within_noise(one, replace(one, score=0.501, metrics={}))


@pytest.mark.parametrize(
    ("score", "sentence"),
    [
        (0.8, "The teacher did not help: labels_only scored as well without it."),
        (
            0.803,
            "The teacher did not help: labels_only scored as well without it "
            "(0.3 points higher, within the noise of 3,080 test examples).",
        ),
        (0.85, "The teacher did not help: labels_only scored 5.0 points higher without it."),
        (
            0.79,
            "It is not shown that the teacher helped: the student is 1.0 points above "
            "labels_only, within the noise of 3,080 test examples.",
        ),
    ],
)
def test_a_teacher_that_did_not_help_is_told_so(score, sentence) -> None:
    arm = row("labels_only", score, 1, 1.0)
    assert sentence in verdict([row("student", 0.8, 1, 1.0), arm])


def test_a_file_that_grew_or_slowed_is_told_so() -> None:
    rows = [row("teacher", 0.8, 100, 1.0), row("student.onnx", 0.8, 250, 3.0, ONNX)]
    said = verdict(rows, threads=2)
    assert said[0].endswith("2.5× larger.")
    assert said[1].endswith("median on 2 threads: 3.0× slower.")
    assert said[2].endswith("level.")


def test_scores_that_are_no_shares_are_not_told_in_points() -> None:
    said = "\n".join(
        verdict([row("teacher", 490.0, 9, 1.0), row("student", 470.0, 3, 1.0)], "return")
    )
    assert "return 470 against the teacher's 490: 20 lower." in said
    assert "points" not in said


def test_the_best_file_is_the_smallest_within_a_point_of_the_best_score() -> None:
    rows = [
        row("student.onnx", 0.8, 100, 1.0),
        row("student-int8.onnx", 0.795, 30, 1.0),
        row("student-int4.onnx", 0.7, 15, 1.0),
        row("student", 0.8, 10, 1.0),
    ]
    best = sentences.best(rows)
    assert best is not None
    assert best.name == "student-int8.onnx"
    only = sentences.best(rows[-1:])
    assert only is not None
    assert only.name == "student"
    assert sentences.best([row("teacher", 0.8, 1, 1.0)]) is None


def test_the_best_file_is_chosen_by_validation_scores_where_every_file_has_one() -> None:
    good, poor = {"examples": 3080, "validation": 0.9}, {"examples": 3080, "validation": 0.8}
    large = replace(row("student.onnx", 0.7, 100, 1.0), metrics=good)
    small = replace(row("student-int8.onnx", 0.9, 30, 1.0), metrics=poor)
    assert sentences.best([large, small]) == large
    without = replace(small, metrics={"examples": 3080})
    assert sentences.best([large, without]) == without


def test_what_was_not_measured_is_not_spoken_of() -> None:
    assert verdict(()) == ()
    assert verdict([Row("teacher", TORCH), Row("student", TORCH), Row("labels_only", TORCH)]) == ()


# ---- terminal and Markdown


def test_the_terminal_table_is_aligned_and_has_every_row(report: Report) -> None:
    lines = report.table().splitlines()
    assert [line.split("  ")[0] for line in lines[2:]] == [row.name for row in report.rows]
    end = lines[0].index("size") + len("size")
    assert [line[:end].split("  ")[-1].strip() for line in lines[2:4]] == ["91.0 MB", "12.4 MB"]
    assert {line[end] for line in lines} == {" "}
    assert "memory" not in lines[0]
    assert str(report).startswith(report.table())
    assert max(map(len, str(report).splitlines())) < 120


def test_a_missing_figure_is_a_dash(report: Report) -> None:
    words = next(line for line in report.table().splitlines() if line.startswith("bag_of_words"))
    assert words.split() == ["bag_of_words", "0.720", *"–––––", "scikit-learn"]
    html = report.html()
    assert '<td class="figure missing" data-value="">–</td>' in html


def test_the_markdown_table_has_every_row_and_equal_cells(report: Report) -> None:
    lines = [line for line in report.markdown().splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(report.rows)
    assert len({line.count("|") for line in lines}) == 1
    for line, measured_row in zip(lines[2:], report.rows, strict=True):
        assert line.startswith(f"| {measured_row.name} |")


def test_markdown_shows_hostile_names_as_text(report: Report) -> None:
    name = "a|b <img> [x](y) `c`\n# d"
    text = replace(report, rows=(Row(name, TORCH, 0.5),), recipe={"text": "```\n# out"}).markdown()
    assert r"| a\|b \<img> \[x\](y) \`c\` # d |" in text
    assert "````yaml\n```\n# out\n````" in text


# ---- the page


def test_the_page_is_well_formed_and_says_everything(report: Report) -> None:
    reader = Reader(report.html())
    assert reader.open == []
    assert reader.tags.count("figure") == 4
    for said in (*report.verdict, *(row.name for row in report.rows), "6 min 43 s", "layer.2"):
        assert said in reader.text
    for said in ("task: text", "attar run intents.yaml", "97.3", "28", "+3.2", "Not drawn"):
        assert said in reader.text


def test_the_page_asks_nothing_of_any_network(report: Report) -> None:
    html = report.html()
    attributes = Reader(html).attributes
    assert not {"src", "srcset", "action"} & {name for name, _ in attributes}
    ids = {value for name, value in attributes if name == "id"}
    assert {value for name, value in attributes if name == "href"} <= {f"#{each}" for each in ids}
    assert not re.search(r"https?:|@import|url\(|fetch\(|XMLHttp", html)
    assert "default-src 'none'" in html


def test_whatever_comes_from_data_is_shown_as_text(report: Report) -> None:
    evil = '<script>alert("1")</script>'
    hostile = Row(evil, evil, 0.5, {evil: 1.0}, size_bytes=9, latency_ms={"p50": 1}, note=evil)
    page_of_evil = Report(
        recipe={"name": evil, "text": evil, "command": evil},
        environment={evil: evil, "cpu": evil},
        rows=(hostile, replace(report.row("teacher"))),
        cost={"seconds": {evil: 1.0}, evil: evil},
        plan={evil: [{evil: evil}], "pairs": [[evil, evil]]},
        verdict=(evil,),
        history={evil: [{"step": 0, "loss": 1.0}, {"step": 1, "loss": 0.5}]},
        score_name=evil,
    ).html()
    reader = Reader(page_of_evil)
    assert reader.tags.count("script") == 1
    assert reader.text.count("alert(") > 15
    assert reader.open == []


@pytest.mark.parametrize("rows", [(), (Row("student", TORCH),), measured()[:1]])
def test_a_report_that_holds_little_still_prints_itself(rows) -> None:
    report = Report(recipe={}, environment={}, rows=rows, cost={})
    reader = Reader(report.html())
    assert reader.open == []
    assert "The plan" not in reader.text
    assert "Training" not in reader.text
    assert report.markdown().startswith("# Distillation report")
    assert Report.from_dict(report.to_dict()) == report


def test_each_drawing_has_a_title_and_a_description_of_its_own(report: Report) -> None:
    reader = Reader(report.html())
    every = [value for name, value in reader.attributes if name == "id"]
    labels = [value for name, value in reader.attributes if name == "aria-labelledby"]
    assert len(every) == len(set(every))
    ids = [name for name in every if (name or "").startswith("plot-")]
    labels = [label for label in labels if (label or "").startswith("plot-")]
    assert len(ids) == 8
    assert {name for label in labels for name in (label or "").split()} == set(ids)
    assert reader.tags.count("desc") == 4


def test_labels_lie_over_no_mark_and_over_no_other_label() -> None:
    places = [(200.0, 100.0), (200.0, 100.0), (205.0, 103.0), (200.0, 110.0), (400.0, 30.0)]
    boxes = plot.place(places, [150, 60, 120, 90, 80])
    assert all(one.overlap(other) == 0 for one, other in combinations(boxes, 2))
    marks = [plot.Box(x - 5, y - 5, 10, 10) for x, y in places]
    assert all(box.overlap(one) == 0 for box in boxes for one in marks)
    assert all(box.x >= drawing.LEFT and box.x + box.width <= drawing.WIDTH for box in boxes)


@pytest.mark.parametrize("values", [[1.0], [0.25, 8.9], [3e6, 9.1e7], [0.001, 5000.0]])
def test_a_logarithmic_axis_holds_its_values_and_two_ticks(values) -> None:
    axis = drawing.logarithmic(values, 0, 100)
    assert 2 <= len(axis.ticks) <= 9
    assert all(axis.low <= tick <= axis.high for tick in axis.ticks)
    assert all(0 < axis.at(value) < 100 for value in values)
    middle = math.sqrt(axis.low * axis.high)
    assert axis.at(middle) == pytest.approx(50)


@pytest.mark.parametrize("values", [[0.0], [0.8], [0.72, 0.821], [-500.0, 20.0], [0.5, 0.5]])
def test_a_straight_axis_holds_its_values_and_round_ticks(values) -> None:
    axis = drawing.linear(values, 300, 0)
    assert 2 <= len(axis.ticks) <= 7
    assert all(0 < axis.at(value) < 300 for value in values)
    assert axis.at(axis.low) == 300


def test_names_at_the_ends_of_curves_keep_a_line_apart_and_their_order() -> None:
    heights = plot.spread([300.0, 299.0, 301.0, 50.0])
    assert np.argsort(heights).tolist() == [3, 1, 0, 2]
    assert min(np.diff(np.sort(heights))) >= drawing.LINE
    assert max(heights) <= drawing.BOTTOM


def test_a_long_history_is_thinned_by_averaging() -> None:
    points = [(float(step), float(step % 2)) for step in range(2400)]
    thin = charts.thinned(points, 240)
    assert len(thin) == 240
    assert thin[0] == (4.5, 0.5)
    assert charts.thinned(points[:7], 240) == points[:7]


# ---- its place in the house


def test_the_report_imports_no_room_and_no_library() -> None:
    for path in Path(attar.report.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                inside = name.startswith(("attar.report", "attar.errors"))
                assert inside or name.split(".")[0] in sys.stdlib_module_names, (path.name, name)
