"""packhorse schedule: list, next, run, pause, resume, history."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from packhorse.schedules.timetable.triggers import trigger, upcoming, zone
from packhorse.worker.cli.common import AsJson, Limit, Operator, Reason, database, operator_name
from packhorse.worker.cli.render import print_fields, print_json, print_paused, print_rows
from packhorse.worker.exits import EXIT_OK
from packhorse.worker.store import schedules as store

app = typer.Typer(no_args_is_help=True, help="Schedules: what is enqueued again and again.")

Name = Annotated[str, typer.Argument(metavar="SCHEDULE", help="Name of the schedule.")]


@app.command("list")
def list_schedules(as_json: AsJson = False) -> int:
    """Every schedule: trigger, next planned time, last run and its outcome, problem."""
    with database() as connection:
        found = store.list_schedules(connection)
    if as_json:
        print_json(found)
    else:
        print_rows(
            found,
            [
                "name",
                "source",
                "trigger",
                "time_zone",
                "paused",
                "next_planned_at",
                "last_run_at",
                "last_outcome",
                "problem",
            ],
            empty="no schedules: `packhorse scheduler` writes the timetable when it starts",
        )
    return EXIT_OK


@app.command()
def show(schedule: Name, as_json: AsJson = False) -> int:
    """One schedule, whole."""
    with database() as connection:
        found = store.show(connection, schedule)
    print_json(found) if as_json else print_fields(found)
    return EXIT_OK


@app.command("next")
def next_times(
    schedule: Name,
    count: Annotated[
        int, typer.Option("--count", "-n", min=1, max=1000, help="How many planned times.")
    ] = 10,
    as_json: AsJson = False,
) -> int:
    """The next planned times, in UTC and on the wall clock of the schedule's zone."""
    with database() as connection:
        found = store.show(connection, schedule)
    now: datetime = found["now"]
    times = upcoming(trigger(found["cron"], found["every_seconds"], found["time_zone"]), now, limit=count)
    local = zone(found["time_zone"])
    rows = [
        {
            "planned_at": time,
            "local_time": time.astimezone(local).isoformat(),
            "in_seconds": round((time - now).total_seconds()),
        }
        for time in times
    ]
    print_json(rows) if as_json else print_rows(
        rows, ["planned_at", "local_time", "in_seconds"], empty="none"
    )
    return EXIT_OK


@app.command()
def run(schedule: Name, operator: Operator = None, reason: Reason = None, as_json: AsJson = False) -> int:
    """Enqueue a run at once, beside the timetable."""
    with database() as connection:
        message_id = store.run_now(connection, schedule, operator_name(operator), reason)
    if as_json:
        print_json({"schedule": schedule, "message_id": message_id})
    else:
        print(
            f"{schedule}: message {message_id} is enqueued; watch it with: packhorse message show {message_id}"
        )
    return EXIT_OK


@app.command()
def pause(schedule: Name, operator: Operator = None, reason: Reason = None, as_json: AsJson = False) -> int:
    """Fire nothing more until resume."""
    with database() as connection:
        changed = store.pause(connection, schedule, operator_name(operator), reason)
    print_paused("schedule", schedule, True, changed, as_json)
    return EXIT_OK


@app.command()
def resume(schedule: Name, operator: Operator = None, reason: Reason = None, as_json: AsJson = False) -> int:
    """Let a paused schedule go on, from now."""
    with database() as connection:
        changed = store.resume(connection, schedule, operator_name(operator), reason)
    print_paused("schedule", schedule, False, changed, as_json)
    return EXIT_OK


@app.command()
def history(
    schedule: Annotated[
        str | None, typer.Argument(metavar="[SCHEDULE]", help="Name of the schedule; none: all of them.")
    ] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> int:
    """Runs, newest first: planned, fired, ended, outcome, rows, who triggered them."""
    with database() as connection:
        found = store.history(connection, schedule, limit)
    if as_json:
        print_json(found)
    else:
        columns = [
            "schedule",
            "planned_at",
            "fired_at",
            "ended_at",
            "outcome",
            "rows",
            "triggered_by",
            "missed_count",
            "message_id",
            "error",
        ]
        print_rows(found, columns, empty="no runs")
    return EXIT_OK
