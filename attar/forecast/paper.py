"""What a run will take, on paper: its stages, their time, and the room they need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from attar.doctor.machine import BUSY
from attar.report.figures import count, duration, size


@dataclass(frozen=True)
class Training:
    """What a training consists of.

    part: of the data, with so many examples; tokens: of all its steps together, 0 of pictures
    parameters: of the model; trained: those of them, and of bridges, that change
    activations: bytes that one step keeps for its gradients
    """

    part: str
    examples: int
    steps: int
    batch_size: int
    tokens: int
    parameters: int
    trained: int
    activations: int

    @property
    def epochs(self) -> float:
        """How often each example is seen; 0 where there are none but what is met."""
        return self.steps / -(-self.examples // self.batch_size) if self.examples else 0.0


@dataclass(frozen=True)
class Stage:
    """One thing that a run does, with the seconds it takes and the bytes it leaves on disk.

    done: whether an earlier run has done it, so that it takes no time
    """

    name: str
    seconds: float
    bytes: int = 0
    done: bool = False
    training: Training | None = None


@dataclass(frozen=True)
class Forecast:
    """What a run will take, roughly.

    data: examples of each part; tells: what is answered, in words
    tokens: of an example, on the mean, 0 of pictures
    parameters: of teacher, student and bridges; layers: what is compared, by loss
    stages: in their order; memory: bytes, by what they are for
    load: what else this machine did, for each core
    asked: what an endpoint would be asked, in a sentence
    """

    data: Mapping[str, int]
    tells: str
    tokens: float
    parameters: Mapping[str, int]
    layers: Mapping[str, list[dict[str, str]]]
    stages: tuple[Stage, ...]
    memory: Mapping[str, int]
    load: float = 0.0
    asked: str = ""

    @property
    def trainings(self) -> dict[str, Training]:
        """The trainings among the stages, by name."""
        return {each.name: each.training for each in self.stages if each.training is not None}

    @property
    def seconds(self) -> float:
        """The whole time."""
        return sum(each.seconds for each in self.stages)

    @property
    def disk(self) -> int:
        """Bytes that are there at the end, what was there before included."""
        return sum(each.bytes for each in self.stages)

    @property
    def checkpoints(self) -> int:
        """Bytes that the checkpoints of the largest training take until it is done."""
        # Weights and AdamW's two moments; the old checkpoint goes when the new one is whole.
        return max((8 * (t.parameters + 2 * t.trained) for t in self.trainings.values()), default=0)

    @property
    def plan(self) -> dict[str, Any]:
        """All of it as plain data."""
        total = {"seconds": self.seconds, "disk": self.disk, "checkpoints": self.checkpoints}
        return asdict(self) | {"total": total}

    def lines(self) -> list[str]:
        """All of it for a terminal."""
        parts = ", ".join(f"{number} {part}" for part, number in self.data.items())
        models = ", ".join(f"{name} {count(n)}" for name, n in self.parameters.items() if n)
        memory = ", ".join(f"{name} {size(n)}" for name, n in self.memory.items() if n)
        return [
            f"data     {parts}; {self.tells}"
            + f", {self.tokens:.0f} tokens a text" * (self.tokens > 0),
            f"models   parameters: {models}",
            *(
                f"layers   {loss}: student {pair['student']} <- teacher {pair['teacher']}"
                for loss, pairs in self.layers.items()
                for pair in pairs
            ),
            *[f"endpoint {self.asked}"] * bool(self.asked),
            "",
            *self._table(),
            "",
            f"memory   {size(sum(self.memory.values()))}: {memory}",
            f"disk     {size(self.disk)}, and up to {size(self.checkpoints)} while it trains",
            "Times and memory are rough, from a few steps just taken.",
            *["Others compute here: alone it may be several times faster."] * (self.load > BUSY),
        ]

    def _table(self) -> list[str]:
        rows: list[tuple[str, ...]] = [
            ("stage", "sees", "steps", "epochs", "batch", "tokens", "disk", "time"),
            *map(_row, self.stages),
            ("total", *[""] * 5, size(self.disk), duration(self.seconds)),
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        words, numbers = slice(0, 2), slice(2, None)
        return [
            "  ".join(
                [cell.ljust(n) for cell, n in zip(row[words], widths[words], strict=True)]
                + [cell.rjust(n) for cell, n in zip(row[numbers], widths[numbers], strict=True)]
            )
            for row in rows
        ]


def _row(each: Stage) -> tuple[str, ...]:
    told = ("",) * 5
    if (t := each.training) is not None:
        told = (
            t.part,
            str(t.steps),
            f"{t.epochs:.1f}" * (t.epochs > 0),
            str(t.batch_size),
            count(t.tokens),
        )
    wait = "found done" if each.done else duration(each.seconds)
    return (each.name, *told, size(each.bytes) if each.bytes else "", wait)
