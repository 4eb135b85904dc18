"""Whole channels, heads and widths gone: what is left is a dense, smaller, faster model."""

from __future__ import annotations

from copy import deepcopy
from typing import Literal, get_args

from torch import nn

from attar.compress.prune import graph, transformer
from attar.compress.prune.importance import Importance
from attar.errors import ModelError
from attar.types import Calibration, Count, Example, Losses

Part = Literal["ffn", "heads", "hidden", "channels"]
"""What a network can have less of."""


def structured(
    model: nn.Module,
    example: Example,
    calibration: Calibration,
    losses: Losses,
    *,
    ratio: float | dict[Part, float],
    importance: Importance = "activation",
    scope: Literal["layer", "global"] = "layer",
    round_to: Count = 8,
    batches: Count = 8,
    exclude: list[str] | None = None,
) -> nn.Module:
    """Fewer channels, heads or hidden units; a `distill` step behind it repairs what they knew.

    A model of `transformers` is cut alike in all its layers, keys and values in whole groups, and
    loads again by `from_pretrained`. The channels of any other network are followed through its
    graph by Torch-Pruning (Fang et al. 2023), its last layer left whole.

    ratio: share that goes, 0 to below 1. By part (`{ffn: 0.5, hidden: 0.25}`): `ffn`, the width of
        the feed-forward layers; `heads`, which alone no configuration of BERT or ViT can say (a
        text student is kept by `export.safetensors` then); `hidden`, the width of all that passes
        between layers (with heads, where their size hangs on it); `channels` of other networks.
        One number is for `ffn` or `channels`.
    importance: `magnitude` of the weights that read a unit; `activation`, times what it carries;
        `taylor`, what the loss would change without it (wants labels); `scale`, that of the batch
        norm behind a channel (other networks only)
    scope: one share for each layer, or one threshold for all channels of a network
    round_to: what stays is a multiple of it, as processors like it (whole heads stay heads)
    batches: of calibration, for activation and taylor
    exclude: paths of modules, with all that is in them, whose channels stay

    Returns a copy. Raises ModelError where a part is missing or the model can't have such shapes,
    MissingExtra without Torch-Pruning where it is needed.
    """
    uniform = transformer.is_uniform(model)
    usual: Part = "ffn" if uniform else "channels"
    ratios = dict(ratio) if isinstance(ratio, dict) else {usual: ratio}
    _check(ratios)
    if uniform:
        if exclude or scope == "global":
            raise ModelError(
                f"All layers of {type(model).__name__} have one width, so they are cut alike: "
                "leave out `exclude` and `scope`."
            )
        sizes = {"round_to": round_to, "batches": batches}
        return transformer.cut(model, ratios, importance, calibration, losses, **sizes)
    if set(ratios) != {"channels"}:
        raise ModelError(
            f"{type(model).__name__} is no transformers model whose layers can be told apart, so "
            "its `channels` are all that can be pruned; say `ratio` as one number."
        )
    return graph.cut(
        deepcopy(model),
        ratios["channels"],
        graph.Measure(importance, example, calibration, losses, batches),
        together=scope == "global",
        round_to=round_to,
        exclude=exclude,
    )


def _check(ratios: dict[Part, float]) -> None:
    for part, ratio in ratios.items():
        if not 0 <= ratio < 1:
            raise ModelError(f"ratio of {part} is the share that goes, 0 to below 1, not {ratio}.")
    if not ratios:
        raise ModelError(f"ratio names no part; choose from {', '.join(get_args(Part))}.")
