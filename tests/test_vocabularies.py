"""Padded, extended and reordered vocabularies of one tokenizer meet by tokens, or not at all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attar.errors import RecipeError
from attar.heads import Headed, Sparse, in_chunks
from attar.losses import response
from attar.tasks.text.vocabularies import carried, matched

COUNT = 300
TEACHER = {f"t{number}": number for number in range(COUNT)}


def test_ids_that_no_token_has_are_proven_to_be_padding() -> None:
    """As Qwen's 151,936 and 152,064 classes of one tokenizer, which peers cut by hand."""
    index, says = matched(TEACHER, TEACHER, (320, 304))
    assert index.tolist() == [*range(COUNT), *[-1] * 4]
    assert says == (
        "300 tokens are the same; of the teacher's 320 classes 20 are padding, as no token has"
        " them (300 to 319); of the student's 304 classes 4 are padding, as no token has them"
        " (300 to 303)"
    )


def test_a_hole_is_padding_and_a_class_at_the_end_may_be_a_token() -> None:
    """Cutting off the end, as peers do, would drop a token here and keep a hole."""
    moved = {**TEACHER, "t7": 309}
    index, says = matched(moved, TEACHER, (310, COUNT))
    assert index[7] == 309
    assert "1 under other ids" in says
    assert "10 are padding, as no token has them (7, 300 to 308)" in says


def test_reordered_and_extended_vocabularies_give_the_same_loss() -> None:
    order = torch.randperm(COUNT).tolist()
    student = {**{f"t{number}": order[number] for number in range(COUNT)}, "<new>": COUNT}
    index, says = matched(TEACHER, student, (310, COUNT + 1))
    assert "1 only the student's ('<new>')" in says
    head = Headed(torch.randn(9, 4), torch.randn(310, 4))
    mine = torch.randn(9, COUNT + 1)
    mine[:, COUNT] = -1e4
    own = mine[:, order]  # the student's answers in the teacher's order
    expected = response.kl(own, head.dense()[:, :COUNT])
    for answers in (head, head.dense()):
        value = in_chunks(response.kl, {"student": mine, "teacher": carried(answers, index)}, 4)
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


def test_few_classes_are_carried_by_their_tokens() -> None:
    order = torch.randperm(COUNT)
    index = torch.full((COUNT + 5,), -1)
    index[order] = torch.arange(COUNT)
    p = torch.randn(6, COUNT).softmax(-1)
    top = p.topk(8)
    few = Sparse(top.indices, top.values, 1 - top.values.sum(-1), 8, COUNT)
    moved = carried(few, index)
    assert isinstance(moved, Sparse)
    assert moved.shape == (6, COUNT + 5)
    assert torch.equal(moved.ids, order[few.ids])
    gone = index.clone()
    gone[order[few.ids[2, 0]]] = -1
    with pytest.raises(ValueError, match=r"a class that the student has no token for"):
        carried(few, gone)


def test_what_the_teacher_has_no_token_for_it_never_says() -> None:
    for far in (0.0, -150.0, 150.0):  # logits have no zero of their own
        said, index = torch.randn(4, 3) + far, torch.tensor([2, -1, 0])
        logits: Tensor = carried(said, index)  # type: ignore[assignment]
        assert logits.softmax(-1)[:, 1].max() < 1e-40
        assert response.kl(torch.randn(4, 3), logits).isfinite()
        head = Headed(torch.eye(4), said.T.contiguous())
        shares = carried(head, index).dense().softmax(-1)  # type: ignore[union-attr]
        assert shares[:, 1].max() < 1e-40
        torch.testing.assert_close(shares[:, [2, 0]], said[:, [0, 2]].softmax(-1))


def test_an_empty_entry_of_a_class_that_is_gone_hides_no_other() -> None:
    few = Sparse(torch.tensor([[0, 2]]), torch.tensor([[0.9, 0.0]]), torch.tensor([0.1]), 2, 3)
    moved = carried(few, torch.tensor([0, 1, -1]))
    assert moved.dense()[0, 0].exp() == pytest.approx(0.9)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("student", "widths", "sentence"),
    [
        (
            {f"s{number}": number for number in range(COUNT)},
            (COUNT, COUNT),
            r"of 300 and 300 tokens 0 are the same, not such as 's0', 's1', 's2'",
        ),
        ({f"t{number}": number for number in range(200)}, (COUNT, 200), "200 are the same"),
        ({**TEACHER, "far": 400}, (COUNT, 350), "student has 350 classes and its tokenizer ids up"),
        (TEACHER, (250, COUNT), "teacher has 250 classes and its tokenizer ids up to 299"),
    ],
)
def test_another_tokenizer_is_refused_in_a_sentence(
    student: dict[str, int], widths: tuple[int, int], sentence: str
) -> None:
    with pytest.raises(RecipeError, match=sentence):
        matched(TEACHER, student, widths)
