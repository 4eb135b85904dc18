"""How long the audit itself takes, the models' own time apart: its target is a minute at most.

    python benchmarks/audit.py [--rows 10000] [--classes 100]

Two models' answers are drawn at random, the second near the first, with as many held out for the
temperature; printed are the seconds of each part. Layers are 768 wide, two of them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from attar.measure.audit import Side, audit, broken_rows
from attar.measure.audit.answers import agreement, changes, flips, kl
from attar.measure.audit.calibration import brier, ece, temperature
from attar.measure.audit.likeness import cka

WIDTH = 768
"""Of a layer: that of BERT base."""


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--rows", type=int, default=10_000)
    options.add_argument("--classes", type=int, default=100)
    given = options.parse_args()

    random = np.random.default_rng(0)
    labels = random.integers(0, given.classes, given.rows)
    before = 3 * random.normal(size=(given.rows, given.classes)).astype(np.float32)
    before[np.arange(given.rows), labels] += 8
    after = before + random.normal(size=before.shape).astype(np.float32)
    names = [f"class {n}" for n in range(given.classes)]
    sides = Side(before, (before, labels)), Side(after, (after, labels))
    layer = random.normal(size=(given.rows, WIDTH)).astype(np.float32)
    batches = [
        ({"x": layer[n : n + 64]}, {"y": layer[n : n + 64]}) for n in range(0, given.rows, 64)
    ]
    parts: dict[str, Callable[[], Any]] = {
        "agreement": partial(agreement, before, after),
        "KL": partial(kl, before, after),
        "flips": partial(flips, before, after, labels),
        "classes, with intervals": partial(changes, before, after, labels, names),
        "ECE": partial(ece, after, labels),
        "Brier": partial(brier, after, labels),
        "temperature": partial(temperature, after, labels),
        "broken": lambda: list(broken_rows(*sides, labels, names)),
        "the whole audit": partial(audit, *sides, labels, names),
        f"CKA, a pair {WIDTH} wide": partial(cka, batches, {"x": "y"}),
    }
    print(f"| {given.rows:,} rows, {given.classes} classes | seconds |\n| :--- | ---: |")
    for name, part in parts.items():
        start = time.perf_counter()
        part()
        print(f"| {name} | {time.perf_counter() - start:.3f} |")


if __name__ == "__main__":
    main()
