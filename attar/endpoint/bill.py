"""What is paid for: tokens counted, their cost, and a budget that is never passed."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from attar.endpoint.speech import Usage

BESIDE = 64
"""Tokens that a template may put around what is said, beside those of each message."""

_MILLION = 1e6


class Bill:
    """Tokens and cost of all that was ever answered under the same settings; safe among threads.

    Where nobody tells what a request came to, it counts at its dearest, apart from the rest.

    price: of a million tokens, by `prompt` and `completion`; None where it is not known
    budget: what all of it may cost; None for no limit
    """

    def __init__(self, price: Mapping[str, float] | None, budget: float | None) -> None:
        self._price, self.budget = dict(price or {}), budget
        self.priced = price is not None
        self.prompt = self.completion = self.untold = 0
        self.requests = self.retries = 0
        self._guessed = self._promised = 0.0
        self._under_way = 0
        self._lock = threading.Condition()

    @property
    def cost(self) -> float:
        """What was paid for what was told, in the unit of the prices."""
        return self._of(Usage(self.prompt, self.completion))

    @property
    def most(self) -> float:
        """What was paid at most, as some requests did not tell."""
        return self.cost + self._guessed

    def take_in(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Count what was paid earlier."""
        for each in records:
            self._add(Usage(*each["usage"]), told=each["told"])
            self.requests += each["tries"]
            self.retries += each["tries"] - ("answer" in each)

    def promise(self, body: Mapping[str, Any]) -> bool:
        """Whether a request can be paid at its dearest, with all under way; it is set aside.

        Where it can't, but those under way may cost less than was set aside, they are waited for.
        """
        worst = self._of(dearest(body))
        with self._lock:
            while self._over(worst) and self._under_way:
                self._lock.wait()
            if self._over(worst):
                return False
            self._promised += worst
            self._under_way += 1
            return True

    def settle(self, body: Mapping[str, Any], usage: Usage | None, *, told: bool = True) -> None:
        """What a request came to; None where nothing was charged."""
        with self._lock:
            self._promised -= self._of(dearest(body))
            self._under_way -= 1
            if usage is not None:
                self._add(usage, told=told)
            self._lock.notify_all()

    def tried(self, *, again: bool) -> None:
        """Count a request; again: whether it was not the first of its question."""
        with self._lock:
            self.requests += 1
            self.retries += again

    def _over(self, worst: float) -> bool:
        return self.budget is not None and self.most + self._promised + worst > self.budget

    def _add(self, usage: Usage, *, told: bool) -> None:
        if told:
            self.prompt += usage.prompt
            self.completion += usage.completion
        else:
            self.untold += 1
            self._guessed += self._of(usage)

    def _of(self, usage: Usage) -> float:
        prompt, completion = self._price.get("prompt", 0.0), self._price.get("completion", 0.0)
        return (usage.prompt * prompt + usage.completion * completion) / _MILLION


def dearest(body: Mapping[str, Any]) -> Usage:
    """The most that a request can cost: no tokenizer makes more tokens than there are bytes."""
    # Whatever is more than a number may be read: the prompt, but tools and forms of answers too.
    said = [each for name, each in body.items() if name != "model" and not _number(each)]
    written = "".join(json.dumps(each, ensure_ascii=False) for each in said)
    most = body.get("max_tokens", body.get("max_completion_tokens", 0))
    times = max(int(body.get("n") or 1), int(body.get("best_of") or 1))
    return Usage(len(written.encode("utf-8", "replace")) + BESIDE, times * int(most or 0))


def _number(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float)
