"""packhorse message: list, show, explain, cancel, retry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated

import typer

from packhorse.worker.cli.common import MOST_ID, STEP_CHARACTERS, AsJson, Limit, Operator, Queue, Reason, StepValues, database, operator_name
from packhorse.worker.cli.errors import CommandError
from packhorse.worker.cli.render import print_fields, print_json, print_rows
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import translated
from packhorse.worker.errors import NotFound, StoreConflict, WorkerError
from packhorse.worker.exits import EXIT_FAILED, EXIT_OK
from packhorse.worker.states import State
from packhorse.worker.store import messages, operations

app = typer.Typer(no_args_is_help=True, help="Messages: find, explain, cancel, retry.")

Id = Annotated[int, typer.Argument(metavar="ID", max=MOST_ID, help="Id of the message.")]
Ids = Annotated[list[int], typer.Argument(metavar="ID...", max=MOST_ID, help="Ids of messages.")]
COLUMNS = ["id", "queue", "message_type", "state", "priority", "attempt", "conversation_key", "run_at", "created_at", "finished_at", "error_class"]
#: What `retry` answers, for people. The rest are states in which there is nothing to retry.
_RETRIED = {"due": "is due now", "blocked": "is due now, when its conversation is free", "redriven": "was dead; enqueued again with fresh attempts"}


@app.command("list")
def list_messages(
    queue: Queue = None,
    state: Annotated[State | None, typer.Option("--state", "-s", help="Only messages in this state.")] = None,
    message_type: Annotated[str | None, typer.Option("--type", "-t", help="Only messages of this type.")] = None,
    conversation_key: Annotated[str | None, typer.Option("--conversation-key", "-c", help="Only messages of this conversation.")] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> int:
    """Messages, newest first: live, finished and dead."""
    with database() as connection:
        found = operations.list_messages(
            connection, queue=queue, state=state.value if state else None, message_type=message_type, conversation_key=conversation_key, limit=limit
        )
    if as_json:
        print_json(found)
    else:
        print_rows(found, COLUMNS, empty="no such messages")
    return EXIT_OK


@app.command()
def show(message_id: Id, step_values: StepValues = False, as_json: AsJson = False) -> int:
    """One message, whole: payload, errors, attempt history, steps."""
    with database() as connection:
        found = operations.show_message(connection, message_id, STEP_CHARACTERS if step_values else 0)
    print_json(found) if as_json else print_fields(found)
    return EXIT_OK


@app.command()
def explain(message_id: Id, as_json: AsJson = False) -> int:
    """Why is this message not running? The gates in the order of the claim."""
    with database() as connection:
        state = operations.message_state(connection, message_id)
        gates = messages.explain(connection, message_id)
    if as_json:
        print_json({"id": message_id, "state": state, "gates": [asdict(gate) for gate in gates]})
    else:
        print_rows([asdict(gate) for gate in gates], ["gate", "passed", "detail", "earliest_start"], empty="nothing is known about it")
    return EXIT_OK


@app.command()
def cancel(message_ids: Ids, reason: Reason = None, operator: Operator = None, as_json: AsJson = False) -> int:
    """Stop messages for good; those that run are asked to stop."""
    told = {
        "cancelled": "is cancelled",
        "requested": "runs; its worker was asked to stop it",
        "dead": "is a dead letter: nothing runs it; packhorse dead-letter purge removes it",
        "gone": "has ended, or it never existed",
    }
    who = operator_name(operator)
    return _each(
        message_ids, lambda connection, one: operations.cancel(connection, one, who, reason), told, good={"cancelled", "requested"}, as_json=as_json
    )


@app.command()
def retry(message_ids: Ids, reason: Reason = None, operator: Operator = None, as_json: AsJson = False) -> int:
    """Do not wait: a delayed or failed message is due now, a dead one is redriven."""
    told = {**_RETRIED, **{state.value: f"is {state}: there is nothing to retry" for state in State if state.value not in _RETRIED}}
    who = operator_name(operator)
    return _each(
        message_ids,
        lambda connection, one: operations.retry_now(connection, one, who, reason),
        {**told, "gone": "is not known"},
        good=set(_RETRIED),
        as_json=as_json,
    )


def _each(message_ids: list[int], act: Callable[[DeadlineConnection, int], str], told: dict[str, str], *, good: set[str], as_json: bool) -> int:
    """Do it with one message after the other, and say what became of each; exit 1 when some could not be done.

    One that somebody else keeps locked is passed over. What is already done when the database goes away, or at Ctrl-C, is said, too.
    """
    answers: dict[int, str] = {}
    try:
        with database() as connection:
            for one in message_ids:
                try:
                    with translated():
                        answers[one] = act(connection, one)
                except (NotFound, StoreConflict) as error:
                    if len(message_ids) == 1:
                        raise
                    answers[one] = "gone" if isinstance(error, NotFound) else "busy"
    except (WorkerError, KeyboardInterrupt):
        if answers:
            _tell(answers, told, as_json=as_json)
        raise
    bad = [one for one, answer in answers.items() if answer not in good]
    if len(answers) == 1 and bad:
        raise CommandError(f"message {bad[0]} {told[answers[bad[0]]]}", code="not_possible", field="id")
    _tell(answers, told, as_json=as_json)
    return EXIT_FAILED if bad else EXIT_OK


def _tell(answers: dict[int, str], told: dict[str, str], *, as_json: bool) -> None:
    """One line or entry per message."""
    if as_json:
        print_json([{"id": one, "result": answer} for one, answer in answers.items()])
    else:
        for one, answer in answers.items():
            print(f"message {one} {told.get(answer, 'is held by somebody else: try again')}")
