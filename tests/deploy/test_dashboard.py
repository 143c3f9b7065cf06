"""A real Prometheus scrapes a running worker and a running scheduler: every query of the dashboard has data
there, every rule finds the series that it names (SPEC O2)."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from tests.deploy.test_prometheus import ALERTS, ANNOTATIONS, DASHBOARD, EVERY, QUERIES, RECORDED, RULES
from tests.process.test_endpoints import worker_pids
from tests.support.accounting import enqueue, quick_backoff
from tests.support.cli import Cli
from tests.support.http import free_port
from tests.support.postgres import Database, Server
from tests.support.waiting import wait_until
from tests.support.workers import Daemon, Ledger

pytestmark = pytest.mark.slow

#: There only while something fails, rests, or is called.
ONLY_THEN = ("duty_failing_seconds", "scope_parked_seconds", "service_breaker_state")
#: Of forwarded queues and relays; tests/rabbit/test_relay.py sees them.
FORWARDED = ("queue_forwarded", "amqp_messages", "amqp_consumers")
SELECTOR = re.compile(r"\b(packhorse_\w+)(\{[^}]*\})?")


class Traffic:
    """What a busy house does: messages that are done, retried, dead, slow, in order; until closed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic")
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while not self._stop.wait(0.2):
            number += 1
            enqueue(
                self._database,
                [
                    {"message_type": "effect", "payload": {"key": f"e{number}"}},
                    {
                        "message_type": "effect",
                        "payload": {"key": f"s{number}", "seconds": 0.3},
                        "conversation_key": "c",
                    },
                    {
                        "message_type": "fails",
                        "payload": {"key": f"r{number}", "times": 1},
                        "max_attempts": 2,
                    },
                    {"message_type": "fails", "payload": {"key": f"d{number}"}, "max_attempts": 1},
                ],
            )

    def close(self) -> None:
        self._stop.set()
        self._thread.join(20)


@pytest.fixture(scope="module")
def house(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, list[int]]]:
    """A worker of two processes and a scheduler, and their ports; maintenance and a schedule run, messages
    flow.
    """
    folder = tmp_path_factory.mktemp("house")
    database = server.create_database()
    quick_backoff(database)
    database.query(
        "select set_schedule('tick', 'effect', p_every => interval '1 second', p_overlap => 'allow', p_payload => '{\"key\": \"t\"}')"
    )
    worker, scheduler = free_port(), free_port()
    daemon = Daemon(
        database, Ledger(folder / "ledger"), processes=2, threads=2, metrics_port=worker, fleet_seconds=1
    )
    process = Cli(folder, database.url, PACKHORSE_METRICS_PORT=str(scheduler)).start(
        "scheduler", output=folder / "scheduler.log"
    )
    traffic = Traffic(database)
    try:
        wait_until(
            lambda: database.value("select count(*) from schedules where name = 'job.dead_workers'") == 1,
            60,
            "the timetable is written",
        )
        for task in ("job.dead_workers", "retention.message_dedup"):
            database.query("select run_schedule_now(%s)", task)
        yield daemon.wait_ready(2), [worker, scheduler]
    finally:
        traffic.close()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
        daemon.close()
        database.drop()


@pytest.fixture(scope="module")
def prometheus(house: tuple[Daemon, list[int]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Scrapes both every second and evaluates our rules; its address."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed (Debian: prometheus)")
    folder = tmp_path_factory.mktemp("prometheus")
    port = free_port()
    (folder / "prometheus.yml").write_text(
        yaml.safe_dump(
            {
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": [str(RULES)],
                "scrape_configs": [
                    {
                        "job_name": "packhorse",
                        "static_configs": [
                            {
                                "targets": [f"127.0.0.1:{port}" for port in house[1]],
                                "labels": {"namespace": "house"},
                            }
                        ],
                    }
                ],
            }
        )
    )
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: answers(address), 60, "Prometheus answers")
        yield address
    finally:
        process.terminate()
        process.wait(30)


def answers(address: str) -> bool:
    try:
        return len(ask(address, "up == 1")) == 2
    except OSError:
        return False


def call(address: str, path: str, **parameters: str) -> Any:
    """The data of an answer of Prometheus' API; fails the test on an error or a warning."""
    url = f"{address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            body = json.load(response)
    except urllib.error.HTTPError as error:
        if error.code == 503:  # it starts
            raise
        raise AssertionError(f"{parameters}: {error.read().decode()}") from None
    assert body["status"] == "success" and not body.get("warnings"), (parameters, body)
    return body["data"]


def ask(address: str, expression: str) -> list[float]:
    """Values of an instant query, with Grafana's variables filled in; one that is no number is no data."""
    for variable, value in {"$__rate_interval": "1m", "$namespace": "house", "$queue": ".*"}.items():
        expression = expression.replace(variable, value)
    values = [float(found["value"][1]) for found in call(address, "query", query=expression)["result"]]
    return [value for value in values if not math.isnan(value)]


def missing(look: Callable[[], list[Any]], seconds: float = 90.0) -> list[Any]:
    """What is missing still after so long; [] as soon as nothing is."""
    deadline = time.monotonic() + seconds
    while (found := look()) and time.monotonic() < deadline:
        threading.Event().wait(1.0)  # a scrape
    return found


def test_every_panel_shows_data(prometheus):
    assert len(QUERIES) == sum(len(panel.get("targets", [])) for panel in DASHBOARD["panels"]) > 40
    assert (
        missing(lambda: [title for title, expression in QUERIES.items() if not ask(prometheus, expression)])
        == []
    )


def test_what_the_panels_show_is_what_happened(prometheus, house):
    """Labels that are mixed up would show data, too."""
    os.kill(worker_pids(house[0])[0], signal.SIGKILL)
    wanted = {
        "Done per second": lambda value: value > 1,
        "Part of messages that die": lambda value: 0 < value < 1,
        "Versions": lambda value: value == 2,
        "Threads A": lambda value: value == 4 + 4,
        "Worker processes replaced": lambda value: value > 0,
        "Lag of schedules": lambda value: value < 60,
        "Partition runway": lambda value: 6 * 86400 < value < 9 * 86400,
        "Duration of handlers (quantiles) C": lambda value: value > 0.1,
    }

    def wrong():
        shown = {
            name: max(
                ask(prometheus, next(expression for title, expression in QUERIES.items() if name in title)),
                default=-1,
            )
            for name in wanted
        }
        return [(name, value) for name, value in shown.items() if not wanted[name](value)]

    assert missing(wrong) == []


def test_every_variable_of_the_dashboard_has_values(prometheus):
    variables = [entry for entry in DASHBOARD["templating"]["list"] if entry["type"] == "query"]
    assert [entry["name"] for entry in variables] == ["namespace", "queue"]
    for entry in variables:
        metric, label = re.fullmatch(r"label_values\((.*), (\w+)\)", entry["query"]["query"]).groups()
        found = call(prometheus, f"label/{label}/values", **{"match[]": metric.replace("$namespace", ".*")})
        assert ("default" if label == "queue" else "house") in found, entry["name"]


def test_every_series_that_a_rule_names_is_scraped(prometheus):
    """An alert on a label value that no daemon ever shows would be silent for ever."""
    named = {
        "".join(found) for rule in (ALERTS | RECORDED).values() for found in SELECTOR.findall(rule["expr"])
    }
    named = {selector for selector in named if not any(name in selector for name in ONLY_THEN + FORWARDED)}
    assert len(named) > 20
    assert missing(lambda: [selector for selector in named if not ask(prometheus, selector)]) == []


def test_every_recorded_expression_has_data(prometheus):
    here = {name: rule for name, rule in RECORDED.items() if not any(part in name for part in FORWARDED)}
    assert missing(lambda: [name for name, rule in here.items() if not ask(prometheus, rule["expr"])]) == []


def test_every_alert_and_annotation_is_answered(prometheus):
    assert len(EVERY) > 60
    for expression in [*(rule["expr"] for rule in ALERTS.values()), *ANNOTATIONS.values()]:
        ask(prometheus, expression)


def test_prometheus_loads_every_rule(prometheus):
    rules = [rule for group in call(prometheus, "rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in rules} == set(ALERTS) | set(RECORDED)
    assert [rule["name"] for rule in rules if rule.get("lastError")] == []
