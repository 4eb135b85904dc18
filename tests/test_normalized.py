"""Agents that were trained on normalized observations: their statistics, read without running."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import environments as _environments  # noqa: F401  (registers them)
import gymnasium
import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from attar import export, tasks
from attar.errors import ModelError

CART = "CartPole-v1"


def normalized(name: str, **how: Any) -> VecNormalize:
    """An environment of which 300 steps were seen."""
    world = VecNormalize(DummyVecEnv([lambda: gymnasium.make(name)]), **how)
    world.seed(0)
    world.reset()
    world.action_space.seed(0)
    for _ in range(300):
        world.step(np.array([world.action_space.sample()]))
    return world


def saved(folder: Path, name: str = CART, kind: Any = PPO, **how: Any) -> tuple[Any, VecNormalize]:
    world = normalized(name, **how)
    learner = kind("MlpPolicy", world, seed=0, device="cpu", policy_kwargs={"net_arch": [8]})
    learner.save(folder / "agent.zip")
    return learner, world


def states(task: Any) -> torch.Tensor:
    return task._states[:40] * 3  # beyond some bounds too


def answers(learner: Any, seen: Any) -> torch.Tensor:
    with torch.no_grad():
        said: Any = learner.policy.get_distribution(torch.as_tensor(seen)).distribution
    return said.logits


PLACES = ["vecnormalize.pkl", "vec_normalize.pkl", "agent/vecnormalize.pkl"]


@pytest.mark.parametrize("file", PLACES)
def test_an_agent_sees_what_it_was_trained_to_see(file: str, tmp_path: Path) -> None:
    learner, world = saved(tmp_path, clip_obs=1.5)
    task: Any = tasks.control.policy(environment=CART, states=64)
    shown = states(task)
    wanted = answers(learner, world.normalize_obs(shown.numpy()))
    plain = task.load(str(tmp_path / "agent.zip"))
    (tmp_path / file).parent.mkdir(exist_ok=True)
    world.save(str(tmp_path / file))
    agent = task.load(str(tmp_path / "agent.zip"))
    with torch.no_grad():
        mine, without = agent(observation=shown), plain(observation=shown)
    torch.testing.assert_close(mine.log_softmax(1), wanted, atol=1e-5, rtol=1e-5)
    assert (without.log_softmax(1) - wanted).abs().max() > 1e-3


def test_what_is_exported_takes_what_the_environment_shows(tmp_path: Path) -> None:
    learner, world = saved(tmp_path)
    world.save(str(tmp_path / "vecnormalize.pkl"))
    task: Any = tasks.control.policy(environment=CART, states=64)
    shown = states(task)
    agent = task.load(str(tmp_path / "agent.zip"))
    session = onnxruntime.InferenceSession(export.onnx(agent, task.example, tmp_path / "exported"))
    (said,) = session.run(None, {"observation": shown.numpy()})
    wanted = answers(learner, world.normalize_obs(shown.numpy()))
    np.testing.assert_allclose(torch.tensor(said).log_softmax(1), wanted, atol=1e-4)


def test_numbers_and_critics_and_representations_see_it_too(tmp_path: Path) -> None:
    learner, world = saved(tmp_path, "Pendulum-v1", SAC)
    world.save(str(tmp_path / "vecnormalize.pkl"))
    task: Any = tasks.control.policy(environment="Pendulum-v1", states=64)
    shown = task._states[:20]
    own, _ = learner.predict(world.normalize_obs(shown.numpy()), deterministic=True)
    mine = task.actor(task.load(str(tmp_path / "agent.zip")))(shown.numpy())
    np.testing.assert_allclose(mine, own, atol=1e-4)
    learner, world = saved(tmp_path)
    world.save(str(tmp_path / "vecnormalize.pkl"))
    seen = torch.as_tensor(world.normalize_obs(shown[:, :1].repeat(1, 4).numpy())).float()
    raw = shown[:, :1].repeat(1, 4)
    with torch.no_grad():
        critic = tasks.control.value(environment=CART, states=64).load(str(tmp_path / "agent.zip"))
        torch.testing.assert_close(critic(observation=raw), learner.policy.predict_values(seen))
        there: Any = tasks.control.representation(environment=CART, states=64)
        trunk = there.load(str(tmp_path / "agent.zip"))
        features = learner.policy.mlp_extractor.forward_actor(seen)
        torch.testing.assert_close(trunk(observation=raw), features)


def test_statistics_may_stand_among_the_weights(tmp_path: Path) -> None:
    learner, world = saved(tmp_path)
    weights = dict(learner.policy.state_dict())
    weights |= {
        "obs_rms.mean": torch.tensor(world.obs_rms.mean),
        "obs_rms.var": torch.tensor(world.obs_rms.var),
    }
    save_file(weights, tmp_path / "agent.safetensors")
    task: Any = tasks.control.policy(environment=CART, states=64)
    shown = task._states[:40]
    with torch.no_grad():
        mine = task.load(str(tmp_path / "agent.safetensors"))(observation=shown).log_softmax(1)
    wanted = answers(learner, world.normalize_obs(shown.numpy()))
    torch.testing.assert_close(mine, wanted, atol=1e-5, rtol=1e-5)


def test_rewards_alone_may_have_been_normalized(tmp_path: Path) -> None:
    learner, world = saved(tmp_path, norm_obs=False)
    world.save(str(tmp_path / "vecnormalize.pkl"))
    task: Any = tasks.control.policy(environment=CART, states=64)
    shown = task._states[:40]
    with torch.no_grad():
        mine = task.load(str(tmp_path / "agent.zip"))(observation=shown).log_softmax(1)
    torch.testing.assert_close(mine, answers(learner, shown))


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_statistics_of_any_protocol_are_read(protocol: int, tmp_path: Path) -> None:
    learner, world = saved(tmp_path)
    (tmp_path / "vecnormalize.pkl").write_bytes(pickle.dumps(world, protocol))
    task: Any = tasks.control.policy(environment=CART, states=64)
    shown = task._states[:40]
    with torch.no_grad():
        mine = task.load(str(tmp_path / "agent.zip"))(observation=shown).log_softmax(1)
    wanted = answers(learner, world.normalize_obs(shown.numpy()))
    torch.testing.assert_close(mine, wanted, atol=1e-5, rtol=1e-5)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_nothing_in_the_statistics_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, world = saved(tmp_path)
    world.training = Bomb(tmp_path / "exploded")  # type: ignore[assignment]
    world.save(str(tmp_path / "vecnormalize.pkl"))
    whole = pickle.dumps(Bomb(tmp_path / "exploded"))
    task: Any = tasks.control.policy(environment=CART, states=64)
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)  # nor looked up
    assert task.load(str(tmp_path / "agent.zip")) is not None
    (tmp_path / "vecnormalize.pkl").write_bytes(whole)
    with pytest.raises(ModelError, match=r"can be read without running it; give .* obs_rms\.mean"):
        task.load(str(tmp_path / "agent.zip"))
    assert not (tmp_path / "exploded").exists()
    pickle.loads(whole)
    assert (tmp_path / "exploded").exists()


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps({"obs_rms": 3})])
def test_what_is_no_statistics_is_refused(content: bytes, tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "vecnormalize.pkl").write_bytes(content)
    task: Any = tasks.control.policy(environment=CART, states=64)
    with pytest.raises(ModelError, match="holds no statistics of VecNormalize"):
        task.load(str(tmp_path / "agent.zip"))


def test_statistics_of_another_environment_are_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    normalized("attar/Line-v0").save(str(tmp_path / "vecnormalize.pkl"))
    task: Any = tasks.control.policy(environment=CART, states=64)
    with pytest.raises(ModelError, match=r"normalized observations of \[1\] numbers, and CartPole"):
        task.load(str(tmp_path / "agent.zip"))


def test_statistics_of_observations_in_parts_are_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    parts = VecNormalize(
        DummyVecEnv([lambda: gymnasium.make("attar/Dict-v0")]), norm_obs_keys=["place"]
    )
    parts.save(str(tmp_path / "vecnormalize.pkl"))
    task: Any = tasks.control.policy(environment=CART, states=64)
    with pytest.raises(ModelError, match="normalizes observations in parts"):
        task.load(str(tmp_path / "agent.zip"))
