"""The pages for people who change the code tell what is there: architecture, glossary, decisions, index."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.support.sources import FILES, nodes
from tests.test_architecture import FLOORS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGE = (DOCS / "architecture.md").read_text()
GLOSSARY = (DOCS / "glossary.md").read_text()
#: (number, rule, code, tests) of every row of the index.
INDEX = [
    tuple(cell.strip() for cell in row.split("|"))
    for row in re.findall(r"^\| ([PNQWMO]\d.*) \|$", PAGE, re.MULTILINE)
]
#: Words of the first releases, for which the field has others.
OLD_CLASSES = {"Lane", "Pump", "Slab", "Board", "Held", "Outlet", "Following"}
OLD_MODULES = {
    "lane",
    "pump",
    "slab",
    "board",
    "held",
    "outlet",
    "settle",
    "endings",
    "near",
    "following",
    "watch",
}


def paths(text: str) -> list[str]:
    """What stands in backticks and is a path of this repository."""
    found = re.findall(r"`([\w@.-]+(?:/[\w@.-]+)+|\w+\.toml)`", text)
    return [
        path
        for path in found
        if path.split("/")[0]
        in {"worker", "schedules", "migrations", "tests", "packhorse", "deploy", "pyproject.toml"}
    ]


def classes() -> list[str]:
    return [node.name for path in FILES for node in nodes(path) if isinstance(node, ast.ClassDef)]


def test_every_row_of_the_index_has_a_number_of_its_own_and_a_rule():
    numbers = [row[0] for row in INDEX]
    assert len(INDEX) > 40 and len(numbers) == len(set(numbers))
    assert [
        row
        for row in INDEX
        if len(row) != 4 or not re.fullmatch(r"[PNQWMO]\d{1,2}[a-z]?", row[0]) or not row[1].endswith(".")
    ] == []
    assert set(numbers) >= {
        *(f"P{n}" for n in range(1, 9)),
        "P7b",
        "N1",
        "N2",
        *(f"Q{n}" for n in range(1, 11)),
        *(f"W{n}" for n in range(1, 8)),
    }
    unbuilt = PAGE.split("without a row:")[1].split("\n\n")[0]
    assert [number for number in numbers if re.search(rf"\b{number}\b", unbuilt)] == [], "built or not?"


@pytest.mark.parametrize("row", INDEX, ids=[row[0] for row in INDEX])
def test_every_row_of_the_index_names_code_and_tests(row):
    number, _, code, tests = row
    assert paths(code) and all(path.startswith("tests/") for path in paths(tests)) and paths(tests), number
    assert re.sub(r"`[^`]*`", "", code + tests).strip() == "", "nothing but paths"
    assert len(paths(code + tests)) == (code + tests).count("`") / 2, "all of them paths of this repository"
    for path in paths(tests):
        name = path.rpartition("/")[2]
        assert re.fullmatch(r"test_\w+\.py", name) and re.search(
            r"^(?:async )?def test_", (ROOT / path).read_text(), re.MULTILINE
        ), path


@pytest.mark.parametrize(
    "page",
    [DOCS / "architecture.md", DOCS / "glossary.md", *sorted((DOCS / "decisions").glob("*.md"))],
    ids=lambda page: page.stem,
)
def test_every_path_on_a_page_exists(page):
    assert [
        path for path in paths(page.read_text()) if not (ROOT / path).exists() and "NNNN" not in path
    ] == []


def test_every_room_is_on_the_page():
    folders = {
        path.parent.relative_to(ROOT).as_posix()
        for folder in ("worker", "schedules")
        for path in (ROOT / folder).rglob("*.py")
    }
    assert sorted(folder for folder in folders - {"worker"} if f"`{folder}`" not in PAGE) == []


def test_the_floors_on_the_page_are_those_of_the_import_test():
    picture = PAGE.split("```")[1]
    floors = {
        int(number): set(re.findall(r"worker\.\w+|schedules", names))
        for number, names in re.findall(r"^ (\d)  ([^\d|]*)", picture, re.MULTILINE)
    }
    assert floors == {number: set(rooms) for number, rooms in enumerate(FLOORS)}


def test_every_term_of_the_glossary_is_one_sentence_in_the_order_of_the_alphabet():
    lines = [line for line in GLOSSARY.splitlines()[3:] if line]
    found = [re.fullmatch(r"\*\*([a-z][a-z -]+)\*\*: [A-Z1`].*\.", line) for line in lines]
    assert [line for line, match in zip(lines, found, strict=True) if match is None] == []
    terms = [match[1] for match in found if match is not None]
    assert terms == sorted(set(terms))


def test_every_class_that_the_glossary_names_exists():
    assert sorted(set(re.findall(r"`([A-Z][a-z]\w+)`", GLOSSARY)) - set(classes())) == []


def test_the_old_words_are_gone():
    found = [name for name in classes() if OLD_CLASSES & set(re.findall(r"[A-Z][a-z]+", name))]
    found += [path.relative_to(ROOT).as_posix() for path in FILES if path.stem in OLD_MODULES]
    assert found == []


def test_the_index_of_the_documentation_links_every_page_once():
    links = re.findall(r"\]\(([^)#:]+)\)", (DOCS / "index.md").read_text())
    pages = [page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md") if page.name != "index.md"]
    assert sorted(link for link in links if not link.startswith("../")) == sorted(pages)
