"""A real server, `transformers serve` with a tiny Llama, as the endpoint that teaches."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import storybook
import torch

from attar.hearing import heard
from attar.pipeline import run
from attar.recipe import read
from attar.setting import Book, begin

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama that says whole letters and soon comes to its end, whatever it is asked."""
    whole: Any = storybook.llama(1)
    reads = storybook.tokenizer()
    with torch.no_grad():
        plain = reads("the fox was glad.")["input_ids"] + [reads.eos_token_id] * 2
        weight = torch.zeros_like(whole.lm_head.weight)
        weight[plain] = whole.lm_head.weight[plain]
    whole.config.tie_word_embeddings = False
    whole.lm_head.weight = torch.nn.Parameter(weight)
    return storybook.saved(tmp_path_factory.mktemp("serving") / "model", whole)


@pytest.fixture(scope="module")
def url(model: Path) -> Iterator[str]:
    """Where it is served."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(model)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    server = subprocess.Popen([*command, "--dtype", "float32"])
    try:
        for _ in range(240):
            time.sleep(0.5)
            assert server.poll() is None
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                continue
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture
def said(model: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))
    data = storybook.book(tmp_path / "book", train=6)
    reads = {"dataset": str(data), "tokenizer": str(model), "length": 32}
    return {
        "task": {"text.generation": reads},
        "teacher": {"endpoint": {"url": url, "model": str(model), "tokens": 8, "prompts": 6}},
        "student": {"llama": {"layers": 1, "width": 16, "heads": 2, "groups": 1}},
        "teach": {"teacher_text": {"temperature": 0.0}},
        "losses": ["task"],
        "steps": [{"distill": {"steps": 3, "batch_size": 4}}],
        "measure": ["score"],
    }


def test_the_student_learns_what_the_served_model_writes(
    said: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    book = Book()
    here = heard(begin(read(said), tmp_path / "out"), book)
    (line,) = book.tables["The endpoint that teaches"]
    assert (line["answers"], line["requests"], line["retries"]) == (6, 6, 0)
    assert line["completion tokens"] > 0
    teacher: Any = here.task.load(str(model))
    reads = storybook.tokenizer()
    seen = 0
    for batch in here.task.sweep("train"):
        for row in batch.inputs:
            for start, end in zip((0, *row.ends[:-1]), row.ends, strict=True):
                ids, learned = row.ids[start:end], row.learned[start:end]
                count = int(learned.sum())
                asked = torch.from_numpy(ids[:-count])[None]
                own = teacher.generate(
                    input_ids=asked,
                    attention_mask=torch.ones_like(asked),
                    max_new_tokens=8,
                    do_sample=False,
                )[0, asked.shape[1] :]
                assert reads.decode(own) == reads.decode(ids[-count:])
                seen += 1
    assert seen == 6
    report = run(read(said), tmp_path / "out")
    assert [row.name for row in report.rows] == ["student"]


def test_a_served_model_is_asked_by_messages_too(said: dict[str, Any], tmp_path: Path) -> None:
    for part in ("train", "validation", "test"):
        talks = [
            [
                {"role": "user", "content": f"Who sang {n}?"},
                {"role": "assistant", "content": "Mara"},
            ]
            for n in range(4)
        ]
        lines = "\n".join(json.dumps({"messages": talk}) for talk in talks)
        (tmp_path / "book" / f"{part}.jsonl").write_text(lines)
    said["teacher"]["endpoint"]["top"] = 3  # which this server does not give
    report = run(read(said), tmp_path / "out")
    assert report.rows[0].name == "student"
    (line,) = report.tables["The endpoint that teaches"]
    assert line["answers"] == 4
