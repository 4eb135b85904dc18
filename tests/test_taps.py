"""Taps: what is read at a path is what the module gave, and the model is left as it was."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attar.errors import LayerError
from attar.taps import (
    Place,
    evaluating,
    first_tensor,
    knowledge_of,
    module_at,
    place,
    pooled,
    tapped,
)
from attar.types import IGNORE, Batch, Knowledge

ROWS, LENGTH, WIDTH = 3, 4, 5


class Block(nn.Module):
    """Gives (activations, a map) as attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(self.dense(x)), (x @ x.mT).softmax(-1)[:, None]


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        for block in self.blocks:
            x = self.dropout(block(x)[0])
        return {"logits": self.head(x.mean(1))}


def hooks(model: nn.Module) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
        for m in model.modules()
    )


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("a.layer.5", Place("a.layer.5", 0, None)),
        ("a.layer.5[1]", Place("a.layer.5", 1, None)),
        ("a.layer.5@mean", Place("a.layer.5", 0, "mean")),
        ("a.layer.5[12]@first", Place("a.layer.5", 12, "first")),
        ("a.layer.5@time", Place("a.layer.5", 0, "time")),
        ("", Place("", 0, None)),
        ("@mean", Place("", 0, "mean")),
    ],
)
def test_a_place_is_a_path_an_index_and_a_pool(text: str, parsed: Place) -> None:
    assert place(text) == parsed


@pytest.mark.parametrize("text", ["a[b]", "a[1", "a@", "a@mean@first", "a[-1]", "a@mean[0]"])
def test_what_is_no_place_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(LayerError, match=r"encoder\.layer\.0@mean"):
        place(text)


def test_a_misspelt_pool_is_answered_with_the_right_one() -> None:
    with pytest.raises(LayerError, match="did you mean 'mean'"):
        place("a@maen")


def test_a_misspelt_path_is_answered_with_the_nearest() -> None:
    with pytest.raises(
        LayerError, match=r"Network has no layer 'blocks\.1\.dens'.*blocks\.1\.dense"
    ):
        module_at(Network(), "blocks.1.dens")
    network = Network()
    assert module_at(network, "blocks.1.dense") is network.blocks[1].dense
    assert module_at(network, "") is network


def test_the_tensor_at_an_index_is_found_in_whatever_a_module_returns() -> None:
    one, two = torch.zeros(1), torch.ones(2)
    assert first_tensor(one) is one
    assert first_tensor((one, two), 1) is two
    assert first_tensor([one, (two, one)], 1) is two
    assert first_tensor(OrderedDict(logits=one, hidden=two), 1) is two
    for nothing in (None, "text", 3, (), ((),), (None,)):
        assert first_tensor(nothing) is None
    assert first_tensor(one, 1) is None
    assert first_tensor((one,), 1) is None


def test_pooling_counts_real_tokens_only() -> None:
    feature = torch.tensor([[[1.0, 10], [3, 30], [99, 99]], [[5, 50], [99, 99], [99, 99]]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert pooled(feature, mask, "mean").tolist() == [[2, 20], [5, 50]]
    assert pooled(feature, mask, "first").tolist() == [[1, 10], [5, 50]]
    assert pooled(feature, mask, None) is feature
    torch.testing.assert_close(pooled(feature, None, "mean"), feature.mean(1))


def test_pooling_a_row_without_real_tokens_gives_zeros() -> None:
    feature, mask = torch.ones(2, 3, 4), torch.tensor([[1, 1, 1], [0, 0, 0]])
    assert pooled(feature, mask, "mean").tolist() == [[1.0] * 4, [0.0] * 4]


def test_pooling_leaves_what_has_no_tokens_and_averages_maps_over_their_places() -> None:
    flat, maps = torch.rand(2, 7), torch.rand(2, 3, 4, 5)
    assert pooled(flat, torch.ones(2, 3), "mean") is flat
    expected = maps.numpy().reshape(2, 3, 20).mean(2)
    np.testing.assert_allclose(pooled(maps, None, "mean").numpy(), expected, rtol=1e-6)


def test_what_is_to_be_compared_in_time_keeps_all_its_tokens() -> None:
    for feature in (torch.rand(2, 3, 4), torch.rand(2, 7), torch.rand(2, 3, 4, 5)):
        assert pooled(feature, torch.ones(2, 3), "time") is feature


def test_a_map_has_no_first_token() -> None:
    with pytest.raises(LayerError, match=r"shape \(2, 3, 4, 5\) have no first token.*@mean"):
        pooled(torch.rand(2, 3, 4, 5), None, "first")


def test_pooling_over_other_tokens_than_the_masks_is_refused() -> None:
    with pytest.raises(LayerError, match=r"shape \(2, 7, 4\) has no 3 tokens"):
        pooled(torch.ones(2, 7, 4), torch.ones(2, 3), "mean")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_pooling_keeps_the_number_format(dtype: torch.dtype) -> None:
    feature = torch.rand(2, 3, 4).to(dtype)
    assert pooled(feature, torch.ones(2, 3, dtype=torch.int64), "mean").dtype == dtype


def test_a_tap_hears_what_the_module_gave() -> None:
    network, x = Network().eval(), torch.rand(ROWS, LENGTH, WIDTH)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    names = ["blocks.1", "blocks.1[1]", "blocks.0@mean", "blocks.0.dense@first", ""]
    with tapped(network, names) as heard:
        whole = network(x)
    features = heard(mask)
    first, _ = network.blocks[0](x)
    second, maps = network.blocks[1](first)
    assert list(features) == names
    assert torch.equal(features["blocks.1"], second)
    assert torch.equal(features["blocks.1[1]"], maps)
    assert torch.equal(features["blocks.0@mean"], pooled(first, mask, "mean"))
    assert torch.equal(features["blocks.0.dense@first"], network.blocks[0].dense(x)[:, 0])
    assert torch.equal(features[""], whole["logits"])


def test_gradients_flow_through_what_was_heard() -> None:
    network = Network()
    with tapped(network, ["blocks.0@mean"]) as heard:
        network(torch.rand(ROWS, LENGTH, WIDTH))
    heard(None)["blocks.0@mean"].sum().backward()
    assert network.blocks[0].dense.weight.grad is not None
    assert network.head.weight.grad is None


def test_of_a_module_that_runs_twice_the_last_answer_is_heard() -> None:
    network, x = Network().eval(), torch.rand(ROWS, LENGTH, WIDTH)
    with tapped(network, ["dropout"]) as heard:
        network(x)
    second, _ = network.blocks[1](network.blocks[0](x)[0])
    assert torch.equal(heard(None)["dropout"], second)


def test_a_module_that_gave_no_such_tensor_is_named_with_the_cure() -> None:
    network = Network()
    with tapped(network, ["blocks.0.dense[1]"]) as heard:
        network(torch.rand(ROWS, LENGTH, WIDTH))
    with pytest.raises(LayerError, match=r"blocks\.0\.dense\[1\].*eager"):
        heard(None)


@pytest.mark.parametrize(
    "names", [["blocks.0", "blocks.7"], ["blocks.0", "head[x]"], ["blocks.0", "head@max"]]
)
def test_a_wrong_path_leaves_no_hook_behind(names: list[str]) -> None:
    network = Network()
    with pytest.raises(LayerError), tapped(network, names):
        pass
    assert hooks(network) == 0


def test_taps_are_gone_afterwards_even_if_the_model_failed() -> None:
    network = Network()
    with tapped(network, ["blocks.0"]):
        assert hooks(network) == 1
        network(torch.rand(ROWS, LENGTH, WIDTH))
    assert hooks(network) == 0
    with pytest.raises(RuntimeError), tapped(network, ["blocks.0", "head"]):
        network(torch.rand(ROWS, LENGTH, WIDTH + 1))
    assert hooks(network) == 0


class Named(nn.Module):
    """Gives a loss before its logits, as `transformers` do, or whatever it is made for."""

    def __init__(self, *, gives: str) -> None:
        super().__init__()
        self.gives, self.dense = gives, nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Any:
        logits = self.dense(x).mean(1)
        if attention_mask is not None:
            logits = logits * attention_mask.sum(1, keepdim=True)
        return {
            "tensor": logits,
            "tuple": (logits, x),
            "named": OrderedDict(loss=logits.sum(), logits=logits),
            "first": OrderedDict(answer=logits, other=x),
            "nothing": None,
        }[self.gives]


@pytest.mark.parametrize("gives", ["tensor", "tuple", "named", "first"])
def test_the_knowledge_of_any_model_is_its_logits_and_the_layers_asked_for(gives: str) -> None:
    model, x = Named(gives=gives), torch.rand(ROWS, LENGTH, WIDTH)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    plain = knowledge_of(model, x, ["dense", "dense@mean"])
    torch.testing.assert_close(plain.logits, model.dense(x).mean(1))
    assert plain.mask is None
    assert list(plain.features) == ["dense", "dense@mean"]
    torch.testing.assert_close(plain.features["dense@mean"], model.dense(x).mean(1))
    for inputs in ((x, mask), [x, mask], {"x": x, "attention_mask": mask}):
        masked = knowledge_of(model, inputs)
        torch.testing.assert_close(masked.logits, plain.logits * mask.sum(1, keepdim=True))
        assert (masked.mask is mask) == isinstance(inputs, dict)
    named = knowledge_of(model, {"x": x, "attention_mask": mask}, ["dense@mean"])
    expected = pooled(model.dense(x), mask, "mean")
    torch.testing.assert_close(named.features["dense@mean"], expected)


def test_a_model_that_gives_no_tensor_is_named() -> None:
    with pytest.raises(LayerError, match="Named gave no tensor to learn from"):
        knowledge_of(Named(gives="nothing"), torch.rand(ROWS, LENGTH, WIDTH))


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def test_every_module_is_in_its_own_mode_again_after_evaluating() -> None:
    network = Network().train()
    network.blocks[0].eval()
    before = modes(network)
    with evaluating(network) as asked:
        assert asked is network
        assert not any(modes(network))
    assert modes(network) == before
    with pytest.raises(ZeroDivisionError), evaluating(network):
        raise ZeroDivisionError
    assert modes(network) == before


def knowledge(lengths: list[int]) -> Knowledge:
    rows, longest = len(lengths), max(lengths)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    features = {
        "tokens": torch.rand(rows, longest, WIDTH),
        "maps": torch.rand(rows, 2, longest, longest),
        "pooled": torch.rand(rows, WIDTH),
    }
    return Knowledge(torch.rand(rows, 2, requires_grad=True), features, mask)


def test_rows_of_knowledge_leave_the_others_padding_behind() -> None:
    whole = knowledge([2, 1, 4])
    some = whole.rows(0, 2)
    assert some.mask is not None
    assert some.mask.tolist() == [[1, 1], [1, 0]]
    assert torch.equal(some.logits, whole.logits[:2])
    assert torch.equal(some.features["tokens"], whole.features["tokens"][:2, :2])
    assert torch.equal(some.features["maps"], whole.features["maps"][:2, :, :2, :2])
    assert torch.equal(some.features["pooled"], whole.features["pooled"][:2])


def test_rows_without_any_real_token_keep_one_place() -> None:
    assert knowledge([3, 0]).rows(1, 2).features["tokens"].shape == (1, 1, WIDTH)


def test_rows_without_a_mask_are_only_rows() -> None:
    bare = Knowledge(torch.rand(3, 2), {"tokens": torch.rand(3, 4, WIDTH)})
    assert bare.rows(1, 3).features["tokens"].shape == (2, 4, WIDTH)
    assert bare.rows(1, 3).mask is None


def test_detached_knowledge_is_the_same_without_a_graph() -> None:
    whole = knowledge([2, 1])
    free = whole.detach()
    assert whole.logits.requires_grad
    assert not free.logits.requires_grad
    assert torch.equal(free.logits, whole.logits)
    assert free.features.keys() == whole.features.keys()


@pytest.mark.parametrize("inputs", [("a", "b", "c"), torch.arange(3)])
def test_rows_of_a_batch_are_a_batch(inputs: Any) -> None:
    batch = Batch(inputs, torch.tensor([0, IGNORE, 1]), ("x", "y", "z"))
    assert len(batch) == 3
    part = batch.rows(1, 3)
    assert (list(part.inputs), part.labels.tolist(), part.keys) == (
        list(inputs[1:]),
        [IGNORE, 1],
        ("y", "z"),
    )
