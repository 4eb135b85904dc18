"""What the doctor says of one thing it looked at."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing looked at. ok: None where it is only information; False says what to do next."""

    name: str
    ok: bool | None
    says: str


def share(
    name: str, counted: tuple[int, int], what: str, cure: str, *, most: float = 0.01
) -> Finding:
    """How many of so many texts are not as they should be: a problem above a share, `most`."""
    count, total = counted
    says = f"{count} of {total} {what}"
    if count <= most * total:
        return Finding(name, None if count else True, f"{says}.")
    return Finding(name, False, f"{says}: {cure}.")
