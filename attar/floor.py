"""The floor that students of texts stand on: word counts and a linear model, a row like others."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from contextlib import suppress
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from attar import arms
from attar.baselines import bag_of_words
from attar.export.writing import written
from attar.report import Row
from attar.setting import Setting
from attar.tasks import text

BAG = "bag_of_words"
"""The name of its row."""


def floor(here: Setting, part: str, *, timed: bool) -> dict[str, Any] | None:
    """What a bag of words answers, as `bag_of_words` tells; None where the task has no texts.

    It outlasts the run, as many arms stand on the same one.

    timed: whether its answers are to be timed, for which it has to be fitted anew
    """
    if not isinstance(here.task, text.classification):
        return None
    key = arms.key(here.task.digest(), here.task.hash_of(part))
    file = here.cache / "answers" / f"{BAG}-{key}.safetensors"
    if not timed:
        with suppress(OSError, SafetensorError), safe_open(file, "np") as kept:
            return {**json.loads(kept.metadata()[BAG]), "predicted": kept.get_tensor("predicted")}
    found = bag_of_words(here.task, part)
    told = {name: found[name] for name in found if name not in ("predicted", "answer")}
    written(save({"predicted": found["predicted"]}, {BAG: json.dumps(told)}), file)
    return found


def row_of(
    floor: Mapping[str, Any],
    times: Mapping[str, dict[str, float]],
    joules: Mapping[str, float],
    wanted: Container[str],
) -> Row:
    """Its row in the report, with what was measured of it and was asked for."""
    return Row(
        name=BAG,
        runtime=floor["runtime"],
        score=floor["score"],
        metrics=floor["metrics"],
        parameters=floor["parameters"] if "parameters" in wanted else None,
        size_bytes=floor["size_bytes"] if "size" in wanted else None,
        latency_ms=times.get(BAG),
        energy_j=joules.get(BAG),
        note="its time includes cutting into words",
    )
