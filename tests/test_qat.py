"""Training for few bits: gradients and ranges by hand, and integers that are what was trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from zoo import MODELS, Convolved, Mlp, answer, bert, calibration, example, given, labels

from attar import distill, export, teach
from attar.compress import prune, quantize
from attar.compress.quantize.dynamic import Int8Embedding
from attar.compress.quantize.integer import Int8Layer
from attar.compress.quantize.ranges import Histogram
from attar.compress.quantize.training import (
    MEMORY,
    LearnedGrid,
    MovingGrid,
    Snapped,
    learned_step,
    snapped,
)
from attar.errors import ExportError, ModelError
from attar.losses import response
from attar.measure.comparing import emulated, runtime
from attar.resolve import ask, bind
from attar.types import Batch, Knowledge, Quantized

Ranges = Literal["learned", "moving"]


def rounded(model: nn.Module, **options: Any) -> nn.Module:
    trained = ask(partial(quantize.qat, **options), given(model))
    assert isinstance(trained, nn.Module)
    return trained


def static(model: nn.Module, **options: Any) -> nn.Module:
    small = ask(partial(quantize.int8_static, **options), given(model))
    assert isinstance(small, nn.Module)
    return small


def train_(model: nn.Module, steps: int = 2, lr: float = 1e-2) -> None:
    """Some steps of the plainest loop there is."""
    optimizer = torch.optim.Adam(model.parameters(), lr)
    model.train()
    for _ in range(steps):
        for seed, inputs in enumerate(calibration(model)):
            optimizer.zero_grad()
            F.cross_entropy(answer(model, inputs), labels(seed)).backward()
            optimizer.step()
    model.eval()


def seen(*values: float) -> Histogram:
    histogram = Histogram()
    histogram.add(torch.tensor(values))
    return histogram


# rounding and its gradients


def test_rounding_gives_multiples_of_the_step_within_its_limits() -> None:
    values = torch.tensor([-9.0, -0.26, 0.1, 0.25, 0.75, 9.0])
    found = snapped(values, torch.tensor(0.5), -2, 3)
    assert found.tolist() == [-1.0, -0.5, 0.0, 0.0, 1.0, 1.5]


def test_the_gradient_of_a_value_is_one_inside_and_none_where_it_was_cut_off() -> None:
    values = torch.tensor([-9.0, -0.3, 0.1, 1.4, 9.0], requires_grad=True)
    snapped(values, torch.tensor(0.5), -2, 3).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0, 1, 1, 1, 0]


def test_the_gradient_of_a_step_is_that_of_esser() -> None:
    values = torch.tensor([-9.0, -0.3, 0.1, 1.4, 9.0])
    step = torch.tensor(0.5, requires_grad=True)
    (snapped(values, step, -2, 3) * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])).sum().backward()
    # Equation 3: -v/s + round(v/s) inside, the limit outside; each times what comes from above.
    wanted = 1 * -2 + 2 * (0.6 - 1) + 3 * (-0.2 + 0) + 4 * (-2.8 + 3) + 5 * 3
    assert step.grad == pytest.approx(wanted)


@pytest.mark.parametrize(("values", "most"), [(1000, 7), (64, 255)])
def test_descent_on_the_logarithm_moves_the_step_as_the_paper_has_it(
    values: int, most: int
) -> None:
    logarithm = torch.tensor(0.02).log().requires_grad_()
    step = learned_step(logarithm, values, most)
    assert step.item() == pytest.approx(0.02)
    (3 * step).backward()
    assert logarithm.grad is not None
    rate = 1e-4
    moved = (logarithm.detach() - rate * logarithm.grad).exp()
    # Section 2.2: the gradient of the step, 3, times 1 / sqrt(N Q).
    wanted = 0.02 - rate * 3 / math.sqrt(values * most)
    assert float(moved) - 0.02 == pytest.approx(wanted - 0.02, rel=0.05)


def test_adam_moves_small_and_large_steps_by_the_same_share() -> None:
    steps = nn.Parameter(torch.tensor([1e-4, 1.0]).log())
    optimizer = torch.optim.Adam([steps], lr=0.01)
    learned_step(steps, 10, 7).sum().backward()
    optimizer.step()
    assert torch.allclose(
        steps.detach().exp() / torch.tensor([1e-4, 1.0]), torch.tensor(0.99), atol=1e-4
    )


def test_a_learned_grid_starts_at_what_was_seen_and_its_step_alone_is_trained() -> None:
    grid = LearnedGrid(seen(-1.0, 1.55))
    assert float(grid.step) == pytest.approx(0.01)
    assert float(grid.zero) == 100
    found = grid(torch.tensor([[-7.0, 0.004, 0.006, 7.0]]))
    assert torch.allclose(found, torch.tensor([[-1.0, 0.0, 0.01, 1.55]]))
    assert [name for name, _ in grid.named_parameters()] == ["logarithm"]


def test_a_moving_grid_follows_what_it_sees_in_training_and_stands_still_after() -> None:
    grid = MovingGrid(seen(0.0, 2.0)).train()
    grid(torch.tensor([-1.0, 4.0]))
    share = 1 - MEMORY
    assert float(grid.low) == pytest.approx(-share)
    assert float(grid.high) == pytest.approx(2 * MEMORY + 4 * share)
    before = float(grid.high)
    grid.eval()(torch.tensor([99.0]))
    assert float(grid.high) == before
    assert list(grid.parameters()) == []


@pytest.mark.parametrize("kind", [LearnedGrid, MovingGrid])
def test_a_grid_in_training_rounds_as_the_grid_it_becomes(
    kind: Callable[[Histogram], nn.Module],
) -> None:
    grid: Any = kind(seen(-0.7, 1.9)).eval()
    values = torch.randn(1, 1000)
    assert torch.allclose(grid(values), grid.fixed()(values), atol=1e-6)


# layers


@pytest.mark.parametrize("ranges", ["learned", "moving"])
@pytest.mark.parametrize(("bits", "most"), [(2, 1), (4, 7), (8, 64)])
def test_weights_have_as_many_values_a_channel_as_their_bits_tell_apart(
    bits: int, most: int, ranges: Ranges
) -> None:
    model = Convolved(width=32)
    trained = rounded(model, bits=bits, ranges=ranges)
    layer = trained.get_submodule("stem")
    assert isinstance(layer, Snapped)
    weight = layer.dequantized().weight.detach()
    for channel in weight.flatten(1):
        steps = channel / channel.abs().max() * most
        assert torch.allclose(steps, steps.round(), atol=1e-3)
    assert layer.bits == bits


def test_all_eight_bits_are_used_where_the_range_is_not_reduced() -> None:
    layer = rounded(Mlp(), reduce_range=False).get_submodule("head")
    assert isinstance(layer, Snapped)
    assert layer.most == 127


def test_norms_are_folded_and_their_layers_trained_on() -> None:
    model = Convolved().eval()
    for norm in (model.norm, model.block.norm):
        norm.running_mean.uniform_(-1, 1)
    trained = rounded(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in trained.modules())
    answer(trained.train()).sum().backward()
    assert all(parameter.grad is not None for parameter in trained.parameters())


def test_few_values_are_told_apart_in_float_though_training_is_in_bfloat16() -> None:
    trained = rounded(Convolved())
    inputs = example(trained)
    with torch.autocast("cpu", torch.bfloat16):
        found = trained.get_submodule("stem")(inputs["pixel_values"])
    assert found.dtype == torch.float32
    assert torch.equal(found, trained.get_submodule("stem")(inputs["pixel_values"]))


@pytest.mark.parametrize("ranges", ["learned", "moving"])
def test_a_model_comes_out_in_eval_mode_and_its_ranges_stand_still(ranges: Ranges) -> None:
    trained = rounded(Convolved().train(), ranges=ranges)
    assert not any(module.training for module in trained.modules())
    first = answer(trained)
    answer(trained, {"pixel_values": torch.full((1, 3, 8, 8), 1e3)})
    assert torch.equal(answer(trained), first)


def test_a_model_in_training_counts_as_quantized() -> None:
    trained = rounded(Mlp())
    assert emulated(trained)
    assert runtime(trained).endswith("int8 emulated")
    paths = {path for path, module in trained.named_modules() if isinstance(module, Quantized)}
    assert paths == {"embedding", "hidden", "head"}


# what is exported is what was trained


@pytest.mark.parametrize("make", MODELS)
def test_the_integers_answer_as_what_was_trained(make: str) -> None:
    trained = rounded(MODELS[make](), bits=4)
    train_(trained)
    small = static(trained)
    inputs = example(trained, rows=8, seed=9)
    truth = answer(trained, inputs)
    assert (answer(small, inputs) - truth).abs().max() < 1e-5 * truth.abs().max()
    assert any(isinstance(module, Int8Layer) for module in small.modules())
    assert not any(isinstance(m, Snapped | LearnedGrid) for m in small.modules())


@pytest.mark.parametrize("bits", [4, 8])
def test_moving_ranges_are_taken_over_too_and_nothing_is_calibrated(bits: int) -> None:
    trained = rounded(Convolved(), bits=bits, ranges="moving")
    train_(trained)

    def untouched(_model: nn.Module) -> Iterator[dict[str, Tensor]]:
        raise AssertionError

    small = quantize.int8_static(trained, untouched, untouched, reduce_range=False)  # type: ignore[arg-type]
    inputs = example(trained, rows=8, seed=9)
    truth = answer(trained, inputs)
    assert (answer(small, inputs) - truth).abs().max() < 1e-5 * truth.abs().max()
    stem = small.get_submodule("stem")
    assert isinstance(stem, Int8Layer)
    assert stem.bits == bits
    assert stem.integers().abs().max() == {4: 7, 8: 64}[bits]


def test_a_table_is_trained_for_the_eight_bits_it_gets() -> None:
    trained = rounded(bert())
    train_(trained, steps=1)
    small = static(trained)
    path = "bert.embeddings.word_embeddings"
    assert isinstance(small.get_submodule(path), Int8Embedding)
    ids = torch.arange(50)
    before = trained.get_submodule(path)
    assert torch.allclose(small.get_submodule(path)(ids), before(ids), atol=1e-7)


def test_what_is_excluded_afterwards_is_float_with_the_rounded_weights() -> None:
    trained = rounded(Convolved(), bits=4)
    small = static(trained, exclude=["head"])
    assert type(small.head) is nn.Linear
    head = trained.get_submodule("head")
    assert isinstance(head, Snapped)
    assert torch.equal(small.head.weight, head.dequantized().weight)
    assert isinstance(small.stem, Int8Layer)


def test_the_file_answers_as_what_was_trained(tmp_path: Path) -> None:
    trained = rounded(Convolved(), bits=4)
    train_(trained)
    file = export.onnx(static(trained), example, tmp_path / "trained")
    inputs = example(trained, rows=5, seed=3)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {name: each.numpy() for name, each in inputs.items()})
    truth = answer(trained, inputs).detach().numpy()
    assert np.abs(found - truth).max() < np.abs(truth).max() / 255


def test_a_model_in_training_is_no_file_yet_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError,
        match=r"^Mlp is still in training.*put quantize\.int8_static before export\.onnx\.$",
    ):
        export.onnx(rounded(Mlp()), example, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "again",
    [quantize.int8_dynamic, rounded, partial(prune.magnitude, ratio=0.5)],
    ids=["dynamic", "qat", "prune"],
)
def test_what_is_rounded_in_training_is_left_to_that(
    again: Callable[[nn.Module], nn.Module],
) -> None:
    with pytest.raises(ModelError, match=r"^Mlp has no .* left to \w+\.$"):
        again(rounded(Mlp()))


@pytest.mark.parametrize("ranges", ["learned", "moving"])
def test_a_trained_model_saves_and_loads(ranges: Ranges, tmp_path: Path) -> None:
    trained, other = (rounded(Convolved(), bits=4, ranges=ranges) for _ in range(2))
    train_(trained)
    inputs = example(trained)
    assert not torch.equal(answer(other, inputs), answer(trained, inputs))
    save_model(trained, str(tmp_path / "a.safetensors"))
    load_model(other, str(tmp_path / "a.safetensors"))
    assert torch.equal(answer(other, inputs), answer(trained, inputs))


# what it is for


def lessons(teacher: nn.Module, steps: int) -> Iterator[Any]:
    def batches() -> Iterator[Batch]:
        for n in range(steps):
            pictures = example(teacher, rows=16, seed=n)["pixel_values"]
            yield Batch(pictures, labels(n, 16), tuple(map(str, range(16))))

    return teach.online(batches(), [teacher], forward)


def forward(model: nn.Module, batch: Batch, layers: tuple[str, ...] = ()) -> Knowledge:  # noqa: ARG001
    return Knowledge(model(pixel_values=batch.inputs))


@pytest.mark.parametrize("ranges", ["learned", "moving"])
def test_distilling_wins_back_most_of_what_three_bits_lose(ranges: Ranges) -> None:
    teacher = Convolved(width=8).eval()
    teacher.head.weight.data *= 20
    rounded_once = rounded(teacher, bits=3, ranges=ranges)
    inputs = example(teacher, rows=64, seed=999)

    def lost(model: nn.Module) -> float:
        with torch.no_grad():
            return float(response.kl(answer(model, inputs), answer(teacher, inputs)))

    before = lost(static(rounded_once))
    terms = [distill.term(response.kl)]
    trained = distill.train(rounded_once, lessons(teacher, 100), terms, forward, steps=100, lr=2e-3)
    assert lost(static(trained)) < before / 2


def test_bits_that_there_are_not_are_refused_in_a_recipe() -> None:
    for bits in (1, 9):
        with pytest.raises(Exception, match=r"option 'bits' of qat must be int"):
            bind(quantize.qat, {"bits": bits})
