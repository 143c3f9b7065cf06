"""The timetable: what Packhorse ships, and what the code of users declares. One screen each.

The shipped periods are those of SPEC M2-M5. A policy whose table does not exist is left out: the conversation
platform is optional, the queue is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from packhorse.schedules.maintenance.policies import Partitions, Retention
from packhorse.schedules.timetable.schedule import Schedule
from packhorse.worker.errors import InvalidArgument

#: Queue and type of the messages that run maintenance; `packhorse scheduler` works on them.
QUEUE = "packhorse"
MESSAGE_TYPE = "packhorse.maintenance"

#: Schedules that modules of users declared with `schedule`; by name.
declared: dict[str, Schedule] = {}

DAY = 86400.0

RETENTION = (
    # the queue's own
    Retention(
        "processed_messages",
        column="first_seen_at",
        keep_seconds=7 * DAY,
        # by the end of the work where it has one, not by the first sight
        where="processed_at is null or processed_at < {cutoff}",
        cron="10 * * * *",
    ),
    Retention("message_dedup", column="expires_at", keep_seconds=0, cron="*/10 * * * *"),
    Retention("message_results", column="expires_at", keep_seconds=0, cron="*/10 * * * *"),
    Retention(
        "dead_letters",
        column="dead_at",
        keep_seconds=30 * DAY,
        where="not blocks_conversation",
        cron="20 3 * * *",
    ),
    Retention(
        "schedule_runs",
        column="fired_at",
        keep_seconds=30 * DAY,
        where="outcome <> 'enqueued'",
        cron="40 3 * * *",
    ),
    Retention("maintenance_runs", column="ended_at", keep_seconds=90 * DAY, cron="50 3 * * *"),
    # the conversation platform
    Retention(
        "ai_conversation_memory",
        column="last_interaction",
        keep_seconds=7 * DAY,
        cron="35 2 * * *",
        optional=True,
    ),
    # by the end; a workflow that goes on has none
    Retention(
        "workflow_states", column="completed_at", keep_seconds=7 * DAY, cron="45 2 * * *", optional=True
    ),
    Retention("dialog_contexts", column="expires_at", keep_seconds=0, cron="15 * * * *", optional=True),
    Retention("appointments_cache", column="expires_at", keep_seconds=0, cron="20 * * * *", optional=True),
    Retention("whatsapp_keys", column="expires_at", keep_seconds=0, cron="25 * * * *", optional=True),
    Retention("platform_events", column="created_at", keep_seconds=90 * DAY, cron="5 3 * * *", optional=True),
    Retention(
        "webhook_events",
        column="created_at",
        keep_seconds=30 * DAY,
        # by the delivery where there was one; what is still under way stays
        where="coalesce(delivered_at, created_at) < {cutoff} and coalesce(status, '') not in ('pending', 'sent', 'received')",
        cron="10 3 * * *",
        optional=True,
    ),
    Retention(
        "audit_events",
        column="created_at",
        keep_seconds=365 * DAY,
        where="event_category <> 'security'",
        cron="15 3 * * *",
        optional=True,
    ),
)

PARTITIONS = (
    # each hour: what the function cannot have (a dump reads the archive) it leaves for the next time, in
    # silence
    Partitions(
        "message_archive",
        column="finished_at",
        every="day",
        ahead=7,
        keep=7,
        keep_setting=True,
        drop_cron="50 * * * *",
    ),
    Partitions("messages", column="created_at", every="month", ahead=5, keep=6, optional=True),
)


#: Tasks whose policies hold outside the scheduler, too: workers and cleanup_old_messages() follow them
#: (declare_policies).
FOLLOWED = (
    "retention.processed_messages",
    "retention.message_dedup",
    "retention.message_results",
    "retention.dead_letters",
    "partitions.messages.make",
    "partitions.message_archive.drop",
)


@dataclass(frozen=True, slots=True)
class Job:
    """A SQL function that repairs at most p_limit rows and returns how many; called until it returns fewer.

    statement: its name in worker/db/sql/maintenance.sql. needs: the table without which it is left out.
    """

    name: str
    statement: str
    cron: str
    needs: str | None = None
    batch: int = 500

    @property
    def task(self) -> str:
        return f"job.{self.name}"


JOBS = (
    Job("stale_message_locks", "job_stale_message_locks", "*/5 * * * *"),
    Job("stale_conversation_locks", "job_stale_conversation_locks", "*/5 * * * *"),
    Job("dead_workers", "job_dead_workers", "*/10 * * * *"),
    Job("stuck_conversations", "job_stuck_conversations", "*/5 * * * *", "conversations"),
    Job("timed_out_workflows", "job_timed_out_workflows", "* * * * *", "workflow_states"),
    Job("expired_agent_sessions", "job_expired_agent_sessions", "*/5 * * * *", "agent_chat_sessions"),
    Job("expired_guest_sessions", "job_expired_guest_sessions", "30 2 * * *", "guest_sessions"),
    Job("due_reminders", "job_due_reminders", "* * * * *", "reminders", batch=100),
    Job("backfill_rows", "job_backfill_rows", "55 3 * * *", "platform_backfill_rows"),
)


def schedule(actor: Any, *, name: str | None = None, **options: Any) -> Schedule:
    """Declare that an actor's message is to be enqueued again and again; options as in Schedule.

    Example: schedule(send_report, cron="0 7 * * mon-fri", time_zone="Africa/Kigali", payload={"kind":
    "daily"}). The name is the actor's when none is given. Raises InvalidArgument for bad options and a name
    declared twice.
    """
    entry = Schedule(
        name or actor.actor_name,
        actor.actor_name,
        queue=options.pop("queue", actor.queue_name),
        source="code",
        **options,
    )
    if declared.get(entry.name, entry) != entry:
        raise InvalidArgument(
            f"name: the schedule {entry.name!r} is declared twice",
            field="name",
            hint="Give one of them another name.",
        )
    declared[entry.name] = entry
    return entry


def maintenance_schedules(tasks: dict[str, tuple[str, str]]) -> list[Schedule]:
    """The schedules of maintenance tasks, from task name to cron line and time zone."""
    return [
        Schedule(
            task,
            MESSAGE_TYPE,
            cron=cron,
            time_zone=time_zone,
            queue=QUEUE,
            payload={"task": task},
            max_attempts=3,
            source="packhorse",
            # what runs every minute is light; the rest does not start in the same second
            jitter_seconds=0.0 if cron.startswith("* ") else 20.0,
        )
        for task, (cron, time_zone) in tasks.items()
    ]
