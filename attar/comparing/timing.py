"""The files that arms would ship, timed in turns when nothing else runs, and weighed in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from attar.casting import load
from attar.comparing.weighing import Result
from attar.errors import AttarError
from attar.measure.questions import by_name
from attar.results import Entry, Timing, answers, energies, memories
from attar.setting import Setting


@dataclass(frozen=True)
class Costs:
    """By line, what is only measured when nothing runs beside it, as rows keep it."""

    timing: Timing
    times: Mapping[str, dict[str, float]]
    peaks: Mapping[str, int | None]
    joules: Mapping[str, float]


def costs(
    found: Sequence[Result],
    settings: Mapping[str, Setting],
    folders: Mapping[str, Path],
    wanted: Mapping[str, partial[Any]],
) -> Costs:
    """Latency, memory and energy of those lines that are files or folders.

    settings, folders: by line, its run with its first seed
    wanted: the measures that a comparison takes itself, as its recipe says
    """
    timing = Timing.wanted(wanted["latency"]) if "latency" in wanted else Timing()
    entries: dict[str, Entry] = {}
    for result in found:
        name = result.line.name
        path = _shipped(folders[name], result.row.name) if result.rows else None
        if path is not None:
            with suppress(AttarError):  # a file that can't be read here has a score, and no time
                entries[name] = Entry(name, load(settings[name], str(path)), path)
    asked: dict[Any, Any] = {}
    peaks: dict[str, int | None] = {}
    joules: dict[str, float] = {}
    for here, some in _by_task(entries, settings):
        asked |= answers(here, some, None, timing) if "latency" in wanted else {}
        peaks |= memories(here, some) if "memory" in wanted else {}
        joules |= energies(here, some, None, wanted["energy"]) if "energy" in wanted else {}
    times = by_name(wanted["latency"](asked)) if asked else {}
    return Costs(timing, times, peaks, joules)


def _shipped(folder: Path, row: str) -> Path | None:
    """The file or folder that a row was measured from; None where it was a network in memory."""
    if row.endswith("-folder"):
        stem = row.removesuffix("-folder")
        places = [folder / stem]
    else:
        # A file whose inputs are prepared otherwise than its neighbours' has a folder of its own.
        places = [folder / row, folder / row.partition(".")[0] / row]
    return next((path for path in places if path.is_file() or _holds_a_model(path)), None)


def _holds_a_model(folder: Path) -> bool:
    return folder.is_dir() and any(folder.glob("*.safetensors"))


def _by_task(
    entries: Mapping[str, Entry], settings: Mapping[str, Setting]
) -> list[tuple[Setting, list[Entry]]]:
    """The entries by the data they are asked about."""
    found: dict[int, tuple[Setting, list[Entry]]] = {}
    for name, entry in entries.items():
        here = settings[name]
        found.setdefault(id(here.task), (here, []))[1].append(entry)
    return list(found.values())
