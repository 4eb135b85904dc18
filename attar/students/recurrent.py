"""The LSTM student: whatever the padding, what a packed LSTM of torch would answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attar.students import vocabulary as words
from attar.students.vocabulary import Vocabulary


def lstm(
    texts: Sequence[str],
    classes: list[str],
    teacher: nn.Module,
    max_length: int,
    *,
    width: int = 128,
    layers: int = 1,
    embedding: int | Literal["teacher"] = 128,
    bidirectional: bool = True,
    vocabulary: Vocabulary = "data",
    dropout: float = 0.1,
) -> nn.Module:
    """An LSTM over the teacher's pieces, max and mean pooled (BERT to BiLSTM, Tang 2019).

    width: of each direction
    embedding: width of the embeddings, or `teacher`: start from the teacher's own
    vocabulary: `data` gives embeddings only to the pieces that `texts` need
    """
    tokenizer, kept = words.chosen(teacher, texts, vocabulary, max_length)
    size = words.rows(teacher, kept).shape[1] if embedding == "teacher" else embedding
    student = Lstm(
        tokenizer,
        classes,
        len(kept),
        width=width,
        layers=layers,
        embedding=size,
        bidirectional=bidirectional,
        dropout=dropout,
    )
    if embedding == "teacher":
        student.embedding.weight.data.copy_(words.rows(teacher, kept))
    return student


class Lstm(nn.Module):
    """Embedding, LSTM layers, max and mean over the real tokens, linear.

    `forward` takes ids and mask, both (rows, length) int64 and padded on the right, and gives
    logits (rows, classes). A row of nothing but padding is allowed.
    """

    def __init__(
        self,
        tokenizer: Any,
        classes: list[str],
        vocabulary_size: int,
        *,
        width: int,
        layers: int,
        embedding: int,
        bidirectional: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.recipe = {
            "lstm": {
                "width": width,
                "layers": layers,
                "embedding": embedding,
                "bidirectional": bidirectional,
                "dropout": dropout,
            },
            "classes": list(classes),
            "vocabulary_size": vocabulary_size,
        }
        both = width * (1 + bidirectional)
        widths = [embedding] + [both] * (layers - 1)
        self.embedding = nn.Embedding(vocabulary_size, embedding)
        self.rightward = nn.ModuleList(nn.LSTM(wide, width, batch_first=True) for wide in widths)
        self.leftward = nn.ModuleList(
            nn.LSTM(wide, width, batch_first=True) for wide in widths if bidirectional
        )
        # Somewhere to read both directions at once, in the order of the text.
        self.joined = nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * both, len(classes))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.states(input_ids, attention_mask)
        real = attention_mask.bool().unsqueeze(-1)
        # An LSTM's states lie between -1 and 1, so -1 is never above a real one.
        highest = states.masked_fill(~real, -1.0).amax(dim=1)
        mean = (states * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)
        logits: Tensor = self.head(self.dropout(torch.cat([highest, mean], dim=-1)))
        return logits

    def states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """What the last layer makes of each token, (rows, length, directions * width)."""
        mirror = _mirror(attention_mask)
        states: Tensor = self.embedding(input_ids)
        for depth, layer in enumerate(self.rightward):
            states = self.dropout(states)
            directions = [_run(layer, states)]
            if self.leftward:
                turned = _run(self.leftward[depth], _turn(states, mirror))
                directions.append(_turn(turned, mirror))
            states = self.joined(torch.cat(directions, dim=-1))
        return states


def _run(layer: Any, states: Tensor) -> Tensor:
    """The states (rows, length, width) of one LSTM in one direction."""
    if torch.onnx.is_in_onnx_export():
        return _as_onnx(layer, states)
    ran: Tensor = layer(states)[0]
    return ran


def _as_onnx(layer: Any, states: Tensor) -> Tensor:
    """The same as ONNX's own LSTM node, for any length.

    torch would trace the steps one by one and fix their number, or loop in a way that works once
    in a process (2.13 keeps the loop of the first export in a cache).
    """
    weight, recurrent, *biases = (_onnx_gates(parameter) for parameter in layer.all_weights[0])
    rows, length, _ = states.shape
    ran = torch.onnx.ops.symbolic(
        "LSTM",
        [
            states.transpose(0, 1),
            weight.unsqueeze(0),
            recurrent.unsqueeze(0),
            torch.cat(biases).unsqueeze(0),
        ],
        {"hidden_size": layer.hidden_size},
        dtype=states.dtype,
        shape=(length, 1, rows, layer.hidden_size),
    )
    return ran.squeeze(1).transpose(0, 1)


def _onnx_gates(parameter: Tensor) -> Tensor:
    """From torch's order of the gates (input, forget, cell, output) to ONNX's (i, o, f, c)."""
    enter, forget, cell, leave = parameter.chunk(4)
    return torch.cat([enter, leave, forget, cell])


def _mirror(attention_mask: Tensor) -> Tensor:
    """Where to look so that each row's real tokens are read backwards and padding stays put."""
    # Packed sequences would read backwards as well, but no exporter knows them.
    places = torch.arange(attention_mask.shape[1], device=attention_mask.device).unsqueeze(0)
    lengths = attention_mask.sum(dim=1, keepdim=True)
    return torch.where(places < lengths, lengths - 1 - places, places)


def _turn(states: Tensor, mirror: Tensor) -> Tensor:
    return states.gather(1, mirror.unsqueeze(-1).expand(-1, -1, states.shape[2]))
