"""Acts on schedules, workers, services and scopes."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote
from uuid import UUID

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.errors import InvalidArgument
from packhorse.worker.ops import scopes
from packhorse.worker.store import schedules, services, workers
from packhorse.worker.store import scopes as parked
from packhorse.worker.web.access import Role
from packhorse.worker.web.forms import ActForm, FormField, Place, Submission

SCHEDULE = FormField("schedule", "Schedule", required=True, target=True)
WORKER = FormField("worker", "Worker process", required=True, target=True)
SERVICE = FormField("service", "Service", required=True, target=True)
ENDPOINT = FormField("endpoint", "Endpoint", target=True)
SCOPE = FormField("scope", "Scope", required=True, target=True)


def _at(path: str) -> Callable[[Submission], Place]:
    return lambda given: (path, {})


def at_schedule(given: Submission) -> Place:
    return f"/schedules/{quote(given.text('schedule'), safe='')}", {}


def _run_schedule(connection: DeadlineConnection, given: Submission) -> str:
    number = schedules.run_now(connection, given["schedule"], given.operator, given.reason)
    return f"Message {number} of {given['schedule']} is enqueued."


def _pause_schedule(connection: DeadlineConnection, given: Submission) -> str:
    changed = schedules.pause(connection, given["schedule"], given.operator, given.reason)
    return f"{given['schedule']} {'is paused' if changed else 'was paused already'}."


def _resume_schedule(connection: DeadlineConnection, given: Submission) -> str:
    changed = schedules.resume(connection, given["schedule"], given.operator, given.reason)
    return f"{given['schedule']} {'goes on, from now' if changed else 'was not paused'}."


def _ask_worker(request: str, done: str) -> Callable[[DeadlineConnection, Submission], str]:
    def run(connection: DeadlineConnection, given: Submission) -> str:
        try:
            number = UUID(given["worker"])
        except ValueError:
            raise InvalidArgument(
                f"worker: {given['worker'][:60]!r} is not the id of a worker process", field="worker"
            ) from None
        answer = workers.ask(connection, number, request, given.operator, given.reason)
        if answer == "gone":
            raise InvalidArgument(
                f"no worker process has the id {number}", hint="It has ended since you saw it"
            )
        if answer == "draining":
            raise InvalidArgument("its daemon was asked to end, which cannot be taken back")
        return (
            "It was asked that already."
            if answer == "unchanged"
            else f"Its daemon {done}; all of its processes learn it with their next heartbeat."
        )

    return run


def _force(state: str, done: str) -> Callable[[DeadlineConnection, Submission], str]:
    def run(connection: DeadlineConnection, given: Submission) -> str:
        changed = services.force(
            connection, given["service"], state, given["endpoint"], given.operator, given.reason
        )
        return (
            f"{given['service']}: {changed} endpoint(s) {done}."
            if changed
            else f"{given['service']}: there was nothing to change."
        )

    return run


def _lift(connection: DeadlineConnection, given: Submission) -> str:
    lifted = parked.lift(connection, given["scope"], given.operator, given.reason)
    return f"{given['scope']} {'goes on' if lifted else 'was not parked'}."


def _park(connection: DeadlineConnection, given: Submission) -> str:
    with connection.transaction():
        until = scopes.park(
            connection,
            given["scope"],
            given["duration"],
            reason=given.reason,
            types=(),
            probing=given["probing"],
            operator=given.operator,
        )
    return f"{given['scope']} is parked until {until}."


def _schedule_act(
    name: str, label: str, about: str, run: Callable[[DeadlineConnection, Submission], str]
) -> ActForm:
    return ActForm(
        f"schedule.{name}",
        Role.OPERATOR,
        label,
        about,
        (SCHEDULE,),
        lambda given: ["schedule", name, str(given["schedule"])],
        at_schedule,
        run=run,
    )


def _worker_act(name: str, label: str, about: str, done: str, danger: bool = False) -> ActForm:
    return ActForm(
        f"worker.{name}",
        Role.ADMIN if danger else Role.OPERATOR,
        label,
        about,
        (WORKER,),
        lambda given: ["workers", name, str(given["worker"])],
        _at("/workers"),
        run=_ask_worker(name, done),
        danger=danger,
    )


def _service_act(name: str, state: str, label: str, about: str, done: str) -> ActForm:
    return ActForm(
        f"service.{name}",
        Role.OPERATOR,
        label,
        about,
        (SERVICE, ENDPOINT),
        lambda given: [
            "service",
            name,
            str(given["service"]),
            *(["--endpoint", given["endpoint"]] if given["endpoint"] else []),
        ],
        _at("/services"),
        run=_force(state, done),
    )


OTHER_ACTS = (
    _schedule_act("run", "Run now", "Enqueue a run at once, beside the timetable.", _run_schedule),
    _schedule_act("pause", "Pause", "Fire nothing more until it is resumed.", _pause_schedule),
    _schedule_act(
        "resume",
        "Resume",
        "Let it go on, from now: what was due in the pause is not made up.",
        _resume_schedule,
    ),
    _worker_act(
        "quiet",
        "Quiet",
        "Let its daemon claim nothing more; what runs goes on, and it lives until it is resumed.",
        "is to claim nothing more",
    ),
    _worker_act("resume", "Resume", "Let its quiet daemon claim again.", "is to claim again"),
    _worker_act(
        "drain",
        "Drain",
        "Let its daemon finish what runs, and end. This cannot be taken back.",
        "is to finish and end",
        danger=True,
    ),
    _service_act(
        "open",
        "open",
        "Hold open",
        "Nobody calls the service until the breaker is let work by itself again.",
        "are held open",
    ),
    _service_act(
        "close",
        "closed",
        "Hold closed",
        "It is called whatever fails, until the breaker is let work by itself again.",
        "are held closed",
    ),
    _service_act(
        "auto",
        "automatic",
        "Let it work by itself",
        "The breaker decides again; one that was held open goes on with probes.",
        "work by themselves",
    ),
    ActForm(
        "scope.lift",
        Role.OPERATOR,
        "Lift",
        "Let the messages of the scope start again, at once.",
        (SCOPE,),
        lambda given: ["scope", "lift", str(given["scope"])],
        _at("/services"),
        run=_lift,
    ),
    ActForm(
        "scope.park",
        Role.OPERATOR,
        "Park a scope",
        "Start no message of it for some time; what runs goes on. It takes the place of an earlier park.",
        (
            FormField(
                "scope", "Scope", required=True, hint="A service that actors name, actor:TYPE or queue:QUEUE"
            ),
            FormField("duration", "For", "duration", required=True, hint="90s, 5m, 2h", placeholder="5m"),
            FormField("probing", "After that, one message at a time until it is lifted", "flag"),
        ),
        lambda given: [
            "scope",
            "park",
            given.text("scope") or "SCOPE",
            "--for",
            given.text("duration") or "DURATION",
            *["--probing"] * bool(given["probing"]),
        ],
        _at("/services"),
        run=_park,
    ),
)
