"""What telling classes apart is, whatever it is that belongs to them: loss, score, answers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.errors import DataError, ModelError
from attar.taps import tapped
from attar.tasks.loading import logits
from attar.tasks.task import Task
from attar.types import IGNORE, Batch, Knowledge


class Classification(Task):
    """A task whose answer is one of some named classes."""

    _labels: Tensor
    _shown: Tensor

    @abstractmethod
    def told(self, part: str, row: int) -> dict[str, Any]:
        """What names one example of a part to a reader, and to a program by its `key`."""

    @abstractmethod
    def pieces(self, inputs: Any) -> int:
        """How many parts of an example can be hidden, given a batch's inputs of it alone."""

    @abstractmethod
    def seen(self, inputs: Any, kept: Tensor) -> Any:
        """One example once for each row of `kept` (rows, pieces) bool, without what is not kept."""

    @property
    def summary(self) -> str:
        """What there is to learn from, in a sentence."""
        return (
            f"Data: {self.size('train')} training {self.noun} ({self.size('labelled')} labelled), "
            f"{self.size('validation')} for validation, {self.size('test')} to test, "
            f"{len(self.classes)} classes."
        )

    def counts(self) -> dict[str, int]:
        """How many labels that may be learned from each class has, of those that have any."""
        shown = [int(self._shown[row]) for row in self._part("labelled")]
        return {name: shown.count(n) for n, name in enumerate(self.classes) if n in shown}

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
        """Cross-entropy with the true labels, over the rows whose label is known.

        Of mixed examples each label counts by its share (Zhang et al., mixup, ICLR 2018).
        """
        logits: Tensor = knowledge.logits
        share = torch.zeros(len(batch)) if batch.mixed is None else batch.mixed.share
        said = [(batch.labels, 1 - share)]
        said += [] if batch.mixed is None else [(batch.mixed.labels, share)]
        loss, whole = logits.sum() * 0.0, 0.0
        for labels, part in said:
            counts = part * (labels != IGNORE)
            each = F.cross_entropy(
                logits,
                labels.to(logits.device),
                ignore_index=IGNORE,
                label_smoothing=label_smoothing,
                reduction="none",
            )
            loss, whole = loss + (each * counts.to(each)).sum(), whole + float(counts.sum())
        return loss / whole if whole else loss

    def judged(self, model: nn.Module, part: str) -> tuple[np.ndarray[Any, Any], dict[str, float]]:
        """The class each example of a part is taken for; accuracy and macro-F1."""
        predicted = self.predicted(model, part)
        return predicted, self.judge(predicted, part)

    def predicted(self, model: nn.Module, part: str) -> np.ndarray[Any, Any]:
        """The class a model takes each example for, in the order of `rows[part]`."""
        classes: np.ndarray[Any, Any] = self.answers(model, part).argmax(1).numpy()
        return classes

    def truth(self, part: str) -> np.ndarray[Any, Any] | None:
        """The true class of each example, in the order of `rows[part]`.

        None where there is nothing to be right about, and examples have a worth instead.
        Raises DataError where one is not known.
        """
        truth = self.labels(part)
        if (truth == IGNORE).any():
            raise DataError(f"The part {part!r} has {self.noun} without a label; score on another.")
        return truth

    def judge(
        self,
        predicted: np.ndarray[Any, Any],
        part: str,
        at: np.ndarray[Any, Any] | None = None,
    ) -> dict[str, float]:
        """Accuracy and macro-F1 of predicted classes, given in the order of `rows[part]`.

        at: of which of these they are, where not of all
        """
        truth = self.truth(part) if at is None else self.labels(part)[at]
        assert truth is not None  # classes are right or wrong
        accuracy = float((predicted == truth).mean())
        return {
            "score": accuracy,
            "accuracy": accuracy,
            "macro_f1": _macro_f1(predicted, truth),
            "examples": len(truth),
        }

    def labels(self, part: str) -> np.ndarray[Any, Any]:
        """The true class of each example of a part, `IGNORE` where the data has none."""
        found: np.ndarray[Any, Any] = self._labels[list(self._part(part))].numpy()
        return found

    @torch.no_grad()
    def answers(
        self, model: nn.Module, part: str, advance: Callable[[int], None] | None = None
    ) -> Tensor:
        """The logits (examples, classes) of a model in eval mode, in the order of `rows[part]`.

        advance: is told of the examples of each batch that is answered
        """
        training = model.training
        model.eval()
        by_key: dict[str, Tensor] = {}
        for batch in self.sweep(part):
            answered = self.forward(model, batch).logits.cpu()
            by_key.update(zip(batch.keys, answered, strict=True))
            if advance is not None:
                advance(len(batch))
        model.train(training)
        return torch.stack([by_key[self._keys[row]] for row in self._part(part)])

    def audited(self) -> Classification:
        """The task itself: its answers are right or wrong."""
        return self

    def _mark(self, row: int, *, true: bool = False) -> str:
        return f" {int((self._labels if true else self._shown)[row])}"


def _macro_f1(predicted: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> float:
    """The mean over classes of 2 TP / (2 TP + FP + FN); classes that never occur are left out."""
    size = int(max(predicted.max(), truth.max())) + 1
    hits = np.bincount(truth[predicted == truth], minlength=size)
    either = np.bincount(truth, minlength=size) + np.bincount(predicted, minlength=size)
    return float((2 * hits[either > 0] / either[either > 0]).mean())
