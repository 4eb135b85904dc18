"""Text classification: sentences in, one of the named classes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attar.errors import DataError
from attar.store import key
from attar.tasks.classes import Classification
from attar.tasks.loading import device_of
from attar.tasks.sampling import Batches
from attar.tasks.splitting import Split, split
from attar.tasks.text import networks, reading, tokenizing
from attar.tasks.text.inventing import invent
from attar.types import Batch, Share


class classification(Classification):  # noqa: N801  (a recipe names it)
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
    tag = "text-classification"
    noun = "texts"
    beside = "tokenizer"

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

    def texts_of(self, part: str) -> tuple[str, ...]:
        """The texts of a part, in the order of `rows[part]`."""
        return tuple(self._texts[row] for row in self._part(part))

    def example(self, model: nn.Module) -> Mapping[str, Tensor]:
        """The model's inputs for one training text of median length."""
        return self.encode(model, [self._median])

    def encode(self, model: nn.Module, inputs: Sequence[str]) -> dict[str, Tensor]:
        """Token ids and mask, each (rows, length), by the model's own tokenizer and device."""
        tokenizer = tokenizing.tokenizer_of(model)
        blank = tokenizer.pad_token_id or 0
        _, known = self._encoded.setdefault(id(tokenizer), (tokenizer, {}))
        if new := [text for text in dict.fromkeys(inputs) if text not in known]:
            ids = tokenizer(new, truncation=True, max_length=self.max_length)["input_ids"]
            # A text of no token becomes one of padding that counts as real: nothing divides by 0.
            known.update((text, row or [blank]) for text, row in zip(new, ids, strict=True))
        rows = [known[text] for text in inputs]
        ids = torch.full((len(rows), max(map(len, rows))), blank)
        mask = torch.zeros_like(ids)
        for n, row in enumerate(rows):
            ids[n, : len(row)] = torch.tensor(row, dtype=torch.long)
            mask[n, : len(row)] = 1
        device = device_of(model)
        return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}

    def preprocessing(self, model: nn.Module) -> dict[str, Any]:
        """What decides, beside the weights, what a model makes of a text."""
        return {
            "tokenizer": tokenizing.digest(tokenizing.tokenizer_of(model)),
            "max_length": self.max_length,
            "classes": list(self.classes),
        }

    @property
    def facts(self) -> dict[str, Any]:
        """The classes, and where texts are cut off."""
        return {"max_length": self.max_length, "classes": list(self.classes)}

    @property
    def limit(self) -> str:
        return f"It was made for texts of up to {self.max_length} tokens."

    @property
    def offers(self) -> Mapping[str, Any]:
        """The training texts and where they are cut off."""
        return {"texts": self.texts, "max_length": self.max_length}

    def told(self, part: str, row: int) -> dict[str, Any]:
        """The text and its key."""
        number = self._part(part)[row]
        return {"input": self._texts[number], "key": self._keys[number]}

    def pieces(self, inputs: Sequence[str]) -> int:
        """The words of the text, whatever a tokenizer makes of them."""
        return len(inputs[0].split())

    def seen(self, inputs: Sequence[str], kept: Tensor) -> tuple[str, ...]:
        """The text with some of its words alone."""
        words = inputs[0].split()
        rows = kept.tolist()
        return tuple(" ".join(w for w, k in zip(words, row, strict=True) if k) for row in rows)

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the model's tokenizer beside it."""
        tokenizing.tokenizer_of(model).save_pretrained(folder)

    def _ordered(self, part: str) -> Sequence[int]:
        return sorted(self._part(part), key=lambda row: (len(self._texts[row]), row))

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
