"""packhorse message cancel, retry, reschedule, move, priority, bury: with messages by id, or by filter."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any

import typer

from packhorse.worker.cli.common import (
    MOST_ID,
    AsJson,
    Operator,
    Reason,
    Yes,
    confirmed,
    database,
    duration,
    moment,
    operator_name,
)
from packhorse.worker.cli.errors import CommandError, usage
from packhorse.worker.cli.interrupts import first_interrupt
from packhorse.worker.cli.render import print_json, progress
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import translated
from packhorse.worker.errors import NotFound, StoreConflict, WorkerError
from packhorse.worker.exits import EXIT_FAILED, EXIT_OK
from packhorse.worker.ops import messages, where
from packhorse.worker.ops.messages import DONE, Act, Counted, FilterResult
from packhorse.worker.states import State
from packhorse.worker.store import operations

SomeIds = Annotated[list[int] | None, typer.Argument(metavar="[ID]...", max=MOST_ID, help="Ids of messages.")]
Filter = Annotated[
    str | None,
    typer.Option(
        "--where", "-w", help="All live messages of this filter: 'queue=mail state=pending age>2h'."
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="With --where: count, change nothing.")]
#: What an act says of a message that it leaves alone.
_LEFT = {
    **{state.value: f"is {state}: there is nothing to do" for state in (State.DONE, State.CANCELLED)},
    "dead": "is a dead letter: packhorse dead-letter acts on those",
    "running": "runs; cancel it or wait",
    "gone": "is not known",
    "busy": "is held by somebody else: try again",
    "unchanged": "is as you want it already",
    "expires": "expires before that: it would never run",
}


@dataclass(frozen=True, slots=True)
class Given:
    """What the command line said besides the verb."""

    ids: list[int] | None
    filter: str | None
    yes: bool
    dry_run: bool
    as_json: bool


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one command does. parameters: as Act has them. told: what is said of a message by the verb's word.
    title: the question begins with it.
    """

    name: str
    told: dict[str, str]
    title: str
    parameters: dict[str, Any] = field(default_factory=dict)


def _shared(
    message_ids: SomeIds = None,
    where_text: Filter = None,
    dry_run: DryRun = False,
    reason: Reason = None,
    operator: Operator = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """The arguments and options that every act has."""


def act(verb: Callable[..., Wanted]) -> Callable[..., int]:
    """A command that does with messages what `verb` says: it has the options of `verb`, and those of
    _shared.
    """
    own, shared = (
        dict(inspect.signature(function, eval_str=True).parameters) for function in (verb, _shared)
    )

    def command(**given: Any) -> int:
        wanted = verb(**{name: given[name] for name in own})
        asked = Given(
            given["message_ids"], given["where_text"], given["yes"], given["dry_run"], given["as_json"]
        )
        return _run(
            Act(wanted.name, operator_name(given["operator"]), given["reason"], wanted.parameters),
            asked,
            wanted.told,
            wanted.title,
        )

    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in (own | shared).values()
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__name__, command.__doc__ = verb.__name__, verb.__doc__
    return command


@act
def cancel() -> Wanted:
    """Stop messages for good; those that run are asked to stop."""
    told = {
        "cancelled": "is cancelled",
        "requested": "runs; its worker was asked to stop it",
        "dead": "is a dead letter: nothing runs it; packhorse dead-letter purge removes it",
        "gone": "has ended, or it never existed",
    }
    return Wanted("cancel", told, "Cancel")


@act
def retry() -> Wanted:
    """Do not wait: a delayed or failed message is due now, a dead one is redriven."""
    told = {
        "due": "is due now",
        "blocked": "is due now, when its conversation is free",
        "redriven": "was dead; enqueued again with fresh attempts",
        **{state: f"is {state}: there is nothing to retry" for state in ("running", "done", "cancelled")},
    }
    return Wanted("retry", told, "Make due now")


@act
def reschedule(
    delay: Annotated[float | None, duration("--delay", "Due so long from now: 30m, 2h.")] = None,
    run_at: Annotated[
        datetime | None,
        typer.Option(
            "--run-at", parser=moment, metavar="TIME", help="Due at this time (ISO 8601 with zone)."
        ),
    ] = None,
) -> Wanted:
    """Say when messages are due; the first of a conversation holds the others until then."""
    if (delay is None) == (run_at is None):
        raise usage("run_at", "say when: --delay or --run-at, one of them", "For example: --delay 30m")
    return Wanted(
        "reschedule", {"rescheduled": "is due then"}, "Reschedule", {"delay": delay, "run_at": run_at}
    )


@act
def move(queue: Annotated[str, typer.Option("--to", help="The queue to move them to.")]) -> Wanted:
    """Put messages on another queue; each keeps its place in its conversation."""
    return Wanted("move", {"moved": f"is on {queue}"}, f"Move to {queue}", {"queue": queue})


@act
def priority(
    level: Annotated[int, typer.Option("--to", min=1, max=10, help="1 (first) to 10 (last).")],
) -> Wanted:
    """Give messages another priority within their queue; the order of a conversation stays."""
    return Wanted(
        "priority", {"changed": f"has priority {level}"}, f"Give priority {level} to", {"priority": level}
    )


@act
def bury() -> Wanted:
    """Give messages up: they become dead letters, which can be edited and redriven."""
    return Wanted("bury", {"buried": "is a dead letter"}, "Bury")


def _run(act: Act, asked: Given, told: dict[str, str], title: str) -> int:
    """By id or by filter; nothing named is an error, not everything."""
    if asked.filter is not None:
        if asked.ids:
            raise usage("where", "cannot be combined with ids")
        return _by_filter(act, asked, title)
    if not asked.ids:
        raise usage(
            "ids", "say which: ids or --where", "For example: --where 'queue=mail state=pending age>2h'"
        )
    if asked.dry_run:
        raise usage("dry_run", "--dry-run is for --where")
    return _each(act, asked.ids, {**_LEFT, **told}, as_json=asked.as_json)


def _each(act: Act, message_ids: list[int], told: dict[str, str], *, as_json: bool) -> int:
    """Do it with one message after the other, and say what became of each; exit 1 when some could not be
    done.

    One that somebody else keeps locked is passed over. What is already done when the database goes away, or
    at Ctrl-C, is said, too.
    """
    answers: dict[int, str] = {}
    holders: dict[int, str] = {}
    try:
        with database() as connection:
            for one in message_ids:
                try:
                    with translated():
                        answers[one] = _one(connection, act, one)
                        if answers[one] == "running" and (holder := operations.holder(connection, one)):
                            holders[one] = f"runs on {holder}; cancel it or wait"
                except (NotFound, StoreConflict) as error:
                    if len(message_ids) == 1:
                        raise
                    answers[one] = "gone" if isinstance(error, NotFound) else "busy"
    except (WorkerError, KeyboardInterrupt):
        if answers:
            _tell(answers, told, holders, as_json=as_json)
        raise
    bad = [one for one, answer in answers.items() if answer not in (*DONE[act.verb], "unchanged")]
    if len(answers) == 1 and bad:
        raise CommandError(
            f"message {bad[0]} {holders.get(bad[0], told[answers[bad[0]]])}", code="not_possible", field="id"
        )
    _tell(answers, told, holders, as_json=as_json)
    return EXIT_FAILED if bad else EXIT_OK


def _one(connection: DeadlineConnection, act: Act, message_id: int) -> str:
    if act.verb == "cancel":  # `gone` says less than where it is
        return operations.cancel(connection, message_id, act.operator, act.reason)
    return messages.act_on(connection, act, message_id)


def _tell(answers: dict[int, str], told: dict[str, str], holders: dict[int, str], *, as_json: bool) -> None:
    """One line or entry per message."""
    if as_json:
        print_json([{"id": one, "result": answer} for one, answer in answers.items()])
    else:
        for one, answer in answers.items():
            print(f"message {one} {holders.get(one, told[answer])}")


def _by_filter(act: Act, asked: Given, title: str) -> int:
    """Count, ask, act in batches; what is done is said however it ends."""
    wanted = where.parse(asked.filter or "")
    if not wanted.terms:
        raise usage("where", "an empty filter would be every message", "Say which: queue=mail, age>0s")
    counted: Counted | None = None
    done = 0
    try:
        with database() as connection:
            counted = messages.count(connection, wanted, act.verb, exact_seconds=messages.COUNT_SECONDS)
            if asked.dry_run or not counted.amount.number:
                _tell_filter(act, counted, None, "dry_run" if asked.dry_run else "finished", asked.as_json)
                return EXIT_OK
            if not asked.as_json:
                print(messages.sentence(counted))
        confirmed(f"{title} {counted.amount.said('message')}?", asked.yes)
        # connected again: nobody should hold a connection while a person thinks
        with (
            database() as connection,
            progress(act.verb, counted.amount.number) as advance,
            first_interrupt() as stop,
        ):

            def report(count: int) -> None:
                nonlocal done
                done += count
                advance(count)

            most = None if asked.yes else counted.amount.most  # --yes agrees to all that match
            result = messages.apply(connection, counted, act, most=most, report=report, stop=stop)
    except (WorkerError, KeyboardInterrupt):
        if done and counted is not None:
            _tell_filter(
                act, counted, FilterResult(counted.amount.number, {}, done, "error"), "error", asked.as_json
            )
        raise
    if result.ended == "more":
        raise CommandError(
            f"nothing was done: more than {counted.amount.most:,} match now, and {counted.amount.number:,} were shown",
            code="more_than_shown",
            field="where",
            hint="Run it again: it counts anew",
        )
    _tell_filter(act, counted, result, result.ended, asked.as_json)
    return EXIT_OK if result.ended == "finished" else EXIT_FAILED


def _tell_filter(act: Act, counted: Counted, result: FilterResult | None, ended: str, as_json: bool) -> None:
    """result: None when nothing was begun; with "error" its `left` is how many were passed by before it."""
    answers = Counter({} if result is None else result.answers)
    left = 0 if result is None else result.left
    matched = counted.total if result is None else result.matched
    done = sum(answers[word] for word in DONE[act.verb])
    if as_json:
        print_json(
            {
                "selected": counted.amount.number,
                "estimated": not counted.amount.is_all,
                "matched": None if result is None else matched,
                "queues": dict(counted.queues),
                "oldest": counted.oldest,
                "running": counted.running,
                "done": None if ended == "error" else done,
                "answers": dict(answers),
                "left": left,
                "ended": ended,
            }
        )
    elif result is None:
        print(messages.sentence(counted))
    elif ended == "error":
        print(f"{act.verb}: stopped by an error after {left:,} of {matched:,} message(s)")
    else:
        others = ", ".join(
            f"{count:,} {word}" for word, count in sorted(answers.items()) if word not in DONE[act.verb]
        )
        more = [f"left alone: {others}"] * bool(others) + [
            f"{left:,} had changed meanwhile or were locked"
        ] * bool(left)
        stopped = " (interrupted)" if ended == "interrupted" else ""
        print(
            f"{act.verb}: {done:,} of {matched:,} message(s){stopped}" + "".join(f"; {text}" for text in more)
        )
