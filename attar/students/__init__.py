"""Networks made small: layers taken from a teacher, a fresh encoder, LSTM or CNN; its own head."""

from __future__ import annotations

from attar.students.convolutional import cnn
from attar.students.folder import PAPER as PAPER
from attar.students.folder import load as load
from attar.students.folder import save as save
from attar.students.joined import joined
from attar.students.pretrained import pretrained
from attar.students.recurrent import lstm
from attar.students.transformer import encoder, layers

__all__ = ["cnn", "encoder", "joined", "layers", "lstm", "pretrained"]
