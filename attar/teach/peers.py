"""Schemes in which several students learn from one another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from attar.errors import RecipeError
from attar.teach.asking import ask
from attar.types import Batch, Engine, Forward, Knowledge, Lesson

Judge = Callable[[Knowledge, Lesson], Tensor]
"""What a network's answers to a lesson cost: the objective that the student has too."""


def mutual(
    batches: Iterable[Batch],
    student: nn.Module,
    forward: Forward,
    engine: Engine,
    make: Callable[[int], nn.Module],
    judge: Judge,
    steps: int,
    *,
    peers: int = 1,
    lr: float = 5e-4,
    weight_decay: float = 0.01,
) -> Iterator[Lesson]:
    """Peers that know nothing more than the student: each learns from the mean of the others.

    All answer a batch before any of them takes its step. Practitioners report that it is less
    stable than learning from a teacher; the mean of several peers is steadier than one.

    make: builds the n-th peer, from 1 on; peers that begin alike teach each other little
    judge: what answers to a lesson cost
    steps: how many there will be, over which the peers' learning rate falls to zero
    peers: how many learn beside the student
    lr: the peers' highest learning rate
    weight_decay: of the peers' weights
    Source: Zhang et al., Deep Mutual Learning, CVPR 2018; the mean over peers is its DML_e.
    """
    if peers < 1:
        raise RecipeError(f"mutual needs at least 1 peer, not {peers}.")
    with torch.random.fork_rng():  # building peers, also again on resuming, must not move dropout
        others = [engine.prepare(make(number + 1)) for number in range(peers)]
    optimizers = [
        torch.optim.AdamW(peer.parameters(), lr=lr, weight_decay=weight_decay) for peer in others
    ]
    falls = [
        torch.optim.lr_scheduler.LinearLR(moved, 1.0, 0.0, total_iters=steps)
        for moved in optimizers
    ]
    for number, peer in enumerate(others):
        engine.track(f"peer {number + 1}", peer)
        engine.track(f"optimizer of peer {number + 1}", optimizers[number])
        engine.track(f"rate of peer {number + 1}", falls[number])
    for batch in batches:
        said = [ask(network, batch, forward) for network in (student, *others)]
        yield Lesson(batch, mean([knowledge.logits for knowledge in said[1:]]))
        for number, (peer, moved, fall) in enumerate(
            zip(others, optimizers, falls, strict=True), 1
        ):
            rest = [knowledge.logits for n, knowledge in enumerate(said) if n != number]
            _learn_(peer, Lesson(batch, mean(rest)), forward, judge, engine, moved)
            fall.step()


def mean(answers: Sequence[Tensor]) -> Knowledge:
    """The mean of several answers' probabilities, as logits (rows, classes)."""
    logs = torch.stack([logits.float().log_softmax(1) for logits in answers])
    return Knowledge(logs.logsumexp(0) - torch.tensor(float(len(answers))).log())


def _learn_(
    peer: nn.Module,
    lesson: Lesson,
    forward: Forward,
    judge: Judge,
    engine: Engine,
    optimizer: torch.optim.Optimizer,
) -> None:
    peer.train()
    with torch.enable_grad():
        engine.backward(judge(forward(peer, lesson.batch), lesson))
    engine.step(optimizer, list(peer.parameters()), 1.0)
