"""The command line: one sentence for what the user can mend, exit codes, tables and bars."""

from __future__ import annotations

import io
import json
import logging
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from asking import Answer, Ask
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer
from typer.testing import CliRunner

import attar.report
from attar import pipeline, recipe, starter
from attar.cli import app, main, terminal
from attar.cli.tables import show_artifacts, show_report
from attar.errors import DataError
from attar.report import Report, Row

CLASSES = {
    "card": "where is my new card",
    "fee": "why was I charged a fee",
    "transfer": "how long does a transfer take",
}
LENGTH = 24
ESCAPE = "\x1b"


def texts() -> list[tuple[str, str]]:
    """Thirty texts, ten of each class."""
    words = ["please", "now", "help me", "abroad", "Zürich"]
    names = list(CLASSES)
    return [(f"{CLASSES[names[n % 3]]} {words[n % 5]} {n}", names[n % 3]) for n in range(30)]


def tokenizer() -> Any:
    """A WordPiece tokenizer trained on the texts."""
    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer()
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=160, special_tokens=special, show_progress=False)
    raw.train_from_iterator([text for text, _ in texts()], trainer)
    return BertTokenizer(vocab=raw.get_vocab(), model_max_length=LENGTH)


def save_bert(folder: Path, **options: Any) -> None:
    words = tokenizer()
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=LENGTH,
        **options,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    words.save_pretrained(folder)


RECIPE = """
task:
  text.classification: {dataset: data.csv, max_length: 16}
teacher: {finetune: {model: bert, epochs: 2, lr: 5e-4}}
student: {layers: {keep: 1, vocabulary: data}}
teach: offline
losses:
  - response.kl: {temperature: 1}
  - feature.cosine: {weight: 1.0, layers: auto}
steps:
  - distill: {steps: 6, batch_size: 8}
  - export.transformers
  - quantize.int8_dynamic
  - export.onnx
measure: [score, parameters, size, latency]
baselines: [labels_only]
"""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, two models (one with a head for the data's classes) and a recipe."""
    folder = tmp_path_factory.mktemp("house")
    lines = "".join(f"{text},{label}\n" for text, label in texts())
    (folder / "data.csv").write_text(f"text,label\n{lines}", "utf-8")
    save_bert(folder / "bert")
    labels = dict(enumerate(CLASSES))
    save_bert(folder / "trained", id2label=labels, label2id={v: k for k, v in labels.items()})
    (folder / "tiny.yaml").write_text(RECIPE, "utf-8")
    return folder


@pytest.fixture(autouse=True)
def at_home(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(house)
    monkeypatch.setenv("ATTAR_CACHE", str(house / "cache"))
    monkeypatch.delenv("ATTAR_DEBUG", raising=False)
    monkeypatch.setenv("COLUMNS", "80")


def apart(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own, in this folder, with attar in reach."""
    root = str(Path(attar.__path__[0]).parent)
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", **environment},
    )


def refused(answer: Answer) -> str:
    """The one sentence of a command that was refused."""
    assert answer.code == 2, answer
    assert answer.out == ""
    assert "Traceback" not in answer.err
    *before, sentence = answer.err.splitlines()
    assert not any(line.startswith("Error") for line in before)
    assert sentence.startswith("Error: ")
    assert ESCAPE not in sentence
    return sentence


FIRST = (
    "run first.yaml --seed 0 --set losses.0.weight=0.5 --set 'teacher.epochs=2' "
    "--set 'steps.0.steps=6' --set 'measure=[score, parameters, size, latency]'"
)


@pytest.fixture(scope="module")
def ran(house: Path) -> Answer:
    """The run of a recipe that `init` wrote, into `runs/first`."""
    patch, out, err = pytest.MonkeyPatch(), io.StringIO(), io.StringIO()
    with patch.context() as here:
        here.chdir(house)
        here.setenv("ATTAR_CACHE", str(house / "cache"))
        here.setattr(sys, "stdout", out)
        here.setattr(sys, "stderr", err)
        assert main(["init", "bert", "data.csv", "--output", "first.yaml"]) == 0
        code = main(shlex.split(FIRST))
    return Answer(code, out.getvalue(), err.getvalue())


# ---- the shop window


def test_the_package_and_its_help_import_no_torch() -> None:
    done = apart(
        "-c",
        "import sys, attar; from attar.cli import main; code = main(['--help'])\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(code or ' '.join(heavy) or 0)",
    )
    assert (done.returncode, done.stderr) == (0, "")
    for command in ("run", "check", "teach", "list", "report", "init", "doctor", "schema"):
        assert re.search(rf"\b{command}\b", done.stdout)


def test_the_shop_window_shows_what_it_says_and_nothing_else() -> None:
    assert attar.run is pipeline.run
    assert attar.read is recipe.read
    assert attar.Recipe is recipe.Recipe
    assert attar.Report is Report
    assert re.match(r"\d+\.\d+|unknown", attar.__version__)
    assert attar.losses.__name__ == "attar.losses"
    assert {"run", "read", "Recipe", "Report", "tasks"} <= set(dir(attar))
    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        attar.runn  # noqa: B018


def test_without_a_command_the_help_is_shown_with_its_exit_codes() -> None:
    alone, asked = (CliRunner().invoke(app, words) for words in ([], ["--help"]))
    assert alone.exit_code == asked.exit_code == 0
    assert alone.output == asked.output
    assert "Exit codes: 0 ok, 2" in asked.output


def test_the_version_is_the_packages(ask: Ask) -> None:
    assert ask("--version") == Answer(0, f"attar {attar.__version__}\n", "")


# ---- a run


def test_a_run_leaves_its_artifacts_and_tells_where_they_are(ran: Answer, house: Path) -> None:
    assert ran.code == 0, ran.err
    there = {path.name for path in (house / "runs/first").iterdir()}
    artifacts = {"teacher", "student", "student-int8_dynamic.onnx"}
    assert artifacts | {"report.json", "report.md", "report.html"} <= there
    assert "Report: runs/first/report.html\n" in ran.out
    assert "Beside it: teacher, student, student-int8_dynamic.onnx\n" in ran.out


def test_the_report_of_a_run_keeps_the_contract_and_the_command(ran: Answer, house: Path) -> None:
    assert ran.code == 0
    content = json.loads((house / "runs/first/report.json").read_text("utf-8"))
    jsonschema.validate(content, attar.report.schema())
    names = [row["name"] for row in content["rows"]]
    expected = ["teacher", "student", "student-int8_dynamic.onnx", "labels_only", "bag_of_words"]
    assert set(expected) <= set(names)
    assert content["recipe"]["command"] == shlex.join(["attar", *shlex.split(FIRST)])
    assert content["recipe"]["losses"][0]["response.kl"]["weight"] == 0.5


def test_stdout_holds_the_outcome_and_stderr_plain_sentences(ran: Answer) -> None:
    wrote, _, head, rule, first, *_ = ran.out.splitlines()
    assert wrote.startswith("Wrote first.yaml")
    assert head.split()[:2] == ["model", "score"]
    assert set(rule) <= {"-", " "}
    assert first.startswith("teacher ")
    assert any(
        line.startswith("- Every difference is from one seed") for line in ran.out.split("\n")
    )
    assert "Training student ...\n" in ran.err
    assert re.search(r"Training student: 6 of 6, loss \d\.\d{3}, [\d.]+ s\.\n", ran.err)
    assert re.search(r"Asking the teacher: (\d+) of \1 texts, ", ran.err)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]|it/s|━", ran.out + ran.err)
    assert "Warning" not in ran.err


def test_a_second_run_finds_everything_trained_and_scores_the_same(
    ran: Answer, ask: Ask, house: Path
) -> None:
    assert ran.code == 0
    before = Report.read(house / "runs/first")
    shutil.copytree(house / "runs/first", house / "again")
    fewer = "--set 'steps=[{distill: {steps: 6, lr: 6e-4, batch_size: 32}}]' --set measure=[score]"
    again = ask(f"{FIRST} {fewer} --out again")
    assert again.code == 0, again.err
    found = re.findall(r"Training (.*): found, trained earlier", again.err)
    assert found == ["the teacher", "student", "labels_only", "label_smoothing"]
    assert "0 asked now" in again.err
    after = Report.read(house / "again")
    for name in ("teacher", "student", "labels_only", "label_smoothing", "bag_of_words"):
        assert after.row(name).score == before.row(name).score


def test_the_exported_folder_loads_without_attar(ran: Answer, house: Path) -> None:
    assert ran.code == 0
    code = (
        "import sys, torch; from transformers import AutoModelForSequenceClassification as Model\n"
        "from transformers import AutoTokenizer\n"
        "words = AutoTokenizer.from_pretrained('student')(['my card'], return_tensors='pt')\n"
        "model = Model.from_pretrained('student').eval()\n"
        "print(model.config.id2label, tuple(model(**words).logits.shape), 'attar' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=house / "runs/first",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == f"{dict(enumerate(CLASSES))} (1, 3) False"


def test_teach_fills_the_store_and_nothing_else(ask: Ask, house: Path) -> None:
    answer = ask(
        "teach tiny.yaml --out nothing --set 'teach={offline: {store: kept}}' "
        "--set 'teacher={load: {model: trained}}'"
    )
    assert answer.code == 0, answer.err
    assert "rows" in answer.err
    assert [path for path in (house / "kept").rglob("*") if path.is_file()]
    assert not (house / "nothing/student").exists()


def test_check_prints_a_forecast_of_the_recipe(ask: Ask, house: Path) -> None:
    answer = ask("check tiny.yaml --out never")
    assert answer.code == 0, answer.err
    assert "teacher" in answer.out
    assert "disk" in answer.out
    assert not (house / "never").exists()


# ---- what the user can mend


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("run none.yaml", "none.yaml"),
        ("run tiny.yaml --set task.dataset=none.csv", "none.csv"),
        ("run tiny.yaml --set teacher.model=./nobert", "nobert"),
        ("run tiny.yaml --set task.max_length=512", "512"),
        ("run tiny.yaml --set lossess.0.weight=2", "did you mean 'losses'?"),
        ("run tiny.yaml --set losses.7.weight=2", "a list of 2"),
        ("run tiny.yaml --set losses.0.wieght=2", "no option 'wieght'"),
        ("run tiny.yaml --set seed", "write path=value"),
        ("check none.yaml", "none.yaml"),
        ("teach tiny.yaml --set teach=online", "only `teach: offline`"),
        ("teach tiny.yaml --set losses=[task]", "no loss asks for the teacher"),
        ("list loses", "did you mean 'losses'?"),
        ("report none", "none"),
        ("report tiny.yaml", "is not JSON"),
        ("init bert none.csv", "none.csv"),
        ("init nobert/ data.csv", "nobert"),
        ("init bert data.csv --label lable", "did you mean 'label'?"),
        ("init bert data.csv --output tiny.yaml", "--force"),
    ],
)
def test_what_the_user_can_mend_is_one_sentence_and_exit_code_two(
    ask: Ask, line: str, says: str
) -> None:
    assert says in refused(ask(line))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("teach=data_free", "data_free makes inputs of numbers"),
        ("'losses=[{response.kl: {temperature: {linear: {start: 4, end: -1}}}}]'", "temperature"),
        ("'losses=[{feature.mse: {layers: {bert.encoder.layer.0: bert.encoder.layr.1}}}]'", "layr"),
        ("teach=own --set 'losses=[task, response.kl]'", "compares layers of the student"),
        ("teach=virtual", "gives answers and no layers"),
        ("teach=uncertain", "can't compare layers"),
    ],
)
def test_what_teaching_refuses_is_met_before_anything_is_trained(
    ask: Ask, settings: str, says: str
) -> None:
    answer = ask(f"run tiny.yaml --out never --set {settings}")
    assert says in refused(answer)
    assert "Training" not in answer.err


def test_a_misspelt_loss_is_answered_with_its_line_and_the_nearest_name(
    ask: Ask, tmp_path: Path
) -> None:
    (tmp_path / "bad.yaml").write_text(RECIPE.replace("response.kl", "response.kll"), "utf-8")
    sentence = refused(ask(f"run {tmp_path / 'bad.yaml'}"))
    assert "bad.yaml:8: " in sentence
    assert "did you mean 'response.kl'?" in sentence


def test_code_of_the_users_own_needs_trust(ask: Ask, house: Path) -> None:
    (house / "mine.py").write_text(
        "from attar.losses.response import kl\n\n\n"
        "def twice(student, teacher, mask=None):\n    return 2 * kl(student, teacher)\n"
    )
    own = "--set losses=[mine.py:twice] --set 'steps=[{distill: {steps: 2}}]' "
    own += "--set measure=[size] --set baselines=[] --out own"
    assert "--trust" in refused(ask(f"run tiny.yaml {own}"))
    assert ask(f"run tiny.yaml {own} --trust").code == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "tiny.yaml", "--sed", "3"], "--seed"),
        (["run", "tiny.yaml", "--seed", "many"], "'--seed'"),
        (["run", "tiny.yaml", "--seed", "-1"], "'--seed'"),
        (["run"], "RECIPE"),
        (["rnu"], "run"),
    ],
)
def test_a_wrong_command_line_is_exit_code_two_and_names_the_right_one(
    words: list[str], says: str
) -> None:
    answer = CliRunner().invoke(app, words)
    assert answer.exit_code == 2
    assert says in answer.stderr
    assert "Traceback" not in answer.output


def test_a_damaged_report_is_refused_and_left_as_it_is(ask: Ask, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    for text in ('{"schema": 1, "rows": [', "[]", '{"schema": 1}', '{"schema": 99}', ""):
        file.write_text(text, "utf-8")
        assert "report" in refused(ask(f"report {tmp_path}"))
        assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_what_the_machine_refuses_is_the_users_to_mend(ask: Ask, house: Path) -> None:
    (house / "file").write_text("")
    assert "file" in refused(ask("schema --output file/schema.json"))


# ---- how a run can end


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(pipeline, "run", run)


def test_ctrl_c_is_130_and_says_how_to_go_on(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, KeyboardInterrupt())
    sentence = "Interrupted; run the same command to go on from the last checkpoint.\n"
    assert ask("run tiny.yaml") == Answer(130, "", sentence)


def test_a_command_without_checkpoints_promises_none(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(starter, "written", interrupted)
    assert ask("init bert data.csv") == Answer(130, "", "Interrupted.\n")


def test_a_polite_kill_ends_like_ctrl_c_and_leaves_the_signal_as_it_was(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(pipeline, "run", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    answer = ask("run tiny.yaml")
    assert answer.code == 143
    assert answer.err.startswith("Interrupted; ")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_bug_shows_its_traceback_and_asks_for_a_report(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    raising(monkeypatch, ZeroDivisionError("what was that"))
    answer = ask("run tiny.yaml")
    assert (answer.code, answer.out) == (1, "")
    assert "Traceback" in answer.err
    assert "ZeroDivisionError: what was that" in answer.err
    assert "please report it" in answer.err.splitlines()[-1]


def test_debugging_shows_the_traceback_of_a_users_error_too(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    raising(monkeypatch, DataError("no such thing"))
    monkeypatch.setenv("ATTAR_DEBUG", "1")
    answer = ask("run tiny.yaml")
    assert answer.code == 2
    assert "Traceback" in answer.err
    assert answer.err.endswith("Error: no such thing\n")


def test_warnings_and_notes_of_libraries_stay_away_unless_debugging(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object, **__: object) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")  # as some libraries do when they are imported
            warnings.warn("a warning", stacklevel=1)
        logging.getLogger("torch.onnx").warning("a note")
        raise DataError("the end")

    monkeypatch.setattr(pipeline, "run", run)
    assert ask("run tiny.yaml").err == "Error: the end\n"
    assert logging.root.manager.disable == 0
    monkeypatch.setenv("ATTAR_DEBUG", "1")
    with pytest.warns(UserWarning, match="a warning"):
        assert "Traceback" in ask("run tiny.yaml").err


def test_a_real_interrupt_leaves_a_checkpoint_and_one_sentence(house: Path) -> None:
    words = ["run", "tiny.yaml", "--out", "cut", "--set", "steps.0.steps=100000"]
    words += ["--set", "losses=[task]", "--set", "baselines=[]", "--set", "measure=[size]"]
    words += ["--set", "engine.checkpoint=0", "--set", "teacher={load: {model: trained}}"]
    root = str(Path(attar.__path__[0]).parent)
    said = []
    # Whoever runs the tests in the background may ignore this signal, and so would a child.
    start = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    start += "from attar.cli import main; sys.exit(main())"
    with subprocess.Popen(
        [sys.executable, "-c", start, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
    ) as run:
        assert run.stderr is not None
        for line in run.stderr:
            said.append(line)
            if line.startswith("Training student"):
                while not list(house.glob("cut/arms/student-*/checkpoints/step-*")):
                    assert run.poll() is None
                    time.sleep(0.05)
                run.send_signal(signal.SIGINT)
    assert run.returncode == 130, said
    assert said[-1].startswith("Interrupted; run the same command to go on")
    assert "Traceback" not in "".join(said)
    assert list(house.glob("cut/arms/student-*/checkpoints/step-*"))


def test_a_reader_that_leaves_early_ends_a_command_quietly() -> None:
    root = str(Path(attar.__path__[0]).parent)
    command = f"{shlex.quote(sys.executable)} -m attar schema | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert done.stdout == "141\n"
    assert done.stderr == ""


# ---- the smaller commands


def test_list_shows_every_name_and_option_a_recipe_can_use(ask: Ask) -> None:
    answer = ask("list")
    assert (answer.code, answer.err) == (0, "")
    for key, room in recipe.ROOMS.items():
        assert f"{key}:\n" in answer.out
        for name in attar.resolve.names(room):
            assert re.search(rf"^  {re.escape(name)} ", answer.out, re.MULTILINE)


def test_list_of_a_room_shows_types_and_defaults(ask: Ask) -> None:
    out = ask("list losses").out
    assert re.search(r"^  response\.kl +T² KL\(teacher ‖ student\)", out, re.MULTILINE)
    assert re.search(r"^    temperature +float, 1\.0", out, re.MULTILINE)
    assert re.search(r"^    weight +float or a schedule, 1\.0", out, re.MULTILINE)
    assert "quantize" not in out
    assert re.search(r"^    ratio +float or dict.*, required", ask("list steps").out, re.MULTILINE)


def test_report_writes_the_pages_again_and_leaves_the_json(
    ran: Answer, ask: Ask, house: Path
) -> None:
    assert ran.code == 0
    folder = house / "runs/first"
    before = (folder / "report.json").read_bytes()
    for page in ("report.md", "report.html"):
        (folder / page).unlink()
    answer = ask("report runs/first")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith("model ")
    assert (folder / "report.md").read_text("utf-8").startswith("# first")
    assert "<html" in (folder / "report.html").read_text("utf-8")
    assert (folder / "report.json").read_bytes() == before


def test_report_of_a_file_by_another_name_leaves_the_folders_own_alone(
    ran: Answer, ask: Ask, house: Path, tmp_path: Path
) -> None:
    assert ran.code == 0
    (tmp_path / "old.json").write_bytes((house / "runs/first/report.json").read_bytes())
    assert ask(f"report {tmp_path / 'old.json'}").code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"old.json", "old.md", "old.html"}


def test_schema_is_what_editors_get_and_accepts_the_recipe(ask: Ask, tmp_path: Path) -> None:
    printed = ask("schema")
    written = ask(f"schema --output {tmp_path / 'new/recipe.json'}")
    assert (printed.code, printed.err, written) == (0, "", Answer(0, "", ""))
    schema = json.loads(printed.out)
    assert schema == json.loads((tmp_path / "new/recipe.json").read_text("utf-8"))
    jsonschema.validate(yaml.safe_load(RECIPE.replace("5e-4", "5.0e-4")), schema)


@pytest.mark.parametrize(("marks", "code"), [((True, None), 0), ((True, False, True), 2)])
def test_doctor_shows_every_finding_and_fails_if_one_is_bad(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, marks: tuple[bool | None, ...], code: int
) -> None:
    from attar import doctor

    def examine(*given: object) -> Iterator[doctor.Finding]:
        assert given == ("tiny.yaml", ["seed=3"], True)
        for number, ok in enumerate(marks):
            yield doctor.Finding(f"check {number}", ok, f"says {ok}.")

    monkeypatch.setattr(doctor, "examine", examine)
    answer = ask("doctor tiny.yaml --set seed=3 --trust")
    words = {True: "ok  ", False: "FAIL", None: "info"}
    expected = [f"{words[ok]} check {n}: says {ok}." for n, ok in enumerate(marks)]
    assert (answer.code, answer.err) == (code, "")
    assert answer.out.splitlines() == expected


# ---- the first recipe


def test_the_first_recipe_is_right_and_says_what_it_found(ask: Ask, house: Path) -> None:
    answer = ask("init bert data.csv --output made/mine.yaml")
    assert answer.code == 0, answer.err
    assert answer.out == "Wrote made/mine.yaml; next: attar check made/mine.yaml\n"
    text = (house / "made/mine.yaml").read_text("utf-8")
    assert "# 30 rows, 3 classes: 22 to train, 2 validation, 6 to test" in text
    made = recipe.read(house / "made/mine.yaml")
    options = made.task.options
    assert options == {"dataset": "data.csv", "max_length": 16}
    assert made.teacher is not None
    assert (made.teacher.name, made.teacher.options["model"]) == ("finetune", "bert")
    assert ask("check made/mine.yaml").code == 0


def test_a_head_for_just_these_classes_is_kept_and_any_other_is_trained(house: Path) -> None:
    kept = recipe.read(starter.written("trained", "data.csv"))
    assert kept.teacher == recipe.Choice(name="load", options={"model": "trained"})
    other = "".join(f"{text},{label}s\n" for text, label in texts())
    (house / "other.csv").write_text(f"text,label\n{other}", "utf-8")
    trained = recipe.read(starter.written("trained", "other.csv"))
    assert trained.teacher is not None
    assert trained.teacher.name == "finetune"


def test_columns_by_other_names_are_found_by_what_is_in_them(house: Path) -> None:
    rows = "".join(f"{n},{text},{label}\n" for n, (text, label) in enumerate(texts()))
    (house / "named.csv").write_text(f"no,what: [they] said,kind\n{rows}", "utf-8")
    text = starter.written("bert", "named.csv")
    options = recipe.read(text).task.options
    assert options["columns"] == {"text": "what: [they] said", "label": "kind"}
    assert "# there are also no" in text


def test_two_columns_that_could_be_the_label_are_asked_about(ask: Ask, house: Path) -> None:
    rows = "".join(f"{text},{label},{n % 4}\n" for n, (text, label) in enumerate(texts()))
    (house / "two.csv").write_text(f"body,kind,stars\n{rows}", "utf-8")
    sentence = refused(ask("init bert two.csv"))
    assert "(kind, stars)" in sentence
    assert "--label" in sentence
    assert ask("init bert two.csv --label stars").code == 0
    assert recipe.read(house / "two.yaml").task.options["columns"]["label"] == "stars"


def test_the_length_fits_the_texts_but_never_more_than_the_model(house: Path) -> None:
    random.seed(0)
    long = "".join(f"{' '.join(['card'] * 40)} {n},{n % 3}\n" for n in range(30))
    (house / "long.csv").write_text(f"text,label\n{long}", "utf-8")
    assert recipe.read(starter.written("bert", "long.csv")).task.options["max_length"] == LENGTH


@pytest.mark.parametrize("name", ["null", "1e3", "a: b", "# c", 'd"e', "line\nbreak", "ü.csv", "x"])
def test_whatever_a_name_looks_like_yaml_reads_it_back(name: str) -> None:
    assert recipe.read(f"task: {starter._quoted(name)}\nsteps: [distill]\n").task.name == name


def test_a_recipe_is_overwritten_by_force_alone(ask: Ask, house: Path) -> None:
    (house / "mine.yaml").write_text("mine", "utf-8")
    assert "mine.yaml is there already" in refused(ask("init bert data.csv --output mine.yaml"))
    assert (house / "mine.yaml").read_text("utf-8") == "mine"
    assert ask("init bert data.csv --output mine.yaml --force").code == 0
    assert (house / "mine.yaml").read_text("utf-8").startswith("# Written by `attar init`")


# ---- the terminal


class Screenful(io.StringIO):
    """A terminal that keeps what is drawn on it."""

    def isatty(self) -> bool:
        return True

    @property
    def text(self) -> str:
        """What was drawn, without colours and cursor moves."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.getvalue())


def watched(monkeypatch: pytest.MonkeyPatch) -> Screenful:
    """A terminal in place of both outputs."""
    shown = Screenful()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setattr(sys, "stderr", shown)
    return shown


def paper() -> Report:
    def row(name: str, runtime: str = "PyTorch 2.13.0 fp32", note: str = "") -> Row:
        latency = {"p50": 12.3, "p95": 45.6}
        return Row(
            name, runtime, 0.8, {}, 22_700_000, 682_000_000, 91_000_000, latency, 10**9, note
        )

    rows = (row("teacher"), row("student"), row("student-int8_dynamic.onnx", "ONNX Runtime 1.31"))
    rows += (row("bag_of_words", "scikit-learn", "A note about words."),)
    said = (
        "One sentence that is a good deal longer than what a narrow terminal can show in a line.",
    )
    return Report({"name": "x"}, {}, rows, {}, verdict=said)


@pytest.mark.parametrize(
    ("width", "kept", "dropped"),
    [
        (50, ["score", "size"], ["MACs", "runtime", "p95 ms", "memory"]),
        (80, ["score", "parameters", "size", "p50 ms"], ["MACs", "runtime"]),
        (120, ["score", "parameters", "MACs", "size", "p50 ms", "p95 ms", "memory", "runtime"], []),
    ],
)
def test_a_narrow_terminal_goes_without_the_least_important_columns(
    monkeypatch: pytest.MonkeyPatch,
    width: int,
    kept: list[str],
    dropped: list[str],
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    drawn = watched(monkeypatch)
    show_report(paper())
    lines = drawn.text.splitlines()
    assert max(map(len, lines)) <= width
    head = next(line for line in lines if line.startswith("model"))
    for title in kept:
        assert title in head
    for title in dropped:
        assert title not in head
        assert title in drawn.text
    assert any(line.startswith("student-int8_dynamic.onnx ") for line in lines)
    assert "bag_of_words: A note about words." in drawn.text
    assert "• One sentence" in drawn.text


def test_a_bar_shows_count_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = watched(monkeypatch)
    shown = terminal.screen()
    with shown.bar("Training student") as advance:
        for step in range(400, 406):
            advance(step, 1000, f"loss {step}")
    last = drawn.text.split("\r")[-1]
    assert re.search(r"Training student .*405/1000 +[\d.]+ it/s +\d+:\d\d left", last)
    assert "loss 405" in last


def test_what_an_earlier_run_did_counts_in_no_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = watched(monkeypatch)
    with terminal.screen().bar("Training student") as advance:
        advance(999_999, 1_000_000, "")
    assert "999999/1000000" in drawn.text
    assert "it/s" not in drawn.text


def test_a_bar_that_is_full_tells_the_time_it_took(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = watched(monkeypatch)
    with terminal.screen().bar("Scoring [on] the test split") as advance:
        for done in range(4):
            advance(done, 3, "student-int8_dynamic.onnx-with-a-name-that-is-too-long")
    lines = [line for line in re.split(r"[\r\n]+", drawn.text) if line.strip()]
    assert all(len(line.rstrip()) <= 80 for line in lines)
    assert re.search(r"Scoring \[on\] the test split .*3/3 .*\d+:\d\d ", lines[-1])
    assert "left" not in lines[-1]


def test_sentences_stand_above_a_bar_and_control_codes_are_spelled_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = watched(monkeypatch)
    shown = terminal.screen()
    with shown.bar("Training") as advance:
        advance(1, 2, "")
        shown.say(f"a label {ESCAPE}[31m in [red]")
    assert r"a label \x1b[31m in [red]" in drawn.text


def test_no_colour_is_forced_where_nobody_watches(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    answer = ask("list engine")
    show_report(paper())
    show_artifacts(Path("none"), paper())
    assert ESCAPE not in answer.out + capsys.readouterr().out


def test_an_output_that_knows_no_greek_gets_question_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(kept, encoding="ascii"))
    assert main(["list", "losses"]) == 0
    assert b"KL(teacher ? student)" in kept.getvalue()
