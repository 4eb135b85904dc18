"""Which student layer answers to which teacher layer: proposed from one dry run, and printed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attar.errors import LayerError
from attar.taps import evaluating

PROJECTIONS = (
    *("query", "key", "value"),
    *("query_proj", "key_proj", "value_proj"),
    *("q_proj", "k_proj", "v_proj"),
    *("q_lin", "k_lin", "v_lin"),
)

NOT_READ = (nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Modules that are no answer yet, or give (rows, width, length): no token can be read off them."""

Run = Callable[[nn.Module], Any]
"""Sends one example through a model."""


class Seen(NamedTuple):
    """What one module gave when it was last called: the shapes of its tensors, None for others."""

    path: str
    module: nn.Module
    shapes: tuple[tuple[int, ...] | None, ...]


def pair(
    student: nn.Module,
    teacher: nn.Module,
    run: Run,
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
    a stack of blocks answers with its last sequence of activations or, where it has none, with the
    last (rows, width) before its logits.
    Raises LayerError where nothing can be paired.
    """
    places = {"Features": _features, "Attentions": _attentions, "Projections": _projections}[kind]
    mine, its = places(student, run), places(teacher, run)
    if not mine or not its:
        lacking = student if not mine else teacher
        eager = ", or load it with attn_implementation='eager'" if kind == "Attentions" else ""
        raise LayerError(
            f"No layers of {type(lacking).__name__} can be found for {kind.lower()}; name them "
            f"with `layers: {{student path: teacher path}}`{eager}."
        )
    if kind == "Projections":
        return dict(zip(mine, its, strict=True))
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


def _features(model: nn.Module, run: Run) -> list[str]:
    return blocks(model) or _last(_dry_run(model, run))


def _last(seen: list[Seen]) -> list[str]:
    """The last (rows, length, width), else the last (rows, width) before the logits."""
    *inner, whole = seen
    shaped = [
        (each.path, shape)
        for each in inner
        if not isinstance(each.module, NOT_READ) and (shape := _first(each)) is not None
    ]
    sequences = [path for path, shape in shaped if len(shape) == 3]
    pooled = [path for path, shape in shaped if len(shape) == 2 and shape != _first(whole)]
    return (sequences or pooled)[-1:]


def _first(seen: Seen) -> tuple[int, ...] | None:
    """The shape of the tensor that a tap reads where no index is given."""
    return seen.shapes[0] if seen.shapes else None


def _attentions(model: nn.Module, run: Run) -> list[str]:
    stack, found = blocks(model), dict[str, str]()
    for seen in _dry_run(model, run):
        maps = [
            n
            for n, shape in enumerate(seen.shapes)
            if shape is not None and len(shape) == 4 and shape[-1] == shape[-2]
        ]
        block = next((path for path in stack if seen.path.startswith(path + ".")), None)
        if maps and block is not None:
            found.setdefault(block, f"{seen.path}[{maps[0]}]")
    return [found[path] for path in stack if path in found]


def _projections(model: nn.Module, _run: Run) -> list[str]:
    """What makes queries, keys and values in the last block, in this order."""
    found: dict[str, str] = {}
    for path, _ in model.named_modules():
        block, _, name = path.rpartition(".")
        if name in PROJECTIONS and any(f"{block}.".startswith(f"{b}.") for b in blocks(model)[-1:]):
            found.setdefault(name[0], path)
    return [found[letter] for letter in "qkv"] if len(found) == 3 else []


@torch.no_grad()
def _dry_run(model: nn.Module, run: Run) -> list[Seen]:
    """What every module gave for one example, in the order in which they finished; itself last."""
    record: dict[str, Seen] = {}

    def listen(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, _inputs: Any, output: Any) -> None:
            # Called twice, it stands where it was called last, which is what a tap hears.
            record.pop(path, None)
            record[path] = Seen(path, module, _shapes(output))

        return hook

    handles = [module.register_forward_hook(listen(path)) for path, module in model.named_modules()]
    try:
        with evaluating(model):
            run(model)
    finally:
        for handle in handles:
            handle.remove()
    return list(record.values())


def _shapes(output: Any) -> tuple[tuple[int, ...] | None, ...]:
    if isinstance(output, Tensor):
        return (tuple(output.shape),)
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, tuple | list):
        return tuple(tuple(x.shape) if isinstance(x, Tensor) else None for x in output)
    return ()
