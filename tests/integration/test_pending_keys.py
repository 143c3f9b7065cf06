"""Q7b from Python: every driver, actors with debounce, the command line."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

import packhorse
from packhorse.testing import captured
from packhorse.worker.errors import InvalidArgument
from tests.integration.test_enqueue_in_transaction import ASYNC, SYNC
from tests.support.cli import Cli

pytestmark = pytest.mark.one_database

BURST = {"conversation_key": "wa:1", "debounce": 3600, "max_wait": 7200}


def gathered(database, message_id):
    return database.value("select payload -> 'messages' from message_queue where id = %s", message_id)


@pytest.mark.parametrize("driver", SYNC, ids=lambda driver: driver.__name__)
def test_a_burst_by_every_synchronous_driver(database, driver):
    with driver(database) as (connection, commit, _):
        answers = [packhorse.enqueue(connection, "reply", {"n": n}, **BURST) for n in (1, 2)]
        commit()
    first, second = answers
    assert (first.duplicate, first.merged) == (False, False)
    assert (second.id, second.duplicate, second.merged) == (first.id, True, True)
    assert gathered(database, first.id) == [{"n": 1}, {"n": 2}]
    assert database.value("select gathers_until - created_at > interval '7199 s' from message_queue")


@pytest.mark.parametrize("driver", ASYNC, ids=lambda driver: driver.__name__)
def test_a_burst_by_every_asynchronous_driver(database, driver):
    async def scenario():
        async with driver(database) as (connection, commit, _):
            answers = [await packhorse.enqueue_async(connection, "reply", {"n": n}, **BURST) for n in (1, 2)]
            await commit()
            return answers

    first, second = asyncio.run(scenario())
    assert (second.id, second.duplicate, second.merged) == (first.id, True, True)
    assert gathered(database, first.id) == [{"n": 1}, {"n": 2}]


@pytest.fixture
def reply(database):
    """A debounced actor."""
    broker = packhorse.PostgresBroker(database.url)

    @packhorse.actor(broker=broker, debounce=3600, max_wait=7200)
    def reply(messages: list[dict[str, int]]) -> None:
        """Never run here."""

    yield reply
    broker.close()


def test_what_is_sent_to_a_debounced_actor_gathers(database, reply):
    for n in (1, 2):
        reply.send_with_options(args=([{"n": n}],), conversation_key="wa:1")
    asyncio.run(reply.send_with_options_async(kwargs={"messages": [{"n": 3}]}, conversation_key="wa:1"))
    assert database.query("select payload from message_queue") == [
        ({"messages": [{"n": 1}, {"n": 2}, {"n": 3}]},)
    ]


def test_a_message_may_say_another_window(database, reply):
    reply.send_with_options(args=([{}],), pending_key="k", debounce=60, max_wait=60)
    assert database.value("select run_at < clock_timestamp() + interval '61 s' from message_queue")


def test_a_debounced_actor_without_a_key_says_what_is_missing(reply):
    with pytest.raises(InvalidArgument) as refused:
        reply.send([{"n": 1}])
    assert refused.value.field == "pending_key"


def test_bulk_enqueue_names_what_it_does_not_do(reply, database):
    with pytest.raises(InvalidArgument, match="debounce"):
        reply.broker.enqueue_many([reply.message([{"n": 1}])])
    with psycopg.connect(database.url) as connection:
        for name, value in {
            "pending_key": "k",
            "when_pending": "return",
            "debounce": 1,
            "max_wait": 1,
        }.items():
            with pytest.raises(InvalidArgument, match=name):
                packhorse.enqueue_payloads(connection, "reply", [{}], **{name: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("debounce", 86401),
        ("debounce", -1),
        ("debounce", "3"),
        ("max_wait", 86401),
        ("when_pending", "keep"),
        ("pending_key", ""),
    ],
)
def test_what_can_be_seen_here_is_refused_here(option, value):
    with pytest.raises(InvalidArgument) as refused:
        packhorse.enqueue(None, "reply", {}, **{option: value})
    assert refused.value.field == option


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"max_wait": 3}, "max_wait"),
        ({"debounce": 3, "max_wait": 2}, "max_wait"),
        ({"debounce": 90000}, "debounce"),
    ],
)
def test_an_actor_with_a_window_that_cannot_be_is_refused(database, options, field):
    broker = packhorse.PostgresBroker(database.url)
    with pytest.raises(InvalidArgument) as refused:

        @packhorse.actor(broker=broker, **options)
        def reply(messages: list[dict[str, int]]) -> None:
            """Never declared."""

    assert refused.value.field == field


def test_a_debounced_actor_takes_messages(database):
    broker = packhorse.PostgresBroker(database.url)
    with pytest.raises(InvalidArgument, match="messages"):

        @packhorse.actor(broker=broker, debounce=3)
        def reply(text: str) -> None:
            """Never declared."""


def test_a_test_sees_what_was_said():
    with captured() as sent:
        packhorse.enqueue(
            None, "reply", {"n": 1}, pending_key="k", when_pending="append", debounce=3, max_wait=9
        )
    message = sent.one()
    assert (message.pending_key, message.when_pending, message.debounce, message.max_wait) == (
        "k",
        "append",
        3,
        9,
    )


@pytest.mark.slow
def test_the_command_line_says_what_became_of_it(database, tmp_path):
    def cli(payload, *options):
        return Cli(tmp_path, database.url)("enqueue", "reply", payload, "--allow-unknown-type", *options)

    burst = ("--conversation-key", "wa:1", "--debounce", "1h", "--max-wait", "2h")
    first = cli('{"n": 1}', *burst, "--json")
    number = first.document["id"]
    assert first.document == {"id": number, "duplicate": False, "merged": False}
    assert cli('{"n": 2}', *burst).out.startswith(f"{number} merged")
    once = ("--pending-key", "k", "--when-pending", "return")
    cli("{}", *once)
    assert "duplicate" in cli("{}", *once).out
    refused = cli("{}", "--debounce", "2d", "--pending-key", "k")
    assert refused.code == 2 and "debounce" in refused.err
