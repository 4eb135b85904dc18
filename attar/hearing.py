"""A teacher that is no network here: it is asked over HTTP, and its text is what is learned."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from attar import arms
from attar.endpoint import Asked, Endpoint, Told, answer_of, asked
from attar.resolve import ask, chosen
from attar.setting import Book, Heard, Setting
from attar.store import Said, Store, key
from attar.types import Answer, Batch, Knowledge, Question

TITLE = "The endpoint that teaches"
WAITING = "Asking the endpoint: another run is at it; waiting for it ..."


@dataclass(frozen=True)
class Afar:
    """A teacher behind an endpoint.

    folder: below which its answers are kept
    tokens: of an answer, at most; prompts: how many are asked, at most
    by: whether it is asked by messages or goes on from a text; None for what the data is
    """

    endpoint: Endpoint
    folder: Path
    tokens: int | None
    prompts: int | None
    by: Literal["chat", "completions"] | None


def heard(here: Setting, book: Book) -> Setting:
    """The setting in which the text of the recipe's endpoint is what there is to learn.

    What is known of it is not asked again; where nothing else is wanted, neither the endpoint nor
    its key is needed.
    Raises EndpointError where the asking ends early; what was answered before is kept.
    """
    if not here.afar:
        return here
    assert here.plan.teacher is not None
    assert here.plan.teach is not None
    who: Afar = ask(here.plan.teacher.function, {"cache": here.cache})
    prompt, temperature = (chosen(here.plan.teach.function, n) for n in ("prompt", "temperature"))
    facts = {"model": who.endpoint.model, "temperature": temperature, "top": who.endpoint.top}
    facts |= {"more": dict(who.endpoint.more), "by": who.by, "tokens": who.tokens, "prompt": prompt}
    folder = who.folder / key(repr(sorted(facts.items())))[:12]
    wanted = _wanted(here, who, prompt, temperature)
    start = time.monotonic()
    with (
        arms.held(folder, partial(here.screen.say, WAITING)),
        Said.open(folder, facts) as said,
    ):
        told = _asked(here, who, wanted, said)
        there = _learned(here, who, wanted, said, facts)
        _tell(there, book, who, told, said)
    book.seconds["endpoint"] = time.monotonic() - start
    return there


def _wanted(
    here: Setting, who: Afar, prompt: float, temperature: float
) -> dict[str, tuple[Question, Asked]]:
    """The questions by the address of their answers, in an order that no seed decides."""
    questions = here.task.questions(prompt, who.tokens, who.by)
    each = {
        sent.key: (question, sent)
        for question in questions
        for sent in [who.endpoint.asks(question, temperature)]
    }
    return {address: each[address] for address in sorted(each)[: who.prompts]}


def _asked(
    here: Setting, who: Afar, wanted: Mapping[str, tuple[Question, Asked]], said: Said
) -> Told:
    missing = sum(address not in said for address in wanted)
    if missing:
        whose = f", with the key in {who.endpoint.key}" if who.endpoint.key else ""
        here.screen.say(
            f"{missing} of {len(wanted)} prompts go to {who.endpoint.model} at "
            f"{who.endpoint.host}{whose}."
        )
    with here.screen.bar("Asking the endpoint") as advance:
        return asked(who.endpoint, [sent for _, sent in wanted.values()], said, advance)


def _learned(
    here: Setting,
    who: Afar,
    wanted: Mapping[str, tuple[Question, Asked]],
    said: Said,
    facts: Mapping[str, Any],
) -> Setting:
    """The setting with the answers as its text, and with what was said of their tokens."""
    top = who.endpoint.top
    pairs = _pairs(wanted, said)
    task, found = here.task.heard(pairs, top)
    facts = {**facts, **task.facts}
    recall: Any = _nothing
    if top is not None:
        share = f"{found.alike} of {found.answers} answers ({found.alike / found.answers:.0%})"
        text = "" if found.alike == found.answers else "; of the others the text alone is learned"
        here.screen.say(f"The endpoint's tokens are the student's in {share}{text}.")
        place = said.folder / f"tokens-{key(repr(sorted(task.facts.items())))[:12]}"
        entries = min(top + 1, found.classes)
        with Store.open(place, facts, top=entries, logits="int8") as known:
            for keys, likely, mask in found.known():
                known.put(keys, Knowledge(likely, mask=mask))
        recall = partial(_recalled, known)
    return replace(here, task=task, heard=Heard(recall, facts))


def _pairs(
    wanted: Mapping[str, tuple[Question, Asked]], said: Said
) -> Iterator[tuple[Question, Answer]]:
    for address, (question, _) in wanted.items():
        if address in said:
            yield question, answer_of(said.get(address)["answer"])


def _nothing(batch: Batch) -> None:
    """Of text alone."""


def _recalled(known: Store, batch: Batch) -> Knowledge:
    return known.get(batch.keys)


def _tell(here: Setting, book: Book, who: Afar, told: Told, said: Said) -> None:
    """What was asked and paid, on the screen and in the report."""
    bill = told.bill
    row: dict[str, Any] = {
        "model": who.endpoint.model,
        "answers": len(said),
        "asked now": told.asked,
        "without an answer": len(told.nothing),
        "requests": bill.requests,
        "retries": bill.retries,
        "prompt tokens": bill.prompt,
        "completion tokens": bill.completion,
    }
    cost = ""
    if said.damaged:
        here.screen.say(f"{said.damaged} answers were not whole any more, and were asked again.")
    if bill.priced:
        row["cost"] = round(bill.cost, 6)
        cost = f", cost {bill.cost:.4g}"
    if bill.untold:
        row["requests of unknown cost"] = bill.untold
        row |= {"cost at most": round(bill.most, 6)} if bill.priced else {}
    book.tell(TITLE, [row])
    here.screen.say(
        f"Endpoint: {len(said)} answers, {told.asked} of them asked now; {bill.prompt:,} prompt "
        f"and {bill.completion:,} completion tokens{cost}; {here.task.size('train')} rows to learn "
        "from."
    )
    for why in list(_reasons(told.nothing.values()))[:3]:
        here.screen.say(f"Left out: {why}.")


def _reasons(nothing: Iterable[str]) -> Iterator[str]:
    counts: dict[str, int] = {}
    for why in nothing:
        counts[why] = counts.get(why, 0) + 1
    for why, count in counts.items():
        yield f"{count} prompts, as {why}"
