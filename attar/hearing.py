"""A teacher that is no network here: it is asked over HTTP, and its text is what is learned."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from attar import arms
from attar.endpoint import Asked, Endpoint, Told, answer_of, asked
from attar.resolve import ask, chosen
from attar.screen import Silent
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


@dataclass(frozen=True)
class _Plan:
    """What a recipe wants of its endpoint.

    wanted: by the address of its answer each question, and as it is sent
    facts: what all of them are asked with; folder: where the answers to such are kept
    """

    who: Afar
    wanted: Mapping[str, tuple[Question, Asked]]
    facts: Mapping[str, Any]

    @classmethod
    def of(cls, here: Setting) -> _Plan:
        """The questions of a recipe, in an order that no seed decides."""
        assert here.plan.teacher is not None
        assert here.plan.teach is not None
        who: Afar = ask(here.plan.teacher.function, {"cache": here.cache})
        scheme = here.plan.teach.function
        prompt, temperature = chosen(scheme, "prompt"), chosen(scheme, "temperature")
        each = {}
        for question in here.task.questions(prompt, who.tokens, who.by):
            sent = who.endpoint.asks(question, temperature)
            each[sent.key] = question, sent
        facts = {"model": who.endpoint.model, "temperature": temperature, "prompt": prompt}
        facts |= {"top": who.endpoint.top, "more": dict(who.endpoint.more)}
        facts |= {"by": who.by, "tokens": who.tokens}
        return cls(who, {key: each[key] for key in sorted(each)[: who.prompts]}, facts)

    @property
    def folder(self) -> Path:
        return self.who.folder / _short(self.facts)

    def pairs(self, said: Said) -> Iterator[tuple[Question, Answer]]:
        """Each question with its answer, where there is one."""
        for address, (question, _) in self.wanted.items():
            if address in said:
                yield question, answer_of(said.get(address)["answer"])


def heard(here: Setting, book: Book) -> Setting:
    """The setting in which the text of the recipe's endpoint is what there is to learn.

    What is known of it is not asked again; where nothing else is wanted, neither the endpoint nor
    its key is needed.
    Raises EndpointError where the asking ends early; what was answered before is kept.
    """
    if not here.afar:
        return here
    start, plan = time.monotonic(), _Plan.of(here)
    with (
        arms.held(plan.folder, partial(here.screen.say, WAITING)),
        Said.open(plan.folder, plan.facts) as said,
    ):
        told = _asked(here, plan, said)
        there = _learned(here, plan, said)
        _tell(there, book, plan.who, told, said)
    book.seconds["endpoint"] = time.monotonic() - start
    return there


def foretold(here: Setting) -> tuple[Setting, str, float]:
    """What asking the endpoint would take: in a sentence, and in seconds by its limits alone.

    Where everything is answered already, the setting is the one that `heard` gives.
    """
    if not here.afar:
        return here, "", 0.0
    plan = _Plan.of(here)
    with TemporaryDirectory() as nowhere:
        known = Said.open(plan.folder if plan.folder.is_dir() else Path(nowhere), plan.facts)
        left = [pair for address, pair in plan.wanted.items() if address not in known]
    if not left:
        quiet = _learned(replace(here, screen=Silent()), plan, known)
        return replace(quiet, screen=here.screen), f"{len(plan.wanted)} prompts, all answered", 0.0
    prompt, most = (sum(n) for n in zip(*((q.size, q.most) for q, _ in left), strict=True))
    told = f"{len(left)} of {len(plan.wanted)} prompts to ask: about {prompt:,} tokens, and at most"
    told += f" {most:,} of answers"
    end = plan.who.endpoint
    if end.price is not None:
        prices = [end.price.get(name, 0.0) for name in ("prompt", "completion")]
        told += f", cost at most about {(prompt * prices[0] + most * prices[1]) / 1e6:.3g}"
    rates = end.limits.get("requests"), end.limits.get("tokens")
    pairs = zip((len(left), prompt + most), rates, strict=True)
    return here, told, max([0.0, *(60 * n / rate for n, rate in pairs if rate)])


def _asked(here: Setting, plan: _Plan, said: Said) -> Told:
    who, every = plan.who.endpoint, [sent for _, sent in plan.wanted.values()]
    missing = sum(sent.key not in said for sent in every)
    if not missing:
        return asked(who, every, said)
    whose = f", with the key in {who.key}" if who.key and who.key in os.environ else ""
    here.screen.say(f"{missing} of {len(every)} prompts go to {who.model} at {who.host}{whose}.")
    with here.screen.bar("Asking the endpoint") as advance:
        return asked(who, every, said, advance)


def _learned(here: Setting, plan: _Plan, said: Said) -> Setting:
    """The setting with the answers as its text, and with what was said of their tokens."""
    top = plan.who.endpoint.top
    task, found = here.task.heard(plan.pairs(said), top)
    facts = {**plan.facts, **task.facts}
    answered = sum(address in said for address in plan.wanted)
    if found.answers < answered:
        here.screen.say(f"Left out: {answered - found.answers} answers, which say nothing.")
    if top is None:
        return replace(here, task=task, heard=Heard(_nothing, facts))
    share = f"{found.alike} of {found.answers} answers ({found.alike / found.answers:.0%})"
    text = "" if found.alike == found.answers else "; of the others the text alone is learned"
    here.screen.say(f"The endpoint's tokens are the student's in {share}{text}.")
    place, entries = said.folder / f"tokens-{_short(facts)}", min(top + 1, found.classes)
    with Store.open(place, facts, top=entries, logits="int8") as known:
        for keys, likely, mask in found.known():
            if known.missing(keys):
                known.put(keys, Knowledge(likely, mask=mask))
    return replace(here, task=task, heard=Heard(partial(_recalled, known), facts))


def _short(facts: Mapping[str, Any]) -> str:
    return key(json.dumps(facts, sort_keys=True, default=str))[:12]


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
