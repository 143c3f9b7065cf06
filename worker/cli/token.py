"""packhorse token: who may use the page, or enqueue over HTTP."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from packhorse.worker.cli.common import AsJson, Operator, Reason, database, operator_name
from packhorse.worker.cli.render import print_json, print_rows
from packhorse.worker.errors import InvalidArgument
from packhorse.worker.exits import EXIT_OK
from packhorse.worker.store import tokens as store
from packhorse.worker.suggest import did_you_mean

app = typer.Typer(
    help="Tokens: who may use the page, as viewer, operator or admin, or enqueue over HTTP.",
    no_args_is_help=True,
)

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="Whose it is; recorded with whatever is done with it.")
]
RoleOption = Annotated[
    Literal["viewer", "operator", "admin", "producer"],
    typer.Option(
        "--role",
        help="viewer: look, without payloads. operator: see payloads, steer. admin: also what cannot be taken back. producer: enqueue over HTTP.",
    ),
]


QueueOption = Annotated[
    list[str] | None,
    typer.Option("--queue", "-q", help="A queue that a producer may use; once or several times."),
]


@app.command()
def create(
    name: Name,
    role: RoleOption = "viewer",
    queue: QueueOption = None,
    reason: Reason = None,
    operator: Operator = None,
    as_json: AsJson = False,
) -> int:
    """Make a token and print it, once: the database has only a hash of it."""
    with database() as connection:
        token = store.create(connection, name, role, operator_name(operator), reason, queue)
    if as_json:
        print_json({"name": name, "role": role, "queues": queue, "token": token})
    else:
        print(token)
    return EXIT_OK


@app.command("list")
def list_tokens(as_json: AsJson = False) -> int:
    """Tokens with their roles, those in force first."""
    with database() as connection:
        found = store.list_tokens(connection)
    if as_json:
        print_json(found)
    else:
        print_rows(
            found,
            ["name", "role", "queues", "created_at", "created_by", "last_used_at", "revoked_at"],
            empty="no tokens",
        )
    return EXIT_OK


@app.command()
def revoke(name: Name, reason: Reason = None, operator: Operator = None, as_json: AsJson = False) -> int:
    """End a token; its sessions end within ten seconds."""
    with database() as connection:
        if not store.revoke(connection, name, operator_name(operator), reason):
            known = [str(row["name"]) for row in store.list_tokens(connection) if row["revoked_at"] is None]
            raise InvalidArgument(
                f"name: no token in force is called {name[:100]!r}",
                field="name",
                hint=did_you_mean(name, known, "packhorse token list names them all"),
            )
    if as_json:
        print_json({"name": name, "revoked": True})
    else:
        print(f"revoked: {name}")
    return EXIT_OK
