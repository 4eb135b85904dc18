"""Names become functions, signatures become options: tried on a small house made of files."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Gt

from attar.errors import RecipeError
from attar.resolve import ask, asks, bind, compares, describe, faults, find, names, options, schema

FILES = {
    "__init__.py": "",
    "losses/__init__.py": "",
    "losses/response.py": """
        from __future__ import annotations
        from dataclasses import dataclass
        from math import sqrt
        from os.path import join
        from typing import TYPE_CHECKING
        if TYPE_CHECKING:
            from nowhere import Logits

        def kl(student: Logits, teacher: Logits, *, temperature: float = 1.0) -> float:
            return temperature

        class bank:
            def __init__(self, *, size: int = 8) -> None: ...

        class Memory: ...

        @dataclass
        class Row:
            width: int

        def _hidden(student, teacher): ...

        constant = 3
        """,
    "losses/feature.py": """
        __all__ = ["mse", "Angle"]
        def mse(student, teacher): ...
        def prepared(student): ...
        class Angle: ...
        """,
    "losses/_own.py": "raise AssertionError('private files are never opened')",
    "teach/__init__.py": """
        from house.teach.schemes import online, offline
        __all__ = ["online", "offline"]
        """,
    "teach/schemes.py": """
        def online(batches): ...
        def offline(batches): ...
        def forgotten(batches): ...
        """,
    "compress/__init__.py": """
        from house.compress.parts import layers
        __all__ = ["layers", "parts"]
        """,
    "compress/parts.py": """
        def layers(model): ...
        def widths(model): ...
        """,
    "compress/tools.py": "def cut(model): ...",
    "measure/__init__.py": """
        from house.measure.memory import memory
        __all__ = ["memory"]
        """,
    "measure/memory.py": """
        def memory(model): ...
        def finished(model): ...
        """,
    "tasks/__init__.py": "",
    "tasks/text/__init__.py": """
        from house.tasks.text.labelled import classification
        __all__ = ["classification"]
        """,
    "tasks/text/labelled.py": "class classification: ...",
}


@pytest.fixture(autouse=True)
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of rooms, importable while the test lasts, in the directory one stands in."""
    for name, text in FILES.items():
        file = tmp_path / "house" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.replace("\n        ", "\n"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for module in [name for name in sys.modules if name.partition(".")[0] == "house"]:
        del sys.modules[module]


def plain(student: Any, labels: Any = None, *, eps: float, mode: Literal["a", "b"] = "a") -> Any:
    """Says what it does.

    And more.

    eps: how far,
        and no farther
    mode: which of the two
    Raises nothing.
    """
    return student, labels, eps, mode


class Counter:
    """Counts."""

    def __init__(self, start: int, *, step: int = 1) -> None:
        self.at, self.step = start, step

    def __call__(self, student: Features, teacher: Features) -> int:  # noqa: ARG002, F821
        return self.at


def test_without_all_the_functions_written_in_each_file_are_named_by_file_and_function() -> None:
    found = names("house.losses")
    assert sorted(found) == ["feature.Angle", "feature.mse", "response.bank", "response.kl"]
    assert found["response.kl"] is sys.modules["house.losses.response"].kl


def test_what_a_package_lists_has_its_plain_name_and_no_other() -> None:
    assert list(names("house.teach")) == ["online", "offline"]


def test_a_package_can_list_a_file_beside_a_function_of_it() -> None:
    assert sorted(names("house.compress")) == ["layers", "parts.widths"]


def test_a_listed_function_is_not_the_file_of_its_name() -> None:
    assert list(names("house.measure")) == ["memory"]


def test_a_folder_in_a_room_answers_to_the_name_of_a_file() -> None:
    assert list(names("house.tasks")) == ["text.classification"]


def test_a_file_is_a_room_of_plain_names() -> None:
    assert sorted(names("house.losses.response")) == ["bank", "kl"]


def test_rooms_are_searched_together_and_one_can_have_a_first_word_and_one_be_a_function() -> None:
    places = ("distill=house.losses.response:kl", "house.compress", "export=house.teach")
    assert sorted(names(places)) == [
        "distill",
        "export.offline",
        "export.online",
        "layers",
        "parts.widths",
    ]
    assert find(places, "distill") is find("house.losses", "response.kl")


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(RecipeError) as caught:
        find("house.losses", "respons.kl")
    assert str(caught.value) == ("'respons.kl' is not in house.losses; did you mean 'response.kl'?")


@pytest.mark.parametrize("source", ["mine", "mine.py", "house.losses.response"])
def test_own_code_is_not_even_opened_without_trust(house: Path, source: str) -> None:
    (house / "mine.py").write_text("raise AssertionError('opened')")
    with pytest.raises(RecipeError, match="add --trust, but only if you trust that file"):
        find("house.losses", f"{source}:kl")


@pytest.mark.parametrize("source", ["lib/mine", "lib/mine.py", "{here}/lib/mine.py"])
def test_own_code_is_found_by_file_and_loaded_once(house: Path, source: str) -> None:
    (house / "lib").mkdir()
    (house / "lib/mine.py").write_text("def huber(student, teacher, *, delta: float = 1.0): ...")
    name = f"{source.format(here=house)}:huber"
    function = find("house.losses", name, trust=True)
    assert function is find("house.losses", name, trust=True)
    assert list(options(function)) == ["delta"]


def test_own_code_is_found_in_an_importable_module() -> None:
    assert find("house.losses", "house.teach:online", trust=True) is names("house.teach")["online"]


def test_a_file_of_ones_own_never_hides_a_module_of_python(house: Path) -> None:
    import random

    (house / "random.py").write_text("def huber(student, teacher): ...")
    assert find("house.losses", "random:huber", trust=True).__name__ == "huber"
    assert sys.modules["random"] is random


def test_own_code_that_is_not_there_or_broken_is_one_sentence(house: Path) -> None:
    (house / "broken.py").write_text("1 / 0")
    (house / "mine.py").write_text("def huber(student, teacher): ...")
    with pytest.raises(RecipeError, match="'broken' can't be imported: ZeroDivisionError"):
        find("house.losses", "broken:huber", trust=True)
    with pytest.raises(RecipeError, match="'absent' can't be imported: ModuleNotFoundError"):
        find("house.losses", "absent:huber", trust=True)
    with pytest.raises(RecipeError, match="'hubert' is not in mine; did you mean 'huber'"):
        find("house.losses", "mine:hubert", trust=True)


def test_options_are_what_stands_after_the_star() -> None:
    found = options(plain)
    assert list(found) == ["eps", "mode"]
    assert found["eps"].required
    assert found["eps"].default is Parameter.empty
    assert found["mode"].default == "a"
    assert found["mode"].type == "'a' or 'b'"
    assert found["eps"].annotation is float
    assert found["eps"].says == "how far, and no farther"
    assert found["mode"].says == "which of the two"


def test_types_before_the_star_are_never_evaluated() -> None:
    assert options(find("house.losses", "response.kl"))["temperature"].annotation is float


def test_options_of_a_class_are_those_of_its_init_and_of_a_partial_those_of_its_function() -> None:
    assert list(options(Counter)) == ["step"]
    assert options(partial(plain, eps=1.0)) == options(plain)
    assert options(type("Empty", (), {})) == {}


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (float, "float"),
        (float | None, "float or None"),
        (tuple[int, ...], "tuple[int, ...]"),
        (Path | int, "Path or int"),
        (Literal["auto"] | float, "'auto' or float"),
        (Annotated[int, Gt(0)], "int"),
        (Any, "Any"),
    ],
)
def test_types_are_told_in_plain_words(annotation: Any, text: str) -> None:
    def function(*, option: Any) -> Any:
        return option

    function.__annotations__["option"] = annotation
    assert options(function)["option"].type == text


def test_binding_sets_options_and_nothing_else() -> None:
    bound = bind(plain, {"eps": 0.5})
    assert bound.func is plain
    assert bound.keywords == {"eps": 0.5}
    assert bound("s") == ("s", None, 0.5, "a")


def test_an_integer_is_a_float_and_a_list_is_a_tuple() -> None:
    def function(*, rate: float, sizes: tuple[int, ...], path: Path) -> Any:
        return rate, sizes, path

    rate, sizes, path = bind(function, {"rate": 1, "sizes": [2, 3], "path": "a/b"})()
    assert (rate, sizes, path) == (1.0, (2, 3), Path("a/b"))
    assert (type(rate), type(sizes)) == (float, tuple)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [(int, True), (int, 1.5), (int, "1"), (float, "1"), (float, True), (str, 1), (bool, 1)],
)
def test_nothing_else_is_taken_for_another_type(annotation: type, value: object) -> None:
    def function(*, option: Any) -> Any:
        return option

    function.__annotations__["option"] = annotation
    with pytest.raises(RecipeError) as caught:
        bind(function, {"option": value})
    assert str(caught.value) == (
        f"option 'option' of function must be {annotation.__name__}, not {value!r}"
    )


def test_an_unknown_option_is_answered_with_the_nearest_before_anything_is_called_missing() -> None:
    with pytest.raises(RecipeError, match="plain has no option 'epps'; did you mean 'eps'"):
        bind(plain, {"epps": 1.0})
    with pytest.raises(RecipeError, match="plain has no option 'student'"):
        bind(plain, {"student": 1, "eps": 1.0})


def test_a_missing_option_is_named_with_its_type() -> None:
    with pytest.raises(RecipeError, match=r"plain needs the option 'eps' \(float\)"):
        bind(plain, {})


def test_a_limit_on_an_option_is_told() -> None:
    def function(*, ratio: Annotated[float, Gt(0)] = 0.5) -> Any:
        return ratio

    function.__annotations__["ratio"] = Annotated[float, Gt(0)]
    with pytest.raises(RecipeError, match=r"must be float, not -1 \(.*greater than 0\)"):
        bind(function, {"ratio": -1})


def test_every_fault_is_told_once_and_by_the_name_the_recipe_uses() -> None:
    def function(*, width: int | tuple[int, ...] = 1, depth: int = 1) -> Any:
        return width, depth

    found = list(faults(function, {"width": "x", "depht": 1, "depth": "y"}, "student"))
    assert found == [
        ("depht", "student has no option 'depht'; did you mean 'depth'?"),
        ("width", "option 'width' of student must be int or tuple[int, ...], not 'x'"),
        ("depth", "option 'depth' of student must be int, not 'y'"),
    ]


def test_options_may_be_called_as_pydantic_calls_its_own_attributes() -> None:
    def function(*, copy: int = 1, json: int = 2, model_config: int = 3, schema: int = 4) -> Any:
        return copy, json, model_config, schema

    assert bind(function, {"json": 5, "schema": 6})() == (1, 5, 3, 6)
    properties = schema(function).model_json_schema()["properties"]
    assert list(properties) == ["copy", "json", "model_config", "schema"]


def test_a_function_is_given_only_what_it_asks_for() -> None:
    there = {"student": 1, "labels": 2, "teacher": 3, "eps": 4}
    assert ask(bind(plain, {"eps": 0.5}), there) == (1, 2, 0.5, "a")
    assert ask(bind(plain, {"eps": 0.5}), {"student": 1}) == (1, None, 0.5, "a")
    assert ask(partial(bind(plain, {"eps": 0.5}), 7), there) == (7, 2, 0.5, "a")
    assert ask(partial(plain, student=8, eps=0.5), there) == (8, 2, 0.5, "a")
    assert ask(bind(Counter, {"step": 3}), {"start": 4, "student": 1}).at == 4


def test_what_is_asked_for_and_not_there_is_told_with_what_is() -> None:
    with pytest.raises(RecipeError, match="plain asks for 'student'; here there is teacher, mask"):
        ask(bind(plain, {"eps": 1.0}), {"teacher": 1, "mask": 2})
    with pytest.raises(RecipeError, match="here there is nothing"):
        ask(Counter, {})


def test_what_a_function_asks_for_stands_before_the_star() -> None:
    assert list(asks(plain)) == ["student", "labels"]
    assert list(asks(partial(plain, 1))) == ["labels"]
    assert list(asks(Counter)) == ["start"]
    assert list(asks(Counter(1))) == ["student", "teacher"]


def test_a_description_says_what_attar_list_prints() -> None:
    described = describe(bind(plain, {"eps": 1.0}), "response.plain")
    assert described.name == "response.plain"
    assert described.says == "Says what it does."
    assert [option.name for option in described.options] == ["eps", "mode"]
    assert described.asks == ("student", "labels")
    assert describe(Counter).name == "Counter"


def test_what_a_loss_compares_is_read_off_the_students_annotation() -> None:
    def features(student: Features, teacher: Features) -> None: ...  # noqa: F821
    def attentions(student: types.Attentions, teacher: Any) -> None: ...  # noqa: F821
    def other(student: dict[str, int], teacher: Any) -> None: ...
    def bare(student, teacher): ...  # type: ignore[no-untyped-def]

    assert compares(features) == "Features"
    assert compares(partial(partial(features), None)) == "Features"
    assert compares(attentions) == "Attentions"
    assert compares(other) == compares(bare) == compares(int) == "Logits"
    assert compares(Counter) == compares(Counter(1)) == "Features"
    assert compares(find("house.losses", "response.kl")) == "Logits"


@pytest.mark.parametrize("module", ["attar.resolve", "attar.recipe"])
def test_the_paper_is_read_without_torch(module: str) -> None:
    code = f"import {module}, sys; print('torch' in sys.modules)"
    root = Path(__file__).parents[1]
    told = subprocess.check_output([sys.executable, "-c", code], cwd=root, text=True)
    assert told == "False\n"
