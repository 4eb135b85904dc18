"""A small book of made-up stories, a tokenizer of its own, and tiny Llamas that read it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PEOPLE = ("the fox", "an old owl", "Mara", "the baker", "a small boy")
DEEDS = ("found a coin", "went to the river", "slept under a tree", "sang in the rain")
ENDS = ("and was glad.", "and came home late.", "but told nobody.", "– so they say, naïvely!")

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def stories(count: int, seed: int = 0, sentences: int = 12) -> list[str]:
    """Different texts of 1 to `sentences` sentences."""
    random = np.random.default_rng(seed)
    return [
        f"Story {seed}.{n}. "
        + " ".join(
            f"{random.choice(PEOPLE)} {random.choice(DEEDS)} {random.choice(ENDS)}"
            for _ in range(1 + n % sentences)
        )
        for n in range(count)
    ]


@cache
def _description() -> str:
    whole = Tokenizer(models.BPE())
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.decoder = decoders.ByteLevel()
    special = ["<pad>", "<|end|>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    whole.train_from_iterator(stories(60), trainer)
    return str(whole.to_str())


def tokenizer() -> Any:
    """A byte-level BPE of 400 tokens with a chat template."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_description()),
        pad_token="<pad>",
        eos_token="<|end|>",
        chat_template=TEMPLATE,
        model_max_length=256,
    )


def llama(layers: int = 4, *, padded: int = 0, seed: int = 0, **more: Any) -> nn.Module:
    """A tiny Llama with random weights; padded: rows of its vocabulary that no token has."""
    torch.manual_seed(seed)
    reads = tokenizer()
    config = LlamaConfig(
        **{
            "vocab_size": len(reads) + padded,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "tie_word_embeddings": True,
            "initializer_range": 0.2,
            "pad_token_id": reads.pad_token_id,
            "eos_token_id": reads.eos_token_id,
            "bos_token_id": None,
            **more,
        }
    )
    model: Any = LlamaForCausalLM(config).eval()
    model.tokenizer = reads
    return model  # type: ignore[no-any-return]


def saved(folder: Path, model: Any = None) -> Path:
    """A folder that `transformers` loads."""
    whole = llama() if model is None else model
    whole.save_pretrained(folder)
    whole.tokenizer.save_pretrained(folder)
    return folder


def book(folder: Path, train: int = 40) -> Path:
    """The data as a folder with a file per split."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (part, count) in enumerate({"train": train, "validation": 6, "test": 8}.items()):
        lines = (json.dumps({"text": each}) for each in stories(count, seed + 1))
        (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
