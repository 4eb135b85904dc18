"""The models of a recipe as they are built: the teacher under a new head, the student untrained."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

from attar import arms
from attar.resolve import ask, asks
from attar.setting import Setting
from attar.store import fingerprint


def teacher_kept(here: Setting) -> Path | None:
    """The folder that the recipe's trained teacher has in the cache; None where none is trained."""
    if here.plan.teacher is None or "engine" not in asks(here.plan.teacher.function):
        return None
    base = built(here)
    facts = (here.task.digest(), here.task.preprocessing(base), here.recipe.seed)
    options = here.plan.teacher.function.keywords
    key = arms.key(options, facts, fingerprint(base), here.engine.precision)
    return here.cache / "teachers" / key


def built(here: Setting) -> nn.Module:
    """The network that the recipe's teacher is trained from, under a new head."""
    assert here.plan.teacher is not None
    torch.manual_seed(here.recipe.seed)
    return here.task.load(here.plan.teacher.function.keywords["model"], new_head=True)


def build_student(here: Setting, teacher: nn.Module | None, seed: int | None = None) -> nn.Module:
    """The untrained student; without one in the recipe, the teacher itself is compressed.

    seed: of the weights that nothing gives; the recipe's where None
    """
    if here.plan.student is None:
        assert teacher is not None
        return copy.deepcopy(teacher)
    torch.manual_seed(here.recipe.seed if seed is None else seed)
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
