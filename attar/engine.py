"""Where the arithmetic runs: `local` is this process on one device.

Everything that touches a device, a number format, a rank or a checkpoint is here, so another engine
changes nothing elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from attar.errors import EngineError, nearest
from attar.types import Batch, Stateful, Stream

Precision = Literal["auto", "fp32", "bf16", "fp16"]
_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""What processors that multiply in bfloat16 say of themselves: x86 twice, ARM twice."""
_APART = 10
"""How many times as long as writing a checkpoint takes there is training before the next."""
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class local:  # noqa: N801  (a recipe names it, so it is spelled like the functions beside it)
    """One process on one device, with checkpoints that survive a kill at any moment.

    precision: `auto` takes bfloat16 where the processor computes with it (others emulate it, 20
        times slower)
    device: `auto` takes a GPU where there is one
    threads: CPU threads of the arithmetic; null leaves torch's choice
    checkpoint: seconds between checkpoints, or ten times as long as writing one takes, where that
        is longer; 0 for one at every step
    """

    is_main = True

    def __init__(
        self,
        folder: Path | None = None,
        *,
        precision: Precision = "auto",
        device: str = "auto",
        threads: int | None = None,
        checkpoint: float = 20.0,
    ) -> None:
        if threads is not None and threads < 1:
            raise EngineError(f"threads is {threads}; give at least 1, or null for torch's choice.")
        if threads is not None:
            torch.set_num_threads(threads)
        self.device = _device(device)
        self.precision: str = _format(self.device) if precision == "auto" else precision
        if self.precision not in _DTYPES:
            choices = ["auto", *_DTYPES]
            raise EngineError(f"There is no precision {precision!r}; {nearest(precision, choices)}")
        if self.precision == "fp16" and self.device.type == "cpu":
            raise EngineError("fp16 training needs a GPU; on a CPU use bf16 or fp32.")
        self.folder = folder
        self.checkpoint = checkpoint
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self._tracked: dict[str, Stateful] = {"scaler": self._scaler}
        self._waiting: dict[str, Any] = {}
        self._feeding = False
        self._step = 0
        self._saved_at = time.monotonic()
        self._took = 0.0

    def at(self, folder: Path) -> local:
        """The same engine with its checkpoints in another folder, tracking nothing yet."""
        return local(
            folder,
            precision=self.precision,  # type: ignore[arg-type]
            device=str(self.device),
            checkpoint=self.checkpoint,
        )

    def prepare(self, module: nn.Module) -> nn.Module:
        """The module on this engine's device."""
        return module.to(self.device)

    def autocast(self) -> AbstractContextManager[Any]:
        """The number format of a forward pass."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, _DTYPES[self.precision])

    def backward(self, loss: Tensor) -> None:
        """Gradients of a loss, added to those that are there."""
        torch.autograd.backward(self._scaler.scale(loss))

    def step(
        self, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], clip: float
    ) -> float:
        """Clip over all parameters together, update, forget the gradients; gives their norm.

        clip: largest norm of all gradients as one vector; 0 for none
        Raises EngineError, before a weight has changed, where that norm is not finite (in fp16
        the step is left out instead, and the scale of the loss lowered).
        """
        self._scaler.unscale_(optimizer)
        norm = float(nn.utils.clip_grad_norm_(parameters, clip if clip > 0 else math.inf))
        if not math.isfinite(norm) and not self._scaler.is_enabled():
            raise EngineError(f"The gradient's norm is {norm}; lower `lr`, or look at the data.")
        self._scaler.step(optimizer)
        self._scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return norm

    def track(self, name: str, thing: Stateful) -> None:
        """Keep a thing's state in every checkpoint; met again after a crash, it gets it back.

        A scheme registers its state when its generator first runs, which is after `resume`.
        Raises EngineError where the checkpoint holds the state of something else.
        """
        self._tracked[name] = thing
        if name in self._waiting:
            self._restore_(name, thing)

    def tracked(self, name: str) -> Stateful | None:
        """The thing tracked under a name; None where there is none."""
        return self._tracked.get(name)

    def feed(self, batches: Stream) -> Iterator[Batch]:
        """The batches, one by one; where they stand is kept, and checkpoints fall between two.

        When a scheme asks for the next batch, all that follows the last step has been done and
        nothing of the next lesson has begun: the only moment at which student, scheme and random
        numbers agree. So a scheme may change a state of its own before or after its `yield`.
        """
        self.track("batches", batches)
        self._feeding = True
        for batch in batches:
            yield batch
            self._write_when_due()

    def save(self, step: int, *, force: bool = False) -> None:
        """A step has been taken: write a checkpoint when it is time (or forced).

        With batches from `feed` it is written when the next one is asked for. It is there whole
        under its name, or not at all; the one before is removed afterwards.
        Raises EngineError where it can't be written.
        """
        self._step = step
        if force or not self._feeding:
            self._write_when_due(force=force)

    def resume(self) -> int:
        """Take up the newest checkpoint; gives the number of steps done (0 where there is none).

        Raises EngineError where it is damaged or was made by another training.
        """
        if self.folder is None or not (found := _checkpoints(self.folder)):
            return 0
        state = _read(found[-1])
        self._waiting = state["tracked"]
        for name, thing in self._tracked.items():
            self._restore_(name, thing)
        _set_random_state(state["random"])
        self._step = _step_of(found[-1])
        return self._step

    def _restore_(self, name: str, thing: Stateful) -> None:
        try:
            thing.load_state_dict(self._waiting.pop(name))
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise EngineError(
                f"The checkpoint in {self.folder} does not fit this training's {name}; delete it "
                "to start over."
            ) from error

    def _write_when_due(self, *, force: bool = False) -> None:
        if self.folder is None or not self.is_main:
            return
        begun = time.monotonic()
        apart = self.checkpoint and max(self.checkpoint, _APART * self._took)
        if not force and begun - self._saved_at < apart:
            return
        state = {name: thing.state_dict() for name, thing in self._tracked.items()}
        _write(self.folder, self._step, {"tracked": state, "random": _random_state()})
        self._saved_at = time.monotonic()
        self._took = self._saved_at - begun

    def forget(self) -> None:
        """Remove the checkpoints: what they led to is saved elsewhere."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise EngineError(f"The device {name!r} can't be used here ({reason}).") from error
    return device


def _format(device: torch.device) -> str:
    """bf16 where the processor computes with it; elsewhere it is emulated, many times slower.

    Decided by what the processor is, not by a stopwatch: the format is part of what names a
    training, so the same machine must choose the same one every time.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type != "cpu":
        return "fp32"
    if "get_capabilities" not in vars(torch.cpu):
        return "fp32"  # an older torch can't tell, and fp32 is never wrong
    known = torch.cpu.get_capabilities()
    return "bf16" if any(known.get(name) for name in _BFLOAT16) else "fp32"


def _random_state() -> dict[str, Any]:
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": json.dumps(random.getstate()),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "numpy_rest": [kind, position, has_gauss, gauss],
    }


def _set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    for device, its in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(its, device)
    version, internal, gauss = json.loads(state["python"])
    random.setstate((version, tuple(internal), gauss))
    kind, position, has_gauss, cached = state["numpy_rest"]
    keys = state["numpy"].numpy().astype(np.uint32)
    np.random.set_state((kind, keys, position, has_gauss, cached))


# A checkpoint is a folder `step-N` of `tensors.safetensors` and `state.json`, in which a tensor is
# written as {"tensor": name}: nothing in it can execute. `sha256` is of both.


def _write(folder: Path, step: int, state: Mapping[str, Any]) -> None:
    tensors: dict[str, Tensor] = {}
    skeleton = _flatten(state, "", tensors)
    target, temporary = folder / f"step-{step}", folder / f"writing-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        save_file(tensors, temporary / "tensors.safetensors")
        facts = {"sha256": _checksum(temporary, skeleton), "state": skeleton}
        (temporary / "state.json").write_text(json.dumps(facts))
        for path in temporary.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise EngineError(
            f"The checkpoint can't be written to {folder} ({error}); make room, or choose another "
            "folder, and run again: it goes on from the checkpoint before."
        ) from error
    for old in _checkpoints(folder)[:-1]:
        shutil.rmtree(old, ignore_errors=True)


def _read(folder: Path) -> Any:
    try:
        facts = json.loads((folder / "state.json").read_text())
        if facts["sha256"] != _checksum(folder, facts["state"]):
            raise ValueError("the checksum differs")
        return _unflatten(facts["state"], load_file(folder / "tensors.safetensors"))
    except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
        raise EngineError(
            f"The checkpoint {folder} is damaged; delete it to start over."
        ) from error


def _checksum(folder: Path, skeleton: Any) -> str:
    with (folder / "tensors.safetensors").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(json.dumps(skeleton).encode())
    return digest.hexdigest()


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), key=_step_of)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _flatten(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = f"{len(tensors)}{path}"
        tensors[name] = value.detach().cpu().clone().contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):
        pairs = [[key, _flatten(item, f"{path}/{key}", tensors)] for key, item in value.items()]
        return {"mapping": pairs}
    if isinstance(value, list | tuple):
        items = [_flatten(item, f"{path}/{n}", tensors) for n, item in enumerate(value)]
        return {"sequence": items}
    if value is not None and not isinstance(value, str | int | float):
        raise EngineError(
            f"A checkpoint can't hold the {type(value).__name__} in {path[1:]}; make it a tensor, "
            "a number, a text, or a list or dict of these."
        )
    return {"value": value}


def _unflatten(value: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    match value:
        case {"tensor": path}:
            return tensors[path]
        case {"mapping": pairs}:
            return {key: _unflatten(item, tensors) for key, item in pairs}
        case {"sequence": items}:
            return [_unflatten(item, tensors) for item in items]
    return value["value"]
