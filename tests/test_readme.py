"""What the README shows is true: its code runs, its recipe is the recipe, its commands exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from typer.main import get_command

from attar.cli.commands import app
from attar.recipe import check, read

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_the_ten_lines_run_as_written_with_local_models(
    bank: Path,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import pyarrow.csv
    import pyarrow.parquet
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    [code] = blocks("python")
    monkeypatch.chdir(tmp_path)
    pyarrow.parquet.write_table(pyarrow.csv.read_csv(bank / "train.csv"), "intents.parquet")
    torch.manual_seed(1)
    for name in ("teacher", "student"):
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
        model.config.id2label = dict(enumerate(["card", "rate", "top_up"]))
        model.config.label2id = {"card": 0, "rate": 1, "top_up": 2}
        model.save_pretrained(name)
        AutoTokenizer.from_pretrained(base).save_pretrained(name)
    for said, local in (
        ("my-finetuned-teacher", "teacher"),
        ("google/bert_uncased_L-2_H-128_A-2", "student"),
        ("steps=3000", "steps=3"),
    ):
        assert said in code
        code = code.replace(said, local)
    # The tiny BERT has fewer positions than the default max_length.
    code = code.replace('dataset="intents.parquet"', 'dataset="intents.parquet", max_length=32')
    exec(compile(code, "README.md", "exec"), {})
    assert Path("intents.onnx").is_file()
    printed = capsys.readouterr().out
    for row in ("teacher", "student", "small"):
        assert re.search(rf"^{row}\b", printed, re.MULTILINE)


def test_the_recipe_shown_is_the_quickstart() -> None:
    [shown] = blocks("yaml")
    assert read(shown) == read(ROOT / "recipes" / "quickstart.yaml")
    assert check(read(shown)).steps


def test_every_attar_command_shown_exists() -> None:
    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    shown = [line for block in blocks("sh") for line in block.splitlines() if "attar " in line]
    words = [shlex.split(line.partition("attar ")[2], comments=True) for line in shown]
    named = {each[0] for each in words if each and not each[0].startswith(("&&", "-"))}
    assert {"run", "init", "doctor", "check", "list"} <= named
    assert named - {"&&"} <= known


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.stem)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for text in (README, page.read_text(encoding="utf-8")):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert (ROOT / target).exists() or (page.parent / target).exists(), target
