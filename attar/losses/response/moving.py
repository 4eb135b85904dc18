"""Losses whose target moves: the teacher softened alone, met half way, or at a learned heat."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .softening import Answers, Logits, divergence, log_answers, rowwise, soften, whole


@rowwise
def wttm(student: Logits, teacher: Answers, *, temperature: float = 4.0) -> Tensor:
    """Σ teacher^(1/T) · KL(softened teacher ‖ student): the teacher alone has a temperature.

    The sum over the classes weighs a row: it is the larger the less sure the teacher is. Not least
    where the student equals the teacher, but where it equals the softened one. No factor T².

    Raises ValueError if the temperature is not positive.
    Source: Zheng and Yang, Knowledge Distillation Based on Transformed Teacher Matching,
    ICLR 2024 (WTTM, there γ = 1/T).
    """
    powers = soften(log_answers(whole(teacher), 1), temperature)
    weight = powers.logsumexp(-1)
    apart = divergence(powers - weight[:, None], log_answers(student, 1))
    return (weight.exp() * apart).mean()


@rowwise
def taid(
    student: Logits,
    teacher: Answers,
    progress: float,
    *,
    start: float = 0.4,
    temperature: float = 1.0,
) -> Tensor:
    """T² KL(between ‖ student), between = softmax((1 - t) student + t teacher) of logits, detached.

    progress: share of the training that is done, in [0, 1]; t rises with it from `start` to 1,
    where this is `kl`. (The authors also let t run ahead while the loss falls fast.)

    Raises ValueError if `start` is not in [0, 1] or the temperature is not positive.
    Source: Shing et al., TAID, ICLR 2025 (interpolation of logits, t_start 0.4).
    """
    if not 0 <= start <= 1:
        raise ValueError(f"start is {start}, not in [0, 1]")
    way = start + (1 - start) * progress
    between = torch.lerp(student.detach().float(), whole(teacher).float(), way)
    log_student = log_answers(student, temperature)
    return temperature**2 * divergence(log_answers(between, temperature), log_student).mean()


class ctkd(nn.Module):  # noqa: N801 - named as the functions beside it are, for recipes
    """T² KL(teacher ‖ student) at a learned temperature, which is moved to make the task harder.

    T = lowest + span · sigmoid(a); `a` is one learned number that begins at 1 (T = 15.6). Its
    gradient is reversed and grows, as half a cosine wave, from nothing to its full size over the
    first `ramp` of the training (the authors: 10 of 240 epochs). This is the paper's global form.

    The authors train it by SGD at a rate of 0.05. AdamW takes the size out of a gradient and moves
    `a` by about the learning rate a step, which at 5e-4 is next to nothing: multiply its rate,
    `distill: {rates: {objective.losses.response/ctkd: 100}}`.

    Raises ValueError if the temperature could be zero or less.
    Source: Li et al., Curriculum Temperature for Knowledge Distillation, AAAI 2023.
    """

    def __init__(
        self,
        student: Logits,
        teacher: Logits,  # noqa: ARG002 - every loss with a state is built from both
        *,
        lowest: float = 1.0,
        span: float = 20.0,
        ramp: float = 0.04,
    ) -> None:
        """student: one real example; it says on which device to be."""
        super().__init__()
        if lowest <= 0 or span < 0:
            raise ValueError(f"lowest is {lowest} and span {span}: T must stay above 0")
        self.lowest, self.span, self.ramp = lowest, span, ramp
        self.heat = nn.Parameter(torch.ones((), device=student.device))

    def forward(self, student: Logits, teacher: Logits, progress: float) -> Tensor:
        """progress: share of the training that is done, in [0, 1]."""
        learned = self.lowest + self.span * self.heat.float().sigmoid()
        reversal = _half_wave(progress / self.ramp) if self.ramp else 1.0
        temperature = learned.detach() * (1 + reversal) - learned * reversal
        log_student = log_answers(student, temperature)
        log_teacher = log_answers(teacher.detach(), temperature)
        return temperature**2 * divergence(log_teacher, log_student).mean()


def _half_wave(share: float) -> float:
    """From 0 at 0 to 1 at 1 and after, slow at both ends."""
    return (1 - math.cos(math.pi * min(share, 1.0))) / 2
