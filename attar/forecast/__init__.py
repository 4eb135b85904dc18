"""The dry run behind `attar check`: a few steps of everything, and what the whole will take."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import cycle, islice
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from attar import arms, casting, distill, hearing, measure, pipeline, schooling, teach, teachers
from attar.auditing import SOME
from attar.baselines import Arm
from attar.compressing import called, check_step, compressed, made_by
from attar.distill.loop import Watch
from attar.doctor import machine
from attar.forecast.paper import Forecast, Stage, Training
from attar.measure.comparing import answer
from attar.resolve import ask, asks, chosen
from attar.screen import Silent
from attar.setting import Book, Cast, Setting
from attar.tasks import text
from attar.types import Batch, Lesson

BUDGET = 0.8
"""Seconds in which the steps of one training are timed."""

__all__ = ["Forecast", "Stage", "Training", "forecast"]

EXPORT = {"export.onnx": 8.0, "export.openvino": 8.0, "export.executorch": 15.0}
"""Seconds of writing a small model and reading it back, where that is more than a moment."""

PROCESS = 5.0
"""Seconds in which a fresh process loads the libraries and answers, to tell its memory."""

DRIVEN = 200
"""States that a student meets by which it is told how long all take."""

WORDS = 2e-5
"""Seconds a labelled text and class of fitting the bag of words."""

LIBRARIES = 600_000_000
"""Bytes of memory that Python and the libraries take."""


def forecast(here: Setting) -> Forecast:
    """Load the models, take a few steps of everything, and say what the whole will take.

    Nothing is trained to its end, and nothing written but into a temporary folder. It knows
    neither what else this machine will do, nor whether a training will stop early.
    Raises a child of AttarError for whatever the run itself would stumble over.
    """
    start, book, load = time.perf_counter(), Book(), machine.load()
    cast = pipeline.cast(here, book)
    here, asked, wait = hearing.foretold(here.with_states(cast.teacher))
    stages = [Stage("reading and loading", time.perf_counter() - start)]
    if asked:
        stages.append(Stage("asking the endpoint", wait, done=here.heard is not None))
    look = _look(here, cast)
    if casting.teacher_kept(here) is not None:
        stages.append(_teacher(look))
    if cast.teacher is not None and here.taught_by("offline"):
        stages.append(_knowledge(look))
    followed = list(_steps(look))
    stages += [*followed, Stage("measuring", _measuring(look, followed))]
    parameters = {
        "teacher": 0 if cast.teacher is None else measure.parameters(cast.teacher),
        "student": measure.parameters(cast.student),
        "bridges": _bridges(look),
    }
    return Forecast(
        {part: here.task.size(part) for part in ("train", "labelled", "validation", "test")},
        here.task.tells,
        look.tokens,
        parameters,
        book.plan["layers"],
        tuple(stages),
        _memory(parameters, stages),
        load,
        asked,
    )


@dataclass(frozen=True)
class _Look:
    """What is known before the first stage is looked at.

    tokens: of an example, 0 where it has none; row: bytes that knowledge of it takes in a store
    asking, answering: seconds of asking the teacher, and the student, about it
    playing: by part, seconds in which it is played to score a model, where it is
    """

    here: Setting
    cast: Cast
    tokens: float
    asking: float
    row: float
    answering: float
    playing: Mapping[str, float]


def _look(here: Setting, cast: Cast) -> _Look:
    tokens = here.task.tokens(cast.student) or 0.0
    some = _some(here)
    asking, row = (0.0, 0.0) if cast.teacher is None else _asking(here, cast, some)
    teach.ask(cast.student, some[0], here.task.forward)  # the first is slower than all that follow
    start = time.perf_counter()
    for batch in some:
        teach.ask(cast.student, batch, here.task.forward)
    answering = (time.perf_counter() - start) / sum(map(len, some))
    plays = partial(here.task.played, cast.teacher or cast.student)  # a student plays as long
    playing = {part: plays(part) for part in ("validation", "test")}
    return _Look(here, cast, tokens, asking, row, answering, playing)


def _some(here: Setting, batches: int = 4) -> list[Batch]:
    """Some batches of the training data, from short texts to long ones."""
    whole = here.task.spread("train", here.task.swept * batches)
    size = -(-len(whole) // batches)
    return [whole.rows(start, start + size) for start in range(0, len(whole), size)]


def _asking(here: Setting, cast: Cast, some: Sequence[Batch]) -> tuple[float, float]:
    """Seconds and bytes of what the teacher knows of a text, put into a store."""
    assert cast.teacher is not None
    forward = schooling.asking(here, cast.taught)
    teach.ask(cast.teacher, some[0], forward)
    kept = schooling.how_kept(here)
    with TemporaryDirectory() as at, teach.open_store(at, cast.teacher, {}, **kept) as known:
        start = time.perf_counter()
        rows = teach.fill(known, some, cast.teacher, forward)
        return (time.perf_counter() - start) / rows, known.bytes / rows


class _Enough(Exception):
    """Enough steps have been timed."""


@dataclass
class _Clock:
    """Times the first steps of a training, and counts what they keep for their gradients.

    budget: seconds until it leaves; at least two steps are taken
    """

    budget: float
    steps: int = 0
    activations: int = 0
    _times: list[float] = field(default_factory=lambda: [time.perf_counter()])
    _kept: dict[int, int] = field(default_factory=dict)

    def time(self, train: Callable[[Watch], object]) -> None:
        """Begin a training, and leave it when the time is up."""
        with suppress(_Enough), saved_tensors_hooks(self._keep, lambda kept: kept):
            train(self._watch)

    @property
    def pace(self) -> float:
        """Seconds of a step; the first, in which memory is found, is left out where it can be."""
        first = min(1, len(self._times) - 2)
        return (self._times[-1] - self._times[first]) / (len(self._times) - 1 - first)

    def _watch(self, record: Mapping[str, Any]) -> None:
        self.steps = record["steps"]
        self.activations = max(self.activations, sum(self._kept.values()))
        self._kept.clear()
        self._times.append(time.perf_counter())
        if len(self._times) > 2 and self._times[-1] - self._times[1] > self.budget:
            raise _Enough

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._kept[storage.data_ptr()] = storage.nbytes()
        return tensor


def _teacher(look: _Look) -> Stage:
    """The teacher's own training; it is kept in the cache and beside the results."""
    here, cast = look.here, look.cast
    assert here.plan.teacher is not None
    assert cast.teacher is not None
    make, clock = here.plan.teacher.function, _Clock(0.0 if cast.trained else BUDGET)
    given = casting.for_teachers(here) | {"engine": ask(here.plan.engine.function, {})}
    clock.time(lambda watch: ask(make, {**given, "watch": watch}))
    sees = "labelled" if here.task.size("labelled") else "reward"
    training = _training(look, sees, clock, make, cast.teacher)
    seconds = 0.0 if cast.trained else clock.steps * clock.pace
    return Stage("teacher", seconds, 2 * measure.size(cast.teacher), cast.trained, training)


def _training(
    look: _Look, part: str, clock: _Clock, function: partial[Any], model: nn.Module
) -> Training:
    examples = look.here.task.size(part) if part in look.here.task.rows else 0
    batch_size = chosen(function, "batch_size") or 1
    rates = _rates(look, function, model)
    return Training(
        part,
        examples,
        clock.steps,
        batch_size,
        int(look.tokens * min(batch_size, examples) * clock.steps),
        measure.parameters(model),
        sum(p.numel() for name, p in model.named_parameters() if _rate(name, rates) > 0),
        clock.activations,
    )


def _rates(look: _Look, function: partial[Any], model: nn.Module) -> Mapping[str, float]:
    """The learning rate of each part as a multiple, whoever is trained."""
    head = chosen(function, "head_rate")
    if head is None:
        return chosen(function, "rates") or {}
    return teachers.rates(model, len(look.here.task.classes), chosen(function, "train"), head)


def _rate(name: str, rates: Mapping[str, float]) -> float:
    fitting = [prefix for prefix in rates if name.startswith(prefix)]
    return rates[max(fitting, key=len)] if fitting else 1.0


def _knowledge(look: _Look) -> Stage:
    """Asking the teacher for what the store lacks."""
    here, cast = look.here, look.cast
    assert cast.teacher is not None
    assert here.plan.teach is not None
    batches, _ = schooling.to_be_asked(here)
    keys = list({key for batch in batches for key in batch.keys})
    folder = teach.store_folder(here.plan.teach.function.keywords.get("store"), here.cache)
    facts = schooling.facts_of(here, cast.teacher, cast.taught)
    kept = schooling.how_kept(here)
    known = teach.found_store(folder, cast.teacher, facts, **kept) if cast.trained else None
    missing = len(keys) if known is None else len(known.missing(keys))
    return Stage(
        "asking the teacher", missing * look.asking, int(len(keys) * look.row), not missing
    )


def _steps(look: _Look) -> Iterator[Stage]:
    """The recipe's steps in their order, and the baselines."""
    here, cast = look.here, look.cast
    model, name, begun = cast.student, "student", None
    for number, step in enumerate(here.plan.steps):
        check_step(step, model)
        if step.name == "distill":
            begun = begun or (model, pipeline.all_steps(here))
            if made_by(here.plan.steps[:number]):  # by the layers that are left
                quiet = replace(here, screen=Silent())
                cast = replace(cast, taught=schooling.teaching(quiet, cast.teacher, model, Book()))
                look = replace(look, cast=cast)
            scheme, terms = partial(_lessons, here, cast), cast.taught.terms
            arm = pipeline.student_arm(here, number, name, scheme, terms)
            name = arm.name
            yield _arm(look, arm, model, step.function)
        elif step.name.startswith("export."):
            yield Stage(step.name, EXPORT.get(step.name, 1.0), measure.size(model))
        else:
            start = time.perf_counter()
            model = compressed(here, step.function, copy.deepcopy(model), Book())
            name = called(name, step.name)
            yield Stage(step.name, time.perf_counter() - start)
    if begun is not None:
        scheme = partial(_lessons, here, cast)
        for arm in pipeline.baseline_arms(here, cast.teacher, cast.taught, scheme):
            if arm.trained:
                yield _arm(look, arm, *begun)


def _lessons(
    here: Setting, cast: Cast, batches: Iterable[Batch], *training: Any
) -> Iterable[Lesson]:
    """The recipe's lessons; what a store would give is asked for before the clock starts."""
    teaches = here.plan.teach
    if cast.teacher is None or teaches is None or teaches.name != "offline":
        return schooling.lessons(here, cast.teacher, cast.taught, batches, *training)
    forward = schooling.asking(here, cast.taught)
    return cycle(list(teach.online(islice(batches, 4), [cast.teacher], forward)))


def _arm(look: _Look, arm: Arm, student: nn.Module, step: partial[Any]) -> Stage:
    """One training of the student, with the validation scores that are taken on its way."""
    here, cast = look.here, look.cast
    folder = schooling.arm_folder(here, arm, student, step, cast.teacher, cast.taught)
    done, unscored = arms.done(folder), partial(step, evaluate=None, patience=None, keep="last")
    engine, clock = ask(here.plan.engine.function, {}), _Clock(0.0 if done else BUDGET)
    copied = copy.deepcopy(student)
    clock.time(partial(pipeline.fit, here, arm, copied, unscored, cast.taught, engine))
    scores = clock.steps // (chosen(step, "evaluate") or clock.steps + 1)
    scoring = here.task.size("validation") * look.answering + look.playing["validation"]
    seconds = clock.steps * clock.pace + scores * scoring + _driven(look, arm)
    training = _training(look, arm.part, clock, step, student)
    return Stage(arm.name, 0.0 if done else seconds, measure.size(student), done, training)


def _driven(look: _Look, arm: Arm) -> float:
    """Seconds in which a student that drives meets the states of its rounds."""
    scheme, teacher = look.here.plan.teach, look.cast.teacher
    if scheme is None or teacher is None or "act" not in asks(scheme.function):
        return 0.0
    if arm.losses != look.cast.taught.terms:
        return 0.0  # a baseline, which nobody drives
    rounds, states = (chosen(scheme.function, name) for name in ("rounds", "states"))
    start = time.perf_counter()
    met = look.here.task.act(look.cast.student, min(states, DRIVEN), 0, 0.0, teacher)
    pace = (time.perf_counter() - start) / len(met)
    return float(pace * rounds * states)


def _measuring(look: _Look, followed: Sequence[Stage]) -> float:
    """Seconds of the report."""
    here, cast = look.here, look.cast
    wanted = {piece.name: piece.function for piece in here.plan.measure}
    seconds = 0.0
    if "score" in wanted:
        seconds += here.task.size("test") * (look.asking + look.answering * len(followed))
        seconds += look.playing["test"] * (1 + len(followed))
        if isinstance(here.task, text.classification):
            seconds += WORDS * here.task.size("labelled") * len(here.task.classes)
    if "audit" in wanted:
        more = SOME if chosen(wanted["audit"], "surrogate") else 0
        each = look.asking + look.answering * len(followed)
        seconds += (here.task.size("validation") + 2 * more) * each
    if "latency" in wanted:
        models = {"student": cast.student} | ({"teacher": cast.teacher} if cast.teacher else {})
        answers = {name: answer(model, here.task.example) for name, model in models.items()}
        found = measure.latency(answers, seconds=0.01)
        # At most 50 turns of 10 answers each are timed.
        most = chosen(wanted["latency"], "seconds")
        most *= len(chosen(wanted["latency"], "tokens") or [None])
        timed = {name: min(most, 0.5 * times["p50"]) for name, times in found.items()}
        seconds += timed.get("teacher", 0.0) + timed["student"] * len(followed)
    if "memory" in wanted:
        files = 1 + sum(stage.name.startswith("export.") for stage in followed)
        seconds += PROCESS * -(-files // (os.cpu_count() or 1))
    return seconds


def _bridges(look: _Look) -> int:
    """The parameters that are trained beside the student and left out of it."""
    here, cast = look.here, look.cast
    if cast.teacher is None or not cast.taught.terms:
        return 0
    batch = next(here.task.sweep("train", batch_size=2))
    forward = partial(here.task.forward, layers=cast.taught.student_layers)
    mine = teach.ask(cast.student, batch, forward)
    its = teach.ask(cast.teacher, batch, schooling.asking(here, cast.taught))
    return measure.parameters(distill.Objective(cast.taught.terms, mine, its))


def _memory(parameters: Mapping[str, int], stages: Sequence[Stage]) -> dict[str, int]:
    """Bytes at the height of the run: of models, and of the training that needs most."""
    trainings = [each.training for each in stages if each.training is not None and not each.done]
    students = sum(each.name != "teacher" for each in stages if each.training is not None)
    return {
        "libraries": LIBRARIES,
        "models": 4 * (parameters["teacher"] + (1 + students) * parameters["student"]),
        "gradients and optimizer": max((12 * each.trained for each in trainings), default=0),
        "activations": max((each.activations for each in trainings), default=0),
    }
