"""Environments of Gymnasium: opened by name, their observations as numbers, their actions."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from attar.errors import DataError, MissingExtra, RecipeError
from attar.tasks.tables import reason

Numbers = np.ndarray[Any, Any]

LIBRARIES = {"ALE": ("ale_py", "atari"), "MinAtar": ("minatar", "minatar")}
"""What an environment of a name with such a first word comes from, and attar's extra for it."""

ENDLESS = 27_000
"""Steps after which an episode ends where its environment sets no limit: half an hour of Atari."""


@dataclass(frozen=True)
class View:
    """How pictures are seen: the last so many of them, in grey, scaled to a side."""

    frames: int = 1
    grey: bool = False
    side: int | None = None


@dataclass(frozen=True)
class World:
    """An environment by its name, and how it is seen.

    settings: what `gymnasium.make` is given beside the name
    view: of pictures
    shape: of an observation as a model sees it; picture: whether that is (channels, height, width)
    highest: what a pixel can be
    choices: the number of actions to choose from; 0 where actions are numbers
    low, high: the least and the greatest of each number of an action
    drawable: whether it draws itself
    """

    name: str
    settings: Mapping[str, Any]
    view: View
    shape: tuple[int, ...]
    picture: bool
    highest: int
    choices: int
    first: int
    low: Numbers
    high: Numbers
    limit: int
    drawable: bool

    def open(self, *, drawn: bool = False) -> Any:
        """A copy of the environment, to be played.

        drawn: also to be drawn, where what a model sees is no picture already
        Raises DataError where it can't be drawn.
        """
        if not drawn or self.picture:
            return _made(self.name, self.settings)
        if not self.drawable:
            raise DataError(f"{self.name} can't be drawn: it has no rgb_array.")
        return _made(self.name, {**self.settings, "render_mode": "rgb_array"})

    def facts(self) -> dict[str, Any]:
        """What decides, whoever acts, what is seen and what may be done."""
        known: dict[str, Any] = {"environment": self.name, "observation": list(self.shape)}
        known |= {"settings": dict(self.settings)} if self.settings else {}
        return known | ({"view": vars(self.view)} if self.picture else {})

    def action(self, answer: Numbers) -> Any:
        """What the environment is told: a choice's number, or numbers within their bounds."""
        if self.choices:
            return int(answer) + self.first
        within: Numbers = np.clip(answer.reshape(self.low.shape), self.low, self.high)
        told: Numbers = within.astype(np.float32)
        return told

    def any_action(self, random: np.random.Generator) -> Numbers:
        """An action drawn at random; without bounds around zero."""
        if self.choices:
            return np.asarray(random.integers(self.choices))
        if np.isfinite([self.low, self.high]).all():
            return np.asarray(random.uniform(self.low, self.high))
        return np.asarray(np.clip(random.standard_normal(self.low.shape), self.low, self.high))

    def seen(self, observation: Any, space: Any) -> Numbers:
        """An observation as numbers: a vector, or one picture (channels, height, width).

        space: the environment's own, by which what is neither is laid out flat
        """
        if self.picture:
            return _picture(np.asarray(observation), self.view)
        if _plain(space):
            return np.asarray(observation, np.float32).reshape(-1)
        from gymnasium.spaces.utils import flatten

        return np.asarray(flatten(space, observation), np.float32)


def opened(
    name: str, settings: Mapping[str, Any] | None, view: View, *, trust: bool = False
) -> World:
    """The environment of a name, looked at once.

    Raises MissingExtra or DataError where it can't be had, RecipeError where its name is one of
    the user's own code and that is not trusted, or where a view is asked for and there are no
    pictures.
    """
    if ":" in name and not trust:
        raise RecipeError(
            f"{name!r} runs code of your own: add --trust, but only if you trust that module"
        )
    here = _made(name, settings or {})
    space, does = here.observation_space, here.action_space
    picture = _is_picture(space)
    if view != View() and not picture:
        raise RecipeError(
            f"frames, grey and side are for pictures, and {name} shows none; leave them out."
        )
    choices, first, low, high = _actions(name, does)
    limit = here.spec.max_episode_steps if here.spec is not None else None
    world = World(
        name,
        dict(settings or {}),
        view,
        (),
        picture,
        1 if space.dtype == np.bool_ else 255,
        choices,
        first,
        low,
        high,
        limit or ENDLESS,
        "rgb_array" in here.metadata.get("render_modes", ()),
    )
    one = world.seen(space.sample(), space)
    here.close()
    shape = (view.frames * one.shape[0], *one.shape[1:])
    return World(**{**vars(world), "shape": shape})


def _made(name: str, settings: Mapping[str, Any]) -> Any:
    """What `gymnasium.make` gives, its warnings unsaid.

    A list among the settings becomes a tuple, which environments take and YAML can't write.
    """
    try:
        import gymnasium
    except ImportError as error:
        raise MissingExtra("gymnasium", "control", name) from error
    _register(name.partition("/")[0], gymnasium)
    known: dict[str, Any] = {
        key: tuple(x) if isinstance(x, list) else x for key, x in settings.items()
    }
    gymnasium.logger.min_level, before = gymnasium.logger.ERROR, gymnasium.logger.min_level
    try:
        with warnings.catch_warnings():
            # Modules made by SWIG, as Box2D is, end the process where a warning is an error.
            warnings.simplefilter("ignore")
            return gymnasium.make(name, **known, disable_env_checker=True)
    except gymnasium.error.DependencyNotInstalled as error:
        raise MissingExtra(*_lacking(str(error)), name) from error
    except Exception as error:  # an environment may raise anything
        said = reason(error).rstrip(".?")
        raise DataError(f"There is no environment {name!r}: {said}.") from error
    finally:
        gymnasium.logger.min_level = before


def _register(family: str, gymnasium: Any) -> None:
    """Make the names of a family of environments known, where it has a package of its own."""
    if family not in LIBRARIES:
        return
    library, extra = LIBRARIES[family]
    try:
        if family == "ALE":
            import ale_py

            ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
            gymnasium.register_envs(ale_py)
        elif "MinAtar/Breakout-v1" not in gymnasium.registry:
            with _unlogged():
                from minatar.gym import register_envs

            register_envs()
    except ImportError as error:
        raise MissingExtra(library, extra, f"An environment of {family}") from error


@contextmanager
def _unlogged() -> Iterator[None]:
    """Without what MinAtar logs of libraries that only its windows need, and how."""
    handlers = list(logging.root.handlers)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        logging.root.handlers[:] = handlers


def _lacking(said: str) -> tuple[str, str]:
    """The library that an environment lacks, and attar's extra with it."""
    return ("Box2D", "box2d") if "box2d" in said.lower() else ("a library", "control")


def _actions(name: str, space: Any) -> tuple[int, int, Numbers, Numbers]:
    """How many choices there are and the first one's number; or numbers and their bounds."""
    kind = type(space).__name__
    if kind == "Discrete":
        return int(space.n), int(space.start), np.zeros(0), np.zeros(0)
    if kind == "Box":
        return 0, 0, np.asarray(space.low, float), np.asarray(space.high, float)
    raise DataError(f"{name} takes actions of the kind {kind}; attar knows Discrete and Box.")


def _plain(space: Any) -> bool:
    return type(space).__name__ == "Box"


def _is_picture(space: Any) -> bool:
    """Whether what is seen are pixels: three or two dimensions of bytes or of yes and no."""
    return (
        _plain(space)
        and len(space.shape) in (2, 3)
        and min(sorted(space.shape)[-2:]) > 3
        and space.dtype in (np.uint8, np.bool_)
    )


def _picture(pixels: Numbers, view: View) -> Numbers:
    """(channels, height, width) uint8, channels first, as the view says."""
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.shape[0] > pixels.shape[-1]:
        pixels = np.moveaxis(pixels, -1, 0)
    if view.grey:
        pixels = np.rint(pixels.mean(0, keepdims=True))
    if view.side is not None and pixels.shape[1:] != (view.side, view.side):
        shown = torch.from_numpy(pixels.astype(np.float32))[None]
        scaled = F.interpolate(shown, (view.side,) * 2, mode="bilinear", antialias=True)
        pixels = scaled.round().clamp(0, 255)[0].numpy()
    return np.ascontiguousarray(pixels.astype(np.uint8))
