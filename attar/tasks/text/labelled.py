"""Text classification: sentences in, one of the named classes out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.errors import DataError, ModelError, nearest
from attar.store import key
from attar.taps import tapped
from attar.tasks.sampling import Batches
from attar.tasks.text import networks, reading, tokenizing
from attar.tasks.text.inventing import invent
from attar.tasks.text.splitting import Split, split
from attar.types import IGNORE, Batch, Knowledge, Share


class classification:  # noqa: N801  (a recipe names it, so it is spelled like the functions)
    """Text classification from csv, tsv, jsonl, parquet, a folder of these, or `datasets`.

    dataset: file, folder with a file per split (train, validation, test, unlabelled), or hub name
    test: the file to test on; without one a fifth of the data is held out
    columns: {text: NAME, label: NAME} where they can't be found by their usual names
    max_length: tokens of a text that a model sees
    labelled_per_class: keep so many labels a class; the rest becomes an unlabelled pool
    validation: share of the training data held out for every choice; none of it is trained on
    invented: texts without a label added to the pool, as a multiple of the training texts: these
        with words left out and spliced with one another
    """

    kind = "text.classification"

    def __init__(
        self,
        seed: int = 0,
        *,
        dataset: str,
        test: str | None = None,
        columns: dict[str, str] | None = None,
        max_length: int = 128,
        labelled_per_class: int | None = None,
        validation: float = 0.1,
        invented: Share = 0.0,
    ) -> None:
        tables = reading.read(dataset, columns)
        if test is not None:
            tables |= reading.read(test, columns, only="test")
        found: Split = split(tables, seed, labelled_per_class, validation)
        self._median = _typical([found.texts[row] for row in found.rows["train"]])
        if invented:
            found = found.with_pool(partial(invent, seed=seed), invented)
        self.classes = found.classes
        self.rows = found.rows
        self.notes = found.notes
        self.max_length = max_length
        self._seed = seed
        self._texts = found.texts
        self._labels = torch.tensor(found.labels)
        self._shown = torch.tensor(found.shown)
        # What a teacher sees of a text depends on where it is cut off, so the address does too.
        self._keys = [key(f"{max_length} {text}") for text in self._texts]
        self._tokenizer: Any = None
        self._encoded: dict[int, tuple[Any, dict[str, list[int]]]] = {}

    @property
    def texts(self) -> tuple[str, ...]:
        """The training texts, labelled or not: all that a student may be fitted to."""
        return tuple(self._texts[row] for row in self.rows["train"])

    @property
    def labelled(self) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """The texts whose labels may be learned from, and those labels."""
        rows = self.rows["labelled"]
        return tuple(self._texts[r] for r in rows), tuple(int(self._labels[r]) for r in rows)

    @property
    def has_pool(self) -> bool:
        """Whether there are training texts without a label."""
        return len(self.rows["labelled"]) < len(self.rows["train"])

    def size(self, part: str) -> int:
        """The number of examples of a part of the data."""
        return len(self._part(part))

    def load(
        self,
        name: str | nn.Module,
        *,
        new_head: bool = False,
        partly: bool = False,
        threads: int = 1,
    ) -> nn.Module:
        """A sequence classifier for this task's classes, with its tokenizer as `.tokenizer`.

        name: a `transformers` folder or hub name, `package:NAME` for weights that an installed
            package carries, an .onnx, .xml, .pte or .keras file, a Keras model on the torch
            backend, or the user's own module called as `model(input_ids=..., attention_mask=...)`
        new_head: replace a head that was trained for other classes
        partly: take a model of `transformers` that knows only some of the classes too; its logits
            of all others are -inf
        threads: of the runtime, where it is an exported file
        Raises ModelError where the model can't be had or does not fit.
        """
        if isinstance(name, str):
            model = networks.load(
                name, self.classes, new_head=new_head, partly=partly, threads=threads
            )
        else:
            model = networks.adopt(name, self._tokenizer)
        networks.check_length(model, self.max_length)
        self._tokenizer = self._tokenizer or model.tokenizer
        return model

    def batches(
        self, part: str = "train", *, batch_size: int = 32, seed: int | None = None
    ) -> Batches:
        """An endless, seeded, resumable stream over `train` or `labelled`."""
        return Batches(
            self._batch,
            self._part(part),
            [len(text) for text in self._texts],
            batch_size=batch_size,
            seed=self._seed if seed is None else seed,
        )

    def sweep(self, part: str, *, batch_size: int = 64) -> Iterator[Batch]:
        """Every example of a part once, the like in length together."""
        rows = sorted(self._part(part), key=lambda row: (len(self._texts[row]), row))
        for start in range(0, len(rows), batch_size):
            yield self._batch(rows[start : start + batch_size])

    def forward(self, model: nn.Module, batch: Batch, layers: Sequence[str] = ()) -> Knowledge:
        """What a model makes of a batch: logits (rows, classes) and the features of some layers."""
        inputs = self.encode(model, batch.inputs)
        mask = inputs["attention_mask"]
        with tapped(model, layers) as heard:
            logits = networks.logits(model(**inputs))
        if logits.shape != (len(batch), len(self.classes)):
            raise ModelError(
                f"{type(model).__name__} gave answers of shape {tuple(logits.shape)} for "
                f"{len(batch)} texts; this task has {len(self.classes)} classes."
            )
        return Knowledge(logits.float(), heard(mask), mask)

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
            raise DataError(f"The part {part!r} has texts without a label; score on another.")
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
            logits = self.forward(model, batch).logits.cpu()
            by_key.update(zip(batch.keys, logits, strict=True))
        model.train(training)
        return torch.stack([by_key[self._keys[row]] for row in self._part(part)])

    def texts_of(self, part: str) -> tuple[str, ...]:
        """The texts of a part, in the order of `rows[part]`."""
        return tuple(self._texts[row] for row in self._part(part))

    def example(self, model: nn.Module) -> Mapping[str, Tensor]:
        """The model's inputs for one training text of median length."""
        return self.encode(model, [self._median])

    def calibration(self, model: nn.Module) -> Iterator[Mapping[str, Tensor]]:
        """The model's inputs for every training text once, in a fixed order, 32 to a batch."""
        for batch in self._shuffled("train"):
            yield self.encode(model, batch.inputs)

    def losses(self, model: nn.Module) -> Iterator[Tensor]:
        """What a model loses on each batch of 32 labelled training texts, with the graph."""
        for batch in self._shuffled("labelled"):
            yield self.loss(self.forward(model, batch), batch)

    def _shuffled(self, part: str, batch_size: int = 32) -> Iterator[Batch]:
        order = np.random.default_rng(self._seed).permutation(self._part(part)).tolist()
        for start in range(0, len(order), batch_size):
            yield self._batch(order[start : start + batch_size])

    def encode(self, model: nn.Module, texts: Sequence[str]) -> dict[str, Tensor]:
        """Token ids and mask, each (rows, length), by the model's own tokenizer and device."""
        tokenizer = tokenizing.tokenizer_of(model)
        blank = tokenizer.pad_token_id or 0
        _, known = self._encoded.setdefault(id(tokenizer), (tokenizer, {}))
        if new := [text for text in dict.fromkeys(texts) if text not in known]:
            ids = tokenizer(new, truncation=True, max_length=self.max_length)["input_ids"]
            # A text of no token becomes one of padding that counts as real: nothing divides by 0.
            known.update((text, row or [blank]) for text, row in zip(new, ids, strict=True))
        rows = [known[text] for text in texts]
        ids = torch.full((len(rows), max(map(len, rows))), blank)
        mask = torch.zeros_like(ids)
        for n, row in enumerate(rows):
            ids[n, : len(row)] = torch.tensor(row, dtype=torch.long)
            mask[n, : len(row)] = 1
        device = networks.device_of(model)
        return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}

    def preprocessing(self, model: nn.Module) -> dict[str, Any]:
        """What decides, beside the weights, what a model makes of a text."""
        return {
            "tokenizer": tokenizing.digest(tokenizing.tokenizer_of(model)),
            "max_length": self.max_length,
            "classes": list(self.classes),
        }

    def digest(self) -> str:
        """A hash of the data and its splits: what a trained teacher depends on."""
        state = hashlib.sha256()
        for part in ("labelled", "train", "validation"):
            for row in self.rows[part]:
                state.update(f"{part} {self._keys[row]} {int(self._shown[row])}\n".encode())
        return state.hexdigest()[:16]

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the model's tokenizer beside it."""
        tokenizing.tokenizer_of(model).save_pretrained(folder)

    def _part(self, name: str) -> tuple[int, ...]:
        if name not in self.rows:
            raise DataError(f"There is no part {name!r} of the data; {nearest(name, self.rows)}")
        return self.rows[name]

    def _batch(self, rows: Sequence[int]) -> Batch:
        return Batch(
            tuple(self._texts[row] for row in rows),
            self._shown[list(rows)],
            tuple(self._keys[row] for row in rows),
        )


def _typical(texts: Sequence[str]) -> str:
    """The text of median length."""
    ordered = sorted(texts, key=lambda text: (len(text.split()), len(text)))
    if not ordered:
        raise DataError("There is no training text left; lower `validation`.")
    return ordered[len(ordered) // 2]


def _macro_f1(predicted: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> float:
    """The mean over classes of 2 TP / (2 TP + FP + FN); classes that never occur are left out."""
    size = int(max(predicted.max(), truth.max())) + 1
    hits = np.bincount(truth[predicted == truth], minlength=size)
    either = np.bincount(truth, minlength=size) + np.bincount(predicted, minlength=size)
    return float((2 * hits[either > 0] / either[either > 0]).mean())
