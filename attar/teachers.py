"""Where the teacher comes from: loaded as it is, or trained on the task's labels first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import nn

from attar import arms, distill, teach
from attar.depth import blocks
from attar.distill.loop import Watch
from attar.endpoint import Endpoint
from attar.engine import local
from attar.errors import ModelError
from attar.hearing import Afar
from attar.losses import response
from attar.screen import Silent
from attar.tasks import control
from attar.tasks.task import Task
from attar.types import Count, Lesson, Positive, Share

Load = Callable[..., nn.Module]
"""Gives a model by its name; takes `new_head`."""

__all__ = ["born_again", "distilled", "endpoint", "finetune", "load", "reinforce", "train"]


def load(load: Callable[[str], nn.Module], *, model: str) -> nn.Module:
    """A model that is already trained for this task's classes.

    model: folder, hub name, `package:NAME`, .onnx, .xml, .pte or .keras file, or
        `my_model.py:build`, a function of your own that gives a network
    """
    teacher = load(model)
    if "untrained_head" in vars(teacher):
        raise ModelError(
            f"{model} has no classification head of its own, so it can't teach as it is; train it "
            "first with `teacher: {finetune: {model: ...}}`."
        )
    return teacher


def endpoint(
    cache: Path,
    *,
    url: str,
    model: str,
    key: str | None = None,
    top: Count | None = None,
    tokens: Count | None = None,
    prompts: Count | None = None,
    by: Literal["chat", "completions"] | None = None,
    price: dict[Literal["prompt", "completion"], Share] | None = None,
    budget: Positive | None = None,
    limits: dict[Literal["requests", "tokens", "at_once", "retries", "timeout"], Share]
    | None = None,
    more: dict[str, Any] | None = None,
    store: str | None = None,
) -> Afar:
    """A model behind an OpenAI-compatible endpoint, which writes the text that the student learns.

    Every answer is kept as it comes, under the hash of what was asked; none is paid for twice.

    url: up to the version, as in https://api.openai.com/v1
    model: the endpoint's name for it
    key: the environment variable that holds the key, which is kept nowhere; null to send none
    top: how many of the likeliest tokens are to be told at each place, where the endpoint does
    tokens: of an answer at most; what is left of a row where unsaid
    prompts: how many are asked at most
    by: chat or completions, whatever the data is; else conversations by chat, text by completions
    price: of a million tokens, {prompt: 0.15, completion: 0.6}
    budget: what all answers may cost together, in the unit of the prices; it is never passed
    limits: {requests: 500, tokens: 30000} a minute; `at_once` 8, `retries` 8, `timeout` 120 seconds
    more: further fields of each request, {seed: 1, top_p: 0.9}; null takes one out
    store: the folder of the answers; the cache where unsaid
    """
    whole = Endpoint(url, model, key, top, price, budget, limits or {}, more or {})
    whole.check()
    folder = cache / "answers" if store is None else Path(store).expanduser()
    return Afar(whole, folder, tokens, prompts, by)


def distilled(student_of: Callable[[str], nn.Module], *, recipe: str) -> nn.Module:
    """The student of another recipe: an assistant between a big teacher and a small student.

    Recipes may stand in a chain of any length; each step is kept and found again.

    recipe: the file of the recipe whose student teaches here
    Source: Mirzadeh et al., Improved Knowledge Distillation via Teacher Assistant, AAAI 2020.
    """
    return student_of(recipe)


def born_again(
    task: Task,
    engine: local,
    watch: Watch | None = None,
    load: Load | None = None,
    *,
    model: str,
    generations: int = 2,
    epochs: Positive = 10,
    lr: Positive = 1e-4,
    batch_size: Count = 16,
    train: Literal["all", "head"] | int = "all",
) -> nn.Module:
    """A network trained on the labels, then again and again by the one before it.

    Every generation begins from the same pretrained weights and takes as many steps; from the
    second on it learns the labels that are known and what the one before says of every text.

    model: folder, hub name or `package:NAME`
    generations: how many are trained, the first by the labels alone
    epochs, lr, batch_size, train: of each generation, as in `finetune`
    Source: Furlanello et al., Born-Again Neural Networks, ICML 2018.
    Raises ModelError where fewer than 2 generations are asked for.
    """
    if generations < 2:
        raise ModelError(f"born_again needs at least 2 generations, not {generations}.")
    first = partial(finetune, model=model, epochs=epochs, lr=lr, batch_size=batch_size, train=train)
    build = partial(load or task.load, model, new_head=True)
    steps = round(epochs * len(task.batches("labelled", batch_size=batch_size)))
    teacher: nn.Module | None = None
    for number in range(generations):
        heard = _within(watch, number * steps, generations * steps)
        learn = (
            partial(_again, task, build, teacher, heard, first.keywords, steps)
            if teacher is not None
            else lambda here, curve: first(task, here, _both(curve, heard), load)  # noqa: B023
        )
        folder = (engine.folder or Path()) / f"generation-{number}"
        teacher, _, _ = arms.trained("generation", folder, engine, Silent(), build, learn)
    assert teacher is not None
    return teacher


def _again(
    task: Task,
    build: Callable[[], nn.Module],
    teacher: nn.Module,
    heard: Watch,
    options: Mapping[str, Any],
    steps: int,
    engine: local,
    curve: Watch,
) -> nn.Module:
    """One more generation, taught by the one before it."""

    def course(size: int) -> tuple[object, int]:
        batches = task.batches("train", batch_size=size)
        return teach.online(engine.feed(batches), [teacher], task.forward), len(batches)

    student = build()
    return distill.train(
        student,
        course,  # type: ignore[arg-type]
        [distill.term(task.loss), distill.term(response.kl)],
        task.forward,
        engine,
        watch=_both(curve, heard),
        steps=steps,
        batch_size=options["batch_size"],
        lr=options["lr"],
        rates=rates(student, len(task.classes), options["train"], 10.0),
    )


def _both(one: Watch, other: Watch) -> Watch:
    def watch(record: Mapping[str, Any]) -> None:
        one(record)
        other(record)

    return watch


def _within(watch: Watch | None, before: int, total: int) -> Watch:
    """The watch of one generation, told as a part of all of them."""

    def told(record: Mapping[str, Any]) -> None:
        if watch is not None:
            watch({**record, "step": before + record["step"], "steps": total})

    return told


def finetune(
    task: Task,
    engine: local,
    watch: Watch | None = None,
    load: Load | None = None,
    *,
    model: str,
    epochs: Positive = 10,
    lr: Positive = 1e-4,
    batch_size: Count = 16,
    train: Literal["all", "head"] | int = "all",
    head_rate: float = 10.0,
    keep_head: bool = False,
) -> nn.Module:
    """A pretrained model trained on the labels that may be seen.

    load: loads more names than the task does
    model: folder, hub name or `package:NAME`; its head is replaced by one for this task's classes
    epochs: how often it sees each label
    lr: highest learning rate
    batch_size: examples of a step
    train: all of it, its head alone, or so many of its last blocks with the head
    head_rate: a new head's learning rate, as a multiple of `lr`
    keep_head: the head that it has answers for these classes in their order; it is trained on
    """
    teacher = (load or task.load)(model, new_head=not keep_head)
    return _by_labels(
        teacher,
        task,
        engine,
        watch,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        rates=rates(teacher, len(task.classes), train, 1.0 if keep_head else head_rate),
    )


def train(
    task: Task,
    engine: local,
    fresh: Callable[[str | dict[str, Any]], nn.Module],
    watch: Watch | None = None,
    *,
    network: str | dict[str, Any],
    epochs: Positive = 20,
    lr: Positive = 1e-3,
    batch_size: Count = 64,
    optimizer: Literal["adamw", "sgd"] = "adamw",
    weight_decay: float = 0.01,
) -> nn.Module:
    """A network trained on the labels from the start, where no pretrained one is to be had.

    fresh: builds the network
    network: one that a student can be, with its options: `resnet: {depth: 56}`
    epochs: how often it sees each label
    lr: highest learning rate; it falls along half a cosine
    batch_size: examples of a step
    optimizer: adamw, or sgd (with Nesterov momentum 0.9, and a rate a hundred times higher)
    weight_decay: of matrices
    """
    return _by_labels(
        fresh(network),
        task,
        engine,
        watch,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        optimizer=optimizer,
        weight_decay=weight_decay,
        decay="cosine",
    )


def reinforce(
    task: control.policy,
    engine: local,  # noqa: ARG001  (whoever asks for it is kept in the cache)
    watch: Watch | None = None,
    *,
    algorithm: Literal["ppo", "a2c", "dqn", "sac", "td3", "ddpg"] = "ppo",
    steps: Count = 100_000,
    widths: tuple[Count, ...] = (64, 64),
    environments: Count = 1,
    lr: Positive | None = None,
    settings: dict[str, Any] | None = None,
) -> nn.Module:
    """An agent trained by the reward of its environment, with stable-baselines3.

    Ten times on the way it plays without exploring; the weights that did best are its last. A
    training that was killed begins anew.

    algorithm: ppo, a2c or dqn for choices; ppo, a2c, sac, td3 or ddpg for numbers
    steps: of all environments together
    widths: of its hidden layers
    environments: how many it plays in at a time
    lr: learning rate; the algorithm's own where left out
    settings: what else stable-baselines3's class takes, by its own names: {gamma: 0.98}
    """
    return task.reinforced(
        watch,
        steps,
        algorithm=algorithm,
        widths=widths,
        environments=environments,
        lr=lr,
        settings=settings,
    )


def _by_labels(
    network: nn.Module, task: Task, engine: local, watch: Watch | None, **options: Any
) -> nn.Module:
    """A network trained on the labels alone."""

    def course(size: int) -> tuple[Iterable[Lesson], int]:
        batches = task.batches("labelled", batch_size=size)
        return teach.alone(engine.feed(batches)), len(batches)

    losses = [distill.term(task.loss)]
    return distill.train(network, course, losses, task.forward, engine, watch=watch, **options)


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
