"""Students for pictures: as their papers draw them, saved without a tokenizer, and pruned."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from attar import export, measure, students
from attar.compress import prune
from attar.errors import ModelError
from attar.resolve import asks, options
from attar.students.folder import paper_of

CLASSES = ["cat", "dog", "bird"]

ALL: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: students.resnet(CLASSES, depth=8, width=8),
    "resnet with convolutions": lambda: students.resnet(
        CLASSES, depth=14, width=8, shortcut="convolution"
    ),
    "mobilenet": lambda: students.mobilenet(CLASSES, width=0.25),
    "wideresnet": lambda: students.wideresnet(CLASSES, depth=10, factor=1),
}


def pictures(rows: int = 4, side: int = 16, channels: int = 3) -> dict[str, Tensor]:
    drawn = torch.Generator().manual_seed(1)
    return {"pixel_values": torch.randn(rows, channels, side, side, generator=drawn)}


def warm(make: Callable[[], nn.Module]) -> nn.Module:
    """A student whose batch norms have seen something."""
    torch.manual_seed(0)
    student = make().train()
    for _ in range(3):
        student(**pictures(8))
    return student.eval()


def parameters(model: nn.Module) -> int:
    return sum(each.numel() for each in model.parameters())


@pytest.mark.parametrize("name", ALL)
def test_a_student_asks_for_the_classes_alone(name: str) -> None:
    function = vars(students)[name.split(maxsplit=1)[0]]
    assert list(asks(function)) == ["classes"]
    assert 0 < len(options(function)) <= 6


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("side", [8, 17, 32])
def test_any_size_gives_one_row_of_logits_a_picture(name: str, side: int) -> None:
    student = warm(ALL[name])
    with torch.no_grad():
        together = student(**pictures(3, side))
        alone = torch.cat(
            [student(pixel_values=each[None]) for each in pictures(3, side)["pixel_values"]]
        )
    assert together.shape == (3, 3)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_gradients_reach_every_parameter(name: str) -> None:
    student = ALL[name]().train()
    student(**pictures(8)).square().sum().backward()
    assert [n for n, p in student.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", ALL)
def test_signals_neither_die_nor_explode_before_training(name: str) -> None:
    torch.manual_seed(0)
    student = ALL[name]().train()
    with torch.no_grad():
        spread = float(student(**pictures(32)).std(0).mean())
    assert 0.05 < spread < 20


@pytest.mark.parametrize("name", ALL)
def test_a_saved_student_answers_as_before_and_keeps_its_normalization(
    name: str, tmp_path: Path
) -> None:
    student: Any = warm(ALL[name])
    student.normalization = {"mean": [0.5] * 3, "std": [0.25] * 3, "side": None}
    again: Any = students.load(students.save(student, tmp_path / "student"))
    assert paper_of(again) == paper_of(student)
    assert again.normalization == student.normalization
    assert not again.training
    torch.testing.assert_close(again(**pictures()), student(**pictures()), atol=0, rtol=0)
    assert {path.name for path in (tmp_path / "student").iterdir()} == {
        *("attar.json", "model.safetensors"),
    }
    assert "normalization" not in paper_of(ALL[name]())


@pytest.mark.parametrize("name", ALL)
def test_a_pruned_student_is_smaller_and_loads_again(name: str, tmp_path: Path) -> None:
    student = warm(ALL[name])
    before = copy.deepcopy(student.state_dict())
    small = prune.structured(
        student,
        lambda _: pictures(),
        lambda _: iter([pictures()]),
        lambda model: iter([model(**pictures()).square().sum()]),
        ratio=0.5,
        round_to=2,
    )
    assert parameters(small) < 0.6 * parameters(student)
    again = students.load(students.save(small, tmp_path / "small"))
    torch.testing.assert_close(again(**pictures()), small(**pictures()), atol=0, rtol=0)
    assert all(torch.equal(before[name], weight) for name, weight in student.state_dict().items())


def test_a_student_answers_alike_in_onnx_runtime(tmp_path: Path) -> None:
    student = warm(ALL["wideresnet"])
    path = export.onnx(student, lambda _: pictures(1), tmp_path / "student.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    given = {"pixel_values": pictures(5)["pixel_values"].numpy()}
    with torch.no_grad():
        truth = student(**pictures(5)).numpy()
    np.testing.assert_allclose(session.run(None, given)[0], truth, atol=1e-4, rtol=1e-4)


# as their papers draw them


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (lambda: students.resnet(["x"] * 10), 269_722),
        (lambda: students.resnet(["x"] * 10, depth=32), 464_154),
        (lambda: students.resnet(["x"] * 10, depth=56), 853_018),
        (lambda: students.resnet(["x"] * 10, depth=110), 1_727_962),
        # github.com/kuangliu/pytorch-cifar and github.com/szagoruyko/wide-residual-networks
        (lambda: students.wideresnet(["x"] * 10, depth=28, factor=10), 36_479_194),
        (lambda: students.wideresnet(["x"] * 100, depth=40, factor=2), 2_255_156),
    ],
    ids=["resnet20", "resnet32", "resnet56", "resnet110", "wrn-28-10", "wrn-40-2"],
)
def test_parameters_are_as_many_as_published(make: Callable[[], nn.Module], count: int) -> None:
    with torch.device("meta"):
        assert parameters(make()) == count


def test_a_mobilenet_has_the_parameters_worked_out_from_the_papers_table() -> None:
    table = [(1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1)]
    total, into = 3 * 32 * 9 + 2 * 32, 32
    for expansion, out, blocks in table:
        for _ in range(blocks):
            wide = into * expansion
            total += (into * wide + 2 * wide) * (expansion > 1)
            total += 9 * wide + 2 * wide + wide * out + 2 * out
            into = out
    total += 320 * 1280 + 2 * 1280 + 1280 * 10 + 10
    assert parameters(students.mobilenet(["x"] * 10)) == total == 2_236_682


def test_a_picture_of_32_pixels_has_4_by_4_places_left_at_the_end() -> None:
    seen: list[torch.Size] = []
    for make in (students.resnet, students.wideresnet, students.mobilenet):
        student: Any = make(CLASSES).eval()
        final = {"mobilenet": "last"}.get(make.__name__, "layer3")
        student.get_submodule(final).register_forward_hook(
            lambda _module, _inputs, output: seen.append(output.shape)
        )
        student(**pictures(1, 32))
    assert [tuple(shape[1:]) for shape in seen] == [(64, 8, 8), (128, 8, 8), (1280, 4, 4)]


def test_channels_come_in_eights_and_never_a_tenth_short() -> None:
    for width in (0.1, 0.35, 0.5, 0.75, 1.4):
        student = students.mobilenet(CLASSES, width=width)
        layers = [each for each in student.modules() if isinstance(each, nn.Conv2d)]
        assert all(layer.out_channels % 8 == 0 for layer in layers)
        assert layers[0].out_channels >= 0.9 * 32 * width


def test_the_shortcut_of_zeros_is_the_papers() -> None:
    """The reference: a block whose convolutions give nothing, so that its input alone goes by."""
    student: Any = students.resnet(CLASSES, depth=8, width=4).eval()
    block = student.layer2[0]
    nn.init.zeros_(block.conv2.weight)
    seen = torch.rand(2, 4, 8, 8)
    truth = np.zeros((2, 8, 4, 4), np.float32)
    truth[:, 2:6] = seen[:, :, ::2, ::2].numpy()
    np.testing.assert_allclose(block(seen).detach().numpy(), truth, atol=1e-6)


def test_a_wide_block_is_the_papers() -> None:
    """The reference: norm, rectify, convolve, twice, and what was rectified first goes by."""
    student: Any = warm(ALL["wideresnet"])
    block = student.layer2[0]
    seen = torch.randn(2, 16, 8, 8)

    def normed(norm: Any, values: Tensor) -> Tensor:
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        moved = (values - norm.running_mean[:, None, None]) * scale[:, None, None]
        return (moved + norm.bias[:, None, None]).clamp(min=0)

    ready = normed(block.bn1, seen)
    inner = F.conv2d(ready, block.conv1.weight, stride=2, padding=1)
    inner = F.conv2d(normed(block.bn2, inner), block.conv2.weight, padding=1)
    truth = inner + F.conv2d(ready, block.shortcut.weight, stride=2)
    torch.testing.assert_close(block(seen), truth, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: students.resnet(CLASSES, depth=18), "6 n [+] 2 layers"),
        (lambda: students.resnet(CLASSES, depth=2), "6 n [+] 2 layers"),
        (lambda: students.wideresnet(CLASSES, depth=20), "6 n [+] 4 layers"),
    ],
)
def test_a_depth_that_has_no_blocks_is_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        make()


def test_blocks_of_every_stage_go_and_the_network_loads_again(tmp_path: Path) -> None:
    """Lists of stages are no blocks; what changes the shape of a picture stays."""
    for make in (students.resnet, students.mobilenet, students.wideresnet):
        student: Any = make(CLASSES).eval()
        given = {"pixel_values": torch.rand(2, 3, 8, 8)}
        small: Any = prune.layers(student, lambda _, given=given: iter([given]), silent, drop=2)
        assert measure.parameters(small) < measure.parameters(student)
        again = students.load(students.save(small, tmp_path / make.__name__))
        torch.testing.assert_close(again(**given), small(**given), atol=0, rtol=0)


def silent(*_told: Any) -> None:
    """Hears a step's table."""


def test_weights_that_are_missing_or_damaged_are_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"There is no file .*x\.safetensors"):
        students.load(tmp_path / "x.safetensors")
    folder = students.save(students.resnet(CLASSES, depth=8), tmp_path / "saved")
    (folder / "model.safetensors").write_bytes(b"12345")
    with pytest.raises(ModelError, match="is damaged"):
        students.load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="There is no file"):
        students.load(folder)


# weights that were trained elsewhere


def test_a_file_of_weights_is_a_resnet_as_deep_and_wide_as_they_are(tmp_path: Path) -> None:
    student: Any = warm(lambda: students.resnet(["x"] * 7, depth=14, width=4))
    save_file(student.state_dict(), tmp_path / "weights.safetensors")
    again: Any = students.load(tmp_path / "weights.safetensors")
    assert again.recipe["resnet"] == student.recipe["resnet"]
    torch.testing.assert_close(again(**pictures()), student(**pictures()), atol=0, rtol=0)


@pytest.mark.parametrize("kept", ["conv1.weight", "linear.weight"])
def test_a_file_of_other_weights_is_refused(kept: str, tmp_path: Path) -> None:
    weights = students.resnet(CLASSES, depth=8).state_dict()
    save_file({kept: weights[kept]}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match="no weights of a resnet"):
        students.load(tmp_path / "w.safetensors")
    save_file(
        {name: weight for name, weight in weights.items() if "layer2.0.bn1" not in name},
        tmp_path / "w.safetensors",
    )
    with pytest.raises(ModelError, match="no weights of a resnet"):
        students.load(tmp_path / "w.safetensors")
