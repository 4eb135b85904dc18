"""Pruning: the shares and places of zeros, worked out by hand."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector as flat
from zoo import MODELS, Mlp, bert, calibration, example, labels, lstm, text_cnn

from attar.compress import prune, quantize
from attar.distill import term, train
from attar.errors import ModelError
from attar.types import Batch, Knowledge, Lesson


def zeros(model: nn.Module, path: str) -> int:
    return int((model.get_parameter(path) == 0).sum())


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.29, 0.5, 0.9])
def test_the_share_of_zeros_is_exactly_the_one_asked_for(ratio: float) -> None:
    model = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 10))
    for scope in ("global", "layer"):
        sparse = prune.magnitude(model, ratio=ratio, scope=scope)
        assert zeros(sparse, "0.weight") + zeros(sparse, "2.weight") == round(200 * ratio)


def test_one_threshold_takes_from_the_layer_of_small_weights_and_one_each_from_both() -> None:
    model = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 10))
    model[0].weight.data.uniform_(0.01, 0.02)
    model[2].weight.data.uniform_(1.0, 2.0)
    together = prune.magnitude(model, ratio=0.4)
    assert (zeros(together, "0.weight"), zeros(together, "2.weight")) == (80, 0)
    apart = prune.magnitude(model, ratio=0.4, scope="layer")
    assert (zeros(apart, "0.weight"), zeros(apart, "2.weight")) == (40, 40)


def test_the_smallest_in_magnitude_go_whatever_their_sign() -> None:
    model = nn.Sequential(nn.Linear(4, 1))
    model[0].weight.data = torch.tensor([[-3.0, 0.5, -0.1, 2.0]])
    sparse = prune.magnitude(model, ratio=0.5)
    assert sparse.get_parameter("0.weight").tolist() == [[-3.0, 0.0, 0.0, 2.0]]
    assert torch.equal(sparse.get_parameter("0.bias"), model[0].bias)


def test_equal_magnitudes_do_not_take_more_than_was_asked_for() -> None:
    model = nn.Sequential(nn.Linear(10, 10))
    model[0].weight.data.fill_(1.0)
    assert zeros(prune.magnitude(model, ratio=0.3), "0.weight") == 30


def test_a_weight_that_two_layers_share_is_counted_once() -> None:
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10), nn.Linear(10, 10))
    model[1].weight = model[0].weight
    sparse = prune.magnitude(model, ratio=0.25)
    assert zeros(sparse, "0.weight") + zeros(sparse, "2.weight") == 50


def test_what_is_excluded_stays_whole_with_all_that_is_in_it() -> None:
    model = bert()
    sparse = prune.magnitude(model, ratio=0.9, exclude=["bert.encoder"])
    inside = {n: p for n, p in sparse.named_parameters() if n.startswith("bert.encoder")}
    assert all(torch.equal(p, model.get_parameter(n)) for n, p in inside.items())
    assert zeros(sparse, "classifier.weight") > 0


def test_convolutions_are_pruned_and_embeddings_and_recurrent_layers_are_not() -> None:
    convolved, recurrent = (prune.magnitude(make(), ratio=0.5) for make in (text_cnn, lstm))
    assert zeros(convolved, "convolutions.0.weight") > 0
    assert zeros(convolved, "embedding.weight") == 0
    assert zeros(recurrent, "rightward.0.weight_hh_l0") == 0


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5, float("nan")])
def test_a_ratio_that_is_no_share_is_refused(ratio: float) -> None:
    with pytest.raises(ModelError, match=r"0 to below 1, not"):
        prune.magnitude(Mlp(), ratio=ratio)


def test_a_ratio_of_nothing_is_a_copy() -> None:
    model = Mlp()
    assert torch.equal(
        flat(prune.magnitude(model, ratio=0.0).parameters()), flat(model.parameters())
    )


def test_zeros_show_in_a_zip_and_nowhere_else(tmp_path: Path) -> None:
    model = Mlp(width=512)
    sizes = []
    for n, each in enumerate((model, prune.magnitude(model, ratio=0.9))):
        file = tmp_path / f"{n}.safetensors"
        save_file(each.state_dict(), file)
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(file)
        sizes.append((file.stat().st_size, packed.tell()))
    (raw, zipped), (sparse_raw, sparse_zipped) = sizes
    assert sparse_raw == raw
    assert sparse_zipped < 0.5 * zipped


def test_a_pruned_model_can_be_quantized_and_its_zeros_stay() -> None:
    both = quantize.int8_dynamic(prune.magnitude(Mlp(), ratio=0.5))
    weights = torch.cat([both.get_buffer(f"{n}.weight").flatten() for n in ("hidden", "head")])
    assert int((weights == 0).sum()) >= weights.numel() // 2
    with pytest.raises(ModelError, match="left to prune"):
        prune.magnitude(both, ratio=0.5)


# patterns, wanda


@pytest.mark.parametrize("how", [prune.magnitude, prune.wanda])
@pytest.mark.parametrize(
    ("pattern", "stay", "every"), [("2:4", 2, 4), ("1:4", 1, 4), ("3:4", 3, 4)]
)
def test_of_every_m_weights_of_a_row_n_stay(
    how: Callable[..., nn.Module], pattern: str, stay: int, every: int
) -> None:
    model = MODELS["mlp"]()
    options = {"calibration": calibration} if how is prune.wanda else {}
    sparse = how(model, pattern=pattern, **options)
    for path in ("hidden", "head"):
        parts = sparse.get_parameter(f"{path}.weight").unflatten(1, (-1, every))
        assert bool(((parts != 0).sum(-1) == stay).all())


def test_the_best_of_every_four_stay_and_what_is_left_over_stays_whole() -> None:
    model = nn.Sequential(nn.Linear(6, 1))
    model[0].weight.data = torch.tensor([[0.1, -4.0, 3.0, 0.2, 0.01, 0.02]])
    sparse = prune.magnitude(model, pattern="2:4")
    found = sparse.get_parameter("0.weight")
    assert torch.equal(found, torch.tensor([[0.0, -4.0, 3.0, 0.0, 0.01, 0.02]]))


@pytest.mark.parametrize("pattern", ["2", "4:2", "a:b", "0:4", "2:4:8"])
def test_a_pattern_of_another_form_is_refused(pattern: str) -> None:
    with pytest.raises(ModelError, match="pattern is N:M"):
        prune.magnitude(Mlp(), pattern=pattern)


@pytest.mark.parametrize("options", [{}, {"ratio": 0.5, "pattern": "2:4"}])
def test_a_ratio_or_a_pattern_is_wanted_and_not_both(options: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="either `ratio` or `pattern`"):
        prune.magnitude(Mlp(), **options)


class Two(nn.Module):
    """A linear layer on two numbers, one large and one small."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2, bias=False)

    def forward(self, numbers: Tensor) -> Tensor:
        return self.linear(numbers)  # type: ignore[no-any-return]


def test_wanda_weighs_a_weight_by_what_it_reads_and_compares_within_an_output() -> None:
    model = Two()
    model.linear.weight.data = torch.tensor([[1.0, 3.0], [1.0, 9.0]])
    numbers = torch.tensor([[4.0, 1.0], [-4.0, -1.0]])
    # The inputs' root mean squares are 4 and 1: 4 against 3, and 4 against 9.
    sparse = prune.wanda(model, lambda _: iter([{"numbers": numbers}]), ratio=0.5)
    assert torch.equal(
        sparse.get_parameter("linear.weight"), torch.tensor([[1.0, 0.0], [0.0, 9.0]])
    )
    plain = prune.magnitude(model, ratio=0.5)
    assert torch.equal(plain.get_parameter("linear.weight"), torch.tensor([[0.0, 3.0], [0.0, 9.0]]))


def test_wanda_reads_the_channels_of_each_group_of_a_convolution() -> None:
    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(4, 2, 1, groups=2, bias=False)

        def forward(self, signal: Tensor) -> Tensor:
            return self.conv(signal)  # type: ignore[no-any-return]

    model = Grouped()
    model.conv.weight.data = torch.tensor([[2.0, 3.0], [3.0, 2.0]])[..., None]
    signal = torch.tensor([[2.0, 1.0, 1.0, 2.0]])[..., None]
    sparse = prune.wanda(model, lambda _: iter([{"signal": signal}]), ratio=0.5)
    # 4 against 3 in the first group, 3 against 4 in the second.
    wanted = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    assert torch.equal(sparse.get_parameter("conv.weight")[..., 0], wanted)


def test_pruned_weights_stay_at_zero_through_training_and_the_others_move() -> None:
    model = prune.magnitude(Mlp(), ratio=0.5)
    before = model.hidden.weight.detach().clone()
    batch = Batch(example(model, rows=8)["input_ids"], labels(), tuple("abcdefgh"))

    def forward(network: nn.Module, lesson: Batch) -> Knowledge:
        return Knowledge(network(lesson.inputs, (lesson.inputs > 0).long()))

    def loss(knowledge: Knowledge, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(knowledge.logits, batch.labels)

    for optimizer in ("adamw", "sgd"):
        lessons = (Lesson(batch, None) for _ in range(20))
        train(model, lessons, [term(loss)], forward, steps=20, lr=0.05, optimizer=optimizer)
    kept = before != 0
    assert 0 < int(kept.sum()) < kept.numel()
    assert torch.equal(model.hidden.weight != 0, kept)
    assert not torch.equal(model.hidden.weight[kept], before[kept])
    assert not model.hidden.weight._backward_hooks
