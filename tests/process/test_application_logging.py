"""Every dead letter leaves its line, whatever an application does to logging (SPEC P8, W10b); its own lines
are as it wants them.
"""

from __future__ import annotations

import json
import os
from unittest import mock

import pytest

from tests.support.waiting import wait_until

ACTORS = "tests.support.logging_actors"


@pytest.fixture
def how(tmp_path):
    with mock.patch.dict(os.environ, {"LEDGER": str(tmp_path / "unused")}):
        from tests.support.logging_actors import HOW
    return list(HOW)


def enqueue(database, actor, **payload):
    return database.value(
        "select message_id from enqueue_message('default', %s, %s)", actor, json.dumps(payload)
    )


def ended(database, message_id):
    wait_until(
        lambda: database.value(
            "select state in ('done', 'dead') from all_messages where id = %s", message_id
        ),
        20,
    )


def lines_of(daemon, event):
    return [json.loads(line) for line in daemon.log.splitlines() if f'"{event}"' in line]


def dead_letter_has_one_line(database, daemon, key):
    message_id = enqueue(database, "boom", key=key)
    ended(database, message_id)
    wait_until(
        lambda: [line["message_id"] for line in lines_of(daemon, "message_failed")].count(message_id) >= 1,
        10,
        f"a line after: {key}",
    )
    assert [line["message_id"] for line in lines_of(daemon, "message_failed")].count(message_id) == 1, key


@pytest.mark.slow
@pytest.mark.parametrize(
    "at_import", ["dictConfig", "fileConfig", "basicConfig", "every logger disabled", "logging.disable"]
)
def test_logging_that_is_set_up_at_import_does_not_silence_the_worker(
    database, ledger, start_daemon, at_import
):
    daemon = start_daemon(
        database, ledger, ACTORS, {"LOGGING_AT_IMPORT": at_import}, log_format="json"
    ).wait_ready()
    dead_letter_has_one_line(database, daemon, at_import)
    assert daemon.stop() == 0
    assert len(lines_of(daemon, "worker_stopped")) == 1


@pytest.mark.slow
def test_logging_that_a_handler_sets_up_does_not_silence_the_worker(database, ledger, start_daemon, how):
    """One after another in the same process, each on top of those before."""
    daemon = start_daemon(database, ledger, ACTORS, log_format="json", threads=1).wait_ready()
    dead_letter_has_one_line(database, daemon, "before")
    for name in how:
        ended(database, enqueue(database, "sets_up_logging", how=name))
        dead_letter_has_one_line(database, daemon, name)
    assert daemon.stop() == 0
    assert len(lines_of(daemon, "worker_stopped")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("at_import", ["dictConfig", "dictConfig of packhorse", "fileConfig", "basicConfig"])
def test_lines_of_the_application_are_where_and_how_it_wants_them(database, ledger, start_daemon, at_import):
    daemon = start_daemon(
        database, ledger, ACTORS, {"LOGGING_AT_IMPORT": at_import}, log_format="json"
    ).wait_ready()
    ended(database, enqueue(database, "speaks", text="something"))
    dead_letter_has_one_line(database, daemon, "after that")
    assert daemon.stop() == 0
    own = ledger.path.with_suffix(".own.log").read_text()
    assert own.count("OWN their.app said something\n") == 1
    assert "said something" not in daemon.log
    # ours come only where the application has asked for them, and then with the texts that ours are masked
    # of: its own choice
    assert ("OWN packhorse" in own) == (at_import == "dictConfig of packhorse")


@pytest.mark.slow
def test_lines_of_an_application_that_sets_up_nothing_are_like_ours(database, ledger, start_daemon):
    daemon = start_daemon(database, ledger, ACTORS, log_format="json").wait_ready()
    ended(database, enqueue(database, "speaks", text="something"))
    assert daemon.stop() == 0
    (line,) = lines_of(daemon, "said something")
    assert line["logger"] == "their.app" and line["actor"] == "speaks"
