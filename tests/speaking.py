"""A server on this machine that answers as an OpenAI-compatible endpoint, or as a bad one."""

from __future__ import annotations

import json
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import storybook

from attar.endpoint import Asked, Endpoint, Told, answer_of, asked
from attar.store import Said
from attar.types import Question

SAYS = (" the fox found a coin and was glad.", " Mara sang in the rain", " an old owl slept.")


@dataclass
class Reply:
    """What is sent: a status, bytes, headers; whole: whether all bytes that are promised come."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    whole: bool = True


def right(said: Any, **more: Any) -> Reply:
    """JSON as it should be."""
    return Reply(200, json.dumps(said).encode(), {"Content-Type": "application/json"} | more)


def text_for(said: str) -> str:
    """What is written behind a text: always the same."""
    return SAYS[sum(said.encode()) % len(SAYS)]


def pieces(text: str) -> list[str]:
    """The text as the student's tokenizer cuts it."""
    reads = storybook.tokenizer()
    return [reads.decode([n]) for n in reads(text)["input_ids"]]


def likely(piece: str) -> dict[str, float]:
    """A piece that is as likely as can be, and two others."""
    return {" owl": math.log(0.2), "!": math.log(0.05)} | {piece: math.log(0.7)}


def answered(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The answer to a request; with probabilities where they are asked for."""
    chat = path.endswith("/chat/completions")
    text = text_for(json.dumps(body["messages"]) if chat else body["prompt"])
    choice: dict[str, Any] = {"finish_reason": "stop", "index": 0}
    choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    if chat and body.get("logprobs"):
        places = [(piece, likely(piece)) for piece in pieces(text)]
        content = [
            {
                "token": piece,
                "logprob": told[piece],
                "top_logprobs": [{"token": t, "logprob": p} for t, p in told.items()],
            }
            for piece, told in places
        ]
        choice["logprobs"] = {"content": content}
    if not chat and body.get("logprobs"):
        told = [likely(piece) for piece in pieces(text)]
        own = [each[piece] for each, piece in zip(told, pieces(text), strict=True)]
        choice["logprobs"] = {
            "tokens": pieces(text),
            "token_logprobs": own,
            "top_logprobs": told,
        }
    usage = {"prompt_tokens": 10, "completion_tokens": 5}
    return {"model": "speaker-1", "choices": [choice], "usage": usage}


@dataclass
class Speaker:
    """The server: what it does, and what it was asked.

    acts: what it makes of a request, by how many times this prompt came before
    """

    acts: Callable[[int, str, dict[str, Any]], Reply | None] = lambda *_: None
    url: str = ""
    asked: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    times: Counter[str] = field(default_factory=Counter)
    lock: Any = field(default_factory=threading.Lock)

    def reply(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> Reply:
        said = json.dumps([body.get("prompt"), body.get("messages")])
        with self.lock:
            before = self.times[said]
            self.times[said] += 1
            self.asked.append((path, headers, body))
        return self.acts(before, path, body) or right(answered(path, body))


@contextmanager
def speaking(
    acts: Callable[[int, str, dict[str, Any]], Reply | None] | None = None,
) -> Iterator[Speaker]:
    """A server for a while."""
    speaker = Speaker() if acts is None else Speaker(acts)

    class Answering(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            reply = speaker.reply(self.path, dict(self.headers), body)
            if reply.status == 0:  # no HTTP at all
                self.wfile.write(reply.body)
                return
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body) + (not reply.whole)))
            self.end_headers()
            self.wfile.write(reply.body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # whoever hung up
    speaker.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield speaker
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


PROMPTS = [f"Story {n}." for n in range(6)]


def endpoint(url: str, **more: Any) -> Endpoint:
    limits = {"at_once": 2, "retries": 3, "timeout": 5} | more.pop("limits", {})
    return Endpoint(url, "speaker", **{"key": "THE_KEY", "limits": limits, **more})


def sent(to: Endpoint, prompts: list[str] = PROMPTS) -> list[Asked]:
    return [to.asks(Question(each, most=8, size=4), 1.0) for each in prompts]


def asking(to: Endpoint, folder: Path, prompts: list[str] = PROMPTS) -> tuple[Told, Said]:
    with Said.open(folder, {}) as said:
        return asked(to, sent(to, prompts), said), said


def texts(to: Endpoint, folder: Path) -> dict[str, str]:
    """What is kept, by prompt."""
    with Said.open(folder, {}) as said:
        return {
            one.body["prompt"]: answer_of(said.get(one.key)["answer"]).text
            for one in sent(to)
            if one.key in said
        }


def paid(server: Speaker) -> dict[str, int]:
    """How often each prompt was sent."""
    return {json.loads(said)[0]: count for said, count in server.times.items()}
