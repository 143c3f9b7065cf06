"""packhorse service: list, open, close, auto."""

from __future__ import annotations

from typing import Annotated

import typer

from packhorse.worker.cli.common import AsJson, Operator, Reason, database, operator_name
from packhorse.worker.cli.render import print_json, print_rows
from packhorse.worker.exits import EXIT_OK
from packhorse.worker.store import services

app = typer.Typer(no_args_is_help=True, help="Services that handlers call: circuit breakers and health.")

Name = Annotated[str, typer.Argument(metavar="SERVICE", help="Name of the service.")]
Endpoint = Annotated[
    str | None, typer.Option("--endpoint", help="Only this endpoint; default: all of the service.")
]
COLUMNS = [
    "service",
    "endpoint",
    "state",
    "forced",
    "healthy",
    "recent_calls",
    "recent_failures",
    "failures_in_row",
    "opened_total",
    "retry_at",
]


@app.command("list")
def list_services(
    service: Annotated[str | None, typer.Argument(metavar="[SERVICE]", help="Only this service.")] = None,
    as_json: AsJson = False,
) -> int:
    """Every endpoint: breaker, health, calls of the last minute."""
    with database() as connection:
        found = services.list_endpoints(connection, service)
    if as_json:
        print_json(found)
    else:
        print_rows(found, COLUMNS, empty="no service is declared")
    return EXIT_OK


@app.command("open")
def hold_open(
    service: Name,
    endpoint: Endpoint = None,
    reason: Reason = None,
    operator: Operator = None,
    as_json: AsJson = False,
) -> int:
    """Hold the breakers open: nobody calls the service until `packhorse service auto`."""
    return _force(service, "open", endpoint, reason, operator, as_json)


@app.command("close")
def hold_closed(
    service: Name,
    endpoint: Endpoint = None,
    reason: Reason = None,
    operator: Operator = None,
    as_json: AsJson = False,
) -> int:
    """Hold the breakers closed: the service is called whatever fails, until `packhorse service auto`."""
    return _force(service, "closed", endpoint, reason, operator, as_json)


@app.command("auto")
def let_work(
    service: Name,
    endpoint: Endpoint = None,
    reason: Reason = None,
    operator: Operator = None,
    as_json: AsJson = False,
) -> int:
    """Let the breakers work by themselves again; those that were held open go on with probes."""
    return _force(service, "automatic", endpoint, reason, operator, as_json)


def _force(
    service: str, state: str, endpoint: str | None, reason: str | None, operator: str | None, as_json: bool
) -> int:
    with database() as connection:
        changed = services.force(connection, service, state, endpoint, operator_name(operator), reason)
    if as_json:
        print_json({"service": service, "endpoint": endpoint, "state": state, "changed": changed})
    elif changed:
        print(
            f"{service}: {changed} endpoint(s) {'work by themselves again' if state == 'automatic' else f'held {state}'}"
        )
    else:
        print(f"{service}: nothing to change")
    return EXIT_OK
