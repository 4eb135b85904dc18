"""What compressors promise of every make of model: it answers, costs no more, saves, loads."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import nn
from zoo import MODELS, Mlp, answer, example, given

from attar import measure
from attar.errors import AttarError, ModelError
from attar.resolve import Function, ask, names, options

COMPRESSORS = names("attar.compress")

NEEDED: dict[str, dict[str, Any]] = {
    "factorize.svd": {"ratio": 0.5},
    "prune.magnitude": {"ratio": 0.5},
    "prune.wanda": {"ratio": 0.5},
    "prune.structured": {"ratio": 0.5, "round_to": 2},
}
"""The options that a compressor can't do without."""

ALSO: dict[str, tuple[str, dict[str, Any]]] = {
    "quantize.mixed, static": (
        "quantize.mixed",
        {"candidates": ("int8_static", "int4_static"), "batches": 1},
    ),
}
"""Compressors that have another way to go, and the options that ask for it."""

FLAT = ("mlp", "cnn", "text_cnn", "lstm")
"""Models that are no stack of like layers."""

CANNOT: dict[tuple[str, str], str] = {
    **{("prune.layers", name): "has no stack of like layers left to prune" for name in FLAT},
    **{("prune.vocabulary", name): "has no tokenizer with it" for name in MODELS},
    **{("tree.viper", name): "has no environment to act in" for name in MODELS},
    **{("quantize.smooth", name): "no norm or linear layer that directly feeds" for name in FLAT},
    ("prune.structured", "lstm"): "^Lstm has no channels that can be pruned: recurrent",
}
"""What a compressor can't do to a model, and what it says of it."""

DEARER: dict[str, str] = {
    "quantize.smooth": "where a residual takes the norm's output too (BERT), scales of their own",
    "quantize.qat": "it trains a float weight and the steps; int8_static makes integers of it",
}
"""Compressors whose outcome costs more until it is exported, and why."""

EVERY = [(name, make) for name in sorted([*COMPRESSORS, *ALSO]) for make in MODELS]
ABLE = [each for each in EVERY if each not in CANNOT]

Compress = Callable[[nn.Module], nn.Module]


def bound(name: str) -> Compress:
    """A compressor with the options that it needs, given all that it may ask for."""
    name, said = ALSO.get(name, (name, NEEDED.get(name, {})))
    return partial(_compressed, COMPRESSORS[name], said)


def _compressed(function: Function, said: dict[str, Any], model: nn.Module) -> nn.Module:
    small = ask(partial(function, **said), given(model))
    assert isinstance(small, nn.Module)
    return small


def made(make: str) -> nn.Module:
    return MODELS[make]().eval()


def test_the_room_has_the_compressors_that_recipes_name() -> None:
    assert set(COMPRESSORS) == {
        "factorize.svd",
        "prune.layers",
        "prune.magnitude",
        "prune.structured",
        "prune.vocabulary",
        "prune.wanda",
        "quantize.bf16",
        "quantize.fp16",
        "quantize.int4_weight",
        "quantize.int8_dynamic",
        "quantize.mixed",
        "quantize.smooth",
        "quantize.int8_static",
        "quantize.qat",
        "tree.viper",
    }


@pytest.mark.parametrize(("name", "make"), ABLE)
def test_a_compressed_model_answers_in_the_same_shape(name: str, make: str) -> None:
    answered = answer(bound(name)(made(make)), example(made(make)))
    assert answered.shape == (2, 3)
    assert answered.isfinite().all()


@pytest.mark.parametrize(("name", "make"), ABLE)
def test_compressing_never_raises_the_cost(name: str, make: str) -> None:
    model = made(make)
    small = bound(name)(model)
    if name not in DEARER:
        assert measure.parameters(small) <= measure.parameters(model)
        assert measure.size(small) <= measure.size(model)
    inputs = example(model)
    assert measure.macs(small, lambda _: inputs) <= measure.macs(model, lambda _: inputs)


@pytest.mark.parametrize(("name", "make"), ABLE)
def test_compressing_leaves_the_original_as_it_was(name: str, make: str) -> None:
    model = made(make).train()
    before = deepcopy(model.state_dict())
    kinds = [type(module) for module in model.modules()]
    small = bound(name)(model)
    for weight in small.parameters():
        weight.data.fill_(7.0)
    assert model.training
    assert [type(module) for module in model.modules()] == kinds
    assert all(torch.equal(before[key], now) for key, now in model.state_dict().items())
    assert all(each.grad is None for each in model.parameters())


@pytest.mark.parametrize(("name", "make"), ABLE)
def test_a_compressed_model_can_be_copied(name: str, make: str) -> None:
    inputs = example(made(make))
    small = bound(name)(made(make)).eval()
    assert torch.equal(answer(deepcopy(small), inputs), answer(small, inputs))


@pytest.mark.parametrize(("name", "make"), ABLE)
def test_a_compressed_model_saves_and_loads_through_safetensors(
    name: str, make: str, tmp_path: Path
) -> None:
    small = bound(name)(made(make)).eval()
    inputs = example(made(make))
    save_model(small, str(tmp_path / "small.safetensors"))
    other = deepcopy(small)
    _spoil_(other)
    assert not torch.equal(answer(other, inputs), answer(small, inputs))
    load_model(other, str(tmp_path / "small.safetensors"))
    assert torch.equal(answer(other, inputs), answer(small, inputs))


@torch.no_grad()
def _spoil_(model: nn.Module) -> None:
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.1, 1.0)


@pytest.mark.parametrize(("name", "make"), sorted(CANNOT))
def test_what_cannot_be_compressed_so_is_refused_in_a_sentence(name: str, make: str) -> None:
    with pytest.raises(ModelError, match=CANNOT[name, make]):
        bound(name)(made(make))


EXCLUDING = [name for name in COMPRESSORS if "exclude" in options(COMPRESSORS[name])]


@pytest.mark.parametrize("name", EXCLUDING)
def test_a_wrong_path_to_exclude_is_answered_with_the_nearest(name: str) -> None:
    with pytest.raises(ModelError, match=r"exclude names 'hiden'.*did you mean 'hidden'\?"):
        _compressed(COMPRESSORS[name], NEEDED.get(name, {}) | {"exclude": ["hiden"]}, Mlp())


@pytest.mark.parametrize("name", sorted(COMPRESSORS))
def test_a_model_without_a_fitting_layer_is_refused_in_a_sentence(name: str) -> None:
    with pytest.raises(AttarError, match=r"^Sequential has no .*\.$"):
        bound(name)(nn.Sequential(nn.ReLU(), nn.LayerNorm(4)))


@pytest.mark.parametrize("name", EXCLUDING)
def test_nothing_left_to_compress_is_refused_in_a_sentence(name: str) -> None:
    everything = NEEDED.get(name, {}) | {"exclude": ["embedding", "hidden", "head"]}
    with pytest.raises(ModelError, match=r"^Mlp has no .* layer left to \w+\.$"):
        _compressed(COMPRESSORS[name], everything, Mlp())
