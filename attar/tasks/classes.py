"""What telling classes apart is, whatever it is that belongs to them: loss, score, answers."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.errors import DataError, ModelError, nearest
from attar.taps import tapped
from attar.tasks.loading import logits
from attar.types import IGNORE, Batch, Knowledge


class Classification(ABC):
    """A task whose answer is one of some named classes.

    noun: what its examples are, for sentences
    _drawn: what decides how training examples change, where they do
    """

    noun: str
    classes: tuple[str, ...]
    rows: Mapping[str, tuple[int, ...]]
    notes: tuple[str, ...]
    _seed: int
    _labels: Tensor
    _shown: Tensor
    _keys: Sequence[str]
    _drawn: str = ""

    @abstractmethod
    def encode(self, model: nn.Module, inputs: Any) -> Mapping[str, Tensor]:
        """The model's own inputs for those of a batch."""

    @abstractmethod
    def sweep(self, part: str, *, batch_size: int = 64) -> Iterator[Batch]:
        """Every example of a part once."""

    @abstractmethod
    def _batch(self, rows: Sequence[int]) -> Batch:
        """The examples of some rows, their labels as they are shown in training."""

    @property
    def has_pool(self) -> bool:
        """Whether there are training examples without a label."""
        return len(self.rows["labelled"]) < len(self.rows["train"])

    def size(self, part: str) -> int:
        """The number of examples of a part of the data."""
        return len(self._part(part))

    def forward(self, model: nn.Module, batch: Batch, layers: Sequence[str] = ()) -> Knowledge:
        """What a model makes of a batch: logits (rows, classes) and the features of some layers."""
        inputs = self.encode(model, batch.inputs)
        mask = inputs.get("attention_mask")
        with tapped(model, layers) as heard:
            answers = logits(model(**inputs))
        if answers.shape != (len(batch), len(self.classes)):
            raise ModelError(
                f"{type(model).__name__} gave answers of shape {tuple(answers.shape)} for "
                f"{len(batch)} {self.noun}; this task has {len(self.classes)} classes."
            )
        return Knowledge(answers.float(), heard(mask), mask)

    def loss(self, knowledge: Knowledge, batch: Batch, *, label_smoothing: float = 0.0) -> Tensor:
        """Cross-entropy with the true labels, over the rows whose label is known."""
        labels = batch.labels.to(knowledge.logits.device)
        if bool((labels == IGNORE).all()):
            return knowledge.logits.sum() * 0.0
        return F.cross_entropy(
            knowledge.logits, labels, ignore_index=IGNORE, label_smoothing=label_smoothing
        )

    def score(self, model: nn.Module, part: str = "validation") -> dict[str, float]:
        """Accuracy and macro-F1 on a part whose labels are all known."""
        return self.judge(self.answers(model, part).argmax(1).numpy(), part)

    def judge(self, predicted: np.ndarray[Any, Any], part: str) -> dict[str, float]:
        """Accuracy and macro-F1 of predicted classes, given in the order of `rows[part]`."""
        truth = self._labels[list(self._part(part))].numpy()
        if (truth == IGNORE).any():
            raise DataError(f"The part {part!r} has {self.noun} without a label; score on another.")
        accuracy = float((predicted == truth).mean())
        return {
            "score": accuracy,
            "accuracy": accuracy,
            "macro_f1": _macro_f1(predicted, truth),
            "examples": len(truth),
        }

    @torch.no_grad()
    def answers(self, model: nn.Module, part: str) -> Tensor:
        """The logits (examples, classes) of a model in eval mode, in the order of `rows[part]`."""
        training = model.training
        model.eval()
        by_key: dict[str, Tensor] = {}
        for batch in self.sweep(part):
            answered = self.forward(model, batch).logits.cpu()
            by_key.update(zip(batch.keys, answered, strict=True))
        model.train(training)
        return torch.stack([by_key[self._keys[row]] for row in self._part(part)])

    def calibration(self, model: nn.Module) -> Iterator[Mapping[str, Tensor]]:
        """The model's inputs for every training example once, in a fixed order, 32 to a batch."""
        for batch in self._shuffled("train"):
            yield self.encode(model, batch.inputs)

    def losses(self, model: nn.Module) -> Iterator[Tensor]:
        """What a model loses on each batch of 32 labelled examples, with the graph."""
        for batch in self._shuffled("labelled"):
            yield self.loss(self.forward(model, batch), batch)

    def digest(self) -> str:
        """A hash of the data and its splits: what a trained teacher depends on."""
        state = hashlib.sha256(self._drawn.encode())
        for part in ("labelled", "train", "validation"):
            for row in self.rows[part]:
                state.update(f"{part} {self._keys[row]} {int(self._shown[row])}\n".encode())
        return state.hexdigest()[:16]

    def _shuffled(self, part: str, batch_size: int = 32) -> Iterator[Batch]:
        order = np.random.default_rng(self._seed).permutation(self._part(part)).tolist()
        for start in range(0, len(order), batch_size):
            yield self._batch(order[start : start + batch_size])

    def _part(self, name: str) -> tuple[int, ...]:
        if name not in self.rows:
            raise DataError(f"There is no part {name!r} of the data; {nearest(name, self.rows)}")
        return self.rows[name]


def _macro_f1(predicted: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> float:
    """The mean over classes of 2 TP / (2 TP + FP + FN); classes that never occur are left out."""
    size = int(max(predicted.max(), truth.max())) + 1
    hits = np.bincount(truth[predicted == truth], minlength=size)
    either = np.bincount(truth, minlength=size) + np.bincount(predicted, minlength=size)
    return float((2 * hits[either > 0] / either[either > 0]).mean())
