"""Shared memory, folding and rendering (worker/observe/slab.py, board.py, metrics.py): FAILURES 67-69."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from array import array
from collections import deque
from types import SimpleNamespace

import pytest

from packhorse.worker.observe import slab as layout
from packhorse.worker.observe.board import PARTS, RESTARTS, Board
from packhorse.worker.observe.metrics import DEFINITIONS, FLEET, FLEET_QUEUES, PROCESS, BoardCollector, render
from packhorse.worker.observe.slab import ACTORS, OUTCOMES, QUEUES, SIZE, TOTALS, Slab
from packhorse.worker.runtime.meter import Meter
from packhorse.worker.runtime.slots import RunningIds, Slot
from tests.support.http import samples

FLEET_STATISTICS = {
    "queue_messages": [{"queue": "q", "state": "pending", "value": 3}],
    "queue_oldest_due_age_seconds": [{"queue": "q", "value": 1.5}],
    "queue_paused": [{"queue": "q", "value": 0}],
    "conversations_blocked": [{"queue": "q", "value": 0}],
    "conversation_blocked_age_seconds": [{"queue": "q", "value": 0}],
    "dead_letters": [{"queue": "q", "value": 1}],
    "isolated_messages": 0,
    "refused_completions": 0,
    "workers": [{"state": "running", "value": 2}],
    "partition_runway_seconds": [{"table": "message_archive", "value": 600000}],
    "oldest_snapshot_age_seconds": 0.5,
    "clock_skew_seconds": -0.25,
    "table_dead_rows": [{"table": "message_queue", "value": 7}],
    "table_bytes": [{"table": "message_queue", "value": 8192}],
    "schedule_lag_seconds": [{"schedule": "s", "value": 0}],
    "schedule_missed_total": [{"schedule": "s", "value": 3}],
    "schedule_last_success_timestamp_seconds": [{"schedule": "s", "value": 1.7e9}],
    "maintenance_last_success_timestamp_seconds": [{"task": "retention.t", "value": 1.7e9}],
    "maintenance_rows_total": [{"task": "retention.t", "value": 12}],
}


OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def a_message(queue="q0", actor="a0", ran=0.05, waited=0.5):
    return SimpleNamespace(
        id=1,
        queue_name=queue,
        actor_name=actor,
        started=True,
        ran_seconds=ran,
        due_seconds=waited,
        started_at=1.0,
        claimed_at=1.0,
        wait_counted=False,
    )


def a_meter(slab, queues=10, actors=20, slot=None):
    slots = [slot or Slot(0, RunningIds(1))]
    return Meter(slab, [f"q{n}" for n in range(queues)], [f"a{n}" for n in range(actors)], slots, lambda: 0)


def rendered(board, fleet=None):
    return samples(render(BoardCollector(board, "1.2.3", fleet))[0].decode())


def busy_board(children=1, queues=10, actors=20, outcomes=OUTCOMES):
    """A board on which everything has happened that can happen, to every queue and actor."""
    board = Board(children, [lambda: 1] * children)
    for slab in board.workers:
        slot = Slot(0, RunningIds(1))
        meter = a_meter(slab, queues, actors, slot)
        for outcome in outcomes:
            for n in range(max(queues, actors)):
                message = a_message(f"q{n % queues}", f"a{n % actors}")
                slot.enter(message, 1.0)
                slot.leave()
                meter.finished(message, outcome)
        for result in layout.CLAIM_RESULTS:
            meter.claimed(result, 0.01)
        meter.publish()
        for loop in layout.LOOPS:
            if loop != "scheduler":  # lives in `packhorse scheduler`, which has one queue and one actor
                slab.tick(loop, 1.0)
        slab.states[layout.REGISTERED] = 1
    return board


def test_what_the_pump_counts_is_what_is_shown():
    board = Board(1)
    meter = a_meter(board.slabs[0])
    meter.done([a_message("q1", "a1", ran=4.0)])
    meter.done([a_message(ran=0.05), a_message(ran=0.1), a_message(ran=100.0)])
    meter.finished(a_message(), "retry")
    meter.finished(a_message(), "dead")
    meter.claimed("hit", 0.003)
    meter.publish()
    found = rendered(board)
    assert found["messages_finished_total", (("outcome", "done"), ("queue", "q0"))] == 3
    assert found["messages_finished_total", (("outcome", "dead"), ("queue", "q0"))] == 1
    assert found["actor_messages_finished_total", (("actor", "a0"), ("outcome", "ok"))] == 3
    assert found["actor_messages_finished_total", (("actor", "a0"), ("outcome", "failed"))] == 2
    assert found["message_duration_seconds_bucket", (("le", "0.1"),)] == 4, "a bound belongs to its own bucket"
    assert found["message_duration_seconds_bucket", (("le", "+Inf"),)] == 6
    assert found["message_duration_seconds_count", ()] == 6
    assert found["message_duration_seconds_sum", ()] == pytest.approx(104.25)
    assert found["handler_seconds_total", (("queue", "q0"),)] == pytest.approx(100.25)
    assert found["handler_seconds_total", (("queue", "q1"),)] == 4
    assert found["claims_total", (("result", "hit"),)] == 1
    assert found["claim_seconds_bucket", (("le", "0.01"),)] == found["claim_seconds_count", ()] == 1


def test_a_wait_counts_when_the_handler_starts_not_when_it_ends():
    """A handler may run for hours, or end its process: the count says what has started (alert PackhorseQueueNotStarting)."""
    board, slots = Board(1), [Slot(index, RunningIds(4)) for index in range(4)]
    meter = Meter(board.slabs[0], ["q0"], ["a0"], slots, lambda: 0)
    running = [a_message(waited=waited) for waited in (0.05, 5.0, 61.0)]
    for slot, message in zip(slots, running, strict=False):
        slot.enter(message, 1.0)
    meter.publish()
    meter.publish()
    started = {name: value for (name, labels), value in rendered(board).items() if ("queue", "q0") in labels and "le" not in dict(labels)}
    assert started["message_wait_seconds_count"] == 3 and started["message_wait_seconds_sum"] == pytest.approx(66.05)
    assert started["messages_finished_total"] == 0 and started["handler_seconds_total"] == 0
    for slot in slots:
        slot.leave()
    meter.done(running)
    meter.publish()
    found = rendered(board)
    buckets = [found["message_wait_seconds_bucket", (("le", le), ("queue", "q0"))] for le in ("0.1", "1.0", "10.0", "60.0", "+Inf")]
    assert buckets == [1, 1, 2, 2, 3], "counted once"
    assert sum(slot.starts for slot in slots) == 3


def test_no_start_is_lost_or_counted_twice_while_handler_threads_begin_messages():
    board, slots, each = Board(1), [Slot(index, RunningIds(4)) for index in range(4)], 5000
    meter = Meter(board.slabs[0], ["q0"], ["a0"], slots, lambda: 0)
    ended = deque()

    def handle(slot):
        for _ in range(each):
            message = a_message()
            slot.enter(message, 1.0)
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
        seen.append(rendered(board)["message_wait_seconds_count", (("queue", "q0"),)])
    assert seen == sorted(seen) and rendered(board)["message_wait_seconds_count", (("queue", "q0"),)] == 4 * each


def test_the_first_failure_of_a_queue_or_actor_is_an_increase():
    """A counter that appears at 1 has not increased for Prometheus; rare outcomes have a line only once they happen."""
    board = Board(1)
    meter = a_meter(board.slabs[0], queues=1, actors=1)
    before = {dict(labels)["outcome"]: value for (name, labels), value in rendered(board).items() if name.endswith("messages_finished_total")}
    assert before == {"done": 0, "retry": 0, "dead": 0, "ok": 0, "failed": 0}
    meter.finished(a_message(), "snooze")
    meter.publish()
    assert rendered(board)["messages_finished_total", (("outcome", "snooze"), ("queue", "q0"))] == 1


@pytest.mark.slow
def test_a_thousand_replaced_children_cost_neither_memory_nor_output_and_no_counter_goes_back():
    board = busy_board(children=2)
    text, memory = render(BoardCollector(board, "1"))[0], [bytes(cell.cast("B")) for cell in (board._ended.totals,)]
    key = ("messages_finished_total", (("outcome", "done"), ("queue", "q3")))
    before = rendered(board)[key]
    for restart in range(1000):
        board.fold(restart % 2)
        assert rendered(board)[key] >= before if restart % 100 == 0 else True
        meter = a_meter(board.slabs[restart % 2])
        meter.done([a_message("q3", "a3")])
        meter.publish()
    board.fold(0)
    board.fold(1)
    began = time.process_time()
    found = rendered(board)
    assert time.process_time() - began < 1.0, "a scrape costs what it cost before the first restart"
    assert found[key] == before + 1000
    assert len(render(BoardCollector(board, "1"))[0].splitlines()) <= len(text.splitlines()), "no line per child"
    assert len(bytes(board._ended.totals.cast("B"))) == len(memory[0]) == TOTALS * 8
    assert len(board.workers) == 2 and SIZE < 32_768


def test_a_fold_that_happens_while_somebody_reads_is_noticed(monkeypatch):
    board = busy_board(children=1)
    whole = rendered(board)
    real, reads = board._sum, []

    def interrupted():
        reads.append(real())
        if len(reads) == 1:
            board.fold(0)  # the child ended after its slab was read, or before: nobody knows
        return reads[-1]

    monkeypatch.setattr(board, "_sum", interrupted)
    totals = board.read()
    assert len(reads) == 2
    assert totals.queues["q0"][layout.FINISHED] == whole["messages_finished_total", (("outcome", "done"), ("queue", "q0"))]


def test_a_parent_killed_in_the_middle_of_a_fold_does_not_hold_up_a_scrape():
    board = busy_board()
    board.cells[0] += 1
    assert rendered(board)


def lines(board, accept=""):
    """Sample lines as Prometheus stores them, a series each: a bucket is one, too."""
    return [line for line in render(BoardCollector(board, "1.2.3"), accept)[0].decode().splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
@pytest.mark.parametrize("children", [1, 8])
def test_ten_queues_and_twenty_types_are_at_most_200_series_on_a_bad_day(children, accept):
    board = busy_board(children, queues=10, actors=20, outcomes=("done", "retry", "dead"))
    shown, found = lines(board, accept), rendered(board)
    assert len(shown) <= 200
    assert len(shown) == len(set(shown)) == len(found)
    for queue in range(10):
        for outcome in ("done", "retry", "dead"):
            assert found["messages_finished_total", (("outcome", outcome), ("queue", f"q{queue}"))] > 0
    for actor in range(20):
        for outcome in ("ok", "failed"):
            assert found["actor_messages_finished_total", (("actor", f"a{actor}"), ("outcome", outcome))] > 0
    present = {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name, _ in found}
    assert present | {"duty_failing_seconds"} == {definition.name for definition in PROCESS}, "nothing was left out to save lines"


def test_a_duty_that_fails_is_one_line_more_whatever_the_children_and_none_once_it_is_well():
    board = busy_board(children=3)
    usual = lines(board)
    for began, slab in zip((time.monotonic() - 40, time.monotonic() - 9), board.slabs, strict=False):
        slab.duties.failing("rescue", "42501", began=began)
    key = ("duty_failing_seconds", (("duty", "rescue"), ("loop", "heartbeat")))
    assert len(lines(board)) == len(usual) + 1 and 40 <= rendered(board)[key] < 60
    for slab in board.slabs:
        slab.duties.well("rescue")
    assert len(lines(board)) == len(usual)


def test_every_other_outcome_of_a_queue_is_one_line_more():
    usual = lines(busy_board(queues=10, actors=20, outcomes=("done", "retry", "dead")))
    assert len(lines(busy_board(queues=10, actors=20))) == len(usual) + 10 * (len(OUTCOMES) - 3)


HOSTILE = ['"} 1\n# TYPE x counter\nx{a="', "\x00\x1b[2J", "\u202e" * 30, "é" * 200, "{}", "le", "other\n", "🐎" * 40]


@pytest.mark.parametrize("children", [1, 8])
@pytest.mark.slow
def test_series_are_bounded_whatever_the_names(children):
    """More queues and actors than there are places, in every child, and other ones after each restart."""
    board = busy_board(children, queues=500, actors=500)
    for child in range(children):
        board.fold(child)
        names = [HOSTILE[n % len(HOSTILE)] + str(n) for n in range(500)]
        slot = Slot(0, RunningIds(1))
        meter = Meter(board.slabs[child], names, names, [slot], lambda: 0)
        messages = [a_message(name, name) for name in names]
        for message in messages:
            slot.enter(message, 1.0)
            slot.leave()
        meter.done(messages)
        meter.publish()
    found = rendered(board)
    for name, definition in DEFINITIONS.items():
        for label, places in (("queue", QUEUES), ("actor", ACTORS)):
            if label in definition.labels and definition in PROCESS:
                values = {dict(labels)[label] for sample, labels in found if sample in (name, f"{name}_count")}
                assert len(values) == places and "other" in values, name
    assert len(lines(board)) == len(found) <= 660, "no name ends its line"
    assert sum(value for (name, _), value in found.items() if name == "message_wait_seconds_count") == children * (500 * len(OUTCOMES) + 500)
    done = sum(value for (name, labels), value in found.items() if name == "messages_finished_total" and ("outcome", "done") in labels)
    assert done == children * (500 + 500), "what has no series of its own counts in `other`"


def test_a_queue_that_is_not_configured_counts_as_other():
    board = Board(1)
    meter = a_meter(board.slabs[0])
    meter.done([a_message("from user input", "whatever")])
    meter.publish()
    assert rendered(board)["messages_finished_total", (("outcome", "done"), ("queue", "other"))] == 1


def test_names_survive_what_people_call_things():
    slab = Slab()
    names = ["plain", "émile-" + "x" * 200, "other", "", 'quote"\n\\']
    places, _ = slab.name(names, [])
    assert places["other"] == 0 and places[""] == 0
    assert slab.queues.read()[1] == "plain"
    board = Board(1)
    board.slabs[0].name(names, [])
    assert rendered(board)


def test_the_fleets_queues_are_bounded_too():
    many = [{"queue": f"q{n}", "state": "pending", "value": n} for n in range(500)]
    found = rendered(Board(1), ({**FLEET_STATISTICS, "queue_messages": many}, 3.0))
    shown = {dict(labels)["queue"] for name, labels in found if name == "queue_messages"}
    assert len(shown) == FLEET_QUEUES and "q499" in shown


def test_every_defined_metric_is_rendered_with_its_type_and_labels():
    board = busy_board()
    board.duties.failing("fleet", "42501")
    text = render(BoardCollector(board, "1", (FLEET_STATISTICS, 2.0)))[0].decode()
    found = samples(text)
    for name, definition in DEFINITIONS.items():
        assert f"# TYPE packhorse_{name} {definition.kind}" in text, name
        labels = [{key for key, _ in labels if key != "le"} for sample, labels in found if sample in (name, f"{name}_count")]
        assert labels and all(seen == set(definition.labels) for seen in labels), name
    assert {dict(labels)["reason"] for name, labels in found if name == "process_restarts_total"} == set(RESTARTS)
    assert {dict(labels)["part"] for name, labels in found if name == "observability_errors_total"} == set(PARTS)
    assert found["fleet_age_seconds", ()] == 2.0 and len(FLEET) == 20


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: apt-get install prometheus)")
def test_promtool_finds_nothing_to_complain_about():
    text = render(BoardCollector(busy_board(), "1", (FLEET_STATISTICS, 2.0)))[0]
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_openmetrics_is_given_to_a_client_that_asks_for_it():
    text, content_type = render(BoardCollector(busy_board(), "1"), OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text") and text.endswith(b"# EOF\n")


def test_a_slab_is_empty_after_it_was_cleared():
    board = busy_board()
    slab = board.slabs[0]
    slab.clear()
    assert not any(slab.totals) and not any(slab.states) and slab.queues.read() == ["other"]
    assert array("d", slab.totals) == array("d", bytes(TOTALS * 8))


def test_a_process_that_fences_itself_counts_its_lost_leases():
    """It ends at once: nobody else can count them."""
    board = Board(1)
    a_meter(board.slabs[0]).fenced([a_message("q0"), a_message("unknown")])
    assert rendered(board)["leases_lost_total", ()] == 2
