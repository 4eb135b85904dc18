"""LOAD: teachers that are no network here; they are asked over HTTP and answer in text."""

from attar.endpoint.asking import Asked, Endpoint, Told, asked
from attar.endpoint.bill import Bill
from attar.endpoint.speech import answer_of, key_of, request

__all__ = ["Asked", "Bill", "Endpoint", "Told", "answer_of", "asked", "key_of", "request"]
