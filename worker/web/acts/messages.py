"""Acts on messages: one by its id, and all that a filter selects, which are counted first (SPEC Q5). What
changes the payload of one is in editing.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.errors import InvalidArgument
from packhorse.worker.ops import messages, where
from packhorse.worker.ops.amounts import confirmed
from packhorse.worker.ops.messages import DONE, Act
from packhorse.worker.store import operations
from packhorse.worker.web.access import Role
from packhorse.worker.web.acts.counted import SHOWN, exact_seconds, kept_of, not_begun, shown_in
from packhorse.worker.web.forms import ActForm, FormField, LongWork, Place, Preview, Report, Submission

ID = FormField("id", "Message", "integer", required=True, target=True)
WHERE = FormField(
    "where",
    "Filter",
    "filter",
    required=True,
    hint="Live messages only: state is pending, blocked or running",
)
DELAY = FormField("delay", "Due so long from now", "duration", hint="30m, 2h, 3d", placeholder="30m")
RUN_AT = FormField(
    "run_at", "Or due at this time", "moment", hint="ISO 8601 with its zone", placeholder="2030-01-31T12:00Z"
)
QUEUE = FormField("queue", "To the queue", required=True)
LEVEL = FormField(
    "priority", "Priority", "integer", required=True, hint="1 (first) to 10 (last)", least=1, most=10
)
KEPT = (FormField("at", "", "moment", target=True), FormField("last", "", "integer", target=True), *SHOWN)

#: What is said of a message by the word of the verb.
_TOLD = {
    "cancelled": "is cancelled",
    "requested": "runs; its worker was asked to stop it",
    "due": "is due now",
    "blocked": "is due now, when its conversation is free",
    "redriven": "was dead, and is enqueued again with fresh attempts",
    "rescheduled": "is due then",
    "moved": "is on that queue",
    "changed": "has that priority",
    "buried": "is a dead letter",
    "unchanged": "is as you want it already",
}
_LEFT = {
    "running": "runs: cancel it, or wait",
    "dead": "is a dead letter: redrive it, or purge it",
    "done": "is done: a clone does it again",
    "gone": "has ended, or it never existed",
    "expires": "expires before that: it would never run",
}


def at_message(given: Submission) -> Place:
    return f"/messages/{given['id']}", {}


def not_possible(number: int, state: str, holder: str | None = None) -> InvalidArgument:
    """Why nothing can be done with this message."""
    said = (
        f"runs on {holder}: cancel it, or wait"
        if state == "running" and holder
        else _LEFT.get(state, f"is {state}: there is nothing to do")
    )
    return InvalidArgument(f"message {number} {said}")


def parameters_of(verb: str, given: Submission) -> dict[str, Any]:
    """As ops.messages.Act has them. Raises InvalidArgument."""
    if verb == "reschedule":
        if (given["delay"] is None) == (given["run_at"] is None):
            raise InvalidArgument(
                "delay: say when: how long from now, or at which time", field="delay", hint="One of the two"
            )
        return {"delay": given["delay"], "run_at": given["run_at"]}
    return {name: given[name] for name in {"move": ("queue",), "priority": ("priority",)}.get(verb, ())}


def words_of(verb: str, given: Submission) -> list[str]:
    """Options of the command line."""
    if verb == "reschedule":
        return (
            ["--run-at", given.text("run_at")]
            if given.text("run_at")
            else ["--delay", given.text("delay") or "DURATION"]
        )
    return {
        "move": ["--to", given.text("queue") or "QUEUE"],
        "priority": ["--to", given.text("priority") or "LEVEL"],
    }.get(verb, [])


def _one(verb: str) -> Callable[[DeadlineConnection, Submission], str]:
    def run(connection: DeadlineConnection, given: Submission) -> str:
        number = given["id"]
        if verb == "cancel":  # `gone` says less than where it is
            answer = operations.cancel(connection, number, given.operator, given.reason)
        else:
            answer = messages.act_on(
                connection, Act(verb, given.operator, given.reason, parameters_of(verb, given)), number
            )
        if answer not in (*DONE[verb], "unchanged"):
            raise not_possible(number, answer, operations.holder(connection, number))
        return f"Message {number} {_TOLD[answer]}."

    return run


def _count(verb: str) -> Callable[[DeadlineConnection, Submission], Preview]:
    def preview(connection: DeadlineConnection, given: Submission) -> Preview:
        parameters_of(verb, given)
        counted = messages.count(connection, _filter(given), verb, exact_seconds=exact_seconds(given))
        warnings = [f"{counted.running:,} of them run."] * bool(counted.running and verb == "cancel")
        return Preview(
            messages.sentence(counted),
            (),
            tuple(warnings),
            counted.amount.number,
            {"at": counted.at.isoformat(), "last": str(counted.last), **kept_of(counted.amount)},
            not counted.amount.is_all,
        )

    return preview


def _filter(given: Submission) -> where.Where:
    """Raises InvalidArgument, also for an empty filter: it would be every message."""
    found = where.parse(given["where"] or "")
    if not found.terms:
        raise InvalidArgument(
            "where: an empty filter would be every message",
            field="where",
            hint="Say which: queue=mail, age>0s",
        )
    return found


def _many(verb: str, title: str) -> Callable[[DeadlineConnection, Submission], LongWork]:
    def begin(connection: DeadlineConnection, given: Submission) -> LongWork:
        wanted, act = _filter(given), Act(verb, given.operator, given.reason, parameters_of(verb, given))
        if given["at"] is None or given["last"] is None:
            raise InvalidArgument(
                "where: count them first", field="where", hint="The preview says how many there are"
            )
        shown = shown_in(given)
        counted = messages.count(connection, wanted, verb, (given["at"], given["last"]))
        confirmed(shown, counted.amount)

        def run(connection: DeadlineConnection, report: Report, stop: Any) -> tuple[str, bool]:
            found = messages.apply(
                connection,
                counted,
                act,
                most=shown.most,
                begins=report.begins,
                report=report,
                stop=stop,
                batch=100,
            )
            if found.ended == "more":
                return not_begun(shown, shown.most), False
            others = [
                f"{many:,} {word}" for word, many in sorted(found.answers.items()) if word not in DONE[verb]
            ]
            more = [f"left alone: {', '.join(others)}"] * bool(others) + [
                f"{found.left:,} had changed meanwhile or were locked"
            ] * bool(found.left)
            stopped = ", then it was stopped" if found.ended == "interrupted" else ""
            return (
                f"Done with {found.done(verb):,} of {found.matched:,}{stopped}{''.join(f'; {text}' for text in more)}.",
                found.ended == "finished",
            )

        return LongWork(
            f"{title} {given['where']}",
            max(1, counted.amount.number),
            run,
            ("/messages", {"where": given["where"]}),
        )

    return begin


def _clone(connection: DeadlineConnection, given: Submission) -> str:
    answer, number = messages.clone(
        connection, given["id"], given["delay"] or 0.0, given.operator, given.reason
    )
    if number is None:
        raise not_possible(given["id"], answer, operations.holder(connection, given["id"]))
    return f"Message {number} is enqueued, like message {given['id']}."


#: verb -> least role for one, label, sentence, fields, and whether it cannot be taken back.
_VERBS: dict[str, tuple[Role, str, str, tuple[FormField, ...], bool]] = {
    "retry": (
        Role.OPERATOR,
        "Make due now",
        "Do not wait: a delayed or failed message is due now, a dead one is enqueued again.",
        (),
        False,
    ),
    "reschedule": (
        Role.OPERATOR,
        "Reschedule",
        "Due then. The first of a conversation holds the others until then.",
        (DELAY, RUN_AT),
        False,
    ),
    "move": (
        Role.OPERATOR,
        "Move",
        "Put it on another queue; it keeps its place in its conversation.",
        (QUEUE,),
        False,
    ),
    "priority": (
        Role.OPERATOR,
        "Priority",
        "Another priority within the queue; the order of a conversation stays.",
        (LEVEL,),
        False,
    ),
    "bury": (
        Role.OPERATOR,
        "Bury",
        "Give it up: it becomes a dead letter, which can be edited and redriven.",
        (),
        False,
    ),
    "cancel": (
        Role.OPERATOR,
        "Cancel",
        "Stop it for good; if it runs, its worker is asked to stop it. A clone does it again.",
        (),
        True,
    ),
}


def _acts() -> tuple[ActForm, ...]:
    found: list[ActForm] = []
    for verb, (role, label, about, fields, danger) in _VERBS.items():

        def one_words(given: Submission, verb: str = verb) -> list[str]:
            return ["message", verb, str(given["id"]), *words_of(verb, given)]

        def many_words(given: Submission, verb: str = verb) -> list[str]:
            return ["message", verb, "--where", given.text("where") or "FILTER", *words_of(verb, given)]

        found.append(
            ActForm(
                f"message.{verb}",
                role,
                label,
                about,
                (ID, *fields),
                one_words,
                at_message,
                run=_one(verb),
                danger=danger,
            )
        )
        many = ActForm(
            f"messages.{verb}",
            Role.ADMIN if danger else Role.OPERATOR,
            f"{label}: all that match",
            f"{about} With every live message of a filter, oldest first. They are counted first; what comes later is not touched.",
            (WHERE, *fields, *KEPT),
            many_words,
            lambda given: ("/messages", {"where": given.text("where")}),
            long=_many(verb, f"{label}:"),
            preview=_count(verb),
            danger=danger,
        )
        found.append(many)
    clone = ActForm(
        "message.clone",
        Role.OPERATOR,
        "Clone",
        "Enqueue a new message like this one, whether it waits, is finished or is dead.",
        (ID, DELAY),
        lambda given: [
            "message",
            "clone",
            str(given["id"]),
            *(["--delay", given.text("delay")] if given.text("delay") else []),
        ],
        at_message,
        run=_clone,
    )
    return (*found, clone)


MESSAGE_ACTS = _acts()
