"""The corridor: one recipe, top to bottom."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attar import arms, export, students
from attar.baselines import Arm, Scheme, untaught
from attar.casting import (
    build_student,
    built,
    check_other,
    for_teachers,
    load,
    made,
    teacher_kept,
    tell_how_it_reads,
)
from attar.compressing import called, check_step, compressed, for_compressors, in_short, made_by
from attar.distill import Term
from attar.distill.loop import Watch
from attar.engine import local
from attar.errors import EngineError, ModelError, RecipeError
from attar.hearing import heard
from attar.measure.comparing import emulated
from attar.recipe import Piece, Recipe
from attar.report import Report
from attar.resolve import ask, asks, chosen
from attar.results import Entry, assemble
from attar.schooling import (
    answers_at_hand,
    arm_folder,
    fill_store,
    lessons,
    rehearse,
    teachers_answers,
    teaching,
)
from attar.screen import Screen, Silent
from attar.setting import Book, Cast, Setting, Teaching, begin
from attar.tracking import opened
from attar.types import Lesson


def run(
    recipe: Recipe | str | Path,
    out: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    trust: bool = False,
    screen: Screen | None = None,
    command: str = "",
    track: Sequence[str] = (),
) -> Report:
    """Do what a recipe says and report it; a run that was interrupted goes on where it stopped.

    recipe: a recipe, or the file of one
    out: the folder for artifacts and report; `runs/NAME` where left out
    overrides: `path=value` settings over a recipe that is a file
    trust: let names with a colon run the user's own code
    screen: where sentences and progress go
    command: what the user typed, for the report
    track: who is told live how trainings go: `tensorboard`, `mlflow` or `wandb`, with `:WHERE`
    Raises a child of AttarError for whatever the user can mend.
    """
    started = time.monotonic()
    here = begin(recipe, out, overrides=overrides, trust=trust, screen=screen, command=command)
    with closing(opened(track, here.out, here.recipe.name or here.out.name)) as tracking:
        report = _followed(replace(here, track=tracking), started)
        tracking.end(report)
    return report


def _followed(here: Setting, started: float) -> Report:
    """The recipe from top to bottom."""
    book = Book()
    _rehearse(here)
    teacher = find_teacher(here, book)
    tell_how_it_reads(here, teacher, book)
    here = heard(here.with_states(teacher), book)
    student = build_student(here, teacher)
    taught = teaching(here, teacher, student, book)
    fill_store(here, teacher, taught, book)
    entries = [] if teacher is None else [Entry("teacher", teacher, path=book.teacher)]
    done, begun = follow_steps(here, teacher, student, taught, book)
    controls = [] if begun is None else train_baselines(here, teacher, taught, book, *begun)
    return assemble(here, book, [*entries, *done, *controls], started)


def _rehearse(here: Setting) -> None:
    """Meet what can go wrong before hours are spent: folders, models, layers, steps."""
    for folder in (here.out, here.cache):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f".writable-{os.getpid()}").touch()
            (folder / f".writable-{os.getpid()}").unlink()
        except OSError as error:
            raise EngineError(f"The folder {folder} can't be written: {error.strerror}.") from error
    quiet = replace(here, screen=Silent())
    models = cast(quiet, Book())
    list(baseline_arms(quiet, models.teacher, models.taught, untaught))
    model = models.student
    given = in_short(for_compressors(quiet, Book()))
    for step in here.plan.steps:
        check_step(step, model)
        if step.name == "distill":
            taught = teaching(quiet, models.teacher, model, Book())
            rehearse(quiet, replace(models, student=model, taught=taught))
            model = students.merged(model)
        elif not step.name.startswith("export."):
            model = ask(step.function, given | {"model": model})


def find_teacher(here: Setting, book: Book) -> nn.Module | None:
    """The teacher: loaded, or trained now, or found trained by an earlier run."""
    folder = teacher_kept(here)
    if here.plan.teacher is None or folder is None:
        loaded = _as_it_is(here, partial(_student_of, here))[0]
        return None if loaded is None else here.engine.prepare(loaded)
    make = here.plan.teacher.function
    torch.manual_seed(here.recipe.seed)

    def train(engine: local, watch: Watch) -> nn.Module:
        given = for_teachers(here) | {"engine": engine, "watch": watch}
        return ask(make, given)  # type: ignore[no-any-return]

    build = partial(built, here)
    teacher, curve = here.trained("teacher", folder, build, train)
    book.note("teacher", curve)
    book.teacher = _folder(here, teacher)
    return here.engine.prepare(teacher)


def _folder(here: Setting, teacher: nn.Module) -> Path | None:
    """The trained teacher as a folder, in the form that its make has; None where it has none."""
    path = here.out / "teacher"
    if "config" in vars(teacher):
        return export.transformers(teacher, path, here.task.save)
    try:
        return export.safetensors(teacher, path, students.save)
    except ModelError:
        kind = type(teacher).__name__
        here.screen.say(f"The teacher stays in the cache: {kind} has no form as a folder.")
        return None


def cast(here: Setting, book: Book) -> Cast:
    """The models as they are found, nothing trained or written: for a look ahead."""
    teacher, trained = _as_it_is(here, partial(_untrained, here))
    student = build_student(here, teacher)
    return Cast(teacher, trained, student, teaching(here, teacher, student, book))


def _as_it_is(
    here: Setting, student_of: Callable[[str], nn.Module]
) -> tuple[nn.Module | None, bool]:
    """The teacher without training it, and whether it knows the task; if not, its head is new.

    student_of: gives the student of another recipe, which may be this one's teacher
    """
    if here.plan.teacher is None or here.afar:
        return None, False
    folder = teacher_kept(here)
    torch.manual_seed(here.recipe.seed)
    if folder is None:
        return made(here, here.plan.teacher, also={"student_of": student_of}), True
    known = arms.found(folder, partial(built, here))
    return (built(here), False) if known is None else (known[0], True)


def _student_of(here: Setting, recipe: str) -> nn.Module:
    """The student of another recipe."""
    return student_of(_other(here, recipe))


def student_of(there: Setting) -> nn.Module:
    """The student of a recipe's first `distill` step, found trained or trained now."""
    book = Book()
    _rehearse(there)
    teacher = find_teacher(there, book)
    there = heard(there.with_states(teacher), book)
    student = build_student(there, teacher)
    taught = teaching(there, teacher, student, book)
    fill_store(there, teacher, taught, book)
    names = [step.name for step in there.plan.steps]
    until = there.plan.steps[: names.index("distill") + 1]
    there = replace(there, plan=replace(there.plan, steps=until))
    return follow_steps(there, teacher, student, taught, book)[0][-1].model


def _untrained(here: Setting, recipe: str) -> nn.Module:
    """The same student before its training, for a look ahead."""
    return cast(replace(_other(here, recipe), screen=Silent()), Book()).student


def _other(here: Setting, recipe: str) -> Setting:
    """Another recipe, by this one's seed and in a folder beside its results."""
    folder = here.out / "teachers" / Path(recipe).stem
    seed = [f"seed={here.recipe.seed}"]
    there = begin(recipe, folder, overrides=seed, trust=here.trust, screen=here.screen)
    check_other(here, there, recipe)
    return replace(there, track=here.track.of(Path(recipe).stem))


def follow_steps(
    here: Setting,
    teacher: nn.Module | None,
    student: nn.Module,
    taught: Teaching,
    book: Book,
) -> tuple[list[Entry], tuple[nn.Module, partial[Any]] | None]:
    """Distill, compress and export in the recipe's order.

    Gives what is to be measured; and, for the baselines, the student as it was before the first
    `distill` with that step's function.
    """
    entries: list[Entry] = []
    begun: tuple[nn.Module, partial[Any]] | None = None
    trainings: list[str] = []
    model, name, knows = student, "student", here.plan.student is None
    after = "teacher" if knows else ""
    for number, step in enumerate(here.plan.steps):
        if step.name.startswith("export."):
            file = _export(here, step, model, name, book, after)
            entries.append(replace(file, trainings=tuple(trainings)))
            continue
        if step.name != "distill":
            here.screen.say(f"{step.name} ...")
            model = compressed(here, step.function, model, book)
            name = called(name, step.name)
        else:
            begun = begun or (copy.deepcopy(model), all_steps(here))
            if made_by(here.plan.steps[:number]):  # by the layers that are left
                taught = teaching(here, teacher, model, book)
                fill_store(here, teacher, taught, book)
            scheme = partial(lessons, here, teacher, taught)
            arm = student_arm(here, number, name, scheme, taught.terms)
            name = arm.name
            model = train_arm(here, arm, copy.deepcopy(model), step.function, teacher, taught, book)
            knows = True
            trainings.append(name)
        later = [each.name for each in here.plan.steps[number + 1 :]]
        if knows and not (emulated(model) and any(each.startswith("export.") for each in later)):
            entries.append(Entry(name, model, after=after, trainings=tuple(trainings)))
            after = name
    return entries, begun


def student_arm(
    here: Setting, number: int, name: str, scheme: Scheme, terms: tuple[Term, ...]
) -> Arm:
    """How one of the recipe's steps trains the student; a repair has a name of its own."""
    before = here.plan.steps[:number]
    first = name == "student" and all(step.name != "distill" for step in before)
    title = name if first else called(name, "distill")
    return Arm(title, "train", scheme, terms, made=made_by(before))


def all_steps(here: Setting) -> partial[Any]:
    """The first `distill` step with the optimizer steps of all: what baselines may take too."""
    trainings = [step.function for step in here.plan.steps if step.name == "distill"]
    if len(trainings) == 1:
        return trainings[0]
    total = sum(_steps_of(here, each) for each in trainings)
    return partial(trainings[0], steps=total, epochs=None)


def _steps_of(here: Setting, step: partial[Any]) -> int:
    """How many optimizer steps a `distill` step takes."""
    epoch = len(here.task.batches("train", batch_size=chosen(step, "batch_size")))
    return int(chosen(step, "steps") or round((chosen(step, "epochs") or 0) * epoch))


def _export(
    here: Setting, step: Piece, model: nn.Module, name: str, book: Book, after: str
) -> Entry:
    """Write a file, and load it as a user would.

    A file finds beside itself what prepares its inputs; where that differs, in its own folder.
    """
    start = time.monotonic()
    shown = here.task.preprocessing(model)
    folder = here.out / name if shown != (book.shown or shown) else here.out
    book.shown = book.shown or shown
    folder.mkdir(parents=True, exist_ok=True)
    here.task.save(model, folder / here.task.beside)
    given = {
        "model": model,
        "example": here.task.example,
        "path": folder / name,
        "facts": here.task.facts,
        "save": students.save,
        "prepare": here.task.save,
    }
    path: Path = ask(step.function, given)
    loaded = load(here, str(path))
    here.screen.say(f"Wrote {path}, and read it back.")
    book.seconds[f"export {path.name}"] = time.monotonic() - start
    title = path.name if path.is_file() else f"{name}-folder"
    return Entry(title, loaded, path, source=model, after=after)


def train_arm(
    here: Setting,
    arm: Arm,
    student: nn.Module,
    step: partial[Any],
    teacher: nn.Module | None,
    taught: Teaching,
    book: Book,
) -> nn.Module:
    """One training of the student, found done, resumed or begun."""
    folder = arm_folder(here, arm, student, step, teacher, taught)
    train = partial(fit, here, arm, student, step, taught)
    model, curve = here.trained(arm.name, folder, lambda: student, train)
    book.note(arm.name, curve)
    if (folder / arms.BEST).is_file():
        book.best[arm.name] = lambda: students.merged(arms.at_best(model, folder))
    return students.merged(model)


def fit(
    here: Setting,
    arm: Arm,
    student: nn.Module,
    step: partial[Any],
    taught: Teaching,
    engine: local,
    watch: Watch,
) -> nn.Module:
    """Train a student as an arm says, on an engine that may know how far it came before."""
    torch.manual_seed(here.recipe.seed)

    def course(batch_size: int) -> tuple[Iterable[Lesson], int]:
        batches = here.task.batches(arm.part, batch_size=batch_size)
        # Every arm takes the steps of the student's epochs, however small its own part is.
        epoch = len(here.task.batches("train", batch_size=batch_size))
        return arm.scheme(engine.feed(batches), student, engine, _steps_of(here, step)), epoch

    layers = taught.student_layers if arm.losses == taught.terms else ()
    given = {
        "student": student,
        "lessons": course,
        "losses": arm.losses,
        "forward": partial(here.task.forward, layers=layers),
        "engine": engine,
        "score": here.task.score,
        "watch": watch,
    }
    return ask(step, given)  # type: ignore[no-any-return]


def train_baselines(
    here: Setting,
    teacher: nn.Module | None,
    taught: Teaching,
    book: Book,
    student: nn.Module,
    step: partial[Any],
) -> list[Entry]:
    """The same student from the same weights for the same steps, without its teacher."""
    entries = []
    for arm in baseline_arms(here, teacher, taught, teachers_answers(here, teacher, taught)):
        model = copy.deepcopy(student)
        if arm.trained:
            model = train_arm(here, arm, model, step, teacher, taught, book)
        model = students.merged(model)
        entries.append(Entry(arm.name, model, trainings=(arm.name,) * arm.trained))
    return entries


def baseline_arms(
    here: Setting, teacher: nn.Module | None, taught: Teaching, scheme: Scheme
) -> Iterator[Arm]:
    """The recipe's baselines, but those that would only repeat another on this data."""
    before = takewhile(lambda step: step.name != "distill", here.plan.steps)
    made = made_by(tuple(before))
    acts = here.plan.teach is not None and "stage" in asks(here.plan.teach.function)
    alone = partial(lessons, here, None, taught) if acts else None
    given = {"loss": here.task.loss, "scheme": scheme, "terms": taught.terms, "rewarded": alone}
    for choice in here.plan.baselines:
        arm: Arm = ask(choice.function, given)
        if arm.needs_pool and not here.task.has_pool:
            here.screen.say(f"{arm.name} is left out: every training text has a label.")
            continue
        if arm.needs_pool and teacher is None and not answers_at_hand(here):
            raise RecipeError(f"The baseline {arm.name} needs a teacher: add the key teacher.")
        yield replace(arm, made=made)
