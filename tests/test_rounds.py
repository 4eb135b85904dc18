"""Steps that are repeated: written out round by round, their schedules taken at each."""

from __future__ import annotations

import pytest

from attar.compressing import called
from attar.distill import schedules
from attar.errors import RecipeError
from attar.recipe import check, json_schema, read

RECIPE = """\
task: {text.classification: {dataset: nowhere}}
teacher: {load: {model: folder}}
student: {layers: {keep: [0]}}
losses: [response.kl]
steps:
"""
GRADUAL = """\
  - repeat:
      times: 3
      steps:
        - prune.magnitude: {ratio: {cubic: {end: 0.9}}}
        - distill: {steps: 5}
  - export.onnx
"""


def test_a_round_is_written_out_as_often_as_it_is_said() -> None:
    steps = check(read(RECIPE + GRADUAL)).steps
    assert [step.name for step in steps] == ["prune.magnitude", "distill"] * 3 + ["export.onnx"]
    ratios = [step.function.keywords["ratio"] for step in steps if step.name == "prune.magnitude"]
    # Zhu and Gupta's equation 1 at 1/3, 2/3 and 1: what is still to go is a cube.
    assert ratios == pytest.approx([0.9 * (1 - (2 / 3) ** 3), 0.9 * (1 - (1 / 3) ** 3), 0.9])


def test_the_cubic_schedule_begins_and_ends_where_it_is_told_to() -> None:
    at = [schedules.cubic(progress, start=0.2, end=0.8) for progress in (0.0, 0.5, 1.0)]
    assert at == pytest.approx([0.2, 0.725, 0.8])


def test_a_round_can_be_changed_from_the_command_line() -> None:
    overrides = ["steps.0.times=2", "steps.0.steps=[prune.layers, distill: {steps: 3}]"]
    steps = check(read(RECIPE + GRADUAL, overrides)).steps
    assert [step.name for step in steps] == ["prune.layers", "distill"] * 2 + ["export.onnx"]


@pytest.mark.parametrize(
    ("steps", "line", "sentence"),
    [
        ("  - repeat: {times: 0, steps: [distill: {steps: 5}]}", 6, "times"),
        ("  - repeat: {times: 2}", 6, "steps"),
        ("  - repeat: {steps: []}", 6, "steps"),
        ("  - repeat:\n      steps:\n        - prune.magnitud: {ratio: 0.5}", 8, "did you mean"),
        ("  - repeat:\n      steps:\n        - prune.magnitude: {share: 1}", 8, "share"),
        ("  - repeat:\n      steps:\n        - [distill]", 8, "a choice is written"),
        ("  - repeat:\n      steps:\n        - repeat: {steps: [distill]}", 8, "multiply"),
        (
            "  - repeat:\n      steps:\n        - prune.magnitude: {ratio: {cubic: {stop: 1}}}",
            8,
            "stop",
        ),
    ],
)
def test_what_is_wrong_inside_of_a_round_is_told_with_its_line(
    steps: str, line: int, sentence: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        check(read(RECIPE + steps + "\n"))
    assert str(caught.value).startswith(f"recipe:{line}: ")
    assert sentence in str(caught.value)


def test_what_is_done_again_is_counted_in_the_name() -> None:
    names = ["student"]
    for step in ("prune.magnitude", "distill") * 3:
        names.append(called(names[-1], step))
    assert names[2::2] == [f"student-magnitude-distill{times}" for times in ("", "-x2", "-x3")]
    assert names[3] == "student-magnitude-distill-magnitude"
    assert called("student-magnitude-distill", "distill") == "student-magnitude-distill-distill"
    assert called(names[-1], "quantize.int8_dynamic") == f"{names[-1]}-int8_dynamic"


def test_an_editor_completes_the_steps_of_a_round() -> None:
    steps = json_schema()["$defs"]["steps"]["oneOf"][2]["properties"]["repeat"]["properties"]
    assert steps["steps"]["items"] == {"$ref": "#/$defs/steps"}
