"""Word pieces that the data never uses, gone from tokenizer and embeddings."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def vocabulary(model: nn.Module, cut: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Only the word pieces that the training texts need; other words are spelled with those.

    On the training texts the answers stay what they are. The tokenizer is rewritten to match, and
    a model of `transformers` loads again with it.

    cut: does so for the recipe's texts (a student's `vocabulary: data` does it before training)

    Returns a copy. Raises ModelError where there is no tokenizer, or the model can't be cut.
    """
    return cut(model)
