"""Whether a file answers as the model it was made from, asked in its own runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attar.errors import ExportError
from attar.types import Example, Quantized

FLOAT_TOLERANCE = 1e-3
"""Largest difference of a logit, as a share of the largest logit, for a float file."""

INT8_TOLERANCE = 0.05
"""The same for an int8 file: a rounding that falls the other way moves a value by a whole step."""

Inputs = Mapping[str, Tensor]


def twin(model: nn.Module, example: Example) -> tuple[nn.Module, dict[str, Tensor]]:
    """A copy of the model that answers on the processor, and the example's inputs for it."""
    inputs = {name: tensor.cpu() for name, tensor in example(model).items()}
    return deepcopy(model).cpu().eval(), inputs


def logits(output: Any) -> Tensor:
    """The logits in what a model gave."""
    return output if isinstance(output, Tensor) else output.logits


class Named(nn.Module):
    """A model called with its inputs in order, giving logits alone, as torch traces it."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: Tensor) -> Tensor:
        return logits(self.model(**dict(zip(self.names, inputs, strict=True))))


def has_length(tensor: Tensor) -> bool:
    """Whether an input is tokens or their mask, of which there may be more or fewer."""
    return tensor.dim() == 2 and not tensor.is_floating_point()


def unlike(inputs: Inputs) -> dict[str, Tensor]:
    """The same inputs in another shape: more rows, each a token shorter if it is of tokens."""
    return {
        name: (each[:, : max(1, each.shape[1] - 1)] if has_length(each) else each).repeat(
            3, *[1] * (each.dim() - 1)
        )
        for name, each in inputs.items()
    }


def difference(
    model: nn.Module, answer: Callable[[Inputs], Any], asked: Sequence[Inputs], runtime: str
) -> float:
    """The largest difference of the file's logits from the model's, as a share of the largest.

    answer: gives the file's logits as an array
    Raises ExportError where the file gives no answer, or one of another shape.
    """
    shares = []
    for inputs in asked:
        with torch.no_grad():
            truth = logits(model(**inputs)).float().numpy()
        try:
            found = answer(inputs)
        except Exception as error:
            raise ExportError(
                f"{runtime} can't run what {type(model).__name__} was exported to "
                f"({reason(error)})."
            ) from error
        if found.shape != truth.shape:
            raise ExportError(
                f"The exported file gives logits {found.shape} where the model gives "
                f"{truth.shape}; nothing was written."
            )
        shares.append(float(np.abs(found - truth).max() / max(np.abs(truth).max(), 1e-6)))
    return float(np.max(shares))


def check_answers(difference: float, model: nn.Module, advice: str) -> None:
    """Raises ExportError where the file's logits are too far from the model's, or no numbers.

    advice: what helps where a quantized model is answered otherwise, in a sentence
    """
    quantized = any(isinstance(module, Quantized) for module in model.modules())
    tolerance = INT8_TOLERANCE if quantized else FLOAT_TOLERANCE
    # Said with `not`, so that a difference that is no number is refused too.
    if not difference <= tolerance:
        raise ExportError(
            f"The exported file answers otherwise than the model: its logits differ by up to "
            f"{difference:.1%} of the largest (allowed {tolerance:.1%}); nothing was written."
            f"{f' {advice}' if quantized else ''}"
        )


def reason(error: BaseException) -> str:
    """What went wrong at the bottom, in a line, without the advice that is stacked upon it."""
    while error.__cause__ is not None:
        error = error.__cause__
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}".rstrip(".: ")
