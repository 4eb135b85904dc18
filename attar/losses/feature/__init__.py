"""Losses that compare features: what the layers of student and teacher say, token by token.

Each takes features of any float type, works in float32, returns a float32 scalar, and sends no
gradient to the teacher. Tokens are (rows, length, width); a place of a map is a token. The mean is
over the real tokens of the batch where `mask` is (rows, length) of 1 for real and 0 for padding,
over the rows where a loss says so or the features are pooled; padding is taken out before any
arithmetic, whatever stands in it. The classes learn something of their own beside the student;
their first values are always the same and move no random stream.
"""

from .direct import ab, cosine, l1, mse, pkd, simkd
from .generated import ft, mgd
from .learned import ofd, srd, vid
from .staged import fsp, review
from .statistics import nst, pkt

__all__ = [
    "ab",
    "cosine",
    "fsp",
    "ft",
    "l1",
    "mgd",
    "mse",
    "nst",
    "ofd",
    "pkd",
    "pkt",
    "review",
    "simkd",
    "srd",
    "vid",
]
