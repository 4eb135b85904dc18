"""The engine: checkpoints that survive anything, arithmetic that never goes wrong quietly."""

from __future__ import annotations

import json
import math
import pickle
import random
import resource
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attar.engine import local
from attar.errors import EngineError
from attar.types import Batch


@dataclass
class Thing:
    """Anything with a state."""

    state: Any = None

    def state_dict(self) -> Any:
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self.state = state


@dataclass
class Counting:
    """Endless batches of one row; `position` is the number of those given."""

    position: int = 0
    drawn: list[float] = field(default_factory=list)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            self.position += 1
            self.drawn.append(float(torch.rand(())))
            yield Batch((self.position,), torch.zeros(1, dtype=torch.int64), ("k",))

    def state_dict(self) -> Mapping[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.position = state["position"]


STATE = {
    "float": torch.rand(2, 3),
    "half": torch.rand(3).half(),
    "bfloat": torch.rand(3).bfloat16(),
    "whole": torch.arange(4),
    "truth": torch.tensor([True, False]),
    "scalar": torch.tensor(1.5),
    "empty": torch.zeros(0, 3),
    "strided": torch.rand(4, 4).t(),
    0: {"step": torch.tensor(2.0), "none": None},
    1: [1, 2.5, "text", True, [], {}],
    "a/b": torch.ones(1),
    "a": {"b": torch.zeros(1)},
    "far": [math.inf, -math.inf],
    "betas": (0.9, 0.999),
}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def engine(folder: Path | None = None, **options: Any) -> local:
    return local(folder, **{"precision": "fp32", "device": "cpu", "checkpoint": 0, **options})


def saved(folder: Path, state: Any = STATE, step: int = 7) -> None:
    writer = engine(folder)
    writer.track("thing", Thing(state))
    writer.save(step)


def resumed(folder: Path) -> tuple[Any, int]:
    thing, reader = Thing(), engine(folder)
    reader.track("thing", thing)
    step = reader.resume()
    return thing.state, step


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    saved(tmp_path)
    state, step = resumed(tmp_path)
    assert step == 7
    assert same(STATE, state)


def test_a_checkpoint_is_safetensors_and_json_and_nothing_can_execute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a checkpoint is not pickled")

    for name in ("dump", "dumps", "load", "loads"):
        monkeypatch.setattr(pickle, name, refuse)
    saved(tmp_path)
    assert same(STATE, resumed(tmp_path)[0])
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*"))
    assert files == ["step-7/state.json", "step-7/tensors.safetensors"]
    assert set(json.loads((tmp_path / "step-7/state.json").read_text())) == {"sha256", "state"}


def test_random_numbers_go_on_where_they_stood(tmp_path: Path) -> None:
    random.gauss(0, 1)  # leaves a second number waiting in the generator, as does the next
    np.random.standard_normal()
    saved(tmp_path)

    def draw() -> list[float]:
        return [
            float(torch.rand(())),
            random.random(),
            random.gauss(0, 1),
            float(np.random.standard_normal()),
            float(np.random.rand()),
        ]

    first = draw()
    assert draw() != first
    resumed(tmp_path)
    assert draw() == first


def test_the_newest_checkpoint_is_kept_and_taken_up(tmp_path: Path) -> None:
    for step in (9, 10, 11, 100):
        saved(tmp_path, {"step": step}, step)
        assert [path.name for path in tmp_path.iterdir()] == [f"step-{step}"]
    assert resumed(tmp_path) == ({"step": 100}, 100)


def test_a_checkpoint_of_the_same_step_takes_the_place_of_the_other(tmp_path: Path) -> None:
    saved(tmp_path, {"n": 1})
    saved(tmp_path, {"n": 2})
    assert resumed(tmp_path) == ({"n": 2}, 7)


def test_what_a_kill_left_half_written_is_not_taken_up(tmp_path: Path) -> None:
    saved(tmp_path, {"n": 1})
    shutil.copytree(tmp_path / "step-7", tmp_path / "writing-1")
    (tmp_path / "writing-1" / "state.json").write_text("{")
    assert resumed(tmp_path) == ({"n": 1}, 7)


def test_without_a_checkpoint_a_training_begins(tmp_path: Path) -> None:
    assert engine(tmp_path).resume() == 0
    assert engine(tmp_path / "nowhere").resume() == 0
    assert engine().resume() == 0


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    engine().save(1, force=True)
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_are_written_when_it_is_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    writer = engine(tmp_path, checkpoint=20)
    written = []
    for step, now in enumerate([101.0, 119.0, 120.0, 121.0, 139.5, 140.0], start=1):  # noqa: B007
        writer.save(step)
        written.append([path.name for path in tmp_path.iterdir()])
    assert written == [[], [], ["step-3"], ["step-3"], ["step-3"], ["step-6"]]
    writer.save(7, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["step-7"]


def test_no_more_than_a_tenth_of_the_time_goes_into_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    writer = engine(tmp_path, checkpoint=20)

    class Large(Thing):
        def state_dict(self) -> Any:
            clock[0] += 30  # it takes half a minute
            return 0

    writer.track("large", Large())
    written = []
    for step in range(1, 1000):
        clock[0] += 1
        before = clock[0]
        writer.save(step)
        if clock[0] != before:
            written.append(step)
    assert written == [20, *range(320, 1000, 300)]


def test_forgotten_checkpoints_are_gone(tmp_path: Path) -> None:
    writer = engine(tmp_path / "checkpoints")
    writer.save(3)
    writer.forget()
    assert list(tmp_path.iterdir()) == []
    writer.forget()
    assert writer.resume() == 0


def damage_cut_tensors(folder: Path) -> None:
    file = folder / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-3])


def damage_one_bit(folder: Path) -> None:
    file = folder / "tensors.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-5] ^= 1
    file.write_bytes(raw)


def damage_one_digit(folder: Path) -> None:
    file = folder / "state.json"
    assert "2.5" in file.read_text()
    file.write_text(file.read_text().replace("2.5", "2.6", 1))


def damage_cut_json(folder: Path) -> None:
    file = folder / "state.json"
    file.write_text(file.read_text()[:50])


def damage_other_json(folder: Path) -> None:
    (folder / "state.json").write_text("[1, 2]")


def damage_no_json(folder: Path) -> None:
    (folder / "state.json").unlink()


def damage_no_tensors(folder: Path) -> None:
    (folder / "tensors.safetensors").unlink()


def damage_empty(folder: Path) -> None:
    (folder / "tensors.safetensors").write_bytes(b"")


@pytest.mark.parametrize("damage", [f for n, f in globals().items() if n.startswith("damage_")])
def test_a_damaged_checkpoint_is_told_in_a_sentence(tmp_path: Path, damage: Any) -> None:
    saved(tmp_path)
    damage(tmp_path / "step-7")
    with pytest.raises(EngineError, match=r"step-7 is damaged; delete it to start over\.$"):
        resumed(tmp_path)


def test_the_checkpoint_of_another_model_is_told_in_a_sentence(tmp_path: Path) -> None:
    writer = engine(tmp_path)
    writer.track("student", nn.Linear(2, 3))
    writer.save(1)
    reader = engine(tmp_path)
    reader.track("student", nn.Linear(3, 3))
    with pytest.raises(EngineError, match="does not fit this training's student; delete it") as it:
        reader.resume()
    assert "\n" not in str(it.value)


def test_a_checkpoint_that_lacks_what_is_tracked_is_told_in_a_sentence(tmp_path: Path) -> None:
    engine(tmp_path).save(1)
    with pytest.raises(EngineError, match="does not fit this training's thing"):
        resumed(tmp_path)


def test_a_state_that_comes_late_gets_its_own_back(tmp_path: Path) -> None:
    saved(tmp_path, {"n": 3})
    reader, thing, other = engine(tmp_path), Thing(), Thing("untouched")
    assert reader.resume() == 7
    reader.track("thing", thing)
    reader.track("other", other)
    assert (thing.state, other.state) == ({"n": 3}, "untouched")


def test_a_late_state_that_does_not_fit_is_told_in_a_sentence(tmp_path: Path) -> None:
    saved(tmp_path, {"n": 3})
    reader = engine(tmp_path)
    reader.resume()
    with pytest.raises(EngineError, match="does not fit this training's thing"):
        reader.track("thing", nn.Linear(1, 1))


@pytest.mark.parametrize("state", [{"at": {"x": object()}}, [np.float32(1)], {"x": {1, 2}}])
def test_a_state_that_can_not_be_kept_is_named(tmp_path: Path, state: Any) -> None:
    with pytest.raises(EngineError, match=r"can't hold the \w+ in tracked/thing/"):
        saved(tmp_path, state)
    assert not list(tmp_path.glob("step-*"))


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow beyond some bytes, which the system reports much as it does a full disk.

    Never a fixture: it must have ended when pytest writes its own log, which may be a long file.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("state", [torch.zeros(10_000), "x" * 10_000])
def test_a_full_disk_is_told_and_the_checkpoint_before_still_opens(
    tmp_path: Path, state: Any
) -> None:
    saved(tmp_path, {"n": 1})
    with full_disk(), pytest.raises(EngineError, match=r"can't be written .* make room"):
        saved(tmp_path, {"n": state}, 8)
    assert [path.name for path in tmp_path.iterdir()] == ["step-7"]
    assert resumed(tmp_path) == ({"n": 1}, 7)


def test_a_folder_that_is_a_file_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(EngineError, match=r"can't be written to .*taken"):
        saved(tmp_path / "taken")


def test_another_folder_means_the_same_engine_with_nothing_tracked(tmp_path: Path) -> None:
    first = engine(tmp_path / "a", checkpoint=5)
    first.track("thing", Thing({"n": 1}))
    second = first.at(tmp_path / "b")
    assert (second.precision, second.device, second.checkpoint) == ("fp32", first.device, 5)
    second.save(1, force=True)
    assert "thing" not in (tmp_path / "b/step-1/state.json").read_text()
    assert not (tmp_path / "a").exists()


# --- batches and checkpoints


def test_checkpoints_fall_between_two_batches_when_all_that_follows_a_step_is_done(
    tmp_path: Path,
) -> None:
    average = Thing({"updates": 0})

    def scheme(batches: Iterator[Batch], engine: local) -> Iterator[Batch]:
        engine.track("average", average)
        for batch in batches:
            yield batch
            average.state = {"updates": average.state["updates"] + 1}

    writer, counting = engine(tmp_path), Counting()
    lessons = scheme(writer.feed(counting), writer)
    for step in (1, 2, 3):
        next(lessons)
        writer.save(step)
        assert not (tmp_path / f"step-{step}").exists()
    next(lessons)
    assert [path.name for path in tmp_path.iterdir()] == ["step-3"]

    reader, again = engine(tmp_path), Counting()
    average.state = {"updates": 0}
    assert reader.resume() == 3
    lessons = scheme(reader.feed(again), reader)
    assert next(lessons).inputs == (4,)
    assert average.state == {"updates": 3}
    assert again.drawn == counting.drawn[3:]


def test_a_forced_checkpoint_waits_for_no_batch(tmp_path: Path) -> None:
    writer = engine(tmp_path)
    next(writer.feed(Counting()))
    writer.save(1, force=True)
    assert (tmp_path / "step-1").exists()


# --- arithmetic


def two_weights(*slopes: float) -> tuple[torch.optim.Optimizer, list[nn.Parameter]]:
    """Weights of 0 whose gradients are the slopes."""
    weights = [nn.Parameter(torch.zeros(1)) for _ in slopes]
    for weight, slope in zip(weights, slopes, strict=True):
        weight.grad = torch.tensor([slope])
    return torch.optim.SGD(weights, lr=1.0), weights


@pytest.mark.parametrize(
    ("clip", "moved"), [(1.0, [-0.6, -0.8]), (0.0, [-3.0, -4.0]), (10.0, [-3.0, -4.0])]
)
def test_gradients_are_clipped_as_one_vector(clip: float, moved: list[float]) -> None:
    optimizer, weights = two_weights(3.0, 4.0)
    assert engine().step(optimizer, weights, clip) == pytest.approx(5.0)
    assert [weight.item() for weight in weights] == pytest.approx(moved, abs=1e-5)
    assert all(weight.grad is None for weight in weights)


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_no_weight(clip: float, bad: float) -> None:
    optimizer, weights = two_weights(3.0, bad)
    with pytest.raises(EngineError, match=r"norm is (nan|inf); lower `lr`"):
        engine().step(optimizer, weights, clip)
    assert [weight.item() for weight in weights] == [0.0, 0.0]


def test_in_fp16_such_a_step_is_left_out_and_the_scale_lowered(tmp_path: Path) -> None:
    half = engine(tmp_path)
    half._scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    half.track("scaler", half._scaler)
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    half.backward((weight * math.inf).sum())
    assert half.step(optimizer, [weight], 1.0) == math.inf
    assert weight.item() == 0.0
    assert half._scaler.get_scale() == 2.0
    half.backward((weight * 3).sum())
    assert half.step(optimizer, [weight], 0.0) == pytest.approx(3.0)
    assert weight.item() == pytest.approx(-3.0)
    half.save(1)
    other = engine(tmp_path)
    other._scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    other.track("scaler", other._scaler)
    other.resume()
    assert other._scaler.get_scale() == 2.0


def test_gradients_add_up_until_a_step_is_taken() -> None:
    weight = nn.Parameter(torch.zeros(1))
    here = engine()
    here.backward((weight * 2).sum())
    here.backward((weight * 3).sum())
    assert weight.grad is not None
    assert weight.grad.item() == 5.0


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_a_forward_pass_runs_in_the_number_format_asked_for(
    precision: Any, dtype: torch.dtype
) -> None:
    with engine(precision=precision).autocast():
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype


@pytest.mark.parametrize(
    ("processor", "precision"),
    [
        ({"architecture": "x86_64", "avx2": True, "avx512_f": True}, "fp32"),
        ({"architecture": "x86_64", "avx512_bf16": True}, "bf16"),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, "bf16"),
        ({"architecture": "aarch64", "neon": True, "bf16": False}, "fp32"),
        ({"architecture": "aarch64", "bf16": True}, "bf16"),
        ({}, "fp32"),
    ],
)
def test_bfloat16_is_chosen_where_the_processor_computes_with_it(
    processor: dict[str, Any], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor, raising=False)
    assert local(device="cpu").precision == precision


def test_a_torch_that_can_not_tell_computes_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert local(device="cpu").precision == "fp32"


def test_half_precision_on_a_cpu_is_refused() -> None:
    with pytest.raises(EngineError, match="fp16 training needs a GPU; on a CPU use bf16 or fp32"):
        local(precision="fp16", device="cpu")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"precision": "bf61"}, "no precision 'bf61'; did you mean 'bf16'"),
        ({"threads": 0}, "threads is 0; give at least 1"),
        ({"threads": -2}, "threads is -2"),
        ({"device": "gpu"}, "device 'gpu' can't be used here"),
        ({"device": "cuda:97"}, "device 'cuda:97' can't be used here"),
        ({"device": ""}, "device '' can't be used here"),
    ],
)
def test_what_an_engine_can_not_do_is_told_in_one_line(options: Any, sentence: str) -> None:
    with pytest.raises(EngineError, match=sentence) as told:
        engine(**options)
    assert "\n" not in str(told.value)


def test_threads_are_set_only_if_asked_for() -> None:
    before = torch.get_num_threads()
    engine()
    assert torch.get_num_threads() == before
    engine(threads=2)
    assert torch.get_num_threads() == 2
