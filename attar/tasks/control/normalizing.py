"""What an agent saw normalized: the running means that stable-baselines3 keeps beside it.

`VecNormalize.save` pickles itself. Only arrays are made of such a file here; whatever else it
names becomes an empty shell, and no code of it, or of any library it asks for, is run.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attar.errors import ModelError

FILES = ("vecnormalize.pkl", "vec_normalize.pkl")
"""What the zoo of stable-baselines3 and its hub call the statistics beside an agent."""

MEAN, VARIANCE = "obs_rms.mean", "obs_rms.var"
"""What safetensors with an agent's weights may hold of them."""

EPSILON, CLIP = 1e-8, 10.0
"""What `VecNormalize` adds to a variance, and beyond what deviation nothing is told apart."""


class Normalized(nn.Module):
    """Observations brought to the running mean and deviation that an agent was trained with."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Tensor, variance: Tensor, epsilon: float, clip: float) -> None:
        super().__init__()
        self.clip = clip
        self.register_buffer("mean", mean.float())
        self.register_buffer("deviation", (variance.double() + epsilon).sqrt().float())

    def forward(self, observation: Tensor) -> Tensor:
        return ((observation - self.mean) / self.deviation).clamp(-self.clip, self.clip)


def beside(agent: Path) -> Normalized | None:
    """The statistics beside an agent's zip, or in a folder named after it; None where none are.

    Raises ModelError where the file is none of `VecNormalize`, or is about observations in parts.
    """
    # Its own folder first: what lies beside it may be another agent's.
    places = [folder / name for folder in (agent.with_suffix(""), agent.parent) for name in FILES]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return None
    try:
        kept = vars(_Arrays(io.BytesIO(path.read_bytes())).load())
        if not kept["norm_obs"]:
            return None
        means = kept["obs_rms"]
        if isinstance(means, Mapping):
            raise ModelError(
                f"{path} normalizes observations in parts, which attar does not read; train the "
                "agent on flat ones."
            )
        mean, variance = (_numbers(vars(means)[name]) for name in ("mean", "var"))
        return Normalized(mean, variance, float(kept["epsilon"]), float(kept["clip_obs"]))
    except ModelError:
        raise
    except Exception as error:  # whatever is in a file that is none
        raise ModelError(
            f"{path} holds no statistics of VecNormalize that can be read without running it; "
            f"give the agent as safetensors, with {MEAN} and {VARIANCE} in it."
        ) from error


def within(weights: Mapping[str, Tensor]) -> Normalized | None:
    """The statistics among an agent's weights; None where none are."""
    if not {MEAN, VARIANCE} <= set(weights):
        return None
    return Normalized(weights[MEAN], weights[VARIANCE], EPSILON, CLIP)


def _numbers(array: Any) -> Tensor:
    if not isinstance(array, np.ndarray):
        raise TypeError
    return torch.from_numpy(array.astype(np.float64))


class _Shell:
    """Stands for whatever a file names that is no array: it can be filled, and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _Shell:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            vars(self).update(state)

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


def _from_buffer(buffer: Any, dtype: Any, shape: Any, order: Any) -> Any:
    return np.frombuffer(buffer, dtype).reshape(shape, order=order)


def _empty(kind: Any, shape: Any, code: Any) -> Any:  # noqa: ARG001
    return np.ndarray(shape, np.int8)


def _scalar(dtype: Any, content: Any = b"") -> Any:
    return np.frombuffer(content, dtype)[0]


ARRAYS = {
    "ndarray": np.ndarray,
    "dtype": np.dtype,
    "_reconstruct": _empty,
    "_frombuffer": _from_buffer,
    "scalar": _scalar,
}
"""What an array is made of when it is read, by the names that numpy gives it in its modules."""


class _Arrays(pickle.Unpickler):
    """Reads arrays and plain values; of anything else a shell."""

    def find_class(self, module: str, name: str) -> Any:
        known = module.partition(".")[0] == "numpy" and name in ARRAYS
        return ARRAYS[name] if known else _Shell
