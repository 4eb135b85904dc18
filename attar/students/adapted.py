"""The teacher with an adapter: few weights are learned, and all others are the teacher's own."""

from __future__ import annotations

import warnings
from collections import Counter
from copy import deepcopy
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from attar.errors import MissingExtra, ModelError
from attar.types import Count, Decay, Positive

NAME = "default"
"""What `peft` calls an adapter that nobody named."""


class Shared(nn.Parameter):
    """A weight that is never trained, of which a network and its copies have one together."""

    def __new__(cls, weight: Tensor) -> Shared:
        return super().__new__(cls, weight, requires_grad=False)  # type: ignore[no-any-return]

    def __deepcopy__(self, memo: Any) -> Shared:
        return self


@runtime_checkable
class Adapted(Protocol):
    """A layer beside which something is learned; switched off, it is the layer alone."""

    base_layer: nn.Module

    def get_delta_weight(self, adapter: str, /) -> Tensor: ...


def lora(
    teacher: nn.Module,
    *,
    rank: Count = 8,
    alpha: Positive = 16.0,
    dropout: Decay = 0.0,
    layers: list[str] | None = None,
) -> nn.Module:
    """The teacher with low-rank matrices beside its linear layers, which alone are trained.

    With the adapter switched off it is its own teacher: their weights are the same tensors, so that
    both together take the memory of one. After each training what was learned is added to the
    weights, and it is a plain network again.

    rank: of the matrices beside a layer
    alpha: what they are multiplied by, times the rank
    dropout: of what the matrices are shown
    layers: the last words of the layers' names (q_proj, v_proj); all but the head where left out
    Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022.
    Raises MissingExtra without `peft`, ModelError where the teacher has no such layers.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise MissingExtra("peft", "lora", "the lora student") from None
    one = {id(weight): Shared(weight.detach()) for weight in teacher.parameters()}
    student = deepcopy(teacher, one)
    wanted = layers or "all-linear"
    how = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=wanted)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tied weights, which are refused here
            network: nn.Module = inject_adapter_in_model(how, student, adapter_name=NAME)
    except ValueError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ModelError(f"{type(teacher).__name__} takes no adapter: {reason}.") from error
    _check_alone(network)
    return network


def _check_alone(network: nn.Module) -> None:
    """Raises ModelError where what an adapter is added to is another layer's weight as well."""
    owners = Counter(id(each) for m in network.modules() for each in m.parameters(recurse=False))
    for path, module in network.named_modules():
        if isinstance(module, Adapted) and owners[id(module.base_layer.weight)] > 1:
            raise ModelError(
                f"{path} has one weight with another layer (tied embeddings), which can't be "
                "adapted alone; leave it out of `layers`."
            )


def adapted(model: nn.Module) -> bool:
    """Whether a network has adapters, which are still to be added to its weights."""
    return any(isinstance(module, Adapted) for module in model.modules())


@torch.no_grad()
def merged(model: nn.Module) -> nn.Module:
    """A network with what its adapters learned added to its weights, which are its own again.

    One without adapters stays as it is.
    """
    if not adapted(model):
        return model
    shared = (weight for weight in model.parameters() if isinstance(weight, Shared))
    own = {id(weight): nn.Parameter(weight.detach().clone()) for weight in shared}
    whole = deepcopy(model, own)
    for path, module in list(whole.named_modules()):
        if isinstance(module, Adapted):
            weight: Tensor = module.base_layer.weight  # type: ignore[assignment]
            weight += module.get_delta_weight(NAME).to(weight)
            whole.set_submodule(path, module.base_layer)
    del vars(whole)["peft_config"]
    return whole
