"""What the commands share: option types, settings, the connection, who acts."""

from __future__ import annotations

import getpass
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from packhorse.worker.cli.errors import CommandError, usage
from packhorse.worker.config import Settings, load_settings
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.errors import InvalidArgument
from packhorse.worker.exits import EXIT_UNAVAILABLE

#: Deadline of an operator's statement: some count a whole queue.
READ_SECONDS = 60.0
MIGRATE_SECONDS = 600.0

#: Ids are bigints.
MOST_ID = 2**63 - 1


def seconds(text: str) -> float:
    """`90`, `90s`, `5m`, `2h`, `7d`, `1h30m` as seconds."""
    from packhorse.worker.ops.where import duration_seconds

    try:
        return duration_seconds(text)
    except InvalidArgument as error:
        raise typer.BadParameter(str(error).removeprefix("where: ")) from None


def moment(text: str) -> datetime:
    """An ISO 8601 time with its zone."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text[:40]!r} is not an ISO 8601 time; write 2030-01-31T12:00:00+00:00"
        ) from None
    if found.tzinfo is None:
        raise typer.BadParameter(f"{text[:40]!r} has no time zone; append +00:00 or Z")
    return found


def past(text: str) -> datetime:
    """A time as `moment` reads it, or `2h`: so long ago, by the clock of this host."""
    from packhorse.worker.ops.where import duration_seconds

    try:
        return datetime.now(UTC) - timedelta(seconds=duration_seconds(text))
    except InvalidArgument:
        try:
            return moment(text)
        except typer.BadParameter as error:
            raise typer.BadParameter(f"{error.message}, or 2h: so long ago") from None


def duration(name: str, text: str) -> Any:
    """An option that takes a duration, in seconds for the command."""
    return typer.Option(name, parser=seconds, metavar="DURATION", help=text)


#: So much of the value of a step is shown when it is asked for.
STEP_CHARACTERS = 2000
StepValues = Annotated[
    bool,
    typer.Option(
        "--step-values", help=f"Show what steps have stored, up to {STEP_CHARACTERS} characters of each."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document; errors as JSON on stderr.")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=10_000, help="Most rows to print.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Operator = Annotated[
    str | None, typer.Option("--operator", help="Who acts, for the record; default: the login name.")
]
Reason = Annotated[str | None, typer.Option("--reason", help="Why, for the record.")]
Queue = Annotated[str | None, typer.Option("--queue", "-q", help="Only this queue.")]


def operator_name(given: str | None) -> str:
    """Who is recorded as having acted."""
    if given:
        return given
    try:
        return getpass.getuser()  # LOGNAME, USER, then the password database
    except (KeyError, OSError):
        return "unknown"


def confirmed(question: str, yes: bool) -> None:
    """Ask before what cannot be taken back; raises CommandError when the answer is no, or nobody can be
    asked.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise usage("yes", "this needs a confirmation", f"{question} Say --yes")
    if not typer.confirm(question, err=True):
        raise CommandError("nothing was done", code="aborted")


def json_object(name: str, text: str) -> dict[str, Any]:
    """A JSON object from the command line. Raises CommandError that says where it breaks, InvalidArgument for
    what no queue takes.
    """
    from packhorse.worker.store.json_text import too_deep, too_long_a_number

    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{error.msg} at line {error.lineno}, column {error.colno}"
        raise usage(name, f"not JSON: {where}", 'Quote it for the shell: \'{"key": "value"}\'') from None
    except RecursionError:
        raise too_deep(name) from None
    except ValueError:  # Python's limit, which holds for the worker, too
        raise too_long_a_number(name) from None
    if not isinstance(found, dict):
        raise usage(
            name, f"must be a JSON object, not {type(found).__name__}", "Its keys are the handler's arguments"
        )
    return found


#: A payload has at most 1 MiB, as JSON without blanks; so much is read of what is given with them.
INPUT_BYTES = 16 * 1_048_576


def read_stdin(name: str) -> str:
    """All of stdin, at most INPUT_BYTES: more is refused while it comes, not kept. Raises CommandError."""
    given = sys.stdin.buffer.read(INPUT_BYTES + 1)
    if len(given) > INPUT_BYTES:
        raise usage(
            name,
            f"stdin has more than {INPUT_BYTES} bytes; {name} takes at most 1048576, blanks apart",
            "Store the large part elsewhere",
        )
    try:
        return given.decode()
    except UnicodeDecodeError as error:
        raise usage(name, f"stdin is not UTF-8 text: byte {error.start + 1} is none") from None


def database_url(settings: Settings, *, owner: bool = False) -> str:
    """DATABASE_URL, or the embedded server of the project when one runs. Raises InvalidArgument, CommandError
    (exit 69).
    """
    if settings.database_url is not None:
        from packhorse.worker.db.connection import url_parts

        url = settings.database_url.get_secret_value()
        url_parts(url)
        return url
    from packhorse.worker.db import embedded

    found = embedded.running_url(settings.data_dir, role=embedded.OWNER if owner else embedded.ROLE)
    if found is None:
        raise CommandError(
            f"database_url: not set, and no embedded PostgreSQL of ours runs in {settings.data_dir}",
            code="unavailable",
            field="database_url",
            hint="Start one with `packhorse up`, or set DATABASE_URL",
            exit_code=EXIT_UNAVAILABLE,
        )
    return found


@contextmanager
def database(
    *, owner: bool = False, deadline_seconds: float = READ_SECONDS, check: bool = True
) -> Iterator[DeadlineConnection]:
    """A connection for one command; psycopg's errors come out as ours.

    owner: on the embedded server, the role that migrates. check: refuse a schema that this code does not
    understand. Raises ConfigError, CommandError, StoreError, SchemaMismatch.
    """
    from packhorse.worker.db import schema_version
    from packhorse.worker.db.connection import AnyTime
    from packhorse.worker.db.errors import translated
    from packhorse.worker.db.sessions import open_work

    settings = load_settings()
    connection = open_work(
        settings, "cli", url=database_url(settings, owner=owner), deadline_seconds=deadline_seconds
    )
    connection.adapters.register_loader("timestamptz", AnyTime)  # one odd row must not hide the others
    try:
        if check:
            schema_version.check(connection)
        with translated():
            yield connection
    finally:
        connection.close()


def configure_logging(settings: Settings) -> None:
    """Set up logging of a long-running command as the settings say."""
    from packhorse.worker.observe.logging import catch_uncaught, configure

    def running() -> dict[str, Any]:
        # a process that runs no messages need not load it, and dramatiq with it
        context = sys.modules.get("packhorse.worker.attempt.context")
        message = getattr(getattr(context, "current", None), "message", None)
        if message is None:
            return {}
        return {
            "message_id": message.id,
            "actor": message.actor_name,
            "attempt": message.attempt,
            "correlation_id": message.correlation_id,
        }

    configure(level=settings.log_level, log_format=settings.log_format, context=running)
    catch_uncaught()
