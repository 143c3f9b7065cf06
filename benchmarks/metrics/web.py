"""How long does the page take on a large queue, screen by screen?

BACKLOG live messages (a million), as many archived ones over seven days, and a tenth as many dead letters of
fifty causes. The page's server runs in a thread; before each request everything that it has kept counts as
old, so every question goes to the database. `python -m benchmarks.metrics.web` measures this alone and prints
a line per screen.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from benchmarks.harness.config import Settings
from benchmarks.harness.stats import percentile
from benchmarks.metrics.base import Case, Number
from benchmarks.systems.base import System
from benchmarks.systems.postgres_base import PostgresSystem

CASES = [Case("web/pages")]
ROUNDS = 20
#: Rows of ten queues; a tenth is blocked in long conversations, half is due.
FILL_LIVE = """
insert into packhorse.message_queue (id, queue, message_type, payload, state, run_at, created_at, conversation_key)
select n, 'q' || n %% 10, 'type' || n %% 20, jsonb_build_object('customer', jsonb_build_object('id', n %% 50000), 'body', repeat('x', 150)),
  case when n %% 10 = 0 then 'blocked' else 'pending' end, now() + make_interval(secs => n %% 7200 - 3600),
  now() - make_interval(secs => (%(dead)s + 2 * %(live)s - n) / 20.0), 'conversation' || case when n %% 10 = 0 then n %% 1000 else n end
from generate_series(%(dead)s + %(live)s + 1, %(dead)s + 2 * %(live)s) n
"""
FILL_ARCHIVE = """
insert into packhorse.message_archive (id, queue, message_type, payload, options, priority, state, attempt, crashes, created_at, claimed_at,
  finished_at, conversation_key)
select n, 'q' || n %% 10, 'type' || n %% 20, jsonb_build_object('customer', jsonb_build_object('id', n %% 50000), 'body', repeat('x', 150)),
  '{}', 5, 'done', 1, 0, t.at - interval '1 minute', t.at - interval '1 second', t.at, 'conversation' || n %% 100000
from generate_series(%(dead)s + 1, %(dead)s + %(live)s) n
cross join lateral (select now() - interval '6 days' * (%(dead)s + %(live)s - n) / %(live)s as at) t
"""
FILL_DEAD = """
insert into packhorse.dead_letters (id, queue, message_type, payload, options, priority, reason, error_class, error_message, traceback, fingerprint,
  attempt, crashes, conversation_key, history, created_at, dead_at)
select n, 'q' || n %% 10, 'type' || n %% 20, jsonb_build_object('customer', jsonb_build_object('id', n %% 50000)), '{}', 5, 'failed',
  'Error' || n %% 50,
  'failed with ' || n, repeat('at somewhere ', 100), md5((n %% 50)::text), 3, 0, 'conversation' || n %% 1000, '[]', now() - interval '3 days',
  now() - make_interval(secs => (%(dead)s - n) * 2)
from generate_series(1, %(dead)s) n
"""
PARTITION = """
create table if not exists packhorse.message_archive_bench_{0} partition of packhorse.message_archive
for values from (date_trunc('day', now() at time zone 'UTC' - interval '{0} days') at time zone 'UTC')
to (date_trunc('day', now() at time zone 'UTC' - interval '{1} days') at time zone 'UTC')
"""


def addresses(live: int, dead: int) -> dict[str, str]:
    """What is asked for, by the name of its line. The last ones are the dearest: filters that match nothing,
    or very little.
    """
    newest = dead + 2 * live
    return {
        "overview": "/",
        "queues": "/queues",
        "queue": "/queues/q1",
        "messages": "/messages",
        "messages, far back": f"/messages?before={dead + live // 2}",
        "messages of a queue and state": "/messages?where=queue%3Dq3+state%3Dpending",
        "message, waiting": f"/messages/{newest - 1}",
        "message, blocked": f"/messages/{newest - newest % 10}",
        "message, archived": f"/messages/{dead + 5}",
        "conversations": "/conversations",
        "conversation": "/conversations?key=conversation10",
        "conversation, further back": f"/conversations?key=conversation10&before={dead + live // 2}",
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


def measure(system: System, case: Case, settings: Settings) -> Iterator[Number]:
    """p50 and p95 of each screen, and its bytes; only Packhorse lists this case."""
    assert isinstance(system, PostgresSystem), "only systems on Postgres list these cases"
    for name, times, size in screens(system.store_url(), settings.backlog):
        yield Number("web", f"{name}: p50", 1, percentile(times, 0.5), "ms")
        yield Number("web", f"{name}: p95", 1, percentile(times, 0.95), "ms")
        yield Number("web", f"{name}: size", 1, size / 1024, "KiB")


def screens(url: str, live: int, rounds: int = ROUNDS) -> Iterator[tuple[str, list[float], int]]:
    """Name, milliseconds of each request, bytes of the page. Raises AssertionError for a page that fails or
    shows old data.
    """
    fill(url, live)
    with served(url) as (port, forget):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        for name, address in addresses(live, live // 10).items():
            times = []
            size = 0
            for _ in range(rounds):
                forget()
                begun = time.perf_counter()
                connection.request("GET", address)
                answer = connection.getresponse()
                body = answer.read()
                times.append((time.perf_counter() - begun) * 1000)
                size = len(body)
                assert answer.status == 200 and b"Old data" not in body, (
                    f"{name}: {answer.status} {body[:300]!r}"
                )
            yield name, times, size
        connection.close()


def fill(url: str, live: int) -> None:
    """The rows, and statistics about them."""
    with psycopg.connect(url, autocommit=True) as connection:
        for days in range(1, 8):
            connection.execute(PARTITION.format(days, days - 1))  # type: ignore[arg-type]
        for number in range(10):
            connection.execute("select packhorse.declare_queue(%s)", (f"q{number}",))
        for statement in (FILL_DEAD, FILL_ARCHIVE, FILL_LIVE):
            connection.execute(statement, {"live": live, "dead": live // 10})
        connection.execute("vacuum (analyze) packhorse.message_queue")
        connection.execute("vacuum (analyze) packhorse.message_archive")
        connection.execute("vacuum (analyze) packhorse.dead_letters")


@contextmanager
def served(url: str) -> Iterator[tuple[int, object]]:
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
    import os

    from benchmarks.harness.config import from_env
    from benchmarks.harness.postgres import Postgres
    from packhorse.worker.db import migrate
    from packhorse.worker.db.connection import connect

    settings = from_env(os.environ)
    server = Postgres()
    try:
        url = server.uri(server.create())
        connection = connect(url, deadline_seconds=120)
        migrate.up(connection)
        connection.close()
        print(f"{'screen':<34}{'p50 ms':>9}{'p95 ms':>9}{'KiB':>8}")
        for name, times, size in screens(url, settings.backlog):
            print(
                f"{name:<34}{percentile(times, 0.5):>9.1f}{percentile(times, 0.95):>9.1f}{size / 1024:>8.1f}",
                flush=True,
            )
    finally:
        server.close()


if __name__ == "__main__":
    main()
