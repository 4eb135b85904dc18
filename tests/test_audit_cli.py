"""`attar audit` and gates: whatever answers can be weighed, and what is not passed ends in 3."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
import torch
import yaml
from asking import Answer, Ask
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from test_cli import CLASSES, save_bert, watched
from transformers import BertForSequenceClassification

import attar
import attar.report
from attar import students
from attar.cli import main
from attar.forecast import forecast
from attar.measure.audit.calibration import temperature
from attar.recipe import read
from attar.report import Report
from attar.setting import begin

RECIPE: dict[str, Any] = {
    "task": {"text.classification": {"dataset": "data.csv", "max_length": 16}},
    "teacher": {"finetune": {"model": "bert", "epochs": 12, "lr": 2e-3, "batch_size": 8}},
    "student": {"layers": {"keep": 1}},
    "teach": {"offline": {"store": "kept"}},
    "losses": ["task", {"feature.cosine": {"layers": "auto"}}],
    "steps": [
        {"distill": {"steps": 100, "lr": 2e-3, "batch_size": 8}},
        "quantize.int8_dynamic",
        "export.onnx",
    ],
    "measure": ["score", "size", {"audit": {"occlusion": 2, "surrogate": 2}}],
    "gates": {"agreement": 0.5, "negative_flips": 0.5},
}
FILE = "student-int8_dynamic.onnx"


def texts() -> list[tuple[str, str]]:
    """A hundred and twenty different texts; each ninth label is wrong, so that none is sure."""
    names = list(CLASSES)
    return [
        (f"{CLASSES[names[n % 3]]} please {n}", names[(n + (n % 9 == 0)) % 3]) for n in range(120)
    ]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a model and a recipe, and the finished run of it in `runs/tiny`."""
    folder = tmp_path_factory.mktemp("house")
    lines = "".join(f"{text},{label}\n" for text, label in texts())
    (folder / "data.csv").write_text(f"text,label\n{lines}", "utf-8")
    (folder / "other.csv").write_text(f"text,label\n{lines.replace('please', 'now')}", "utf-8")
    torch.manual_seed(0)
    save_bert(folder / "bert")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False), "utf-8")
    patch, out, err = pytest.MonkeyPatch(), io.StringIO(), io.StringIO()
    with patch.context() as here:
        here.chdir(folder)
        here.setenv("ATTAR_CACHE", str(folder / "cache"))
        here.setattr(sys, "stdout", out)
        here.setattr(sys, "stderr", err)
        assert main(["run", "tiny.yaml"]) == 0, err.getvalue()
    return folder


@pytest.fixture(autouse=True)
def at_home(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(house)
    monkeypatch.setenv("ATTAR_CACHE", str(house / "cache"))
    monkeypatch.delenv("ATTAR_DEBUG", raising=False)


def refused(answer: Answer) -> str:
    """The one sentence of a command that was refused."""
    assert answer.code == 2, answer
    assert "Traceback" not in answer.err
    return answer.err.splitlines()[-1]


@pytest.fixture(scope="module")
def report(house: Path) -> Report:
    return Report.read(house / "runs" / "tiny")


# ---- in a run


def test_what_is_shipped_is_audited_beside_the_teacher_and_the_report_keeps_the_contract(
    report: Report, house: Path
) -> None:
    content = json.loads((house / "runs/tiny/report.json").read_text("utf-8"))
    jsonschema.validate(content, attar.report.schema())
    assert set(report.audits) == {FILE}
    found = report.audits[FILE]
    assert (found["against"], found["examples"]) == ("teacher", 24)
    assert sum(each["examples"] for each in found["classes"]) == 24
    gates = {each["gate"]: each["ok"] for each in found["gates"]}
    assert gates == {"agreement": True, "negative_flips": True}
    assert report.failed_gates == []


def test_the_audit_of_a_run_agrees_with_its_scores(report: Report) -> None:
    for name, found in report.audits.items():
        flips = found["flips"]
        lost = (flips["right_to_wrong"] - flips["wrong_to_right"]) / found["examples"]
        was, now = report.row("teacher").score, report.row(name).score
        assert was is not None
        assert now is not None
        assert was - now == pytest.approx(lost)


def test_the_losses_layers_are_compared_and_an_int8_file_says_why(report: Report) -> None:
    found = report.audits[FILE]
    assert [each["one"] for each in found["cka"]] == ["bert.encoder.layer.0@mean"]
    assert [each["other"] for each in found["cka"]] == ["bert.encoder.layer.1@mean"]
    assert 0 < found["cka"][0]["cka"] <= 1
    assert -1 <= found["occlusion"]["similarity"] <= 1
    assert found["occlusion"]["examples"] == 2
    assert found["surrogate"]["depth"] == 2
    assert found["surrogate"]["after"] == found["surrogate"]["fidelity"] > 0.5


def test_the_temperature_that_was_fitted_is_written_into_the_file(
    report: Report, house: Path
) -> None:
    facts = {each.key: each.value for each in onnx.load(house / "runs/tiny" / FILE).metadata_props}
    task = begin("tiny.yaml", "never").task
    answers = task.answers(task.load(f"runs/tiny/{FILE}"), "validation")
    wanted = temperature(answers.numpy(), task.truth("validation"))
    assert wanted is not None
    assert float(facts["temperature"]) == pytest.approx(wanted, rel=1e-6)
    assert report.audits[FILE]["calibration"]["after"]["temperature"] == float(facts["temperature"])


FOLDER = "--set 'steps=[{distill: {steps: 6}}, export.transformers]' --set 'measure=[score]'"


def test_a_run_whose_gate_is_not_passed_ends_with_three_and_still_has_its_report(
    ask: Ask, tmp_path: Path
) -> None:
    done = ask(f"run tiny.yaml --out {tmp_path} {FOLDER} --set 'gates={{brier: 0, kl: 99}}'")
    assert done.code == 3, done.err
    *_, before, last = done.err.splitlines()
    assert not before.startswith("Gate")
    assert last.startswith("Gate brier is not passed by student-folder: ")
    assert last.endswith("is above its limit 0.")
    assert "Report: " in done.out
    found = Report.read(tmp_path)
    (failed,) = found.failed_gates
    assert (failed["row"], failed["gate"], failed["limit"]) == ("student-folder", "brier", 0)
    said = json.loads((tmp_path / "student/calibration.json").read_text())
    told = found.audits["student-folder"]["calibration"]["after"]
    assert said == {"temperature": told["temperature"]}


ALONE: dict[str, Any] = {
    "task": RECIPE["task"],
    "student": {"pretrained": {"model": "bert"}},
    "teach": None,
    "losses": ["task"],
    "steps": [
        {"distill": {"steps": 60, "lr": 2e-3, "batch_size": 8}},
        {"prune.magnitude": {"ratio": 0.97}},
        "export.transformers",
    ],
    "measure": ["score", "audit"],
    "gates": {"kl": 0.0},
}


def test_without_a_teacher_a_row_stands_beside_what_it_was_made_from(tmp_path: Path) -> None:
    found = attar.run(read(ALONE), tmp_path)
    assert {name: each["against"] for name, each in found.audits.items()} == {
        "student-magnitude-folder": "student"
    }
    assert [each["gate"] for each in found.failed_gates] == ["kl"]


def test_where_a_row_was_made_from_nothing_it_stands_beside_itself(tmp_path: Path) -> None:
    said = ALONE | {"steps": [{"distill": {"steps": 2}}], "gates": {"kl": 0.0, "brier": 0.0}}
    found = attar.run(read(said), tmp_path)
    assert found.audits["student"]["against"] == "student"
    assert [each["gate"] for each in found.failed_gates] == ["brier"]


def test_of_several_exports_only_the_one_to_ship_has_gates(tmp_path: Path) -> None:
    teacher = {"load": {"model": "runs/tiny/teacher"}}
    steps = ["export.transformers", {"prune.magnitude": {"ratio": 0.97}}, "export.transformers"]
    said = {**ALONE, "teacher": teacher, "steps": steps, "losses": [], "student": None}
    found = attar.run(read(said), tmp_path)
    assert set(found.audits) == {"student-folder", "student-magnitude-folder"}
    assert "gates" not in found.audits["student-magnitude-folder"]
    assert found.audits["student-magnitude-folder"]["agreement"] < 0.9
    assert found.audits["student-folder"]["gates"] == [
        {"gate": "kl", "limit": 0.0, "found": 0.0, "ok": True}
    ]


def test_check_takes_gates_and_refuses_what_is_none(ask: Ask, house: Path) -> None:
    assert forecast(begin("tiny.yaml", "never")).seconds > 0
    sentence = refused(ask("check tiny.yaml --set gates.worst_clas_drop=0.1"))
    assert "did you mean 'worst_class_drop'?" in sentence
    assert "must be float" in refused(ask("check tiny.yaml --set gates.ece=-1"))
    (house / "wrong.yaml").write_text((house / "tiny.yaml").read_text() + "  ecce: 1\n")
    lines = len((house / "wrong.yaml").read_text().splitlines())
    sentence = refused(ask("check wrong.yaml"))
    assert f"wrong.yaml:{lines}: " in sentence
    assert "did you mean 'ece'?" in sentence


def test_the_schema_knows_gates(ask: Ask) -> None:
    schema = json.loads(ask("schema").out)
    jsonschema.validate(RECIPE, schema)
    for gates in ({"ecce": 1}, {"ece": "low"}, {"agreement": 1.5}, ["ece"]):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(RECIPE | {"gates": gates}, schema)


def test_gates_are_listed_and_bring_the_audit_with_them(ask: Ask) -> None:
    out = ask("list gates").out
    for name in ("agreement", "worst_class_drop", "negative_flips", "ece", "score_drop", "kl"):
        assert f"\n  {name} " in out
    here = begin("tiny.yaml", "never", overrides=["measure=[score]"])
    assert [piece.name for piece in here.plan.measure] == ["score", "audit"]
    without = begin("tiny.yaml", "never", overrides=["measure=[score]", "gates={}"])
    assert [piece.name for piece in without.plan.measure] == ["score"]
    assert "gates" not in without.recipe.to_yaml()


# ---- A and B


def test_the_same_file_on_both_sides_agrees_with_itself_and_passes_every_gate(
    ask: Ask, tmp_path: Path
) -> None:
    gates = "agreement=1 kl=0 negative_flips=0 worst_class_drop=0 score_drop=0"
    asked = " ".join(f"--gate {gate}" for gate in gates.split())
    file = f"runs/tiny/{FILE}"
    done = ask(f"audit {file} {file} --recipe tiny.yaml --out {tmp_path} {asked}")
    assert done.code == 0, done.err
    found = Report.read(tmp_path)
    assert [row.name for row in found.rows] == [FILE, f"{FILE} (2)"]
    assert [row.role for row in found.rows] == ["teacher", "export"]
    audit = found.audits[f"{FILE} (2)"]
    assert audit["agreement"] == 1.0
    assert all(gate["ok"] for gate in audit["gates"])
    assert "broken_file" not in audit
    assert {path.name for path in tmp_path.iterdir()} == {
        *("report.json", "report.md", "report.html"),
    }


@pytest.fixture(scope="module")
def dead(house: Path) -> Path:
    """The trained teacher with 97 % of its weights gone."""
    weights = house / "dead" / "model.safetensors"
    shutil.copytree(house / "runs/tiny/teacher", house / "dead")
    state = load_file(weights)
    for name, tensor in state.items():
        if tensor.dim() == 2 and "classifier" not in name:
            limit = tensor.abs().flatten().kthvalue(int(0.97 * tensor.numel())).values
            state[name] = torch.where(tensor.abs() > limit, tensor, 0.0)
    save_file(state, weights, metadata={"format": "pt"})
    return house / "dead"


def test_a_model_pruned_to_death_fails_its_gates_and_what_it_broke_is_in_a_file(
    ask: Ask, dead: Path, tmp_path: Path
) -> None:
    line = f"audit runs/tiny/teacher {dead} --recipe tiny.yaml --out {tmp_path}"
    done = ask(f"{line} --gate negative_flips=0.02 --gate worst_class_drop=0.05")
    assert done.code == 3, done.err
    assert "Gate negative_flips is not passed by dead: " in done.err
    assert "NOT passed" in done.out
    found = Report.read(tmp_path).audits["dead"]
    written = (tmp_path / found["broken_file"]).read_text("utf-8")
    lines = [json.loads(each) for each in written.splitlines()]
    assert len(lines) == found["flips"]["right_to_wrong"] > 0
    assert lines[: len(found["broken"])] == found["broken"]
    known = dict(texts())
    for each in lines:
        assert known[each["input"]] == each["label"] == each["before"] != each["after"]
    assert Report.read(tmp_path).failed_gates


def test_what_compression_broke_is_what_the_two_models_answer(
    ask: Ask, dead: Path, tmp_path: Path
) -> None:
    ask(f"audit runs/tiny/teacher {dead} --recipe tiny.yaml --out {tmp_path}")
    found = Report.read(tmp_path).audits["dead"]
    task = begin("tiny.yaml", "never").task
    was, now = (
        task.answers(task.load(n), "test").argmax(1).numpy()
        for n in ("runs/tiny/teacher", str(dead))
    )
    truth = task.truth("test")
    assert found["agreement"] == np.mean(was == now)
    assert found["flips"]["right_to_wrong"] == ((was == truth) & (now != truth)).sum()


def test_a_run_stands_for_the_file_that_it_ships_and_a_recipe_for_its_student(
    ask: Ask, tmp_path: Path
) -> None:
    done = ask(f"audit tiny.yaml runs/tiny --recipe tiny.yaml --out {tmp_path}")
    assert done.code == 0, done.err
    assert "Training student: found, trained earlier" in done.err
    found = Report.read(tmp_path)
    assert [row.name for row in found.rows] == ["tiny", FILE]
    before = Report.read("runs/tiny")
    assert found.row("tiny").score == before.row("student").score
    assert found.row(FILE).score == before.row(FILE).score


def test_a_store_is_audited_on_the_texts_that_it_knows(ask: Ask, tmp_path: Path) -> None:
    done = ask(
        f"audit kept runs/tiny/teacher --recipe tiny.yaml --out {tmp_path} --gate agreement=1"
        " --gate kl=1e-6"
    )
    assert done.code == 0, done.err
    assert "Audited on the 86 train texts that are stored." in done.err
    assert "Occlusion and surrogate are left out" in done.err
    found = Report.read(tmp_path)
    (audit,) = found.audits.values()
    assert (audit["against"], audit["examples"]) == ("kept", 86)
    assert audit["calibration"]["before"]["temperature"] is None
    assert found.row("kept").runtime == "stored answers"
    assert found.row("kept").score == found.row("teacher").score


def test_one_of_attars_own_students_and_a_model_of_transformers_stand_side_by_side(
    ask: Ask, house: Path, tmp_path: Path
) -> None:
    task = begin("tiny.yaml", "never").task
    teacher = task.load("runs/tiny/teacher")
    student = students.lstm(task.texts, list(task.classes), teacher, 16, width=8)
    students.save(student, house / "own")
    done = ask(f"audit runs/tiny/teacher own --recipe tiny.yaml --out {tmp_path}")
    assert done.code in (0, 3), done.err
    assert Report.read(tmp_path).row("own").runtime.startswith("PyTorch")


def test_named_layers_are_compared_and_missing_ones_told(ask: Ask, tmp_path: Path) -> None:
    line = f"audit runs/tiny/teacher tiny.yaml --recipe tiny.yaml --out {tmp_path} --set "
    layers = "{bert.encoder.layer.0: bert.encoder.layer.0}"
    done = ask(line + shlex.quote(f"measure=[{{audit: {{layers: {layers}}}}}]"))
    assert done.code == 0, done.err
    (pair,) = Report.read(tmp_path).audits["tiny"]["cka"]
    assert (pair["one"], pair["other"]) == ("bert.encoder.layer.0@mean",) * 2
    done = ask(
        line + shlex.quote(f"measure=[{{audit: {{layers: {layers.replace('bert', 'x')}}}}}]")
    )
    assert "CKA is left out: " in done.err
    assert done.code == 0


def test_the_table_is_plain_where_nobody_watches(ask: Ask, dead: Path, tmp_path: Path) -> None:
    done = ask(f"audit runs/tiny/teacher {dead} --recipe tiny.yaml --out {tmp_path}")
    assert "\x1b" not in done.out
    for word in ("agreement", "right to wrong", "ECE", "Classes that lost most", "Broken (all in"):
        assert f"\n{word}" in done.out
    assert "Asking dead: 34 of 34 texts" in done.err


# ---- what the user can mend


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("audit runs/tiny/teacher ./nothing", "no folder './nothing'"),
        ("audit runs/tiny/teacher data.csv", "data.csv is a file"),
        ("audit runs/tiny/teacher none.onnx", "There is no file none.onnx"),
        ("audit runs/tiny/teacher headless", "no classification head of its own"),
        ("audit runs/tiny/teacher package:nobody", "not installed"),
        ("audit runs/tiny/teacher none.yaml", "none.yaml"),
        ("audit runs/tiny/teacher nohead.yaml", "no distill step"),
        ("audit runs/tiny/teacher mine.py:build", "--trust"),
        ("audit runs/tiny/teacher five", "answers for 5 classes, but the data has 3"),
        ("audit runs/tiny/teacher turned.onnx", "in another order"),
        ("audit runs/tiny/teacher foreign.onnx", "as 2 others"),
        ("audit runs/tiny/teacher runs/bare", "exported nothing"),
        ("audit kept runs/tiny/teacher --set task.dataset=other.csv", "knows none of this data's"),
        ("audit kept runs/tiny/teacher --set task.max_length=12", "max_length"),
        ("audit runs/tiny/teacher runs/tiny/teacher --part tset", "did you mean 'test'?"),
        ("audit runs/tiny/teacher runs/tiny/teacher --gate ecce=1", "did you mean 'ece'?"),
        ("audit runs/tiny/teacher runs/tiny/teacher --gate ece", "write path=value"),
    ],
)
def test_what_can_t_be_audited_is_one_sentence(ask: Ask, house: Path, line: str, says: str) -> None:
    if not (house / "five").exists():
        _wrong_models(house)
    assert says in refused(ask(f"{line} --recipe tiny.yaml --out never"))


def _wrong_models(house: Path) -> None:
    """Files and folders that are no match for the data."""
    labels = {n: f"class {n}" for n in range(5)}
    save_bert(house / "five", id2label=labels, label2id={v: k for k, v in labels.items()})
    shutil.copytree(house / "bert", house / "headless")
    BertForSequenceClassification.from_pretrained(house / "bert").bert.save_pretrained(
        house / "headless"
    )
    for name, classes in (("turned", [*CLASSES][::-1]), ("foreign", ["yes", "no"])):
        graph = onnx.load(house / "runs/tiny" / FILE)
        for entry in graph.metadata_props:
            if entry.key == "classes":
                entry.value = json.dumps(classes)
        onnx.save(graph, house / f"{name}.onnx")
    shutil.copytree(house / "runs/tiny/tokenizer", house / "tokenizer")
    said = {"task": RECIPE["task"], "teacher": {"load": {"model": "runs/tiny/teacher"}}}
    said |= {"steps": ["export.onnx"]}
    (house / "nohead.yaml").write_text(yaml.safe_dump(said), "utf-8")
    bare = Report.read(house / "runs/tiny")
    rows = tuple(row for row in bare.rows if row.name in ("teacher", "student"))
    Report({}, {}, rows, {}).write(house / "runs/bare")
    shutil.rmtree(house / "runs/bare/student", ignore_errors=True)


def test_a_model_that_answers_with_no_number_is_refused(ask: Ask, house: Path) -> None:
    weights = house / "nan" / "model.safetensors"
    shutil.copytree(house / "runs/tiny/teacher", house / "nan")
    state = load_file(weights)
    state["classifier.bias"][0] = float("nan")
    save_file(state, weights, metadata={"format": "pt"})
    answer = ask("audit runs/tiny/teacher nan --recipe tiny.yaml --out never")
    assert "nan answers to some test texts with what is no number" in refused(answer)


def test_captum_that_is_missing_is_named_with_its_extra(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    answer = ask(f"audit runs/tiny runs/tiny --recipe tiny.yaml --out {tmp_path}")
    assert 'pip install "attar[audit]"' in refused(answer)


# ---- words and patches


def test_a_text_is_hidden_word_by_word(house: Path) -> None:
    task = begin(str(house / "tiny.yaml"), "never").task
    text = ("where is  my card",)
    kept = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0]]).bool()
    assert task.pieces(text) == 4
    assert task.seen(text, kept) == ("where is my card", "is card", "")
    assert task.pieces(("",)) == 0


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe over 300 of scikit-learn's digits, whose student lost nearly all its weights."""
    folder = tmp_path_factory.mktemp("digits")
    data: Any = load_digits()
    pictures = (data.images[:300] * 15.9).astype(np.uint8)
    np.savez(folder / "digits.npz", images=pictures, labels=data.target[:300])
    classes = [str(n) for n in range(10)]
    students.save(students.resnet(classes, depth=8, width=8), folder / "big")
    said = {
        "task": {"vision.classification": {"dataset": str(folder / "digits.npz")}},
        "teacher": {
            "finetune": {"model": str(folder / "big"), "keep_head": True, "epochs": 8, "lr": 5e-3}
        },
        "steps": [{"prune.magnitude": {"ratio": 0.9}}, "export.safetensors"],
        "measure": ["score", {"audit": {"occlusion": 2, "surrogate": 4, "layers": "auto"}}],
    }
    (folder / "digits.yaml").write_text(yaml.safe_dump(said), "utf-8")
    return folder


def test_pictures_are_audited_with_their_place_layers_patches_and_a_tree(
    ask: Ask, digits: Path, tmp_path: Path
) -> None:
    done = ask(f"run {digits / 'digits.yaml'} --out {tmp_path}")
    assert done.code == 0, done.err
    found = Report.read(tmp_path).audits["student-magnitude-folder"]
    assert found["flips"]["right_to_wrong"] > 5
    first = found["broken"][0]
    row = int(first["input"].removeprefix(f"{digits / 'digits.npz'}, row "))
    assert int(first["label"]) == np.load(digits / "digits.npz")["labels"][row - 1]
    assert len(first["key"]) == 32
    assert found["occlusion"]["examples"] == 2
    assert 0.2 < found["surrogate"]["before"] < 1
    assert len(found["cka"]) == 3
    assert all(0 <= pair["cka"] <= 1 for pair in found["cka"])


def test_a_picture_is_hidden_patch_by_patch_in_its_own_colour(digits: Path) -> None:
    task = begin(str(digits / "digits.yaml"), "never").task
    picture = task.spread("test", 1).inputs
    assert task.pieces(picture) == 16  # patches of 2 x 2 of 8 x 8 pixels
    kept = torch.ones(3, 16).bool()
    kept[1, 0] = False
    kept[2] = False
    whole, cut, gone = task.seen(picture, kept)
    assert torch.equal(whole, picture[0])
    grey = picture.float().mean((2, 3)).round()[0]
    assert torch.equal(cut[:, :2, :2], grey[:, None, None].expand(3, 2, 2).to(cut.dtype))
    cut[:, :2, :2] = picture[0, :, :2, :2]
    assert torch.equal(cut, picture[0])
    assert torch.equal(gone.float(), grey[:, None, None].expand(3, 8, 8))


def test_pictures_that_are_no_square_have_patches_to_their_edge(digits: Path) -> None:
    task = begin(str(digits / "digits.yaml"), "never").task
    wide = torch.arange(3 * 5 * 20, dtype=torch.uint8).reshape(1, 3, 5, 20)
    assert task.pieces(wide) == 2 * 7
    seen = task.seen(wide, torch.ones(1, 14).bool())
    assert torch.equal(seen, wide)


# ---- a terminal


def test_a_terminal_is_shown_tables_and_what_fails_in_them(
    dead: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    drawn = watched(monkeypatch)
    line = f"audit runs/tiny/teacher {dead} --recipe tiny.yaml --out {tmp_path} --gate ece=0"
    assert main(shlex.split(line)) == 3
    for word in ("Asking dead", "right to wrong", "Gates", "NOT passed", "Broken (all in"):
        assert word in drawn.text
    assert max(map(len, re.split(r"[\r\n]+", drawn.text))) < 160
