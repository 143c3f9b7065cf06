"""Parts of a worker on RabbitMQ: acknowledging in few frames, lines, what runs alone, headers of a retry."""

from __future__ import annotations

import random
import time
from collections import deque
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

pytest.importorskip("pika")

from pika import BasicProperties

from packhorse.worker.amqp.acks import Acks
from packhorse.worker.amqp.deliveries import Delivery, Lines
from packhorse.worker.amqp.places import Places
from packhorse.worker.amqp.topology import DELAYS, next_delay
from packhorse.worker.runtime.claims import Kind
from packhorse.worker.store.forwarded import ForwardedNote

HEADERS = {
    "packhorse-queue": "orders",
    "packhorse-attempt": 1,
    "packhorse-crashes": 0,
    "packhorse-priority": 5,
    "packhorse-run-at": "2026-01-01 00:00:00+00",
    "packhorse-created-at": f"{time.time():.6f}",
}
BODY = (
    b'{"queue_name":"orders","actor_name":"works","args":[],"kwargs":{"key":1},"options":{},"message_id":"m"}'
)


def delivery(tag=1, keyed=False, key=None, message_id="7", **headers):
    said = {**HEADERS, **headers} | ({"packhorse-conversation-key": key} if key else {})
    return Delivery(
        tag, 1, "orders", keyed, BODY, BasicProperties(message_id=message_id, type="works", headers=said)
    )


class Channel:
    """What a channel is told; the broker refuses a tag that it does not wait for."""

    def __init__(self):
        self.open: set[int] = set()
        self.acked: set[int] = set()
        self.frames = 0

    def basic_ack(self, tag, multiple=False):
        assert tag in self.open, "PRECONDITION_FAILED: unknown delivery tag"
        gone = {other for other in self.open if other <= tag} if multiple else {tag}
        self.acked |= gone
        self.open -= gone
        self.frames += 1

    def basic_nack(self, tag, multiple, requeue):
        assert requeue and not multiple
        assert tag in self.open, "PRECONDITION_FAILED: unknown delivery tag"
        self.open.discard(tag)


@pytest.mark.parametrize("seed", range(20))
def test_exactly_what_is_done_is_acknowledged_whatever_the_order(seed):
    chance = random.Random(seed)
    channel = Channel()
    acks = Acks(channel)
    done, given_back, waiting, tag = set(), set(), [], 0
    for _ in range(400):
        what = chance.random()
        if what < 0.45 or not waiting:
            tag += 1
            channel.open.add(tag)
            acks.delivered(tag)
            waiting.append(tag)
        elif what < 0.85:
            found = waiting.pop(chance.randrange(len(waiting)))
            acks.done(found)
            done.add(found)
        elif what < 0.9:
            found = waiting.pop(chance.randrange(len(waiting)))
            acks.give_back(found)
            given_back.add(found)
        else:
            acks.flush()
            assert channel.acked == done
    acks.flush()
    assert channel.acked == done and channel.open == set(waiting)
    assert not channel.acked & given_back


def test_many_that_are_done_in_order_are_one_frame():
    channel = Channel()
    acks = Acks(channel)
    for tag in range(1, 101):
        channel.open.add(tag)
        acks.delivered(tag)
        acks.done(tag)
    acks.flush()
    assert (channel.frames, len(channel.acked)) == (1, 100)


def test_a_line_gives_one_at_a_time_in_order_and_other_lines_go_on():
    lines = Lines()
    first, second, third = (delivery(tag, True, "k", str(tag)) for tag in (1, 2, 3))
    other = delivery(4, True, "other", "4")
    assert [lines.enter(found) for found in (first, second, other, third)] == [True, False, True, False]
    assert lines.next(first) is second
    assert lines.next(other) is None
    assert lines.next(second) is third
    assert lines.next(third) is None
    assert lines.enter(first), "the line is free again"


def test_copies_of_a_message_without_a_conversation_stand_in_one_line():
    lines = Lines()
    assert lines.enter(delivery(1))
    assert not lines.enter(delivery(2))
    assert lines.enter(delivery(3, message_id="8"))


def test_a_line_whose_connection_is_lost_keeps_its_first_only_while_it_runs():
    lines = Lines()
    running, waiting, idle = (
        delivery(1, True, "a", "1"),
        delivery(2, True, "a", "2"),
        delivery(3, True, "b", "3"),
    )
    for found in (running, waiting, idle):
        lines.enter(found)
    lines.keep({running.line})
    again = delivery(1, True, "a", "2")
    assert not lines.enter(again), "it waits for what still runs"
    assert lines.enter(delivery(2, True, "b", "3"))
    assert lines.next(running) is again


@dataclass
class Pool:
    ready: deque = field(default_factory=deque)

    def put(self, messages):
        self.ready.extend(messages)


def message(name="a", crashes=0):
    return SimpleNamespace(message_type=name, actor_name="", crashes=crashes)


def test_a_message_of_two_crashes_runs_when_nothing_else_does():
    pool = Pool()
    places = Places([Kind(pool, ["a"])], ["a"])
    running, suspect, later = message(), message(crashes=2), message()
    places.put(running)
    places.feed()
    places.put(suspect)
    places.put(later)
    places.feed()
    assert list(pool.ready) == [running], "it waits for what runs, and nothing else begins"
    pool.ready.clear()
    places.finished(running)
    places.feed()
    assert list(pool.ready) == [suspect]
    pool.ready.clear()
    places.feed()
    assert not pool.ready, "nothing begins beside it"
    places.finished(suspect)
    places.feed()
    assert list(pool.ready) == [later]


def test_an_actor_with_a_limit_has_no_more_at_once_and_a_pattern_finds_its_place():
    pool = Pool()
    places = Places([Kind(pool, ["a"]), Kind(pool, ["order.*"], 2)], ["a", "order.*"])
    limited = [message("order.paid") for _ in range(3)]
    for found in limited:
        assert places.put(found) and found.actor_name == "order.*"
    places.feed()
    assert list(pool.ready) == limited[:2]
    assert not places.put(message("nobody"))
    pool.ready.popleft()
    places.finished(limited[0])
    places.feed()
    assert list(pool.ready) == limited[1:]
    assert places.take_back() == [limited[2], limited[1]] and places.given == 0


def test_a_closed_place_gives_nothing():
    pool = Pool()
    places = Places([Kind(pool, ["a"])], ["a"])
    places.put(message())
    places.closed = True
    places.feed()
    assert not pool.ready and len(places.take_back()) == 1


def test_a_retry_carries_attempt_wait_history_and_changed_options():
    found = delivery()
    attempt = found.attempt(0.0)
    attempt.decode()
    attempt.options |= {"mine": 1, "retries": 3}
    found.renew(attempt, 2, 1.5, [{"attempt": 1}])
    again = Delivery(2, 1, "orders", False, found.body, found.properties)
    message = again.attempt(0.0)
    message.decode()
    assert (message.attempt, again.wait_seconds, again.history) == (2, 1.5, [{"attempt": 1}])
    assert message.options == {"mine": 1, "retries": 1}
    assert again.id == message.id == 7


def test_what_postgres_knows_goes_along_when_a_message_is_put_off():
    """It comes back as a message of its own, of which Postgres is not asked."""
    found = delivery(**{"packhorse-crashes": 1, "packhorse-history": '[{"event": "retry"}]'})
    found.note = ForwardedNote(7, attempt=2, crashes=2, history='[{"event": "crash"}]')
    found.wait_from_now(30)
    again = Delivery(2, 1, "orders", False, found.body, found.properties)
    message = again.attempt(0.0)
    assert (message.attempt, message.crashes) == (3, 3), "a crash before it was relayed counts, too"
    assert [entry["event"] for entry in again.history] == ["retry", "crash"]
    again.note = ForwardedNote(
        7, attempt=2, crashes=3, history='[{"event": "crash"}, {"event": "crash", "at": 1}]'
    )
    assert again.attempt(0.0).crashes == 4, "those that went along are not counted twice"
    assert [entry["event"] for entry in again.history] == ["retry", "crash", "crash"]


@pytest.mark.parametrize(
    ("headers", "note", "early"),
    [
        ({}, {}, True),
        ({"x-delivery-count": 1}, {"crashes": 1}, False),
        ({"x-delivery-count": 2}, {"crashes": 1}, True),
        ({"x-delivery-count": 1, "packhorse-crashed": 1}, {"crashes": 1}, True),
        ({"x-delivery-count": 1, "packhorse-crashed": 1}, {"crashes": 2}, False),
        ({}, {"is_over": True}, False),
        ({}, {"wait_seconds": 9.0}, False),
    ],
)
def test_postgres_is_asked_again_once_when_it_does_not_know_why_a_message_comes_again(headers, note, early):
    found = delivery(**headers)
    assert found.is_early(ForwardedNote(7, **note)) is early
    assert not (early and found.is_early(ForwardedNote(7)))


@pytest.mark.parametrize("seconds", [0.0, 0.4, 1, 1.5, 7, 30, 59, 3600, 100_000])
def test_a_wait_takes_few_steps_and_never_too_long(seconds):
    left, steps = float(seconds), 0
    while (step := next_delay(left)) is not None:
        assert step in DELAYS and step <= left
        left -= step
        steps += 1
    assert 0 <= left < 1 and steps <= 8 + seconds // 3600


@pytest.mark.parametrize("header", ["soon", None, "nan", -5, [1]])
def test_a_wait_that_cannot_be_read_is_none(header):
    assert delivery(**{"packhorse-wait": header}).wait_seconds == 0
