"""What a compressed model has to keep, or the run has failed: each gate is one figure's limit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attar.types import Moment, Share

Audit = Mapping[str, Any]
"""What `audit` found out of one model."""

Outcome = dict[str, Any]
"""limit; found, None where it could not be told; ok"""


def agreement(audit: Audit, *, limit: Moment) -> Outcome:
    """At least this share of the answers is the same as before.

    limit: 0.95 for 95 %
    """
    found = audit["agreement"]
    return {"limit": limit, "found": found, "ok": found >= limit}


def kl(audit: Audit, *, limit: Share) -> Outcome:
    """The mean of KL(before || after) is at most this.

    limit: in nats
    """
    return _at_most(audit["kl"], limit)


def score_drop(audit: Audit, *, limit: Share) -> Outcome:
    """Accuracy falls by at most this.

    limit: 0.01 for one point; a model that has become better passes
    """
    said = audit.get("flips")
    rows = sum(each["examples"] for each in audit.get("classes", ()))
    lost = None if said is None else (said["right_to_wrong"] - said["wrong_to_right"]) / rows
    return _at_most(lost, limit)


def worst_class_drop(audit: Audit, *, limit: Share) -> Outcome:
    """The accuracy of no class falls by more than this.

    Of small classes a single answer is much: the audit tells the interval of each change.

    limit: 0.05 for five points
    """
    worst = min((each["change"] for each in audit.get("classes", ())), default=None)
    return _at_most(None if worst is None else max(0.0, -worst), limit)


def negative_flips(audit: Audit, *, limit: Share) -> Outcome:
    """At most this share of all answers was right before and is wrong now.

    limit: 0.02 for two of a hundred
    """
    return _at_most(audit.get("flips", {}).get("negative_flips"), limit)


def ece(audit: Audit, *, limit: Share) -> Outcome:
    """The expected calibration error of the model as it is shipped is at most this.

    limit: 0.05 for five points between confidence and accuracy
    """
    return _at_most(_calibrated(audit, "ece"), limit)


def ece_scaled(audit: Audit, *, limit: Share) -> Outcome:
    """The expected calibration error is at most this once the fitted temperature is divided by.

    limit: as of `ece`
    """
    return _at_most(_calibrated(audit, "ece_scaled"), limit)


def brier(audit: Audit, *, limit: Share) -> Outcome:
    """The Brier score, summed over the classes, is at most this.

    limit: from 0 to 2, the worst
    """
    return _at_most(_calibrated(audit, "brier"), limit)


def _calibrated(audit: Audit, figure: str) -> float | None:
    found: float | None = audit.get("calibration", {}).get("after", {}).get(figure)
    return found


def _at_most(found: float | None, limit: float) -> Outcome:
    """What nobody could tell has not passed."""
    return {"limit": limit, "found": found, "ok": found is not None and found <= limit}
