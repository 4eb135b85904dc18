"""What models are asked while they are timed: the task's example, in several rows, at a length."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from attar.errors import AttarError
from attar.types import Example


def question(example: Example, *, rows: int = 1, tokens: int | None = None) -> Example:
    """The example that many times over and that long.

    tokens: real tokens of each row; None leaves the example as long as it is
    Raises AttarError, once it is asked, for a length where the example has no tokens.
    """

    def asked(model: object) -> dict[str, Tensor]:
        inputs = example(model)  # type: ignore[arg-type]
        if tokens is not None:
            inputs = _at_length(inputs, tokens)
        return {name: x.repeat(rows, *[1] * (x.dim() - 1)) for name, x in inputs.items()}

    return asked


def length(inputs: Mapping[str, Tensor]) -> int | None:
    """The tokens of a row; None where a model reads something else."""
    return inputs["input_ids"].shape[1] if "input_ids" in inputs else None


def _at_length(inputs: Mapping[str, Tensor], tokens: int) -> dict[str, Tensor]:
    """Every input repeated, then cut, to so many tokens, all of them real."""
    known = length(inputs)
    if known is None:
        raise AttarError(
            f"latency can't be timed at {tokens} tokens: the model reads {', '.join(inputs)}; "
            "leave its option tokens out."
        )
    long = {name: x.repeat(1, -(-tokens // known))[:, :tokens] for name, x in inputs.items()}
    if "attention_mask" in long:
        long["attention_mask"] = long["attention_mask"].new_ones(long["input_ids"].shape)
    return long


def by_name(
    times: Mapping[tuple[str, int | None], Mapping[str, float]],
) -> dict[str, dict[str, float]]:
    """The percentiles of each model, where it was timed at several lengths (or at none).

    The first length's stand under their plain names, `p50`, and each length's as `p50@64`.
    """
    found: dict[str, dict[str, float]] = {}
    for (name, tokens), percentiles in times.items():
        told = found.setdefault(name, dict(percentiles))
        if tokens is not None:
            told |= {f"{key}@{tokens}": ms for key, ms in percentiles.items()}
    return found
