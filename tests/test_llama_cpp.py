"""llama.cpp itself, by its Python binding, writes from a GGUF file what PyTorch writes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import smollm
import storybook
import torch

from attar import export
from attar.tasks.text import causal

NEW = 24

ASK = """
import json, sys
from llama_cpp import Llama
file, new, *texts = sys.argv[1:]
model = Llama(file, n_ctx=256, verbose=False)
for text in texts:
    ids = model.tokenize(text.encode(), add_bos=False, special=True)
    written = []
    for token in model.generate(ids, temp=0.0, repeat_penalty=1.0):
        written.append(token)
        if len(written) == int(new) or token == model.token_eos():
            break
    print(json.dumps([ids, written]))
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def binding(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A path where Python finds llama.cpp's binding, which is built where there is none."""
    if find_spec("llama_cpp"):
        return []
    folder = str(tmp_path_factory.mktemp("binding"))
    command = [sys.executable, "-m", "pip", "install", "-q", "--target", folder]
    subprocess.run([*command, "llama-cpp-python>=0.3.16"], check=True, timeout=3600)
    return [folder]


def told(binding: Sequence[str], file: Path, texts: Sequence[str]) -> list[list[list[int]]]:
    """Of each text its tokens and what llama.cpp writes behind them."""
    code = f"import sys; sys.path[:0] = {list(binding)!r}\n{ASK}"
    command = [sys.executable, "-c", code, str(file), str(NEW), *texts]
    found = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    return [json.loads(line) for line in found.stdout.splitlines()]


def written(model: Any, ids: Sequence[int]) -> list[int]:
    """What `transformers` writes, the likeliest token by token."""
    given = torch.tensor([ids])
    with torch.no_grad():
        whole = model.generate(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=NEW,
            do_sample=False,
            use_cache=True,
        )
    return whole[0, len(ids) :].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("form", ["f32", "f16"])
def test_a_llama_writes_the_same_tokens(binding: list[str], tmp_path: Path, form: Any) -> None:
    model = storybook.llama(3, padded=5, hidden_size=64, head_dim=16, initializer_range=0.1)
    file = export.gguf(model, tmp_path / "model.gguf", form=form)
    texts = [text[:60] for text in storybook.stories(6)]
    for text, (ids, new) in zip(texts, told(binding, file, texts), strict=True):
        assert ids == storybook.tokenizer()(text)["input_ids"]
        assert new == written(model, ids)


def test_smollm2_with_ten_layers_writes_the_same_tokens(binding: list[str], tmp_path: Path) -> None:
    from attar.depth import with_layers

    whole: Any = causal.load(smollm.name(), 1)
    model: Any = with_layers(whole, range(10))
    model.tokenizer = whole.tokenizer
    file = export.gguf(model, tmp_path / "model.gguf", form="f32")
    texts = ["In 1969 the first", "A cell is", "def f(x):\n    return", "naïve 日本語 🙂 and"]
    found = told(binding, file, texts)
    for text, (ids, new) in zip(texts, found, strict=True):
        assert ids == whole.tokenizer(text)["input_ids"]
        assert new == written(model, ids)
    assert len(np.unique([token for _, new in found for token in new])) > 4
