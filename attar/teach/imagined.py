"""The scheme without data: inputs made of what a teacher's batch normalization remembers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.errors import RecipeError
from attar.teach.asking import ask, only
from attar.teach.remembered import Wish, norms, unlabelled
from attar.types import Batch, Count, Engine, Forward, Lesson, Share

_TOGETHER = 64
"""Inputs made at once: statistics of a channel want many, a machine's memory few."""

_STRIDE, _RATE = 0.1, 2e-3
"""Adam's learning rates: of inputs, in their own standard deviations; of a generator's weights."""

_NOISE, _WIDTH, _SIDE = 32, 32, 4
"""A generator's size: numbers of noise it begins with, channels, longest side of its first map."""


def data_free(
    batches: Iterable[Batch],
    teachers: Sequence[nn.Module],
    student: nn.Module,
    forward: Forward,
    engine: Engine,
    *,
    how: Literal["statistics", "generator"] = "statistics",
    examples: Count = 1024,
    iterations: Count = 150,
    aim: Share = 0.05,
    normal: Share = 1.0,
    compete: Share = 0.05,
) -> Iterator[Lesson]:
    """The teacher is asked about made-up inputs, where its data may not be seen any more.

    Of the batches only the number of rows, the shape and the type of their inputs are looked at.
    Inputs x are sought that make least, over the teacher's batch normalizations with their running
    mean μ and deviation σ (each square a mean over channels),

        Σ (mean - μ)² + (deviation - σ)² + normal · (mean(x)² + (deviation(x) - 1)²)
            + aim · cross-entropy(teacher(x), a drawn class) - compete · JS(teacher(x), student(x))

    how: `statistics` seeks a pool of inputs before the first lesson, and lessons draw from it;
        `generator` trains a network that makes inputs of noise and a class, new ones for each
        lesson, and that goes for what the student has not learned (JS, Jensen-Shannon divergence)
    examples: inputs in the pool
    iterations: steps of the search before the first lesson; a generator takes one more before each
        later lesson
    aim: weight of being a clear case of a class; without it few classes come up
    normal: weight of the inputs' own mean 0 and deviation 1 in each channel; 0 where the teacher's
        inputs were not standardized
    compete: weight of what student and teacher do not agree about, for a generator; 0 where layers
        are compared that the student has not
    Source: Cai et al., ZeroQ, CVPR 2020 (statistics); Yin et al., Dreaming to Distill, CVPR 2020
    (classes, competition); Chen et al., Data-Free Learning of Student Networks, ICCV 2019, and Fang
    et al., Data-Free Adversarial Distillation, 2019 (generator).
    Raises RecipeError for inputs that are no numbers or change their shape, for a teacher without
    batch normalization, and for several teachers.
    """
    teacher = only(teachers, "data_free")
    wish = Wish(teacher, student, forward, aim, normal, compete if how == "generator" else 0.0)
    made: _Pool | _Generated | None = None
    for batch in batches:
        like = _numbers(batch)
        if made is None:
            _check(teacher)
            made = (
                _Pool(wish, like, examples, iterations)
                if how == "statistics"
                else _Generated(wish, like, iterations, engine.prepare)
            )
            engine.track("imagined", made)
        if like.shape[1:] != made.like.shape[1:]:
            first, now = tuple(made.like.shape[1:]), tuple(like.shape[1:])
            raise RecipeError(
                f"data_free makes inputs of one shape, and after {first} comes {now}; bring them "
                "to one."
            )
        imagined = made.draw(len(like))
        yield Lesson(imagined, ask(teacher, imagined, forward))


def _check(teacher: nn.Module) -> None:
    """Raises RecipeError where it keeps no statistics of what it saw."""
    if not norms(teacher):
        raise RecipeError(
            "data_free makes inputs from the running statistics of batch normalization, and this "
            "teacher has none; ask it about inputs that are like its own, with `online`."
        )


def _numbers(batch: Batch) -> Tensor:
    """The outside of the inputs. Raises RecipeError where they are no numbers and no pixels."""
    inputs = batch.inputs
    pixels = isinstance(inputs, Tensor) and inputs.dtype == torch.uint8
    if isinstance(inputs, Tensor) and inputs.dim() > 1 and (pixels or inputs.is_floating_point()):
        return torch.empty_like(inputs, dtype=torch.float32 if pixels else inputs.dtype)
    raise RecipeError(
        "data_free makes inputs of numbers, (rows, ...) in a tensor of floats or pixels, which "
        "these are not; "
        "for text have a pool written (`invented`) and ask about it with `offline`."
    )


class _Pool:
    """Inputs sought once, from Gaussian noise, for all lessons to draw from."""

    def __init__(self, wish: Wish, like: Tensor, examples: int, iterations: int) -> None:
        self.like = like
        self._wish, self._examples, self._iterations = wish, examples, iterations
        self._random = _randomness()
        self._inputs: Tensor | None = None

    def draw(self, rows: int) -> Batch:
        """Some of them, none twice where there are enough."""
        if self._inputs is None:  # neither made before, nor given back after a crash
            self._inputs = self._sought()
        order = torch.randperm(self._examples, generator=self._random)
        chosen = order[torch.arange(rows) % self._examples]
        return unlabelled(self._inputs[chosen].to(self.like), chosen.tolist())

    def _sought(self) -> Tensor:
        noise = torch.randn(self._examples, *self.like.shape[1:], generator=self._random)
        classes = _drawn(self._examples, self._wish.classes(self.like), self._random)
        parts = math.ceil(self._examples / _TOGETHER)
        both = zip(noise.chunk(parts), classes.chunk(parts), strict=True)
        return torch.cat([self._improved(*part) for part in both])

    def _improved(self, noise: Tensor, classes: Tensor) -> Tensor:
        inputs = noise.to(self._wish.device).requires_grad_()
        adam = torch.optim.Adam([inputs], _STRIDE)
        fall = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0, self._iterations)
        for _ in range(self._iterations):
            with torch.enable_grad():
                cost = self._wish.cost(inputs.to(self.like.dtype), classes)
            _step_(adam, [inputs], cost)
            fall.step()
        return inputs.detach().cpu()

    def state_dict(self) -> Mapping[str, Any]:
        return {"inputs": self._inputs, "random": self._random.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._inputs = state["inputs"]
        self._random.set_state(state["random"])


class _Generated:
    """Inputs made anew for each lesson by a network that learns as the student does."""

    def __init__(
        self, wish: Wish, like: Tensor, iterations: int, prepare: Callable[[nn.Module], nn.Module]
    ) -> None:
        self.like = like
        self._wish, self._iterations = wish, iterations
        self._random = _randomness()
        self._classes = wish.classes(like)
        # Also again on resuming, building the network must not move the stream of random numbers.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self._random.initial_seed())
            self._network = prepare(_network(self._classes, like.shape[1:]))
        self._adam = torch.optim.Adam(self._network.parameters(), _RATE, betas=(0.5, 0.999))
        self._lessons = 0

    def draw(self, rows: int) -> Batch:
        """Inputs that nobody has seen, of a network that has just learned a little."""
        for _ in range(1 if self._lessons else self._iterations):
            with torch.enable_grad():
                inputs, classes = self._made(max(rows, _TOGETHER))
                cost = self._wish.cost(inputs.to(self._wish.device, self.like.dtype), classes)
            _step_(self._adam, list(self._network.parameters()), cost)
        self._lessons += 1
        with torch.no_grad():
            inputs, _ = self._made(max(rows, _TOGETHER))
        names = [f"{self._lessons}-{row}" for row in range(rows)]
        return unlabelled(inputs[:rows].to(self.like), names)

    def _made(self, rows: int) -> tuple[Tensor, Tensor]:
        """Inputs, and the classes (rows,) they are to be of."""
        classes = _drawn(rows, self._classes, self._random)
        noise = torch.randn(rows, _NOISE, generator=self._random)
        seeds = torch.cat([noise, F.one_hot(classes, self._classes).float()], 1)
        device = next(self._network.parameters()).device
        return self._network(seeds.to(device)).view(rows, *self.like.shape[1:]), classes

    def state_dict(self) -> Mapping[str, Any]:
        return {
            "network": self._network.state_dict(),
            "optimizer": self._adam.state_dict(),
            "random": self._random.get_state(),
            "lessons": self._lessons,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._network.load_state_dict(state["network"])
        self._adam.load_state_dict(state["optimizer"])
        self._random.set_state(state["random"])
        self._lessons = state["lessons"]


def _network(classes: int, shape: torch.Size) -> nn.Module:
    """Noise and a class to inputs: maps double from small ones, all else is one vector."""
    start = _NOISE + classes
    if len(shape) != 3:
        hidden = 2 * _WIDTH
        return nn.Sequential(
            *(nn.Linear(start, hidden), nn.BatchNorm1d(hidden), nn.ReLU()),
            *(nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.ReLU()),
            nn.Linear(hidden, shape.numel()),
        )
    channels, *sides = shape
    sizes = [sides]
    while max(sizes[0]) > _SIDE:
        sizes.insert(0, [math.ceil(side / 2) for side in sizes[0]])
    first = sizes.pop(0)
    layers: list[nn.Module] = [
        nn.Linear(start, _WIDTH * math.prod(first)),
        nn.Unflatten(1, (_WIDTH, *first)),
        nn.BatchNorm2d(_WIDTH),
    ]
    for size in sizes:
        layers += [
            nn.Upsample(size=tuple(size)),
            nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1),
            nn.BatchNorm2d(_WIDTH),
            nn.LeakyReLU(0.2),
        ]
    return nn.Sequential(*layers, nn.Conv2d(_WIDTH, channels, 3, padding=1))


def _randomness() -> torch.Generator:
    """A stream of its own, decided by torch's seed and independent of what was drawn since."""
    random = torch.Generator()
    # Not the seed itself, by which the student's first weights may have been drawn.
    random.manual_seed(torch.initial_seed() ^ 1)
    return random


def _drawn(rows: int, classes: int, random: torch.Generator) -> Tensor:
    """A class for each row, all of them equally often."""
    return torch.randperm(rows, generator=random) % classes


def _step_(adam: torch.optim.Adam, moved: Sequence[Tensor], cost: Tensor) -> None:
    """One step of these alone: neither teacher nor student is left a gradient."""
    for tensor, gradient in zip(moved, torch.autograd.grad(cost, moved), strict=True):
        tensor.grad = gradient
    adam.step()
    adam.zero_grad()
