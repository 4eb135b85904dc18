"""Trees told of those who act: what they answer, what they weigh, who drives, and what is read."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import environments as _environments  # noqa: F401  (registers them)
import numpy as np
import onnx
import pytest
import torch
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from test_control_task import best, line
from torch import nn

from attar.compress import tree as trees
from attar.compressing import in_short
from attar.errors import MissingExtra
from attar.pipeline import run
from attar.recipe import read
from attar.types import Batch, Knowledge

ACTS = ("left", "right", "up")


def grown(seen: Any, said: Any, choices: int = 3, depth: int = 4, leaves: int = 9) -> trees.Tree:
    return trees._grown(torch.as_tensor(seen), torch.as_tensor(said), choices, depth, leaves)


def teacher(seen: torch.Tensor) -> torch.Tensor:
    """Three answers of some numbers, with edges that no tree can follow."""
    one, two, three = seen.T[:3]
    return torch.stack([one * two, three - one, two.abs() - 0.5], 1)


def states(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed))


# What a tree answers


def test_a_tree_of_tensors_answers_as_scikit_learns_own() -> None:
    seen = states(500)
    said = teacher(seen)
    gaps = (said.max(1).values - said.min(1).values).numpy()
    own = DecisionTreeClassifier(max_depth=4, max_leaf_nodes=9, random_state=0)
    own.fit(seen.numpy(), said.argmax(1).numpy(), gaps)
    tree = grown(seen, said)
    # Also where a number is as near to a threshold as 32 bits allow, on either side of it.
    edges = own.tree_.threshold[own.tree_.feature >= 0].astype(np.float32)
    near = np.concatenate([edges, np.nextafter(edges, np.float32(9)), np.nextafter(edges, -9)])
    asked = torch.cat(
        [states(2000, 1), torch.from_numpy(near.astype(np.float32))[:, None].expand(-1, 5)]
    )
    shares = own.predict_proba(asked.numpy())
    assert torch.allclose(tree(asked).exp(), torch.from_numpy(shares).float(), atol=2e-6)
    assert tree(asked).argmax(1).tolist() == own.predict(asked.numpy()).tolist()
    assert tree.depth == own.get_depth()
    assert len(tree.answers) == own.get_n_leaves()
    assert sum(each.numel() for each in tree.parameters()) == 8 + 9 * 3


def test_a_tree_of_numbers_answers_as_scikit_learns_own() -> None:
    seen = states(300)
    own = DecisionTreeRegressor(max_depth=4, max_leaf_nodes=9, random_state=0)
    own.fit(seen.numpy(), teacher(seen).numpy())
    asked = states(1000, 1)
    mine = grown(seen, teacher(seen), choices=0)(asked)
    assert torch.allclose(mine, torch.from_numpy(own.predict(asked.numpy())).float(), atol=1e-6)


def test_a_tree_that_asks_nothing_answers_all_alike() -> None:
    tree = grown(torch.ones(3, 2), torch.tensor([[0.0, 2.0, 1.0]] * 3))
    assert tree.depth == 0
    assert tree(torch.randn(4, 2)).argmax(1).tolist() == [1] * 4


def test_a_state_weighs_what_is_at_stake_in_it() -> None:
    # In one place left is right by 1 in three states, and up by 10 in a fourth.
    said = torch.tensor([[1.0, 0.0, 0.5]] * 3 + [[0.0, 9.0, 10.0]])
    answer = grown(torch.zeros(4, 2), said)(torch.zeros(1, 2))[0]
    assert answer.argmax() == 2
    assert answer[2].item() == pytest.approx(math.log(10 / 13), abs=1e-6)
    assert answer[0].item() == pytest.approx(math.log(3 / 13), abs=1e-6)
    assert answer[1].item() == pytest.approx(math.log(trees.SURE), abs=1e-6)


# Who drives, and which tree is kept


class Drive:
    """Stands in for a task: notes who acts, and shows each round's states."""

    def __init__(self, scores: list[float]) -> None:
        self.who: list[nn.Module] = []
        self.began: list[int] = []
        self.scores = iter(scores)
        self.told: dict[str, Any] = {}

    def act(self, model: nn.Module, number: int, start: int, beta: float, _: nn.Module) -> Batch:
        assert beta == 0
        self.who.append(model)
        self.began.append(start)
        shown = states(number, len(self.who)) + 3.0 * (len(self.who) - 1)
        return Batch(shown, torch.full((number,), -100), ("",) * number)

    def viper(self, **options: Any) -> nn.Module:
        return trees.viper(
            nn.Identity(),
            self.act,
            lambda _, batch: Knowledge(teacher(batch.inputs)),
            lambda _: {"score": next(self.scores)},
            self.told.__setitem__,
            ACTS,
            3,
            **options,
        )


def test_the_model_acts_first_and_then_each_tree_that_was_grown() -> None:
    drive = Drive([5.0, 5.0, 2.0])
    kept = drive.viper(rounds=3, states=40)
    assert isinstance(drive.who[0], nn.Identity)
    assert all(isinstance(each, trees.Tree) for each in drive.who[1:])
    assert drive.began == [0, 40, 80]
    rounds, _ = drive.told.values()
    assert [each["states"] for each in rounds] == [40, 80, 120]
    assert [each["score on validation"] for each in rounds] == [5.0, 5.0, 2.0]
    # Of the two that are as good it is the one that saw more, and that drives in the third round.
    assert drive.who[2] is kept


def test_no_tree_is_deeper_or_has_more_answers_than_asked_for() -> None:
    for depth, leaves in ((2, 32), (8, 5), (1, 2)):
        kept: Any = Drive([0.0] * 2).viper(rounds=2, states=300, depth=depth, leaves=leaves)
        assert kept.depth <= depth
        assert len(kept.answers) <= leaves


def test_without_scikit_learn_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.tree", None)
    with pytest.raises(MissingExtra, match=r"attar\[control\]"):
        Drive([0.0]).viper(rounds=1, states=10)


def test_a_look_ahead_asks_for_one_state() -> None:
    drive = Drive([])
    short = in_short({"act": drive.act, "calibration": iter, "losses": iter})
    assert len(short["act"](nn.Identity(), 2000, 0, 0.0, nn.Identity())) == 1


# What is read


def test_rules_are_the_questions_on_the_way_to_each_answer() -> None:
    # x0 <= 1 ? (x0 <= -1 ? left : (x2 <= 0.5 ? right : up)) : left
    tree = trees.Tree(
        torch.tensor([0, 0, 2]),
        torch.tensor([1.0, -1.0, 0.5]),
        torch.tensor([[1, 3], [4, 2], [5, 6]]),
        torch.tensor([[0.9, 0.1, 0.0], [0.5, 0.3, 0.2], [0.0, 1.0, 0.0], [0.2, 0.2, 0.6]]).log(),
    )
    seen = torch.tensor([[2.0, 0, 0], [-2, 0, 0], [0, 0, 0], [0, 0, 1], [0, 9, 0.5]])
    assert tree(seen).argmax(1).tolist() == [0, 0, 1, 2, 1]
    found = list(trees._rules(tree, seen, ACTS, 3))
    assert [(each["if"], each["then"]) for each in found] == [
        ("x0 ≤ -1", "left"),
        ("-1 < x0 ≤ 1 and x2 ≤ 0.5", "right"),
        ("-1 < x0 ≤ 1 and 0.5 < x2", "up"),
        ("1 < x0", "left"),
    ]
    assert [each["of states"] for each in found] == pytest.approx([0.2, 0.4, 0.2, 0.2])
    assert [each["sure"] for each in found] == pytest.approx([0.5, 1.0, 0.6, 0.9])
    numbers = list(trees._rules(tree, seen, ("speed", "log deviation"), 0))
    assert numbers[3]["then"].startswith("speed -0.105, log deviation -2.3")
    assert "sure" not in numbers[0]


# The whole way


def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: str) -> dict[str, Any]:
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    spread = environment != "attar/Line-v0"
    Path("mine.py").write_text(
        "from test_control_task import Home\n\n\ndef build():\n    return Home(" + f"{spread})\n"
    )
    return {
        "task": {"control.policy": {"environment": environment, "states": 100, "episodes": 20}},
        "teacher": {"load": {"model": "mine.py:build"}},
        "steps": [{"tree.viper": {"rounds": 2, "states": 200, "leaves": 4}}, "export.onnx"],
        "measure": ["score", "parameters", "macs", "size"],
    }


def test_a_policy_becomes_a_tree_in_a_file_of_plain_operators(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = said(tmp_path, monkeypatch, "attar/Line-v0")
    report = run(read(recipe), tmp_path / "out", trust=True)
    assert [row.name for row in report.rows] == ["teacher", "student-viper", "student-viper.onnx"]
    assert [row.score for row in report.rows] == pytest.approx([best(line())] * 3)
    file = onnx.load(tmp_path / "out" / "student-viper.onnx")
    assert {node.domain for node in file.graph.node} <= {"", "ai.onnx"}
    (rules,) = (rows for title, rows in report.tables.items() if title.startswith("The tree"))
    # In the middle both ways are as good, and the model goes left.
    assert [(each["if"], each["then"]) for each in rules] == [
        ("x0 ≤ -0.5", "action 1"),
        ("-0.5 < x0", "action 0"),
    ]
    assert "x0 ≤ -0.5" in (tmp_path / "out" / "report.md").read_text()
    assert "x0 ≤ -0.5" in (tmp_path / "out" / "report.html").read_text()


def test_actions_that_are_numbers_become_a_tree_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = said(tmp_path, monkeypatch, "attar/Numbers-v0")
    recipe["steps"][0]["tree.viper"] |= {"leaves": 16}
    report = run(read(recipe), tmp_path / "out", trust=True)
    teacher, tree, file = report.rows
    assert tree.score > 0.9 * teacher.score > 1
    assert file.score == pytest.approx(tree.score, abs=1e-5)
