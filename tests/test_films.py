"""Strips of pictures: what is on them, whether of the same steps, and how a page tells them."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import environments as _environments  # noqa: F401  (registers them)
import jsonschema
import numpy as np
import pytest
from PIL import Image
from test_control_task import Home
from test_report import Reader, measured
from torch import nn

import attar
from attar import tasks
from attar.report import Report, join
from attar.tasks.control.filming import COLOURS, png


def lost() -> Home:
    model = Home()
    model.way.data.neg_()
    return model


def filmed(name: str, **models: nn.Module) -> dict[str, Any]:
    task: Any = tasks.control.policy(environment=f"attar/{name}-v0", states=50, episodes=5)
    (film,) = task.films(models)
    return film  # type: ignore[no-any-return]


def pictures(row: dict[str, Any]) -> list[Any]:
    files = [io.BytesIO(base64.b64decode(each)) for each in row["pictures"]]
    return [np.asarray(Image.open(file)) for file in files]


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (90, 160)])
def test_a_png_holds_every_pixel(shape: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png(picture)))), picture)


def test_a_film_shows_the_same_steps_of_one_episode_until_whoever_acts_is_done() -> None:
    film = filmed("Drawn", teacher=Home(), student=lost())
    teacher, student = film["rows"]
    assert np.random.default_rng(film["seed"]).integers(-5, 6) == 4
    assert film["steps"] == list(range(1, 9))
    assert [row["name"] for row in film["rows"]] == ["teacher", "student"]
    assert [(row["return"], row["length"]) for row in film["rows"]] == [(4, 8), (-5, 5)]
    seen, ended_before = pictures(teacher), pictures(student)
    assert (len(seen), len(ended_before)) == (8, 5)
    for step, shown in enumerate(seen):
        assert shown.shape == (12, 160, 3)  # of 30 x 400, by two fifths
        assert (shown[..., 0] == step).all()
    dark = [int((shown[6, :, 1] < 100).sum()) for shown in (*seen[:5], *ended_before)]
    places = [4, 3, 2, 1, 0, 4, 5, 6, 7, 8]
    assert dark == [80 + 8 * place for place in places]


def test_pictures_that_a_model_sees_are_what_is_shown() -> None:
    (row,) = filmed("Pixels", teacher=_Flat())["rows"]
    first = pictures(row)[0]
    assert first.shape == (160, 160, 3)  # each pixel four times as wide
    assert set(np.unique(first[..., 0])) == {0, 255}
    assert first[..., 1:].max() == 0
    assert (first[0, :, 0] == 255).sum() == 8
    (row,) = filmed("Bits", teacher=_Flat())["rows"]
    first = pictures(row)[0]
    colours, counts = np.unique(first.reshape(-1, 3), axis=0, return_counts=True)
    lit = np.array(sorted(map(tuple, COLOURS[:2])))
    assert np.array_equal(colours, lit)
    assert sorted(counts) == [16 * 16, 99 * 16 * 16]


class _Flat(nn.Module):
    """Always goes left, whatever it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.way = nn.Parameter(Home().way.data)

    def forward(self, observation: Any) -> Any:
        return observation.flatten(1)[:, :2] * 0 + observation.new_tensor([1.0, 0.0])


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Line", "attar/Line-v0 can't be drawn: it has no rgb_array."),
        ("Undrawn", "attar/Undrawn-v0 could not be drawn: no brush."),
    ],
)
def test_what_can_not_be_drawn_is_said_in_one_sentence(name: str, why: str) -> None:
    film = filmed(name, teacher=Home())
    assert film["why"] == why
    assert film["rows"] == []
    page = reported([film]).html()
    assert why.replace("'", "&#x27;") in page
    assert "<img" not in page


def reported(films: Any) -> Report:
    bare: dict[str, Any] = {"recipe": {}, "environment": {}, "cost": {}}
    return Report(rows=measured(), films=tuple(films), **bare)


def test_a_page_holds_its_strips_and_tells_them_to_who_can_not_see(tmp_path: Path) -> None:
    film = filmed("Drawn", teacher=Home(), student=lost())
    film["rows"][1]["name"] = '<script>"'
    report = reported([film])
    page = report.html()
    assert not Reader(page).open
    assert page.count('<img alt="" src="data:image/png;base64,') == 13
    assert "img-src data:" in page
    assert page.count('role="img" aria-label="') == 2
    assert "8 pictures of teacher at play, from step 1 to step 8" in page
    assert "&lt;script&gt;&quot;</b>: return -5 in 5 steps" in page
    assert '<script>"' not in page
    assert "step 8</small>" in page
    jsonschema.validate(report.to_dict(), attar.report.schema())
    assert Report.read(report.write(tmp_path)).films == report.films


def test_films_of_several_runs_stand_together_by_the_names_of_their_runs() -> None:
    report = reported([filmed("Drawn", teacher=Home())])
    both = join({"one": report, "other": report})
    names = [row["name"] for film in both.films for row in film["rows"]]
    assert names == ["one: teacher", "other: teacher"]
    assert "8 pictures of other: teacher at play" in both.html()


def test_critics_do_not_play_and_texts_neither() -> None:
    task: Any = tasks.control.value(environment="attar/Drawn-v0", states=50, episodes=2)
    assert task.films({"teacher": Home()}) == ()
