"""Tasks of control: what is seen, who acts, whose episodes, and whose weights are read."""

from __future__ import annotations

import copy
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import environments as _environments  # noqa: F401  (registers them)
import gymnasium
import numpy as np
import pytest
import stable_baselines3 as sb3
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from attar import export, students, tasks
from attar.errors import DataError, ModelError, RecipeError
from attar.tasks.control.playing import Episode, play
from attar.tasks.control.worlds import View, opened
from attar.tasks.intervals import interval

LINE = "attar/Line-v0"


class Home(nn.Module):
    """Goes to the middle: the best there is on a line."""

    def __init__(self, spread: bool = False) -> None:
        super().__init__()
        self.way = nn.Parameter(torch.tensor(-1.0))
        self.spread = spread

    def forward(self, observation: Tensor) -> Tensor:
        right = self.way * observation.flatten(1)[:, :1]
        other = torch.full_like(right, -1.0) if self.spread else torch.zeros_like(right)
        return torch.cat([right, other] if self.spread else [other, right], 1)


def line(name: str = LINE, **options: Any) -> Any:
    return tasks.control.policy(**{"environment": name, "states": 200, "episodes": 20, **options})


def best(task: Any, part: str = "test") -> float:
    """The return of whoever goes straight to the middle and steps around it ever after."""
    number = task.episodes if part == "test" else round(0.2 * task.episodes)
    total = 0.0
    for seed in task.seeds(part, number):
        place = abs(float(np.random.default_rng(seed).integers(-5, 6)) or 1.0)
        total += place - (8 - place) % 2  # eight steps end in the middle, or one beside it
    return total / number


# What is scored


def test_a_score_is_the_mean_return_of_the_episodes_of_its_own_seeds() -> None:
    task = line()
    home = task.load(Home())
    judged = task.met(home).score(home, "test")
    assert judged["score"] == pytest.approx(best(task))
    assert judged["examples"] == 20
    assert judged["agreement"] == 1.0
    assert judged["low"] <= judged["score"] <= judged["high"]
    lost = Home()
    lost.way.data.neg_()
    assert task.score(task.load(lost), "test")["score"] == pytest.approx(-8)


def test_parts_are_of_episodes_that_no_other_part_has() -> None:
    one, other = line(seed=0), line(seed=1)
    seeds = [{*one.seeds(part, 5000)} for part in ("train", "validation", "test", "driven")]
    assert len(set.union(*seeds)) == 20_000
    assert {*one.seeds("train", 5000)}.isdisjoint(other.seeds("train", 5000))
    assert one.seeds("test", 9) == other.seeds("test", 9)


@pytest.mark.parametrize("name", [LINE, "attar/Remembers-v0"])
def test_what_happens_in_an_episode_hangs_on_its_seed_and_not_on_its_neighbours(name: str) -> None:
    world = opened(name, None, View())

    def right(shown: Any) -> Any:
        return np.ones(len(shown), int)

    together = play(world, right, range(40), explore=0.5, keep=True)
    alone = [play(world, right, [seed], explore=0.5, keep=True)[0] for seed in range(40)]
    assert [each.rewards for each in together] == [each.rewards for each in alone]
    assert [each.seed for each in together] == list(range(40))
    assert len({tuple(each.rewards) for each in together}) > 10


def test_the_states_to_learn_from_are_gathered_by_the_teacher_and_some_chance() -> None:
    task = line(exploration=0.0, states=100)
    met = task.met(task.load(Home()))
    again = task.met(task.load(Home()))
    assert met.size("train") == 100
    assert met.digest() == again.digest() != task.digest()
    places = met._states[list(met.rows["train"])].abs()
    assert places.max() <= 5  # who goes home is never further out than where it began
    wild = line(exploration=1.0, states=400)
    roamed = wild.met(wild.load(Home()))
    assert roamed._states[list(roamed.rows["train"])].abs().max() > 5
    assert roamed.digest() != met.digest()


def test_the_interval_is_that_of_the_mean() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    low, high = interval(values)
    error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.05)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.05)
    assert interval(np.full(5, 7.0)) == (7.0, 7.0)


def test_a_return_is_the_sum_of_all_rewards() -> None:
    assert Episode(0, rewards=[1.0, -2.5, 4.0]).total == 2.5


# What is seen and done


def test_choices_that_begin_elsewhere_are_told_by_their_own_numbers() -> None:
    task = line("attar/Later-v0")
    assert task.classes == ("action 3", "action 4")
    assert task.score(task.load(Home()), "test")["score"] == pytest.approx(best(task))


def test_actions_that_are_numbers_are_means_within_bounds() -> None:
    task = line("attar/Numbers-v0")
    assert task.classes == ("action 0", "log deviation of action 0")
    home = task.load(Home(spread=True))
    met = task.met(home)
    judged = met.score(home, "test")
    # With steps as long as need be, the middle is reached, and kept.
    away = [
        abs(float(np.random.default_rng(s).integers(-5, 6)) or 1.0) for s in task.seeds("test", 20)
    ]
    assert judged["score"] == pytest.approx(np.mean(away))
    assert judged["agreement"] == 1.0
    half = Home(spread=True)
    half.way.data.mul_(0.0)
    assert met.score(half, "test")["agreement"] < 0.9
    with pytest.raises(RecipeError, match="numbers, which are no labels"):
        met.loss(None, None)


def test_dicts_are_laid_out_flat_in_the_order_of_their_names() -> None:
    task = line("attar/Dict-v0")
    assert task.shape == (4,)
    shown = task._states
    assert torch.equal(shown[:, 1:].sum(1), torch.ones(len(shown)))  # a place among three
    assert torch.equal(shown[:, 1:].argmax(1), 1 + shown[:, 0].sign().long())


def test_pictures_are_the_last_frames_with_their_channels_first() -> None:
    assert line("attar/Pixels-v0", frames=3, side=20).shape == (9, 20, 20)
    task = line("attar/Pixels-v0", frames=3, grey=True)
    assert task.shape == (3, 40, 40)
    world = task.world
    (episode,) = play(world, lambda shown: np.ones(len(shown), int), [4], keep=True)
    first, second = episode.states[:2]
    assert first.dtype == np.uint8
    assert not first[:2].any()  # before the first frame there was none
    assert np.array_equal(first[2], second[1])
    assert first[2].max() == 85  # a third of 255, in grey
    assert line("attar/Bits-v0").shape == (4, 10, 10)


# Whose weights are read


def saved(algorithm: str, name: str, tmp_path: Path, **options: Any) -> tuple[Any, Path]:
    pixels = options.pop("policy", "MlpPolicy")
    world = gymnasium.make(name)
    learner = vars(sb3)[algorithm](pixels, world, seed=0, device="cpu", **copy.deepcopy(options))
    learner.save(tmp_path / "agent")
    return learner, tmp_path / "agent.zip"


SMALL = {"policy_kwargs": {"net_arch": [8, 6], "activation_fn": nn.ELU}}


@pytest.mark.parametrize(
    ("algorithm", "name", "options"),
    [
        ("DQN", LINE, {"buffer_size": 10}),
        ("PPO", LINE, SMALL),
        ("A2C", "attar/Numbers-v0", {}),
        ("SAC", "Pendulum-v1", {"buffer_size": 10, **SMALL}),
        ("TD3", "Pendulum-v1", {"buffer_size": 10, **SMALL}),
    ],
)
def test_an_agents_zip_does_what_the_agent_does(
    algorithm: str, name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    learner, path = saved(algorithm, name, tmp_path, **options)
    task = line(name)
    agent = task.load(str(path))
    shown = task._states[:50]
    own, _ = learner.predict(shown.numpy(), deterministic=True)
    mine = task.actor(agent)(shown.numpy())
    if not task.world.choices:
        mine = np.clip(mine, task.world.low, task.world.high)
        assert np.abs(own).max() > 0
    np.testing.assert_allclose(mine, own, atol=1e-5)


def test_an_agents_answers_are_its_own_distribution(tmp_path: Path) -> None:
    learner, path = saved("PPO", "attar/Numbers-v0", tmp_path)
    task = line("attar/Numbers-v0")
    shown = task._states[:20]
    own = learner.policy.get_distribution(shown).distribution
    with torch.no_grad():
        mean, log = task.load(str(path))(observation=shown).chunk(2, 1)
    torch.testing.assert_close(mean, own.mean.detach())
    torch.testing.assert_close(log.exp(), own.stddev.detach())


def test_a_squashed_gaussian_has_the_deviation_of_the_line_that_touches_it(tmp_path: Path) -> None:
    learner, path = saved("SAC", "Pendulum-v1", tmp_path, buffer_size=10)
    task = line("Pendulum-v1")
    shown = task._states[:20]
    with torch.no_grad():
        mean, log_std, _ = learner.actor.get_action_dist_params(shown)
        got_mean, got_log = task.load(str(path))(observation=shown).chunk(2, 1)
        small = 1e-3
        slope = 2 * (torch.tanh(mean + small) - torch.tanh(mean - small)) / (2 * small)
    torch.testing.assert_close(got_mean, 2 * torch.tanh(mean))
    torch.testing.assert_close(got_log.exp(), log_std.exp() * slope, rtol=1e-3, atol=1e-4)


def test_an_agent_of_pixels_is_read_with_its_convolutions(tmp_path: Path) -> None:
    learner, path = saved("DQN", "attar/Pixels-v0", tmp_path, policy="CnnPolicy", buffer_size=10)
    task = line("attar/Pixels-v0")
    agent = task.load(str(path))
    shown = task._states[:8]
    with torch.no_grad():
        own = learner.q_net(shown)
        torch.testing.assert_close(agent(observation=shown.float()), own)


def test_the_same_weights_are_read_from_safetensors(tmp_path: Path) -> None:
    learner, path = saved("DQN", LINE, tmp_path, buffer_size=10)
    kept = {k: v for k, v in learner.policy.state_dict().items() if "target" not in k}
    save_file(kept, tmp_path / "agent.safetensors")
    task = line()
    shown = task._states
    both = [task.load(str(each)) for each in (path, tmp_path / "agent.safetensors")]
    with torch.no_grad():
        torch.testing.assert_close(*(each(observation=shown) for each in both))


def test_nothing_in_an_agents_zip_is_executed(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "exploded",))

    learner, path = saved("DQN", LINE, tmp_path, buffer_size=10)
    with zipfile.ZipFile(path) as inside:
        parts = {name: inside.read(name) for name in inside.namelist()}
    data = json.loads(parts["data"])
    data["policy_class"][":serialized:"] = "gASVBAAAAAAAAAA="
    parts["data"] = json.dumps(data).encode()
    armed = tmp_path / "armed.zip"
    with zipfile.ZipFile(armed, "w") as inside:
        for name, content in parts.items():
            inside.writestr(name, content)
    assert line().load(str(armed)) is not None
    parts["policy.pth"] = pickle.dumps(Bomb())
    with zipfile.ZipFile(armed, "w") as inside:
        for name, content in parts.items():
            inside.writestr(name, content)
    with pytest.raises(ModelError, match="is no agent of stable-baselines3"):
        line().load(str(armed))
    assert not (tmp_path / "exploded").exists()
    del learner


def test_a_students_file_and_folder_act_as_it_does(tmp_path: Path) -> None:
    task = line("attar/Pixels-v0", frames=2, grey=True, side=20)
    student = students.convnet(task.classes, **task.offers, channels=[4], stride=4, width=8)
    shown = task._states[:16]
    file = export.onnx(student.eval(), task.example, tmp_path / "student")
    acts = task.actor(task.load(student))(shown.numpy())
    assert np.array_equal(task.actor(task.load(str(file)))(shown.numpy()), acts)
    again = students.load(students.save(student, tmp_path / "folder"))
    assert torch.equal(again(observation=shown.float()), student(observation=shown.float()))


def test_a_student_brings_what_it_sees_to_a_scale_of_its_own() -> None:
    seen = torch.randn(500, 3) * torch.tensor([1.0, 50.0, 0.0]) + torch.tensor([5.0, 0.0, 2.0])
    student: Any = students.mlp(["a", "b"], seen, widths=[4])
    shown = (seen - student.centre) / student.scale
    torch.testing.assert_close(shown[:, :2].mean(0), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(shown[:, :2].std(0), torch.ones(2), atol=1e-4, rtol=0)
    assert shown[:, 2].abs().max() < 1e-3  # what never changes stays finite
    linear: Any = students.mlp(["a", "b"], seen, widths=[])
    assert sum(each.numel() for each in linear.parameters()) == 8


# What goes wrong, in a sentence


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"environment": "CartPol-v1"}, DataError, "There is no environment 'CartPol-v1'"),
        (
            {"environment": "attar/Many-v0"},
            DataError,
            "MultiDiscrete; attar knows Discrete and Box",
        ),
        ({"environment": "mine:Own-v0"}, RecipeError, "add --trust"),
        ({"frames": 4}, RecipeError, "are for pictures, and attar/Line-v0 shows none"),
        ({"settings": {"lenth": 3}}, DataError, "unexpected keyword argument 'lenth'"),
        (
            {"environment": "attar/Crashes-v0"},
            DataError,
            "failed with RuntimeError: the rope tore in step 3 of the episode of seed",
        ),
        ({"environment": "attar/Unpaid-v0"}, DataError, "gave the reward nan in step 2"),
        ({"environment": "attar/Blind-v0"}, DataError, "showed nan in step"),
    ],
)
def test_what_is_wrong_with_an_environment_is_said_in_a_sentence(
    options: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        line(**options)


@pytest.mark.parametrize(
    ("made_for", "acts_in", "sentence"),
    [
        ("CartPole-v1", LINE, "observations of 4 numbers, and attar/Line-v0 shows 1"),
        ("attar/Numbers-v0", LINE, "action is 1 numbers, and attar/Line-v0 takes one of 2"),
        (LINE, "attar/Numbers-v0", "action is one of 2 choices, and attar/Numbers-v0 takes 1"),
    ],
)
def test_an_agent_for_another_environment_is_refused(
    made_for: str, acts_in: str, sentence: str, tmp_path: Path
) -> None:
    _, path = saved("PPO", made_for, tmp_path)
    with pytest.raises(ModelError, match=sentence):
        line(acts_in).load(str(path))


class Wide(nn.Module):
    def forward(self, observation: Tensor) -> Tensor:
        return observation.repeat(1, 3)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"no zip", "is no agent of stable-baselines3"),
        (None, "There is no file"),
    ],
)
def test_a_zip_that_is_no_agent_is_refused(
    content: bytes | None, sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "agent.zip"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=sentence):
        line().load(str(path))


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="holds no agent of stable-baselines3 that attar knows"):
        line().load(str(tmp_path / "other.safetensors"))


def test_a_network_with_other_answers_or_another_call_is_refused() -> None:
    with pytest.raises(ModelError, match="this task has 2 classes"):
        line().load(Wide())
    with pytest.raises(ModelError, match=r"can't be called as `model\(observation=...\)`"):
        line().load(nn.Bilinear(1, 1, 1))
    with pytest.raises(ModelError, match="is no agent"):
        line().load("somebody/agent")


def test_an_algorithm_for_other_actions_is_refused() -> None:
    with pytest.raises(RecipeError, match="sac can't learn attar/Line-v0, where an action is a ch"):
        line().beginner(algorithm="sac", widths=(4,))
    with pytest.raises(RecipeError, match="dqn can't learn attar/Numbers-v0"):
        line("attar/Numbers-v0").beginner(algorithm="dqn", widths=(4,))
    with pytest.raises(RecipeError, match=r"ppo can't be set so: .*n_step"):
        line().reinforced(None, 10, algorithm="ppo", widths=(4,), settings={"n_step": 5})
