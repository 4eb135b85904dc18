"""The loop: one lesson a step, nothing lost by a kill, nothing trained that should not be."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

import attar
from attar import teach
from attar.distill import Term, schedules, term, train
from attar.distill.loop import Best
from attar.engine import local
from attar.errors import EngineError, RecipeError
from attar.losses import feature, response
from attar.taps import tapped
from attar.tasks.sampling import Batches
from attar.types import Batch, Knowledge, Lesson

INPUTS, CLASSES, ROWS, SIZE, STEPS = 4, 3, 40, 8, 12


class Network(nn.Module):
    """Two layers with dropout between them; the width of the first is free."""

    def __init__(self, width: int, dropout: float = 0.3, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Linear(INPUTS, width)
        self.norm = nn.BatchNorm1d(width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        answer: Tensor = self.head(self.dropout(torch.tanh(self.norm(self.body(inputs)))))
        return answer


def forward(model: nn.Module, batch: Batch, layers: Sequence[str] = ("body",)) -> Knowledge:
    with tapped(model, layers) as heard:
        logits = model(batch.inputs)
    return Knowledge(logits, heard(None))


def labels_loss(student: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(student, labels)


SOURCE = torch.Generator().manual_seed(7)
DATA = torch.randn(ROWS, INPUTS, generator=SOURCE)
LABELS = torch.randint(0, CLASSES, (ROWS,), generator=SOURCE)


def batch_of(rows: Sequence[int]) -> Batch:
    return Batch(DATA[list(rows)], LABELS[list(rows)], tuple(f"{row:04x}" for row in rows))


def stream(size: int = SIZE) -> Batches:
    return Batches(batch_of, range(ROWS), [1] * ROWS, batch_size=size, seed=3)


def accuracy(model: nn.Module) -> Mapping[str, float]:
    training = model.training
    with torch.no_grad():
        right = (model.eval()(DATA).argmax(1) == LABELS).float().mean()
    model.train(training)
    return {"score": float(right)}


def teacher() -> nn.Module:
    return Network(10, seed=1).eval()


def labelled(batches: Iterable[Batch] | None = None) -> Iterator[Lesson]:
    return teach.alone(stream() if batches is None else batches)


def taught(batches: Iterable[Batch] | None = None) -> Iterator[Lesson]:
    return teach.online(stream() if batches is None else batches, [teacher()], forward)


def three_terms() -> list[Term]:
    """Labels, softened answers with a falling weight, and features of another width."""
    falling = partial(schedules.linear, start=1.0, end=0.2)
    return [
        term(labels_loss, 0.5),
        term(response.kl, falling, temperature=2.0),
        term(feature.mse, 0.3, layers={"body": "body"}),
    ]


@dataclass
class Witness:
    """An engine that writes down what the loop asks of it."""

    inner: local = field(default_factory=lambda: local(precision="fp32", device="cpu"))
    tracked: dict[str, Any] = field(default_factory=dict)
    gradients: list[list[Tensor]] = field(default_factory=list)
    weights: list[list[Tensor]] = field(default_factory=list)
    parameters: list[nn.Parameter] = field(default_factory=list)
    rates: list[list[float]] = field(default_factory=list)
    backwards: int = 0
    is_main: bool = True
    precision: str = "fp32"

    def prepare(self, module: nn.Module) -> nn.Module:
        return self.inner.prepare(module)

    def autocast(self) -> Any:
        return self.inner.autocast()

    def backward(self, loss: Tensor) -> None:
        self.backwards += 1
        self.inner.backward(loss)

    def step(
        self, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], clip: float
    ) -> float:
        self.parameters = list(parameters)
        self.rates.append([group["lr"] for group in optimizer.param_groups])
        self.gradients.append([p.grad.clone() for p in parameters if p.grad is not None])
        norm = self.inner.step(optimizer, parameters, clip)
        self.weights.append([p.detach().clone() for p in parameters])
        return norm

    def track(self, name: str, thing: Any) -> None:
        self.tracked[name] = thing
        self.inner.track(name, thing)

    def feed(self, batches: Any) -> Iterator[Batch]:
        return self.inner.feed(batches)

    def save(self, step: int, *, force: bool = False) -> None:
        self.inner.save(step, force=force)

    def resume(self) -> int:
        return self.inner.resume()


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def moved(before: Mapping[str, Tensor], model: nn.Module) -> set[str]:
    return {name for name, w in model.state_dict().items() if not torch.equal(before[name], w)}


# --- killed and taken up again


def a_life(folder: Path | None, watch: Callable[[Mapping[str, Any]], None] = lambda _: None) -> Any:
    """A training with everything that has a state, from its last checkpoint if it has one."""
    engine = local(folder, precision="fp32", device="cpu", checkpoint=0)
    curve = Curve()
    engine.track("curve", curve)

    def course(size: int) -> tuple[Iterator[Lesson], int]:
        batches = stream(size)
        return taught(engine.feed(batches)), len(batches)

    def both(record: Mapping[str, Any]) -> None:
        curve.losses.append(record["loss"])
        watch(record)

    torch.manual_seed(5)
    student = train(
        Network(6),
        course,
        three_terms(),
        forward,
        engine,
        accuracy,
        both,
        steps=STEPS,
        batch_size=SIZE,
        lr=0.02,
        decay="cosine",
        accumulate=2,
        rates={"head": 2.0},
        evaluate=2,
        patience=50,
        keep="best",
    )
    return student, curve.losses


@pytest.mark.parametrize("stop", [1, 4])
def test_batches_that_are_only_tracked_serve_a_scheme_without_a_state(
    stop: int, tmp_path: Path
) -> None:
    def life(folder: Path | None, stop: int) -> nn.Module:
        engine = local(folder, precision="fp32", device="cpu", checkpoint=0)

        def course(size: int) -> tuple[Iterator[Lesson], int]:
            batches = stream(size)
            engine.track("batches", batches)
            return taught(batches), len(batches)

        def watch(record: Mapping[str, Any]) -> None:
            if record["step"] == stop + 1:
                raise KeyboardInterrupt

        torch.manual_seed(5)
        return train(Network(6), course, three_terms(), forward, engine, watch=watch, steps=6)

    unbroken = life(None, 99)
    with pytest.raises(KeyboardInterrupt):
        life(tmp_path, stop)
    assert [path.name for path in tmp_path.iterdir()] == [f"step-{stop}"]
    assert equal(unbroken.state_dict(), life(tmp_path, 99).state_dict())


@dataclass
class Curve:
    losses: list[float] = field(default_factory=list)

    def state_dict(self) -> Mapping[str, Any]:
        return {"losses": self.losses}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.losses = list(state["losses"])


def lives(folder: str) -> None:
    """Train in child processes that are killed (-9) until one lives to the end; prints how many."""
    a_life(None)  # what torch loads at its first step is inherited, not loaded in each life
    begun, moments = 0, random.Random(11)
    while begun < 40:
        begun += 1
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            one_of_them(folder, writing)
        # Killed wherever it is when so many steps have been told: in a step, or in a checkpoint.
        os.close(writing)
        for _ in range(moments.randint(1, 3)):
            if not os.read(reading, 1):
                break
        else:
            os.kill(child, signal.SIGKILL)
        os.close(reading)
        if os.waitpid(child, 0)[1] == 0:
            break
    print(begun)


def one_of_them(folder: str, writing: int) -> None:
    def watch(_: Mapping[str, Any]) -> None:
        os.write(writing, b".")

    student, losses = a_life(Path(folder), watch)
    torch.save([student.state_dict(), losses], f"{folder}.end")
    os._exit(0)


def test_killed_with_signal_9_again_and_again_it_ends_with_the_same_weights(tmp_path: Path) -> None:
    code = "import torch, test_distill as t, sys; torch.set_num_threads(1); t.lives(sys.argv[1])"
    places = [str(Path(__file__).parent), str(Path(attar.__file__).parents[1])]
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert 3 <= int(ran.stdout) < 40
    state, losses = torch.load(tmp_path / "run.end")
    student, uninterrupted = a_life(None)
    assert losses == uninterrupted
    assert equal(student.state_dict(), state)


@pytest.fixture(scope="module")
def unbroken() -> tuple[nn.Module, list[float]]:
    torch.set_num_threads(1)
    student, losses = a_life(None)
    return student, losses


@pytest.mark.parametrize("stop", range(1, STEPS + 1))
def test_stopped_after_any_step_it_ends_with_the_same_weights(
    stop: int, tmp_path: Path, unbroken: tuple[nn.Module, list[float]]
) -> None:
    def watch(record: Mapping[str, Any]) -> None:
        if record["step"] == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        a_life(tmp_path, watch)
    assert sorted(path.name for path in tmp_path.iterdir()) == (
        [f"step-{stop - 1}"] if stop > 1 else []
    )
    student, losses = a_life(tmp_path)
    assert losses == unbroken[1]
    assert equal(unbroken[0].state_dict(), student.state_dict())


def test_stopped_after_every_step_it_ends_with_the_same_weights(
    tmp_path: Path, unbroken: tuple[nn.Module, list[float]]
) -> None:
    def watch(record: Mapping[str, Any]) -> None:
        seen.append(record["step"])
        if len(seen) == 2:
            raise KeyboardInterrupt

    for life in range(1, STEPS):
        seen: list[int] = []
        with pytest.raises(KeyboardInterrupt):
            a_life(tmp_path, watch)
        assert seen == [life, life + 1]
    student, losses = a_life(tmp_path)
    assert losses == unbroken[1]
    assert equal(unbroken[0].state_dict(), student.state_dict())


def test_taken_up_when_all_steps_are_done_nothing_is_trained_again(
    tmp_path: Path, unbroken: tuple[nn.Module, list[float]]
) -> None:
    a_life(tmp_path)
    told: list[Mapping[str, Any]] = []
    student, _ = a_life(tmp_path, told.append)
    assert told == []
    assert equal(unbroken[0].state_dict(), student.state_dict())


def test_a_checkpoint_holds_all_that_has_a_state_and_nothing_that_executes(tmp_path: Path) -> None:
    a_life(tmp_path)
    (folder,) = tmp_path.iterdir()
    assert folder.name == f"step-{STEPS}"
    assert {path.name for path in folder.iterdir()} == {"tensors.safetensors", "state.json"}
    names = {name.lstrip("0123456789/") for name in load_file(folder / "tensors.safetensors")}
    skeleton = json.loads((folder / "state.json").read_text())["state"]
    parts = {key: dict(value["mapping"]) for key, value in skeleton["mapping"]}
    assert set(parts["tracked"]) == {
        *("scaler", "curve", "student", "batches", "bridges", "optimizer", "best")
    }
    assert {"torch", "python", "numpy"} <= set(parts["random"])
    student = set(Network(6).state_dict())
    assert {f"tracked/student/{name}" for name in student} <= names
    assert {f"tracked/best/weights/{name}" for name in student} <= names
    assert "tracked/bridges/bridges.body -> body.weight" in names
    # AdamW's two moments for each of the student's parameters and the bridge's.
    trained = len(list(Network(6).parameters())) + 2
    assert sum(name.endswith("/exp_avg_sq") for name in names) == trained


def test_a_damaged_checkpoint_stops_the_training_with_a_sentence(tmp_path: Path) -> None:
    a_life(tmp_path)
    file = tmp_path / f"step-{STEPS}" / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(EngineError, match="is damaged; delete it to start over"):
        a_life(tmp_path)


def test_a_checkpoint_of_another_student_stops_the_training_with_a_sentence(tmp_path: Path) -> None:
    engine = local(tmp_path, precision="fp32", device="cpu", checkpoint=0)
    train(Network(6), labelled(), [term(labels_loss)], forward, engine, steps=2)
    engine = local(tmp_path, precision="fp32", device="cpu", checkpoint=0)
    with pytest.raises(EngineError, match="does not fit this training's student"):
        train(Network(7), labelled(), [term(labels_loss)], forward, engine, steps=4)


def test_other_losses_do_not_fit_a_checkpoint_either(tmp_path: Path) -> None:
    for losses, steps, fits in ((three_terms(), 2, True), ([term(labels_loss)], 4, False)):
        engine = local(tmp_path, precision="fp32", device="cpu", checkpoint=0)
        go = partial(train, Network(6), taught(), losses, forward, engine, steps=steps)
        if fits:
            go()
        else:
            with pytest.raises(EngineError, match="does not fit this training's bridges"):
                go()


# --- a lesson is a step, and what stands after its yield comes after it


def test_one_lesson_is_one_optimizer_step() -> None:
    asked = []

    def lessons() -> Iterator[Lesson]:
        for lesson in labelled():
            asked.append(len(engine.gradients))
            yield lesson

    engine = Witness()
    train(Network(6), lessons(), [term(labels_loss)], forward, engine, steps=5, accumulate=2)
    assert len(engine.gradients) == 5
    assert engine.backwards == 10
    assert asked == [0, 1, 2, 3, 4, 5]  # the last is asked for so that the fifth step's yield ends


@torch.no_grad()
def self_ema(
    batches: Iterable[Batch], student: nn.Module, average: nn.Module, *, decay: float = 0.9
) -> Iterator[Lesson]:
    """As in the design: the teacher is the student's own moving average."""
    for batch in batches:
        yield Lesson(batch, forward(average, batch).detach())
        for slow, fast in zip(average.parameters(), student.parameters(), strict=True):
            slow.lerp_(fast, 1 - decay)


def test_a_moving_average_is_moved_after_each_step_the_last_one_too() -> None:
    student, engine = Network(6), Witness()
    average = deepcopy(student).eval()
    expected = [p.detach().numpy().astype(np.float64) for p in average.parameters()]
    lessons = self_ema(stream(), student, average)
    train(student, lessons, [term(labels_loss), term(response.kl)], forward, engine, steps=5)
    order = [id(p) for p in engine.parameters]
    for after in engine.weights:
        steps = [after[order.index(id(p))].numpy() for p in student.parameters()]
        expected = [0.9 * slow + 0.1 * fast for slow, fast in zip(expected, steps, strict=True)]
    assert len(engine.weights) == 5
    for parameter, wanted in zip(average.parameters(), expected, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), wanted, atol=1e-6)


@pytest.mark.parametrize("stop", [2, 3, 6])
def test_a_moving_average_survives_a_kill(stop: int, tmp_path: Path) -> None:
    def life(folder: Path | None, stop: int) -> tuple[nn.Module, nn.Module]:
        engine = local(folder, precision="fp32", device="cpu", checkpoint=0)
        student = Network(6)
        average = deepcopy(student).eval()

        def lessons() -> Iterator[Lesson]:
            engine.track("average", average)
            yield from self_ema(engine.feed(stream()), student, average)

        def watch(record: Mapping[str, Any]) -> None:
            if record["step"] == stop:
                raise KeyboardInterrupt

        terms = [term(labels_loss), term(response.kl)]
        train(student, lessons(), terms, forward, engine, watch=watch, steps=6)
        return student, average

    unbroken = life(None, 0)
    with pytest.raises(KeyboardInterrupt):
        life(tmp_path, stop)
    for one, other in zip(unbroken, life(tmp_path, 0), strict=True):
        assert equal(one.state_dict(), other.state_dict())


def test_gradients_are_on_for_whoever_draws_lessons_and_stay_as_they_were() -> None:
    train(Network(6), taught(), three_terms(), forward, Witness(), steps=2)
    assert torch.is_grad_enabled()


# --- what is trained


def run(
    losses: Sequence[Term] = (),
    *,
    lessons: Any = None,
    student: nn.Module | None = None,
    engine: Witness | None = None,
    **options: Any,
) -> tuple[nn.Module, list[Mapping[str, Any]], Witness]:
    """A short training, what was told of it, and its witness."""
    told: list[Mapping[str, Any]] = []
    witness = engine or Witness()
    options = {"steps": 4} | options
    model = train(
        Network(6, dropout=0.0) if student is None else student,
        labelled() if lessons is None else lessons,
        losses or [term(labels_loss)],
        forward,
        witness,
        watch=told.append,
        **options,
    )
    return model, told, witness


def test_bridges_are_trained_and_clipped_with_the_student_and_are_no_part_of_it() -> None:
    student = Network(6, dropout=0.0)
    names = set(student.state_dict())
    model, told, engine = run(three_terms(), lessons=taught(), student=student, clip=0.01)
    bridge = engine.tracked["bridges"].bridges["body -> body"]
    assert model is student
    assert set(student.state_dict()) == names
    together = {id(p) for p in (*student.parameters(), *bridge.parameters())}
    assert {id(p) for p in engine.parameters} == together
    assert all(len(step) == len(together) for step in engine.gradients)
    for record, gradients in zip(told, engine.gradients, strict=True):
        whole = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
        assert record["norm"] == pytest.approx(whole, rel=1e-5)
    assert bridge.weight.shape == (10, 6)
    before = [p.detach().clone() for p in first_bridge()]
    assert not any(
        torch.equal(one, other) for one, other in zip(before, bridge.parameters(), strict=True)
    )


def first_bridge() -> Sequence[nn.Parameter]:
    """The bridge as every training begins with it."""
    engine = Witness()
    run(three_terms(), lessons=taught(), engine=engine, steps=1, lr=0.0)
    return list(engine.tracked["bridges"].parameters())


@pytest.mark.parametrize("clip", [0.05, 0.0])
def test_clipping_shortens_the_step_of_student_and_bridges_as_one(clip: float) -> None:
    engine = Witness()
    student = Network(6, dropout=0.0)
    start = [*(p.detach().clone() for p in student.parameters()), *first_bridge()]
    options: dict[str, Any] = {"optimizer": "sgd", "lr": 0.1, "warmup": 0, "weight_decay": 0}
    _, told, _ = run(
        three_terms(),
        lessons=taught(),
        student=student,
        engine=engine,
        steps=1,
        clip=clip,
        **options,
    )
    end = [*student.parameters(), *engine.tracked["bridges"].parameters()]
    change = sum(
        float((a - b).detach().double().square().sum()) for a, b in zip(start, end, strict=True)
    )
    norm = clip or told[0]["norm"]
    # Nesterov's first step is (1 + momentum) times the gradient.
    assert math.sqrt(change) == pytest.approx(0.1 * 1.9 * norm, rel=1e-4)
    assert told[0]["norm"] > 0.05


@pytest.mark.parametrize("accumulate", [2, 3, 4, 8, 100])
@pytest.mark.parametrize("size", [8, 7])
def test_accumulation_changes_no_gradient(accumulate: int, size: int) -> None:
    def gradients(parts: int) -> list[list[Tensor]]:
        student = Network(6, dropout=0.0)
        student.norm = nn.Identity()  # statistics of a batch are no mean over rows
        lessons = taught(stream(size))
        engine = run(three_terms(), lessons=lessons, student=student, accumulate=parts, steps=2)[2]
        return engine.gradients

    for whole, parts in zip(gradients(1), gradients(accumulate), strict=True):
        for one, other in zip(whole, parts, strict=True):
            torch.testing.assert_close(other, one, atol=1e-6, rtol=0)


def test_accumulation_tells_the_same_losses() -> None:
    student = Network(6, dropout=0.0)
    student.norm = nn.Identity()
    told = [
        run(three_terms(), lessons=taught(), student=deepcopy(student), accumulate=n)[1]
        for n in (1, 4)
    ]
    for whole, parts in zip(*told, strict=True):
        assert whole.keys() == parts.keys()
        for name in whole:
            assert parts[name] == pytest.approx(whole[name], abs=1e-5), name


def test_a_rate_of_zero_freezes_weights_statistics_and_dropout_and_lets_go_afterwards() -> None:
    student = Network(6)
    before, modes = weights(student), []

    def lessons() -> Iterator[Lesson]:
        for lesson in labelled():
            yield lesson
            modes.append((student.body.training, student.norm.training, student.head.training))

    model, *_ = run(lessons=lessons(), student=student, rates={"": 0, "head": 1.0})
    assert moved(before, model) == {"head.weight", "head.bias"}
    assert modes == [(False, False, True)] * 4
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_dropout_inside_a_frozen_part_is_off() -> None:
    student = nn.Sequential(nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.9)), nn.Linear(6, CLASSES))
    seen = []

    def looking(model: nn.Module, batch: Batch) -> Knowledge:
        seen.append((model[0][1].training, model[1].training))  # type: ignore[index]
        return Knowledge(model(batch.inputs))

    def scoring(model: nn.Module) -> Mapping[str, float]:
        model.eval()  # and leaves it so
        return {"score": 0.0}

    losses = [term(labels_loss)]
    train(
        student,
        labelled(),
        losses,
        looking,
        Witness(),
        scoring,
        rates={"0": 0},
        steps=4,
        evaluate=1,
    )
    assert seen == [(False, False)] + [(False, True)] * 4


def test_what_was_frozen_before_stays_frozen() -> None:
    student = Network(6)
    student.body.requires_grad_(False)
    before = weights(student)
    run(student=student)
    assert {"body.weight", "body.bias"}.isdisjoint(moved(before, student))
    assert "head.weight" in moved(before, student)
    assert not student.body.weight.requires_grad


def test_rates_multiply_the_learning_rate_of_the_longest_prefix_that_fits() -> None:
    rates = {"": 0.5, "head": 10.0, "head.bias": 3.0}
    *_, engine = run(rates=rates, lr=0.1, warmup=0, decay="constant", steps=1)
    assert sorted(set(engine.rates[0])) == pytest.approx([0.05, 0.3, 1.0])


@pytest.mark.parametrize("rates", [{"heda": 2.0}, {"head": 1.0, "tail.": 0.0}])
def test_a_rate_for_nothing_is_told(rates: dict[str, float]) -> None:
    with pytest.raises(EngineError, match=r"`rates` names '(heda|tail\.)'"):
        run(rates=rates)


def test_nothing_to_train_is_told() -> None:
    with pytest.raises(EngineError, match="nothing to train: every parameter is frozen"):
        run(rates={"": 0})


def test_weight_decay_is_for_matrices_alone() -> None:
    student = Network(6, dropout=0.0)
    before = weights(student)

    def nothing(student: Tensor) -> Tensor:
        return student.sum() * 0.0

    options: dict[str, Any] = {"warmup": 0, "decay": "constant", "lr": 0.1, "weight_decay": 0.5}
    run([term(nothing)], student=student, steps=1, **options)
    after = weights(student)
    for name in ("body.weight", "head.weight"):
        torch.testing.assert_close(after[name], before[name] * (1 - 0.1 * 0.5))
    for name in ("body.bias", "norm.weight", "head.bias"):
        assert torch.equal(after[name], before[name])


# --- how fast


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        # 8 steps, a quarter of them rising: 1/3, 2/3, then 6/6, 5/6 ... 1/6 of the highest rate
        ("linear", [1 / 3, 2 / 3, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1]),
        # (1 + cos(pi k / 6)) / 2
        ("cosine", [1 / 3, 2 / 3, 1, 0.9330127, 0.75, 0.5, 0.25, 0.0669873]),
    ],
)
def test_the_learning_rate_rises_and_falls(decay: Any, expected: list[float]) -> None:
    *_, engine = run(steps=8, lr=0.2, warmup=0.25, decay=decay)
    assert [rates[0] / 0.2 for rates in engine.rates] == pytest.approx(expected, abs=1e-6)


def test_without_warmup_the_first_step_has_the_full_rate() -> None:
    *_, engine = run(steps=4, lr=0.2, warmup=0.0)
    assert [rates[0] for rates in engine.rates] == pytest.approx([0.2, 0.15, 0.1, 0.05])


def test_the_weight_of_a_term_follows_its_schedule() -> None:
    asked = []

    def weight(progress: float) -> float:
        asked.append(progress)
        return schedules.linear(progress, start=4.0, end=0.0)

    def one(student: Tensor) -> Tensor:
        return student.sum() * 0.0 + 1.0

    _, told, _ = run([term(one, weight), term(labels_loss, 0.0)], steps=4)
    assert asked == [0.0, 0.25, 0.5, 0.75]
    assert [record["loss"] for record in told] == [4.0, 3.0, 2.0, 1.0]
    assert {record["test_distill.one"] for record in told} == {1.0}


def test_epochs_are_steps_through_all_the_data() -> None:
    def course(size: int) -> tuple[Iterator[Lesson], int]:
        batches = stream(size)
        return labelled(batches), len(batches)

    assert len(run(lessons=course, steps=None, epochs=2, batch_size=8)[1]) == 10
    assert len(run(lessons=course, steps=None, epochs=0.5, batch_size=4)[1]) == 5
    assert len(run(lessons=course, steps=3, batch_size=40)[1]) == 3


def test_lessons_may_be_a_list_of_as_many_as_there_are_steps() -> None:
    lessons = [lesson for _, lesson in zip(range(3), labelled(), strict=False)]
    assert len(run(lessons=lessons, steps=3)[1]) == 3


def test_lessons_that_end_before_the_rate_has_fallen_are_told() -> None:
    lessons = [lesson for _, lesson in zip(range(3), labelled(), strict=False)]
    with pytest.raises(EngineError, match=r"ended after 3 of 9 steps.*set `steps` to 3"):
        run(lessons=lessons, steps=9)
    assert len(run(lessons=lessons, steps=9, decay="constant")[1]) == 3


def test_no_lessons_are_told() -> None:
    with pytest.raises(EngineError, match="There are no lessons"):
        run(lessons=iter(()))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"steps": None}, "either `steps` or `epochs`"),
        ({"steps": 3, "epochs": 2}, "either `steps` or `epochs`"),
        ({"steps": None, "epochs": 2}, "give `steps`"),
        ({"steps": 0}, "at least 1 step"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"accumulate": 0}, "accumulate and evaluate"),
        ({"evaluate": 0, "score": accuracy}, "accumulate and evaluate"),
        ({"warmup": -0.1}, "from 0 to 1, not -0.1"),
        ({"warmup": 2}, "from 0 to 1, not 2"),
        ({"keep": "best"}, "need `evaluate`"),
        ({"patience": 3}, "need `evaluate`"),
        ({"evaluate": 2}, "needs `score`"),
    ],
)
def test_settings_that_make_no_sense_are_told_before_the_first_step(
    options: Any, sentence: str
) -> None:
    engine = Witness()
    with pytest.raises(EngineError, match=sentence):
        run(engine=engine, **options)
    assert engine.gradients == []


# --- when to stop, and with what


def scores(*values: float) -> Callable[[nn.Module], Mapping[str, float]]:
    left = iter(values)
    return lambda _: {"score": next(left)}


def test_training_stops_when_scores_no_longer_rise() -> None:
    score = scores(0.1, 0.5, 0.5, 0.4, 0.6, 0.9)
    _, told, _ = run(steps=60, score=score, evaluate=2, patience=2)
    assert [record["score"] for record in told if "score" in record] == [0.1, 0.5, 0.5, 0.4]
    assert len(told) == 8


def test_a_score_that_is_no_number_is_never_the_best() -> None:
    best = Best()
    for value in (math.nan, 0.2, math.nan):
        best.note(value, nn.Linear(1, 1))
    assert (best.score, best.since) == (0.2, 1)


def test_the_best_weights_are_kept_if_asked_for() -> None:
    for keep, at in (("best", 1), ("last", 3)):
        engine = Witness()
        student = Network(6)
        run(
            student=student,
            engine=engine,
            score=scores(0.1, 0.7, 0.3, 0.5),
            evaluate=1,
            keep=keep,
            steps=4,
        )
        after = dict(zip(map(id, engine.parameters), engine.weights[at], strict=True))
        assert all(torch.equal(after[id(p)], p) for p in student.parameters()), keep


def test_a_trained_student_is_in_eval_mode() -> None:
    assert not any(module.training for module in run()[0].modules())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_with_advice_and_spoils_nothing(bad: float) -> None:
    values = iter([1.0, 1.0, bad])

    def loss(student: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(student, labels) * next(values)

    student, engine = Network(6), Witness()
    with pytest.raises(EngineError, match=f"loss is {bad} at step 3; lower `lr`"):
        run([term(loss)], student=student, engine=engine, steps=9)
    after = dict(zip(map(id, engine.parameters), engine.weights[1], strict=True))
    assert all(torch.equal(after[id(p)], p) for p in student.parameters())


def test_every_step_is_told_with_each_terms_own_value() -> None:
    _, told, _ = run(
        [term(labels_loss, 2.0), term(response.mse, 0.5), term(response.mse, 0.25)],
        lessons=taught(),
    )
    assert [record["step"] for record in told] == [1, 2, 3, 4]
    for record in told:
        assert record["steps"] == 4
        assert record["response.mse"] == record["response.mse 2"]
        total = 2 * record["test_distill.labels_loss"] + 0.75 * record["response.mse"]
        assert record["loss"] == pytest.approx(total, rel=1e-6)


def test_a_loss_that_is_called_loss_does_not_hide_the_sum() -> None:
    def loss(student: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(student, labels)

    _, told, _ = run([term(loss, 3.0)])
    assert all(r["loss"] == pytest.approx(3 * r["test_distill.loss"]) for r in told)


def test_a_teacher_where_nobody_teaches_is_missed_before_the_first_step() -> None:
    with pytest.raises(RecipeError, match=r"response\.kl needs a teacher, and nobody teaches"):
        run([term(response.kl)])


def test_features_of_a_forward_pass_in_half_precision_meet_their_bridge() -> None:
    def half(model: nn.Module, batch: Batch) -> Knowledge:
        with tapped(model, ["body"]) as heard:
            logits = model(batch.inputs)
        assert heard(None)["body"].dtype == torch.bfloat16 or not model.training
        return Knowledge(logits.float(), heard(None))

    engine = local(precision="bf16", device="cpu")
    told: list[Mapping[str, Any]] = []
    train(Network(6), taught(), three_terms(), half, engine, watch=told.append, steps=2)
    assert all(math.isfinite(record["loss"]) for record in told)


def test_the_same_seed_gives_the_same_student_and_bridges_draw_no_random_numbers() -> None:
    torch.manual_seed(3)
    run(three_terms(), lessons=taught(), student=Network(6, dropout=0.0))
    first = torch.rand(3)
    torch.manual_seed(3)
    Network(6), teacher()
    assert not torch.equal(first, torch.zeros(3))
    runs = []
    for _ in range(2):
        student = Network(6)
        torch.manual_seed(9)
        runs.append(weights(run(three_terms(), lessons=taught(), student=student)[0]))
    assert equal(*runs)
