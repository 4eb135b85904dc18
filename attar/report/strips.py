"""Episodes on the page: for each who played, a strip of pictures taken at the same steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from attar.report import figures


def strip(film: Mapping[str, Any]) -> str:
    """The strips of one film, or the sentence that says why there is none.

    To who hears the page each strip is one picture, which its caption and label tell.
    """
    if film["why"]:
        return f'<p class="quiet">{escape(film["why"])}</p>'
    told = (
        f"One episode of {film['environment']}, of seed {film['seed']}, at the same steps of each. "
        "What all episodes return on the mean stands with every model."
    )
    figured = "".join(_strip(row, film["steps"]) for row in film["rows"])
    return f'<p class="quiet">{escape(told)}</p>{figured}'


def _strip(row: Mapping[str, Any], steps: Sequence[int]) -> str:
    name, played = escape(row["name"]), row["pictures"]
    ends = f"return {figures.anything(row['return'])} in {row['length']:,} steps"
    cells = "".join(
        f'<span><img alt="" src="data:image/png;base64,{escape(picture)}">'
        f"<small>step {step:,}</small></span>"
        for picture, step in zip(played, steps, strict=False)
    )
    label = (
        f"{len(played)} pictures of {name} at play, from step 1 to step {steps[len(played) - 1]:,}"
    )
    return (
        f'<figure class="strip"><figcaption><b>{name}</b>: {ends}</figcaption>'
        f'<div role="img" aria-label="{label}">{cells}</div></figure>'
    )
