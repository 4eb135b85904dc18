"""Logits that are never whole: a loss over them is the loss in value and slope, not in memory."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from largest import Largest
from test_losses import ROOM, given, title
from torch import Tensor, nn
from torch.nn import functional

from attar.distill import Objective, term
from attar.errors import RecipeError
from attar.heads import Headed, Sparse, cross_entropy, in_chunks
from attar.losses import response
from attar.resolve import rowwise
from attar.types import IGNORE, Batch, Knowledge, Lesson

TOKENS, WIDTH, CLASSES = 23, 7, 31
LEAN = [loss for loss in ROOM.values() if rowwise(loss)]
NOT_LEAN = {
    *("response.dist", "response.mlkd"),  # they compare rows
    *("response.weighted", "response.regression"),  # a mean over the known, beside one over all
    "response.ctkd",  # it learns
}
SHARP = [
    *(partial(response.kl, temperature=3.0), partial(response.kl, standardize=True)),
    *(partial(response.jsd, beta=0.1), partial(response.jsd, beta=0.9, temperature=2.0)),
    *(partial(response.skew_kl, alpha=0.4), partial(response.skew_reverse_kl, temperature=0.5)),
    *(partial(response.alpha_beta, alpha=1, beta=0), partial(response.taid, start=0.0)),
]


def headed(seed: int = 0, bias: bool = True, width: int = WIDTH) -> Headed:
    torch.manual_seed(seed)
    states, weight = torch.randn(TOKENS, width), torch.randn(CLASSES, width) / 2
    return Headed(states, weight, torch.randn(CLASSES) if bias else None)


def few(head: int, drawn: int, seed: int = 9) -> Sparse:
    """Of one teacher's answers the head, and draws from all others; padded by entries of none."""
    generator = torch.Generator().manual_seed(seed)
    p = (2 * torch.randn(TOKENS, CLASSES, generator=generator)).softmax(-1)
    weights, ids = p.topk(head)
    tail = p.scatter(-1, ids, 0)
    if drawn:
        picks = tail.multinomial(drawn, replacement=True, generator=generator)
        share = tail.sum(-1, keepdim=True).expand(-1, drawn) / drawn
        ids = torch.cat([ids, picks, torch.zeros(TOKENS, 1).long()], -1)
        weights = torch.cat([weights, share, torch.zeros(TOKENS, 1)], -1)
    return Sparse(ids, weights, tail.sum(-1), head, CLASSES)


def leaves(head: Headed) -> list[Tensor]:
    return [each for each in (head.states, head.weight, head.bias) if each is not None]


def learning(head: Headed) -> Headed:
    return Headed(*(each.detach().clone().requires_grad_() for each in leaves(head)))


def value_and_slopes(make: Callable[[Headed], Tensor], head: Headed) -> list[Tensor]:
    fresh = learning(head)
    value = make(fresh)
    return [value.detach(), *torch.autograd.grad(value, leaves(fresh))]


def others(loss: Callable[..., Tensor], teacher: Any) -> dict[str, Any]:
    labels = torch.randint(CLASSES, (TOKENS,), generator=torch.Generator().manual_seed(1))
    everything = {"teacher": teacher, "labels": labels, "progress": 0.3}
    function = loss.func if isinstance(loss, partial) else loss
    return {name: everything[name] for name in given(function) if name in everything}


def called(loss: Any) -> str:
    return f"{loss.func.__name__}-{loss.keywords}" if isinstance(loss, partial) else title(loss)


def test_every_loss_that_sees_rows_by_themselves_says_so() -> None:
    room = {name for name in ROOM if name.startswith("response.")}
    assert {title(loss) for loss in LEAN} == room - NOT_LEAN


@pytest.mark.parametrize("name", sorted(NOT_LEAN - {"response.ctkd", "response.regression"}))
def test_those_that_do_not_would_be_others_in_chunks(name: str) -> None:
    loss, head = ROOM[name], headed()
    told = others(loss, torch.randn(TOKENS, CLASSES))
    if "labels" in told:
        told["labels"][:7] = IGNORE
    in_parts = in_chunks(loss, {"student": head, **told}, 5)
    assert not torch.isclose(in_parts, loss(student=head.dense(), **told))


@pytest.mark.parametrize("side", ["logits", "states", "few", "top"])
@pytest.mark.parametrize("loss", [*LEAN, *SHARP], ids=called)
def test_value_and_gradient_are_those_of_all_logits(loss: Any, side: str) -> None:
    sides = {"logits": headed(1).dense(), "states": headed(1, width=5)}
    teacher = sides.get(side) if side in sides else few(6, 4 if side == "few" else 0)
    whole = teacher.dense() if isinstance(teacher, Headed) else teacher
    told, dense_told = others(loss, teacher), others(loss, whole)
    expected = value_and_slopes(lambda head: loss(student=head.dense(), **dense_told), headed())
    for rows in (1, 5, 100):
        got = value_and_slopes(
            lambda head, rows=rows: in_chunks(loss, {"student": head, **told}, rows), headed()
        )
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loss", LEAN, ids=title)
def test_logits_that_are_whole_need_no_head(loss: Any) -> None:
    told = others(loss, torch.randn(TOKENS, CLASSES))
    student = torch.randn(TOKENS, CLASSES, requires_grad=True)
    one = loss(student=student, **told)
    other = in_chunks(loss, {"student": student, **told}, 5)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    slopes = [torch.autograd.grad(each, student)[0] for each in (one, other)]
    torch.testing.assert_close(*slopes, rtol=1e-5, atol=1e-6)


def test_the_gradient_is_what_differences_say() -> None:
    """Of a divergence in double precision, so that no rounding hides a wrong term."""

    def reverse(student: Tensor, teacher: Tensor) -> Tensor:
        log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
        return (log_q.exp() * (log_q - log_p)).sum(-1).mean()

    teacher = torch.randn(5, 9).double()

    def value(parts: list[Tensor]) -> Tensor:
        return in_chunks(reverse, {"student": Headed(*parts), "teacher": teacher}, 2)

    parts = [torch.randn(shape).double().requires_grad_() for shape in ((5, 3), (9, 3), (9,))]
    slopes = torch.autograd.grad(value(parts), parts)
    for number, slope in enumerate(slopes):
        way = torch.randn_like(slope)
        moved = [
            [each + step * way if n == number else each for n, each in enumerate(parts)]
            for step in (1e-5, -1e-5)
        ]
        rise = (value(moved[0]) - value(moved[1])) / 2e-5
        torch.testing.assert_close((slope * way).sum(), rise, rtol=1e-7, atol=1e-9)


def test_forward_kl_of_few_is_that_of_numpy_in_double_precision() -> None:
    teacher, head = few(4, 5), headed(2)
    z = head.dense().double().numpy()
    p = np.zeros((TOKENS, CLASSES))
    for row in range(TOKENS):
        for id_, weight in zip(teacher.ids[row], teacher.weights[row], strict=True):
            p[row, id_] += float(weight)
    log_q = z - np.log(np.exp(z).sum(1, keepdims=True))
    told = {"student": head, "teacher": teacher}
    cost = in_chunks(response.soft_cross_entropy, told)
    assert float(cost) == pytest.approx(-(p * log_q).sum(1).mean(), rel=1e-5)
    slope = value_and_slopes(
        lambda head: in_chunks(response.kl, {"student": head, "teacher": teacher}, 4), head
    )[3]
    expected = (np.exp(log_q) * p.sum(1, keepdims=True) - p).sum(0) / TOKENS
    np.testing.assert_allclose(slope.numpy(), expected, atol=1e-6)


def test_a_top_alone_has_the_mass_of_all_others_spread_evenly() -> None:
    teacher = few(4, 0)
    spread = torch.full((TOKENS, CLASSES), 0.0) + (teacher.rest / (CLASSES - 4))[:, None]
    spread = spread.scatter(-1, teacher.ids, teacher.weights)
    torch.testing.assert_close(teacher.dense().softmax(-1), spread)
    student = headed(2).dense()
    torch.testing.assert_close(response.kl(student, teacher), response.kl(student, spread.log()))


def test_draws_alone_allow_no_more_than_forward_kl() -> None:
    teacher, told = few(0, 9), {"student": headed()}
    assert in_chunks(response.kl, told | {"teacher": teacher}).isfinite()
    for loss in (response.reverse_kl, response.jsd, partial(response.kl, temperature=2.0)):
        with pytest.raises(ValueError, match=r"only draws are kept.*keep a `top` too"):
            in_chunks(loss, told | {"teacher": teacher})


def test_another_vocabulary_is_refused() -> None:
    teacher = Sparse(torch.zeros(TOKENS, 1).long(), torch.ones(TOKENS, 1), torch.ones(TOKENS), 0, 9)
    with pytest.raises(ValueError, match=r"student has 31 classes and the teacher 9"):
        in_chunks(response.kl, {"student": headed(), "teacher": teacher})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_to_the_truth_as_all_logits_are(dtype: torch.dtype) -> None:
    exact = Headed(*(each.to(dtype).float() for each in leaves(headed())))
    half = Headed(*(each.to(dtype) for each in leaves(exact)))
    teacher = torch.randn(TOKENS, CLASSES)
    truth = value_and_slopes(lambda head: response.jsd(head.dense(), teacher), exact)
    whole = value_and_slopes(lambda head: response.jsd(head.dense(), teacher), half)
    parts = value_and_slopes(
        lambda head: in_chunks(response.jsd, {"student": head, "teacher": teacher}, 4), half
    )
    for true, one, other in zip(truth, whole, parts, strict=True):
        assert other.dtype == one.dtype
        error = (one.float() - true).norm() / true.norm()
        assert (other.float() - true).norm() / true.norm() < error + 2 * torch.finfo(dtype).eps


def test_a_gradient_added_up_in_half_precision_would_be_lost() -> None:
    """A thousand chunks of one token each: their sum is kept in float32."""

    def surprise(student: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(student, labels)

    states, weight = torch.ones(1000, 1).bfloat16(), torch.zeros(2, 1).bfloat16().requires_grad_()
    told = {"student": Headed(states, weight), "labels": torch.zeros(1000).long()}
    loss = in_chunks(surprise, told, 1)
    (slope,) = torch.autograd.grad(loss, weight)
    assert slope.flatten().tolist() == [-0.5, 0.5]


def test_under_autocast_the_product_is_made_in_its_type() -> None:
    body, head = nn.Linear(4, WIDTH), nn.Linear(WIDTH, CLASSES)
    teacher, asked = torch.randn(TOKENS, CLASSES), torch.randn(TOKENS, 4)

    def slopes(make: Callable[[Tensor], Tensor]) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            states = body(asked).float()  # as a final norm in float32 gives them
            loss = make(states)
        return list(torch.autograd.grad(loss, [*body.parameters(), *head.parameters()]))

    whole = slopes(lambda states: response.kl(head(states), teacher))
    parts = slopes(
        lambda states: in_chunks(
            response.kl, {"student": Headed.by(head, states), "teacher": teacher}, 5
        )
    )
    for one, other in zip(whole, parts, strict=True):
        assert other.dtype == torch.float32
        torch.testing.assert_close(other, one, rtol=0.03, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        assert Headed.by(head, torch.randn(2, WIDTH)).dense().dtype == torch.bfloat16


def test_a_tied_head_gets_both_its_gradients() -> None:
    table, asked = torch.randn(CLASSES, WIDTH), torch.randint(CLASSES, (TOKENS,))
    teacher, slopes = torch.randn(TOKENS, CLASSES), []
    for lean in (False, True):
        tied = table.clone().requires_grad_()
        head = Headed(tied[asked].tanh(), tied)
        told = {"student": head if lean else head.dense(), "teacher": teacher}
        loss = in_chunks(response.kl, told, 6) if lean else response.kl(**told)
        slopes.append(torch.autograd.grad(loss, tied)[0])
    torch.testing.assert_close(*slopes, rtol=1e-5, atol=1e-6)


def test_a_frozen_head_or_states_get_no_gradient_and_cost_none() -> None:
    head, teacher = headed(), torch.randn(TOKENS, CLASSES)
    head.states.requires_grad_()
    in_chunks(response.kl, {"student": head, "teacher": teacher}).backward()
    assert head.states.grad is not None
    assert head.weight.grad is None
    with torch.no_grad():
        assert not in_chunks(response.kl, {"student": head, "teacher": teacher}).requires_grad
    with pytest.raises(ValueError, match="rows is 0, not at least 1"):
        in_chunks(response.kl, {"student": head, "teacher": teacher}, 0)


def test_a_gradient_asked_for_twice_is_refused_not_wrong() -> None:
    head = learning(headed())
    loss = in_chunks(response.kl, {"student": head, "teacher": torch.randn(TOKENS, CLASSES)})
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="is there once"):
        loss.backward()


def test_where_nothing_is_to_be_learned_the_loss_is_zero_and_has_a_gradient() -> None:
    head = learning(headed())
    loss = cross_entropy(head, torch.full((TOKENS,), IGNORE))
    loss.backward()
    assert loss.item() == 0
    assert head.weight.grad is not None
    assert not head.weight.grad.any()


def test_the_cross_entropy_is_torchs_over_the_labels_that_are_known() -> None:
    head = headed()
    places = Headed(head.states[:20].view(4, 5, WIDTH), head.weight, head.bias)
    labels = torch.randint(CLASSES, (4, 5))
    labels[0, :3] = labels[3] = IGNORE
    expected = functional.cross_entropy(head.dense()[:20], labels.flatten(), ignore_index=IGNORE)
    torch.testing.assert_close(cross_entropy(places, labels), expected)
    torch.testing.assert_close(cross_entropy(places.dense(), labels), expected)


@pytest.mark.parametrize("parts", [1, 4, 8])
def test_parts_weighed_by_their_tokens_give_the_gradient_of_the_whole(parts: int) -> None:
    """Peers divided by each part's own count, or by their number: up to four times too much."""
    teacher, whole = torch.randn(TOKENS, CLASSES), learning(headed())
    told = {"student": whole, "teacher": teacher}
    wanted = torch.autograd.grad(in_chunks(response.jsd, told, 4), leaves(whole))
    head = learning(headed())
    for start in range(0, TOKENS, -(-TOKENS // parts)):
        part = slice(start, start + -(-TOKENS // parts))
        loss = in_chunks(response.jsd, {"student": head[part], "teacher": teacher[part]}, 4)
        (loss * len(teacher[part]) / TOKENS).backward()
    for one, other in zip(wanted, leaves(head), strict=True):
        assert (one - other.grad).abs().max() < 1e-6


# --- in the objective


def lesson(teacher: Any) -> Lesson:
    keys = tuple(map(str, range(TOKENS)))
    return Lesson(Batch(keys, torch.zeros(TOKENS).long(), keys), Knowledge(teacher))


@pytest.mark.parametrize(
    "side", [headed(1), few(5, 3), headed(1).dense()], ids=["head", "few", "t"]
)
def test_an_objective_takes_logits_that_are_not_made_for_every_loss(side: Any) -> None:
    def own(student: Tensor, teacher: Tensor) -> Tensor:
        return (student - teacher).abs().mean()

    whole = side if isinstance(side, Tensor) else side.dense()
    terms = [term(response.kl, 0.5, temperature=2.0), term(response.dist), term(own)]
    head = headed()
    objective = Objective(terms, Knowledge(head), Knowledge(side))
    value, parts = objective(Knowledge(head), lesson(side))
    expected, dense_parts = objective(Knowledge(head.dense()), lesson(whole))
    torch.testing.assert_close(value, expected)
    assert parts == pytest.approx(dense_parts, rel=1e-5)


def test_an_objective_says_in_a_sentence_what_draws_can_not_teach() -> None:
    objective = Objective([term(response.jsd)], Knowledge(headed()), Knowledge(few(0, 4)))
    with pytest.raises(RecipeError, match=r"response\.jsd can't be had: .*only draws are kept"):
        objective(Knowledge(headed()), lesson(few(0, 4)))


def test_the_code_of_the_page_runs() -> None:
    page = (Path(__file__).parent.parent / "docs" / "extending.md").read_text("utf-8")
    code = page.partition("### Over a large vocabulary")[2].partition("```python\n")[2]
    names: dict[str, Any] = {
        "student_head": nn.Linear(WIDTH, CLASSES),
        "teacher_head": nn.Linear(5, CLASSES),
        "student_states": torch.randn(TOKENS, WIDTH),
        "teacher_states": torch.randn(TOKENS, 5),
        "next_tokens": torch.randint(CLASSES, (TOKENS,)),
    }
    exec(compile(code.partition("```")[0], "extending.md", "exec"), names)
    names["loss"].backward()
    assert names["student_head"].weight.grad.any()
    assert names["teacher_head"].weight.grad is None


# --- memory


@pytest.mark.parametrize("loss", [response.kl, response.jsd, response.adaptive_kl], ids=title)
@pytest.mark.parametrize("side", [headed(1, width=2), few(3, 2)], ids=["states", "few"])
def test_all_logits_never_are_forward_or_backward(loss: Any, side: Any) -> None:
    head = learning(headed(width=2))
    with Largest() as forward:
        value = in_chunks(loss, {"student": head, "teacher": side}, 4)
    with Largest() as backward:
        value.backward()
    assert 4 * CLASSES in forward.sizes
    assert max(forward.sizes) <= 4 * max(CLASSES, 2 * TOKENS // 4)
    assert max(backward.sizes, default=0) <= max(2 * CLASSES, 2 * TOKENS)
    assert 5 * max(forward.sizes) < TOKENS * CLASSES


def test_a_chunk_has_so_many_rows_that_its_logits_are_about_as_many_as_said() -> None:
    seen: list[int] = []

    def loss(student: Tensor) -> Tensor:
        seen.append(len(student))
        return student.mean()

    weight = torch.zeros(1 << 20, 1)
    in_chunks(loss, {"student": Headed(torch.zeros(19, 1), weight)})
    assert seen == [4, 4, 4, 4, 3]
    assert math.prod((4, 1 << 20)) == 1 << 22
    seen.clear()
    in_chunks(loss, {"student": Headed(torch.zeros(640, 1), weight[:2])})
    assert seen == [640]
    seen.clear()
    in_chunks(loss, {"student": Headed(torch.zeros(320, 1), weight[: 1 << 19])}, None)
    assert seen == [10] * 32


def test_what_stands_in_place_of_logits_is_cut_moved_and_shaped_like_them() -> None:
    for each in (headed(), few(3, 2)):
        assert each.shape == (TOKENS, CLASSES)
        assert each[2:5].shape == (3, CLASSES)
        assert len(each[torch.arange(TOKENS) % 2 == 0]) == 12
        assert each.dim() == 2
        torch.testing.assert_close(each[2:5].dense(), each.dense()[2:5])
        assert each.to(torch.device("meta")).device.type == "meta"
        assert not each.detach().dense().requires_grad
    known = Knowledge(headed()).rows(1, 4).detach()
    assert known.logits.shape == (3, CLASSES)


def test_no_recipe_can_take_a_chunk_for_a_loss() -> None:
    assert not [name for name in ROOM if "chunk" in name or "few" in name]
    assert not inspect.ismodule(ROOM.get("response.few"))
