"""When the next request may be sent: so many a minute, and not while the server asks for rest."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

MINUTE = 60.0
FIRST, LONGEST = 0.5, 60.0
"""Seconds that are waited after a first failure, and at most."""


class Pace:
    """Lets threads go on one after another, evenly spaced.

    requests, tokens: a minute; None for no limit
    now, sleep: a clock, and what waits for so many seconds and says whether all is to be stopped
    """

    def __init__(
        self,
        requests: float | None,
        tokens: float | None,
        sleep: Callable[[float], bool],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._each = 0.0 if requests is None else MINUTE / requests
        self._token = 0.0 if tokens is None else MINUTE / tokens
        self._sleep, self._now = sleep, now
        self._free = self._held = now()
        self._lock = threading.Lock()

    def wait(self, tokens: int) -> bool:
        """Wait until a request of so many tokens may go; False where all is to be stopped."""
        with self._lock:
            mine = max(self._now(), self._free)
            self._free = mine + max(self._each, self._token * tokens)
        while (left := max(mine, self._held) - self._now()) > 0:
            if self._sleep(left):
                return False
        return not self._sleep(0)

    def hold(self, seconds: float) -> None:
        """Send nothing for so long, whoever asks."""
        with self._lock:
            self._held = max(self._held, self._now() + seconds)


def backoff(failures: int) -> float:
    """Seconds to wait after so many failures: twice as long each time, and never all together.

    Source: Brooker, Exponential Backoff And Jitter, AWS Architecture Blog, 2015 (here half of it
    is fixed, so that no wait is nothing).
    """
    whole = min(LONGEST, FIRST * 2.0 ** (failures - 1))
    return whole * random.uniform(0.5, 1.0)
