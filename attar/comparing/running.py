"""Runs as processes of their own, some at a time: each found done, taken up again or begun."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from attar.comparing.planning import Job
from attar.screen import Advance, Screen

POLL = 0.25
"""Seconds between looks at what runs."""

GRACE = 20.0
"""Seconds that a process has to end by itself once it is told to."""

COMMAND = ("-m", "attar", "run")
"""What Python is told to do with a recipe."""

ENDED = (0, 3)
"""Exit codes of a run that came to its end; 3 where a gate of its recipe was not passed."""

LOG, RECIPE = "log.txt", "recipe.yaml"

TAIL = 4096
"""Bytes at the end of a log in which its last lines stand."""

UNTOLD = "This is a bug in attar"
"""How the last line of a log begins where the reason stands in the line before."""


@dataclass(frozen=True)
class Child:
    """A process at work, and what the screen shows of it."""

    job: Job
    process: subprocess.Popen[bytes]
    advance: Advance
    shown: ExitStack


def cores() -> int:
    """Processors that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # elsewhere than on Linux
        return os.cpu_count() or 1


class Crew:
    """Processes that do jobs, as many at a time as there is room for.

    done: tells whether a job is done, so that nothing is run again
    limit: processes at a time; threads: of each
    shared: the folder of the trainings; one that two jobs need is done once
    words: what each is told beside its recipe and its folder
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        done: Callable[[Job], bool],
        screen: Screen,
        limit: int,
        threads: int,
        shared: Path,
        words: Sequence[str] = (),
    ) -> None:
        self._waiting, self._total = deque(jobs), len(jobs)
        self._done, self._screen = done, screen
        self._limit, self._threads, self._shared, self._words = limit, threads, shared, words
        self._running: list[Child] = []
        self._ended = 0
        self.faults: dict[Job, str] = {}

    def work(self) -> dict[Job, str]:
        """Do all jobs; why those failed that did, each in a sentence.

        However it ends, no process is left behind: each is told to stop, which a run survives.
        """
        try:
            with self._screen.bar("Comparing") as advance:
                while self._waiting or self._running:
                    self._begin()
                    time.sleep(POLL if self._running or self._waiting else 0)
                    self._look()
                    advance(self._ended, self._total, "runs")
        finally:
            self._stop()
        return self.faults

    def _begin(self) -> None:
        """Begin what waits, as far as there is room; what another process is at is put back."""
        for _ in range(len(self._waiting)):
            if len(self._running) >= self._limit:
                return
            job = self._waiting.popleft()
            lock = _claim(job.folder)
            if lock is None:
                self._waiting.append(job)
                continue
            with lock:
                if self._done(job):
                    self._screen.say(f"{job.title}: found, done earlier.")
                    self._ended += 1
                else:
                    self._running.append(self._start(job, lock))

    def _start(self, job: Job, lock: IO[str]) -> Child:
        _link(job.folder / "arms", self._shared)
        (job.folder / RECIPE).write_text(job.recipe.to_yaml(), "utf-8")
        words = [*COMMAND, str(job.folder / RECIPE), "--out", str(job.folder)]
        with (job.folder / LOG).open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *words, *self._words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                # Ctrl-C is for this process, which then tells its own.
                start_new_session=True,
                pass_fds=(lock.fileno(),) if os.name == "posix" else (),
            )
        shown = ExitStack()
        return Child(job, process, shown.enter_context(self._screen.bar(job.title)), shown)

    def _environment(self) -> dict[str, str]:
        """This process's own, with a share of the threads, and the same attar in reach."""
        path = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        threads = str(self._threads)
        return {
            **os.environ,
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
        }

    def _look(self) -> None:
        """Show how far each process is; take away those that have ended."""
        for child in list(self._running):
            code = child.process.poll()
            last = _last(child.job.folder / LOG)
            if code is None:
                child.advance(0, 0, last[-1].removesuffix(" ...") if last else "")
                continue
            self._running.remove(child)
            self._ended += 1
            if code in ENDED:
                _keep_once(child.job.folder / "teacher", self._shared)
            else:
                self.faults[child.job] = _reason(code, last)
            told = "done" if code in ENDED else "failed"
            child.advance(0, 0, f"{told}; {self._ended} of {self._total} runs")
            child.shown.close()

    def _stop(self) -> None:
        for child in self._running:
            child.process.terminate()
        until = time.monotonic() + GRACE
        for child in self._running:
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, until - time.monotonic()))
            child.process.kill()
            child.process.wait()
            child.shown.close()


def _claim(folder: Path) -> IO[str] | None:
    """The folder's lock; None where another process holds it.

    The child inherits it, so that what a killed comparison has left running is not run twice.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / "lock").open("w")
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # Windows
        return file
    except BlockingIOError:
        file.close()
        return None
    return file


def _link(arms: Path, shared: Path) -> None:
    """Have a run keep its trainings where those of all are; they are named by what decides them."""
    shared.mkdir(parents=True, exist_ok=True)
    if not arms.exists():
        with suppress(OSError):  # Windows may refuse; then each run has its own
            arms.unlink(missing_ok=True)
            arms.symlink_to(os.path.relpath(shared, arms.parent), target_is_directory=True)


def _keep_once(teacher: Path, shared: Path) -> None:
    """Keep the same teacher of many runs on disk once: each has it under its own name."""
    for file in teacher.glob("*.safetensors"):
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()[:16]
        kept, unfinished = shared / f"teacher-{digest}.safetensors", file.with_suffix(".link")
        with suppress(OSError):  # where the disk knows no links there are copies
            if kept.exists():
                os.link(kept, unfinished)
                unfinished.replace(file)
            else:
                os.link(file, kept)


def _last(log: Path) -> list[str]:
    """The last lines of a log that say something."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return [line.strip() for line in lines if line.strip()]


def _reason(code: int, last: Sequence[str]) -> str:
    """Why a process failed, in a sentence."""
    if code < 0:
        name = signal.Signals(-code).name
        likely = "; the system may have run out of memory" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{likely}"
    said = [line for line in last if not line.startswith(UNTOLD)]
    told = said[-1] if said else f"exit code {code}"
    return told.removeprefix("Error: ").removesuffix(".")
