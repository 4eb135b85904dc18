"""The first recipe: written, with comments, for a model and a data file that were looked at."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from attar import students
from attar.depth import blocks
from attar.errors import DataError, ModelError
from attar.report.figures import count
from attar.tasks.text import classification, reading

FEW = 3000
"""Labels up to which only the teacher's last block is trained: quicker, and it forgets less."""


@dataclass(frozen=True)
class _Found:
    """What is known of a model and its data once both were looked at."""

    model: str
    data: str
    columns: Mapping[str, str]
    others: tuple[str, ...]
    task: classification
    teacher: nn.Module
    trained: bool
    max_length: int
    vocabulary: str


def written(model: str, data: str, columns: Mapping[str, str] | None = None) -> str:
    """A recipe, as YAML with comments, that distills a model for some data.

    model: folder, hub name or `package:NAME`; of a folder whose head answers for the data's own
        classes the head is kept, any other gets a new one and is trained
    data: file, folder or name of a dataset
    columns: {"text": name, "label": name} where they are known
    Raises DataError or ModelError where a run would.
    """
    named = _columns(data, columns or {})
    task = classification(dataset=data, columns=dict(named) or None, max_length=3)
    trained = _answers_for(model, task.classes)
    teacher = task.load(model, new_head=not trained)
    found = _Found(
        model,
        data,
        named,
        _others(data, named),
        task,
        teacher,
        trained,
        _max_length(teacher, task.texts),
        _vocabulary(teacher, task.texts),
    )
    return "\n".join(_lines(found)) + "\n"


def _lines(found: _Found) -> Iterable[str]:
    size = count(sum(weight.numel() for weight in found.teacher.parameters()))
    yield from (
        f"# Written by `attar init` for the model {_quoted(found.model)} ({size} parameters)",
        f"# and the data {_quoted(found.data)}.",
        "#",
        "# attar check FILE    what it would do, and what that costs",
        "# attar run FILE      do it; a run that was interrupted goes on",
        "# attar list          everything else that can stand here",
        "",
    )
    yield from _task(found)
    yield from _teacher(found)
    yield from (
        "",
        "student:",
        "  # The teacher's first layer with its embeddings and head; `keep: 2` for two layers.",
        "  # `vocabulary: data` leaves out the word pieces that the training texts never use.",
        f"  layers: {{keep: 1, vocabulary: {found.vocabulary}}}",
        "",
        "teach: offline            # ask the teacher once, and keep its answers on disk",
        "losses:",
        "  - response.kl: {temperature: 1}               # its answers",
        "  - feature.cosine: {weight: 1.0, layers: auto} # its hidden states",
        "  # - task: {weight: 0.5}                       # the true labels",
        "",
    )
    yield from _steps(found)


def _task(found: _Found) -> Iterable[str]:
    task = found.task
    sizes = {part: task.size(part) for part in ("train", "validation", "test")}
    yield "task:"
    yield "  text.classification:"
    yield f"    dataset: {_quoted(found.data)}"
    yield f"    # {sum(sizes.values()):,} rows, {len(task.classes)} classes: " + ", ".join(
        f"{size:,} {'to ' * (part != 'validation')}{part}" for part, size in sizes.items()
    )
    for note in task.notes:
        yield f"    # {' '.join(note.split())}"
    if found.columns:
        named = ", ".join(f"{role}: {_quoted(name)}" for role, name in found.columns.items())
        also = ", ".join(map(_quoted, found.others[:6]))
        yield f"    columns: {{{named}}}" + (f"   # there are also {also}" if also else "")
    yield f"    max_length: {found.max_length}   # tokens; 99 % of the texts have no more"
    if not task.has_pool:
        yield "    # More texts help, even without labels: a file `unlabelled` beside `train`."
    yield ""


def _teacher(found: _Found) -> Iterable[str]:
    yield "teacher:"
    if found.trained:
        yield "  # It answers for these classes already."
        yield f"  load: {{model: {_quoted(found.model)}}}"
        return
    labels = found.task.size("labelled")
    yield f"  # Trained on the {labels:,} labels, once; kept in $ATTAR_CACHE or ~/.cache/attar."
    if labels <= FEW and blocks(found.teacher):
        yield "  # `train: 1` is its last block and the head; `all` needs a lower lr (5e-5)."
        how = "epochs: 10, lr: 5e-4, train: 1"
    else:
        yield "  # `train: head` is quicker; a number is so many of its last blocks with the head."
        how = "epochs: 4, lr: 5e-5, train: all"
    yield f"  finetune: {{model: {_quoted(found.model)}, {how}}}"


def _steps(found: _Found) -> Iterable[str]:
    rows = found.task.size("train")
    steps = min(6000, max(300, round(5 * rows / 32, -2)))
    pool = ", pseudo_labels" if found.task.has_pool else ""
    yield from (
        "steps:",
        f"  - distill: {{steps: {steps:.0f}, lr: 6e-4, batch_size: 32}}"
        f"   # each text {32 * steps / rows:.0f} times",
        "  - export.transformers      # a folder that loads without attar",
        "  - quantize.int8_dynamic    # a quarter of the bytes",
        "  - export.onnx              # one file for ONNX Runtime",
        "",
        "measure: [score, parameters, macs, size, latency, memory]",
        f"baselines: [labels_only, label_smoothing{pool}]   # is the teacher worth it?",
    )


def _columns(data: str, given: Mapping[str, str]) -> Mapping[str, str]:
    """The columns a recipe has to name: those that are given, or not found by their usual names."""
    try:
        reading.read(data, dict(given))
    except DataError:
        if not Path(data).expanduser().exists() or len(given) == 2:
            raise
    else:
        return given
    values = reading.peek(data).columns
    text = given.get("text") or _usual("text", values) or _longest(values, given.get("label"))
    label = given.get("label") or _usual("label", values) or _repeated(data, values, text)
    found = {"text": text, "label": label}
    return {role: name for role, name in found.items() if name}


def _usual(role: str, names: Iterable[str]) -> str | None:
    usual = (role, *reading.USUAL[role])
    found = [name for name in names if name.strip().lower() in usual]
    return found[0] if len(found) == 1 else None


def _longest(values: Mapping[str, Sequence[Any]], label: str | None) -> str | None:
    """The column with the longest strings, which is where the texts are."""
    lengths = {
        name: sum(len(each) for each in column if isinstance(each, str))
        for name, column in values.items()
        if name != label
    }
    longest = max(lengths, key=lambda name: lengths[name], default=None)
    return longest if longest is not None and lengths[longest] else None


def _repeated(data: str, values: Mapping[str, Sequence[Any]], text: str | None) -> str | None:
    """The one other column with few values that come again and again, as classes do."""
    found = [
        name
        for name, column in values.items()
        if name != text and 2 <= len({str(each) for each in column}) <= len(column) / 2
    ]
    if len(found) > 1:
        raise DataError(
            f"{data} has several columns that could be the label ({', '.join(found)}); "
            "say which with --label."
        )
    return found[0] if found else None


def _others(data: str, named: Mapping[str, str]) -> tuple[str, ...]:
    """The columns that are not used, where the recipe has to name those that are."""
    if not named or not Path(data).expanduser().exists():
        return ()
    return tuple(name for name in reading.peek(data).columns if name not in named.values())


def _answers_for(model: str, classes: Sequence[str]) -> bool:
    """Whether a model's folder has a head that was trained for just these classes."""
    paper = Path(model).expanduser() / "config.json"
    if not paper.is_file():
        return False
    try:
        config = json.loads(paper.read_text("utf-8"))
    except ValueError as error:
        raise ModelError(f"{paper} is not JSON ({error}).") from error
    heads = [name for name in config.get("architectures") or () if "SequenceClass" in name]
    named = {str(name) for name in config.get("id2label", {}).values()}
    return bool(heads) and named == set(classes)


def _max_length(teacher: nn.Module, texts: Sequence[str]) -> int:
    """The tokens that 99 % of the texts fit into, in eights, within the model's limit."""
    tokenizer: Any = teacher.tokenizer
    lengths = sorted(len(ids) for ids in tokenizer(list(texts))["input_ids"])
    wanted = 8 * math.ceil(lengths[math.ceil(0.99 * len(lengths)) - 1] / 8)
    return int(max(3, min(wanted, tokenizer.model_max_length)))


def _vocabulary(teacher: nn.Module, texts: Sequence[str]) -> str:
    """`data`, unless the teacher's tokenizer is of a kind that can't be cut."""
    try:
        students.layers(teacher, texts, keep=1, vocabulary="data")
    except ModelError:
        students.layers(teacher, texts, keep=1, vocabulary="teacher")
        return "teacher"
    return "data"


def _quoted(word: str) -> str:
    """A word as YAML reads it back, on one line whatever is in it."""
    is_plain = re.fullmatch(r"[\w./-]*[A-Za-z][\w./-]*", word, re.ASCII)
    is_word = word.lower() in ("null", "true", "false", ".nan", ".inf", "-.inf")
    looks_like_number = re.fullmatch(r"[-+.\dxeE_a-fA-F]+", word)
    return word if is_plain and not is_word and not looks_like_number else json.dumps(word)
