"""A student's words: the teacher's tokenizer without the pieces the training texts never use."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from pathlib import Path
from string import printable
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

from torch import Tensor, nn

from attar.errors import ModelError

Vocabulary = Literal["teacher", "data"]
"""Whose pieces a student knows: all that the teacher knows, or those that the data needs."""

ROWS = 1024
"""Texts tokenized at a time, so that only their ids and never their offsets pile up."""


def cut(model: nn.Module, texts: Sequence[str]) -> nn.Module:
    """A copy of a transformers model, tokenizer and embeddings cut to the pieces that `texts` need.

    On every one of `texts` the copy has the pieces and the logits of the model. Other words are
    spelled with the pieces that stay (see `fit`), so no text fails and no id is out of range.
    What is cut: `model.tokenizer`, the rows of the input embeddings, and in `model.config`
    `vocab_size` and all `..._token_id`. `save_pretrained` and `from_pretrained` know the result.

    Raises ModelError where the model or its tokenizer can't be cut without changing its answers.
    """
    tokenizer, kept = fit(tokenizer_of(model), texts)
    renumbered = {old: new for new, old in enumerate(kept)}
    _refuse_moved_padding(model, renumbered)
    student: Any = copy.deepcopy(model)
    embedding = embedding_of(student)
    embedding.weight = nn.Parameter(rows(student, kept), embedding.weight.requires_grad)
    embedding.num_embeddings = len(kept)
    if embedding.padding_idx is not None:
        embedding.padding_idx = renumbered.get(embedding.padding_idx)
    _renumber_config_(student.config, renumbered)
    student.tokenizer = tokenizer
    return cast(nn.Module, student)


def fit(tokenizer: Any, texts: Sequence[str]) -> tuple[Any, list[int]]:
    """A tokenizer's twin that knows only what `texts` need, and the old ids it keeps, ascending.

    Kept are the pieces of the texts (whole, not truncated), every special and added token, and
    for words to come the single characters that are ASCII or occur in the texts; of a BPE all
    single characters, which are its bytes, and whatever the pieces are merged from. The new id
    of a piece is its place in the list.

    Raises ModelError where the twin would not split the texts as the tokenizer does.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            f"{type(tokenizer).__name__} has no fast twin, so its vocabulary can't be cut: "
            "use vocabulary: teacher"
        )
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    before = _ids(description, texts)
    used = set().union(*before)
    kept = sorted(_kept(description, used) | set(tokenizer.all_special_ids))
    renumbered = {old: new for new, old in enumerate(kept)}
    small = _rebuilt(tokenizer, _renumbered(description, renumbered))
    after = _ids(json.loads(small.backend_tokenizer.to_str()), texts)
    if any([renumbered[old] for old in row] != now for row, now in zip(before, after, strict=True)):
        raise ModelError(
            f"{type(tokenizer).__name__} splits the texts otherwise once its vocabulary is cut: "
            "use vocabulary: teacher"
        )
    return small, kept


def chosen(
    teacher: nn.Module, texts: Sequence[str], vocabulary: Vocabulary, max_length: int
) -> tuple[Any, list[int]]:
    """A tokenizer for a fresh student, made from the teacher's, and which of its ids are kept.

    It truncates at `max_length` tokens and pads on the right, where every student expects it.
    """
    tokenizer = tokenizer_of(teacher)
    if vocabulary == "data":
        tokenizer, kept = fit(tokenizer, texts)
    else:
        tokenizer = copy.deepcopy(tokenizer)
        kept = list(range(max(tokenizer.get_vocab().values()) + 1))
    tokenizer.model_max_length = max_length
    tokenizer.padding_side = "right"
    return tokenizer, kept


def tokenizer_of(model: nn.Module) -> Any:
    """The tokenizer that a text model carries. Raises ModelError where it has none."""
    tokenizer = vars(model).get("tokenizer")
    if tokenizer is None:
        raise ModelError(f"{type(model).__name__} has no tokenizer with it: set model.tokenizer.")
    return tokenizer


def embedding_of(model: nn.Module) -> nn.Embedding:
    """The input embeddings of a transformers model."""
    asked: Any = model
    try:
        return cast(nn.Embedding, asked.get_input_embeddings())
    except AttributeError:
        raise ModelError(
            f"{type(model).__name__} does not tell its input embeddings, as models of "
            "transformers do: give embedding a width, or use vocabulary: teacher"
        ) from None


def rows(model: nn.Module, kept: list[int]) -> Tensor:
    """A copy of some rows (pieces, width) of the model's input embeddings."""
    weight = embedding_of(model).weight.detach()
    if kept[-1] >= len(weight):
        raise ModelError(
            f"the tokenizer has {kept[-1] + 1} pieces and the model {len(weight)} embeddings: "
            "resize the model's"
        )
    return weight[kept]


def _ids(description: dict[str, Any], texts: Sequence[str]) -> list[list[int]]:
    """The ids of each whole text, special tokens included."""
    from tokenizers import Tokenizer

    whole = Tokenizer.from_str(json.dumps(description | {"truncation": None, "padding": None}))
    return [
        encoding.ids
        for start in range(0, len(texts), ROWS)
        for encoding in whole.encode_batch(list(texts[start : start + ROWS]))
    ]


def _kept(description: dict[str, Any], used: set[int]) -> set[int]:
    """The ids that must stay so that the texts are split as before and any other text can be."""
    model = description["model"]
    kept = used | {token["id"] for token in description["added_tokens"]}
    if model["type"] == "Unigram":
        pieces = [piece for piece, _ in model["vocab"]]
        # An unknown character costs a little more than the unlikeliest piece.
        scores = [score for _, score in model["vocab"]]
        kept |= {scores.index(min(scores)), model["unk_id"]} - {None}
        return kept | _spelling(model, dict(zip(pieces, range(len(pieces)), strict=True)), used)
    vocabulary: dict[str, int] = model["vocab"]
    kept |= {vocabulary[model["unk_token"]]} if model["unk_token"] in vocabulary else set()
    kept |= _spelling(model, vocabulary, used)
    return _with_parts(model, kept) if model["type"] == "BPE" else kept


def _spelling(model: dict[str, Any], vocabulary: dict[str, int], used: set[int]) -> set[int]:
    """The ids of the single characters (and single bytes) that words to come are spelled with."""
    prefix, suffix = (
        model.get(key) or "" for key in ("continuing_subword_prefix", "end_of_word_suffix")
    )
    alphabet = set(printable).union(*(piece for piece, i in vocabulary.items() if i in used))

    def spells(piece: str) -> bool:
        bare = piece.removeprefix(prefix).removesuffix(suffix)
        known = model["type"] == "BPE" or bare in alphabet
        return (len(bare) == 1 and known) or bool(re.fullmatch("<0x[0-9A-F]{2}>", piece))

    return {i for piece, i in vocabulary.items() if spells(piece)}


def _with_parts(model: dict[str, Any], kept: set[int]) -> set[int]:
    """The ids together with everything they are merged from."""
    vocabulary = model["vocab"]
    parts: dict[int, set[int]] = {}
    for left, right in model["merges"]:
        whole = vocabulary[_merged(model, left, right)]
        parts.setdefault(whole, set()).update((vocabulary[left], vocabulary[right]))
    closed, open_ = set(kept), list(kept)
    while open_:
        new = parts.get(open_.pop(), set()) - closed
        closed |= new
        open_ += new
    return closed


def _merged(model: dict[str, Any], left: str, right: str) -> str:
    return left + right.removeprefix(model["continuing_subword_prefix"] or "")


def _renumbered(description: dict[str, Any], renumbered: dict[int, int]) -> dict[str, Any]:
    """The tokenizer's description with only the ids that stay, each by its new number."""
    small = copy.deepcopy(description)
    model = small["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [row for i, row in enumerate(model["vocab"]) if i in renumbered]
        model["unk_id"] = renumbered.get(model["unk_id"])
    else:
        vocabulary = {
            piece: renumbered[i] for piece, i in model["vocab"].items() if i in renumbered
        }
        model["vocab"] = vocabulary
        if model["type"] == "BPE":
            model["merges"] = [
                [left, right]
                for left, right in model["merges"]
                if {left, right, _merged(model, left, right)} <= vocabulary.keys()
            ]
    for token in small["added_tokens"]:
        token["id"] = renumbered[token["id"]]
    if small["padding"]:
        small["padding"]["pad_id"] = renumbered.get(small["padding"]["pad_id"], 0)
    _renumber_processor_(small["post_processor"], renumbered)
    return small


def _renumber_processor_(processor: dict[str, Any] | None, renumbered: dict[int, int]) -> None:
    """Give what is put around a text (by a template, or as BERT and RoBERTa do) its new ids."""
    if processor is None:
        return
    for part in processor.get("processors", []):
        _renumber_processor_(part, renumbered)
    for special in processor.get("special_tokens", {}).values():
        special["ids"] = [renumbered[old] for old in special["ids"]]
    for name in {"cls", "sep"} & processor.keys():
        piece, old = processor[name]
        processor[name] = [piece, renumbered[old]]


def _rebuilt(tokenizer: Any, description: dict[str, Any]) -> Any:
    """A tokenizer of the same class and settings that has another description."""
    # By way of a folder, since classes rebuild themselves from their files each in its own way:
    # what is in memory then is what a saved folder gives.
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        Path(folder, "tokenizer.json").write_text(json.dumps(description), encoding="utf-8")
        small = type(tokenizer).from_pretrained(folder)
    small.name_or_path = tokenizer.name_or_path
    return small


def _refuse_moved_padding(model: Any, renumbered: dict[int, int]) -> None:
    """RoBERTa and its kin count positions from the padding's id, which therefore must stay."""
    old = model.config.pad_token_id
    counting = any(
        "padding_idx" in vars(part) and not isinstance(part, nn.Embedding)
        for part in model.modules()
    )
    if counting and renumbered.get(old) != old:
        raise ModelError(
            f"{type(model).__name__} counts positions from its padding id {old}, which a cut "
            "vocabulary would move: use vocabulary: teacher"
        )


def _renumber_config_(config: Any, renumbered: dict[int, int]) -> None:
    config.vocab_size = len(renumbered)
    for name, old in config.to_dict().items():
        if name.endswith("_token_id") and old is not None:
            several = [renumbered[i] for i in old] if isinstance(old, list) else None
            setattr(config, name, several or renumbered.get(old))
