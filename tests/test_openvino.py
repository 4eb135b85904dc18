"""Export to OpenVINO: its runtime answers as the model does, and what it would get wrong is met."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch
import zoo
from test_export import TwoFaced, Undecided, bert
from test_export import example as sentence
from test_pipeline import SAID
from torch import Tensor, nn

from attar import export, measure
from attar.compress import quantize
from attar.compressing import check_step
from attar.errors import ExportError, MissingExtra, ModelError
from attar.export import openvino_file
from attar.measure.comparing import runtime
from attar.measure.memory import finished
from attar.pipeline import run
from attar.recipe import check, read
from attar.tasks.text import networks

FORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "float": lambda model: model,
    "fp16": quantize.fp16,
    "bf16": quantize.bf16,
    "dynamic": quantize.int8_dynamic,
    "static": lambda model: quantize.int8_static(model, zoo.example, zoo.calibration),
    "int4": lambda model: quantize.int4_weight(model, zoo.calibration, group=16),
}
EXACT = {"float": 1e-6, "fp16": 1e-6, "bf16": 1e-6, "static": 0.01}
"""Differences as shares of the largest logit; where activations stay unrounded it is 0.03."""

CASES = (
    *("mlp-float", "mlp-fp16", "mlp-bf16", "mlp-int4", "cnn-static"),
    *("text_cnn-static", "lstm-static", "vit-static", "bert-dynamic"),
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[nn.Module, Path]]:
    """A model of the zoo in some form, and the file it was exported to; each made once."""
    folder = tmp_path_factory.mktemp("exported")

    @cache
    def make(case: str) -> tuple[nn.Module, Path]:
        torch.manual_seed(0)
        name, _, form = case.partition("-")
        model = FORMS[form](zoo.MODELS[name]().eval())
        facts = {"classes": zoo.CLASSES, "n": 3}
        return model, export.openvino(model, zoo.example, folder / case, facts)

    return make


def answers(file: Path, inputs: dict[str, Tensor]) -> Any:
    """What a user gets who knows nothing but OpenVINO."""
    compiled = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled({name: each.numpy() for name, each in inputs.items()})["logits"]


def asked(model: nn.Module, rows: int, length: int) -> dict[str, Tensor]:
    """Inputs of the zoo repeated, or cut, to another length where they are tokens."""
    return {
        name: each.repeat(1, 4)[:, :length] if each.dim() == 2 else each
        for name, each in zoo.example(model, rows, seed=rows).items()
    }


def operators(file: Path) -> Counter[str]:
    return Counter(node.get_type_name() for node in openvino.Core().read_model(file).get_ops())


# what it writes


@pytest.mark.parametrize("case", CASES)
def test_openvino_answers_as_the_model_does_for_any_batch_and_length(
    exported: Callable[[str], tuple[nn.Module, Path]], case: str
) -> None:
    model, file = exported(case)
    for rows, length in ((1, 1), (5, 7), (2, 16)):
        inputs = asked(model, rows, length)
        with torch.no_grad():
            truth = zoo.answer(model, inputs).numpy()
        allowed = EXACT.get(case.partition("-")[2], 0.03)
        assert np.abs(answers(file, inputs) - truth).max() <= allowed * np.abs(truth).max()


def test_a_dynamic_layer_is_a_product_with_its_integer_weights(
    exported: Callable[[str], tuple[nn.Module, Path]],
) -> None:
    model, file = exported("bert-dynamic")
    layers = [m for m in model.modules() if isinstance(m, quantize.dynamic.Int8Linear)]
    constants = [
        node
        for node in openvino.Core().read_model(file).get_ops()
        if node.get_type_name() == "Constant" and node.get_element_type() == openvino.Type.i8
    ]
    weights = [node.data for node in constants if len(node.data.shape) == 2]
    kept = [layer.weight.numpy() for layer in layers]
    assert len(weights) == len(kept) == 14
    assert all(any(np.array_equal(weight, each) for each in weights) for weight in kept)
    # What comes in is rounded by OpenVINO itself, or not at all.
    assert not {"Round", "FakeQuantize", "ReduceMax", "ReduceMin"} & set(operators(file))


def test_rounding_is_fused_behind_convolutions_and_spelled_out_where_openvino_moves_it(
    exported: Callable[[str], tuple[nn.Module, Path]],
) -> None:
    assert operators(exported("cnn-static")[1])["FakeQuantize"] == 4
    for case in ("text_cnn-static", "lstm-static"):
        found = operators(exported(case)[1])
        assert found["Round"] > 0


def test_weights_of_16_bits_stay_so(exported: Callable[[str], tuple[nn.Module, Path]]) -> None:
    whole = exported("mlp-float")[1].with_suffix(".bin").stat().st_size
    for case in ("mlp-fp16", "mlp-bf16"):
        assert exported(case)[1].with_suffix(".bin").stat().st_size < 0.7 * whole


def test_the_facts_and_the_parity_found_are_in_the_file_and_can_be_added_to(
    exported: Callable[[str], tuple[nn.Module, Path]],
) -> None:
    _, file = exported("mlp-float")
    weights = file.with_suffix(".bin").read_bytes()
    assert openvino_file.noted(file, {"score": 0.5, "n": 4}) == file

    def fact(name: str) -> Any:
        return openvino.Core().read_model(file).get_rt_info(["attar", name]).value

    assert json.loads(fact("classes")) == zoo.CLASSES
    assert (fact("producer"), fact("score"), fact("n")) == ("attar", "0.5", "4")
    assert 0 <= float(fact("parity")) < 1e-6
    assert file.with_suffix(".bin").read_bytes() == weights


def test_the_name_gets_its_ending_and_both_files_lie_alone_in_a_folder_that_is_made(
    tmp_path: Path,
) -> None:
    model = zoo.Mlp().train()
    found = export.openvino(model, zoo.example, tmp_path / "new" / "student.v2")
    assert found == tmp_path / "new" / "student.v2.xml"
    assert set(found.parent.iterdir()) == {found, found.with_suffix(".bin")}
    assert model.training


def test_the_size_is_that_of_both_files(
    exported: Callable[[str], tuple[nn.Module, Path]],
) -> None:
    model, file = exported("mlp-float")
    both = file.stat().st_size + file.with_suffix(".bin").stat().st_size
    assert measure.size(model, file) == both
    assert measure.zipped(model, file) < both


def test_the_memory_of_a_process_that_answers_with_it_is_measured(
    exported: Callable[[str], tuple[nn.Module, Path]],
) -> None:
    model, file = exported("mlp-float")
    found = finished(measure.memory(model, zoo.example, file))
    assert found is not None
    assert 2e7 < found < 2e9


# what it refuses


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Undecided, "can't be written as ONNX"),
        (TwoFaced, "answers otherwise than the model"),
    ],
)
def test_a_failed_export_leaves_nothing_and_keeps_what_was_there(
    kind: type[nn.Module], words: str, tmp_path: Path
) -> None:
    (tmp_path / "student.xml").write_text("good")
    with pytest.raises(ExportError, match=words):
        export.openvino(kind(), sentence, tmp_path / "student.xml")
    assert [each.name for each in tmp_path.iterdir()] == ["student.xml"]
    assert (tmp_path / "student.xml").read_text() == "good"


def test_integers_that_openvino_gets_wrong_are_refused_with_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = {"Concat", "Transpose", "Reshape", "ReduceMax", "Divide"}
    monkeypatch.setattr(openvino_file, "FUSED", openvino_file.FUSED | every)
    wrong = FORMS["static"](zoo.text_cnn().eval())
    with pytest.raises(ExportError, match=r"answers otherwise .*Put quantize\.int8_dynamic"):
        export.openvino(wrong, zoo.example, tmp_path / "student")
    assert list(tmp_path.iterdir()) == []


def test_a_model_in_training_for_few_bits_is_refused(tmp_path: Path) -> None:
    model = quantize.qat(zoo.Mlp(), zoo.example, zoo.calibration)
    with pytest.raises(ExportError, match=r"put quantize\.int8_static before export\.openvino"):
        export.openvino(model, zoo.example, tmp_path / "student")


@pytest.mark.parametrize("library", ["onnx", "onnxscript", "openvino"])
def test_a_missing_library_names_the_extra_before_anything_is_trained(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = read({"task": "text.classification", "steps": ["export.openvino"]} | TASK)
    (step,) = check(recipe).steps
    check_step(step, zoo.Mlp())
    monkeypatch.setitem(sys.modules, library, None)
    for attempt in (
        lambda: export.openvino(zoo.Mlp(), zoo.example, tmp_path / "a"),
        lambda: check_step(step, zoo.Mlp()),
    ):
        with pytest.raises(MissingExtra, match=r'exporting to OpenVINO needs .*attar\[openvino\]"'):
            attempt()


# as a network of a task

TASK: dict[str, Any] = {
    "task": {"text.classification": {"dataset": "x.csv"}},
    "teacher": {"load": {"model": "x"}},
}


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A tiny BERT with its file and its tokenizer."""
    folder = tmp_path_factory.mktemp("sentences")
    model = bert().eval()
    model.tokenizer.save_pretrained(folder)  # type: ignore[operator]
    return model, export.openvino(model, sentence, folder / "student")


def test_a_file_is_read_back_as_a_network_that_answers_alike(
    sentences: tuple[nn.Module, Path],
) -> None:
    model, file = sentences
    network = networks.load(str(file), ())
    inputs = sentence(model)
    first, again = network(**inputs), network(**{k: v.repeat(2, 1) for k, v in inputs.items()})
    torch.testing.assert_close(first, zoo.answer(model, inputs).detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(again[1:], first)
    assert runtime(network).startswith("OpenVINO 20")
    assert len(network.state_dict()["digest"]) == 32


def test_a_file_without_its_weights_or_broken_is_told_in_a_sentence(
    sentences: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    alone = tmp_path / "student.xml"
    with pytest.raises(ModelError, match=r"There is no file .*student\.xml"):
        networks.load(str(alone), ())
    alone.write_bytes(sentences[1].read_bytes())
    with pytest.raises(ModelError, match=r"There is no file .*student\.bin"):
        networks.load(str(alone), ())
    alone.with_suffix(".bin").write_bytes(b"")
    alone.write_text("<net")
    with pytest.raises(ModelError, match="OpenVINO can't load"):
        networks.load(str(alone), ())


def test_a_recipe_writes_it_reads_it_back_scores_it_and_tells_of_it_in_the_card(
    bank: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))
    recipe = SAID | {
        "task": {"text.classification": {"dataset": str(bank), "max_length": 32}},
        "teacher": {"finetune": SAID["teacher"]["finetune"] | {"model": str(base)}},
        "student": {"cnn": {"width": 8, "embedding": 12}},
        "steps": [*SAID["steps"], "quantize.int8_dynamic", "export.openvino"],
        "measure": ["score", "size", {"latency": {"seconds": 0.01, "threads": 2}}],
        "baselines": [],
    }
    report = run(read(recipe), tmp_path / "out")
    file = report.row("student-int8_dynamic.xml")
    assert file.score is not None
    assert abs(file.score - report.row("student").score) < 0.1
    assert file.size_bytes is not None
    assert file.latency_ms is not None
    assert file.program.startswith("OpenVINO")
    path = tmp_path / "out" / "student-int8_dynamic.xml"
    network = openvino.Core().read_model(path)
    assert float(network.get_rt_info(["attar", "score"]).value) == file.score
    assert network.get_rt_info(["attar", "teacher"]).value == "base"
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    lines = card.partition("```python\n")[2].partition("```")[0]
    assert 'compile_model("student-int8_dynamic.xml"' in lines
    monkeypatch.chdir(tmp_path / "out")
    exec(compile(lines, "card", "exec"), {})
