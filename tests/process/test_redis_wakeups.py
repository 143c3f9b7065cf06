"""Q10: where LISTEN cannot work, idle workers hear of messages by Redis; without it they poll."""

from __future__ import annotations

import json

import dramatiq
import pytest

from packhorse import PostgresBroker
from packhorse.worker.config import load_settings
from packhorse.worker.db.connection import connect
from packhorse.worker.store import wakes as store
from tests.support.accounting import effects, wait_for_end
from tests.support.harness import House
from tests.support.pgbouncer import PROGRAM, PgBouncer
from tests.support.redis import Redis
from tests.support.waiting import wait_until
from tests.web.test_enqueue_api import ORDER, Api

pytestmark = pytest.mark.slow

#: Far longer than any of these tests waits: what starts in time was not found by polling.
LONG_POLL = 60
SLEEPING = "select coalesce(max(wake_until) > clock_timestamp(), false) from queue_wakeups"
LISTENERS = "select pid from pg_stat_activity where application_name = 'packhorse listen' and datname = current_database()"


@pytest.fixture
def redis(tmp_path):
    server = Redis(tmp_path)
    yield server
    server.kill()


@pytest.fixture
def bouncer(server, tmp_path):
    if PROGRAM is None:
        pytest.skip("PgBouncer is not installed (Debian: apt-get install pgbouncer)")
    bouncer = PgBouncer(server, tmp_path)
    yield bouncer
    bouncer.close()


@pytest.fixture
def producer(database, redis):
    """A producer whose workers are woken by Redis."""
    broker = PostgresBroker(
        settings=load_settings({}, database_url=database.url, wakeups="redis", redis_url=redis.url)
    )
    yield broker
    broker.close()


@pytest.fixture
def published(database, redis, producer):
    """What producers have published since it was asked last."""
    with producer.pool.connection() as connection:
        channel = store.wake_channel(connection)
    heard = redis.client().pubsub()
    heard.subscribe(channel)
    assert heard.get_message(timeout=5)["type"] == "subscribe"

    def take():
        redis.client().publish(channel, "end")
        found = []
        while (text := heard.get_message(timeout=5)["data"]) != b"end":
            found.append(text.decode().split("@")[0])  # without the number that says whose turn it is
        return found

    return take


def effect(key):
    return dramatiq.Message("default", "effect", (), {"key": key}, {})


def subscribers(redis):
    """How many processes would hear a message of any channel."""
    client = redis.client()
    return sum(
        client.pubsub_numsub(*client.pubsub_channels())[n][1] for n in range(len(client.pubsub_channels()))
    )


def said(daemon, event):
    return [
        line
        for line in map(json.loads, daemon.log.splitlines())
        if line.get("event") == event and line.get("use") == "wakeups"
    ]


def test_behind_a_pooler_a_producer_wakes_a_worker_that_sleeps(
    database, bouncer, ledger, redis, start_daemon
):
    url = bouncer.url(database.name)
    daemon = start_daemon(
        url, ledger, pooler="true", redis_url=redis.url, poll_seconds=LONG_POLL
    ).wait_ready()
    producer = PostgresBroker(settings=load_settings({}, database_url=url, pooler=True, redis_url=redis.url))
    wait_until(lambda: database.value(SLEEPING), 20, "it asks to be woken")
    for number in range(5):
        producer.enqueue(effect(f"m{number}"))
        wait_until(lambda number=number: ledger.counts("effect")[f"m{number}"] == 1, 15)
    producer.enqueue_many([effect(f"b{number}") for number in range(3)])
    wait_for_end(database)
    assert database.query(LISTENERS) == []
    producer.close()
    assert daemon.stop() == 0


def test_a_producer_publishes_after_its_commit_and_only_when_somebody_sleeps(database, producer, published):
    producer.enqueue(effect("nobody"))
    producer.enqueue_many([effect("nobody")])
    assert published() == []
    with connect(database.url) as worker:
        store.announce_sleep(worker, ["default"], 30)
        producer.enqueue(effect("asleep"))
        producer.enqueue(dramatiq.Message("default", "effect", (), {"key": "k"}, {"conversation_key": "c"}))
        producer.enqueue_many([effect("asleep"), effect("asleep")])
        assert published() == ["default"] * 3
        store.attend_queues(worker, ["default"], ["effect"], 30)
        producer.enqueue(effect("watched"))
        producer.enqueue_many([effect("watched")])
        assert published() == []


@pytest.mark.parametrize("redis_answers", [True, False])
def test_the_http_door_publishes_when_somebody_sleeps_and_fails_for_no_redis(
    database, redis, producer, published, redis_answers
):
    api = Api(database, wakeups="redis", redis_url=redis.url)
    try:
        assert api.post(ORDER).status_code == 201
        assert published() == []
        with connect(database.url) as worker:
            store.announce_sleep(worker, ["orders"], 60)
        if not redis_answers:
            redis.kill()
        sent = [api.post([ORDER, ORDER]), api.post(ORDER), api.post({**ORDER, "queue": "mail"})]
        assert [answer.status_code for answer in sent] == [201] * 3
        assert api.post({**ORDER, "queue": "secret"}).status_code == 403
        assert not redis_answers or published() == ["orders"] * 2
    finally:
        api.close()


@pytest.mark.parametrize("fails", [False, True], ids=["committed", "rolled back"])
def test_what_a_transactional_handler_sends_is_published_once_it_is_committed(
    database, redis, monkeypatch, published, fails
):
    house = House("runtime", database, monkeypatch, wakeups="redis", redis_url=redis.url)
    database.query("select declare_queue('elsewhere')")
    with connect(database.url) as worker:
        store.announce_sleep(worker, ["elsewhere"], 30)

    @dramatiq.actor(transactional=True, max_retries=0)
    def hand_on():
        house.broker.enqueue(dramatiq.Message("elsewhere", "other", (), {}, {}))
        assert "elsewhere" not in published(), "nobody could see the message"
        if fails:
            raise RuntimeError("rolled back")

    hand_on.send()
    house.start()
    wait_until(lambda: not database.value("select count(*) from message_queue where queue = 'default'"))
    wait_until(lambda: ("elsewhere" in published()) is not fails, 10)
    house.stop()


def test_a_redis_that_is_away_at_the_start_is_said_once_and_used_when_it_is_there(
    database, ledger, tmp_path, start_daemon
):
    redis = Redis(tmp_path, started=False)
    daemon = start_daemon(
        database, ledger, wakeups="redis", redis_url=redis.url, poll_seconds=0.5, log_format="json"
    ).wait_ready()
    producer = PostgresBroker(
        settings=load_settings({}, database_url=database.url, wakeups="redis", redis_url=redis.url)
    )
    for number in range(10):
        producer.enqueue(effect(f"m{number}"))
    wait_for_end(database)
    redis.start()
    try:
        wait_until(lambda: subscribers(redis) == 1, 15, "it subscribes")
        assert len(said(daemon, "redis_unavailable")) == len(said(daemon, "redis_recovered")) == 1
        assert daemon.stop() == 0
    finally:
        redis.kill()
        producer.close()


@pytest.mark.parametrize("ends", ["killed", "frozen"])
def test_a_redis_that_goes_away_and_comes_back_costs_wake_ups_only(
    database, ledger, redis, producer, start_daemon, ends
):
    daemon = start_daemon(
        database,
        ledger,
        wakeups="redis",
        redis_url=redis.url,
        poll_seconds=1,
        log_format="json",
        metrics_port=0,
    ).wait_ready()
    wait_until(lambda: subscribers(redis) == 1, 15, "it subscribes")
    for turn in range(2):
        redis.kill() if ends == "killed" else redis.freeze()
        for number in range(20):  # those that sleep are not told, and no enqueue fails
            producer.enqueue(effect(f"{turn}-{number}"))
        wait_for_end(database)
        wait_until(lambda turn=turn: len(said(daemon, "redis_unavailable")) == turn + 1, 20)
        redis.start() if ends == "killed" else redis.thaw()
        wait_until(lambda turn=turn: len(said(daemon, "redis_recovered")) == turn + 1, 20)
        wait_until(lambda: subscribers(redis) == 1, 15, "it subscribes again")
    assert "Traceback" not in daemon.log and "service_failed" not in daemon.log
    assert daemon.stop() == 0


def test_one_process_repeats_what_sql_producers_notify_and_another_follows_it(
    database, ledger, redis, start_daemon
):
    daemons = [
        start_daemon(
            database,
            ledger,
            wakeups="redis",
            listen_url=database.url,
            redis_url=redis.url,
            poll_seconds=LONG_POLL,
        ).wait_ready()
        for _ in range(2)
    ]
    wait_until(lambda: subscribers(redis) == 2, 15, "both subscribe")
    for turn in range(2):
        wait_until(lambda: len(database.query(LISTENERS)) == 1, 30, "one of them listens")
        wait_until(lambda: database.value(SLEEPING), 20, "they ask for NOTIFY")
        effects(database, 1, f"sql{turn}-")
        wait_until(lambda turn=turn: ledger.counts("effect")[f"sql{turn}-0"] == 1, 15)
        if not turn:
            key = redis.client().keys("*:repeater")[0]
            holder = redis.client().get(key).decode()
            pid = database.value("select pid from workers where id = %s", holder)
            gone = next(daemon for daemon in daemons if pid in daemon.children())
            daemons.remove(gone)
            gone.close()
    assert [daemon.stop() for daemon in daemons] == [0]


def test_what_came_while_redis_was_away_is_looked_for_when_it_is_back(
    database, ledger, redis, producer, start_daemon
):
    daemon = start_daemon(
        database, ledger, wakeups="redis", redis_url=redis.url, poll_seconds=LONG_POLL, log_format="json"
    ).wait_ready()
    wait_until(lambda: subscribers(redis) == 1 and database.value(SLEEPING), 20, "it sleeps")
    redis.kill()
    wait_until(lambda: said(daemon, "redis_unavailable"), 20)
    producer.enqueue(effect("between"))
    redis.start()
    wait_until(lambda: ledger.counts("effect")["between"] == 1, 20)
    assert daemon.stop() == 0
