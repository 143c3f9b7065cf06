"""packhorse queue: list, show, pause, resume, delete, set."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

import typer

from packhorse.worker.cli.common import AsJson, Operator, Reason, Yes, confirmed, database, operator_name
from packhorse.worker.cli.errors import CommandError, usage
from packhorse.worker.cli.render import print_json, print_paused, print_rows
from packhorse.worker.db.errors import translated
from packhorse.worker.errors import StoreRejected
from packhorse.worker.exits import EXIT_OK
from packhorse.worker.ops import retries
from packhorse.worker.records import Row
from packhorse.worker.store import operations

app = typer.Typer(no_args_is_help=True, help="Queues: depth, pause, settings.")

Name = Annotated[str, typer.Argument(metavar="QUEUE", help="Name of the queue.")]
OneName = Annotated[str | None, typer.Argument(metavar="[QUEUE]", help="Name of the queue.")]
All = Annotated[bool, typer.Option("--all", help="All queues.")]
COLUMNS = [
    "queue",
    "paused",
    "pending",
    "delayed",
    "blocked",
    "running",
    "dead",
    "oldest_due_seconds",
    "oldest_running_seconds",
]


@app.command("list")
def list_queues(as_json: AsJson = False) -> int:
    """Every queue: messages by state, age of the oldest in seconds. ~: about, as the planner estimates."""
    with database() as connection:
        found = operations.queue_health(connection)
    if as_json:
        print_json(found)
    else:
        shown = [{**row, **{state: f"~{row[state]}" for state in row["estimates"]}} for row in found]
        print_rows(shown, COLUMNS, empty="no queues")
    return EXIT_OK


@app.command()
def show(queue: Name, as_json: AsJson = False) -> int:
    """The settings of a queue."""
    with database() as connection:
        found, span = operations.queue_settings(connection, queue), operations.retry_span(connection, queue)
    _tell(found, span, as_json=as_json)
    return EXIT_OK


@app.command()
def pause(
    queue: OneName = None,
    everything: All = False,
    reason: Reason = None,
    operator: Operator = None,
    as_json: AsJson = False,
) -> int:
    """Start nothing more from a queue; what runs goes on. --all: a maintenance window."""
    name, who = _named(queue, everything), operator_name(operator)
    with database() as connection:
        if name is None:
            return _told_all(operations.pause_all_queues(connection, who, reason), "paused", as_json)
        changed = operations.pause_queue(connection, name, who, reason)
    print_paused("queue", name, True, changed, as_json)
    return EXIT_OK


@app.command()
def resume(
    queue: OneName = None,
    everything: All = False,
    reason: Reason = None,
    operator: Operator = None,
    as_json: AsJson = False,
) -> int:
    """Let a paused queue go on. --all: those that were paused with --all, and no other."""
    name, who = _named(queue, everything), operator_name(operator)
    with database() as connection:
        if name is None:
            return _told_all(operations.resume_all_queues(connection, who, reason), "resumed", as_json)
        changed = operations.resume_queue(connection, name, who, reason)
    print_paused("queue", name, False, changed, as_json)
    return EXIT_OK


@app.command()
def delete(
    queue: Name, reason: Reason = None, operator: Operator = None, yes: Yes = False, as_json: AsJson = False
) -> int:
    """Remove a queue that nothing uses any more, with its settings."""
    with database() as connection:
        operations.require_queue(connection, queue)
        confirmed(f"Delete the queue {queue} and its settings?", yes)
        try:
            with translated():
                operations.delete_queue(connection, queue, operator_name(operator), reason)
        except StoreRejected as error:
            if error.sqlstate != "PH005":
                raise
            raise CommandError(
                str(error), code="in_use", field="queue", hint="Move, redrive or purge what is there first"
            ) from error
    print_json({"queue": queue, "deleted": True}) if as_json else print(f"{queue} is deleted")
    return EXIT_OK


def _named(queue: str | None, everything: bool) -> str | None:
    """The queue, or None for all of them; nothing named is an error, not everything."""
    if (queue is None) != everything:
        raise usage(
            "queue", "give a queue or --all, one of them", "`packhorse queue list` shows what there is"
        )
    return queue


def _told_all(names: list[str], verb: str, as_json: bool) -> int:
    if as_json:
        print_json({verb: names})
    else:
        print(f"{verb} {len(names)} queue(s){': ' if names else ''}{', '.join(names)}")
    return EXIT_OK


@app.command("set")
def set_settings(
    queue: Name,
    settings: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME=VALUE...", help="Settings as `packhorse queue show` names them; none = no limit."
        ),
    ],
    reason: Reason = None,
    operator: Operator = None,
    as_json: AsJson = False,
) -> int:
    """Change settings of a queue; they work within seconds. Example: packhorse queue set default
    max_concurrency=10 keep_done=1d
    """
    values: dict[str, Any] = {}
    for name, value in map(_setting, settings):
        if name in values:
            raise usage(name, "given twice", "Give it once")
        values[name] = value
    with database() as connection:
        found = operations.set_queue(connection, queue, values, operator_name(operator), reason)
        span = operations.retry_span(connection, queue)
    _tell(found, span, as_json=as_json)
    return EXIT_OK


def _tell(found: Row, span: Row, *, as_json: bool) -> None:
    """Names and values as `set` takes them: what is not limited, too, else nobody learns that it could be.
    And how long an outage they outlast.
    """
    if as_json:
        print_json(found | {"outage_seconds": span["seconds"]})
        return
    values = {
        name: "none" if value is None else value
        for name, value in found.items()
        if value is not None or "paused" not in name
    }
    rows = [{"setting": name, "value": value} for name, value in values.items()]
    print_rows(rows, ["setting", "value"], empty="")
    print(f"\n{retries.span_sentence(span)}")


def _setting(text: str) -> tuple[str, Any]:
    """name=value; numbers as numbers, none as null, anything else as text (durations are PostgreSQL
    intervals).
    """
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise usage("settings", f"{text[:60]!r} is not NAME=VALUE", "For example: max_concurrency=10")
    if not value:  # an unset variable of a script must not remove a limit
        raise usage(name, "has no value", f"{name}=none removes a limit")
    if value.lower() in ("none", "null"):
        return name, None
    try:
        number = json.loads(value)
    except ValueError:
        return name, value
    return name, number if isinstance(number, (int, float)) and not isinstance(
        number, bool
    ) and math.isfinite(number) else value
