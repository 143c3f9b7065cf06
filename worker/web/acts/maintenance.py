"""Acts on maintenance and backfills (SPEC M7, M8). Their rules are in schedules/ and worker/ops/backfills.py.

What looks at tables or drops them does so with the connection of the tables' owner; what is only asked for is
written with the page's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from packhorse.schedules.backfill import acts as backfill_acts
from packhorse.schedules.backfill import declare, known
from packhorse.schedules.backfill.base import Backfill, CheckFinding
from packhorse.schedules.maintenance import overview
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.errors import InvalidArgument
from packhorse.worker.ops import backfills
from packhorse.worker.store import maintenance, schedules
from packhorse.worker.web.access import Role
from packhorse.worker.web.forms import ActForm, FormField, LongWork, Place, Preview, Report, Submission

TASK = FormField("task", "Task", required=True, target=True)
BACKFILL = FormField("name", "Backfill", required=True, target=True)
SETTINGS = FormField(
    "settings",
    "Settings",
    "settings",
    hint="PATH=VALUE, a line each, such as source=legacy.webhook_logs; none: its own, or those it was begun with.",
)
#: What the preview found it to be; brought back by the form.
SOURCE = FormField("source", "", target=True)
ROWS = FormField(
    "rows",
    "Rows of the table",
    "integer",
    hint="Asked only where the drop copies nothing: how many rows are lost, as the preview of the check says.",
)

#: How each answer of a backfill reads.
_SAID = {
    "requested": "ends after its step",
    "paused": "rests until it is resumed",
    "enqueued": "goes on: workers carry it",
    "resumed": "goes on with the next `packhorse backfill run`",
    "cancelled": "is cancelled; what was copied stays",
    "nothing": "is as you want it already: there was nothing to do",
}
_NO_WORKER = "No live process takes the messages of maintenance: start `packhorse scheduler`."


# -- tasks -----------------------------------------------------------------------------------------
def _preview_task(connection: DeadlineConnection, given: Submission) -> Preview:
    found = overview.dry_run(connection, given["task"])
    warnings = [*found.warnings, *[_NO_WORKER] * (not maintenance.has_worker(connection))]
    return Preview(
        found.sentence, found.lines, tuple(warnings), count=1 if found.count is None else found.count
    )


def _run_task(connection: DeadlineConnection, given: Submission) -> str:
    """A task has a schedule of its name: its message is enqueued, and a scheduler's worker does it."""
    try:
        number = schedules.run_now(connection, given["task"], given.operator, given.reason)
    except InvalidArgument as error:
        raise InvalidArgument(
            f"no scheduler has planned the task {given['task']}",
            hint="Start one, or run it here: packhorse maintenance run",
        ) from error
    return f"Message {number} is enqueued: a process of packhorse scheduler does it."


def _cancel_task(connection: DeadlineConnection, given: Submission) -> str:
    answer = maintenance.cancel(connection, given["task"], given.operator, given.reason)
    said = {"requested": "ends after its batch", "cancelled": "is cancelled"}.get(answer, "does not run")
    return f"{given['task']} {said}."


def _at_task(given: Submission) -> Place:
    return "/maintenance", {"task": given["task"]}


# -- backfills -------------------------------------------------------------------------------------
def _found(connection: DeadlineConnection, given: Submission) -> Backfill:
    if given["name"] not in declare.names():
        from packhorse.worker.runtime.actors import import_configured

        import_configured()
    return known.find(connection, given["name"], _texts(given))


def _texts(given: Submission) -> dict[str, str]:
    """Settings are texts; a number or a flag in a form is one, too."""
    texts = {}
    for line in given.text("settings").splitlines():
        key, is_set, value = line.strip().partition("=")
        if line.strip() and not (is_set and key and value):
            raise SETTINGS.wrong(f"{line.strip()[:60]!r} is not KEY=VALUE")
        if line.strip():
            texts[key] = value
    return texts


def _findings(findings: Iterable[CheckFinding]) -> tuple[str, ...]:
    return tuple(
        f"{each.level}: {each.check}: {each.text}{f'. {each.hint}' if each.hint and each.level != 'ok' else ''}"
        for each in findings
    )


def _preview_start(connection: DeadlineConnection, given: Submission) -> Preview:
    """The check, and where nothing stands in the way the first batch, done and taken back."""
    backfill = _found(connection, given)
    findings = backfill_acts.check(connection, backfill)
    refused = [each for each in findings if each.level == "refused"]
    if refused:
        return Preview("It would be refused: see why.", warnings=_findings(refused), count=0)
    tried = backfill_acts.dry_run(connection, backfill)
    source = backfill.find_source(connection)
    assert source is not None, "the check has seen it"
    warnings = [*_findings(each for each in findings if each.level == "warning")]
    return Preview(
        f"{tried.rows:,} rows of {source.label}. The first {tried.batch:,} were tried and taken back: "
        f"{tried.copied.rows:,} copied, {tried.copied.skipped:,} left out.",
        _findings(each for each in findings if each.level == "ok"),
        (*warnings, *[_NO_WORKER] * (not maintenance.has_worker(connection))),
        kept={"source": source.label},
    )


def _start_backfill(connection: DeadlineConnection, given: Submission) -> str:
    """Its check was the preview, which found the source with the owner's rights; the run checks again before
    it changes anything.
    """
    if given["source"] is None:
        raise InvalidArgument("nobody has looked what it would do", hint="Preview it first")
    settings = _found(connection, given).settings
    number = backfills.start(
        connection, given["name"], given["source"], settings, given.operator, given.reason
    )
    return f"Workers carry {given['name']}: message {number}."


def _asked(
    function: Callable[[DeadlineConnection, str, str, str | None], str],
) -> Callable[[DeadlineConnection, Submission], str]:
    def run(connection: DeadlineConnection, given: Submission) -> str:
        answer = function(connection, given["name"], given.operator, given.reason)
        return f"{given['name']} {_SAID[answer]}."

    return run


def _preview_verify(connection: DeadlineConnection, given: Submission) -> Preview:
    begun = backfills.show(connection, given["name"], with_ledger=False).row
    return Preview(f"{begun['source']} is compared with what was made of it, row by row.")


def _preview_finish(connection: DeadlineConnection, given: Submission) -> Preview:
    backfill = _found(connection, given)
    refused = _findings(backfill_acts.stands_in_the_way(connection, backfill))
    if refused:
        return Preview("It would be refused: see why.", warnings=refused, count=0)
    return Preview(f"{backfill.source_name} is compared once more, and dropped.")


def _preview_rollback(connection: DeadlineConnection, given: Submission) -> Preview:
    begun = backfills.show(connection, given["name"], with_ledger=False).row
    if begun["state"] == "finished":
        return Preview(f"{begun['source']}, which the clean-up has dropped, is made again where it can be.")
    return Preview(f"What {given['name']} has made goes; {begun['source']} stays as it is.")


def _long(
    title: str, work: Callable[[DeadlineConnection, Submission], tuple[str, bool]]
) -> Callable[[DeadlineConnection, Submission], LongWork]:
    def prepare(connection: DeadlineConnection, given: Submission) -> LongWork:
        def run(owner: DeadlineConnection, report: Report, stop: Any) -> tuple[str, bool]:
            return work(owner, given)

        return LongWork(title.format(given["name"]), 0, run, ("/maintenance", {}), as_owner=True)

    return prepare


def _verify(connection: DeadlineConnection, given: Submission) -> tuple[str, bool]:
    findings = backfill_acts.verify(connection, _found(connection, given), given.operator, given.reason)
    refused = [each for each in findings if each.level == "refused"]
    return "; ".join(_findings(refused or findings)) or "Every row is accounted for.", not refused


def _finish(connection: DeadlineConnection, given: Submission) -> tuple[str, bool]:
    backfill = _found(connection, given)
    backfill_acts.finish(connection, backfill, given.operator, given.reason, rows=given["rows"])
    return f"{given['name']} is finished: {backfill.source_name} is dropped.", True


def _rollback(connection: DeadlineConnection, given: Submission) -> tuple[str, bool]:
    findings = backfill_acts.rollback(connection, _found(connection, given), given.operator, given.reason)
    said = "; ".join(_findings(findings))
    return f"{given['name']} is taken back.{f' {said}' if said else ''}", True


def _backfill_act(
    name: str, label: str, about: str, *, fields: tuple[FormField, ...] = (), danger: bool = False, **how: Any
) -> ActForm:
    return ActForm(
        f"backfill.{name}",
        Role.ADMIN if danger else Role.OPERATOR,
        label,
        about,
        (BACKFILL, *fields),
        lambda given: [
            "backfill",
            name,
            str(given["name"]),
            *[
                word
                for line in given.text("settings").splitlines()
                if line.strip()
                for word in ("--set", line)
            ],
            *(["--rows", str(given["rows"])] if given["rows"] is not None else []),
        ],
        lambda given: ("/maintenance", {}),
        danger=danger,
        **how,
    )


MAINTENANCE_ACTS = (
    ActForm(
        "task.run",
        Role.OPERATOR,
        "Run now",
        "Enqueue a run of the task at once, beside its timetable; a process of `packhorse scheduler` does it.",
        (TASK,),
        lambda given: ["schedule", "run", str(given["task"])],
        _at_task,
        run=_run_task,
        preview=_preview_task,
        as_owner=True,
    ),
    ActForm(
        "task.cancel",
        Role.OPERATOR,
        "Cancel the run",
        "End its unfinished run after the batch that is at work; what it did stays done.",
        (TASK,),
        lambda given: ["maintenance", "cancel", str(given["task"])],
        _at_task,
        run=_cancel_task,
    ),
    _backfill_act(
        "start",
        "Start",
        "Let workers carry it, in slices until its end. The preview checks, counts, and tries the first batch.",
        fields=(SETTINGS, SOURCE),
        run=_start_backfill,
        preview=_preview_start,
        as_owner=True,
    ),
    _backfill_act(
        "pause", "Pause", "Let it rest after the step that is at work.", run=_asked(backfills.pause)
    ),
    _backfill_act("resume", "Resume", "Let it go on from where it was.", run=_asked(backfills.resume)),
    _backfill_act(
        "cancel",
        "Cancel",
        "End its run for good; what was copied stays.",
        run=_asked(backfills.cancel),
        danger=True,
    ),
    _backfill_act(
        "verify",
        "Compare",
        "Compare source and target row by row; the clean-up needs it.",
        preview=_preview_verify,
        long=_long("Comparison of {}", _verify),
    ),
    _backfill_act(
        "finish",
        "Finish",
        "The clean-up: the drop guard, a last comparison, and the old table is dropped.",
        fields=(ROWS,),
        preview=_preview_finish,
        long=_long("Clean-up of {}", _finish),
        as_owner=True,
        danger=True,
    ),
    _backfill_act(
        "rollback",
        "Way back",
        "What it made goes, or what it dropped is made again; what stays is said, and why.",
        preview=_preview_rollback,
        long=_long("Way back of {}", _rollback),
        danger=True,
    ),
)
