"""Networks made small: layers taken from a teacher, or fresh ones for texts and for pictures."""

from __future__ import annotations

from attar.students.adapted import adapted as adapted
from attar.students.adapted import lora
from attar.students.adapted import merged as merged
from attar.students.convolutional import cnn
from attar.students.dense import convnet, mlp
from attar.students.folder import PAPER as PAPER
from attar.students.folder import load as load
from attar.students.folder import paper_of as paper_of
from attar.students.folder import save as save
from attar.students.joined import joined
from attar.students.language import llama
from attar.students.mobile import mobilenet
from attar.students.pretrained import pretrained
from attar.students.recurrent import lstm
from attar.students.residual import resnet
from attar.students.transformer import encoder, layers
from attar.students.whole import teacher
from attar.students.wide import wideresnet

__all__ = [
    "cnn",
    "convnet",
    "encoder",
    "joined",
    "layers",
    "llama",
    "lora",
    "lstm",
    "mlp",
    "mobilenet",
    "pretrained",
    "resnet",
    "teacher",
    "wideresnet",
]
