"""Small real tokenizers of several kinds, trained on OpenStax, and texts that set them apart."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

DATA = Path(__file__).parent.parent / "data" / "openstax" / "validation.jsonl.gz"
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"

TEXTS = {
    "plain": "The mitochondrion produces most of the energy that a cell needs.",
    "digits": "In 1969 it cost $4.99, or 1,234,567.89 for 20000 of them (3.14159).",
    "emoji": "so 🙂 they 👩‍👩‍👧 said 🏳️‍🌈 and 🙂🙂 left",
    "cjk": "日本語の文章と中文字符 and 한국어 together",
    "combining": "cafe\u0301 na\u0308ive e\u0301e\u0301 and caf\u00e9",
    "spaces": "  two  spaces,\n\n\ta tab  and an end  ",
    "one letter": "x",
    "code": "def f(x):\n    return x**2  # squared",
}
"""What other programs were seen to misalign."""

SPECIAL = "before <s> between </s> others <|end|> and <|im_start|> after [SEP] all"
"""What some of the tokenizers have as special tokens, and others read letter by letter."""


@cache
def paragraphs(count: int = 150) -> tuple[str, ...]:
    """Real texts."""
    with gzip.open(DATA, "rt", encoding="utf-8") as lines:
        return tuple(json.loads(line)["text"][:1500] for line, _ in zip(lines, range(count)))  # noqa: B905


def byte_level(size: int = 900, end: str = "<|end|>") -> Any:
    """As GPT-2 has it: any byte is a token, words begin with their space."""
    whole = Tokenizer(models.BPE())
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    whole.train_from_iterator(
        paragraphs(),
        trainers.BpeTrainer(
            vocab_size=size, special_tokens=[end], initial_alphabet=alphabet, show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=whole, eos_token=end, pad_token=end)


def fallback(size: int = 800) -> Any:
    """As Llama 2 has it: spaces are marks, unknown letters bytes, and a text begins with <s>."""
    whole = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    whole.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    whole.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = (word for text in paragraphs() for word in text.split(" "))
    whole.train_from_iterator(
        words, trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    )
    whole.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=whole,
        **dict(unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"),  # noqa: C408
    )


def unigram(size: int = 600) -> Any:
    """As T5 has it: the likeliest cut, letters that it does not know are one unknown token."""
    whole = Tokenizer(models.Unigram())
    whole.normalizer = normalizers.NFKC()
    whole.pre_tokenizer = pre_tokenizers.Metaspace()
    whole.decoder = decoders.Metaspace()
    whole.train_from_iterator(
        paragraphs(),
        trainers.UnigramTrainer(
            vocab_size=size,
            special_tokens=["<unk>", "</s>"],
            unk_token="<unk>",
            show_progress=False,
        ),
    )
    whole.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=whole, unk_token="<unk>", eos_token="</s>", pad_token="</s>"
    )


def word_pieces(size: int = 700) -> Any:
    """As BERT has it: lower case, no accents, no spaces, [CLS] and [SEP] around a text."""
    whole = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    whole.normalizer = normalizers.BertNormalizer()
    whole.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    whole.decoder = decoders.WordPiece()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    whole.train_from_iterator(
        paragraphs(),
        trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False),
    )
    whole.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=whole,
        **dict(unk_token="[UNK]", bos_token="[CLS]", eos_token="[SEP]", pad_token="[SEP]"),  # noqa: C408
    )


KINDS: dict[str, Callable[[], Any]] = {
    "byte_level": byte_level,
    "fallback": fallback,
    "unigram": unigram,
    "word_pieces": word_pieces,
}


@cache
def tongue(kind: str) -> Any:
    """The tokenizer of a kind."""
    return KINDS[kind]()
