"""The rooms of the package and the imports between them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "comit"


def module(file: Path) -> str:
    parts = ("comit", *file.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# comit/bench and comit/export are links, which a search does not follow.
FILES = {
    module(f): f for place in (ROOT, ROOT / "bench", ROOT / "export") for f in place.rglob("*.py")
}


def imported(name: str) -> Iterator[str]:
    """Modules of ours that a module imports, wherever in it: a lazy import is one too."""
    tree = ast.parse(FILES[name].read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in FILES)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole in FILES:
                    yield whole
                elif node.module in FILES:
                    yield node.module


GRAPH = {name: set(imported(name)) - {name, "comit"} for name in FILES}


def room(name: str) -> str:
    """The package a module is in, one below ``comit``; a module of its own is its own room."""
    return ".".join(name.split(".")[:2])


def circle(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_circle_between_files() -> None:
    assert not circle(GRAPH)


def test_no_circle_between_rooms() -> None:
    rooms: dict[str, set[str]] = {}
    for name, others in GRAPH.items():
        rooms.setdefault(room(name), set()).update({room(o) for o in others} - {room(name)})
    assert not circle(rooms)


@pytest.mark.parametrize("name", ["image", "source", "run", "pipeline", "look", "terminal"])
def test_the_way_of_the_cpu_imports_nothing_of_the_gpus(name: str) -> None:
    ours = [m for m in GRAPH if room(m) == f"comit.{name}"]
    assert ours
    assert not [(m, o) for m in ours for o in GRAPH[m] if o.startswith("comit.engine.gpu")]
