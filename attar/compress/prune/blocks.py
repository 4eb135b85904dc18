"""Where a transformer keeps what can be cut: the heads of attention, the width of feed-forward."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

ATTENTION = (
    (("self.query", "self.key", "self.value"), "output.dense"),  # BERT and its kin
    (("attention.query", "attention.key", "attention.value"), "output.dense"),  # ViT before 5.0
    (("q_proj", "k_proj", "v_proj"), "o_proj"),  # Llama and its kin, ViT
    (("q_proj", "k_proj", "v_proj"), "out_proj"),  # BART, CLIP
    (("q_lin", "k_lin", "v_lin"), "out_lin"),  # DistilBERT
)
"""Inside of a module: the paths of its query, key and value, and of what joins the heads again."""

SIZE = ("attention_head_size", "head_dim")
"""What an attention calls the rows of one head."""

FEED_FORWARD = (
    (("gate_proj", "up_proj"), "down_proj"),
    (("intermediate.dense",), "output.dense"),
    (("fc1",), "fc2"),
    (("lin1",), "lin2"),
)
"""Inside of a module: the paths of what widens, and of what narrows again."""


@dataclass(frozen=True)
class Attention:
    """The paths of one attention's linear layers, and how its rows fall into heads.

    heads: of the queries; groups: of keys and values, each shared by heads / groups of them
    """

    query: str
    key: str
    value: str
    output: str
    heads: int
    groups: int
    size: int


@dataclass(frozen=True)
class FeedForward:
    """The paths of one feed-forward network's linear layers."""

    wide: tuple[str, ...]
    narrow: str


def attentions(model: nn.Module) -> list[Attention]:
    """Every attention whose heads can be told apart, in the order of the layers."""
    config: Any = vars(model).get("config")
    if config is None:
        return []
    found = []
    for (query, key, value), output in _found(model, ATTENTION):
        whole = model.get_submodule(query.rpartition(".")[0])
        rows, shared = (int(model.get_submodule(path).out_features) for path in (query, key))  # type: ignore[arg-type]
        sizes = (vars(whole).get(name) for name in SIZE)
        size = next(filter(None, sizes), rows // config.num_attention_heads)
        found.append(Attention(query, key, value, output, rows // size, shared // size, size))
    return found


def feed_forwards(model: nn.Module) -> list[FeedForward]:
    """Every feed-forward network, in the order of the layers."""
    return [FeedForward(wide, narrow) for wide, narrow in _found(model, FEED_FORWARD)]


def _found(
    model: nn.Module, patterns: tuple[tuple[tuple[str, ...], str], ...]
) -> Iterator[tuple[tuple[str, ...], str]]:
    """The paths of the linear layers that stand together as one of the patterns says."""
    linear = {path for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    for path, _ in model.named_modules():
        for wide, narrow in patterns:
            paths = [f"{path}.{name}".lstrip(".") for name in (*wide, narrow)]
            if linear.issuperset(paths):
                yield tuple(paths[:-1]), paths[-1]
                break
