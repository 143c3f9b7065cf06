"""packhorse scope: list, park, lift (SPEC W10, O5)."""

from __future__ import annotations

import json

import pytest

from packhorse.worker.exits import EXIT_OK, EXIT_USAGE
from tests.support.cli import Cli

pytestmark = [pytest.mark.slow, pytest.mark.one_database]

REGISTER = "select register_worker(gen_random_uuid(), 'h', 1, '0', '{default}', '{ask}', 1, interval '1 minute', p_policies => %s)"


@pytest.fixture
def cli(tmp_path, database):
    database.query(REGISTER, json.dumps({"ask": {"queue": "default", "services": ["openai"]}}))
    return Cli(tmp_path, database.url)


def starts(database):
    """The types of which a message may start now."""
    return [
        row[0]
        for row in database.query(
            "select message_type from claim_messages(gen_random_uuid(), '{default}', 10) order by 1"
        )
    ]


def test_what_is_parked_is_listed_and_does_not_start_until_it_is_lifted(cli, database):
    database.query("select enqueue_message('default', t) from unnest('{ask,ask,other}'::text[]) t")
    ran = cli("scope", "park", "openai", "--for", "30m", "--reason", "maintenance there", "--operator", "ann")
    assert ran.code == EXIT_OK and ran.out.startswith("openai is parked until ")
    assert starts(database) == ["other"]
    (row,) = cli("scope", "list", "--json").document
    expected = ("openai", "parked", ["ask"], 2, "ann", "maintenance there")
    assert (
        tuple(row[key] for key in ("scope", "state", "message_types", "waiting", "parked_by", "reason"))
        == expected
    )
    listed = cli("scope", "list").out
    assert "openai" in listed and "maintenance there" in listed
    assert cli("scope", "lift", "openai", "--json", "--operator", "bob").document == {
        "scope": "openai",
        "lifted": True,
    }
    assert starts(database) == ["ask", "ask"]
    assert cli("scope", "list").out == "nothing is parked\n"
    assert cli("scope", "lift", "openai").out == "openai was not parked\n"
    acts = database.query("select action, operator, reason from operator_actions order by id")
    assert acts == [("park_scope", "ann", "maintenance there"), ("lift_scope", "bob", None)]


def test_a_scope_that_nobody_names_is_refused_with_the_near_miss(cli, database):
    ran = cli("scope", "park", "opnai", "--for", "5m")
    assert ran.code == EXIT_USAGE and "Did you mean 'openai'?" in ran.err
    assert database.value("select count(*) from scopes") == 0
    assert cli("scope", "park", "opnai", "--for", "5m", "--type", "ask").code == EXIT_OK


@pytest.mark.parametrize("scope", ["actor:ask", "queue:default"])
def test_an_actor_and_a_queue_are_scopes(cli, database, scope):
    database.query("select enqueue_message('default', 'ask')")
    assert cli("scope", "park", scope, "--for", "5m").code == EXIT_OK
    assert starts(database) == []


def test_a_person_may_shorten_it_and_let_it_probe(cli, database):
    cli("scope", "park", "openai", "--for", "3d")
    ran = cli("scope", "park", "openai", "--for", "0s", "--probing", "--json")
    assert ran.document["probing"] is True
    database.query("select enqueue_message('default', 'ask') from generate_series(1, 2)")
    assert starts(database) == ["ask"]
    assert [row["state"] for row in cli("scope", "list", "--json").document] == ["probing"]


@pytest.mark.parametrize("arguments", [["--for", "soon"], ["--for", "-5m"], [], ["--for", "99y"]])
def test_a_time_that_is_none_is_refused(cli, database, arguments):
    ran = cli("scope", "park", "openai", *arguments)
    assert ran.code == EXIT_USAGE and len(ran.err.strip().splitlines()) <= 2
    assert database.value("select count(*) from scopes") == 0


def test_the_failure_breaker_of_a_queue_is_set_shown_and_taken_back(cli):
    assert cli("queue", "set", "default", "failure_breaker=5").code == EXIT_OK
    assert cli("queue", "show", "default", "--json").document["failure_breaker"] == 5
    assert cli("queue", "set", "default", "failure_breaker=0").code == EXIT_USAGE
    assert cli("queue", "set", "default", "failure_breaker=none").code == EXIT_OK
    assert cli("queue", "show", "default", "--json").document["failure_breaker"] is None
