"""How many messages a second does one process of the API take over HTTP (SPEC W8)?

Packhorse only: singly over 32 connections, beside `enqueue_message` over as many from the same kind of
client; and in hundreds over eight.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import psycopg

from benchmarks.harness.config import Settings
from benchmarks.harness.processes import Child, python_child
from benchmarks.metrics.base import Case, Number
from benchmarks.systems.base import System
from benchmarks.systems.packhorse import Adapter, command
from packhorse.worker.db.connection import connect
from packhorse.worker.store import tokens

CASES = [Case("http/enqueue")]
SINGLE, CONNECTIONS = 10_000, 32
MANY, IN_ONE, MANY_CONNECTIONS = 100_000, 500, 8
CLIENTS = "benchmarks.systems.http_clients"


def measure(system: System, case: Case, settings: Settings) -> Iterator[Number]:
    """Messages per second of each way, one after the other."""
    assert isinstance(system, Adapter), "only Packhorse lists these cases"
    single, many = settings.size(SINGLE), settings.size(MANY)
    with ExitStack() as stack:
        with psycopg.connect(system.store_url()) as connection:
            connection.execute("select packhorse.declare_queue('http')")
        maker = connect(system.store_url())
        token = tokens.create(maker, "bench", "producer", "bench", None, ["http"])
        maker.close()
        env = {**system.environment(), "PACKHORSE_WEB_API_RATE": "0"}
        api = Child(command("web", "--api-only", "--port", "0"), env)
        stack.callback(api.stop)
        url = api.expect("Page").split()[0].rstrip("/")

        def rate(*arguments: object) -> float:
            child = python_child(CLIENTS, *map(str, arguments), env={})
            try:
                return float(child.expect("done", 600))
            finally:
                child.stop()

        sql = rate("sql", system.store_url(), single, CONNECTIONS)
        http = rate("http", url, token, single, 1, CONNECTIONS)
        hundreds = rate("http", url, token, many, IN_ONE, MANY_CONNECTIONS)
    yield Number("http", f"singly, {CONNECTIONS} connections", 1, http, "messages/s")
    yield Number("http", f"enqueue_message, {CONNECTIONS} connections", 1, sql, "messages/s")
    yield Number("http", "singly: of enqueue_message", 1, http / sql, "")
    yield Number("http", f"{IN_ONE} in a request", 1, hundreds, "messages/s")
