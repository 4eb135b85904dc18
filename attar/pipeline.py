"""The corridor: one recipe, top to bottom."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attar import arms, distill, export, students, teach
from attar.baselines import Arm, Scheme
from attar.distill.loop import Watch
from attar.engine import local
from attar.errors import EngineError, RecipeError
from attar.measure.comparing import emulated
from attar.recipe import Piece, Recipe, Resolved, check, read
from attar.report import Report
from attar.resolve import ask, asks, compares
from attar.results import Entry, assemble
from attar.screen import Screen, Silent
from attar.store import fingerprint
from attar.tasks.text import classification
from attar.types import Batch, Knowledge, Lesson


@dataclass(frozen=True)
class Setting:
    """What stands before any model does: the recipe, its names looked up, its data read."""

    recipe: Recipe
    plan: Resolved
    task: classification
    engine: local
    out: Path
    cache: Path
    screen: Screen
    command: str


@dataclass
class Book:
    """What a run writes down on its way."""

    seconds: dict[str, float] = field(default_factory=dict)
    history: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    teacher: Path | None = None

    def note(self, name: str, curve: arms.Curve) -> None:
        """Write down how a training went."""
        self.seconds[name] = curve.seconds
        self.history[name] = curve.points


@dataclass(frozen=True)
class Teaching:
    """How the student is taught: terms, whose layers they read, and where lessons come from."""

    terms: tuple[distill.Term, ...]
    student_layers: tuple[str, ...]
    teacher_layers: tuple[str, ...]


@dataclass(frozen=True)
class Cast:
    """A recipe's models before anything is trained, and how the student is to be taught.

    trained: whether the teacher already knows the task
    """

    teacher: nn.Module | None
    trained: bool
    student: nn.Module
    taught: Teaching


def run(
    recipe: Recipe | str | Path,
    out: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    trust: bool = False,
    screen: Screen | None = None,
    command: str = "",
) -> Report:
    """Do what a recipe says and report it; a run that was interrupted goes on where it stopped.

    recipe: a recipe, or the file of one
    out: the folder for artifacts and report; `runs/NAME` where left out
    overrides: `path=value` settings over a recipe that is a file
    trust: let names with a colon run the user's own code
    screen: where sentences and progress go
    command: what the user typed, for the report
    Raises a child of AttarError for whatever the user can mend.
    """
    started = time.monotonic()
    here = begin(recipe, out, overrides=overrides, trust=trust, screen=screen, command=command)
    book = Book()
    _rehearse(here)
    teacher = find_teacher(here, book)
    student = build_student(here, teacher)
    taught = teaching(here, teacher, student, book)
    fill_store(here, teacher, taught, book)
    entries = [] if teacher is None else [Entry("teacher", teacher, path=book.teacher)]
    done, arms_begin = follow_steps(here, teacher, student, taught, book)
    entries += done
    if arms_begin is not None:
        entries += train_baselines(here, teacher, taught, book, *arms_begin)
    return assemble(here, book, entries, started)


def begin(
    recipe: Recipe | str | Path,
    out: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    trust: bool = False,
    screen: Screen | None = None,
    command: str = "",
) -> Setting:
    """Every name of a recipe looked up and its data read; no model touched yet."""
    name = "recipe" if isinstance(recipe, Recipe) else Path(recipe).stem
    paper = recipe if isinstance(recipe, Recipe) else read(recipe, overrides)
    plan = check(paper, trust=trust)
    folder = Path(out) if out is not None else Path("runs") / (paper.name or name)
    screen = screen or Silent()
    task = ask(plan.task.function, {"seed": paper.seed})
    for note in task.notes:
        screen.say(note)
    screen.say(
        f"Data: {task.size('train')} training texts ({task.size('labelled')} labelled), "
        f"{task.size('validation')} for validation, {task.size('test')} to test, "
        f"{len(task.classes)} classes."
    )
    engine = ask(plan.engine.function, {})
    return Setting(paper, plan, task, engine, folder, cache_folder(), screen, command)


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
    list(baseline_arms(quiet, models.teacher, teach.alone))
    for step in here.plan.steps:
        given = {"steps", "epochs"} & set(step.function.keywords)
        if step.name == "distill" and len(given) != 1:
            raise RecipeError("The step distill needs either `steps` or `epochs`.")


def cache_folder() -> Path:
    """Where teachers and knowledge are kept between runs: $ATTAR_CACHE, or ~/.cache/attar."""
    return Path(os.environ.get("ATTAR_CACHE", "~/.cache/attar")).expanduser()


def find_teacher(here: Setting, book: Book) -> nn.Module | None:
    """The teacher: loaded, or trained now, or found trained by an earlier run."""
    folder = teacher_kept(here)
    if here.plan.teacher is None or folder is None:
        loaded = _as_it_is(here)[0]
        return None if loaded is None else here.engine.prepare(loaded)
    make = here.plan.teacher.function
    torch.manual_seed(here.recipe.seed)

    def train(engine: local, watch: Watch) -> nn.Module:
        return ask(make, {"task": here.task, "engine": engine, "watch": watch})  # type: ignore[no-any-return]

    build = partial(_built, here)
    teacher, curve, _ = arms.trained(
        "Training the teacher", folder, here.engine, here.screen, build, train
    )
    book.note("teacher", curve)
    book.teacher = export.transformers(teacher, here.out / "teacher")
    return here.engine.prepare(teacher)


def teacher_kept(here: Setting) -> Path | None:
    """The folder that the recipe's trained teacher has in the cache; None where none is trained."""
    if here.plan.teacher is None or "engine" not in asks(here.plan.teacher.function):
        return None
    base = _built(here)
    facts = (here.task.digest(), here.task.preprocessing(base), here.recipe.seed)
    options = here.plan.teacher.function.keywords
    key = arms.key(options, facts, fingerprint(base), here.engine.precision)
    return here.cache / "teachers" / key


def cast(here: Setting, book: Book) -> Cast:
    """The models as they are found, nothing trained or written: for a look ahead."""
    teacher, trained = _as_it_is(here)
    student = build_student(here, teacher)
    return Cast(teacher, trained, student, teaching(here, teacher, student, book))


def _as_it_is(here: Setting) -> tuple[nn.Module | None, bool]:
    """The teacher without training it, and whether it knows the task; if not, its head is new."""
    if here.plan.teacher is None:
        return None, False
    folder = teacher_kept(here)
    torch.manual_seed(here.recipe.seed)
    if folder is None:
        given = {"task": here.task, "classes": list(here.task.classes), "load": here.task.load}
        return here.task.load(ask(here.plan.teacher.function, given)), True
    known = arms.found(folder, partial(_built, here))
    return (_built(here), False) if known is None else (known[0], True)


def _built(here: Setting) -> nn.Module:
    """The network that the recipe's teacher is trained from, under a new head."""
    assert here.plan.teacher is not None
    torch.manual_seed(here.recipe.seed)
    return here.task.load(here.plan.teacher.function.keywords["model"], new_head=True)


def build_student(here: Setting, teacher: nn.Module | None) -> nn.Module:
    """The untrained student; without one in the recipe, the teacher itself is compressed."""
    if here.plan.student is None:
        assert teacher is not None
        return copy.deepcopy(teacher)
    torch.manual_seed(here.recipe.seed)
    student = ask(
        here.plan.student.function,
        {
            "teacher": teacher,
            "texts": here.task.texts,
            "classes": list(here.task.classes),
            "max_length": here.task.max_length,
            "load": here.task.load,
        },
    )
    return here.task.load(student)


def teaching(here: Setting, teacher: nn.Module | None, student: nn.Module, book: Book) -> Teaching:
    """The recipe's losses as terms, their layers paired, and the pairs written down and told."""
    terms, pairs = [], {}
    for choice in here.plan.losses:
        function = choice.function
        if choice.name == "task":
            function = partial(function, here.task)
        layers = choice.layers
        kind = compares(function)
        if teacher is not None and kind != "Logits" and not isinstance(layers, dict):
            batch = next(here.task.sweep("train", batch_size=2))
            run_once = partial(_run_once, here.task, batch)
            layers = distill.pair(student, teacher, run_once, kind, layers or "auto")
        term = distill.term(function, choice.weight, layers=layers or None)  # type: ignore[arg-type]
        terms.append(term)
        if layers:
            pairs[choice.name] = [{"student": s, "teacher": t} for s, t in layers.items()]  # type: ignore[union-attr]
    for name, found in pairs.items():
        for pair in found:
            here.screen.say(f"{name}: student {pair['student']} <- teacher {pair['teacher']}")
    book.plan["layers"] = pairs
    mine = [path for term in terms for path in term.layers]
    its = [path for term in terms for path in term.layers.values()]
    return Teaching(tuple(terms), tuple(dict.fromkeys(mine)), tuple(dict.fromkeys(its)))


def _run_once(task: classification, batch: Batch, model: nn.Module) -> Knowledge:
    return task.forward(model, batch)


def lessons(
    here: Setting, teacher: nn.Module | None, taught: Teaching, batches: Iterable[Batch]
) -> Iterable[Lesson]:
    """The recipe's scheme over some batches; without a teacher, the labels alone."""
    if teacher is None or here.plan.teach is None:
        return teach.alone(batches)
    return ask(  # type: ignore[no-any-return]
        here.plan.teach.function,
        {
            "batches": batches,
            "teachers": [teacher],
            "forward": asking(here, taught),
            "facts": facts_of(here, teacher, taught),
            "cache": here.cache,
        },
    )


def asking(here: Setting, taught: Teaching) -> Any:
    """How the teacher is asked: in the engine's number format, for the layers that are compared."""

    def forward(model: nn.Module, batch: Batch) -> Knowledge:
        with here.engine.autocast():
            return here.task.forward(model, batch, taught.teacher_layers)

    return forward


def facts_of(here: Setting, teacher: nn.Module, taught: Teaching) -> dict[str, Any]:
    """What decides the teacher's answers beside its weights."""
    return here.task.preprocessing(teacher) | {
        "layers": list(taught.teacher_layers),
        "precision": here.engine.precision,
    }


def fill_store(here: Setting, teacher: nn.Module | None, taught: Teaching, book: Book) -> None:
    """Ask the teacher once for everything that training will need, where the scheme keeps it."""
    if teacher is None or here.plan.teach is None or here.plan.teach.name != "offline":
        return
    if not any(term.needs_teacher for term in taught.terms):
        return
    start = time.monotonic()
    folder = teach.store_folder(here.plan.teach.function.keywords.get("store"), here.cache)
    total, done = here.task.size("train"), 0
    with (
        teach.open_store(folder, teacher, facts_of(here, teacher, taught)) as known,
        here.screen.bar("Asking the teacher") as advance,
    ):

        def progress(rows: int) -> None:
            nonlocal done
            done += rows
            advance(done, total, "texts")

        asked = teach.fill(known, here.task.sweep("train"), teacher, asking(here, taught), progress)
        book.plan["knowledge"] = known.info()
    known_rows, size = len(known), known.bytes / 1e6
    here.screen.say(f"Knowledge: {known_rows} rows, {size:.1f} MB; {asked} asked now.")
    book.seconds["knowledge"] = time.monotonic() - start


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
    model, name = student, "student"
    for number, step in enumerate(here.plan.steps):
        if step.name == "distill":
            begun = begun or (copy.deepcopy(model), step.function)
            arm = Arm(name, "train", partial(lessons, here, teacher, taught), taught.terms)
            model = train_arm(here, arm, model, step.function, teacher, taught, book)
        elif step.name.startswith("export."):
            entries.append(_export(here, step, model, name, book))
            continue
        else:
            here.screen.say(f"{step.name} ...")
            model = compressed(here, step.function, model)
            name = f"{name}-{step.name.rpartition('.')[2]}"
        left = [later.name for later in here.plan.steps[number + 1 :]]
        if not emulated(model) or not any(later.startswith("export.") for later in left):
            entries = [each for each in entries if each.name != name]
            entries.append(Entry(name, model))
    return entries, begun


def compressed(here: Setting, step: partial[Any], model: nn.Module) -> nn.Module:
    """The model made smaller by one of the recipe's steps."""
    return ask(step, {"model": model, "example": here.task.example})  # type: ignore[no-any-return]


def _export(here: Setting, step: Piece, model: nn.Module, name: str, book: Book) -> Entry:
    """Write a file, and load it as a user would."""
    start = time.monotonic()
    here.out.mkdir(parents=True, exist_ok=True)
    here.task.save(model, here.out / "tokenizer")
    facts = {"classes": list(here.task.classes), "max_length": here.task.max_length}
    given = {
        "model": model,
        "example": here.task.example,
        "path": here.out / name,
        "facts": facts,
        "save": students.save,
    }
    path: Path = ask(step.function, given)
    own = step.name == "export.safetensors"
    loaded = students.load(path) if own else here.task.load(str(path))
    here.screen.say(f"Wrote {path}, and read it back.")
    book.seconds[f"export {path.name}"] = time.monotonic() - start
    return Entry(path.name if path.is_file() else f"{name}-folder", loaded, path, source=model)


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
    title = f"Training {arm.name}"
    train = partial(fit, here, arm, student, step, taught)
    model, curve, _ = arms.trained(title, folder, here.engine, here.screen, lambda: student, train)
    book.note(arm.name, curve)
    return model


def arm_folder(
    here: Setting,
    arm: Arm,
    student: nn.Module,
    step: partial[Any],
    teacher: nn.Module | None,
    taught: Teaching,
) -> Path:
    """Where the outcome of one training is kept: named by everything that decides it."""
    said = here.recipe.to_dict()
    facts: list[Any] = [arm.name, arm.part, step.keywords, here.recipe.seed, here.task.digest()]
    facts += [fingerprint(student), here.task.preprocessing(student), here.engine.precision]
    # Weights don't tell everything: heads and dropout leave their shapes as they are.
    facts += [said["student"], said["baselines"] if arm.losses != taught.terms else said["losses"]]
    if arm.part == "train" and teacher is not None:
        facts += [facts_of(here, teacher, taught), fingerprint(teacher), said["teach"]]
    return here.out / "arms" / f"{arm.name}-{arms.key(*facts)}"


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
        return arm.scheme(engine.feed(batches)), len(
            here.task.batches("train", batch_size=batch_size)
        )

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
    for arm in baseline_arms(here, teacher, partial(lessons, here, teacher, taught)):
        model = train_arm(here, arm, copy.deepcopy(student), step, teacher, taught, book)
        entries.append(Entry(arm.name, model))
    return entries


def baseline_arms(here: Setting, teacher: nn.Module | None, scheme: Scheme) -> Iterator[Arm]:
    """The recipe's baselines, but those that would only repeat another on this data."""
    for choice in here.plan.baselines:
        arm: Arm = ask(choice.function, {"loss": here.task.loss, "scheme": scheme})
        if arm.needs_pool and not here.task.has_pool:
            here.screen.say(f"{arm.name} is left out: every training text has a label.")
            continue
        if arm.needs_pool and teacher is None:
            raise RecipeError(f"The baseline {arm.name} needs a teacher: add the key teacher.")
        yield arm
