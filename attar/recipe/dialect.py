"""The YAML of recipes: version 1.2's plain words, no key twice, and a line for everything."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from attar.errors import RecipeError

Trail = tuple[str | int, ...]
"""The keys and indexes that lead down to an entry."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain words, as editors read them, and no key twice."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:  # type: ignore[override]
        """A mapping whose keys are words, each of them once."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)  # type: ignore[arg-type]
        seen = set()
        for key, _ in node.value:
            mark = key.start_mark
            if not isinstance(key, yaml.ScalarNode) or not key.tag.endswith((":str", ":merge")):
                raise yaml.MarkedYAMLError(None, None, "a key must be a word (or in quotes)", mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(None, None, f"{key.value!r} stands here twice", mark)
            seen.add(key.value)
        return node


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads as the same."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def ignore_aliases(self, _data: object) -> bool:
        """Everything is written out where it stands."""
        return True


for _words in (_Loader, _Dumper):
    for _tag, _pattern, _first in (
        ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
        ("bool", r"[Tt]rue|TRUE|[Ff]alse|FALSE", list("tTfF")),
        ("int", r"[-+]?(0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", list("-+0123456789")),
        # YAML 1.1 wants a dot in every float, and so takes the 5e-4 of a recipe for a word.
        (
            "float",
            r"[-+]?([0-9]+\.?|[0-9]*\.[0-9]+)([eE][-+]?[0-9]+)|[-+]?([0-9]+\.[0-9]*|\.[0-9]+)"
            r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
            list("-+.0123456789"),
        ),
        ("merge", r"<<", ["<"]),
    ):
        _words.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first
        )


def parsed(text: str, origin: str) -> tuple[Any, list[tuple[Trail, int]]]:
    """The data in a YAML text, and the line every entry stands in.

    origin: what to call the text in an error
    Errors: `RecipeError` with the line where the text is no YAML or a key stands twice.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return (loader.construct_document(node), list(_lines(node))) if node else (None, [])
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RecipeError(f"{origin}{line}: this is not good YAML: {error.problem}") from None
    except RecursionError:
        raise RecipeError(f"{origin}: this is not good YAML: it is nested too deep") from None
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"{origin}: this is not good YAML: {error}") from None


def _lines(node: yaml.Node, trail: Trail = ()) -> Iterator[tuple[Trail, int]]:
    entries: list[tuple[str | int, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        entries = [(key.value, key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        entries = [(index, item, item) for index, item in enumerate(node.value)]
    for key, here, below in entries:
        yield (*trail, key), here.start_mark.line + 1
        yield from _lines(below, (*trail, key))


def written(data: dict[str, Any]) -> str:
    """The data as YAML that `parsed` reads as the same."""
    return yaml.dump(
        data,
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=None,
        width=100,
        allow_unicode=True,
    )
