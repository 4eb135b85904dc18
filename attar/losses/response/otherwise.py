"""Losses that compare answers in classes of the teacher's own: tokens of another tokenizer."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .softening import Answers, Foreign, Logits, divergence, log_answers, rowwise, whole


@rowwise
def uld(student: Logits, teacher: Answers | Foreign, *, temperature: float = 1.0) -> Tensor:
    """T Σ |teacher - student| of the softened answers, each sorted by size: the shapes alone.

    The smaller vocabulary is filled up with zeros. It is the Wasserstein distance where all classes
    are equally far from one another, and knows no class from another: put it beside the loss
    `task`. Multiplied by T and not T², as `total_variation` is. Never above 2 T.

    Raises ValueError if the temperature is not positive.
    Source: Boizard et al., Towards Cross-Tokenizer Distillation: the Universal Logit Distillation
    Loss for LLMs, 2024 (equation 5), there at the n-th token of either; here where both have read
    the same bytes.
    """
    told = teacher.logits if isinstance(teacher, Foreign) else teacher
    answers = log_answers(student, temperature).exp().sort(-1, descending=True).values
    wanted = log_answers(whole(told), temperature).exp().sort(-1, descending=True).values
    longest = max(answers.shape[-1], wanted.shape[-1])
    answers, wanted = (pad(each, (0, longest - each.shape[-1])) for each in (answers, wanted))
    return temperature * (wanted - answers).abs().sum(-1).mean()


@rowwise
def mined(student: Logits, teacher: Answers | Foreign, *, temperature: float = 1.0) -> Tensor:
    """T² KL(teacher ‖ student), the teacher's answers moved to the student's nearest classes.

    What it gives to each of its tokens goes to the student's that is the same text, else to the one
    that begins alike and is nearest by edit distance; probabilities that meet are added. Of a
    teacher with the student's own classes it is `kl`.

    Of a teacher of whom few classes are kept it is the KL of what they estimate, as `kl` is.

    Raises ValueError if the temperature is not positive.
    Source: Wan et al., Knowledge Fusion of Large Language Models, ICLR 2024, section 3.2 (MinED).
    """
    log_student = log_answers(student, temperature)
    if not isinstance(teacher, Foreign):
        log_teacher = log_answers(whole(teacher), temperature)
        return temperature**2 * divergence(log_teacher, log_student).mean()
    wanted = _moved(teacher, log_student, temperature)
    gap: Tensor = (torch.special.xlogy(wanted, wanted) - wanted * log_student).sum(-1)
    return temperature**2 * gap.mean()


def _moved(teacher: Foreign, like: Tensor, temperature: float) -> Tensor:
    """The teacher's probabilities over the student's classes, as many as `like` has."""
    told, nearest, moved = teacher.logits, teacher.nearest().to(like.device), torch.zeros_like(like)
    if isinstance(told, Tensor) or temperature != 1:
        return moved.index_add_(-1, nearest, log_answers(whole(told), temperature).exp())
    ids, above, floor = told.estimate()
    evenly = torch.bincount(nearest, minlength=like.shape[-1]) * floor[:, None]
    return moved.scatter_add_(-1, nearest[ids], above) + evenly
