"""What happens to messages whose service is down for a minute, and to the others?

5,000 coroutines of one process wait for a service that answers after some seconds, twice as many wait behind
them; the service fails for a minute and comes back. Beside it, in the same process, synchronous no-ops of
another queue, 50 a second. `up to the first answer` starts when the service is up again; it may take until
the next probe and what an answer takes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg

from benchmarks.harness.config import Settings
from benchmarks.harness.handler import AT_ONCE, LATENCY_FILE, read_latencies_ms
from benchmarks.harness.processes import python_child
from benchmarks.harness.stats import percentile
from benchmarks.metrics.base import Case, Number
from benchmarks.metrics.pickup import collect, send
from benchmarks.metrics.recovery import wait
from benchmarks.systems.base import System
from benchmarks.systems.outage_service import ASK_QUEUE, SERVICE_URL
from benchmarks.systems.packhorse import Adapter
from benchmarks.systems.waiting_actors import NOTES_FILE

CASES = [Case("outage")]
IN_FLIGHT = 5_000
ANSWER_SECONDS = 10.0
DOWN_SECONDS = 60.0
PER_SECOND = 50
FILL = "select packhorse.enqueue_payloads(%s, %s, (select jsonb_agg(jsonb_build_object('number', n)) from generate_series(1, %s) n))"
RUNNING = "select count(*) from packhorse.message_queue where queue = 'ask' and state = 'running'"
EMPTY = "select 1 - count(*) from packhorse.message_queue where queue = 'ask'"
ENDED = """
select count(*) filter (where state = 'done'), (select count(*) from packhorse.dead_letters), sum(attempt - 1), max(attempt)
from packhorse.message_archive where queue = 'ask'
"""


def measure(system: System, case: Case, settings: Settings) -> Iterator[Number]:
    """The one case; only Packhorse lists it."""
    assert isinstance(system, Adapter), "the service is one of Packhorse's"
    in_flight = settings.at_once or IN_FLIGHT
    with ExitStack() as stack, psycopg.connect(system.store_url(), autocommit=True) as connection:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="packhorse-bench-")))
        latencies, answers = home / "latencies", home / "answers"
        service = python_child("benchmarks.systems.outage_service", str(ANSWER_SECONDS), env={})
        stack.callback(service.stop)
        env = {
            SERVICE_URL: f"http://127.0.0.1:{service.expect('ready')}",
            LATENCY_FILE: str(latencies),
            NOTES_FILE: str(answers),
        }
        workers = system.start(1, variant="outage", env={**env, AT_ONCE: str(in_flight)})
        stack.callback(workers.stop)
        system.warm_up(workers)
        connection.execute(FILL, (ASK_QUEUE, ASK_QUEUE, 3 * in_flight))
        wait(connection, RUNNING, in_flight)
        deadline = time.monotonic() + 20 * ANSWER_SECONDS
        while len(answers.read_text().split()) < in_flight and time.monotonic() < deadline:
            time.sleep(0.5)  # a while of successes, as on any day
        wait(connection, RUNNING, in_flight)
        before = len(read_latencies_ms(latencies))
        send(system, settings.samples)
        beside = collect(workers, latencies, before + settings.samples)[before:]
        service.tell("down")
        asked, ends = int(service.expect("asked")), time.monotonic() + DOWN_SECONDS
        count = int((DOWN_SECONDS - 5) * PER_SECOND)
        send(system, count)
        during = collect(workers, latencies, before + settings.samples + count)[before + settings.samples :]
        time.sleep(max(0.0, ends - time.monotonic()))  # the rest of the minute for which it is down
        service.tell("up")
        asked = int(service.expect("asked")) - asked
        up = time.time()
        wait(connection, EMPTY, 1)
        done = time.time()
        times = [int(line) / 1e9 for line in answers.read_text().split()]
        row = connection.execute(ENDED).fetchone() or (0, 0, 0, 0)
    assert row[0] == 3 * in_flight, f"{row[0]} of {3 * in_flight} messages are done"
    yield Number("outage", "dead letters", 1, row[1], "")
    yield Number("outage", "attempts spent on it, of all messages", 1, row[2], "")
    yield Number("outage", "most attempts of a message", 1, row[3], "")
    yield Number("outage", "requests while it was down", 1, asked, "")
    yield Number("outage", "up to the first answer", 1, min(at for at in times if at > up) - up, "s")
    yield Number("outage", "up to all done", 1, done - up, "s")
    for name, found in (("before", beside), ("during", during)):
        for share in (0.50, 0.99):
            yield Number(
                "outage", f"pickup of others {name} p{share * 100:.0f}", 1, percentile(found, share), "ms"
            )
