"""TEACH: batches -> lessons; whose answers the student gets, and when.

A scheme is a generator. What stands after its `yield` runs once the student has taken its step.
"""

from attar.teach.answering import alone, pseudo_labels
from attar.teach.asking import ask, fill, offline, online, open_store, store_folder

__all__ = ["alone", "offline", "online"]
