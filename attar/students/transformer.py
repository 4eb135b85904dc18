"""Transformer students: some layers of the teacher (DistilBERT's way), or a fresh small BERT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import nn

from attar.depth import with_layers
from attar.errors import MissingExtra, ModelError
from attar.students import vocabulary as words
from attar.students.vocabulary import Vocabulary


def layers(
    teacher: nn.Module,
    texts: Sequence[str],
    *,
    keep: list[int] | int = 1,
    vocabulary: Vocabulary = "teacher",
    head: bool = True,
) -> nn.Module:
    """Some of the teacher's own layers, with its embeddings and its head (DistilBERT, Sanh 2019).

    keep: how many layers, evenly spread from the first to the last (6 of 12 are DistilBERT's
        0, 2, 4, 7, 9, 11; 1 is the first), or the indexes of the layers, in the order wanted
    vocabulary: `data` cuts the pieces that `texts` never use, see `vocabulary.cut`
    head: copy the classification head too; otherwise it starts at random

    The student is of the teacher's class, so the folder it is saved to loads without attar. The
    teacher stays as it is. Raises ModelError where the layers can't be told apart or don't exist.
    """
    source: Any = teacher
    try:
        total: int = source.config.num_hidden_layers
    except AttributeError:
        raise ModelError(
            f"{type(teacher).__name__} is no transformers encoder to take layers from: "
            "use the encoder student"
        ) from None
    words.tokenizer_of(teacher)
    student: Any = with_layers(teacher, _indexes(keep, total))
    if not head:
        _begin_head_(student)
    return words.cut(student, texts) if vocabulary == "data" else cast(nn.Module, student)


def encoder(
    texts: Sequence[str],
    classes: list[str],
    teacher: nn.Module,
    max_length: int,
    *,
    layers: int = 2,
    width: int = 128,
    heads: int = 2,
    intermediate: int | None = None,
    vocabulary: Vocabulary = "data",
    dropout: float = 0.1,
) -> nn.Module:
    """A fresh small BERT classifier on the teacher's tokenizer (Turc 2019: layers, width, heads).

    intermediate: width of the feed-forward layers; 4 * width unless told
    vocabulary: `data` gives embeddings only to the pieces that `texts` need

    Raises ModelError where the heads don't divide the width.
    """
    try:
        from transformers import BertConfig, BertForSequenceClassification
    except ImportError:
        raise MissingExtra("transformers", "text", "the encoder student") from None

    if width % heads:
        raise ModelError(f"{heads} heads do not divide a width of {width}")
    tokenizer, kept = words.chosen(teacher, texts, vocabulary, max_length)
    config = BertConfig(
        vocab_size=len(kept),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width if intermediate is None else intermediate,
        max_position_embeddings=max_length,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        pad_token_id=tokenizer.pad_token_id,
        id2label=dict(enumerate(classes)),
        label2id={name: label for label, name in enumerate(classes)},
        attn_implementation="eager",
    )
    student = BertForSequenceClassification(config)
    student.tokenizer = tokenizer
    return cast(nn.Module, student)


def _indexes(keep: list[int] | int, total: int) -> list[int]:
    """The layers to keep, as indexes."""
    if isinstance(keep, int):
        if not 1 <= keep <= total:
            raise ModelError(f"keep: {keep} of {total} layers; choose 1 to {total}")
        return [round(i * (total - 1) / max(keep - 1, 1)) for i in range(keep)]
    if not keep or len(set(keep)) < len(keep) or not set(keep) <= set(range(total)):
        raise ModelError(f"keep: {keep}; choose different layers from 0 to {total - 1}")
    return list(keep)


def _begin_head_(student: Any) -> None:
    """Give all that is not of the body the weights of a model that has not been trained."""
    fresh = type(student)(student.config).state_dict()
    body = f"{student.base_model_prefix}."
    new = {name: weight for name, weight in fresh.items() if not name.startswith(body)}
    student.load_state_dict(new, strict=False)
