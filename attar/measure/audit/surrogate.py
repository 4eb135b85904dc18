"""How far a small decision tree can stand in for a model: whether its rule can be told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from attar.errors import MissingExtra
from attar.measure.audit.answers import Array

SIDE = 16
"""Pictures are shown to the tree at most so many pixels high and wide."""

Inputs = Sequence[str] | Tensor
Features = Callable[[Any], Any]


def fidelity(shown: Inputs, said: Array, asked: Inputs, wanted: Array, *, depth: int) -> float:
    """The share of unseen answers of a model that a tree fitted to other answers gives too.

    shown, said: the inputs it is fitted to, texts or pictures (rows, channels, height, width), and
        the model's answers to them as numbers of classes
    asked, wanted: the same of inputs that it has not seen
    depth: of the tree
    Source: Craven and Shavlik, Extracting Tree-Structured Representations of Trained Networks,
        NeurIPS 1995.
    Raises MissingExtra without scikit-learn.
    """
    try:
        from sklearn.tree import DecisionTreeClassifier
    except ImportError as error:
        raise MissingExtra("scikit-learn", "audit", "the surrogate of an audit") from error
    first, second = _words() if not isinstance(shown, Tensor) else (_pixels, _pixels)
    tree = DecisionTreeClassifier(max_depth=depth, random_state=0).fit(first(shown), said)
    return float((tree.predict(second(asked)) == wanted).mean())


def _words() -> tuple[Features, Features]:
    """What tells which words a text has: first of those texts that the words are learned from."""
    from sklearn.feature_extraction.text import CountVectorizer

    words = CountVectorizer(token_pattern=r"\w+|[^\w\s]", binary=True)
    return words.fit_transform, words.transform


def _pixels(pictures: Any) -> Array:
    height, width = pictures.shape[2:]
    size = min(SIDE, height), min(SIDE, width)
    small: Array = F.adaptive_avg_pool2d(pictures.float(), size).flatten(1).numpy()
    return small
