"""What a language model writes: texts continued, and how near that comes to what was written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.errors import ModelError
from attar.taps import evaluating
from attar.tasks.loading import device_of
from attar.tasks.text.packing import Ids, Row

WORD = re.compile(r"\w+")


def writes(model: nn.Module) -> bool:
    """Whether a model is one of `transformers`, which write a token at a time."""
    return "config" in vars(model)


def check(model: nn.Module, *, own: bool) -> None:
    """Raises ModelError where a model can't write the task's tokens.

    own: whether it has tokens of its own
    """
    kind = type(model).__name__
    if own:
        raise ModelError(f"{kind} writes tokens of its own; give the task its tokenizer.")
    if not writes(model):
        raise ModelError(f"{kind} is no model of transformers: it can't write.")


def continued(
    model: Any,
    prompts: Sequence[Ids],
    most: int,
    tokenizer: Any,
    temperature: float = 0.0,
    helped: tuple[nn.Module, float] | None = None,
) -> list[Ids]:
    """What a model of `transformers` writes behind each prompt, its end-of-text token included.

    most: tokens that it may write
    temperature: of the softmax that is drawn from; at 0 the likeliest token is taken
    helped: another model, and its share of the probability that each token is drawn by
    """
    from transformers import GenerationConfig, LogitsProcessorList

    ids, mask = (each.to(device_of(model)) for each in _on_the_left(prompts))
    drawn = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    how = GenerationConfig(
        max_new_tokens=most,
        use_cache=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id or 0,
        **(drawn if temperature else {"do_sample": False}),
    )
    told: list[Any] = [partial(_known, len(tokenizer))]
    if helped is not None:
        told.append(_Beside(*helped, mask))
    with evaluating(model), _plain(model, GenerationConfig()):
        rows = model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=how,
            logits_processor=LogitsProcessorList(told),
        )
    return [_ended(row, tokenizer.eos_token_id) for row in rows[:, ids.shape[1] :].cpu().numpy()]


@contextmanager
def _plain(model: Any, usual: Any) -> Iterator[None]:
    """Without what a model's own paper says of sampling, which `generate` would take over."""
    own, model.generation_config = model.generation_config, usual
    try:
        yield
    finally:
        model.generation_config = own


def _known(tokens: int, _ids: Tensor, logits: Tensor) -> Tensor:
    """Logits (rows, vocabulary) in which what no token has can't be drawn."""
    return logits.index_fill(1, torch.arange(tokens, logits.shape[1]).to(logits.device), -torch.inf)


class _Beside:
    """Mixes into what a model would write next what another would; it reads along."""

    def __init__(self, other: Any, share: float, mask: Tensor) -> None:
        self.other, self.share, self.mask, self.kept = other, share, mask, None

    @torch.no_grad()
    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        """Of what was read (rows, length) and the model's logits those to draw from."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(ids), 1)], 1)[:, : ids.shape[1]]
        places = (self.mask.cumsum(1) - 1).clamp_min(0)
        new = ids if self.kept is None else ids[:, -1:]
        with evaluating(self.other):
            said = self.other(
                input_ids=new,
                attention_mask=self.mask,
                position_ids=places[:, -new.shape[1] :],
                past_key_values=self.kept,
                use_cache=True,
            )
        self.kept = said.past_key_values
        known = logits > -torch.inf
        its = said.logits[:, -1, : logits.shape[1]].float()
        its = F.pad(its, (0, logits.shape[1] - its.shape[1]), value=-torch.inf)
        both = its.masked_fill(~known, -torch.inf).softmax(1), logits.float().softmax(1)
        return torch.lerp(both[1], both[0], self.share).log()


def _ended(row: Ids, end: int | None) -> Ids:
    """A row up to its end-of-text token, behind which is padding."""
    ends = np.flatnonzero(row == end)
    return row[: ends[0] + 1] if len(ends) else row


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
    helped: tuple[nn.Module, float] | None = None,
) -> list[Row]:
    """The beginning of each document with what a model writes behind it, which is to be learned.

    prompt: share of a document that stays; of conversations and pairs, all before what is learned
    temperature, helped: as in `continued`
    """
    begun = [opening(ids, learned, prompt) for row in rows for ids, learned in _documents(row)]
    begun = [each[: length - 1] for each in begun]
    most = length - min(map(len, begun))
    written = continued(model, begun, most, tokenizer, temperature, helped)
    found = []
    for ids, new in zip(begun, written, strict=True):
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
