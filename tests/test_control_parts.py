"""What an agent is made of, distilled by itself: its critic, and what it makes of what it sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import environments as _environments  # noqa: F401  (registers them)
import gymnasium
import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression, Ridge
from stable_baselines3 import PPO

from attar import tasks
from attar.errors import AttarError
from attar.pipeline import run
from attar.recipe import read
from attar.tasks.control.representing import RIDGE, fitted
from attar.tasks.control.valuing import _ranked

LINE = "attar/Line-v0"


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    """An agent of a few steps' training, and its zip."""
    small = {"net_arch": [16, 12]}
    learner = PPO("MlpPolicy", gymnasium.make(LINE), n_steps=64, policy_kwargs=small, seed=0)
    learner.learn(512)
    path = tmp_path_factory.mktemp("agent") / "agent.zip"
    learner.save(path)
    return learner, str(path)


def recipe(task: str, model: str, **change: Any) -> Any:
    about = {"environment": LINE, "states": 400, "episodes": 10}
    said = {
        "task": {task: about},
        "teacher": {"load": {"model": model}},
        "student": {"mlp": {"widths": [16]}},
        "measure": ["score", "parameters", "size"],
    }
    return read(said | change)


def test_a_critics_values_are_those_of_the_agent(agent: tuple[Any, str]) -> None:
    learner, path = agent
    task: Any = tasks.control.value(environment=LINE, states=100)
    critic = task.load(path)
    shown = task._states[:40]
    own = learner.policy.predict_values(shown).detach()
    with torch.no_grad():
        torch.testing.assert_close(critic(observation=shown), own)
    assert sum(each.numel() for each in critic.parameters()) == 2 * 16 + 17 * 12 + 13


def test_a_critic_is_scored_by_the_variance_it_tells(agent: tuple[Any, str]) -> None:
    task: Any = tasks.control.value(environment=LINE, states=300, episodes=8, discount=0.9)
    critic = task.load(agent[1])
    task = task.met(critic)
    judged = task.score(critic, "test")
    assert [judged["score"], judged["critic"]] == pytest.approx([1.0, 1.0])
    assert judged["returns"] == judged["critic_returns"]

    class Mean(torch.nn.Module):
        def forward(self, observation: torch.Tensor) -> torch.Tensor:
            truth = task._acts[list(task.rows["test"])]
            return truth.mean().expand(len(observation), 1)

    assert task.score(Mean(), "test")["score"] == pytest.approx(0.0, abs=1e-5)


def test_returns_are_discounted_and_go_on_by_the_critic_where_they_are_cut_off(
    agent: tuple[Any, str],
) -> None:
    task: Any = tasks.control.value(environment=LINE, states=100, episodes=3, discount=0.5)
    critic = task.load(agent[1])
    task = task.met(critic)
    world = gymnasium.make(LINE)
    shown, _ = world.reset(seed=task.seeds("test", 1, 50_000)[0])
    first, last, total = shown, shown, 0.0
    for n in range(8):
        last = shown
        action = int(task.actor(critic)(shown[None])[0])
        shown, reward, _, cut, _ = world.step(action)
        total += 0.5**n * float(reward)
    assert cut
    with torch.no_grad():
        total += 0.5**8 * float(critic(observation=torch.tensor(last[None])))
    states, returned = task._returned
    assert np.array_equal(states[0], first)
    assert returned[0] == pytest.approx(total, rel=1e-5)


def test_ranks_are_spearmans() -> None:
    random = np.random.default_rng(0)
    one, other = random.integers(0, 9, 60).astype(float), random.normal(size=60)
    assert _ranked(one, other) == pytest.approx(spearmanr(one, other).statistic)
    assert _ranked(np.ones(5), other[:5]) == 0.0


def test_a_value_is_distilled_to_a_few_weights_in_units_of_the_return(
    agent: tuple[Any, str], tmp_path: Path
) -> None:
    steps = [{"distill": {"steps": 400, "lr": 1e-2}}, "export.onnx"]
    said = recipe("control.value", agent[1], losses=["policy.value"], steps=steps)
    report = run(said, tmp_path / "out")
    teacher, student, file = report.rows
    assert report.score_name == "R squared"
    assert teacher.score == pytest.approx(1.0)
    assert student.score > 0.9
    assert file.score == pytest.approx(student.score, abs=1e-4)
    assert file.metrics["error"] < 0.3


# What it makes of what it sees


@pytest.mark.parametrize("choices", [3, 0])
def test_a_head_is_the_one_that_scikit_learn_fits(choices: int) -> None:
    torch.manual_seed(0)
    features = torch.randn(300, 4) * torch.tensor([1.0, 5.0, 0.1, 2.0]) + 3
    scaled = ((features - features.mean(0)) / features.std(0)).numpy()
    if choices:
        acts = (features @ torch.randn(4, 3) + torch.randn(300, 3)).argmax(1)
        weight, bias = fitted(features, acts, 3)
        wanted = LogisticRegression(C=1 / (2 * RIDGE * 300), tol=1e-8, max_iter=1000)
        wanted.fit(scaled, acts)
        own = torch.log_softmax(features @ weight.T + bias, 1).numpy()
        np.testing.assert_allclose(own, wanted.predict_log_proba(scaled), atol=2e-3)
    else:
        numbers = features @ torch.randn(4, 1) + torch.randn(300, 1)
        weight, bias = fitted(features, numbers, 0)
        ridge = Ridge(alpha=RIDGE * 300).fit(scaled, numbers)
        own = (features @ weight.T + bias).numpy()
        np.testing.assert_allclose(own[:, 0], ridge.predict(scaled).reshape(-1), atol=2e-3)


def test_features_under_a_new_head_act_like_the_agent(agent: tuple[Any, str]) -> None:
    learner, path = agent
    task: Any = tasks.control.representation(environment=LINE, states=300, episodes=12)
    trunk = task.load(path)
    shown = task._states[:30]
    with torch.no_grad():
        features = learner.policy.mlp_extractor.forward_actor(shown)
        torch.testing.assert_close(trunk(observation=shown), features)
    task = task.met(trunk)
    judged = task.score(trunk, "test")
    whole: Any = tasks.control.policy(environment=LINE, states=300, episodes=12)
    agents_own = whole.score(whole.load(path), "test")["score"]
    assert judged["agreement"] > 0.95
    assert judged["score"] == pytest.approx(agents_own, abs=0.5)


def test_a_representation_is_distilled_and_its_file_plays_under_a_head(
    agent: tuple[Any, str], tmp_path: Path
) -> None:
    said = recipe(
        "control.representation",
        agent[1],
        losses=[{"feature.mse": {"layers": {"": ""}}}, {"relation.distance": {"layers": {"": ""}}}],
        steps=[{"distill": {"steps": 200, "lr": 1e-2}}, "export.onnx"],
    )
    teacher, student, file = run(said, tmp_path / "out").rows
    assert student.score == pytest.approx(teacher.score, abs=0.5)
    assert file.score == pytest.approx(student.score, abs=0.1)
    assert student.metrics["agreement"] > 0.9


@pytest.mark.parametrize(
    ("task", "change", "sentence"),
    [
        ("control.value", {"losses": ["task"]}, "compare with the critic by policy.value"),
        ("control.representation", {"losses": ["task"]}, "compare features, by feature.mse"),
        ("control.value", {"teacher": {"reinforce": {}}}, "needs an agent with its critic"),
        ("control.representation", {"teacher": {"reinforce": {}}}, "needs an agent"),
    ],
)
def test_what_parts_can_not_learn_from_is_said_in_a_sentence(
    task: str, change: dict[str, Any], sentence: str, agent: tuple[Any, str], tmp_path: Path
) -> None:
    steps = [{"distill": {"steps": 2}}]
    said = recipe(task, agent[1], **{"losses": ["policy.value"], "steps": steps} | change)
    with pytest.raises(AttarError, match=sentence):
        run(said, tmp_path / "out")
