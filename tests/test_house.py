"""The house stands as `docs/design.md` draws it: its syntax trees are walked for wrong doors."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import attar

HOUSE = Path(attar.__file__).parent
FILES = {str(path.relative_to(HOUSE)): path for path in sorted(HOUSE.rglob("*.py"))}

GROUND = {
    "types",
    "heads",
    "errors",
    "resolve",
    "taps",
    "depth",
    "shapes",
    "store",
    "engine",
    "recipe",
    "report",
}
ROOMS = {
    *("tasks", "students", "teach", "losses", "distill", "compress", "export", "measure"),
    "endpoint",
}
ROOF = {
    *("__init__", "__main__", "cli", "pipeline", "results", "teachers", "baselines", "arms"),
    *("screen", "setting", "casting", "compressing", "schooling", "doctor", "forecast", "starter"),
    *("lineage", "cards", "comparing", "auditing", "subjects", "tracking", "floor"),
    "hearing",
}

WORDS = {
    "errors": set[str](),
    "types": set[str](),
    "heads": {"types"},
    "report": {"errors"},
    "resolve": {"errors"},
    "recipe": {"errors", "resolve"},
    "taps": {"errors", "types"},
    "depth": {"errors", "types"},
    "shapes": {"errors"},
    "store": {"errors", "heads", "types"},
    "engine": {"errors", "types"},
}
"""What each part of the ground floor may import of the house, beside itself."""

DOORS = {
    "pydantic": ("recipe/", "resolve.py"),
    "annotated_types": ("types.py",),
    "yaml": ("recipe/",),
    "transformers": ("tasks/", "students/", "export/folder.py"),
    "tokenizers": ("students/",),
    "peft": ("students/",),
    "datasets": ("tasks/",),
    "pyarrow": ("tasks/",),
    "sklearn": ("baselines.py", "measure/audit/", "compress/tree.py"),
    "captum": ("measure/audit/",),
    "onnx": ("export/",),
    "onnxscript": ("export/",),
    "onnx_ir": ("export/",),
    "onnxruntime": ("export/", "tasks/", "measure/"),
    "executorch": ("export/", "tasks/"),
    "gguf": ("export/",),
    "openvino": ("export/", "tasks/"),
    "keras": ("tasks/text/",),
    "PIL": ("tasks/vision/",),
    "timm": ("tasks/vision/",),
    "torchvision": ("tasks/vision/",),
    "typer": ("cli/",),
    "rich": ("cli/",),
    "numpy": ("",),
    "safetensors": ("",),
    "torch": ("",),
    "torch_pruning": ("compress/prune/",),
    "gymnasium": ("tasks/control/",),
    "stable_baselines3": ("tasks/control/",),
    "ale_py": ("tasks/control/",),
    "minatar": ("tasks/control/",),
    "mlflow": ("tracking.py",),
    "wandb": ("tracking.py",),
    "tensorboard": (),
}
"""Where a library that is not Python's own may be imported."""

OPTIONAL = {
    *("transformers", "tokenizers", "datasets", "pyarrow", "sklearn", "peft"),
    *("onnx", "onnxscript", "onnxruntime", "openvino", "executorch", "keras", "gguf"),
    *("torch_pruning", "PIL", "timm", "torchvision", "captum"),
    *("mlflow", "wandb", "tensorboard"),
    *("gymnasium", "stable_baselines3", "ale_py", "minatar"),
}

FORBIDDEN_FILES = {"utils", "util", "common", "core", "base", "helpers", "misc"}
FORBIDDEN_WORDS = {
    *("Manager", "Helper", "Handler", "Factory", "Registry", "Wrapper", "Processor"),
    *("Base", "Common", "Core", "Misc", "Util", "Utils", "Impl", "Trainer", "Distiller"),
}

FILE_LINES, FUNCTION_LINES = 400, 60
LONGER: dict[str, int] = {}
"""Files that are over the limit today, and may not grow."""

every_file = pytest.mark.parametrize("file", FILES)


@cache
def tree(file: str) -> ast.Module:
    return ast.parse(FILES[file].read_text(encoding="utf-8"))


def part(file: str) -> str:
    """The part of the house a file belongs to: `losses` of `losses/response.py`."""
    return file.partition("/")[0].removesuffix(".py")


def package(file: str) -> list[str]:
    """The dotted names of the package a file is in."""
    return ["attar", *Path(file).parent.parts]


def imported(file: str, nodes: ast.AST) -> Iterator[str]:
    """Every module that is imported, by its whole name; `from attar import x` gives `attar.x`."""
    for node in ast.walk(nodes):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package(file)[: len(package(file)) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{source}.{alias.name}" for alias in node.names)


def parts_opened(file: str) -> set[str]:
    """The other parts of the house that a file imports."""
    names = [name.split(".") for name in imported(file, tree(file))]
    opened = {name[1] for name in names if name[0] == "attar" and len(name) > 1}
    return opened & (GROUND | ROOMS | ROOF) - {part(file)}


def of_floor(floor: set[str]) -> list[str]:
    return [file for file in FILES if part(file) in floor]


# --- layers


def test_every_file_has_a_floor() -> None:
    assert {part(file) for file in FILES} <= GROUND | ROOMS | ROOF
    assert {part(file) for file in FILES} >= GROUND | ROOMS


@pytest.mark.parametrize("file", of_floor(GROUND))
def test_the_ground_floor_opens_no_room_and_few_of_its_own(file: str) -> None:
    assert parts_opened(file) <= WORDS[part(file)]


@pytest.mark.parametrize("file", of_floor(ROOMS))
def test_a_room_opens_onto_the_ground_floor_only(file: str) -> None:
    assert parts_opened(file) <= GROUND


@pytest.mark.parametrize("file", of_floor({"losses"}))
def test_a_loss_needs_nothing_but_torch(file: str) -> None:
    names = {name.split(".")[0] for name in imported(file, tree(file))}
    assert names <= {"torch", "attar", *sys.stdlib_module_names}
    assert parts_opened(file) == set()


def test_a_wrong_door_would_be_seen() -> None:
    wrong = ast.parse(
        "from .. import teach\nfrom ..store import Store\nfrom attar import tasks\n"
        "def f():\n    import attar.export.folder"
    )
    assert list(imported("losses/response.py", wrong)) == [
        "attar.teach",
        "attar.store.Store",
        "attar.tasks",
        "attar.export.folder",
    ]


@every_file
def test_a_library_has_one_door(file: str) -> None:
    own = {*sys.stdlib_module_names, "attar"}
    for name in {name.split(".")[0] for name in imported(file, tree(file))} - own:
        assert name in DOORS, f"{name} has no door in the house"
        assert file.startswith(DOORS[name]), f"{name} comes in by {', '.join(DOORS[name])}"


@every_file
def test_an_optional_library_is_imported_where_it_is_needed(file: str) -> None:
    at_import = [node for node in tree(file).body if not isinstance(node, ast.FunctionDef)]
    for node in at_import:
        names = {name.split(".")[0] for name in imported(file, without_functions(node))}
        assert names.isdisjoint(OPTIONAL)


def without_functions(node: ast.AST) -> ast.AST:
    """A class without its methods: what is left of it runs at import."""
    if not isinstance(node, ast.ClassDef):
        return node
    body = [each for each in node.body if not isinstance(each, ast.FunctionDef)]
    return ast.Module(body=body, type_ignores=[])


# --- nothing runs at import


def run(code: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={"PYTHONPATH": str(HOUSE.parent), "PATH": "", "HOME": "/nowhere"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def test_neither_the_shop_window_nor_the_command_line_imports_torch() -> None:
    heavy = ("torch", "numpy", "transformers", "onnxruntime", "sklearn", "pyarrow")
    code = f"import sys, attar, attar.cli; print([n for n in {heavy} if n in sys.modules])"
    assert run(code) == "[]"


def test_importing_the_whole_house_does_nothing_else() -> None:
    modules = [f"attar.{file.removesuffix('.py').replace('/', '.')}" for file in FILES]
    modules = [name.removesuffix(".__init__") for name in modules if "__main__" not in name]
    before = "numpy, torch, safetensors.torch, pydantic, yaml, torch.utils.flop_counter"
    code = f"""
import importlib, logging, os, random, sys, warnings, {before}
def state():
    return (dict(os.environ), os.getcwd(), list(logging.root.handlers), logging.root.level,
            list(warnings.filters), random.getstate(), torch.get_num_threads(),
            torch.get_rng_state().tolist(), torch.is_grad_enabled(), torch.get_default_dtype())
def watch(event, args):
    writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
    if writes or event.split(".")[0] in ("socket", "subprocess", "urllib", "shutil"):
        print(event, args, file=sys.stderr)
        os._exit(3)
first = state()
sys.dont_write_bytecode = True
sys.addaudithook(watch)
for name in {modules}:
    importlib.import_module(name)
optional = {sorted(OPTIONAL)}
assert [name for name in optional if name in sys.modules] == [], optional
assert state() == first
print(len({modules}))
"""
    assert run(code) == str(len(modules))


@every_file
def test_at_import_a_file_says_what_there_is_and_no_more(file: str) -> None:
    says = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.FunctionDef, ast.ClassDef)
    for node in tree(file).body:
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        condition = ast.unparse(node.test) if isinstance(node, ast.If) else ""
        if text or condition in ("TYPE_CHECKING", "__name__ == '__main__'"):
            continue
        if file == "recipe/dialect.py" and isinstance(node, ast.For):
            continue  # teaches YAML its words, which PyYAML knows no other way to say
        assert isinstance(node, says), f"line {node.lineno}"


# --- words


@every_file
def test_no_file_is_named_for_what_found_no_room(file: str) -> None:
    assert FORBIDDEN_FILES.isdisjoint(Path(file).with_suffix("").parts)


@every_file
def test_no_class_is_named_for_a_pattern(file: str) -> None:
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.ClassDef):
            words = set(re.findall(r"[A-Z][a-z]*", node.name))
            assert FORBIDDEN_WORDS.isdisjoint(words), node.name


@every_file
def test_every_file_opens_with_a_sentence(file: str) -> None:
    opening = ast.get_docstring(tree(file))
    assert opening
    first = opening.partition("\n\n")[0]
    assert first.endswith((".", "?")), first


@every_file
def test_every_public_function_and_class_says_what_it_is(file: str) -> None:
    for node in tree(file).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name


@every_file
def test_nothing_is_guessed_with_hasattr_or_getattr(file: str) -> None:
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            guess = node.func.id == "hasattr" or (node.func.id == "getattr" and len(node.args) > 2)
            assert not guess, f"line {node.lineno}"


@every_file
def test_only_the_command_line_prints(file: str) -> None:
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and part(file) != "cli":
            assert node.func.id != "print", f"line {node.lineno}"


# --- sizes


@every_file
def test_a_file_is_short(file: str) -> None:
    assert len(FILES[file].read_text().splitlines()) <= LONGER.get(file, FILE_LINES)


def test_what_has_become_short_is_no_exception_any_more() -> None:
    for file, limit in LONGER.items():
        assert FILE_LINES < len(FILES[file].read_text().splitlines()) <= limit


@every_file
def test_a_function_is_short(file: str) -> None:
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.FunctionDef):
            first, last = node.body[0], node.body[-1]
            begin = first.end_lineno if ast.get_docstring(node) else first.lineno - 1
            assert begin is not None
            assert last.end_lineno is not None
            assert last.end_lineno - begin <= FUNCTION_LINES, node.name
