"""Every retention policy that Packhorse ships, on the tables that it ships, with the periods of SPEC M3 and
M4: what is over goes, what is not, and what may never go, stays."""

from __future__ import annotations

import re

import pytest

from packhorse.schedules.config import Plan
from packhorse.schedules.maintenance.policies import Gates
from packhorse.schedules.maintenance.tasks import TaskRunner
from packhorse.schedules.registry import RETENTION
from packhorse.worker.db.connection import connect
from tests.sql.client import Sql
from tests.sql.platform.conftest import create_platform_database, seed
from tests.sql.platform.test_cleanup import UPKEEP

OPEN = Gates(None, None, None, None, None)
#: Table -> an insert of a row that was over %(age)s ago, when that is positive, and a select of the names of
#: those that are left.
QUEUE = {
    "processed_messages": (
        "insert into processed_messages (external_id, first_seen_at) values (%(key)s, clock_timestamp() - interval '7 days' - %(age)s::interval)",
        "select external_id from processed_messages",
    ),
    "message_dedup": (
        "insert into message_dedup (queue, dedup_key, message_id, expires_at) values ('q', %(key)s, 1, clock_timestamp() - %(age)s::interval)",
        "select dedup_key from message_dedup",
    ),
    "message_results": (
        "insert into message_results (result_key, result, expires_at) values (%(key)s, '{}', clock_timestamp() - %(age)s::interval)",
        "select result_key from message_results",
    ),
    "dead_letters": (
        "insert into dead_letters (id, queue, message_type, payload, options, priority, reason, fingerprint, attempt, crashes, created_at, dead_at) "
        "values (nextval('message_queue_id_seq'), 'q', %(key)s, '{}', '{}', 5, 'failed', 'f', 1, 0, '2000-01-01', "
        "clock_timestamp() - interval '30 days' - %(age)s::interval)",
        "select message_type from dead_letters",
    ),
    "schedule_runs": (
        "insert into schedule_runs (schedule, planned_at, outcome, triggered_by, message_id, fired_at) values (%(key)s, clock_timestamp(), 'done', "
        "'schedule', 1, clock_timestamp() - interval '30 days' - %(age)s::interval)",
        "select schedule from schedule_runs",
    ),
    "maintenance_runs": (
        "insert into maintenance_runs (task, kind, triggered_by, state, ended_at) values (%(key)s, 'job', 'me', 'succeeded', "
        "clock_timestamp() - interval '90 days' - %(age)s::interval)",
        "select task from maintenance_runs where task not like 'retention.%%'",
    ),  # but for the run itself
}
#: Old, and not to go whatever its age.
PROTECTED = {
    "dead_letters": "insert into dead_letters (id, queue, message_type, payload, options, priority, reason, fingerprint, attempt, crashes, created_at, dead_at, "
    "conversation_key, blocks_conversation) values (nextval('message_queue_id_seq'), 'q', 'protected', '{}', '{}', 5, 'failed', 'f', 1, 0, "
    "'2000-01-01', '2000-01-01', 'c', true)",
    "schedule_runs": "insert into schedule_runs (schedule, planned_at, outcome, triggered_by, message_id, fired_at) "
    "values ('protected', '2000-01-01', 'enqueued', 'schedule', 1, '2000-01-01')",
    "maintenance_runs": "insert into maintenance_runs (task, kind, triggered_by, state, started_at) values ('protected', 'job', 'me', 'paused', '2000-01-01')",
    "workflow_states": "insert into workflow_states (workflow_type, current_step, started_at) values ('protected', 's', '2000-01-01')",
    "webhook_events": "insert into webhook_events (event_category, event_type, webhook_id, status, created_at) "
    "values ('incoming', 'x', 'protected', 'received', '2000-01-01')",
    "audit_events": "insert into audit_events (event_category, event_type, action, created_at) values ('security', 'x', 'protected', '2000-01-01')",
    "whatsapp_keys": "insert into whatsapp_keys (company_id, key_type, key_id, value) values ('1', 't', 'protected', '{}')",
    "dialog_contexts": "insert into dialog_contexts (phone, company_id, expires_at) values ('protected', 1, null)",
}
#: Rows whose age is their end: the time of that is given.
ENDED = {
    "workflow_states": (
        "insert into workflow_states (workflow_type, current_step, status, completed_at) "
        "values (%(key)s, 's', 'failed', clock_timestamp() - interval '7 days' - %(age)s::interval)",
        "select workflow_type from workflow_states",
    )
}
PLATFORM = {
    re.search(r"insert into (\w+)", upkeep.insert)[1]: (upkeep.insert, upkeep.left) for upkeep in UPKEEP
} | ENDED  # type: ignore[index]


@pytest.fixture(scope="module")
def database(server):
    database = create_platform_database(server)
    with database.connect(admin=True) as connection:
        seed(Sql(connection))
    yield database
    database.drop()


@pytest.mark.parametrize("policy", RETENTION, ids=lambda policy: policy.name)
def test_what_is_over_goes_and_what_lives_or_is_protected_stays(database, policy):
    insert, left = {**PLATFORM, **QUEUE}[policy.table]
    with database.connect(admin=True) as connection:
        connection.execute("set timezone = 'UTC'")  # where 7 days are 168 hours
        for key, age in {
            "long_over": "400 days",
            "over": "5 minutes",
            "lives": "-5 minutes",
            "lives_on": "-20 hours",
        }.items():
            connection.execute(insert, {"key": key, "age": age})
        protected = {"protected"} if policy.table in PROTECTED else set()
        if protected:
            connection.execute(PROTECTED[policy.table])
    runner = TaskRunner(lambda: connect(database.url, deadline_seconds=30), Plan((policy,), (), (), OPEN, ()))
    assert runner.run(policy.task, triggered_by="test") == "succeeded"
    assert {row[0] for row in database.query(left)} == {"lives", "lives_on"} | protected
    assert database.value("select rows_done from maintenance_runs where task = %s", policy.task) == 2
