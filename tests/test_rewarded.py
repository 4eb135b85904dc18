"""A student with a reward of its own: what its steps were worth, and what it learns of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import environments as _environments  # noqa: F401  (registers them)
import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from test_control_task import LINE, Home, best, line
from torch import Tensor, nn

from attar import distill, students, tasks, teach
from attar.engine import local
from attar.errors import AttarError, RecipeError
from attar.losses import policy
from attar.pipeline import run
from attar.recipe import read
from attar.tasks.control import acting
from attar.tasks.control.stage import Stage, advantages
from attar.types import Batch


def engine(folder: Path | None = None) -> local:
    return local(folder, precision="fp32", device="cpu", checkpoint=0.0)


# What a step was worth


@pytest.mark.parametrize(("discount", "trace"), [(0.99, 0.95), (0.9, 0.0), (1.0, 1.0)])
def test_advantages_are_those_of_stable_baselines3(discount: float, trace: float) -> None:
    steps, many, random = 24, 3, np.random.default_rng(0)
    rewards, over = random.normal(size=(steps, many)), random.random((steps, many)) < 0.2
    values = random.normal(size=(steps + 1, many))
    spaces = gymnasium.spaces.Box(-1, 1, (1,)), gymnasium.spaces.Discrete(2)
    theirs = RolloutBuffer(steps, *spaces, "cpu", trace, discount, many)
    theirs.rewards[:], theirs.values[:] = rewards, values[:-1]
    theirs.episode_starts[1:] = over[:-1]
    theirs.compute_returns_and_advantage(torch.tensor(values[-1]), over[-1])
    mine = advantages(rewards, values, over, discount, trace)
    np.testing.assert_allclose(mine, theirs.advantages, atol=1e-5)
    np.testing.assert_allclose(mine + values[:-1], theirs.returns, atol=1e-5)


def stage(name: str = LINE, seed: int = 0, **options: Any) -> tuple[Any, Stage]:
    task = line(name, seed=seed)
    torch.manual_seed(5)
    critic = students.mlp(["value"], task.offers["observations"], widths=[6])
    how = {"environments": 3, "discount": 0.5, "trace": 1.0, **options}
    return task, task.stage(critic, **how)


class Wavering(nn.Module):
    """Goes home more often than not."""

    def forward(self, observation: Tensor) -> Tensor:
        return torch.cat([observation, -observation], 1) / 3


def test_returns_are_the_discounted_rewards_of_what_was_done() -> None:
    task, here = stage()
    played = here.play(Wavering(), 16, engine()).played
    assert played is not None
    actions = played.actions.view(16, 3).numpy()
    wanted = np.zeros((16, 3))
    for n in range(3):
        for start, number in ((0, n), (8, 3 + n)):  # an episode has eight steps
            world = gymnasium.make(LINE)
            world.reset(seed=task.seeds("rewarded", 6)[number])
            paid = [world.step(int(actions[start + step, n]))[1] for step in range(8)]
            later = 0.0
            for step in reversed(range(8)):
                wanted[start + step, n] = later = float(paid[step]) + 0.5 * later
    # The critic knows nothing yet, so that nothing is to come where an episode is cut off.
    np.testing.assert_allclose(played.returns.view(16, 3), wanted, rtol=1e-6)
    gained = played.advantages.numpy()
    flat = wanted.reshape(-1)
    np.testing.assert_allclose(gained, (flat - flat.mean()) / flat.std(), rtol=1e-4, atol=1e-6)
    here.close()


def test_where_an_episode_is_cut_off_the_critic_tells_what_was_to_come() -> None:
    _, here = stage(environments=1)
    here.scale = 2.0

    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.three = nn.Parameter(torch.tensor([[3.0]]))

        def forward(self, observation: Tensor) -> Tensor:
            return self.three.expand(len(observation), 1)

    here.critic = Three()
    batch = here.play(Home(), 8, engine())
    assert batch.played is not None
    place = [float(each) for each in batch.inputs[:, 0]]
    away = abs(place[-1]) - abs(place[-1] + (2 * int(batch.played.actions[-1]) - 1))
    assert float(batch.played.returns[-1]) == pytest.approx(away + 0.5 * 3 * 2)
    here.close()


def test_the_critic_learns_what_came_of_the_states() -> None:
    _, here = stage(environments=8, trace=0.9)
    batch = here.play(Home(), 32, engine())
    assert batch.played is not None

    def error() -> float:
        told = torch.from_numpy(here._told(batch.inputs.numpy()))
        assert batch.played is not None
        return float((told - batch.played.returns).square().mean())

    before, here_engine = error(), engine()
    for _ in range(1200):
        here.learn_(batch, here_engine)
    assert error() < 0.5 * before
    here.close()


def test_choices_are_drawn_as_likely_as_the_answers_say() -> None:
    task: Any = line("CartPole-v1")
    said = torch.tensor([[0.3, -0.9]]).expand(20_000, 2)
    drawn = task.drawn(said, np.random.default_rng(0))
    assert drawn.mean() == pytest.approx(1 / (1 + np.exp(1.2)), abs=0.01)


def test_numbers_are_drawn_around_their_means_within_the_bounds_that_losses_know() -> None:
    task: Any = line("attar/Numbers-v0")
    said = torch.tensor([[0.7, -0.5]]).expand(20_000, 2)
    drawn = task.drawn(said, np.random.default_rng(0))
    assert drawn.shape == (20_000, 1)
    assert drawn.mean() == pytest.approx(0.7, abs=0.02)
    assert drawn.std() == pytest.approx(np.exp(-0.5), abs=0.02)
    sure = task.drawn(torch.tensor([[0.7, -50.0]]).expand(20_000, 2), np.random.default_rng(0))
    assert sure.std() == pytest.approx(np.exp(policy.SPREAD[0]), rel=0.03)
    assert policy.SPREAD == acting.SPREAD


@pytest.mark.parametrize("name", [LINE, "attar/Numbers-v0"])
def test_a_stage_goes_on_amid_its_episodes_after_a_crash(name: str) -> None:
    model = Home(spread=name != LINE)
    _, whole = stage(name)
    for _ in range(2):  # an episode has eight steps: it is amid its second
        whole.learn_(whole.play(model, 5, engine()), engine())
    state = whole.state_dict()
    _, again = stage(name)
    again.load_state_dict(dict(state))
    for _ in range(3):
        one, other = whole.play(model, 5, engine()), again.play(model, 5, engine())
        assert torch.equal(one.inputs, other.inputs)
        for mine, its in zip(*(vars(each.played).values() for each in (one, other)), strict=True):
            assert torch.equal(mine, its)
    assert whole.seeds == again.seeds
    for each in (whole, again):
        each.close()


# Who is taught


def test_every_step_is_learned_from_once_in_each_pass() -> None:
    task, here = stage(environments=4)
    met: list[Batch] = []
    original = here.play

    def play(*given: Any) -> Batch:
        met.append(original(*given))
        return met[-1]

    vars(here)["play"] = play
    batches = iter(task.batches("train", batch_size=16))
    options = {"environments": 4, "stretch": 8, "passes": 3}
    home = Home()
    lessons = teach.rewarded(
        batches, Wavering(), task.forward, engine(), lambda **_: here, 12, [home], **options
    )
    given = [next(lessons) for _ in range(12)]  # 32 rows in 3 passes are 6 lessons of 16
    assert next(lessons, None) is None
    assert len(met) == 2
    for number in (0, 1):
        part = given[6 * number : 6 * number + 6]
        shown = torch.cat([lesson.batch.inputs for lesson in part])
        assert torch.equal(shown.sort(0)[0], met[number].inputs.repeat(3, 1).sort(0)[0])
        for lesson in part:
            assert lesson.teacher is not None
            wanted = teach.ask(home, lesson.batch, task.forward)
            assert torch.equal(lesson.teacher.logits, wanted.logits)


def trained(folder: Path, stop: int | None) -> nn.Module:
    task: Any = line()
    torch.manual_seed(0)
    student = students.mlp(task.classes, task.offers["observations"], widths=[4])
    here = engine(folder)

    def opened(**how: Any) -> Stage:
        given = {name: how[name] for name in ("environments", "discount", "trace")}
        return stage(**given)[1]

    def watch(record: Any) -> None:
        if record["step"] == stop:
            raise InterruptedError

    lessons = teach.rewarded(
        here.feed(task.batches("train", batch_size=16)),
        student,
        task.forward,
        here,
        opened,
        30,
        [Home()],
        environments=4,
        stretch=6,
        passes=3,
    )
    losses = [distill.term(policy.ppo), distill.term(policy.proximal_kl)]
    return distill.train(student, lessons, losses, task.forward, here, watch=watch, steps=30)


@pytest.mark.parametrize("stop", [3, 17, 29])
def test_a_training_that_was_killed_ends_with_the_same_weights(stop: int, tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", None)
    with pytest.raises(InterruptedError):
        trained(tmp_path / "killed", stop)
    again = trained(tmp_path / "killed", None)
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


# Through a whole recipe


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    source = "from test_control_task import Home\n\n\ndef build():\n    return Home()\n"
    (tmp_path / "mine.py").write_text(source)
    acts = {"environments": 8, "stretch": 8, "passes": 4, "critic": {"mlp": {"widths": [8]}}}
    fading = {"linear": {"start": 1.0, "end": 0.0}}
    return {
        "task": {"control.policy": {"environment": LINE, "states": 320, "episodes": 20}},
        "teacher": {"load": {"model": "mine.py:build"}},
        "student": {"mlp": {"widths": [4]}},
        "teach": {"rewarded": acts},
        "losses": ["policy.ppo", {"policy.kl": {"temperature": 1, "weight": fading}}],
        "steps": [{"distill": {"steps": 120, "lr": 2e-2, "batch_size": 32}}],
        "measure": ["score"],
        "baselines": ["reward_only"],
    }


def test_kickstarting_stands_beside_reward_alone_at_as_many_steps_of_the_environment(
    said: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    move = Stage._step

    def counted(self: Stage, *given: Any) -> Any:
        taken[-1] += 1
        return move(self, *given)

    begin = Stage.__init__

    def begun(self: Stage, *given: Any, **how: Any) -> None:
        taken.append(0)
        begin(self, *given, **how)

    monkeypatch.setattr(Stage, "_step", counted)
    monkeypatch.setattr(Stage, "__init__", begun)
    report = run(read(said), tmp_path / "out", trust=True)
    assert taken == [64, 960, 960]  # a rehearsal; then 120 x 32 rows, each seen 4 times
    rows = {row.name: row for row in report.rows}
    assert rows["student"].score > 0.9 * rows["teacher"].score
    assert "reward_only" in rows
    assert any("by its reward alone" in sentence for sentence in report.verdict)


def test_a_student_learns_by_its_reward_without_any_teacher(
    said: dict[str, Any], tmp_path: Path
) -> None:
    longer = [{"distill": {"steps": 400, "lr": 2e-2, "batch_size": 32}}]
    change = {"losses": [{"policy.ppo": {"entropy": 0.01}}], "baselines": [], "steps": longer}
    alone = {key: value for key, value in (said | change).items() if key != "teacher"}
    report = run(read(alone), tmp_path / "out")
    assert report.row("student").score > 0.8 * best(line())


def test_numbers_are_kickstarted_too(said: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from test_control_task import Home\n\n\ndef build():\n    return Home(spread=True)\n"
    )
    task = {"control.policy": {"environment": "attar/Numbers-v0", "states": 320, "episodes": 20}}
    change = {"task": task, "losses": ["policy.ppo", "policy.proximal_kl"], "baselines": []}
    report = run(read(said | change), tmp_path / "out", trust=True)
    assert report.row("student").score > 0.8 * report.row("teacher").score


def test_several_agents_teach_one_student(said: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "wavering.py").write_text(
        "from test_rewarded import Wavering\n\n\ndef build():\n    return Wavering()\n"
    )
    change = {
        "teach": {"ensemble": {"others": ["wavering.py:build"], "weights": [3, 1]}},
        "losses": [{"policy.kl": {"temperature": 1}}],
        "baselines": [],
    }
    longer = {"steps": [{"distill": {"steps": 300, "lr": 2e-2}}]}
    report = run(read(said | change | longer), tmp_path / "out", trust=True)
    assert report.row("student").score == pytest.approx(report.row("teacher").score, abs=0.3)
    assert report.row("student").metrics["agreement"] > 0.95


# What goes wrong, in a sentence


@pytest.mark.parametrize("scheme", ["ensemble", "uncertain", "mutual"])
def test_gaussians_are_not_taken_for_probabilities(
    scheme: str, said: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        "from test_control_task import Home\n\n\ndef build():\n    return Home(spread=True)\n"
    )
    task = {"control.policy": {"environment": "attar/Numbers-v0", "states": 64}}
    change = {"task": task, "teach": scheme, "losses": ["policy.gaussian_kl"], "baselines": []}
    with pytest.raises(RecipeError, match=f"{scheme} works with the probabilities of classes"):
        run(read(said | change), tmp_path / "out", trust=True)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"teach": "online", "baselines": []}, "take `teach: rewarded`"),
        ({"teach": "online"}, "reward_only is for `teach: rewarded`"),
        ({"losses": [{"policy.kl": {"temperature": 1}}]}, "reward_only is for `teach: rewarded`"),
        ({"teach": {"rewarded": {"critic": "mlpp"}}}, "'mlpp' is not in"),
        ({"teach": {"rewarded": {"passes": 0}}}, "'passes' of rewarded must be int"),
        ({"teach": {"rewarded": {"discount": 1.0}}}, "'discount' of rewarded must be float"),
        ({"losses": [{"policy.ppo": {"clip": -1.0}}]}, "clip is -1.0, not above 0"),
    ],
)
def test_what_can_not_be_learned_by_reward_is_said_in_a_sentence(
    said: dict[str, Any], change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(AttarError, match=sentence):
        run(read(said | change), tmp_path / "out", trust=True)


def test_several_teachers_are_one_too_many() -> None:
    task, here = stage()
    batches = iter(task.batches("train", batch_size=16))
    lessons = teach.rewarded(
        batches, Home(), task.forward, engine(), lambda **_: here, 1, [Home(), Home()]
    )
    with pytest.raises(RecipeError, match="rewarded asks one teacher, not 2"):
        next(lessons)
    here.close()


@pytest.mark.parametrize("task", [tasks.control.value, tasks.control.representation])
def test_what_does_not_act_is_not_rewarded(task: Any) -> None:
    with pytest.raises(RecipeError, match=r"rewarded is for control\.policy"):
        task(environment=LINE, states=64).stage(None)
