"""What an endpoint costs, how fast it is asked, and a budget that is never passed."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from speaking import PROMPTS, Reply, answered, asking, endpoint, paid, right, speaking, texts

from attar.endpoint.bill import BESIDE, dearest
from attar.endpoint.pace import Pace, backoff
from attar.errors import EndpointError


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attar.endpoint.pace.FIRST", 0.001)


def test_a_budget_is_never_passed_and_what_it_bought_is_kept(tmp_path: Path) -> None:
    price = {"prompt": 1e5, "completion": 1e5}  # 1.5 an answer
    with speaking() as server:
        to = endpoint(server.url, price=price, budget=12.0, limits={"at_once": 4})
        with pytest.raises(EndpointError, match=r"budget of 12: 4.5 is paid, and 3 of 6 "):
            asking(to, tmp_path)
        assert len(texts(to, tmp_path)) == len(server.asked) == 3
        more = endpoint(server.url, price=price, budget=200.0)
        told, _ = asking(more, tmp_path)
    assert paid(server) == dict.fromkeys(PROMPTS, 1)
    assert told.bill.cost == pytest.approx(6 * 1.5)


def test_a_budget_counts_what_earlier_runs_paid(tmp_path: Path) -> None:
    price = {"prompt": 1e5, "completion": 1e5}
    with speaking() as server:
        asking(endpoint(server.url, price=price), tmp_path, PROMPTS[:4])
        small = endpoint(server.url, price=price, budget=6.1)  # 6 are paid
        with pytest.raises(EndpointError, match="6 is paid, and 4 of 6"):
            asking(small, tmp_path)
        assert len(server.asked) == 4


def test_the_dearest_a_request_can_be_counts_all_that_is_read_and_every_answer() -> None:
    body = {"model": "m" * 99, "prompt": "née", "max_tokens": 10, "temperature": 1.0}
    plain = dearest(body)
    assert plain.completion == 10
    assert plain.prompt - BESIDE == len('"née"'.encode())
    assert dearest(body | {"n": 8}).completion == 80
    assert dearest(body | {"n": 2, "best_of": 4}).completion == 40
    tools = [{"name": "look"}]
    assert dearest(body | {"tools": tools}).prompt - plain.prompt == len(json.dumps(tools))


def test_a_budget_needs_an_end_of_every_answer() -> None:
    price = {"prompt": 1.0, "completion": 1.0}
    endless = {"max_tokens": None}
    with pytest.raises(EndpointError, match="answers of some length"):
        endpoint("http://localhost:1/v1", price=price, budget=1.0, more=endless).check()
    endpoint("http://localhost:1/v1", price=price, more=endless).check()
    bound = endless | {"max_completion_tokens": 9}
    endpoint("http://localhost:1/v1", price=price, budget=1.0, more=bound).check()


def test_a_budget_without_prices_is_refused() -> None:
    with pytest.raises(EndpointError, match="A budget needs the `price` of both"):
        endpoint("https://example.org/v1", budget=1.0, price={"prompt": 1.0}).check()


def test_where_nobody_tells_the_usage_the_most_is_counted(tmp_path: Path) -> None:
    def acts(_: int, path: str, body: dict[str, Any]) -> Reply:
        return right({k: v for k, v in answered(path, body).items() if k != "usage"})

    with speaking(acts) as server:
        told, _ = asking(endpoint(server.url, price={"prompt": 1, "completion": 1}), tmp_path)
    assert (told.bill.prompt, told.bill.completion, told.bill.untold) == (0, 0, 6)
    most = sum(len(json.dumps(each)) + 64 + 8 for each in PROMPTS) / 1e6
    assert (told.bill.cost, told.bill.most) == (0, pytest.approx(most))


def test_answers_that_cost_and_say_nothing_are_on_the_bill(tmp_path: Path) -> None:
    def acts(before: int, path: str, body: dict[str, Any]) -> Reply | None:
        return right(answered(path, body) | {"choices": []}) if before == 0 else None

    with speaking(acts) as server:
        told, _ = asking(endpoint(server.url), tmp_path)
        again, _ = asking(endpoint(server.url), tmp_path)
    for each in (told, again):
        assert (each.bill.prompt, each.bill.completion) == (120, 60)
        assert (each.bill.requests, each.bill.retries) == (12, 6)


def test_requests_go_out_evenly_and_rest_together() -> None:
    now, slept = 0.0, []

    def sleep(seconds: float) -> bool:
        nonlocal now
        slept.append(round(seconds, 6))
        now += seconds
        return False

    pace = Pace(requests=30, tokens=600, sleep=sleep, now=lambda: now)
    for tokens in (10, 10, 50, 10):
        assert pace.wait(tokens)
    assert [each for each in slept if each] == [2, 2, 5]  # 30 a minute; 50 tokens take 5 seconds
    pace.hold(10)
    assert pace.wait(10)
    assert now == 9 + 10


def test_retries_wait_twice_as_long_each_time_and_never_all_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("attar.endpoint.pace.FIRST", 0.5)
    waits = [[backoff(n) for _ in range(50)] for n in range(1, 12)]
    for n, some in enumerate(waits):
        most = min(60.0, 0.5 * 2**n)
        assert most / 2 <= min(some) < max(some) <= most


def test_a_request_of_rest_holds_back_everybody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[float] = []
    hold = Pace.hold
    monkeypatch.setattr(Pace, "hold", lambda self, s: (held.append(s), hold(self, s / 1000))[1])

    def acts(before: int, _: str, body: dict[str, Any]) -> Reply | None:
        said = {PROMPTS[1]: {"Retry-After": "7"}, PROMPTS[3]: {}}
        if before == 0 and body["prompt"] in said:
            return Reply(429, b"{}", said[body["prompt"]])
        return None

    with speaking(acts) as server:
        asking(endpoint(server.url, limits={"at_once": 1}), tmp_path)
    assert held[0] == 7
    assert len(held) == 2
    assert held[1] < 1
    assert len(server.asked) == 8


def test_as_many_requests_as_are_allowed_are_under_way_together(tmp_path: Path) -> None:
    together, most = 0, 0
    lock, meeting = threading.Lock(), threading.Barrier(3, timeout=5)

    def acts(*_: Any) -> None:
        nonlocal together, most
        with lock:
            together += 1
            most = max(most, together)
        meeting.wait()  # none goes on before there are three
        with lock:
            together -= 1

    with speaking(acts) as server:
        asking(endpoint(server.url, limits={"at_once": 3}), tmp_path)
    assert most == 3
