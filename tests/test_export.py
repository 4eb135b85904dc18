"""Exporters: the file answers as the model does, in the runtime that users run it in."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer
from transformers.utils import logging as transformers_logging
from zoo import Mlp

from attar import export, students
from attar.compress import quantize
from attar.compress.quantize import dynamic
from attar.errors import ExportError, MissingExtra, ModelError
from attar.export import onnx_file, parity, writing
from attar.resolve import names
from attar.students.convolutional import Cnn
from attar.students.recurrent import Lstm

LENGTH = 16
CLASSES = ["card", "transfer", "größer"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "my", "card", "transfer", "is", "late"]
IDS = torch.tensor([[2, 5, 6, 8, 9, 3]])
INPUTS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}


class Tied(Mlp):
    """Scores its words with its own embeddings."""

    def __init__(self) -> None:
        super().__init__(width=8, words=10)
        self.head = nn.Linear(8, 10, bias=False)
        self.head.weight = self.embedding.weight


class Undecided(Mlp):
    """Takes a path that depends on what it reads, which no graph can."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        seen = super().forward(input_ids, attention_mask)
        return seen if bool(seen.sum() > 0) else -seen


class TwoFaced(Mlp):
    """Answers one thing as a file and another as a model."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        seen = super().forward(input_ids, attention_mask)
        return seen + 1 if torch.onnx.is_in_onnx_export() else seen


class Narrow(Mlp):
    """Forgets a class once it is a file."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        seen = super().forward(input_ids, attention_mask)
        return seen[:, 1:] if torch.onnx.is_in_onnx_export() else seen


def tokenizer() -> Any:
    vocabulary = {word: n for n, word in enumerate(WORDS)}
    return BertTokenizer(vocab=vocabulary, model_max_length=LENGTH)


def bert() -> nn.Module:
    config = BertConfig(
        vocab_size=10,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=LENGTH,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: n for n, name in enumerate(CLASSES)},
        attn_implementation="eager",
    )
    model = BertForSequenceClassification(config)
    model.tokenizer = tokenizer()
    return model


def lstm() -> nn.Module:
    sizes = {"width": 8, "layers": 1, "embedding": 8, "bidirectional": True}
    return Lstm(tokenizer(), CLASSES, 10, dropout=0.1, **sizes)


def cnn() -> nn.Module:
    return Cnn(tokenizer(), CLASSES, 10, width=8, kernels=[2, 3], embedding=8, dropout=0.1)


MODELS = {"mlp": lambda: Mlp(classes=2, width=1024), "bert": bert, "lstm": lstm, "cnn": cnn}


def example(_model: nn.Module) -> dict[str, Tensor]:
    return INPUTS


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[nn.Module, Path]]:
    """A model by name, and the file it was exported to; made once, since making takes seconds."""
    folder = tmp_path_factory.mktemp("exported")

    @cache
    def make(name: str) -> tuple[nn.Module, Path]:
        torch.manual_seed(0)
        kind, _, small = name.partition("-")
        model = MODELS[kind]().eval()
        if small:
            model = quantize.int8_dynamic(model)
        return model, export.onnx(model, example, folder / name, {"classes": CLASSES, "n": 3})

    return make


def asked(rows: int, length: int) -> dict[str, Tensor]:
    """Rows of all lengths up to one, the longest first, padded on the right."""
    ids = torch.randint(1, 10, (rows, length))
    lengths = torch.linspace(length, 1, rows).round().long()
    mask = (torch.arange(length) < lengths.unsqueeze(1)).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


@torch.no_grad()
def answer(model: nn.Module, inputs: dict[str, Tensor]) -> Any:
    output = model(**inputs)
    return (output if isinstance(output, Tensor) else output.logits).numpy()


def run(file: Path, inputs: dict[str, Tensor]) -> Any:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (first,) = session.run(["logits"], {name: each.numpy() for name, each in inputs.items()})
    return first


def operators(file: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(file).graph.node)


# onnx: what it writes


@pytest.mark.parametrize("name", [f"{m}{small}" for m in MODELS for small in ("", "-int8")])
def test_the_file_answers_as_the_model_does_for_any_batch_and_length(
    exported: Callable[[str], tuple[nn.Module, Path]], name: str
) -> None:
    model, file = exported(name)
    for rows, length in ((1, 1), (1, LENGTH), (5, 7), (2, 2), (4, LENGTH)):
        inputs = asked(rows, length)
        truth = answer(model, inputs)
        tolerance = 1e-4 if name.endswith("int8") else 1e-5
        assert np.abs(run(file, inputs) - truth).max() < tolerance * max(1, np.abs(truth).max())


@pytest.mark.parametrize("name", [f"{m}-int8" for m in MODELS])
def test_an_int8_file_multiplies_and_looks_up_in_integers(
    exported: Callable[[str], tuple[nn.Module, Path]], name: str
) -> None:
    model, file = exported(name)
    linear = sum(isinstance(m, dynamic.Int8Linear) for m in model.modules())
    tables = sum(isinstance(m, dynamic.Int8Embedding) for m in model.modules())
    found = operators(file)
    assert found["MatMulInteger"] == linear > 0
    assert found["DequantizeLinear"] == tables > 0
    assert found["Gemm"] == 0
    kinds = {each.name: each.data_type for each in onnx.load(file).graph.initializer}
    integers = [kind for kind in kinds.values() if kind == onnx.TensorProto.INT8]
    assert len(integers) == linear


def test_onnx_runtime_fuses_the_integer_operators(
    exported: Callable[[str], tuple[nn.Module, Path]], tmp_path: Path
) -> None:
    _, file = exported("bert-int8")
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    settings.log_severity_level = 3
    onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
    found = operators(tmp_path / "optimized.onnx")
    assert found["MatMulInteger"] == 0
    assert found["DynamicQuantizeMatMul"] + found["MatMulIntegerToFloat"] == 8


def test_int8_files_are_smaller(exported: Callable[[str], tuple[nn.Module, Path]]) -> None:
    (_, whole), (_, small) = exported("mlp"), exported("mlp-int8")
    # 10 of 11 numbers are weights, a byte each now; biases stay float, and scales come with them.
    assert small.stat().st_size < 0.55 * whole.stat().st_size


def test_excluded_layers_are_float_in_the_file_too(tmp_path: Path) -> None:
    small = quantize.int8_dynamic(Mlp(), exclude=["head", "embedding"])
    file = export.onnx(small, example, tmp_path / "mixed.onnx")
    found = operators(file)
    assert (found["MatMulInteger"], found["Gemm"] + found["MatMul"]) == (1, 1)
    assert found["DequantizeLinear"] == 0
    inputs = asked(3, 5)
    assert np.abs(run(file, inputs) - answer(small, inputs)).max() < 1e-5


def test_weights_of_seven_bits_are_written_as_they_are(
    exported: Callable[[str], tuple[nn.Module, Path]],
) -> None:
    model, file = exported("mlp-int8")
    found = {
        each.data_type: onnx.numpy_helper.to_array(each)
        for each in onnx.load(file).graph.initializer
        if each.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8) and each.dims
    }
    assert found[onnx.TensorProto.INT8].tolist() in [
        model.get_buffer("hidden.weight").tolist(),
        model.get_buffer("head.weight").tolist(),
    ]
    assert np.abs(found[onnx.TensorProto.INT8]).max() == 64
    table = model.get_buffer("embedding.weight").tolist()
    assert found[onnx.TensorProto.UINT8].tolist() == table


def test_tied_weights_answer_right_and_are_stored_once(tmp_path: Path) -> None:
    model = Tied().eval()
    file = export.onnx(model, example, tmp_path / "tied.onnx")
    inputs = asked(3, 4)
    assert np.abs(run(file, inputs) - answer(model, inputs)).max() < 1e-5
    tables = [e for e in onnx.load(file).graph.initializer if sorted(e.dims) == [8, 10]]
    assert len(tables) == 1


def test_each_direction_of_an_lstm_is_one_node(
    exported: Callable[[str], tuple[nn.Module, Path]],
) -> None:
    for name in ("lstm", "lstm-int8"):
        _, file = exported(name)
        assert operators(file)["LSTM"] == 2
        assert operators(file)["Loop"] + operators(file)["Scan"] == 0


def test_an_example_of_one_token_in_another_operator_set_does_not_fix_the_length(
    exported: Callable[[str], tuple[nn.Module, Path]], tmp_path: Path
) -> None:
    model = Mlp().eval()
    file = export.onnx(model, lambda _: asked(1, 1), tmp_path / "short.onnx", opset=18)
    inputs = asked(3, 8)
    assert np.abs(run(file, inputs) - answer(model, inputs)).max() < 1e-5
    for opset, each in ((18, file), (20, exported("mlp")[1])):
        assert [e.version for e in onnx.load(each).opset_import if not e.domain] == [opset]


@pytest.mark.parametrize("opset", [0, 17, 99])
def test_an_operator_set_that_torch_does_not_write_is_refused(opset: int, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"opset is {opset}; it can be 18 to 23"):
        export.onnx(Mlp(), example, tmp_path / "a.onnx", opset=opset)


def test_the_facts_and_the_parity_found_can_be_read_from_the_file(
    exported: Callable[[str], tuple[nn.Module, Path]],
) -> None:
    _, file = exported("mlp-int8")
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["classes"]) == CLASSES
    assert json.loads(facts["n"]) == 3
    assert facts["producer"] == "attar"
    assert 0 <= float(facts["parity"]) < 1e-4


def test_the_file_tells_nothing_of_the_machine_it_was_made_on(
    exported: Callable[[str], tuple[nn.Module, Path]],
) -> None:
    _, file = exported("bert")
    for place in (torch.__file__, onnx_file.__file__, __file__, str(Path.cwd())):
        assert str(Path(place).parent).encode() not in file.read_bytes()
    assert file.stat().st_size < 100_000


def test_inputs_and_output_have_names_and_free_dimensions(
    exported: Callable[[str], tuple[nn.Module, Path]],
) -> None:
    _, file = exported("bert")
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_inputs()] == ["input_ids", "attention_mask"]
    assert all(isinstance(size, str) for each in session.get_inputs() for size in each.shape)
    (logits,) = session.get_outputs()
    assert (logits.name, logits.shape[1]) == ("logits", 3)


def test_the_name_gets_its_ending_missing_folders_are_made_and_the_model_is_as_it_was(
    tmp_path: Path,
) -> None:
    model = Mlp().train()
    model.hidden.eval()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    found = export.onnx(model, example, tmp_path / "new" / "student.v2")
    assert found == tmp_path / "new" / "student.v2.onnx"
    assert list(found.parent.iterdir()) == [found]
    assert (model.training, model.hidden.training) == (True, False)
    assert all(torch.equal(before[name], each) for name, each in model.state_dict().items())


# onnx: what it refuses


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (Undecided, r"^Undecided can't be written as ONNX \(\w+: .*data-dependent.*\)\.$"),
        (TwoFaced, r"^The exported file answers otherwise .* nothing was written\.$"),
        (Narrow, r"^The exported file gives logits \(1, 2\) where the model gives \(1, 3\)"),
    ],
)
def test_a_failed_export_says_why_leaves_nothing_and_keeps_the_file_that_was_there(
    kind: type[Mlp], sentence: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good = tmp_path / "student.onnx"
    good.write_bytes(b"good")
    with pytest.raises(ExportError, match=sentence) as refused:
        export.onnx(kind(), example, good)
    assert "\n" not in str(refused.value)
    assert "\x1b" not in str(refused.value)
    assert list(tmp_path.iterdir()) == [good]
    assert good.read_bytes() == b"good"
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_answers_too_far_apart_or_without_a_number_are_refused() -> None:
    models = {False: Mlp(), True: quantize.int8_dynamic(Mlp())}
    parity.check_answers(0.9e-3, models[False], onnx_file.ADVICE)
    parity.check_answers(0.04, models[True], onnx_file.ADVICE)
    for difference, quantized in ((2e-3, False), (float("nan"), False), (0.06, True)):
        with pytest.raises(ExportError, match="The exported file answers otherwise") as refused:
            parity.check_answers(difference, models[quantized], onnx_file.ADVICE)
        assert ("reduce_range" in str(refused.value)) == quantized


def test_the_reason_told_is_the_one_at_the_bottom_in_one_line() -> None:
    above = RuntimeError("Failed.\nNext steps:\n- do this")
    above.__cause__ = ValueError("no such operator: frobnicate.\nSee the log")
    assert parity.reason(above) == "ValueError: no such operator: frobnicate"
    assert parity.reason(AssertionError()) == "AssertionError"


def test_more_weights_than_a_file_can_hold_are_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "LIMIT", 1000)
    with pytest.raises(ExportError, match=r"Mlp has .* GB of weights, and one ONNX file holds"):
        export.onnx(Mlp(), example, tmp_path / "a.onnx")


def test_a_place_that_can_not_be_written_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"a\.onnx can't be written \(.+\)\."):
        export.onnx(Mlp(), example, tmp_path / "file" / "a.onnx")


@pytest.mark.parametrize("library", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_library_names_the_extra(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtra, match=r'exporting to ONNX needs .*"attar\[onnx\]"'):
        export.onnx(Mlp(), example, tmp_path / "a.onnx")


def test_silence_ends_with_the_export(capfd: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("attar.tests.silence")
    levels = {name: logging.getLogger(name).level for name in ("", "torch.onnx", "onnxscript")}
    handlers, disabled = list(logging.root.handlers), logging.root.manager.disable
    with writing.quiet():
        log.warning("a note")
        warnings.warn("torch is not sure", stacklevel=1)
        print("progress")
        print("more", file=sys.stderr)
    assert capfd.readouterr() == ("", "")
    assert {name: logging.getLogger(name).level for name in levels} == levels
    assert (logging.root.handlers, logging.root.manager.disable) == (handlers, disabled)
    with pytest.raises(UserWarning, match="sure"):
        warnings.warn("now I am sure", stacklevel=1)


def test_a_stricter_silence_of_the_user_is_kept_during_and_after() -> None:
    logging.disable(logging.CRITICAL)
    try:
        with writing.quiet():
            assert logging.root.manager.disable == logging.CRITICAL
        assert logging.root.manager.disable == logging.CRITICAL
    finally:
        logging.disable(logging.NOTSET)


# transformers

ELSEWHERE = """
import json, sys
sys.modules["attar"] = None
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1]).eval()
words = AutoTokenizer.from_pretrained(sys.argv[1])
with torch.no_grad():
    inputs = words(["my card is late", "transfer"], padding=True, return_tensors="pt")
    logits = model(**inputs).logits
print(json.dumps({"logits": logits.tolist(), "classes": model.config.id2label}))
"""


def test_a_transformers_folder_loads_where_attar_is_not(tmp_path: Path) -> None:
    model = bert().eval()
    folder = export.transformers(model, tmp_path / "student")
    found = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    said = json.loads(found.stdout)
    texts = ["my card is late", "transfer"]
    inputs = model.tokenizer(texts, padding=True, return_tensors="pt")  # type: ignore[operator]
    assert np.allclose(said["logits"], answer(model, inputs), atol=1e-6)
    assert list(said["classes"].values()) == CLASSES
    assert (folder / "model.safetensors").is_file()


def test_the_bars_of_transformers_are_on_again_after_an_export(tmp_path: Path) -> None:
    before = transformers_logging.is_progress_bar_enabled()
    transformers_logging.enable_progress_bar()
    try:
        export.transformers(bert(), tmp_path / "student")
        assert transformers_logging.is_progress_bar_enabled()
    finally:
        if not before:
            transformers_logging.disable_progress_bar()


@pytest.mark.parametrize("form", ["transformers", "safetensors"])
def test_quantized_weights_have_no_folder(form: str, tmp_path: Path) -> None:
    models = {"transformers": bert, "safetensors": lstm}
    options = {"safetensors": {"save": students.save}}.get(form, {})
    write = names("attar.export")[form]
    with pytest.raises(ExportError, match=f"put export.{form} before the step that quantizes"):
        write(quantize.int8_dynamic(models[form]()), tmp_path / "a", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_transformers_model_without_a_tokenizer_says_what_is_missing(tmp_path: Path) -> None:
    model = bert()
    del model.tokenizer
    with pytest.raises(ExportError, match="carries no tokenizer"):
        export.transformers(model, tmp_path / "out")
    export.transformers(model, tmp_path / "out", lambda _, folder: (folder / "how").touch())
    assert (tmp_path / "out" / "how").exists()


def test_a_model_of_another_make_has_no_transformers_folder(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="Mlp is no `transformers` model; use"):
        export.transformers(Mlp(), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_not_written_over_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("kept")
    with pytest.raises(ExportError, match="is a file, and a folder is to be written there"):
        export.transformers(bert(), tmp_path / "a")
    assert (tmp_path / "a").read_text() == "kept"


def test_a_folder_that_can_not_be_written_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"can't be written \(.+\)\."):
        export.transformers(bert(), tmp_path / "file" / "a")


# safetensors


@pytest.mark.parametrize("make", [lstm, cnn])
def test_a_safetensors_folder_gives_the_same_student_again(
    make: Callable[[], nn.Module], tmp_path: Path
) -> None:
    student = make().eval()
    folder = export.safetensors(student, tmp_path / "student", students.save)
    again = students.load(folder)
    inputs = asked(4, 6)
    assert type(again) is type(student)
    assert np.array_equal(answer(again, inputs), answer(student, inputs))


def test_a_model_that_is_no_student_has_no_safetensors_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Mlp is no lstm or cnn"):
        export.safetensors(Mlp(), tmp_path / "a", students.save)
