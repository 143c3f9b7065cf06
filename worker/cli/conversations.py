"""packhorse conversations, packhorse conversation show: who waits for whom."""

from __future__ import annotations

from typing import Annotated

import typer

from packhorse.worker.cli.common import AsJson, Limit, database, duration
from packhorse.worker.cli.render import print_json, print_rows
from packhorse.worker.exits import EXIT_OK
from packhorse.worker.store import operations

app = typer.Typer(no_args_is_help=True, help="One conversation: its messages, what holds it.")

COLUMNS = [
    "id",
    "queue",
    "message_type",
    "state",
    "attempt",
    "created_at",
    "run_at",
    "finished_at",
    "error_class",
]


def conversations(limit: Limit = 50, as_json: AsJson = False) -> int:
    """Conversations with waiting messages: how many, since when, and the message that holds each."""
    with database() as connection:
        found = operations.blocked_conversations(connection, limit)
    if as_json:
        print_json(found)
    else:
        print_rows(
            found,
            ["conversation_key", "waiting", "since", "holder_kind", "holder_id"],
            empty="no conversation waits",
        )
    return EXIT_OK


@app.command("show")
def show(
    key: Annotated[str, typer.Argument(metavar="KEY", help="The conversation key.")],
    recent: Annotated[
        float | None, duration("--recent", "Also messages that ended within this time; default 1d.")
    ] = None,
    limit: Limit = 100,
    as_json: AsJson = False,
) -> int:
    """The messages of one conversation in their order, and what holds it."""
    from packhorse.worker.ops import conversations as ops

    with database() as connection:
        found = ops.show(connection, key, recent_seconds=86400.0 if recent is None else recent, limit=limit)
    if as_json:
        document = {
            "conversation_key": found.key,
            "waiting": found.waiting,
            "holder_id": found.holder,
            "held_by": found.held_by,
        }
        print_json({**document, "gates": found.gates, "messages": found.messages})
        return EXIT_OK
    print_rows(found.messages, COLUMNS, empty="no message ended lately")
    print()
    print(f"{found.waiting} wait. {found.held_by or 'Nothing holds it'}.")
    return EXIT_OK
