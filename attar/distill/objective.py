"""The weighted sum of terms that a student is trained on, and what is learned beside it."""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from attar.distill.bridges import Layer, Pair, linear, meet, together
from attar.distill.meeting import Met, noted, trimmed
from attar.errors import LayerError, RecipeError, nearest
from attar.heads import Foreign, Headed, Sparse, dense, in_chunks
from attar.resolve import asks, compares, foreign, name_of, rowwise
from attar.resolve import options as options_of
from attar.types import Knowledge, Lesson

Weight = float | Callable[[float], float]

NOTED = ("worth", "own", "skew")
"""What some schemes know of each label, and a loss may ask for where they teach."""

GIVEN = ("student", "teacher", "labels", "mask", "knowledge", "batch", "progress", *NOTED)
"""What a loss may ask for."""


@dataclass(frozen=True)
class Term:
    """A loss with its weight and, where it compares layers, student path -> teacher path.

    function: a function; or a loss with state: an nn.Module, or the class of one, which the
        objective makes for each pair of layers
    """

    function: Callable[..., Any]
    weight: Weight = 1.0
    layers: Mapping[str, str] = field(default_factory=dict)
    name: str = ""

    @cached_property
    def kind(self) -> str:
        """What it compares: one of `attar.resolve.KINDS`."""
        return compares(self.function)

    @property
    def needs_teacher(self) -> bool:
        """Whether it can't be had from the labels alone."""
        return bool(self.layers) or "teacher" in asks(_at_each_step(self.function))

    @property
    def noted(self) -> list[str]:
        """What it needs to be told of each token that its scheme alone knows."""
        known = asks(_at_each_step(self.function)).items()
        return [n for n, each in known if n in NOTED and each.default is each.empty]

    @property
    def has_state(self) -> bool:
        """Whether the loss learns or remembers something of its own."""
        whole = _whole(self.function)
        return inspect.isclass(whole) or isinstance(whole, nn.Module)

    def weight_at(self, progress: float) -> float:
        """The weight when this share of the training is done."""
        return self.weight(progress) if callable(self.weight) else self.weight

    def function_at(self, progress: float) -> Callable[..., Tensor]:
        """The loss when this share of the training is done: options may be schedules."""
        now = {name: schedule(progress) for name, schedule in self._schedules.items()}
        return partial(self.function, **now) if now else self.function

    @cached_property
    def _schedules(self) -> dict[str, Callable[[float], float]]:
        return _schedules(self.function)


def term(
    function: Callable[..., Any],
    weight: Weight = 1.0,
    *,
    layers: Mapping[str, str] | None = None,
    **options: Any,
) -> Term:
    """A loss, its weight, its layers and its options, as one term.

    The weight, and any option that is a float, may be a schedule: a function of the progress.
    Raises RecipeError for an option that the loss does not have, for a schedule that it can't
    follow, and where a loss over layers is given none.
    """
    name = _title(function)
    known = inspect.signature(function).parameters
    for option in options:
        if option not in known:
            raise RecipeError(f"{name} has no option {option!r}; {nearest(option, known)}")
    bound = partial(function, **options) if options else function
    word: object = layers
    if isinstance(word, str):
        cure = f"has layers {word!r}; give it `layers: {{student: teacher}}`, as `pair` finds them"
        if compares(function) == "Logits":
            cure = "compares logits and takes no layers; leave `layers` out"
        raise RecipeError(f"{name} {cure}.")
    made = Term(bound, weight, dict(layers or {}), name)
    if inspect.isclass(_whole(function)):
        _check_class(made)
    if made.kind != "Logits" and not made.layers:
        raise RecipeError(f"{made.name} compares layers; give it `layers: {{student: teacher}}`.")
    return made


class Objective(nn.Module):
    """What the student is to minimise; its parameters are the bridges and those of its losses.

    A bridge is a linear map from a student layer's width to its teacher's, learned beside the
    student and left out of it afterwards (FitNets, Romero et al. 2015); where the widths agree it
    begins as the identity. Only functions over `Features` get one: a loss with state brings its
    own, and all others compare layers of any width. Such a loss is made once for each pair of
    layers (for logits and stages once), and is trained and saved as the bridges are.

    In a loop of one's own: `loss, parts = objective(forward(student, lesson.batch), lesson)`, and
    give `objective.parameters()` to the optimizer. Attention maps have to be without dropout
    (those of `transformers` are, where the attention module is in eval mode).
    """

    def __init__(
        self, terms: Sequence[Term], student: Knowledge, teacher: Knowledge | None
    ) -> None:
        """student, teacher: knowledge of one lesson, from which shapes are learned.

        Raises RecipeError where a loss lacks what it asks for, LayerError where two layers can't
        be compared.
        """
        super().__init__()
        student, teacher = trimmed(student), None if teacher is None else trimmed(teacher)
        self.terms = tuple(terms)
        if not self.terms:
            raise RecipeError("There is nothing to minimise: give at least one loss.")
        self._asked = [_asked(each) for each in self.terms]
        self._names = _numbered([each.name for each in self.terms])
        self.bridges = nn.ModuleDict()
        self.losses = nn.ModuleDict()
        for each, name in zip(self.terms, self._names, strict=True):
            if each.needs_teacher and teacher is None:
                raise RecipeError(f"The loss {each.name} needs a teacher, and nobody teaches.")
            _check_tokens(each, student, teacher)
            for key, pair in _pairs(each, student, teacher).items():
                self._prepare(each, name, key, pair)

    def forward(
        self, student: Knowledge, lesson: Lesson, progress: float = 0.0
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss (a scalar) of the student's knowledge of a lesson, and each term's own value."""
        total = torch.zeros((), device=student.logits.device)
        parts: dict[str, float] = {}
        teacher = None if lesson.teacher is None else trimmed(lesson.teacher)
        student = trimmed(student)
        available = {"knowledge": student, "batch": lesson.batch, "progress": progress}
        labels = lesson.batch.labels.to(student.logits.device)
        notes = noted(lesson.batch, student.logits.device)
        met = Met(student, teacher, labels)
        met = met.by_token() if lesson.batch.by_token else met
        common = met.common()
        for each, name, asked in zip(self.terms, self._names, self._asked, strict=True):
            _check_noted(each, notes)
            values, its = [], common if each.needs_teacher else met
            for key, pair in _pairs(each, its.student, its.teacher).items():
                given = available | notes | {"labels": its.labels} | self._bridged(each, key, pair)
                state = _state_key(name, key)
                loss = self.losses[state] if each.has_state else each.function_at(progress)
                values.append(
                    _compared(each.name, loss, {k: given[k] for k in asked if k in given})
                )
            value = torch.stack(values).mean() * its.share
            total = total + each.weight_at(progress) * value
            parts[name] = float(value.detach())
        return total, parts

    def _prepare(self, each: Term, name: str, key: str, pair: Pair) -> None:
        """Make what is learned for a pair: a bridge, or the loss itself where it has a state."""
        device = _first(pair.student).device
        if each.has_state:
            self.losses[_state_key(name, key)] = _made(each, pair).to(device)
        elif each.kind == "Features" and each.layers and key not in self.bridges:
            widths = (_first(side).shape[-1] for side in (pair.student, pair.teacher))
            self.bridges[key] = linear(*widths).to(device)

    def _bridged(self, each: Term, key: str, pair: Pair) -> dict[str, Any]:
        """What a loss is given of a pair, by name."""
        given = {"student": pair.student, "teacher": pair.teacher, "mask": pair.mask}
        if each.kind == "Features" and key in self.bridges and not each.has_state:
            # A forward pass in half precision gives features that a bridge in float32 can't take.
            given["student"] = self.bridges[key](_first(pair.student).float())
        return given if pair.teacher is not None else {k: given[k] for k in ("student", "mask")}


def _check_class(made: Term) -> None:
    """Raises RecipeError where a class can't be a loss with state."""
    whole = _whole(made.function)
    if not (inspect.isclass(whole) and issubclass(whole, nn.Module)):
        raise RecipeError(f"{made.name} is a class; a loss with state has to be an nn.Module.")
    for option in _schedules(made.function):
        raise RecipeError(
            f"{made.name} is built once: its option {option!r} can't be a schedule, its weight can."
        )
    for name, parameter in asks(made.function).items():
        if name not in ("student", "teacher") and parameter.default is parameter.empty:
            raise RecipeError(f"{made.name} is built from student and teacher, not from {name!r}.")


def _whole(function: Callable[..., Any]) -> Callable[..., Any]:
    return function.func if isinstance(function, partial) else function


def _at_each_step(function: Callable[..., Any]) -> Callable[..., Any]:
    """What is called at each step: of a loss with state its `forward`."""
    whole: Any = _whole(function)
    if inspect.isclass(whole) and issubclass(whole, nn.Module):
        return partial(whole.forward, None)
    return whole.forward if isinstance(whole, nn.Module) else function  # type: ignore[no-any-return]


def _schedules(function: Callable[..., Any]) -> dict[str, Callable[[float], float]]:
    """The options that are set to a function of the progress, where a float is wanted."""
    bound = function.keywords if isinstance(function, partial) else {}
    if not (moving := {name: value for name, value in bound.items() if callable(value)}):
        return {}
    known = options_of(function)
    floats = {
        name
        for name, option in known.items()
        if "float" in option.type.split(" or ") or isinstance(option.default, float)
    }
    return {name: value for name, value in moving.items() if name in floats}


def _title(function: Callable[..., Any]) -> str:
    """What a loss is called: `response.kl`, as in a recipe; a method or an object by its class."""
    if isinstance(function, partial):
        return _title(function.func)
    name = name_of(function)
    if inspect.ismethod(function):
        return f"{type(function.__self__).__name__}.{name}"
    if not inspect.isroutine(function) and not inspect.isclass(function):
        return name
    # What a package makes public is called after the package and not after one of its files.
    file, package = function.__module__, function.__module__.rpartition(".")[0]
    public = package in sys.modules and name in vars(sys.modules[package]).get("__all__", ())
    return f"{(package if public else file).rpartition('.')[2]}.{name}"


def _numbered(names: Sequence[str]) -> list[str]:
    """The names, each one once: what comes a second time has a 2 behind it."""
    seen = Counter[str]()
    numbered = []
    for name in names:
        seen[name] += 1
        numbered.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return numbered


def _asked(each: Term) -> tuple[str, ...]:
    """What a loss is to be given at each step, of what there is."""
    wanted = asks(_at_each_step(each.function))
    for name, parameter in wanted.items():
        if name not in GIVEN and parameter.default is parameter.empty:
            raise RecipeError(
                f"The loss {each.name} asks for {name!r}; a loss may ask for {', '.join(GIVEN)}."
            )
    return tuple(name for name in wanted if name in GIVEN)


def _made(each: Term, pair: Pair) -> nn.Module:
    """The loss with state that compares a pair: the user's own, or one of its class."""
    whole = _whole(each.function)
    if isinstance(whole, nn.Module):
        return whole
    sides = {"student": _detached(pair.student), "teacher": _detached(pair.teacher)}
    example = {name: sides[name] for name in asks(each.function) if name in sides}
    # As with bridges, what a loss begins with must not move the stream of random numbers.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        made: nn.Module = _compared(each.name, each.function, example)  # type: ignore[assignment]
    return made


def _compared(name: str, function: Callable[..., Tensor], given: Mapping[str, Any]) -> Tensor:
    try:
        large = [name for name, value in given.items() if isinstance(value, Headed | Sparse)]
        if rowwise(function) and (large or isinstance(given.get("teacher"), Foreign)):
            return in_chunks(function, given)
        return function(**{**given, **{name: dense(given[name]) for name in large}})
    except ValueError as error:
        raise RecipeError(f"The loss {name} can't be had: {error}") from error


def _check_noted(each: Term, notes: Mapping[str, Tensor]) -> None:
    """Raises RecipeError where a loss is about what only another scheme knows."""
    for name in each.noted:
        if name not in notes:
            raise RecipeError(
                f"The loss {each.name} asks for the {name!r} of each token, which these lessons do "
                "not tell; take the scheme that has its name."
            )


def _check_tokens(each: Term, student: Knowledge, teacher: Knowledge | None) -> None:
    """Raises RecipeError where one side answers in other tokens, and the loss can't take that."""
    if isinstance(student.logits, Foreign):
        raise RecipeError(
            "The student reads other tokens than the task's tokenizer writes; give the task the "
            "student's own tokenizer: the teacher may have another."
        )
    its = teacher is not None and isinstance(teacher.logits, Foreign)
    if its and each.needs_teacher and not foreign(each.function):
        raise RecipeError(
            f"The loss {each.name} compares class by class, and the teacher answers in other "
            "tokens than the student; take response.mined or response.uld, which don't, or a "
            "teacher with the task's tokenizer."
        )


def _pairs(each: Term, student: Knowledge, teacher: Knowledge | None) -> dict[str, Pair]:
    """What a term compares: the logits, pairs of layers, or all its layers at once."""
    if teacher is None or not each.layers:
        its = None if teacher is None else teacher.logits.to(student.logits.device)
        return {"": Pair(student.logits, its, student.mask)}
    met = {
        _key(mine, its): meet(
            each.kind, _layer(student, mine, "student"), _layer(teacher, its, "teacher")
        )
        for mine, its in each.layers.items()
    }
    return {"": together(met.values())} if each.kind == "Stages" else met


def _layer(knowledge: Knowledge, path: str, whose: str) -> Layer:
    if path not in knowledge.features:
        raise LayerError(
            f"The {whose}'s knowledge has no layer {path!r}; have its forward read it, as in "
            f"partial(task.forward, layers=[{path!r}])."
        )
    return Layer(path, knowledge.features[path], knowledge.mask)


def _first(side: Tensor | Sequence[Tensor] | None) -> Tensor:
    """The feature itself, or the first of several stages."""
    assert side is not None
    return side if isinstance(side, Tensor) else side[0]


def _detached(side: Tensor | Sequence[Tensor] | None) -> Tensor | list[Tensor] | None:
    if side is None or isinstance(side, Tensor):
        return None if side is None else side.detach()
    return [each.detach() for each in side]


def _key(mine: str, its: str) -> str:
    # A module can't have a dot in its name.
    return f"{mine} -> {its}".replace(".", "/")


def _state_key(name: str, key: str) -> str:
    return f"{name}: {key}".replace(".", "/")
