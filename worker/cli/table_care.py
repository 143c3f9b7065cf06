"""packhorse table-care: what a table wants done: vacuum, unused indexes, partitions, sequences near their end
(SPEC M9).
"""

from __future__ import annotations

from packhorse.worker.cli.common import AsJson, database
from packhorse.worker.cli.render import print_json, print_rows
from packhorse.worker.exits import EXIT_OK
from packhorse.worker.store import table_care as store


def table_care(as_json: AsJson = False) -> int:
    """Report on tables, indexes, sequences and snapshots; proposes statements, runs none."""
    with database() as connection:
        report = {
            "tables": store.tables(connection),
            "partitions": store.partitions(connection),
            "indexes": store.indexes(connection),
            "sequences": store.sequences(connection),
            "snapshots": store.snapshots(connection),
        }
    if as_json:
        print_json(report)
        return EXIT_OK
    for title, columns in (
        (
            "tables",
            [
                "table",
                "bytes",
                "live_rows",
                "dead_rows",
                "dead_ratio",
                "bloat_ratio",
                "last_autovacuum_at",
                "advice",
            ],
        ),
        ("partitions", ["table", "partitions", "ends_at", "default_rows", "pending_detaches", "advice"]),
        ("indexes", ["index", "table", "bytes", "scans", "problem", "advice"]),
        ("sequences", ["sequence", "used_ratio", "advice"]),
        ("snapshots", ["pid", "application", "state", "age_seconds", "advice"]),
    ):
        print(title)
        print_rows(report[title], columns, empty="  nothing to say")
        print()
    return EXIT_OK
