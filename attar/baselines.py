"""What the student is compared with: the same student, the same steps, without its teacher."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from attar import distill, teach
from attar.errors import DataError, MissingExtra, RecipeError
from attar.types import Batch, Lesson

__all__ = ["label_smoothing", "labels_only", "pseudo_labels", "reward_only"]

Scheme = Callable[..., Iterable[Lesson]]
"""From (batches, student, engine, steps) to lessons."""


Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Arm:
    """One training of the student: on which part of the data, by which scheme, for which losses.

    needs_pool: whether it differs from another arm only where there are unlabelled texts
    made: the compressors that the network came through before, with their options
    """

    name: str
    part: str
    scheme: Scheme
    losses: tuple[distill.Term, ...] = field(default=())
    needs_pool: bool = False
    made: tuple[Any, ...] = ()


def labels_only(loss: Loss) -> Arm:
    """The true labels alone: what the student reaches without anybody's help."""
    return Arm("labels_only", "labelled", untaught, (distill.term(loss),))


def label_smoothing(loss: Loss, *, smoothing: float = 0.1) -> Arm:
    """The true labels, smoothed: softness without a teacher (Szegedy et al. 2016).

    smoothing: probability spread evenly over all classes
    """
    smoothed = distill.term(partial(loss, label_smoothing=smoothing))
    return Arm("label_smoothing", "labelled", untaught, (smoothed,))


def pseudo_labels(loss: Loss, scheme: Scheme) -> Arm:
    """The teacher's hard answers in place of the labels nobody gave: is its softness worth more?"""

    def hard(*training: Any) -> Iterable[Lesson]:
        return teach.pseudo_labels(scheme(*training))

    return Arm("pseudo_labels", "train", hard, (distill.term(loss),), needs_pool=True)


def reward_only(terms: Sequence[distill.Term], rewarded: Scheme | None) -> Arm:
    """The student's own reward and nobody's help, for as many steps of the environment.

    terms: the recipe's losses, of which those stay that need no teacher
    rewarded: the recipe's scheme without its teacher, where the student acts in it
    Raises RecipeError where it does not act, or every loss needs a teacher.
    """
    own = tuple(term for term in terms if not term.needs_teacher)
    if rewarded is None or not own:
        raise RecipeError(
            "The baseline reward_only is for `teach: rewarded` and a loss by reward, policy.ppo."
        )
    return Arm("reward_only", "train", rewarded, own)


def untaught(batches: Iterable[Batch], *_training: Any) -> Iterable[Lesson]:
    """The scheme in which nobody teaches."""
    return teach.alone(batches)


class _Labelled(Protocol):
    @property
    def labelled(self) -> tuple[tuple[str, ...], tuple[int, ...]]: ...

    def texts_of(self, part: str) -> tuple[str, ...]: ...

    def judge(self, predicted: np.ndarray[Any, Any], part: str) -> dict[str, float]: ...


def bag_of_words(task: _Labelled, part: str) -> dict[str, Any]:
    """TF-IDF of words and pairs with logistic regression on the same labels, as a row's figures.

    A word is a run of letters and digits, and every other sign is one: "card?" is a word and a
    sign, so that the floor is as high as it honestly can be. `answer` classifies the text of
    median length. Raises DataError where nothing can be learned from the labelled texts.
    """
    try:
        from sklearn import __version__
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
    except ImportError as error:
        raise MissingExtra("scikit-learn", "text", "the bag_of_words floor") from error
    texts, labels = task.labelled
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+|[^\w\s]")
    linear = LogisticRegression(C=10.0, max_iter=1000)
    floor = make_pipeline(words, linear)
    start = time.perf_counter()
    try:
        floor.fit(texts, labels)
    except ValueError as error:
        raise DataError(
            f"bag_of_words can learn nothing from the labelled texts: {error}"
        ) from error
    seconds = time.perf_counter() - start
    predicted = floor.predict(task.texts_of(part))
    metrics = task.judge(predicted, part)
    learned = (linear.coef_, linear.intercept_, words.idf_)
    return {
        "runtime": f"scikit-learn {__version__}",
        "score": metrics["score"],
        "metrics": {name: value for name, value in metrics.items() if name != "score"},
        "parameters": sum(int(each.size) for each in learned),
        "size_bytes": sum(int(each.nbytes) for each in learned),
        "seconds": seconds,
        "predicted": predicted,
        "answer": partial(floor.predict, [sorted(texts, key=len)[len(texts) // 2]]),
    }
