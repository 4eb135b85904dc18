"""From a name in a recipe to a function, and from a function's signature to what it may be given.

The star rule is all there is: in every function a recipe can name, what stands before the star is
asked for and given by attar, what stands after it are options and set by the recipe.

A *room* is written as a place: `attar.losses` (a module), `export=attar.export` (a module whose
names are said after a first word: `export.onnx`) or `distill=attar.distill:train` (one function
under a name of its own). Several places can be searched as one room.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import module_from_spec, spec_from_file_location
from inspect import Parameter
from pathlib import Path
from reprlib import repr as short
from types import ModuleType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from attar.errors import RecipeError, nearest

Function = Callable[..., Any]
Room = str | Sequence[str]

KINDS = (
    *("Logits", "Features", "Attentions", "Projections", "Maps", "Rows", "Stages"),
    *("Scores", "Reused"),
)
"""What a loss can compare; it says which by how it annotates its parameter `student`."""


@dataclass(frozen=True)
class Option:
    """One thing a recipe can set: a parameter after the star.

    annotation: the type as Python knows it; type: the same as a reader is told it
    default: `Parameter.empty` where the recipe must say it
    says: what the docstring's line `name: ...` tells, else nothing
    """

    name: str
    annotation: Any
    type: str
    default: Any
    says: str

    @property
    def required(self) -> bool:
        """Whether a recipe must set it."""
        return self.default is Parameter.empty


@dataclass(frozen=True)
class Description:
    """What there is to know of a function before it is used: a row of `attar list`."""

    name: str
    says: str
    options: tuple[Option, ...]
    asks: tuple[str, ...]


def names(room: Room) -> dict[str, Function]:
    """Every function and class a recipe can name in a room.

    Public is what `__all__` lists, functions, classes and files alike; without `__all__` it is
    what is written there: the files of a package, the functions of a file, and the classes whose
    name is lower case, as a function's is. What a package itself makes public has its plain name
    (`offline`), what a file in it makes public is *file.function* (`response.kl`), and nothing
    has two names. Private names and private files are never seen.
    Errors: `ImportError` if there is no such room.
    """
    found: dict[str, Function] = {}
    for place in _places(room):
        word, _, source = place.rpartition("=")
        module, _, function = source.partition(":")
        if function:
            found[word or function] = vars(importlib.import_module(module))[function]
        else:
            prefix = f"{word}." if word else ""
            found |= {prefix + name: value for name, value in _names_in(module).items()}
    return found


def _places(room: Room) -> Sequence[str]:
    return (room,) if isinstance(room, str) else room


def _names_in(room: str) -> dict[str, Function]:
    module = importlib.import_module(room)
    found = _public(module)
    own = dict(found)
    for file in (file.name for file in pkgutil.iter_modules(vars(module).get("__path__", ()))):
        # A listed name that is a function's is not the file's of the same name.
        listed = file in vars(module).get("__all__", [file]) and file not in own
        if listed and not file.startswith("_"):
            inside = _names_in(f"{room}.{file}").items()
            found |= {f"{file}.{name}": f for name, f in inside if f not in own.values()}
    return found


def _public(module: ModuleType) -> dict[str, Function]:
    def is_public(name: str, thing: Any) -> bool:
        if "__all__" in vars(module):
            return name in module.__all__
        return thing.__module__ == module.__name__ and (inspect.isfunction(thing) or name.islower())

    return {
        name: thing
        for name, thing in vars(module).items()
        if (inspect.isfunction(thing) or inspect.isclass(thing))
        and not name.startswith("_")
        and is_public(name, thing)
    }


def find(room: Room, name: str, *, trust: bool = False) -> Function:
    """The function a name in a recipe stands for.

    room: where to look; a name with a colon, `my_losses:huber` or `lib/mine.py:huber`, is looked
        up in the user's own file or module instead
    trust: whether the user's own code may be run
    Errors: `RecipeError` for a name that is not there, and for own code without `trust`.
    """
    source, colon, own = name.rpartition(":")
    if colon and not trust:
        raise RecipeError(
            f"{name!r} runs code of your own: add --trust, but only if you trust that file"
        )
    known = _public(_own_module(source)) if colon else names(room)
    word = own if colon else name
    if word not in known:
        places = (source,) if colon else _places(room)
        where = " or ".join(place.rpartition("=")[2] for place in places)
        raise RecipeError(f"{word!r} is not in {where}; {nearest(word, known)}")
    return known[word]


def _own_module(source: str) -> ModuleType:
    file = Path(source if source.endswith(".py") else f"{source}.py").resolve()
    try:
        return _run(file) if file.is_file() else importlib.import_module(source)
    except Exception as error:  # it is the user's code: anything can happen in it
        raise RecipeError(
            f"{source!r} can't be imported: {type(error).__name__}: {error}"
        ) from error


@cache
def _run(file: Path) -> ModuleType:
    # Under its path and not its stem: a file called `random.py` must not hide Python's own.
    spec = spec_from_file_location(str(file), file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def options(function: Function) -> dict[str, Option]:
    """What a recipe can set: the parameters after the star, in the order they are written.

    Only these annotations are evaluated, so the types before the star may be known to the type
    checker alone. Of a `partial` it is the whole function that is described, of a class its
    `__init__`.
    """
    function = _whole(function)
    wanted = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is Parameter.KEYWORD_ONLY
    }
    hints, says = _hints(function, wanted), _option_lines(function)
    return {
        name: Option(name, hints[name], _type_text(hints[name]), p.default, says.get(name, ""))
        for name, p in wanted.items()
    }


def chosen(function: partial[Any], option: str) -> Any:
    """The value an option has: as the recipe sets it, else its default; None if there is none."""
    known = options(function)
    default = known[option].default if option in known else Parameter.empty
    return function.keywords.get(option, None if default is Parameter.empty else default)


def asks(function: Function) -> dict[str, Parameter]:
    """What a function is given by attar: the parameters before the star that are not bound yet."""
    if isinstance(function, partial):
        inner = asks(function.func)
        left = list(inner)[len(function.args) :]
        return {name: inner[name] for name in left if name not in function.keywords}
    return {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is Parameter.POSITIONAL_OR_KEYWORD
    }


def describe(function: Function, name: str | None = None) -> Description:
    """What there is to know of a function before it is used.

    name: what a recipe calls it, where that is more than the function's own name
    """
    says = (inspect.getdoc(_whole(function)) or "").partition("\n")[0]
    told = tuple(options(function).values())
    return Description(name or name_of(function), says, told, tuple(asks(function)))


def compares(function: Function) -> str:
    """Which part of the knowledge a loss compares: one of `KINDS`, `Logits` unless it says so.

    It is read off the annotation of the parameter `student` as it is written, never evaluated; of
    a class, and of an object that is called, off the first of its `__init__`, `forward` and
    `__call__` that says so.
    """
    function = _whole(function)
    codes: list[Any] = [function]
    if not inspect.isroutine(function):
        owner = function if inspect.isclass(function) else type(function)
        known = dict(inspect.getmembers(owner, inspect.isfunction))
        codes = [known[name] for name in ("__init__", "forward", "__call__") if name in known]
    said = (_kind(inspect.get_annotations(code).get("student", "")) for code in codes)
    return next((kind for kind in said if kind in KINDS), "Logits")


def rowwise(function: Function) -> bool:
    """Whether a loss says of itself that it is a mean over rows, each seen by itself."""
    whole = _whole(function)
    return inspect.isfunction(whole) and "rowwise" in vars(whole)


def foreign(function: Function) -> bool:
    """Whether a loss takes a teacher with classes of its own: its annotation says `Foreign`."""
    return "Foreign" in str(inspect.get_annotations(_whole(function)).get("teacher", ""))


def _kind(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return text.rpartition(".")[2]


def name_of(function: Function) -> str:
    """What to call a function when speaking of it."""
    function = _whole(function)
    named = inspect.isroutine(function) or inspect.isclass(function)
    return str(function.__name__ if named else type(function).__name__)


def _whole(function: Function) -> Function:
    while isinstance(function, partial):
        function = function.func
    return function


def _hints(function: Function, wanted: Mapping[str, Parameter]) -> dict[str, Any]:
    if not wanted:
        return {}
    code: Any = inspect.unwrap(function.__init__ if inspect.isclass(function) else function)
    raw = {
        name: Any if parameter.annotation is Parameter.empty else parameter.annotation
        for name, parameter in wanted.items()
    }
    return get_type_hints(
        type("Options", (), {"__annotations__": raw}), code.__globals__, include_extras=True
    )


def _type_text(hint: Any) -> str:
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _type_text(inside[0])
    if origin is Literal:
        return " or ".join(map(repr, inside))
    if origin in (Union, UnionType):
        return " or ".join(map(_type_text, inside))
    if hint is type(None):
        return "None"
    return re.sub(r"\b[\w.]+\.(?=\w)", "", inspect.formatannotation(hint))


def _option_lines(function: Function) -> dict[str, str]:
    # A line `name: what it is` of the docstring, and the lines indented deeper below it.
    found: dict[str, str] = {}
    name = ""
    for line in (inspect.getdoc(function) or "").splitlines()[1:]:
        if start := re.match(r"(\w+): (.+)", line):
            name = start[1]
            found[name] = start[2]
        elif name and line.startswith(" "):
            found[name] += " " + line.strip()
        else:
            name = ""
    return found


@cache
def schema(function: Function) -> type[BaseModel]:
    """The options of a function as a pydantic model: nothing unknown, nothing of another type.

    An integer is taken for a float and a list for a tuple, as JSON writes them; nothing else is.
    """
    # A trailing underscore keeps options such as `copy` apart from pydantic's own attributes.
    fields: dict[str, Any] = {
        f"{option.name}_": (
            option.annotation,
            Field(
                ... if option.required else option.default,
                alias=option.name,
                description=option.says or None,
            ),
        )
        for option in options(function).values()
    }
    rules = ConfigDict(extra="forbid", strict=True, protected_namespaces=())
    return create_model(name_of(function), __config__=rules, **fields)


def faults(
    function: Function,
    given: Mapping[str, Any],
    name: str | None = None,
    also: Sequence[str] = (),
) -> Iterator[tuple[str, str]]:
    """What is wrong with the options given to a function: which one, and a sentence about it.

    name: what a recipe calls the function, where that is not its own name
    also: words that may stand beside its options, to be offered after a misspelling
    """
    try:
        _validated(function, given)
    except ValidationError as refused:
        # A misspelt option is missing too: say first that it is misspelt. A type with several
        # members is refused by each of them: say it once.
        found = sorted(refused.errors(), key=lambda error: error["type"] != "extra_forbidden")
        once = {str(error["loc"][0]): error for error in reversed(found)}
        for option, error in reversed(once.items()):
            called = name or name_of(function)
            if option not in options(function):
                offered = nearest(option, [*options(function), *also])
                yield option, f"{called} has no option {option!r}; {offered}"
            else:
                yield option, _fault(function, called, option, given, error)


def _fault(function: Function, name: str, option: str, given: Mapping[str, Any], error: Any) -> str:
    known = options(function)
    if option not in given:
        return f"{name} needs the option {option!r} ({known[option].type})"
    word, got = error["input"], short(given[option])
    # Of a type with several members one alone is named here, and the words are not all there are.
    alone = all(isinstance(place, int) for place in error["loc"][1:])
    if error["type"] == "literal_error" and isinstance(word, str) and alone:
        words = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        return f"option {option!r} of {name} has no {word!r}; {nearest(word, words)}"
    limit = f" ({error['msg']})" if "than" in error["type"] else ""
    return f"option {option!r} of {name} must be {known[option].type}, not {got}{limit}"


def _validated(function: Function, given: Mapping[str, Any]) -> BaseModel:
    # Through JSON because that is what a recipe is: there a list can be meant for a tuple.
    return schema(function).model_validate_json(json.dumps(dict(given), default=os.fspath))


def bind(function: Function, given: Mapping[str, Any]) -> partial[Any]:
    """The function with the recipe's options set; it still asks for what stands before its star.

    Errors: `RecipeError` for an unknown option, a missing one, or one of the wrong type.
    """
    for _, sentence in faults(function, given):
        raise RecipeError(sentence)
    checked = _validated(function, given)
    return partial(function, **{option: vars(checked)[f"{option}_"] for option in given})


def ask(function: Function, available: Mapping[str, Any]) -> Any:
    """What a function answers, given just those of the available things it asks for by name.

    Errors: `RecipeError` if it asks for something that is not available and has no default.
    """
    wanted = asks(function)
    for name, parameter in wanted.items():
        if name not in available and parameter.default is Parameter.empty:
            there = ", ".join(available) or "nothing"
            raise RecipeError(f"{name_of(function)} asks for {name!r}; here there is {there}")
    return function(**{name: available[name] for name in wanted if name in available})
