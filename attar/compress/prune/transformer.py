"""Heads, feed-forward and hidden width of `transformers` models, cut so that they still load.

A class of `transformers` has one width for all its layers, and builds itself from its
configuration. So every layer is cut alike, a new configuration says how, a fresh model is built of
it, and the weights that stay are copied into it: `save_pretrained` and `from_pretrained` know the
outcome, and no layer can be forgotten, since its shape would not fit.

One cut no configuration can say: fewer heads at the same hidden width, where their size is the one
by the other. Then the shapes of the weights are the record, which `attar.students` reads again.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attar.compress.prune.blocks import Attention, FeedForward, attentions, feed_forwards
from attar.compress.prune.importance import Importance, columns
from attar.depth import marked, taking_after_
from attar.errors import ModelError
from attar.shapes import fit_
from attar.types import Calibration, Losses

WIDTHS = ("intermediate_size", "hidden_dim", "ffn_dim", "encoder_ffn_dim")
"""What configurations call the width of their feed-forward layers."""

Kept = dict[tuple[str, int], Tensor]
"""Which indexes stay of a weight's dimension, by the weight's name and the dimension."""


def is_uniform(model: nn.Module) -> bool:
    """Whether a model builds itself from a configuration and has blocks that can be cut."""
    return "config" in vars(model) and bool(feed_forwards(model))


def cut(
    model: nn.Module,
    ratios: Mapping[Any, float],
    how: Importance,
    calibration: Calibration,
    losses: Losses,
    *,
    round_to: int,
    batches: int,
) -> nn.Module:
    """A smaller model of the same class, with what matters most of each part in `ratios`.

    Raises ModelError where the class can't have such shapes.
    """
    blocks = _Blocks(model, attentions(model), feed_forwards(model))
    blocks.check(ratios)

    def worth(paths: list[str]) -> dict[str, Tensor]:
        return columns(model, paths, how, calibration, losses, batches)

    sizes: dict[str, int] = {}
    kept: Kept = {}
    unsaid: Kept = {}
    if "ffn" in ratios:
        for each in blocks.feed:
            stay = _best(worth([each.narrow])[each.narrow], ratios["ffn"], round_to)
            kept |= _feed_kept(each, stay)
            sizes[blocks.width] = len(stay)
    heads = ratios.get("heads", ratios.get("hidden") if blocks.tied else None)
    if heads is not None:
        for block in blocks.attend:
            stay = _groups(worth([block.output])[block.output], block, heads)
            if "hidden" in ratios or not blocks.tied:
                kept |= _heads_kept(block, stay)
                sizes |= blocks.heads(block, len(stay))
            else:
                unsaid |= _heads_kept(block, stay)
    hidden = None
    if "hidden" in ratios:
        scores = worth([path for each in blocks.feed for path in each.wide])
        total = torch.stack([score / score.mean() for score in scores.values()]).sum(0)
        size = blocks.hidden(sizes, ratios["hidden"], round_to)
        hidden = total.topk(size).indices.sort().values
        sizes["hidden_size"] = size
    if any(ratios.values()) and not _goes(model, kept | unsaid, hidden):
        raise ModelError(
            f"Nothing of {type(model).__name__} would go: what stays is a multiple of {round_to} "
            "(`round_to`), and heads go whole. Take a larger ratio or a smaller `round_to`."
        )
    return _rebuilt(model, sizes, kept | unsaid, hidden, unsaid)


@dataclass(frozen=True)
class _Blocks:
    """The parts of a model that can be cut, and what its configuration says of them."""

    model: Any
    attend: list[Attention]
    feed: list[FeedForward]

    @property
    def config(self) -> dict[str, Any]:
        return self.model.config.to_dict()  # type: ignore[no-any-return]

    @property
    def tied(self) -> bool:
        """Whether the size of a head is the hidden width by the number of heads, and no other."""
        return self.config.get("head_dim") is None

    @property
    def width(self) -> str:
        """The name of the feed-forward width."""
        now = self.model.get_submodule(self.feed[0].narrow).in_features
        names = [name for name in WIDTHS if self.config.get(name) == now]
        if not names:
            raise ModelError(
                f"The configuration of {type(self.model).__name__} has no feed-forward width of "
                f"{now}, so no model of another width could be loaded again."
            )
        return names[0]

    def check(self, ratios: Mapping[Any, float]) -> None:
        """Raises ModelError for parts that this class can't have smaller."""
        name = type(self.model).__name__
        if "channels" in ratios:
            raise ModelError(f"{name} has no channels to prune; take ffn, heads or hidden.")
        if ("heads" in ratios or ("hidden" in ratios and self.tied)) and not self.attend:
            raise ModelError(f"The heads of {name} can't be told apart; prune `ffn`.")

    def heads(self, block: Attention, groups: int) -> dict[str, int]:
        """What the configuration says of that many groups of heads."""
        sizes = {"num_attention_heads": groups * (block.heads // block.groups)}
        if "num_key_value_heads" in self.config:
            sizes["num_key_value_heads"] = groups
        return sizes

    def hidden(self, sizes: Mapping[str, int], ratio: float, round_to: int) -> int:
        """How wide the hidden states become."""
        if self.tied:
            return sizes["num_attention_heads"] * self.attend[0].size
        return _rounded(self.model.config.hidden_size, ratio, round_to)


def _goes(model: nn.Module, kept: Kept, hidden: Tensor | None) -> bool:
    """Whether anything at all is cut away."""
    weights: Any = model.state_dict()
    width: Any = vars(model)["config"]
    if hidden is not None and len(hidden) < width.hidden_size:
        return True
    cuts = (
        (weights[name].shape[dim], stay) for (name, dim), stay in kept.items() if name in weights
    )
    return any(len(stay) < size for size, stay in cuts)


def _rounded(total: int, ratio: float, round_to: int) -> int:
    """How many of some stay: a multiple of `round_to`, at least one, at most all."""
    return min(total, max(1, round(total * (1 - ratio) / round_to)) * round_to)


def _best(worth: Tensor, ratio: float, round_to: int) -> Tensor:
    """The indexes of what matters most, in their order."""
    return worth.topk(_rounded(len(worth), ratio, round_to)).indices.sort().values


def _groups(worth: Tensor, block: Attention, ratio: float) -> Tensor:
    """The groups of heads that matter most: keys and values with all queries that share them."""
    return _best(worth.view(block.groups, -1).sum(1), ratio, 1)


def _feed_kept(block: FeedForward, stay: Tensor) -> Kept:
    kept = {(f"{path}.{part}", 0): stay for path in block.wide for part in ("weight", "bias")}
    return {**kept, (f"{block.narrow}.weight", 1): stay}


def _heads_kept(block: Attention, stay: Tensor) -> Kept:
    def rows(each: int) -> Tensor:
        return (stay[:, None] * each + torch.arange(each)).flatten()

    queries, keys = rows(block.heads // block.groups * block.size), rows(block.size)
    kept = {(f"{block.query}.{part}", 0): queries for part in ("weight", "bias")}
    for path in (block.key, block.value):
        kept |= {(f"{path}.{part}", 0): keys for part in ("weight", "bias")}
    return {**kept, (f"{block.output}.weight", 1): queries}


def _rebuilt(
    model: Any, sizes: Mapping[str, int], kept: Kept, hidden: Tensor | None, unsaid: Kept
) -> nn.Module:
    """A fresh model of those sizes with the weights that stay.

    unsaid: those of them whose shapes no configuration can say
    """
    config = deepcopy(model.config)
    old_hidden = config.hidden_size
    for name, size in sizes.items():
        setattr(config, name, size)
    fresh = type(model)(config).to(device=model.device, dtype=model.dtype).train(model.training)
    weights: dict[str, Tensor] = {}
    goals = fresh.state_dict()
    for name, weight in model.state_dict().items():
        for dim in range(weight.dim()):
            stay = kept.get((name, dim))
            shrinks = name in goals and weight.shape[dim] > goals[name].shape[dim]
            if stay is None and hidden is not None and shrinks and weight.shape[dim] == old_hidden:
                stay = hidden
            if stay is not None:
                weight = weight.index_select(dim, stay.to(weight.device))  # noqa: PLW2901
        weights[name] = weight
    fit_(fresh, {name: weights[name] for name, _ in unsaid if name in weights})
    try:
        fresh.load_state_dict(weights)
    except RuntimeError as error:
        raise ModelError(
            f"{type(model).__name__} can't be built with {dict(sizes)}: "
            f"{str(error).splitlines()[-1].strip()}"
        ) from error
    return taking_after_(fresh, model, marked(model))
