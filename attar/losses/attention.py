"""Losses that compare attention: who looks at whom, in the student and in the teacher.

Each takes tensors of any float type, works in float32, returns a float32 scalar, and sends no
gradient to the teacher. The mean is over heads and over the real positions of the batch: `mask`
is (rows, length) of 1 for real and 0 for padding, None where nothing is padded.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Attentions: TypeAlias = Tensor  # (rows, heads, length, length)
Projections: TypeAlias = Tensor  # (rows, length, width): what a query, key or value gives
Maps: TypeAlias = Tensor  # (rows, length, width): places and channels; the widths may differ

MASKED = -100.0
# The least probability with a logarithm of its own; fp16 can't hold the gradient of less than tiny.
TINY = 1e-12
# Activations below this are rounding, not attention; dividing by less would send back gradients
# that no half-precision float can hold.
FLAT = 1e-3


def mse(student: Attentions, teacher: Attentions, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference of the attentions, over heads and pairs of real positions.

    The paper compares scores before the softmax; here whatever the layer gives is compared, and
    values of -100 or less, a score's way to say masked, count as zero, so scores work too. If the
    numbers of heads differ, the means over heads are compared.

    Source: Jiao et al., TinyBERT, 2020, equation 7, with the -100 of the authors' code.
    """
    student, teacher = _same_heads(_unmasked(student), _unmasked(teacher.detach()))
    real = _real(mask, student)
    pairs = real[:, :, None] & real[:, None, :]
    ours, theirs = student.permute(0, 2, 3, 1)[pairs], teacher.permute(0, 2, 3, 1)[pairs]
    return (ours - theirs).square().mean()


def kl(student: Attentions, teacher: Attentions, mask: Tensor | None = None) -> Tensor:
    """KL(teacher ‖ student) of where each real position looks, over heads and positions.

    Takes attention probabilities: over the last axis they sum to one, without dropout. If the
    numbers of heads differ, the means over heads are compared.

    Source: Wang et al., MiniLM, NeurIPS 2020 (L_AT).
    """
    floor = max(torch.finfo(student.dtype).tiny, TINY)
    student, teacher = _same_heads(student.float(), teacher.detach().float())
    real = _real(mask, student)
    padding = ~real[:, None, None, :]
    ours = _queries(student.masked_fill(padding, 0), real)
    theirs = _queries(teacher.masked_fill(padding, 0), real)
    gap = theirs.clamp_min(floor).log() - ours.clamp_min(floor).log()
    return (theirs * gap).sum(-1).mean()


def maps(student: Maps, teacher: Maps, mask: Tensor | None = None, *, power: float = 2.0) -> Tensor:
    """Mean squared difference of where the layers are active, over the real places.

    The attention of a place is A = Σ |activation|^power over its channels, and the A of an example
    are divided by their Euclidean length; so widths and scales may differ, the places may not.

    power: the higher, the more the strongest channels count

    The authors' weight is 1000. Published below plain KD on six of seven pairs (ResNet-56 -> 20:
    70.55 against 70.66, Tian et al. 2020), and across families below the student that learns alone
    (VGG-13 -> MobileNetV2: 59.40 against 64.60).
    Raises ValueError if the power is below 1, which has no gradient where a channel is silent.
    Source: Zagoruyko and Komodakis, Paying More Attention to Attention, ICLR 2017, equation 2
    with F_sum^p, and the mean over places of the authors' code.
    """
    if power < 1:
        raise ValueError(f"power is {power}, not 1 or more")
    real = _real(mask, student)
    gap = _activity(student, real, power) - _activity(teacher.detach(), real, power)
    return gap[real].square().mean()


def minilm(
    student: Projections, teacher: Projections, mask: Tensor | None = None, *, heads: int = 12
) -> Tensor:
    """KL(teacher ‖ student) of how the real positions' values relate to one another, over heads.

    A head relates positions by softmax(V Vᵀ / √width of the head), V what the value projection
    gives. `heads` are the attention heads of both models, which the paper wants equal in number.
    Its loss is this of the last layer's values, plus `kl` of the last layer's attentions: two
    terms of one weight. Over queries and keys as well it is `minilm_v2`.

    Raises ValueError if `heads` does not divide both widths.
    Source: Wang et al., MiniLM, NeurIPS 2020 (L_VR).
    """
    return minilm_v2(student, teacher, mask, heads=heads)


def minilm_v2(
    student: Projections, teacher: Projections, mask: Tensor | None = None, *, heads: int = 12
) -> Tensor:
    """KL(teacher ‖ student) of how the real positions relate to one another, over relation heads.

    A projection is split into `heads` relation heads, as many for both whatever their own widths
    and heads; a head A relates positions by softmax(A Aᵀ / √width of the head). The paper sums it
    over the queries, keys and values of one layer: three terms.

    Raises ValueError if `heads` does not divide both widths.
    Source: Wang et al., MiniLMv2, Findings of ACL 2021
    (multi-head self-attention relations).
    """
    widths = student.shape[-1], teacher.shape[-1]
    if heads < 1 or any(width % heads for width in widths):
        fitting = [n for n in range(1, max(heads, 1) + 1) if math.gcd(*widths) % n == 0]
        raise ValueError(
            f"{heads} relation heads do not divide the widths of student and teacher, "
            f"{widths[0]} and {widths[1]}: choose heads that divide both, "
            f"{', '.join(map(str, fitting[:-1]))}{' or ' * (len(fitting) > 1)}{fitting[-1]}"
        )
    real = _real(mask, student)
    ours = _queries(_log_relations(student, real, heads), real)
    theirs = _queries(_log_relations(teacher.detach(), real, heads), real)
    return (theirs.exp() * (theirs - ours)).sum(-1).mean()


def _log_relations(projections: Tensor, real: Tensor, heads: int) -> Tensor:
    """(rows, heads, length, length) log probabilities; a key that is padding has none."""
    clean = projections.masked_fill(~real[:, :, None], 0).float()
    split = clean.unflatten(-1, (heads, -1)).transpose(1, 2)
    # Autocast would multiply in half precision, where the squares of large projections overflow.
    with torch.autocast(projections.device.type, enabled=False):
        scores: Tensor = split @ split.mT / math.sqrt(split.shape[-1])
    least = torch.finfo(scores.dtype).min
    return scores.masked_fill(~real[:, None, None, :], least).log_softmax(-1)


def _activity(activations: Tensor, real: Tensor, power: float) -> Tensor:
    """(rows, length): how active each place is, as one unit vector an example."""
    clean = activations.masked_fill(~real[:, :, None], 0).float()
    # A power of what is at most one can't overflow; the scale is divided out below.
    size = clean.detach().abs().amax((1, 2), keepdim=True).clamp_min(FLAT)
    return F.normalize((clean / size).abs().pow(power).sum(-1), dim=-1, eps=FLAT)


def _unmasked(attentions: Tensor) -> Tensor:
    return attentions.float().masked_fill(attentions <= MASKED, 0)


def _same_heads(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if student.shape[1] == teacher.shape[1]:
        return student, teacher
    return student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)


def _real(mask: Tensor | None, like: Tensor) -> Tensor:
    """(rows, length), True for what is not padding."""
    if mask is not None:
        return mask.bool()
    return torch.ones(len(like), like.shape[-2], dtype=torch.bool, device=like.device)


def _queries(attentions: Tensor, real: Tensor) -> Tensor:
    """(queries, heads, length) of the real queries; the others are gone before any arithmetic."""
    return attentions.transpose(1, 2)[real]
