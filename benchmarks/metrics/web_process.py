"""What does `packhorse web` itself cost: bytes of a first load, memory, and what open windows ask of the
database?

The page is a process of its own, with a login of its own, whose statements the server logs: so they are
counted, not guessed. A viewer is a connection to the event stream that fetches its screen at each tick, as
app.js does.
"""

from __future__ import annotations

import http.client
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import psycopg

from benchmarks.harness.processes import MEBIBYTE, Child
from benchmarks.harness.stats import median
from benchmarks.systems.base import WARM_UP_MESSAGES
from benchmarks.systems.packhorse import Adapter, command

LOGIN = "bench_web"
VIEWERS = 20
#: A tick of all screens is paid by a pause of 20 s: a shorter watch may see two of them.
SETTLE_SECONDS, WATCH_SECONDS = 15.0, 60.0
REQUESTS, AT_ONCE = 20_000, 4
#: With and without viewers, in an order in which a steady drift of the machine favours neither.
DRAINS = (False, True, True, False, False, True)
#: Some ticks long: one of two seconds sees one tick or none.
DRAIN_MESSAGES = 200_000
_FILE = re.compile(r'(?:href|src)="(/static/[^"]+)"')
_LOGGED = re.compile(rb"LOG:  (?:execute [^:]*|statement): *(\w+)")
#: They frame a question and read nothing.
_FRAMES = {
    b"begin",
    b"rollback",
    b"commit",
    b"set",
    b"reset",
    b"discard",
    b"savepoint",
    b"release",
    b"deallocate",
}


class PageProcess:
    """`packhorse web` on a database, with a login that may read and act; its statements are logged."""

    def __init__(self, system: Adapter) -> None:
        self._system = system
        with psycopg.connect(system.store_url(), autocommit=True) as admin:
            if not admin.execute("select 1 from pg_roles where rolname = %s", (LOGIN,)).fetchone():
                admin.execute(f"create role {LOGIN} login in role packhorse_worker, packhorse_reader")
                admin.execute(f"alter role {LOGIN} set log_statement = 'all'")
            row = admin.execute("select current_setting('data_directory')").fetchone()
            assert row is not None
            self._log = Path(row[0]) / "log"
        login = psycopg.conninfo.make_conninfo(system.store_url(), user=LOGIN)
        env = {**system.environment(), "DATABASE_URL": login, "PACKHORSE_WEB_PORT": "0"}
        self._child = Child(command("web"), env)
        self.address = urlsplit(self._child.expect("Page").split()[0])
        self.process = self._child.tree()[0]
        self._wait_serving()

    def _wait_serving(self) -> None:
        """It says its address before it accepts."""
        while True:
            self._child.check()
            connection = self.connect()
            try:
                get(connection, "/healthz")
                return
            except ConnectionRefusedError:
                time.sleep(0.05)
            finally:
                connection.close()

    def connect(self) -> http.client.HTTPConnection:
        assert self.address.hostname is not None
        return http.client.HTTPConnection(self.address.hostname, self.address.port, timeout=90)

    def logged(self) -> int:
        """Bytes of the server's log so far."""
        return self._log.stat().st_size

    def queries_since(self, place: int) -> int:
        """Statements that the page has sent since then, without those that only frame a transaction."""
        with self._log.open("rb") as log:
            log.seek(place)
            words = _LOGGED.findall(log.read())
        return sum(word.lower() not in _FRAMES for word in words)

    def cpu_seconds(self) -> tuple[float, float]:
        """Of the process so far, and of its backends that live."""
        with psycopg.connect(self._system.store_url()) as admin:
            pids = admin.execute("select pid from pg_stat_activity where usename = %s", (LOGIN,)).fetchall()
        return _cpu(self.process), sum(_cpu(psutil.Process(pid)) for (pid,) in pids)

    def close(self) -> None:
        self._child.stop()


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def get(connection: http.client.HTTPConnection, path: str, **headers: str) -> bytes:
    """The body as it is transferred. Raises AssertionError for anything but 200."""
    connection.request("GET", path, headers={"Accept-Encoding": "gzip", **headers})
    answer = connection.getresponse()
    body = answer.read()
    assert answer.status == 200, f"{path}: {answer.status} {body[:300]!r}"
    return body


def first_load(page: PageProcess) -> int:
    """Bytes that a browser fetches which has nothing of the page yet: the overview and its files."""
    connection = page.connect()
    try:
        whole = get(connection, "/")
        connection.request("GET", "/")  # without compression, to read what it names
        files = sorted(set(_FILE.findall(connection.getresponse().read().decode())))
        assert files, "the overview names no file"
        return len(whole) + sum(len(get(connection, path)) for path in files)
    finally:
        connection.close()


def memory(page: PageProcess, paths: Sequence[str], requests: int = REQUESTS) -> tuple[float, float]:
    """MiB at the beginning, and after so many requests of all screens, AT_ONCE at a time."""
    before = page.process.memory_info().rss / MEBIBYTE
    trouble: list[BaseException] = []

    def walk(first: int) -> None:
        connection = page.connect()
        try:
            for number in range(first, requests, AT_ONCE):
                get(connection, paths[number % len(paths)])
        except BaseException as error:
            trouble.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=walk, args=(first,)) for first in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if trouble:
        raise trouble[0]
    return before, page.process.memory_info().rss / MEBIBYTE


@contextmanager
def watched(page: PageProcess, paths: Sequence[str], viewers: int = VIEWERS) -> Iterator[list[float]]:
    """So many open windows, each on one of the screens; yields the milliseconds of their refreshes, which
    grow.
    """
    stop, times, trouble = threading.Event(), list[float](), list[BaseException]()
    begun = threading.Barrier(viewers + 1)

    def watch(path: str) -> None:
        events, screen = page.connect(), page.connect()
        try:
            get(screen, path)
            events.request("GET", "/live")
            stream = events.getresponse()
            begun.wait()
            while not stop.is_set():
                if stream.readline().strip() == b"event: tick":
                    asked = time.perf_counter()
                    get(screen, path, **{"HX-Request": "true"})
                    times.append((time.perf_counter() - asked) * 1000)
        except BaseException as error:
            trouble.append(error)
        finally:
            events.close()
            screen.close()

    threads = [threading.Thread(target=watch, args=(paths[place % len(paths)],)) for place in range(viewers)]
    for thread in threads:
        thread.start()
    begun.wait()
    try:
        yield times
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if trouble:
        raise trouble[0]


def drain(system: Adapter, count: int) -> float:
    """Messages per second of a worker that is there already, beside all other rows."""
    workers = system.start(1)
    try:
        for many in (WARM_UP_MESSAGES, count):  # the first pass warms up
            with psycopg.connect(system.store_url()) as connection:
                floor = system.highest_id(connection)
                system.fill(connection, many)
                started = system.commit_quietly(connection)
            seconds = system.wait_drained_above(workers, floor) - started
        return count / seconds
    finally:
        workers.stop()


def drains(system: Adapter, page: PageProcess, paths: Sequence[str], count: int) -> tuple[float, float]:
    """Messages per second without and with viewers, medians."""
    found: dict[bool, list[float]] = {False: [], True: []}
    for beside in DRAINS:
        if beside:
            with watched(page, paths):
                found[True].append(drain(system, count))
        else:
            found[False].append(drain(system, count))
    return median(found[False]), median(found[True])
