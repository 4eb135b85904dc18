"""A teacher behind an endpoint through the whole house: asked, kept, learned from, reported."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import storybook
from asking import Ask
from speaking import Reply, answered, right, speaking, text_for

from attar.errors import DataError, RecipeError
from attar.hearing import heard
from attar.losses import response
from attar.pipeline import run
from attar.recipe import check, read
from attar.screen import Silent
from attar.setting import Book, begin
from attar.tasks.text import dictated
from attar.types import IGNORE


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("attar.endpoint.pace.FIRST", 0.001)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    model = str(storybook.saved(tmp_path / "model"))
    data = str(storybook.book(tmp_path / "book", train=12))
    return {
        "task": {"text.generation": {"dataset": data, "tokenizer": model, "length": 48}},
        "teacher": {"endpoint": {"model": "speaker"}},
        "student": {"llama": {"layers": 1, "width": 16, "heads": 2, "groups": 1}},
        "teach": {"teacher_text": {"prompt": 0.3}},
        "losses": ["task"],
        "steps": [{"distill": {"steps": 3, "batch_size": 4}}],
        "measure": ["score", "parameters"],
        "baselines": ["labels_only"],
    }


def test_what_an_endpoint_writes_is_learned_and_asked_once(
    said: dict[str, Any], tmp_path: Path
) -> None:
    with speaking() as server:
        said["teacher"]["endpoint"] |= {"url": server.url, "price": {"prompt": 1, "completion": 2}}
        report = run(read(said), tmp_path / "out")
        again = run(read(said), tmp_path / "again")
    assert set(server.times.values()) == {1}
    assert [row.name for row in report.rows] == ["student", "labels_only"]
    (line,) = report.tables["The endpoint that teaches"]
    count = len(server.asked)
    assert line["answers"] == line["requests"] == count
    assert line["cost"] == pytest.approx(count * (10 * 1 + 5 * 2) / 1e6)
    (line,) = again.tables["The endpoint that teaches"]
    assert (line["asked now"], line["requests"]) == (0, count)


def test_the_answers_teach_without_endpoint_and_key(said: dict[str, Any], tmp_path: Path) -> None:
    with speaking() as server:
        said["teacher"]["endpoint"]["url"] = server.url
        first = run(read(said), tmp_path / "out")
    said["teacher"]["endpoint"] |= {"url": "https://example.invalid/v1", "key": "NO_SUCH_KEY"}
    second = run(read(said), tmp_path / "again")
    assert [row.score for row in second.rows] == [row.score for row in first.rows]


def test_what_it_says_of_its_tokens_is_learned_too(said: dict[str, Any], tmp_path: Path) -> None:
    said["losses"] = ["response.kl"]
    with speaking() as server:
        said["teacher"]["endpoint"] |= {"url": server.url, "top": 3}
        here = heard(begin(read(said), tmp_path / "out"), Book())
        report = run(read(said), tmp_path / "out")
    assert math.isfinite(report.rows[0].score)
    assert here.heard is not None
    batch = here.task.batches("train", batch_size=2)
    rows = next(iter(batch))
    told: Any = here.heard.recall(rows)
    spelled, end = dictated.Spelled(storybook.tokenizer()), storybook.tokenizer().eos_token_id
    seen = 0
    for n, row in enumerate(rows.inputs):
        for place in np.flatnonzero(rows.labels[n, : len(row)] != IGNORE).tolist():
            label = int(rows.labels[n, place])
            parts = (part[n, place].tolist() for part in (told.logits.ids, told.logits.weights))
            weights = dict(zip(*parts, strict=True))
            if label == end:  # of which the endpoint told nothing: it came, and is sure
                assert weights[label] == pytest.approx(1, rel=0.02)
                continue
            known = {" owl": 0.2, "!": 0.05} | {spelled.texts[label]: 0.7}
            for text, p in known.items():
                assert weights[spelled.ids[text]] == pytest.approx(p, rel=0.1)
            others = sum(weights.values()) - sum(weights[spelled.ids[text]] for text in known)
            rest = others + float(told.logits.rest[n, place])
            assert rest == pytest.approx(1 - sum(known.values()), abs=0.03)
            seen += 1
    assert seen > 5


def test_from_the_command_line_to_a_report_without_the_key(
    said: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Ask
) -> None:
    secret = "sk-nobody-may-see-this"
    monkeypatch.setenv("MY_KEY", secret)
    monkeypatch.chdir(tmp_path)
    with speaking() as server:
        options = {"url": server.url, "key": "MY_KEY", "top": 2, "prompts": 20}
        said["teacher"]["endpoint"] |= options | {"price": {"prompt": 1, "completion": 1}}
        said["losses"] = [{"response.kl": {"weight": 0.5}}, {"task": {"weight": 0.5}}]
        Path("far.yaml").write_text(json.dumps(said))
        told = ask("check far.yaml")
        assert (told.code, len(server.asked)) == (0, 0)
        assert "endpoint 20 of 20 prompts to ask: about " in told.out
        assert ask("teach far.yaml").code == 0
        assert len(server.asked) == 20
        told = ask("check far.yaml")
        assert "20 prompts, all answered" in told.out
        ran = ask("run far.yaml --out out")
        assert ran.code == 0, ran.err
        assert len(server.asked) == 20
    assert {headers["Authorization"] for _, headers, _ in server.asked} == {f"Bearer {secret}"}
    page = Path("out/report.md").read_text()
    assert "## The endpoint that teaches" in page
    assert "tokens are the student's in 20 of 20 answers (100%)" in ran.err
    info, verify = ask("store info cache/answers"), ask("store verify cache/answers")
    assert "answers              20" in info.out
    assert "20 answers, whole" in verify.out
    everything = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in everything if secret.encode() in path.read_bytes()]
    assert secret not in "".join([told.out, told.err, ran.out, ran.err, info.out])


TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who sang?"},
    {"role": "assistant", "content": "Mara."},
    {"role": "user", "content": "Where?"},
    {"role": "assistant", "content": "In the rain."},
]


def test_a_conversation_is_asked_by_messages_and_read_in_the_students_template(
    said: dict[str, Any], tmp_path: Path
) -> None:
    def turned(name: str) -> list[dict[str, str]]:
        return [TALK[0], {"role": "user", "content": f"Who is {name}?"}, *TALK[2:]]

    for part, names in {"train": "abcdef", "validation": "gh", "test": "ij"}.items():
        lines = (json.dumps({"messages": turned(name)}) for name in names)
        (tmp_path / "book" / f"{part}.jsonl").write_text("\n".join(lines))

    def cut(_: int, path: str, body: dict[str, Any]) -> Reply | None:
        whole = answered(path, body)
        if "Who is c?" in body["messages"][1]["content"]:
            whole["choices"][0]["finish_reason"] = "length"
            return right(whole)
        return None

    with speaking(cut) as server:
        said["teacher"]["endpoint"] |= {"url": server.url, "top": 2, "tokens": 12}
        said["task"]["text.generation"] |= {"length": 64, "pack": False}
        here = heard(begin(read(said), tmp_path / "out"), Book())
    path, _, body = server.asked[0]
    assert path == "/v1/chat/completions"
    assert [each["role"] for each in body["messages"]] == ["system", "user"]
    assert (body["logprobs"], body["top_logprobs"], body["max_tokens"]) == (True, 2, 12)
    reads = storybook.tokenizer()
    found = {}
    for batch in here.task.sweep("train"):
        for row in batch.inputs:
            found[reads.decode(row.ids)] = reads.decode(row.ids[row.learned])
    expected = {}
    for name in "abcdef":
        text = text_for(json.dumps(turned(name)[:2])) + "<|end|>" * (name != "c")
        before = f"<|system|>Be brief.<|end|><|user|>Who is {name}?<|end|><|assistant|>"
        expected[before + text] = text
    assert found == expected


@pytest.mark.parametrize(
    ("by", "path", "before"),
    [(None, "completions", "He said"), ("chat", "chat/completions", "He said ")],
)
def test_a_prompt_with_its_response_is_asked_as_the_recipe_says(
    said: dict[str, Any], tmp_path: Path, by: str | None, path: str, before: str
) -> None:
    for part in ("train", "validation", "test"):
        lines = (json.dumps({"prompt": "He said", "response": f" {part} {n}"}) for n in range(3))
        (tmp_path / "book" / f"{part}.jsonl").write_text("\n".join(lines))
    with speaking(lambda *_: right(plain(_[1], "yes."))) as server:
        said["teacher"]["endpoint"] |= {"url": server.url, "by": by}
        here = heard(begin(read(said), tmp_path / "out"), Book())
    assert len(server.asked) == 1  # one prompt, whatever its answers were
    assert server.asked[0][0] == f"/v1/{path}"
    (row,) = next(here.task.sweep("train")).inputs
    assert storybook.tokenizer().decode(row.ids) == f"{before}yes.<|end|>"


def plain(path: str, text: str) -> dict[str, Any]:
    """An answer of this text, of which nothing else is told."""
    said = {"message": {"content": text}} if "chat" in path else {"text": text}
    return {"choices": [said | {"finish_reason": "stop"}]}


def test_tokens_of_another_tokenizer_leave_the_text(said: dict[str, Any], tmp_path: Path) -> None:
    def letters(_: int, path: str, body: dict[str, Any]) -> Reply | None:
        whole = answered(path, body)
        told = whole["choices"][0]
        if sum(body["prompt"].encode()) % 2:
            each = [{letter: -0.1, "x": -3.0} for letter in told["text"]]
            told["logprobs"] = {
                "tokens": list(told["text"]),
                "token_logprobs": [-0.1] * len(each),
                "top_logprobs": each,
            }
        return right(whole)

    heard_of: list[str] = []
    with speaking(letters) as server:
        said["teacher"]["endpoint"] |= {"url": server.url, "top": 2}
        setting = begin(read(said), tmp_path / "out")
        screen = Silent()
        screen.say = heard_of.append  # type: ignore[method-assign]
        here = heard(replace(setting, screen=screen), Book())
    odd = sum(sum(body["prompt"].encode()) % 2 for _, _, body in server.asked)
    count = len(server.asked)
    assert 0 < odd < count
    (line,) = [each for each in heard_of if "tokens are the student's" in each]
    assert f"in {count - odd} of {count} answers" in line
    assert line.endswith("; of the others the text alone is learned.")
    assert here.heard is not None
    rows = next(iter(here.task.batches("train", batch_size=8)))
    told: Any = here.heard.recall(rows)
    mass = told.logits.weights.sum(-1) + told.logits.rest
    assert mass[told.mask.bool()].tolist() == pytest.approx([1.0] * int(told.mask.sum()), abs=0.05)
    # Of the text alone the loss is that of the text: what comes is sure.
    student = here.task.load(storybook.llama(1))
    mine = here.task.forward(student, rows)
    sure = here.task.verbatim(rows)
    at = rows.labels[:, : mine.logits.shape[1]] != IGNORE
    kl = response.kl(mine.logits[at].dense(), sure.logits[at].dense())
    assert kl.item() == pytest.approx(here.task.loss(mine, rows).item(), abs=1e-4)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"teach": "online"}, "is asked before the training and gives text"),
        ({"student": "teacher"}, "is no network here that a student could be made of"),
        ({"losses": ["response.kl"]}, "is asked for text alone: give it `top`"),
    ],
)
def test_what_an_endpoint_can_not_give_is_said_with_its_line(
    said: dict[str, Any], change: dict[str, Any], sentence: str
) -> None:
    said["teacher"]["endpoint"]["url"] = "https://example.org/v1"
    with pytest.raises(RecipeError, match=sentence):
        check(read(said | change))


def test_answers_that_say_nothing_are_left_out_and_told(
    said: dict[str, Any], tmp_path: Path
) -> None:
    def acts(_: int, path: str, __: dict[str, Any]) -> Reply | None:
        return right(plain(path, " \n")) if len(server.asked) % 2 else None

    heard_of: list[str] = []
    screen = Silent()
    screen.say = heard_of.append  # type: ignore[method-assign]
    with speaking(acts) as server:
        said["teacher"]["endpoint"] |= {"url": server.url, "prompts": 6, "limits": {"at_once": 1}}
        heard(replace(begin(read(said), tmp_path / "out"), screen=screen), Book())
    assert "Left out: 3 answers, which say nothing." in heard_of
    with speaking(lambda _, path, __: right(plain(path, ""))) as server:
        said["teacher"]["endpoint"] |= {"url": server.url, "prompts": 4, "tokens": 3}
        with pytest.raises(DataError, match="answered nothing that could be learned from"):
            heard(begin(read(said), tmp_path / "out"), Book())
