"""How the recipe's student is taught: terms, paired layers, and whose answers the lessons hold."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attar import arms, distill, teach
from attar.baselines import Arm, Scheme, untaught
from attar.casting import build_student, load, stage
from attar.engine import local
from attar.errors import RecipeError
from attar.recipe import Piece, teaches_alone
from attar.resolve import ask, asks, chosen, compares
from attar.setting import Book, Cast, Setting, Teaching
from attar.store import fingerprint
from attar.tasks.task import Task
from attar.teach.stored import opened
from attar.types import Batch, Knowledge, Lesson

ASKED = "Asking the teacher: another run is at it; waiting for it ..."


def teaching(here: Setting, teacher: nn.Module | None, student: nn.Module, book: Book) -> Teaching:
    """The recipe's losses as terms, their layers paired, and the pairs written down and told."""
    terms, pairs = [], {}
    own = here.plan.teach is not None and teaches_itself(here.plan.teach)
    who = student if own else teacher
    if here.taught_by("own"):
        _check_own(here)
    for choice in here.plan.losses:
        function = choice.function
        if choice.name == "task":
            function = partial(function, here.task)
        layers = choice.layers
        kind = compares(function)
        if kind != "Logits" and not isinstance(layers, dict):
            if who is None:
                raise RecipeError(
                    f"{choice.name} needs its layers: {{student path: teacher path}}."
                )
            batch = next(here.task.sweep("train", batch_size=2))
            run_once = partial(_run_once, here.task, batch)
            layers = distill.pair(student, who, run_once, kind, layers or "auto")
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


def _check_own(here: Setting) -> None:
    """What the student says of itself is the same on both sides: only its layers differ."""
    if not any(isinstance(loss.layers, dict) for loss in here.plan.losses):
        raise RecipeError(
            "`teach: own` compares layers of the student with one another, and no loss here has "
            "its layers: {earlier path: later path}."
        )


def _run_once(task: Task, batch: Batch, model: nn.Module) -> Knowledge:
    return task.forward(model, batch)


def lessons(
    here: Setting,
    teacher: nn.Module | None,
    taught: Teaching,
    batches: Iterable[Batch],
    student: nn.Module,
    engine: local,
    steps: int,
) -> Iterable[Lesson]:
    """The recipe's scheme over some batches; where nobody can teach, the labels alone."""
    if here.afar:
        return teach.spoken(batches, here.heard.recall if here.heard else _unheard(here))
    if here.plan.teach is None or (teacher is None and not teaches_alone(here.plan.teach.function)):
        return untaught(batches)
    return ask(  # type: ignore[no-any-return]
        here.plan.teach.function,
        {
            "batches": batches,
            "teachers": [] if teacher is None else [teacher],
            "student": student,
            "forward": asking(here, taught),
            "cache": here.cache,
            "engine": engine,
            "classes": here.task.classes,
            "exclusive": here.task.exclusive,
            "load": partial(load, here, partly=True),
            "act": here.task.act,
            "write": partial(_write, here),
            "note": here.task.note,
            "read": here.task.read,
            "stage": partial(stage, here),
            "examples": here.task.size("train"),
            "make": partial(_peer, here, teacher),
            "judge": _judge(here, taught),
            "steps": steps,
            "facts": facts_of(here, teacher, taught),
        },
    )


def _unheard(here: Setting) -> Callable[[Batch], Knowledge | None]:
    """What stands for an endpoint's answers before it is asked: a look ahead costs nothing."""
    assert here.plan.teacher is not None
    tells = chosen(here.plan.teacher.function, "top") is not None
    return here.task.verbatim if tells else lambda _: None


def rehearse(here: Setting, models: Cast) -> None:
    """Meet what scheme and losses refuse before anything is trained: two rows are taught.

    At progress 0 and 1, as options may follow schedules.
    """
    if not models.taught.terms:
        return
    batch = next(here.task.sweep("train", batch_size=2))
    lesson = _first_lesson(here, models, batch)
    answers = lesson.teacher
    unread = [] if answers is None else set(models.taught.teacher_layers) - set(answers.features)
    if unread and here.plan.teach is not None:
        raise RecipeError(
            f"The scheme {here.plan.teach.name} gives answers and no layers; take losses over "
            "logits."
        )
    with torch.no_grad():
        mine = here.task.forward(models.student, lesson.batch, models.taught.student_layers)
        objective = distill.Objective(models.taught.terms, mine, answers)
        for progress in (0.0, 1.0):
            objective(mine, lesson, progress)


def _first_lesson(here: Setting, models: Cast, batch: Batch) -> Lesson:
    """A lesson of the scheme; where it would be kept, what would be asked, of which nothing is."""
    scheme, teacher = here.plan.teach, models.teacher
    if scheme is not None and teacher is not None and "cache" in asks(scheme.function):
        return Lesson(batch, teach.ask(teacher, batch, asking(here, models.taught)))
    if not models.trained and here.taught_by("stored"):
        teacher = None  # it can't be told yet whether it is the one that answered
    engine = local(precision="fp32", device="cpu")  # where the models are before they train
    given = lessons(here, teacher, models.taught, [batch], models.student, engine, steps=1)
    return next(iter(given))


def teachers_answers(here: Setting, teacher: nn.Module | None, taught: Teaching) -> Scheme:
    """What the teacher says of every text, whatever the recipe's scheme makes of it."""
    scheme = here.plan.teach
    asked = () if scheme is None else asks(scheme.function)
    if here.taught_by("stored") or ("teachers" in asked and "student" not in asked):
        return partial(lessons, here, teacher, taught)
    given = [] if teacher is None else [teacher]
    forward = asking(here, replace(taught, teacher_layers=()))
    return lambda batches, *_: teach.online(batches, given, forward)


def teaches_itself(scheme: Piece) -> bool:
    """Whether what teaches is made of the student: its average, its later layers, its peers."""
    asked = asks(scheme.function)
    return "student" in asked and "teachers" not in asked


def _peer(here: Setting, teacher: nn.Module | None, number: int) -> nn.Module:
    """Another student of the same make, begun by a seed of its own."""
    return build_student(here, teacher, here.recipe.seed + 1000 * number)


def _judge(here: Setting, taught: Teaching) -> Callable[[Knowledge, Knowledge], nn.Module]:
    """What a peer minimises: the recipe's losses over logits, beside the true labels."""
    terms = [term for term in taught.terms if not term.layers] or [distill.term(here.task.loss)]

    return partial(distill.Objective, terms)


def asking(here: Setting, taught: Teaching) -> Any:
    """How the teacher is asked: in the engine's number format, for the layers that are compared."""

    def forward(model: nn.Module, batch: Batch) -> Knowledge:
        with here.engine.autocast():
            return here.task.forward(model, batch, taught.teacher_layers)

    return forward


def _write(here: Setting, *what: Any) -> Batch:
    """What a model writes, in the number format that its lessons are learned in."""
    with here.engine.autocast():
        return here.task.write(*what)


def facts_of(here: Setting, teacher: nn.Module | None, taught: Teaching) -> dict[str, Any]:
    """What decides the teacher's answers beside its weights; without it, what is asked of them."""
    layers = list(taught.teacher_layers)
    if teacher is None:
        return here.task.facts | {"layers": layers}
    own = here.task.preprocessing(teacher)
    own |= {"layers": layers, "precision": here.engine.precision}
    if here.taught_by("stored"):
        own = fingerprint(teacher, **own)  # where a teacher is at hand, it is whose store it is
    return own


def who_answers(here: Setting, teacher: nn.Module | None, taught: Teaching) -> list[Any]:
    """What decides the lessons beside what the recipe says: whose answers they hold."""
    facts: list[Any] = []
    if teacher is not None:
        facts += [facts_of(here, teacher, taught), fingerprint(teacher)]
    if here.heard is not None:
        facts += [here.heard.facts]
    if here.plan.teach is None:
        return facts
    for name in chosen(here.plan.teach.function, "others") or ():
        other = load(here, name, partly=True)
        facts += [fingerprint(other, **here.task.preprocessing(other))]
    if here.taught_by("stored"):
        folder = here.plan.teach.function.keywords["store"]
        facts += [opened(folder, facts_of(here, teacher, taught)).manifest["teacher"]]
    return facts


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
    own = all(term in taught.terms for term in arm.losses)
    facts += [said["student"], said["losses" if own else "baselines"]]
    facts += [arm.made] * bool(arm.made)
    if arm.part == "train":
        facts += [said["teach"], *who_answers(here, teacher, taught)]
    return here.out / "arms" / f"{arm.name}-{arms.key(*facts)}"


def answers_at_hand(here: Setting) -> bool:
    """Whether a recipe without a teacher has the answers of others: loaded by name, or stored."""
    scheme = here.plan.teach
    return here.taught_by("stored") or bool(scheme and chosen(scheme.function, "others"))


def how_kept(here: Setting) -> dict[str, Any]:
    """What a store keeps of an answer, as the options of `offline` say."""
    if here.plan.teach is None or not here.taught_by("offline"):
        return {}
    names = ("top", "draws", "logits", "features")
    return {name: chosen(here.plan.teach.function, name) for name in names}


def fill_store(
    here: Setting,
    teacher: nn.Module | None,
    taught: Teaching,
    book: Book,
    *,
    everything: bool = False,
) -> None:
    """Ask the teacher once for everything that training will need, where the scheme keeps it.

    everything: also what this training will not be shown, as others may read the store
    """
    scheme = here.plan.teach
    if teacher is None or scheme is None or not here.taught_by("offline"):
        return
    if not any(term.needs_teacher for term in taught.terms):
        return
    start = time.monotonic()
    folder = teach.store_folder(scheme.function.keywords.get("store"), here.cache)
    done = 0
    needed, total = (
        (here.task.foreseen(), here.task.size("train")) if everything else to_be_asked(here)
    )
    facts, kept = facts_of(here, teacher, taught), how_kept(here)
    with (
        teach.open_store(folder, teacher, facts, **kept) as known,
        arms.held(known.folder, partial(here.screen.say, ASKED)),
        here.screen.bar("Asking the teacher") as advance,
    ):
        known.refresh()  # whoever held it before may have asked already

        def progress(rows: int) -> None:
            nonlocal done
            done += rows
            advance(min(done, total), total, here.task.noun)

        asked = teach.fill(known, needed, teacher, asking(here, taught), progress)
        book.plan["knowledge"] = known.info()
    known_rows, size = len(known), known.bytes / 1e6
    here.screen.say(f"Knowledge: {known_rows} rows, {size:.1f} MB; {asked} asked now.")
    book.seconds["knowledge"] = time.monotonic() - start


def to_be_asked(here: Setting) -> tuple[Iterable[Batch], int]:
    """All that training will ask a teacher about, and how many rows that is.

    Training that ends within its first epoch asks about what it will have been shown by then; but
    a store that the recipe names is filled, for whoever reads it next.
    """
    scheme = here.plan.teach
    named = scheme is not None and chosen(scheme.function, "store") is not None
    steps = [piece.function for piece in here.plan.steps if piece.name == "distill"]
    taken, sizes = ({chosen(each, name) for each in steps} for name in ("steps", "batch_size"))
    whole = here.task.size("train")
    if None not in taken and len(sizes) == 1 and not named:
        # A scheme is taken up once more after the last step, for what it does behind its yield.
        count = sum(chosen(each, "steps") for each in steps) + 1
        drawn = here.task.batches("train", batch_size=sizes.pop())
        if count < len(drawn):
            # Batches differ by a row at most; all have at least so many.
            return islice(drawn, count), count * (whole // len(drawn))
    return here.task.foreseen(), whole
