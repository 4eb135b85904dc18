"""TEACH: batches -> lessons; whose answers the student gets, and when.

A scheme is a generator. What stands after its `yield` runs once the student has taken its step.
"""

from attar.teach.answering import alone
from attar.teach.answering import pseudo_labels as pseudo_labels
from attar.teach.asking import ask as ask
from attar.teach.asking import fill as fill
from attar.teach.asking import found_store as found_store
from attar.teach.asking import offline, online
from attar.teach.asking import open_store as open_store
from attar.teach.asking import store_folder as store_folder
from attar.teach.attempted import on_policy
from attar.teach.driven import student_driven
from attar.teach.imagined import data_free
from attar.teach.itself import own, self_ema, virtual
from attar.teach.peers import mutual
from attar.teach.rewarded import rewarded
from attar.teach.several import ensemble, uncertain
from attar.teach.stored import stored
from attar.teach.weighed import distillm2, minillm
from attar.teach.written import spoken as spoken
from attar.teach.written import teacher_text

__all__ = [
    "alone",
    "data_free",
    "distillm2",
    "ensemble",
    "minillm",
    "mutual",
    "offline",
    "on_policy",
    "online",
    "own",
    "rewarded",
    "self_ema",
    "stored",
    "student_driven",
    "teacher_text",
    "uncertain",
    "virtual",
]
