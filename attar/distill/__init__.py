"""DISTILL: lessons -> a trained student."""

from attar.distill.loop import train
from attar.distill.objective import Objective, Term, term
from attar.distill.pairing import pair

__all__ = ["Objective", "Term", "pair", "term", "train"]
