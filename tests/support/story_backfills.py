"""A backfill behind a story of the page: its batches are small, and take their time."""

from __future__ import annotations

from typing import Any

import packhorse


@packhorse.backfill(
    "lower_emails",
    table="shop.users",
    most_rows=20,
    verify=lambda connection: connection.execute(
        "select count(*) from shop.users where email <> lower(email)"
    ).fetchone()[0],
    rollback=lambda connection: connection.execute("update shop.users set email = initcap(email)"),
)
def lower_emails(connection: Any, keys: list[int]) -> int:
    """Addresses in small letters."""
    connection.execute("select pg_sleep(%s)", (len(keys) * 0.01,))
    return int(
        connection.execute("update shop.users set email = lower(email) where id = any(%s)", (keys,)).rowcount
    )
