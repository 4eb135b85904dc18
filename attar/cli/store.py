"""The commands that look after the teacher's knowledge on disk: `attar store info|verify|prune`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from attar.cli.terminal import clean
from attar.errors import StoreError
from attar.report.figures import size

SHOWN = 60
"""Characters of a fact that are shown; a list of labels can be long."""

commands = typer.Typer(help="Look after the teacher's knowledge on disk.", no_args_is_help=True)

Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="A store, or the folder that stores lie in.")
]


def with_store(app: typer.Typer) -> typer.Typer:
    """The command line with these commands in it, under the word `store`."""
    app.add_typer(commands, name="store")
    return app


@commands.command()
def info(folder: Folder) -> None:
    """Say whose knowledge it is, how much, and how exactly it is kept."""
    from attar.store import Said, Store

    answers = Said.below(folder)
    for said in answers:
        _show(said.folder, [("answers", f"{len(said):,}"), *_facts(said.facts)])
    for path in _stores(folder, beside=bool(answers)):
        _show(path, list(_told(Store.found(path).info())))


def _show(path: Path, told: list[tuple[str, str]]) -> None:
    print(clean(str(path)))
    wide = max(len(name) for name, _ in told)
    for name, says in told:
        print(clean(f"  {name:<{wide}}  {says}"))


@commands.command()
def verify(folder: Folder) -> None:
    """Read every byte again, and name what is damaged."""
    from attar.store import Said, examine
    from attar.store.files import damaged

    broken, answers = [], Said.below(folder)
    for said in answers:
        lost = f"{said.damaged} not whole, to be asked again" if said.damaged else "whole"
        print(clean(f"{said.folder}: {len(said)} answers, {lost}"))
    for path in _stores(folder, beside=bool(answers)):
        found = examine(path)
        hurt = [each.path for each in found if each.damaged]
        broken += hurt
        says = f"{len(hurt)} damaged" if hurt else "whole"
        unused = f"; {len(found) - len(hurt)} unused" if len(found) > len(hurt) else ""
        print(clean(f"{path}: {says}{unused}"))
    if broken:
        raise damaged(*broken)


@commands.command()
def prune(
    folder: Folder,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Remove files that are damaged or that nothing reads."""
    from attar.store import examine
    from attar.store import prune as remove

    found = [each for path in _stores(folder) for each in (examine if dry_run else remove)(path)]
    for each in found:
        verb = "Would remove" if dry_run else "Removed"
        print(clean(f"{verb} {each.path} ({size(each.size)}): {each.why}"))
    if not found:
        print("Nothing to remove.")


def _stores(folder: Path, *, beside: bool = False) -> list[Path]:
    """The stores in a folder. Raises StoreError where there is none, and nothing beside it."""
    from attar.store import stores

    if (found := stores(folder)) or beside:
        return found
    raise StoreError(f"{folder} holds no store of knowledge; `attar teach` fills one.")


def _told(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "rows", f"{facts['rows']:,} in {facts['shards']:,} shards, {size(facts['bytes'])}"
    parts = {name: shape for name, shape in facts["form"].items() if name not in ("keys", "mask")}
    for name, shape in parts.items():
        yield name, " x ".join("length" if n < 0 else str(n) for n in shape) or "a number"
    kept, top, draws = facts["kept"], facts["kept"]["top"], facts["kept"].get("draws")
    cut = "" if top is None else f", the top {top} of each row"
    cut += "" if draws is None else f", {draws} drawn of {'all' if top is None else 'the others'}"
    form = kept["logits"] if draws is None else "int8"
    yield "kept", f"logits {form}{cut}; features {kept['features']}"
    if told := facts.get("quality"):
        kl, cosine, mass = (f"{told[name]:.3g}" for name in ("kl", "cosine", "mass"))
        yield (
            "quality",
            f"{told['bytes_per_token']:.1f} bytes a token; known one by one {mass} of the mass, KL"
            f" of what is kept from the whole {kl}, cosine of its gradient {cosine}",
        )
    yield "format", f"{facts['version']}, by {facts['created_by']}"
    yield from _facts(facts["teacher"])


def _facts(whose: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, fact in whose.items():
        many = f"{len(fact)}: {', '.join(map(str, fact))}" if isinstance(fact, list) else str(fact)
        yield f"teacher {name}", many if len(many) <= SHOWN else f"{many[:SHOWN]} ..."
