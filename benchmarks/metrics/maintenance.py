"""What does maintenance cost the queue, and what do partitions save?

`pickup alone/beside` and `drain alone/beside`: the queue without, and while retention removes `expired` rows
of another table. `delete`: how fast retention removes them alone, beside one naive DELETE. `partition`: the
locks of dropping a day of archived messages, beside deleting them. `scheduler idle`: what an idle scheduler
costs.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from benchmarks.harness.config import Settings
from benchmarks.harness.handler import LATENCY_FILE
from benchmarks.harness.processes import Child
from benchmarks.harness.stats import percentile
from benchmarks.metrics.base import Case, Number
from benchmarks.metrics.idle import QUIET_SECONDS
from benchmarks.metrics.pickup import collect, send
from benchmarks.systems.base import POLL_SECONDS, System
from benchmarks.systems.postgres_base import PostgresSystem

CASES = [Case(f"maintenance/{what}") for what in ("pickup", "drain", "delete", "partition", "idle")]
EXPIRED = """
create table bench_events (id bigint generated always as identity primary key, created_at timestamptz not null, kind text not null, body text);
create index bench_events_created_idx on bench_events (created_at);
"""
FILL = """
insert into bench_events (created_at, kind, body)
select now() - interval '100 days' + n * interval '1 second', 'seen', repeat('x', 80) from generate_series(1, %s) n
"""
START_SECONDS = 3.0
"""A scheduler has started and has written its timetable by then."""
POLICY = '[retention.bench_events]\ncolumn = "created_at"\nkeep = "1d"\nbudget = "1h"\n'
ARCHIVED = """
insert into packhorse.message_archive (id, queue, message_type, payload, options, priority, state, attempt, crashes, created_at, finished_at)
select n, 'bench', 'bench', jsonb_build_object('number', n, 'body', repeat('x', 180)),
  '{"message_id": "0b7cbe5e-44c2-4c86-b1a5-0f8a77d1a001"}', 5, 'done', 1, 0, now() - make_interval(days => %s), now() - make_interval(days => %s)
from generate_series(1, %s) n
"""
PARTITION = """
create table packhorse.message_archive_{0} partition of packhorse.message_archive
for values from (date_trunc('day', now() - interval '{0} days')) to (date_trunc('day', now() - interval '{1} days'))
"""


def measure(system: System, case: Case, settings: Settings) -> Iterator[Number]:
    """One case; only systems that keep their own database list these."""
    assert isinstance(system, PostgresSystem), "only systems on Postgres list these cases"
    variant = case.key.removeprefix("maintenance/")
    if variant == "pickup":
        for name, share, value in pickup(system, settings):
            yield Number("maintenance", f"pickup {name} p{share * 100:.0f}", 1, value, "ms")
    elif variant == "drain":
        for name, rate in drains(system, settings):
            yield Number("maintenance", f"drain {name}", 1, rate, "messages/s")
    elif variant == "delete":
        yield from delete(system, settings)
    elif variant == "partition":
        yield from partition(system, settings)
    else:
        yield from idle(system, settings)


def pickup(system: PostgresSystem, settings: Settings) -> Iterator[tuple[str, float, float]]:
    """Latency of an idle queue alone, then while rows are removed."""
    for name in ("alone", "beside"):
        with tempfile.TemporaryDirectory(prefix="packhorse-bench-") as home:
            path = Path(home) / "latencies"
            workers = system.start(1, env={LATENCY_FILE: str(path)})
            try:
                system.warm_up(workers)
                if name == "beside":
                    fill(system, settings.expired)
                    with removing(system) as run:
                        run.wait_begun(system)
                        send(system, settings.samples)
                        run.check_alive()
                else:
                    send(system, settings.samples)
                samples = collect(workers, path, settings.samples)
            finally:
                workers.stop()
        for share in (0.50, 0.99):
            yield name, share, percentile(samples, share)


def drains(system: PostgresSystem, settings: Settings) -> Iterator[tuple[str, float]]:
    """Rate of a drain alone, then while rows are removed."""
    count = settings.size(system.sizes.drain[1])
    workers = system.start(1)
    try:
        system.warm_up(workers)
        started = system.load(workers, count)
        yield "alone", count / (system.wait_drained(workers) - started)
        fill(system, settings.expired)
        with removing(system) as run:
            run.wait_begun(system)
            started = system.load(workers, count)
            yield "beside", count / (system.wait_drained(workers) - started)
            run.check_alive()
    finally:
        workers.stop()


def delete(system: PostgresSystem, settings: Settings) -> Iterator[Number]:
    """Rows per second of a retention run, and of one statement."""
    fill(system, settings.expired)
    started = time.monotonic()
    with removing(system) as run:
        run.wait()
    yield Number(
        "maintenance", "delete by retention", 1, settings.expired / (time.monotonic() - started), "rows/s"
    )
    fill(system, settings.expired)
    started = time.monotonic()
    with psycopg.connect(system.store_url(), autocommit=True) as connection:
        connection.execute("delete from bench_events where created_at < now() - interval '1 day'")
    yield Number(
        "maintenance", "delete by one statement", 1, settings.expired / (time.monotonic() - started), "rows/s"
    )


def partition(system: PostgresSystem, settings: Settings) -> Iterator[Number]:
    """Two days of archived messages: milliseconds to detach and drop one, to delete the rows of the other and
    give their space back.
    """
    with psycopg.connect(system.store_url(), autocommit=True) as connection:
        for day in (4, 2):
            connection.execute(PARTITION.format(day, day - 1))  # type: ignore[arg-type]
            connection.execute(ARCHIVED, (day, day, settings.backlog))
        system.server.admin.execute("checkpoint")
        started = time.monotonic()
        connection.execute(
            "delete from packhorse.message_archive where finished_at < now() - interval '3 days'"
        )
        connection.execute("vacuum packhorse.message_archive_4")
        deleted = time.monotonic() - started
        started = time.monotonic()
        connection.execute(
            "alter table packhorse.message_archive detach partition packhorse.message_archive_2 concurrently"
        )
        detached = time.monotonic()
        connection.execute("drop table packhorse.message_archive_2")
        dropped = time.monotonic()
    yield Number("maintenance", "partition detach and drop", 1, (dropped - started) * 1000, "ms")
    yield Number("maintenance", "partition detach: locks on its parent", 1, (detached - started) * 1000, "ms")
    yield Number("maintenance", "partition rows deleted and vacuumed", 1, deleted * 1000, "ms")


def idle(system: PostgresSystem, settings: Settings) -> Iterator[Number]:
    """Transactions per second and CPU of one `packhorse scheduler` with nothing due but its own minute."""
    from benchmarks.systems.packhorse import command

    child = Child(command("scheduler"), {**os.environ, **system.environment(), "PACKHORSE_ACTORS": ""})
    try:
        time.sleep(START_SECONDS + QUIET_SECONDS)  # nothing happens that could be waited for
        before, began, cpu = system.activity()[0], time.monotonic(), _cpu_seconds(child)
        time.sleep(settings.idle_seconds)  # the measured window
        spent = time.monotonic() - began
        yield Number(
            "maintenance",
            "scheduler idle transactions",
            1,
            (system.activity()[0] - before) / spent,
            "transactions/s",
        )
        yield Number(
            "maintenance", "scheduler idle cpu", 1, (_cpu_seconds(child) - cpu) / spent * 100, "% of a core"
        )
    finally:
        child.stop()


def _cpu_seconds(child: Child) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in child.tree())


def fill(system: PostgresSystem, count: int) -> None:
    """A table of `count` rows that are all too old, analyzed and written back."""
    with psycopg.connect(system.store_url(), autocommit=True) as connection:
        connection.execute("drop table if exists bench_events")
        connection.execute(EXPIRED)
        connection.execute(FILL, (count,))
        connection.execute("vacuum analyze bench_events")
    system.server.admin.execute("checkpoint")


class Removal:
    """A `packhorse maintenance run` in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def wait_begun(self, system: PostgresSystem) -> None:
        """Return when the run has removed its first batch. Raises RuntimeError when it ended before that."""
        query = "select count(*) from packhorse.maintenance_runs where task = 'retention.bench_events' and state = 'running' and batches > 0"
        while not system.observing().execute(query).fetchone()[0]:  # type: ignore[index]
            self.check_alive()
            time.sleep(POLL_SECONDS)  # the first batch is seen in the table of runs only

    def check_alive(self) -> None:
        """It must still be at work, else the measurement beside it measured nothing."""
        if self._process.poll() is not None:
            raise RuntimeError(
                f"the retention run ended before the measurement did (status {self._process.returncode}): raise EXPIRED"
            )

    def wait(self) -> None:
        output, _ = self._process.communicate(timeout=1200)
        if self._process.returncode:
            raise RuntimeError(f"the retention run failed: {output}")


@contextmanager
def removing(system: PostgresSystem) -> Iterator[Removal]:
    """Retention at work on bench_events until the end of the block."""
    from benchmarks.systems.packhorse import command

    with tempfile.TemporaryDirectory(prefix="packhorse-bench-") as home:
        config = Path(home) / "packhorse.toml"
        config.write_text(POLICY)
        env = {**os.environ, **system.environment(), "PACKHORSE_CONFIG": str(config)}
        process = subprocess.Popen(
            command("maintenance", "run", "retention.bench_events", "--yes"),
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=home,
        )
        try:
            yield Removal(process)
        finally:
            process.kill()
            process.communicate()
