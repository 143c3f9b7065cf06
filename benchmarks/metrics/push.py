"""How many messages a second does one process push to an endpoint (SPEC W8)?

Packhorse only: `rate`, a worker with a pattern of types over 200 connections to an endpoint of this machine
that takes everything at once, signed; and the same client in the same round without a queue.
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg

from benchmarks.harness.config import Settings
from benchmarks.harness.processes import python_child
from benchmarks.metrics.base import Case, Number
from benchmarks.systems.base import System
from benchmarks.systems.packhorse import Adapter

CASES = [Case("push/rate")]
MESSAGES, AT_ONCE = 40_000, 200
ENDPOINT = "benchmarks.systems.push_endpoint"
FILL = """
select packhorse.enqueue_payloads('push', 'order.created', (
  select jsonb_agg(jsonb_build_object('number', n, 'text', 'what a message of the benchmark looks like, about'))
  from generate_series(1, %s) n))
"""
CONFIG = """
[push."order.*"]
url = "{url}"
secret_file = "{secret}"
queue = "push"
max_in_flight = {at_once}
allow_private = true
"""


def measure(system: System, case: Case, settings: Settings) -> Iterator[Number]:
    """Messages per second until the last one is completed in the store, and the bare client's."""
    assert isinstance(system, Adapter), "only Packhorse lists these cases"
    count, at_once = settings.size(MESSAGES), settings.at_once or AT_ONCE
    with ExitStack() as stack:
        endpoint = python_child(ENDPOINT, "serve", env={})
        stack.callback(endpoint.stop)
        url = f"http://127.0.0.1:{endpoint.expect('ready')}"
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="packhorse-bench-")))
        (folder / "secret").write_text("whsec_" + base64.b64encode(b"a" * 32).decode())
        (folder / "packhorse.toml").write_text(
            CONFIG.format(url=url, secret=folder / "secret", at_once=at_once)
        )
        with psycopg.connect(system.store_url()) as connection:
            connection.execute("select packhorse.declare_queue('push')")
        workers = system.start(1, env={"PACKHORSE_CONFIG": str(folder / "packhorse.toml")})
        try:
            system.warm_up(workers)
            with psycopg.connect(system.store_url()) as connection:
                connection.execute(FILL, (count,))
                started = system.commit_quietly(connection)
            pushed = count / (system.wait_drained(workers) - started)
        finally:
            workers.stop()
        client = python_child(ENDPOINT, "post", url, str(count), str(at_once), env={})
        stack.callback(client.stop)
        bare = float(client.expect("done", 600))
    yield Number("push", f"{at_once} connections", 1, pushed, "messages/s")
    yield Number("push", f"{at_once} connections: the bare client", 1, bare, "requests/s")
    yield Number("push", f"{at_once} connections: of the bare client", 1, pushed / bare, "")
