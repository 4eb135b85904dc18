"""What the tests catch: each sign and number of the losses' formulas is made wrong, one at a time.

    python benchmarks/mutants.py [--room response] [--sample 50] [--out runs/mutants.jsonl]

In every file of `attar/losses`: `+` and `-` exchanged, `*` and `/`, mean and sum; a minus, a
logarithm, an exponential, a square, a root or an absolute value left out; a number doubled (0 made
1), of defaults too; a comparison turned around. A mutant is killed if a test fails, or if the tests
never end. The working tree is not touched. A run that was stopped goes on: what became of a mutant
is kept in OUT for as long as its file stays the same; survivors are tried again once a test changes
(delete OUT to try all again). Only tests that call the mutated function are run: the others can't
see it, unless it is in a default or outside of functions, where all of them are run.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
LOSSES, TESTS = ROOT / "attar" / "losses", ROOT / "tests"
ROOMS = ("response", "feature", "attention", "relation")
SUITE = [*(f"{room}_numbers" for room in ROOMS[:4]), "loss_numbers", "losses", "objective"]
SUITE.append("chunked")
IMPORTED = "torch._dynamo torch.testing numpy transformers.models.bart.modeling_bart pydantic rich"
"""What the tests import of others: once, before the first mutant."""
TIME = "the time was up"

SWAPPED: dict[type[ast.AST], Callable[[], Any]] = {ast.Add: ast.Sub, ast.Sub: ast.Add}
SWAPPED |= {ast.Mult: ast.Div, ast.Div: ast.Mult}
SWAPPED |= {ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt}
INSTEAD = {"mean": "sum", "sum": "mean"}
LEFT_OUT = {"exp", "log", "square", "sqrt", "abs"}

# What is not mutated: annotations, what errors say, and
NO_FORMULA = {
    "TINY": "keeps 0/0 away, and is far below whatever it is compared with",
    "FLAT": "what counts as rounding: twice as much is rounding too",
    "VERTICES": "how many angles are taken at once, for memory's sake: their number is the same",
}
# Whole numbers given to these are axes and sizes: where, not how much. So are indices and `dim`.
PLACING = {
    *("sum", "mean", "any", "argmax", "amax", "cumsum", "softmax", "log_softmax", "logsumexp"),
    *("flatten", "unflatten", "unbind", "transpose", "permute", "flip", "stack", "cat", "gather"),
    *("expand", "reshape", "view", "new_zeros", "index_copy", "var_mean"),
}


class Mutant(NamedTuple):
    """In `file` the node `old` is to be `new`; `where` is the function in which, or nothing."""

    file: Path
    tree: ast.Module
    old: ast.expr
    new: ast.expr
    where: str

    def __str__(self) -> str:
        place = f"{self.file.relative_to(ROOT)}:{self.old.lineno}"
        return f"{place} `{ast.unparse(self.old)}` -> `{ast.unparse(self.new)}`"


def main() -> None:
    """Print how many mutants of each file are killed, and which are not."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--room", choices=ROOMS)
    options.add_argument("--sample", type=int, help="so many mutants, drawn at random")
    options.add_argument("--out", type=Path, default=ROOT / "runs" / "mutants.jsonl")
    options.add_argument("--jobs", type=int, default=1)
    options.add_argument("--limit", type=int, default=120, help="seconds of processor a mutant")
    given = options.parse_args()

    mutants = {key(each): each for each in found(given.room)}
    if given.sample is not None:
        keys = random.Random(0).sample(list(mutants), min(given.sample, len(mutants)))
        mutants = {name: mutants[name] for name in keys}
    given.out = given.out.resolve()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    suite = [TESTS / "conftest.py", *(TESTS / f"test_{name}.py" for name in SUITE)]
    tests, house = digest(suite), digest([*suite, *sorted(LOSSES.parent.rglob("*.py"))])
    known = remembered(given.out, tests)
    with tempfile.TemporaryDirectory() as folder, given.out.open("a", encoding="utf-8") as out:
        prepare(folder)

        def run(todo: dict[str, Callable[[], Any]], limit: int) -> None:
            begun = time.monotonic()
            for done, (name, said) in enumerate(children(todo, folder, given.jobs, limit), 1):
                known[name] = said
                print(json.dumps({"key": name, "tests": tests, "said": said}), file=out, flush=True)
                if name in mutants and not said:
                    print("survived:", mutants[name], flush=True)
                if done % 10 == 0:
                    killed = sum(bool(known[name]) for name in mutants if name in known)
                    ahead = (time.monotonic() - begun) / done * (len(todo) - done) / 60
                    print(f"{done} of {len(todo)}, {killed} killed, {ahead:.0f} min", flush=True)

        left = {name: each for name, each in mutants.items() if name not in known}
        if left and not isinstance(known.get(house), dict):
            run({house: called}, 3600)
        calls = known.get(house, {})
        if not isinstance(calls, dict):
            raise SystemExit(f"nothing is mutated yet, and there fails {calls}")
        run({name: Trial(each, calls).run for name, each in left.items()}, given.limit)
    show({mutants[name]: known[name] for name in mutants})


def show(outcomes: dict[Mutant, str]) -> None:
    """A row for each file, and a line for each survivor."""
    print(f"\n{'file':40}mutants  killed  timed out  survived      %")
    files = sorted({mutant.file for mutant in outcomes})
    for chosen in (*([file] for file in files), files):
        said = [test for mutant, test in outcomes.items() if mutant.file in chosen]
        name = str(chosen[0].relative_to(LOSSES)) if len(chosen) == 1 else "all"
        late, lived = said.count(TIME), said.count("")
        share = 100 * (len(said) - lived) / max(len(said), 1)
        killed = len(said) - late - lived
        print(f"{name:40}{len(said):7}{killed:8}{late:11}{lived:10}{share:7.1f}")
    print("\nSurvivors", *(f"  {mutant}" for mutant in outcomes if not outcomes[mutant]), sep="\n")


# Which mutants there are


def found(room: str | None) -> Iterator[Mutant]:
    for file in sorted(LOSSES.rglob("*.py")):
        if file.name != "__init__.py" and room in (None, room_of(file)):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            for old, where in formulas(tree, "", placing(tree)):
                for new in changed(old):
                    yield Mutant(file, tree, old, ast.copy_location(new, old), where)


def room_of(file: Path) -> str:
    return file.relative_to(LOSSES).with_suffix("").parts[0]


def formulas(node: ast.AST, where: str, left: set[ast.AST]) -> Iterator[tuple[ast.expr, str]]:
    """Each expression below that is of a formula, and where: name and line of the function."""
    match node:
        case ast.Raise() | ast.Call(func=ast.Attribute(attr="manual_seed")):  # any seed will do
            return
        case ast.Assign(targets=[ast.Name(id=name)]) if name in NO_FORMULA:
            return
        case ast.expr() if node not in left:
            yield node, where
    for name, value in ast.iter_fields(node):
        inside = where
        if isinstance(node, ast.FunctionDef) and name == "body":
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            inside = f"{node.name}:{first}"
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, ast.AST) and name not in ("annotation", "returns"):
                yield from formulas(each, inside, left)


def placing(tree: ast.Module) -> set[ast.AST]:
    """The whole numbers that say where in a tensor."""
    near: list[ast.AST] = []
    for node in ast.walk(tree):
        match node:
            case ast.Subscript(slice=value) | ast.keyword(arg="dim", value=value):
                near += ast.walk(value)
            case ast.Call(func=ast.Attribute(attr=name), args=given) if name in PLACING:
                plain = [each for each in given if isinstance(each, ast.Tuple) or whole(each)]
                near += [part for each in plain for part in ast.walk(each)]
    return {each for each in near if whole(each)}


def whole(node: ast.AST) -> bool:
    match node:
        case ast.Constant(value=int()) | ast.UnaryOp(ast.USub(), ast.Constant(value=int())):
            return True
    return False


def changed(node: ast.expr) -> Iterator[ast.expr]:
    """What may stand in place of the expression."""
    match node:
        case ast.BinOp(left, op, right) if type(op) in SWAPPED:
            yield ast.BinOp(left, SWAPPED[type(op)](), right)
        case ast.UnaryOp(ast.USub(), operand):
            yield operand
        case ast.Compare(left, ops, others):
            for n, each in enumerate(ops):
                if type(each) in SWAPPED:
                    turned = [*ops[:n], SWAPPED[type(each)](), *ops[n + 1 :]]
                    yield ast.Compare(left, turned, others)
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            yield ast.Constant(2 * value or 1)
        case ast.Constant(value=str(value)) if value in INSTEAD:
            yield ast.Constant(INSTEAD[value])
        case ast.Call(ast.Attribute(value, name), given, named) if name in INSTEAD:
            yield ast.Call(ast.Attribute(value, INSTEAD[name], ast.Load()), given, named)
        case ast.Call(ast.Attribute(value, name), [], []) if name in LEFT_OUT:
            yield value


# What becomes of one, in a child process


@dataclass(frozen=True, eq=False)
class Trial:
    """Runs the tests that may see the mutant, those of its room first."""

    mutant: Mutant
    calls: dict[str, list[str]]

    def run(self) -> str:
        """Which test fails first, or nothing."""
        sys.meta_path.insert(0, Planted(self.mutant))
        room = room_of(self.mutant.file)
        first = [name for name in SUITE if name.startswith(room)]
        first += ["loss_numbers"] * (room == "attention")
        return tested(first, self) or tested([each for each in SUITE if each not in first], self)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        where = f"{self.mutant.file.relative_to(LOSSES)} {self.mutant.where}"
        if self.mutant.where:
            items[:] = [each for each in items if where in self.calls.get(each.nodeid, [where])]


class Planted(MetaPathFinder, Loader, ast.NodeTransformer):
    """Gives the mutated code to whoever imports the module."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant
        self.name = ".".join(mutant.file.relative_to(ROOT).with_suffix("").parts)

    def find_spec(self, fullname: str, *_: Any) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        return spec_from_file_location(fullname, self.mutant.file, loader=self)

    def exec_module(self, module: ModuleType) -> None:
        tree = ast.fix_missing_locations(self.visit(self.mutant.tree))
        exec(compile(tree, self.mutant.file, "exec", dont_inherit=True), module.__dict__)

    def visit(self, node: ast.AST) -> Any:
        return self.mutant.new if node is self.mutant.old else self.generic_visit(node)


def called() -> dict[str, list[str]] | str:
    """Of each test the functions of the losses that it calls; or the test that fails."""
    calls: dict[str, list[str]] = {}

    class Calls:
        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
            seen = set()

            def note(frame: FrameType, event: str, _: Any) -> None:
                code = frame.f_code
                if event == "call" and code.co_filename.startswith(str(LOSSES)):
                    file = Path(code.co_filename).relative_to(LOSSES)
                    seen.add(f"{file} {code.co_name}:{code.co_firstlineno}")

            sys.setprofile(note)
            try:
                return (yield)
            finally:
                sys.setprofile(None)
                calls[item.nodeid] = sorted(seen)

    return tested(SUITE, Calls()) or calls


class First:
    """Notes the first that fails."""

    name = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.name = self.name or (report.nodeid if report.failed else "")

    pytest_collectreport = pytest_runtest_logreport


def tested(names: Sequence[str], plugin: object) -> str:
    """Which test fails first, or nothing."""
    first = First()
    files = [str(TESTS / f"test_{name}.py") for name in names]
    code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *files], [plugin, first])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED) and not first.name:
        raise RuntimeError(f"pytest itself failed: {code}")
    return first.name


# Processes and paper


def prepare(folder: str) -> None:
    """Import what takes long, but nothing of attar, and keep the compiled tests at hand."""
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    for name in IMPORTED.split():
        importlib.import_module(name)
    sys.dont_write_bytecode, sys.pycache_prefix = False, folder


def children(
    todo: dict[str, Callable[[], Any]], folder: str, jobs: int, limit: int
) -> Iterator[tuple[str, Any]]:
    """What each has to say, done in a process of its own, `jobs` at a time."""
    waiting, running = list(todo.items())[::-1], dict[int, str]()
    while waiting or running:
        while waiting and len(running) < jobs:
            name, work = waiting.pop()
            if not (pid := os.fork()):
                child(work, Path(folder, f"{os.getpid()}.json"), limit)
            running[pid] = name
        pid, status = os.wait()
        said = Path(folder, f"{pid}.json")
        if os.WIFSIGNALED(status):
            late = os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGALRM)
            yield running.pop(pid), TIME if late else f"signal {os.WTERMSIG(status)}"
        elif said.exists():
            yield running.pop(pid), json.loads(said.read_text(encoding="utf-8"))
        else:
            raise SystemExit(f"no answer: {running[pid]}")


def child(work: Callable[[], Any], answer: Path, limit: int) -> None:
    """Never returns; ends at the latest after `limit` seconds of the processor."""
    try:
        signal.setitimer(signal.ITIMER_PROF, limit)
        signal.alarm(60 * limit)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        answer.write_text(json.dumps(work()), encoding="utf-8")
    except BaseException:
        traceback.print_exc()
    os._exit(0)


def digest(files: Iterable[Path]) -> str:
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]


def key(mutant: Mutant) -> str:
    return f"{digest([mutant.file])[:8]} {mutant.old.col_offset} {mutant}"


def remembered(file: Path, tests: str) -> dict[str, Any]:
    """What earlier runs wrote down, but for what survived other tests than these."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    notes = [json.loads(line) for line in lines]
    return {each["key"]: each["said"] for each in notes if each["said"] or each["tests"] == tests}


if __name__ == "__main__":
    main()
