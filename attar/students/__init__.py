"""Networks made small: layers taken from a teacher, or a fresh encoder, LSTM or CNN."""

from __future__ import annotations

from attar.students.convolutional import cnn
from attar.students.folder import PAPER as PAPER
from attar.students.folder import load as load
from attar.students.folder import save as save
from attar.students.pretrained import pretrained
from attar.students.recurrent import lstm
from attar.students.transformer import encoder, layers

__all__ = ["cnn", "encoder", "layers", "lstm", "pretrained"]
