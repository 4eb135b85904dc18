"""One request and what comes back: no redirect is followed, and a key is sent to nobody else."""

from __future__ import annotations

import email.utils
import http.client
import ipaddress
import json
import os
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import SplitResult, urlsplit

from attar.errors import EndpointError

LARGEST = 64 << 20
"""Bytes of an answer that are read: a language model writes far less."""

_PIECE = 1 << 16
HIDDEN = 8
"""Letters from which on a key is hidden wherever it shows: `EMPTY` and `none` are words."""


@dataclass(frozen=True)
class Reply:
    """What a server sent: its status, its text, and the seconds that it asks to be left alone."""

    status: int
    text: str
    after: float | None


class Lost(Exception):
    """No whole reply came; says why, and whether the question may have been answered and paid."""

    def __init__(self, why: str, *, paid: bool) -> None:
        super().__init__(why)
        self.paid = paid


class _Staying(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the key would go with it."""

    def redirect_request(self, *_: Any) -> None:
        """Nowhere."""


def split(url: str) -> SplitResult:
    """The parts of an address. Raises EndpointError where none can be asked by it."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  (it is read only when it is asked for)
    except ValueError:
        raise EndpointError("The endpoint's url can't be read: http(s)://HOST/v1.") from None
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        # It may hold a secret, so it is not repeated here.
        raise EndpointError(
            "The endpoint's url holds a name, a password or a query, which would end in reports; "
            "give http(s)://HOST/v1, and the key by an environment variable."
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise EndpointError(f"The endpoint's url is {url!r}; give http(s)://HOST/v1.")
    return parts


def key_in(variable: str | None, url: str) -> str:
    """The key that an environment variable holds; empty where there is none.

    Raises EndpointError where it can't be sent, or would be sent for all to read.
    """
    key = os.environ.get(variable, "").strip() if variable else ""
    if not key:
        return ""
    if not re.fullmatch(r"[!-~]+", key):
        raise EndpointError(f"What {variable} holds is no key: it has blanks or odd letters in it.")
    parts = split(url)
    if parts.scheme == "http" and not local(parts.hostname or ""):
        raise EndpointError(
            f"The key in {variable} would travel to {parts.hostname} for all to read: give an "
            "https url, `key: null` where no key is needed, or a tunnel that ends on localhost."
        )
    return key


def local(host: str) -> bool:
    """Whether a host is this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def post(url: str, body: Mapping[str, Any], key: str, timeout: float) -> Reply:
    """Send JSON and read what comes back, whatever its status.

    timeout: seconds for all of it
    Raises Lost where no whole reply comes, EndpointError where none ever could.
    """
    headers = {"Content-Type": "application/json", "User-Agent": "attar"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    asked = urllib.request.Request(url, json.dumps(body).encode(), headers)
    # A proxy of the environment's is for others: what stays on this machine is not shown to it.
    proxies = [urllib.request.ProxyHandler({})] if local(split(url).hostname or "") else []
    opener, until = urllib.request.build_opener(_Staying, *proxies), time.monotonic() + timeout
    try:
        try:
            response = opener.open(asked, timeout=timeout)
        except urllib.error.HTTPError as error:
            response = error
        with response:
            raw = _whole(response, until)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _lost(error, url, timeout) from None  # what they say of themselves may hold the key
    text = raw.decode("utf-8", "replace")
    text = text.replace(key, "(the key)") if len(key) >= HIDDEN else text
    return Reply(int(response.status), text, _seconds(response.headers.get("Retry-After")))


def _whole(response: Any, until: float) -> bytes:
    """All that is sent, but neither for ever nor without end."""
    stream: IO[bytes] = response
    raw = bytearray()
    while piece := stream.read1(_PIECE):  # type: ignore[attr-defined]
        raw += piece
        if len(raw) > LARGEST:
            raise http.client.HTTPException
        if time.monotonic() > until:
            raise TimeoutError
    return bytes(raw)


def _lost(error: Exception, url: str, timeout: float) -> Exception:
    """Why nothing came, in words that are not the library's."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    host = split(url).netloc
    if isinstance(reason, ssl.SSLCertVerificationError):
        return EndpointError(f"{host} can't prove who it is (TLS): {reason.verify_message}.")
    if isinstance(reason, TimeoutError):
        return Lost(f"{host} did not answer within {timeout:g} s", paid=True)
    if isinstance(reason, ConnectionRefusedError):
        return Lost(f"nobody listens at {host}", paid=False)
    sent = reason is error  # what fails before that is told of by urllib itself
    if isinstance(reason, OSError) and reason.strerror and not sent:
        return Lost(f"{host} can't be reached ({reason.strerror})", paid=False)
    return Lost(f"{host} broke off, or does not speak HTTP", paid=sent)


def _seconds(said: str | None) -> float | None:
    """What `Retry-After` asks for, a number of seconds or a date; None where it is neither."""
    if said is None:
        return None
    if re.fullmatch(r"\s*\d{1,9}(\.\d+)?\s*", said):
        return float(said)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
