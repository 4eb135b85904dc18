"""Pruning: the shares and places of zeros, worked out by hand."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parameters_to_vector as flat
from zoo import Mlp, bert, lstm, text_cnn

from attar.compress import prune, quantize
from attar.errors import ModelError


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
