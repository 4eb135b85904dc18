"""What telling classes apart is, whatever it is that belongs to them: loss, score, answers."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.errors import DataError, ModelError, RecipeError, nearest
from attar.taps import tapped
from attar.tasks.loading import logits
from attar.tasks.sampling import Batches
from attar.types import IGNORE, Batch, Knowledge


class Classification(ABC):
    """A task whose answer is one of some named classes.

    kind: its name in a recipe
    score_name: what `score` is called; formats: endings of model files that it alone reads
    noun: what its examples are, for sentences
    beside: the folder beside an exported file in which `save` writes what a user needs with it
    _drawn: what decides how training examples change, where they do
    """

    kind: str
    score_name: str = "score"
    formats: tuple[str, ...] = ()
    noun: str
    beside: str
    classes: tuple[str, ...]
    rows: Mapping[str, tuple[int, ...]]
    notes: tuple[str, ...]
    _seed: int
    _labels: Tensor
    _shown: Tensor
    _keys: Sequence[str]
    _drawn: str = ""

    @property
    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What decides, whoever is asked, how an example is put, and what the answers mean."""

    @property
    @abstractmethod
    def limit(self) -> str:
        """What a model of this task was made for, in a sentence."""

    @property
    def offers(self) -> Mapping[str, Any]:
        """What students and compressors may ask for beside the classes."""
        return {}

    @abstractmethod
    def load(
        self,
        name: str | nn.Module,
        *,
        new_head: bool = False,
        partly: bool = False,
        threads: int = 1,
    ) -> nn.Module:
        """A model for this task's classes, by name or the user's own."""

    @abstractmethod
    def batches(
        self, part: str = "train", *, batch_size: int = 32, seed: int | None = None
    ) -> Batches:
        """An endless, seeded, resumable stream over `train` or `labelled`."""

    @abstractmethod
    def example(self, model: nn.Module) -> Mapping[str, Tensor]:
        """The model's inputs for one typical example."""

    @abstractmethod
    def preprocessing(self, model: nn.Module) -> dict[str, Any]:
        """What decides, beside the weights, what a model makes of an example."""

    @abstractmethod
    def save(self, model: nn.Module, folder: Path) -> None:
        """Write what a user of the model needs beside it."""

    @abstractmethod
    def encode(self, model: nn.Module, inputs: Any) -> Mapping[str, Tensor]:
        """The model's own inputs for those of a batch."""

    @abstractmethod
    def told(self, part: str, row: int) -> dict[str, Any]:
        """What names one example of a part to a reader, and to a program by its `key`."""

    @abstractmethod
    def pieces(self, inputs: Any) -> int:
        """How many parts of an example can be hidden, given a batch's inputs of it alone."""

    @abstractmethod
    def seen(self, inputs: Any, kept: Tensor) -> Any:
        """One example once for each row of `kept` (rows, pieces) bool, without what is not kept."""

    @abstractmethod
    def _batch(self, rows: Sequence[int]) -> Batch:
        """The examples of some rows, their labels as they are shown in training."""

    @property
    def summary(self) -> str:
        """What there is to learn from, in a sentence."""
        return (
            f"Data: {self.size('train')} training {self.noun} ({self.size('labelled')} labelled), "
            f"{self.size('validation')} for validation, {self.size('test')} to test, "
            f"{len(self.classes)} classes."
        )

    def met(self, teacher: nn.Module) -> Classification:  # noqa: ARG002
        """The task with the data of whoever teaches it; here they are there before anybody does."""
        return self

    def act(self, *_: Any) -> Batch:
        """What a model meets where it acts. Raises RecipeError: here there is nothing to do."""
        raise RecipeError(f"student_driven is for tasks of control; {self.noun} are only answered.")

    def beginner(self, *_: Any, **__: Any) -> nn.Module:
        """What reward trains. Raises RecipeError: here there is none."""
        raise RecipeError(f"reinforce is for tasks of control; {self.noun} give no reward.")

    @property
    def has_pool(self) -> bool:
        """Whether there are training examples without a label."""
        return len(self.rows["labelled"]) < len(self.rows["train"])

    def sweep(self, part: str, *, batch_size: int = 64) -> Iterator[Batch]:
        """Every example of a part once, as it is, the like in length together."""
        rows = self._ordered(part)
        for start in range(0, len(rows), batch_size):
            yield self._batch(rows[start : start + batch_size])

    def foreseen(self) -> Iterator[Batch]:
        """All that training will show and that can be told beforehand."""
        return self.sweep("train")

    def spread(self, part: str, rows: int) -> Batch:
        """Some examples of a part, evenly spread over those of a sweep."""
        ordered = self._ordered(part)
        at = np.unique(np.linspace(0, len(ordered) - 1, rows).astype(int))
        return self._batch([ordered[n] for n in at])

    def repeated(self, part: str, other: str = "train") -> int:
        """How many examples of a part are examples of another too."""
        known = {self._keys[row] for row in self._part(other)}
        return sum(self._keys[row] in known for row in self._part(part))

    def tokens(self, model: nn.Module) -> float | None:
        """Tokens of an example, the mean of some; None where a model reads something else."""
        inputs = self.encode(model, self.spread("train", 1000).inputs)
        mask = inputs.get("attention_mask")
        return None if mask is None else float(mask.sum(1).float().mean())

    def counts(self) -> dict[str, int]:
        """How many labels that may be learned from each class has, of those that have any."""
        shown = [int(self._shown[row]) for row in self._part("labelled")]
        return {name: shown.count(n) for n, name in enumerate(self.classes) if n in shown}

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

    def score(self, model: nn.Module, part: str = "validation") -> dict[str, float]:
        """Accuracy and macro-F1 on a part whose labels are all known."""
        return self.judge(self.predicted(model, part), part)

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

    def keys(self, part: str) -> tuple[str, ...]:
        """The address of each example of a part in a store, in the order of `rows[part]`."""
        return tuple(self._keys[row] for row in self._part(part))

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

    def hash_of(self, part: str) -> str:
        """A hash of a part: its examples in their order, with their true labels."""
        lines = (f"{self._keys[row]} {int(self._labels[row])}\n" for row in self._part(part))
        return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]

    def _shuffled(self, part: str, batch_size: int = 32) -> Iterator[Batch]:
        order = np.random.default_rng(self._seed).permutation(self._part(part)).tolist()
        for start in range(0, len(order), batch_size):
            yield self._batch(order[start : start + batch_size])

    def _ordered(self, part: str) -> Sequence[int]:
        """The rows of a part in the order of a sweep."""
        return self._part(part)

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
