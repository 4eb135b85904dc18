"""The page: one sentence on top, everything drawn is told, nothing is lost on who can't see it."""

from __future__ import annotations

import json
import math
import random
import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from test_report import ONNX, TORCH, Reader, measured

from attar.report import Report, Row, audits, drawing, forest, pairs, plot, schema, weighing
from attar.report.headline import headline

EVIL = '<script>alert("1")</script>'
CSS = Path(plot.__file__).with_name("page.css").read_text("utf-8")


def difference(row: str, against: str, mean: float, half: float = 0.006) -> dict[str, Any]:
    resolved = abs(mean) > half
    return {
        "row": row,
        "against": against,
        "mean": mean,
        "low": mean - half,
        "high": mean + half,
        "p": 0.0004 if resolved else 0.4,
        "resolved": resolved,
        "by_seed": [mean - 0.001, mean, mean + 0.001],
        "examples": 1000,
        "why": "" if resolved else "the interval holds zero",
    }


def audit(ok: bool = True, name: str = "refund") -> dict[str, Any]:
    """1,000 examples of two classes; 40 broken, 10 mended."""
    scaled = {"temperature": 1.2, "ece_scaled": 0.011, "brier_scaled": 0.2}
    return {
        "against": "teacher",
        "examples": 1000,
        "agreement": 0.943,
        "kl": 0.0712,
        "flips": {"right_to_wrong": 40, "wrong_to_right": 10, "negative_flips": 0.04},
        "classes": [
            {"class": name, "examples": 400, "before": 0.9, "after": 0.8, "change": -0.1}
            | {"low": -0.15, "high": -0.05},
            {"class": "other", "examples": 600, "before": 0.8, "after": 0.8167, "change": 0.0167}
            | {"low": -0.02, "high": 0.05},
        ],
        "calibration": {
            "before": {"ece": 0.012, "brier": 0.21, **scaled},
            "after": {"ece": 0.044, "brier": 0.25, **scaled, "ece_scaled": None},
        },
        "broken": [{"input": EVIL, "label": name, "before": name, "after": "other"}],
        "broken_file": "kd-broken.jsonl",
        "cka": [{"one": "layer.0", "other": "layer.5", "cka": 0.91}],
        "occlusion": {"similarity": 0.83, "examples": 64},
        "surrogate": {"fidelity": 0.71, "depth": 8, "before": 0.7, "after": 0.69},
        "gates": [
            {"gate": "ece", "limit": 0.05, "found": 0.044, "ok": True},
            {"gate": "worst_class_drop", "limit": 0.05, "found": None if ok else 0.1, "ok": ok},
        ],
    }


def arms(many: int = 20, seeds: int = 3) -> Report:
    """An invented comparison of so many arms, with audits of six of them."""
    random.seed(0)
    found = [("teacher", "teacher", 0.93, 91e6), ("labels_only", "baseline", 0.86, 12e6)]
    found += [
        (f"arm-{n}", "export" if n % 2 else "student", 0.87 + 0.002 * n, 3e6 * (n + 1))
        for n in range(many - 2)
    ]
    rows = tuple(
        Row(
            name,
            ONNX if part == "export" else TORCH,
            score,
            {"examples": 1000, "macro_f1": score},
            size_bytes=int(size),
            latency_ms={"p50": size / 1e7, "p95": size / 8e6},
            part=part,  # type: ignore[arg-type]
            by_seed=tuple(score + 0.002 * (n - 1) for n in range(seeds)),
            interval=(score - 0.004, score + 0.004),
        )
        for name, part, score, size in found
    )
    weighed = tuple(
        difference(row.name, against, (row.score or 0) - base)
        for row in rows
        for against, base in (("labels_only", 0.86), ("teacher", 0.93))
        if row.name not in (against, "teacher")
    )
    points = [{"step": s, "loss": math.exp(-s / 99), "score": 1 - 1 / (1 + s)} for s in range(200)]
    return Report(
        recipe={"name": "Arms", "text": "arms: {}", "command": "attar compare arms.yaml"},
        environment={"cpu": "a cpu", "threads": 1},
        rows=rows,
        cost={"seconds": {row.name: 10.0 for row in rows}},
        plan={"arms": {row.name: "the recipe itself" for row in rows}},
        history={row.name: points for row in rows},
        score_name="accuracy",
        differences=weighed,
        audits={row.name: audit(row.name != "arm-3", row.name) for row in rows[2:8]},
    )


def run() -> Report:
    """A run with an audit, and a step that another made."""
    rows = measured()
    made = replace(rows[2], after="student")
    return Report(
        recipe={"name": "Intents", "text": "task: text", "command": "attar run intents.yaml"},
        environment={"cpu": "a cpu", "threads": 1},
        rows=(*rows[:2], made, *rows[3:]),
        cost={"seconds": {"distill": 4.0}},
        plan={
            "layers": [{"student": "layer.0", "teacher": "layer.2"}],
            "tables": {"A": [{"b": 1}]},
        },
        history={"student": [{"step": 0, "loss": 1.0}, {"step": 1, "loss": 0.5}]},
        score_name="accuracy",
        audits={made.name: audit()},
    )


PAGES = {"run": run, "comparison": arms, "bare": lambda: Report({}, {}, (), {})}

every_page = pytest.mark.parametrize("page", PAGES)


# ---- the verdict in one sentence


def test_a_run_opens_with_what_shrank_what_it_cost_and_whether_the_teacher_helped() -> None:
    assert headline(measured(), "accuracy") == (
        "student-int8_dynamic.onnx is 28× smaller and 36× faster than its teacher (ONNX Runtime "
        "1.31 against PyTorch 2.13) for 2.2 points of accuracy (0.799 against 0.821; beyond the "
        "noise of 3,080 test examples); the teacher helped: student is 3.2 points above "
        "label_smoothing (beyond the noise of 3,080 test examples, on one seed)."
    )


def test_a_comparison_opens_with_what_its_seeds_resolve() -> None:
    rows = (
        Row("big", TORCH, 0.93, part="teacher", size_bytes=90, by_seed=(0.93, 0.93)),
        Row("kd", TORCH, 0.92, part="student", size_bytes=9, by_seed=(0.92, 0.92)),
        Row("labels_only", TORCH, 0.90, part="baseline", size_bytes=9, by_seed=(0.9, 0.9)),
    )
    told = [difference("kd", "big", -0.01), difference("kd", "labels_only", 0.02)]
    assert headline(rows, "accuracy", pairs.pairs(rows, told)) == (
        "kd is 10× smaller than its teacher for 1.0 points of accuracy (0.920 against 0.930; "
        "resolved, 95 % interval −1.6 to −0.4, 3 seeds); the teacher helped: kd is 2.0 points "
        "above labels_only (resolved, 95 % interval +1.4 to +2.6, 3 seeds)."
    )


def test_an_arm_that_nobody_taught_does_not_tell_whether_a_teacher_helps() -> None:
    rows = (
        Row("big", TORCH, 0.93, part="teacher", size_bytes=90, by_seed=(0.93, 0.93)),
        Row("kd", TORCH, 0.92, part="student", size_bytes=9, by_seed=(0.92, 0.92)),
        Row("rounded", TORCH, 0.915, part="student", size_bytes=3, by_seed=(0.91, 0.92)),
        Row("labels_only", TORCH, 0.90, part="baseline", size_bytes=9, by_seed=(0.9, 0.9)),
    )
    told = [
        difference(row, "labels_only", mean) for row, mean in (("rounded", 0.015), ("kd", 0.02))
    ]
    found = pairs.pairs(rows, told)
    assert "the teacher helped: rounded" in headline(rows, "accuracy", found)
    said = headline(rows, "accuracy", found, alone=["rounded", "labels_only"])
    assert said.startswith("rounded is 30× smaller than its teacher")
    assert "the teacher helped: kd is 2.0 points above labels_only" in said


@pytest.mark.parametrize(
    ("mean", "words"),
    [
        (0.004, "it is not resolved whether the teacher helped: kd is 0.4 points above"),
        (-0.004, "it is not resolved whether the teacher helped: kd is 0.4 points below"),
        (-0.03, "the teacher did not help: kd is 3.0 points below labels_only (resolved"),
        (0.0, "it is not resolved whether the teacher helped: labels_only scores as well (not"),
    ],
)
def test_a_teacher_that_did_not_help_or_may_not_have_is_told_so(mean, words) -> None:
    rows = (Row("kd", TORCH, 0.9), Row("labels_only", TORCH, 0.9 - mean, part="baseline"))
    rows = (replace(rows[0], part="student"), rows[1])
    told = headline(rows, "accuracy", pairs.pairs(rows, [difference("kd", "labels_only", mean)]))
    assert words in told


def test_what_beats_another_control_says_nothing_of_teachers() -> None:
    rows = (Row("kd", TORCH, 0.9, part="student"), Row("pruned", TORCH, 0.8, part="baseline"))
    told = headline(rows, "accuracy", pairs.pairs(rows, [difference("kd", "pruned", 0.1)]))
    assert told.startswith("kd is 10.0 points above pruned (resolved")
    assert "teacher" not in told
    soft = (rows[0], replace(rows[1], name="pseudo_labels @ small"))
    against = pairs.pairs(soft, [difference("kd", "pseudo_labels @ small", 0.1)])
    assert headline(soft, "accuracy", against) == ""


def test_the_pair_of_the_model_to_ship_decides_and_its_best_rival() -> None:
    report = arms()
    ships, decides = report.headline.partition(" is ")[0], report.headline.partition("helped: ")[2]
    assert decides.startswith(f"{ships} is ")
    assert "labels_only" in decides


def test_failed_gates_stand_in_the_headline() -> None:
    report = arms()
    assert report.headline.endswith("; arm-3 fails a gate.")
    assert "gate" not in replace(report, audits={"arm-2": audit()}).headline
    own = run()
    own = replace(own, audits={"student-int8_dynamic.onnx": audit(ok=False)})
    assert own.headline.endswith("; student-int8_dynamic.onnx fails its gate: worst_class_drop.")


def test_what_rounds_to_once_is_not_called_smaller() -> None:
    big = Row("teacher", TORCH, 0.9, size_bytes=1000, latency_ms={"p50": 2.0})
    same = Row("student", TORCH, 0.9, size_bytes=980, latency_ms={"p50": 2.02})
    told = headline((big, same), "accuracy")
    assert told == "student has its teacher's accuracy (0.900 against 0.900)."
    worse = headline((big, replace(same, score=0.8)), "accuracy")
    assert worse == (
        "student loses 10.0 points of accuracy beside its teacher (0.800 against 0.900; how sure "
        "is not known)."
    )


def test_of_models_as_small_the_better_is_shipped() -> None:
    from attar.report.sentences import best

    rows = [
        Row("random", TORCH, 0.801, size_bytes=1000, latency_ms={"p50": 1.0}, part="student"),
        Row("kd", TORCH, 0.809, size_bytes=1005, latency_ms={"p50": 1.1}, part="student"),
        Row("wide", TORCH, 0.81, size_bytes=4000, latency_ms={"p50": 1.0}, part="student"),
    ]
    found = best(rows)
    assert found is not None
    assert found.name == "kd"


def test_nothing_measured_is_nothing_said() -> None:
    assert headline((), "accuracy") == ""
    assert headline((Row("arm", "", note="failed: no memory"),), "accuracy") == ""


# ---- differences, seeds, intervals, audits: the same everywhere


def test_a_difference_is_told_with_sign_interval_chance_and_seeds() -> None:
    (pair,) = pairs.pairs((Row("a", TORCH, 0.5),), [difference("a", "b", -0.0123)])
    cells = ["a", "b", "−1.2 points", "−1.8 to −0.6", "< 0.001", "−1.3, −1.2, −1.1", "yes", ""]
    assert pair.cells() == cells
    rewards = (Row("a", TORCH, 480.0),)
    (far,) = pairs.pairs(rewards, [{"row": "a", "against": "b", "mean": 12.5, "resolved": False}])
    assert far.cells() == ["a", "b", "+12.5", "–", "–", "–", "no", ""]


def test_every_form_of_the_report_holds_every_difference_and_audit() -> None:
    report = arms()
    forms = {"terminal": str(report), "markdown": report.markdown(), "page": report.html()}
    for name, form in forms.items():
        for pair in report.pairs:
            assert pair.amount in form, name
            assert pair.interval in form, name
        for row, each in report.audits.items():
            assert audits.worst(each) in form.replace("&#x27;", "'"), (name, row)
        assert "0.930 ±0.004" in form or "0.930<small>±0.004</small>" in form
    assert max(map(len, report.table().splitlines())) < 130
    assert max(map(len, report.weighed())) < 130
    close = replace(report, differences=(difference("arm-2", "arm-3", 0.001),))
    assert "the interval holds zero" in close.markdown()
    assert "the interval holds zero" in close.html()


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        ((0.908, 0.916), "±0.004"),
        ((0.9085, 0.916), "±0.004"),
        ((0.900, 0.914), "(0.900 to 0.914)"),
        ((0.912, 0.912), "±0.000"),
        (None, ""),
    ],
)
def test_an_interval_is_told_as_plus_minus_only_where_it_is_even(interval, text) -> None:
    assert weighing.spread(Row("a", TORCH, 0.912, interval=interval)) == text


def test_flips_are_shares_of_the_examples_that_have_a_label() -> None:
    # 0.9 * 400 + 0.8 * 600 = 840 were right: 800 of 1,000 still are, 150 never were.
    assert audits.flips(audit()) == ("4.0 %", "1.0 %")
    assert audits.unchanged(audit()) == ("80.0 %", "15.0 %")
    half = {**audit(), "examples": 2000}
    assert audits.flips(half) == ("4.0 %", "1.0 %")
    counted = {"against": "a", "examples": 200, "agreement": 1.0, "flips": {"right_to_wrong": 1}}
    assert audits.flips(counted) == ("0.5 %", "–")
    assert audits.unchanged(counted) == ("–", "–")


def test_an_audit_without_labels_still_prints_itself() -> None:
    bare = {"against": "teacher", "examples": 10, "agreement": 1.0, "kl": None}
    report = replace(run(), audits={"student": bare})
    assert "student answers as teacher in 100.0 % of 10 examples." in Reader(report.html()).text
    assert "| student | teacher | – | 100.0 % | – | – | – | – | – |" in report.markdown()
    jsonschema.validate(report.to_dict(), schema())


def test_gates_that_failed_come_first_and_are_named() -> None:
    told = list(audits.gates({"a": audit(), "b": audit(ok=False), "c": audit()}))
    assert told == [
        "✗ b fails 1 of 2 gates: worst_class_drop: 0.1, limit 0.05.",
        "✓ All gates are passed by a, c.",
    ]
    text = Reader(arms().html()).text
    order = [text.index(word) for word in ("fails 1 of 2 gates", "pass all gates", "Every model")]
    assert order == sorted(order)


def test_scores_over_seeds_are_not_called_one_seed() -> None:
    report = arms()
    assert "one seed" not in str(replace(report, verdict=attar_verdict(report)))
    assert not weighing.within_noise(*report.rows[:2])


def attar_verdict(report: Report) -> tuple[str, ...]:
    from attar.report import verdict

    return verdict(report.rows, report.score_name)


@every_page
def test_a_report_with_everything_in_it_comes_back_the_same(page: str) -> None:
    report = PAGES[page]()
    content = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    jsonschema.validate(content, schema())
    assert Report.from_dict(content) == report


# ---- drawings


def points(*places: tuple[float, float]) -> list[plot.Point]:
    return [plot.Point(f"p{n}", "student", x, y, f"p{n}") for n, (x, y) in enumerate(places)]


def test_the_front_is_whatever_nothing_beats_in_both() -> None:
    random.seed(1)
    cloud = points(*((random.random(), random.random()) for _ in range(200)))
    best = plot.front(cloud)
    for point in cloud:
        beaten = any(
            other.x <= point.x and other.y >= point.y and (other.x, other.y) != (point.x, point.y)
            for other in cloud
        )
        assert (point in best) is not beaten
    assert all(a.x < b.x and a.y < b.y for a, b in pairwise(best))


def test_of_two_that_are_level_the_cheaper_is_on_the_front() -> None:
    best = plot.front(points((2, 0.8), (1, 0.8), (1, 0.7)))
    assert [point.name for point in best] == ["p1"]


def test_the_front_is_said_in_words_cheapest_first() -> None:
    svg = plot.scatter(
        points((1, 0.5), (2, 0.4), (4, 0.9)),
        x_title="size",
        y_title="score",
        show_x=str,
        slug="x",
    )
    assert "from the cheapest: p0; p2." in svg
    assert "Beaten by one of these: p1." in svg
    assert svg.count('class="front"') == 1


def test_an_outlier_leaves_the_axis_and_is_told() -> None:
    high = [(n, 0.94 + 0.001 * n) for n in range(1, 9)]
    assert [point.y for point in plot.fallen(points(*high, (3, 0.2)))] == [0.2]
    assert plot.fallen(points(*high)) == []
    assert plot.fallen(points((1, 0.9), (2, 0.1))) == []
    assert plot.fallen(points((1, 0.9))) == []
    svg = plot.scatter(
        points(*high, (3, 0.2)), x_title="size", y_title="score", show_x=str, slug="x"
    )
    assert "p8 ↓ 0.2" in svg
    assert "Far below the axis: p8." in svg
    ticks = [float(t) for t in re.findall(r'class="tick end"[^>]*>([\d.]+)<', svg)]
    assert min(ticks) > 0.9


def test_error_bars_and_seeds_stand_where_they_were_measured() -> None:
    point = plot.Point("a", "student", 1.0, 0.5, "a", (0.4, 0.7), (0.4, 0.45, 0.65))
    svg = plot.scatter([point], x_title="size", y_title="score", show_x=str, slug="x")
    up = drawing.linear([0.5, 0.4, 0.7, 0.4, 0.45, 0.65], drawing.BOTTOM, drawing.TOP)
    assert f",{up.at(0.4):.1f} h8 m-4,0 V{up.at(0.7):.1f}" in svg
    dots = re.findall(r'class="dot student" cx="[\d.]+" cy="([\d.]+)"', svg)
    assert dots == [f"{up.at(y):.1f}" for y in point.dots]


def test_many_points_leave_names_to_the_front_and_the_teacher() -> None:
    report = arms()
    told = report.html()
    shown = re.findall(r'class="label (?:student|export|baseline|teacher)(?: end)?"[^>]*>', told)
    assert 0 < len(shown) < 2 * len(report.rows)
    assert "Only the front and the teacher bear their names" in told
    for row in report.rows:
        assert f"<title>{row.name} (" in told


def test_a_resolved_difference_is_told_from_another_by_shape_and_by_sign() -> None:
    lines = [
        forest.Line("a", 3.0, 2.0, 4.0, True, "+3.0 (+2.0 to +4.0) ✓", (2.5, 3.5)),
        forest.Line("b", 0.5, -1.0, 2.0, False, "+0.5 (−1.0 to +2.0) ?"),
        forest.Line("c", -1.0, None, None, False, "−1.0 ?"),
    ]
    svg = forest.forest(lines, title="t", x_title="x", told="Told.", slug="f")
    assert svg.count('class="mean"') == 1
    assert svg.count('class="mean unsure"') == 2
    assert svg.count('class="spread"') == svg.count('class="spread unsure"') == 1
    assert "a: +3.0 (+2.0 to +4.0) ✓; b: +0.5 (−1.0 to +2.0) ?; c: −1.0 ?." in svg
    zero = re.search(r'class="zero" d="M([\d.]+)', svg)
    across = drawing.linear(
        [0, 3, 2, 4, 2.5, 3.5, 0.5, -1, 2, -1], forest.EDGE, drawing.RIGHT, 0.06
    )
    assert zero is not None
    assert float(zero[1]) == pytest.approx(across.at(0), abs=0.1)


# ---- accessible by construction


@every_page
def test_the_page_has_one_main_one_h1_and_headings_in_order(page: str) -> None:
    reader = Reader(PAGES[page]().html())
    assert reader.open == []
    levels = [int(tag[1]) for tag in reader.tags if re.fullmatch(r"h[1-6]", tag)]
    assert reader.tags.count("main") == levels.count(1) == reader.tags.count("nav") == 1
    assert levels[0] == 1
    assert all(below <= above + 1 for above, below in pairwise(levels))
    assert ("lang", "en") in reader.attributes
    assert any(name == "name" and value == "viewport" for name, value in reader.attributes)
    assert "user-scalable" not in CSS + PAGES[page]().html()


@every_page
def test_ids_are_unique_and_everything_that_points_finds_its_end(page: str) -> None:
    attributes = Reader(PAGES[page]().html()).attributes
    ids = [value for name, value in attributes if name == "id"]
    assert len(ids) == len(set(ids))
    ends = [value or "" for name, value in attributes if name == "aria-labelledby"]
    links = [(value or "")[1:] for name, value in attributes if name == "href"]
    assert {name for end in ends for name in end.split()} | set(links) <= set(ids)


@every_page
def test_regions_have_names_of_their_own(page: str) -> None:
    labels = [v for name, v in Reader(PAGES[page]().html()).attributes if name == "aria-label"]
    assert len(labels) == len(set(labels))
    assert all(labels)


@every_page
def test_every_column_and_row_has_a_head_that_says_which_it_is(page: str) -> None:
    told = PAGES[page]().html()
    assert all('scope="' in head for head in re.findall(r"<th\b[^>]*>", told))
    for table in re.findall(r"<table.*?</table>", told, re.DOTALL):
        rows = re.findall(r"<tr>.*?</tr>", table, re.DOTALL)
        widths = {len(re.findall(r"<t[hd]\b", line)) for line in rows}
        assert len(widths) == 1, table[:200]


@every_page
def test_every_drawing_is_named_and_described_or_hidden(page: str) -> None:
    for svg in re.findall(r"<svg\b.*?</svg>", PAGES[page]().html(), re.DOTALL):
        opening = svg.partition(">")[0]
        if 'aria-hidden="true"' in opening:
            assert "<text" not in svg
            continue
        assert 'role="img"' in opening
        title, told = re.findall(r"<(?:title|desc) id=[^>]*>([^<]+)<", svg)
        assert title
        assert len(told) > 40


@every_page
def test_what_scrolls_can_be_scrolled_by_the_keyboard(page: str) -> None:
    told = PAGES[page]().html()
    for opening in re.findall(r'<div class="scroll"[^>]*>|<pre\b[^>]*>', told):
        assert 'tabindex="0"' in opening
        assert opening.startswith("<pre") or 'role="region" aria-label="' in opening
    assert "focus-visible" in CSS
    assert "outline: none" not in CSS


@every_page
def test_the_page_needs_nothing_from_any_network(page: str) -> None:
    told = PAGES[page]().html()
    assert not re.search(r"https?:|//[a-z]|@import|url\(|\bsrc=|fetch\(|XMLHttp", told)
    assert "default-src 'none'" in told


def variables(mode: str) -> dict[str, str]:
    """The colours of light, dark or print, by name."""
    light = dict(re.findall(r"--([a-z]+):\s*(#[0-9a-f]{3,6})", CSS.partition("@media")[0]))
    dark = CSS.partition("prefers-color-scheme: dark")[2].partition("* {")[0]
    paper = CSS.partition("@media print")[2].partition("@page")[0]
    other = {"light": "", "dark": dark, "print": paper}[mode]
    return light | dict(re.findall(r"--([a-z]+):\s*(#[0-9a-f]{3,6})", other))


def luminance(colour: str) -> float:
    """Relative luminance of sRGB (WCAG 2.2)."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    parts = [int(digits[n : n + 2], 16) / 255 for n in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_the_contrast_formula_gives_the_known_ratios() -> None:
    assert contrast("#000", "#fff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("mode", ["light", "dark", "print"])
def test_whatever_is_written_stands_out_from_its_ground(mode: str) -> None:
    colours = variables(mode)
    for ground in ("paper", "card"):
        for ink in ("ink", "soft", "accent", "teacher", "student", "export", "baseline", "faint"):
            ratio = contrast(colours[ink], colours[ground])
            assert ratio >= 4.5, (mode, ink, ground, round(ratio, 2))


# ---- hostile data, size


def test_a_class_named_like_a_tag_is_shown_as_text_wherever_it_stands() -> None:
    told = audit(ok=False, name=EVIL)
    told["gates"][0]["gate"] = EVIL
    told["cka"] = [{EVIL: EVIL, "cka": 0.5}]
    told["against"] = told["broken_file"] = EVIL
    report = Report(
        recipe={"name": EVIL, "text": EVIL, "command": EVIL},
        environment={EVIL: [EVIL] * 40},
        rows=(Row(EVIL, EVIL, 0.5, by_seed=(0.4, 0.6), interval=(0.4, 0.6), size_bytes=9),),
        cost={},
        plan={"tables": {EVIL: [{EVIL: EVIL}]}},
        history={EVIL: [{"step": 0, "loss": 1.0}, {"step": 9, "loss": 0.5}]},
        score_name=EVIL,
        differences=(difference(EVIL, EVIL, 0.02) | {"why": EVIL},),
        audits={EVIL: told},
    )
    reader = Reader(report.html())
    assert reader.tags.count("script") == 1
    assert reader.open == []
    assert reader.text.count("alert(") > 30
    markdown = report.markdown().partition("```")[0]
    assert "<script" not in markdown.replace(r"\<script", "")


def test_a_page_of_twenty_arms_is_small() -> None:
    report = arms(20, 5)
    assert len(report.rows) == 20
    assert len(report.differences) == 37
    assert len(report.html().encode()) < 500_000


# ---- a real browser


@pytest.mark.slow
def test_axe_finds_nothing_in_a_real_browser(tmp_path: Path) -> None:
    pages = [tmp_path / f"{name}.html" for name in PAGES]
    for page in pages:
        page.write_text(PAGES[page.stem]().html(), "utf-8")
    command = [sys.executable, Path(__file__).parent.parent / "benchmarks" / "page.py", *pages]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count("violations 0") == 3 * len(pages)
