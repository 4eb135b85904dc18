"""Trainings that survive: checkpoints while each runs, its weights when it is done."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from attar.distill.loop import Best, Watch
from attar.engine import local
from attar.errors import EngineError
from attar.screen import Screen

BEST = "best.safetensors"
"""The weights that scored best on the validation split, where a training was validated."""

POINTS = 200
"""Points of a training curve that are kept."""


@dataclass
class Curve:
    """How one training went: its loss over the steps and the seconds it took, across crashes."""

    points: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    _since: float = field(default_factory=time.monotonic, repr=False)

    def add(self, record: Mapping[str, Any]) -> None:
        """Take in what the loop tells of a step."""
        now = time.monotonic()
        self.seconds, self._since = self.seconds + now - self._since, now
        every = max(1, record["steps"] // POINTS)
        if record["step"] % every == 0 or record["step"] == record["steps"] or "score" in record:
            self.points.append({key: value for key, value in record.items() if key != "steps"})

    def state_dict(self) -> Mapping[str, Any]:
        return {"points": self.points, "seconds": self.seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.points, self.seconds = [dict(point) for point in state["points"]], state["seconds"]
        self._since = time.monotonic()


def key(*facts: Any) -> str:
    """A name for the outcome of a training: the hash of all that decides it."""
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def trained(
    title: str,
    folder: Path,
    engine: local,
    screen: Screen,
    build: Callable[[], nn.Module],
    train: Callable[[local, Watch], nn.Module],
    told: Watch | None = None,
) -> tuple[nn.Module, Curve, bool]:
    """A trained model, its curve, and whether it was found trained already.

    folder: of this one outcome; its weights are looked for there, and put there when done
    build: makes the untrained network, to put found weights into
    train: trains on the given engine, which keeps checkpoints in the folder
    told: who else is told of every step
    """
    with held(folder, lambda: screen.say(f"{title}: another run is at it; waiting for it ...")):
        if (known := found(folder, build)) is not None:
            screen.say(f"{title}: found, trained earlier ({known[1].seconds:.0f} s).")
            return *known, True
        here = engine.at(folder / "checkpoints")
        curve = Curve()
        here.track("curve", curve)
        with screen.bar(title) as advance:

            def watch(record: Mapping[str, Any]) -> None:
                curve.add(record)
                advance(record["step"], record["steps"], f"loss {record['loss']:.3f}")
                if told is not None:
                    told(record)

            model = train(here, watch)
        best = here.tracked("best")
        _keep(model, curve, folder, best.weights if isinstance(best, Best) else None)
        here.forget()
    return model, curve, False


@contextmanager
def held(folder: Path, wait: Callable[[], None]) -> Iterator[None]:
    """Two runs that want the same work done: the second waits, and finds it done.

    folder: of this work; wait: is called before waiting
    The system lets go of the lock when its holder dies, however it dies.
    """
    try:
        import fcntl
    except ImportError:  # Windows: the last to end wins, and both have the same weights
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            wait()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # Tied weights are one tensor under several names; safetensors wants each stored by itself.
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}


def done(folder: Path) -> bool:
    """Whether the training that this folder is for has ended."""
    return (folder / "done.json").is_file()


def found(folder: Path, build: Callable[[], nn.Module]) -> tuple[nn.Module, Curve] | None:
    """The model and the curve of a training that is done; None where it is not."""
    if not done(folder):
        return None
    model, curve = build(), Curve()
    try:
        model.load_state_dict(load_file(folder / "model.safetensors"))
        curve.load_state_dict(json.loads((folder / "done.json").read_text()))
    except (SafetensorError, RuntimeError, ValueError, KeyError) as error:
        raise EngineError(f"What was trained earlier in {folder} is damaged; delete it.") from error
    return model.eval(), curve


def at_best(model: nn.Module, folder: Path) -> nn.Module:
    """A copy of a trained model, with the weights that scored best on the validation split."""
    best = copy.deepcopy(model)
    best.load_state_dict(load_file(folder / BEST))
    return best


def _keep(model: nn.Module, curve: Curve, folder: Path, best: Mapping[str, Tensor] | None) -> None:
    """Write the weights, the best by validation beside them, and last that they are whole."""
    folder.mkdir(parents=True, exist_ok=True)
    state = _apart(model.state_dict())
    written: dict[str, Callable[[Path], object]] = {
        "model.safetensors": lambda path: save_file(state, path),
        "done.json": lambda path: path.write_text(json.dumps(curve.state_dict())),
    }
    if best is not None:
        written = {BEST: lambda path: save_file(_apart(best), path)} | written
    for name, write in written.items():
        temporary = folder / f"{name}.{os.getpid()}"
        write(temporary)
        os.replace(temporary, folder / name)
