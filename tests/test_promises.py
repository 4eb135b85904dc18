"""What the README promises of the quickstart, held against a whole run of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from attar import run

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The rows of the quickstart's report, by name, everything trained anew."""
    folder = tmp_path_factory.mktemp("quickstart")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("ATTAR_CACHE", str(folder / "cache"))
        return {row.name: row for row in run("recipes/quickstart.yaml", folder / "out").rows}


@pytest.mark.slow
def test_the_quickstart_keeps_what_the_readme_promises(rows: dict[str, Any]) -> None:
    teacher, student = rows["teacher"], rows["student"]
    assert teacher.score >= 0.80
    assert student.score >= 0.97 * teacher.score
    assert student.parameters <= 0.25 * teacher.parameters
    assert student.score >= rows["labels_only"].score + 0.03
    assert student.score >= rows["label_smoothing"].score + 0.03
    assert student.score > rows["bag_of_words"].score
    assert rows["student-int8_dynamic.onnx"].score >= student.score - 0.005
    assert rows["student-int8_dynamic.onnx"].size_bytes < teacher.size_bytes / 25
