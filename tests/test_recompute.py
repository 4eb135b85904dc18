"""Activations made anew in the backward pass: less is kept, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import storybook
import torch
from torch import Tensor, nn

from attar.distill import term, train
from attar.distill.recomputing import recomputable
from attar.errors import EngineError
from attar.losses import feature, response
from attar.tasks.text import generation
from attar.teach import online
from attar.types import Batch, Knowledge

MINE, ITS = "model.layers.0", "model.layers.1"


@pytest.fixture
def task(tmp_path: Path) -> generation:
    data, folder = storybook.book(tmp_path / "book"), storybook.saved(tmp_path / "model")
    return generation(dataset=str(data), tokenizer=str(folder), length=48)


def trained(task: generation, **more: Any) -> tuple[nn.Module, int]:
    """A student after three steps, and how many numbers were kept for the backward passes."""
    kept: list[int] = []

    def forward(model: nn.Module, batch: Batch) -> Knowledge:
        return task.forward(model, batch, [ITS if model is teacher else MINE])

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    teacher = task.load(storybook.llama(3))
    student = task.load(storybook.llama(3, seed=1, attention_dropout=0.3))
    batches = [task._batch(task.rows["train"][n : n + 4]) for n in (0, 4, 8)]
    terms = [term(response.kl), term(feature.cosine, layers={MINE: ITS}), term(task.loss)]
    lessons = online(batches, [teacher], forward)
    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        train(student, lessons, terms, forward, steps=3, **more)
    return student, sum(kept)


def test_less_is_kept_and_the_weights_are_the_same(task: generation) -> None:
    usual, much = trained(task)
    lean, little = trained(task, recompute=True)
    for name, weight in usual.named_parameters():
        torch.testing.assert_close(lean.get_parameter(name), weight, msg=name)
    assert 2 * little < much


def test_afterwards_a_student_is_as_it_was(task: generation) -> None:
    student, _ = trained(task, recompute=True)
    assert not [path for path, module in student.named_modules() if "forward" in vars(module)]


class Moving(nn.Module):
    """What rounds while it is trained, by what it has seen."""

    def fixed(self) -> nn.Module:
        return self


@pytest.mark.parametrize("noting", [nn.BatchNorm1d(3), Moving()], ids=["norm", "qat"])
def test_blocks_that_note_what_passes_are_refused(noting: nn.Module) -> None:
    parts = [nn.Sequential(nn.Linear(3, 3), noting, nn.ReLU()) for _ in range(3)]
    model = nn.Sequential(*parts)
    with pytest.raises(EngineError, match="notes what passes through it, and would twice"):
        recomputable(model)


def test_a_model_that_can_not_is_told_so() -> None:
    batches: list[Batch] = [Batch(torch.rand(2, 3), torch.zeros(2, dtype=torch.long), ("a", "b"))]
    student = nn.Linear(3, 2)
    with pytest.raises(EngineError, match="Linear has no stack of like blocks"):
        train(
            student,
            online(batches, [student], lambda model, batch: Knowledge(model(batch.inputs))),
            [term(response.kl)],
            lambda model, batch: Knowledge(model(batch.inputs)),
            steps=1,
            recompute=True,
        )
