"""Losses that make a feature anew: out of what is left of it, or out of its paraphrase."""

from __future__ import annotations

from itertools import pairwise
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Convolution, projection, seeded
from .places import FLAT, Places, clean, real

Features: TypeAlias = Tensor  # (rows, length, width) or pooled (rows, width)

SLOPE = 0.1  # of the leaky ReLU in the authors' code of ft


class mgd(nn.Module):  # noqa: N801
    """Mean squared difference of the teacher's feature and one made of part of the student's.

    The student's feature is brought to the teacher's width (linear, where they differ), a share of
    its places is hidden, and two convolutions over three places with a ReLU between them make
    the whole again. Each real token is hidden with probability `ratio`, drawn anew each time from
    torch's global generator, as in the paper (the authors' code for classifiers hides whole
    channels instead); of pooled features, which are one place, single numbers are hidden, and
    the convolutions are linear maps. The mean is over real tokens and width; the paper sums
    over a row, with weights of 7e-5 (classification) and 2e-5 (detection, segmentation).

    ratio: the share that is hidden; the authors' 0.15 (of channels) for classifiers, 0.45 to 0.75
        for detection and segmentation
    places: `line` for tokens and time, `square` for a convolution's square maps (3 x 3 windows)
    Raises ValueError if the ratio is not at least 0 and below 1, or a square map is not square.
    Source: Yang et al., Masked Generative Distillation, ECCV 2022 (L_dis).
    """

    def __init__(
        self, student: Features, teacher: Features, *, ratio: float = 0.15, places: Places = "line"
    ) -> None:
        super().__init__()
        if not 0 <= ratio < 1:
            raise ValueError(f"ratio is {ratio}, not at least 0 and below 1")
        self.ratio = ratio
        generator, width = seeded(), teacher.shape[-1]
        self.project = projection(student.shape[-1], width, generator)
        self.first = Convolution(width, width, places, generator)
        self.second = Convolution(width, width, places, generator)

    def forward(self, student: Features, teacher: Features, mask: Tensor | None = None) -> Tensor:
        ours, theirs, kept = _places(student, teacher.detach(), mask)
        with torch.autocast(student.device.type, enabled=False):
            seen = self.project(ours)
            part = self.first(seen, self._unhidden(seen, kept, pooled=student.ndim == 2))
            made = self.second(part.relu(), kept[:, :, None])
        error: Tensor = (made - theirs)[kept].square().mean()
        return error

    def _unhidden(self, seen: Tensor, kept: Tensor, *, pooled: bool) -> Tensor:
        if pooled:
            return torch.rand_like(seen) >= self.ratio
        # One number for each real token: more padding must not change what the others draw.
        drawn = torch.rand(int(kept.sum()), device=seen.device)
        return kept.masked_scatter(kept, drawn >= self.ratio)[:, :, None]


class ft(nn.Module):  # noqa: N801
    """Σ |paraphrase / ‖paraphrase‖ - factor / ‖factor‖| of a row, mean over rows, + reconstruction.

    The paraphraser, three convolutions over three places, makes a narrower paraphrase of the
    teacher's feature, out of which three others have to make the feature again; the translator,
    built like it, makes the student's factor. Norms and sum are over a row's real places and width
    (the authors' code takes the mean there, so its weights are as many times larger).

    The paper trains the paraphraser before the student is begun. Here both are trained at once, and
    soundly so: the paraphrase is detached in the first term, so the paraphraser learns from its
    reconstruction alone and can't make its task easy for the student; the student sees a target
    that still moves for some steps. The reconstruction's squared error is measured in the teacher's
    mean square, and no gradient of it reaches the student.

    rate: width of the factor in the teacher's widths (the paper's k)
    places: `line` for tokens and time, `square` for a convolution's square maps (3 x 3 windows)
    Raises ValueError if the rate is not positive, or a square map is not square.
    Source: Kim et al., Paraphrasing Complex Network: Network Compression via Factor Transfer,
    NeurIPS 2018 (L_rec and L_FT, p = 1).
    Published below plain KD (ResNet-56 -> 20: 69.84 against 70.66, Tian et al. 2020).
    """

    def __init__(
        self, student: Features, teacher: Features, *, rate: float = 0.5, places: Places = "line"
    ) -> None:
        super().__init__()
        if not rate > 0:
            raise ValueError(f"rate is {rate}, not above 0")
        generator, ours, theirs = seeded(), student.shape[-1], teacher.shape[-1]
        factor = max(1, round(rate * theirs))
        self.translator, self.paraphraser, self.reader = (
            nn.ModuleList(
                Convolution(width, target, places, generator) for width, target in pairwise(widths)
            )
            for widths in (
                (ours, ours, factor, factor),
                (theirs, theirs, factor, factor),
                (factor, factor, theirs, theirs),
            )
        )

    def forward(self, student: Features, teacher: Features, mask: Tensor | None = None) -> Tensor:
        ours, theirs, kept = _places(student, teacher.detach(), mask)
        with torch.autocast(student.device.type, enabled=False):
            factor = _through(self.translator, ours, kept)
            paraphrase = _through(self.paraphraser, theirs, kept)
            *inner, last = self.reader
            made = last(_through(inner, paraphrase, kept), kept[:, :, None])
        transfer = _unit(factor, kept) - _unit(paraphrase.detach(), kept)
        error: Tensor = (made - theirs)[kept].square().mean()
        return transfer.abs().sum(-1).mean() + error / (theirs[kept].square().mean() + FLAT**2)


def _places(student: Tensor, teacher: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Both as (rows, length, width) without padding, and which places are kept; pooled is one."""
    if student.ndim == 2:
        student, teacher, mask = student[:, None], teacher[:, None], None
    kept = real(student, mask)
    return clean(student, kept), clean(teacher, kept), kept


def _through(convolutions: nn.ModuleList | list[nn.Module], maps: Tensor, kept: Tensor) -> Tensor:
    for convolution in convolutions:
        maps = F.leaky_relu(convolution(maps, kept[:, :, None]), SLOPE)
    return maps


def _unit(maps: Tensor, kept: Tensor) -> Tensor:
    return F.normalize(clean(maps, kept).flatten(1), dim=1, eps=FLAT)
