"""Fixtures by composition: one server per session, a fresh database per test, daemons that always end."""

from __future__ import annotations

import gc
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from hypothesis import HealthCheck, settings

# a shell starts background jobs with SIGINT ignored, and everything below inherits that: Ctrl-C would reach
# no program under test
signal.signal(signal.SIGINT, signal.default_int_handler)
for name in [name for name in os.environ if name.startswith("PACKHORSE_") or name == "DATABASE_URL"]:
    del os.environ[name]
# where Debian keeps what only root is to run; a bare PATH lacks it
os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"
# hundreds of programs are started: without bytecode each would compile the package again, and each process of
# a run all tests
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
gc.disable()  # until all is collected

from tests.support.databases import emptied, lent, one  # noqa: E402
from tests.support.postgres import Database, Server, available_servers, open_for_everyone  # noqa: E402
from tests.support.scratch import run_folder  # noqa: E402
from tests.support.workers import Daemon, Ledger  # noqa: E402

SERVERS = available_servers()
FIRST = next(iter(SERVERS))
#: What the mark of that name asks: tests of SQL whose length is in their data, not in what a version of
#: PostgreSQL may do otherwise.
OLDEST_AND_NEWEST = {FIRST, *[name for name in SERVERS if name.endswith("14")]}
BETWEEN = [name for name in SERVERS if name not in OLDEST_AND_NEWEST]
#: What a version of PostgreSQL may do otherwise runs on each of them; any other test of SQL on the oldest,
#: the newest and one between, which its name decides. TESTS_EVERY_SERVER=1 runs all on all.
OF_EACH_VERSION = ("catalogue", "cli_doctor", "lookalikes", "migrate", "privileges", "servers")
_running: dict[str, Server] = {}
_broken: dict[str, BaseException] = {}
_starting = threading.Lock()


def _server(name: str) -> Server:
    with _starting:
        if name in _broken:
            raise RuntimeError(f"{name} did not start") from _broken[name]
        if name not in _running:
            if not name.startswith("system"):
                open_for_everyone(SERVERS[name])
            try:
                _running[name] = Server(name, SERVERS[name])
            except Exception as error:
                _broken[name] = error
                raise
        return _running[name]


#: The line by which a whole file is left to the full ring: it starts programs for each test, or belongs to an
#: optional part.
SLOW_FILE = re.compile(r"^pytestmark = \[?\s*pytest\.mark\.slow\b", re.MULTILINE)


#: A reason to skip that ends when something is installed.
_LACKS = re.compile("not installed|could not import")
#: What mostly waits, for programs that it has started, and leaves the processors to other tests.
WAITING = ("deploy/", "integration/", "process/", "rabbit/", "schedules/test_scheduler")


def _is_fast_ring(config: pytest.Config) -> bool:
    return bool(config.option.markexpr == "not slow")


#: Of the integration ring, what is not run again on the oldest server: it chooses its servers itself, or its
#: subject is none of theirs and other files send the same statements (the server's log had each of them).
OF_NO_SERVER = {
    "test_async_interrupts",
    "test_backup",
    "test_cli",
    "test_cli_deploy",
    "test_cli_documented",
    "test_cli_logging",
    "test_cli_progress",
    "test_cli_up",
    "test_cli_wheel",
    "test_coroutines",
    "test_embedded",
    "test_example_whatsapp",
    "test_fork",
    "test_framework_pages",
    "test_import_name",
    "test_message_context",
    "test_push",
    "test_service_lifecycle",
    "test_testing_plugin",
    "test_tracing",
}


def pytest_configure(config: pytest.Config) -> None:
    """The fast ring tries few examples of what is said of any value; the full ring hypothesis' hundred.
    Neither fails because the machine is slow.
    """
    run_folder()  # before the processes of the run begin: they share it
    untimed: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
    settings.register_profile("full", **untimed)
    settings.register_profile("fast", max_examples=20, **untimed)
    settings.load_profile("fast" if _is_fast_ring(config) else "full")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The fast ring does not even import what it leaves out."""
    if os.environ.get("TESTS_SERVER") and collection_path.stem in OF_NO_SERVER:
        return True
    skips = (
        _is_fast_ring(config)
        and collection_path.suffix == ".py"
        and SLOW_FILE.search(collection_path.read_text())
    )
    return bool(skips) or None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """On which servers a test of SQL runs: the fast ring asks one, and does not even collect the others."""
    if "any_server" in metafunc.fixturenames:
        names = [FIRST] if _is_fast_ring(metafunc.config) else list(SERVERS)
        metafunc.parametrize(
            "any_server",
            [
                pytest.param(name, marks=[] if name == FIRST else pytest.mark.slow)
                for name in names
                if name not in BETWEEN or _runs_between(metafunc.definition, name)
            ],
            indirect=True,
        )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A mark on one set of parameters is not known before."""
    left = [item for item in items if _is_left(item)]
    if left:
        left[0].config.hook.pytest_deselected(items=left)
    items[:] = _mixed([item for item in items if item not in left])


def _is_left(item: pytest.Item) -> bool:
    """The integration ring is run again on the oldest server for what runs on one: a test of `any_server` was
    there the first time.
    """
    if (
        os.environ.get("TESTS_SERVER")
        and item.path.parent.name == "integration"
        and "any_server" in getattr(item, "fixturenames", ())
    ):
        return True
    return bool(item.get_closest_marker("oldest_and_newest")) and _server_of(item) in BETWEEN


def _server_of(item: pytest.Item) -> str:
    call = getattr(item, "callspec", None)
    return FIRST if call is None else str(call.params.get("any_server", FIRST))


def _runs_between(test: pytest.Item, server: str) -> bool:
    """Does the test run on this server, which is neither the oldest nor the newest?"""
    if os.environ.get("TESTS_EVERY_SERVER") or test.path.stem.removeprefix("test_") in OF_EACH_VERSION:
        return True
    if test.get_closest_marker("oldest_and_newest"):
        return False
    name = f"{test.path.name} {test.name}"
    return BETWEEN[crc32(name.encode()) % len(BETWEEN)] == server


def _mixed(items: list[pytest.Item]) -> list[pytest.Item]:
    """Files with tests that wait, evenly among those that compute: each process of a run gets both, and the
    processors always have work.
    """
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    home = Path(__file__).parent
    kinds: tuple[list[list[pytest.Item]], list[list[pytest.Item]]] = ([], [])
    for path, tests in files.items():
        kinds[path.relative_to(home).as_posix().startswith(WAITING)].append(tests)
    wholes = [max(1, sum(map(len, kind))) for kind in kinds]
    mixed: list[pytest.Item] = []
    done = [0, 0]
    while any(kinds):
        behind = min(
            (number for number in (0, 1) if kinds[number]), key=lambda number: done[number] / wholes[number]
        )
        tests = kinds[behind].pop(0)
        done[behind] += len(tests)
        mixed += tests
    return mixed


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """With CI set, what `make programs` and pip install is there: a test that lacks it has failed."""
    result: Any = yield
    report = result.get_result()
    if (
        report.skipped
        and isinstance(report.longrepr, tuple)
        and os.environ.get("CI")
        and _LACKS.search(report.longrepr[2])
    ):
        report.outcome = "failed"
        report.longrepr = f"{report.longrepr[2]}; with CI set that is no reason to skip: run `make programs`"


def pytest_collection_finish() -> None:
    """What was collected stays until the end: nothing looks through it for garbage again and again."""
    gc.freeze()
    gc.enable()


def pytest_sessionstart(session: pytest.Session) -> None:
    """A process of a whole run needs its servers: they start while it collects, and are old enough for rescue
    when they are asked.
    """
    if hasattr(session.config, "workerinput"):
        for name in list(SERVERS)[: 1 if _is_fast_ring(session.config) else None]:
            threading.Thread(target=_server, args=(name,), name=f"start {name}").start()


def pytest_sessionfinish() -> None:
    with _starting:
        for server in _running.values():
            server.close()


@pytest.fixture(scope="session")
def server() -> Server:
    """The embedded PostgreSQL, shared by the session; do not stop it (see own_server)."""
    return _server(FIRST)


@pytest.fixture
def any_server(request: pytest.FixtureRequest) -> Server:
    """Some available PostgreSQL servers in turn (pytest_generate_tests): tests of SQL functions."""
    return _server(request.param)


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A server for one test that stops, kills or restarts it."""
    open_for_everyone(SERVERS[FIRST])
    server = Server(FIRST, SERVERS[FIRST])
    yield server
    server.close()


@pytest.fixture(scope="module")
def one_database(server: Server) -> Iterator[Database]:
    """One for a whole file; see `database`."""
    yield from one(server)


@pytest.fixture
def database(request: pytest.FixtureRequest, server: Server) -> Iterator[Database]:
    """A fresh database on the embedded server. In a file of quick tests with the mark `one_database` it is
    the file's, emptied: cheaper than a clone.
    """
    if request.node.get_closest_marker("one_database"):
        yield emptied(request.getfixturevalue("one_database"))
    else:
        yield from lent(server.create_database())


@pytest.fixture
def any_database(any_server: Server) -> Iterator[Database]:
    """A fresh database on each available server."""
    yield from lent(any_server.create_database())


@pytest.fixture
def empty_database(server: Server) -> Iterator[Database]:
    """One without the schema, on the embedded server; the others apply all migrations whenever a test asks
    for their database.
    """
    yield from lent(server.create_empty_database())


@pytest.fixture
def any_empty_database(any_server: Server) -> Iterator[Database]:
    """One without the schema on each available server."""
    yield from lent(any_server.create_empty_database())


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """A file to which handlers append; faults do not touch it."""
    return Ledger(tmp_path / "ledger")


@pytest.fixture
def start_daemon() -> Iterator[Callable[..., Daemon]]:
    """Start `packhorse worker` processes that are killed at the end of the test, whatever happens."""
    daemons: list[Daemon] = []

    def start(*args: Any, **kwargs: Any) -> Daemon:
        daemons.append(Daemon(*args, **kwargs))
        return daemons[-1]

    yield start
    for daemon in daemons:
        daemon.close()
