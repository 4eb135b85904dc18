"""Structured pruning: the right units go, what is left answers the same, and it loads again."""

from __future__ import annotations

import threading
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)
from zoo import MODELS, Convolved, Mlp, answer, calibration, example, given, losses

from attar import export, measure, students
from attar.compress import prune
from attar.compress.prune import graph
from attar.compress.prune.blocks import attentions
from attar.compress.prune.importance import columns
from attar.compress.prune.layers import influences
from attar.depth import blocks
from attar.errors import ExportError, ModelError
from attar.resolve import ask, bind
from attar.shapes import fit_
from attar.tasks.text import classification
from attar.types import Sparse

IMPORTANCES = ("magnitude", "activation", "taylor")


def structured(model: nn.Module, **options: Any) -> Any:
    return ask(bind(prune.structured, {"round_to": 1} | options), given(model))


def silence_(layer: Any, units: slice) -> None:
    """Make the layer behind some units read nothing of them."""
    with torch.no_grad():
        layer.weight[:, units] = 0


# What goes


@pytest.mark.parametrize("importance", IMPORTANCES)
@pytest.mark.parametrize("name", ["bert", "vit", "llama"])
def test_units_that_nobody_reads_go_first_and_the_answers_stay(name: str, importance: str) -> None:
    model: Any = MODELS[name]().eval()
    for path in blocks(model):
        narrow = [m for m in model.get_submodule(path).modules() if isinstance(m, nn.Linear)][-1]
        silence_(narrow, slice(4, 12))
    small = structured(model, ratio=0.25, importance=importance)
    assert small.config.intermediate_size == 24
    assert torch.allclose(answer(small), answer(model), atol=1e-6)


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_whole_groups_of_heads_go_with_their_keys_and_values(importance: str) -> None:
    model: Any = MODELS["llama"]().eval()
    for layer in model.model.layers:
        silence_(layer.self_attn.o_proj, slice(16, 32))  # heads 2 and 3, which share one key
    small = structured(model, ratio={"heads": 0.5}, importance=importance)
    sizes = (small.config.num_attention_heads, small.config.num_key_value_heads)
    assert (*sizes, small.config.head_dim) == (2, 1, 8)
    assert small.model.layers[0].self_attn.k_proj.out_features == 8
    assert torch.allclose(answer(small), answer(model), atol=1e-6)


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_channels_that_nobody_reads_go_first_and_the_answers_stay(importance: str) -> None:
    model = Mlp().eval()
    silence_(model.head, slice(0, 4))
    small = structured(model, ratio=0.25, importance=importance)
    assert small.hidden.out_features == 12
    assert torch.allclose(answer(small, example(model)), answer(model), atol=1e-6)


def test_channels_around_which_the_input_is_passed_go_together() -> None:
    small = structured(Convolved().eval(), ratio=0.5)
    widths = (small.stem.out_channels, small.block.first.in_channels, small.head.in_features)
    assert (*widths, small.block.second.groups) == (8, 8, 8, 2)


def test_the_hidden_width_takes_whole_heads_with_it_where_their_size_hangs_on_it() -> None:
    small = structured(MODELS["bert"](), ratio={"hidden": 0.5, "ffn": 0.5})
    config = small.config
    assert (config.hidden_size, config.num_attention_heads, config.intermediate_size) == (8, 2, 16)
    assert measure.parameters(small) < 0.5 * measure.parameters(MODELS["bert"]())


def test_hidden_units_that_are_always_zero_go_first() -> None:
    model: Any = MODELS["llama"]().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                module.weight[:, 16:] = 0
        for layer in model.model.layers:
            for writer in (layer.self_attn.o_proj, layer.mlp.down_proj):
                writer.weight[16:] = 0
    small = structured(model, ratio={"hidden": 0.5})
    assert small.config.hidden_size == 16
    kept = model.model.embed_tokens.weight[:, :16]
    assert torch.equal(small.model.embed_tokens.weight, kept)


# How it is measured


def test_the_scale_of_the_batch_norm_behind_a_channel_tells_what_goes() -> None:
    """Liu et al. 2017: by its size, of either sign; one threshold over layers where asked."""
    model = Convolved(width=8, groups=1).eval()
    with torch.no_grad():
        model.norm.weight.copy_(torch.tensor([9.0, 9, 9, 9, 9, 9, 9, 9]))
        model.block.norm.weight.copy_(torch.tensor([0.5, -0.1, 2, -3, 0.2, 1, -0.3, 4]))
        kept = model.block.first.weight[[0, 2, 3, 5, 6, 7]].clone()
    options = {"importance": "scale", "exclude": ["block.second", "stem"]}
    small = structured(model, ratio=0.25, **options)
    assert torch.equal(small.block.first.weight, kept)
    assert small.block.norm.weight.tolist() == pytest.approx([0.5, 2, -3, 1, -0.3, 4])
    small = structured(model, ratio=0.25, scope="global", **options)
    assert small.block.first.out_channels == 6


@pytest.mark.parametrize("name", ["mlp", "bert"])
def test_without_a_batch_norm_its_scale_cannot_tell(name: str) -> None:
    with pytest.raises(ModelError, match=r"no batch norm.*; take another importance"):
        structured(MODELS[name](), ratio=0.25, importance="scale")


def test_importance_is_what_numpy_makes_of_the_formulas() -> None:
    model = Mlp().eval()
    weight = model.head.weight.detach().double().numpy()
    seen = []
    model.head.register_forward_pre_hook(lambda _, x: seen.append(x[0].detach().double().numpy()))
    squares, gates = np.zeros(16), np.zeros(16)
    for loss in losses(model):
        (gradient,) = torch.autograd.grad(loss, model.head.weight)
        gates += (weight * gradient.double().numpy()).sum(0) ** 2
    squares = (np.concatenate(seen) ** 2).mean(0)
    found = {
        how: columns(model, ["head"], how, calibration, losses, 3)["head"].numpy()
        for how in IMPORTANCES
    }
    assert np.allclose(found["magnitude"], (weight**2).sum(0), rtol=1e-5)
    assert np.allclose(found["activation"], (weight**2).sum(0) * squares, rtol=1e-5)
    assert np.allclose(found["taylor"], gates / 3, rtol=1e-4)


def test_a_convolution_in_groups_is_read_group_by_group() -> None:
    model = nn.Module()
    model.conv = nn.Conv2d(4, 2, 1, groups=2, bias=False)
    model.conv.weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[..., None, None]
    found = columns(model, ["conv"], "magnitude", calibration, losses, 1)["conv"]
    assert found.tolist() == [1.0, 4.0, 9.0, 16.0]


def test_one_threshold_for_all_takes_more_where_less_is_worth() -> None:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16))

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network
            self.head = nn.Linear(16, 3)

        def forward(self, numbers: Tensor) -> Tensor:
            return self.head(torch.relu(self.body(numbers)))  # type: ignore[no-any-return]

    model = Named().eval()
    with torch.no_grad():
        model.body[3].weight[:, 4:] *= 1e-3  # most of the first layer's channels are read by nobody
    inputs = {"numbers": torch.randn(2, 12)}
    everything = given(model) | {
        "example": lambda _: inputs,
        "calibration": lambda _: iter([inputs]),
    }
    sizes = {}
    for scope in ("layer", "global"):
        step = bind(
            prune.structured,
            {"ratio": 0.25, "scope": scope, "round_to": 1, "importance": "magnitude"},
        )
        small: Any = ask(step, everything)
        sizes[scope] = (small.body[1].out_features, small.body[3].out_features)
    assert sizes == {"layer": (12, 12), "global": (8, 16)}


# What comes out


@pytest.mark.parametrize("name", ["bert", "vit", "llama"])
def test_a_pruned_transformer_loads_again_without_attar(name: str, tmp_path: Path) -> None:
    ratio = {"ffn": 0.5, "hidden": 0.5} if name != "llama" else {"ffn": 0.5, "heads": 0.5}
    small: Any = structured(MODELS[name]().eval(), ratio=ratio)
    small.save_pretrained(tmp_path)
    auto = AutoModelForImageClassification if name == "vit" else AutoModelForSequenceClassification
    loaded = auto.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert torch.equal(answer(loaded), answer(small))


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_fewer_heads_alone_answer_as_if_the_others_said_nothing(name: str) -> None:
    """The reference: the whole network, in which what the lost heads say is multiplied by 0."""
    model: Any = MODELS[name]().eval()
    small = structured(model, ratio={"heads": 0.5}, importance="magnitude")
    before, after = attentions(model), attentions(small)
    assert [each.heads for each in after] == [2] * len(after)
    for was, now in zip(before, after, strict=True):
        output, left = (m.get_submodule(b.output).weight for m, b in ((model, was), (small, now)))
        stays = [n for n in range(output.shape[1]) if (output[:, [n]] == left).all(0).any()]
        assert len(stays) == left.shape[1] == output.shape[1] // 2
        with torch.no_grad():
            output[:, [n for n in range(output.shape[1]) if n not in stays]] = 0
    torch.testing.assert_close(answer(small), answer(model))
    twice = structured(small, ratio={"heads": 0.5}, importance="magnitude")
    assert [each.heads for each in attentions(twice)] == [1] * len(after)
    assert small.config.to_dict() == model.config.to_dict()


def test_fewer_heads_than_a_configuration_can_say_are_saved_and_read_back(
    bank: Path, base: Path, tmp_path: Path
) -> None:
    task = classification(dataset=str(bank), max_length=16)
    model = task.load(str(base), new_head=True).eval()
    small = structured(model, ratio={"heads": 0.5, "ffn": 0.5}, importance="magnitude")
    with pytest.raises(ExportError, match=r"would not load it; .* export.safetensors"):
        export.transformers(small, tmp_path / "theirs")
    loaded = students.load(export.safetensors(small, tmp_path / "ours", students.save))
    inputs = task.example(small)
    assert torch.equal(answer(loaded, inputs), answer(small, inputs))
    assert measure.parameters(loaded) == measure.parameters(small) < measure.parameters(model)
    assert task.score(task.load(loaded)) == task.score(small)
    with pytest.raises(ModelError, match="save_pretrained"):
        students.save(model, tmp_path / "whole")


def test_a_distilbert_calls_its_parts_otherwise_and_is_cut_too() -> None:
    config = DistilBertConfig(vocab_size=50, dim=16, n_heads=4, hidden_dim=32, n_layers=2)
    small = structured(DistilBertForSequenceClassification(config), ratio=0.5)
    assert small.config.hidden_dim == 16
    assert small.distilbert.transformer.layer[1].ffn.lin2.in_features == 16


def test_what_stays_is_a_multiple_and_never_nothing() -> None:
    assert structured(MODELS["bert"](), ratio=0.4, round_to=8).config.intermediate_size == 16
    assert structured(MODELS["bert"](), ratio=0.99, round_to=8).config.intermediate_size == 8


def test_a_ratio_of_nothing_changes_no_answer() -> None:
    for name in ("bert", "cnn"):
        model = MODELS[name]().eval()
        assert torch.equal(answer(structured(model, ratio=0.0)), answer(model))


def test_what_is_excluded_keeps_its_channels() -> None:
    small = structured(Convolved().eval(), ratio=0.5, exclude=["stem"])
    assert small.stem.out_channels == 16


def test_the_tokenizer_stays_with_the_model() -> None:
    model: Any = MODELS["bert"]()
    model.tokenizer = object()
    assert structured(model, ratio=0.5).tokenizer is not None


class Mobile(nn.Module):
    """A depthwise convolution between two of one point."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 1)
        self.norm = nn.BatchNorm2d(16)
        self.depth = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.last = nn.Conv2d(16, 3, 1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        seen = self.depth(torch.relu(self.norm(self.first(pixel_values))))
        return self.last(seen).mean((2, 3))  # type: ignore[no-any-return]


@pytest.mark.parametrize("make", [Mlp, Convolved, Mobile])
def test_a_network_of_ones_own_loads_again_by_the_shapes_of_its_weights(
    make: type[nn.Module], tmp_path: Path
) -> None:
    model = make().eval()
    inputs = example(Convolved() if make is Mobile else model)
    small = ask(
        bind(prune.structured, {"ratio": 0.5, "round_to": 1, "importance": "magnitude"}),
        given(model) | {"example": lambda _: inputs},
    )
    save_file(small.state_dict(), tmp_path / "small.safetensors")
    weights = load_file(tmp_path / "small.safetensors")
    again = make()
    fit_(again, weights).load_state_dict(weights)
    assert torch.equal(answer(again.eval(), inputs), answer(small, inputs))
    assert repr(again) == repr(small)
    assert measure.parameters(again) < measure.parameters(model)


def test_a_pruned_student_of_attar_is_saved_and_read_back(
    bank: Path, base: Path, tmp_path: Path
) -> None:
    task = classification(dataset=str(bank), max_length=16)
    teacher = task.load(str(base), new_head=True)
    student = students.cnn(task.texts, list(task.classes), teacher, 16, width=8, embedding=8)
    small = structured(student.eval(), ratio=0.5)
    loaded = students.load(students.save(small, tmp_path / "small"))
    inputs = task.example(small)
    assert torch.equal(answer(loaded, inputs), answer(small, inputs))
    assert measure.parameters(loaded) < measure.parameters(student)


def test_a_layer_that_cannot_be_fitted_is_named_with_the_shape() -> None:
    weights = nn.LSTM(4, 4).state_dict()
    with pytest.raises(ModelError, match=r"is a LSTM, .* the shape \(16, 4\)"):
        fit_(nn.Sequential(nn.LSTM(4, 8)), {f"0.{name}": each for name, each in weights.items()})


# What is refused


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("bert", {"ratio": {"channels": 0.5}}, "has no channels to prune; take ffn"),
        ("bert", {"ratio": 0.5, "exclude": ["bert"]}, "All layers of .* have one width"),
        ("bert", {"ratio": 0.5, "scope": "global"}, "All layers of .* have one width"),
        ("mlp", {"ratio": {"ffn": 0.5}}, "`channels` are all that can be pruned"),
        ("mlp", {"ratio": 1.0}, "0 to below 1, not 1.0"),
        ("mlp", {"ratio": {}}, "ratio names no part"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_do(
    name: str, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ModelError, match=sentence):
        structured(MODELS[name](), **options)


def test_a_graph_that_takes_forever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "PATIENCE", 0.3)

    def forever(*_: Any, **__: Any) -> None:
        while True:
            time.sleep(0.01)

    monkeypatch.setattr("torch_pruning.BasePruner", forever)
    before = threading.active_count()
    with pytest.raises(ModelError, match="not understood within 0 seconds"):
        structured(Mlp(), ratio=0.5)
    for _ in range(100):
        if threading.active_count() == before:
            break
        time.sleep(0.05)
    assert threading.active_count() == before


def test_what_breaks_inside_of_the_graph_is_told() -> None:
    with pytest.raises(ZeroDivisionError):
        graph._within(5.0, lambda: print(1 // 0), "Mlp")


# Layers


def test_the_layer_that_changes_least_goes_and_the_others_keep_their_order() -> None:
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=4, num_attention_heads=2)
    model: Any = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for part in (model.bert.encoder.layer[2].attention, model.bert.encoder.layer[2]):
            part.output.dense.weight.zero_()
    told: list[Any] = []
    small: Any = prune.layers(model, calibration, lambda *table: told.append(table), drop=1)
    assert small.config.num_hidden_layers == 3
    kept = [layer.intermediate.dense.weight for layer in small.bert.encoder.layer]
    layers = model.bert.encoder.layer
    wanted = [layers[n].intermediate.dense.weight for n in (0, 1, 3)]
    assert all(torch.equal(a, b) for a, b in zip(kept, wanted, strict=True))
    ((title, rows),) = told
    assert title == "Influence of each layer"
    assert [row["stays"] for row in rows] == [True, True, False, True]
    assert rows[2]["influence"] == pytest.approx(0.0, abs=1e-3)


def test_influence_is_one_less_the_cosine() -> None:
    class Turn(nn.Module):
        """Turns the plane by 60 degrees, of which the cosine is a half."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2, bias=False)
            root = 3**0.5 / 2
            self.linear.weight.data = torch.tensor([[0.5, -root], [root, 0.5]])
            self.dropout = nn.Dropout(0.5)

        def forward(self, numbers: Tensor) -> Tensor:
            return self.dropout(self.linear(numbers))  # type: ignore[no-any-return]

    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.turns = nn.ModuleList([Turn(), Turn(), Turn()])

        def forward(self, numbers: Tensor) -> Tensor:
            for turn in self.turns:
                numbers = turn(numbers)
            return numbers

    told: list[Any] = []
    model = Stack()
    numbers = {"numbers": torch.randn(5, 2)}
    tell = lambda _, rows: told.extend(rows)  # noqa: E731
    small: Any = prune.layers(model, lambda _: iter([numbers]), tell, drop=2)
    assert [row["influence"] for row in told] == pytest.approx([0.5] * 3, abs=1e-4)
    assert len(small.turns) == 1
    assert len(model.turns) == 3
    assert model.training


class Widening(nn.Module):
    """A residual block; where it widens, nothing passes around it."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(into, out, 3, padding=1)
        self.second = nn.Conv2d(out, out, 3, padding=1)
        self.passes = into == out

    def forward(self, seen: Tensor) -> Tensor:
        inner = self.second(torch.relu(self.first(seen)))
        return torch.relu(inner + seen if self.passes else inner)


class Staged(nn.Module):
    """Two stages of blocks, the second twice as wide."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Sequential(Widening(3, 3), Widening(3, 3))
        self.wide = nn.Sequential(Widening(3, 6), Widening(6, 6), Widening(6, 6))

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.wide(self.narrow(pixel_values)).mean((2, 3))  # type: ignore[no-any-return]


def test_the_blocks_of_all_stages_are_weighed_and_those_that_widen_stay() -> None:
    model = Staged().eval()
    with torch.no_grad():
        for block in (model.narrow[1], model.wide[1]):
            block.second.weight.zero_()  # so that it passes on what it was given
            block.second.bias.zero_()
    told: list[Any] = []
    pictures = {"pixel_values": torch.rand(2, 3, 4, 4)}
    tell = lambda _, rows: told.extend(rows)  # noqa: E731
    small: Any = prune.layers(model, lambda _: iter([pictures]), tell, drop=2)
    assert [row["layer"] for row in told if not row["stays"]] == ["narrow.1", "wide.1"]
    assert "wide.0" not in [row["layer"] for row in told]
    assert (len(small.narrow), len(small.wide)) == (1, 2)
    assert torch.allclose(small(**pictures), model(**pictures), atol=1e-6)
    with pytest.raises(ModelError, match="drop is 5, and Staged has no more than 5 layers, of wh"):
        prune.layers(model, lambda _: iter([pictures]), tell, drop=5)


@pytest.mark.parametrize("step", [{"prune.layers": {}}, {"prune.structured": {"ratio": 0.5}}])
def test_how_its_pictures_are_normalized_goes_with_a_network(step: dict[str, Any]) -> None:
    model, how = MODELS["vit"](), {"mean": [0.2] * 3, "std": [0.1] * 3, "side": 8}
    vars(model)["normalization"] = how
    ((name, options),) = step.items()
    function = {"prune.layers": prune.layers, "prune.structured": prune.structured}[name]
    assert vars(ask(bind(function, options), given(model)))["normalization"] == how


def test_more_layers_than_there_are_cannot_go() -> None:
    with pytest.raises(ModelError, match=r"drop is 2, and .* no more than 2 layers"):
        ask(bind(prune.layers, {"drop": 2}), given(MODELS["bert"]()))


# Vocabulary


def test_pieces_that_the_texts_never_use_go_and_the_answers_stay(base: Path) -> None:
    from functools import partial

    from attar.students.vocabulary import cut
    from attar.tasks.text.tokenizing import tokenizer_at

    model: Any = AutoModelForSequenceClassification.from_pretrained(base).eval()
    model.tokenizer = tokenizer_at(base)
    texts = ["my card was lost", "what rate"]
    small: Any = prune.vocabulary(deepcopy(model), partial(cut, texts=texts))
    assert small.config.vocab_size < model.config.vocab_size
    for text in texts:
        asked = [each.tokenizer(text, return_tensors="pt") for each in (model, small)]
        assert torch.allclose(small(**asked[1]).logits, model(**asked[0]).logits, atol=1e-6)


# Zeros


@pytest.mark.parametrize("step", [{"prune.layers": {}}, {"prune.structured": {"ratio": 0.5}}])
def test_zeros_that_are_meant_stay_meant_when_a_model_is_built_anew(step: dict[str, Any]) -> None:
    sparse = prune.magnitude(MODELS["bert"](), ratio=0.5)
    ((name, options),) = step.items()
    function = {"prune.layers": prune.layers, "prune.structured": prune.structured}[name]
    small = ask(bind(function, options), given(sparse))
    linear = {path for path, each in small.named_modules() if isinstance(each, nn.Linear)}
    assert {path for path, each in small.named_modules() if isinstance(each, Sparse)} == linear


def test_a_ratio_that_takes_nothing_is_refused() -> None:
    with pytest.raises(ModelError, match="Nothing of BertForSequenceClassification would go"):
        structured(MODELS["bert"](), ratio=0.1, round_to=32)


class Heard(nn.Module):
    """A convolution whose channels an LSTM reads, and another whose channels a head reads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 8, 1)
        self.lstm = nn.LSTM(8, 4, batch_first=True)
        self.wide = nn.Linear(4, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, signal: Tensor) -> Tensor:
        seen = self.lstm(self.conv(signal).transpose(1, 2))[0].mean(1)
        return self.head(torch.relu(self.wide(seen)))  # type: ignore[no-any-return]


def test_channels_that_a_recurrent_layer_reads_are_left_alone() -> None:
    model, inputs = Heard().eval(), {"signal": torch.randn(2, 4, 5)}
    everything = given(model) | {
        "example": lambda _: inputs,
        "calibration": lambda _: iter([inputs]),
    }
    small = ask(bind(prune.structured, {"ratio": 0.5, "round_to": 1}), everything)
    assert (small.conv.out_channels, small.wide.out_features) == (8, 4)


def test_padding_has_no_say_in_a_layers_influence() -> None:
    model = MODELS["bert"]().eval()
    inputs = example(model)
    more = {name: torch.nn.functional.pad(each, (0, 7)) for name, each in inputs.items()}
    found = [
        influences(model, blocks(model), lambda _, shown=shown: iter([shown]), 1)  # type: ignore[misc]
        for shown in (inputs, more)
    ]
    assert found[0] == pytest.approx(found[1], abs=1e-6)
