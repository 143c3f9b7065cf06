"""packhorse conversations: who waits for whom."""

from __future__ import annotations

from packhorse.worker.cli.common import AsJson, Limit, database
from packhorse.worker.cli.render import print_json, print_rows
from packhorse.worker.exits import EXIT_OK
from packhorse.worker.store import operations


def conversations(limit: Limit = 50, as_json: AsJson = False) -> int:
    """Conversations with waiting messages: how many, since when, and the message that holds each."""
    with database() as connection:
        found = operations.blocked_conversations(connection, limit)
    if as_json:
        print_json(found)
    else:
        print_rows(found, ["conversation_key", "waiting", "since", "holder_kind", "holder_id"], empty="no conversation waits")
    return EXIT_OK
