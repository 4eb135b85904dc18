"""What every test shares: no network, one seed, one thread; a tiny bank and a tiny BERT."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import csv
from pathlib import Path

import pytest
import torch
from asking import Ask, asking
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

WORDS = {
    "card": "my card was lost please block it",
    "rate": "what exchange rate do you take today",
    "top_up": "how do i top up with cash",
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers and the same number of threads for each test."""
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    """Run a command line, written as one string, in this process."""
    return asking(capsys)


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    """Three intents, forty questions each in training and ten in test."""
    folder = tmp_path / "bank"
    folder.mkdir()
    for split, count in (("train", 40), ("test", 10)):
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "label"])
            for label, words in WORDS.items():
                parts = words.split()
                for n in range(count):
                    turn = n % len(parts)
                    rows.writerow([" ".join(parts[turn:] + parts[:turn]), label])
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A random six-layer BERT with a word-piece tokenizer, as a folder of transformers."""
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special)
    tokenizer.train_from_iterator([*WORDS.values(), "unused words of another world"], trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = dict(zip(("pad", "unk", "cls", "sep", "mask"), special, strict=True))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{f"{name}_token": word for name, word in names.items()}
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=24,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    folder = tmp_path / "base"
    BertModel(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
