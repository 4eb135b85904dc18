"""What a run says while it works: bars where somebody watches, plain lines elsewhere."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from attar.screen import Advance, Screen

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn, Task

WIDEST_BAR = 40
TITLE = 25
"""As many columns for each title, so that the bars stand below one another."""
FIGURES = 32
WORD = 10
BESIDE_THE_BAR = TITLE + FIGURES + WORD + 3
"""Columns that title, figures and word need, with a space after each."""


def watched(stream: TextIO) -> bool:
    """Whether a terminal that can draw shows what is written here."""
    from rich.console import Console

    return stream.isatty() and not Console(file=stream).is_dumb_terminal


def screen() -> Screen:
    """Where a run's words go: to stderr, so that stdout holds the outcome alone."""
    return Bars() if watched(sys.stderr) else Lines()


def clean(text: str) -> str:
    """The text with control characters spelled out: a label must not recolour a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def complain(sentence: str, *, error: bool = False) -> None:
    """One sentence to stderr."""
    if not watched(sys.stderr):
        print(f"{'Error: ' * error}{clean(sentence)}", file=sys.stderr, flush=True)
        return
    from rich.console import Console
    from rich.text import Text

    told = Text.assemble(("Error: " * error, "bold red"), clean(sentence))
    Console(stderr=True).print(told, soft_wrap=True)


def unbreakable() -> None:
    """Write `?` for what a terminal's encoding lacks, rather than fail at the end of a long run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


class Lines:
    """Plain sentences: for files, pipes and logs."""

    def say(self, sentence: str) -> None:
        """One line, at once."""
        print(clean(sentence), file=sys.stderr, flush=True)

    @contextmanager
    def bar(self, title: str) -> Iterator[Advance]:
        """A line when the work begins and a line when it is done."""
        from attar.report.figures import duration

        started, last = time.monotonic(), list[str]()

        def advance(done: int, total: int, word: str) -> None:
            # A unit follows its number ("9 of 9 texts"); more than one word is a remark.
            counted = f"{done} of {total}{',' * (' ' in word)} " if total else ""
            last[:] = [f"{counted}{word}".rstrip()]

        self.say(f"{title} ...")
        yield advance
        self.say(f"{title}: {', '.join([*last, duration(time.monotonic() - started)])}.")


class Bars:
    """Progress bars with rate and time left; sentences stand above them."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)
        self._progress: Progress | None = None

    def say(self, sentence: str) -> None:
        """A sentence, wrapped between words."""
        from rich.text import Text

        self._console.print(Text(clean(sentence)))

    @contextmanager
    def bar(self, title: str) -> Iterator[Advance]:
        """A bar that stays, full, when the work is done; inside of another, as a sentence."""
        inside = self._progress is not None
        last = [""]
        with self._shown() as progress:
            started = progress.get_time()
            bar = progress.add_task(clean(title), total=None, word="")

            def advance(done: int, total: int, word: str) -> None:
                task = next(each for each in progress.tasks if each.id == bar)
                last[:] = [word]
                if total and task.total is None:
                    # What an earlier run did already must not count into the rate.
                    progress.reset(bar, total=total, completed=done)
                    task.start_time = started
                progress.update(bar, completed=done, total=total or None, word=clean(word))

            try:
                yield advance
            finally:
                if inside:
                    progress.remove_task(bar)
                    self.say(f"{title}: {last[0]}, {_time(progress.get_time() - started)}.")

    @contextmanager
    def _shown(self) -> Iterator[Progress]:
        """What draws the bars: one for all that are there at a time."""
        if self._progress is not None:
            yield self._progress
            return
        from rich.progress import Progress

        columns = _columns(self._console.width)
        with Progress(*columns, console=self._console, refresh_per_second=4) as progress:
            self._progress = progress
            try:
                yield progress
            finally:
                self._progress = None


def _columns(width: int) -> list[ProgressColumn]:
    from rich.progress import BarColumn, ProgressColumn, TextColumn
    from rich.table import Column
    from rich.text import Text

    class Figures(ProgressColumn):
        """How much is done, how fast it goes, how long it will take."""

        max_refresh = 0.5

        def render(self, task: Task) -> Text:
            return Text(f"{_count(task):>9}  {_rate(task):>9}  {_clock(task)}", style="cyan")

    room = min(WIDEST_BAR, width - BESIDE_THE_BAR)
    drawn = [BarColumn(room)] if room >= 5 else []
    left = max(WORD, width - BESIDE_THE_BAR - room + WORD)
    title = TextColumn(
        "{task.description}", markup=False, table_column=Column(min_width=TITLE, no_wrap=True)
    )
    word = TextColumn(
        "{task.fields[word]}",
        style="dim",
        markup=False,
        table_column=Column(max_width=left, no_wrap=True, overflow="ellipsis"),
    )
    return [title, *drawn, Figures(table_column=Column(no_wrap=True)), word]


def _count(task: Task) -> str:
    return "" if task.total is None else f"{task.completed:.0f}/{task.total:.0f}"


def _rate(task: Task) -> str:
    speed = task.finished_speed or task.speed
    if not speed:
        return ""
    return f"{speed:.1f} it/s" if speed >= 1 else f"{1 / speed:.1f} s/it"


def _clock(task: Task) -> str:
    left = task.time_remaining
    if task.finished:
        return f"{_time(task.elapsed or 0)}"
    return "" if left is None else f"{_time(left)} left"


def _time(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
