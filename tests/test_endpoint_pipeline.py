"""A teacher behind an endpoint through the whole house: asked, kept, learned from, reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import storybook
from speaking import speaking

from attar.pipeline import run
from attar.recipe import read


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
