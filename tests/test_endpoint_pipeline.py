"""A teacher behind an endpoint through the whole house: asked, kept, learned from, reported."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import storybook
from speaking import speaking

from attar.hearing import heard
from attar.pipeline import run
from attar.recipe import read
from attar.setting import Book, begin
from attar.tasks.text import dictated
from attar.types import IGNORE


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("attar.endpoint.pace.FIRST", 0.001)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    model = str(storybook.saved(tmp_path / "model"))
    data = str(storybook.book(tmp_path / "book", train=12))
    return {
        "task": {"text.generation": {"dataset": data, "tokenizer": model, "length": 48}},
        "teacher": {"endpoint": {"model": "speaker"}},
        "student": {"llama": {"layers": 1, "width": 16, "heads": 2, "groups": 1}},
        "teach": {"teacher_text": {"prompt": 0.3}},
        "losses": ["task"],
        "steps": [{"distill": {"steps": 3, "batch_size": 4}}],
        "measure": ["score", "parameters"],
        "baselines": ["labels_only"],
    }


def test_what_an_endpoint_writes_is_learned_and_asked_once(
    said: dict[str, Any], tmp_path: Path
) -> None:
    with speaking() as server:
        said["teacher"]["endpoint"] |= {"url": server.url, "price": {"prompt": 1, "completion": 2}}
        report = run(read(said), tmp_path / "out")
        again = run(read(said), tmp_path / "again")
    assert set(server.times.values()) == {1}
    assert [row.name for row in report.rows] == ["student", "labels_only"]
    (line,) = report.tables["The endpoint that teaches"]
    count = len(server.asked)
    assert line["answers"] == line["requests"] == count
    assert line["cost"] == pytest.approx(count * (10 * 1 + 5 * 2) / 1e6)
    (line,) = again.tables["The endpoint that teaches"]
    assert (line["asked now"], line["requests"]) == (0, count)


def test_the_answers_teach_without_endpoint_and_key(said: dict[str, Any], tmp_path: Path) -> None:
    with speaking() as server:
        said["teacher"]["endpoint"]["url"] = server.url
        first = run(read(said), tmp_path / "out")
    said["teacher"]["endpoint"] |= {"url": "https://example.invalid/v1", "key": "NO_SUCH_KEY"}
    second = run(read(said), tmp_path / "again")
    assert [row.score for row in second.rows] == [row.score for row in first.rows]


def test_what_it_says_of_its_tokens_is_learned_too(said: dict[str, Any], tmp_path: Path) -> None:
    said["losses"] = ["response.kl"]
    with speaking() as server:
        said["teacher"]["endpoint"] |= {"url": server.url, "top": 3}
        here = heard(begin(read(said), tmp_path / "out"), Book())
        report = run(read(said), tmp_path / "out")
    assert math.isfinite(report.rows[0].score)
    assert here.heard is not None
    batch = here.task.batches("train", batch_size=2)
    rows = next(iter(batch))
    told: Any = here.heard.recall(rows)
    spelled, end = dictated.Spelled(storybook.tokenizer()), storybook.tokenizer().eos_token_id
    seen = 0
    for n, row in enumerate(rows.inputs):
        for place in np.flatnonzero(rows.labels[n, : len(row)] != IGNORE).tolist():
            label = int(rows.labels[n, place])
            parts = (part[n, place].tolist() for part in (told.logits.ids, told.logits.weights))
            weights = dict(zip(*parts, strict=True))
            if label == end:  # of which the endpoint told nothing: it came, and is sure
                assert weights[label] == pytest.approx(1, rel=0.02)
                continue
            known = {" owl": 0.2, "!": 0.05} | {spelled.texts[label]: 0.7}
            for text, p in known.items():
                assert weights[spelled.ids[text]] == pytest.approx(p, rel=0.1)
            others = sum(weights.values()) - sum(weights[spelled.ids[text]] for text in known)
            rest = others + float(told.logits.rest[n, place])
            assert rest == pytest.approx(1 - sum(known.values()), abs=0.03)
            seen += 1
    assert seen > 5
