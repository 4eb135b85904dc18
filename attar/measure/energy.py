"""Joules of one answer, where the machine has a counter of them that may be read."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch

from attar.measure.cost import WARM_UP
from attar.types import Count, Positive

POWERCAP = Path("/sys/class/powercap")
"""Where Linux shows RAPL, the energy counters of Intel's and AMD's processors."""

TURN = 0.1
"""Seconds of one model's turn: a hundred times as long as a counter takes to be written anew."""

LEAST = 3
"""Turns of each model, however short the time is."""

Key = TypeVar("Key")


def energy(
    answers: Mapping[Key, Callable[[], object]],
    counters: Path = POWERCAP,
    *,
    threads: Count = 1,
    seconds: Positive = 1.5,
) -> dict[Key, float]:
    """Joules of one answer of each of several models, which take turns, A B C A B C.

    It is what processor and memory drew meanwhile, their idling and all else that ran included.
    Where there is no counter, or none that may be read, no figure is given: Linux keeps it for
    root (`energy_uj` below /sys/class/powercap) unless told otherwise.

    answers: by name, what makes one answer
    threads: threads of the arithmetic
    seconds: time spent on each model, about
    """
    if not zones(counters):
        return {}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    drawn, made = dict.fromkeys(answers, 0.0), dict.fromkeys(answers, 0)
    try:
        with torch.inference_mode():
            for answer in answers.values():
                for _ in range(WARM_UP):
                    answer()
            for _ in range(max(LEAST, round(seconds / TURN))):
                for name, answer in answers.items():
                    joules, count = _turn(answer, counters)
                    drawn[name] += joules
                    made[name] += count
    finally:
        torch.set_num_threads(before)
    # A counter that stands still (virtual machines have such) has measured nothing.
    return {name: joules / made[name] for name, joules in drawn.items() if joules > 0}


def _turn(answer: Callable[[], object], counters: Path) -> tuple[float, int]:
    """Joules of so many answers as fit into a turn, and how many those were."""
    count, before, start = 0, zones(counters), time.perf_counter()
    while count == 0 or time.perf_counter() - start < TURN:
        answer()
        count += 1
    after = zones(counters)
    return sum(_since(before[zone], after[zone]) for zone in before if zone in after), count


def _since(before: tuple[int, int], after: tuple[int, int]) -> float:
    """Joules between two readings; a counter begins again at 0 once its range is full."""
    (first, span), (last, _) = before, after
    return (last - first if last >= first else last - first + span) / 1e6


def zones(counters: Path) -> dict[str, tuple[int, int]]:
    """Microjoules so far and the counter's range, of each package and of memory beside it.

    Cores and graphics are parts of a package, and a platform's zone (psys) holds the packages:
    they would be counted twice, as would the same zones under `intel-rapl-mmio`.
    """
    found = {}
    for zone in sorted(counters.glob("intel-rapl:*")):
        try:
            if re.match(r"package|dram", (zone / "name").read_text()):
                read = [int((zone / n).read_text()) for n in ("energy_uj", "max_energy_range_uj")]
                found[zone.name] = (read[0], read[1])
        except (OSError, ValueError):
            continue
    return found
