"""Promises that every scheme keeps, found by looking into the room; and what each adds to them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attar import distill, teach
from attar.engine import local
from attar.errors import RecipeError, StoreError
from attar.losses import response
from attar.resolve import ask, asks, names
from attar.taps import tapped
from attar.types import IGNORE, Batch, Knowledge, Lesson, Played

INPUTS, CLASSES, ROWS, SIZE = 4, 3, 20, 6
SCHEMES = names("attar.teach")
OF_THEIR_OWN = {
    "data_free": "makes inputs of its own",
    "distillm2": "gives what teacher and student write",
    "ensemble": "mixes what several say",
    "minillm": "gives what the student writes",
    "on_policy": "mixes in what the student writes",
    "rewarded": "is about what the student did itself",
    "student_driven": "mixes in what the student meets",
    "teacher_text": "gives what a teacher writes, and no knowledge of it",
    "uncertain": "asks about some rows only",
}
"""Schemes that don't hand on one teacher's answers to the batches as they are; test_schemes.py,
test_data_free.py, test_generation.py, test_on_policy.py, test_sequence_numbers.py,
test_rewarded.py and test_control_pipeline.py have theirs."""
WITH_TEACHER = sorted(
    name for name in SCHEMES if "teachers" in asks(SCHEMES[name]) and name not in OF_THEIR_OWN
)
LAYERS = ("body", "body@mean")


class Network(nn.Module):
    """Tokens (rows, length, inputs) to classes; `body` gives (rows, length, width)."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Linear(INPUTS, 5)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, inputs: Tensor, mask: Tensor) -> Tensor:
        states = torch.tanh(self.body(inputs)) * mask.unsqueeze(-1)
        answer: Tensor = self.head(self.dropout(states.sum(1)))
        return answer


def text(row: int) -> tuple[float, ...]:
    """An example: one to five numbers."""
    return tuple(((row * 37 + place * 11) % 23) / 23 for place in range(1 + row % 5))


def batch_of(rows: Sequence[int], labels: Sequence[int] | None = None) -> Batch:
    inputs = tuple(text(row) for row in rows)
    keys = tuple(hashlib.sha256(repr(each).encode()).hexdigest()[:32] for each in inputs)
    return Batch(inputs, torch.tensor(labels or [row % CLASSES for row in rows]), keys)


def epochs(many: int, size: int = SIZE) -> Iterator[Batch]:
    """All rows in another order each time, over and over."""
    for epoch in range(many):
        order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(epoch)).tolist()
        for start in range(0, ROWS, size):
            yield batch_of(order[start : start + size])


@dataclass
class Asked:
    """A forward pass that counts the rows it was asked for, and looks at how it was asked."""

    rows: list[str] = field(default_factory=list)
    training: set[bool] = field(default_factory=set)
    layers: Sequence[str] = LAYERS

    def __call__(self, model: nn.Module, batch: Batch, /) -> Knowledge:
        self.rows += batch.keys
        self.training |= {module.training for module in model.modules()}
        longest = max(map(len, batch.inputs))
        inputs, mask = torch.zeros(len(batch), longest, INPUTS), torch.zeros(len(batch), longest)
        for n, numbers in enumerate(batch.inputs):
            inputs[n, : len(numbers)] = torch.tensor(numbers)[:, None] * torch.arange(1, INPUTS + 1)
            mask[n, : len(numbers)] = 1
        with tapped(model, self.layers) as heard:
            logits = model(inputs, mask)
        return Knowledge(logits, heard(mask), mask.long())


class Stage:
    """Where a model acts, as a scheme sees it; here every text is what it meets."""

    def __init__(self, **_: Any) -> None:
        pass

    def play(self, *_: Any) -> Batch:
        none = torch.zeros(ROWS)
        return replace(batch_of(range(ROWS)), played=Played(none, none, none, none))

    def learn_(self, *_: Any) -> None:
        pass

    close = state_dict = load_state_dict = learn_


@dataclass
class House:
    """What a scheme may ask for."""

    folder: Path
    batches: Iterable[Batch] = field(default_factory=lambda: epochs(2))
    teacher: nn.Module = field(default_factory=lambda: Network(1))
    forward: Asked = field(default_factory=Asked)

    def lessons(self, name: str, **options: Any) -> Iterator[Lesson]:
        available = {
            "batches": self.batches,
            "student": Network(2),
            "teachers": [self.teacher],
            "forward": self.forward,
            "facts": {"max_length": 5},
            "cache": self.folder,
            "engine": local(precision="fp32", device="cpu"),
            "classes": ("a", "b", "c"),
            "make": Network,
            "judge": partial(distill.Objective, [distill.term(response.kl)]),
            "steps": 8,
            "examples": ROWS,
            "act": None,
            "write": lambda _model, batch, *_: batch,
            "note": vars,
            "read": lambda note: Batch(**note),
            "stage": Stage,
        }
        if name == "student_driven":
            available["steps"] = 10**6  # the student would act for the first time after a fifth
        if name == "data_free":
            options = {"examples": 8, "iterations": 2, **options}
            available |= numbers(self.batches)
        if name == "uncertain":
            self.forward.layers = ()  # the student has none of the teacher's
        if name == "stored":
            options = {"store": self.filled(), **options}
        return ask(partial(SCHEMES[name], **options), available)  # type: ignore[no-any-return]

    def filled(self, **options: Any) -> str:
        """A folder that holds a store of all the teacher knows."""
        folder, facts = self.folder / "alone", {"max_length": 5, "classes": ["a", "b", "c"]}
        with teach.open_store(folder, self.teacher, facts, **options) as known:
            teach.fill(known, epochs(1), self.teacher, Asked())
        return str(folder)


def numbers(batches: Iterable[Batch]) -> dict[str, Any]:
    """A house of numbers, each of a teacher's features normalized over the rows."""
    normed = nn.Sequential(nn.Linear(INPUTS, 5), nn.BatchNorm1d(5), nn.Linear(5, CLASSES))
    return {
        "batches": (replace(batch, inputs=torch.zeros(len(batch), INPUTS)) for batch in batches),
        "teachers": [normed],
        "forward": lambda model, batch: Knowledge(model(batch.inputs)),
    }


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def real(knowledge: Knowledge, path: str) -> Tensor:
    """A feature without its padding, in which anything may stand."""
    feature, mask = knowledge.features[path], knowledge.mask
    assert mask is not None
    return feature[mask.bool()] if feature.dim() == 3 else feature


every_scheme = pytest.mark.parametrize("name", sorted(SCHEMES))
every_teacher = pytest.mark.parametrize("name", WITH_TEACHER)


def test_the_room_has_the_schemes_it_says() -> None:
    assert {"alone", "data_free", "offline", "online", "stored"} <= SCHEMES.keys()
    assert {"offline", "online"} <= set(WITH_TEACHER)


@every_scheme
def test_a_scheme_gives_one_lesson_a_batch_in_order(name: str, house: House) -> None:
    house.batches = list(epochs(2))
    given = [lesson.batch for lesson in house.lessons(name)]
    many = 2 if name == "distillm2" else 1  # texts of teacher and student
    assert [len(batch) for batch in given] == [many * len(batch) for batch in house.batches]
    if name not in ("data_free", "rewarded"):
        assert [batch.keys for batch in given] == [many * batch.keys for batch in house.batches]


@every_scheme
def test_a_scheme_draws_no_batch_before_it_is_asked(name: str, house: House) -> None:
    drawn = []

    def batches() -> Iterator[Batch]:
        for batch in epochs(1):
            drawn.append(batch)
            yield batch

    house.batches = batches()
    lessons = house.lessons(name)
    assert drawn == []
    for n in (1, 2, 3):
        next(lessons)
        assert len(drawn) == n


@every_scheme
@pytest.mark.parametrize("on", [True, False])
def test_between_lessons_gradients_are_as_the_caller_had_them(
    name: str, on: bool, house: House
) -> None:
    with torch.set_grad_enabled(on):
        lessons = house.lessons(name)
        assert torch.is_grad_enabled() is on
        for _ in lessons:
            assert torch.is_grad_enabled() is on
        assert torch.is_grad_enabled() is on
    with torch.set_grad_enabled(on):
        early = house.lessons(name)
        next(early, None)
        del early
        assert torch.is_grad_enabled() is on


@every_teacher
def test_the_teachers_knowledge_carries_no_gradient(name: str, house: House) -> None:
    for lesson in house.lessons(name):
        assert lesson.teacher is not None
        parts = [lesson.teacher.logits, *lesson.teacher.features.values()]
        assert not any(part.requires_grad for part in parts)
        assert len(parts) == 1 + len(LAYERS)


@every_teacher
def test_the_teacher_is_asked_in_eval_mode_and_left_as_it_was(name: str, house: House) -> None:
    house.teacher.train()
    house.teacher.get_submodule("head").eval()
    before = [module.training for module in house.teacher.modules()]
    state = {name: tensor.clone() for name, tensor in house.teacher.state_dict().items()}
    for _ in house.lessons(name):
        assert [module.training for module in house.teacher.modules()] == before
    assert house.forward.training == {False}
    after = house.teacher.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in state.items())
    assert all(parameter.grad is None for parameter in house.teacher.parameters())
    assert all(parameter.requires_grad for parameter in house.teacher.parameters())


@every_teacher
def test_the_teacher_answers_each_row_of_its_own_batch(name: str, house: House) -> None:
    for lesson in house.lessons(name):
        assert lesson.teacher is not None
        expected = teach.ask(house.teacher, lesson.batch, Asked())
        torch.testing.assert_close(lesson.teacher.logits, expected.logits, atol=1e-5, rtol=0)
        for path in LAYERS:
            given, wanted = real(lesson.teacher, path), real(expected, path)
            torch.testing.assert_close(given, wanted, atol=1e-3, rtol=1e-3)
        assert lesson.teacher.mask is not None
        assert torch.equal(lesson.teacher.mask, expected.mask)


@every_teacher
@pytest.mark.parametrize("many", [0, 2])
def test_more_or_fewer_teachers_than_one_are_told(name: str, many: int, house: House) -> None:
    batches, forward = house.batches, house.forward
    lessons = SCHEMES[name](batches, [house.teacher] * many, forward)
    with pytest.raises(RecipeError, match=f"asks one teacher, not {many}"):
        next(lessons)


# --- online


def test_online_asks_in_every_epoch(house: House) -> None:
    assert len(list(house.lessons("online"))) == 8
    assert len(house.forward.rows) == 2 * ROWS


# --- offline


def test_offline_asks_for_each_example_exactly_once(house: House) -> None:
    house.batches = epochs(5)
    assert len(list(house.lessons("offline"))) == 20
    assert len(house.forward.rows) == ROWS
    assert len(set(house.forward.rows)) == ROWS


def test_offline_gives_what_online_gives(house: House) -> None:
    house.batches = list(epochs(1))
    live = list(house.lessons("online"))
    for again in range(2):
        kept = list(house.lessons("offline"))
        for one, other in zip(live, kept, strict=True):
            assert one.teacher is not None
            assert other.teacher is not None
            assert torch.equal(one.teacher.logits, other.teacher.logits), again
            assert other.teacher.logits.dtype == torch.float32
            for path in LAYERS:
                # Features are kept in half precision: 11 bits, and nothing below 6e-8.
                stored, live_one = real(other.teacher, path), real(one.teacher, path)
                torch.testing.assert_close(stored, live_one, rtol=2**-11, atol=6e-8)
            assert one.teacher.mask is not None
            assert torch.equal(one.teacher.mask, other.teacher.mask)


def test_offline_survives_re_opening(house: House) -> None:
    first = list(house.lessons("offline"))
    house.forward, house.batches = Asked(), epochs(2)
    second = list(house.lessons("offline"))
    assert house.forward.rows == []
    for one, other in zip(first, second, strict=True):
        assert one.teacher is not None
        assert other.teacher is not None
        assert torch.equal(one.teacher.logits, other.teacher.logits)


def test_offline_keeps_what_it_learned_when_it_is_dropped_half_way(house: House) -> None:
    lessons = house.lessons("offline")
    half = list(islice(lessons, 2))
    del lessons
    house.forward, house.batches = Asked(), epochs(1)
    list(house.lessons("offline"))
    known = {key for lesson in half for key in lesson.batch.keys}
    assert len(house.forward.rows) == ROWS - len(known)
    assert known.isdisjoint(house.forward.rows)


def test_offline_asks_once_for_a_row_that_stands_twice_in_a_batch(house: House) -> None:
    house.batches = [batch_of([3, 4, 3])]
    (lesson,) = house.lessons("offline")
    assert len(house.forward.rows) == 2
    assert lesson.teacher is not None
    assert torch.equal(lesson.teacher.logits[0], lesson.teacher.logits[2])


def test_offline_keeps_knowledge_where_it_is_told(house: House, tmp_path: Path) -> None:
    list(house.lessons("offline", store=str(tmp_path / "mine")))
    assert list((tmp_path / "mine").rglob("shard-*"))
    assert not (tmp_path / "knowledge").exists()
    house.batches = epochs(1)
    list(house.lessons("offline"))
    assert list((tmp_path / "knowledge").rglob("shard-*"))


def change_a_weight(house: House) -> None:
    with torch.no_grad():
        house.teacher.get_submodule("head").bias[0] += 1e-3  # type: ignore[index,operator]


def change_the_teacher(house: House) -> None:
    house.teacher = Network(5)


@pytest.mark.parametrize("change", [change_a_weight, change_the_teacher])
def test_another_teachers_knowledge_is_never_taken_for_this_ones(
    change: Callable[[House], None], house: House
) -> None:
    list(house.lessons("offline"))
    change(house)
    house.forward, house.batches = Asked(), epochs(1)
    lessons = list(house.lessons("offline"))
    assert len(house.forward.rows) == ROWS
    for lesson in lessons:
        assert lesson.teacher is not None
        expected = teach.ask(house.teacher, lesson.batch, Asked()).logits
        torch.testing.assert_close(lesson.teacher.logits, expected, atol=1e-5, rtol=0)


def test_other_facts_are_another_teacher(house: House) -> None:
    given = {"teachers": [house.teacher], "forward": house.forward, "cache": house.folder}
    for facts, asked in (({"n": 1}, ROWS), ({"n": 1}, 0), ({"n": 2}, ROWS)):
        house.forward.rows.clear()
        list(teach.offline(epochs(1), facts=facts, **given))  # type: ignore[arg-type]
        assert len(house.forward.rows) == asked, facts


def test_offline_keeps_as_exactly_as_it_is_told_and_each_way_by_itself(house: House) -> None:
    house.batches = list(epochs(1))
    live = list(house.lessons("online"))
    for options, error in (({"features": "int8"}, 0.01), ({"top": 2}, 1e-3), ({}, 1e-3)):
        house.forward = Asked()
        for again in range(2):
            kept = list(house.lessons("offline", **options))
            assert len(house.forward.rows) == ROWS, again
        for one, other in zip(live, kept, strict=True):
            assert one.teacher is not None
            assert other.teacher is not None
            # Of three classes the third has all that two leave, so nothing is lost.
            torch.testing.assert_close(one.teacher.logits, other.teacher.logits, atol=1e-5, rtol=0)
            for path in LAYERS:
                given, wanted = real(other.teacher, path), real(one.teacher, path)
                torch.testing.assert_close(given, wanted, atol=error, rtol=0)
    names = {folder.name.partition("-")[2] for folder in (house.folder / "knowledge").iterdir()}
    assert names == {"", "top2", "int8"}


def test_a_store_that_is_kept_in_its_own_way_is_found_by_it(house: House) -> None:
    assert teach.found_store(house.folder, house.teacher, {}) is None
    with teach.open_store(house.folder, house.teacher, {}, top=2, features="bf16") as known:
        teach.fill(known, epochs(1), house.teacher, house.forward)
    assert teach.found_store(house.folder, house.teacher, {}) is None
    found = teach.found_store(house.folder, house.teacher, {}, top=2, features="bf16")
    assert found is not None
    assert len(found) == ROWS


def test_filling_a_store_asks_for_what_it_lacks_and_tells_how_far_it_is(house: House) -> None:
    told: list[int] = []
    with teach.open_store(house.folder, house.teacher, {}) as known:
        batches = list(epochs(1))
        assert teach.fill(known, batches[:2], house.teacher, house.forward, told.append) == 12
        assert teach.fill(known, batches, house.teacher, house.forward, told.append) == 8
        assert len(known) == ROWS
    assert told == [6, 6, 6, 6, 6, 2]
    assert torch.is_grad_enabled()


def test_rows_of_a_tensor_can_be_asked_for_one_by_one(tmp_path: Path) -> None:
    def forward(model: nn.Module, batch: Batch, /) -> Knowledge:
        asked.append(batch.inputs[:, 0].tolist())
        return Knowledge(model(batch.inputs))

    asked: list[list[float]] = []
    x, keys = torch.arange(8.0).view(4, 2), tuple(f"{n:032x}" for n in range(4))
    whole = Batch(x, torch.zeros(4, dtype=torch.int64), keys)
    batches = [whole.rows(1, 2), whole]
    lessons = list(teach.offline(batches, [nn.Linear(2, 3)], forward, cache=tmp_path))
    assert asked == [[2.0], [0.0, 4.0, 6.0]]
    assert lessons[1].teacher is not None
    assert lessons[1].teacher.logits.shape == (4, 3)


# --- stored


def test_stored_gives_what_offline_gives_without_the_teacher(house: House) -> None:
    house.batches = list(epochs(1))
    kept = list(house.lessons("offline"))
    assert "teachers" not in asks(SCHEMES["stored"])
    for one, other in zip(kept, house.lessons("stored"), strict=True):
        assert one.teacher is not None
        assert other.teacher is not None
        assert torch.equal(one.teacher.logits, other.teacher.logits)
        for path in LAYERS:
            assert torch.equal(one.teacher.features[path], other.teacher.features[path])


def test_stored_names_the_example_that_is_missing(house: House) -> None:
    house.batches = [batch_of([3]), replace(batch_of([3, 4]), keys=("ab" * 16, "cd" * 16))]
    lessons = house.lessons("stored")
    next(lessons)
    with pytest.raises(StoreError) as refusal:
        next(lessons)
    assert f"knows nothing of the example ({text(3)[0]}" in str(refusal.value)
    assert "ab" * 16 in str(refusal.value)
    assert "teach: offline" in str(refusal.value)


def test_stored_sees_what_another_process_answers_meanwhile(house: House) -> None:
    folder = Path(house.filled()) / "more"
    with teach.open_store(folder, house.teacher, {"max_length": 5}) as known:
        teach.fill(known, [batch_of([0])], house.teacher, Asked())
        lessons = teach.stored([batch_of([0]), batch_of([1])], store=str(folder))
        next(lessons)
        teach.fill(known, [batch_of([1])], house.teacher, Asked())
        assert next(lessons).teacher is not None


@pytest.mark.parametrize(
    ("facts", "classes", "sentence"),
    [
        ({"max_length": 9}, None, "teacher.max_length is 5 there and 9 here"),
        (None, ("a", "b", "d"), "teacher.classes[2] is 'c' there and 'd' here"),
        (None, ("a", "b"), "teacher.classes is ['a', 'b', 'c'] there and ['a', 'b'] here"),
    ],
)
def test_stored_refuses_what_was_made_otherwise(
    house: House, facts: dict[str, Any] | None, classes: Sequence[str] | None, sentence: str
) -> None:
    with pytest.raises(StoreError) as refusal:
        next(teach.stored(epochs(1), facts, classes, store=house.filled()))
    assert sentence in str(refusal.value)


def test_stored_asks_which_where_a_folder_holds_several(house: House) -> None:
    folder = house.filled()
    assert next(teach.stored(epochs(1), store=folder)).teacher is not None
    house.filled(features="int8")
    with pytest.raises(StoreError, match=r"no store of knowledge: name one of .*-int8"):
        next(teach.stored(epochs(1), store=folder))


# --- alone, pseudo_labels


def test_alone_nobody_teaches(house: House) -> None:
    assert all(lesson.teacher is None for lesson in house.lessons("alone"))


def lesson_of(labels: Sequence[int], logits: Sequence[Sequence[float]]) -> Lesson:
    return Lesson(batch_of(range(len(labels)), labels), Knowledge(torch.tensor(logits)))


def test_pseudo_labels_fill_just_the_labels_that_are_not_known() -> None:
    logits = [[0.0, 1.0, 0.5], [3.0, 0.0, 0.0], [0.0, 0.0, 9.0]]
    given = lesson_of([2, IGNORE, IGNORE], logits)
    (lesson,) = teach.pseudo_labels([given])
    assert lesson.batch.labels.tolist() == [2, 0, 2]
    assert lesson.batch.labels.dtype == torch.int64
    assert lesson.teacher is None
    assert (lesson.batch.inputs, lesson.batch.keys) == (given.batch.inputs, given.batch.keys)
    assert given.batch.labels.tolist() == [2, IGNORE, IGNORE]


def test_pseudo_labels_follow_any_scheme_one_lesson_at_a_time(house: House) -> None:
    house.batches = (batch_of(range(n, n + 4), [0, IGNORE, 1, IGNORE]) for n in range(0, ROWS, 4))
    kept = list(teach.pseudo_labels(house.lessons("offline")))
    assert len(kept) == ROWS // 4
    for lesson in kept:
        answers = teach.ask(house.teacher, lesson.batch, Asked()).logits.argmax(1).tolist()
        assert lesson.batch.labels.tolist() == [0, answers[1], 1, answers[3]]


def test_pseudo_labels_without_a_teacher_are_told(house: House) -> None:
    with pytest.raises(RecipeError, match="needs lessons with a teacher"):
        next(teach.pseudo_labels(house.lessons("alone")))
