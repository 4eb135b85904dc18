"""Language modelling: tokens in, the next token out; scored by held-out text."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attar import heads
from attar.errors import DataError, ModelError
from attar.heads import Foreign, Headed
from attar.store import key
from attar.taps import evaluating
from attar.tasks.loading import device_of
from attar.tasks.sampling import Batches
from attar.tasks.task import Task, Worths
from attar.tasks.text import causal, corpora, dictated, packing, scoring, tokenizing, writing
from attar.tasks.text.answers import Heard, asked
from attar.tasks.text.packing import Row
from attar.tasks.text.readings import Retold
from attar.types import IGNORE, Amount, Answer, Batch, Count, Knowledge, Question

AT_ONCE = 1024
"""Tokens that are asked about together where nothing else says how many."""

BESIDE = 2048
"""Tokens over which a model's answers are compared with its teacher's."""


class generation(Task):  # noqa: N801  (a recipe names it)
    """A causal language model over text, conversations, or prompts with their answers.

    Of conversations (`messages`) what the assistant says is learned, of `prompt` and `response` the
    response, of `text` everything. Documents never read one another, however they are packed.

    dataset: .txt, .jsonl (.gz), .json, .parquet or .csv, or a folder of these with a file per split
        (train, validation, test)
    tokenizer: of which model (folder, hub name, .gguf, `package:NAME`); the student reads it
    length: tokens of a row
    validation: share of the training documents held out for every choice, where no file is; of the
        test it is a fifth
    pack: put short documents side by side in a row of training; held-out text is never packed
    held: rows of each held-out part at most, spread evenly over it
    prompts: rows of the test that every model continues from their middle, for the report
    """

    kind = "text.generation"
    tag = "text-generation"
    score_name = "log-likelihood per token"
    noun = "rows of text"
    beside = "tokenizer"

    def __init__(
        self,
        seed: int = 0,
        *,
        dataset: str,
        tokenizer: str,
        length: Count = 256,
        validation: float = 0.1,
        pack: bool = True,
        held: Count | None = None,
        prompts: Amount = 0,
    ) -> None:
        if length < 2:
            raise DataError(f"length is {length}; a row needs at least 2 tokens.")
        self.tokenizer, self._named = causal.tokenizer_of(tokenizer), tokenizer
        self._dataset = dataset
        found = corpora.read(dataset, self.tokenizer)
        parts, self.notes = corpora.divided(found, seed, validation)
        self._documents = parts["train"]
        self.texts = tuple(each.text for each in self._documents)
        self.length, self.pack, self.prompts, self._seed = length, pack, prompts, seed
        self.swept = max(1, AT_ONCE // length)
        self._teacher: nn.Module | None = None
        self._answered: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._keep(parts, held)

    def _keep(self, parts: Mapping[str, list[corpora.Document]], held: int | None) -> None:
        """Take in the rows of all parts."""
        self._rows: list[Row] = []
        numbers: dict[str, tuple[int, ...]] = {}
        for part, documents in parts.items():
            train = part == "train"
            some = packing.rows(documents, self.tokenizer, self.length, pack=self.pack and train)
            if not some:
                raise DataError(f"The {part} split has no token to learn from.")
            if held is not None and not train and held < len(some):
                some = [some[n] for n in np.linspace(0, len(some) - 1, held).astype(int)]
            numbers[part] = tuple(range(len(self._rows), len(self._rows) + len(some)))
            self._rows += some
        self.rows = numbers | {"labelled": numbers["train"]}
        self._keys = [row.key for row in self._rows]

    @property
    def summary(self) -> str:
        tokens = {part: sum(len(self._rows[n]) for n in self.rows[part]) for part in self.rows}
        return (
            f"Text: {tokens['train']:,} tokens to learn from in {self.size('train'):,} rows of up "
            f"to {self.length}, {tokens['validation']:,} for validation, {tokens['test']:,} to "
            f"test; {self.vocabulary:,} different tokens."
        )

    @property
    def vocabulary(self) -> int:
        """How many tokens the tokenizer has; what a model answers beyond them is padding."""
        return len(self.tokenizer)

    @property
    def facts(self) -> dict[str, Any]:
        """The tokens, the template that conversations are put into, and how long a row is."""
        return {
            "tokenizer": tokenizing.digest(self.tokenizer),
            "template": key(self.tokenizer.chat_template or ""),
            "vocabulary": self.vocabulary,
            "max_length": self.length,
        }

    @property
    def tells(self) -> str:
        return f"{self.vocabulary:,} tokens"

    @property
    def limit(self) -> str:
        return (
            f"It was trained on texts of up to {self.length} tokens, and writes what is likely, "
            "whether it is true or not."
        )

    @property
    def offers(self) -> Mapping[str, Any]:
        """The training texts, the tokenizer, and how long a row is."""
        return {"texts": self.texts, "tokenizer": self.tokenizer, "max_length": self.length}

    def met(self, teacher: nn.Module) -> generation:
        """The same task, by which answers are also compared with those of its teacher."""
        there = copy.copy(self)
        foreign = isinstance(causal.reading(teacher), Retold)
        there._teacher, there._answered = None if foreign else teacher, {}
        return there

    def load(
        self,
        name: str | nn.Module,
        *,
        new_head: bool = False,
        partly: bool = False,  # noqa: ARG002  (tokens are known or they are not)
        threads: int = 1,
    ) -> nn.Module:
        """A causal language model that can be asked about the task's rows, with its `.tokenizer`.

        name: a `transformers` folder or hub name, a .gguf file, `package:NAME` for weights that an
            installed package carries, an .onnx file, or the user's own module, called as
            `model(input_ids=..., attention_mask=...)`
        threads: of the runtime, where it is an exported file
        Its tokenizer may be another: see `reading_of`. Raises ModelError where it can't be had.
        """
        if new_head:
            raise ModelError("A language model keeps its head; give `keep_head: true`, or `load`.")
        if isinstance(name, str):
            model = causal.load(name, threads, self.tokenizer if name == self._named else None)
        else:
            model = causal.adopt(name, self.tokenizer)
        causal.prepare_(model, self.tokenizer, self._rows, self.length)
        return model

    def batches(
        self, part: str = "train", *, batch_size: int = 32, seed: int | None = None
    ) -> Batches:
        """An endless, seeded, resumable stream over the rows to learn from."""
        drawn = self._seed if seed is None else seed
        lengths = [len(row) for row in self._rows]
        return Batches(self._batch, self._part(part), lengths, batch_size=batch_size, seed=drawn)

    def tokens(self, model: nn.Module) -> float:  # noqa: ARG002  (all models read the same)
        """Tokens of a row, the mean."""
        return float(np.mean([len(self._rows[n]) for n in self.rows["train"]]))

    def example(self, model: nn.Module) -> Mapping[str, Tensor]:
        """The model's inputs for the longest row of the test."""
        return self.encode(model, [self._rows[max(self.rows["test"], key=self._length)]])

    def encode(self, model: nn.Module, inputs: Sequence[Row]) -> dict[str, Tensor]:
        """Token ids with a mask, or with positions where documents are packed: (rows, length)."""
        own, device = causal.reading(model), device_of(model)
        if isinstance(own, Retold):
            return {name: each.to(device) for name, each in own.inputs(inputs).items()}
        ids, positions = packing.padded(inputs, self.tokenizer.pad_token_id or 0)
        ids = ids if own is None else own.ids(ids)
        # A place of padding is a document by itself, and so needs no mask.
        alone = all(len(row.ends) == 1 for row in inputs)
        beside = (
            {"attention_mask": packing.real(inputs, ids.shape[1])}
            if alone
            else {"position_ids": positions}
        )
        return {name: each.to(device) for name, each in ({"input_ids": ids} | beside).items()}

    def preprocessing(self, model: nn.Module) -> dict[str, Any]:
        """What decides what a model is shown: the rows, and how it reads them."""
        own = causal.reading(model)
        return self.facts | ({} if own is None else own.facts)

    def understood(self, model: nn.Module) -> str:
        """What proves that a model reads the task's rows, where not all its classes are theirs."""
        return causal.understood(model, self.tokenizer, [self._rows[n] for n in self.rows["train"]])

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the model's tokenizer beside it."""
        tokenizing.tokenizer_of(model).save_pretrained(folder)

    def forward(self, model: nn.Module, batch: Batch, layers: Sequence[str] = ()) -> Knowledge:
        """Logits (rows, length, vocabulary) of what comes after each token, and some features.

        They are `attar.heads.Headed`, not made yet, where the model does no more than its head; of
        a model that reads the text in tokens of its own `attar.heads.Foreign`.
        """
        if layers and isinstance(causal.reading(model), Retold):
            raise ModelError(
                f"{type(model).__name__} reads other tokens than the task's tokenizer writes, so "
                "its layers can't be compared token by token; take response.mined or response.uld."
            )
        answers, heard = self._asked(model, batch.inputs, layers)
        mask = packing.real(batch.inputs, max(map(len, batch.inputs))).to(answers.device)
        own = causal.reading(model)
        if own is not None:
            return Knowledge(own.answers(answers, batch.inputs), heard(mask), mask)
        # No text has a token beyond the tokenizer's own, so what stands there is padding.
        told = (
            answers[..., : self.vocabulary].float()
            if isinstance(answers, Tensor)
            else answers.first(self.vocabulary)
        )
        return Knowledge(told, heard(mask), mask)

    def _asked(
        self, model: nn.Module, rows: Sequence[Row], layers: Sequence[str] = ()
    ) -> tuple[Tensor | Headed, Heard]:
        """What a model answers at each token of its own inputs, over all its classes."""
        own = causal.reading(model)
        needs = self.vocabulary if own is None else own.needs
        return asked(model, self.encode(model, rows), layers, needs)

    def loss(self, knowledge: Knowledge, batch: Batch, *, label_smoothing: float = 0.0) -> Tensor:
        """Cross-entropy with the token that comes next, the mean over those to be foretold."""
        said = knowledge.logits
        if isinstance(said, Foreign):
            raise ModelError(
                "This model reads other tokens than the task's tokenizer writes, so it can't learn "
                "them; give the task the model's own tokenizer."
            )
        return heads.cross_entropy(said, batch.labels.to(said.device), label_smoothing)

    @torch.no_grad()
    def judged(self, model: nn.Module, part: str) -> tuple[Worths, dict[str, float]]:
        """Of each row its share of the log-likelihood per token, and what they come to.

        `score` is the mean log-likelihood of a token in nats, higher being better, and `perplexity`
        the exponential of its negative; `low` and `high` bound the score by the bootstrap over rows
        (95 %). `bits_per_byte` does not depend on the tokenizer. `accuracy` is how often the
        likeliest token comes. Beside a teacher, over some of the rows, `agreement` is how often its
        likeliest token is the same, and `kl` the mean divergence KL(teacher | model) in nats.

        A model that reads the text in tokens of its own tells it in as many nats as these take
        together; per token here means per token of the task's, as of all others. It has no
        `accuracy`, and nothing is told beside such a teacher.
        """
        found: dict[str, tuple[float, int, int]] = {}
        with evaluating(model):
            for batch in self.sweep(part):
                found |= zip(batch.keys, self._lost(model, batch), strict=True)
            foreign = isinstance(causal.reading(model), Retold)
            teacher = None if foreign else self._teacher
            beside = {} if teacher is None else self._compared(model, teacher, part)
        rows = self._part(part)
        written = sum(self._rows[n].written for n in rows)
        lost, right, count = np.array([found[self._keys[n]] for n in rows]).T
        each, figures = scoring.summed(lost, right, count, written)
        if foreign:
            del figures["accuracy"]
        return each, figures | beside

    def _compared(self, model: nn.Module, teacher: nn.Module, part: str) -> dict[str, float]:
        """How far a model answers as its teacher does, over some rows of a part."""
        rows = max(1, round(BESIDE / self.tokens(model)))
        whole = self.spread(part, min(rows, self.size(part)))
        batches = [
            whole.rows(n, min(n + self.swept, len(whole))) for n in range(0, len(whole), self.swept)
        ]
        if part not in self._answered:
            with evaluating(teacher):
                said = (self._said(teacher, each) for each in batches)
                # Half the memory, for an error far below what is told; of ties it would be above.
                self._answered[part] = [(each.half(), each.argmax(1)) for each in said]
        pairs = zip(batches, self._answered[part], strict=True)
        return scoring.beside((self._said(model, each), *its) for each, its in pairs)

    def write(
        self,
        model: nn.Module,
        batch: Batch,
        prompt: float,
        temperature: float,
        other: nn.Module | None = None,
        share: float = 0.0,
    ) -> Batch:
        """What a model writes behind the beginning of each document, which is to be learned.

        prompt: share of a document that stays; temperature: 0 for what is likeliest
        other: another model, with its share of the probability that each token is drawn by
        Raises ModelError where one of them can't write.
        """
        for each in (model, other or model):
            writing.check(each, own=causal.reading(each) is not None)
        helped = None if other is None else (other, share)
        how: dict[str, Any] = {"prompt": prompt, "temperature": temperature, "helped": helped}
        rows = writing.rewritten(model, batch.inputs, self.length, self.tokenizer, **how)
        return self._of(rows)

    def note(self, batch: Batch) -> dict[str, Any]:
        """Rows as tensors and lists, side by side."""
        return packing.noted(batch.inputs)

    def read(self, note: Mapping[str, Any]) -> Batch:
        """The batch of the rows that were noted."""
        return self._of(packing.read(note))

    def questions(
        self, prompt: float, most: int | None = None, by: dictated.By | None = None
    ) -> list[Question]:
        """What a teacher that is no network here is to go on from, as `dictated.questions` says."""
        asked = dictated.questions(
            self._documents, self.tokenizer, self.length, prompt=prompt, most=most, by=by
        )
        return list(asked)

    def heard(
        self, pairs: Iterable[tuple[Question, Answer]], top: int | None = None
    ) -> tuple[generation, dictated.Dictated]:
        """The same task, whose rows to learn from are what was answered; and what these rows are.

        top: how many likely tokens were asked for at each place; None where none
        """
        found = dictated.dictated(pairs, self.tokenizer, self.length, pack=self.pack, top=top)
        there = copy.copy(self)
        there._rows = [*self._rows, *found.rows]
        there._keys = [row.key for row in there._rows]
        there.rows = {**self.rows, "train": tuple(range(len(self._rows), len(there._rows)))}
        return there, found

    def verbatim(self, batch: Batch) -> Knowledge:
        """What a teacher would say that is sure of each token that comes."""
        longest = max(map(len, batch.inputs))
        sure = dictated.sure(batch.labels[:, :longest], self.vocabulary)
        return Knowledge(sure, mask=packing.real(batch.inputs, longest))

    def shown(self, models: Mapping[str, nn.Module]) -> dict[str, list[dict[str, Any]]]:
        """How every model goes on from the middle of some test rows, beside what stands there."""
        if not self.prompts:
            return {}
        rows = self.spread("test", min(self.prompts, self.size("test"))).inputs
        same = {name: each for name, each in models.items() if causal.reading(each) is None}
        return writing.tables(same, rows, self.tokenizer)

    def _lost(self, model: nn.Module, batch: Batch) -> list[tuple[float, int, int]]:
        """Of each row: nats that are lost, tokens whose likeliest came, and tokens."""
        own = causal.reading(model)
        if not isinstance(own, Retold):
            return scoring.lost(self.forward(model, batch), batch)
        lost = own.lost(self._asked(model, batch.inputs)[0], batch.inputs)
        counts = (batch.labels != IGNORE).sum(1).tolist()
        return [(nats, 0, count) for nats, count in zip(lost, counts, strict=True)]

    def _said(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits (tokens, vocabulary) where a token is to be foretold, on the CPU."""
        answers, _ = heads.at_labels(self.forward(model, batch).logits, batch.labels)
        return heads.dense(answers).cpu()

    def _ordered(self, part: str) -> Sequence[int]:
        return sorted(self._part(part), key=lambda row: (self._length(row), row))

    def _length(self, row: int) -> int:
        return len(self._rows[row])

    def _batch(self, rows: Sequence[int]) -> Batch:
        return self._of([self._rows[row] for row in rows])

    def _of(self, rows: Sequence[Row]) -> Batch:
        labels = np.stack([row.labels(self.length) for row in rows])
        return Batch(tuple(rows), torch.from_numpy(labels), tuple(row.key for row in rows))
