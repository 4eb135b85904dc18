"""Live progress for whoever watches from elsewhere: TensorBoard, MLflow or Weights & Biases."""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from attar.errors import AttarError, MissingExtra, nearest
from attar.report.rows import FIGURES, Row

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from attar.report import Report

KEPT = "tracking.json"
"""Where a run's folder says under which name it is known elsewhere, and what was told there."""

PROJECT = "attar"
"""What runs stand under in MLflow (its experiment) and in Weights & Biases (its project)."""

FLUSH = 10
"""Seconds after which TensorBoard can show a record; its own two minutes are long to watch."""

Figures = Mapping[str, float]

Told = Callable[[Mapping[str, Any]], None]
"""Takes what the training loop tells of a step."""


class Tracker(Protocol):
    """Somewhere else that is told how trainings go, and in the end how good the models are."""

    def tell(self, training: str, key: str, step: int, figures: Figures) -> None: ...

    def end(self, rows: Mapping[str, Figures]) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Tracking:
    """Every tracker that was asked for; none, where none was.

    within: what stands before the names of trainings
    """

    trackers: tuple[Tracker, ...] = ()
    within: str = ""

    def of(self, recipe: str) -> Tracking:
        """The same for the trainings of another recipe."""
        return replace(self, within=f"{self.within}{recipe}/")

    def watch(self, training: str, key: str) -> Told:
        """What a training's records go to.

        key: another one is another training, even of that name
        """

        def told(record: Mapping[str, Any]) -> None:
            figures = {
                name: float(value)
                for name, value in record.items()
                if name not in ("step", "steps") and isinstance(value, int | float)
            }
            for tracker in self.trackers:
                tracker.tell(self.within + training, key, record["step"], figures)

        return told

    def end(self, report: Report) -> None:
        """Tell the figures of every row."""
        rows = {row.name: dict(_figures(row)) for row in report.rows}
        for tracker in self.trackers:
            tracker.end(rows)

    def close(self) -> None:
        """Let go of files and connections; what was told stays."""
        for tracker in self.trackers:
            tracker.close()


def _figures(row: Row) -> Iterator[tuple[str, float]]:
    known = {name: vars(row)[name] for name in FIGURES} | dict(row.latency_ms or {})
    yield from ((name, float(value)) for name, value in known.items() if value is not None)


def opened(wanted: Sequence[str], out: Path, name: str) -> Tracking:
    """The trackers that are asked for, opened where a run of that name goes on or begins.

    wanted: `NAME` or `NAME:WHERE` each: `tensorboard[:DIR]`, `mlflow[:URI]`,
        `wandb[:DIR or online]`
    out: the run's folder
    Raises AttarError where there is no such tracker, MissingExtra where it is not installed.
    """
    known = [each.partition(":") for each in named(wanted)]
    return Tracking(tuple(TRACKERS[kind](where, out, name) for kind, _, where in known))


def named(wanted: Sequence[str]) -> Sequence[str]:
    """The same, once each is known to be a tracker. Raises AttarError where one is not."""
    for each in wanted:
        kind = each.partition(":")[0]
        if kind not in TRACKERS:
            raise AttarError(f"There is no tracker {kind!r}; {nearest(kind, TRACKERS)}")
    return wanted


class TensorBoard:
    """Event files: a folder for each training, its figures by their names.

    In a folder that is named, which may be that of many runs, a run has one of its own.

    A training that goes on where it was interrupted says so, and what was told of the steps that
    it takes again is hidden.
    """

    def __init__(self, where: str, out: Path, name: str) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtra("tensorboard", "tensorboard", "tracking by TensorBoard") from error
        self._make = SummaryWriter
        self._folder = Path(where) / name if where else out / "tensorboard"
        self._writers: dict[str, SummaryWriter] = {}

    def tell(self, training: str, key: str, step: int, figures: Figures) -> None:
        """Add a point to each curve of the training."""
        del key  # a new training begins at its first step, before which nothing stays
        writer = self._writer(training, step)
        for name, value in figures.items():
            writer.add_scalar(name, value, step)

    def end(self, rows: Mapping[str, Figures]) -> None:
        """Add the figures of every row, as points of one step."""
        for row, figures in rows.items():
            for name, value in figures.items():
                self._writer("rows", 0).add_scalar(f"{name}/{row}", value, 0)

    def close(self) -> None:
        """Write what is still held back."""
        for writer in self._writers.values():
            writer.close()

    def _writer(self, training: str, step: int) -> SummaryWriter:
        if training not in self._writers:
            folder = self._folder / training
            self._writers[training] = self._make(str(folder), purge_step=step, flush_secs=FLUSH)
        return self._writers[training]


class MLflow:
    """A run of MLflow in the experiment `attar`; a metric for each figure of each training."""

    def __init__(self, where: str, out: Path, name: str) -> None:
        try:
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
        except ImportError as error:
            raise MissingExtra("mlflow", "mlflow", "tracking by MLflow") from error
        try:
            self._client = MlflowClient(tracking_uri=where or None)
        except MlflowException as error:
            raise AttarError(f"MLflow can't track here: {error}") from error
        self._name = name
        self._known = Known(out / KEPT, "mlflow")
        self._run = ""

    def tell(self, training: str, key: str, step: int, figures: Figures) -> None:
        """Log each figure under `TRAINING/NAME`, but for steps that were told before."""
        if self._known.new(training, key, step):
            run = self._began()
            for name, value in figures.items():
                self._client.log_metric(run, _plain(f"{training}/{name}"), value, step=step)

    def end(self, rows: Mapping[str, Figures]) -> None:
        """Log the figures of every row under `rows/ROW/NAME`."""
        run = self._began()
        for row, figures in rows.items():
            for name, value in figures.items():
                self._client.log_metric(run, _plain(f"rows/{row}/{name}"), value)
        self._client.set_terminated(run, "FINISHED")
        self._run = ""

    def close(self) -> None:
        """Say of a run that has not come to its end that it was stopped; it can go on."""
        if self._run:
            self._client.set_terminated(self._run, "KILLED")

    def _began(self) -> str:
        """The run, begun or taken up again."""
        from mlflow.exceptions import MlflowException

        if not self._run and self._known.run:
            try:
                self._client.update_run(self._known.run, status="RUNNING")
                self._run = self._known.run
            except MlflowException:  # it was deleted, or is another server's
                self._known.run = ""
        if not self._run:
            found = self._client.get_experiment_by_name(PROJECT)
            experiment = found.experiment_id if found else self._client.create_experiment(PROJECT)
            made = self._client.create_run(experiment, run_name=self._name)
            self._run = self._known.run = made.info.run_id
        return self._run


class Wandb:
    """A run of Weights & Biases in the project `attar`; offline, unless it is asked to be online.

    `wandb sync` sends later what was kept offline.
    """

    def __init__(self, where: str, out: Path, name: str) -> None:
        try:
            import wandb
        except ImportError as error:
            raise MissingExtra("wandb", "wandb", "tracking by Weights & Biases") from error
        online = where == "online"
        folder = Path(where) if where and not online else out
        folder.mkdir(parents=True, exist_ok=True)
        self._known = Known(out / KEPT, "wandb")
        self._known.run = self._known.run or uuid.uuid4().hex[:12]
        self._run = wandb.init(
            project=PROJECT,
            name=name,
            id=self._known.run,
            resume="allow",
            dir=str(folder),
            mode="online" if online else "offline",
        )
        self._axes = set[str]()

    def tell(self, training: str, key: str, step: int, figures: Figures) -> None:
        """Log each figure over the training's own steps, but for those that were told before."""
        if not self._known.new(training, key, step):
            return
        axis = f"{training}/step"
        if axis not in self._axes:
            self._axes.add(axis)
            self._run.define_metric(axis, hidden=True)
            self._run.define_metric(f"{training}/*", step_metric=axis)
        told = {f"{training}/{name}": value for name, value in figures.items()}
        self._run.log({axis: step, **told})

    def end(self, rows: Mapping[str, Figures]) -> None:
        """Put the figures of every row into the run's summary."""
        self._run.summary.update(
            {
                f"rows/{row}/{name}": value
                for row, said in rows.items()
                for name, value in said.items()
            }
        )

    def close(self) -> None:
        """End the run; it can go on."""
        self._run.finish()


TRACKERS: dict[str, Callable[[str, Path, str], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": Wandb,
}
"""What `--track` can name."""


class Known:
    """What a tracker was told, beside the run's results: so that no step is told twice."""

    def __init__(self, file: Path, tracker: str) -> None:
        self._file, self._tracker = file, tracker
        try:
            kept = json.loads(file.read_text("utf-8")).get(tracker, {})
        except (OSError, ValueError):
            kept = {}
        self._run: str = kept.get("run", "")
        self._told: dict[str, list[Any]] = kept.get("told", {})

    @property
    def run(self) -> str:
        """The name of the run there; empty where it has not begun."""
        return self._run

    @run.setter
    def run(self, name: str) -> None:
        if name != self._run:
            self._run = name
            self._keep()

    def new(self, training: str, key: str, step: int) -> bool:
        """Whether this step was never told; from now on it was."""
        before = self._told.get(training)
        if before is not None and before[0] == key and step <= before[1]:
            return False
        self._told[training] = [key, step]
        self._keep()
        return True

    def _keep(self) -> None:
        """Before a step is told, not after: one that is lost does no harm, one told twice does."""
        try:
            every = json.loads(self._file.read_text("utf-8"))
        except (OSError, ValueError):
            every = {}
        every[self._tracker] = {"run": self._run, "told": self._told}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._file.with_name(f".{KEPT}.{os.getpid()}")
        unfinished.write_text(json.dumps(every), "utf-8")
        unfinished.replace(self._file)


def _plain(name: str) -> str:
    """A name as MLflow takes it: letters, digits, and few signs."""
    return re.sub(r"[^\w\-. /]", "_", name)
