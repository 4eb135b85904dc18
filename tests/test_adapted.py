"""A student that is its teacher with an adapter: off it is the teacher, merged it is itself."""

from __future__ import annotations

import copy
import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import storybook
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from attar import distill, students, teach
from attar.engine import local
from attar.errors import MissingExtra, ModelError, RecipeError
from attar.losses import response
from attar.pipeline import run
from attar.recipe import read
from attar.tasks.text import generation

IDS = torch.tensor([[7, 80, 120, 33], [9, 44, 2, 18]])


def said(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits  # type: ignore[no-any-return]


def taught(**options: Any) -> tuple[nn.Module, nn.Module]:
    """A teacher, and a student whose adapter has learned anything."""
    teacher = storybook.llama(2)
    torch.manual_seed(1)
    student = students.lora(teacher, rank=4, **options)
    with torch.no_grad():
        for weight in student.parameters():
            if weight.requires_grad:
                weight.add_(0.3 * torch.randn_like(weight))
    return teacher, student


@contextmanager
def old_words() -> Iterator[None]:
    """`peft` asks `transformers` for what that has given a new name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        yield


def switched(student: nn.Module, on: bool) -> nn.Module:
    for module in student.modules():
        if isinstance(module, LoraLayer):
            module.enable_adapters(on)
    return student


def test_switched_off_the_student_is_its_teacher_to_the_last_bit() -> None:
    teacher, student = taught()
    assert (said(student) - said(teacher)).abs().max() > 0.1
    assert torch.equal(said(switched(student, False)), said(teacher))


def test_before_it_has_learned_anything_it_is_its_teacher_too() -> None:
    teacher = storybook.llama(2)
    assert torch.equal(said(students.lora(teacher)), said(teacher))


@pytest.mark.parametrize("layers", [None, ["q_proj", "down_proj"]])
def test_merged_it_answers_as_with_its_adapter_and_is_a_plain_network(layers: Any) -> None:
    teacher, student = taught(layers=layers, alpha=6.0)
    before = said(teacher)
    plain = students.merged(student)
    torch.testing.assert_close(said(plain), said(student), atol=1e-5, rtol=0)
    assert type(plain) is type(teacher)
    assert plain.state_dict().keys() == teacher.state_dict().keys()
    assert all(weight.requires_grad for weight in plain.parameters())
    assert plain.lm_head.weight is plain.model.embed_tokens.weight  # type: ignore[union-attr]
    with torch.no_grad():
        for weight in plain.parameters():
            weight.zero_()
    assert torch.equal(said(teacher), before)
    assert students.merged(teacher) is teacher


def test_the_matrices_are_those_of_peft(tmp_path: Path) -> None:
    """The same adapter as `peft` itself writes, reads and merges it."""
    base = storybook.llama(2)
    torch.manual_seed(1)
    how = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear")
    with old_words():
        theirs: Any = get_peft_model(copy.deepcopy(base), how)
    torch.manual_seed(1)
    mine = students.lora(base, rank=4)
    learned = {name: weight for name, weight in mine.named_parameters() if weight.requires_grad}
    there = {
        name.removeprefix("base_model.model."): weight
        for name, weight in theirs.named_parameters()
        if weight.requires_grad
    }
    assert learned.keys() == there.keys()
    with torch.no_grad():
        for name, weight in there.items():
            assert torch.equal(weight, learned[name])
            drawn = 0.3 * torch.randn_like(weight)
            weight.add_(drawn)
            learned[name].add_(drawn)
    theirs.save_pretrained(tmp_path / "adapter")
    with old_words():
        again = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "adapter"))
    merged = students.merged(mine)
    torch.testing.assert_close(said(merged), said(again.merge_and_unload()), atol=1e-5, rtol=0)


def test_the_student_its_copies_and_its_teacher_have_one_memory_of_what_is_not_learned() -> None:
    teacher, student = taught()
    its = {weight.data_ptr() for weight in teacher.parameters()}
    for model in (student, copy.deepcopy(student)):
        own = [weight for weight in model.parameters() if weight.data_ptr() not in its]
        assert own
        assert all(weight.requires_grad for weight in own)
        assert sum(weight.numel() for weight in own) < sum(
            weight.numel() for weight in teacher.parameters()
        )
    assert {weight.data_ptr() for weight in copy.deepcopy(student).parameters()} & its == its


def test_only_the_adapter_is_trained_and_what_it_learns_comes_back_after_a_kill(
    tmp_path: Path,
) -> None:
    folder, data = storybook.saved(tmp_path / "model"), storybook.book(tmp_path / "book", 12)
    task = generation(dataset=str(data), tokenizer=str(folder), length=24)

    class Killed(Exception):
        """Stops a training where it stands."""

    def train(where: Path, until: int = 99) -> tuple[nn.Module, nn.Module]:
        teacher = task.load(storybook.llama(2))
        torch.manual_seed(0)
        student = students.lora(teacher, rank=2, dropout=0.2)
        here = local(where, precision="fp32", device="cpu", checkpoint=0.0)

        def watch(record: Any) -> None:
            if record["step"] == until:
                raise Killed

        lessons = teach.online(here.feed(task.batches(batch_size=2)), [teacher], task.forward)
        terms = [distill.term(response.kl), distill.term(task.loss)]
        distill.train(student, lessons, terms, task.forward, here, watch=watch, steps=5, lr=0.01)
        return teacher, student

    teacher, student = train(tmp_path / "whole")
    fresh = task.load(storybook.llama(2))
    assert all(
        torch.equal(one, other)
        for one, other in zip(teacher.parameters(), fresh.parameters(), strict=True)
    )
    assert not torch.equal(said(student), said(teacher))
    with pytest.raises(Killed):
        train(tmp_path / "killed", 3)
    again = train(tmp_path / "killed")[1]
    assert torch.equal(said(again), said(student))


def test_a_head_that_is_the_embeddings_too_is_not_adapted_alone() -> None:
    with pytest.raises(ModelError, match=r"lm_head has one weight with another layer"):
        students.lora(storybook.llama(1), layers=["lm_head"])
    students.lora(storybook.llama(1, tie_word_embeddings=False), layers=["lm_head"])


def test_a_network_without_linear_layers_of_that_name_is_refused() -> None:
    with pytest.raises(ModelError, match="takes no adapter"):
        students.lora(storybook.llama(1), layers=["nowhere"])


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtra, match=r"attar\[lora\]"):
        students.lora(storybook.llama(1))


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))
    model = str(storybook.saved(tmp_path / "model"))
    data = str(storybook.book(tmp_path / "book"))
    return {
        "task": {"text.generation": {"dataset": data, "tokenizer": model, "length": 24}},
        "teacher": {"load": {"model": model}},
        "student": {"lora": {"rank": 4}},
        "teach": {"on_policy": {"share": 0.5}},
        "losses": [{"response.kl": {"weight": 0.5}}, "task"],
        "steps": [{"distill": {"steps": 4, "batch_size": 4, "lr": 1e-2}}, "export.transformers"],
        "measure": ["score", "parameters"],
        "baselines": ["untrained", "labels_only"],
    }


def test_a_recipe_teaches_an_adapter_and_writes_what_transformers_loads(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    rows = {row.name: row for row in run(read(recipe), tmp_path / "out").rows}
    teacher, student = rows["teacher"], rows["student"]
    assert student.parameters == teacher.parameters
    assert rows["untrained"].score == teacher.score  # nothing is learned yet
    assert student.score > teacher.score
    assert rows["student-folder"].score == pytest.approx(student.score, abs=1e-6)
    folder = tmp_path / "out" / "student"
    assert not list(folder.glob("adapter*"))
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert said(AutoModelForCausalLM.from_pretrained(folder)).shape == (2, 4, 400)
    again = {row.name: row for row in run(read(recipe), tmp_path / "out").rows}
    assert again["student"].score == student.score  # found trained


def test_weights_that_a_student_shares_are_not_compressed_before_they_are_its_own(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    steps = recipe["steps"]
    recipe["steps"] = [{"prune.magnitude": {"ratio": 0.5}}, *steps]
    with pytest.raises(RecipeError, match="put distill first"):
        run(read(recipe), tmp_path / "out")
    validated = {"steps": 4, "batch_size": 4, "lr": 1e-2, "evaluate": 2}
    recipe["steps"] = [{"distill": validated}, {"prune.magnitude": {"ratio": 0.5}}]
    rows = {row.name: row for row in run(read(recipe), tmp_path / "out").rows}
    assert rows["student-magnitude"].score < rows["student"].score
    assert rows["student"].metrics["best_on_validation"] > rows["teacher"].score
