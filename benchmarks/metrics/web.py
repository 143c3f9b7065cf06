"""How long does the page take on a large queue, screen by screen, and what do the page and its viewers cost?

BACKLOG live messages (a million), ARCHIVED archived ones over seven days (five millions), and a tenth of
BACKLOG dead letters of fifty causes. The page's server runs in a thread; before each request everything that
it has kept counts as old, so every question goes to the database. Then the page as a process: see
web_process.py. `python -m benchmarks.metrics.web` measures this alone and prints a line per number.
"""

from __future__ import annotations

import http.client
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from urllib.parse import urlencode

from benchmarks.harness.config import Settings, from_env
from benchmarks.harness.postgres import Postgres
from benchmarks.harness.stats import percentile
from benchmarks.metrics import web_process
from benchmarks.metrics.base import Case, Number
from benchmarks.metrics.web_process import VIEWERS, PageProcess
from benchmarks.metrics.web_rows import Rows, fill, tidy, touch
from benchmarks.systems.base import Stores, System
from benchmarks.systems.packhorse import Adapter

CASES = [Case("web/pages")]
ROUNDS = 20


def addresses(rows: Rows) -> dict[str, str]:
    """What is asked for, by the name of its line. The last ones are the dearest: filters that match nothing,
    or very little.
    """
    dead, newest = rows.dead, rows.last
    middle = dead + rows.archived // 2
    return {
        "overview": "/",
        "queues": "/queues",
        "queue": "/queues/q1",
        "messages": "/messages",
        "messages, far back": f"/messages?before={middle}",
        "messages of a queue and state": "/messages?where=queue%3Dq3+state%3Dpending",
        "message, waiting": f"/messages/{newest - 1}",
        "message, blocked": f"/messages/{newest - newest % 10}",
        "message, archived": f"/messages/{dead + 5}",
        "conversations": "/conversations",
        "conversation": "/conversations?key=conversation10",
        "conversation, further back": f"/conversations?key=conversation10&before={middle}",
        "dead letters": "/dead-letters",
        "dead letters, filtered": "/dead-letters?where=queue%3Dq3",
        "dead letters of a cause": "/dead-letters/groups/c4ca4238a0b923820dcc509a6f75849b",
        "dead letter": "/dead-letters/17",
        "workers": "/workers",
        "schedules": "/schedules",
        "maintenance": "/maintenance",
        "partitions": "/partitions",
        "services": "/services",
        "database": "/database",
        "audit": "/audit",
        "messages of a customer": "/messages?where=payload.customer.id%3D777",
        "messages, no match": "/messages?where=queue%3Dnothing",
        "dead letters of a customer": "/dead-letters?where=payload.customer.id%3D777",
    }


#: Previews of bulk acts by the name of their line: the act, and its filter. As screens they are asked for
#: anew each time; nothing of them is kept.
PREVIEWS = {
    "preview, all messages": ("messages.retry", "age>=0s"),
    "preview, a queue": ("messages.retry", "queue=q3"),
    "preview, a customer": ("messages.cancel", "payload.customer.id=777"),
    "preview, no match": ("messages.cancel", "queue=nothing"),
    "preview, all dead letters": ("dead-letters.purge", "age>=0s"),
    "preview, dead letters of a customer": ("dead-letters.redrive", "payload.customer.id=777"),
}


def measure(system: System, case: Case, settings: Settings) -> Iterator[Number]:
    """p50 and p95 of each screen, and its bytes; the same while vacuum has not seen the last changes; then
    what web_process.py measures. Only Packhorse lists this case.
    """
    assert isinstance(system, Adapter), "only Packhorse lists these cases"
    rows = Rows(settings.backlog, settings.archived)
    begun = time.monotonic()
    fill(system.store_url(), rows)
    yield Number("web", "build", 1, time.monotonic() - begun, "s")
    yield from screens(system.store_url(), rows)
    touch(system.store_url(), rows)
    yield from screens(system.store_url(), rows, "not vacuumed: ")
    tidy(system.store_url())
    paths = list(addresses(rows).values())
    page = PageProcess(system)
    try:
        yield Number("web", "first load", 1, web_process.first_load(page) / 1024, "KiB")
        before, ended = web_process.memory(page, paths)
        yield Number("web", "memory at the beginning", 1, before, "MiB")
        yield Number("web", f"memory after {web_process.REQUESTS:,} requests", 1, ended, "MiB")
        yield from viewers(system, page, paths[:VIEWERS], settings)
    finally:
        page.close()


def viewers(system: Adapter, page: PageProcess, paths: Sequence[str], settings: Settings) -> Iterator[Number]:
    """What VIEWERS open windows cost, each on another screen, or all on the overview."""
    for name, shown in (("on as many screens", paths), ("on the overview", ["/"])):
        with web_process.watched(page, shown) as times:
            time.sleep(web_process.SETTLE_SECONDS)  # the first load of each is no refresh
            place, (process, backends), begun = page.logged(), page.cpu_seconds(), time.monotonic()
            times.clear()
            time.sleep(web_process.WATCH_SECONDS)
            seconds = time.monotonic() - begun
            queries = page.queries_since(place)
            later = page.cpu_seconds()
        who = f"{VIEWERS} viewers {name}"
        yield Number("web", f"{who}: queries", 1, queries / seconds, "per s")
        yield Number("web", f"{who}: cpu of the page", 1, (later[0] - process) / seconds * 100, "%")
        yield Number("web", f"{who}: cpu of its backends", 1, (later[1] - backends) / seconds * 100, "%")
        yield Number("web", f"{who}: refresh p95", 1, percentile(times, 0.95), "ms")
    # on the overview, which is refreshed every two or three seconds: a tick of all screens may not come at
    # all while a drain lasts
    without, beside = web_process.drains(system, page, ["/"], settings.size(web_process.DRAIN_MESSAGES))
    yield Number("web", "drain without viewers", 1, without, "messages/s")
    yield Number("web", f"drain with {VIEWERS} viewers", 1, beside, "messages/s")
    yield Number("web", f"drain lost to {VIEWERS} viewers", 1, (1 - beside / without) * 100, "%")


def screens(url: str, rows: Rows, mark: str = "", rounds: int = ROUNDS) -> Iterator[Number]:
    """p50 and p95 of each screen and of each preview, its size, and how often the database took longer than a
    second for some answer, where it did. Raises AssertionError for a page that fails.
    """
    with served(url) as (port, forget):
        visitor = Visitor(port)
        asked: dict[str, Callable[[], tuple[int, bytes]]] = {
            name: partial(visitor.get, address) for name, address in addresses(rows).items()
        }
        asked |= {name: visitor.previews(*about) for name, about in PREVIEWS.items()}
        for name, ask in asked.items():
            times: list[float] = []
            late = size = 0
            for _ in range(rounds):
                forget()
                begun = time.perf_counter()
                status, body = ask()
                times.append((time.perf_counter() - begun) * 1000)
                size = len(body)
                is_late = status == 503 or b"Old data" in body or b"Not known" in body
                assert is_late or status == 200, f"{name}: {status} {body[:300]!r}"
                late += is_late
            yield Number("web", f"{mark}{name}: p50", 1, percentile(times, 0.5), "ms")
            yield Number("web", f"{mark}{name}: p95", 1, percentile(times, 0.95), "ms")
            if not mark:
                yield Number("web", f"{name}: size", 1, size / 1024, "KiB")
            if late:
                yield Number("web", f"{mark}{name}: not in time", 1, late, "")
        visitor.close()


class Visitor:
    """Somebody with one connection to the page, who is an admin, for nobody has made a token."""

    def __init__(self, port: int) -> None:
        self._origin = f"http://127.0.0.1:{port}"
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self._cookie = ""

    def get(self, address: str) -> tuple[int, bytes]:
        """Status and body."""
        return self._asked("GET", address)

    def previews(self, act: str, where: str) -> Callable[[], tuple[int, bytes]]:
        """What asks for a preview of this act with all that a filter selects."""
        _, form = self.get(f"/acts/{act}?{urlencode({'where': where})}")
        token = re.search(rb'name="csrf" value="([0-9a-f]+)"', form)
        assert token, f"no form of {act}"
        fields = urlencode({"where": where, "csrf": token[1].decode(), "step": "preview"})
        return partial(self._asked, "POST", f"/acts/{act}", fields)

    def close(self) -> None:
        self._connection.close()

    def _asked(self, method: str, address: str, fields: str | None = None) -> tuple[int, bytes]:
        headers = {"Cookie": self._cookie} if self._cookie else {}
        if fields is not None:
            headers |= {"Origin": self._origin, "Content-Type": "application/x-www-form-urlencoded"}
        self._connection.request(method, address, fields, headers)
        answer = self._connection.getresponse()
        if given := answer.getheader("Set-Cookie"):
            self._cookie = given.split(";")[0]
        return answer.status, answer.read()


@contextmanager
def served(url: str) -> Iterator[tuple[int, Callable[[], None]]]:
    """The page on this database: its port, and what makes all that it has kept old."""
    from packhorse.worker.config import load_settings
    from packhorse.worker.web import serve

    settings = load_settings({}, web_port=0, database_url=url)
    listening = serve.listen(settings)
    sites = serve.sites_of(settings)
    server = serve.PageServer(settings, sites)
    thread = threading.Thread(target=server.run, args=([listening],), name="page")
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield listening.getsockname()[1], sites[0].forget
    finally:
        server.should_exit = True
        thread.join()


def main() -> None:
    """This measurement alone, on a server of its own."""
    settings = from_env(os.environ)
    server = Postgres()
    system = Adapter(Stores(server, None, {}))
    try:
        system.open()
        for number in measure(system, CASES[0], settings):
            print(f"{number.variant:<60}{number.value:>10.1f} {number.unit}", flush=True)
    finally:
        system.close()
        server.close()


if __name__ == "__main__":
    main()
