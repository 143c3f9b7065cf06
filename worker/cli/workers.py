"""packhorse workers: list, quiet, drain, resume."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import typer

from packhorse.worker.cli.common import AsJson, Operator, Reason, database, operator_name
from packhorse.worker.cli.errors import CommandError, usage
from packhorse.worker.cli.render import print_json, print_rows
from packhorse.worker.errors import InvalidArgument
from packhorse.worker.exits import EXIT_OK
from packhorse.worker.store import operations
from packhorse.worker.store import workers as store

app = typer.Typer(help="Worker processes: who lives; take one daemon out of work, or end it.")


def _id(text: str) -> UUID:
    """The id of a worker process; a host name or a pid is none."""
    try:
        return UUID(text)
    except ValueError:
        raise usage(
            "id",
            f"{text[:60]!r} is not the id of a worker process",
            "`packhorse workers list` shows who lives",
        ) from None


Id = Annotated[
    UUID,
    typer.Argument(
        metavar="ID", parser=_id, help="Id of a worker process, as `packhorse workers list` shows it."
    ),
]
COLUMNS = [
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


@app.callback(invoke_without_command=True)
def bare(context: typer.Context, as_json: AsJson = False) -> int:
    """Worker processes that live. Without a command: list."""
    return list_workers(as_json) if context.invoked_subcommand is None else EXIT_OK


@app.command("list")
def list_workers(as_json: AsJson = False) -> int:
    """Worker processes that live; `silent` ones have missed their heartbeats."""
    with database() as connection:
        found = operations.list_workers(connection)
    if as_json:
        print_json(found)
    else:
        rows = [{**row, "problems": "; ".join(row["problems"])} for row in found]
        more = [name for name in ("asked", "problems") if any(row[name] for row in rows)]
        print_rows(rows, [*COLUMNS, *more], empty="no worker lives")
    return EXIT_OK


@app.command()
def quiet(worker_id: Id, reason: Reason = None, operator: Operator = None, as_json: AsJson = False) -> int:
    """Let a daemon claim nothing more; what runs goes on, and it lives until it is resumed or ended."""
    return _ask(worker_id, "quiet", reason, operator, as_json)


@app.command()
def drain(worker_id: Id, reason: Reason = None, operator: Operator = None, as_json: AsJson = False) -> int:
    """Let a daemon finish what runs and end with exit code 0."""
    return _ask(worker_id, "drain", reason, operator, as_json)


@app.command()
def resume(worker_id: Id, reason: Reason = None, operator: Operator = None, as_json: AsJson = False) -> int:
    """Let a quiet daemon claim again."""
    return _ask(worker_id, "resume", reason, operator, as_json)


def _ask(worker_id: UUID, request: str, reason: str | None, operator: str | None, as_json: bool) -> int:
    """It is the daemon that is asked: all processes of one parent."""
    with database() as connection:
        answer = store.ask(connection, worker_id, request, operator_name(operator), reason)
        theirs = operations.list_workers(connection)
    if answer == "gone":
        raise InvalidArgument(
            f"id: no worker process has the id {worker_id}",
            field="id",
            hint="`packhorse workers list` shows who lives",
        )
    if answer == "draining":
        raise CommandError(
            f"the daemon of {worker_id} was asked to end, which cannot be taken back",
            code="not_possible",
            field="id",
        )
    daemon = next((row["daemon"] for row in theirs if str(row["id"]) == str(worker_id)), None)
    pids = sorted(row["pid"] for row in theirs if row["daemon"] == daemon)
    if as_json:
        print_json(
            {
                "id": worker_id,
                "request": request,
                "changed": answer == "asked",
                "daemon": daemon,
                "pids": pids,
            }
        )
    else:
        said = {"quiet": "claim nothing more", "drain": "finish and end", "resume": "claim again"}[request]
        when = "with their next heartbeat" if answer == "asked" else "and were asked before"
        print(f"{len(pids)} process(es) of the daemon {said} {when}: {', '.join(map(str, pids))}")
    return EXIT_OK
