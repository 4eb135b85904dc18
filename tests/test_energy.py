"""Energy: joules where a counter can be read, wrap-around and all; elsewhere nothing at all."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from attar import measure
from attar.measure.cost import WARM_UP
from attar.resolve import options

MODULE = sys.modules["attar.measure.energy"]  # the function hides the file
RANGE = 262_143_328_850


def zone(tree: Path, name: str, kind: str, energy: int = 0, span: int = RANGE) -> Path:
    folder = tree / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{kind}\n")
    (folder / "energy_uj").write_text(f"{energy}\n")
    (folder / "max_energy_range_uj").write_text(f"{span}\n")
    return folder


def draw(folder: Path, microjoules: int) -> None:
    """Let a counter run on, as the hardware does: from its range back to 0."""
    span = int((folder / "max_energy_range_uj").read_text())
    now = int((folder / "energy_uj").read_text()) + microjoules
    (folder / "energy_uj").write_text(f"{now - span if now > span else now}\n")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that only answers let pass."""
    now = [0.0]
    monkeypatch.setattr(MODULE.time, "perf_counter", lambda: now[0])
    return now


def answering(
    clock: list[float], seconds: float, costs: dict[Path, int], log: list[str], name: str = "a"
) -> Callable[[], None]:
    def answer() -> None:
        clock[0] += seconds
        log.append(name)
        for folder, microjoules in costs.items():
            draw(folder, microjoules)

    return answer


def test_an_answer_costs_what_package_and_memory_drew(tmp_path: Path, clock: list[float]) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 1000)
    memory = zone(tmp_path, "intel-rapl:0:1", "dram", 50)
    answer = answering(clock, 0.03, {package: 2_000, memory: 500}, [])
    found = measure.energy({"a": answer}, tmp_path)
    assert found == {"a": pytest.approx(0.0025)}


def test_parts_of_a_package_and_what_holds_it_are_not_counted_twice(
    tmp_path: Path, clock: list[float]
) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0")
    others = [
        zone(tmp_path, "intel-rapl:0:0", "core"),
        zone(tmp_path, "intel-rapl:0:2", "uncore"),
        zone(tmp_path, "intel-rapl:1", "psys"),
        zone(tmp_path, "intel-rapl-mmio:0", "package-0"),
    ]
    costs = {package: 3_000, **dict.fromkeys(others, 7_000)}
    found = measure.energy({"a": answering(clock, 0.05, costs, [])}, tmp_path)
    assert found == {"a": pytest.approx(0.003)}
    assert set(MODULE.zones(tmp_path)) == {"intel-rapl:0"}


def test_two_packages_are_added(tmp_path: Path, clock: list[float]) -> None:
    both = [zone(tmp_path, f"intel-rapl:{n}", f"package-{n}") for n in (0, 1)]
    found = measure.energy({"a": answering(clock, 0.05, dict.fromkeys(both, 1_000), [])}, tmp_path)
    assert found == {"a": pytest.approx(0.002)}


def test_a_counter_that_begins_again_at_zero_loses_nothing(
    tmp_path: Path, clock: list[float]
) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", energy=95_000, span=100_000)
    found = measure.energy({"a": answering(clock, 0.05, {package: 4_000}, [])}, tmp_path)
    assert found == {"a": pytest.approx(0.004)}


def test_models_take_turns_and_each_pays_for_its_own(tmp_path: Path, clock: list[float]) -> None:
    package, log = zone(tmp_path, "intel-rapl:0", "package-0"), list[str]()
    found = measure.energy(
        {
            "cheap": answering(clock, 1 / 32, {package: 100}, log, "c"),
            "dear": answering(clock, 0.25, {package: 9_000}, log, "d"),
        },
        tmp_path,
        seconds=0.4,
    )
    assert found == {"cheap": pytest.approx(1e-4), "dear": pytest.approx(9e-3)}
    assert "".join(log[2 * WARM_UP :]) == "ccccd" * 4


def test_without_a_counter_there_is_no_figure_and_nobody_is_asked(tmp_path: Path) -> None:
    log: list[str] = []
    assert measure.energy({"a": lambda: log.append("a")}, tmp_path / "missing") == {}
    assert measure.energy({"a": lambda: log.append("a")}, tmp_path) == {}
    assert log == []


@pytest.mark.parametrize("unread", ["energy_uj", "max_energy_range_uj", "name"])
def test_a_counter_that_may_not_be_read_is_none(tmp_path: Path, unread: str) -> None:
    folder = zone(tmp_path, "intel-rapl:0", "package-0")
    (folder / unread).unlink()
    (folder / unread).mkdir()  # reading it fails, whoever reads: tests may run as root
    assert measure.energy({"a": lambda: None}, tmp_path) == {}


def test_a_counter_that_stands_still_gives_no_zero(tmp_path: Path, clock: list[float]) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", energy=5)
    assert measure.energy({"a": answering(clock, 0.05, {}, [])}, tmp_path) == {}


def test_threads_are_set_for_the_answers_and_put_back_when_one_fails(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0")
    before, seen = torch.get_num_threads(), list[int]()

    def fail() -> None:
        seen.append(torch.get_num_threads())
        raise RuntimeError("no answer")

    with pytest.raises(RuntimeError, match="no answer"):
        measure.energy({"a": fail}, tmp_path, threads=before + 1)
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_a_recipe_sets_threads_and_seconds_and_no_path() -> None:
    assert set(options(measure.energy)) == {"threads", "seconds"}
