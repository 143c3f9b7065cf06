"""packhorse health: text, JSON, one check, exit codes (SPEC O1, O5)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from packhorse.worker.exits import EXIT_FAILED, EXIT_OK, EXIT_SCHEMA, EXIT_UNAVAILABLE, EXIT_USAGE
from tests.support.cli import Cli

pytestmark = [pytest.mark.slow, pytest.mark.one_database]

DOCUMENT = (Path(__file__).parent.parent.parent / "docs" / "health.md").read_text()


@pytest.fixture
def cli(tmp_path, database):
    return Cli(tmp_path, database.url)


def late(database, by):
    database.query("select enqueue_message('default', 'effect')")
    database.query("update message_queue set run_at = clock_timestamp() - %s::interval", by)


def test_a_healthy_database_is_exit_0_with_a_line_per_check(cli):
    ran = cli("health")
    assert ran.code == EXIT_OK and ran.err == ""
    assert len(re.findall(r"^\w+ +(?:ok|absent)\b", ran.out, re.MULTILINE)) == 14
    assert ran.out.splitlines()[-1] == "ok: 9 ok, 5 absent"


def test_json_is_one_document_with_all_checks(cli):
    document = cli("health", "--json").document
    assert document["status"] == "ok" and len(document["checks"]) == 14
    assert all(set(row) == {"check_name", "status", "summary", "details"} for row in document["checks"])


def test_a_failing_check_is_exit_1(cli, database):
    late(database, "1 day")
    ran = cli("health")
    assert ran.code == EXIT_FAILED and re.search(r"^queue_health +fail ", ran.out, re.MULTILINE)
    assert cli("health", "--json").document["status"] == "fail"


def test_a_warning_is_exit_0_unless_strict(cli, database):
    late(database, "2 minutes")
    assert cli("health").code == EXIT_OK
    ran = cli("health", "--strict", "--json")
    assert ran.code == EXIT_FAILED and ran.document["status"] == "warn"


def test_one_check_shows_its_details_and_decides_alone(cli, database):
    late(database, "1 day")
    ran = cli("health", "--check", "queue_health")
    assert ran.code == EXIT_FAILED and "oldest_due_seconds" in ran.out
    other = cli("health", "--check", "stale_locks", "--json")
    assert other.code == EXIT_OK and [row["check_name"] for row in other.document["checks"]] == [
        "stale_locks"
    ]


def test_a_check_that_is_absent_is_exit_0(cli):
    assert cli("health", "--check", "circuit_breakers", "--strict").code == EXIT_OK


def test_an_unknown_check_is_a_usage_error_that_names_the_known_ones(cli):
    ran = cli("health", "--check", "queue", "--json")
    assert ran.code == EXIT_USAGE and ran.error["field"] == "check" and "queue_health" in ran.error["hint"]


def test_no_database_is_exit_69_and_no_schema_78(tmp_path, empty_database):
    assert Cli(tmp_path, "postgresql://u@127.0.0.1:1/x")("health").code == EXIT_UNAVAILABLE
    assert Cli(tmp_path, empty_database.admin_url)("health").code == EXIT_SCHEMA


def test_every_check_is_documented_and_every_documented_one_exists(cli):
    documented = re.findall(r"^\| `(\w+)` \|", DOCUMENT, re.MULTILINE)
    assert documented == [row["check_name"] for row in cli("health", "--json").document["checks"]]
