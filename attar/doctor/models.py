"""The data of a recipe, and its models before any training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from attar import teach
from attar.doctor.finding import Finding, share
from attar.heads import at_labels, dense
from attar.resolve import chosen
from attar.setting import Cast, Setting
from attar.tasks import text


def data(here: Setting) -> Iterator[Finding]:
    """Counts, and what is wrong with the examples and their labels."""
    task = here.task
    parts = ("train", "labelled", "validation", "test")
    counts = ", ".join(f"{task.size(part)} {part}" for part in parts)
    yield Finding("data", True, f"{counts}; {task.tells}.")
    yield from (Finding("data", None, note) for note in task.notes)
    if isinstance(task, text.classification):
        empty = sum(not each.strip() for each in task.texts), len(task.texts)
        yield share("empty texts", empty, "training texts are empty", "remove them")
    twice = task.repeated("test"), task.size("test")
    says = f"test {task.noun} are training {task.noun} too"
    yield share("leakage", twice, says, "scores on them are too good; remove them from either")
    sizes = task.counts().values()
    if not sizes:
        yield Finding("balance", None, "There are no classes to be balanced.")
        return
    least, most = min(sizes), max(sizes)
    says = f"Classes have {least} to {most} labelled {task.noun}"
    told = f"{says}." if most <= 10 * least else f"{says}: read macro_f1 beside the accuracy."
    yield Finding("balance", True if most <= 10 * least else None, told)


def tokens(here: Setting, cast: Cast) -> Iterator[Finding]:
    """Whether texts are cut off, and whether both models see the same pieces."""
    if not isinstance(here.task, text.classification):
        return
    limit = here.task.max_length
    texts = here.task.spread("train", 1000).inputs
    mine: Any = cast.student.tokenizer
    ids = mine(list(texts), truncation=True, max_length=limit + 1)["input_ids"]
    cut = sum(len(row) > limit for row in ids)
    what = f"texts are longer than max_length, {limit} tokens"
    yield share("length", (cut, len(texts)), what, "raise max_length", most=0.1)
    if cast.teacher is None:
        return
    its: Any = cast.teacher.tokenizer
    pairs = zip(_pieces(mine, texts, limit), _pieces(its, texts, limit), strict=True)
    other = sum(ours != theirs for ours, theirs in pairs)
    says = f"Teacher and student cut {other} of {len(texts)} texts into different pieces"
    if not other:
        yield Finding("tokenizers", True, f"{says}.")
    else:
        yield Finding("tokenizers", None, f"{says}: compare layers pooled, with `layers: auto`.")


def _pieces(tokenizer: Any, texts: Sequence[str], limit: int) -> list[list[str]]:
    cut = tokenizer(list(texts), truncation=True, max_length=limit, add_special_tokens=False)
    return [tokenizer.convert_ids_to_tokens(row) for row in cut["input_ids"]]


def label_order(here: Setting, cast: Cast) -> Iterator[Finding]:
    """Whether the teacher means by each class what the data means."""
    name, classes = "label order", here.task.classes
    if cast.teacher is None or not classes:
        yield Finding(name, None, "There is no teacher." if classes else "There are no classes.")
        return
    named = _named_classes(cast.teacher)
    if named is not None and named != classes:
        pairs = enumerate(zip_longest(named, classes))
        at, (its, ours) = next(found for found in pairs if found[1][0] != found[1][1])
        cure = "put its config.id2label and its head into the data's order."
        yield Finding(
            name, False, f"The teacher's class {at} is {its!r}, the data's is {ours!r}: {cure}"
        )
    elif not here.task.size("labelled"):
        yield Finding(name, None, f"No {here.task.noun} have labels to compare it with.")
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


def eval_mode(here: Setting, cast: Cast) -> Iterator[Finding]:
    """Whether the teacher, asked twice, says the same."""
    name, batch = "eval mode", here.task.spread("train", 8)
    if cast.teacher is None:
        yield Finding(name, None, "There is no teacher.")
        return
    forward = here.task.forward
    first, second = (dense(teach.ask(cast.teacher, batch, forward).logits) for _ in range(2))
    if torch.equal(first, second):
        yield Finding(name, True, "The teacher gives the same answer twice.")
    else:
        gap = float((first - second).abs().max())
        cure = "its dropout stays on in eval mode (call F.dropout with training=self.training)."
        says = f"Asked twice, the teacher's logits differ by up to {gap:.2g}: {cure}"
        yield Finding(name, False, says)


def parity(here: Setting, cast: Cast) -> Iterator[Finding]:
    """Whether an answer stays the same beside longer texts, for teacher and student."""
    batch = here.task.spread("train", 8)
    forward = here.task.forward
    for whose, model in (("teacher", cast.teacher), ("student", cast.student)):
        if model is None:
            continue
        together = teach.ask(model, batch, forward)
        alone, beside = [], []
        for n in range(len(batch)):
            one = teach.ask(model, batch.rows(n, n + 1), forward)
            alone.append(dense(one.logits).flatten())
            beside.append(dense(together.rows(n, n + 1).logits).flatten())
        gap = float((torch.cat(alone) - torch.cat(beside)).abs().max())
        scale = float(torch.cat(beside).std())
        says = f"Alone and in a padded batch the {whose}'s logits differ by up to {gap:.1g}"
        if gap <= 1e-5 + 1e-3 * scale:
            yield Finding(f"padding, {whose}", True, f"{says}.")
        else:
            cure = f"their spread is {scale:.2g}; have it leave out what attention_mask has as 0."
            yield Finding(f"padding, {whose}", False, f"{says}, and {cure}")


def logit_scale(here: Setting, cast: Cast) -> Iterator[Finding]:
    """Whether the teacher's answers say more than labels, and more than nothing."""
    name = "logit scale"
    if cast.teacher is None:
        yield Finding(name, None, "There is no teacher.")
        return
    if not cast.trained:
        yield Finding(name, None, "The teacher is trained first: its scale is known only then.")
        return
    logits, _ = _answered(here, cast.teacher, "train", 256)
    top, classes = float(logits.softmax(1).amax(1).mean()), logits.shape[1]
    spread = float(logits.std())
    says = f"The logits' standard deviation is {spread:.2g}, the top probability {top:.3f}"
    warmest = max([1, *(chosen(loss.function, "temperature") or 1 for loss in here.plan.losses)])
    if top > 0.99 and warmest < 2:
        cure = "its answers hold little more than labels; set `temperature: 4` in the loss."
        yield Finding(name, False, f"{says} on the mean: {cure}")
    elif top < min(2 / classes, 1 / classes + 0.1):
        cure = "it seems not trained for this task; use `finetune`, or another teacher."
        yield Finding(name, False, f"{says} on the mean, hardly above chance: {cure}")
    else:
        yield Finding(name, True, f"{says} on the mean.")


def _answered(here: Setting, teacher: nn.Module, part: str, count: int) -> tuple[Tensor, Tensor]:
    """Some of the teacher's answers, logits (answers, classes), and their labels.

    count: of examples; where each token is answered, of tokens, about
    """
    batch = here.task.spread(part, count)
    if batch.by_token:
        batch = here.task.spread(part, max(1, count * len(batch) // max(1, batch.weight)))
    said, labels = [], []
    for n in range(0, len(batch), 64):
        some = batch.rows(n, n + 64)
        logits, truth = teach.ask(teacher, some, here.task.forward).logits, some.labels
        if some.by_token:
            logits, truth = at_labels(logits, truth)
        said.append(dense(logits).cpu())
        labels.append(truth)
    return torch.cat(said), torch.cat(labels)
