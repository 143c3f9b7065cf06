"""packhorse dead-letter: groups, list, show, edit, redrive, purge, export."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

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
    operator_name,
)
from packhorse.worker.cli.editor import edited, seen_by_nobody_else
from packhorse.worker.cli.errors import CommandError, usage
from packhorse.worker.cli.interrupts import first_interrupt
from packhorse.worker.cli.render import (
    json_line,
    print_diff,
    print_fields,
    print_json,
    print_rows,
    progress,
    with_tracebacks,
)
from packhorse.worker.errors import WorkerError
from packhorse.worker.exits import EXIT_FAILED, EXIT_OK
from packhorse.worker.ops.amounts import Amount
from packhorse.worker.ops.payloads import difference, read_setting
from packhorse.worker.store import browse, dead_letters
from packhorse.worker.store.dead_letters import Selection
from packhorse.worker.store.filters import DEAD, Term
from packhorse.worker.store.rows import decoded

app = typer.Typer(no_args_is_help=True, help="Dead letters: look, edit, redrive, purge, export.")

PAGE = 500
#: A person waits so long for a count of all; of more there is an estimate.
COUNT_SECONDS = 30.0
#: Whole letters at a time: each may have a payload of a megabyte, and a traceback.
EXPORT_PAGE = 50
GROUP_COLUMNS = [
    "fingerprint",
    "count",
    "queue",
    "message_type",
    "reason",
    "error_class",
    "error_code",
    "error_message",
    "last_dead_at",
]
GROUP_FIELDS = (*GROUP_COLUMNS, "estimated", "last_hour", "first_dead_at", "newest_id")
Id = Annotated[int, typer.Argument(metavar="ID", max=MOST_ID, help="Id of the dead letter.")]
Ids = Annotated[list[int] | None, typer.Argument(metavar="[ID]...", max=MOST_ID, help="Ids of dead letters.")]
Fingerprint = Annotated[
    str | None, typer.Option("--fingerprint", "-f", help="Only this cause, as `dead-letter groups` names it.")
]
Code = Annotated[str | None, typer.Option("--code", "-c", help="Only errors with this code.")]
OlderThan = Annotated[float | None, duration("--older-than", "Only letters dead for longer: 2h, 7d.")]
Filter = Annotated[
    str | None,
    typer.Option(
        "--where", "-w", help="Only letters of this filter: 'type=send_* error=Timeout* attempts>=3'."
    ),
]
Everything = Annotated[bool, typer.Option("--all", help="All dead letters.")]


@app.command("groups")
def list_groups(queue: Queue = None, limit: Limit = 50, as_json: AsJson = False) -> int:
    """Dead letters by cause, most frequent first. ~: about, from a sample."""
    with database() as connection:
        found = dead_letters.groups(connection, queue=queue, limit=limit)
    if as_json:
        print_json([{name: row[name] for name in GROUP_FIELDS} for row in found.rows])
    else:
        shown = [{**row, "count": f"~{row['count']}"} if row["estimated"] else row for row in found.rows]
        print_rows(shown, GROUP_COLUMNS, empty="no dead letters")
    if not found.is_all:
        looked = (
            f"the first {browse.MOST_CAUSES:,} causes by fingerprint"
            if queue is None
            else f"the newest {browse.NEWEST_LETTERS:,} dead letters of all queues"
        )
        print(f"packhorse: there are many dead letters; only {looked} were looked at", file=sys.stderr)
    return EXIT_OK


@app.command("list")
def list_letters(
    queue: Queue = None,
    fingerprint: Fingerprint = None,
    code: Code = None,
    message_type: Annotated[str | None, typer.Option("--type", "-t", help="Only this message type.")] = None,
    where_text: Filter = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> int:
    """Dead letters, newest first."""
    terms = _terms(where_text)
    with database() as connection:
        found = dead_letters.list_letters(
            connection,
            queue=queue,
            message_type=message_type,
            fingerprint=fingerprint,
            code=code,
            where=terms,
            limit=limit,
        )
    if as_json:
        print_json(found)
    else:
        print_rows(
            found,
            [
                "id",
                "queue",
                "message_type",
                "reason",
                "error_class",
                "error_code",
                "error_message",
                "attempt",
                "dead_at",
            ],
            empty="no dead letters",
        )
    return EXIT_OK


@app.command()
def show(message_id: Id, step_values: StepValues = False, as_json: AsJson = False) -> int:
    """One dead letter, whole: reason, traceback, payload, attempt history, steps."""
    with database() as connection:
        found = dead_letters.show(connection, message_id, STEP_CHARACTERS if step_values else 0)
    print_json(found) if as_json else print_fields(with_tracebacks(found))
    return EXIT_OK


@app.command()
def edit(
    message_id: Id,
    payload: Annotated[
        str | None,
        typer.Option("--payload", help="The new payload, a JSON object; default: $EDITOR opens the old one."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the difference, change nothing.")] = False,
    reason: Reason = None,
    operator: Operator = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> int:
    """Replace the payload before a redrive; shows the difference, records which keys differ."""
    given = json_object("payload", payload) if payload is not None else None
    with database() as connection:
        seen = dead_letters.payload(connection, message_id)
        steps = dead_letters.step_names(connection, message_id)
    before = decoded(seen)
    after = given if given is not None else json_object("payload", edited(before))
    lines = difference(before, after)
    if not as_json:
        print_diff(lines)
    changed = bool(lines) and not dry_run
    if changed:
        if given is None:
            confirmed("Keep this payload?", yes)
        from packhorse.worker.store.json_text import to_json

        # connected again: nobody should hold a connection while a person thinks
        with seen_by_nobody_else(), database() as connection:
            dead_letters.edit(
                connection, message_id, to_json("payload", after), seen, operator_name(operator), reason
            )
    if as_json:
        print_json(
            {
                "id": message_id,
                "changed": changed,
                "before": before,
                "after": after,
                "diff": lines,
                "steps": steps,
            }
        )
    elif changed and steps:
        print(
            f"packhorse: {len(steps)} step(s) have stored what they made of the old payload; `redrive --fresh` does them again.",
            file=sys.stderr,
        )
    return EXIT_OK


@app.command()
def redrive(
    ids: Ids = None,
    fingerprint: Fingerprint = None,
    code: Code = None,
    queue: Queue = None,
    where_text: Filter = None,
    everything: Everything = False,
    rate: Annotated[
        float,
        typer.Option("--rate", min=0, max=1_000_000, help="Messages per second; 0: as fast as it goes."),
    ] = 100.0,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most so many.")] = None,
    stop_after_failures: Annotated[
        int, typer.Option("--stop-after-failures", min=0, help="Stop when so many have died again; 0: never.")
    ] = 3,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Forget their steps: everything is done again.")
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="First change a value of each payload."),
    ] = None,
    reason: Reason = None,
    operator: Operator = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> int:
    """Enqueue dead letters again, oldest first, with fresh attempts; stops when they fail again."""
    from packhorse.worker.ops.redrive import redrive as redrive_paced

    selection = _selection(
        Selection(ids, fingerprint, queue, code=code, where=_terms(where_text)), everything
    )
    changes = [read_setting("set", text) for text in settings or []]
    total = done = 0

    def tell(redriven: int, died_again: int | None, ended: str) -> None:
        if as_json:
            left = max(0, total - redriven)
            print_json(
                {
                    "selected": total,
                    "redriven": redriven,
                    "left": left,
                    "died_again": died_again,
                    "ended": ended,
                }
            )
        else:
            print(f"redrove {redriven} of {total} dead letter(s)")

    try:
        with database() as connection:
            amount, dead_by = _counted(connection, selection)
            amount = amount.up_to(limit)
            total = amount.number
            if ids is None and total:
                confirmed(
                    f"Redrive {amount.said('dead letter')}{', and do again what their steps have done' if fresh else ''}?",
                    yes,
                )
            with progress("redriving", total) as advance, first_interrupt() as stop:

                def report(count: int) -> None:
                    nonlocal done
                    done += count
                    advance(count)

                result = redrive_paced(
                    connection,
                    selection,
                    dead_by,
                    operator=operator_name(operator),
                    reason=reason,
                    fresh=fresh,
                    settings=changes,
                    rate=rate,
                    limit=limit,
                    stop_after=stop_after_failures,
                    report=report,
                    stop=stop,
                )
    except (WorkerError, KeyboardInterrupt):
        if done:  # the connection broke, say: what was redriven is redriven
            tell(done, None, "error")
        raise
    left = max(0, total - result.redriven)
    tell(result.redriven, result.died_again, result.ended)
    if left and result.ended == "finished" and not as_json:
        print(
            f"packhorse: {left} left: others redrove or purged them meanwhile, or a live message has their id (see packhorse doctor).",
            file=sys.stderr,
        )
    if result.ended == "failing":
        raise CommandError(
            f"stopped: {result.died_again} of the redriven messages died again, {left} dead letter(s) were left alone",
            code="failing_again",
            hint="See `packhorse dead-letter groups`, then mend the cause",
        )
    return EXIT_OK if result.ended == "finished" else EXIT_FAILED


@app.command()
def purge(
    ids: Ids = None,
    fingerprint: Fingerprint = None,
    code: Code = None,
    queue: Queue = None,
    older_than: OlderThan = None,
    where_text: Filter = None,
    everything: Everything = False,
    reason: Reason = None,
    operator: Operator = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> int:
    """Delete dead letters for good. Export them first when in doubt."""
    selection = _selection(
        Selection(ids, fingerprint, queue, older_than, code, _terms(where_text)), everything
    )
    total = gone = 0

    def tell() -> None:
        if as_json:
            print_json({"selected": total, "purged": gone})
        else:
            print(f"purged {gone} dead letter(s)")

    try:
        with database() as connection:
            amount, dead_by = _counted(connection, selection)
            total = amount.number
            if total:
                confirmed(f"Delete {amount.said('dead letter')} for good?", yes)
            with progress("purging", total) as advance, first_interrupt() as stop:
                for page in dead_letters.pages(connection, selection, dead_by, PAGE):
                    if stop.is_set():
                        raise KeyboardInterrupt
                    done = dead_letters.purge(connection, page, operator_name(operator), reason)
                    gone += len(done)
                    advance(len(done))
    except (WorkerError, KeyboardInterrupt):
        if gone:  # what is gone is gone, whatever ended the rest
            tell()
        raise
    tell()
    return EXIT_OK


@app.command()
def export(
    ids: Ids = None,
    fingerprint: Fingerprint = None,
    code: Code = None,
    queue: Queue = None,
    older_than: OlderThan = None,
    where_text: Filter = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="File to write; default: stdout. An existing one is not overwritten."
        ),
    ] = None,
) -> int:
    """Write dead letters as JSON lines, oldest message first; all of them unless filtered."""
    selection = Selection(ids or None, fingerprint, queue, older_than, code, _terms(where_text))
    written = 0
    with database() as connection:
        amount, dead_by = _counted(connection, selection)
        total = amount.number
        target: Any = sys.stdout
        if output is not None:
            try:
                target = output.open("x", encoding="utf-8")
            except OSError as error:
                raise usage("output", f"cannot write {output}: {error.strerror}") from None
        try:
            with progress("exporting", total if output is not None else 0) as advance:
                for page in dead_letters.pages(connection, selection, dead_by, EXPORT_PAGE):
                    found = dead_letters.export(connection, page)
                    target.writelines(json_line(row) + "\n" for row in found)
                    written += len(found)  # not the count before: others may redrive and purge meanwhile
                    advance(len(found))
        except BaseException:
            # half an export must not pass for a whole one, nor stand in the way of the next try
            if output is not None:
                output.unlink(missing_ok=True)
            raise
        finally:
            if output is not None:
                target.close()
    if output is not None:
        print(f"wrote {written} dead letter(s) to {output}", file=sys.stderr)
    return EXIT_OK


def _selection(asked: Selection, everything: bool) -> Selection:
    """What an act is about; nothing named is an error, not everything."""
    named = any([asked.ids, asked.fingerprint, asked.queue, asked.older_than, asked.code, asked.where])
    if everything and named:
        raise usage("all", "cannot be combined with ids or filters")
    if not everything and not named:
        raise usage(
            "ids",
            "say which: ids, --fingerprint, --code, --queue, --where or --all",
            "`packhorse dead-letter groups` lists causes",
        )
    return asked if asked.ids else dataclasses.replace(asked, ids=None)


def _terms(text: str | None) -> tuple[Term, ...]:
    """The terms of --where. Raises InvalidArgument."""
    from packhorse.worker.ops.where import parse

    return parse(text or "", DEAD, ()).terms


def _counted(connection: Any, selection: Selection) -> tuple[Amount, Any]:
    """Count a selection; ids that are all unknown, or a cause that is, are an error."""
    found, dead_by = dead_letters.count(connection, selection, exact_seconds=COUNT_SECONDS)
    named = next((name for name in ("ids", "fingerprint", "code") if getattr(selection, name)), None)
    if not found.total and found.looked is None and named:
        raise CommandError(
            "no dead letter matches",
            code="not_found",
            field=named,
            hint="`packhorse dead-letter list` shows what there is",
        )
    return Amount.of(found), dead_by
