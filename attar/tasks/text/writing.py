"""What a language model writes: texts continued, and how near that comes to what was written."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attar.taps import evaluating
from attar.tasks.loading import device_of
from attar.tasks.text.packing import Ids, Row

WORD = re.compile(r"\w+")


def writes(model: nn.Module) -> bool:
    """Whether a model keeps what it has read, so that it can write a token at a time."""
    return "config" in vars(model)


@torch.no_grad()
def continued(
    model: Any, prompts: Sequence[Ids], most: int, tokenizer: Any, temperature: float = 0.0
) -> list[Ids]:
    """What a model of `transformers` writes behind each prompt, its end-of-text token included.

    most: tokens that it may write
    temperature: of the softmax that is drawn from; at 0 the likeliest token is taken
    """
    ids, mask = _on_the_left(prompts)
    device = device_of(model)
    ids, mask = ids.to(device), mask.to(device)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    still, written, kept = torch.ones(len(prompts), dtype=torch.bool, device=device), [], None
    with evaluating(model):
        for _ in range(most):
            said = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=places,
                past_key_values=kept,
                use_cache=True,
            )
            ids = _next(said.logits[:, -1, : len(tokenizer)].float(), temperature)
            kept = said.past_key_values
            written.append(torch.where(still, ids, -1))
            still = still & (ids != tokenizer.eos_token_id)
            if not still.any():
                break
            ids, places = ids[:, None], places[:, -1:] + 1
            mask = torch.cat([mask, torch.ones_like(ids)], 1)
    rows = torch.stack(written, 1).cpu().numpy()
    return [row[row >= 0] for row in rows]


def _next(logits: Tensor, temperature: float) -> Tensor:
    """One token of each row (rows, vocabulary)."""
    if temperature == 0:
        return logits.argmax(1)
    return torch.multinomial((logits / temperature).softmax(1), 1)[:, 0]


def _on_the_left(prompts: Sequence[Ids]) -> tuple[Tensor, Tensor]:
    """Prompts padded to the same end, so that all go on from there; which tokens are real."""
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for n, prompt in enumerate(prompts):
        ids[n, longest - len(prompt) :] = torch.from_numpy(prompt)
        mask[n, longest - len(prompt) :] = 1
    return ids, mask


def rewritten(
    model: nn.Module,
    rows: Sequence[Row],
    length: int,
    tokenizer: Any,
    *,
    prompt: float,
    temperature: float,
) -> list[Row]:
    """The beginning of each document with what a model writes behind it, which is to be learned.

    prompt: share of a document that stays; of conversations and pairs, all before what is learned
    """
    begun = [opening(ids, learned, prompt) for row in rows for ids, learned in _documents(row)]
    begun = [each[: length - 1] for each in begun]
    most = length - min(map(len, begun))
    found = []
    for ids, new in zip(begun, continued(model, begun, most, tokenizer, temperature), strict=True):
        whole = np.concatenate([ids, new])[:length]
        learned = np.arange(len(whole)) >= len(ids)
        found.append(Row(whole, learned, (len(whole),), 0))
    return found


def _documents(row: Row) -> list[tuple[Ids, Any]]:
    ends = row.ends[:-1]
    return list(zip(np.split(row.ids, ends), np.split(row.learned, ends), strict=True))


def opening(ids: Ids, learned: Any, prompt: float) -> Ids:
    """What a document begins with: at least a token."""
    if not learned.all() and learned.any():
        return ids[: max(1, int(np.flatnonzero(learned)[0]))]
    return ids[: max(1, round(prompt * len(ids)))]


def tables(
    models: Mapping[str, nn.Module], rows: Sequence[Row], tokenizer: Any
) -> dict[str, list[dict[str, Any]]]:
    """How every model that can goes on from the middle of some rows, likeliest token by token.

    Gives a table of the mean ROUGE-L with the text that stands there, and one of what was written.
    """

    def text(ids: Ids) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()

    halves = [len(row) // 2 for row in rows]
    begun = [row.ids[:half] for row, half in zip(rows, halves, strict=True)]
    truth = [text(row.ids[half:]) for row, half in zip(rows, halves, strict=True)]
    said = {"the text itself": truth} | {
        name: list(map(text, continued(model, begun, max(halves) + 1, tokenizer)))
        for name, model in models.items()
        if writes(model)
    }
    near = {name: list(map(rouge_l, texts, truth)) for name, texts in said.items()}
    means = [
        {"model": name, "ROUGE-L": round(float(np.mean(each)), 3), "prompts": len(each)}
        for name, each in near.items()
        if name in models
    ]
    lines = [
        {"prompt": text(ids), "model": name, "writes": said[name][n]}
        for n, ids in enumerate(begun)
        for name in said
    ]
    return {"ROUGE-L of what models write": means, "What models write": lines}


def rouge_l(written: str, truth: str) -> float:
    """The F-measure of the longest common subsequence of words, 0 to 1 (Lin 2004, ROUGE-L)."""
    one, other = (WORD.findall(text.lower()) for text in (written, truth))
    if not one or not other:
        return 0.0
    row = [0] * (len(other) + 1)
    for word in one:
        before = 0
        for n, its in enumerate(other, 1):
            before, row[n] = row[n], before + 1 if word == its else max(row[n], row[n - 1])
    precision, recall = row[-1] / len(one), row[-1] / len(other)
    return 2 * precision * recall / (precision + recall) if row[-1] else 0.0
