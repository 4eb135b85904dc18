"""Which layers are paired in networks of every family, and that what is paired can be learned."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from attar.distill import Objective, pair, term
from attar.distill.pairing import blocks
from attar.errors import LayerError
from attar.losses import attention, feature, relation
from attar.resolve import compares
from attar.students.joined import Joined
from attar.taps import knowledge_of
from attar.types import Batch, Knowledge, Lesson

ROWS, CLASSES, VOCABULARY, SIDE = 4, 5, 30, 32
EXTENDING = Path(__file__).parent.parent / "docs" / "extending.md"

Inputs = Mapping[str, Tensor] | Tensor


def texts(length: int = 7) -> dict[str, Tensor]:
    mask = (torch.arange(length) < torch.tensor([length, 3, 5, 2])[:, None]).long()
    ids = torch.randint(1, VOCABULARY, (ROWS, length), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids * mask, "attention_mask": mask}


def images(side: int = SIDE) -> Tensor:
    return torch.rand(ROWS, 3, side, side, generator=torch.Generator().manual_seed(1))


def transformer(layers: int, width: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 2 * width,
        "attn_implementation": "eager",
        "num_labels": CLASSES,
    }


def bert(layers: int = 2, width: int = 8) -> nn.Module:
    config = BertConfig(vocab_size=VOCABULARY, **transformer(layers, width))
    return BertForSequenceClassification(config).eval()


def llama(layers: int = 2, width: int = 8) -> nn.Module:
    shape = transformer(layers, width) | {"num_key_value_heads": 1, "pad_token_id": 0}
    return LlamaForSequenceClassification(LlamaConfig(vocab_size=VOCABULARY, **shape)).eval()


class Pixels(nn.Module):
    """A ViT that takes its images without their name."""

    def __init__(self, layers: int = 2, width: int = 8, patch: int = 8) -> None:
        super().__init__()
        sizes = {"image_size": SIDE, "patch_size": patch}
        self.vit = ViTForImageClassification(ViTConfig(**sizes, **transformer(layers, width)))

    def forward(self, x: Tensor) -> Any:
        return self.vit(pixel_values=x)


vit = Pixels


class Residual(nn.Module):
    """Two convolutions and a way around them, as in torchvision's ResNet."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample = nn.Sequential(nn.Conv2d(width, out, 1, stride), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        answer: Tensor = self.relu(y + self.downsample(x))
        return answer


class ResNet(nn.Module):
    """A stem at a half of the resolution, then stages at a quarter, an eighth, ..."""

    def __init__(self, width: int = 4, depths: tuple[int, ...] = (1, 1, 1)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 2, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(2)
        self.stages = len(depths)
        for n, depth in enumerate(depths):
            first = Residual(width * 2 ** max(0, n - 1), width * 2**n, 2 if n else 1)
            rest = [Residual(width * 2**n, width * 2**n, 1) for _ in range(depth - 1)]
            self.add_module(f"layer{n + 1}", nn.Sequential(first, *rest))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width * 2 ** (self.stages - 1), CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for n in range(self.stages):
            x = self.get_submodule(f"layer{n + 1}")(x)
        answer: Tensor = self.fc(self.avgpool(x).flatten(1))
        return answer


class Recurrent(nn.Module):
    """The user's own LSTM."""

    def __init__(self, width: int = 6, *, batch_first: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 4)
        self.lstm = nn.LSTM(4, width, num_layers=2, batch_first=batch_first)
        self.squeeze = nn.Tanh()
        self.head = nn.Linear(width, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        embedded = self.embedding(input_ids)
        if self.lstm.batch_first:
            states = self.lstm(embedded)[0]
        else:
            states = self.lstm(embedded.transpose(0, 1))[0].transpose(0, 1)
        last = attention_mask.sum(1).sub(1)[:, None, None].expand(-1, 1, states.shape[-1])
        answer: Tensor = self.head(self.squeeze(states.gather(1, last)[:, 0]))
        return answer


class Perceptron(nn.Module):
    """The user's own, of blocks without any place."""

    def __init__(self, width: int = 6, depth: int = 2) -> None:
        super().__init__()
        self.enter = nn.Linear(3 * SIDE * SIDE, width)
        self.body = nn.Sequential(
            *(nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(depth))
        )
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(self.body(self.enter(x.flatten(1))))
        return answer


def run(inputs: Inputs) -> Callable[[nn.Module], Any]:
    return lambda model: model(**inputs) if isinstance(inputs, dict) else model(inputs)


def found(student: nn.Module, teacher: nn.Module, inputs: Inputs, kind: str, **how: str) -> Any:
    return pair(student, teacher, run(inputs), kind, **how)


# --- transformers

FAMILIES: dict[str, tuple[Callable[..., nn.Module], Callable[[], Inputs], str, str]] = {
    "bert": (bert, texts, "bert.encoder.layer", "@time"),
    "llama": (llama, texts, "model.layers", "@time"),
    "vit": (vit, images, "vit.vit.layers", ""),
}
every_family = pytest.mark.parametrize("family", FAMILIES)


@every_family
def test_blocks_of_a_transformer_are_paired_by_depth(family: str) -> None:
    make, inputs, stack, time = FAMILIES[family]
    student, teacher = make(2, 8), make(6, 16)
    of = partial(found, student, teacher, inputs())
    assert of("Features") == {
        f"{stack}.0@mean": f"{stack}.2@mean",
        f"{stack}.1@mean": f"{stack}.5@mean",
    }
    assert of("Features", how="tokens") == {f"{stack}.0": f"{stack}.2", f"{stack}.1": f"{stack}.5"}
    whole = {f"{stack}.0": f"{stack}.2{time}", f"{stack}.1": f"{stack}.5{time}"}
    assert of("Maps") == of("Stages") == whole
    assert of("Rows") == {f"{stack}.1@mean": f"{stack}.5@mean"}
    maps = of("Attentions")
    assert [re.sub(r"\D*(\d+).*\[1\]", r"\1", path) for path in maps] == ["0", "1"]
    assert [path.startswith(f"{stack}.{n}.") for path, n in zip(maps.values(), (2, 5), strict=True)]
    projections = of("Projections")
    assert len(projections) == 3
    assert all(path.startswith(f"{stack}.5.") for path in projections.values())


@every_family
@pytest.mark.parametrize("name", ["Features", "Maps", "Stages", "Rows", "Attentions"])
def test_what_is_paired_in_a_transformer_can_be_compared(family: str, name: str) -> None:
    make, inputs, _, _ = FAMILIES[family]
    loss = {
        "Features": feature.mse,
        "Maps": feature.nst,
        "Stages": feature.review,
        "Rows": relation.similarity,
        "Attentions": attention.mse,
    }[name]
    learns(make(2, 8), make(4, 16), inputs(), loss, name)


def learns(
    student: nn.Module, teacher: nn.Module, inputs: Inputs, loss: Any, kind: str, **how: str
) -> Objective:
    """A student with what is paired by itself: a finite loss, and a gradient in the student."""
    layers = found(student, teacher, inputs, kind, **how)
    with torch.no_grad():
        its = knowledge_of(teacher.eval(), inputs, layers.values())
    lesson = Lesson(Batch(inputs, torch.zeros(ROWS, dtype=torch.long), ()), its)
    ours = knowledge_of(student, inputs, layers)
    objective = Objective([term(loss, layers=layers)], ours, its)
    total, _ = objective(ours, lesson)
    assert torch.isfinite(total)
    total.backward()
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    assert gradients
    assert sum(float(each.abs().sum()) for each in gradients) > 0
    return objective


# --- CNNs


def test_stages_of_two_cnns_meet_at_their_resolution() -> None:
    student, teacher = ResNet(4, (1, 1, 1)).eval(), ResNet(8, (2, 1, 2)).eval()
    same = {path: path for path in ("relu", "layer1", "layer2", "layer3")}
    for kind in ("Features", "Maps", "Stages"):
        assert found(student, teacher, images(), kind) == same
    assert found(student, teacher, images(), "Rows") == {"layer3@mean": "layer3@mean"}


def test_where_resolutions_have_no_twins_stages_are_paired_by_depth() -> None:
    class Coarse(nn.Module):
        """Sees its images at a quarter of their resolution."""

        def __init__(self) -> None:
            super().__init__()
            self.shrink, self.net = nn.AvgPool2d(4), ResNet(4, (1, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            answer: Tensor = self.net(self.shrink(x))
            return answer

    student, teacher = Coarse().eval(), ResNet(8, (1, 1, 1)).eval()
    assert found(student, teacher, images(128), "Maps") == {
        "net.relu": "relu",
        "net.layer1": "layer1",
        "net.layer2": "layer2",
        "net.layer3": "layer3",
    }
    # Most have a twin here, but the last, which knows most, has none.
    assert found(student, teacher, images(64), "Maps") == {
        "net.relu": "relu",
        "net.layer1": "layer2",
        "net.layer2": "layer3",
    }


def test_a_deeper_teachers_last_stage_is_left_alone_where_the_others_have_twins() -> None:
    pairs = found(ResNet(4, (1, 1)).eval(), ResNet(8, (1, 1, 1, 1)).eval(), images(), "Features")
    assert pairs == {"relu": "relu", "layer1": "layer1", "layer2": "layer2"}


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("Features", feature.mse),
        ("Features", feature.ofd),
        ("Maps", attention.maps),
        ("Stages", feature.review),
        ("Rows", relation.similarity),
    ],
)
def test_what_is_paired_in_cnns_can_be_compared(name: str, loss: Any) -> None:
    objective = learns(ResNet(4), ResNet(8, (1, 2, 1)), images(), loss, name)
    if loss is feature.mse:
        sizes = [tuple(each.weight.shape) for each in objective.bridges.values()]  # type: ignore[union-attr]
        assert sizes == [(8, 4), (8, 4), (16, 8), (32, 16)]


def test_a_cnn_has_no_attention_though_its_maps_are_square() -> None:
    wide = ResNet(8, (2, 1, 2)).eval()  # a stage of 8 channels at a resolution of 8 x 8
    with pytest.raises(LayerError, match="No layers of ResNet can be found for attentions"):
        found(wide, wide, images(), "Attentions")


def test_channels_that_come_last_are_not_taken_for_places() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 2, 2)
            self.norm = nn.LayerNorm(6)
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            return self.act(x).mean((2, 3))  # type: ignore[no-any-return]

    assert found(Mixed(), Mixed(), images(), "Maps") == {"act": "act"}


# --- recurrent networks


def test_the_states_of_a_recurrent_network_are_compared_at_the_teachers_times() -> None:
    of = partial(found, Recurrent(), bert(3, 8), texts())
    assert of("Features") == {"lstm@mean": "bert.encoder.layer.2@mean"}
    assert of("Maps") == of("Stages") == {"lstm": "bert.encoder.layer.2@time"}
    assert of("Rows") == {"lstm@mean": "bert.encoder.layer.2@mean"}


@pytest.mark.parametrize("loss", [feature.nst, attention.maps])
def test_a_recurrent_student_with_other_tokens_learns_from_a_transformer(loss: Any) -> None:
    student, teacher = Recurrent(), bert(3, 8)
    layers = found(student, teacher, texts(), "Maps")
    ours, its = (
        knowledge_of(student, texts(9), layers),
        knowledge_of(teacher, texts(5), [*layers.values()]),
    )
    objective = Objective([term(loss, layers=layers)], ours, its)
    total, _ = objective(ours, Lesson(Batch(None, torch.zeros(ROWS), ()), its.detach()))
    total.backward()
    assert student.lstm.weight_hh_l1.grad.abs().sum() > 0  # type: ignore[union-attr]


def test_states_whose_first_dimension_is_time_are_not_read() -> None:
    assert found(Recurrent(batch_first=False), bert(), texts(), "Rows") == {
        "squeeze@mean": "bert.encoder.layer.1@mean"
    }


# --- the user's own


def test_blocks_without_any_place_are_paired_by_depth() -> None:
    student, teacher = Perceptron(6, 2), Perceptron(8, 4)
    assert blocks(student) == ["body.0", "body.1"]
    expected = {"body.0@mean": "body.1@mean", "body.1@mean": "body.3@mean"}
    assert found(student, teacher, images(), "Features") == expected
    learns(student, teacher, images(), feature.mse, "Features")


def test_networks_of_different_make_learn_pooled_features() -> None:
    for student, teacher in [
        (ResNet(), vit(3)),
        (vit(2), ResNet(8)),
        (Perceptron(), vit(3)),
        (Perceptron(), ResNet(8)),
    ]:
        learns(student, teacher, images(), feature.mse, "Features")
        learns(student, teacher, images(), relation.similarity, "Rows")


@pytest.mark.parametrize("kind", ["Maps", "Stages"])
def test_what_has_no_places_in_common_is_told_with_what_to_write(kind: str) -> None:
    nothing = [(ResNet(), vit(2)), (Perceptron(), ResNet()), (vit(2), vit(2, 8, patch=16))]
    for student, teacher in nothing:
        with pytest.raises(LayerError, match=r"no places in common.*layers: \{student path"):
            found(student.eval(), teacher.eval(), images(), kind)


def test_another_word_than_those_there_are_is_answered_with_the_nearest() -> None:
    with pytest.raises(
        LayerError, match=r"'token' is no way to pair layers; did you mean 'tokens'"
    ):
        found(bert(), bert(), texts(), "Features", how="token")


def test_a_wrong_path_is_answered_with_the_nearest() -> None:
    with pytest.raises(
        LayerError, match=r"ResNet has no layer 'layer2\.0\.con1'; did you mean 'la"
    ):
        knowledge_of(ResNet(), images(), ["layer2.0.con1"])


@pytest.mark.parametrize("kind", ["Features", "Maps", "Rows", "Stages"])
def test_pairing_leaves_a_cnn_as_it_was(kind: str) -> None:
    student, teacher = ResNet().train(), ResNet(8).train()
    before = [each.clone() for model in (student, teacher) for each in model.state_dict().values()]
    found(student, teacher, images(), kind)
    after = [each for model in (student, teacher) for each in model.state_dict().values()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert student.training
    assert all(not module._forward_hooks for module in student.modules())


# --- the page


def own_loop() -> str:
    """The code of docs/extending.md that is a whole training loop."""
    text = EXTENDING.read_text(encoding="utf-8")
    [code] = [
        c
        for c in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        if "backward()" in c
    ]
    return code


def test_the_loop_of_the_page_is_ten_lines() -> None:
    lines = [line for line in own_loop().splitlines() if line.strip()]
    assert len([line for line in lines if not line.startswith("from ")]) <= 10


@pytest.mark.parametrize(
    ("student", "teacher", "inputs"),
    [
        (lambda: ResNet(4), lambda: ResNet(8), images),
        (Perceptron, lambda: vit(3), images),
        (Recurrent, lambda: bert(3, 16), texts),
        (lambda: llama(1, 8), lambda: llama(2, 16), texts),
    ],
)
def test_the_loop_of_the_page_distills_any_module_into_any_other(
    student: Callable[[], nn.Module], teacher: Callable[[], nn.Module], inputs: Callable[[], Inputs]
) -> None:
    apart: list[float] = []
    learner, x = student(), inputs()

    class Loader:
        def __iter__(self) -> Any:
            for _ in range(40):
                yield x, torch.zeros(ROWS, dtype=torch.long)

    taught = teacher().eval()
    names = {"torch": torch, "student": learner, "teacher": taught, "x": x, "loader": Loader()}
    code = own_loop().replace("lr=1e-3", "lr=1e-2")
    code = code.replace("loss.backward()", "loss.backward(); apart.append(loss.item())")
    exec(compile(code, "extending.md", "exec"), names | {"apart": apart})
    assert len(apart) == 40
    assert apart[-1] < 0.7 * apart[0]
    assert all(parameter.grad is None for parameter in taught.parameters())


@pytest.mark.parametrize("name", ["huber", "hint"])
def test_the_losses_of_the_page_run(name: str) -> None:
    text = EXTENDING.read_text(encoding="utf-8")
    [code] = [
        c
        for c in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        if f" {name}(" in c
    ]
    known: dict[str, Any] = {"nn": nn, "F": nn.functional, "Tensor": Tensor}
    known |= {"Logits": Tensor, "Features": Tensor}
    exec(compile(code, "extending.md", "exec"), known)
    student, teacher = torch.rand(2, 3, requires_grad=True), torch.rand(2, 3)
    loss = known[name] if name == "huber" else known[name](student, teacher)
    loss(student, teacher).backward()
    assert student.grad is not None


@pytest.mark.parametrize("loss", [relation.entity, relation.arcs])
def test_scores_of_tags_and_arcs_have_to_be_named(loss: Any) -> None:
    kind = compares(loss)
    assert kind == "Scores"
    with pytest.raises(LayerError, match=r"'auto' can't tell .* name it with `layers: {student"):
        found(bert(), bert(), texts(), kind)
    tags = torch.rand(2, 5, 3), torch.rand(2, 5, 9)
    mine, its = (Knowledge(torch.rand(2, 2), {"tags": each}) for each in tags)
    if loss is relation.arcs:
        mine = its = Knowledge(torch.rand(2, 2), {"tags": torch.rand(2, 5, 5)})
    objective = Objective([term(loss, layers={"tags": "tags"})], mine, its)
    assert not list(objective.parameters())
    batch = Batch(None, torch.zeros(2, dtype=torch.long), ("a", "b"))
    assert objective(mine, Lesson(batch, its))[0].isfinite()


class Ended(nn.Module):
    """A body with a nonlinearity before its head, as a module of its own or not."""

    def __init__(self, *, named: bool = True) -> None:
        super().__init__()
        self.body, self.relu, self.head = nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)
        self.named = named

    def forward(self, x: Tensor) -> Tensor:
        inner = self.body(x)
        answer: Tensor = self.head(self.relu(inner) if self.named else inner.relu())
        return answer


def test_a_reused_head_is_entered_by_a_projector_and_by_what_entered_it_before() -> None:
    teacher, asked = Ended(), torch.rand(2, 8)
    student = Joined(nn.Linear(8, 4), teacher.head, width=4, target=6)
    assert compares(feature.simkd) == "Reused"
    assert found(student, teacher, asked, "Reused") == {"projector": "relu"}
    assert not any(module._forward_hooks for module in teacher.modules())
    assert not any(module._forward_pre_hooks for module in teacher.modules())


def test_a_head_of_the_students_own_is_refused() -> None:
    with pytest.raises(LayerError, match="Ended does not answer through its teacher's head"):
        found(Ended(), Ended(), torch.rand(2, 8), "Reused")
    wider = Joined(nn.Linear(8, 4), nn.Linear(5, 3), width=4, target=5)
    with pytest.raises(LayerError, match="does not answer through its teacher's head"):
        found(wider, Ended(), torch.rand(2, 8), "Reused")


def test_what_enters_a_head_and_is_no_modules_answer_has_to_be_named() -> None:
    teacher = Ended(named=False)
    student = Joined(nn.Linear(8, 4), teacher.head, width=4, target=6)
    with pytest.raises(LayerError, match="No module of Ended gives just what enters its head"):
        found(student, teacher, torch.rand(2, 8), "Reused")
