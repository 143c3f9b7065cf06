"""packhorse stats."""

from __future__ import annotations

from packhorse.worker.cli import queue
from packhorse.worker.cli.common import AsJson, database
from packhorse.worker.cli.render import print_json, print_rows
from packhorse.worker.exits import EXIT_OK
from packhorse.worker.store import operations


def stats(as_json: AsJson = False) -> int:
    """Queues now, what ended in the last hour (seconds from enqueue to end; dead letters by code),
    workers.
    """
    with database() as connection:
        found = operations.stats(connection)
    if as_json:
        print_json(found)
        return EXIT_OK
    print_rows(found["queues"], queue.COLUMNS, empty="no queues")
    print()
    print_rows(
        found["last_hour"],
        ["queue", "state", "count", "p50_seconds", "p99_seconds"],
        empty="nothing ended in the last hour",
    )
    if found["dead_by_code"]:
        print()
        print_rows(found["dead_by_code"], ["queue", "error_code", "count", "last_dead_at"], empty="")
    print()
    print_rows([found["workers"]], list(found["workers"]), empty="no worker lives")
    return EXIT_OK
