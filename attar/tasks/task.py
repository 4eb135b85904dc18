"""What any task is asked by the roof: its data in parts, its models, what they lose and score."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from attar.errors import DataError, RecipeError, nearest
from attar.tasks.sampling import Batches
from attar.types import Batch, Knowledge, Question

if TYPE_CHECKING:
    from attar.tasks.classes import Classification

Worths = np.ndarray[Any, Any]
"""Of each example of a part, in its order: the class it is taken for, or what it is worth."""

SHUFFLED = 32
"""Examples of a batch of calibration at most, whatever is swept at a time."""


class Task(ABC):
    """A problem: examples in parts, models that are shown them, and one score of each model.

    kind: its name in a recipe; tag: what model hubs call it
    score_name: what `score` is called; formats: endings of model files that it alone reads
    noun: what its examples are, for sentences
    beside: the folder beside an exported file in which `save` writes what a user needs with it
    classes: the names of what is told apart, or answered; empty where there are none
    exclusive: whether answers are logits of classes that exclude one another
    rows: by part of the data, the numbers of its examples
    _keys: of each example, the hash of its content
    swept: how many of them are asked about together
    _drawn: what decides how training examples change, where they do
    """

    kind: str
    tag: str
    score_name: str = "score"
    formats: tuple[str, ...] = ()
    noun: str
    beside: str
    classes: tuple[str, ...] = ()
    exclusive: bool = True
    rows: Mapping[str, tuple[int, ...]]
    notes: tuple[str, ...]
    swept: int = 64
    _seed: int
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
        """A model for this task, by name or the user's own."""

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
    def forward(self, model: nn.Module, batch: Batch, layers: Sequence[str] = ()) -> Knowledge:
        """What a model makes of a batch, and the features of some layers."""

    @abstractmethod
    def loss(self, knowledge: Knowledge, batch: Batch, *, label_smoothing: float = 0.0) -> Tensor:
        """What is lost on a batch whose answers are known, a mean over them."""

    @abstractmethod
    def judged(self, model: nn.Module, part: str) -> tuple[Worths, dict[str, float]]:
        """What a model makes of each example of a part, and what they come to: `score` and more."""

    @abstractmethod
    def _batch(self, rows: Sequence[int]) -> Batch:
        """The examples of some rows, their labels as they are shown in training."""

    @property
    def summary(self) -> str:
        """What there is to learn from, in a sentence."""
        return (
            f"Data: {self.size('train')} training {self.noun}, {self.size('validation')} for "
            f"validation, {self.size('test')} to test."
        )

    def met(self, teacher: nn.Module) -> Task:  # noqa: ARG002
        """The task with the data of whoever teaches it; here they are there before anybody does."""
        return self

    def understood(self, model: nn.Module) -> str:  # noqa: ARG002
        """What proves that a model means the same by its inputs and answers; nothing is usual."""
        return ""

    def act(self, *_: Any) -> Batch:
        """What a model meets where it acts. Raises RecipeError: here there is nothing to do."""
        raise RecipeError(f"Acting is for tasks of control; {self.noun} are only answered.")

    def films(self, models: Mapping[str, nn.Module]) -> tuple[dict[str, Any], ...]:  # noqa: ARG002
        """Pictures of some models at work; of answers there are none."""
        return ()

    def stage(self, *_: Any, **__: Any) -> Any:
        """Where a model acts for a reward. Raises RecipeError: here there is none."""
        raise RecipeError(f"rewarded is for control.policy; {self.noun} give no reward.")

    def played(self, model: nn.Module, part: str) -> float:  # noqa: ARG002
        """Seconds in which a model plays a part to be scored, roughly; here nobody plays."""
        return 0.0

    def write(self, *_: Any) -> Batch:
        """What a model writes. Raises RecipeError: here there are no words."""
        raise RecipeError(f"Writing is for language models; {self.noun} are only answered.")

    def note(self, batch: Batch) -> Mapping[str, Any]:  # noqa: ARG002
        """What was written, as a checkpoint holds it; here nothing ever is."""
        return {}

    def read(self, note: Mapping[str, Any]) -> Batch:
        """What was written, from its note. Raises RecipeError: here nothing ever is."""
        return self.write(note)

    def questions(self, *_: Any) -> list[Question]:
        """What somebody far away is asked. Raises RecipeError: here nobody goes on from a text."""
        raise RecipeError(f"An endpoint teaches language models; {self.noun} are only answered.")

    def heard(self, *_: Any) -> Any:
        """The task with what was answered. Raises RecipeError: here nobody is asked."""
        return self.questions()

    def verbatim(self, batch: Batch) -> Knowledge:  # noqa: ARG002
        """A teacher that is sure of what stands there. Raises RecipeError: here are no words."""
        raise RecipeError(f"An endpoint teaches language models; {self.noun} are only answered.")

    def shown(self, models: Mapping[str, nn.Module]) -> dict[str, list[dict[str, Any]]]:  # noqa: ARG002
        """What of models is to be read in the report beside their figures: tables, by title."""
        return {}

    def beginner(self, *_: Any, **__: Any) -> nn.Module:
        """What reward trains. Raises RecipeError: here there is none."""
        raise RecipeError(f"reinforce is for tasks of control; {self.noun} give no reward.")

    def audited(self) -> Classification:
        """The task as an audit asks it. Raises RecipeError: no answer of it is right or wrong."""
        raise RecipeError(
            f"audit weighs answers that are right or wrong, and {self.kind} has a "
            f"{self.score_name} instead; leave it out."
        )

    @property
    def choices(self) -> int:
        """How many classes an answer is one of; 0 where an answer is numbers."""
        return len(self.classes)

    @property
    def tells(self) -> str:
        """What a model of it answers with, and how many there are of that, in words."""
        return f"{len(self.classes)} classes"

    @property
    def has_pool(self) -> bool:
        """Whether there are training examples without a label."""
        return len(self.rows["labelled"]) < len(self.rows["train"])

    def sweep(self, part: str, *, batch_size: int | None = None) -> Iterator[Batch]:
        """Every example of a part once, as it is, the like in length together."""
        rows, size = self._ordered(part), batch_size or self.swept
        for start in range(0, len(rows), size):
            yield self._batch(rows[start : start + size])

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
        """How many labels that may be learned from each class has; none where there are none."""
        return {}

    def size(self, part: str) -> int:
        """The number of examples of a part of the data."""
        return len(self._part(part))

    def keys(self, part: str) -> tuple[str, ...]:
        """The address of each example of a part in a store, in the order of `rows[part]`."""
        return tuple(self._keys[row] for row in self._part(part))

    def score(self, model: nn.Module, part: str = "validation") -> dict[str, float]:
        """`score`, the one number that models are compared by, and what else is told of a model."""
        return self.judged(model, part)[1]

    def truth(self, part: str) -> Worths | None:  # noqa: ARG002
        """The true class of each example; None where nothing is right, and each has a worth."""
        return None

    def calibration(self, model: nn.Module) -> Iterator[Mapping[str, Tensor]]:
        """The model's inputs for every training example once, in a fixed order, some to a batch."""
        for batch in self._shuffled("train"):
            yield self.encode(model, batch.inputs)

    def losses(self, model: nn.Module) -> Iterator[Tensor]:
        """What a model loses on each batch of labelled examples, with the graph."""
        for batch in self._shuffled("labelled"):
            yield self.loss(self.forward(model, batch), batch)

    def digest(self) -> str:
        """A hash of the data and its splits: what a trained teacher depends on."""
        state = hashlib.sha256(self._drawn.encode())
        for part in ("labelled", "train", "validation"):
            for row in self.rows[part]:
                state.update(f"{part} {self._keys[row]}{self._mark(row)}\n".encode())
        return state.hexdigest()[:16]

    def hash_of(self, part: str) -> str:
        """A hash of a part: its examples in their order, with what is true of them."""
        rows = self._part(part)
        lines = (f"{self._keys[row]}{self._mark(row, true=True)}\n" for row in rows)
        return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]

    def _mark(self, row: int, *, true: bool = False) -> str:  # noqa: ARG002
        """What is said of an example beside its content: as it is shown in training, or truly."""
        return ""

    def _shuffled(self, part: str) -> Iterator[Batch]:
        order = np.random.default_rng(self._seed).permutation(self._part(part)).tolist()
        size = min(self.swept, SHUFFLED)
        for start in range(0, len(order), size):
            yield self._batch(order[start : start + size])

    def _ordered(self, part: str) -> Sequence[int]:
        """The rows of a part in the order of a sweep."""
        return self._part(part)

    def _part(self, name: str) -> tuple[int, ...]:
        if name not in self.rows:
            raise DataError(f"There is no part {name!r} of the data; {nearest(name, self.rows)}")
        return self.rows[name]
