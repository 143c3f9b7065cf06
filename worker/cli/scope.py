"""packhorse scope: list, park, lift."""

from __future__ import annotations

from typing import Annotated

import typer

from packhorse.worker.cli.common import AsJson, Operator, Reason, database, duration, operator_name
from packhorse.worker.cli.render import print_json, print_rows
from packhorse.worker.exits import EXIT_OK
from packhorse.worker.ops import scopes as ops
from packhorse.worker.store import scopes

app = typer.Typer(no_args_is_help=True, help="Parked scopes: what rests, and since when.")

Name = Annotated[
    str, typer.Argument(metavar="SCOPE", help="A service that actors name, actor:TYPE or queue:QUEUE.")
]
COLUMNS = ["scope", "state", "parked_until", "waiting", "parked_by", "reason", "message_types", "queue"]


@app.command("list")
def list_scopes(as_json: AsJson = False) -> int:
    """What is parked or probing: until when, why, by whom, and how many messages wait."""
    with database() as connection:
        found = scopes.list_scopes(connection)
    if as_json:
        print_json(found)
    else:
        shown = [row | {"message_types": ", ".join(row["message_types"])} for row in found]
        print_rows(shown, COLUMNS, empty="nothing is parked")
    return EXIT_OK


@app.command()
def park(
    scope: Name,
    for_seconds: Annotated[float, duration("--for", "How long, as 90s, 5m or 2h.")],
    probing: Annotated[
        bool,
        typer.Option(
            "--probing", help="After that time let one message at a time start, until it is lifted."
        ),
    ] = False,
    types: Annotated[
        list[str] | None,
        typer.Option("--type", help="A type that belongs to it, beside those that say so; repeatable."),
    ] = None,
    reason: Reason = None,
    operator: Operator = None,
    as_json: AsJson = False,
) -> int:
    """Start no message of a scope for some time; what runs goes on. Takes the place of an earlier park."""
    with database() as connection, connection.transaction():
        until = ops.park(
            connection,
            scope,
            for_seconds,
            reason=reason,
            types=types or [],
            probing=probing,
            operator=operator_name(operator),
        )
    if as_json:
        print_json({"scope": scope, "parked_until": until, "probing": probing})
    else:
        print(f"{scope} is parked until {until}{', then probing' if probing else ''}")
    return EXIT_OK


@app.command()
def lift(scope: Name, reason: Reason = None, operator: Operator = None, as_json: AsJson = False) -> int:
    """Let the messages of a scope start again, at once."""
    with database() as connection:
        lifted = scopes.lift(connection, scope, operator_name(operator), reason)
    if as_json:
        print_json({"scope": scope, "lifted": lifted})
    else:
        print(f"{scope} goes on" if lifted else f"{scope} was not parked")
    return EXIT_OK
