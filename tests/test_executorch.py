"""Export to ExecuTorch: its runtime answers as the model does, row by row, at any length."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from test_export import bert
from test_export import example as sentence
from test_openvino import TASK
from test_pipeline import SAID
from torch import Tensor, nn

from attar import export, measure
from attar.compress import quantize
from attar.compressing import check_step
from attar.errors import ExportError, MissingExtra, ModelError
from attar.export import executorch_file, parity, writing
from attar.measure.comparing import runtime
from attar.measure.memory import finished
from attar.pipeline import run
from attar.recipe import check, read
from attar.tasks.text import networks

pytestmark = pytest.mark.slow
"""ExecuTorch brings libraries that `transformers` takes seconds to import beside."""

MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": zoo.Mlp,
    "cnn": zoo.Convolved,
    "bert": bert,
}
LONGEST = 12


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """ExecuTorch imported without its warnings, which would be errors here."""
    writing.check_libraries("executorch")


def program(file: Path) -> Any:
    from executorch.runtime import Runtime

    return Runtime.get().load_program(file)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[nn.Module, Path]]:
    """A model by name, and the file it was exported to; each made once."""
    folder = tmp_path_factory.mktemp("exported")

    @cache
    def make(name: str) -> tuple[nn.Module, Path]:
        torch.manual_seed(0)
        model = MODELS[name]().eval()
        facts = {"classes": zoo.CLASSES, "max_length": LONGEST}
        given = sentence if name == "bert" else zoo.example
        return model, export.executorch(model, given, folder / name, facts)

    return make


def forward(file: Path, inputs: dict[str, Tensor]) -> Tensor:
    """What a user gets who knows nothing but ExecuTorch."""
    loaded = program(file)
    answer: Tensor = loaded.load_method("forward").execute(list(inputs.values()))[0].clone()
    return answer


def facts(file: Path) -> dict[str, Any]:
    loaded = program(file)
    return dict(json.loads(loaded.load_method("facts").execute([])[0]))


def asked(name: str, length: int) -> dict[str, Tensor]:
    if name == "cnn":
        return {"pixel_values": torch.randn(1, 3, zoo.SIDE, zoo.SIDE)}
    ids = torch.randint(1, 10, (1, length))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


# what it writes


@pytest.mark.parametrize("name", MODELS)
def test_executorch_answers_as_the_model_does_at_every_length(
    exported: Callable[[str], tuple[nn.Module, Path]], name: str
) -> None:
    model, file = exported(name)
    for length in (1, 4, LONGEST):
        inputs = asked(name, length)
        truth = zoo.answer(model, inputs).detach()
        torch.testing.assert_close(forward(file, inputs), truth, rtol=1e-4, atol=1e-5)


def test_most_of_a_model_is_lowered_to_xnnpack(
    exported: Callable[[str], tuple[nn.Module, Path]],
) -> None:
    assert b"XnnpackBackend" in exported("bert")[1].read_bytes()


def test_the_facts_and_the_parity_found_are_in_the_file_and_can_be_added_to(
    exported: Callable[[str], tuple[nn.Module, Path]],
) -> None:
    model, file = exported("mlp")
    before, size = forward(file, asked("mlp", 3)).shape, file.stat().st_size
    assert executorch_file.noted(file, {"score": 0.5, "teacher": "größer"}) == file
    known = facts(file)
    assert (known["producer"], known["score"], known["teacher"]) == ("attar", 0.5, "größer")
    assert known["classes"] == zoo.CLASSES
    assert known["inputs"] == ["input_ids", "attention_mask"]
    assert 0 <= float(known["parity"]) < 1e-5
    assert file.stat().st_size == size
    inputs = asked("mlp", 3)
    torch.testing.assert_close(forward(file, inputs), zoo.answer(model, inputs).detach())
    assert before == (1, 3)


def test_more_facts_than_there_is_room_for_are_refused(
    exported: Callable[[str], tuple[nn.Module, Path]],
) -> None:
    _, file = exported("mlp")
    before = file.read_bytes()
    with pytest.raises(ExportError, match=r"has room for \d+ letters of facts"):
        executorch_file.noted(file, {"much": "x" * 2 * executorch_file.ROOM})
    assert file.read_bytes() == before


def test_the_memory_of_a_process_that_answers_with_it_is_measured(
    exported: Callable[[str], tuple[nn.Module, Path]],
) -> None:
    model, file = exported("mlp")
    found = finished(measure.memory(model, zoo.example, file))
    assert found is not None
    assert found > 2e7
    assert measure.size(model, file) == file.stat().st_size


# what it refuses


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (quantize.int8_dynamic(zoo.Mlp()), "put export.executorch before the step that quantizes"),
        (zoo.lstm(), "An LSTM would be unrolled .* use export.onnx or export.openvino"),
        (
            quantize.qat(zoo.Mlp(), zoo.example, zoo.calibration),
            r"put quantize\.int8_static before export\.executorch",
        ),
    ],
    ids=["quantized", "recurrent", "in training"],
)
def test_layers_that_no_program_can_be_made_of_are_refused_before_anything_is_trained(
    model: nn.Module, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=words):
        export.executorch(model, zoo.example, tmp_path / "a")
    with pytest.raises(ExportError, match=words):
        executorch_file.check_kind(model)
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_answers_otherwise_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lowered = executorch_file._lowered
    other = zoo.Mlp().eval()
    monkeypatch.setattr(executorch_file, "_lowered", lambda _, *rest: lowered(other, *rest))
    with pytest.raises(ExportError, match=r"answers otherwise .* nothing was written"):
        export.executorch(zoo.Mlp(), zoo.example, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_depends_on_what_is_read_is_told_in_a_sentence(tmp_path: Path) -> None:
    class Undecided(zoo.Mlp):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            seen = super().forward(input_ids, attention_mask)
            return seen if bool(seen.sum() > 0) else -seen

    with pytest.raises(ExportError, match=r"^Undecided can't be written for ExecuTorch \(.+\)\.$"):
        export.executorch(Undecided(), zoo.example, tmp_path / "a")


def test_fewer_tokens_than_the_example_has_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="tokens is 2, and the example has 5 already"):
        export.executorch(zoo.Mlp(), zoo.example, tmp_path / "a", tokens=2)


def test_a_missing_library_names_the_extra_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (step,) = check(read(TASK | {"steps": ["export.executorch"]})).steps
    check_step(step, zoo.Mlp())
    monkeypatch.setitem(sys.modules, "executorch.exir", None)
    for attempt in (
        lambda: export.executorch(zoo.Mlp(), zoo.example, tmp_path / "a"),
        lambda: check_step(step, zoo.Mlp()),
    ):
        with pytest.raises(
            MissingExtra, match=r'to ExecuTorch needs executorch: .*\[executorch\]"'
        ):
            attempt()


# as a network of a task


def test_a_file_is_read_back_as_a_network_that_takes_any_rows(
    exported: Callable[[str], tuple[nn.Module, Path]],
) -> None:
    model, file = exported("bert")
    model.tokenizer.save_pretrained(file.parent)  # type: ignore[operator]
    network = networks.load(str(file), ())
    inputs = parity.unlike(sentence(model))
    torch.testing.assert_close(
        network(**inputs), zoo.answer(model, inputs).detach(), rtol=1e-4, atol=1e-6
    )
    assert runtime(network).startswith("ExecuTorch 1.")
    assert len(network.state_dict()["digest"]) == 32


def test_a_file_that_is_not_there_or_broken_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="There is no file"):
        networks.load(str(tmp_path / "a.pte"), ())
    (tmp_path / "a.pte").write_bytes(b"no program")
    with pytest.raises(ModelError, match="ExecuTorch can't load"):
        networks.load(str(tmp_path / "a.pte"), ())


def test_a_recipe_writes_it_reads_it_back_scores_it_and_tells_of_it_in_the_card(
    bank: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))
    recipe = SAID | {
        "task": {"text.classification": {"dataset": str(bank), "max_length": 32}},
        "teacher": {"finetune": SAID["teacher"]["finetune"] | {"model": str(base)}},
        "student": {"cnn": {"width": 8, "embedding": 12}},
        "steps": [*SAID["steps"], "export.executorch"],
        "measure": ["score", "size", {"latency": {"seconds": 0.01}}],
        "baselines": [],
    }
    report = run(read(recipe), tmp_path / "out")
    file = report.row("student.pte")
    assert file.score == report.row("student").score
    assert file.latency_ms is not None
    assert file.program.startswith("ExecuTorch 1.")
    assert facts(tmp_path / "out" / "student.pte")["score"] == file.score
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    lines = card.partition("```python\n")[2].partition("```")[0]
    assert '"student.pte"' in lines
    monkeypatch.chdir(tmp_path / "out")
    exec(compile(lines, "card", "exec"), {})
