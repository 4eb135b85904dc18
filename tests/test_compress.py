"""Compressors: what comes out answers in the same shape, costs no more, and leaves the original."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_model, save_file, save_model
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector as flat
from transformers import BertConfig, BertForSequenceClassification

from attar import measure
from attar.compress import prune, quantize
from attar.errors import AttarError, ModelError
from attar.resolve import Function, names, options
from attar.students.convolutional import Cnn
from attar.students.recurrent import Lstm
from attar.types import Quantized

COMPRESSORS = names("attar.compress")
NEEDED = {"ratio": 0.5}
CLASSES = ["card", "transfer", "other"]
IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0]])
INPUTS = {"input_ids": IDS, "attention_mask": (IDS > 0).long()}


class Mlp(nn.Module):
    """The mean of the embeddings, two linear layers."""

    def __init__(self, classes: int = 3, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.hidden = nn.Linear(8, width)
        self.head = nn.Linear(width, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        seen = (self.embedding(input_ids) * attention_mask.unsqueeze(-1)).mean(1)
        logits: Tensor = self.head(torch.relu(self.hidden(seen)))
        return logits


def bert() -> nn.Module:
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=3,
        attn_implementation="eager",
    )
    return BertForSequenceClassification(config)


def lstm() -> nn.Module:
    sizes = {"width": 8, "layers": 1, "embedding": 8, "bidirectional": True, "dropout": 0.1}
    return Lstm(None, CLASSES, 50, **sizes)


def cnn() -> nn.Module:
    return Cnn(None, CLASSES, 50, width=8, kernels=[2, 3], embedding=8, dropout=0.1)


MODELS = {"mlp": Mlp, "bert": bert, "lstm": lstm, "cnn": cnn}


@pytest.fixture(params=sorted(MODELS))
def model(request: pytest.FixtureRequest) -> nn.Module:
    return MODELS[request.param]().eval()


@pytest.fixture(params=sorted(COMPRESSORS))
def compress(request: pytest.FixtureRequest) -> Callable[..., nn.Module]:
    return bound(COMPRESSORS[request.param])


def bound(function: Function) -> Callable[..., nn.Module]:
    """The compressor with the options it can't do without."""
    needed = {name: NEEDED[name] for name, option in options(function).items() if option.required}
    return lambda model: function(model, **needed)


@torch.no_grad()
def answer(model: nn.Module) -> Tensor:
    output = model(**INPUTS)
    return output if isinstance(output, Tensor) else output.logits


# What every compressor of the room promises


def test_the_room_has_the_compressors_that_recipes_name() -> None:
    assert set(COMPRESSORS) == {"prune.magnitude", "quantize.int8_dynamic"}


def test_a_compressed_model_answers_in_the_same_shape(
    model: nn.Module, compress: Callable[..., nn.Module]
) -> None:
    answered = answer(compress(model))
    assert answered.shape == (2, 3)
    assert answered.isfinite().all()


def test_compressing_never_raises_the_cost(
    model: nn.Module, compress: Callable[..., nn.Module]
) -> None:
    small = compress(model)
    assert measure.parameters(small) <= measure.parameters(model)
    assert measure.size(small) <= measure.size(model)
    assert measure.macs(small, lambda _: INPUTS) <= measure.macs(model, lambda _: INPUTS)


def test_compressing_leaves_the_original_as_it_was(
    model: nn.Module, compress: Callable[..., nn.Module]
) -> None:
    model.train()
    before = deepcopy(model.state_dict())
    kinds = [type(module) for module in model.modules()]
    small = compress(model)
    for weight in small.parameters():
        weight.data.fill_(7.0)
    assert model.training
    assert [type(module) for module in model.modules()] == kinds
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())


def test_a_compressed_model_can_be_copied(
    model: nn.Module, compress: Callable[..., nn.Module]
) -> None:
    small = compress(model)
    assert torch.equal(answer(deepcopy(small)), answer(small))


def test_a_compressed_model_saves_and_loads_through_safetensors(
    model: nn.Module, compress: Callable[..., nn.Module], tmp_path: Path
) -> None:
    small = compress(model)
    save_model(small, str(tmp_path / "small.safetensors"))
    other = compress(deepcopy(model).apply(_spoil))
    assert not torch.equal(answer(other), answer(small))
    load_model(other, str(tmp_path / "small.safetensors"))
    assert torch.equal(answer(other), answer(small))


def _spoil(module: nn.Module) -> None:
    for parameter in module.parameters(recurse=False):
        nn.init.normal_(parameter)


def test_a_wrong_path_to_exclude_is_answered_with_the_nearest() -> None:
    for function in COMPRESSORS.values():
        needed = {n: NEEDED[n] for n, option in options(function).items() if option.required}
        with pytest.raises(ModelError, match=r"exclude names 'hiden'.*did you mean 'hidden'\?"):
            function(Mlp(), exclude=["hiden"], **needed)


def test_a_model_without_a_fitting_layer_is_refused_in_a_sentence(
    compress: Callable[..., nn.Module],
) -> None:
    with pytest.raises(AttarError, match=r"^Sequential has no linear or .* layer left to \w+\.$"):
        compress(nn.Sequential(nn.ReLU(), nn.LayerNorm(4)))


def test_nothing_left_to_compress_is_refused_in_a_sentence() -> None:
    everything = ["embedding", "hidden", "head"]
    with pytest.raises(ModelError, match="Mlp has no linear or embedding layer left to quantize"):
        quantize.int8_dynamic(Mlp(), exclude=everything)
    with pytest.raises(ModelError, match="Mlp has no linear or convolution layer left to prune"):
        prune.magnitude(Mlp(), ratio=0.5, exclude=["hidden", "head"])


# int8_dynamic


def reference(inputs: Any, weight: Any, bias: Any, most: int) -> Any:
    """ONNX's DynamicQuantizeLinear and MatMulInteger, from their pages, in NumPy."""
    low, high = min(inputs.min(), 0.0), max(inputs.max(), 0.0)
    step = np.float32((high - low) / 255) if high > low else np.float32(1)
    zero = int(np.clip(np.rint(-low / step), 0, 255))
    seen = np.clip(np.rint(inputs / step) + zero, 0, 255).astype(np.uint8)
    scale = np.abs(weight).max(1) / most
    scale[scale == 0] = 1
    integers = np.rint(weight / scale[:, None]).astype(np.int8)
    product = (seen.astype(np.int32) - zero) @ integers.T.astype(np.int32)
    return product * (step * scale).astype(np.float64) + bias


@pytest.mark.parametrize("most", [64, 127])
@pytest.mark.parametrize("shift", [0.0, 5.0, -5.0])
def test_a_quantized_linear_layer_computes_what_onnx_defines(most: int, shift: float) -> None:
    linear = nn.Linear(24, 7)
    inputs = torch.randn(3, 5, 24) + shift
    wanted = reference(
        inputs.numpy(), linear.weight.detach().numpy(), linear.bias.detach().numpy(), most
    )
    found = quantize.Int8Linear(linear, most)(inputs).detach().numpy()
    assert np.abs(found - wanted).max() < 2e-5 * np.abs(wanted).max()


def test_a_quantized_linear_layer_is_right_where_everything_is_zero() -> None:
    linear = nn.Linear(4, 2)
    linear.weight.data[0] = 0.0
    small = quantize.Int8Linear(linear, 64)
    assert torch.equal(small(torch.zeros(2, 4)), linear.bias.expand(2, 2))
    assert small(torch.ones(1, 4))[0, 0] == linear.bias[0]


def test_weights_have_a_scale_for_each_output() -> None:
    linear = nn.Linear(2, 2, bias=False)
    linear.weight.data = torch.tensor([[1.0, -0.5], [0.01, 0.005]])
    small = quantize.Int8Linear(linear, 64)
    assert small.weight.tolist() == [[64, 64], [-32, 32]]
    assert torch.allclose(small.scale, torch.tensor([1 / 64, 0.01 / 64]))
    assert torch.allclose(small.dequantized().weight, linear.weight)


def test_seven_bits_keep_the_sum_of_two_products_in_sixteen() -> None:
    linear = nn.Linear(32, 8)
    seven, eight = (quantize.Int8Linear(linear, most).weight.abs().max() for most in (64, 127))
    assert 2 * 255 * int(seven) <= 2**15 - 1 < 2 * 255 * int(eight)


def test_a_quantized_table_has_one_scale_and_zero_point() -> None:
    embedding = nn.Embedding(3, 2, padding_idx=0)
    embedding.weight.data = torch.tensor([[0.0, 0.0], [-1.0, 1.55], [0.004, 0.006]])
    small = quantize.Int8Embedding(embedding)
    # (1.55 + 1) / 255 = 0.01, so -1 is 0, zero is 100, and 0.006 rounds up.
    assert small.weight.tolist() == [[100, 100], [0, 255], [100, 101]]
    wanted = torch.tensor([[[-1.0, 1.55], [0.0, 0.01]]])
    assert torch.allclose(small(torch.tensor([[1, 2]])), wanted, atol=1e-6)
    table = small.dequantized()
    assert torch.equal(table(torch.tensor([[1, 2]])), small(torch.tensor([[1, 2]])))
    assert table.padding_idx == 0


def test_a_float_twin_answers_as_the_quantized_layer_but_for_the_inputs_rounding() -> None:
    linear = nn.Linear(24, 7)
    inputs = torch.randn(5, 24)
    small = quantize.Int8Linear(linear, 64)
    step = (inputs.amax() - inputs.amin()) / 255
    most = small.dequantized().weight.abs().sum(1).max() * step / 2
    assert (small(inputs) - small.dequantized()(inputs)).abs().max() <= most * 1.01


def test_a_quantized_model_stays_near_the_original(model: nn.Module) -> None:
    truth = answer(model)
    assert (answer(quantize.int8_dynamic(model)) - truth).abs().max() < 0.1 * truth.abs().max()


def test_quantizing_keeps_the_number_of_parameters_and_takes_most_of_the_bytes() -> None:
    model = Mlp(width=512)
    small = quantize.int8_dynamic(model)
    assert measure.parameters(small) == measure.parameters(model) == 50 * 8 + 9 * 512 + 513 * 3
    assert measure.size(small) < 0.6 * measure.size(model)


def test_excluded_modules_and_what_is_in_them_stay_in_float() -> None:
    model = bert().eval()
    small = quantize.int8_dynamic(model, exclude=["bert.embeddings", "classifier"])
    quantized = {path for path, m in small.named_modules() if isinstance(m, Quantized)}
    linear = {path for path, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert quantized == linear - {"classifier"}


class Scaled(nn.Embedding):
    """A table that is more than a look-up."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * 100


def test_a_layer_of_a_kind_of_its_own_is_left_alone() -> None:
    model = nn.Sequential(Scaled(9, 4), nn.Linear(4, 2)).eval()
    small = quantize.int8_dynamic(model)
    assert isinstance(small[0], Scaled)
    assert isinstance(small[1], quantize.Int8Linear)


def test_a_layer_in_two_places_stays_one_layer() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[3] = model[1]
    small = quantize.int8_dynamic(model)
    assert isinstance(small[1], quantize.Int8Linear)
    assert small[1] is small[3]


def test_torchs_own_transformer_can_be_quantized() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.Embedding(9, 8), layer, nn.Linear(8, 2)).eval()
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        truth, small = model(ids), quantize.int8_dynamic(model)(ids)
    assert (small - truth).abs().max() < 0.1 * truth.abs().max()


# prune.magnitude


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
    convolved, recurrent = (prune.magnitude(make(), ratio=0.5) for make in (cnn, lstm))
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
