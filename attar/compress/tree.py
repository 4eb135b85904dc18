"""A model that acts, told as a decision tree: a few questions about single numbers, then an act."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attar.errors import MissingExtra
from attar.types import Act, Count, Forward, Score, Tell

SURE = 1e-6
"""Of a choice that was never right in a leaf, the share that keeps its logarithm finite; and of
states the least weight, so that one in which nothing matters is still one."""


def viper(
    model: nn.Module,
    act: Act,
    forward: Forward,
    score: Score,
    tell: Tell,
    classes: Sequence[str],
    choices: int,
    *,
    depth: Count = 8,
    leaves: Count = 32,
    rounds: Count = 10,
    states: Count = 2000,
) -> nn.Module:
    """What a model does as the decision tree that returns the most, of a few, each to be read.

    First the model itself acts, then in each round the tree grown before; of every state that was
    met the model says what should be done, and a tree is grown on all of them together. A state
    weighs what the best choice is worth above the worst (for logits of a policy the difference of
    their logarithms), so that a tree spends its questions where they matter. Where actions are
    numbers it is grown on what the model answers, all states alike. Kept is the tree with the best
    score on the validation episodes. It is grown by scikit-learn, and answers by comparisons that
    any runtime has.

    depth: most questions in a row
    leaves: most answers there are
    rounds: trees that are grown; states: met for each
    Source: Bastani et al., Verifiable Reinforcement Learning via Policy Extraction (VIPER),
    NeurIPS 2018, algorithm 1; with weights in place of drawing by them.
    Raises MissingExtra without scikit-learn, RecipeError where nothing acts.
    """
    shown, answers, grown = [], [], [model]
    best, found = -math.inf, list[dict[str, Any]]()
    for number in range(rounds):
        met = act(grown[-1], states, number * states, 0.0, model)
        with torch.no_grad():
            answers.append(forward(model, met).logits.cpu())
        shown.append(met.inputs)
        seen, said = torch.cat(shown), torch.cat(answers)
        tree = _grown(seen, said, choices, depth, leaves)
        grown.append(tree)
        mean = float(score(tree)["score"])
        found.append({"round": number + 1, "states": len(seen), "leaves": len(tree.answers)})
        found[-1] |= {"score on validation": mean}
        if mean >= best:  # of trees as good the one grown on the most
            best, kept, by = mean, tree, seen
    tell("Rounds of the tree", found)
    tell(
        "The tree, x0 being the first number that is seen", list(_rules(kept, by, classes, choices))
    )
    return kept


class Tree(nn.Module):
    """Questions, each whether a number of what is seen is at most a threshold, and answers.

    `forward` takes observations (rows, ...) as they are and gives answers (rows, classes). Inner
    nodes come first, answers after them; `ways` (nodes, 2) says where yes and no lead to.
    """

    number: Tensor
    ways: Tensor

    def __init__(self, number: Tensor, threshold: Tensor, ways: Tensor, answers: Tensor) -> None:
        super().__init__()
        self.register_buffer("number", number)
        self.register_buffer("ways", ways)
        self.threshold = nn.Parameter(threshold, requires_grad=False)
        self.answers = nn.Parameter(answers, requires_grad=False)
        self.depth = max((len(path) for _, path in _paths(self)), default=0)

    def forward(self, observation: Tensor) -> Tensor:
        at = self.leaf(observation)
        answered: Tensor = self.answers[at]
        return answered

    def leaf(self, observation: Tensor) -> Tensor:
        """The place (rows,) of the answer to each observation."""
        seen = observation.flatten(1).float()
        inner = len(self.threshold)
        at = torch.zeros_like(seen[:, 0], dtype=torch.long)
        for _ in range(self.depth):
            here = at.clamp(max=inner - 1)
            asked = seen.gather(1, self.number[here][:, None])[:, 0]
            way = self.ways[here]
            turned = torch.where(asked <= self.threshold[here], way[:, 0], way[:, 1])
            at = torch.where(at < inner, turned, at)
        return at - inner


def _grown(seen: Tensor, said: Tensor, choices: int, depth: int, leaves: int) -> Tree:
    """The tree that tells best what was answered, grown best first."""
    try:
        from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
    except ImportError as error:
        raise MissingExtra("scikit-learn", "control", "tree.viper") from error
    # A tree of one leaf asks nothing, which scikit-learn doesn't grow.
    bounds = {"max_depth": depth, "max_leaf_nodes": max(2, leaves), "random_state": 0}
    rows = seen.flatten(1).float().numpy()
    if not choices:
        tree = DecisionTreeRegressor(**bounds).fit(rows, said.numpy())
        return _copied(tree.tree_, torch.from_numpy(tree.tree_.value[:, :, 0]))
    gaps = (said.max(1).values - said.min(1).values).clamp(min=SURE).numpy()
    tree = DecisionTreeClassifier(**bounds).fit(rows, said.argmax(1).numpy(), gaps / gaps.mean())
    shares = np.zeros((tree.tree_.node_count, choices))
    counts = tree.tree_.value[:, 0]
    shares[:, tree.classes_] = counts / counts.sum(1, keepdims=True)
    return _copied(tree.tree_, torch.from_numpy(shares).clamp(min=SURE).log())


def _copied(tree: Any, answers: Tensor) -> Tree:
    """A tree of scikit-learn as plain tensors; answers (nodes, classes) are those of its leaves."""
    inner = np.flatnonzero(tree.children_left >= 0)
    leaf = np.flatnonzero(tree.children_left < 0)
    place = np.empty(tree.node_count, int)
    place[inner], place[leaf] = np.arange(len(inner)), len(inner) + np.arange(len(leaf))
    ways = np.stack([place[tree.children_left[inner]], place[tree.children_right[inner]]], 1)
    exact = tree.threshold[inner]
    near = exact.astype(np.float32)
    # What is seen has 32 bits: at most a threshold of 64 is at most the number of 32 below it.
    near = np.where(near > exact, np.nextafter(near, np.float32(-np.inf)), near)
    return Tree(
        torch.from_numpy(tree.feature[inner].astype(np.int64)),
        torch.from_numpy(near),
        torch.from_numpy(ways),
        answers[torch.from_numpy(leaf)].float(),
    )


Question = tuple[int, float, bool]
"""The place of a number, a threshold, and whether it is at most that."""


def _paths(tree: Tree) -> Iterator[tuple[int, list[Question]]]:
    """Each leaf with the questions that lead to it and their answers, yes before no."""
    inner = len(tree.threshold)
    waiting: list[tuple[int, list[Question]]] = [(0, [])]
    while waiting:
        node, path = waiting.pop()
        if node >= inner:
            yield node - inner, path
            continue
        number, threshold = int(tree.number[node]), float(tree.threshold[node])
        yes, no = tree.ways[node].tolist()
        waiting.append((no, [*path, (number, threshold, False)]))
        waiting.append((yes, [*path, (number, threshold, True)]))


def _rules(
    tree: Tree, seen: Tensor, classes: Sequence[str], choices: int
) -> Iterator[dict[str, Any]]:
    """A tree as rules to be read, one for each leaf, questions about one number put together.

    seen: states (rows, ...) of which each rule tells the share that it is for
    """
    counts = torch.bincount(tree.leaf(seen), minlength=len(tree.answers)) / len(seen)
    for leaf, path in _paths(tree):
        answer = tree.answers[leaf]
        done = classes[int(answer.argmax())] if choices else _listed(answer, classes)
        rule = {"if": _told(path) or "always", "then": done, "of states": float(counts[leaf])}
        yield rule | ({"sure": float(answer.exp().max())} if choices else {})


def _listed(answer: Tensor, classes: Sequence[str]) -> str:
    told = (f"{name} {value:.3g}" for name, value in zip(classes, answer.tolist(), strict=False))
    return ", ".join(told)


def _told(path: Sequence[Question]) -> str:
    """The questions of a path in words: between which bounds each number is."""
    bounds: dict[int, tuple[float, float]] = {}
    for number, threshold, under in path:
        low, high = bounds.get(number, (-math.inf, math.inf))
        bounds[number] = (low, min(high, threshold)) if under else (max(low, threshold), high)
    return " and ".join(
        f"{f'{low:.3g} < ' if low > -math.inf else ''}x{number}"
        f"{f' ≤ {high:.3g}' if high < math.inf else ''}"
        for number, (low, high) in sorted(bounds.items())
    )
