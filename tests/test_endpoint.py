"""An endpoint that answers, one that misbehaves, and what is kept, paid and said of both."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from speaking import (
    PROMPTS,
    Reply,
    answered,
    asking,
    endpoint,
    paid,
    right,
    sent,
    speaking,
    text_for,
    texts,
)

from attar.endpoint import Endpoint, answer_of, asked
from attar.errors import EndpointError, StoreError
from attar.store import Said

KEY = "sk-this-is-not-to-be-seen"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attar.endpoint.pace.FIRST", 0.001)
    monkeypatch.setenv("THE_KEY", KEY)


def whole(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.rglob("*") if path.is_file())


ALL = {each: text_for(each) for each in PROMPTS}


def test_every_prompt_is_answered_once_and_never_asked_again(tmp_path: Path) -> None:
    with speaking() as server:
        to = endpoint(server.url)
        told, _ = asking(to, tmp_path)
        again, _ = asking(to, tmp_path)
    assert texts(to, tmp_path) == ALL
    assert paid(server) == dict.fromkeys(PROMPTS, 1)
    assert (told.asked, again.asked) == (6, 0)
    assert (again.bill.prompt, again.bill.completion, again.bill.requests) == (60, 30, 6)
    path, headers, body = server.asked[0]
    assert path == "/v1/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert body == {"model": "speaker", "prompt": body["prompt"], "max_tokens": 8, "temperature": 1}


HTML = b"<!doctype html><html><body>Bad gateway</body></html>"
BAD = {
    "garbage": lambda: Reply(0, b"\x00\xff\x17garbage\r\n\r\n"),
    "half a header": lambda: Reply(0, b"HTTP/1.1 20"),
    "HTML": lambda: Reply(200, HTML, {"Content-Type": "text/html"}),
    "half a JSON": lambda: Reply(200, right(answered("completions", {"prompt": "x"})).body[:40]),
    "a body cut off": lambda: Reply(200, b'{"choices"', whole=False),
    "no choices": lambda: right({"choices": []}),
    "no text": lambda: right({"choices": [{"finish_reason": "stop"}]}),
    "a list": lambda: right([1, 2]),
    "deep JSON": lambda: Reply(200, b"[" * 100_000),
    "not UTF-8": lambda: Reply(200, b'{"choices": [{"text": "\xff'),
    "an error of the server": lambda: Reply(500, HTML),
    "too much": lambda: Reply(429, b"{}"),
    "too much, for a moment": lambda: Reply(429, b"{}", {"Retry-After": "0.02"}),
    "too much, until a date": lambda: Reply(429, b"{}", {"Retry-After": formatdate(usegmt=True)}),
    "too much, for who knows how long": lambda: Reply(503, b"{}", {"Retry-After": "soon"}),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_what_goes_wrong_once_is_asked_once_more(bad: str, tmp_path: Path) -> None:
    def acts(before: int, _: str, body: dict[str, Any]) -> Reply | None:
        return BAD[bad]() if before == 0 and body["prompt"] == PROMPTS[2] else None

    with speaking(acts) as server:
        to = endpoint(server.url)
        told, _ = asking(to, tmp_path)
    assert texts(to, tmp_path) == ALL
    assert paid(server) == dict.fromkeys(PROMPTS, 1) | {PROMPTS[2]: 2}
    assert (told.bill.requests, told.bill.retries, told.nothing) == (7, 1, {})


@pytest.mark.parametrize("bad", ["HTML", "no choices", "half a JSON"])
def test_a_prompt_that_only_brings_garbage_is_left_out_and_told(bad: str, tmp_path: Path) -> None:
    def acts(_: int, __: str, body: dict[str, Any]) -> Reply | None:
        return BAD[bad]() if body["prompt"] == PROMPTS[2] else None

    with speaking(acts) as server:
        to = endpoint(server.url)
        told, _ = asking(to, tmp_path)
    assert paid(server) == dict.fromkeys(PROMPTS, 1) | {PROMPTS[2]: 3}
    assert len(texts(to, tmp_path)) == 5
    (why,) = told.nothing.values()
    assert "sent no answer" in why


@pytest.mark.parametrize("bad", BAD)
def test_who_does_nothing_right_is_soon_left_alone(bad: str, tmp_path: Path) -> None:
    with speaking(lambda *_: BAD[bad]()) as server:
        to = endpoint(server.url, limits={"at_once": 1, "retries": 1})
        with pytest.raises(EndpointError) as refused:
            asking(to, tmp_path)
    assert max(server.times.values()) == 2
    assert len(server.times) <= 3
    assert KEY not in str(refused.value)


@pytest.mark.parametrize(
    ("status", "said", "sentence"),
    [
        (401, "Incorrect API key provided: KEY", "refuses the key in THE_KEY"),
        (403, "no", "refuses the key in THE_KEY"),
        (404, "The model `speaker` does not exist", "has no model 'speaker' at this url"),
        (402, "pay", "wants to be paid first"),
        (301, "", "sends on to another address"),
    ],
)
def test_what_no_other_try_can_mend_ends_it_at_once(
    status: int, said: str, sentence: str, tmp_path: Path
) -> None:
    def acts(*_: Any) -> Reply | None:
        if len(server.asked) <= 3:
            return None
        told = json.dumps({"error": {"message": said.replace("KEY", KEY)}}).encode()
        return Reply(status, told, {"Location": "http://127.0.0.2:1/v1"})

    with speaking(acts) as server:
        to = endpoint(server.url, limits={"at_once": 1})
        with pytest.raises(EndpointError, match=sentence) as refused:
            asking(to, tmp_path)
        assert len(server.asked) == 4
        assert "3 answers are kept" in str(refused.value)
        server.acts = lambda *_: None
        asking(to, tmp_path)
    assert texts(to, tmp_path) == ALL
    assert sorted(paid(server).values()) == [1, 1, 1, 1, 1, 2]
    assert KEY not in str(refused.value)
    assert refused.value.__cause__ is None
    assert KEY not in whole(tmp_path)


def test_a_key_that_is_not_set_is_asked_for_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("THE_KEY")
    with speaking(lambda *_: Reply(401, b"{}")) as server:
        with pytest.raises(EndpointError, match="wants a key: THE_KEY is not set"):
            asking(endpoint(server.url, limits={"at_once": 1}), tmp_path)
        assert "Authorization" not in server.asked[0][1]


@pytest.mark.parametrize("key", ["sk-two\nlines", "sk with blanks", "sk-ünïcode", "sk-\x00zero"])
def test_a_key_that_no_header_holds_is_refused_and_not_repeated(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.environ", {"THE_KEY": key})
    with speaking() as server:
        with pytest.raises(EndpointError, match="is no key") as refused:
            asking(endpoint(server.url), tmp_path)
        assert not server.asked
    assert "sk" not in str(refused.value)


def test_what_a_server_says_of_the_key_is_blotted_out(tmp_path: Path) -> None:
    def acts(*_: Any) -> Reply:
        echo = {"text": f" I know {KEY}!", "finish_reason": "stop"}
        return right({"choices": [echo], "model": KEY})

    with speaking(acts) as server:
        asking(endpoint(server.url), tmp_path)
    assert KEY not in whole(tmp_path)
    assert "I know (the key)!" in whole(tmp_path)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("ftp://example.org/v1", "give http"),
        ("file:///etc/passwd", "give http"),
        ("example.org/v1", "give http"),
        ("https://me:secret@example.org/v1", "holds a name, a password"),
        ("https://example.org/v1?api_key=secret", "holds a name, a password"),
        ("https://example.org:port/v1", "can't be read"),
    ],
)
def test_an_address_that_can_not_be_asked_is_refused(url: str, sentence: str) -> None:
    with pytest.raises(EndpointError, match=sentence) as refused:
        endpoint(url).check()
    assert "secret" not in str(refused.value)


def test_a_key_is_not_sent_in_the_clear_to_another_machine(tmp_path: Path) -> None:
    to = endpoint("http://example.org/v1")
    with pytest.raises(EndpointError, match="for all to read: give an https url, `key: null`"):
        asking(to, tmp_path)


def test_a_key_in_place_of_its_variable_is_refused_and_not_repeated() -> None:
    with pytest.raises(EndpointError, match="never the key itself") as refused:
        endpoint("https://example.org/v1", key=KEY).check()
    assert KEY not in str(refused.value)


def test_nobody_listening_and_nobody_answering_are_told(tmp_path: Path) -> None:
    with speaking() as server:
        gone = endpoint(server.url)
    with pytest.raises(EndpointError, match=r"Nobody listens at 127.0.0.1:\d+, 4 times. Nothing"):
        asking(gone, tmp_path / "gone")
    waiting = threading.Event()
    with speaking(lambda *_: waiting.wait(5) and None) as server:
        slow = endpoint(server.url, limits={"timeout": 0.05, "retries": 1})
        with pytest.raises(EndpointError, match=r"did not answer within 0.05 s, 2 times"):
            asking(slow, tmp_path / "slow")
        waiting.set()


def test_a_server_that_stops_for_good_loses_nothing_that_is_paid(tmp_path: Path) -> None:
    def acts(*_: Any) -> Reply | None:
        return None if len(server.asked) <= 3 else Reply(0, b"")

    with speaking(acts) as server:
        to = endpoint(server.url, limits={"at_once": 1})
        with pytest.raises(EndpointError, match=r"broke off.*, 4 times. 3 answers are kept"):
            asking(to, tmp_path)
        server.acts = lambda *_: None
        told, _ = asking(to, tmp_path)
    assert texts(to, tmp_path) == ALL
    assert sorted(paid(server).values()) == [1, 1, 1, 1, 1, 5]
    assert told.bill.requests == 6 + 4
    assert told.bill.untold == 4  # who broke off may have been paid


def test_a_long_rest_is_left_to_the_user(tmp_path: Path) -> None:
    day = Reply(429, b"{}", {"Retry-After": "86400"})
    with speaking(lambda *_: day) as server:
        with pytest.raises(EndpointError, match="to be left alone for 1440 minutes"):
            asking(endpoint(server.url, limits={"at_once": 1}), tmp_path)
        assert len(server.asked) == 1


def test_an_empty_purse_is_no_hurry(tmp_path: Path) -> None:
    quota = {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}
    with speaking(lambda *_: Reply(429, json.dumps(quota).encode())) as server:
        with pytest.raises(EndpointError, match=r"paid first .You exceeded your quota"):
            asking(endpoint(server.url, limits={"at_once": 1}), tmp_path)
        assert len(server.asked) == 1


def test_a_prompt_that_is_refused_is_left_out(tmp_path: Path) -> None:
    def acts(_: int, __: str, body: dict[str, Any]) -> Reply | None:
        told = b'{"detail": "prompt is too long"}'
        return Reply(400, told) if body["prompt"] == PROMPTS[4] else None

    with speaking(acts) as server:
        told, _ = asking(endpoint(server.url), tmp_path)
    assert paid(server) == dict.fromkeys(PROMPTS, 1)
    (why,) = told.nothing.values()
    assert "status 400 (prompt is too long)" in why


def test_an_interrupted_asking_keeps_what_was_under_way(tmp_path: Path) -> None:
    def progress(known: int, *_: Any) -> None:
        if known == 2:
            raise KeyboardInterrupt

    with speaking() as server:
        to = endpoint(server.url, limits={"at_once": 3})
        with pytest.raises(KeyboardInterrupt), Said.open(tmp_path, {}) as said:
            asked(to, sent(to), said, progress)
        assert len(texts(to, tmp_path)) == len(server.asked) < 6
        asking(to, tmp_path)
    assert paid(server) == dict.fromkeys(PROMPTS, 1)


def test_a_killed_writer_costs_the_answer_it_was_writing_and_no_other(tmp_path: Path) -> None:
    with speaking() as server:
        to = endpoint(server.url)
        asking(to, tmp_path)
        (file,) = tmp_path.glob("said-*.jsonl")
        file.write_bytes(file.read_bytes()[:-20])  # the last line is torn
        _, said = asking(to, tmp_path)
    assert said.damaged == 1
    assert len(server.asked) == 7
    assert texts(to, tmp_path) == ALL


def test_a_changed_answer_is_found_and_asked_again(tmp_path: Path) -> None:
    with speaking() as server:
        to = endpoint(server.url)
        asking(to, tmp_path)
        (file,) = tmp_path.glob("said-*.jsonl")
        file.write_bytes(file.read_bytes().replace(b"coin", b"cion", 1))
        asking(to, tmp_path)
    assert len(server.asked) == 7
    assert texts(to, tmp_path) == ALL


def test_answers_to_other_questions_are_not_mixed(tmp_path: Path) -> None:
    Said.open(tmp_path, {"temperature": 1.0})
    with pytest.raises(StoreError, match="answers to other questions"):
        Said.open(tmp_path, {"temperature": 0.5})


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"top": 2},
        {"more": {"seed": 3}},
        {"more": {"max_tokens": None, "max_completion_tokens": 8}},
    ],
)
def test_what_changes_the_question_changes_its_address(change: dict[str, Any]) -> None:
    one = sent(endpoint("https://one.example/v1"))[0]
    other = Endpoint(**{"url": "https://one.example/v1", "model": "speaker"} | change)
    assert sent(other)[0].key != one.key
    assert sent(endpoint("https://two.example/v1", key=None))[0].key == one.key


ASKS = """
import sys
from pathlib import Path
from attar.endpoint import Endpoint, asked
from attar.store import Said
from attar.types import Question
to = Endpoint(sys.argv[1], "speaker", limits={"at_once": 1})
with Said.open(Path(sys.argv[2]), {}) as said:
    asked(to, [to.asks(Question(text, most=8), 1.0) for text in sys.argv[3:]], said)
"""


def test_a_process_that_is_killed_has_paid_for_one_answer_too_many_at_most(tmp_path: Path) -> None:
    asked_for, over = threading.Event(), threading.Event()

    def acts(*_: Any) -> None:
        if len(server.asked) == 4:
            asked_for.set()
            over.wait(20)

    with speaking(acts) as server:
        paths = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
        program = [sys.executable, "-c", ASKS, server.url, str(tmp_path), *PROMPTS]
        process = subprocess.Popen(program, env=paths)
        assert asked_for.wait(60)
        process.kill()
        process.wait()
        over.set()
        to = endpoint(server.url)
        assert len(texts(to, tmp_path)) == 3
        asking(to, tmp_path)
    assert texts(to, tmp_path) == ALL
    assert sorted(paid(server).values()) == [1, 1, 1, 1, 1, 2]


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        ({"message": {"content": None}, "finish_reason": "length"}, ""),
        ({"text": None, "finish_reason": "content_filter"}, ""),
        ({"text": "half \ud83d a letter", "finish_reason": "stop"}, "half \ufffd a letter"),
        ({"text": "\ud83d\ude42\u0000", "finish_reason": "stop"}, "🙂\u0000"),
        ({"text": "x", "logprobs": {"tokens": ["x"]}}, "x"),
        ({"text": "x", "logprobs": {"content": [{"token": "x", "logprob": None}]}}, "x"),
        ({"text": "x", "logprobs": [1, 2]}, "x"),
    ],
)
def test_an_odd_answer_is_an_answer_all_the_same(
    choice: dict[str, Any], text: str, tmp_path: Path
) -> None:
    with speaking(lambda *_: right({"choices": [choice]})) as server:
        to = endpoint(server.url)
        asking(to, tmp_path)
    assert set(texts(to, tmp_path).values()) == {text}
    assert set(server.times.values()) == {1}


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.5, "likely", -math.inf, -9999.0])
def test_probabilities_that_are_none_leave_the_text(value: Any, tmp_path: Path) -> None:
    told = {"tokens": ["x"], "token_logprobs": [-0.1], "top_logprobs": [{"x": -0.1, "y": value}]}
    choice = {"text": "x", "finish_reason": "stop", "logprobs": told}
    with speaking(lambda *_: right({"choices": [choice]})) as server:
        to = endpoint(server.url, top=1)
        asking(to, tmp_path)
    with Said.open(tmp_path, {}) as said:
        answer = answer_of(said.get(sent(to)[0].key)["answer"])
    can_be = isinstance(value, float) and value < 0
    assert answer.likely == (((("x", -0.1), ("y", -9999.0)),) if can_be else ())


def test_a_redirect_is_not_followed_and_the_key_stays(tmp_path: Path) -> None:
    with speaking() as other, speaking() as server:
        to_other = {"Location": f"{other.url}/completions"}
        for status in (301, 302, 303, 307, 308):
            server.acts = lambda *_, status=status: Reply(status, b"", to_other)
            with pytest.raises(EndpointError, match="sends on to another address"):
                asking(endpoint(server.url, limits={"at_once": 1}), tmp_path)
        assert not other.asked


def test_a_proxy_sees_nothing_of_what_stays_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with speaking() as proxy, speaking() as server:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
        monkeypatch.setenv("no_proxy", "")
        asking(endpoint(server.url), tmp_path)
        assert not proxy.asked
        assert len(server.asked) == 6
