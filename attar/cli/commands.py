"""The commands: each asks a room or the corridor for something, and shows it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from attar.cli.audit import end_by_gates, with_audit
from attar.cli.ending import EXIT_CODES, USER, Commands
from attar.cli.store import with_store
from attar.cli.terminal import clean, screen
from attar.errors import AttarError, RecipeError, nearest

if TYPE_CHECKING:
    from attar.resolve import Description
    from attar.setting import Setting

app = with_audit(
    with_store(
        typer.Typer(
            cls=Commands,
            help="Turn a big model into the best small one you can ship, and prove it.",
            epilog=EXIT_CODES,
            add_completion=False,
            pretty_exceptions_enable=False,
        )
    )
)

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.")]
Out = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder for artifacts and report.", show_default="runs/NAME"),
]
Seed = Annotated[
    int | None, typer.Option(min=0, metavar="N", help="Seed of everything random: seed=N.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change the recipe: losses.1.weight=0.5."),
]
Trust = Annotated[
    bool, typer.Option("--trust", help="Let names with a colon run code of your own.")
]
Track = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[:WHERE]",
        help="Show trainings live: tensorboard[:DIR], mlflow[:URI], wandb[:DIR or online].",
    ),
]


@app.callback(invoke_without_command=True)
def attar(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Turn a big model into the best small one you can ship, and prove it."""
    if version:
        from attar import __version__

        print(f"attar {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def run(
    context: typer.Context,
    recipe: RecipeFile,
    *,
    out: Out = None,
    seed: Seed = None,
    settings: Settings = None,
    trust: Trust = False,
    track: Track = None,
) -> None:
    """Do what a recipe says, and report it."""
    from attar import pipeline
    from attar.cli.tables import show_artifacts, show_report

    report = pipeline.run(
        recipe,
        out,
        overrides=_overrides(settings, seed),
        trust=trust,
        screen=screen(),
        command=context.obj,
        track=track or (),
    )
    print()
    show_report(report)
    show_artifacts(out or Path("runs") / report.recipe["name"], report)
    end_by_gates(report)


@app.command()
def compare(
    context: typer.Context,
    comparison: Annotated[
        Path, typer.Argument(metavar="COMPARISON", help="Arms, seeds and sizes, a YAML file.")
    ],
    *,
    out: Out = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Runs at a time.", show_default="as cores allow"),
    ] = None,
    settings: Settings = None,
    trust: Trust = False,
    track: Track = None,
) -> None:
    """Run many arms with many seeds, and weigh them in pairs."""
    from attar import comparing
    from attar.cli.tables import show_artifacts, show_report

    report = comparing.compare(
        comparison,
        out,
        jobs=jobs,
        overrides=settings or [],
        trust=trust,
        screen=screen(),
        command=context.obj,
        track=track or (),
    )
    print()
    show_report(report)
    show_artifacts(out or Path("runs") / report.recipe["name"], report)


@app.command()
def check(
    recipe: RecipeFile,
    *,
    out: Out = None,
    seed: Seed = None,
    settings: Settings = None,
    trust: Trust = False,
) -> None:
    """Look everything up and say what a run would do and cost, without doing it."""
    from attar.forecast import forecast

    for line in forecast(_begin(recipe, out, seed, settings, trust)).lines():
        print(clean(line))


@app.command()
def teach(
    recipe: RecipeFile,
    *,
    out: Out = None,
    seed: Seed = None,
    settings: Settings = None,
    trust: Trust = False,
) -> None:
    """Only ask the teacher, and keep what it says: the first part of a run."""
    from attar import casting, hearing, pipeline, schooling
    from attar.setting import Book

    here, book = _begin(recipe, out, seed, settings, trust), Book()
    if here.afar:
        hearing.heard(here, book)
        return
    if here.plan.teacher is None or not here.taught_by("offline"):
        place = here.recipe.place("teach")
        raise RecipeError(
            f"{place}: only `teach: offline` with a teacher, and an endpoint, keep what is known"
        )
    teacher = pipeline.find_teacher(here, book)
    here = here.with_states(teacher)
    student = casting.build_student(here, teacher)
    taught = schooling.teaching(here, teacher, student, book)
    if not any(term.needs_teacher for term in taught.terms):
        raise RecipeError(f"{here.recipe.place('losses')}: no loss asks for the teacher")
    schooling.fill_store(here, teacher, taught, book, everything=True)


@app.command("list")
def list_(
    room: Annotated[str | None, typer.Argument(metavar="[ROOM]", help="Only this key.")] = None,
) -> None:
    """Show everything a recipe can name, with its options."""
    from attar.cli.tables import show_rooms
    from attar.recipe import ROOMS

    if room is not None and room not in ROOMS:
        raise AttarError(f"There is no room {room!r}; {nearest(room, ROOMS)}")
    show_rooms({key: list(_known(key)) for key in ROOMS if room in (None, key)})


def _known(key: str) -> Iterator[Description]:
    from attar.recipe import ROOMS
    from attar.resolve import Description, Option, describe, names

    if key == "losses":
        weight = Option("weight", float, "float or a schedule", 1.0, "how much it counts")
        layers = Option("layers", str, "auto or {student path: teacher path}", None, "")
        says = "The task's own loss, the true labels. Every loss has these options too:"
        yield Description("task", says, (weight, layers), ())
    for name, function in sorted(names(ROOMS[key]).items()):
        yield describe(function, name)


@app.command()
def report(
    paths: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, or their report.json.")
    ],
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for the report.",
            show_default="the run's own; runs/joined for several",
        ),
    ] = None,
) -> None:
    """Write a run's report again from report.json, or that of several side by side."""
    from attar.cli.tables import show_report
    from attar.report import Report, join
    from attar.report.joining import titles

    found = [Report.read(path) for path in paths]
    if len(paths) == 1 and out is None:
        path, shown = paths[0], found[0]
        file = path / "report.json" if path.is_dir() else path
        file.with_suffix(".md").write_text(shown.markdown(), "utf-8")
        file.with_suffix(".html").write_text(shown.html(), "utf-8")
    else:
        names = titles(paths)
        shown = found[0] if len(paths) == 1 else join(dict(zip(names, found, strict=True)))
        file = shown.write(out or Path("runs") / "joined") / "report.json"
    show_report(shown)
    print(f"\nReport: {clean(str(file.with_suffix('.html')))}")


@app.command()
def init(
    model: Annotated[str, typer.Argument(help="Folder, hub name or package:NAME of the teacher.")],
    data: Annotated[str, typer.Argument(help="File or folder of texts and labels.")],
    *,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The recipe.", show_default="DATA.yaml")
    ] = None,
    text: Annotated[str | None, typer.Option(metavar="COLUMN", help="Where the texts are.")] = None,
    label: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Where the labels are.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE.")] = False,
) -> None:
    """Write a recipe, with comments, for a model and your data."""
    from attar import starter

    file = output or Path(f"{Path(data).name.split('.')[0] or 'recipe'}.yaml")
    if file.exists() and not force:
        raise AttarError(f"{file} is there already; give another --output, or --force.")
    columns = {"text": text, "label": label}
    written = starter.written(model, data, {role: name for role, name in columns.items() if name})
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(written, "utf-8")
    print(f"Wrote {clean(str(file))}; next: attar check {clean(str(file))}")


@app.command()
def doctor(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="Its pre-checks too.")
    ] = None,
    settings: Settings = None,
    trust: Trust = False,
) -> None:
    """Examine this machine, and what a recipe would work with."""
    from attar.cli.tables import show_finding
    from attar.doctor import examine

    well = True
    for finding in examine(None if recipe is None else str(recipe), settings or [], trust):
        show_finding(finding.name, finding.ok, finding.says)
        well = well and finding.ok is not False
    if not well:
        raise typer.Exit(USER)


@app.command()
def schema(
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it here.", show_default="stdout")
    ] = None,
    *,
    of: Annotated[
        Literal["recipe", "comparison", "report"],
        typer.Option(help="Of recipes and comparisons, for editors; or of report.json."),
    ] = "recipe",
) -> None:
    """Print the JSON Schema of recipes, of comparisons, or of the report.json of a run."""
    import json

    from attar import recipe, report

    schemas = {
        "recipe": recipe.json_schema,
        "comparison": recipe.comparison_schema,
        "report": report.schema,
    }
    text = json.dumps(schemas[of](), indent=2, ensure_ascii=False)
    if output is None:
        print(text)
    else:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text + "\n", "utf-8")


def _overrides(settings: list[str] | None, seed: int | None) -> list[str]:
    return [*(settings or []), *([] if seed is None else [f"seed={seed}"])]


def _begin(
    recipe: Path, out: Path | None, seed: int | None, settings: list[str] | None, trust: bool
) -> Setting:
    from attar.setting import begin

    overrides = _overrides(settings, seed)
    return begin(recipe, out, overrides=overrides, trust=trust, screen=screen())
