"""One measured model: a row of the report, and the part it plays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["teacher", "student", "export", "baseline"]

WITHOUT_TEACHER = ("labels_only", "label_smoothing", "reward_only")
"""Baselines that are the student itself, trained the same way but for its teacher."""

BASELINES = (*WITHOUT_TEACHER, "pseudo_labels", "bag_of_words")
"""Every baseline the verdict knows how to speak of."""

FIGURES = (
    *("score", "parameters", "nonzero", "macs", "size_bytes", "zipped_bytes"),
    *("memory_bytes", "energy_j"),
)
"""What is one number of a row."""


@dataclass(frozen=True)
class Row:
    """What was measured of one model in one runtime; None is a figure nobody measured.

    name: `teacher`, `student`, a baseline's name, or the exported file's (`student.onnx`)
    runtime: what ran it, with its version: "ONNX Runtime 1.31"
    score: the one number models are compared by, higher is better
    metrics: everything else that was scored; `examples` is the size of the test split,
        `validation` the score on the split that serves choices
    latency_ms: percentiles of one call in milliseconds, `p50` and `p95`; where several lengths
        were timed, these are the first one's, and `p50@64` is that of 64 tokens
    nonzero: how many of the parameters are not 0
    zipped_bytes: the same bytes as `size_bytes` after DEFLATE
    energy_j: joules of one answer
    after: the row that this one was made from by a step of the recipe; empty where none
    part: the part it plays, where its name doesn't tell; see `role`
    by_seed: where it stands for several seeds, the score of each; `score` is their mean
    interval: the lowest and the highest mean score that is likely (95 %)
    """

    name: str
    runtime: str
    score: float | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    parameters: int | None = None
    macs: int | None = None
    size_bytes: int | None = None
    latency_ms: Mapping[str, float] | None = None
    memory_bytes: int | None = None
    note: str = ""
    nonzero: int | None = None
    zipped_bytes: int | None = None
    energy_j: float | None = None
    after: str = ""
    part: Role | None = None
    by_seed: tuple[float, ...] = ()
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """A figure that is not a number is a figure nobody has: it becomes None here, once."""
        for name in FIGURES:
            object.__setattr__(self, name, finite(self.__dict__[name]))
        if self.latency_ms is not None:
            known = {key: ms for key, ms in self.latency_ms.items() if finite(ms) is not None}
            object.__setattr__(self, "latency_ms", known or None)
        object.__setattr__(self, "by_seed", tuple(self.by_seed))
        if self.interval is not None:
            low, high = self.interval
            both = finite(low) is not None and finite(high) is not None
            object.__setattr__(self, "interval", (low, high) if both else None)

    def percentile(self, name: str) -> float | None:
        """Milliseconds of one call at `p50` or `p95`; None where it was not timed."""
        return None if self.latency_ms is None else self.latency_ms.get(name)

    @property
    def lengths(self) -> list[int]:
        """The tokens that answers were timed at, where it was at several lengths."""
        known = (key.partition("@")[2] for key in self.latency_ms or {})
        return sorted({int(tokens) for tokens in known if tokens.isdecimal()})

    @property
    def program(self) -> str:
        """What ran it, without the number format: "PyTorch 2.13", "ONNX Runtime 1.31"."""
        words = self.runtime.replace(",", " ").split()
        version = next((n for n, word in enumerate(words) if word[0].isdigit()), len(words))
        return " ".join(words[: version + 1])

    @property
    def examples(self) -> int | None:
        """How many test examples the score stands on, where the metrics say so."""
        count = self.metrics.get("examples")
        return int(count) if isinstance(count, int | float) and finite(count) else None

    @property
    def validation(self) -> float | None:
        """The score on the validation split, where there is one."""
        score = self.metrics.get("validation")
        return finite(score) if isinstance(score, int | float) else None

    @property
    def role(self) -> Role:
        """The part this row plays: what it says, or what its name tells."""
        if self.part is not None:
            return self.part
        if self.name.startswith("teacher"):
            return "teacher"
        steps = self.name.startswith("student-") and not self.name.endswith("-folder")
        if self.name == "student" or (steps and "." not in self.name):
            return "student"
        return "export" if self.name.startswith("student") or "." in self.name else "baseline"


def finite(value: float | None) -> float | None:
    """The value, or None where it is missing, infinite or not a number."""
    return value if value is not None and math.isfinite(value) else None
