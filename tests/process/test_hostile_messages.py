"""P8, O2, O3: no log line and no series carries a value of a payload, whatever 10,000 hostile messages
contain and do.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from packhorse.worker.observe.events import EVENTS
from packhorse.worker.observe.metric_table import FLEET, PREFIX
from packhorse.worker.observe.metrics import FLEET_QUEUES
from tests.support.accounting import allow_unreadable, quick_backoff
from tests.support.hostile import ENDINGS, FORGED, MARKS, PERSONAL, insert
from tests.support.http import free_port, get, problems
from tests.support.waiting import wait_until

COUNT = 10_000
ACTORS = "tests.support.hostile_actors"
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
#: Loggers of handlers and of libraries whose lines may say anything, masked.
FOREIGN = {
    "hostile",
    "py.warnings",
    "dramatiq.middleware.age_limit.AgeLimit",
    f"{ACTORS}.hostile",
    f"{ACTORS}.strict",
}
FLEET_NAMES = {PREFIX + definition.name for definition in FLEET}


@pytest.mark.slow
def test_no_log_line_and_no_series_carries_a_payload(database, start_daemon):
    """Two daemons of two processes share the messages: one as in production, one that writes every line, at
    level debug.
    """
    quick_backoff(database)
    usual, verbose = ports = free_port(), free_port()
    quick = {"processes": 2, "threads": 4, "log_format": "json", "fleet_seconds": 1, "rescue_seconds": 0.2}
    daemons = [
        start_daemon(database, None, ACTORS, metrics_port=usual, **quick),
        start_daemon(
            database,
            None,
            ACTORS,
            {"HOSTILE_EVERY_LINE": "1"},
            metrics_port=verbose,
            log_level="debug",
            **quick,
        ),
    ]
    for daemon, port in zip(daemons, ports, strict=True):
        daemon.wait_ready(2)
        wait_until(lambda port=port: problems(port, "/readyz") == [])
    pages: list[str] = []

    def worked_off() -> bool:
        for port in ports:
            pages.extend(read_everything(port))
        return not database.value(
            "select exists (select from message_queue where queue = 'default' and not starts_with(message_type, 'type'))"
        )

    allow_unreadable(database)
    insert(database, COUNT)
    wait_until(worked_off, 60, "all messages of types with a handler have ended")
    for daemon, port in zip(daemons, ports, strict=True):
        assert len(daemon.children()) == 3 and daemon.log.count('"worker_started"') == 2, (
            "both processes and the exporter went through it alive"
        )
        assert problems(port, "/readyz") == [] and problems(port, "/livez") == []
        wait_until(
            lambda port=port: len(queues_of(get(port, "/metrics")[1], "queue_messages")) == FLEET_QUEUES,
            20,
            "as many queues as are shown at most",
        )
    last = [read_everything(port) for port in ports]
    assert [daemon.stop() for daemon in daemons] == [0, 0]
    # workers do the same a hundred at a time, a minute apart; without workers, types that they knew are
    # unknown as well
    assert database.value("select bury_unknown_types('1 millisecond', %s)", COUNT) == COUNT // 2
    assert_adds_up(database)
    for page in [*pages, *last[0], *last[1]]:
        assert not MARKS.search(page) and not PERSONAL.search(page), "a page carries a payload"
    assert sum(finished_within_bounds(page) for page, *_ in last) == COUNT // 2, (
        "all but unknown types, which the database buries, and queues of nobody"
    )
    produced, everything = (events_of_clean(daemon.log) for daemon in daemons)
    seen = {"message_failed", "hook_failed", "thread_failed", "exception_ignored", "hostile", "py.warnings"}
    assert seen <= produced.keys() and seen <= everything.keys(), "all of it was tried"
    assert max(produced[event] for event in EVENTS) <= 2 * 50 * 6 and produced["repeats_suppressed"], (
        "two processes, fifty in ten seconds"
    )
    assert everything["message_failed"] + everything["message_ended"] == finished_within_bounds(last[1][0]), (
        "a line for each"
    )


def read_everything(port: int) -> list[str]:
    """Every page, both formats of the metrics; both must parse."""
    plain, modern = get(port, "/metrics")[1], get(port, "/metrics", OPENMETRICS)[1]
    assert (
        plain
        and list(text_string_to_metric_families(plain))
        and modern.endswith("# EOF\n")
        and list(openmetrics.text_string_to_metric_families(modern))
    )
    return [plain, modern, *(get(port, path)[1] for path in ("/version", "/scale", "/readyz", "/livez"))]


def assert_adds_up(database: Any) -> None:
    """Every message stands once, ended as its handler ended, or buried because there was none."""
    assert database.query("select count(*), count(distinct id) from all_messages") == [(COUNT, COUNT)]
    rows = database.query(
        "select queue = 'default', message_type, payload ->> 'how', options <> '{}', state, reason from all_messages"
    )
    handled = [row[1:] for row in rows if row[0] and row[1] in ("hostile", "strict")]
    assert len(handled) == COUNT // 2
    assert {row[4:] for row in rows if not row[0] or row[1] not in ("hostile", "strict")} == {
        ("dead", "unknown_type")
    }
    ends = Counter(
        (how, state)
        for message_type, how, broken, state, _ in handled
        if message_type == "hostile" and how and not broken
    )
    assert {how: state for how, state in ends} == ENDINGS and len(ends) == len(ENDINGS), (
        "each outcome is the one of its kind"
    )
    assert sum(reason == "undecodable" for *_, reason in handled) >= COUNT // 100
    assert {state for message_type, _, _, state, _ in handled if message_type == "strict"} == {"dead"}


def queues_of(text: str, *names: str) -> set[str]:
    """Values of the label `queue` in these metrics."""
    wanted = {PREFIX + name for name in names}
    return {
        sample.labels["queue"]
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name in wanted
    }


def finished_within_bounds(text: str) -> float:
    """How many messages this worker has finished. Names come from the registry: thousands of types and
    hundreds of queues add no series.
    """
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    own = [sample for sample in samples if sample.name not in FLEET_NAMES]
    assert {sample.labels["queue"] for sample in own if "queue" in sample.labels} <= {"default", "other"}
    assert {sample.labels["actor"] for sample in own if "actor" in sample.labels} <= {
        "hostile",
        "strict",
        "other",
    }
    assert len(own) <= 200
    assert (
        max(Counter(sample.name for sample in samples if sample.name in FLEET_NAMES).values())
        <= 4 * FLEET_QUEUES
    )
    return sum(
        sample.value
        for sample in own
        if sample.name == PREFIX + "messages_finished_total"
        and sample.labels["outcome"] in ("done", "dead", "cancelled")
    )


def events_of_clean(log: str) -> Counter[str]:
    """How often each event of ours, and each foreign logger, was written. Each line is one JSON object with
    an event of the registry, without a mark, without unmasked personal data, without anything that moves a
    cursor."""
    events: Counter[str] = Counter()
    for text in log.splitlines():
        assert not MARKS.search(text), f"a payload is in the log: {text[:2000]}"
        assert not PERSONAL.search(text), f"unmasked: {text[:2000]}"
        line = json.loads(text)
        assert isinstance(line, dict) and {"event", "level", "logger", "timestamp"} <= line.keys(), text[
            :2000
        ]
        assert line["event"] != FORGED and not [
            value for value in line.values() if isinstance(value, str) and not is_tame(value)
        ], text[:2000]
        ours = line["logger"] not in FOREIGN
        if ours:
            assert (
                line["logger"].startswith("packhorse.") and set(EVENTS[line["event"]].keys) <= line.keys()
            ), text[:2000]
        events[line["event" if ours else "logger"]] += 1
    return events


def is_tame(text: str) -> bool:
    return text.replace("\n", "").replace("\t", "").isprintable()
