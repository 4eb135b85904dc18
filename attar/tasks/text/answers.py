"""What a language model answers: its logits, not made yet where its head is the last it does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn

from attar.heads import Headed
from attar.tasks.loading import logits

_WORKED_OVER: WeakSet[nn.Module] = WeakSet()
"""Models that were seen to do something to their logits (to cap or to scale them)."""


def answered(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor | Headed:
    """What a model makes of its inputs, (rows, length, classes).

    Of a model of `transformers` the output head is left out, and its input given with it. Where
    somebody listens to the head, where it is no plain linear layer, or where the model goes on with
    its logits, they are made as ever.
    """
    head = None if model in _WORKED_OVER else _head(model)
    if head is None:
        return logits(model(**inputs))
    with _left_out(head) as heard:
        said = logits(model(**inputs))
    if len(heard) == 1 and said is heard[0][1]:
        return Headed.by(head, heard[0][0])
    _WORKED_OVER.add(model)
    return logits(model(**inputs))


def _head(model: Any) -> nn.Linear | None:
    """The linear layer that gives the logits, where nobody would miss that it is asked."""
    head = model.get_output_embeddings() if "config" in vars(model) else None
    if type(head) is not nn.Linear or "forward" in vars(head):
        return None
    return None if head._forward_hooks or head._forward_pre_hooks else head


@contextmanager
def _left_out(head: nn.Linear) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Gathers what the head is given, and what stands for its logits: zeros that take no memory."""
    heard: list[tuple[Tensor, Tensor]] = []

    def listen(states: Tensor) -> Tensor:
        nothing = states.new_zeros(()).float().expand(*states.shape[:-1], head.out_features)
        heard.append((states, nothing))
        return nothing

    vars(head)["forward"] = listen
    try:
        yield heard
    finally:
        del vars(head)["forward"]
