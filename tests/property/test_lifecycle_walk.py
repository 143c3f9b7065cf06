"""A random walk over the life of messages: the real SQL beside a model, invariants after every step (SPEC P1,
P2, P4, P5).

The model says what each call may answer; what the claim chooses is read from the database and checked
against the rules. The seed is in the test's name and in every failure.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest

from packhorse.worker.states import State
from tests.property.model import Message, Model
from tests.sql.client import Sql
from tests.sql.conversations import violations

CRASH_LIMIT = 2
STATES = {State.PENDING, State.BLOCKED, State.RUNNING, State.DONE, State.CANCELLED, State.DEAD}


class Walk:
    """One walk: `step()` does one random command and checks everything."""

    def __init__(self, sql: Sql, seed: int) -> None:
        self.sql = sql
        self.chance = random.Random(seed)
        self.model = Model(on_dead_blocks=self.chance.random() < 0.5)
        self.done: list[str] = []
        sql.set_queue(
            crash_limit=CRASH_LIMIT,
            backoff_initial="0",
            backoff_max="0",
            max_attempts=3,
            on_dead="block" if self.model.on_dead_blocks else "skip",
        )
        self.commands: list[Callable[[], str]] = [
            self.enqueue,
            self.enqueue,
            self.claim,
            self.claim,
            self.finish,
            self.finish,
            self.stale_write,
            self.cancel,
            self.expire,
            self.bury,
            self.redrive,
            self.purge,
            self.rescue,
            self.recover,
            self.upkeep,
        ]

    def step(self) -> None:
        command = self.chance.choice(self.commands)
        self.done.append(f"{command.__name__}: {command()}")
        self.sql.due_now()
        self.follow_blocking()
        self.check()

    def pick(self, *states: State) -> Message | None:
        found = self.model.in_state(*states)
        return self.chance.choice(found) if found else None

    # commands: each calls the SQL, compares the answer, and moves the model
    def enqueue(self) -> str:
        key = self.chance.choice([None, "a", "b"])
        limit = self.chance.choice([1, 2, 3])
        message_id = self.sql.enqueue(
            conversation_key=key, max_attempts=limit, priority=self.chance.choice([1, 5, 10])
        )
        assert message_id not in self.model.messages
        self.model.messages[message_id] = Message(message_id, key, limit)
        return str(message_id)

    def claim(self) -> str:
        holder = uuid4()
        leases = self.sql.claim(
            self.chance.choice([1, 2, 5]), holder=holder, isolated=self.chance.choice([None, False, True])
        )
        for lease in leases:
            message = self.model.messages[lease.id]
            others = (
                [other for other in self.model.holders(message.key) if other is not message]
                if message.key
                else []
            )
            assert not [other for other in others if other.state in (State.RUNNING, State.DEAD)], (
                f"{message} started beside {others}"
            )
            assert not [other for other in others if other.id < message.id], f"{message} overtook {others}"
            message.apply("claim")
            message.attempt += 1
            message.token, message.holder = lease.token, holder
            assert lease.attempt == message.attempt and lease.token not in message.stale
        return str([lease.id for lease in leases])

    def finish(self) -> str:
        message = self.pick(State.RUNNING)
        if message is None:
            return "-"
        verb = self.chance.choice(
            ["complete", "fail", "snooze", "park", "release", "bury", "cancel", "extend"]
        )
        token, answer = message.token, self.call(verb, message.id, message.token)
        assert answer not in (None, False, "lost", "gone", []), f"{verb} of a held lease answered {answer}"
        if verb == "extend":
            return f"extend {message.id}"
        if message.cancel_requested and verb in ("fail", "snooze", "park", "release"):
            message.apply("cancel")
            message.attempt -= verb != "fail"
        elif verb == "fail":
            last = message.attempt >= message.max_attempts
            assert answer == ("dead" if last else "retry")
            message.apply("bury" if last else "retry")
        else:
            message.apply(verb)
            message.attempt -= verb in ("snooze", "park", "release")
        return f"{verb} {message.id} token {token}"

    def stale_write(self) -> str:
        """A holder that lost its lease tries everything: nothing may change."""
        message = self.pick(*STATES)
        if message is None or not message.stale:
            return "-"
        before = self.sql.snapshot()
        verb = self.chance.choice(
            ["complete", "fail", "snooze", "park", "release", "bury", "cancel", "extend"]
        )
        self.call(verb, message.id, self.chance.choice(message.stale))
        assert self.sql.snapshot() == before, f"{verb} with a stale token changed something"
        return f"{verb} {message.id}"

    def call(self, verb: str, message_id: int, token: int | None) -> Any:
        calls = {
            "complete": "complete_messages(array[%s::bigint], array[%s::bigint])",
            "fail": "fail_message(%s, %s, 'E', 'm')",
            "snooze": "snooze_message(%s, %s, '1 minute')",
            "park": "park_message(%s, %s, '1 minute')",
            "release": "release_message(%s, %s)",
            "bury": "bury_message(%s, %s)",
            "cancel": "cancel_message(%s, p_token => %s)",
            "extend": "extend_message_lease(%s, %s)",
        }
        return self.sql.value("select " + calls[verb], message_id, token)

    def cancel(self) -> str:
        message = self.pick(*STATES)
        if message is None:
            return "-"
        answer = self.sql.value("select cancel_message(%s)", message.id)
        if message.state in (State.PENDING, State.BLOCKED):
            assert answer == "cancelled"
            message.apply("cancel")
        elif message.state is State.RUNNING:
            assert answer == "requested"
            message.cancel_requested = True
        else:
            assert answer == "gone"
        return f"{message.id} {answer}"

    def expire(self) -> str:
        message = self.pick(State.PENDING, State.BLOCKED)
        if message is None or self.chance.random() < 0.5:
            return "-"
        self.sql.rows("update message_queue set expires_at = '2020-01-01' where id = %s", message.id)
        assert self.sql.value("select expire_messages()") == 1
        message.apply("expire")
        return str(message.id)

    def bury(self) -> str:
        message = self.pick(State.PENDING, State.BLOCKED)
        if message is None or self.chance.random() < 0.7:
            return "-"
        assert self.sql.value("select bury_message(%s)", message.id) is True
        message.apply("bury")
        return str(message.id)

    def redrive(self) -> str:
        message = self.pick(State.DEAD)
        if message is None:
            return "-"
        assert self.sql.value("select redrive_dead_letters(array[%s::bigint])", message.id) == [message.id]
        message.apply("redrive")
        message.attempt = message.crashes = 0
        return str(message.id)

    def purge(self) -> str:
        message = self.pick(State.DEAD)
        if message is None or self.chance.random() < 0.7:
            return "-"
        assert self.sql.value("select purge_dead_letters(array[%s::bigint])", message.id) == [message.id]
        self.model.purged.add(message.id)
        del self.model.messages[message.id]
        return str(message.id)

    def rescue(self) -> str:
        message = self.pick(State.RUNNING)
        if message is None:
            return "-"
        self.sql.rows(
            "update message_queue set lease_expires_at = clock_timestamp() - interval '1 second' where id = %s",
            message.id,
        )
        assert self.sql.value("select rescue_expired_messages()") == 1
        self.crash(message, counted=True)
        return str(message.id)

    def recover(self) -> str:
        """A whole process dies: what it had started counts a crash, what it only held does not."""
        message = self.pick(State.RUNNING)
        if message is None:
            return "-"
        held = [other for other in self.model.in_state(State.RUNNING) if other.holder == message.holder]
        started = [other.id for other in held if self.chance.random() < 0.5]
        assert self.sql.value("select recover_worker(%s, %s::bigint[])", message.holder, started) == len(held)
        for other in held:
            self.crash(other, counted=other.id in started)
        return f"{[other.id for other in held]} started {started}"

    def crash(self, message: Message, *, counted: bool) -> None:
        if message.cancel_requested:
            message.apply("cancel")
            return
        message.attempt -= 1
        message.crashes += counted
        message.apply(
            "bury" if counted and message.crashes >= CRASH_LIMIT else "rescue" if counted else "release"
        )

    def upkeep(self) -> str:
        """Retention touches no live row and no young dead letter, however old their creation is."""
        self.sql.rows("update message_queue set created_at = '2000-01-01'")
        assert self.sql.value("select cleanup_old_messages()") == 0
        assert self.sql.value("select bury_unknown_types('100 years')") == 0
        return "nothing to do"

    # checks
    def follow_blocking(self) -> None:
        """pending <-> blocked is decided by claims and departures on the way: the database says which, the
        table whether it may.
        """
        states = dict(self.sql.rows("select id, state from message_queue"))
        for message in self.model.in_state(State.PENDING, State.BLOCKED):
            actual = states.get(message.id)
            if actual in (State.PENDING, State.BLOCKED) and actual != message.state:
                message.apply("block" if actual == State.BLOCKED else "promote")

    def check(self) -> None:
        rows = self.sql.rows("select id, state, attempt, crashes, lease_holder from all_messages")
        assert len(rows) == len({row[0] for row in rows}), "an id is in two tables"
        actual = {row[0]: row for row in rows}
        assert set(actual) == set(self.model.messages), "a message was lost, or came back"
        assert not self.model.purged & set(actual)
        for message in self.model.messages.values():
            _, state, attempt, crashes, holder = actual[message.id]
            assert state == message.state, f"{message} is {state}"
            assert (attempt, crashes) == (message.attempt, message.crashes), (
                f"{message}: attempt {attempt}, crashes {crashes}"
            )
            assert 0 <= attempt <= message.max_attempts and crashes <= CRASH_LIMIT
            if message.state is State.RUNNING:
                assert holder == message.holder, f"{message} is held by {holder}"
            if message.state is State.BLOCKED:
                assert message.key and self.model.holders(message.key), f"{message} waits for nobody"
        assert violations(self.sql) == []

    def drain(self) -> None:
        """Everything that lives comes to an end: nothing is stuck."""
        for message in self.model.in_state(State.DEAD):
            self.sql.rows("select purge_dead_letters(array[%s::bigint])", message.id)
        for lease_id, token in self.sql.rows(
            "select id, lease_token from message_queue where state = 'running'"
        ):
            self.call("complete", lease_id, token)
        while leases := self.sql.claim(10, holder=UUID(int=9)):
            self.sql.complete(*leases)
        assert self.sql.rows("select id, state from message_queue") == []


def run(sql: Sql, seed: int, steps: int) -> None:
    walk = Walk(sql, seed)
    try:
        for _ in range(steps):
            walk.step()
        walk.drain()
    except BaseException as error:
        error.add_note(f"seed {seed}, last commands: " + " | ".join(walk.done[-15:]))
        raise


@pytest.mark.parametrize("seed", range(4))
def test_a_walk_over_the_life_of_messages_keeps_every_promise(sql: Sql, seed: int) -> None:
    run(sql, seed, steps=150)


@pytest.mark.slow
@pytest.mark.oldest_and_newest
@pytest.mark.parametrize("seed", range(100, 108))
def test_a_long_walk_over_the_life_of_messages_keeps_every_promise(sql: Sql, seed: int) -> None:
    run(sql, seed, steps=500)


@pytest.mark.slow
def test_the_walk_notices_an_attempt_that_is_not_given_back(
    own_clients: Callable[..., Sql], any_database: Any
) -> None:
    """The mutation: a release that keeps the attempt is found within a few walks."""
    from tests.sql.mutations import break_function

    break_function(any_database, "release_messages", "attempt = m.attempt - 1", "attempt = m.attempt")
    client = own_clients()
    client.connection.autocommit = False
    with pytest.raises(AssertionError, match="attempt"):
        for seed in range(10):
            run(client, seed, steps=150)
            client.connection.rollback()
