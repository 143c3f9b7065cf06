"""Shared memory, folding and rendering (worker/observe/process_stats.py, fleet_stats.py, metrics.py):
FAILURES 67-69.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from array import array
from collections import deque

import pytest

from packhorse.worker.observe import process_stats as layout
from packhorse.worker.observe.fleet_stats import PARTS, RESTARTS, FleetStats
from packhorse.worker.observe.metric_table import DEFINITIONS, FLEET, PROCESS
from packhorse.worker.observe.metrics import FLEET_QUEUES, FleetCollector, render
from packhorse.worker.observe.process_stats import ACTORS, OUTCOMES, QUEUES, SIZE, TOTALS, ProcessStats
from packhorse.worker.runtime.meter import Meter
from packhorse.worker.runtime.running_ids import RunningIds
from packhorse.worker.runtime.slots import ThreadSlot
from tests.support.claimed import claimed
from tests.support.http import samples

FLEET_STATISTICS = {
    "queue_messages": [{"queue": "q", "state": "pending", "value": 3}],
    "queue_oldest_due_age_seconds": [{"queue": "q", "value": 1.5}],
    "queue_paused": [{"queue": "q", "value": 0}],
    "queue_forwarded": [{"queue": "q", "value": 1}],
    "conversations_blocked": [{"queue": "q", "value": 0}],
    "conversation_blocked_age_seconds": [{"queue": "q", "value": 0}],
    "dead_letters": [{"queue": "q", "value": 1}],
    "isolated_messages": 0,
    "refused_completions": 0,
    "workers": [{"state": "running", "value": 2}],
    "partition_runway_seconds": [{"table": "message_archive", "value": 600000}],
    "oldest_snapshot_age_seconds": 0.5,
    "scope_parked_seconds": [{"scope": "openai", "value": 12.5}],
    "service_breaker_state": [{"service": "ai", "endpoint": "http://a", "value": 2}],
    "service_endpoint_healthy": [{"service": "ai", "endpoint": "http://a", "value": 0}],
    "service_calls_total": [{"service": "ai", "endpoint": "http://a", "value": 12}],
    "service_failures_total": [{"service": "ai", "endpoint": "http://a", "value": 7}],
    "service_breaker_opened_total": [{"service": "ai", "endpoint": "http://a", "value": 1}],
    "clock_skew_seconds": -0.25,
    "table_dead_rows": [{"table": "message_queue", "value": 7}],
    "table_bytes": [{"table": "message_queue", "value": 8192}],
    "schedule_lag_seconds": [{"schedule": "s", "value": 0}],
    "schedule_missed_total": [{"schedule": "s", "value": 3}],
    "schedule_last_success_timestamp_seconds": [{"schedule": "s", "value": 1.7e9}],
    "maintenance_last_success_timestamp_seconds": [{"task": "retention.t", "value": 1.7e9}],
    "maintenance_rows_total": [{"task": "retention.t", "value": 12}],
    "backfill_rows_total": [{"backfill": "b", "outcome": "copied", "value": 12}],
    "backfill_done_ratio": [{"backfill": "b", "value": 0.5}],
    "backfill_remaining_seconds": [{"backfill": "b", "value": 3.5}],
}


OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def a_message(queue="q0", actor="a0", ran=0.05, waited=0.5):
    message = claimed(queue=queue, actor=actor)
    message.ran_seconds, message.due_seconds = ran, waited
    message.started_at = message.claimed_at
    return message


def running_in(slots):
    return lambda: [message for slot in slots if (message := slot.message) is not None]


def a_meter(stats, queues=10, actors=20, slot=None):
    slots = [slot or ThreadSlot(0, RunningIds(1))]
    return Meter(
        stats,
        [f"q{n}" for n in range(queues)],
        [f"a{n}" for n in range(actors)],
        running_in(slots),
        lambda: 0,
    )


def rendered(fleet_stats, fleet=None):
    return samples(render(FleetCollector(fleet_stats, "1.2.3", fleet))[0].decode())


#: Shown once they have something to say: a duty that fails, a step, actors that are `async def`, a relay.
ONLY_WHEN_USED = {
    "duty_failing_seconds",
    "steps_total",
    "worker_coroutines",
    "worker_busy_coroutines",
    "event_loop_blocked_total",
    "event_loop_blocked_seconds_total",
    "amqp_messages",
    "amqp_consumers",
}


def busy_board(children=1, queues=10, actors=20, outcomes=OUTCOMES):
    """A fleet_stats on which everything has happened that can happen, to every queue and actor."""
    fleet_stats = FleetStats(children, [lambda: 1] * children)
    for stats in fleet_stats.workers:
        slot = ThreadSlot(0, RunningIds(1))
        meter = a_meter(stats, queues, actors, slot)
        for outcome in outcomes:
            for n in range(max(queues, actors)):
                message = a_message(f"q{n % queues}", f"a{n % actors}")
                slot.enter(message, message.claimed_at)
                slot.leave()
                meter.finished(message, outcome)
        for result in layout.CLAIM_RESULTS:
            meter.claimed(result, 0.01)
        meter.publish()
        for loop in layout.LOOPS:
            if loop != "scheduler":  # lives in `packhorse scheduler`, which has one queue and one actor
                stats.tick(loop, 1.0)
        stats.states[layout.REGISTERED] = 1
    return fleet_stats


def test_what_the_pump_counts_is_what_is_shown():
    fleet_stats = FleetStats(1)
    meter = a_meter(fleet_stats.children[0])
    meter.done([a_message("q1", "a1", ran=4.0)])
    meter.done([a_message(ran=0.05), a_message(ran=0.1), a_message(ran=100.0)])
    meter.finished(a_message(), "retry")
    meter.finished(a_message(), "dead")
    meter.claimed("hit", 0.003)
    meter.publish()
    found = rendered(fleet_stats)
    assert found["messages_finished_total", (("outcome", "done"), ("queue", "q0"))] == 3
    assert found["messages_finished_total", (("outcome", "dead"), ("queue", "q0"))] == 1
    assert found["actor_messages_finished_total", (("actor", "a0"), ("outcome", "ok"))] == 3
    assert found["actor_messages_finished_total", (("actor", "a0"), ("outcome", "failed"))] == 2
    assert found["message_duration_seconds_bucket", (("le", "0.1"),)] == 4, (
        "a bound belongs to its own bucket"
    )
    assert found["message_duration_seconds_bucket", (("le", "+Inf"),)] == 6
    assert found["message_duration_seconds_count", ()] == 6
    assert found["message_duration_seconds_sum", ()] == pytest.approx(104.25)
    assert found["handler_seconds_total", (("queue", "q0"),)] == pytest.approx(100.25)
    assert found["handler_seconds_total", (("queue", "q1"),)] == 4
    assert found["claims_total", (("result", "hit"),)] == 1
    assert found["claim_seconds_bucket", (("le", "0.01"),)] == found["claim_seconds_count", ()] == 1


def test_steps_are_counted_as_stored_and_reused():
    fleet_stats = FleetStats(1)
    meter = Meter(fleet_stats.children[0], ["q0"], ["a0"], running_in([]), lambda: 0, lambda: (7, 3))
    meter.publish()
    found = rendered(fleet_stats)
    assert [found["steps_total", (("result", result),)] for result in ("stored", "reused")] == [7, 3]


def test_a_wait_counts_when_the_handler_starts_not_when_it_ends():
    """A handler may run for hours, or end its process: the count says what has started (alert
    PackhorseQueueNotStarting).
    """
    fleet_stats, slots = FleetStats(1), [ThreadSlot(index, RunningIds(4)) for index in range(4)]
    meter = Meter(fleet_stats.children[0], ["q0"], ["a0"], running_in(slots), lambda: 0)
    running = [a_message(waited=waited) for waited in (0.05, 5.0, 61.0)]
    for slot, message in zip(slots, running, strict=False):
        slot.enter(message, message.claimed_at)
    meter.publish()
    meter.publish()
    started = {
        name: value
        for (name, labels), value in rendered(fleet_stats).items()
        if ("queue", "q0") in labels and "le" not in dict(labels)
    }
    assert started["message_wait_seconds_count"] == 3 and started[
        "message_wait_seconds_sum"
    ] == pytest.approx(66.05)
    assert started["messages_finished_total"] == 0 and started["handler_seconds_total"] == 0
    for slot in slots:
        slot.leave()
    meter.done(running)
    meter.publish()
    found = rendered(fleet_stats)
    buckets = [
        found["message_wait_seconds_bucket", (("le", le), ("queue", "q0"))]
        for le in ("0.1", "1.0", "10.0", "60.0", "+Inf")
    ]
    assert buckets == [1, 1, 2, 2, 3], "counted once"
    assert sum(slot.starts for slot in slots) == 3


def test_no_start_is_lost_or_counted_twice_while_handler_threads_begin_messages():
    fleet_stats, slots, each = FleetStats(1), [ThreadSlot(index, RunningIds(4)) for index in range(4)], 5000
    meter = Meter(fleet_stats.children[0], ["q0"], ["a0"], running_in(slots), lambda: 0)
    ended = deque()

    def handle(slot):
        for _ in range(each):
            message = a_message()
            slot.enter(message, message.claimed_at)
            slot.leave()
            ended.append(message)

    threads = [threading.Thread(target=handle, args=(slot,)) for slot in slots]
    for thread in threads:
        thread.start()
    seen = [0.0]
    while any(thread.is_alive() for thread in threads) or ended:
        meter.publish()
        meter.done([ended.popleft() for _ in range(len(ended))])
        meter.publish()
        seen.append(rendered(fleet_stats)["message_wait_seconds_count", (("queue", "q0"),)])
    assert (
        seen == sorted(seen)
        and rendered(fleet_stats)["message_wait_seconds_count", (("queue", "q0"),)] == 4 * each
    )


def test_the_first_failure_of_a_queue_or_actor_is_an_increase():
    """A counter that appears at 1 has not increased for Prometheus; rare outcomes have a line only once they
    happen.
    """
    fleet_stats = FleetStats(1)
    meter = a_meter(fleet_stats.children[0], queues=1, actors=1)
    before = {
        dict(labels)["outcome"]: value
        for (name, labels), value in rendered(fleet_stats).items()
        if name.endswith("messages_finished_total")
    }
    assert before == {"done": 0, "retry": 0, "dead": 0, "ok": 0, "failed": 0}
    meter.finished(a_message(), "snooze")
    meter.publish()
    assert rendered(fleet_stats)["messages_finished_total", (("outcome", "snooze"), ("queue", "q0"))] == 1


@pytest.mark.slow
def test_a_thousand_replaced_children_cost_neither_memory_nor_output_and_no_counter_goes_back():
    fleet_stats = busy_board(children=2)
    text, memory = (
        render(FleetCollector(fleet_stats, "1"))[0],
        [bytes(cell.cast("B")) for cell in (fleet_stats._ended.totals,)],
    )
    key = ("messages_finished_total", (("outcome", "done"), ("queue", "q3")))
    before = rendered(fleet_stats)[key]
    for restart in range(1000):
        fleet_stats.fold(restart % 2)
        assert rendered(fleet_stats)[key] >= before if restart % 100 == 0 else True
        meter = a_meter(fleet_stats.children[restart % 2])
        meter.done([a_message("q3", "a3")])
        meter.publish()
    fleet_stats.fold(0)
    fleet_stats.fold(1)
    began = time.process_time()
    found = rendered(fleet_stats)
    assert time.process_time() - began < 1.0, "a scrape costs what it cost before the first restart"
    assert found[key] == before + 1000
    assert len(render(FleetCollector(fleet_stats, "1"))[0].splitlines()) <= len(text.splitlines()), (
        "no line per child"
    )
    assert len(bytes(fleet_stats._ended.totals.cast("B"))) == len(memory[0]) == TOTALS * 8
    assert len(fleet_stats.workers) == 2 and SIZE < 32_768


def test_a_fold_that_happens_while_somebody_reads_is_noticed(monkeypatch):
    fleet_stats = busy_board(children=1)
    whole = rendered(fleet_stats)
    real, reads = fleet_stats._sum, []

    def interrupted():
        reads.append(real())
        if len(reads) == 1:
            fleet_stats.fold(0)  # the child ended after its stats was read, or before: nobody knows
        return reads[-1]

    monkeypatch.setattr(fleet_stats, "_sum", interrupted)
    totals = fleet_stats.read()
    assert len(reads) == 2
    assert (
        totals.queues["q0"][layout.FINISHED]
        == whole["messages_finished_total", (("outcome", "done"), ("queue", "q0"))]
    )


def test_a_parent_killed_in_the_middle_of_a_fold_does_not_hold_up_a_scrape():
    fleet_stats = busy_board()
    fleet_stats.cells[0] += 1
    assert rendered(fleet_stats)


def lines(fleet_stats, accept=""):
    """Sample lines as Prometheus stores them, a series each: a bucket is one, too."""
    return [
        line
        for line in render(FleetCollector(fleet_stats, "1.2.3"), accept)[0].decode().splitlines()
        if line and not line.startswith("#")
    ]


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
@pytest.mark.parametrize("children", [1, 8])
def test_ten_queues_and_twenty_types_are_at_most_200_series_on_a_bad_day(children, accept):
    fleet_stats = busy_board(children, queues=10, actors=20, outcomes=("done", "retry", "dead"))
    shown, found = lines(fleet_stats, accept), rendered(fleet_stats)
    assert len(shown) <= 200
    assert len(shown) == len(set(shown)) == len(found)
    for queue in range(10):
        for outcome in ("done", "retry", "dead"):
            assert found["messages_finished_total", (("outcome", outcome), ("queue", f"q{queue}"))] > 0
    for actor in range(20):
        for outcome in ("ok", "failed"):
            assert found["actor_messages_finished_total", (("actor", f"a{actor}"), ("outcome", outcome))] > 0
    present = {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name, _ in found}
    assert present | ONLY_WHEN_USED == {definition.name for definition in PROCESS}, (
        "nothing was left out to save lines"
    )


def test_a_duty_that_fails_is_one_line_more_whatever_the_children_and_none_once_it_is_well():
    fleet_stats = busy_board(children=3)
    usual = lines(fleet_stats)
    for began, stats in zip(
        (time.monotonic() - 40, time.monotonic() - 9), fleet_stats.children, strict=False
    ):
        stats.duties.failing("rescue", "42501", began=began)
    key = ("duty_failing_seconds", (("duty", "rescue"), ("loop", "heartbeat")))
    assert len(lines(fleet_stats)) == len(usual) + 1 and 40 <= rendered(fleet_stats)[key] < 60
    for stats in fleet_stats.children:
        stats.duties.well("rescue")
    assert len(lines(fleet_stats)) == len(usual)


def test_every_other_outcome_of_a_queue_is_one_line_more():
    usual = lines(busy_board(queues=10, actors=20, outcomes=("done", "retry", "dead")))
    assert len(lines(busy_board(queues=10, actors=20))) == len(usual) + 10 * (len(OUTCOMES) - 3)


HOSTILE = [
    '"} 1\n# TYPE x counter\nx{a="',
    "\x00\x1b[2J",
    "\u202e" * 30,
    "é" * 200,
    "{}",
    "le",
    "other\n",
    "🐎" * 40,
]


@pytest.mark.parametrize("children", [1, 8])
@pytest.mark.slow
def test_series_are_bounded_whatever_the_names(children):
    """More queues and actors than there are places, in every child, and other ones after each restart."""
    fleet_stats = busy_board(children, queues=500, actors=500)
    for child in range(children):
        fleet_stats.fold(child)
        names = [HOSTILE[n % len(HOSTILE)] + str(n) for n in range(500)]
        slot = ThreadSlot(0, RunningIds(1))
        meter = Meter(fleet_stats.children[child], names, names, running_in([slot]), lambda: 0)
        messages = [a_message(name, name) for name in names]
        for message in messages:
            slot.enter(message, message.claimed_at)
            slot.leave()
        meter.done(messages)
        meter.publish()
    found = rendered(fleet_stats)
    for name, definition in DEFINITIONS.items():
        for label, places in (("queue", QUEUES), ("actor", ACTORS)):
            if label in definition.labels and definition in PROCESS and not name.startswith("amqp_"):
                values = {
                    dict(labels)[label] for sample, labels in found if sample in (name, f"{name}_count")
                }
                assert len(values) == places and "other" in values, name
    assert len(lines(fleet_stats)) == len(found) <= 660, "no name ends its line"
    assert sum(
        value for (name, _), value in found.items() if name == "message_wait_seconds_count"
    ) == children * (500 * len(OUTCOMES) + 500)
    done = sum(
        value
        for (name, labels), value in found.items()
        if name == "messages_finished_total" and ("outcome", "done") in labels
    )
    assert done == children * (500 + 500), "what has no series of its own counts in `other`"


def test_a_queue_that_is_not_configured_counts_as_other():
    fleet_stats = FleetStats(1)
    meter = a_meter(fleet_stats.children[0])
    meter.done([a_message("from user input", "whatever")])
    meter.publish()
    assert rendered(fleet_stats)["messages_finished_total", (("outcome", "done"), ("queue", "other"))] == 1


def test_what_rabbitmq_has_is_shown_of_named_queues_and_forgotten_when_nobody_knows():
    fleet_stats = FleetStats(2)
    relay = fleet_stats.children[1]
    relay.name(["q1", "q2"], [])
    relay.show_on_broker({"q1": (0, 0), "q2": (12, 3), "unnamed": (9, 9)})
    found = rendered(fleet_stats)
    shown = {
        (name, dict(labels)["queue"]): value
        for (name, labels), value in found.items()
        if name.startswith("amqp_")
    }
    assert shown == {
        ("amqp_messages", "q1"): 0,
        ("amqp_consumers", "q1"): 0,
        ("amqp_messages", "q2"): 12,
        ("amqp_consumers", "q2"): 3,
    }
    assert relay.ticks() == {}, "it stands beside the ticks"
    relay.show_on_broker({"q2": (1, 1)})
    assert ("amqp_messages", (("queue", "q1"),)) not in rendered(fleet_stats)
    relay.clear()
    assert relay.on_broker() == {}


def test_names_survive_what_people_call_things():
    stats = ProcessStats()
    names = ["plain", "émile-" + "x" * 200, "other", "", 'quote"\n\\']
    places, _ = stats.name(names, [])
    assert places["other"] == 0 and places[""] == 0
    assert stats.queues.read()[1] == "plain"
    fleet_stats = FleetStats(1)
    fleet_stats.children[0].name(names, [])
    assert rendered(fleet_stats)


def test_the_fleets_queues_are_bounded_too():
    many = [{"queue": f"q{n}", "state": "pending", "value": n} for n in range(500)]
    found = rendered(FleetStats(1), ({**FLEET_STATISTICS, "queue_messages": many}, 3.0))
    shown = {dict(labels)["queue"] for name, labels in found if name == "queue_messages"}
    assert len(shown) == FLEET_QUEUES and "q499" in shown


def test_every_defined_metric_is_rendered_with_its_type_and_labels():
    fleet_stats = busy_board()
    fleet_stats.duties.failing("fleet", "42501")
    fleet_stats.children[0].totals[layout.STEPS] = 1
    fleet_stats.children[0].states[layout.COROUTINES] = 10
    fleet_stats.children[0].show_on_broker({"q0": (7, 1)})
    text = render(FleetCollector(fleet_stats, "1", (FLEET_STATISTICS, 2.0)))[0].decode()
    found = samples(text)
    for name, definition in DEFINITIONS.items():
        assert f"# TYPE packhorse_{name} {definition.kind}" in text, name
        labels = [
            {key for key, _ in labels if key != "le"}
            for sample, labels in found
            if sample in (name, f"{name}_count")
        ]
        assert labels and all(seen == set(definition.labels) for seen in labels), name
    assert {dict(labels)["reason"] for name, labels in found if name == "process_restarts_total"} == set(
        RESTARTS
    )
    assert {dict(labels)["part"] for name, labels in found if name == "observability_errors_total"} == set(
        PARTS
    )
    assert found["fleet_age_seconds", ()] == 2.0 and len(FLEET) == 30


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: apt-get install prometheus)"
)
def test_promtool_finds_nothing_to_complain_about():
    text = render(FleetCollector(busy_board(), "1", (FLEET_STATISTICS, 2.0)))[0]
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_openmetrics_is_given_to_a_client_that_asks_for_it():
    text, content_type = render(FleetCollector(busy_board(), "1"), OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text") and text.endswith(b"# EOF\n")


def test_a_slab_is_empty_after_it_was_cleared():
    fleet_stats = busy_board()
    stats = fleet_stats.children[0]
    stats.clear()
    assert not any(stats.totals) and not any(stats.states) and stats.queues.read() == ["other"]
    assert array("d", stats.totals) == array("d", bytes(TOTALS * 8))


def test_a_process_that_fences_itself_counts_its_lost_leases():
    """It ends at once: nobody else can count them."""
    fleet_stats = FleetStats(1)
    a_meter(fleet_stats.children[0]).fenced([a_message("q0"), a_message("unknown")])
    assert rendered(fleet_stats)["leases_lost_total", ()] == 2
