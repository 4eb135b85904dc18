"""Every name of a recipe looked up and every option checked, before anything is loaded."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from reprlib import repr as short
from typing import Any, get_type_hints

from attar.errors import RecipeError
from attar.recipe.dialect import Trail
from attar.recipe.paper import Choice, Recipe, as_choice
from attar.recipe.reading import read
from attar.resolve import (
    Function,
    Room,
    asks,
    bind,
    chosen,
    compares,
    faults,
    find,
    names,
    options,
)

ROOMS: dict[str, Room] = {
    "task": "attar.tasks",
    "teacher": "attar.teachers",
    "student": "attar.students",
    "teach": "attar.teach",
    "losses": "attar.losses",
    "weight": "attar.distill.schedules",
    "steps": (
        "distill=attar.distill:train",
        "attar.compress",
        "export=attar.export",
        "repeat=attar.recipe.rounds:repeat",
    ),
    "measure": "attar.measure",
    "gates": "attar.measure.gates",
    "baselines": "attar.baselines",
    "engine": "attar.engine",
}
"""Where the names under each key of a recipe are looked up; `weight` stands inside a loss."""

TERM = ("weight", "layers")
"""What belongs to a term of the objective; every other option of a loss goes to its function."""


@dataclass(frozen=True)
class Piece:
    """A choice resolved: its function, with the recipe's options bound.

    trail: where the recipe says it
    """

    name: str
    function: partial[Any]
    trail: Trail


@dataclass(frozen=True)
class Term(Piece):
    """A loss resolved. `task` is the task class's own `loss`: its function still asks for `self`.

    weight: a number, or a schedule from progress to number
    layers: None, a word the pairing knows such as `auto`, or student path to teacher path
    """

    weight: float | partial[float]
    layers: str | dict[str, str] | None


@dataclass(frozen=True)
class Resolved:
    """A recipe with every name looked up and every option checked, key by key."""

    task: Piece
    teacher: Piece | None
    student: Piece | None
    teach: Piece | None
    losses: tuple[Term, ...]
    steps: tuple[Piece, ...]
    measure: tuple[Piece, ...]
    gates: tuple[Piece, ...]
    baselines: tuple[Piece, ...]
    engine: Piece

    @property
    def afar(self) -> bool:
        """Whether the teacher is no network here, but is asked and its answers are kept."""
        return self.teacher is not None and "cache" in asks(self.teacher.function)


@dataclass(frozen=True)
class _Lookup:
    """What it takes to resolve any part of one recipe."""

    recipe: Recipe
    rooms: Mapping[str, Room]
    trust: bool

    def one(self, key: str) -> Piece:
        return self.piece(key, vars(self.recipe)[key], (key,))

    def maybe(self, key: str) -> Piece | None:
        return None if vars(self.recipe)[key] is None else self.one(key)

    def gates(self) -> tuple[Piece, ...]:
        limits = {name: {"limit": limit} for name, limit in self.recipe.gates.items()}
        return tuple(
            self.piece("gates", Choice(name=name, options=said), ("gates", name))  # type: ignore[arg-type]
            for name, said in limits.items()
        )

    def measures(self) -> tuple[Piece, ...]:
        """What is measured; gates are judged by an audit, whether or not the recipe names it."""
        named = self.many("measure")
        implied = self.recipe.gates and all(piece.name != "audit" for piece in named)
        audit = [self.piece("measure", Choice(name="audit"), ("gates",))] if implied else []
        return (*named, *audit)

    def network(self, key: str, option: str) -> Piece | None:
        """A piece, and what a student can be that an option of it names, which is looked up too."""
        piece = self.maybe(key)
        inner = None if piece is None else piece.function.keywords.get(option)
        if piece is not None and inner is not None:
            trail: Trail = (key, piece.name, option)
            try:
                choice = Choice.model_validate(as_choice(inner))
            except ValueError as error:
                raise self.error(trail, str(error)) from None
            self.piece("student", choice, trail)
        return piece

    def many(self, key: str) -> tuple[Piece, ...]:
        choices = enumerate(vars(self.recipe)[key])
        return tuple(self.piece(key, choice, (key, index)) for index, choice in choices)

    def steps(self) -> Iterator[Piece]:
        """The steps, those of a `repeat` written out round by round."""
        for piece in self.many("steps"):
            yield from self.rounds(piece) if piece.name == "repeat" else (piece,)

    def rounds(self, repeat: Piece) -> Iterator[Piece]:
        for place, step, progress in repeat.function():
            trail: Trail = (*repeat.trail, "repeat", "steps", place)
            try:
                choice = Choice.model_validate(as_choice(step))
            except ValueError as error:
                raise self.error(trail, str(error)) from None
            if choice.name == "repeat":
                raise self.error(trail, "a repeat can't stand in another: multiply their `times`")
            now = {
                name: self.number(said, (*trail, choice.name, name), progress)
                for name, said in choice.options.items()
            }
            yield self.piece("steps", Choice(name=choice.name, options=now), trail)

    def number(self, said: Any, trail: Trail, progress: float) -> Any:
        """What an option of a step says at a progress, where that is a schedule."""
        if not _is_choice(said) or next(iter(said)) not in names(self.rooms["weight"]):
            return said
        schedule = Choice.model_validate(as_choice(said))
        return self.piece("weight", schedule, trail).function(progress)

    def piece(self, key: str, choice: Choice, trail: Trail) -> Piece:
        return self.bound(self.found(key, choice, trail), choice, trail)

    def found(self, key: str, choice: Choice, trail: Trail) -> Function:
        try:
            return find(self.rooms[key], choice.name, trust=self.trust)
        except RecipeError as error:
            raise self.error(trail, str(error)) from None

    def bound(self, function: Function, choice: Choice, trail: Trail) -> Piece:
        also = TERM if trail[:-1] == ("losses",) else ()
        for option, sentence in faults(function, choice.options, choice.name, also):
            raise self.error((*trail, choice.name, option), sentence)
        return Piece(choice.name, bind(function, choice.options), trail)

    def moving(self, function: Function, choice: Choice, trail: Trail) -> Piece:
        """A loss with its options bound, of which those that are floats may be schedules."""
        schedules = {
            name: self.schedule(function, choice, name, (*trail, choice.name, name))
            for name, option in options(function).items()
            if "float" in option.type.split(" or ") and _is_choice(choice.options.get(name))
        }
        for progress in (0.0, 1.0):  # an option has to be right where its schedule begins and ends
            at = {name: schedule(progress) for name, schedule in schedules.items()}
            now = Choice(name=choice.name, options={**choice.options, **at})
            piece = self.bound(function, now, trail)
        return Piece(choice.name, partial(piece.function, **schedules), trail)

    def schedule(
        self, function: Function, loss: Choice, option: str, trail: Trail
    ) -> partial[float]:
        if inspect.isclass(function):
            raise self.error(
                trail,
                f"{loss.name} is built once: its option {option!r} can't be a schedule, its weight "
                "can",
            )
        chosen = Choice.model_validate(as_choice(loss.options[option]))
        return self.piece("weight", chosen, trail).function

    def term(self, index: int, task: Piece) -> Term:
        written = self.recipe.losses[index]
        trail: Trail = ("losses", index)
        own = {k: v for k, v in written.options.items() if k not in TERM}
        choice = Choice(name=written.name, options=own)
        if choice.name == "task":
            function = _made_by(task.function.func).loss
        else:
            function = self.found("losses", choice, trail)
        piece = self.moving(function, choice, trail)
        weight = self.weight(written, (*trail, written.name, "weight"))
        layers = self.layers(written, function, (*trail, written.name, "layers"))
        return Term(piece.name, piece.function, trail, weight, layers)

    def weight(self, loss: Choice, trail: Trail) -> float | partial[float]:
        weight = loss.options.get("weight", 1.0)
        if isinstance(weight, int | float) and not isinstance(weight, bool):
            return float(weight)
        try:
            schedule = Choice.model_validate(as_choice(weight))
        except ValueError:
            raise self.error(
                trail,
                f"the weight of {loss.name} must be a number or a schedule, not {short(weight)}",
            ) from None
        return self.piece("weight", schedule, trail).function

    def layers(self, loss: Choice, function: Function, trail: Trail) -> str | dict[str, str] | None:
        layers = loss.options.get("layers")
        if isinstance(layers, str) and compares(function) == "Logits":
            raise self.error(trail, f"{loss.name} compares logits and takes no layers")
        if layers is None or isinstance(layers, str):
            return layers
        if isinstance(layers, dict) and all(isinstance(path, str) for path in layers.values()):
            return {student: str(teacher) for student, teacher in layers.items()}
        raise self.error(
            trail,
            f"the layers of {loss.name} must be a word such as auto, or student path: "
            f"teacher path, not {short(layers)}",
        )

    def error(self, trail: Trail, sentence: str) -> RecipeError:
        return RecipeError(f"{self.recipe.place(*trail)}: {sentence}")


def _is_choice(value: Any) -> bool:
    """Whether an option is written as `name: {options}`."""
    if not isinstance(value, dict) or len(value) != 1:
        return False
    return all(options is None or isinstance(options, dict) for options in value.values())


def _made_by(task: Function) -> Any:
    return task if inspect.isclass(task) else get_type_hints(task)["return"]


def check(recipe: Recipe, rooms: Mapping[str, Room] = ROOMS, *, trust: bool = False) -> Resolved:
    """Every name looked up, every option checked, before anything is loaded.

    rooms: where the names under each key are looked up
    trust: whether names with a colon may run the user's own file
    Errors: `RecipeError` with the line, for the first thing that is not right.
    """
    lookup = _Lookup(recipe, rooms, trust)
    task = lookup.one("task")
    resolved = Resolved(
        task=task,
        teacher=lookup.network("teacher", "network"),
        student=lookup.network("student", "student"),
        teach=lookup.network("teach", "critic"),
        losses=tuple(lookup.term(index, task) for index in range(len(recipe.losses))),
        steps=tuple(lookup.steps()),
        measure=lookup.measures(),
        gates=lookup.gates(),
        baselines=lookup.many("baselines"),
        engine=lookup.one("engine"),
    )
    if in_a_circle(recipe):
        raise lookup.error(("teacher",), "the recipes give each other's teacher in a circle")
    for trail, sentence in _nonsense(resolved):
        raise lookup.error(trail, sentence)
    return resolved


def in_a_circle(recipe: Recipe) -> bool:
    """Whether the recipe that gives the teacher, and the one that gives its, lead back to one."""
    seen = {Path(recipe.place()).resolve()}
    while recipe.teacher is not None and recipe.teacher.name == "distilled":
        path = Path(str(recipe.teacher.options.get("recipe"))).resolve()
        if path in seen:
            return True
        seen.add(path)
        try:
            recipe = read(path)
        except RecipeError:  # it will be told when that recipe is opened
            return False
    return False


def teaches_alone(scheme: partial[Any]) -> bool:
    """Whether a scheme needs no teacher: it has the student, its peers, a store, teachers of its
    own, the classes, a reward."""
    asked = asks(scheme)
    if "teachers" in asked:
        can_do_without = asked["teachers"].default is not inspect.Parameter.empty
        return can_do_without or bool(chosen(scheme, "others"))
    return set(asked) != {"batches"}


def _needs_teacher(student: Piece) -> bool:
    """Whether one of attar's own students is made of the teacher; a user's own may do without."""
    return ":" not in student.name and "teacher" in asks(student.function)


def _afar(recipe: Resolved) -> Iterator[tuple[Trail, str]]:
    """What can't be had of a teacher that is no network here."""
    teacher, scheme = recipe.teacher, recipe.teach
    if teacher is None or not recipe.afar:
        return
    if recipe.student is None or _needs_teacher(recipe.student):
        yield (
            ("student",),
            f"a teacher by {teacher.name} is no network here that a student could be made of: name "
            "another student, such as pretrained or llama",
        )
    if scheme is None or not set(asks(scheme.function)) <= {"batches", "teachers", "write"}:
        yield (
            ("teach",),
            f"a teacher by {teacher.name} is asked before the training and gives text: set "
            "`teach: teacher_text`",
        )
    for term in recipe.losses:
        if chosen(teacher.function, "top") is None and _compares(term):
            yield (
                term.trail,
                f"{term.name} compares answers, and {teacher.name} is asked for text alone: give "
                "it `top`, or learn its text by the loss task",
            )


def _compares(term: Term) -> bool:
    """Whether a loss needs what a teacher says beside its text."""
    function = term.function
    if term.name == "task":
        return False
    return not inspect.isfunction(function.func) or "teacher" in asks(function)


def _nonsense(recipe: Resolved) -> Iterator[tuple[Trail, str]]:
    if recipe.student is None and recipe.teacher is None:
        yield ("steps",), "there is no model to work on: name a student, a teacher, or both"
    if recipe.student is not None and recipe.teacher is None and _needs_teacher(recipe.student):
        yield (
            ("student",),
            f"the student {recipe.student.name} takes layers or words of the teacher, and the "
            "recipe has none: add the key teacher",
        )
    yield from _afar(recipe)
    for step in recipe.steps:
        if step.name == "distill" and recipe.student is None:
            yield step.trail, "distill needs a student to train: add the key student"
        if step.name == "distill" and not recipe.losses:
            yield step.trail, "distill needs something to learn from: add the key losses"
    for term in filter(_compares, recipe.losses):
        if recipe.teach is None:
            yield term.trail, f"{term.name} needs somebody to teach, and teach is null"
        elif recipe.teacher is None and not teaches_alone(recipe.teach.function):
            yield term.trail, f"{term.name} needs a teacher: add the key teacher"
