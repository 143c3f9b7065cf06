"""Every route that changes something: what it does to the database and to the audit, for each role (SPEC O6).

A new act without a line in EFFECTS fails here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from packhorse.schedules.backfill import declare
from packhorse.schedules.backfill.base import Backfill, BatchResult, CheckFinding
from packhorse.worker.web.access import Role
from packhorse.worker.web.acts import ACTS
from packhorse.worker.web.app import ROUTES
from tests.support.page import Browser, Page, declare_bank
from tests.support.postgres import Database
from tests.web.test_acts import dead, do, ended, enqueue, kept

pytestmark = [pytest.mark.slow, pytest.mark.one_database]

WORKER = "00000000-0000-0000-0000-000000000007"
DAEMON = "select max(request) from daemon_requests"
BACKFILL = "select {} from backfills where name = '{}'"
#: The routes that change something and are no acts, and the test that shows what they do.
OTHERS = {
    "/login": "test_access.py",
    "/logout": "test_access.py",
    "/progress/{id}/stop": "test_acts.py: test_a_long_act_can_be_stopped_and_keeps_what_it_did",
}


@dataclass(frozen=True, slots=True)
class Effect:
    """action: in operator_actions. look: a query whose value is `wanted` afterwards, and not before. target,
    fields: of the form; {name} in them is a name of the furnished database.
    """

    action: str
    look: str
    wanted: Any
    target: dict[str, str] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)


MESSAGE = {"id": "{waiting}"}
LETTER = {"id": "{letter}"}
LETTERS = {"where": "queue=letters"}
ALL = {"where": "queue=mail"}
STATE = "select state from all_messages where id = {waiting}"
STATES = "select string_agg(distinct state, ',') from all_messages where queue = 'mail'"
LEFT = "select count(*) from dead_letters where queue = 'letters'"
LATER = "select count(*) from message_queue where queue = 'mail' and run_at > now() + interval '1 hour'"

EFFECTS = {
    "message.retry": Effect("retry_now", "select run_at <= now() from message_queue where id = {later}", True, {"id": "{later}"}),
    "message.reschedule": Effect("reschedule", "select run_at > now() + interval '1 hour' from message_queue where id = {waiting}", True, MESSAGE, {"delay": "2h"}),
    "message.move": Effect("move", "select queue from message_queue where id = {waiting}", "spare", MESSAGE, {"queue": "spare"}),
    "message.priority": Effect("set_priority", "select priority from message_queue where id = {waiting}", 1, MESSAGE, {"priority": "1"}),
    "message.bury": Effect("bury", STATE, "dead", MESSAGE),
    "message.cancel": Effect("cancel", STATE, "cancelled", MESSAGE),
    "message.clone": Effect("clone", "select count(*) from message_queue where queue = 'default'", 3, MESSAGE),
    "message.edit": Effect("edit", "select max_attempts = 9 and payload = '{{\"n\": 7}}' from message_queue where id = {waiting}", True, {**MESSAGE, "before": '{{"n": 1}}'}, {"payload": '{{"n": 7}}', "max_attempts": "9"}),
    "message.reveal": Effect("reveal_message", "select count(*) from operator_actions where action = 'reveal_message'", 1, MESSAGE),
    "messages.retry": Effect("retry_now", "select count(*) from message_queue where queue = 'slow' and run_at <= now()", 2, {}, {"where": "queue=slow"}),
    "messages.reschedule": Effect("reschedule", LATER, 3, {}, {**ALL, "delay": "2h"}),
    "messages.move": Effect("move", "select count(*) from message_queue where queue = 'spare'", 3, {}, {**ALL, "queue": "spare"}),
    "messages.priority": Effect("set_priority", "select count(*) from message_queue where priority = 1", 3, {}, {**ALL, "priority": "1"}),
    "messages.bury": Effect("bury", STATES, "dead", {}, ALL),
    "messages.cancel": Effect("cancel", STATES, "cancelled", {}, ALL),
    "dead-letter.redrive": Effect("redrive", "select state from all_messages where id = {letter}", "pending", LETTER),
    "dead-letter.edit": Effect("edit_dead_letter", "select payload ->> 'n' from dead_letters where id = {letter}", "7", {**LETTER, "before": '{{"n": 1}}'}, {"payload": '{{"n": 7}}'}),
    "dead-letter.purge": Effect("purge", "select count(*) from dead_letters where id = {letter}", 0, LETTER),
    "dead-letters.redrive": Effect("redrive", LEFT, 0, LETTERS, {"rate": "1000"}),
    "dead-letters.purge": Effect("purge", LEFT, 0, LETTERS),
    "queue.pause": Effect("pause_queue", "select paused_by from queues where name = 'default'", "{who}", {"queue": "default"}),
    "queue.resume": Effect("resume_queue", "select paused_by from queues where name = 'paused'", None, {"queue": "paused"}),
    "queue.set": Effect("set_queue", "select max_concurrency = 7 and rate_limit = 60 and rate_interval = '1 minute' from queues where name = 'default'", True, {"queue": "default"}, {"max_concurrency": "7", "rate_limit": "60", "rate_interval": "60"}),
    "queue.delete": Effect("delete_queue", "select count(*) from queues where name = 'empty'", 0, {"queue": "empty"}),
    "queues.pause": Effect("pause_all_queues", "select count(*) from queues where paused_at is null", 0),
    "queues.resume": Effect("resume_all_queues", "select count(*) from queues where paused_at is not null", 1),
    "task.run": Effect("run_schedule", "select count(*) from message_queue where payload ->> 'task' = 'retention.dead_letters'", 1, {"task": "retention.dead_letters"}),
    "task.cancel": Effect("cancel_maintenance", "select state from maintenance_runs where task = 'retention.schedule_runs'", "cancelled", {"task": "retention.schedule_runs"}),
    "backfill.start": Effect("start_backfill", "select count(*) from message_queue where payload ->> 'task' = 'backfill.lower_emails'", 1, {"name": "lower_emails"}),
    "backfill.pause": Effect("pause_backfill", BACKFILL.format("paused_by", "walking"), "{who}", {"name": "walking"}),
    "backfill.resume": Effect("resume_backfill", BACKFILL.format("paused_at", "resting"), None, {"name": "resting"}),
    "backfill.cancel": Effect("cancel_maintenance", "select state from maintenance_runs where task = 'backfill.resting'", "cancelled", {"name": "resting"}),
    "backfill.verify": Effect("verify_backfill", BACKFILL.format("state", "copied"), "verified", {"name": "copied"}),
    "backfill.finish": Effect("finish_backfill", "select to_regclass('shop.retired_orders') is null", True, {"name": "old"}),
    "backfill.rollback": Effect("roll_back_backfill", BACKFILL.format("state", "copied"), "rolled_back", {"name": "copied"}),
    "schedule.run": Effect("run_schedule", "select count(*) from message_queue where message_type = 'report'", 1, {"schedule": "nightly"}),
    "schedule.pause": Effect("pause_schedule", "select paused_by from schedules where name = 'nightly'", "{who}", {"schedule": "nightly"}),
    "schedule.resume": Effect("resume_schedule", "select paused_at from schedules where name = 'rested'", None, {"schedule": "rested"}),
    "worker.quiet": Effect("quiet_worker", DAEMON, "quiet", {"worker": WORKER}),
    "worker.resume": Effect("resume_worker", "select count(*) from daemon_requests", 0, {"worker": "{quiet}"}),
    "worker.drain": Effect("drain_worker", "select count(*) from daemon_requests where request = 'drain'", 1, {"worker": WORKER}),
    "service.open": Effect("force_service", "select forced from service_endpoints", "open", {"service": "bank", "endpoint": "a"}),
    "service.close": Effect("force_service", "select forced from service_endpoints", "closed", {"service": "bank", "endpoint": "a"}),
    "service.auto": Effect("force_service", "select forced from service_endpoints", None, {"service": "bank", "endpoint": "a"}),
    "scope.lift": Effect("lift_scope", "select count(*) from parked_scopes", 0, {"scope": "bank"}),
    "scope.park": Effect("park_scope", "select count(*) from parked_scopes where scope = 'queue:mail' and probing", 1, {}, {"scope": "queue:mail", "duration": "5m", "probing": "1"}),
}  # fmt: skip


class DropOld(Backfill):
    """A drop alone, of a table of the application."""

    name, title = "old", "Drops shop.retired_orders."
    defaults = {"source": "shop.retired_orders"}
    needs_platform = copies = False

    def check(self, connection, source):
        return []

    def copy(self, connection, batch):
        return BatchResult(0)

    def verify(self, connection, source):
        return [CheckFinding("ok", "verify", "nothing is to be compared")]

    def rollback(self, connection, source, finished):
        return []


@pytest.fixture
def own_backfills() -> Iterator[None]:
    before = dict(declare.declared)

    def lower(connection: Any, keys: list[int]) -> int:
        return int(
            connection.execute(
                "update shop.users set email = lower(email) where id = any(%s)", (keys,)
            ).rowcount
        )

    for name in ("lower_emails", "walking", "resting", "copied"):
        declare.backfill(name, table="shop.users", rollback=lambda connection: None)(lower)
    declare.declared["old"] = DropOld()  # type: ignore[assignment]  # found by its name, as the others are
    yield
    declare.declared.clear()
    declare.declared.update(before)


def furnish(database: Database) -> dict[str, Any]:
    """Something for each act to work on; the names that EFFECTS uses."""
    run = database.query
    for queue in ("spare", "empty", "paused", "packhorse"):
        run("select declare_queue(%s)", queue)
    run("select pause_queue('paused', 'someone')")
    (waiting,) = enqueue(database)
    (later,) = enqueue(database)
    run("update message_queue set run_at = now() + interval '1 day' where id = %s", later)
    enqueue(database, 3, "mail")
    enqueue(database, 2, "slow")
    run("update message_queue set run_at = now() + interval '1 day' where queue = 'slow'")
    (letter,) = dead(database, 1, "letters")
    dead(database, 2, "letters")
    for name, source, kind, paused in (
        ("nightly", "sql", "report", None),
        ("rested", "sql", "effect", "someone"),
        ("retention.dead_letters", "packhorse", "packhorse.maintenance", None),
    ):
        run(
            "insert into schedules (name, message_type, queue, cron, source, payload, paused_at, paused_by)"
            " values (%s, %s, %s, '0 3 * * *', %s, jsonb_build_object('task', %s::text), case when %s::text is not null then now() end, %s)",
            name, kind, "packhorse" if source == "packhorse" else "default", source, name, paused, paused,
        )  # fmt: skip
    run("update dead_letters set dead_at = now() - interval '40 days' where id = %s", letter)
    declare_bank(database)
    run("select park_scope('bank', '5 minutes')")
    quiet = "00000000-0000-0000-0000-000000000008"
    for place, number in enumerate((WORKER, quiet)):
        run(
            "insert into workers (id, hostname, pid, version, queues, message_types, threads, lease_duration)"
            " values (%s, %s, 1, '1', '{default}', '{effect}', 1, '1 hour')", number, f"h{place}",
        )  # fmt: skip
    run("create schema shop")
    run("create table shop.users (id bigint primary key, email text)")
    run("insert into shop.users select n, 'User@Example.org' from generate_series(1, 20) n")
    run("create table shop.retired_orders (id bigint primary key)")
    run("analyze shop.users")
    for name, state, paused in (
        ("walking", "running", None),
        ("resting", "running", "someone"),
        ("copied", "copied", None),
    ):
        run(
            "insert into backfills (name, state, source, settings, carried, requested_by, source_rows, started_at, paused_at, paused_by)"
            " values (%s, %s, 'shop.users', '{\"source\": \"shop.users\"}', true, 'someone', 20, now(), case when %s::text is not null then now() end, %s)",
            name, state, paused, paused,
        )  # fmt: skip
    run(
        "insert into backfills (name, state, source, settings, requested_by, counters_seen, quiet_since)"
        " values ('old', 'verified', 'shop.retired_orders', '{\"source\": \"shop.retired_orders\"}', 'someone', '{0,0}', now() - interval '49 hours')"
    )
    for task, kind in (("retention.schedule_runs", "retention"), ("backfill.resting", "backfill")):
        run(
            "insert into maintenance_runs (task, kind, state, triggered_by, rows_done) values (%s, %s, 'paused', 'schedule', 5)",
            task, kind,
        )  # fmt: skip
    return {"waiting": waiting, "later": later, "letter": letter, "quiet": quiet}


@pytest.fixture
def shop(database: Database, own_backfills: None) -> Iterator[Database]:
    yield database
    database.query("drop schema if exists shop cascade")


def prepared(database: Database, name: str, names: dict[str, Any]) -> None:
    """What only one act needs, and would spoil another's picture."""
    if name == "worker.resume":
        database.query("select ask_worker(%s, 'quiet', 'someone', null)", names["quiet"])
    if name == "queues.resume":  # one that was paused alone stays so
        database.query("select pause_all_queues('someone')")
    if name == "service.auto":
        database.query("select force_service('bank', 'open', 'a', 'someone')")


def filled(texts: dict[str, str], names: dict[str, Any]) -> dict[str, str]:
    return {name: text.format(**names) for name, text in texts.items()}


def change(browser: Browser, name: str, target: dict[str, str], fields: dict[str, str]) -> Any:
    """As a person does it: preview where there is one, then the button."""
    act = ACTS[name]
    if act.preview is not None and act.load is None:
        form = f"/acts/{name}" + ("?" + "&".join(f"{k}={v}" for k, v in target.items()) if target else "")
        shown = browser.post(f"/acts/{name}", {**target, "step": "preview", **fields}, form_on=form)
        assert shown.status_code == 200, shown.text
        target = {**target, **kept(shown.text)}
        again = {key: value for key, value in fields.items() if key not in target}
        return browser.post(
            f"/acts/{name}",
            {**target, **again, "step": "do", "reason": "the why", "csrf": browser.csrf(form)},
        )
    return do(browser, name, target, reason="the why", **fields)


@pytest.mark.parametrize("name", EFFECTS)
def test_an_act_changes_the_database_is_recorded_and_is_refused_to_lower_roles(
    shop: Database, open_page: Callable[..., Page], name: str
) -> None:
    database, effect, act = shop, EFFECTS[name], ACTS[name]
    names = furnish(database)
    prepared(database, name, names)
    page = open_page(database, maintenance_url=database.admin_url)
    who = {role: page.browser(page.token(role.label, role.label)) for role in Role}
    doer = act.role.label
    look, wanted = effect.look.format(**names), effect.wanted
    wanted = wanted.format(who=doer) if isinstance(wanted, str) else wanted
    target, fields = filled(effect.target, names), filled(effect.fields, names)
    before = database.value(look)
    assert before != wanted, "the test would see nothing"
    recorded = "select count(*) from operator_actions where action = %s and operator = %s"
    for role in Role:
        if role < act.role:
            refused = who[role].post(
                act.path, {**target, **fields, "step": "do", "csrf": who[role].csrf("/")}
            )
            assert refused.status_code == 403 and who[role].get(act.path).status_code == 403
            assert f"This needs the role {doer}" in refused.text
    assert database.value(look) == before
    assert database.value(recorded, effect.action, "viewer") == 0
    answer = change(who[act.role], name, target, fields)
    if act.long is not None:
        said = ended(who[act.role], answer)
        assert 'class="notice ok" role="status"' in said, said.partition('role="status"')[2][:500]
    else:
        assert answer.status_code == (200 if act.show else 303), answer.text
    assert database.value(look) == wanted
    rows = database.query(
        "select distinct operator, reason from operator_actions where action = %s", effect.action
    )
    assert (doer, "the why") in rows and {row[0] for row in rows} <= {doer, "someone"}


def test_every_route_that_changes_something_has_a_test_of_its_effect() -> None:
    acts = {act.path: act.name for act in ACTS.values()}
    changing = {entry.path for entry in ROUTES if entry.method != "GET"}
    assert {acts[path] for path in changing if path in acts} == EFFECTS.keys()
    assert changing - acts.keys() == OTHERS.keys()
