"""Links of the documentation lead somewhere, and its page of commands is the program's."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from test_structure import GRAPH, room
from test_structure import ROOT as PACKAGE

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "bench").rglob("*.md")]
)
LINK = re.compile(r"\[[^][]*\]\(([^()\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", re.M | re.S)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings: lower case, dashes for blanks."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text("utf-8")), re.M)
    texts = (LINK.sub(lambda link: link[0][1 : link[0].index("]")], h) for h in headings)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in texts}


def links(page: Path) -> list[str]:
    found = LINK.findall(FENCE.sub("", page.read_text("utf-8")))
    return [link for link in found if not link.startswith(("http://", "https://"))]


def dead(page: Path) -> list[str]:
    """Relative links of a page whose file or anchor is not there."""
    lost = []
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(link)
    return lost


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_an_anchor(page: Path) -> None:
    assert not dead(page)


def test_a_dead_link_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One `two`: [three](#x)\n[a](page.md#one-two-three) [b](#no) [c](gone.md)\n")
    assert dead(page) == ["#x", "#no", "gone.md"]


def test_every_page_of_the_documentation_is_in_its_index() -> None:
    index = ROOT / "docs" / "README.md"
    listed = {(index.parent / link).resolve() for link in links(index)}
    assert {page for page in PAGES if page.is_relative_to(index.parent)} - {index} == listed


def test_the_page_of_commands_is_the_programs() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "reference" / "command_line.py"))
    assert made["PAGE"].read_text("utf-8") == made["page"](), (
        "run: python docs/reference/command_line.py"
    )


def test_a_room_imports_only_rooms_above_it_in_the_table() -> None:
    table = (ROOT / "CONTRIBUTING.md").read_text("utf-8").partition("| room |")[2]
    order = re.findall(r"^\| `(\w+)` \|", table.partition("\n\n")[0], re.M)
    assert {*order} == {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    place = {f"comit.{name}": i for i, name in enumerate(order)}
    wrong = {
        (room(name), room(other))
        for name, others in GRAPH.items()
        for other in others
        if place.get(room(name), len(order)) < place.get(room(other), -1)
    }
    assert not wrong
