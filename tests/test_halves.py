"""Weights in 16 bits: what the bits can say, the same answers, half the file and the folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from zoo import CLASSES, MODELS, WORDS, Mlp, answer, bert, example

from attar import export, measure, students
from attar.compress import quantize
from attar.compress.quantize.halves import Halved
from attar.errors import ModelError
from attar.students.recurrent import Lstm
from attar.types import Quantized

HALVES: dict[str, Callable[..., nn.Module]] = {"fp16": quantize.fp16, "bf16": quantize.bf16}
every = pytest.mark.parametrize("name", HALVES)


def rounded(weight: Tensor, name: str) -> Any:
    """Numbers with 10 (or 7) bits behind the first, to the nearest and ties to even, in NumPy."""
    values = weight.detach().double().numpy()
    digits = {"fp16": 10, "bf16": 7}[name]
    step = 2.0 ** (np.floor(np.log2(np.abs(values))) - digits)
    return np.rint(values / step) * step


@every
def test_a_weight_keeps_the_bits_that_the_type_has(name: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    model[0].weight.data += 0.1 * model[0].weight.data.sign()  # all of ordinary size
    small = HALVES[name](model)
    assert small[0].weight.dtype == {"fp16": torch.float16, "bf16": torch.bfloat16}[name]
    assert np.array_equal(small[0].weight.detach().double().numpy(), rounded(model[0].weight, name))


@every
@pytest.mark.parametrize("make", MODELS)
def test_the_answers_are_those_of_the_rounded_weights_in_32_bits(name: str, make: str) -> None:
    model = MODELS[make]().eval()
    small = HALVES[name](model)
    halved = {path for path, module in small.named_modules() if isinstance(module, Halved)}
    with torch.no_grad():
        for path in halved:
            for weight, short in zip(
                model.get_submodule(path).parameters(),
                small.get_submodule(path).parameters(),
                strict=True,
            ):
                weight.copy_(short)
    found = answer(small)
    assert found.dtype == torch.float32
    # A model that casts its inputs to the weights' type rounds pictures as well.
    tolerance = 1e-2 if make == "vit" else 1e-6
    assert (found - answer(model)).abs().max() <= tolerance * found.abs().max()


@every
def test_half_the_bytes_and_the_same_parameters_under_the_same_names(name: str) -> None:
    model = MODELS["lstm"]().eval()
    small = HALVES[name](model)
    assert measure.size(small) * 2 == measure.size(model)
    assert measure.parameters(small) == measure.parameters(model)
    assert list(small.state_dict()) == list(model.state_dict())
    inputs = example(model)
    assert measure.macs(small, lambda _: inputs) == measure.macs(model, lambda _: inputs)
    assert not any(isinstance(module, Quantized) for module in small.modules())


def test_norms_stay_in_32_bits_and_so_does_what_is_excluded() -> None:
    small = quantize.fp16(bert(), exclude=["classifier", "bert.embeddings"])
    whole = {path for path, weight in small.named_parameters() if weight.dtype == torch.float32}
    assert {path.rpartition(".")[0].rpartition(".")[2] for path in whole} >= {"LayerNorm"}
    assert all(
        "LayerNorm" in path or path.startswith(("classifier", "bert.embeddings")) for path in whole
    )


def test_weights_that_are_shared_stay_shared() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9, bias=False), nn.Linear(9, 4))
    model[1].weight = model[0].weight
    small = quantize.fp16(model)
    assert small[1].weight is small[0].weight
    assert measure.size(small) == 2 * (9 * 4 + 9 * 4 + 4)


def test_a_number_that_float16_does_not_have_is_refused_in_a_sentence() -> None:
    model = Mlp()
    model.head.weight.data[0, 0] = 1e5
    with pytest.raises(ModelError, match=r"^head has a weight of 100000, .* 65504 here; exclude"):
        quantize.fp16(model)
    assert quantize.bf16(model).head.weight[0, 0] == 99840
    assert quantize.fp16(model, exclude=["head"]).head.weight[0, 0] == 1e5


@every
@pytest.mark.parametrize("make", ["mlp", "lstm"])
def test_the_file_is_half_as_large_and_answers_the_same(
    name: str, make: str, tmp_path: Path
) -> None:
    import onnxruntime

    sizes = {"width": 64, "layers": 1, "embedding": 64, "bidirectional": False, "dropout": 0.0}
    lstm = Lstm(None, CLASSES, WORDS, **sizes)
    model = {"mlp": Mlp(width=8192), "lstm": lstm}[make].eval()
    small = HALVES[name](model)
    file = export.onnx(small, example, tmp_path / "small")
    # The whole of it, and some thousands for the graph and for weights too few to matter.
    assert file.stat().st_size < measure.size(model) / 2 + 30_000
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    inputs = example(model, rows=4, seed=3)
    (found,) = session.run(None, {key: each.numpy() for key, each in inputs.items()})
    with torch.no_grad():
        assert np.abs(found - answer(small, inputs).numpy()).max() < 1e-5


@every
def test_a_transformers_folder_is_of_that_type(name: str, tmp_path: Path, base: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model: Any = bert().eval()
    model.tokenizer = AutoTokenizer.from_pretrained(base)
    small = HALVES[name](model)
    folder = export.transformers(small, tmp_path / "small")
    loaded = AutoModelForSequenceClassification.from_pretrained(folder, dtype="auto").eval()
    assert loaded.dtype == {"fp16": torch.float16, "bf16": torch.bfloat16}[name]
    with torch.no_grad():
        found, truth = answer(loaded, example(model)).float(), answer(small)
    assert (found - truth).abs().max() < 0.05 * truth.abs().max()
    again = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.allclose(answer(again, example(model)), truth, atol=1e-6)


def test_a_folder_of_a_student_of_attar_is_half_as_large(tmp_path: Path, base: Path) -> None:
    from transformers import AutoTokenizer

    sizes = {"width": 64, "layers": 1, "embedding": 64, "bidirectional": False, "dropout": 0.0}
    model = Lstm(AutoTokenizer.from_pretrained(base), CLASSES, WORDS, **sizes).eval()
    small = quantize.fp16(model)
    folder = export.safetensors(small, tmp_path / "small", students.save)
    assert measure.size(model, folder) < measure.size(model) / 2 + 2000
    with torch.no_grad():
        assert torch.allclose(answer(students.load(folder), example(model)), answer(small))


def test_a_recurrent_layer_takes_packed_sequences_states_and_names() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 3, batch_first=True)

        def forward(self, signal: torch.Tensor) -> torch.Tensor:
            packed = pack_padded_sequence(signal, torch.tensor([5, 2]), batch_first=True)
            state = (torch.zeros(1, 2, 3), torch.zeros(1, 2, 3))
            return torch.cat([self.lstm(packed, state)[1][0], self.lstm(input=signal)[1][0]])

    model, signal = Packed().eval(), torch.randn(2, 5, 4)
    assert torch.allclose(quantize.fp16(model)(signal), model(signal), atol=2e-3)
