"""Losses that compare logits: what the student answers with what the teacher answers.

Each takes logits of any float type, works in float32, returns the mean over rows as a float32
scalar, and sends no gradient to the teacher. Losses with a `temperature` T are multiplied by T²,
so that their gradients keep their size when T changes (Hinton et al. 2015, section 2), unless they
say otherwise.
"""

from .batchwise import dist, mlkd
from .decoupled import dkd, nkd
from .divergences import (
    adaptive_kl,
    alpha_beta,
    binary,
    jeffreys,
    jsd,
    kl,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    soft_cross_entropy,
    total_variation,
)
from .moving import ctkd, taid, wttm
from .otherwise import mined, uld
from .plain import cosine, mse
from .supervised import regression, weighted, wsl

__all__ = [
    "adaptive_kl",
    "alpha_beta",
    "binary",
    "cosine",
    "ctkd",
    "dist",
    "dkd",
    "jeffreys",
    "jsd",
    "kl",
    "mined",
    "mlkd",
    "mse",
    "nkd",
    "regression",
    "reverse_kl",
    "skew_kl",
    "skew_reverse_kl",
    "soft_cross_entropy",
    "taid",
    "total_variation",
    "uld",
    "weighted",
    "wsl",
    "wttm",
]
