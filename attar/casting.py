"""The models of a recipe as they are built: the teacher under a new head, the student untrained."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attar import arms, students
from attar.engine import local
from attar.errors import AttarError, ModelError, RecipeError
from attar.recipe import ROOMS, Piece
from attar.resolve import ask, asks, bind, chosen, find
from attar.setting import Book, Setting
from attar.store import fingerprint

LIBRARIES = ("package", "timm", "torchvision")
"""What stands before a colon in names that are no code of the user's."""


def load(here: Setting, name: str, **how: Any) -> nn.Module:
    """A model by the name a recipe gives it: any that the task knows, or what own code builds.

    how: options of the task's `load`
    Raises RecipeError for own code without trust, ModelError where no model comes of it.
    """
    source, colon, function = name.rpartition(":")
    own = Path(name).expanduser()
    if own.suffix in here.task.formats:
        return here.task.load(name, **how)
    if own.suffix == ".safetensors" or (own / students.PAPER).is_file():
        return _own(here, own, **how)
    if not colon or source in LIBRARIES or not function.isidentifier():
        return here.task.load(name, **how)
    build = find((), name, trust=here.trust)
    return here.task.load(_told(name, lambda: ask(build, given(here))), **how)


def _own(here: Setting, path: Path, *, new_head: bool = False, **how: Any) -> nn.Module:
    """One of attar's own students; under a new head its classes are this task's.

    Raises ModelError where it answers for other classes, or for these in another order.
    """
    network, classes = students.load(path), list(here.task.classes)
    paper = students.paper_of(network)
    named = paper.get("classes", classes)
    unnamed = named == [str(n) for n in range(len(classes))]
    if named != classes and not unnamed and not new_head:
        raise ModelError(
            f"{path} answers for the classes {', '.join(named)}, in this order, and the data has "
            f"{', '.join(classes)}; use `finetune` for a new head."
        )
    if "classes" in paper:
        vars(network)["recipe"] = {**vars(network)["recipe"], "classes": classes}
    return here.task.load(network, new_head=new_head, **how)


def made(here: Setting, piece: Piece, *, also: dict[str, Any]) -> nn.Module:
    """The model that a piece of the recipe stands for, attar's own or the user's.

    also: what the piece may ask for beside the task, its classes and the loader
    """

    def build() -> Any:
        return ask(piece.function, given(here) | also)

    return here.task.load(_told(piece.name, build) if ":" in piece.name else build())


def given(here: Setting) -> dict[str, Any]:
    """What whatever makes a model may ask for."""
    classes = list(here.task.classes)
    return {"task": here.task, "classes": classes, "load": partial(load, here)}


def _told(name: str, build: Callable[[], Any]) -> Any:
    """What own code builds; whatever it raises is said in one sentence."""
    try:
        return build()
    except AttarError:
        raise
    except Exception as error:  # it is the user's code: anything can happen in it
        reason = (str(error).strip().splitlines() or [""])[0].rstrip(".")
        raise ModelError(f"{name} gave no model: {type(error).__name__}: {reason}.") from error


def teacher_kept(here: Setting) -> Path | None:
    """The folder that the recipe's trained teacher has in the cache; None where none is trained."""
    if here.plan.teacher is None or "engine" not in asks(here.plan.teacher.function):
        return None
    base = built(here)
    facts = (here.task.digest(), here.task.preprocessing(base), here.recipe.seed)
    how = (here.plan.teacher.name, here.plan.teacher.function.keywords)
    key = arms.key(*how, facts, fingerprint(base), here.engine.precision)
    return here.cache / "teachers" / key


def built(here: Setting) -> nn.Module:
    """The network that the recipe's teacher is trained from, under a new head."""
    assert here.plan.teacher is not None
    torch.manual_seed(here.recipe.seed)
    function = here.plan.teacher.function
    if (algorithm := chosen(function, "algorithm")) is not None:
        return here.task.beginner(algorithm=algorithm, widths=chosen(function, "widths"))
    if "network" in function.keywords:
        return fresh(here, function.keywords["network"])
    return load(here, function.keywords["model"], new_head=not chosen(function, "keep_head"))


def fresh(here: Setting, said: str | dict[str, Any]) -> nn.Module:
    """An untrained network of those that students can be, which needs no teacher to be built."""
    return here.task.load(_untrained(here, said))


def stage(here: Setting, *, critic: str | dict[str, Any], engine: local, **how: Any) -> Any:
    """Where the student acts for a reward, with a critic that begins by the recipe's seed."""
    with torch.random.fork_rng():  # building it, also again on resuming, must not move dropout
        torch.manual_seed(here.recipe.seed)
        network = _untrained(here, critic, classes=["value"])
    return here.task.stage(engine.prepare(network), **how)


def _untrained(here: Setting, said: str | dict[str, Any], **also: Any) -> nn.Module:
    """What a student can be, by its name and options."""
    name, options = (said, {}) if isinstance(said, str) else next(iter(said.items()))
    make = bind(find(ROOMS["student"], name, trust=here.trust), options or {})
    network: nn.Module = ask(make, {**given(here), **here.task.offers, **also})
    return network


def for_teachers(here: Setting) -> dict[str, Any]:
    """What whatever trains a teacher may ask for, beside the engine and the watch."""
    return {"task": here.task, "load": partial(load, here), "fresh": partial(fresh, here)}


def build_student(here: Setting, teacher: nn.Module | None, seed: int | None = None) -> nn.Module:
    """The untrained student; without one in the recipe, the teacher itself is compressed.

    seed: of the weights that nothing gives; the recipe's where None
    """
    if here.plan.student is None:
        assert teacher is not None
        return copy.deepcopy(teacher)
    torch.manual_seed(here.recipe.seed if seed is None else seed)
    also = {"teacher": teacher, **here.task.offers}
    return made(here, here.plan.student, also=also)


def tell_how_it_reads(here: Setting, teacher: nn.Module | None, book: Book) -> None:
    """Say and write down what proves that the teacher means the same tokens as the task."""
    if teacher is not None and (proof := here.task.understood(teacher)):
        here.screen.say(f"The teacher's tokens: {proof}.")
        book.plan["tokens"] = proof


def check_other(here: Setting, there: Setting, recipe: str) -> None:
    """Raises RecipeError where another recipe has no student, or one for other classes."""
    if not any(step.name == "distill" for step in there.plan.steps):
        raise RecipeError(f"{recipe} has no distill step, so it has no trained student.")
    if there.task.classes != here.task.classes:
        raise RecipeError(
            f"{recipe} has other classes than this recipe; its student can't stand beside its "
            "models."
        )
