"""The only training loop in the house."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attar.distill.objective import Objective, Term
from attar.engine import local
from attar.errors import EngineError
from attar.types import Engine, Forward, Lesson, Score

Watch = Callable[[Mapping[str, Any]], None]
"""Is told of every step: step, steps, loss, each term, and score where one was measured."""

Course = Callable[[int], tuple[Iterable[Lesson], int]]
"""Given a batch size: endless lessons, and how many of them are an epoch."""


def train(
    student: nn.Module,
    lessons: Iterable[Lesson] | Course,
    losses: Sequence[Term],
    forward: Forward,
    engine: Engine | None = None,
    score: Score | None = None,
    watch: Watch | None = None,
    *,
    steps: int | None = None,
    epochs: float | None = None,
    batch_size: int = 32,
    lr: float = 5e-4,
    optimizer: Literal["adamw", "sgd"] = "adamw",
    weight_decay: float = 0.01,
    warmup: float = 0.1,
    decay: Literal["linear", "cosine", "constant"] = "linear",
    clip: float = 1.0,
    accumulate: int = 1,
    rates: dict[str, float] | None = None,
    evaluate: int | None = None,
    patience: int | None = None,
    keep: Literal["last", "best"] = "last",
) -> nn.Module:
    """Train a student on lessons; it is changed in place and returned in eval mode.

    One lesson is one optimizer step. Bridges are optimized, clipped and saved beside the student.
    With an engine that has a folder, a run that was killed goes on from its last checkpoint and
    ends with the weights of a run that was not.

    lessons: the lessons, or a function of the batch size that gives them and the length of an epoch
    steps: optimizer steps; or epochs: how often each example is seen
    batch_size: examples of a step (where `lessons` is a function of it)
    lr: highest learning rate
    optimizer: adamw (Loshchilov and Hutter 2019) or sgd (with Nesterov momentum 0.9)
    weight_decay: of matrices; vectors (biases, norms) are left alone
    warmup: share of the steps in which the learning rate rises from zero
    decay: how it falls to zero afterwards
    clip: largest norm of all gradients together, the bridges' included; 0 for none
    accumulate: parts a lesson is cut into to save memory
    rates: learning rate of parts, as multiples by name prefix; 0 freezes ({classifier: 10})
    evaluate: steps between validation scores; none where null
    patience: validation scores without a better one before training stops
    keep: the last weights, or the best by validation score

    Raises EngineError where the loss is not finite, RecipeError where a loss lacks what it asks for.
    """
    lessons, steps = _length(lessons, steps, epochs, batch_size)
    if accumulate < 1 or (evaluate is not None and evaluate < 1):
        raise EngineError("accumulate and evaluate must each be at least 1.")
    if evaluate is None and (keep == "best" or patience is not None):
        raise EngineError("`keep: best` and `patience` need `evaluate`, the steps between scores.")
    engine = engine or local()
    student = engine.prepare(student)
    engine.track("student", student)
    done = engine.resume()
    first, stream = _peek(lessons)
    objective = _objective(student, first, losses, forward)
    engine.track("bridges", objective)
    trained, groups = _groups(student, objective, lr, weight_decay, rates or {})
    moved = _optimizer(optimizer, groups, lr)
    engine.track("optimizer", moved)
    best = Best()
    engine.track("best", best)

    student.train()
    _hold_frozen_(student)
    for step, lesson in enumerate(stream, done):
        if step >= steps or best.stale(patience):
            break
        factor = _factor(step, steps, warmup, decay)
        for group in moved.param_groups:
            group["lr"] = group["peak"] * factor
        loss, parts = _backward(student, objective, lesson, forward, engine, step / steps, accumulate)
        if not math.isfinite(loss):
            raise EngineError(
                f"The loss is {loss} at step {step + 1}; lower `lr`, or set `clip`, or train in fp32."
            )
        norm = engine.step(moved, trained, clip)
        record = {"step": step + 1, "steps": steps, "loss": loss, "norm": norm, **parts}
        if score is not None and evaluate is not None and (step + 1) % evaluate == 0:
            record["score"] = float(score(student)["score"])
            _hold_frozen_(student)
            best.note(record["score"], student, keep == "best")
        if watch is not None:
            watch(record)
        engine.save(step + 1)
    if best.weights is not None:
        student.load_state_dict(best.weights)
    return student.eval()


@dataclass
class Best:
    """The best validation score so far, how many came after it, and the weights that had it."""

    score: float = -math.inf
    since: int = 0
    weights: dict[str, Tensor] | None = field(default=None, repr=False)

    def note(self, score: float, student: nn.Module, keep: bool) -> None:
        """Take in a new validation score."""
        if score > self.score:
            self.score, self.since = score, 0
            self.weights = deepcopy(dict(student.state_dict())) if keep else None
        else:
            self.since += 1

    def stale(self, patience: int | None) -> bool:
        """Whether the best score is too long ago."""
        return patience is not None and self.since >= patience

    def state_dict(self) -> Mapping[str, Any]:
        # JSON has no infinity.
        score = None if self.score == -math.inf else self.score
        return {"score": score, "since": self.since, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.score = -math.inf if state["score"] is None else state["score"]
        self.since, self.weights = state["since"], state["weights"]


def _length(
    lessons: Iterable[Lesson] | Course, steps: int | None, epochs: float | None, batch_size: int
) -> tuple[Iterable[Lesson], int]:
    """The lessons, and the number of steps to take."""
    if (steps is None) == (epochs is None):
        raise EngineError("Give either `steps` or `epochs`.")
    if batch_size < 1:
        raise EngineError("batch_size must be at least 1.")
    if callable(lessons):
        stream, epoch = lessons(batch_size)
        steps = round((epochs or 0) * epoch) if steps is None else steps
    else:
        stream = lessons
    if steps is None:
        raise EngineError("How long an epoch of these lessons is can't be known; give `steps`.")
    if steps < 1:
        raise EngineError("There must be at least 1 step.")
    return stream, steps


def _peek(lessons: Iterable[Lesson]) -> tuple[Lesson, Iterator[Lesson]]:
    stream = iter(lessons)
    try:
        first = next(stream)
    except StopIteration:
        raise EngineError("There are no lessons: the data gave no batch.") from None
    return first, chain([first], stream)


@torch.no_grad()
def _objective(
    student: nn.Module, first: Lesson, losses: Sequence[Term], forward: Forward
) -> Objective:
    """The objective for these two models, its bridges shaped by one lesson."""
    student.eval()
    knowledge = forward(student, first.batch.rows(0, 1))
    teacher = None if first.teacher is None else first.teacher.rows(0, 1)
    return Objective(losses, knowledge, teacher)


def _groups(
    student: nn.Module,
    objective: Objective,
    lr: float,
    weight_decay: float,
    rates: Mapping[str, float],
) -> tuple[list[nn.Parameter], list[dict[str, Any]]]:
    """All that is trained, and the same as the optimizer's groups."""
    by_setting: dict[tuple[float, float], list[nn.Parameter]] = {}
    named = [*student.named_parameters(), *objective.named_parameters(prefix="objective")]
    unused = set(rates)
    for name, parameter in named:
        prefixes = [prefix for prefix in rates if name.startswith(prefix)]
        unused -= set(prefixes)
        rate = rates[max(prefixes, key=len)] if prefixes else 1.0
        parameter.requires_grad_(rate > 0)
        if rate > 0:
            setting = (lr * rate, weight_decay if parameter.dim() > 1 else 0.0)
            by_setting.setdefault(setting, []).append(parameter)
    if unused:
        raise EngineError(f"`rates` names {min(unused)!r}, with which no parameter's name begins.")
    if not by_setting:
        raise EngineError("There is nothing to train: `rates` freezes every parameter.")
    groups = [
        {"params": parameters, "lr": peak, "peak": peak, "weight_decay": decay}
        for (peak, decay), parameters in by_setting.items()
    ]
    return [parameter for group in by_setting.values() for parameter in group], groups


def _optimizer(name: str, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=lr, fused=True)


def _factor(step: int, steps: int, warmup: float, decay: str) -> float:
    """The learning rate of a step as a share of its highest."""
    rising = warmup * steps
    if step < rising:
        return (step + 1) / (rising + 1)
    left = (steps - step) / max(1.0, steps - rising)
    if decay == "cosine":
        return 0.5 * (1 - math.cos(math.pi * min(1.0, left)))
    return 1.0 if decay == "constant" else min(1.0, left)


def _backward(
    student: nn.Module,
    objective: Objective,
    lesson: Lesson,
    forward: Forward,
    engine: Engine,
    progress: float,
    accumulate: int,
) -> tuple[float, dict[str, float]]:
    """Gradients of one lesson, in parts weighted by their share of its rows."""
    total, sums = 0.0, dict[str, float]()
    size = -(-len(lesson.batch) // accumulate)
    for start in range(0, len(lesson.batch), size):
        part = _part(lesson, start, min(start + size, len(lesson.batch)))
        share = len(part.batch) / len(lesson.batch)
        with engine.autocast():
            knowledge = forward(student, part.batch)
        loss, values = objective(knowledge, part, progress)
        engine.backward(loss * share)
        total += float(loss.detach()) * share
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value * share
    return total, sums


def _part(lesson: Lesson, start: int, stop: int) -> Lesson:
    if start == 0 and stop == len(lesson.batch):
        return lesson
    teacher = None if lesson.teacher is None else lesson.teacher.rows(start, stop)
    return Lesson(lesson.batch.rows(start, stop), teacher)


def _hold_frozen_(student: nn.Module) -> None:
    """Modules of which nothing is trained stay in eval mode: no dropout, no running statistics."""
    for module in student.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()
