"""packhorse service: list, open, close, auto (SPEC W10, O5)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from packhorse.worker.exits import EXIT_FAILED, EXIT_OK, EXIT_USAGE
from tests.support.cli import Cli
from tests.support.postgres import Database

pytestmark = pytest.mark.slow
ROW = {
    "open_ratio": 0.5,
    "least_calls": 5,
    "close_after": 3,
    "reset_after": 60,
    "judged_over": 60,
    "probe_lease": 40,
    "check_every": 30,
}


@pytest.fixture
def cli(tmp_path: Path, database: Database) -> Cli:
    database.query(
        "select declare_service('openai', %s)",
        json.dumps([ROW | {"endpoint": "http://a"}, ROW | {"endpoint": "http://b", "fallback": True}]),
    )
    return Cli(tmp_path, database.url, USER="ada", LOGNAME="ada")


def test_an_operator_holds_a_breaker_and_lets_it_go(cli: Cli, database: Database) -> None:
    done = cli("service", "open", "openai", "--endpoint", "http://a", "--reason", "billing")
    assert (done.code, done.out) == (EXIT_OK, "openai: 1 endpoint(s) held open\n")
    rows = cli("service", "list", "--json").document
    assert [(row["endpoint"], row["forced"], row["fallback"]) for row in rows] == [
        ("http://a", "open", False),
        ("http://b", None, True),
    ]
    assert "http://b" in cli("service", "list", "openai").out
    assert cli("service", "close", "openai", "--json").document["changed"] == 2
    assert cli("service", "auto", "openai").out == "openai: 2 endpoint(s) work by themselves again\n"
    assert cli("service", "auto", "openai").out == "openai: nothing to change\n"
    found = database.query("select operator, reason, details ->> 'state' from operator_actions order by id")
    assert found == [("ada", "billing", "open"), ("ada", None, "closed"), ("ada", None, "automatic")]


def test_what_does_not_exist_is_named_with_a_near_miss(cli: Cli) -> None:
    for arguments, field in (
        (("open", "openia"), "service"),
        (("list", "openia"), "service"),
        (("open", "openai", "--endpoint", "http://c"), "endpoint"),
    ):
        done = cli("service", *arguments, "--json")
        assert done.code in (EXIT_FAILED, EXIT_USAGE) and done.error["field"] == field and done.error["hint"]


def test_health_names_a_service_that_cannot_be_called(cli: Cli) -> None:
    cli("service", "open", "openai")
    done = cli("health", "--check", "circuit_breakers")
    assert done.code == EXIT_FAILED and "cannot be called: openai" in done.out


def test_config_check_reads_the_services_of_the_file(cli: Cli) -> None:
    (cli.folder / "packhorse.toml").write_text(
        '[services.openai]\nurl = "https://api.example.com"\nkind = "ai_agnet"\nhealth_chek_url = "x"\n'
    )
    done = cli("config", "check", "--offline")
    assert (
        done.code == EXIT_USAGE
        and "did you mean 'ai_agent'" in done.err
        and "did you mean 'health_check_url'" in done.err
    )
    (cli.folder / "packhorse.toml").write_text('[services.openai]\nurl = "https://api.example.com"\n')
    assert cli("config", "check", "--offline").code == EXIT_OK
