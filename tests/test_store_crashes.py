"""Writers killed at any line, and several at once: what is in the store is what belongs there."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from attar.store import Store, examine, key
from attar.types import Knowledge

ROWS, SHARD, KILLS = 120, 8, 20
WRITERS = 3

# A process of its own imports torch once and forks every writer from there: pytest itself may have
# threads, which a fork does not survive.
SCRIPT = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
from torch import nn
from attar import teach
from attar.store import Store, key
from attar.types import Batch, Knowledge

root, ROWS, SHARD, KILLS, WRITERS = Path(sys.argv[1]), *map(int, sys.argv[2:])
torch.set_num_threads(1)
torch.manual_seed(0)
teacher = nn.Linear(4, 3)
inputs = torch.linspace(-1, 1, ROWS * 4).view(ROWS, 4)
keys = tuple(key(f"text {row}") for row in range(ROWS))
whole = Batch(inputs, torch.zeros(ROWS, dtype=torch.int64), keys)


def write(folder, told, order, fatal=-1, pace=0.0):
    lines = 0

    def line(frame, event, arg):
        nonlocal lines
        lines += event == "line"
        if lines == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return line

    def forward(model, batch):
        for each in batch.keys:
            os.write(told, b"%d " % keys.index(each))
        time.sleep(pace)
        return Knowledge(model(batch.inputs), {"deep": batch.inputs.exp()})

    if not pace:
        sys.settrace(line)  # it costs time, which writers at once need not lose
    with Store.open(folder, {"weights": "w"}, shard_rows=SHARD) as known:
        batches = (whole.rows(row, row + 1) for row in order)
        teach.fill(known, batches, teacher, forward)
    sys.settrace(None)
    os.write(told, b"; %d" % lines)


def begin(*arguments, **options):
    read, told = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            write(arguments[0], told, *arguments[1:], **options)
            status = 0
        finally:
            os._exit(status)
    os.close(told)
    return child, read


def end(child, read):
    with open(read) as file:
        asked, _, lines = file.read().partition(";")
    signalled = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {"rows": list(map(int, asked.split())), "exit": signalled, "lines": int(lines or 0)}


straight = end(*begin(root / "straight", range(ROWS)))
dice = random.Random(5)
points = [dice.randint(1, straight["lines"] // 6) for _ in range(KILLS)]
killed = [end(*begin(root / "killed", range(ROWS), fatal=point)) for point in points]
killed.append(end(*begin(root / "killed", range(ROWS))))
orders = [dice.sample(range(ROWS), ROWS) for _ in range(WRITERS)]
company = [begin(root / "company", order, pace=1e-3) for order in orders]
company = [end(*each) for each in company]
print(json.dumps({"straight": straight, "killed": killed, "company": company}))
"""


@dataclass(frozen=True)
class Log:
    """Where the stores are, and what each writer asked its teacher before it ended."""

    root: Path
    straight: dict[str, Any]
    killed: list[dict[str, Any]]
    company: list[dict[str, Any]]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    root = tmp_path_factory.mktemp("crashes")
    numbers = map(str, (ROWS, SHARD, KILLS, WRITERS))
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(root), *numbers],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return Log(root, **json.loads(ran.stdout))


def keys() -> list[str]:
    return [key(f"text {row}") for row in range(ROWS)]


def content(folder: Path) -> Knowledge:
    store = Store.found(folder)
    assert len(store) == ROWS
    assert store.verify() == len(list(folder.glob("shard-*.safetensors")))
    return store.get(keys())


def test_after_twenty_kills_the_content_is_that_of_an_uninterrupted_run(log: Log) -> None:
    assert [writer["exit"] for writer in log.killed] == [-9] * KILLS + [0]
    whole, resumed = content(log.root / "straight"), content(log.root / "killed")
    assert torch.equal(resumed.logits, whole.logits)
    assert torch.equal(resumed.features["deep"], whole.features["deep"])
    assert bool(whole.logits.any(1).all())


def test_no_row_is_computed_twice_beyond_one_shard_a_kill(log: Log) -> None:
    before: set[int] = set()
    for number, writer in enumerate(log.killed):
        again = before.intersection(writer["rows"])
        assert len(again) <= SHARD, number
        assert len(set(writer["rows"])) == len(writer["rows"])
        before |= set(writer["rows"])
    assert before == set(range(ROWS))
    assert sorted(log.straight["rows"]) == list(range(ROWS))


def test_the_kills_come_early_and_late_and_some_cost_rows(log: Log) -> None:
    asked = [len(writer["rows"]) for writer in log.killed[:-1]]
    assert min(asked) == 0
    assert max(asked) >= SHARD
    assert sum(asked) + len(log.killed[-1]["rows"]) > ROWS


def test_writers_at_once_lose_nothing_and_get_in_nobodys_way(log: Log) -> None:
    assert [writer["exit"] for writer in log.company] == [0] * WRITERS
    whole, together = content(log.root / "straight"), content(log.root / "company")
    assert torch.equal(together.logits, whole.logits)
    assert not list((log.root / "company").glob("*.tmp"))
    assert not any(finding.damaged for finding in examine(log.root / "company"))
