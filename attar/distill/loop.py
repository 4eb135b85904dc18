"""The only training loop in the house."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attar.distill.objective import Objective, Term
from attar.distill.recomputing import recomputed
from attar.engine import local
from attar.errors import EngineError
from attar.taps import place
from attar.types import Count, Engine, Forward, Lesson, Positive, Score, Sparse

Watch = Callable[[Mapping[str, Any]], None]
"""Is told of every step: step, steps, loss, each term, and score where one was measured."""

Judge = Callable[[Lesson, float], tuple[Tensor, dict[str, float]]]
"""Of a lesson and the progress: the student's loss, with its graph, and each term's value."""

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
    steps: Count | None = None,
    epochs: Positive | None = None,
    batch_size: Count = 32,
    lr: Positive = 5e-4,
    optimizer: Literal["adamw", "sgd"] = "adamw",
    weight_decay: float = 0.01,
    warmup: float = 0.1,
    decay: Literal["linear", "cosine", "constant"] = "linear",
    clip: float = 1.0,
    accumulate: Count = 1,
    recompute: bool = False,
    rates: dict[str, float] | None = None,
    evaluate: Count | None = None,
    patience: Count | None = None,
    keep: Literal["last", "best"] = "last",
) -> nn.Module:
    """Train a student on lessons; it is changed in place and returned in eval mode.

    One lesson is one optimizer step. Bridges are optimized, clipped and saved beside the student.
    With an engine that has a folder, a run that was killed goes on from its last checkpoint and
    ends with the weights of a run that was not, if its lessons are made of `engine.feed(batches)`.
    A module whose attention maps are compared runs without dropout, which would blur the maps.

    lessons: the lessons, or a function of the batch size that gives them and an epoch's length
    steps: optimizer steps; or epochs: how often each example is seen
    batch_size: examples of a step (where `lessons` is a function of it)
    lr: highest learning rate
    optimizer: adamw (Loshchilov and Hutter 2019) or sgd (with Nesterov momentum 0.9)
    weight_decay: of matrices; vectors (biases, norms) are left alone
    warmup: share of the steps in which the learning rate rises from zero
    decay: how it falls to zero afterwards
    clip: largest norm of all gradients together, the bridges' included; 0 for none
    accumulate: parts a lesson is cut into to save memory; the gradient stays the same for losses
        that are means over rows, or over the tokens to be learned
    recompute: make the activations of each block of the student anew in the backward pass (gradient
        checkpointing): far less memory for about a third more time
    rates: learning rate of parts, as multiples by name prefix; 0 freezes ({classifier: 10})
    evaluate: steps between validation scores; none where null
    patience: validation scores without a better one before training stops
    keep: the last weights, or the best by validation score

    Raises EngineError where the loss is not finite or the lessons end before the learning rate has
    fallen, RecipeError where a loss lacks what it asks for.
    """
    lessons, steps = _length(lessons, steps, epochs, batch_size)
    choosing = keep == "best" or patience is not None
    _check(warmup, accumulate, evaluate, choosing, score)
    engine = engine or local()
    student = engine.prepare(student)
    engine.track("student", student)
    step = engine.resume()
    first, stream = _peek(lessons)
    objective = _objective(student, first, losses, forward)
    engine.track("bridges", objective)
    frozen = _freeze_(student, objective, rates or {})
    held = _hold_zeros_(student)
    groups = _groups(student, objective, lr, weight_decay, rates or {})
    trained = [parameter for group in groups for parameter in group["params"]]
    moved = _optimizer(optimizer, groups, lr)
    engine.track("optimizer", moved)
    best = Best()
    engine.track("best", best)

    def judge(lesson: Lesson, progress: float) -> tuple[Tensor, dict[str, float]]:
        with engine.autocast():
            knowledge = forward(student, lesson.batch)
        judged: tuple[Tensor, dict[str, float]] = objective(knowledge, lesson, progress)
        return judged

    _learn_(student, losses)
    with recomputed(student) if recompute else nullcontext():
        for lesson in stream:
            if step >= steps or best.stale(patience):
                break
            for group in moved.param_groups:
                group["lr"] = group["peak"] * _factor(step, steps, warmup, decay)
            loss, parts = _backward(judge, lesson, step / steps, engine, accumulate)
            step += 1
            if not math.isfinite(loss):
                raise EngineError(
                    f"The loss is {loss} at step {step}; lower `lr`, or set `clip`, or train in "
                    "fp32."
                )
            norm = engine.step(moved, trained, clip)
            record = {**parts, "step": step, "steps": steps, "loss": loss, "norm": norm}
            if score is not None and evaluate is not None and step % evaluate == 0:
                record["score"] = float(score(student)["score"])
                best.note(record["score"], student)
                _learn_(student, losses)
            if watch is not None:
                watch(record)
            engine.save(step)
    if step < steps and decay != "constant" and not best.stale(patience):
        raise EngineError(
            f"The lessons ended after {step} of {steps} steps, before the learning rate had "
            f"fallen; set `steps` to {step}."
        )
    if best.weights is not None and keep == "best":
        student.load_state_dict(best.weights)
    for hook in held:
        hook.remove()
    for parameter in frozen:
        parameter.requires_grad_(True)
    return student.eval()


@dataclass
class Best:
    """The best validation score so far, how many came after it, and the weights that had it."""

    score: float = -math.inf
    since: int = 0
    weights: dict[str, Tensor] | None = field(default=None, repr=False)

    def note(self, score: float, student: nn.Module) -> None:
        """Take in a new validation score; weights that are not kept in the end are reported."""
        if score > self.score:
            self.score, self.since = score, 0
            self.weights = deepcopy(dict(student.state_dict()))
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


def _check(
    warmup: float, accumulate: int, evaluate: int | None, choosing: bool, score: Score | None
) -> None:
    if accumulate < 1 or (evaluate is not None and evaluate < 1):
        raise EngineError("accumulate and evaluate must each be at least 1.")
    if not 0 <= warmup <= 1:
        raise EngineError(f"warmup is a share of the steps, from 0 to 1, not {warmup}.")
    if evaluate is None and choosing:
        raise EngineError("`keep: best` and `patience` need `evaluate`, the steps between scores.")
    if evaluate is not None and score is None:
        raise EngineError("`evaluate` needs `score`, a function that scores the student.")


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


def _freeze_(
    student: nn.Module, objective: Objective, rates: Mapping[str, float]
) -> list[nn.Parameter]:
    """Take the parameters whose rate is 0 out of the training; gives them, to be let go again."""
    frozen = []
    unused = set(rates)
    for name, parameter in _named(student, objective):
        unused -= {prefix for prefix in rates if name.startswith(prefix)}
        if parameter.requires_grad and _rate(name, rates) == 0:
            parameter.requires_grad_(False)
            frozen.append(parameter)
    if unused:
        raise EngineError(f"`rates` names {min(unused)!r}, with which no parameter's name begins.")
    return frozen


def _hold_zeros_(student: nn.Module) -> list[Any]:
    """Keep pruned weights at zero: without a gradient no optimizer here moves a zero."""
    weights = {module.weight for module in student.modules() if isinstance(module, Sparse)}
    held = {weight: weight.detach() != 0 for weight in weights if weight.requires_grad}
    return [weight.register_hook(kept.to(weight.dtype).mul) for weight, kept in held.items()]


def _groups(
    student: nn.Module,
    objective: Objective,
    lr: float,
    weight_decay: float,
    rates: Mapping[str, float],
) -> list[dict[str, Any]]:
    """All that is trained, as the optimizer's groups; `peak` is a group's highest rate."""
    by_setting: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in _named(student, objective):
        if parameter.requires_grad:
            setting = (lr * _rate(name, rates), weight_decay if parameter.dim() > 1 else 0.0)
            by_setting.setdefault(setting, []).append(parameter)
    if not by_setting:
        raise EngineError("There is nothing to train: every parameter is frozen.")
    return [
        {"params": parameters, "lr": peak, "peak": peak, "weight_decay": decay}
        for (peak, decay), parameters in by_setting.items()
    ]


def _named(student: nn.Module, objective: Objective) -> Iterator[tuple[str, nn.Parameter]]:
    return chain(student.named_parameters(), objective.named_parameters(prefix="objective"))


def _rate(name: str, rates: Mapping[str, float]) -> float:
    """The multiple of the learning rate that the longest fitting prefix gives."""
    return (
        rates[max(fitting, key=len)] if (fitting := [p for p in rates if name.startswith(p)]) else 1
    )


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
    judge: Judge, lesson: Lesson, progress: float, engine: Engine, accumulate: int
) -> tuple[float, dict[str, float]]:
    """Gradients of one lesson, in parts weighted by their share of its answers."""
    total, sums = 0.0, defaultdict[str, float](float)
    rows, whole = len(lesson.batch), lesson.batch.weight
    size = -(-rows // accumulate)
    for start in range(0, rows, size):
        part = _part(lesson, start, min(start + size, rows))
        if not part.batch.weight:
            continue  # padding alone has no mean
        share = part.batch.weight / whole
        loss, values = judge(part, progress)
        engine.backward(loss * share)
        total += float(loss.detach()) * share
        for name, value in values.items():
            sums[name] += value * share
    return total, sums


def _part(lesson: Lesson, start: int, stop: int) -> Lesson:
    if start == 0 and stop == len(lesson.batch):
        return lesson
    teacher = None if lesson.teacher is None else lesson.teacher.rows(start, stop)
    return Lesson(lesson.batch.rows(start, stop), teacher)


def _learn_(student: nn.Module, losses: Sequence[Term]) -> None:
    """Train mode, but for modules of which nothing is trained: no dropout, no running statistics.

    And but for those whose attention maps are compared: `transformers` gives them after dropout.
    """
    student.train()
    maps = {
        place(mine).path for each in losses if each.kind == "Attentions" for mine in each.layers
    }
    for path, module in student.named_modules():
        parameters = list(module.parameters())
        frozen = parameters and not any(parameter.requires_grad for parameter in parameters)
        if frozen or path in maps:
            module.eval()
