"""A loss in chunks of rows is the loss: in value, in gradient and in name, but not in memory."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from test_losses import ROOM, given, options, title
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attar.distill import term
from attar.losses import response
from attar.losses.chunked import chunked
from attar.resolve import compares

ROWS, CLASSES = 23, 11
COMPARES_ROWS = {"response.dist", "response.mlkd"}
TWO_MEANS = {"response.weighted"}
EXACT = [
    loss
    for name, loss in ROOM.items()
    if name.startswith("response.")
    and inspect.isfunction(loss)
    and name not in COMPARES_ROWS | TWO_MEANS
]


def arguments(loss: Callable[..., Tensor], known: bool = False) -> dict[str, Any]:
    student, teacher = torch.randn(2, ROWS, CLASSES)
    labels = torch.randint(CLASSES, (ROWS,))
    if not known:
        labels[:7] = -100  # among them all of the first chunk
    if loss is response.regression:
        labels = torch.randn(ROWS, CLASSES).masked_fill((labels < 0)[:, None], torch.nan)
    everything = {"student": student, "teacher": teacher, "labels": labels, "progress": 0.3}
    return {name: everything[name] for name in given(loss)}


def value_and_slope(loss: Callable[..., Tensor], told: dict[str, Any]) -> tuple[Tensor, Tensor]:
    student = told["student"].detach().requires_grad_()
    value = loss(**(told | {"student": student}))
    return value.detach(), torch.autograd.grad(value, student)[0]


@pytest.mark.parametrize("loss", EXACT, ids=title)
@pytest.mark.parametrize("rows", [1, 5, 23, 100])
def test_value_and_gradient_are_those_of_the_whole(loss: Any, rows: int) -> None:
    told = arguments(loss)
    whole = value_and_slope(loss, told)
    for one, other in zip(value_and_slope(chunked(loss, rows), told), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", sorted(TWO_MEANS))
def test_a_loss_of_two_means_is_the_same_where_all_labels_are_known(name: str) -> None:
    told = arguments(ROOM[name], known=True)
    whole = value_and_slope(ROOM[name], told)
    for one, other in zip(value_and_slope(chunked(ROOM[name], 5), told), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    told = arguments(ROOM[name])
    assert not torch.isclose(chunked(ROOM[name], 5)(**told), ROOM[name](**told))


@pytest.mark.parametrize("name", sorted(COMPARES_ROWS))
def test_a_loss_that_compares_rows_is_another_in_chunks(name: str) -> None:
    told = arguments(ROOM[name])
    assert not torch.isclose(chunked(ROOM[name], 5)(**told), ROOM[name](**told))


def test_options_and_positions_are_passed_on() -> None:
    student, teacher = torch.randn(2, ROWS, CLASSES)
    expected = response.kl(student, teacher, temperature=3)
    in_chunks = chunked(response.kl, 5)
    torch.testing.assert_close(in_chunks(student, teacher, temperature=3), expected)
    bound = chunked(partial(response.kl, temperature=3.0), 5)
    torch.testing.assert_close(bound(student=student, teacher=teacher), expected)


def test_half_precision_and_a_batch_without_any_value_are_as_in_the_whole() -> None:
    told = arguments(response.regression)
    half = {name: each.half() for name, each in told.items() if name != "labels"}
    unknown = half | {"labels": torch.full((ROWS, CLASSES), torch.nan)}
    value, slope = value_and_slope(chunked(response.regression, 5), unknown)
    assert value == 0
    assert value.dtype == torch.float32
    assert slope.dtype == torch.float16
    assert not slope.any()


def test_a_single_row_whose_values_are_known_is_the_mean_of_all() -> None:
    told = arguments(response.regression, known=True)
    alone = told | {"labels": told["labels"].index_fill(0, torch.arange(1, ROWS), torch.nan)}
    value = response.regression(**{name: each[:1] for name, each in told.items()})
    torch.testing.assert_close(chunked(response.regression, 5)(**alone), value)


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor made inside has, and how many are so large."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        given_storage = {each.data_ptr() for each in tree_leaves(args) if isinstance(each, Tensor)}
        for each in tree_leaves(made):
            if isinstance(each, Tensor) and each.data_ptr() not in given_storage:
                self.sizes.append(each.numel())
        return made


def test_of_the_whole_there_is_nothing_but_its_gradient() -> None:
    student, teacher = torch.randn(2, ROWS, CLASSES)
    student.requires_grad_()
    with Largest() as forward:
        loss = chunked(response.jsd, 4)(student, teacher)
    assert 0 < max(forward.sizes) <= 4 * CLASSES
    with Largest() as backward:
        loss.backward()
    assert sum(size > 4 * CLASSES for size in backward.sizes) == 1
    with Largest() as whole:
        response.jsd(student, teacher)
    assert max(whole.sizes) == ROWS * CLASSES


def test_what_a_chunk_is_made_of_is_not_kept_for_the_gradient() -> None:
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        if tensor._base is None:
            kept.append(tensor.numel())
        return tensor

    student, teacher = torch.randn(2, ROWS, CLASSES)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        chunked(response.jsd, 4)(student.requires_grad_(), teacher)
    assert all(size < CLASSES for size in kept)


def test_it_has_the_name_the_options_and_the_kind_of_the_loss() -> None:
    in_chunks = chunked(response.kl, 5)
    assert options(in_chunks) == options(response.kl)
    assert compares(in_chunks) == "Logits"
    assert term(in_chunks, 0.5, temperature=4.0).name == "response.kl"


def test_no_recipe_can_take_it_for_a_loss() -> None:
    assert not [name for name in ROOM if "chunk" in name]


def test_chunks_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="rows is 0, not at least 1"):
        chunked(response.kl, 0)
