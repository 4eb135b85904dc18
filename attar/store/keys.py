"""Addresses and fingerprints: what an example is found by, and who answered it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn

from attar.errors import StoreError

Digest = bytes


def key(content: str | bytes) -> str:
    """The address of an example's knowledge: 32 hexadecimal digits of its content's SHA-256."""
    raw = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    return sha(raw)[:32]


def fingerprint(module: nn.Module, **facts: Any) -> dict[str, Any]:
    """Who answers: the SHA-256 of a module's weights, and the facts that shape its answers.

    The names, dtypes, shapes and bytes of the state dict are hashed, wherever they lie; what is
    not a weight (preprocessing, labels, layers, precision) has to be told in `facts`, as JSON.
    StoreError where the state dict holds something other than tensors.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if not isinstance(tensor, Tensor):
            raise StoreError(f"{name} is no tensor and can't be hashed: take a teacher in float")
        digest.update(canonical([name, str(tensor.dtype), list(tensor.shape)]))
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return {"weights": digest.hexdigest(), **facts}


def digest_of(key: str) -> Digest:
    """The bytes that a key's hexadecimal digits spell."""
    try:
        if digest := bytes.fromhex(key):
            return digest
    except ValueError:
        pass
    raise StoreError(f"{key!r} is not hexadecimal: make keys with attar.store.key")


def canonical(value: Any) -> bytes:
    """A value as the JSON that is hashed: sorted keys, Python's default separators."""
    return json.dumps(value, sort_keys=True, allow_nan=False).encode()


def sha(data: bytes) -> str:
    """The SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()
