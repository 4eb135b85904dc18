"""Many questions to one endpoint: side by side, paced, retried, and every answer kept at once."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NoReturn

from attar.endpoint import wire
from attar.endpoint.bill import Bill, dearest
from attar.endpoint.pace import Pace, backoff
from attar.endpoint.speech import (
    Garbage,
    Usage,
    kept,
    key_of,
    out_of_credit,
    read,
    reason_of,
    request,
    usage_of,
)
from attar.errors import EndpointError
from attar.store import Said
from attar.types import Question

LIMITS: dict[str, float] = {"at_once": 8, "retries": 8, "timeout": 120}
"""Requests under way together, how often one is tried again, seconds for each: where unsaid."""

NEVER = 3
"""Prompts that may come to nothing before the first answer; then no more are sent."""

GARBAGE = 3
"""Answers to one prompt that are none, each of which may have been paid; then it is left out."""

REST = 600.0
"""Seconds of rest that a server may ask for; a longer one is for its user to wait."""

AGAIN = (408, 409, 425, 429)
"""Statuses below 500 that may be another at the next try."""


@dataclass(frozen=True)
class Endpoint:
    """Who is asked, and how.

    key: the environment variable that holds the key, which itself is kept nowhere
    limits: `requests` and `tokens` a minute, and what `LIMITS` has
    more: further fields of each request
    """

    url: str
    model: str
    key: str | None = None
    top: int | None = None
    price: Mapping[Any, float] | None = None
    budget: float | None = None
    limits: Mapping[Any, float] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raises EndpointError for what can be told before anything is asked."""
        wire.split(self.url)
        if self.key is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", self.key):
            # It may be the key itself, so it is not repeated.
            raise EndpointError(
                "`key` of an endpoint is the name of the environment variable that holds the key, "
                "such as OPENAI_API_KEY, and never the key itself."
            )
        if self.budget is not None and {"prompt", "completion"} - set(self.price or {}):
            raise EndpointError("A budget needs the `price` of both prompt and completion tokens.")
        unbound = "max_tokens" in self.more and not self.more["max_tokens"]
        if self.budget is not None and unbound and not self.more.get("max_completion_tokens"):
            raise EndpointError(
                "A budget needs answers of some length at most; leave `max_tokens` as it is, or "
                "give `max_completion_tokens` in `more`."
            )
        for name in ("requests", "tokens", "at_once", "timeout"):
            if name in self.limits and self.limits[name] <= 0:
                raise EndpointError(f"The limit {name!r} of an endpoint is more than 0.")

    @property
    def host(self) -> str:
        """Where it is."""
        return wire.split(self.url).netloc

    def limit(self, name: str) -> float:
        """One of `LIMITS`."""
        return self.limits.get(name, LIMITS[name])

    def asks(self, question: Question, temperature: float) -> Asked:
        """A question as it is sent."""
        path, body = request(question, self.model, temperature, self.top, self.more)
        return Asked(key_of(path, body), path, body, question.size + question.most)


@dataclass(frozen=True)
class Asked:
    """A question as it is sent: the address of its answer, path and body, and tokens, about."""

    key: str
    path: str
    body: Mapping[str, Any]
    tokens: int


@dataclass(frozen=True)
class Told:
    """How the asking went: how many were asked now, why some came to nothing, what all cost."""

    asked: int
    nothing: Mapping[str, str]
    bill: Bill


def asked(
    endpoint: Endpoint,
    questions: Sequence[Asked],
    said: Said,
    progress: Callable[[int, int, str], None] = lambda *_: None,
) -> Told:
    """Ask for whatever is not known yet, in the order given; each answer is kept as it comes.

    progress: is told how many are answered, of how many, and what was paid
    Where the asking ends early (Ctrl-C too), what is under way is still waited for and kept.
    Raises EndpointError with what is wrong: for a key that is refused, a model that is not there,
    a server that does not answer any more, a budget that would be passed.
    """
    bill = Bill(endpoint.price, endpoint.budget)
    bill.take_in(said.records())
    each = {one.key: one for one in questions}
    wanted = [one for one in each.values() if one.key not in said]
    work = _Work(endpoint, bill, said, len(each) - len(wanted), len(each), progress)
    if wanted:
        work.do(wanted, wire.key_in(endpoint.key, endpoint.url))
    if work.spent:
        _spent(bill, list(each), said)
    return Told(len(wanted) - len(work.nothing), work.nothing, bill)


def _spent(bill: Bill, keys: Sequence[str], said: Said) -> NoReturn:
    first = next((n for n, key in enumerate(keys) if key not in said), len(keys))
    known = sum(key in said for key in keys)
    train = f", or set `prompts: {first}` to train on the first ones" if first else ""
    raise EndpointError(
        f"One more request could pass the budget of {bill.budget:g}: {bill.most:.4g} is paid, and "
        f"{known} of {len(keys)} prompts are answered and kept. Raise `budget` and run again{train}"
        "."
    )


class _Work:
    """What the threads of one asking share."""

    def __init__(
        self,
        endpoint: Endpoint,
        bill: Bill,
        said: Said,
        known: int,
        total: int,
        progress: Callable[[int, int, str], None],
    ) -> None:
        self.endpoint, self.bill, self.said = endpoint, bill, said
        self.nothing: dict[str, str] = {}
        self.spent = False
        self._known, self._total, self._progress = known, total, progress
        self._stop, self._lock = threading.Event(), threading.Lock()
        limits = endpoint.limits
        self._pace = Pace(limits.get("requests"), limits.get("tokens"), self._stop.wait)

    def do(self, wanted: Sequence[Asked], key: str) -> None:
        """Answer them all, or raise the first error that ends it."""
        left = iter(wanted)
        threads = min(len(wanted), max(1, int(self.endpoint.limit("at_once"))))
        with ThreadPoolExecutor(threads) as pool:
            try:
                for done in [pool.submit(self._thread, left, key) for _ in range(threads)]:
                    done.result()
            finally:
                self._stop.set()  # leaving the pool waits for what is under way
        if not len(self.said) and self.nothing:
            raise EndpointError(self._never())

    def _thread(self, left: Iterator[Asked], key: str) -> None:
        try:
            while not self._stop.is_set():
                with self._lock:
                    one = next(left, None)
                if one is None:
                    return
                self._answer(one, key)
        except BaseException:
            self._stop.set()
            raise

    def _answer(self, one: Asked, key: str) -> None:
        """One question until it is answered, comes to nothing, or everything is stopped."""
        failures, unkept = 0, 0
        while self._pace.wait(one.tokens):
            if not self.bill.promise(one.body):
                self.spent = True
                self._stop.set()
                return
            if self._stop.is_set():  # while it waited for the purse
                self.bill.settle(one.body, None)
                return
            self.bill.tried(again=failures > 0)
            unkept += 1
            why, again = self._tried(one, key, unkept)
            if not why:
                return
            failures, unkept = failures + 1, unkept * (not again.kept)
            over = failures > self.endpoint.limit("retries")
            if again.useless or (again.own and (over or failures >= GARBAGE)):
                self._came_to_nothing(one, why)
                return
            if over:
                raise EndpointError(f"{_upper(why)}, {failures} times. {self._so_far()}")
            self._rest(again, failures)

    def _rest(self, again: _Again, failures: int) -> None:
        """Wait before the next try: all of them, where the server asks for it."""
        seconds = max(again.after or 0.0, backoff(failures))
        if again.everybody:
            self._pace.hold(seconds)
        else:
            self._stop.wait(seconds)

    def _tried(self, one: Asked, key: str, tries: int) -> tuple[str, _Again]:
        """One request: why it failed, nothing where it did not; and how to go on."""
        url = f"{self.endpoint.url.rstrip('/')}/{one.path}"
        charged, told = None, True
        try:
            reply = wire.post(url, one.body, key, self.endpoint.limit("timeout"))
            if reply.status != 200:
                return self._refused(reply, key)
            usage = usage_of(reply.text)
            charged, told = usage or dearest(one.body), usage is not None
            answer, who = read(reply.text)
            self.said.put(
                one.key, {"answer": kept(answer), "by": who} | _cost(charged, told, tries)
            )
        except wire.Lost as lost:
            if lost.paid:
                charged, told = dearest(one.body), False
                self.said.put(one.key, _cost(charged, told, tries))
            return str(lost), _Again(kept=lost.paid)
        except Garbage as garbage:
            assert charged is not None
            self.said.put(one.key, _cost(charged, told, tries))
            return f"{self.endpoint.host} sent no answer: {garbage}", _Again(own=True, kept=True)
        finally:
            self.bill.settle(one.body, charged, told=told)
        with self._lock:
            self._known += 1
            self._progress(self._known, self._total, self._word())
        return "", _Again()

    def _refused(self, reply: wire.Reply, key: str) -> tuple[str, _Again]:
        """What another status than 200 means. Raises EndpointError where no other will come."""
        said, status = reason_of(reply.text), reply.status
        says = f" ({said})" if said and (len(key) >= wire.HIDDEN or key not in said) else ""
        host, so_far = self.endpoint.host, self._so_far()
        if status in (401, 403):
            raise EndpointError(f"{host} {self._of_key(key)}{says}. {so_far}")
        if status in (404, 405, 410):
            raise EndpointError(
                f"{host} has no model {self.endpoint.model!r} at this url{says}; the url ends "
                f"before /chat/completions, often in /v1. {so_far}"
            )
        if 300 <= status < 400:
            raise EndpointError(
                f"{host} sends on to another address, where no key is sent: give that as url. "
                f"{so_far}"
            )
        if status == 402 or out_of_credit(reply.text):
            raise EndpointError(f"{host} wants to be paid first{says}. {so_far}")
        if reply.after is not None and reply.after > REST:
            raise EndpointError(
                f"{host} asks to be left alone for {reply.after / 60:.0f} minutes{says}: run again "
                f"then. {so_far}"
            )
        why = f"{host} answered with status {status}{says}"
        if status >= 500 or status in AGAIN:
            return why, _Again(after=reply.after, everybody=status == 429 or bool(reply.after))
        return why, _Again(useless=True)

    def _of_key(self, key: str) -> str:
        variable = self.endpoint.key
        if variable is None:
            return "wants a key: name the environment variable that holds it as `key`"
        return f"refuses the key in {variable}" if key else f"wants a key: {variable} is not set"

    def _came_to_nothing(self, one: Asked, why: str) -> None:
        with self._lock:
            self.nothing[one.key] = why
            if not len(self.said) and len(self.nothing) >= NEVER:
                raise EndpointError(self._never())

    def _never(self) -> str:
        why = next(reversed(self.nothing.values()))
        return f"{_upper(why)}; no prompt was answered, so no more are sent."

    def _so_far(self) -> str:
        if not len(self.said):
            return "Nothing was answered yet."
        return f"{len(self.said)} answers are kept; run again to go on."

    def _word(self) -> str:
        if self.bill.priced:
            return f"cost {self.bill.most:.3g}"
        return f"{self.bill.completion} tk"


@dataclass(frozen=True)
class _Again:
    """How to go on after a failure.

    after: seconds that the server asks for; everybody: whether all others have to wait as well
    own: whether it is about this question; useless: whether no other try can help
    kept: whether what was paid for it is written down
    """

    after: float | None = None
    everybody: bool = False
    own: bool = False
    useless: bool = False
    kept: bool = False


def _upper(why: str) -> str:
    return why[0].upper() + why[1:] if why.startswith("nobody") else why


def _cost(usage: Usage, told: bool, tries: int) -> dict[str, Any]:
    return {"usage": [usage.prompt, usage.completion], "told": told, "tries": tries}
