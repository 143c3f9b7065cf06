"""The example as a person runs it: a real subprocess, its exit code, its sums, its order; and that a broken
sum is noticed.

The numbers follow from examples/whatsapp/feed.py: six conversations, sixteen common deliveries and one
special each.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest

from examples.whatsapp import assistant_api, salon
from examples.whatsapp.assistant_api import BUSY_EVERY, DOWN_AT, ERROR_EVERY, AssistantApi
from examples.whatsapp.events import Events
from examples.whatsapp.feed import BURST, COMMON, PEOPLE, SPECIAL, Deliveries
from examples.whatsapp.office import Office
from examples.whatsapp.order import OrderBook
from examples.whatsapp.summary import Assistant, Summary
from examples.whatsapp.upkeep import TASKS
from examples.whatsapp.webhook import QUEUE, ingest, read, signature_fits
from packhorse.platform import add_message, get_or_create_session
from packhorse.worker.db import migrate
from packhorse.worker.db.connection import connect
from packhorse.worker.db.embedded import running_url
from tests.support.postgres import Database
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
GOOD = Summary(
    received=11,
    enqueued=6,
    merged=1,
    deduplicated=3,
    refused=1,
    done=4,
    dead=1,
    cancelled=1,
    live=0,
    owed=frozenset("abc"),
    answered=frozenset("abc"),
    conversations=2,
    assistant=Assistant(
        paid={"a": 1, "b": 1},
        done=frozenset("ab"),
        reused=1,
        outages=1,
        opened=2,
        state="closed",
        busy=1,
        handed_back=2,
    ),
)


class Example:
    """`python -m examples.whatsapp <mode>` with its output in a file; gone at the end of the test, with
    everything below it.
    """

    def __init__(self, mode: str, folder: Path, **environment: str) -> None:
        self._path = folder / "output"
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PACKHORSE_", "DATABASE_URL"))
        }
        with self._path.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "examples.whatsapp", mode],
                cwd=ROOT,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=clean | {"PACKHORSE_DATA_DIR": str(folder / "data")} | environment,
            )

    @property
    def output(self) -> str:
        return self._path.read_text()

    def numbers(self, first_word: str) -> dict[str, int]:
        """The last summary line that begins with `first_word`, as name -> number."""
        line = [line for line in self.output.splitlines() if re.match(rf"{first_word} \d+ = ", line)][-1]
        return {name: int(number) for name, number in re.findall(r"(still in the queue|[a-z]+) (\d+)", line)}

    def hint(self, pattern: str) -> list[str]:
        """The words of the hint line that ends with `pattern`, once it is printed."""
        found = wait_until(
            lambda: re.search(rf"^  (\S+.*{pattern}.*)$", self.output, re.MULTILINE),
            60,
            f"the hint for {pattern}",
        )
        return shlex.split(found.group(1))

    def below(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def close(self) -> None:
        for process in [*(self.below() if self.process.poll() is None else []), self.process]:
            try:
                process.kill()
            except (psutil.NoSuchProcess, ProcessLookupError):
                pass
        self.process.wait(10)


@pytest.fixture
def database(database: Database) -> Database:
    """With the platform, made by its owner: what works on it may not."""
    owner = connect(database.admin_url, deadline_seconds=120)
    migrate.up(owner, sets=["platform"])
    owner.close()
    return database


@pytest.fixture
def folder():
    """A folder that the embedded server's user can get into: pytest closes its own for everybody else."""
    folder = Path(tempfile.mkdtemp(prefix="ph-whatsapp-", dir="/tmp"))
    yield folder
    pid_file = folder / "data/postgres/postmaster.pid"
    if pid_file.exists():  # only after a failure: the example stops its server
        server = psutil.Process(int(pid_file.read_text().split()[0]))
        server.terminate()
        server.wait(20)
    shutil.rmtree(folder)


@pytest.fixture
def start_example(folder):
    started: list[Example] = []

    def start(mode: str, **environment: str) -> Example:
        started.append(Example(mode, folder, **environment))
        return started[-1]

    yield start
    for example in started:
        example.close()


@pytest.mark.slow
def test_demo_on_the_embedded_server_ends_by_itself_and_adds_up(start_example, folder):
    example = start_example("demo")
    # the two ways to look that it names work while it runs, word by word
    environment = os.environ | {"PACKHORSE_DATA_DIR": str(folder / "data")}
    for command in (
        [*example.hint("psql"), "-c", "select count(*) from all_messages"],
        example.hint(" stats"),
    ):
        result = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert result.returncode == 0, result.stderr
    assert example.process.wait(90) == 0, example.output
    received, enqueued = example.numbers("received"), example.numbers("enqueued")
    common = len(PEOPLE) * (len(COMMON) + 2)  # text_batch holds three messages
    bursts = len(PEOPLE) * BURST
    # of the malformed delivery the good half
    assert received["enqueued"] + received["merged"] == common + bursts + len(SPECIAL)
    assert received["received"] == sum(
        received[name] for name in ("enqueued", "merged", "deduplicated", "refused")
    )
    assert received["merged"] > 0
    assert received["deduplicated"] > 0
    assert enqueued == {
        "enqueued": received["enqueued"],
        "done": received["enqueued"] - 2,
        "dead": 1,
        "cancelled": 1,
    }
    assert "order kept in 6 of 6 conversations" in example.output
    assert "everything adds up" in example.output
    # and the good half of the malformed delivery; those in a row are one question
    texts = len(PEOPLE) * (COMMON.count("text") + 3 + BURST) + 1 - received["merged"]
    found = re.search(
        r"assistant: (\d+) answers paid for (\d+) messages; (\d+) of them used again by a later attempt",
        example.output,
    )
    assert found is not None and int(found[1]) == int(found[2]) == texts and int(found[3]) > 0, example.output
    assert re.search(
        r"assistant: outages 1, breaker opened [1-9]\d* and closed again, dead letters of it 0",
        example.output,
    )
    assert re.search(
        r"bookings: 6 flows begun, [56] reminded and completed, [01] cancelled by the person", example.output
    ), example.output
    assert f"memory: {2 * texts} messages of {texts} questions in the sessions" in example.output
    assert "guest checkout: 1 booking moved to the customer who registered afterwards" in example.output
    assert re.search(
        r"person \+16505\*\*\*106: \d+ rows of \d+ tables exported, \d+ erased, 0 left", example.output
    )
    assert re.search(
        r"assistant: answers 429 [12], messages parked [1-9]\d* without spending an attempt, all resumed",
        example.output,
    )
    for sight in (
        "the assistant is down for 4 s",
        "breaker of the assistant is open",
        "breaker of the assistant is closed",
    ):
        assert sight in example.output
    for sight in (
        "answers 500",
        "answers 429",
        "answers 503",
        "takes 2 s",
        "dead after attempt 4: ValueError",
        "messages.id: missing",
    ):
        assert sight in example.output
    assert running_url(folder / "data") is None


@pytest.mark.slow
def test_demo_with_database_url_uses_that_database_and_leaves_no_process(start_example, database):
    example = start_example("demo", DATABASE_URL=database.url)
    below: set[psutil.Process] = set()
    wait_until(lambda: below.update(example.below()) or len(below) >= 3, 30, "parent and two workers")
    assert example.process.wait(90) == 0, example.output
    assert not [
        process for process in below if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    ]
    enqueued = example.numbers("enqueued")
    states = Counter(
        dict(
            database.query(
                "select state, count(*) from all_messages where correlation_id not like '%:%' group by 1"
            )
        )
    )
    ended = dict(database.query("select task, state from maintenance_runs"))
    assert {task: ended.get(task) for task in TASKS} == dict.fromkeys(TASKS, "succeeded"), (
        "maintenance ran beside the handlers"
    )
    assert states == {state: enqueued[state] for state in ("done", "dead", "cancelled")}
    assert database.query(
        "select count(*) from dead_letters where error_class = 'ValueError' and attempt = 4"
    ) == [(1,)]
    late = "select attempt from message_archive where payload -> 'message' -> 'image' ->> 'caption' = 'The receipt'"
    assert database.value(late) == 3  # failed twice, then worked


def test_run_goes_on_until_ctrl_c_then_drains_and_exits_0(start_example, database):
    example = start_example("run", DATABASE_URL=database.url)
    wait_until(lambda: database.value("select count(*) from message_archive where state = 'done'") >= 5, 60)
    page = re.search(r"the page, in a browser: (http://\S+)", example.output)
    assert page, example.output
    assert "whatsapp" in httpx.get(f"{page[1]}queues", timeout=20).text
    example.process.send_signal(signal.SIGINT)
    assert example.process.wait(60) == 0, example.output
    assert database.value("select count(*) from message_queue where state = 'running'") == 0
    assert database.value("select count(*) from workers") == 0
    enqueued = example.numbers("enqueued")
    assert enqueued["enqueued"] == database.value("select count(*) from all_messages")
    assert "PROBLEM" not in example.output


def test_interrupted_demo_is_not_a_success(start_example, database):
    example = start_example("demo", DATABASE_URL=database.url)
    wait_until(lambda: "received" in example.output, 30)
    example.process.send_signal(signal.SIGTERM)
    assert example.process.wait(60) == 1
    assert "PROBLEM: interrupted before its end" in example.output


@pytest.mark.slow
def test_second_run_on_one_database_is_refused_because_it_would_take_the_firsts_messages(
    start_example, database, tmp_path
):
    first = start_example("run", DATABASE_URL=database.url)
    wait_until(lambda: database.value("select count(*) from workers") == 2, 60, "two workers")
    other = tmp_path / "other"
    other.mkdir()
    second = Example("demo", other, DATABASE_URL=database.url)
    try:
        assert second.process.wait(30) == 1
        assert "2 worker processes of another run are at work on this database" in second.output
    finally:
        second.close()
    assert first.process.poll() is None


@pytest.mark.slow
def test_workers_end_when_the_example_is_killed(start_example, database):
    example = start_example("run", DATABASE_URL=database.url)
    wait_until(lambda: database.value("select count(*) from workers") == 2, 60, "two workers")
    below = example.below()
    example.process.kill()
    wait_until(
        lambda: not [p for p in below if p.is_running() and p.status() != psutil.STATUS_ZOMBIE],
        30,
        "no process is left",
    )


def test_unreachable_database_is_one_line_not_a_traceback(start_example):
    example = start_example("demo", DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
    assert example.process.wait(30) == 1
    assert "error: " in example.output and "Traceback" not in example.output


# -- the summary must be able to fail ------------------------------------------------------------------


def test_good_summary_has_no_problems():
    assert GOOD.problems() == []


@pytest.mark.parametrize(
    "broken",
    [
        {"received": 12},
        {"enqueued": 7, "received": 12},
        {"merged": 2},
        {"merged": 0, "received": 10},
        {"done": 3},
        {"dead": 0},
        {"cancelled": 0},
        {"deduplicated": 2},
        {"refused": 2},
        {"live": 1, "done": 3},
        {"answered": frozenset("ab")},
        {"answered": frozenset("abcd")},
        {"out_of_order": ["1 after 2"]},
        {"repeated": ["1 twice"]},
        {"received": 1, "enqueued": 0, "deduplicated": 0, "refused": 0, "done": 0, "dead": 0, "cancelled": 0},
    ],
    ids=lambda broken: " ".join(broken),
)
def test_summary_that_is_wrong_in_any_way_has_a_problem(broken):
    assert replace(GOOD, **broken).problems()


@pytest.mark.parametrize(
    "broken",
    [
        {"paid": {"a": 1, "b": 2}},
        {"paid": {"a": 1}},
        {"paid": {"a": 1, "b": 1, "c": 1}},
        {"dead": 1},
        {"opened": 0},
        {"state": "open"},
        {"state": "half_open"},
        {"handed_back": 0},
        {"resting": 1},
    ],
    ids=lambda broken: " ".join(broken),
)
def test_summary_has_a_problem_when_the_outage_cost_something(broken):
    assert replace(GOOD, assistant=replace(GOOD.assistant, **broken)).problems()


def test_the_assistants_bad_moments_are_the_same_in_each_run(monkeypatch):
    for name in ("ANSWER_SECONDS", "SLOW_SECONDS", "DOWN_SECONDS"):
        monkeypatch.setattr(assistant_api, name, 0.0)
    again = [ERROR_EVERY, 2 * ERROR_EVERY, BUSY_EVERY]
    runs = []
    for _ in range(2):
        spared: list[str] = []
        with AssistantApi(Events(), lambda wamid: wamid != "of an earlier run", spared.append) as api:
            wamids = [f"question {number}" for number in range(1, BUSY_EVERY + 1)]
            wamids.insert(DOWN_AT - 1, "of an earlier run")
            runs.append(
                [api.ask("?", wamid)[0] for wamid in [*wamids, *(f"question {number}" for number in again)]]
            )
            assert api.given() == {f"question {number}": 1 for number in range(1, BUSY_EVERY + 1)}
        # one bad moment each, here and by the Cloud API: four attempts are enough for every message
        assert spared == ["of an earlier run", *(f"question {number}" for number in again)]
    assert runs[0] == runs[1]
    assert {status: runs[0].count(status) for status in (429, 500, 503)} == {429: 1, 500: 2, 503: 1}


@pytest.mark.slow
def test_broken_sum_gives_exit_code_1(start_example, database):
    """A message of the run that vanishes from the database while it runs: the demo must say so."""
    with database.connect(admin=True) as admin:
        admin.execute("""
          create function vanish() returns trigger language plpgsql as 'begin return null; end';
          create trigger vanish before insert on message_archive for each row
            when (new.message_type = 'whatsapp_location') execute function vanish();
        """)
    example = start_example("demo", DATABASE_URL=database.url)
    assert example.process.wait(90) == 1
    assert re.search(r"PROBLEM: enqueued \d+, but the database knows \d+", example.output)


def test_order_book_notices_a_later_message_that_was_first():
    book = OrderBook()
    for wamid in "ab":
        book.announce("123456", wamid)
    book.note("123456", "b", 200)
    book.note("123456", "a", 200)
    assert list(book.out_of_order) == ["123456: message 1 after 2"]


def test_order_book_notices_a_failed_request_out_of_order_and_a_second_reply():
    book = OrderBook()
    for wamid in "ab":
        book.announce("123456", wamid)
    for wamid, status in (("a", 500), ("b", 500), ("a", 200), ("b", 200), ("b", 200)):
        book.note("123456", wamid, status)
    assert len(book.out_of_order) == 1 and len(book.repeated) == 1


# -- the salon and its office --------------------------------------------------------------------------

PHONE = "16505550101"
DAY = datetime.date(2027, 3, 2)


@pytest.fixture
def desk(database):
    """A connection of the worker's role to a salon that is open."""
    connection = connect(database.url)
    with connection.transaction():
        connection.execute("select packhorse.declare_queue(%s)", (QUEUE,))
        salon.open_salon(connection)
    yield connection
    connection.close()


@pytest.fixture
def office(database, desk):
    with closing(Office(lambda: connect(database.url))) as office:
        yield office


def flow(desk) -> tuple:
    query = """select w.status, w.current_step, b.status, b.datetime::date, r.status from workflow_states w
        join bookings b on b.id = (w.workflow_data ->> 'booking_id')::bigint join reminders r on r.booking_id = b.id"""
    return desk.execute(query).fetchone()


def enqueued_reminder(desk) -> tuple[int, str, int]:
    """The only reminder, as its message has it."""
    desk.execute("update reminders set remind_at = clock_timestamp()")
    assert desk.execute("select enqueue_due_reminders()").fetchone() == (1,)
    text, key = desk.execute(
        "select payload, conversation_key from packhorse.message_queue where message_type = 'whatsapp_reminder'"
    ).fetchone()
    payload = json.loads(text)
    assert (key, payload["phone"]) == (f"wa:{PHONE}", PHONE)
    return payload["reminder_id"], payload["workflow_id"], payload["booking_id"]


def test_a_booking_is_reserved_moved_and_confirmed_by_its_reminder(desk):
    with desk.transaction():
        assert salon.reserve(desk, "1", PHONE, DAY) is False
    with desk.transaction():
        assert salon.reserve(desk, "1", f"+{PHONE}", DAY + datetime.timedelta(1)) is True, (
            "one flow, in whatever form the phone is"
        )
    assert flow(desk) == ("active", "reserved", "pending", DAY + datetime.timedelta(1), "pending")
    reminder = enqueued_reminder(desk)
    with desk.transaction():
        assert salon.remind(desk, *reminder) is True
    assert flow(desk) == ("completed", "reminded", "confirmed", DAY + datetime.timedelta(1), "sent")


def test_a_booking_cancelled_after_its_reminder_became_a_message_is_not_reminded_of(desk):
    with desk.transaction():
        salon.reserve(desk, "1", PHONE, DAY)
    reminder = enqueued_reminder(desk)
    with desk.transaction():
        salon.cancel(desk, PHONE)
    with desk.transaction():
        assert salon.remind(desk, *reminder) is False
    assert flow(desk) == ("cancelled", "reserved", "cancelled", DAY, "cancelled")


def test_a_cancelled_booking_is_not_reminded_of(desk):
    assert salon.cancel(desk, PHONE) is False
    with desk.transaction():
        salon.reserve(desk, "1", PHONE, DAY)
    with desk.transaction():
        assert salon.cancel(desk, PHONE) is True
    desk.execute("update reminders set remind_at = clock_timestamp()")
    assert desk.execute("select enqueue_due_reminders()").fetchone() == (0,)
    assert flow(desk) == ("cancelled", "reserved", "cancelled", DAY, "cancelled")


def test_the_office_sees_what_is_missing_in_a_conversation(desk, office):
    session = get_or_create_session(PHONE, "assistant", connection=desk)
    add_message(session.id, "user", "hi", {"wamid": "a"}, connection=desk)
    assert office.look_at_memory(frozenset("a")) == [
        "memory: the sessions hold one side of the conversation only"
    ]
    add_message(session.id, "assistant", "hello", {"wamid": "a"}, connection=desk)
    assert office.look_at_memory(frozenset("a")) == []
    assert len(office.look_at_memory(frozenset("ab"))) == 2, "b is on neither side"
    add_message(session.id, "user", "hi", {"wamid": "a"}, connection=desk)
    assert office.look_at_memory(frozenset("a")) == ["memory: 2 messages of the user for 1 of 1 questions"]


def test_the_office_sees_a_flow_whose_reminder_never_came(desk, office):
    with desk.transaction():
        salon.reserve(desk, "1", PHONE, DAY)
    desk.execute("delete from reminders")
    assert office.wait_for_reminders() == [
        "bookings: 1 flows, but 0 completed and 0 cancelled",
        "bookings: 0 reminders of 1 flows, 0 sent for 0 completed ones",
    ]


def test_a_guest_checks_out_and_a_person_is_forgotten(desk, office):
    assert office.check_out_a_guest() == []
    get_or_create_session(PHONE, "assistant", connection=desk)
    with desk.transaction():
        salon.reserve(desk, "1", PHONE, DAY)
    assert office.forget(PHONE) == []
    assert desk.execute("select count(*) from agent_chat_sessions").fetchone() == (0,)
    assert office.forget(PHONE) == ["person: the export has no session"], "nothing is left of it"


# -- the webhook --------------------------------------------------------------------------------------


@pytest.fixture
def queue_connection(database):
    with database.connect() as connection:
        connection.execute("select declare_queue(%s)", (QUEUE,))
        yield connection


def test_every_payload_file_is_understood_but_the_malformed_item():
    deliveries = Deliveries("ab12")
    for path in sorted((ROOT / "examples/whatsapp/payloads").glob("*.json")):
        refused = [item for item in read(path.read_bytes()) if isinstance(item, Exception)]
        assert len(refused) == (path.stem == "malformed_message_without_id"), path.stem
        assert len(list(read(deliveries.make(path.stem, *PEOPLE[0]).body))) == len(
            list(read(path.read_bytes()))
        )


def test_second_delivery_of_a_webhook_enqueues_nothing(queue_connection, database):
    body = Deliveries("ab12").make("text_batch", *PEOPLE[0]).body
    first, second = ingest(queue_connection, body), ingest(queue_connection, body)
    assert (first.received, len(first.enqueued), first.merged, first.deduplicated) == (3, 1, 2, 0)
    assert (second.received, len(second.enqueued), second.merged, second.deduplicated) == (3, 0, 0, 3)
    assert database.query(
        "select conversation_key, jsonb_array_length(payload -> 'messages') from message_queue"
    ) == [("wa:16505550101", 3)]


def test_five_texts_of_one_person_are_one_question(queue_connection, database):
    deliveries = Deliveries("ab12")
    for _ in range(5):
        ingest(queue_connection, deliveries.make("text", *PEOPLE[0]).body)
    ingest(queue_connection, deliveries.make("text", *PEOPLE[1]).body)
    assert database.query(
        "select conversation_key, jsonb_array_length(payload -> 'messages') from message_queue order by id"
    ) == [("wa:16505550101", 5), ("wa:16505550102", 1)]


def test_status_updates_of_one_message_are_three_things(queue_connection):
    body = (ROOT / "examples/whatsapp/payloads/status_sent.json").read_bytes()
    receipts = [
        ingest(queue_connection, body.replace(b'"sent"', name))
        for name in (b'"sent"', b'"delivered"', b'"read"', b'"read"')
    ]
    assert [len(receipt.enqueued) for receipt in receipts] == [1, 1, 1, 0]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b"null",
        b"[" * 100_000,
        b'{"object":"page"}',
        b'{"object":"whatsapp_business_account","entry":{}}',
        b'{"object":"whatsapp_business_account","entry":[{"changes":[{"field":"messages","value":{"metadata":{"phone_number_id":"106540352242922"}}}]}]}',
    ],
    ids=["empty", "not utf-8", "list", "object", "null", "deep", "page", "entry", "no items"],
)
def test_malformed_body_is_refused_and_counted_and_enqueues_nothing(body, queue_connection, database):
    receipt = ingest(queue_connection, body)
    assert (receipt.received, receipt.enqueued, len(receipt.refused)) == (1, [], 1)
    assert database.value("select count(*) from message_queue") == 0


@pytest.mark.parametrize("text", ["nul \\u0000 in it", "lone \\ud83d surrogate"])
def test_text_that_postgres_cannot_hold_is_refused_without_taking_its_neighbours_along(
    text, queue_connection
):
    body = Deliveries("ab12").make("text_batch", *PEOPLE[0]).body.replace(b"Two things:", text.encode())
    receipt = ingest(queue_connection, body)
    assert (receipt.received, len(receipt.enqueued), receipt.merged, len(receipt.refused)) == (3, 1, 1, 1)


def test_ingest_commits_nothing_when_the_callers_transaction_rolls_back(queue_connection, database):
    with pytest.raises(RuntimeError), queue_connection.transaction():
        ingest(queue_connection, Deliveries("ab12").make("text", *PEOPLE[0]).body)
        raise RuntimeError("after ingest")
    assert database.value("select count(*) from all_messages") == 0


def test_signature_of_another_secret_or_body_does_not_fit():
    header = "sha256=" + hmac.new(b"secret", b"body", hashlib.sha256).hexdigest()
    assert signature_fits(b"body", header, "secret")
    assert not signature_fits(b"body.", header, "secret")
    assert not signature_fits(b"body", header, "other")
    assert not signature_fits(b"body", "", "secret")
    assert not signature_fits(b"body", "sha256=é", "secret")
