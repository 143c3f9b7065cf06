"""The overview: problems first, each where it can be looked at; speed and time to drain."""

from __future__ import annotations

import re

import psycopg
import pytest

from packhorse.worker.store.web_overview import CHECKS
from packhorse.worker.web.pages.overview import SCREENS
from tests.support.calendar import PARTITION_OF_YESTERDAY


def run(database, *statements):
    with psycopg.connect(database.admin_url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


@pytest.fixture
def concerns(page):
    """What the page says is wrong: kind -> texts."""

    def found():
        page.sites[0].forget()
        html = page.browser().get("/").text
        items = re.findall(
            r'<li class="notice (warn|fail)".*?<p><strong>(.*?)</strong> (.*?)</p><a href="(.*?)"', html
        )
        return {what: (status, text, path) for status, what, text, path in items}

    return found


def test_a_quiet_queue_is_no_problem(page, database, concerns):
    assert "queue default" not in concerns()
    html = page.browser().get("/").text
    assert re.search(
        r'href="/queues/default">default</a>.*?<td class="right">0</td><td class="right">–</td>',
        html,
        re.DOTALL,
    )


def test_a_late_queue_without_workers_comes_first(page, database, concerns):
    run(
        database,
        "insert into packhorse.workers (id, hostname, pid, version, queues, message_types, threads, lease_duration, last_seen_at) "
        "values (gen_random_uuid(), 'h', 7, '1', '{other}', '{}', 1, '10 seconds', now() - interval '1 hour')",
        "select packhorse.declare_queue('late')",
        "insert into packhorse.message_queue (queue, message_type, payload, run_at, created_at) "
        "select 'late', 't', '{}', now() - interval '20 minutes', now() from generate_series(1, 3)",
    )
    found = concerns()
    status, text, path = found["queue late"]
    assert status == "fail" and path == "/queues/late"
    assert re.fullmatch(r"3 due, the oldest for 20(\.\d)? min, no live worker", text)
    assert found["worker h pid 7"][1].startswith("silent for 36")
    assert next(iter(found.values()))[0] == "fail"
    assert "stands still" in page.browser().get("/").text


def test_dead_letters_and_what_they_hold_are_named(page, database, concerns):
    run(
        database,
        "insert into packhorse.dead_letters (id, queue, message_type, payload, options, priority, reason, fingerprint, attempt, crashes, conversation_key, "
        "blocks_conversation, created_at) values (1, 'default', 't', '{}', '{}', 5, 'failed', 'f', 1, 0, 'k', true, now())",
        "insert into packhorse.message_queue (queue, message_type, payload, state, conversation_key, run_at, created_at) "
        "values ('default', 't', '{}', 'blocked', 'k', now() - interval '2 hours', now() - interval '2 hours')",
    )
    found = concerns()
    assert found["dead letters"][2] == "/dead-letters" and "1 in the last" in found["dead letters"][1]
    assert (
        found["conversation state"][:1] == ("fail",)
        and "1 dead letter(s) hold one" in found["conversation state"][1]
    )


def test_speed_and_time_to_drain_are_of_what_was_done(page, database):
    run(
        database,
        PARTITION_OF_YESTERDAY,
        "insert into packhorse.message_archive (id, queue, message_type, payload, options, priority, state, attempt, crashes, created_at, claimed_at, finished_at) "
        "select i, 'default', 't', '{}', '{}', 5, 'done', 1, 0, f - interval '7 seconds', f - interval '4 seconds', f "
        "from generate_series(1, 600) i cross join lateral (select now() - i * interval '0.1 seconds' as f) t",
        "insert into packhorse.message_queue (queue, message_type, payload, run_at, created_at) select 'default', 't', '{}', now(), now() from generate_series(1, 60)",
    )
    html = page.browser().get("/").text
    assert "<dt>Messages</dt><dd>600</dd>" in html
    assert re.search(
        r"Wait from enqueue.*?<dt>p50</dt><dd>3 s</dd>.*?Duration of handlers.*?<dt>p95</dt><dd>4 s</dd>",
        html,
        re.DOTALL,
    )
    row = re.search(r'href="/queues/default".*?</tr>', html, re.DOTALL)[0]
    assert "2 per s" in row and "30 s" in row, "600 in five minutes; 60 are due"
    assert "Messages done per minute" in html


def test_a_deployment_is_a_mark_in_the_chart_with_its_version(page, database):
    run(
        database,
        "insert into packhorse.message_archive (id, queue, message_type, payload, options, priority, state, attempt, crashes, created_at, claimed_at, finished_at) "
        "select 1, 'default', 't', '{}', '{}', 5, 'done', 1, 0, now(), now(), now()",
        "insert into packhorse.workers (id, hostname, pid, version, queues, message_types, threads, lease_duration, started_at) "
        "select gen_random_uuid(), 'h', n, '9.8.7', '{default}', '{t}', 1, interval '30 s', now() - interval '10 minutes 5 seconds' from generate_series(1, 3) n",
    )
    html = page.browser().get("/").text
    assert "3 of version 9.8.7 started 10 min ago" in html
    assert re.search(r'data-marks="\[0\.83\d*\]"', html), "a sixth of the hour from its end"


def test_what_was_never_claimed_has_no_wait_and_no_duration(page, database):
    run(
        database,
        "insert into packhorse.message_archive (id, queue, message_type, payload, options, priority, state, attempt, crashes, created_at, finished_at) "
        "values (1, 'default', 't', '{}', '{}', 5, 'done', 1, 0, now(), now())",
    )
    answer = page.browser().get("/")
    assert answer.status_code == 200 and "<dt>Messages</dt><dd>1</dd>" in answer.text


def test_each_check_has_a_screen(page):
    """The overview leads to screens that are there."""
    browser = page.browser()
    assert set(SCREENS) == set(CHECKS)
    for path in {
        *SCREENS.values(),
        "/messages",
        "/partitions",
        "/database",
        "/schedules",
        "/maintenance",
        "/queues/default",
    }:
        assert browser.get(path).status_code == 200, path


def test_a_check_that_takes_too_long_is_said_to_be_unknown_and_hides_nothing_else(page, database):
    with psycopg.connect(database.admin_url) as locker:
        locker.execute("lock table packhorse.service_endpoints in access exclusive mode")
        html = page.browser().get("/").text
    assert "Queues</caption>" in html and "default" in html
    assert "circuit breakers" in html


def test_messages_whose_process_died_have_a_line_of_their_own(page, database, concerns):
    run(
        database,
        "insert into packhorse.dead_letters (id, queue, message_type, payload, options, priority, reason, error_class, fingerprint, attempt, crashes, created_at) "
        "select i, 'default', 't', '{}', '{}', 5, case when i > 1 then 'quarantined' else 'failed' end, 'WorkerLost', 'f', 1, 3, now() from generate_series(1, 4) i",
    )
    found = concerns()
    assert found["quarantined"][0] == "fail" and found["quarantined"][1].startswith("3 in the last hour")
    listed = page.browser().get(found["quarantined"][2].replace("&amp;", "&"))
    assert listed.status_code == 200 and "WorkerLost" in listed.text


def test_of_many_queues_the_overview_shows_those_that_need_somebody_first(page, database):
    run(
        database,
        "select packhorse.declare_queue('quiet' || lpad(i::text, 2, '0')) from generate_series(1, 60) i",
        "select packhorse.declare_queue('late')",
        "insert into packhorse.message_queue (queue, message_type, payload, run_at, created_at) values ('late', 't', '{}', now() - interval '1 hour', now())",
    )
    html = page.browser().get("/").text
    shown = re.findall(r'<th scope="row"><a href="/queues/(\w+)"', html)
    assert len(shown) == 50 and shown[0] == "late" and "All queues</a>" in html


def test_while_the_queues_are_not_known_the_overview_does_not_say_that_there_are_none(page, database):
    with psycopg.connect(database.admin_url) as locker:
        locker.execute("lock table packhorse.scopes in access exclusive mode")
        answer = page.browser().get("/")
    assert answer.status_code == 200 and "queue health" in answer.text and "No queue yet" not in answer.text


@pytest.mark.slow
def test_an_estimate_is_written_as_one(page, database, monkeypatch):
    monkeypatch.setattr("packhorse.worker.store.inspection.MOST_LIVE", 100)
    monkeypatch.setattr("packhorse.worker.store.inspection.MOST_DEAD", 100)
    monkeypatch.setattr("packhorse.worker.store.web_overview.MOST_COUNTED", 100)
    run(
        database,
        "select packhorse.declare_queue('many'), packhorse.declare_queue('few')",
        "insert into packhorse.message_queue (queue, message_type, run_at) "
        "select case when n > 5 then 'many' else 'few' end, 't', now() - interval '1 second' from generate_series(1, 305) n",
        "insert into packhorse.message_queue (queue, message_type) select 'nobody', 't' from generate_series(1, 200) n",
        "insert into packhorse.dead_letters (id, queue, message_type, payload, options, priority, reason, fingerprint, attempt, crashes, created_at) "
        "select -n, case when n > 5 then 'many' else 'few' end, 't', '{}', '{}', 5, 'failed', 'f', 1, 0, now() from generate_series(1, 155) n",
        "analyze",
    )
    about = '<abbr title="about, as the planner estimates">~</abbr>'

    def row(path, queue):
        html = page.browser().get(path).text
        return re.search(rf'href="/queues/{queue}">{queue}</a>.*?</tr>', html, re.DOTALL)[0]

    for queue, due, dead in (
        ("many", f"{about}300", f"{about}150"),
        ("few", "5", "5"),
        ("nobody", f"{about}200", "0"),
    ):
        assert f">{due}</" in row("/queues", queue) and f">{dead}</" in row("/queues", queue), queue
        assert f">{due}</td>" in row("/", queue), queue
        alone = page.browser().get(f"/queues/{queue}").text
        assert f"<dt>Due</dt><dd>{due}</dd>" in alone and f"<dt>Dead letters</dt><dd>{dead}</dd>" in alone
        # running ones are few, so their number is none of the planner's
        assert "<dt>Running</dt><dd>0</dd>" in alone
