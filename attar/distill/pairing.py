"""Which student layer answers to which teacher layer: proposed from one dry run, and printed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attar.errors import LayerError

PROJECTIONS = ("query", "key", "value", "q_proj", "k_proj", "v_proj", "q_lin", "k_lin", "v_lin")


@dataclass(frozen=True)
class Seen:
    """One module's answer in a dry run: the shapes of the tensors it gave, in order of calling."""

    path: str
    module: nn.Module
    shapes: tuple[tuple[int, ...] | None, ...]


def pair(
    student: nn.Module,
    teacher: nn.Module,
    run: Callable[[nn.Module], Any],
    kind: str = "Features",
    how: str = "auto",
) -> dict[str, str]:
    """Propose student path -> teacher path for every layer of the student that has an answer.

    run: sends one example through a model
    kind: what the loss compares: Features, Attentions or Projections
    how: `auto` pools features over the tokens, so that they fit whatever the two tokenizers make
        of a text and cost a store little; `tokens` compares them token by token

    Student block i of n answers to teacher block i * N / n, the last to the last (TinyBERT, Jiao et
    al. 2020); of projections only the last block's (MiniLM-v2, Wang et al. 2021). A network without
    a stack of blocks answers with its last sequence of activations.
    Raises LayerError where nothing can be paired.
    """
    places = {"Features": _features, "Attentions": _attentions, "Projections": _projections}[kind]
    mine, its = places(student, run), places(teacher, run)
    if not mine or not its:
        lacking = student if not mine else teacher
        raise LayerError(
            f"No layers of {type(lacking).__name__} can be found for {kind.lower()}; name them "
            "with `layers: {student path: teacher path}`."
        )
    if kind == "Projections":
        return dict(zip(mine[-3:], its[-3:], strict=True))
    pool = "@mean" if kind == "Features" and how == "auto" else ""
    return {
        path + pool: its[max(0, round((n + 1) * len(its) / len(mine)) - 1)] + pool
        for n, path in enumerate(mine)
    }


def blocks(model: nn.Module) -> list[str]:
    """The paths of the longest stack of like blocks; none where the model is not built of one."""
    stacks = [
        (path, stack)
        for path, stack in model.named_modules()
        if isinstance(stack, nn.ModuleList) and len({type(block) for block in stack}) == 1
    ]
    stacks = [(path, stack) for path, stack in stacks if len(list(stack[0].modules())) > 2]
    if not stacks:
        return []
    path, stack = max(stacks, key=lambda found: len(found[1]))
    return [f"{path}.{n}" for n in range(len(stack))]


def _features(model: nn.Module, run: Callable[[nn.Module], Any]) -> list[str]:
    if stack := blocks(model):
        return stack
    # The last (rows, length, width) before the head; an LSTM gives a tuple, its sequence first.
    embeddings = {path for path, module in model.named_modules() if isinstance(module, nn.Embedding)}
    sequences = [
        seen.path
        for seen in _dry_run(model, run)
        if seen.path and seen.path not in embeddings and seen.shapes and len(seen.shapes[0] or ()) == 3
    ]
    return sequences[-1:]


def _attentions(model: nn.Module, run: Callable[[nn.Module], Any]) -> list[str]:
    found: dict[str, str] = {}
    for seen in _dry_run(model, run):
        maps = [
            n
            for n, shape in enumerate(seen.shapes)
            if shape is not None and len(shape) == 4 and shape[-1] == shape[-2]
        ]
        block = next((path for path in blocks(model) if seen.path.startswith(path + ".")), None)
        if maps and block is not None:
            found.setdefault(block, f"{seen.path}[{maps[0]}]")
    return [found[path] for path in blocks(model) if path in found]


def _projections(model: nn.Module, run: Callable[[nn.Module], Any]) -> list[str]:
    stack = blocks(model)
    return [
        path
        for path, _ in model.named_modules()
        if stack and path.startswith(stack[-1] + ".") and path.rpartition(".")[2] in PROJECTIONS
    ]


@torch.no_grad()
def _dry_run(model: nn.Module, run: Callable[[nn.Module], Any]) -> list[Seen]:
    """What every module gave for one example, in the order in which they finished."""
    record: list[Seen] = []

    def listen(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, _inputs: Any, output: Any) -> None:
            record.append(Seen(path, module, _shapes(output)))

        return hook

    handles = [module.register_forward_hook(listen(path)) for path, module in model.named_modules()]
    training = model.training
    try:
        run(model.eval())
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return record


def _shapes(output: Any) -> tuple[tuple[int, ...] | None, ...]:
    if isinstance(output, Tensor):
        return (tuple(output.shape),)
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, tuple | list):
        return tuple(tuple(x.shape) if isinstance(x, Tensor) else None for x in output)
    return ()
