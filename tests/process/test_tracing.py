"""Spans across real processes: linked, exported before a drain ends; a dead collector harms nobody; off is
off.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support.accounting import effects
from tests.support.http import free_port, metric, problems
from tests.support.waiting import wait_until
from tests.support.workers import ROOT

pytestmark = pytest.mark.slow

ACTORS = "tests.support.traced_actors"
#: A producer of its own: its broker traces because it was told to.
PRODUCER = """
import dramatiq
from packhorse import PostgresBroker
from packhorse.worker.attempt.middleware.tracing import Tracing

broker = PostgresBroker()
broker.add_middleware(Tracing())
dramatiq.set_broker(broker)
from opentelemetry import trace
from tests.support.traced_actors import effect
effect.send("a")
trace.get_tracer_provider().force_flush()
"""


def _spans(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_span_of_a_worker_links_to_the_span_of_another_process_and_is_exported_before_it_ends(
    database, ledger, start_daemon, tmp_path
):
    path = tmp_path / "spans"
    subprocess.run(
        [sys.executable, "-c", PRODUCER],
        check=True,
        cwd=ROOT,
        timeout=60,
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "DATABASE_URL": database.url,
            "SPANS": str(path),
        },
    )
    (sent,) = _spans(path)
    daemon = start_daemon(
        database, ledger, ACTORS, {"SPANS": str(path)}, tracing=True, processes=2
    ).wait_ready()
    wait_until(lambda: ledger.counts("effect")["a"] == 1)
    assert daemon.stop() == 0, daemon.log
    (processed,) = [span for span in _spans(path) if span["name"] == "process default"]
    assert processed["links"] == [sent["trace"]] and processed["trace"] != sent["trace"]
    assert (
        processed["messaging.message.id"] == sent["messaging.message.id"]
        and processed["packhorse.outcome"] == "done"
    )


def test_a_collector_that_never_answers_neither_slows_nor_stops_a_worker(
    database, ledger, start_daemon, tmp_path
):
    daemon = start_daemon(
        database, ledger, ACTORS, {"SPANS": str(tmp_path / "spans"), "COLLECTOR": "hangs"}, tracing=True
    ).wait_ready()
    effects(database, 3000)  # more than the SDK's queue of 2048 holds
    wait_until(lambda: len(ledger.counts("effect")) == 3000, 60)
    assert daemon.stop(30) == 0 and "child_killed" not in daemon.log, daemon.log
    assert daemon.log.count("tracing_failed") == 1, "the last spans are lost, and somebody says so"
    assert database.query("select count(*) from message_queue") == [(0,)]


def test_an_unreachable_collector_is_said_and_counted_and_the_work_goes_on(
    database, ledger, start_daemon, tmp_path
):
    port = free_port()
    daemon = start_daemon(
        database,
        ledger,
        ACTORS,
        {"SPANS": str(tmp_path / "spans"), "COLLECTOR": "refuses"},
        tracing=True,
        metrics_port=port,
        log_format="json",
    ).wait_ready()
    wait_until(lambda: metric(port, "observability_errors_total", part="tracing") == 0)
    effects(database, 600)  # more than a batch of the SDK: it exports
    wait_until(lambda: len(ledger.counts("effect")) == 600, 60)
    wait_until(lambda: metric(port, "observability_errors_total", part="tracing") >= 1)
    assert problems(port, "/readyz") == [] and problems(port, "/livez") == []
    assert daemon.stop(30) == 0
    lines = [json.loads(line) for line in daemon.log.splitlines()]
    assert 1 <= sum(line["logger"].startswith("opentelemetry") for line in lines) <= 5, (
        "said, and not once per span"
    )


@pytest.mark.parametrize("tracing", [False, True])
def test_a_worker_that_does_not_trace_does_not_import_opentelemetry(database, ledger, start_daemon, tracing):
    daemon = start_daemon(database, ledger, ACTORS, tracing=tracing).wait_ready()
    effects(database, 1)
    wait_until(lambda: len(ledger.counts("effect")) == 1)
    assert daemon.stop() == 0
    assert bool(ledger.lines("otel")) is tracing, "true, without an SDK: no spans, and nothing fails"
    assert "Traceback" not in daemon.log
