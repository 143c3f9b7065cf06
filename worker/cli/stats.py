"""packhorse workers, packhorse stats."""

from __future__ import annotations

from packhorse.worker.cli import queue
from packhorse.worker.cli.common import AsJson, database
from packhorse.worker.cli.render import print_json, print_rows
from packhorse.worker.exits import EXIT_OK
from packhorse.worker.store import operations

WORKER_COLUMNS = [
    "id",
    "hostname",
    "pid",
    "state",
    "silent",
    "queues",
    "threads",
    "running",
    "done_total",
    "failed_total",
    "started_at",
    "last_seen_at",
]


def workers(as_json: AsJson = False) -> int:
    """Worker processes that live; `silent` ones have missed their heartbeats."""
    with database() as connection:
        found = operations.list_workers(connection)
    if as_json:
        print_json(found)
    else:
        rows = [{**row, "problems": "; ".join(row["problems"])} for row in found]
        print_rows(rows, WORKER_COLUMNS if not any(row["problems"] for row in found) else [*WORKER_COLUMNS, "problems"], empty="no worker lives")
    return EXIT_OK


def stats(as_json: AsJson = False) -> int:
    """Queues now, what ended in the last hour (seconds from enqueue to end; dead letters by code), workers."""
    with database() as connection:
        found = operations.stats(connection)
    if as_json:
        print_json(found)
        return EXIT_OK
    print_rows(found["queues"], queue.COLUMNS, empty="no queues")
    print()
    print_rows(found["last_hour"], ["queue", "state", "count", "p50_seconds", "p99_seconds"], empty="nothing ended in the last hour")
    if found["dead_by_code"]:
        print()
        print_rows(found["dead_by_code"], ["queue", "error_code", "count", "last_dead_at"], empty="")
    print()
    print_rows([found["workers"]], list(found["workers"]), empty="no worker lives")
    return EXIT_OK
