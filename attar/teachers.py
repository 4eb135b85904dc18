"""Where the teacher comes from: loaded as it is, or trained on the task's labels first."""

from __future__ import annotations

from typing import Literal

from torch import nn

from attar import distill, teach
from attar.distill.loop import Watch
from attar.distill.pairing import blocks
from attar.engine import local
from attar.errors import ModelError
from attar.tasks.text import classification
from attar.types import Count, Positive

__all__ = ["finetune", "load"]


def load(task: classification, *, model: str) -> nn.Module:
    """A model that is already trained for this task's classes.

    model: folder, hub name, `package:NAME`, .onnx file
    """
    teacher = task.load(model)
    if "untrained_head" in vars(teacher):
        raise ModelError(
            f"{model} has no classification head of its own, so it can't teach as it is; train it "
            "first with `teacher: {finetune: {model: ...}}`."
        )
    return teacher


def finetune(
    task: classification,
    engine: local,
    watch: Watch | None = None,
    *,
    model: str,
    epochs: Positive = 10,
    lr: Positive = 1e-4,
    batch_size: Count = 16,
    train: Literal["all", "head"] | int = "all",
    head_rate: float = 10.0,
) -> nn.Module:
    """A pretrained model trained on the labels that may be seen.

    model: folder, hub name or `package:NAME`; its head is replaced by one for this task's classes
    epochs: how often it sees each label
    lr: highest learning rate
    batch_size: examples of a step
    train: all of it, its head alone, or so many of its last blocks with the head
    head_rate: the head's learning rate, as a multiple of `lr`
    """
    teacher = task.load(model, new_head=True)

    def course(size: int) -> tuple[object, int]:
        batches = task.batches("labelled", batch_size=size)
        return teach.alone(engine.feed(batches)), len(batches)

    return distill.train(
        teacher,
        course,  # type: ignore[arg-type]
        [distill.term(task.loss)],
        task.forward,
        engine,
        watch=watch,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        rates=rates(teacher, len(task.classes), train, head_rate),
    )


def rates(
    model: nn.Module, classes: int, train: Literal["all", "head"] | int, head_rate: float
) -> dict[str, float]:
    """The learning rate of each part as a multiple: what is not trained has none, the head more.

    Raises ModelError where the model has no such head or too few blocks.
    """
    heads = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == classes
    ]
    if not heads:
        raise ModelError(f"{type(model).__name__} has no linear layer with {classes} outputs.")
    head = {f"{heads[-1]}.": head_rate}
    if train == "all":
        return head
    if train == "head":
        return {"": 0.0} | head
    stack = blocks(model)
    if not 1 <= train <= len(stack):
        raise ModelError(f"train is {train}, but {type(model).__name__} has {len(stack)} blocks.")
    # Parameters are listed in the order of the forward pass: what comes before the first trained
    # block is frozen, what comes after it (later blocks, pooler, head) is trained.
    names = [name for name, _ in model.named_parameters()]
    first = next(n for n, name in enumerate(names) if name.startswith(stack[-train] + "."))
    return dict.fromkeys(names[:first], 0.0) | head
