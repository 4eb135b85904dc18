"""Documents that a language model reads: plain text, conversations, prompts with their answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attar.errors import DataError
from attar.tasks.splitting import HELD_OUT
from attar.tasks.tables import SPLITS, named_after
from attar.tasks.text import reading

ANSWERS = ("response", "completion", "answer", "output")
"""Columns that an answer to a `prompt` goes by."""

PLAIN = (".txt", ".md")
"""Endings of files that are one document each."""


@dataclass(frozen=True)
class Document:
    """Something to read, and what of it is to be learned.

    text: as it is read, a template of conversations applied
    learned: from which character to which; None where all of it is
    ended: whether the text says itself where it ends, as a template does
    turns: of a conversation, the messages before the first that is learned
    """

    text: str
    learned: tuple[tuple[int, int], ...] | None = None
    ended: bool = False
    turns: tuple[Mapping[str, Any], ...] = ()


def read(dataset: str, tokenizer: Any) -> dict[str, list[Document]]:
    """The documents of a file or folder: train, and validation and test where there are files.

    dataset: .txt, .jsonl (.gz), .json, .parquet or .csv; or a folder with such files, by splits
        where they are named after them (train, validation, test)
    tokenizer: whose template conversations are put into
    Raises DataError with what is wrong and what to do.
    """
    path = Path(dataset).expanduser()
    if not path.exists():
        raise DataError(f"There is no file or folder {dataset!r} (looked in {Path.cwd()}).")
    files = {"train": [path]} if path.is_file() else _by_split(path)
    return {
        split: [document for file in some for document in _documents(file, tokenizer)]
        for split, some in files.items()
    }


def divided(
    found: Mapping[str, list[Document]], seed: int, validation: float
) -> tuple[dict[str, list[Document]], tuple[str, ...]]:
    """The three parts, held out by whole documents where a file does not say; and what was done.

    Raises DataError where there are too few documents to hold some out.
    """
    parts, notes = dict(found), []
    random = np.random.default_rng(seed)
    for part, share in (("test", HELD_OUT), ("validation", validation)):
        if parts.get(part):
            continue
        train = parts["train"]
        number = max(1, round(share * len(train)))
        if number >= len(train):
            raise DataError(
                f"{len(train)} training documents are too few to hold some out for the "
                f"{part} split; give a file for it."
            )
        held = set(random.permutation(len(train))[:number].tolist())
        parts[part] = [train[n] for n in sorted(held)]
        parts["train"] = [each for n, each in enumerate(train) if n not in held]
        notes.append(f"{number} documents are held out as the {part} split.")
    return parts, tuple(notes)


def _by_split(folder: Path) -> dict[str, list[Path]]:
    """The files of a folder by the splits they are named after; all train where none is."""
    known = [path for path in sorted(folder.iterdir()) if reading.known(path) or _plain(path)]
    found = {
        split: [path for path in known if named_after(split, path)]
        for split in SPLITS
        if split != "unlabelled"
    }
    if not any(found.values()):
        found["train"] = known
    if not found["train"]:
        raise DataError(f"{folder} has no text to learn from (train.jsonl, train.txt or others).")
    return {split: files for split, files in found.items() if files}


def _plain(path: Path) -> bool:
    return path.suffix.lower() in PLAIN


def _documents(path: Path, tokenizer: Any) -> Iterator[Document]:
    if _plain(path):
        try:
            yield Document(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} can't be read as UTF-8: {error}.") from error
        return
    rows = reading.whole(path)
    for number, line in enumerate(rows.lines):
        said = {name: column[number] for name, column in rows.columns.items()}
        yield _document(f"{path}, {rows.unit} {line}", said, tokenizer)


def _document(place: str, said: Mapping[str, Any], tokenizer: Any) -> Document:
    """One row as a document. Raises DataError where it is none."""
    if said.get("messages") is not None:
        return conversation(place, said["messages"], tokenizer)
    answer = next((name for name in ANSWERS if said.get(name) is not None), None)
    if said.get("prompt") is not None and answer is not None:
        prompt, text = _string(place, said, "prompt"), _string(place, said, answer)
        return Document(prompt + text, ((len(prompt), len(prompt) + len(text)),))
    if said.get("text") is not None:
        return Document(_string(place, said, "text"))
    raise DataError(
        f"{place} has none of `text`, `messages`, or `prompt` with `response` "
        f"(it has: {', '.join(said)})."
    )


def _string(place: str, said: Mapping[str, Any], name: str) -> str:
    if not isinstance(said[name], str):
        raise DataError(f"{place}: {name!r} is a {type(said[name]).__name__}, and text is needed.")
    return str(said[name])


def conversation(place: str, messages: Sequence[Mapping[str, Any]], tokenizer: Any) -> Document:
    """Messages in the tokenizer's template, of which what the assistant says is to be learned.

    The template is applied to the whole, once; where an assistant's turn begins and ends is told by
    applying it to what came before. Raises DataError where it has no template, or one that writes
    earlier turns anew when later ones come.
    """
    if tokenizer.chat_template is None:
        raise DataError(f"{place} is a conversation, and the tokenizer has no chat template.")
    if not isinstance(messages, list) or not all(isinstance(each, dict) for each in messages):
        raise DataError(f"{place}: `messages` is no list of {{role, content}}.")

    def written(count: int, *, turn: bool = False) -> str:
        try:
            return str(
                tokenizer.apply_chat_template(
                    list(messages[:count]), tokenize=False, add_generation_prompt=turn
                )
            )
        except Exception as error:  # a template is a program of its own
            raise DataError(f"{place} does not fit the chat template: {error}.") from error

    whole, spans = written(len(messages)), []
    for number, message in enumerate(messages):
        if message.get("role") != "assistant":
            continue
        before, after = written(number, turn=True), written(number + 1)
        if not (whole.startswith(after) and after.startswith(before)):
            raise DataError(
                f"{place}: the chat template writes earlier turns otherwise once later ones come, "
                "so what the assistant said can't be told apart; give conversations of one turn."
            )
        spans.append((len(before), len(after)))
    if not spans:
        raise DataError(f"{place} is a conversation in which no assistant says anything.")
    first = next(n for n, each in enumerate(messages) if each.get("role") == "assistant")
    return Document(whole, tuple(spans), ended=True, turns=tuple(messages[:first]))
