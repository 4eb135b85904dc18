"""One model's answers beside another's: what `measure.audit` is given, and what stays of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from attar import arms, distill, measure
from attar.errors import DataError, LayerError, StoreError
from attar.export.writing import written
from attar.measure.audit import Side, broken_rows
from attar.measure.audit.answers import Array
from attar.measure.audit.attribution import occlusion
from attar.measure.audit.calibration import temperature
from attar.measure.audit.likeness import Seen, cka
from attar.measure.audit.surrogate import fidelity
from attar.measure.comparing import Foreign
from attar.report import Row
from attar.report.sentences import best
from attar.resolve import ask, chosen, compares
from attar.setting import Setting
from attar.store import fingerprint
from attar.taps import evaluating, place
from attar.types import IGNORE, Batch

SOME = 2000
"""Examples that a tree is fitted to, and judged by; layers are compared over as many."""

ROWS = 64
"""Examples that are asked about at once."""

Advance = Callable[[int], None]


@dataclass
class Subject:
    """Whose answers are audited: a model, or what a store keeps of one.

    model: whatever answers; None where only its answers are known
    network: of torch, whose layers can be read; None where there is none
    known: by part, its logits, asked for once
    rows: by part, which examples those are; all of them where there is a model
    kept: the folder in which its answers outlast the run; None where they are asked for each time
    """

    name: str
    model: nn.Module | None
    network: nn.Module | None = None
    known: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, Array] = field(default_factory=dict)
    kept: Path | None = None

    def covered(self, here: Setting, part: str) -> Array:
        """Which examples of a part it has answers to."""
        every = np.arange(here.task.size(part) if self.model is not None else 0)
        return self.rows.get(part, every)

    def answers(self, here: Setting, part: str, advance: Advance | None = None) -> Tensor:
        """Its logits of these examples."""
        if part not in self.known:
            self.known[part] = self._asked(here, part, advance)
        return self.known[part]

    def _asked(self, here: Setting, part: str, advance: Advance | None) -> Tensor:
        """Its logits as they were kept; where they were not, as the model gives them now."""
        assert self.model is not None
        task = here.task.audited()
        if self.kept is None:
            return task.answers(self.model, part, advance)
        file = self.kept / f"{part}-{task.hash_of(part)}.safetensors"
        with suppress(OSError, SafetensorError):  # what is damaged is asked again
            kept: Tensor = load_file(file)["logits"]
            return kept
        answers = task.answers(self.model, part, advance)
        written(save({"logits": answers.contiguous()}), file)
        return answers

    def predicted(self, here: Setting, part: str) -> Array:
        """The classes it takes these examples for."""
        classes: Array = self.answers(here, part).argmax(1).numpy()
        return classes

    def held(self, here: Setting) -> tuple[Array, Array] | None:
        """Its logits of the validation examples, and their labels; None where it has none."""
        rows = self.covered(here, "validation")
        if not len(rows):
            return None
        labels = here.task.audited().labels("validation")[rows]
        return self.answers(here, "validation").numpy(), labels

    def temperature(self, here: Setting) -> float | None:
        """What its logits are to be divided by; None where none is best."""
        held = self.held(here)
        return None if held is None else temperature(*held)


def subject(name: str, model: nn.Module, source: nn.Module | None = None) -> Subject:
    """A model as it is audited.

    source: the network of torch that it was written from, where it is a file
    """
    return Subject(name, model, source or (None if isinstance(model, Foreign) else model))


def teacher(here: Setting, name: str, model: nn.Module) -> Subject:
    """The recipe's teacher, whose answers outlast the run: many runs weigh theirs against them."""
    found = subject(name, model)
    if found.network is None:
        return found  # a file, of which torch can't tell whose answers it has
    with suppress(StoreError):
        whose = fingerprint(model, **here.task.preprocessing(model))
        # Weights don't tell everything: what the recipe says of it and how it is built count too.
        facts = (here.recipe.to_dict()["teacher"], repr(model), whose)
        found.kept = here.cache / "answers" / arms.key(*facts)
    return found


def audited(here: Setting, before: Subject, after: Subject, part: str = "test") -> dict[str, Any]:
    """What became of each answer, by the recipe's options; what broke is written into a file.

    part: of the data; where one of the two is a store, those of its examples that are kept
    Raises DataError where the two have no example in common.
    """
    covered = [each.covered(here, part) for each in (before, after)]
    rows, *places = np.intersect1d(covered[0], covered[1], return_indices=True)
    if not len(rows):
        raise DataError(
            f"{before.name} and {after.name} have no {part} {here.task.noun} in common."
        )
    one, other = (
        Side(each.answers(here, part).numpy()[at], each.held(here))
        for each, at in zip((before, after), places, strict=True)
    )
    labels = here.task.audited().labels(part)[rows]
    given = {
        "before": one,
        "after": other,
        "labels": labels,
        "classes": here.task.classes,
        "told": lambda row: here.task.audited().told(part, int(rows[row])),
    }
    found = ask(_options(here), given | _deeper(here, before, after, part))
    hurt = [
        given["told"](n) | said for n, said in broken_rows(one, other, labels, here.task.classes)
    ]
    # The name of a hub's model, or of code, is no name of a file.
    file = here.out / (re.sub(r"[^\w.+-]+", "-", after.name) + "-broken.jsonl")
    file.unlink(missing_ok=True)
    if hurt:
        lines = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in hurt)
        # What UTF-8 has no form for stands there as JSON's own escape.
        found["broken_file"] = written(lines.encode("utf-8", "backslashreplace"), file).name
    return {"against": before.name, **found}


def _options(here: Setting) -> partial[dict[str, Any]]:
    """The recipe's audit; with all its defaults where it names none."""
    named = (piece.function for piece in here.plan.measure if piece.name == "audit")
    return next(named, partial(measure.audit))


def _deeper(here: Setting, before: Subject, after: Subject, part: str) -> dict[str, Any]:
    """What can be asked of models beside their answers, for as long as somebody wants it."""
    found: dict[str, Any] = {}
    said = {name: chosen(_options(here), name) for name in ("layers", "occlusion", "surrogate")}
    if before.network is not None and after.network is not None:
        found["alike"] = partial(_alike, here, before.network, after.network, part)
    elif said["layers"] is not None:
        here.screen.say("CKA is left out: it reads the layers of two networks of PyTorch.")
    if before.model is not None and after.model is not None:
        found["explained"] = partial(_explained, here, (before.model, after.model), part)
        found["imitated"] = partial(_imitated, here, (before.model, after.model), part)
    elif said["occlusion"] or said["surrogate"]:
        here.screen.say("Occlusion and surrogate are left out: a store can't be asked anew.")
    return found


def gated(here: Setting, audit: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each of the recipe's gates says of an audit."""
    return [{"gate": gate.name, **ask(gate.function, {"audit": audit})} for gate in here.plan.gates]


def audits(
    here: Setting, subjects: Mapping[str, Subject], rows: Sequence[Row]
) -> dict[str, dict[str, Any]]:
    """An audit of the row to ship, which has to pass the gates, and of every other export.

    Each stands against the teacher or, where there is none, the row it was made from.
    """
    shipped, found = best(rows), dict[str, dict[str, Any]]()
    names = [row.name for row in rows if row is shipped or row.role == "export"]
    with here.screen.bar("Auditing") as advance:
        for number, name in enumerate(names):
            advance(number, len(names), name)
            against = "teacher" if "teacher" in subjects else _origin(rows, name)
            found[name] = audited(here, subjects[against], subjects[name])
            if shipped is not None and name == shipped.name and here.plan.gates:
                found[name]["gates"] = gated(here, found[name])
        advance(len(names), len(names), "")
    return found


def _origin(rows: Sequence[Row], name: str) -> str:
    """The row that the steps before this one began with."""
    after = {row.name: row.after for row in rows}
    while after[name]:
        name = after[name]
    return name


def _alike(
    here: Setting, before: nn.Module, after: nn.Module, part: str, layers: Any
) -> list[dict[str, Any]]:
    """CKA of paired layers; nothing, with a word of why, where they can't be read."""
    try:
        pairs = {
            _pooled(mine): _pooled(its) for mine, its in _pairs(here, before, after, layers).items()
        }
        return cka(_features(here, before, after, part, pairs), pairs) if pairs else []
    except LayerError as error:
        here.screen.say(f"CKA is left out: {error}")
        return []


def _pairs(here: Setting, before: nn.Module, after: nn.Module, layers: Any) -> dict[str, str]:
    """Which layer of the one answers to which of the other: as said, or as the losses pair them."""
    if isinstance(layers, dict):
        return layers
    terms = [term for term in here.plan.losses if term.name != "task"]
    if layers is None:
        named = {
            m: i for term in terms if isinstance(term.layers, dict) for m, i in term.layers.items()
        }
        if named or all(compares(term.function) == "Logits" for term in terms):
            mine, its = (dict(each.named_modules()) for each in (after, before))
            return {
                m: i for m, i in named.items() if place(m).path in mine and place(i).path in its
            }
    batch = here.task.spread("train", 2)
    return distill.pair(
        after, before, lambda model: here.task.forward(model, batch), how=layers or "auto"
    )


def _pooled(layer: str) -> str:
    return layer if place(layer).pool not in (None, "time") else f"{layer.partition('@')[0]}@mean"


@torch.no_grad()
def _features(
    here: Setting, before: nn.Module, after: nn.Module, part: str, pairs: Mapping[str, str]
) -> Iterator[tuple[Seen, Seen]]:
    """What paired layers give for some examples, batch by batch."""
    batch = here.task.spread(part, SOME)
    for start in range(0, len(batch), ROWS):
        some = batch.rows(start, start + ROWS)
        with evaluating(after), evaluating(before):
            mine = here.task.forward(after, some, list(pairs)).features
            its = here.task.forward(before, some, [*dict.fromkeys(pairs.values())]).features
        yield (
            {path: each.cpu().numpy() for path, each in mine.items()},
            {path: each.cpu().numpy() for path, each in its.items()},
        )


def _explained(
    here: Setting, models: Sequence[nn.Module], part: str, count: int
) -> Iterator[tuple[Array, ...]]:
    """What hiding each piece of some examples takes from the first model's answer, by each."""
    task = here.task.audited()
    batch = task.spread(part, count)
    for n in range(len(batch)):
        inputs = batch.rows(n, n + 1).inputs
        said = int(_shares(here, models[0], inputs).argmax())

        def answer(
            kept: Tensor, model: nn.Module, inputs: Any = inputs, said: int = said
        ) -> Tensor:
            return _shares(here, model, task.seen(inputs, kept > 0.5))[:, said]

        if pieces := task.pieces(inputs):
            yield tuple(occlusion(partial(answer, model=each), pieces) for each in models)


def _imitated(here: Setting, models: Sequence[nn.Module], part: str, depth: int) -> dict[str, Any]:
    """How much of each model's answers a decision tree of that depth gives too."""
    shown, asked = here.task.spread("train", SOME), here.task.spread(part, SOME)
    before, after = (
        fidelity(
            shown.inputs,
            _said(here, each, shown),
            asked.inputs,
            _said(here, each, asked),
            depth=depth,
        )
        for each in models
    )
    return {"fidelity": after, "depth": depth, "before": before, "after": after}


def _said(here: Setting, model: nn.Module, batch: Batch) -> Array:
    """The classes a model answers with."""
    some = (batch.rows(n, n + ROWS).inputs for n in range(0, len(batch), ROWS))
    found: Array = torch.cat([_shares(here, model, each).argmax(1) for each in some]).numpy()
    return found


@torch.no_grad()
def _shares(here: Setting, model: nn.Module, inputs: Any) -> Tensor:
    """The probabilities a model gives for inputs of no batch."""
    rows = len(inputs)
    with evaluating(model):
        asked = Batch(inputs, torch.full((rows,), IGNORE), ("",) * rows)
        logits: Tensor = here.task.forward(model, asked).logits
        return logits.cpu().softmax(1)


def sentences(name: str, audit: Mapping[str, Any]) -> Iterable[str]:
    """An audit in words: who agrees, what flipped, which class is worst, how sure it may be."""
    yield (
        f"{name} gives the answer of {audit['against']} to {audit['agreement']:.1%} of "
        f"{audit['examples']:,} examples."
    )
    if "flips" not in audit:
        return
    lost, won = audit["flips"]["right_to_wrong"], audit["flips"]["wrong_to_right"]
    yield f"{lost:,} answers went from right to wrong, and {won:,} from wrong to right."
    worst = audit["classes"][0]
    if worst["change"] < 0:
        yield (
            f"The class that lost most is {worst['class']}: {100 * worst['change']:+.1f} points "
            f"({100 * worst['low']:+.1f} to {100 * worst['high']:+.1f}) over {worst['examples']:,} "
            "examples."
        )
    was, now = audit["calibration"]["before"], audit["calibration"]["after"]
    scaled = now["ece_scaled"]
    mend = "" if scaled is None else f", and {scaled:.3f} with logits / {now['temperature']:.3g}"
    yield f"Its calibration error (ECE) is {now['ece']:.3f}{mend}, against {was['ece']:.3f}."
