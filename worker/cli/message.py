"""packhorse message: list, show, explain, edit, clone; message_acts.py has what is done with many, too."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from packhorse.worker.cli import message_acts
from packhorse.worker.cli.common import (
    MOST_ID,
    STEP_CHARACTERS,
    AsJson,
    Limit,
    Operator,
    Queue,
    Reason,
    StepValues,
    Yes,
    confirmed,
    database,
    duration,
    json_object,
    moment,
    operator_name,
    past,
    read_stdin,
)
from packhorse.worker.cli.editor import edited, seen_by_nobody_else
from packhorse.worker.cli.errors import CommandError, usage
from packhorse.worker.cli.render import (
    clean,
    print_diff,
    print_fields,
    print_json,
    print_rows,
    with_tracebacks,
)
from packhorse.worker.errors import NotFound
from packhorse.worker.exits import EXIT_OK
from packhorse.worker.states import State
from packhorse.worker.store import acts, messages, operations
from packhorse.worker.store.acts import Editable
from packhorse.worker.store.rows import decoded

if TYPE_CHECKING:
    from packhorse.worker.ops.messages import Edit

app = typer.Typer(no_args_is_help=True, help="Messages: find, explain, edit, move, cancel, retry.")
for _act in (
    message_acts.cancel,
    message_acts.retry,
    message_acts.reschedule,
    message_acts.move,
    message_acts.priority,
    message_acts.bury,
):
    app.command()(_act)

Id = Annotated[int, typer.Argument(metavar="ID", max=MOST_ID, help="Id of the message.")]
COLUMNS = [
    "id",
    "queue",
    "message_type",
    "state",
    "priority",
    "attempt",
    "conversation_key",
    "run_at",
    "created_at",
    "finished_at",
    "wait_seconds",
    "duration_seconds",
    "error_class",
]


@app.command("list")
def list_messages(
    queue: Queue = None,
    state: Annotated[State | None, typer.Option("--state", "-s", help="Only messages in this state.")] = None,
    message_type: Annotated[
        str | None, typer.Option("--type", "-t", help="Only messages of this type.")
    ] = None,
    conversation_key: Annotated[
        str | None, typer.Option("--conversation-key", "-c", help="Only messages of this conversation.")
    ] = None,
    since: Annotated[
        datetime | None,
        typer.Option(
            "--since",
            parser=past,
            metavar="TIME",
            help="Created at this time or later; 2h: since two hours ago.",
        ),
    ] = None,
    until: Annotated[
        datetime | None,
        typer.Option("--until", parser=past, metavar="TIME", help="Created before this time."),
    ] = None,
    where_text: Annotated[
        str | None, typer.Option("--where", "-w", help="Only messages of this filter: 'type=send_* age>2h'.")
    ] = None,
    after: Annotated[
        int | None, typer.Option("--after", max=MOST_ID, help="The page behind this id.")
    ] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> int:
    """Messages, newest first: live, finished and dead."""
    from packhorse.worker.ops import messages as ops
    from packhorse.worker.ops.where import parse
    from packhorse.worker.store.filters import KNOWN

    where = parse(where_text or "", KNOWN, State)
    filters: dict[str, Any] = {
        "queue": queue,
        "state": state.value if state else None,
        "message_type": message_type,
    }
    filters |= {"conversation_key": conversation_key, "since": since, "until": until, "after": after}
    with database() as connection:
        found = ops.list_messages(connection, where, limit=limit, **filters)
        # messages of a queue that nobody has declared are the more to be seen
        if queue is not None and not found and after is None:
            operations.require_queue(connection, queue)
    if as_json:
        print_json(found)
        return EXIT_OK
    print_rows(found, COLUMNS, empty="no such messages")
    if len(found) == limit:
        given = {
            "--queue": queue,
            "--state": filters["state"],
            "--type": message_type,
            "--conversation-key": conversation_key,
        }
        given |= {
            "--since": since and since.isoformat(),
            "--until": until and until.isoformat(),
            "--where": where_text,
            "--limit": str(limit),
        }
        words = [word for name, value in given.items() if value is not None for word in (name, str(value))]
        print(
            f"packhorse: more: {shlex.join(['packhorse', 'message', 'list', *words, '--after', str(found[-1]['id'])])}",
            file=sys.stderr,
        )
    return EXIT_OK


@app.command()
def show(message_id: Id, step_values: StepValues = False, as_json: AsJson = False) -> int:
    """One message, whole: payload, errors, attempt history with tracebacks, steps."""
    with database() as connection:
        found = operations.show_message(connection, message_id, STEP_CHARACTERS if step_values else 0)
    print_json(found) if as_json else print_fields(with_tracebacks(found))
    return EXIT_OK


@app.command()
def explain(message_id: Id, as_json: AsJson = False) -> int:
    """Why is this message not running? The gates in the order of the claim, and how its last attempt
    failed.
    """
    with database() as connection:
        state = operations.message_state(connection, message_id)
        failure = operations.last_traceback(connection, message_id)
        gates = messages.explain(connection, message_id)
    if as_json:
        print_json(
            {
                "id": message_id,
                "state": state,
                "gates": [asdict(gate) for gate in gates],
                "last_traceback": failure,
            }
        )
    else:
        print_rows(
            [asdict(gate) for gate in gates],
            ["gate", "passed", "detail", "earliest_start"],
            empty="nothing is known about it",
        )
        if failure:
            print(f"\n{clean(failure)}")
    return EXIT_OK


@app.command()
def edit(
    message_id: Id,
    payload: Annotated[
        str | None,
        typer.Option(
            "--payload", help="The new payload: a JSON object, FILE or - for stdin; default: $EDITOR."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="One value of the payload: customer.id=42."),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Forget its steps: everything is done again.")
    ] = False,
    max_attempts: Annotated[
        int | None, typer.Option("--max-attempts", min=1, max=1_000_000, help="Tried so often at most.")
    ] = None,
    expires_at: Annotated[
        str | None,
        typer.Option(
            "--expires-at", metavar="TIME", help="Worth doing until then (ISO 8601 with zone), or: never."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the difference, change nothing.")] = False,
    reason: Reason = None,
    operator: Operator = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> int:
    """Change the payload of a message that waits, its attempts or its expiry; shows the difference."""
    from packhorse.worker.ops import messages as ops
    from packhorse.worker.ops.payloads import difference, read_setting
    from packhorse.worker.store.json_text import to_json

    if payload is not None and settings:
        raise usage("set", "--set and --payload both say what it is", "Give one of them")
    limits = ops.Edit(max_attempts=max_attempts, expires_at=_expiry(expires_at))
    given = json_object("payload", _read(payload)) if payload is not None else None
    seen = _waiting(message_id)
    before = decoded(seen.payload)
    by_hand = given is None and not settings and not limits.limits
    if given is None:
        changes = [read_setting("set", text) for text in settings or []]
        given = json_object("payload", edited(before)) if by_hand else ops.with_settings(before, changes)
    of_payload, of_limits = difference(before, given), _limits_difference(seen, limits)
    if not as_json:
        print_diff([*of_payload, *of_limits])
    changed = bool(of_payload or of_limits) and not dry_run
    if changed:
        if by_hand:
            confirmed("Keep this payload?", yes)
        wanted = (
            replace(limits, payload=to_json("payload", given), before=seen.payload, fresh=fresh)
            if of_payload
            else limits
        )
        # connected again: nobody should hold a connection while a person thinks
        with seen_by_nobody_else(), database() as connection:
            answer = ops.edit(connection, message_id, wanted, operator_name(operator), reason)
            if answer != "edited":
                raise _forbidden(message_id, answer, operations.holder(connection, message_id))
    if as_json:
        document = {
            "id": message_id,
            "changed": changed,
            "before": before,
            "after": given,
            "diff": [*of_payload, *of_limits],
            "steps": seen.steps,
        }
        print_json(document)
    elif changed and of_payload and seen.steps and not fresh:
        print(
            f"packhorse: {len(seen.steps)} step(s) have stored what they made of the old payload; --fresh forgets them.",
            file=sys.stderr,
        )
    return EXIT_OK


@app.command()
def clone(
    message_id: Id,
    delay: Annotated[float | None, duration("--delay", "Due so long from now; default: at once.")] = None,
    reason: Reason = None,
    operator: Operator = None,
    as_json: AsJson = False,
) -> int:
    """Enqueue a new message like this one, whether it waits, is finished or is dead; prints the new id."""
    from packhorse.worker.ops import messages as ops

    with database() as connection:
        answer, clone_id = ops.clone(connection, message_id, delay or 0.0, operator_name(operator), reason)
        if clone_id is None:
            raise _forbidden(message_id, answer, operations.holder(connection, message_id))
    print_json({"id": clone_id, "clone_of": message_id}) if as_json else print(clone_id)
    return EXIT_OK


def _read(payload: str) -> str:
    """The text of --payload: JSON, stdin or a file."""
    if payload == "-":
        return read_stdin("payload")
    if payload.lstrip().startswith(("{", "[")):
        return payload
    try:
        return Path(payload).read_text()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise usage(
            "payload", f"{payload[:60]!r} is neither a JSON object nor a file that can be read: {reason}"
        ) from None


def _expiry(text: str | None) -> datetime | str | None:
    """A time, or NEVER. Raises typer.BadParameter."""
    from packhorse.worker.ops.messages import NEVER

    return text if text is None else NEVER if text == "never" else moment(text)


def _limits_difference(seen: Editable, wanted: Edit) -> list[str]:
    """Lines of what changes besides the payload."""
    lines = []
    if wanted.max_attempts not in (None, seen.max_attempts):
        lines += [
            f"-max_attempts: {seen.max_attempts or 'as actor and queue say'}",
            f"+max_attempts: {wanted.max_attempts}",
        ]
    if wanted.expires_at is not None:
        before = seen.expires_at or "never"
        after = wanted.expires_at if isinstance(wanted.expires_at, datetime) else "never"
        lines += [f"-expires_at: {before}", f"+expires_at: {after}"] if before != after else []
    return lines


def _waiting(message_id: int) -> Editable:
    """The message as it is read before an edit. Raises NotFound, and CommandError unless it waits."""
    with database() as connection:
        found = acts.editable(connection, message_id)
        if found is None:
            raise NotFound("message", message_id)
        if found.state not in ("pending", "blocked"):
            raise _forbidden(message_id, found.state, operations.holder(connection, message_id))
    return found


def _forbidden(message_id: int, state: str, holder: str | None) -> CommandError:
    """The sentence for a state in which nothing can be done."""
    said = {
        "running": f"runs on {holder or 'a worker'}; cancel it or wait",
        "dead": f"is a dead letter: packhorse dead-letter edit {message_id}",
        "gone": "has ended, or it never existed",
    }
    text = said.get(
        state, f"is {state}: it does not run again; packhorse message clone {message_id} enqueues one like it"
    )
    return CommandError(f"message {message_id} {text}", code="not_possible", field="id")
