"""The floor without any network, and the arms that train without a teacher."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch

from attar.baselines import bag_of_words, label_smoothing, labels_only, pseudo_labels
from attar.errors import DataError, MissingExtra
from attar.types import Batch, Knowledge, Lesson

LEARNED = {
    "my card was stolen": 0,
    "the card is broken": 0,
    "a new card please": 0,
    "transfer has failed": 1,
    "transfer money abroad": 1,
    "cancel the transfer": 1,
}


class Texts:
    """As much of a task as the floor asks for."""

    def __init__(self, learned: dict[str, int], asked: dict[str, int]) -> None:
        self.labelled = (tuple(learned), tuple(learned.values()))
        self.asked = asked
        self.predicted: Any = None

    def texts_of(self, part: str) -> tuple[str, ...]:
        assert part == "test"
        return tuple(self.asked)

    def judge(self, predicted: Any, part: str) -> dict[str, float]:
        assert part == "test"
        self.predicted = predicted
        right = float(np.mean(predicted == np.array(list(self.asked.values()))))
        return {"score": right, "accuracy": right, "examples": len(predicted)}


def test_the_floor_learns_words_from_the_labels_and_gives_a_rows_figures() -> None:
    task = Texts(LEARNED, {"where is my card": 0, "the transfer is late": 1})
    floor = bag_of_words(task, "test")
    assert floor["score"] == 1.0
    assert floor["metrics"] == {"accuracy": 1.0, "examples": 2}
    assert floor["runtime"].startswith("scikit-learn ")
    assert floor["seconds"] > 0
    # The median of the learned texts by length is "transfer has failed".
    assert floor["answer"]().tolist() == [1]


def test_the_floor_counts_what_it_learned() -> None:
    floor = bag_of_words(Texts({"a b": 0, "c": 1, "a c": 2}, {"a": 0}), "test")
    # The words a, b, c, "a b", "a c": a weight for each class and one of its own; an intercept.
    assert floor["parameters"] == 5 * 3 + 5 + 3
    assert floor["size_bytes"] == 8 * floor["parameters"]


def test_the_floor_answers_for_unseen_words_empty_texts_and_single_words() -> None:
    task = Texts(LEARNED, {"xylophone": 0, "": 0, "card": 0, "transfer": 1, "CARD?": 0})
    bag_of_words(task, "test")
    assert len(task.predicted) == 5
    assert set(task.predicted.tolist()) <= {0, 1}
    assert task.predicted[2:].tolist() == [0, 1, 0]


def test_a_sign_after_a_word_does_not_hide_the_word() -> None:
    learned = {"card?": 0, "my card!": 0, "transfer?": 1, "my transfer!": 1}
    task = Texts(learned, {"card": 0, "transfer": 1})
    assert bag_of_words(task, "test")["score"] == 1.0


def test_the_floor_reads_other_scripts_and_signs() -> None:
    learned = {"Überweisung fehlt": 0, "карта украдена": 1, "カード": 2, "🙂": 3}
    asked = {"meine überweisung": 0, "КАРТА": 1, "カード ?": 2, "🙂🙂": 3}
    assert bag_of_words(Texts(learned, asked), "test")["score"] == 1.0


def test_the_same_text_under_two_labels_is_a_tie_that_does_not_stop_the_floor() -> None:
    texts = ("card", "card", "transfer", "transfer")
    task = Texts({}, {"card": 0})
    task.labelled = (texts, (0, 1, 0, 1))
    bag_of_words(task, "test")
    assert task.predicted[0] in (0, 1)


@pytest.mark.parametrize("learned", [{"a card": 0, "my card": 0}, {"": 0, " ": 1}])
def test_a_floor_with_nothing_to_learn_says_so(learned: dict[str, int]) -> None:
    with pytest.raises(DataError, match="bag_of_words can learn nothing from the labelled texts"):
        bag_of_words(Texts(learned, {"a": 0}), "test")


def test_the_floor_names_the_extra_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtra, match=r'scikit-learn: pip install "attar\[text\]"'):
        bag_of_words(Texts(LEARNED, {"a": 0}), "test")


def loss(knowledge: Knowledge, batch: Batch, *, label_smoothing: float = 0.0) -> torch.Tensor:
    return knowledge.logits.sum() * label_smoothing + len(batch)


def lesson() -> Lesson:
    batch = Batch(("a", "b"), torch.tensor([0, 1]), ("1", "2"))
    return Lesson(batch, Knowledge(torch.tensor([[0.0, 9.0], [0.0, 9.0]])))


def test_only_the_baseline_of_hard_answers_needs_a_pool_of_texts() -> None:
    arms = [labels_only(loss), label_smoothing(loss), pseudo_labels(loss, lambda _: [lesson()])]
    assert [arm.name for arm in arms] == ["labels_only", "label_smoothing", "pseudo_labels"]
    assert [arm.needs_pool for arm in arms] == [False, False, True]
    assert [arm.part for arm in arms] == ["labelled", "labelled", "train"]


def test_baselines_on_labels_have_no_teacher() -> None:
    for arm in (labels_only(loss), label_smoothing(loss)):
        (given,) = arm.scheme([lesson().batch])
        assert given.teacher is None
        assert given.batch.labels.tolist() == [0, 1]


def test_smoothing_is_what_sets_the_two_baselines_on_labels_apart() -> None:
    given = lesson()
    found = [
        arm.losses[0].function(given.teacher, given.batch)
        for arm in (labels_only(loss), label_smoothing(loss, smoothing=0.5))
    ]
    assert [float(each) for each in found] == [2.0, 11.0]


def test_hard_answers_fill_in_labels_in_place_of_the_teachers_knowledge() -> None:
    unlabelled = Lesson(Batch(("a", "b"), torch.tensor([-100, -100]), ("1", "2")), lesson().teacher)
    (given,) = pseudo_labels(loss, lambda _: [unlabelled]).scheme([])
    assert given.batch.labels.tolist() == [1, 1]
    assert given.teacher is None
