"""Whether there is something to do (SPEC W12): what a burst asks and what a claim finds is the same, gate by
gate.
"""

from __future__ import annotations

import uuid

import pytest

from packhorse.worker.db.connection import connect
from packhorse.worker.store import bursts

pytestmark = pytest.mark.one_database

WORKER = uuid.uuid4()
ENQUEUE = "select enqueue_message('default', 't'%s)"
GATES = {
    "nothing": [],
    "due": [ENQUEUE % ""],
    "delayed": [ENQUEUE % ", p_delay => '1 hour'"],
    "of another type": ["select enqueue_message('default', 'other')"],
    "on another queue": ["select declare_queue('elsewhere')", "select enqueue_message('elsewhere', 't')"],
    "expired": [ENQUEUE % ", p_expires_at => clock_timestamp() + interval '1 ms'", "select pg_sleep(0.01)"],
    "paused": [ENQUEUE % "", "select pause_queue('default', 'me')"],
    "parked": [ENQUEUE % "", "select park_scope('actor:t', '1 hour', p_types => array['t'])"],
    "a probe": [
        ENQUEUE % "",
        "select park_scope('actor:t', '1 hour', p_types => array['t'], p_probing => true)",
        "update scopes set parked_until = now()",
    ],
    "behind another one": [
        ENQUEUE % ", p_conversation_key => 'k', p_delay => '1 hour'",
        ENQUEUE % ", p_conversation_key => 'k'",
    ],
    "first of its conversation": [
        ENQUEUE % ", p_conversation_key => 'k'",
        ENQUEUE % ", p_conversation_key => 'k'",
    ],
    "no room": [
        """select set_queue('default', '{"max_concurrency": 1}')""",
        ENQUEUE % "",
        "select claim_messages(gen_random_uuid(), '{default}')",
        ENQUEUE % "",
    ],
    "no room for its key": [
        """select set_queue('default', '{"max_concurrency_per_key": 1}')""",
        ENQUEUE % ", p_concurrency_key => 'c'",
        "select claim_messages(gen_random_uuid(), '{default}')",
        ENQUEUE % ", p_concurrency_key => 'c'",
    ],
    "apart": [ENQUEUE % "", "update message_queue set crashes = 2"],
}


@pytest.fixture
def connection(database):
    connection = connect(database.admin_url, deadline_seconds=10)
    connection.execute("set search_path = packhorse, public")
    yield connection
    connection.close()


def register(connection):
    connection.execute(
        "insert into workers (id, hostname, pid, version, queues, message_types, threads, lease_duration) values (%s, 'h', 1, '0', '{default}', '{t}', 1, '20 s')",
        (WORKER,),
    )


@pytest.mark.parametrize("gate", GATES)
def test_the_answer_is_that_of_the_claim(connection, gate):
    register(connection)
    for statement in GATES[gate]:
        connection.execute(statement)
    answer = bursts.has_work(connection, [WORKER])
    claimed = connection.execute(
        "select id from claim_messages(%s, '{default}', 10, p_types => '{t}')", (WORKER,)
    ).fetchall()
    assert answer is bool(claimed)
    assert answer is (gate in ("due", "a probe", "first of its conversation", "apart"))


def test_what_they_hold_is_work_and_what_others_hold_is_not(connection):
    connection.execute(ENQUEUE % "")
    assert bursts.has_work(connection, [WORKER]) is None, "nobody has registered"
    register(connection)
    connection.execute("select claim_messages(%s, '{default}')", (WORKER,))
    assert bursts.has_work(connection, [uuid.uuid4(), WORKER]) is True
    connection.execute("update message_queue set lease_holder = gen_random_uuid()")
    assert bursts.has_work(connection, [WORKER]) is False


def test_a_rate_limit_is_waited_for(connection):
    register(connection)
    connection.execute(
        """select set_queue('default', '{"rate_limit": 1, "rate_interval": "1 hour", "rate_burst": 1}')"""
    )
    connection.execute(ENQUEUE % "")
    connection.execute(ENQUEUE % "")
    assert (
        len(
            connection.execute(
                "select id from claim_messages(%s, '{default}', 10)", (uuid.uuid4(),)
            ).fetchall()
        )
        == 1
    )
    assert (
        connection.execute("select id from claim_messages(%s, '{default}', 10)", (WORKER,)).fetchall() == []
    )
    assert bursts.has_work(connection, [WORKER]) is True


def test_what_failed_and_died_since_then(connection):
    register(connection)
    for _ in range(3):
        connection.execute(ENQUEUE % "")
    connection.execute(
        """update message_queue set error = '{"at": "never"}' where id = (select min(id) from message_queue)"""
    )
    claimed = connection.execute(
        "select id, lease_token from claim_messages(%s, '{default}', 3)", (WORKER,)
    ).fetchall()
    before = connection.execute("select clock_timestamp()").fetchone()[0]
    connection.execute("select fail_message(%s, %s, 'E', 'no')", claimed[1])
    connection.execute("select bury_message(%s, %s, 'buried', 'E', 'no')", claimed[2])
    connection.execute("select release_messages(array[%s::bigint], array[%s::bigint])", claimed[0])
    after = connection.execute("select clock_timestamp()").fetchone()[0]
    assert bursts.work_left(connection, [WORKER], before) == bursts.WorkLeft(remaining=2, failed=1, dead=1)
    assert bursts.work_left(connection, [WORKER], after) == bursts.WorkLeft(remaining=2, failed=0, dead=0)
