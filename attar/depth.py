"""The stack of like layers that a deep network is built of, and the same network with fewer."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from torch import nn

from attar.errors import ModelError
from attar.types import Sparse

LISTS = (nn.ModuleList, nn.Sequential)
CARRIED = ("tokenizer", "normalization")
"""What prepares a model's inputs, which it carries beside its weights."""


def blocks(model: nn.Module) -> list[str]:
    """The paths of the like blocks a model is built of, in its order; none where it is not.

    They are one stack, the longest; in a network that attar does not rebuild from a configuration,
    such as one of convolutions, also the stacks of the same blocks beside it: its other stages.
    """
    stacks = {
        path: stack
        for path, stack in model.named_modules()
        if isinstance(stack, LISTS) and _alike(list(stack))
    }
    if not stacks:
        return []
    longest = max(stacks, key=lambda path: len(stacks[path]))
    kind = type(stacks[longest][0])
    stages = [longest] if "config" in vars(model) else list(stacks)
    return [
        f"{path}.{name}" if path else name
        for path in stages
        for name, block in stacks[path].named_children()
        if type(block) is kind
    ]


def with_layers(model: nn.Module, chosen: Sequence[int]) -> nn.Module:
    """A copy of a model with some of its layers, by their indexes, in the order given.

    A model of `transformers` is built anew from its configuration, so that the folder it is saved
    to loads; of any other the stack itself is changed.

    Raises ModelError where the layers can't be told apart.
    """
    paths = blocks(model)
    if "config" in vars(model):
        return _rebuilt(model, paths, chosen)
    if not paths:
        raise ModelError(f"{type(model).__name__} has no stack of like layers to choose from.")
    small = deepcopy(model)
    stages = dict.fromkeys(path.rpartition(".")[0] for path in paths)
    for stage in stages:
        names = [paths[n] for n in chosen if paths[n].rpartition(".")[0] == stage]
        fewer = [small.get_submodule(name) for name in names]
        whole = small.get_submodule(stage)
        kept = nn.ModuleList(fewer) if isinstance(whole, nn.ModuleList) else nn.Sequential(*fewer)
        if not stage:
            return kept
        small.set_submodule(stage, kept)
    return small


def _alike(stack: list[nn.Module]) -> bool:
    """Whether a list of modules is of one type, and each more than a layer and its activation.

    A list of such lists is of stages, and what is in those are the blocks.
    """
    if len({type(block) for block in stack}) != 1:
        return False
    if any(isinstance(block, LISTS) and _alike(list(block)) for block in stack):
        return False
    return len(list(stack[0].modules())) > 2


def _rebuilt(model: Any, paths: list[str], chosen: Sequence[int]) -> nn.Module:
    """A model of the same class and settings with as many layers as are chosen, and their weights.

    Heads and dropout are settings too: a state dict alone would not tell them.
    """
    name, total = type(model).__name__, model.config.num_hidden_layers
    if len(paths) != total:
        raise ModelError(
            f"{name} has no list of its {total} layers to take from "
            "(ALBERT shares one layer between all of them): use the encoder student."
        )
    config = deepcopy(model.config)
    config.num_hidden_layers = len(chosen)
    kinds = config.to_dict().get("layer_types")
    if kinds is not None:
        config.layer_types = [kinds[n] for n in chosen]
    small = type(model)(config).to(device=model.device, dtype=model.dtype).train(model.training)
    stack = paths[0].rpartition(".")[0]
    weights = _taken(model.state_dict(), stack, chosen)
    try:
        small.load_state_dict(weights)
    except RuntimeError as error:
        why = str(error).splitlines()[-1].strip()
        raise ModelError(f"{name} can't stand on layers {list(chosen)} alone: {why}") from error
    renamed = _taken({f"{path}.zeros_stay": path for path in marked(model)}, stack, chosen)
    return taking_after_(small, model, [name.removesuffix(".zeros_stay") for name in renamed])


def marked(model: nn.Module) -> list[str]:
    """The paths of layers whose zeros are meant."""
    return [path for path, module in model.named_modules() if isinstance(module, Sparse)]


def taking_after_(fresh: nn.Module, model: nn.Module, sparse: Sequence[str]) -> nn.Module:
    """Give a model built anew what the old one carries beside its weights.

    sparse: the paths, in the new model, of layers whose zeros are meant
    """
    vars(fresh).update({k: deepcopy(v) for k, v in vars(model).items() if k in CARRIED})
    for path in sparse:
        vars(fresh.get_submodule(path))["zeros_stay"] = True
    return fresh


def _taken(weights: dict[str, Any], path: str, chosen: Sequence[int]) -> dict[str, Any]:
    """The weights without those of layers that are not chosen, the others renumbered."""
    taken = {}
    for name, weight in weights.items():
        if not name.startswith(f"{path}."):
            taken[name] = weight
            continue
        index, rest = name.removeprefix(f"{path}.").split(".", 1)
        if int(index) in chosen:
            taken[f"{path}.{list(chosen).index(int(index))}.{rest}"] = weight
    return taken
