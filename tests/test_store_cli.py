"""`attar store info|verify|prune`: what there is, whether it is whole, and what may go."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from asking import Answer, asking

from attar.cli import main
from attar.store import MANIFEST, STALE, Store, examine, key, prune
from attar.types import Knowledge

TEACHER = {"weights": "5d41aa", "max_length": 64, "classes": ["card", "cash", "fee"]}


Ask = Callable[[str, Path], Answer]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Run `attar store` in this process, on some folder."""
    monkeypatch.delenv("ATTAR_DEBUG", raising=False)
    called = asking(capsys)
    return lambda line, folder: called(f"store {line} {shlex.quote(str(folder))}")


def fill(folder: Path, rows: range = range(6), **options: Any) -> list[Path]:
    """Put some rows; gives the shards."""
    with Store.open(folder, TEACHER, shard_rows=2, **options) as store:
        generator = torch.Generator().manual_seed(rows.start)
        knowledge = Knowledge(
            torch.randn(len(rows), 3, generator=generator), {"pooler": torch.zeros(len(rows), 4)}
        )
        store.put([key(f"text {row}") for row in rows], knowledge)
    return shards(folder)


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*.safetensors"))


def flip(path: Path, position: int = -1) -> None:
    raw = bytearray(path.read_bytes())
    raw[position] ^= 1
    path.write_bytes(raw)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def refused(answer: Answer) -> str:
    """The one sentence of a command that was refused."""
    assert answer.code == 2, answer
    assert "Traceback" not in answer.err
    *before, sentence = answer.err.splitlines()
    assert before == []
    assert sentence.startswith("Error: ")
    return sentence


def test_info_says_whose_how_much_and_how_kept(ask: Ask, tmp_path: Path) -> None:
    fill(tmp_path, top=2, features="int8")
    before = files(tmp_path)
    answer = ask("info", tmp_path)
    assert (answer.code, answer.err) == (0, "")
    first, *lines = answer.out.splitlines()
    assert first == str(tmp_path)
    told = dict(line.strip().split("  ", 1) for line in lines)
    told = {name: says.strip() for name, says in told.items()}
    size = sum(path.stat().st_size for path in shards(tmp_path)) / 1000
    assert told["rows"] == f"6 in 3 shards, {size:.1f} KB"
    assert told["logits"] == "3"
    assert told["feature:pooler"] == "4"
    assert told["kept"] == "logits fp32, the top 2 of each row; features int8"
    assert told["format"].startswith("2, by attar")
    assert told["teacher weights"] == "5d41aa"
    assert told["teacher classes"] == "3: card, cash, fee"
    assert files(tmp_path) == before


def test_info_says_what_is_as_long_as_its_text(ask: Ask, tmp_path: Path) -> None:
    with Store.open(tmp_path, {"classes": [f"class {n}" for n in range(50)]}) as store:
        put = Knowledge(torch.zeros(1, 50), {"deep": torch.zeros(1, 2, 3)}, torch.ones(1, 2))
        store.put([key("a")], put)
    answer = ask("info", tmp_path)
    assert "length x 3" in answer.out
    assert "50: class 0, class 1" in answer.out
    assert max(map(len, answer.out.splitlines())) < 100


def test_a_folder_of_stores_is_each_of_them(ask: Ask, tmp_path: Path) -> None:
    for name in ("one", "two"):
        fill(tmp_path / name)
    (tmp_path / "three").mkdir()
    for command in ("info", "verify"):
        answer = ask(command, tmp_path)
        assert answer.code == 0
        assert [name in answer.out for name in ("one", "two", "three")] == [True, True, False]
    assert ask("prune", tmp_path).out == "Nothing to remove.\n"


@pytest.mark.parametrize("command", ["info", "verify", "prune"])
def test_a_folder_without_a_store_is_refused(ask: Ask, tmp_path: Path, command: str) -> None:
    assert "holds no store of knowledge" in refused(ask(command, tmp_path))
    assert "none there" in refused(ask(command, tmp_path / "none there"))


def test_an_unknown_word_or_a_missing_folder_is_a_sentence_and_not_a_bug(
    ask: Ask, tmp_path: Path
) -> None:
    assert ask("tidy", tmp_path).code == 2
    assert main(["store", "info"]) == 2
    assert main(["store", "--help"]) == 0


def test_verify_finds_every_damaged_file_and_names_the_cure(ask: Ask, tmp_path: Path) -> None:
    first, second, third = fill(tmp_path)
    assert ask("verify", tmp_path) == Answer(0, f"{tmp_path}: whole\n", "")
    flip(first)
    flip(third, 20)
    sentence = refused(ask("verify", tmp_path))
    assert first.name in sentence
    assert second.name not in sentence
    assert third.name in sentence
    assert "attar store prune" in sentence
    flip(tmp_path / MANIFEST, 30)
    answer = ask("verify", tmp_path)
    assert MANIFEST in refused(answer)
    assert answer.out == f"{tmp_path}: 3 damaged\n"


def test_prune_removes_what_is_damaged_and_what_is_left_is_read(ask: Ask, tmp_path: Path) -> None:
    first, *rest = fill(tmp_path)
    flip(first)
    before = files(tmp_path)
    dry = ask("prune --dry-run", tmp_path)
    assert dry.code == 0
    assert dry.out.startswith(f"Would remove {first} (")
    assert dry.out.endswith("): damaged\n")
    assert files(tmp_path) == before
    done = ask("prune", tmp_path)
    assert done.out == dry.out.replace("Would remove", "Removed")
    assert shards(tmp_path) == rest
    store = Store.open(tmp_path, TEACHER)
    assert len(store.missing([key(f"text {row}") for row in range(6)])) == 2
    assert store.verify() == 2
    assert ask("prune", tmp_path).out == "Nothing to remove.\n"


def test_a_damaged_manifest_goes_and_is_written_again(ask: Ask, tmp_path: Path) -> None:
    fill(tmp_path)
    whole = (tmp_path / MANIFEST).read_bytes()
    flip(tmp_path / MANIFEST, 50)
    assert "damaged" in ask("prune", tmp_path).out
    assert not (tmp_path / MANIFEST).exists()
    for command in ("info", "verify", "prune", "prune --dry-run"):
        assert f"{tmp_path} has lost its manifest.json" in refused(ask(command, tmp_path))
    assert len(Store.open(tmp_path, TEACHER)) == 6
    assert (tmp_path / MANIFEST).read_bytes() == whole


def test_a_shard_whose_rows_all_lie_elsewhere_goes(ask: Ask, tmp_path: Path) -> None:
    fill(tmp_path / "kept", range(4))
    with Store.open(tmp_path / "more", TEACHER) as store:
        keys = [key(f"text {row}") for row in range(5)]
        store.put(keys, Knowledge(torch.zeros(5, 3), {"pooler": torch.zeros(5, 4)}))
    (whole,) = shards(tmp_path / "more")
    partly = fill(tmp_path / "partly", range(4, 6))[0]
    for path in (whole, partly):
        path.rename(tmp_path / "kept" / path.name)
    answer = ask("prune", tmp_path / "kept")
    assert answer.out.count("every row lies in another shard too") == 2
    assert {path.name for path in shards(tmp_path / "kept")} == {whole.name, partly.name}
    assert len(Store.found(tmp_path / "kept")) == 6


def test_what_belongs_to_another_or_is_kept_otherwise_goes(ask: Ask, tmp_path: Path) -> None:
    own = fill(tmp_path / "kept", range(2))
    strange = [fill(tmp_path / "int8", range(2, 4), features="int8")[0]]
    with Store.open(tmp_path / "other", {**TEACHER, "weights": "6e52"}) as store:
        store.put([key("a")], Knowledge(torch.zeros(1, 3), {"pooler": torch.zeros(1, 4)}))
    strange += shards(tmp_path / "other")
    for path in strange:
        path.rename(tmp_path / "kept" / path.name)
    answer = ask("verify", tmp_path / "kept")
    assert answer.out == f"{tmp_path / 'kept'}: whole; 2 unused\n"
    answer = ask("prune", tmp_path / "kept")
    assert answer.out.count("of another teacher, or kept otherwise than the rest") == 2
    assert shards(tmp_path / "kept") == own


def test_only_old_temporary_files_go(ask: Ask, tmp_path: Path) -> None:
    fill(tmp_path)
    young, old = tmp_path / "shard-1.safetensors.ab.tmp", tmp_path / f"{MANIFEST}.cd.tmp"
    others = tmp_path / "notes.tmp"
    for path in (young, old, others):
        path.write_bytes(b"half a sh")
    long_ago = time.time() - STALE - 60
    os.utime(old, (long_ago, long_ago))
    os.utime(others, (long_ago, long_ago))
    assert ask("verify", tmp_path).out == f"{tmp_path}: whole; 1 unused\n"
    assert old.exists()
    assert ask("prune", tmp_path).out == f"Removed {old} (9 B): left half written\n"
    assert young.exists()
    assert others.exists()
    assert not old.exists()


def test_a_format_that_is_not_read_any_more_goes_and_a_newer_one_stays(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("attar.store.manifest.VERSION", 1)
        for command in ("info", "verify", "prune"):
            assert "install a newer attar" in refused(ask(command, tmp_path))
    assert len(shards(tmp_path)) == 3
    for module in ("manifest", "upkeep"):
        monkeypatch.setattr(f"attar.store.{module}.OLDEST", 3)
    assert "attar store prune removes it" in refused(ask("info", tmp_path))
    assert ask("prune", tmp_path).out.count("of format 2, which is not read any more") == 4
    assert list(tmp_path.iterdir()) == []


def test_a_name_can_not_recolour_a_terminal(ask: Ask, tmp_path: Path) -> None:
    with Store.open(tmp_path, {"classes": ["\x1b[31mred"]}) as store:
        store.put([key("a")], Knowledge(torch.zeros(1, 1)))
    answer = ask("info", tmp_path)
    assert "\x1b" not in answer.out
    assert "red" in answer.out


def test_what_pruning_finds_is_told_to_python_too(tmp_path: Path) -> None:
    first, *_ = fill(tmp_path)
    size = first.stat().st_size
    flip(first)
    (found,) = examine(tmp_path)
    assert (found.path, found.size, found.why, found.damaged) == (first, size, "damaged", True)
    assert prune(tmp_path) == [found]
    assert examine(tmp_path) == []
    json.dumps(Store.found(tmp_path).info())
