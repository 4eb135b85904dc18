"""Language models that write a token at a time: what they remember goes in, and comes out longer.

Inputs and outputs are named as others name them (`past_key_values.0.key`, `present.0.key`), so that
runtimes which write by an ONNX file find them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attar.errors import ExportError
from attar.export.parity import Inputs

TOKENS = ["input_ids", "attention_mask"]


class Remembering(nn.Module):
    """A model called with new tokens, a mask over all, and each layer's keys and values before.

    Gives the logits of the new tokens and each layer's keys and values, (rows, heads, all, width).
    Positions are counted by the mask, so prompts may be padded on the left.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        token = torch.zeros(1, 1, dtype=torch.long)
        try:
            said = model(input_ids=token, use_cache=True)
            self.memory = type(said.past_key_values)
            self.shapes = [
                each.shape[1:] for layer in said.past_key_values.layers for each in _pair(layer)
            ]
        except (AttributeError, TypeError) as error:
            raise ExportError(
                f"{type(model).__name__} keeps no keys and values of earlier tokens, as causal "
                "models of transformers do; leave `cache` out."
            ) from error

    @property
    def inputs(self) -> list[str]:
        """What it is called with, in order."""
        return TOKENS + self._names("past_key_values")

    @property
    def outputs(self) -> list[str]:
        """What it gives, in order."""
        return ["logits", *self._names("present")]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        ids, mask, *past = inputs
        before = self.memory()
        for layer in range(len(past) // 2):
            before.update(past[2 * layer], past[2 * layer + 1], layer)
        places = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        said = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=places,
            past_key_values=before,
            use_cache=True,
        )
        after = [each for layer in said.past_key_values.layers for each in _pair(layer)]
        return said.logits, *after

    def example(self) -> tuple[Tensor, ...]:
        """Inputs to trace it with: two rows of two tokens, three before, no size told by chance."""
        ids, mask = torch.ones(2, 2, dtype=torch.long), torch.ones(2, 5, dtype=torch.long)
        return ids, mask, *(torch.zeros(2, heads, 3, width) for heads, _, width in self.shapes)

    def nothing(self, rows: int) -> list[Tensor]:
        """What is remembered before the first token."""
        return [torch.zeros(rows, heads, 0, width) for heads, _, width in self.shapes]

    def _names(self, what: str) -> list[str]:
        kinds = [(n // 2, ("key", "value")[n % 2]) for n in range(len(self.shapes))]
        return [f"{what}.{layer}.{kind}" for layer, kind in kinds]


def in_halves(
    model: Remembering, run: Callable[[dict[str, Tensor]], Sequence[Any]]
) -> Callable[[Inputs], Any]:
    """Logits of all tokens by a file that is first given half of them, then by what it remembers.

    run: gives all of the file's outputs as arrays, by its inputs' names
    """
    import numpy as np

    def answer(inputs: Inputs) -> Any:
        ids = inputs["input_ids"]
        mask = inputs.get("attention_mask", torch.ones_like(ids))
        past, said = model.nothing(len(ids)), []
        half = max(1, ids.shape[1] // 2)
        for start, stop in ((0, half), (half, ids.shape[1])):
            if start == stop:
                continue
            given = (ids[:, start:stop], mask[:, :stop], *past)
            logits, *after = run(dict(zip(model.inputs, given, strict=True)))
            said.append(logits)
            past = [torch.from_numpy(each) for each in after]
        return np.concatenate(said, 1)

    return answer


def _pair(layer: Any) -> tuple[Tensor, Tensor]:
    return layer.keys, layer.values
