"""The report as one frozen paper: what was measured, of what, on what, at what cost."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from attar.errors import DataError, nearest
from attar.report import audits, headline, markdown, page, pairs, steps, table
from attar.report.contract import SCHEMA, check, plain, schema
from attar.report.rows import Row


@dataclass(frozen=True)
class Report:
    """What a run found out.

    recipe: the recipe; `text` is its YAML, `command` repeats the run, `name` titles the page
    environment: where it was measured: cpu, cores, threads, batch, tokens, precision, versions
    cost: what the run cost; `seconds` by step
    plan: what was decided on the way (which layer answers to which), any JSON
    verdict: plain sentences, as `verdict` writes them
    history: by arm, entries of `step`, `loss` and, where validated, `score`
    score_name: what `Row.score` measures
    differences: pairs of rows weighed against each other: `row`, `against`, `mean` of the paired
        differences in score, their 95 % interval `low` to `high`, the test's `p`, whether that is
        `resolved`, `by_seed`, and `why` in words
    audits: by row, what became of each answer beside those of the row `against`
    films: episodes as each of some rows played them: PNG pictures in base64 at the same `steps`,
        or `why` there are none
    """

    recipe: Mapping[str, Any]
    environment: Mapping[str, Any]
    rows: tuple[Row, ...]
    cost: Mapping[str, Any]
    plan: Any = None
    verdict: tuple[str, ...] = ()
    history: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    score_name: str = "score"
    differences: tuple[Mapping[str, Any], ...] = ()
    audits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    films: tuple[Mapping[str, Any], ...] = ()

    def row(self, name: str) -> Row:
        """The first row of that name. Raises DataError where there is none."""
        for row in self.rows:
            if row.name == name:
                return row
        names = [row.name for row in self.rows]
        raise DataError(f"the report has no row {name!r}; {nearest(name, names)}")

    @property
    def failed_gates(self) -> list[dict[str, Any]]:
        """The gates that an audit did not pass: `row`, `gate`, `limit`, `found`."""
        gates = (
            (row, gate) for row, audit in self.audits.items() for gate in audit.get("gates", ())
        )
        return [{"row": row, **gate} for row, gate in gates if not gate["ok"]]

    @property
    def tables(self) -> dict[str, Sequence[Mapping[str, Any]]]:
        """What steps told of on their way, by title: the plan's `tables`."""
        found = self.plan.get("tables") if isinstance(self.plan, Mapping) else None
        rows = found.items() if isinstance(found, Mapping) else ()
        return {str(title): table for title, table in rows if _is_table(table)}

    @property
    def decided(self) -> Any:
        """The plan without the tables that are shown by themselves."""
        if not self.tables:
            return self.plan
        left = {title: x for title, x in self.plan["tables"].items() if title not in self.tables}
        rest = {key: item for key, item in self.plan.items() if key != "tables"}
        return rest | ({"tables": left} if left else {})

    def to_dict(self) -> dict[str, Any]:
        """The content of `report.json`: strict JSON under the contract of `schema`."""
        content: dict[str, Any] = plain(
            {"schema": SCHEMA, **vars(self), "rows": [vars(row) for row in self.rows]}
        )
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Report:
        """A report from what `to_dict` made. Raises DataError where the contract is broken."""
        check(content, schema())
        fields = {key: value for key, value in content.items() if key != "schema"}
        fields["rows"] = tuple(Row(**row) for row in fields["rows"])
        for name in ("verdict", "differences", "films"):
            fields[name] = tuple(fields.get(name, ()))
        return cls(**fields)

    @classmethod
    def read(cls, path: str | Path) -> Report:
        """The report in a `report.json`, or in the folder that holds one. Raises DataError."""
        path = Path(path)
        path = path / "report.json" if path.is_dir() else path
        try:
            return cls.from_dict(json.loads(path.read_text("utf-8")))
        except OSError as error:
            raise DataError(
                f"{path} can't be read ({error.strerror}): has the run ended?"
            ) from error
        except ValueError as error:
            raise DataError(f"{path} is not JSON ({error}): run the recipe again") from error

    def write(self, folder: str | Path) -> Path:
        """Write report.json, report.md and report.html, each whole or not at all; the folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        content = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        _write(folder / "report.json", content + "\n")
        _write(folder / "report.md", self.markdown())
        _write(folder / "report.html", self.html())
        return folder

    def table(self) -> str:
        """The rows as an aligned table of plain text."""
        return "\n".join(table.terminal(self.rows, self.score_name))

    @property
    def joined(self) -> bool:
        """Whether it stands for several runs, as `join` makes it."""
        return "runs" in self.recipe

    @property
    def pairs(self) -> tuple[pairs.Pair, ...]:
        """The differences, as they are told."""
        return pairs.pairs(self.rows, self.differences)

    @property
    def headline(self) -> str:
        """The verdict in one sentence; empty where nothing can be said."""
        if self.joined:
            many, alike = len(self.recipe["runs"]), bool(self.recipe.get("same_test"))
            return headline.several(self.rows, self.score_name, many, alike)
        alone = self.plan.get("untaught", ()) if isinstance(self.plan, Mapping) else ()
        return headline.headline(self.rows, self.score_name, self.pairs, self.audits, alone)

    def steps(self) -> list[str]:
        """What each step changed, a sentence each."""
        return steps.sentences(self.rows, self.score_name)

    def sentences(self) -> list[str]:
        """All that is told in words: steps, gates, the verdict."""
        return [*self.steps(), *audits.gates(self.audits), *self.verdict]

    def weighed(self) -> list[str]:
        """Differences and audits as aligned tables of plain text; by seed and why are left out."""
        found = [pair.cells() for pair in self.pairs]
        shown = [[*line[:5], line[6]] for line in [list(pairs.HEAD), *found]]
        told = table.aligned(shown, {2, 3, 4}) if found else []
        audited = list(audits.cells(self.audits))
        lines = table.aligned([list(audits.HEAD), *audited]) if audited else []
        return [*told, *[""] * bool(told and lines), *lines]

    def lines(self) -> list[str]:
        """The report for a terminal: the tables, the headline, then everything in words."""
        # A model's name has hyphens, and is looked for whole.
        fill = partial(textwrap.fill, width=96, break_on_hyphens=False)
        told = [
            fill(sentence, initial_indent="- ", subsequent_indent="  ")
            for sentence in self.sentences()
        ]
        blocks = [
            [self.table()],
            self.weighed(),
            [fill(self.headline)] if self.headline else [],
            told,
        ]
        return "\n\n".join("\n".join(block) for block in blocks if block).split("\n")

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def html(self) -> str:
        """The report as one page that needs nothing but itself."""
        return page.html(self)

    def markdown(self) -> str:
        """The report for a repository or a pull request."""
        return markdown.document(self)


def _write(path: Path, text: str) -> None:
    """A reader sees the old file or the new one, never half of one."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(text, "utf-8", newline="\n")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _is_table(rows: Any) -> bool:
    """Whether these are records, as `tell` takes them."""
    return isinstance(rows, list | tuple) and all(isinstance(row, Mapping) for row in rows)
