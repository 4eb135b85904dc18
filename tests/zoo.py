"""Small models of every make that compressors must take, each with inputs of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from attar.errors import ModelError
from attar.students.convolutional import Cnn
from attar.students.recurrent import Lstm
from attar.students.vocabulary import cut

CLASSES = ["card", "transfer", "other"]
WORDS = 50
LENGTH = 5
SIDE = 8


class Mlp(nn.Module):
    """The mean of the embeddings, two linear layers."""

    def __init__(self, classes: int = 3, width: int = 16, words: int = WORDS) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, 8)
        self.hidden = nn.Linear(8, width)
        self.head = nn.Linear(width, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        seen = (self.embedding(input_ids) * attention_mask.unsqueeze(-1)).mean(1)
        logits: Tensor = self.head(torch.relu(self.hidden(seen)))
        return logits


class Residual(nn.Module):
    """Two convolutions, the second in groups, around which the input is passed."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, groups=groups)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.relu(inputs + self.second(torch.relu(self.norm(self.first(inputs)))))


class Convolved(nn.Module):
    """A picture classifier with a residual block, grouped convolutions and batch norm."""

    def __init__(self, width: int = 16, groups: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.block = Residual(width, groups)
        self.head = nn.Linear(width, len(CLASSES))

    def forward(self, pixel_values: Tensor) -> Tensor:
        seen = self.block(torch.relu(self.norm(self.stem(pixel_values))))
        logits: Tensor = self.head(seen.mean((2, 3)))
        return logits


def bert() -> nn.Module:
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        num_labels=len(CLASSES),
        attn_implementation="eager",
    )
    return BertForSequenceClassification(config)


def vit() -> nn.Module:
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        image_size=SIDE,
        patch_size=4,
        num_labels=len(CLASSES),
        attn_implementation="eager",
    )
    return ViTForImageClassification(config)


def llama() -> nn.Module:
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        num_labels=len(CLASSES),
        pad_token_id=0,
        attn_implementation="eager",
    )
    return LlamaForSequenceClassification(config)


def lstm() -> nn.Module:
    sizes = {"width": 8, "layers": 1, "embedding": 8, "bidirectional": True, "dropout": 0.1}
    return Lstm(None, CLASSES, WORDS, **sizes)


def text_cnn() -> nn.Module:
    return Cnn(None, CLASSES, WORDS, width=8, kernels=[2, 3], embedding=8, dropout=0.1)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": Mlp,
    "cnn": Convolved,
    "text_cnn": text_cnn,
    "bert": bert,
    "vit": vit,
    "lstm": lstm,
    "llama": llama,
}


def example(model: nn.Module, rows: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """Inputs that a model of the zoo takes: pictures, or ids of which the last row is padded."""
    chance = torch.Generator().manual_seed(seed)
    if isinstance(model, Convolved | ViTForImageClassification):
        return {"pixel_values": torch.randn(rows, 3, SIDE, SIDE, generator=chance)}
    ids = torch.randint(1, WORDS, (rows, LENGTH), generator=chance)
    ids[-1, 3:] = 0
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def calibration(model: nn.Module) -> Iterator[Mapping[str, Tensor]]:
    """Three batches of eight."""
    return (example(model, rows=8, seed=seed) for seed in range(1, 4))


def labels(seed: int = 0, rows: int = 8) -> Tensor:
    chance = torch.Generator().manual_seed(seed)
    return torch.randint(0, len(CLASSES), (rows,), generator=chance)


def losses(model: nn.Module) -> Iterator[Tensor]:
    """The cross-entropy of the calibration batches with labels drawn at random."""
    for seed, inputs in enumerate(calibration(model)):
        yield F.cross_entropy(answer(model, inputs), labels(seed))


def score(model: nn.Module) -> dict[str, float]:
    """The share of right answers to the calibration batches."""
    with torch.no_grad():
        right = [
            (answer(model, inputs).argmax(1) == labels(seed)).float().mean()
            for seed, inputs in enumerate(calibration(model))
        ]
    return {"score": float(torch.stack(right).mean())}


def answer(model: nn.Module, inputs: Mapping[str, Tensor] | None = None) -> Tensor:
    """The logits of a model for some inputs; for its example where none are given."""
    output: Any = model(**(example(model) if inputs is None else inputs))
    return output if isinstance(output, Tensor) else output.logits


def _unable(model: nn.Module, *_: Any) -> Any:
    raise ModelError(f"{type(model).__name__} has no environment to act in.")


def given(model: nn.Module) -> dict[str, Any]:
    """All that a compressor may ask for."""
    return {
        "model": model,
        "example": example,
        "calibration": calibration,
        "losses": losses,
        "score": score,
        "tell": lambda *_: None,
        "cut": partial(cut, texts=["a few words"]),
        "act": _unable,
        "forward": _unable,
        "classes": ("one", "two", "three"),
        "choices": 3,
    }
