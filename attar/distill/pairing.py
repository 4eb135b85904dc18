"""Which student layer answers to which teacher layer: proposed from one dry run, and printed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attar.depth import blocks
from attar.errors import LayerError, nearest
from attar.taps import TIME, evaluating

PROJECTIONS = (
    *("query", "key", "value"),
    *("query_proj", "key_proj", "value_proj"),
    *("q_proj", "k_proj", "v_proj"),
    *("q_lin", "k_lin", "v_lin"),
)

NOT_READ = (nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Modules that are no answer yet, or give (rows, width, length): no token can be read off them."""

WAYS = ("auto", "tokens")
"""The words that may stand for the layers in a recipe."""

Run = Callable[[nn.Module], Any]
"""Sends one example through a model."""


class Seen(NamedTuple):
    """What one module gave when it was last called: the shapes of its tensors, None for others."""

    path: str
    module: nn.Module
    shapes: tuple[tuple[int, ...] | None, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor that a tap reads where no index is given; nothing where there is none."""
        return (self.shapes[0] if self.shapes else None) or ()

    @property
    def is_map(self) -> bool:
        """Whether it is (rows, channels, height, width)."""
        return len(self.shape) == 4


def pair(
    student: nn.Module,
    teacher: nn.Module,
    run: Run,
    kind: str = "Features",
    how: str = "auto",
) -> dict[str, str]:
    """Propose student path -> teacher path for every layer of the student that has an answer.

    run: sends one example through a model
    kind: what the loss compares: Features, Attentions, Projections, Maps, Rows, Stages or Reused
    how: `auto` pools features over the tokens, so that they fit whatever the two tokenizers make
        of a text and cost a store little; `tokens` compares them token by token

    The layers of a network are its stack of like blocks; of a CNN, the last activation at each
    resolution; of any other, its last sequence of activations (a recurrent network's states) or,
    where it has none, the last (rows, width) before its logits.

    Student layer i of n answers to teacher layer i * N / n, the last to the last (TinyBERT, Jiao et
    al. 2020). The stages of two CNNs meet at the same resolution where most of the student's, and
    its last, have a twin. Of rows only the last layers are compared, pooled; of projections the
    last block's (MiniLM-v2, Wang et al. 2021). Maps and stages are never pooled: tokens are
    compared at the same time (`@time`), maps of two CNNs and tokens of two images place by place;
    so are a CNN's features. Where the teacher's head is reused, what enters it is compared with
    what enters the student's (SimKD, Chen et al. 2022).
    Raises LayerError where nothing can be paired, and for scores, which only a name can tell.
    """
    if how not in WAYS:
        raise LayerError(f"{how!r} is no way to pair layers; {nearest(how, WAYS)}")
    if kind == "Scores":
        raise LayerError(
            f"{how!r} can't tell what scores tags or arcs from hidden features; name it with "
            "`layers: {student path: teacher path}`."
        )
    if kind == "Reused":
        return _reused(student, teacher, run)
    places = {"Attentions": _attentions, "Projections": _projections}.get(kind, _depths)
    mine, its = places(student, run), places(teacher, run)
    if not mine or not its:
        lacking = student if not mine else teacher
        eager = ", or load it with attn_implementation='eager'" if kind == "Attentions" else ""
        raise LayerError(
            f"No layers of {type(lacking).__name__} can be found for {kind.lower()}; name them "
            f"with `layers: {{student path: teacher path}}`{eager}."
        )
    if kind in ("Attentions", "Projections"):
        pairs = zip(mine, its, strict=True) if kind == "Projections" else _by_depth(mine, its)
        return {ours.path: theirs.path for ours, theirs in pairs}
    pairs = [(mine[-1], its[-1])] if kind == "Rows" else _answers(mine, its)
    images = _sees_images(student) and _sees_images(teacher)
    return dict(_written(*each, kind, how, images) for each in pairs)


def _by_depth(mine: list[Seen], its: list[Seen]) -> list[tuple[Seen, Seen]]:
    return [
        (each, its[max(0, round((n + 1) * len(its) / len(mine)) - 1)])
        for n, each in enumerate(mine)
    ]


def _answers(mine: list[Seen], its: list[Seen]) -> list[tuple[Seen, Seen]]:
    """By resolution where it fits the two CNNs, else by depth."""
    sizes = {each.shape[2:]: each for each in its if each.is_map}
    twins = [(each, sizes[each.shape[2:]]) for each in mine if each.shape[2:] in sizes]
    # Else one of them sees its images smaller, and the same resolution is at another depth.
    fits = 2 * len(twins) > len(mine) and mine[-1].shape[2:] in sizes
    return twins if fits else _by_depth(mine, its)


def _sees_images(model: nn.Module) -> bool:
    """Whether its tokens are places of an image, which no line of time runs through."""
    return any(isinstance(module, nn.Conv2d) for module in model.modules())


def _written(ours: Seen, theirs: Seen, kind: str, how: str, images: bool) -> tuple[str, str]:
    """A pair as it is read: pooled, place by place, or at the same time."""
    maps = ours.is_map and theirs.is_map
    if kind == "Rows" or (kind == "Features" and how == "auto" and not maps):
        return f"{ours.path}@mean", f"{theirs.path}@mean"
    sequences = len(ours.shape) == len(theirs.shape) == 3
    if kind == "Features" or maps or (sequences and images and ours.shape[1] == theirs.shape[1]):
        return ours.path, theirs.path
    if sequences and not images:
        return ours.path, theirs.path + TIME
    raise LayerError(
        f"{ours.path} of shape {ours.shape} and {theirs.path} of shape {theirs.shape} have no "
        f"places in common for a loss over {kind.lower()}; name layers that both give as many "
        "tokens, or both maps, with `layers: {student path: teacher path}`, or take a loss over "
        "features, which `auto` pools."
    )


def _depths(model: nn.Module, run: Run) -> list[Seen]:
    """The layers that stand one behind the other, from the first to the last."""
    *inner, whole = _dry_run(model, run)
    read = [each for each in inner if _is_read(each, whole)]
    stack = _stack(model, read)
    placed = [each for each in read if len(each.shape) > 2]
    if stack and len(stack[-1].shape) == 3:
        return stack
    if placed and placed[-1].is_map:
        return _stages(placed, [each for each in inner if isinstance(each.module, nn.Conv2d)])
    answers = [each for each in read if each.shape != whole.shape]
    sequences = [each for each in answers if len(each.shape) == 3]
    pooled = [each for each in answers if len(each.shape) == 2]
    return sequences[-1:] or stack or pooled[-1:]


def _is_read(each: Seen, whole: Seen) -> bool:
    """Whether what a module gave has a row for each example, and what is read off it beside."""
    late = isinstance(each.module, nn.RNNBase) and not each.module.batch_first
    rows = each.shape[:1] == whole.shape[:1] or not whole.shape
    return rows and len(each.shape) > 1 and not isinstance(each.module, NOT_READ) and not late


def _stack(model: nn.Module, seen: list[Seen]) -> list[Seen]:
    """What its blocks gave."""
    by_path = {each.path: each for each in seen}
    return [by_path[path] for path in blocks(model) if path in by_path]


def _stages(placed: list[Seen], convolutions: list[Seen]) -> list[Seen]:
    """The last map at each resolution; what is pooled to a single place is none, beside others."""
    known = {each.shape[2:] for each in convolutions}
    found: dict[tuple[int, ...], Seen] = {}
    for each in placed:
        # Maps with the channels last have sizes that no convolution gives.
        if each.is_map and (each.shape[2:] in known or not known):
            found.pop(each.shape[2:], None)
            found[each.shape[2:]] = each
    return [each for size, each in found.items() if size != (1, 1)] or list(found.values())


def _attentions(model: nn.Module, run: Run) -> list[Seen]:
    seen = _dry_run(model, run)
    found = (_map_in(block, seen) for block in _stack(model, seen) if len(block.shape) == 3)
    return [each for each in found if each is not None]


def _map_in(block: Seen, seen: list[Seen]) -> Seen | None:
    """The first (rows, heads, length, length) in a block, for as many tokens as the block gives."""
    for each in seen:
        for n, shape in enumerate(each.shapes if each.path.startswith(f"{block.path}.") else ()):
            if shape is not None and len(shape) == 4 and shape[2:] == 2 * block.shape[1:2]:
                return each._replace(path=f"{each.path}[{n}]")
    return None


def _projections(model: nn.Module, _run: Run) -> list[Seen]:
    """What makes queries, keys and values in the last block, in this order."""
    found: dict[str, Seen] = {}
    for path, module in model.named_modules():
        parent, _, name = path.rpartition(".")
        inside = any(f"{parent}.".startswith(f"{block}.") for block in blocks(model)[-1:])
        if name in PROJECTIONS and inside:
            found.setdefault(name[0], Seen(path, module, ()))
    return [found[letter] for letter in "qkv"] if len(found) == 3 else []


def _reused(student: nn.Module, teacher: nn.Module, run: Run) -> dict[str, str]:
    """What enters the student's head, which has to be the teacher's, and what enters the teacher's.

    A head of the student's own would never learn what to make of the teacher's features.
    """
    (mine, head), (its, given) = (_before_head(model, run) for model in (student, teacher))
    weights = zip(head.parameters(), given.parameters(), strict=False)
    if head.weight.shape != given.weight.shape or not all(
        torch.equal(one.cpu(), other.cpu()) for one, other in weights
    ):
        raise LayerError(
            f"{type(student).__name__} does not answer through its teacher's head, which is what "
            "this loss is for; put the student inside of another: `joined: {student: ...}`."
        )
    return {mine: its}


def _before_head(model: nn.Module, run: Run) -> tuple[str, nn.Linear]:
    """The path of what enters the linear map that makes the logits, and this map."""
    *inner, whole = _dry_run(model, run)
    heads = [
        (before, last.module)
        for before, last in pairwise(inner)
        if isinstance(last.module, nn.Linear) and last.shape == whole.shape
    ]
    if heads and _enters(*heads[-1], model, run):
        return heads[-1][0].path, heads[-1][1]
    raise LayerError(
        f"No module of {type(model).__name__} gives just what enters its head; name it with "
        "`layers: {student path: teacher path}`."
    )


@torch.no_grad()
def _enters(before: Seen, head: nn.Module, model: nn.Module, run: Run) -> bool:
    """Whether a module's answer is the very thing that the head is called with."""
    answers: list[Any] = []
    entered: list[Any] = []
    handles = [
        before.module.register_forward_hook(lambda *told: answers.append(told[2])),
        head.register_forward_pre_hook(lambda _, given: entered.append(given[0])),
    ]
    try:
        with evaluating(model):
            run(model)
    finally:
        for handle in handles:
            handle.remove()
    return answers[-1] is entered[-1]


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
