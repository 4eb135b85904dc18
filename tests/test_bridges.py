"""How two layers meet: maps as tokens of one size, sequences at one time; losses keep state."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar import distill
from attar.distill import Objective, schedules, term
from attar.distill.bridges import Layer, in_time, meet, together
from attar.engine import local
from attar.errors import LayerError, RecipeError
from attar.losses import feature, response
from attar.resolve import KINDS, compares
from attar.types import Batch, Knowledge, Lesson

Features: TypeAlias = Tensor
Logits: TypeAlias = Tensor
Maps: TypeAlias = Tensor
Rows: TypeAlias = Tensor
Stages: TypeAlias = Sequence[Tensor]

ROWS = 2


def knows(features: Mapping[str, Tensor], mask: Tensor | None = None, seed: int = 0) -> Knowledge:
    logits = torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(seed))
    return Knowledge(logits, features, mask)


def lesson(teacher: Knowledge) -> Lesson:
    return Lesson(Batch(torch.arange(ROWS), torch.arange(ROWS), ("a", "b")), teacher)


def met(kind: str, here: Tensor, there: Tensor, **masks: Any) -> tuple[Any, Any, Any]:
    return meet(kind, Layer("a", here, masks.get("mine")), Layer("b", there, masks.get("its")))


# --- maps


@pytest.mark.parametrize("kind", ["Features", "Maps", "Stages"])
def test_a_place_of_a_map_is_a_token_row_by_row(kind: str) -> None:
    maps = torch.arange(2 * 3 * 2 * 4.0).reshape(2, 3, 2, 4)
    ours, its, mask = met(kind, maps, -maps)
    assert ours.shape == (2, 8, 3)
    for row, channel, y, x in [(0, 0, 0, 1), (1, 2, 1, 3), (0, 1, 1, 0)]:
        assert ours[row, 4 * y + x, channel] == maps[row, channel, y, x]
    assert torch.equal(its, -ours)
    assert mask is None


@pytest.mark.parametrize(
    ("mine", "its", "size"),
    [((4, 4), (8, 8), (4, 4)), ((8, 6), (4, 3), (4, 3)), ((6, 2), (3, 4), (3, 2))],
)
def test_of_two_maps_the_larger_is_averaged_to_the_smaller(
    mine: tuple[int, int], its: tuple[int, int], size: tuple[int, int]
) -> None:
    ours, theirs = torch.rand(2, 3, *mine), torch.rand(2, 5, *its)
    one, other, _ = met("Maps", ours, theirs)
    height, width = size
    assert one.shape == (2, height * width, 3)
    assert other.shape == (2, height * width, 5)
    for tokens, maps in ((one, ours), (other, theirs)):
        y, x = maps.shape[2] // height, maps.shape[3] // width
        blocks = maps.numpy().reshape(2, -1, height, y, width, x).mean((3, 5))
        expected = blocks.reshape(2, -1, height * width).transpose(0, 2, 1)
        np.testing.assert_allclose(tokens.numpy(), expected, rtol=1e-5)


def test_maps_of_one_size_are_the_same_numbers_in_their_own_format() -> None:
    maps = torch.rand(2, 3, 4, 4).half()
    ours, _, _ = met("Features", maps, torch.rand(2, 3, 4, 4))
    assert torch.equal(ours, maps.flatten(2).transpose(1, 2))


def test_a_map_meets_a_sequence_of_as_many_places() -> None:
    ours, its, _ = met("Maps", torch.rand(2, 3, 2, 2), torch.rand(2, 4, 7))
    assert ours.shape == (2, 4, 3)
    assert its.shape == (2, 4, 7)


def test_a_bridge_over_maps_is_a_convolution_of_one_place() -> None:
    student = knows({"a": torch.rand(ROWS, 3, 4, 4)})
    teacher = knows({"b": torch.rand(ROWS, 5, 2, 2)})
    objective = Objective([term(feature.mse, layers={"a": "b"})], student, teacher)
    (bridge,) = objective.bridges.values()
    assert bridge.weight.shape == (5, 3)
    convolved = F.conv2d(student.features["a"], bridge.weight[:, :, None, None], bridge.bias)  # type: ignore[arg-type,index]
    expected = (F.avg_pool2d(convolved, 2) - teacher.features["b"]).square().mean()
    assert objective(student, lesson(teacher))[0].item() == pytest.approx(expected.item(), rel=1e-5)


# --- time


def naive(sequence: np.ndarray[Any, Any], places: int) -> np.ndarray[Any, Any]:
    """Each place read at its share of the time, between two neighbours by their distance."""
    n = len(sequence)
    read = []
    for j in range(places):
        at = min(max((j + 0.5) / places * n - 0.5, 0), n - 1)
        low = math.floor(at)
        high = min(low + 1, n - 1)
        read.append((1 - (at - low)) * sequence[low] + (at - low) * sequence[high])
    return np.stack(read)


@pytest.mark.parametrize(("length", "places"), [(4, 7), (7, 4), (5, 5), (1, 3), (6, 1), (9, 2)])
def test_a_sequence_is_read_at_other_times(length: int, places: int) -> None:
    sequence = torch.rand(2, length, 3)
    read = in_time(sequence, None, places, None)
    expected = np.stack([naive(row, places) for row in sequence.double().numpy()])
    np.testing.assert_allclose(read.numpy(), expected, atol=1e-6)
    torches = F.interpolate(sequence.mT, places, mode="linear").mT
    torch.testing.assert_close(read, torches)


def test_time_is_that_of_the_real_tokens_and_padding_is_never_read() -> None:
    sequence = torch.rand(3, 6, 2)
    mask = torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0], [0] * 6])
    real = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    dirty = sequence.masked_fill(mask[..., None] == 0, math.nan)
    dirty[2, 0] = 7.0  # a row without any token is read as if it had one
    read = in_time(dirty, mask, 4, real).numpy()
    np.testing.assert_allclose(read[0, :2], naive(sequence[0].numpy(), 2), atol=1e-6)
    np.testing.assert_allclose(read[1], naive(sequence[1, :3].numpy(), 4), atol=1e-6)
    assert np.isfinite(read).all()
    assert (read[2] == 7).all()


@pytest.mark.parametrize(("mine", "its"), [("a@time", "b"), ("a", "b@time"), ("a@time", "b@time")])
@pytest.mark.parametrize("kind", ["Features", "Maps", "Stages"])
def test_lengths_are_evened_out_only_where_it_is_asked_for(kind: str, mine: str, its: str) -> None:
    here, there = torch.rand(2, 4, 3), torch.rand(2, 6, 3)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    with pytest.raises(LayerError, match=r"a of shape \(2, 4, 3\).*b of shape \(2, 6, 3\).*@time"):
        met(kind, here, there)
    ours, theirs, kept = meet(kind, Layer(mine, here, mask), Layer(its, there, None))
    assert ours is here
    assert kept is mask
    torch.testing.assert_close(theirs, in_time(there, None, 4, mask))


def test_tokens_at_one_time_already_stay_what_they_are() -> None:
    here, there = torch.rand(2, 2, 5, 3)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1] * 5])
    _, theirs, _ = meet("Maps", Layer("a", here, mask), Layer("b@time", there, mask))
    torch.testing.assert_close(theirs[mask.bool()], there[mask.bool()], rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["Attentions", "Projections"])
def test_no_other_kind_is_aligned(kind: str) -> None:
    here, there = torch.rand(2, 4, 4, 4), torch.rand(2, 4, 6, 6)
    with pytest.raises(LayerError, match="same tokenizer"):
        meet(kind, Layer("a@time", here, None), Layer("b@time", there, None))


# --- masks


def test_a_mask_goes_with_tokens_and_not_with_the_places_of_a_map() -> None:
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1] * 6])
    tokens, maps = torch.rand(2, 6, 3), torch.rand(2, 3, 2, 3)
    assert met("Maps", tokens, tokens, mine=mask)[2] is mask
    assert met("Maps", maps, maps, mine=mask)[2] is None
    wide = torch.rand(2, 6, 2, 3)  # as many channels as the text has tokens
    assert met("Features", wide, wide, mine=mask)[2] is None
    thin = torch.rand(2, 3, 3)  # every second token is left
    assert met("Maps", thin, thin, mine=mask)[2].tolist() == [[1, 1, 0], [1, 1, 1]]


def test_stages_share_a_mask_only_if_it_fits_all_of_them() -> None:
    mask = torch.ones(2, 4)
    pairs = [met("Stages", torch.rand(2, 4, n), torch.rand(2, 4, 3), mine=mask) for n in (2, 5)]
    ours, its, kept = together(pairs)  # type: ignore[arg-type]
    assert [each.shape[-1] for each in ours] == [2, 5]
    assert [each.shape[-1] for each in its] == [3, 3]
    assert kept is mask
    short = met("Stages", torch.rand(2, 2, 3), torch.rand(2, 2, 3), mine=mask)
    assert together([pairs[0], short])[2] is None  # type: ignore[list-item]


# --- shapes that can't meet


@pytest.mark.parametrize(
    ("kind", "mine", "its", "cure"),
    [
        ("Features", (2, 4, 8), (2, 5, 8), "pool both over the tokens with @mean, or read"),
        ("Features", (2, 3, 4, 4), (2, 8), "pool both over the tokens with @mean$"),
        ("Maps", (2, 8), (2, 8), "without @mean"),
        ("Maps", (2, 3, 4, 4), (2, 17, 8), "with @time"),
        ("Stages", (2, 4, 8), (2, 8), "without @mean"),
        ("Rows", (2, 4, 8), (2, 4, 8), "pool both with @mean"),
        ("Rows", (2, 8), (2, 3, 4, 4), "pool both with @mean"),
        ("Rows", (2, 8), (3, 8), "pool both"),
    ],
)
def test_shapes_that_can_not_meet_are_named_with_a_cure(
    kind: str, mine: tuple[int, ...], its: tuple[int, ...], cure: str
) -> None:
    with pytest.raises(LayerError) as told:
        met(kind, torch.rand(mine), torch.rand(its))
    start = f"a of shape {mine} can't be compared with b of shape {its}; "
    assert str(told.value).startswith(start)
    with pytest.raises(LayerError, match=cure.replace("$", r"\.$")):
        met(kind, torch.rand(mine), torch.rand(its))


# --- what each kind is given


def test_maps_rows_and_stages_are_given_as_they_are_without_a_bridge() -> None:
    heard: dict[str, list[Any]] = {"maps": [], "rows": [], "stages": []}

    def maps(student: Maps, teacher: Maps, mask: Tensor | None) -> Tensor:
        heard["maps"].append((student, teacher, mask))
        return student.sum()

    def rows(student: Rows, teacher: Rows) -> Tensor:
        heard["rows"].append((student, teacher))
        return student.sum()

    def stages(student: Stages, teacher: Stages, mask: Tensor | None) -> Tensor:
        heard["stages"].append((student, teacher, mask))
        return student[0].sum()

    mask = torch.ones(ROWS, 4)
    student = knows({p: torch.rand(ROWS, 4, n) for n, p in enumerate("ab", 2)}, mask)
    student.features["p"] = torch.rand(ROWS, 3)  # type: ignore[index]
    teacher = knows({p: torch.rand(ROWS, 4, n) for n, p in enumerate("cd", 5)}, mask)
    teacher.features["q"] = torch.rand(ROWS, 9)  # type: ignore[index]
    layers = {"a": "c", "b": "d"}
    terms = [term(maps, layers=layers), term(rows, layers={"p": "q"}), term(stages, layers=layers)]
    objective = Objective(terms, student, teacher)
    assert not list(objective.parameters())
    _, parts = objective(student, lesson(teacher))
    assert [len(calls) for calls in heard.values()] == [2, 1, 1]
    for (ours, its, kept), (mine, other) in zip(heard["maps"], layers.items(), strict=True):
        assert torch.equal(ours, student.features[mine])
        assert torch.equal(its, teacher.features[other])
        assert kept is not None
    assert torch.equal(heard["rows"][0][1], teacher.features["q"])
    ours, its, kept = heard["stages"][0]
    assert [each.shape[-1] for each in ours] == [2, 3]
    assert [each.shape[-1] for each in its] == [5, 6]
    assert torch.equal(kept, mask)
    mean = (student.features["a"].sum() + student.features["b"].sum()) / 2
    assert parts["test_bridges.maps"] == pytest.approx(mean.item(), rel=1e-5)


def test_a_loss_may_ask_how_far_training_is() -> None:
    def late(student: Logits, teacher: Logits, progress: float) -> Tensor:
        return progress * (student - teacher).square().mean()

    student, teacher = knows({}), knows({}, seed=1)
    objective = Objective([term(late)], student, teacher)
    full = (student.logits - teacher.logits).square().mean().item()
    for progress in (0.0, 0.25, 1.0):
        total, _ = objective(student, lesson(teacher), progress)
        assert total.item() == pytest.approx(progress * full)


@pytest.mark.parametrize("progress", [0.0, 0.25, 1.0])
def test_an_option_may_be_a_schedule(progress: float) -> None:
    student, teacher = knows({}), knows({}, seed=1)
    cooling = partial(schedules.linear, start=4.0, end=1.0)
    objective = Objective([term(response.kl, temperature=cooling)], student, teacher)
    total, _ = objective(student, lesson(teacher), progress)
    now = response.kl(student.logits, teacher.logits, temperature=4 - 3 * progress)
    assert total.item() == pytest.approx(now.item(), rel=1e-6)


def test_a_function_that_an_option_is_meant_to_be_is_no_schedule() -> None:
    def shaped(student: Logits, teacher: Logits, *, by: Any = torch.tanh) -> Tensor:
        return (by(student) - by(teacher)).square().mean()

    student, teacher = knows({}), knows({}, seed=1)
    for by in (torch.sin, torch.tanh):
        objective = Objective([term(shaped, by=by)], student, teacher)
        expected = shaped(student.logits, teacher.logits, by=by)
        assert objective(student, lesson(teacher), 0.5)[0].item() == pytest.approx(expected.item())


# --- losses with state


class hint(nn.Module):  # noqa: N801
    """A loss of the user's own, that learns and remembers."""

    count: Tensor

    def __init__(self, student: Features, teacher: Features, *, scale: float = 1.0) -> None:
        super().__init__()
        assert not student.requires_grad
        self.scale = scale
        self.own = nn.Linear(student.shape[-1], teacher.shape[-1])
        self.register_buffer("count", torch.zeros(()))

    def forward(self, student: Features, teacher: Features, progress: float) -> Tensor:
        self.count += 1
        gap = (self.own(student) - teacher.detach()).square().mean()
        return self.scale * (1 + progress) * gap


class answers(nn.Module):  # noqa: N801
    def __init__(self, student: Logits, teacher: Logits) -> None:  # noqa: ARG002
        super().__init__()
        self.heat = nn.Parameter(torch.ones(()))

    def forward(self, student: Logits, teacher: Logits, labels: Tensor) -> Tensor:
        return (self.heat * student - teacher.detach())[labels >= 0].square().mean()


class staged(nn.Module):  # noqa: N801
    def __init__(self, student: Stages, teacher: Stages) -> None:
        super().__init__()
        pairs = zip(student, teacher, strict=True)
        self.own = nn.ModuleList(nn.Linear(s.shape[-1], t.shape[-1]) for s, t in pairs)

    def forward(self, student: Stages, teacher: Stages) -> Tensor:
        sides = zip(self.own, student, teacher, strict=True)
        return torch.stack([(own(s) - t.detach()).square().mean() for own, s, t in sides]).sum()


def two_layers() -> tuple[Knowledge, Knowledge, dict[str, str]]:
    student = knows({"x.a": torch.rand(ROWS, 4, 3, requires_grad=True), "b": torch.rand(ROWS, 5)})
    teacher = knows({"c": torch.rand(ROWS, 4, 6), "d": torch.rand(ROWS, 7)}, seed=1)
    return student, teacher, {"x.a": "c", "b": "d"}


def test_the_kinds_of_a_class_are_read_like_those_of_a_function() -> None:
    assert [compares(each) for each in (hint, answers, staged)] == ["Features", "Logits", "Stages"]
    assert compares(partial(hint, scale=2.0)) == "Features"
    assert {"Maps", "Rows", "Stages"} < set(KINDS)


def test_a_loss_with_state_is_built_once_for_each_pair_and_given_raw_features() -> None:
    student, teacher, layers = two_layers()
    objective = Objective([term(hint, layers=layers, scale=3.0)], student, teacher)
    assert len(objective.bridges) == 0
    assert [loss.own.weight.shape for loss in objective.losses.values()] == [(6, 3), (7, 5)]  # type: ignore[union-attr]
    total, parts = objective(student, lesson(teacher), 0.5)
    assert parts.keys() == {"test_bridges.hint"}
    expected = [
        3 * 1.5 * (loss.own(student.features[mine]) - teacher.features[its]).square().mean()  # type: ignore[operator]
        for loss, (mine, its) in zip(objective.losses.values(), layers.items(), strict=True)
    ]
    assert total.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-6)
    total.backward()
    assert all(parameter.grad is not None for parameter in objective.parameters())
    assert [int(loss.count) for loss in objective.losses.values()] == [1, 1]  # type: ignore[call-overload]


def test_losses_over_logits_and_stages_are_built_once() -> None:
    student = knows({"a": torch.rand(ROWS, 4, 3), "b": torch.rand(ROWS, 2, 5)})
    teacher = knows({"c": torch.rand(ROWS, 4, 6), "d": torch.rand(ROWS, 2, 7)}, seed=1)
    terms = [term(answers), term(staged, layers={"a": "c", "b": "d"}), term(answers)]
    objective = Objective(terms, student, teacher)
    assert len(objective.losses) == 3
    assert len(list(objective.parameters())) == 6
    _, parts = objective(student, lesson(teacher))
    assert list(parts) == ["test_bridges.answers", "test_bridges.staged", "test_bridges.answers 2"]


def test_building_a_loss_moves_no_random_numbers_and_begins_the_same_each_time() -> None:
    student, teacher, layers = two_layers()
    before = torch.get_rng_state()
    one = Objective([term(hint, layers=layers)], student, teacher).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(9)
    other = Objective([term(hint, layers=layers)], student, teacher).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_a_loss_learned_and_remembers_is_saved_with_the_objective() -> None:
    student, teacher, layers = two_layers()
    first, second = (
        Objective([term(hint, layers=layers), term(answers)], student, teacher) for _ in "ab"
    )
    optimizer = torch.optim.SGD(first.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        first(student, lesson(teacher))[0].backward()
        optimizer.step()
    assert first(student, lesson(teacher))[0] < second(student, lesson(teacher))[0]
    second.load_state_dict(first.state_dict())
    counts = [int(buffer) for name, buffer in second.named_buffers() if "count" in name]
    assert counts == [4, 4]
    assert second(student, lesson(teacher))[0] == first(student, lesson(teacher))[0]


def test_a_loss_is_trained_beside_the_student_and_is_no_part_of_it() -> None:
    student = nn.Linear(4, 3)
    names = list(student.state_dict())
    inputs, answer = torch.rand(ROWS, 4), torch.rand(ROWS, 3)
    one = Lesson(Batch(inputs, torch.arange(ROWS), ("a", "b")), Knowledge(answer))
    seen: list[int] = []

    class watched(answers):  # noqa: N801
        def forward(self, student: Logits, teacher: Logits, labels: Tensor) -> Tensor:
            seen.append(float(self.heat.detach()))  # type: ignore[arg-type]
            return super().forward(student, teacher, labels)

    distill.train(
        student,
        [one] * 4,
        [term(watched)],
        lambda model, batch: Knowledge(model(batch.inputs)),
        local(precision="fp32", device="cpu"),
        steps=4,
        lr=0.1,
    )
    assert len(set(seen)) == 4
    assert list(student.state_dict()) == names


def test_a_killed_run_goes_on_with_what_its_loss_had_learned_and_remembered(tmp_path: Path) -> None:
    inputs, answer = torch.rand(ROWS, 4), torch.rand(ROWS, 3)
    teacher = Knowledge(answer, {"b": torch.rand(ROWS, 6)})
    one = Lesson(Batch(inputs, torch.arange(ROWS), ("a", "b")), teacher)
    forgetful: list[hint] = []

    class recalled(hint):  # noqa: N801
        def __init__(self, student: Features, teacher: Features) -> None:
            super().__init__(student, teacher)
            forgetful.append(self)

    def forward(model: nn.Module, batch: Batch, /) -> Knowledge:
        return Knowledge(model(batch.inputs), {"a": model(batch.inputs)})

    def trained(folder: Path | None, stop: int) -> dict[str, Tensor]:
        torch.manual_seed(3)
        student = nn.Linear(4, 3)
        made = local(precision="fp32", device="cpu", folder=folder, checkpoint=0.0)

        def watch(record: Mapping[str, Any]) -> None:
            if record["step"] == stop:
                raise KeyboardInterrupt

        terms = [term(recalled, layers={"a": "b"})]
        distill.train(student, cycle([one]), terms, forward, made, watch=watch, steps=6, lr=0.05)
        return {**student.state_dict(), **forgetful[-1].state_dict()}

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, 4)
    resumed, whole = trained(tmp_path, 0), trained(None, 0)
    assert int(whole["count"]) == 6
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_an_object_of_the_users_own_is_a_loss_too() -> None:
    student, teacher, _ = two_layers()
    own = hint(torch.rand(1, 4, 3), torch.rand(1, 4, 6))
    objective = Objective([term(own, layers={"x.a": "c"})], student, teacher)
    total, parts = objective(student, lesson(teacher))
    gap = (own.own(student.features["x.a"]) - teacher.features["c"]).square().mean()
    assert parts == {"hint": pytest.approx(gap.item())}
    total.backward()
    assert set(own.parameters()) <= set(objective.parameters())
    assert int(own.count) == 1


def test_a_misspelt_option_of_a_class_is_answered_with_the_right_one() -> None:
    with pytest.raises(RecipeError, match=r"hint has no option 'sclae'; did you mean 'scale'\?"):
        term(hint, layers={"a": "b"}, sclae=2)


def test_what_is_no_loss_with_state_is_told_why() -> None:
    class bare:  # noqa: N801
        def __init__(self, student: Logits, teacher: Logits) -> None: ...

    class strange(nn.Module):  # noqa: N801
        def __init__(self, student: Logits, weather: Tensor) -> None: ...

    class curious(answers):  # noqa: N801
        def forward(self, student: Logits, teacher: Logits, weather: Tensor) -> Tensor: ...  # type: ignore[override,empty-body]

    class refusing(answers):  # noqa: N801
        def __init__(self, student: Logits, teacher: Logits) -> None:  # noqa: ARG002
            raise ValueError("three classes are too few")

    with pytest.raises(RecipeError, match="bare is a class; a loss with state has to be an nn"):
        term(bare)
    with pytest.raises(RecipeError, match="built from student and teacher, not from 'weather'"):
        term(strange)
    with pytest.raises(RecipeError, match="hint is built once: its option 'scale' can't be a sch"):
        term(hint, layers={"a": "b"}, scale=partial(schedules.linear, start=1.0))
    student, teacher = knows({}), knows({}, seed=1)
    with pytest.raises(RecipeError, match="asks for 'weather'; a loss may ask for student, teach"):
        Objective([term(curious)], student, teacher)
    with pytest.raises(RecipeError, match="refusing can't be had: three classes are too few"):
        Objective([term(refusing)], student, teacher)
    with pytest.raises(RecipeError, match="answers needs a teacher, and nobody teaches"):
        Objective([term(answers)], student, None)
    with pytest.raises(RecipeError, match="staged compares layers"):
        term(staged)
