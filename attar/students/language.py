"""A fresh small language model of the Llama family."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from attar.errors import MissingExtra, ModelError
from attar.types import Count


def llama(
    tokenizer: Any,
    max_length: int,
    *,
    layers: Count = 4,
    width: Count = 256,
    heads: Count = 4,
    groups: Count | None = None,
    intermediate: Count | None = None,
    tied: bool = True,
) -> nn.Module:
    """A Llama with random weights on the task's tokens, begun by the recipe's seed.

    layers, width, heads: as every size of the family is told
    groups: heads of keys and values, each shared by several of the others; as many as heads unless
        told (Ainslie et al., GQA, EMNLP 2023)
    intermediate: width of the feed-forward layers; 8/3 of the width unless told, a multiple of 16
    tied: whether the output head is the embeddings
    Raises ModelError where the heads don't divide the width, or the groups the heads.
    """
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        raise MissingExtra("transformers", "text", "the llama student") from None
    if width % heads or (width // heads) % 2:
        raise ModelError(f"{heads} heads do not divide a width of {width} into even parts.")
    if heads % (groups or heads):
        raise ModelError(f"{groups} groups do not divide {heads} heads.")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups or heads,
        intermediate_size=intermediate or 16 * round(width / 6),
        max_position_embeddings=max_length,
        tie_word_embeddings=tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    student = LlamaForCausalLM(config)
    student.tokenizer = tokenizer
    return cast(nn.Module, student)
