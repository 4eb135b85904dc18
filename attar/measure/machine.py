"""The processor that figures were measured on, as well as this system tells it."""

from __future__ import annotations

import platform
from pathlib import Path

TOLD = Path("/proc/cpuinfo")

FLAGS = (
    *("avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni"),
    *("avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
)
"""What decides how fast small models answer, by the names Linux gives it: x86, then ARM."""


def processor(told: Path = TOLD) -> str:
    """The processor's name."""
    return _said(told, "model name") or platform.processor() or platform.machine()


def flags(told: Path = TOLD) -> list[str]:
    """Which of `FLAGS` the processor has; none where the system does not say."""
    has = set((_said(told, "flags") or _said(told, "Features")).split())
    return [flag for flag in FLAGS if flag in has]


def _said(told: Path, key: str) -> str:
    """What stands behind the first line of this key; nothing where there is no such line."""
    try:
        lines = told.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in pairs if name.strip() == key), "")
