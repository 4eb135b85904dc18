"""What an OpenAI-compatible endpoint is sent, and what its answers say."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from attar.store import key
from attar.types import Answer, Question

ENDED = ("stop", "eos", "eos_token", "end_turn")
"""Words for an answer that came to its own end."""

_SURE = 0.01
"""How far above 0 rounding may bring the logarithm of a probability."""


class Garbage(Exception):
    """What came is no answer; says why."""


@dataclass(frozen=True)
class Usage:
    """Tokens that are paid for."""

    prompt: int
    completion: int


def request(
    question: Question, model: str, temperature: float, top: int | None, more: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """The path below the url, and the body: all that decides an answer and nothing else.

    top: how many of the likeliest tokens are to be told at each place
    more: further fields, which go before these; null takes one out
    """
    if isinstance(question.said, str):
        path, said = "completions", {"prompt": question.said}
        likely = {} if top is None else {"logprobs": top}
    else:
        path, said = "chat/completions", {"messages": [dict(each) for each in question.said]}  # type: ignore[dict-item]
        likely = {} if top is None else {"logprobs": True, "top_logprobs": top}
    whole = {"model": model, **said, "max_tokens": question.most, "temperature": temperature}
    return path, {k: v for k, v in {**whole, **likely, **more}.items() if v is not None}


def key_of(path: str, body: Mapping[str, Any]) -> str:
    """The address of an answer: the hash of what was asked, wherever it was asked."""
    return key(json.dumps([path, body], sort_keys=True))


def read(raw: str) -> tuple[Answer, str]:
    """An answer, and who says to have given it. Raises Garbage where it is none."""
    whole = _object(raw)
    choices = whole.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise Garbage("it has no choices")
    choice: dict[str, Any] = choices[0]
    message = choice.get("message")
    text = message.get("content", 0) if isinstance(message, dict) else choice.get("text", 0)
    if text is None and choice.get("finish_reason"):
        text = ""  # nothing was left to say: a filter, or thoughts that took up all tokens
    if not isinstance(text, str):
        raise Garbage("its first choice has no text")
    tokens, likely = _told(choice.get("logprobs"))
    answer = Answer(_letters(text), choice.get("finish_reason") in ENDED, tokens, likely)
    return answer, str(whole.get("model", ""))


def usage_of(raw: str) -> Usage | None:
    """The tokens that an answer says it cost, be it of use or not; None where it does not say."""
    try:
        usage = _object(raw).get("usage")
        return Usage(max(0, int(usage["prompt_tokens"])), max(0, int(usage["completion_tokens"])))  # type: ignore[index]
    except (Garbage, TypeError, ValueError, LookupError):
        return None


def reason_of(raw: str) -> str:
    """What a server says in words of its own; nothing where it says nothing readable."""
    try:
        said = _object(raw)
    except Garbage:
        return ""
    error = said.get("error", said.get("message", said.get("detail")))
    error = error.get("message", error.get("code")) if isinstance(error, dict) else error
    line = " ".join(error.split()) if isinstance(error, str) else ""
    return line[:200].rstrip(".")


def out_of_credit(raw: str) -> bool:
    """Whether a server sends away for good who is told to come again: nothing is left to pay."""
    try:
        error = _object(raw).get("error")
    except Garbage:
        return False
    return isinstance(error, dict) and "insufficient_quota" in (
        error.get("code"),
        error.get("type"),
    )


def kept(answer: Answer) -> dict[str, Any]:
    """An answer as JSON; what is empty is left out."""
    return {name: value for name, value in asdict(answer).items() if value not in ((), [])}


def answer_of(said: Mapping[str, Any]) -> Answer:
    """The answer that JSON says."""
    likely = tuple(
        tuple((str(token), float(value)) for token, value in place)
        for place in said.get("likely", ())
    )
    return Answer(str(said["text"]), bool(said["ended"]), tuple(said.get("tokens", ())), likely)


def _letters(text: str) -> str:
    """The text with a sign in place of halves of letters, which no tokenizer reads."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _object(raw: str) -> dict[str, Any]:
    try:
        whole = json.loads(raw)
    except (ValueError, RecursionError):
        page = raw.lstrip()[:1] == "<"
        raise Garbage("it is a web page and no JSON" if page else "it is no whole JSON") from None
    if not isinstance(whole, dict):
        raise Garbage("it is JSON of another form")
    return whole


def _told(said: Any) -> tuple[tuple[str, ...], tuple[tuple[tuple[str, float], ...], ...]]:
    """Tokens, and what is likely at each; nothing where that is told in no known form.

    Two forms are about, and servers mix them: of chats (`content`, a list of places) and of
    completions (`tokens` beside `top_logprobs`).
    """
    try:
        places = list(_places(said))
    except (TypeError, ValueError, LookupError, AttributeError):
        return (), ()
    tokens = tuple(_letters(token) for token, _ in places)
    return tokens, tuple(
        tuple((_letters(piece), value) for piece, value in likely) for _, likely in places
    )


def _places(said: Any) -> Iterator[tuple[str, list[tuple[str, float]]]]:
    if said is None:
        return
    if said.get("content") is not None:
        for place in said["content"]:
            others = [(each["token"], each["logprob"]) for each in place["top_logprobs"]]
            yield place["token"], _likely(place["token"], place["logprob"], others)
        return
    for token, own, top in zip(
        said["tokens"], said["token_logprobs"], said["top_logprobs"], strict=True
    ):
        yield token, _likely(token, own, list(top.items()))


def _likely(token: Any, own: Any, others: list[tuple[Any, Any]]) -> list[tuple[str, float]]:
    """The token itself and the others, each once. Raises where one has no probability."""
    found = {token: float(own)} | {other: float(value) for other, value in others}
    for piece, value in found.items():
        if not isinstance(piece, str) or math.isnan(value) or value > _SURE:
            raise ValueError
    # JSON has no infinity; what is as unlikely as e^-9999 has no probability either.
    return [(piece, max(value, -9999.0)) for piece, value in found.items()]
