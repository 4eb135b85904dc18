"""The CNN student: convolutions over the embeddings of the teacher's pieces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.students import vocabulary as words
from attar.students.vocabulary import Vocabulary


def cnn(
    texts: Sequence[str],
    classes: list[str],
    teacher: nn.Module,
    max_length: int,
    *,
    width: int = 128,
    kernels: Sequence[int] = (2, 3, 4),
    embedding: int | Literal["teacher"] = 128,
    vocabulary: Vocabulary = "data",
    dropout: float = 0.1,
) -> nn.Module:
    """A CNN over the teacher's pieces, max pooled (Kim 2014).

    width: channels of each kernel
    kernels: how many tokens each of the convolutions sees at once
    embedding: width of the embeddings, or `teacher`: start from the teacher's own
    vocabulary: `data` gives embeddings only to the pieces that `texts` need
    """
    tokenizer, kept = words.chosen(teacher, texts, vocabulary, max_length)
    size = words.rows(teacher, kept).shape[1] if embedding == "teacher" else embedding
    student = Cnn(
        tokenizer,
        classes,
        len(kept),
        width=width,
        kernels=list(kernels),
        embedding=size,
        dropout=dropout,
    )
    if embedding == "teacher":
        student.embedding.weight.data.copy_(words.rows(teacher, kept))
    return student


class Cnn(nn.Module):
    """Embedding, convolutions side by side, max over the places of each, linear.

    `forward` takes ids and mask, both (rows, length) int64 and padded on the right, and gives
    logits (rows, classes). A text shorter than a kernel is seen once, with zeros after its end.
    """

    def __init__(
        self,
        tokenizer: Any,
        classes: list[str],
        vocabulary_size: int,
        *,
        width: int,
        kernels: list[int],
        embedding: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.recipe = {
            "cnn": {
                "width": width,
                "kernels": kernels,
                "embedding": embedding,
                "dropout": dropout,
            },
            "classes": list(classes),
            "vocabulary_size": vocabulary_size,
        }
        self.kernels = kernels
        self.embedding = nn.Embedding(vocabulary_size, embedding)
        self.convolutions = nn.ModuleList(nn.Conv1d(embedding, width, size) for size in kernels)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width * len(kernels), len(classes))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        real = attention_mask.unsqueeze(-1).bool()
        embedded = self.dropout(self.embedding(input_ids)) * real
        padded = F.pad(embedded.transpose(1, 2), (0, max(self.kernels)))
        lengths = attention_mask.sum(dim=1, keepdim=True)
        highest = [
            _highest(F.relu(convolution(padded)), lengths - size)
            for size, convolution in zip(self.kernels, self.convolutions, strict=True)
        ]
        logits: Tensor = self.head(self.dropout(torch.cat(highest, dim=-1)))
        return logits


def _highest(answers: Tensor, last: Tensor) -> Tensor:
    """The greatest answer (rows, width) from the first place to the last inside each text."""
    places = torch.arange(answers.shape[2], device=answers.device).unsqueeze(0)
    inside = places <= last.clamp(min=0)
    # Nothing is below zero after the relu, so zero takes a place out of the maximum.
    return (answers * inside.unsqueeze(1)).amax(dim=2)
