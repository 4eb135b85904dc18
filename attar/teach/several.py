"""Schemes with more to choose from than one teacher's answer to everything."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.errors import LayerError, RecipeError
from attar.teach.asking import ask, mixable, only, told
from attar.types import IGNORE, Batch, Engine, Forward, Knowledge, Lesson

Load = Callable[[str], nn.Module]
How = Literal["average", "confidence", "entropy", "best"]

STEPS, SETTLED = 200, 1e-7
"""At most so many steps towards a mixture over unlike classes; they end where none is longer."""

FLAT = 1e-14
"""What two teachers that share less than this mass of a row's classes say can't be compared."""

NO_LAYERS = "uncertain can't compare layers; take losses over logits."

UNHEARD = math.log(1e-12)
"""The logarithm of what a class gets that none of a row's teachers knows: losses need a number."""


def ensemble(
    batches: Iterable[Batch],
    teachers: Sequence[nn.Module],
    forward: Forward,
    load: Load | None = None,
    engine: Engine | None = None,
    exclusive: bool = True,
    *,
    others: tuple[str, ...] = (),
    how: How = "average",
    weights: tuple[float, ...] = (),
) -> Iterator[Lesson]:
    """Several teachers at once: their probabilities, and the features of each layer, are mixed.

    At temperature 1 a divergence from the mixture has the gradient of the weighted divergences.
    Mixing features is for teachers that began from the same weights; their widths must agree.
    Teachers may know different classes (logits of -inf where one knows nothing). The mixture is
    then the q that minimises Σ w KL(p || q over the teacher's classes, renormalised); where every
    teacher knows every class that is the average.

    load: makes a model of what `others` names; engine: where they are put
    exclusive: whether answers are of classes, one of which is right
    others: teachers beside those given: folders or hub names; of `transformers` models the classes
        may be some of the task's (then take divergences, not `mse` of logits)
    how: what a teacher's share of a row's mixture is decided by: all alike; its cross-entropy with
        the true label (CA-MKD: the nearer, the more); its entropy (the surer, the more); or the
        one best teacher alone. Where a label is not known, entropy stands in for cross-entropy
    weights: fixed shares instead, one a teacher
    Source: Zhang et al., Confidence-Aware Multi-Teacher Knowledge Distillation, ICASSP 2022,
    equation 4; Kwon et al., Adaptive Knowledge Distillation based on Entropy, ICASSP 2020;
    Vongkulbhisal et al., Unifying Heterogeneous Classifiers with Distillation, CVPR 2019.
    Raises RecipeError where the weights are not one positive number a teacher, no teacher knows a
    class or answers are no classes, LayerError where the teachers' features differ in shape.
    """
    mixable(exclusive, "ensemble")
    if others and load is None:
        raise RecipeError("ensemble can't load its other teachers here; give them as models.")
    if not teachers and not others:
        raise RecipeError("ensemble asks at least one teacher.")
    if load is not None:
        loaded = [load(name) for name in others]
        teachers = [*teachers, *(engine.prepare(each) if engine else each for each in loaded)]
    if weights and (len(weights) != len(teachers) or min(weights) <= 0):
        raise RecipeError(
            f"ensemble has {len(teachers)} teachers and the weights {list(weights)}; give one "
            "number above 0 for each."
        )
    for batch in batches:
        said = [ask(teacher, batch, forward) for teacher in teachers]
        places = said[0].logits.shape[:-1]
        logs = torch.stack([told(each).flatten(0, -2) for each in said])
        shares = (
            (torch.tensor(weights) / sum(weights))[:, None].expand(logs.shape[:2])
            if weights
            else _shares(
                logs, batch.labels[tuple(map(slice, places))].flatten().to(logs.device), how
            )
        )
        shares = shares.to(logs.device)
        known = ~logs.isneginf()
        mixture = (logs + shares.log().unsqueeze(2)).logsumexp(0)
        if not known.all():
            mixture = _united(logs, shares, known).to(mixture)
        shares = shares.unflatten(1, places)
        features = {path: _mixed(path, said, shares) for path in said[0].features}
        yield Lesson(batch, Knowledge(mixture.unflatten(0, places), features, said[0].mask))


def _united(logs: Tensor, shares: Tensor, known: Tensor) -> Tensor:
    """One log-distribution (rows, classes) over the classes of all teachers.

    It minimises Σ_i w_i KL(p_i || q over the classes L_i, renormalised). At its minimum
    q_c = Σ_i w_i p_i(c) / Σ_{i knows c} u_i with u_i = w_i / q(L_i): as few unknowns as teachers,
    found by Newton's steps in log u, none longer than 1, which keeps them from overshooting.
    Teachers that share no class keep the masses of a uniform q.

    logs: log p, (teachers, rows, classes); shares: w, (teachers, rows); known: as logs, which
    teacher knows which class
    Source: the objective is the cross-entropy one of Vongkulbhisal et al., Unifying Heterogeneous
    Classifiers with Distillation, CVPR 2019; for the length of the steps see Bach, Self-concordant
    analysis for logistic regression, Electronic Journal of Statistics 2010.
    """
    if not bool(known.any(0).all()):
        number = int((~known.any(0)).any(0).nonzero()[0])
        raise RecipeError(f"No teacher of the ensemble knows class {number} of {known.shape[2]}.")
    # Two sure teachers may meet in a class of little mass, which single precision loses.
    logs, shares = logs.cpu().double().log_softmax(2), shares.cpu().double()
    shares, known = shares / shares.sum(0), known.cpu()
    nothing = logs.new_tensor(-math.inf)
    heard = known & (shares > 0).unsqueeze(2)
    said = (logs + shares.log().unsqueeze(2)).logsumexp(0)
    rates = torch.where(shares > 0, shares / known.sum(2), 1.0).log()
    for _ in range(STEPS):
        parts = torch.where(heard, rates.unsqueeze(2), nothing).softmax(0).nan_to_num(0)
        flow = parts * said.exp()
        curve = torch.diag_embed(flow.sum(2).T) - torch.einsum("irc,jrc->rij", flow, parts)
        slope = (flow.sum(2) - shares).T.unsqueeze(2)
        inverse = torch.linalg.pinv(curve, atol=FLAT, rtol=0.0, hermitian=True)
        step = (inverse @ slope).squeeze(2).T
        length = step.amax(0) - step.amin(0)
        rates = rates - step / length.clamp(min=1)
        if float(length.max()) < SETTLED:
            break
    wanted = torch.where(heard, rates.unsqueeze(2), nothing).logsumexp(0)
    united = torch.where(said.isneginf(), nothing, said - wanted).log_softmax(1)
    return united.clamp(min=UNHEARD)


def _mixed(path: str, said: Sequence[Knowledge], shares: Tensor) -> Tensor:
    """The teachers' features of one layer, each row or token by the teachers' shares of it."""
    features = [knowledge.features[path] for knowledge in said]
    if len({feature.shape for feature in features}) > 1:
        shapes = " and ".join(str(tuple(feature.shape)) for feature in features)
        raise LayerError(
            f"ensemble mixes the features of {path}, and the teachers' have the shapes {shapes}; "
            "take losses over logits, or teachers of one shape."
        )
    stacked = torch.stack(features)
    if stacked.shape[: shares.dim()] != shares.shape:  # tokens pooled or compared
        shares = shares.mean(2)
    return (stacked * shares.view(*shares.shape, *[1] * (stacked.dim() - shares.dim()))).sum(0)


def _shares(logs: Tensor, labels: Tensor, how: How) -> Tensor:
    """(teachers, rows): how much each has to say of a row; a row's shares sum to one."""
    if how == "average" or len(logs) == 1:
        return torch.full(logs.shape[:2], 1 / len(logs), device=logs.device)
    entropy = _entropy(logs)
    wrong = F.nll_loss(logs.flatten(0, 1), labels.repeat(len(logs)).clamp(min=0), reduction="none")
    wrong = torch.where(labels == IGNORE, entropy, wrong.view_as(entropy))
    if how == "entropy":
        return entropy.neg().softmax(0)
    if how == "best":
        return F.one_hot(wrong.argmin(0), len(logs)).T.float()
    # Who does not even know the true class has nothing to say of the row.
    mute = wrong.isinf()
    others = (~mute).sum(0) - 1
    spread = (1 - wrong.masked_fill(mute, -math.inf).softmax(0)) / others.clamp(min=1)
    return torch.where(others > 0, spread, torch.ones_like(spread)).masked_fill(mute, 0)


def _entropy(logs: Tensor) -> Tensor:
    """(teachers, rows); of a teacher of few classes as if it knew all: few are soon agreed upon."""
    entropy: Tensor = torch.special.entr(logs.exp()).sum(2)
    known, most = (~logs.isneginf()).sum(2), math.log(logs.shape[2])
    # Who knows a single class has told nothing by naming it.
    return torch.where(known > 1, entropy * most / known.clamp(min=2).log(), most)


def uncertain(
    batches: Iterable[Batch],
    teachers: Sequence[nn.Module],
    student: nn.Module,
    forward: Forward,
    exclusive: bool = True,
    *,
    share: float = 0.25,
) -> Iterator[Lesson]:
    """The teacher is asked about what the student is least sure of, and about nothing else.

    For teachers whose answers cost money or time. Of the other rows the student's own answer is the
    lesson, from which it has nothing to learn but to stay as it is.

    share: of the rows of a batch that are asked about, rounded up
    Source: Li et al., Dynamic Knowledge Distillation for Pre-trained Language Models, EMNLP 2021
    (section 4: entropy of the student's answer; a tenth of the rows did as well as all).
    Raises RecipeError for several teachers, and where layers are compared: the student has none of
    the teacher's.
    """
    mixable(exclusive, "uncertain")
    teacher = only(teachers, "uncertain")
    if not 0 < share <= 1:
        raise RecipeError(
            f"The share that uncertain asks about is above 0 and at most 1, not {share}."
        )
    for batch in batches:
        if batch.by_token:
            raise RecipeError("uncertain asks about rows that have one answer, and not about text.")
        try:
            logits = ask(student, batch, forward).logits.float()
        except LayerError:  # it has been asked for the teacher's layers
            raise RecipeError(NO_LAYERS) from None
        logs = logits.log_softmax(1)
        doubt = -(logs.exp() * logs).sum(1)
        rows = doubt.topk(math.ceil(share * len(batch))).indices.tolist()
        answer = ask(teacher, batch.some(rows), forward)
        if answer.features:
            raise RecipeError(NO_LAYERS)
        logits[rows] = answer.logits.float().to(logits.device)
        yield Lesson(batch, Knowledge(logits))
