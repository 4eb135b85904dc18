"""Terms, bridges and pairing on real small networks: every loss works, and no model is touched."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)
from transformers.models.bart.modeling_bart import BartEncoder

from attar import distill, resolve, teach
from attar.depth import blocks
from attar.distill import Objective, schedules, term
from attar.distill.pairing import pair
from attar.engine import local
from attar.errors import LayerError, RecipeError
from attar.losses import attention, feature, response
from attar.students.convolutional import Cnn
from attar.students.recurrent import Lstm
from attar.taps import tapped
from attar.types import Batch, Knowledge, Lesson, Played

LOSSES = resolve.names("attar.losses")
VOCABULARY, CLASSES, HEADS, LONGEST = 30, 6, 2, 7
LAYER = "bert.encoder.layer"


def bert(
    layers: int, width: int, *, heads: int = HEADS, dropout: float = 0.1, seed: int = 0
) -> Any:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=2 * width,
        max_position_embeddings=16,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        num_labels=CLASSES,
        attn_implementation="eager",
    )
    return BertForSequenceClassification(config).eval()


def lstm(*, bidirectional: bool = True, layers: int = 1) -> nn.Module:
    names = [str(n) for n in range(CLASSES)]
    shape: dict[str, Any] = {"width": 6, "layers": layers, "bidirectional": bidirectional}
    return Lstm(None, names, VOCABULARY, embedding=LONGEST, dropout=0.1, **shape)


def cnn(*, width: int = 6) -> nn.Module:
    names = [str(n) for n in range(CLASSES)]
    return Cnn(None, names, VOCABULARY, width=width, kernels=[2, 3], embedding=4, dropout=0.1)


def ids(*lengths: int) -> Tensor:
    source = torch.Generator().manual_seed(sum(lengths))
    rows = torch.randint(1, VOCABULARY, (len(lengths), max(lengths)), generator=source)
    return rows * (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])


def batch_of(*lengths: int) -> Batch:
    rows = len(lengths)
    return Batch(
        ids(*lengths), torch.arange(rows) % CLASSES, tuple(f"{n:032x}" for n in range(rows))
    )


def forward(model: nn.Module, batch: Batch, layers: Sequence[str] = ()) -> Knowledge:
    mask = (batch.inputs != 0).long()
    with tapped(model, layers) as heard:
        output = model(input_ids=batch.inputs, attention_mask=mask)
    return Knowledge(output if isinstance(output, Tensor) else output.logits, heard(mask), mask)


def run(model: nn.Module) -> Knowledge:
    return forward(model, batch_of(LONGEST, 3))


ONE_WIDTH = ("feature.fsp", "feature.simkd", "relation.entity")
"""Losses over layers whose widths have to agree."""


def options(loss: Callable[..., Tensor]) -> dict[str, Any]:
    """A relation head for each attention head: twelve do not divide widths as small as these."""
    return {"heads": HEADS} if "heads" in resolve.options(loss) else {}


def width(name: str) -> int:
    """Of a teacher that a student of width 8 can learn from by this loss."""
    return 8 if name in ONE_WIDTH else 16


def suited(name: str, batch: Batch) -> Batch:
    """With what a loss asks of a batch: a number for each answer, or what the student did."""
    if name.startswith("sequence."):
        each = torch.rand(len(batch))
        return replace(batch, notes={"worth": each, "own": each.round(), "skew": each / 2})
    if name in ("policy.ppo", "policy.proximal_kl"):
        rows = len(batch)
        done = torch.arange(rows) % CLASSES
        better = torch.linspace(-1, 1, rows)
        return replace(batch, played=Played(torch.zeros(rows, CLASSES), done, better, better))
    if name != "response.regression":
        return batch
    return replace(batch, labels=torch.linspace(-1, 1, len(batch))[:, None].repeat(1, CLASSES))


def paired(student: nn.Module, teacher: nn.Module, loss: Callable[..., Tensor]) -> dict[str, str]:
    # Whose layers no word finds in these models are shown what other kinds are.
    like = {"Scores": "Maps", "Reused": "Features"}
    kind = like.get(resolve.compares(loss), resolve.compares(loss))
    return {} if kind == "Logits" else pair(student, teacher, run, kind)


every_loss = pytest.mark.parametrize("name", sorted(LOSSES))


# --- every loss is a term


@every_loss
@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_loss_trains_a_small_bert_from_a_larger(name: str, accumulate: int) -> None:
    loss = LOSSES[name]
    student, teacher = bert(2, 8), bert(4, width(name), seed=1)
    before = {path: weight.clone() for path, weight in student.state_dict().items()}
    layers = paired(student, teacher, loss)
    told: list[float] = []
    asked = partial(forward, layers=list(layers.values()))
    # Angles need three rows even in half a batch.
    batches = [batch_of(LONGEST, 3, 5, 4, 2, 3), batch_of(2, 5, 5, 1, 3, 6)] * 2
    batches = [suited(name, batch) for batch in batches]
    distill.train(
        student,
        teach.online(batches, [teacher], asked),
        [term(loss, layers=layers or None, **options(loss))],
        partial(forward, layers=list(layers)),
        local(precision="fp32", device="cpu"),
        watch=lambda record: told.append(record["norm"]),
        steps=4,
        lr=0.01,
        accumulate=accumulate,
    )
    assert len(told) == 4
    assert all(math.isfinite(norm) and norm > 0 for norm in told)
    assert any(not torch.equal(before[path], w) for path, w in student.state_dict().items())


@every_loss
def test_every_loss_has_its_recipes_name_in_a_loop_of_ones_own(name: str) -> None:
    loss = LOSSES[name]
    student, teacher = bert(2, 8, dropout=0.0), bert(4, width(name), seed=1)
    layers = paired(student, teacher, loss)
    batch = suited(name, batch_of(4, 3, 2))
    lesson = Lesson(batch, teach.ask(teacher, batch, partial(forward, layers=[*layers.values()])))
    ours = partial(forward, layers=[*layers])
    terms = [term(loss, 2.0, layers=layers or None, **options(loss))]
    objective = Objective(terms, ours(student, batch), lesson.teacher)
    total, parts = objective(ours(student, batch), lesson)
    assert total.shape == ()
    assert parts.keys() == {name}
    assert total.item() == pytest.approx(2 * parts[name])
    total.backward()
    assert any(p.grad is not None for p in student.parameters())
    kind, has_state = resolve.compares(loss), inspect.isclass(loss)
    assert len(objective.bridges) == (len(layers) if kind == "Features" and not has_state else 0)
    together = kind in ("Logits", "Stages")
    assert len(objective.losses) == has_state * (1 if together else len(layers))
    assert all(p.grad is not None for p in objective.parameters())
    assert all(p.grad is None for p in teacher.parameters())


def test_attention_is_compared_without_dropout() -> None:
    student, teacher = bert(2, 8, dropout=0.9), bert(2, 8)
    layers = paired(student, teacher, attention.kl)
    sums: list[Tensor] = []

    def looking(model: nn.Module, batch: Batch, /) -> Knowledge:
        knowledge = forward(model, batch, list(layers))
        maps = knowledge.features[f"{LAYER}.0.attention.self[1]"]
        sums.append(maps.detach().sum(-1))
        assert not model.training or model.bert.embeddings.dropout.training  # type: ignore[union-attr]
        return knowledge

    student.train()  # what transformers gives there is after dropout, and no distribution
    looking(student, batch_of(4, 3))
    assert (sums.pop() - 1).abs().max() > 0.5
    lessons = teach.online(
        [batch_of(4, 3)] * 3, [teacher], partial(forward, layers=[*layers.values()])
    )
    terms = [term(attention.kl, layers=layers), term(response.kl)]
    engine = local(precision="fp32", device="cpu")
    distill.train(student, lessons, terms, looking, engine, steps=3)
    assert len(sums) == 4
    for each in sums:
        torch.testing.assert_close(each, torch.ones_like(each))


# --- terms


def test_a_term_is_called_as_in_a_recipe_and_a_method_by_its_class() -> None:
    class Task:
        def loss(self, student: Tensor, *, smoothing: float = 0.0) -> Tensor:
            return student.sum() + smoothing

    class Bank:
        def __call__(self, student: Tensor) -> Tensor:
            return student.sum()

    assert term(response.kl).name == "response.kl"
    assert term(response.kl, temperature=3.0).name == "response.kl"
    assert term(partial(response.kl, temperature=3.0)).name == "response.kl"
    assert term(Task().loss, smoothing=0.1).name == "Task.loss"
    assert term(Bank()).name == "Bank"


def test_a_misspelt_option_is_answered_with_the_right_one() -> None:
    with pytest.raises(RecipeError, match=r"response\.kl has no option 'temprature'; did you mean"):
        term(response.kl, temprature=4)


def test_a_loss_over_layers_needs_layers() -> None:
    with pytest.raises(RecipeError, match=r"feature\.mse compares layers"):
        term(feature.mse)


def test_a_word_for_the_layers_of_logits_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"response\.kl compares logits and takes no layers"):
        term(response.kl, layers="auto")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"feature\.mse has layers 'auto'; give it `layers: {st"):
        term(feature.mse, layers="auto")  # type: ignore[arg-type]


def test_relation_heads_that_do_not_divide_are_a_sentence() -> None:
    answers = Knowledge(torch.rand(1, 2), {"v": torch.rand(1, 3, 128)})
    minilm = Objective([term(attention.minilm, layers={"v": "v"})], answers, answers)
    with pytest.raises(RecipeError, match=r"minilm can't be had: 12 relation .* 1, 2, 4 or 8"):
        minilm(answers, Lesson(batch_of(3), answers))


def test_the_rate_that_ctkd_names_moves_its_temperature_under_adamw(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And without it, in as many steps, it moves next to not at all."""
    moved = []
    for rates in ({}, {"objective.losses.response/ctkd": 100.0}):
        made: list[nn.Module] = []
        engine = local(precision="fp32", device="cpu")
        monkeypatch.setattr(engine, "track", lambda _, thing, made=made: made.append(thing))
        answers, batches = Knowledge(5 * torch.eye(2, CLASSES)), [batch_of(3, 4)] * 30
        lessons = (Lesson(batch, answers) for batch in batches)
        distill.train(
            bert(1, 8, seed=1), lessons, [term(response.ctkd)], forward, engine, steps=30,
            rates=rates,
        )  # fmt: skip
        (heat,) = next(each for each in made if isinstance(each, Objective)).parameters()
        moved.append(abs(heat.item() - 1))
    assert moved[0] < 0.02
    assert moved[1] > 0.5


def test_no_terms_are_told() -> None:
    with pytest.raises(RecipeError, match="nothing to minimise"):
        Objective([], Knowledge(torch.rand(1, 2)), None)


def test_a_loss_that_asks_for_what_there_is_not_is_told_at_once() -> None:
    def strange(student: Tensor, weather: Tensor) -> Tensor:
        return student + weather

    with pytest.raises(RecipeError, match=r"asks for 'weather'; a loss may ask for student, teach"):
        Objective([term(strange)], Knowledge(torch.rand(1, 2)), None)


def test_a_loss_is_given_what_it_asks_for_and_no_more() -> None:
    given: dict[str, Any] = {}

    def tensors(student: Tensor, teacher: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        given.update(locals())
        return student.sum()

    def others(knowledge: Knowledge, batch: Batch, own: int = 3) -> Tensor:
        given.update(locals())
        return knowledge.logits.sum()

    batch = batch_of(3, 2)
    student, teacher = run(bert(1, 8)), run(bert(1, 8, seed=1))
    lesson = Lesson(batch, teacher)
    total, _ = Objective([term(tensors), term(others)], student, teacher)(student, lesson)
    assert given["student"] is given["knowledge"].logits
    assert torch.equal(given["student"], student.logits)
    assert torch.equal(given["teacher"], teacher.logits)
    assert torch.equal(given["labels"], batch.labels)
    assert torch.equal(given["mask"], student.mask)
    assert given["batch"] is batch
    assert given["own"] == 3
    assert total.item() == pytest.approx(2 * student.logits.sum().item())


def test_a_loss_that_can_not_be_computed_says_so_in_a_sentence() -> None:
    teacher = bert(2, 16, seed=1)
    student = bert(2, 8)
    layers = paired(student, teacher, attention.minilm_v2)
    batch = batch_of(4, 3)
    ours, its = forward(student, batch, [*layers]), forward(teacher, batch, [*layers.values()])
    objective = Objective([term(attention.minilm_v2, layers=layers)], ours, its)
    with pytest.raises(RecipeError, match=r"attention\.minilm_v2 .* 12 relation heads"):
        objective(ours, Lesson(batch, its))


def test_weights_may_be_numbers_or_schedules() -> None:
    falling = partial(schedules.linear, start=1.0, end=0.0)
    student, teacher = run(bert(1, 8)), run(bert(1, 8, seed=1))
    terms = [term(response.mse, falling), term(response.kl, 0.5)]
    objective = Objective(terms, student, teacher)
    for progress in (0.0, 0.25, 1.0):
        total, parts = objective(student, Lesson(batch_of(LONGEST, 3), teacher), progress)
        expected = (1 - progress) * parts["response.mse"] + 0.5 * parts["response.kl"]
        assert total.item() == pytest.approx(expected, rel=1e-5)


def test_a_term_over_layers_is_their_mean() -> None:
    student, teacher = bert(2, 8), bert(2, 8, seed=1)
    batch, layers = batch_of(4, 3), {f"{LAYER}.{n}@mean": f"{LAYER}.{n}@mean" for n in range(2)}
    ours, its = forward(student, batch, [*layers]), forward(teacher, batch, [*layers])
    objective = Objective([term(feature.mse, layers=layers)], ours, its)
    total, _ = objective(ours, Lesson(batch, its))
    each = [(ours.features[p] - its.features[p]).detach().numpy() ** 2 for p in layers]
    # Widths agree, so the bridges are still the identity.
    assert total.item() == pytest.approx(np.mean([part.mean() for part in each]), rel=1e-5)


# --- bridges


def test_a_bridge_joins_widths_and_begins_as_the_identity_where_they_agree() -> None:
    def between(width: int, target: int) -> nn.Module:
        student = Knowledge(torch.ones(2, 3), {"a.b": torch.ones(2, width)})
        teacher = Knowledge(torch.ones(2, 3), {"c": torch.ones(2, target)})
        objective = Objective([term(feature.mse, layers={"a.b": "c"})], student, teacher)
        (bridge,) = objective.bridges.values()
        return bridge

    x = torch.rand(5, 4)
    torch.testing.assert_close(between(4, 4)(x), x)
    assert between(4, 6)(x).shape == (5, 6)
    assert torch.equal(between(4, 6)(x), between(4, 6)(x))
    state = torch.get_rng_state()
    between(4, 6)
    assert torch.equal(torch.get_rng_state(), state)


def test_terms_over_the_same_layers_share_their_bridge() -> None:
    student = Knowledge(torch.rand(2, 3), {"a": torch.rand(2, 4)})
    teacher = Knowledge(torch.rand(2, 3), {"b": torch.rand(2, 6)})
    terms = [term(loss, layers={"a": "b"}) for loss in (feature.mse, feature.cosine)]
    assert len(list(Objective(terms, student, teacher).parameters())) == 2


@pytest.mark.parametrize(
    ("loss", "mine", "its"),
    [
        (feature.mse, (2, 4, 8), (2, 5, 8)),
        (feature.mse, (2, 4, 8), (2, 8)),
        (feature.cosine, (2, 8), (2, 1, 8)),
        (attention.mse, (2, 2, 4, 4), (2, 2, 5, 5)),
        (attention.kl, (2, 2, 4, 4), (2, 4, 4)),
        (attention.minilm_v2, (2, 4, 8), (2, 5, 8)),
    ],
)
def test_shapes_that_can_not_meet_are_both_named(
    loss: Callable[..., Tensor], mine: tuple[int, ...], its: tuple[int, ...]
) -> None:
    student = Knowledge(torch.rand(2, 3), {"a": torch.rand(mine)})
    teacher = Knowledge(torch.rand(2, 3), {"b": torch.rand(its)})
    with pytest.raises(LayerError) as told:
        Objective([term(loss, layers={"a": "b"}, **options(loss))], student, teacher)
    assert f"a of shape {mine} can't be compared with b of shape {its}; " in str(told.value)


def test_another_number_of_attention_heads_can_be_compared() -> None:
    student = Knowledge(torch.rand(2, 3), {"a": torch.rand(2, 2, 4, 4)})
    teacher = Knowledge(torch.rand(2, 3), {"b": torch.rand(2, 12, 4, 4)})
    objective = Objective([term(attention.mse, layers={"a": "b"})], student, teacher)
    assert math.isfinite(objective(student, Lesson(batch_of(4, 4), teacher))[0].item())


def test_shapes_that_differ_only_in_a_later_lesson_are_told_too() -> None:
    student = Knowledge(torch.rand(2, 3), {"a": torch.rand(2, 4, 8)})
    teacher = Knowledge(torch.rand(2, 3), {"b": torch.rand(2, 4, 8)})
    objective = Objective([term(feature.mse, layers={"a": "b"})], student, teacher)
    later = replace(teacher, features={"b": torch.rand(2, 5, 8)})
    with pytest.raises(LayerError, match=r"shape \(2, 4, 8\).*shape \(2, 5, 8\); pool both"):
        objective(student, Lesson(batch_of(4, 4), later))


@pytest.mark.parametrize(("whose", "path"), [("student", "a"), ("teacher", "b")])
def test_a_layer_that_nobody_read_is_named(whose: str, path: str) -> None:
    features = {"student": {"a": torch.rand(2, 4)}, "teacher": {"b": torch.rand(2, 4)}}
    features[whose] = {}
    student, teacher = (Knowledge(torch.rand(2, 3), features[w]) for w in ("student", "teacher"))
    with pytest.raises(LayerError, match=f"The {whose}'s knowledge has no layer '{path}'"):
        Objective([term(feature.mse, layers={"a": "b"})], student, teacher)


def test_padding_that_a_store_left_out_does_not_matter() -> None:
    student, teacher = bert(1, 8), bert(1, 8, seed=1)
    layers = {f"{LAYER}.0": f"{LAYER}.0"}
    terms = [term(feature.mse, layers=layers)]
    padded = replace(batch_of(4, 3), inputs=nn.functional.pad(ids(4, 3), (0, 3)))
    values = []
    for ours, its in ((padded, batch_of(4, 3)), (batch_of(4, 3), padded), (padded, padded)):
        mine, lesson = forward(student, ours, [*layers]), forward(teacher, its, [*layers])
        values.append(Objective(terms, mine, lesson)(mine, Lesson(ours, lesson))[0].item())
    assert values == pytest.approx([values[0]] * 3, rel=1e-4)


# --- pairing


@pytest.mark.parametrize(
    ("ours", "theirs", "answers"),
    [
        (2, 4, [1, 3]),
        (3, 12, [3, 7, 11]),
        (4, 12, [2, 5, 8, 11]),
        (1, 6, [5]),
        (3, 3, [0, 1, 2]),
        (3, 4, [0, 2, 3]),
        (4, 2, [0, 0, 1, 1]),
    ],
)
def test_layer_i_of_n_answers_to_layer_i_n_th_of_the_teacher(
    ours: int, theirs: int, answers: list[int]
) -> None:
    found = pair(bert(ours, 4), bert(theirs, 4), run)
    assert found == {f"{LAYER}.{n}@mean": f"{LAYER}.{its}@mean" for n, its in enumerate(answers)}


def test_layers_are_compared_token_by_token_if_asked_for() -> None:
    assert pair(bert(2, 4), bert(4, 8), run, how="tokens") == {
        f"{LAYER}.0": f"{LAYER}.1",
        f"{LAYER}.1": f"{LAYER}.3",
    }


def test_attention_maps_are_paired_block_by_block() -> None:
    assert pair(bert(2, 4), bert(4, 8, heads=4), run, "Attentions") == {
        f"{LAYER}.0.attention.self[1]": f"{LAYER}.1.attention.self[1]",
        f"{LAYER}.1.attention.self[1]": f"{LAYER}.3.attention.self[1]",
    }


def test_projections_are_paired_in_the_last_block() -> None:
    assert pair(bert(2, 4), bert(4, 8), run, "Projections") == {
        f"{LAYER}.1.attention.self.{name}": f"{LAYER}.3.attention.self.{name}"
        for name in ("query", "key", "value")
    }


def test_a_query_meets_a_query_however_a_model_names_and_orders_them() -> None:
    sizes = {"encoder_layers": 2, "d_model": 4, "encoder_attention_heads": 2, "vocab_size": 9}
    bart = BartEncoder(BartConfig(**sizes, encoder_ffn_dim=8))
    order = [path for path, _ in bart.named_modules() if path.endswith("_proj")]
    assert [path.rpartition(".")[2][0] for path in order[:3]] == ["k", "v", "q"]
    found = pair(bart, bert(1, 4), run, "Projections")
    assert {mine[-6:]: its.rpartition(".")[2] for mine, its in found.items()} == {
        "q_proj": "query",
        "k_proj": "key",
        "v_proj": "value",
    }


def test_families_with_other_names_are_paired_too() -> None:
    sizes: dict[str, Any] = {"n_layers": 2, "dim": 4, "n_heads": 2, "hidden_dim": 8}
    config = DistilBertConfig(
        vocab_size=VOCABULARY, num_labels=CLASSES, attn_implementation="eager", **sizes
    )
    student = DistilBertForSequenceClassification(config)
    stack = "distilbert.transformer.layer"
    assert pair(student, bert(2, 4), run) == {
        f"{stack}.{n}@mean": f"{LAYER}.{n}@mean" for n in range(2)
    }
    maps = pair(student, bert(2, 4), run, "Attentions")
    assert list(maps.values()) == [f"{LAYER}.{n}.attention.self[1]" for n in range(2)]
    assert all(path.startswith(stack) for path in maps)
    assert len(pair(student, bert(2, 4), run, "Projections")) == 3


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "bert": lambda: bert(2, 8),
    "lstm": lstm,
    "one-way lstm": partial(lstm, bidirectional=False),
    "deep lstm": partial(lstm, layers=2),
    "cnn": cnn,
    "cnn as wide as texts are long": partial(cnn, width=LONGEST),
    "cnn as wide as its answer": partial(cnn, width=CLASSES),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_any_student_learns_pooled_features_from_a_bert(name: str) -> None:
    student, teacher = NETWORKS[name](), bert(3, 12, seed=1)
    layers = pair(student, teacher, run)
    assert list(layers.values())[-1] == f"{LAYER}.2@mean"
    told: list[float] = []
    distill.train(
        student,
        teach.online(
            [batch_of(LONGEST, 3, 5)] * 30, [teacher], partial(forward, layers=[*layers.values()])
        ),
        [term(feature.mse, layers=layers)],
        partial(forward, layers=list(layers)),
        local(precision="fp32", device="cpu"),
        watch=lambda record: told.append(record["loss"]),
        steps=30,
        lr=0.02,
        accumulate=2,
    )
    assert told[-1] < 0.7 * told[0]


def test_an_lstm_answers_with_its_states_and_a_cnn_with_what_its_head_reads() -> None:
    teacher = bert(2, 8)
    for both in (False, True):
        (mine,) = pair(lstm(bidirectional=both), teacher, run)
        assert mine == "joined@mean"
    student = cnn()
    (mine,) = pair(student, teacher, run)
    heard = forward(student.eval(), batch_of(4, 3), [mine])
    torch.testing.assert_close(student.head(heard.features[mine]), heard.logits)  # type: ignore[operator]


@pytest.mark.parametrize("kind", ["Attentions", "Projections"])
def test_a_network_without_attention_has_none_to_compare(kind: str) -> None:
    with pytest.raises(LayerError, match=f"No layers of Lstm can be found for {kind.lower()}"):
        pair(lstm(), bert(2, 8), run, kind)


def test_a_network_of_one_linear_layer_has_no_layers() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(1, CLASSES)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            answer: Tensor = self.head((input_ids * attention_mask).float().sum(1, keepdim=True))
            return answer

    with pytest.raises(LayerError, match="No layers of Bare can be found for features"):
        pair(Bare(), bert(2, 8), run)


def test_maps_that_a_model_keeps_to_itself_are_told_with_the_cure() -> None:
    student = bert(2, 8)
    student.set_attn_implementation("sdpa")
    with pytest.raises(LayerError, match=r"BertForSequenceClassification.*eager"):
        pair(student, bert(2, 8), run, "Attentions")


def test_tokens_of_a_cnn_can_not_be_compared() -> None:
    student, teacher, batch = cnn(), bert(2, 8), batch_of(4, 3)
    layers = pair(student, teacher, run, how="tokens")
    ours, its = forward(student, batch, [*layers]), forward(teacher, batch, [*layers.values()])
    with pytest.raises(LayerError, match="pool both over the tokens with @mean"):
        Objective([term(feature.mse, layers=layers)], ours, its)


def traces(*models: nn.Module) -> Iterator[Any]:
    for model in models:
        yield from traces_of(model)


def traces_of(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        yield module.training, len(module._forward_hooks), len(module._forward_pre_hooks)
    yield from (weight.clone() for weight in model.state_dict().values())
    yield from (p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("kind", ["Features", "Attentions", "Projections"])
def test_pairing_leaves_both_models_as_they_were(kind: str) -> None:
    student, teacher = bert(2, 8).train(), bert(2, 8)
    student.bert.embeddings.eval()
    before = list(traces(student, teacher))
    random = torch.get_rng_state()
    pair(student, teacher, run, kind)
    for one, other in zip(before, traces(student, teacher), strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other
    assert torch.equal(torch.get_rng_state(), random)


def test_pairing_leaves_no_hooks_on_a_model_that_fails() -> None:
    def fail(model: nn.Module) -> None:
        model(input_ids=ids(3), attention_mask=torch.ones(2, 9))

    student = lstm().train()
    with pytest.raises(RuntimeError):
        pair(student, bert(1, 4), fail)
    assert all(mode and hooks == 0 for mode, hooks, _ in list(traces(student))[:3])


def test_blocks_are_the_longest_stack_of_like_modules() -> None:
    assert blocks(bert(3, 4)) == [f"{LAYER}.{n}" for n in range(3)]
    assert blocks(lstm(layers=2)) == []
    assert blocks(cnn()) == []
    assert blocks(nn.Linear(1, 1)) == []
