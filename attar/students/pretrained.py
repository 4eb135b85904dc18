"""A small model that somebody else has pretrained."""

from __future__ import annotations

from typing import Protocol

from torch import nn


class _Load(Protocol):
    def __call__(self, name: str, *, new_head: bool) -> nn.Module: ...


def pretrained(load: _Load, *, model: str) -> nn.Module:
    """A pretrained network with a new head for this task's classes.

    load: what makes a model of a name
    model: folder, hub name or `package:NAME`
    """
    return load(model, new_head=True)
