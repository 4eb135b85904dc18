"""Schemes in which several students learn from one another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from attar.errors import RecipeError
from attar.teach.asking import ask, mixable, told
from attar.types import Batch, Engine, Forward, Knowledge, Lesson, Stateful

Judge = Callable[[Knowledge, Knowledge], nn.Module]
"""Builds what a peer minimises, from one answer of each side: a module that is called with
(knowledge, lesson, progress), as the student's own objective is, and gives the loss first."""


def mutual(
    batches: Iterable[Batch],
    student: nn.Module,
    forward: Forward,
    engine: Engine,
    make: Callable[[int], nn.Module],
    judge: Judge,
    steps: int,
    exclusive: bool = True,
    *,
    peers: int = 1,
    lr: float = 5e-4,
    weight_decay: float = 0.01,
) -> Iterator[Lesson]:
    """Peers that know nothing more than the student: each learns from the mean of the others.

    All answer a batch before any of them takes its step. Practitioners report that it is less
    stable than learning from a teacher; the mean of several peers is steadier than one.

    make: builds the n-th peer, from 1 on; peers that begin alike teach each other little
    judge: builds what each peer minimises; whatever it learns is learned with the peer
    steps: how many there will be, over which the peers' learning rate falls to zero
    peers: how many learn beside the student
    lr: the peers' highest learning rate
    weight_decay: of the peers' weights
    Source: Zhang et al., Deep Mutual Learning, CVPR 2018; the mean over peers is its DML_e.
    """
    mixable(exclusive, "mutual")
    if peers < 1:
        raise RecipeError(f"mutual needs at least 1 peer, not {peers}.")
    with torch.random.fork_rng():  # building peers, also again on resuming, must not move dropout
        others = [engine.prepare(make(number + 1)) for number in range(peers)]
    for number, network in enumerate(others, 1):
        engine.track(f"peer {number}", network)
    learning: list[_Peer] = []
    for batch in batches:
        said = [ask(network, batch, forward) for network in (student, *others)]
        rest = [mean(_but(n, said)) for n in range(len(said))]
        if not learning:
            learning = [
                _Peer(network, judge(said[n], rest[n]), lr, weight_decay, steps)
                for n, network in enumerate(others, 1)
            ]
            for number, peer in enumerate(learning, 1):
                engine.track(f"learning of peer {number}", peer)
        yield Lesson(batch, rest[0])
        for peer, taught in zip(learning, rest[1:], strict=True):
            peer.learn_(Lesson(batch, taught), forward, engine)


class _Peer:
    """A student beside the student: its network, what it minimises, and how far it is."""

    def __init__(
        self, network: nn.Module, objective: nn.Module, lr: float, weight_decay: float, steps: int
    ) -> None:
        self.network, self.objective, self.steps = network, objective, steps
        self.learned = [*network.parameters(), *objective.parameters()]
        self.optimizer = torch.optim.AdamW(self.learned, lr=lr, weight_decay=weight_decay)
        self.fall = torch.optim.lr_scheduler.LinearLR(
            self.optimizer, 1.0, 0.0, total_iters=self.steps
        )
        self.parts: tuple[Stateful, ...] = (objective, self.optimizer, self.fall)

    def learn_(self, lesson: Lesson, forward: Forward, engine: Engine) -> None:
        """One step of the network, and of what its objective learns."""
        self.network.train()
        with torch.enable_grad():
            progress = self.fall.last_epoch / self.steps
            loss, *_ = self.objective(forward(self.network, lesson.batch), lesson, progress)
            engine.backward(loss)
        engine.step(self.optimizer, self.learned, 1.0)
        self.fall.step()

    def state_dict(self) -> Mapping[str, Any]:
        return {str(number): part.state_dict() for number, part in enumerate(self.parts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for number, part in enumerate(self.parts):
            part.load_state_dict(state[str(number)])


def _but(number: int, said: Sequence[Knowledge]) -> list[Knowledge]:
    return [knowledge for n, knowledge in enumerate(said) if n != number]


def mean(answers: Sequence[Knowledge]) -> Knowledge:
    """The mean of several answers' probabilities, as logits."""
    logs = torch.stack([told(each) for each in answers])
    whole = logs.logsumexp(0) - torch.tensor(float(len(answers))).log()
    return Knowledge(whole, mask=answers[0].mask)
