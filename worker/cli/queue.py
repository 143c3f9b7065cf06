"""packhorse queue: list, show, pause, resume, set."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

import typer

from packhorse.worker.cli.common import AsJson, Operator, database, operator_name
from packhorse.worker.cli.errors import usage
from packhorse.worker.cli.render import print_json, print_rows
from packhorse.worker.exits import EXIT_OK
from packhorse.worker.records import Row
from packhorse.worker.store import operations

app = typer.Typer(no_args_is_help=True, help="Queues: depth, pause, settings.")

Name = Annotated[str, typer.Argument(metavar="QUEUE", help="Name of the queue.")]
COLUMNS = ["queue", "paused", "pending", "delayed", "blocked", "running", "dead", "oldest_due_seconds", "oldest_running_seconds"]


@app.command("list")
def list_queues(as_json: AsJson = False) -> int:
    """Every queue: messages by state, age of the oldest in seconds."""
    with database() as connection:
        found = operations.queue_health(connection)
    if as_json:
        print_json(found)
    else:
        print_rows(found, COLUMNS, empty="no queues")
    return EXIT_OK


@app.command()
def show(queue: Name, as_json: AsJson = False) -> int:
    """The settings of a queue."""
    with database() as connection:
        found = operations.queue_settings(connection, queue)
    print_json(found) if as_json else _print_settings(found)
    return EXIT_OK


@app.command()
def pause(queue: Name, operator: Operator = None, as_json: AsJson = False) -> int:
    """Start nothing more from a queue; what runs goes on."""
    with database() as connection:
        changed = operations.pause_queue(connection, queue, operator_name(operator))
    if as_json:
        print_json({"queue": queue, "paused": True, "changed": changed})
    else:
        print(f"{queue} is paused" if changed else f"{queue} was paused already")
    return EXIT_OK


@app.command()
def resume(queue: Name, operator: Operator = None, as_json: AsJson = False) -> int:
    """Let a paused queue go on."""
    with database() as connection:
        changed = operations.resume_queue(connection, queue, operator_name(operator))
    if as_json:
        print_json({"queue": queue, "paused": False, "changed": changed})
    else:
        print(f"{queue} goes on" if changed else f"{queue} was not paused")
    return EXIT_OK


@app.command("set")
def set_settings(
    queue: Name,
    settings: Annotated[list[str], typer.Argument(metavar="NAME=VALUE...", help="Settings as `packhorse queue show` names them; none = no limit.")],
    operator: Operator = None,
    as_json: AsJson = False,
) -> int:
    """Change settings of a queue; they work within seconds. Example: packhorse queue set default max_concurrency=10 keep_done=1d"""
    values: dict[str, Any] = {}
    for name, value in map(_setting, settings):
        if name in values:
            raise usage(name, "given twice", "Give it once")
        values[name] = value
    with database() as connection:
        found = operations.set_queue(connection, queue, values, operator_name(operator))
    print_json(found) if as_json else _print_settings(found)
    return EXIT_OK


def _print_settings(found: Row) -> None:
    """Names and values as `set` takes them: what is not limited, too, else nobody learns that it could be."""
    values = {name: "none" if value is None else value for name, value in found.items() if value is not None or "paused" not in name}
    rows = [{"setting": name, "value": value} for name, value in values.items()]
    print_rows(rows, ["setting", "value"], empty="")


def _setting(text: str) -> tuple[str, Any]:
    """name=value; numbers as numbers, none as null, anything else as text (durations are PostgreSQL intervals)."""
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
    return name, number if isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number) else value
