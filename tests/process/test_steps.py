"""A step whose result was stored runs once, although its process was killed right after it (SPEC W3c)."""

from __future__ import annotations

import pytest

from tests.support.accounting import assert_every_message_ended_once, effects, quick_backoff, wait_for_end
from tests.support.http import free_port, metric
from tests.support.waiting import wait_until


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pays", "pays_async"])
def test_what_was_paid_for_before_the_process_was_killed_is_not_paid_for_again(
    database, ledger, start_daemon, kind
):
    quick_backoff(database)
    port = free_port()
    daemon = start_daemon(
        database, ledger, threads=1, coroutines=1, metrics_port=port
    ).wait_ready()  # one at a time: no kill comes while another one pays
    ids = effects(database, 3, "k", kind, kill=True)
    ids += effects(database, 5, "n", kind)
    wait_for_end(database, 60)
    states = assert_every_message_ended_once(database, ids)
    assert set(states.values()) == {"done"}
    keys = [*(f"k{n}" for n in range(3)), *(f"n{n}" for n in range(5))]
    assert ledger.counts("paid") == dict.fromkeys(keys, 1)
    assert ledger.counts("effect") == dict.fromkeys(keys, 1)
    assert ledger.counts("start") == {key: 2 if key.startswith("k") else 1 for key in keys}
    assert database.query(
        "select distinct s.name, s.value from message_archive a cross join lateral message_steps(a.id) s order by 2"
    ) == [("answer", f"answer to {key}") for key in keys]
    wait_until(lambda: metric(port, "steps_total", result="reused") == 3)
    assert "answer to" not in daemon.log and daemon.log.count("step_reused") == 3
    assert daemon.stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pays", "pays_async"])
def test_a_database_that_is_away_while_a_step_is_stored_does_not_cost_its_result(
    own_server, ledger, start_daemon, kind
):
    """The answer is there, the server restarts: the step waits, and nothing is paid for twice."""
    database = own_server.create_database()
    quick_backoff(database)
    daemon = start_daemon(database, ledger, threads=2, lease_seconds=30, drain_seconds=20).wait_ready()
    effects(database, 1, "m", kind, until_go=True)
    wait_until(lambda: ledger.counts("paid"))
    own_server.stop("immediate")
    ledger.path.with_suffix(".go").touch()
    wait_until(lambda: "going" in ledger.path.read_text())
    own_server.start()
    wait_for_end(database, 60)
    assert ledger.counts("paid") == {"m0": 1}
    assert database.query("select state, attempt, crashes from all_messages") == [("done", 1, 0)]
    assert daemon.stop() == 0
