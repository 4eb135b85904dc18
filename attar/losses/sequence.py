"""Losses over what models wrote, in which each token has a weight that its scheme worked out.

Each takes logits (tokens, vocabulary) of any float type, works in float32, returns the mean over
tokens as a float32 scalar, and sends no gradient to the teacher.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .response.softening import (
    UNKNOWN,
    Answers,
    Logits,
    divergence,
    log_answers,
    rowwise,
    whole,
)


@rowwise
def minillm(student: Logits, teacher: Answers, labels: Tensor, worth: Tensor) -> Tensor:
    """KL(student ‖ teacher) at each token, and -worth log student of the token that was drawn.

    The first is the token's own share of the reverse KL of whole texts, summed over the vocabulary;
    the second, a policy gradient, what comes of the token later. Only its gradient has a meaning,
    not its value.

    labels: (tokens,) what was drawn; worth: (tokens,), as `teach: minillm` gives it

    Source: Gu et al., MiniLLM, ICLR 2024, section 2.2: both parts of the split gradient.
    """
    log_student = log_answers(student, 1.0)
    apart = divergence(log_student, log_answers(whole(teacher), 1.0))
    drawn = log_student.gather(-1, labels.clamp_min(0)[:, None])[:, 0]
    return (apart - (worth * drawn).masked_fill(labels == UNKNOWN, 0.0)).mean()


@rowwise
def distillm2(
    student: Logits, teacher: Answers, own: Tensor, skew: Tensor, *, balance: float = 0.5
) -> Tensor:
    """Skew KL where the teacher wrote, skew reverse KL where the student did: 2 (1 - β) and 2 β.

    Of a token that the teacher wrote KL(p ‖ α p + (1 - α) q), of the student's own KL(q ‖ α q +
    (1 - α) p): p the teacher's answers, q the student's.

    own: (tokens,) 1 where the student wrote; skew: (tokens,) α; as `teach: distillm2` gives them
    balance: β, the share of what the student wrote; a schedule from 0.5 up makes it count more late

    Raises ValueError where the balance is not from 0 to 1.
    Source: Ko et al., DistiLLM-2, ICML 2025 (there the mean over texts, not tokens).
    """
    if not 0 <= balance <= 1:
        raise ValueError(f"balance is {balance}, not from 0 to 1: it is a share")
    log_q, log_p = log_answers(student, 1.0), log_answers(whole(teacher), 1.0)
    mine = own[:, None] > 0
    one, other = torch.where(mine, log_q, log_p), torch.where(mine, log_p, log_q)
    share = skew[:, None].float()
    middle = torch.logaddexp(one + share.log(), other + torch.log1p(-share))
    weight = 2 * torch.where(own > 0, balance, 1 - balance)
    return (weight * divergence(one, middle)).mean()
