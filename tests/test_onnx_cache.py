"""An ONNX file that remembers: it writes a token at a time what its model would write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import storybook
import torch
from torch import nn

from attar import export
from attar.errors import ExportError
from attar.tasks.text import generation

NEW = 12


@pytest.fixture(scope="module")
def model() -> Any:
    return storybook.llama(2, padded=5)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> generation:
    folder = tmp_path_factory.mktemp("data")
    data, named = storybook.book(folder / "book"), storybook.saved(folder / "model")
    return generation(dataset=str(data), tokenizer=str(named), length=48)


@pytest.fixture(scope="module")
def file(model: Any, task: generation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("file")
    task.save(task.load(model), folder)
    return export.onnx(model, task.example, folder / "model.onnx", cache=True)


def written(file: Path, ids: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]) -> Any:
    """What ONNX Runtime writes, greedily, of prompts padded on the left: the first once, then
    one token at a time."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    given: dict[str, Any] = {
        each.name: np.zeros((len(ids), each.shape[1], 0, each.shape[3]), np.float32)
        for each in session.get_inputs()
        if each.name.startswith("past_key_values.")
    }
    found = []
    for _ in range(NEW):
        said = session.run(None, {"input_ids": ids, "attention_mask": mask, **given})
        ids = said[0][:, -1:].argmax(2)
        found.append(ids)
        mask = np.concatenate([mask, np.ones_like(ids)], 1)
        present = zip(names[1:], said[1:], strict=True)
        given = {name.replace("present", "past_key_values"): each for name, each in present}
    return np.concatenate(found, 1)


@pytest.mark.slow
def test_it_writes_what_transformers_writes(model: Any, file: Path) -> None:
    prompts = [storybook.tokenizer()(text)["input_ids"] for text in storybook.stories(3)]
    longest = max(map(len, prompts))
    ids = np.array([[0] * (longest - len(each)) + each for each in prompts])
    mask = np.array([[0] * (longest - len(each)) + [1] * len(each) for each in prompts])
    assert len(set(map(len, prompts))) > 1
    truth = model.generate(
        input_ids=torch.from_numpy(ids),
        attention_mask=torch.from_numpy(mask),
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        do_sample=False,
        use_cache=True,
        suppress_tokens=None,
    )
    found = written(file, ids, mask)
    ended = (truth[:, longest:].numpy() == model.config.eos_token_id).cumsum(1) > 0
    assert np.array_equal(found[~ended], truth[:, longest:].numpy()[~ended])
    assert (~ended).sum() >= 2 * NEW


@pytest.mark.slow
def test_it_is_scored_like_any_file(model: Any, file: Path, task: generation) -> None:
    _, whole = task.judged(task.load(model), "test")
    _, found = task.judged(task.load(str(file)), "test")
    for name in ("score", "perplexity", "accuracy"):
        assert found[name] == pytest.approx(whole[name], rel=1e-5)


def test_a_model_that_remembers_nothing_is_told_so(task: generation, tmp_path: Path) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(400, 400)

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.words(input_ids)  # type: ignore[no-any-return]

    with pytest.raises(ExportError, match=r"keeps no keys and values.*leave `cache` out"):
        export.onnx(Plain(), task.example, tmp_path / "plain.onnx", cache=True)
    assert not list(tmp_path.glob("*.onnx"))
