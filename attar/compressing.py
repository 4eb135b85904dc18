"""The recipe's compressors: what they are given, and what may stand before and behind them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import nn

from attar import export, students
from attar.distill.recomputing import recomputable
from attar.errors import RecipeError
from attar.recipe import Piece
from attar.resolve import ask, chosen
from attar.setting import Book, Setting
from attar.types import Act, Batch, InTraining, Quantized

REPEATED = re.compile(r"((?:-\w+){2,}?)(?:-x(\d+))?\1$")
"""The end of a name whose last two words or more are those before them, counted or not."""


def compressed(here: Setting, step: partial[Any], model: nn.Module, book: Book) -> nn.Module:
    """The model made smaller by one of the recipe's steps."""
    # On the processor: measuring there gives the same on every machine, and after an interruption.
    given = for_compressors(here, book) | {"model": model.cpu()}
    return ask(step, given)  # type: ignore[no-any-return]


def for_compressors(here: Setting, book: Book) -> dict[str, Any]:
    """What compressors may ask for beside the model."""
    return {
        "example": here.task.example,
        "calibration": here.task.calibration,
        "losses": here.task.losses,
        "score": here.task.score,
        "tell": book.tell,
        "cut": partial(_cut, here),
        "act": here.task.act,
        "forward": here.task.forward,
        "classes": here.task.classes,
        "choices": here.task.choices,
    }


def _cut(here: Setting, model: nn.Module) -> nn.Module:
    """The model with the word pieces alone that the training texts need."""
    if "texts" not in here.task.offers:
        raise RecipeError(f"prune.vocabulary is for texts; {here.task.noun} have no words.")
    return students.vocabulary.cut(model, texts=here.task.offers["texts"])


def in_short(given: dict[str, Any]) -> dict[str, Any]:
    """The same with one batch of each, and a score that nobody takes: for a look ahead."""

    def first(
        batches: Callable[[nn.Module], Iterator[Any]],
    ) -> Callable[[nn.Module], Iterator[Any]]:
        return lambda model: islice(batches(model), 1)

    short = {name: first(given[name]) for name in ("calibration", "losses")}
    return given | short | {"score": lambda _: {"score": 0.0}, "act": partial(_once, given["act"])}


def _once(act: Act, model: nn.Module, _: int, *how: Any) -> Batch:
    """A state of one episode, however many are asked for."""
    return act(model, 1, *how)


def check_step(step: Piece, model: nn.Module) -> None:
    """Whether a step can do anything with what the steps before it leave of the model."""
    if step.name.startswith("export."):
        form = step.name.removeprefix("export.")
        export.writing.check_trained(model, form)
        export.writing.check_libraries(form)
    if step.name == "export.executorch":
        export.executorch_file.check_kind(model)
    if step.name == "export.transformers":
        export.folder.check_class(model)
    if step.name != "distill":
        if students.adapted(model):
            raise RecipeError(
                f"{step.name} would change weights that the student shares with its teacher; put "
                "distill first, after which they are its own."
            )
        return
    if chosen(step.function, "recompute"):
        recomputable(model)
    if len({"steps", "epochs"} & set(step.function.keywords)) != 1:
        raise RecipeError("The step distill needs either `steps` or `epochs`.")
    if any(each.dtype in (torch.float16, torch.bfloat16) for each in model.parameters()):
        raise RecipeError(
            "A distill step can't train weights of 16 bits; put it before the step that rounds."
        )
    if any(isinstance(m, Quantized) and not isinstance(m, InTraining) for m in model.modules()):
        raise RecipeError(
            "A distill step can't train integers: put it before the step that quantizes, or take "
            "quantize.qat, distill and quantize.int8_static."
        )


def called(name: str, step: str) -> str:
    """The name of what a step makes; what was done before in the same order is counted instead.

    `student-magnitude-distill` becomes, by the same two steps, `student-magnitude-distill-x2`.
    """
    said = f"{name}-{step.rpartition('.')[2]}"
    return REPEATED.sub(lambda found: f"{found[1]}-x{int(found[2] or 1) + 1}", said)


def made_by(steps: Sequence[Piece]) -> tuple[Any, ...]:
    """What compressors did to a network before it is trained, which its weights need not tell."""
    inside = [each for each in steps if each.name != "distill"]
    return tuple(
        (each.name, each.function.keywords)
        for each in inside
        if not each.name.startswith("export.")
    )
