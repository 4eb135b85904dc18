"""What networks for pictures have in common: how their weights begin."""

from __future__ import annotations

from torch import nn

PARTS = 6
"""Layers that one block more in each of the three stages of a residual network adds."""


def started_(model: nn.Module) -> None:
    """Weights drawn so that signals keep their strength through rectified layers.

    Source: He et al., "Delving Deep into Rectifiers" (2015), equation 10.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            nn.init.zeros_(module.bias)
