"""Acts of the page: forms, previews, what they do, who is recorded, and what is refused where (SPEC O6)."""

from __future__ import annotations

import re
from html import unescape
from typing import Any
from urllib.parse import urlencode

import psycopg
import pytest

from packhorse.worker.web.access import Role
from packhorse.worker.web.acts import ACTS
from packhorse.worker.web.forms import FormField, Notices
from tests.support.page import Browser, Page, declare_bank
from tests.support.postgres import Database
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.one_database]


@pytest.fixture
def admin(page: Page) -> Browser:
    return page.browser(page.token("admin", "ada"))


@pytest.fixture
def operator(page: Page) -> Browser:
    return page.browser(page.token("operator", "olu"))


def enqueue(database: Database, count: int = 1, queue: str = "default", **payload: Any) -> list[int]:
    database.query("select declare_queue(%s)", queue)
    fields = "".join(f", '{name}', '{value}'" for name, value in payload.items())
    rows = database.query(
        f"select (enqueue_message(%s, 'effect', jsonb_build_object('n', n{fields}))).message_id from generate_series(1, %s) n",
        queue,
        count,
    )
    return [row[0] for row in rows]


def dead(database: Database, count: int = 1, queue: str = "default", **payload: Any) -> list[int]:
    ids = enqueue(database, count, queue, **payload)
    database.query(
        "select bury_message(id, null, 'rejected', 'TimeoutError', 'no answer') from unnest(%s::bigint[]) id",
        ids,
    )
    return ids


def states(database: Database, ids: list[int]) -> list[str]:
    return [
        row[0] for row in database.query("select state from all_messages where id = any(%s) order by id", ids)
    ]


def recorded(database: Database, action: str) -> list[tuple[Any, ...]]:
    return database.query(
        "select operator, reason, message_id from operator_actions where action = %s order by id", action
    )


def address(name: str, target: dict[str, Any]) -> str:
    return f"/acts/{name}?{urlencode(target)}"


def do(browser: Browser, name: str, target: dict[str, Any], *, step: str = "do", **fields: Any) -> Any:
    """Fill in the form of an act and press its button."""
    return browser.post(f"/acts/{name}", {**target, "step": step, **fields}, form_on=address(name, target))


def kept(html: str) -> dict[str, str]:
    """What a preview brings back."""
    return {
        name: value
        for name, value in re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', html)
        if name != "csrf"
    }


def preview_and_do(browser: Browser, name: str, target: dict[str, Any], **fields: Any) -> tuple[str, Any]:
    """The preview's page, and the answer to its button."""
    shown = do(browser, name, target, step="preview", **fields)
    assert shown.status_code == 200, shown.text
    return shown.text, do(browser, name, {**target, **kept(shown.text)}, **fields)


def ended(browser: Browser, answer: Any) -> str:
    """The page of a long act that has ended."""
    assert answer.status_code == 303, answer.text
    path = answer.headers["location"]
    over = re.compile('class="notice [a-z]+" role="status">(?!It stops)')
    wait_until(lambda: over.search(browser.get(path).text), 60)
    return browser.get(path).text


# -- one message -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("verb", "fields", "state", "action"),
    [
        ("cancel", {}, "cancelled", "cancel"),
        ("retry", {}, "pending", "retry_now"),
        ("reschedule", {"delay": "2h"}, "pending", "reschedule"),
        ("reschedule", {"run_at": "2031-01-01T00:00Z"}, "pending", "reschedule"),
        ("move", {"queue": "mail"}, "pending", "move"),
        ("priority", {"priority": "1"}, "pending", "set_priority"),
        ("bury", {}, "dead", "bury"),
        ("clone", {}, "pending", "clone"),
    ],
)
def test_an_act_on_a_message_is_done_recorded_and_told(
    database: Database, operator: Browser, verb: str, fields: dict[str, str], state: str, action: str
) -> None:
    database.query("select declare_queue('mail')")
    (number,) = enqueue(database)
    answer = do(operator, f"message.{verb}", {"id": number}, reason="a call", **fields)
    assert answer.status_code == 303, answer.text
    assert states(database, [number]) == [state]
    assert [row[:2] for row in recorded(database, action)] == [("olu", "a call")]
    told = operator.get(answer.headers["location"]).text
    assert f"essage {number}" in told and 'class="notice ok" role="status"' in told


def test_what_a_message_forbids_is_said_in_the_form_and_its_text_stays(
    database: Database, operator: Browser
) -> None:
    (number,) = enqueue(database)
    database.query("select cancel_message(%s)", number)
    answer = do(operator, "message.move", {"id": number}, queue="default", reason="because")
    assert (
        answer.status_code == 400
        and f"message {number} is cancelled" in answer.text
        and 'value="because"' in answer.text
    )


@pytest.mark.parametrize(
    ("name", "fields", "field"),
    [
        ("message.reschedule", {}, "delay"),
        ("message.reschedule", {"delay": "soon"}, "delay"),
        ("message.reschedule", {"run_at": "2030-01-01"}, "run_at"),
        ("message.move", {"queue": ""}, "queue"),
        ("message.move", {"queue": "nowhere"}, "queue"),
        ("message.priority", {"priority": "11"}, "priority"),
        ("message.cancel", {"reason": "x" * 1001}, "reason"),
    ],
)
def test_a_field_that_is_wrong_is_named_where_it_stands(
    database: Database, operator: Browser, name: str, fields: dict[str, str], field: str
) -> None:
    (number,) = enqueue(database)
    answer = do(operator, name, {"id": number}, **fields)
    assert answer.status_code == 400
    at = answer.text.index(f'id="field-{field}"')
    assert 'class="problem" role="alert"' in answer.text[at : answer.text.index("</div>", at)]
    assert states(database, [number]) == ["pending"] and recorded(database, "cancel") == []


def test_an_edit_shows_the_payload_once_asked_the_difference_and_changes_it(
    database: Database, operator: Browser
) -> None:
    (number,) = enqueue(database, phone="+250788")
    form = operator.get(f"/acts/message.edit?id={number}").text
    assert "+250788" not in form and recorded(database, "reveal_message") == []
    loaded = do(operator, "message.edit", {"id": number}, step="load", reason="wrong number").text
    assert "+250788" in loaded and recorded(database, "reveal_message") == [("olu", "wrong number", number)]
    target = {"id": number, "before": kept(loaded)["before"].replace("&#34;", '"')}
    wanted = '{"n": 1, "phone": "+250799"}'
    shown = do(operator, "message.edit", target, step="preview", payload=wanted)
    assert (
        '<span class="removed">-  &#34;phone&#34;: &#34;+250788&#34;' in shown.text
        and '<span class="added">+  &#34;phone&#34;' in shown.text
    )
    assert database.value("select payload ->> 'phone' from message_queue") == "+250788", (
        "a preview changes nothing"
    )
    assert do(operator, "message.edit", target, payload=wanted).status_code == 303
    assert database.value("select payload ->> 'phone' from message_queue") == "+250799"
    late = do(operator, "message.edit", target, payload='{"n": 2}')
    assert late.status_code == 400 and "Nothing was changed: load it again" in late.text, (
        "somebody else has changed it since"
    )
    assert do(operator, "message.edit", target, payload="[1]").status_code == 400


def test_a_look_at_a_payload_is_a_post_and_recorded(
    database: Database, operator: Browser, page: Page
) -> None:
    (number,) = enqueue(database, phone="+250788")
    assert "+250788" not in operator.get(f"/messages/{number}").text
    assert (
        "+250788" not in operator.get(f"/acts/message.reveal?id={number}").text
        and recorded(database, "reveal_message") == []
    )
    answer = do(operator, "message.reveal", {"id": number}, reason="a call")
    assert (
        answer.status_code == 200
        and "+250788" in answer.text
        and answer.headers["cache-control"] == "no-store"
    )
    assert recorded(database, "reveal_message") == [("olu", "a call", number)]
    assert do(operator, "message.reveal", {"id": 999}).status_code == 404


# -- all that match --------------------------------------------------------------------------------
def test_all_that_match_are_counted_first_and_later_ones_are_not_touched(
    database: Database, admin: Browser
) -> None:
    mine, others = enqueue(database, 30, "mail"), enqueue(database, 2)
    shown = do(admin, "messages.cancel", {"where": "queue=mail"}, step="preview")
    assert "30 messages: 30 mail" in shown.text and "Cancel: all that match: 30" in shown.text
    assert states(database, mine) == ["pending"] * 30, "a preview changes nothing"
    later = enqueue(database, 3, "mail")
    answer = do(admin, "messages.cancel", {"where": "queue=mail", **kept(shown.text)}, reason="spam")
    assert "Done with 30 of 30." in ended(admin, answer)
    assert set(states(database, mine)) == {"cancelled"} and set(states(database, others + later)) == {
        "pending"
    }
    assert {row[:2] for row in recorded(database, "cancel")} == {("ada", "spam")}


def test_nothing_is_done_to_many_without_a_filter_or_a_count(database: Database, admin: Browser) -> None:
    ids = enqueue(database, 3)
    for filter, step in (
        ("", "preview"),
        ("  ", "do"),
        ("queue=default", "do"),
        ("nonsense", "preview"),
        ("state=dead", "preview"),
    ):
        answer = do(admin, "messages.cancel", {"where": filter}, step=step)
        assert answer.status_code == 400 and 'id="field-where"' in answer.text, filter
    assert (
        "Cancel: all that match"
        not in do(admin, "messages.cancel", {"where": "queue=nothing"}, step="preview").text.split("<form")[2]
    )
    assert states(database, ids) == ["pending"] * 3


# -- dead letters ----------------------------------------------------------------------------------
def group(database: Database) -> str:
    return str(database.value("select fingerprint from dead_letters limit 1"))


def test_a_cause_is_redriven_with_a_preview_a_pace_and_a_changed_payload(
    database: Database, operator: Browser
) -> None:
    ids = dead(database, 20, "mail", country="XX")
    dead(database, 2, "other", country="XX")
    target = {"where": "queue=mail"}
    shown, answer = preview_and_do(
        operator,
        "dead-letters.redrive",
        target,
        rate="1000",
        stop_after="3",
        settings="country=RW",
        reason="mended",
    )
    assert (
        "20 dead letters would be enqueued again" in shown and "+  &#34;country&#34;: &#34;RW&#34;" in shown
    )
    assert "--set country=RW" in shown and "--rate 1000" in shown
    assert [row[1:] for row in recorded(database, "reveal_message")] == [("mended", ids[0])], (
        "the difference shows a part of a payload"
    )
    assert "20 of 20 are enqueued again." in ended(operator, answer)
    assert states(database, ids) == ["pending"] * 20
    assert database.query("select distinct payload ->> 'country' from message_queue") == [("RW",)]
    assert database.query("select payload ->> 'country' from dead_letters") == [("XX",)] * 2


def test_a_redrive_that_fails_again_stops_and_says_so(database: Database, operator: Browser) -> None:
    ids = dead(database, 60)
    database.query(
        "create function die() returns trigger language plpgsql as $$ begin perform packhorse.bury_message(new.id, null, 'rejected', 'E', 'x'); return null; end $$"
    )
    database.query(
        "create constraint trigger die after insert on packhorse.message_queue deferrable initially deferred for each row execute function die()"
    )
    try:
        _, answer = preview_and_do(
            operator, "dead-letters.redrive", {"fingerprint": group(database)}, rate="10", stop_after="2"
        )
        assert "died again: mend the cause first" in ended(operator, answer)
    finally:
        database.query("drop trigger die on packhorse.message_queue")
    assert states(database, ids) == ["dead"] * 60


def test_a_long_act_can_be_stopped_and_keeps_what_it_did(database: Database, operator: Browser) -> None:
    ids = dead(database, 50)
    _, answer = preview_and_do(
        operator, "dead-letters.redrive", {"fingerprint": group(database)}, rate="5", stop_after="0"
    )
    path = answer.headers["location"]
    wait_until(lambda: "pending" in states(database, ids))
    assert operator.post(f"{path}/stop", form_on=path).status_code == 303
    assert "then it was stopped" in ended(operator, answer)
    assert 0 < states(database, ids).count("pending") < 50


def test_a_long_act_ends_after_its_batch_with_the_process_of_the_page(
    database: Database, open_page: Any
) -> None:
    page = open_page(database)
    browser = page.browser()
    ids = dead(database, 50)
    preview_and_do(
        browser, "dead-letters.redrive", {"fingerprint": group(database)}, rate="5", stop_after="0"
    )
    wait_until(lambda: "pending" in states(database, ids))
    page.close()
    assert 0 < states(database, ids).count("pending") < 50


def test_one_letter_is_edited_redriven_purged(database: Database, admin: Browser) -> None:
    first, second = dead(database, 2, phone="1")
    loaded = do(admin, "dead-letter.edit", {"id": first}, step="load").text
    target = {"id": first, "before": kept(loaded)["before"].replace("&#34;", '"')}
    assert do(admin, "dead-letter.edit", target, payload='{"n": 1, "phone": "2"}').status_code == 303
    assert do(admin, "dead-letter.redrive", {"id": first}).status_code == 303
    assert database.query("select id, payload ->> 'phone' from message_queue") == [(first, "2")]
    assert do(admin, "dead-letter.purge", {"id": second}, reason="a test").status_code == 303
    assert database.value("select count(*) from dead_letters") == 0 and recorded(database, "purge")[0][
        :2
    ] == ("ada", "a test")
    assert do(admin, "dead-letter.redrive", {"id": first}).status_code == 404


def test_a_preview_that_takes_too_long_says_so_and_what_to_do(
    database: Database, operator: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the server's clock, which ends each statement of a preview after a second."""

    def slow(connection: Any, *args: Any, **options: Any) -> Any:
        connection.execute("select pg_sleep(30)")

    monkeypatch.setattr("packhorse.worker.store.dead_letters.count", slow)
    answer = do(operator, "dead-letters.redrive", {"where": "queue=default"}, step="preview", rate="7")
    assert answer.status_code == 503
    assert "It took too long: narrow it, or use the command line, which has no limit" in answer.text
    assert 'value="7"' in answer.text, "what was written stays"


# -- the rest --------------------------------------------------------------------------------------
def settings_in(form: str) -> dict[str, str]:
    """What stands in the form of queue.set."""
    chosen = {
        name: (re.findall(r'<option value="(\w*)" selected', options) or [""])[0]
        for name, options in re.findall(r'<select id="field-(\w+)"[^>]*>(.*?)</select>', form, re.DOTALL)
    }
    return {**dict(re.findall(r'name="(\w+)" value="([^"]*)" placeholder', form)), **chosen}


#: A good value of each setting, and one that is refused.
VALUES = {
    "fair_share": ("true", "maybe"),
    "max_concurrency": ("7", "0"),
    "max_concurrency_per_key": ("2", "-1"),
    "rate_limit": ("100", "many"),
    "rate_interval": ("1 minute", "fast"),
    "rate_burst": ("200", "-1"),
    "rate_limit_per_key": ("10", "0"),
    "rate_interval_per_key": ("10 seconds", "-5 seconds"),
    "rate_burst_per_key": ("20", "1.5"),
    "max_attempts": ("9", "-1"),
    "crash_limit": ("5", ""),
    "backoff_initial": ("2 seconds", "soon"),
    "backoff_multiplier": ("2.5", "0"),
    "backoff_max": ("1 hour", "0"),
    "backoff_jitter": ("0.5", "2"),
    "on_dead": ("block", "release"),
    "failure_breaker": ("5", "-1"),
    "forward": ("amqp", "kafka"),
    "keep_done": ("3 days", "-1 days"),
}


def test_the_form_has_every_setting_of_a_queue(database: Database, operator: Browser) -> None:
    known = database.value(
        "select regexp_replace(substring(prosrc from 'array\\[([^]]+)\\]'), '[\\s'']', '', 'g') from pg_proc where proname = 'check_queue_settings'"
    ).split(",")
    assert list(settings_in(operator.get("/acts/queue.set?queue=default").text)) and set(known) == set(VALUES)
    assert set(settings_in(operator.get("/acts/queue.set?queue=default").text)) == set(known)


@pytest.mark.parametrize("name", VALUES)
def test_a_setting_is_shown_changed_and_kept(database: Database, operator: Browser, name: str) -> None:
    wanted = VALUES[name][0]
    fields = {**settings_in(operator.get("/acts/queue.set?queue=default").text), name: wanted}
    shown = do(operator, "queue.set", {"queue": "default"}, step="preview", **fields).text
    assert re.findall(r'class="added">\+([^<\n]*)', shown) == [f"{name}: {wanted}"]
    assert f"{name}={wanted}" in unescape(shown).replace("'", ""), "the command line does the same"
    assert do(operator, "queue.set", {"queue": "default"}, reason="load", **fields).status_code == 303
    assert recorded(database, "set_queue")[-1][:2] == ("olu", "load")
    again = operator.get("/acts/queue.set?queue=default").text
    nothing = do(operator, "queue.set", {"queue": "default"}, step="preview", **settings_in(again)).text
    assert "Nothing is changed." in nothing
    assert settings_in(again)[name] == database.value(
        f"select {name}::text from queues where name = 'default'"
    )


@pytest.mark.parametrize("name", VALUES)
def test_a_bad_setting_is_told_at_its_field_and_changes_nothing(
    database: Database, operator: Browser, name: str
) -> None:
    before = database.query("select * from queues where name = 'default'")
    bad = VALUES[name][1]
    fields = {
        **settings_in(operator.get("/acts/queue.set?queue=default").text),
        "max_attempts": "8",
        name: bad,
    }
    wrong = do(operator, "queue.set", {"queue": "default"}, reason="load", **fields)
    assert wrong.status_code == 400
    assert len(re.findall('aria-invalid="true"', wrong.text)) == 1
    at = re.search(rf'id="field-{name}"[^>]*aria-invalid="true".*?</div>', wrong.text, re.DOTALL)
    assert at and f'role="alert">{name}: ' in at[0], wrong.text
    others = {other: text for other, text in settings_in(wrong.text).items() if other != name}
    assert others == {other: text for other, text in fields.items() if other != name}, (
        "what was written stays"
    )
    assert database.query("select * from queues where name = 'default'") == before


def test_settings_of_a_queue_show_the_difference_first(database: Database, operator: Browser) -> None:
    form = operator.get("/acts/queue.set?queue=default").text
    assert 'name="max_attempts" value="' in form
    fields = settings_in(form)
    shown = do(
        operator, "queue.set", {"queue": "default"}, step="preview", **{**fields, "max_concurrency": "7"}
    )
    assert '<span class="added">+max_concurrency: 7' in shown.text and shown.text.count('class="added"') == 1
    assert (
        do(
            operator, "queue.set", {"queue": "default"}, reason="load", **{**fields, "max_concurrency": "7"}
        ).status_code
        == 303
    )
    assert database.value("select max_concurrency from queues where name = 'default'") == 7
    wrong = do(operator, "queue.set", {"queue": "default"}, **{**fields, "max_attempts": "-1"})
    assert wrong.status_code == 400 and 'id="field-max_attempts"' in wrong.text and "Allowed" in wrong.text


@pytest.mark.parametrize(
    ("name", "target", "look", "wanted", "action"),
    [
        (
            "queue.pause",
            {"queue": "default"},
            "select paused_by from queues where name = 'default'",
            "ada",
            "pause_queue",
        ),
        ("queues.pause", {}, "select count(*) from queues where paused_at is null", 0, "pause_all_queues"),
        (
            "schedule.pause",
            {"schedule": "nightly"},
            "select paused_by from schedules",
            "ada",
            "pause_schedule",
        ),
        ("schedule.run", {"schedule": "nightly"}, "select count(*) from message_queue", 1, "run_schedule"),
        (
            "service.open",
            {"service": "bank", "endpoint": "a"},
            "select forced from service_endpoints",
            "open",
            "force_service",
        ),
        ("scope.lift", {"scope": "bank"}, "select count(*) from parked_scopes", 0, "lift_scope"),
        (
            "worker.drain",
            {"worker": "00000000-0000-0000-0000-000000000007"},
            "select request from daemon_requests",
            "drain",
            "drain_worker",
        ),
    ],
)
def test_other_acts_do_what_their_command_does(
    database: Database,
    admin: Browser,
    name: str,
    target: dict[str, str],
    look: str,
    wanted: object,
    action: str,
) -> None:
    database.query(
        "insert into schedules (name, message_type, queue, every, source) values ('nightly', 'effect', 'default', '1 hour', 'sql')"
    )
    declare_bank(database)
    database.query("select park_scope('bank', '5 minutes')")
    database.query(
        "insert into workers (id, hostname, pid, version, queues, message_types, threads, lease_duration)"
        " values ('00000000-0000-0000-0000-000000000007', 'h', 1, '1', '{default}', '{effect}', 1, '30 s')"
    )
    answer = do(admin, name, target, reason="the why")
    assert answer.status_code == 303, answer.text
    assert database.value(look) == wanted
    assert [row[:2] for row in recorded(database, action)] == [("ada", "the why")]


def test_each_act_shows_the_command_line_that_does_the_same(database: Database, admin: Browser) -> None:
    from typer.main import get_command

    from packhorse.worker.cli.commands import assembled

    samples = {
        "id": "7",
        "where": "queue=mail",
        "fingerprint": "abc",
        "queue": "default",
        "worker": "00000000-0000-0000-0000-000000000007",
    }
    everything = get_command(assembled())
    for act in ACTS.values():
        target = {
            each.name: samples.get(each.name, "thing")
            for each in act.targets
            if each.name in samples or each.required
        }
        if act.prefill is None or "queue" in target:
            text = re.search(
                r'<code class="cli"[^>]*>(packhorse [^<]*)</code>', admin.get(address(act.name, target)).text
            )
            assert text, act.name
            words = text[1].replace("&#39;", "'").split()
            command = everything
            for word in words[1:3]:
                command = command.commands[word]  # type: ignore[attr-defined]
            known = {option for parameter in command.params for option in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= known, text[1]


def test_what_cannot_be_taken_back_is_an_admins_but_for_one_message():
    assert {act.name for act in ACTS.values() if act.danger and act.role is not Role.ADMIN} == {
        "message.cancel"
    }
    assert all(act.role >= Role.OPERATOR for act in ACTS.values())
    assert all(act.preview for act in ACTS.values() if act.long)


def test_a_viewer_sees_no_button_and_an_operator_none_of_an_admin(database: Database, page: Page) -> None:
    (number,) = enqueue(database)
    shown = {
        role: page.browser(page.token(role)).get(f"/messages/{number}").text
        for role in ("viewer", "operator")
    }
    assert "/acts/" not in shown["viewer"] and "/acts/message.cancel" in shown["operator"]
    (letter,) = dead(database)
    assert (
        "dead-letter.purge"
        not in page.browser(page.token("operator", "o2")).get(f"/dead-letters/{letter}").text
    )


def test_a_notice_is_for_who_acted_and_no_address_can_invent_one(page: Page) -> None:
    admin = page.browser(page.token("admin"))
    assert admin.get("/?said=You+are+hacked").text.count('role="status"') == admin.get("/").text.count(
        'role="status"'
    )
    notices, visitor = Notices(), type("V", (), {"name": "ada"})()
    name = notices.put(visitor, "done")
    assert notices.get(name, visitor) == "done" and notices.get(name, None) is None
    assert notices.get(name, type("V", (), {"name": "eve"})()) is None


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("integer", "٣"),
        ("integer", "9" * 30),
        ("decimal", "nan"),
        ("decimal", "1e999"),
        ("text", "a\0b"),
        ("text", "\ud800"),
        ("payload", "[]"),
        ("payload", "{" * 3000),
        ("settings", "novalue"),
        ("choice", "other"),
        ("moment", "2030-01-01T00:00"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_its_name(kind: str, text: str) -> None:
    from packhorse.worker.errors import InvalidArgument

    with pytest.raises(InvalidArgument) as caught:
        FormField("thing", "Thing", kind).read(text)
    assert caught.value.field == "thing"


# -- previews --------------------------------------------------------------------------------------
def test_previews_and_fields_of_forms_are_read_as_the_reader(database: Database, page: Page) -> None:
    """As questions are: read-only, a second at most, with the rights of packhorse_reader."""
    login = psycopg.conninfo.conninfo_to_dict(database.url)["user"]
    name = psycopg.sql.Identifier(login).as_string()
    database.query(f"grant packhorse_reader to {name}")
    try:
        admin = page.browser(page.token("admin", "ada"))
        site = page.sites[0]
        (number,) = enqueue(database, 1, "mail")
        dead(database, 3, "mail", country="XX")
        admin.get("/")
        assert site._begin == "web_begin_as_reader"
        for act, target, fields in (
            ("messages.cancel", {"where": "queue=mail"}, {}),
            ("messages.move", {"where": "queue=mail"}, {"queue": "default"}),
            ("dead-letters.redrive", {"where": "queue=mail"}, {"rate": "10", "stop_after": "3"}),
            ("dead-letters.purge", {"where": "queue=mail"}, {}),
            ("queue.set", {"queue": "mail"}, {"max_concurrency": "7"}),
            ("message.edit", {"id": number}, {"payload": '{"n": 2}', "before": '{"n": 1}'}),
        ):
            before = site.asked_total
            answer = do(admin, act, target, step="preview", **fields)
            assert answer.status_code == 200, f"{act}: {answer.text}"
            assert site.asked_total > before, f"{act}: not asked as a question"
        before = site.asked_total
        shown = do(
            admin, "dead-letters.redrive", {"where": "queue=mail"}, step="preview", settings="country=RW"
        )
        assert "3 dead letters would be enqueued again" in shown.text
        assert len(recorded(database, "reveal_message")) == 1, "a preview that shows a payload is a look"
    finally:
        database.query(f"revoke packhorse_reader from {name}")


@pytest.mark.parametrize("act", ["messages.cancel", "dead-letters.purge", "dead-letters.redrive"])
def test_a_confirmation_of_more_than_was_shown_asks_again_and_does_nothing(
    database: Database, admin: Browser, act: str
) -> None:
    """The number that was shown comes from the form: it is counted again, among what was there then."""
    ids = (enqueue if act.startswith("messages") else dead)(database, 30, "mail")
    target = {"where": "queue=mail"}
    shown = do(admin, act, target, step="preview").text
    brought = {**kept(shown), "total": "2"}
    answer = do(admin, act, {**target, **brought})
    assert answer.status_code == 400 and "30 match now, and 2 were shown" in answer.text
    assert ">Preview</button>" in answer.text, "it asks again"
    untouched = "pending" if act.startswith("messages") else "dead"
    assert states(database, ids) == [untouched] * 30
    less = {**kept(shown), "total": "29"}
    end = ended(admin, do(admin, act, {**target, **less}, reason="within the tolerance"))
    assert "30 of 30" in end and "of 29" not in end, "it says what it did, not what the form said"


@pytest.mark.parametrize("act", ["messages.cancel", "dead-letters.purge"])
def test_a_large_selection_is_estimated_counted_when_asked_and_later_ones_are_not_touched(
    database: Database, admin: Browser, act: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the bounds of a small table: none is cheap, fifty are counted. Producers go on meanwhile."""
    for name, bound in (("MOST_COST", 0.0), ("MOST_COUNTED", 50), ("FIRST_STEP", 10), ("MOST_SECONDS", 60.0)):
        monkeypatch.setattr(f"packhorse.worker.store.tallies.{name}", bound)
    monkeypatch.setattr("packhorse.worker.ops.amounts.MOST_COUNTED", 50)
    make = enqueue if act.startswith("messages") else dead
    ids = make(database, 120, "mail")
    database.query("analyze message_queue, dead_letters")
    target = {"where": "queue=mail"}
    shown = do(admin, act, target, step="preview").text
    assert (
        re.search("(?i)at least 50 [a-z ]+, about 120 in all by estimate", shown)
        and ": ~120</button>" in shown
    )
    counted = do(admin, act, target, step="count").text
    assert "120 " in counted and "estimate;" not in counted and ": 120</button>" in counted
    assert "Count all" in shown and "Count all" not in counted
    later = make(database, 30, "mail")
    end = ended(admin, do(admin, act, {**target, **kept(shown)}))
    assert "120 of 120" in end
    alive = database.query("select id from message_queue union all select id from dead_letters order by id")
    assert [row[0] for row in alive] == later and set(ids).isdisjoint(later)


def test_a_long_act_that_finds_more_than_was_agreed_to_does_nothing(
    database: Database, admin: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request counts a part; the act counts all before it begins."""
    for name, bound in (("MOST_COST", 0.0), ("MOST_COUNTED", 50), ("FIRST_STEP", 10), ("MOST_SECONDS", 60.0)):
        monkeypatch.setattr(f"packhorse.worker.store.tallies.{name}", bound)
    for act, make, state in (
        ("messages.cancel", enqueue, "pending"),
        ("dead-letters.purge", dead, "dead"),
        ("dead-letters.redrive", dead, "dead"),
    ):
        queue = act.replace(".", "-")
        ids = make(database, 120, queue)
        target = {"where": f"queue={queue}"}
        brought = kept(do(admin, act, target, step="preview").text)
        end = ended(admin, do(admin, act, {**target, **brought, "total": "51", "estimate": "55"}))
        assert "Nothing is done: more than 110 match, and 55 were shown. Count all, and look again." in end
        assert states(database, ids) == [state] * 120, act
