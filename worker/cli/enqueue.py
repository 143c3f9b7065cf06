"""packhorse enqueue: one message from the command line."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Annotated, Any

import typer

from packhorse.worker.cli.common import AsJson, database, duration, json_object, moment, read_stdin
from packhorse.worker.cli.errors import CommandError, usage
from packhorse.worker.cli.render import print_json
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import translated
from packhorse.worker.errors import StoreRejected
from packhorse.worker.exits import EXIT_OK
from packhorse.worker.patterns import name_for
from packhorse.worker.store.operations import list_workers, require_type


def enqueue(
    message_type: Annotated[str, typer.Argument(metavar="TYPE", help="Message type: the name of the actor.")],
    payload: Annotated[
        str,
        typer.Argument(
            metavar="[PAYLOAD]", help="JSON object with the handler's arguments; `-` reads stdin."
        ),
    ] = "{}",
    queue: Annotated[str, typer.Option("--queue", "-q", help="Queue.")] = "default",
    delay: Annotated[
        float | None, duration("--delay", "Start no earlier than in so long: 90s, 5m, 2h.")
    ] = None,
    run_at: Annotated[
        datetime | None,
        typer.Option("--run-at", parser=moment, metavar="TIME", help="Start no earlier: ISO 8601 with zone."),
    ] = None,
    expires_in: Annotated[
        float | None, duration("--expires-in", "Not worth doing later than in so long.")
    ] = None,
    priority: Annotated[int | None, typer.Option("--priority", help="1 (first) to 10; default 5.")] = None,
    max_attempts: Annotated[
        int | None,
        typer.Option("--max-attempts", help="Attempts before it is a dead letter; default: the queue's."),
    ] = None,
    conversation_key: Annotated[
        str | None, typer.Option("--conversation-key", help="One at a time, in order, per key.")
    ] = None,
    concurrency_key: Annotated[
        str | None, typer.Option("--concurrency-key", help="Counted by the queue's max_concurrency_per_key.")
    ] = None,
    fairness_key: Annotated[
        str | None, typer.Option("--fairness-key", help="The tenant, where the queue has fair_share.")
    ] = None,
    dedup_key: Annotated[
        str | None,
        typer.Option("--dedup-key", help="A second enqueue with this key answers with the first id."),
    ] = None,
    dedup_window: Annotated[
        float | None, duration("--dedup-window", "How long the dedup key counts; default 5m.")
    ] = None,
    pending_key: Annotated[
        str | None,
        typer.Option("--pending-key", help="Unique among the messages of its type that have not started."),
    ] = None,
    when_pending: Annotated[
        str | None,
        typer.Option(
            "--when-pending",
            metavar="return|replace|append",
            help="What a second enqueue of the pending key does with the first.",
        ),
    ] = None,
    debounce: Annotated[
        float | None,
        duration("--debounce", "Append, and start so long after the last one; by conversation key, too."),
    ] = None,
    max_wait: Annotated[
        float | None, duration("--max-wait", "Debounced, it waits no longer; default ten times --debounce.")
    ] = None,
    correlation_id: Annotated[
        str | None,
        typer.Option("--correlation-id", help="Carried through to logs and to what the handler enqueues."),
    ] = None,
    allow_unknown_type: Annotated[
        bool, typer.Option("--allow-unknown-type", help="Enqueue although no worker has registered the type.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Put one message on a queue; prints its id."""
    from packhorse.worker.enqueue.producer import enqueue as enqueue_on

    if delay is not None and run_at is not None:
        raise usage("run_at", "--run-at and --delay both say when it may start", "Give one of them")
    if dedup_window is not None and dedup_key is None:
        raise usage("dedup_window", "--dedup-window without --dedup-key means nothing", "Give the key, too")
    values = json_object("payload", read_stdin("payload") if payload == "-" else payload)
    options: dict[str, Any] = {
        "delay": delay,
        "run_at": run_at,
        "expires_in": expires_in,
        "priority": priority,
        "max_attempts": max_attempts,
        "conversation_key": conversation_key,
        "concurrency_key": concurrency_key,
        "fairness_key": fairness_key,
        "dedup_key": dedup_key,
        "dedup_window": dedup_window,
        "pending_key": pending_key,
        "when_pending": when_pending,
        "debounce": debounce,
        "max_wait": max_wait,
        "correlation_id": correlation_id,
    }
    with database(check=False) as connection:  # a producer may not read the record of migrations
        elsewhere: set[str] = set()
        if not allow_unknown_type:
            elsewhere = _checked(connection, message_type, queue)
        result = enqueue_on(
            connection,
            message_type,
            values,
            queue=queue,
            **{name: value for name, value in options.items() if value is not None},
        )
    if as_json:
        print_json({"id": result.id, "duplicate": result.duplicate, "merged": result.merged})
    elif result.merged:
        print(f"{result.id} merged: the payload went into an earlier message, which has not started")
    elif result.duplicate:
        print(f"{result.id} duplicate: an earlier message holds the dedup or pending key")
    else:
        print(result.id)
    if elsewhere:  # not refused: a worker for this queue may be on its way
        print(
            f"packhorse: it waits: no live worker takes {message_type} from the queue {queue}, only from {', '.join(sorted(elsewhere))}. "
            f"`packhorse message explain {result.id}` says more.",
            file=sys.stderr,
        )
    return EXIT_OK


def _checked(connection: DeadlineConnection, message_type: str, queue: str) -> set[str]:
    """Queues from which the type is taken when it is not from `queue`. Raises InvalidArgument for a type that
    nobody registered.
    """
    try:
        with translated():
            require_type(connection, message_type)
            return _served_elsewhere(connection, message_type, queue)
    except StoreRejected as error:
        if error.sqlstate != "42501":
            raise
        raise CommandError(
            "type: this role may not see which types workers register",
            code="rejected",
            field="type",
            hint="A role in packhorse_producer says --allow-unknown-type",
        ) from error


def _served_elsewhere(connection: DeadlineConnection, message_type: str, queue: str) -> set[str]:
    """Queues of the live workers that register the type; empty when one of them works on `queue`, or when
    none lives.
    """
    theirs = [
        set(row["queues"])
        for row in list_workers(connection)
        if not row["silent"] and name_for(row["message_types"], message_type)
    ]
    return set() if any(queue in queues for queues in theirs) else set().union(*theirs)
