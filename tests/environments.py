"""Small environments for tests: pictures, dicts, numbers, and some that go wrong."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Line(gymnasium.Env[Any, Any]):
    """A point on a line; choice 1 moves it right, 0 left; it is paid where it nears the middle.

    The best return of an episode from place p is |p| steps' pay and then staying around 0.
    """

    observation_space: Any = spaces.Box(-10, 10, (1,), np.float32)
    action_space: Any = spaces.Discrete(2)

    def __init__(self, length: int = 8) -> None:
        self.length = length

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:  # noqa: ARG002
        super().reset(seed=seed)
        self.place = float(self.np_random.integers(-5, 6)) or 1.0
        self.steps = 0
        return self.shown(), {}

    def step(self, action: Any) -> Any:
        before = abs(self.place)
        self.place += self.moved(action)
        self.steps += 1
        reward = float(before - abs(self.place))
        return self.shown(), reward, False, self.steps >= self.length, {}

    def moved(self, action: Any) -> float:
        assert self.action_space.contains(np.int64(action))
        return 2.0 * int(action) - 1.0

    def shown(self) -> Any:
        return np.array([self.place], np.float32)


class Numbers(Line):
    """The same; its action is the step itself, from -1 to 1."""

    action_space: Any = spaces.Box(-1, 1, (1,), np.float32)

    def moved(self, action: Any) -> float:
        assert action.shape == (1,)
        assert action.dtype == np.float32
        assert -1 <= float(action[0]) <= 1
        return float(action[0])


class Later(Line):
    """The same; its choices are called 3 and 4."""

    action_space: Any = spaces.Discrete(2, start=3)

    def moved(self, action: Any) -> float:
        assert self.action_space.contains(np.int64(action))
        return 2.0 * (int(action) - 3) - 1.0


class Dict(Line):
    """The same, seen as a dict of a number and a place among three."""

    observation_space: Any = spaces.Dict(
        {"place": spaces.Box(-10, 10, (1,), np.float32), "side": spaces.Discrete(3)}
    )

    def shown(self) -> Any:
        side = 1 + int(np.sign(self.place))
        return {"side": side, "place": np.array([self.place], np.float32)}


class Pixels(Line):
    """The same, seen as a colour picture of 40 x 40 in which a column is lit."""

    observation_space: Any = spaces.Box(0, 255, (40, 40, 3), np.uint8)

    def shown(self) -> Any:
        picture = np.zeros((40, 40, 3), np.uint8)
        at = int(20 + 2 * np.clip(self.place, -9, 9))
        picture[:, at : at + 2, 0] = 255
        return picture


class Bits(Line):
    """The same, seen as a small picture of yes and no, as MinAtar shows itself."""

    observation_space: Any = spaces.Box(0, 1, (10, 10, 4), np.bool_)

    def shown(self) -> Any:
        picture = np.zeros((10, 10, 4), np.bool_)
        picture[5, int(np.clip(self.place + 5, 0, 9)), 0] = True
        return picture


class Drawn(Line):
    """The same; it can draw itself, its place lit in a picture of 30 x 400, and each step redder.

    At 9 it ends.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  (as gymnasium has it)

    def __init__(self, length: int = 8, render_mode: str | None = None) -> None:
        super().__init__(length)
        self.render_mode = render_mode

    def step(self, action: Any) -> Any:
        shown, reward, _, cut, more = super().step(action)
        return shown, reward, self.place >= 9, cut, more

    def render(self) -> Any:
        assert self.render_mode == "rgb_array"
        picture = np.zeros((30, 400, 3), np.uint8)
        picture[:, int(200 + 20 * self.place) :, 1] = 200
        picture[..., 0] = self.steps
        return picture


class Undrawn(Drawn):
    """It says that it can draw itself, and can't."""

    def render(self) -> Any:
        raise RuntimeError("no brush\nand more")


class Remembers(Line):
    """The same; its first step goes where the last one of the episode before went."""

    last = 0

    def moved(self, action: Any) -> float:
        action, self.last = (self.last if self.steps == 0 else action), action
        return super().moved(action)


class Crashes(Line):
    """It falls over in its third step."""

    def step(self, action: Any) -> Any:
        if self.steps == 2:
            raise RuntimeError("the rope tore")
        return super().step(action)


class Unpaid(Line):
    """Its second reward is no number."""

    def step(self, action: Any) -> Any:
        shown, reward, ended, cut, more = super().step(action)
        return shown, (float("nan") if self.steps == 2 else reward), ended, cut, more


class Blind(Line):
    """What it shows in its second step is no number."""

    def shown(self) -> Any:
        return np.array([np.nan if self.steps == 2 else self.place], np.float32)


class Many(Line):
    """Its action is two choices at a time."""

    action_space: Any = spaces.MultiDiscrete([2, 2])


kinds: tuple[Any, ...] = (Line, Numbers, Later, Dict, Pixels, Bits, Drawn, Undrawn)
kinds += (Remembers, Crashes, Unpaid, Blind, Many)
for kind in kinds:
    gymnasium.register(f"attar/{kind.__name__}-v0", entry_point=kind)
