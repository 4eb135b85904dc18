"""Promises that every loss keeps, found by looking into the room; a table says what is not kept."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attar import losses
from attar.losses import attention, response
from attar.resolve import compares, names
from attar.types import Batch, Knowledge, Played

Loss = Callable[..., Any]
ROOM = names("attar.losses")
LOSSES = [each for name, each in ROOM.items() if name != "policy.ppo"]
"""All that compare with a teacher; test_rewarded_numbers.py has the one that is about a reward."""
FILES = sorted(Path(losses.__path__[0]).rglob("*.py"))
ROWS, HEADS, LENGTH, WIDTH, CLASSES = 6, 3, 5, 24, 6
KINDS = {  # what `student` can be, without its rows
    "Logits": (CLASSES,),
    "Features": (LENGTH, WIDTH),
    "Attentions": (HEADS, LENGTH, LENGTH),
    "Projections": (LENGTH, WIDTH),
    "Maps": (LENGTH, WIDTH),
    "Rows": (WIDTH,),
    "Stages": (3, LENGTH, WIDTH),
    "Scores": (LENGTH, WIDTH),
    "Reused": (LENGTH, WIDTH),
}
GIVEN = {"student", "teacher", "labels", "mask", "knowledge", "batch", "progress"}
NOTED = {"worth", "own", "skew"}  # what a scheme knows of each label
MASK = torch.arange(LENGTH) < torch.tensor([5, 4, 3, 2, 1, 5])[:, None]
LABELS = torch.tensor([0, 1, -100, 1, 0, -100])
KNOWN = LABELS != -100

LEARNS = "it learns a projection of its own, which begins anywhere: student = teacher is no place"
DRAWS = "what it hides is drawn anew for each example of a batch"
STEEP = "it squares distances in units of a small deviation"
SHARP = "its teacher is a sharpened one: it is least at that policy, not at the teacher's logits"
CHOICE = "it is a cross-entropy with the choice: what the teacher thinks of all else is lost"
ALONE = "it compares examples with one another: one alone has nobody to be compared with"
NOT_KEPT: dict[str, dict[str, str]] = {
    "least where student equals teacher": {
        **dict.fromkeys(("feature.ft", "feature.mgd", "feature.ofd", "feature.srd"), LEARNS),
        **dict.fromkeys(("feature.vid", "feature.review", "relation.crd"), LEARNS),
        "relation.seed": LEARNS,
        "feature.ab": "it wants each neuron on the teacher's side by a margin, however far",
        "policy.kl": SHARP,
        "policy.nll": CHOICE,
        "response.nkd": "its first part is a cross-entropy: it always asks for more of the target",
        "response.weighted": "its first part is the cross-entropy with the labels",
        "response.wttm": "it is least where the student equals the softened teacher",
    },
    "zero where student equals teacher": {
        **dict.fromkeys(("feature.ft", "feature.mgd", "feature.ofd", "feature.srd"), LEARNS),
        **dict.fromkeys(("feature.vid", "feature.review", "relation.crd"), LEARNS),
        "relation.seed": LEARNS,
        "feature.ab": "it wants each neuron on the teacher's side by a margin, however far",
        "policy.kl": SHARP,
        "policy.nll": CHOICE,
        "response.nkd": "it is a cross-entropy, not a divergence",
        "response.soft_cross_entropy": "at its least it is the teacher's entropy",
        "response.weighted": "its first part is the cross-entropy with the labels",
        "response.wttm": "it is zero where the student equals the softened teacher",
    },
    "nearer by a step": {
        **dict.fromkeys(("feature.ft", "feature.mgd", "feature.ofd", "feature.srd"), LEARNS),
        **dict.fromkeys(("feature.review", "relation.crd"), LEARNS),
        "policy.kl": SHARP,
        "policy.nll": CHOICE,
    },
    "any order": {"feature.mgd": DRAWS},
    "twice over": {
        "feature.mgd": DRAWS,
        "feature.pkt": "an example and its twin are the nearest neighbours of each other",
        "relation.similarity": "as published it falls with the number of rows",
        "response.mlkd": "as published it sums over pairs, and grows with the number of rows",
    },
    "one example teaches": {
        **dict.fromkeys(("feature.pkt", "relation.angle", "relation.distance"), ALONE),
        **dict.fromkeys(("relation.similarity", "relation.graph"), ALONE),
    },
    "large in float16": {
        **dict.fromkeys(("policy.gaussian_kl", "policy.gaussian_reverse_kl"), STEEP),
        "feature.fsp": "it squares products of two layers: a gradient of the third power of both",
    },
    "other widths": {
        "feature.simkd": "the teacher's classifier takes what the student's projector gives",
        "feature.fsp": "a flow has both widths of a pair of layers",
        "relation.entity": "the widths are numbers of tags: either tags or tags²",
        "response.ctkd": "logits of both are of the same classes",
    },
    "pooled like tokens": {
        "feature.pkd": "of tokens it takes the first of each row",
        "feature.ft": "it convolves over tokens",
        "feature.mgd": "it convolves over tokens",
    },
    "no label": {
        "response.weighted": "its cross-entropy is with true labels alone, and its KL needs none",
        "response.regression": "its labels are values",
    },
}
"""Of each promise the losses that can't keep it by their nature, and why.

A test of a promise is expected to fail for these, so none stands here that could keep it.
"""


def title(loss: Loss) -> str:
    """What a recipe calls it."""
    return next(name for name, each in ROOM.items() if each is loss)


def asked(loss: Loss) -> Loss:
    """The function that is given student and teacher: of a class, its `forward`."""
    return loss.forward if inspect.isclass(loss) else loss


def given(loss: Loss) -> list[str]:
    """What the loss asks for, before the star."""
    parameters = inspect.signature(asked(loss)).parameters.values()
    names = [entry.name for entry in parameters if entry.kind is not entry.KEYWORD_ONLY]
    return [name for name in names if name != "self"]


def options(loss: Loss) -> dict[str, Any]:
    parameters = inspect.signature(loss).parameters.values()
    return {entry.name: entry.default for entry in parameters if entry.kind is entry.KEYWORD_ONLY}


def kind(loss: Loss) -> str:
    return str(inspect.get_annotations(asked(loss))["student"])


def built(loss: Loss, student: Any, teacher: Any, **chosen: Any) -> Callable[..., Tensor]:
    """The loss with its options set; one with a state is made for an example first."""
    if inspect.isclass(loss):
        return loss(student, teacher, **chosen)
    return lambda *given, **named: loss(*given, **named, **chosen)


def cases(promise: str, among: Callable[[Loss], bool] = lambda _: True) -> Any:
    """Every loss with its defaults, and with each switch turned the other way."""
    params = []
    for loss in filter(among, LOSSES):
        why = NOT_KEPT.get(promise, {}).get(title(loss))
        marks = [] if why is None else [pytest.mark.xfail(strict=True, reason=why)]
        switches = [name for name, value in options(loss).items() if isinstance(value, bool)]
        params.append(pytest.param(loss, {}, id=title(loss), marks=marks))
        for switch in switches:
            turned = {switch: not options(loss)[switch]}
            params.append(pytest.param(loss, turned, id=f"{title(loss)}-{switch}", marks=marks))
    PROMISED.add(promise)
    return pytest.mark.parametrize(("loss", "chosen"), params)


PROMISED = set[str]()
SMALLER = {"relation.crd": {"negatives": 64}, "relation.seed": {"queue": 64}}
stateful = pytest.mark.parametrize(
    "loss", [each for each in LOSSES if inspect.isclass(each)], ids=title
)


@dataclass(frozen=True)
class Scene:
    """Free numbers of student and teacher; `see` makes of them what the loss compares."""

    loss: Loss
    student: Tensor
    teacher: Tensor
    labels: Tensor = LABELS
    mask: Tensor = MASK
    keys: tuple[str, ...] = tuple("abcdef")
    chosen: dict[str, Any] = field(default_factory=dict)
    seen: bool = False

    def see(self, numbers: Tensor) -> Any:
        if kind(self.loss) == "Stages":
            return list(numbers.unbind(1))
        if self.seen or kind(self.loss) != "Attentions":
            return numbers
        padding = ~self.mask[:, None, None, :]
        return numbers.masked_fill(padding, -math.inf).softmax(-1)

    def built(self) -> Callable[..., Tensor]:
        student, teacher = self.student.detach(), self.teacher.detach()
        chosen = SMALLER.get(title(self.loss), {}) | self.chosen
        return built(self.loss, self.see(student), self.see(teacher), **chosen)

    def given(self) -> dict[str, Any]:
        knowledge = Knowledge(torch.zeros(len(self.labels), CLASSES), mask=self.mask)
        everything = {
            "student": self.see(self.student),
            "teacher": self.see(self.teacher),
            "labels": self.labels,
            "mask": self.mask,
            "knowledge": knowledge,
            "batch": Batch(self.keys, self.labels, self.keys, played=self.played),
            "progress": 0.5,
            "worth": torch.zeros(len(self.labels)),
            "own": torch.tensor([ord(key) % 2 for key in self.keys]),
            "skew": torch.tensor([0.1 * (ord(key) % 3) + 0.05 for key in self.keys]),
        }
        return {name: everything[name] for name in given(self.loss)}

    @property
    def played(self) -> Played:
        """As if the teacher had acted: what is done must not change as the student does."""
        answers = self.teacher.detach()
        none = torch.zeros(len(answers))
        return Played(answers, answers.argmax(-1), none, none)

    def value(self, **instead: Any) -> Tensor:
        """Of a loss that remembers and draws nothing yet: built anew, and drawing the same."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            return self.built()(**self.given() | instead)

    def slope(self) -> Tensor:
        """The gradient that reaches the student's free numbers."""
        student = self.student.detach().requires_grad_()
        (slope,) = torch.autograd.grad(replace(self, student=student).value(), student)
        return slope

    def rows(self, index: Tensor) -> Scene:
        parts = ("student", "teacher", "labels", "mask")
        picked = {part: getattr(self, part)[index] for part in parts}
        kept = torch.arange(len(self.keys))[index].tolist()
        return replace(self, **picked, keys=tuple(self.keys[n] for n in kept))

    def to(self, dtype: torch.dtype) -> Scene:
        return replace(self, student=self.student.to(dtype), teacher=self.teacher.to(dtype))


def scene(loss: Loss, chosen: dict[str, Any], *, apart: float = 0.3, classes: int = 0) -> Scene:
    """A student `apart` from its teacher; two rows have no label."""
    shape = (classes,) if classes and kind(loss) == "Logits" else KINDS[kind(loss)]
    teacher = torch.randn(ROWS, *shape)
    student = teacher + apart * torch.randn_like(teacher)
    labels = LABELS
    if loss is response.regression:  # its labels are numbers, near what the teacher says
        labels = (teacher + 0.1).masked_fill(~KNOWN[:, None], math.nan)
    return Scene(loss, student, teacher, labels, chosen=chosen)


def finite(value: Tensor) -> bool:
    return bool(torch.isfinite(value).all())


# What a loss is


@pytest.mark.parametrize("loss", LOSSES, ids=title)
def test_what_attar_gives_stands_before_the_star_and_what_a_recipe_sets_after_it(loss: Any) -> None:
    assert set(given(loss)) <= GIVEN | NOTED
    assert given(loss)[:2] == ["student", "teacher"]
    assert inspect.Parameter.empty not in options(loss).values()
    assert len(options(loss)) <= 6
    assert kind(loss) in KINDS
    assert loss.__doc__


@pytest.mark.parametrize("loss", LOSSES, ids=title)
def test_a_recipe_knows_what_a_loss_compares(loss: Any) -> None:
    assert compares(loss) == kind(loss)


@stateful
def test_a_loss_with_a_state_is_built_from_one_example(loss: Any) -> None:
    parameters = inspect.signature(loss).parameters.values()
    before_the_star = [entry.name for entry in parameters if entry.kind is not entry.KEYWORD_ONLY]
    assert before_the_star == ["student", "teacher"]
    assert inspect.get_annotations(loss.__init__)["student"] == kind(loss)
    assert issubclass(loss, nn.Module)


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}.{file.stem}")
def test_a_loss_can_be_copied_out_of_the_house(file: Path) -> None:
    assert "attar" not in file.read_text(encoding="utf-8")


def test_every_exception_is_of_a_promise_and_a_loss_that_there_are() -> None:
    assert set(NOT_KEPT) <= PROMISED
    assert {loss for table in NOT_KEPT.values() for loss in table} <= set(ROOM)
    assert all(why for table in NOT_KEPT.values() for why in table.values())


# Where it is least, and which way it points


@cases("least where student equals teacher")
@pytest.mark.parametrize("apart", [0.01, 0.3, 3.0])
def test_a_loss_is_least_where_student_equals_teacher(loss: Any, chosen: Any, apart: float) -> None:
    away = scene(loss, chosen, apart=apart)
    there = replace(away, student=away.teacher)
    assert there.value() < away.value()
    assert there.slope().abs().max() < 1e-5


@cases("zero where student equals teacher")
def test_a_loss_is_zero_where_student_equals_teacher(loss: Any, chosen: Any) -> None:
    away = scene(loss, chosen)
    assert replace(away, student=away.teacher).value().abs() < 1e-6


@cases("nearer by a step")
def test_a_step_down_the_gradient_brings_the_student_nearer_the_teacher(
    loss: Any, chosen: Any
) -> None:
    before = scene(loss, chosen)
    slope, way = before.slope(), before.teacher - before.student
    assert (-slope * way).sum() > 0.05 * slope.norm() * way.norm() > 0
    after = replace(before, student=before.student - 0.02 * way.norm() * slope / slope.norm())
    assert after.value() < before.value()
    assert (after.teacher - after.student).norm() < way.norm()


@cases("less by a step")
def test_a_step_down_the_gradient_costs_less(loss: Any, chosen: Any) -> None:
    before = scene(loss, chosen)
    slope = before.slope()
    step = 1e-3 * before.student.norm() * slope / slope.norm()
    assert replace(before, student=before.student - step).value() < before.value()
    assert replace(before, student=before.student + step).value() > before.value()


@cases("no gradient to the teacher")
def test_no_gradient_reaches_the_teacher(loss: Any, chosen: Any) -> None:
    here = scene(loss, chosen)
    student, teacher = here.student.requires_grad_(), here.teacher.requires_grad_()
    replace(here, student=student, teacher=teacher).value().backward()
    assert student.grad is not None
    assert teacher.grad is None


# Which batch it is in


@cases("any order")
def test_the_order_of_examples_does_not_matter(loss: Any, chosen: Any) -> None:
    here = scene(loss, chosen)
    torch.testing.assert_close(here.rows(torch.randperm(ROWS)).value(), here.value())


@cases("twice over")
def test_a_batch_given_twice_over_costs_the_same(loss: Any, chosen: Any) -> None:
    here = scene(loss, chosen)
    twice = here.rows(torch.arange(ROWS).repeat(2))
    torch.testing.assert_close(twice.value(), here.value())
    torch.testing.assert_close(2 * twice.slope()[:ROWS], here.slope(), rtol=1e-4, atol=1e-6)


@cases("one example")
def test_one_example_is_enough(loss: Any, chosen: Any) -> None:
    alone = scene(loss, chosen).rows(torch.tensor([0]))
    assert finite(alone.value())
    assert finite(alone.slope())


@cases("one example teaches")
def test_one_example_teaches(loss: Any, chosen: Any) -> None:
    assert scene(loss, chosen).rows(torch.tensor([0])).slope().abs().max() > 0


@cases("two classes", lambda loss: kind(loss) == "Logits")
@pytest.mark.parametrize("rows", [ROWS, 1])
def test_two_classes_are_enough(loss: Any, chosen: Any, rows: int) -> None:
    binary = scene(loss, chosen, classes=2).rows(torch.arange(rows))
    assert finite(binary.value())
    assert finite(binary.slope())


# What it is given in


@cases("half precision")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_in_gives_single_precision_out(loss: Any, chosen: Any, dtype: Any) -> None:
    half = scene(loss, chosen).to(dtype)
    assert half.value().dtype == torch.float32
    torch.testing.assert_close(half.value(), half.to(torch.float32).value(), rtol=0.02, atol=1e-4)
    assert half.slope().dtype == dtype
    assert finite(half.slope())


def scaled(loss: Any, chosen: Any, scale: float, dtype: Any) -> Scene:
    here = scene(loss, chosen, apart=1.0)
    return replace(here, student=scale * here.student, teacher=scale * here.teacher).to(dtype)


@cases("small and large")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_small_and_large_numbers_stay_finite(loss: Any, chosen: Any, dtype: Any) -> None:
    for scale in (1e-4, 30.0) if dtype == torch.float16 else (1e-4, 30.0, 1000.0):
        here = scaled(loss, chosen, scale, dtype)
        assert finite(here.value())
        assert finite(here.slope())


@cases("large in float16")
def test_thousands_in_float16_stay_finite(loss: Any, chosen: Any) -> None:
    here = scaled(loss, chosen, 1000.0, torch.float16)
    assert finite(here.value())
    assert finite(here.slope())


@cases("no variance")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_numbers_without_any_variance_stay_finite(loss: Any, chosen: Any, dtype: Any) -> None:
    here = scene(loss, chosen)
    for student, teacher in [(0, 1), (1, 0), (0, 0)]:
        flat = replace(here, student=student * here.student, teacher=teacher * here.teacher)
        assert finite(flat.to(dtype).value())
        assert finite(flat.to(dtype).slope())
    constant = replace(here, student=0 * here.student + 0.1)
    assert finite(constant.to(dtype).slope())


@cases("mixed precision")
def test_mixed_precision_changes_nothing(loss: Any, chosen: Any) -> None:
    here = scene(loss, chosen)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = here.value()
    torch.testing.assert_close(mixed, here.value(), rtol=1e-5, atol=1e-7)


WIDE = ("Projections", "Maps", "Rows", "Stages", "Scores")


@cases("other widths", lambda loss: kind(loss) in WIDE or inspect.isclass(loss))
def test_student_and_teacher_may_have_other_widths(loss: Any, chosen: Any) -> None:
    here = scene(loss, chosen)
    wider = replace(here, teacher=torch.cat([here.teacher, here.teacher], -1))
    assert finite(wider.value())
    assert wider.slope().abs().max() > 0


# What is no token, and what has no label


def takes_mask(loss: Loss) -> bool:
    return "mask" in given(loss)


@cases("padding", takes_mask)
@pytest.mark.parametrize("content", [50.0, -1e4, math.nan])
def test_what_stands_in_the_padding_changes_nothing(loss: Any, chosen: Any, content: float) -> None:
    here = scene(loss, chosen)
    padding = ~MASK[:, :, None]
    if kind(loss) == "Attentions":
        padding = ~(MASK[:, None, :, None] & MASK[:, None, None, :])
        here = replace(here, student=here.see(here.student), teacher=here.see(here.teacher))
    elif kind(loss) == "Stages":
        padding = padding[:, None]
    clean = replace(here, seen=True)
    student, teacher = (each.masked_fill(padding, content) for each in (here.student, here.teacher))
    filled = replace(clean, student=student, teacher=teacher)
    torch.testing.assert_close(filled.value(), clean.value())
    torch.testing.assert_close(filled.slope(), clean.slope())
    assert clean.slope().any()
    assert not filled.slope().masked_select(padding).any()


@cases("cut off", takes_mask)
def test_padding_counts_no_more_than_if_it_were_cut_off(loss: Any, chosen: Any) -> None:
    short = replace(scene(loss, chosen), mask=MASK[2].expand(ROWS, LENGTH))
    real: tuple[Any, ...] = {
        "Attentions": (..., slice(3), slice(3)),
        "Stages": (slice(None), slice(None), slice(3)),
    }.get(kind(loss), (slice(None), slice(3)))
    student, teacher = short.student[real], short.teacher[real]
    cut = replace(short, student=student, teacher=teacher, mask=short.mask[:, :3])
    torch.testing.assert_close(cut.value(), short.value())
    torch.testing.assert_close(cut.value(mask=None), short.value())
    torch.testing.assert_close(short.value(mask=short.mask.long()), short.value())
    assert not torch.isclose(short.value(mask=None), short.value())


def pooled(loss: Loss, chosen: dict[str, Any]) -> Scene:
    return Scene(loss, *torch.randn(2, ROWS, WIDTH), chosen=chosen)


@cases("pooled", lambda loss: kind(loss) == "Features")
def test_pooled_features_have_no_padding_to_mask(loss: Any, chosen: Any) -> None:
    here = pooled(loss, chosen)
    assert finite(here.slope())
    assert here.slope().any()
    if takes_mask(loss):
        torch.testing.assert_close(here.value(mask=MASK), here.value(mask=None))


@cases("pooled like tokens", lambda loss: kind(loss) == "Features")
def test_pooled_rows_cost_what_so_many_tokens_cost(loss: Any, chosen: Any) -> None:
    here = pooled(loss, chosen)
    tokens = replace(here, student=here.student[None], teacher=here.teacher[None])
    no_mask = {"mask": None} if takes_mask(loss) else {}
    torch.testing.assert_close(tokens.value(**no_mask), here.value(**no_mask))


@cases("other heads", lambda loss: kind(loss) == "Attentions")
def test_other_numbers_of_heads_are_compared_by_their_means(loss: Any, chosen: Any) -> None:
    student, teacher = (torch.randn(ROWS, heads, 4, 4).softmax(-1) for heads in (2, 3))
    mean = built(loss, student, teacher, **chosen)(
        student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)
    )
    torch.testing.assert_close(built(loss, student, teacher, **chosen)(student, teacher), mean)


def takes_labels(loss: Loss) -> bool:
    return "labels" in given(loss)


@cases("no label", takes_labels)
def test_where_no_label_is_known_the_teachers_likeliest_class_stands_in(
    loss: Any, chosen: Any
) -> None:
    here = scene(loss, chosen)
    told = replace(here, labels=torch.where(KNOWN, LABELS, here.teacher.argmax(-1)))
    torch.testing.assert_close(here.value(), told.value())
    assert here.slope()[~KNOWN].any()


def test_values_that_are_not_known_are_left_out() -> None:
    here = scene(response.regression, {})
    torch.testing.assert_close(here.value(), here.rows(KNOWN).value())
    assert not here.slope()[~KNOWN].any()
    assert here.slope()[KNOWN].any()
    unknown = (~KNOWN).nonzero().flatten().repeat(3)
    nothing = replace(here, labels=here.labels[unknown])
    assert nothing.value() == 0
    assert not nothing.slope().any()


# What a loss with a state keeps


@stateful
def test_building_a_loss_moves_no_random_stream_and_gives_the_same_each_time(loss: Any) -> None:
    here = scene(loss, {})
    before = torch.get_rng_state()
    first, second = here.built(), here.built()
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(first, nn.Module)
    assert isinstance(second, nn.Module)
    for name, value in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], value, equal_nan=True)


@stateful
def test_all_that_a_loss_can_learn_is_told_how(loss: Any) -> None:
    here = scene(loss, {})
    made = replace(here, student=here.student.requires_grad_()).built()
    assert isinstance(made, nn.Module)
    made(**here.given()).backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert finite(parameter.grad), name


@stateful
def test_a_loss_goes_on_from_its_saved_state_exactly(loss: Any) -> None:
    here = scene(loss, {})
    made, resumed = here.built(), here.built()
    assert isinstance(made, nn.Module)
    assert isinstance(resumed, nn.Module)
    optimizer = torch.optim.SGD([*made.parameters(), torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    here.student.requires_grad_()
    for _ in range(3):
        made(**here.given()).backward()
        optimizer.step()
    resumed.load_state_dict(made.state_dict())
    values = []
    for each in (made, resumed):
        torch.manual_seed(5)
        values.append([each(**here.given()).item() for _ in range(2)])
    assert values[0] == values[1]


@stateful
def test_a_loss_does_not_keep_its_example(loss: Any) -> None:
    here = scene(loss, {})
    shown = [here.student.clone(), here.teacher.clone()]
    made = replace(here, student=shown[0], teacher=shown[1]).built()
    for each in shown:
        each.fill_(math.nan)
    assert finite(made(**here.given()))


# What is refused


@cases("temperature", lambda loss: "temperature" in options(loss))
def test_a_temperature_that_is_not_positive_is_refused(loss: Any, chosen: Any) -> None:
    with pytest.raises(ValueError, match="temperature is 0"):
        scene(loss, chosen | {"temperature": 0}).value()


def test_heads_that_do_not_divide_a_width_are_refused_naming_both() -> None:
    with pytest.raises(ValueError, match=r"5 relation heads.*20 and 24"):
        attention.minilm_v2(torch.zeros(1, 2, 20), torch.zeros(1, 2, 24), heads=5)
    with pytest.raises(ValueError, match=r"8 relation heads.*20 and 24"):
        attention.minilm_v2(torch.zeros(1, 2, 20), torch.zeros(1, 2, 24), heads=8)
    with pytest.raises(ValueError, match="0 relation heads"):
        attention.minilm_v2(torch.zeros(1, 2, 20), torch.zeros(1, 2, 24), heads=0)
