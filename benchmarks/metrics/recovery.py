"""What do two killed daemons cost the others?

Four daemons of 500 threads run handlers of three seconds; two of them are killed whole with all their threads
busy, so that only the end of the leases tells of it. Beside them a daemon of its own with 16 threads works on
a queue of 20 ms messages, which come one every 10 ms. `rescued to all run`: from the first rescue until every
message has run. `light wait`: how late a light message starts, before the kill and from there until all have
run.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg

from benchmarks.harness.config import Settings
from benchmarks.harness.handler import LATENCY_FILE, read_latencies_ms
from benchmarks.harness.processes import Child
from benchmarks.harness.stats import percentile
from benchmarks.metrics.base import Case, Number
from benchmarks.systems.base import System
from benchmarks.systems.packhorse import Adapter, command
from benchmarks.systems.recovery_actors import LIGHT_QUEUE, SLOW_QUEUE

CASES = [Case("recovery")]
ACTORS = "benchmarks.systems.recovery_actors"
DAEMONS, THREADS, LIGHT_THREADS = 4, 500, 16
QUIET_SECONDS = 10.0
"""How long the light queue is watched before the kill."""
LIMIT_SECONDS = 180.0
SEND_SECONDS = 0.01
FILL = "select packhorse.enqueue_payloads(%s, %s, (select jsonb_agg(jsonb_build_object('number', n)) from generate_series(1, %s) n))"
SEND = "select packhorse.enqueue_message(%s, %s, jsonb_build_object('sent_ns', %s::bigint))"
RESCUED = """
select extract(epoch from max(finished_at) - min((e ->> 'at')::timestamptz))::float8, max(crashes)
from packhorse.message_archive a, jsonb_array_elements(a.history) e where a.queue = %s and e ->> 'event' = 'lease_expired'
"""


def measure(system: System, case: Case, settings: Settings) -> Iterator[Number]:
    """The one case; only Packhorse lists it."""
    assert isinstance(system, Adapter), "the daemons are Packhorse's"
    with ExitStack() as stack, psycopg.connect(system.store_url(), autocommit=True) as connection:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="packhorse-bench-"))) / "latencies"
        start(system, stack, LIGHT_THREADS, {LATENCY_FILE: str(path)})
        daemons = [start(system, stack, THREADS, {}) for _ in range(DAEMONS)]
        wait(connection, "select count(*) from packhorse.workers", DAEMONS + 1)
        connection.execute(FILL, (SLOW_QUEUE, SLOW_QUEUE, DAEMONS * THREADS))
        wait(
            connection,
            "select count(*) from packhorse.message_queue where queue = 'slow' and state = 'running'",
            DAEMONS * THREADS,
        )
        # once through, then again: the first look at a queue is not what is measured
        for queue in (SLOW_QUEUE, LIGHT_QUEUE):
            wait(connection, f"select 1 - count(*) from packhorse.message_queue where queue = '{queue}'", 1)
        begun = len(read_latencies_ms(path))
        send_until(connection, time.monotonic() + QUIET_SECONDS)
        before = read_latencies_ms(path)[begun:]
        connection.execute(FILL, (SLOW_QUEUE, SLOW_QUEUE, DAEMONS * THREADS))
        wait(
            connection,
            "select count(*) from packhorse.message_queue where queue = 'slow' and state = 'running'",
            DAEMONS * THREADS,
        )
        begun = len(read_latencies_ms(path))
        for daemon in daemons[:2]:
            for process in daemon.tree():
                process.kill()
        send_until(
            connection,
            time.monotonic() + LIMIT_SECONDS,
            "select 1 - count(*) from packhorse.message_queue where queue = 'slow'",
        )
        after = read_latencies_ms(path)[begun:]
        seconds, crashes = connection.execute(RESCUED, (SLOW_QUEUE,)).fetchone() or (None, None)
    yield Number("recovery", "rescued to all run", DAEMONS, seconds, "s")
    yield Number("recovery", "most crashes of a message", DAEMONS, crashes, "")
    for name, found in (("before", before), ("after", after)):
        for share in (0.50, 0.99):
            yield Number(
                "recovery", f"light wait {name} p{share * 100:.0f}", DAEMONS, percentile(found, share), "ms"
            )


def start(system: Adapter, stack: ExitStack, threads: int, env: dict[str, str]) -> Child:
    """One daemon of one process; the stack ends it."""
    child = Child(command("worker", "--threads", str(threads), ACTORS), {**system.environment(), **env})
    stack.callback(child.stop)
    return child


def wait(connection: psycopg.Connection[tuple[int]], question: str, least: int) -> None:
    """Until the answer is at least that. Raises TimeoutError."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while (connection.execute(question.encode()).fetchone() or (0,))[0] < least:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{question}: not {least} within {LIMIT_SECONDS:.0f} s")
        time.sleep(0.05)  # seen from outside only


def send_until(
    connection: psycopg.Connection[tuple[int]], deadline: float, question: str | None = None
) -> None:
    """A light message every SEND_SECONDS until the deadline, or until the answer is 1, asked once a
    second.
    """
    asked = time.monotonic()
    while time.monotonic() < deadline:
        connection.execute(SEND, (LIGHT_QUEUE, LIGHT_QUEUE, time.time_ns()))
        if question is not None and time.monotonic() - asked > 1.0:
            asked = time.monotonic()
            if (connection.execute(question.encode()).fetchone() or (0,))[0] == 1:
                return
        time.sleep(SEND_SECONDS)  # the pace of the producer
    if question is not None:
        raise TimeoutError(f"messages are left after {LIMIT_SECONDS:.0f} s")
