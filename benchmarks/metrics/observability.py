"""What do metrics and logs cost: a scrape beside a large table, and the throughput of a worker that is
watched?

`scrape`: GET /metrics of a running worker while `backlog` messages live on ten queues and the fleet's numbers
are counted again and again. `drain`: no-op messages with metrics and logs as in production, beside a worker
without either.
"""

from __future__ import annotations

import http.client
import re
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain

import psycopg

from benchmarks.harness.config import Settings
from benchmarks.harness.payload import NUMBER_MARK, SENT_MARK, TEMPLATE
from benchmarks.harness.ports import free_port
from benchmarks.harness.stats import median, percentile
from benchmarks.metrics.base import Case, Number
from benchmarks.systems.base import System
from benchmarks.systems.postgres_base import PostgresSystem

CASES = [
    Case("observability/scrape"),
    Case("observability/switched"),
    Case("observability/drain", processes=1),
    Case("observability/drain", processes=2),
]
QUEUES = 10
SCRAPES = 400
PAUSE_SECONDS = 0.02
#: Counts of the fleet's numbers that fall into the scrapes, at least.
COUNTED, MOST_SECONDS = 3, 120.0
COUNTS = 5
SCRAPE_SECONDS = 5.0
"""Three times as often as is usual; a drain should last several of these, or what a scrape costs counts too
much.
"""
#: Half due, half delayed, over all queues, which are paused: the worker beside it stays idle and they stay
#: alive.
FILL = """
insert into packhorse.message_queue (queue, message_type, payload, run_at, priority)
select 'bench' || coalesce('_' || nullif(number %% %(queues)s, 0), ''), 'bench',
  replace(replace(%(template)s, %(number_mark)s, number::text), %(sent_mark)s, '0')::jsonb,
  clock_timestamp() + case when number %% 2 = 0 then interval '1 day' else interval '-1 minute' end, 1 + number %% 10
from generate_series(1, %(count)s) as number
"""
DUE = """
update packhorse.fleet_statistics set refreshed_at = '-infinity'
where ctid = any (array(select ctid from packhorse.fleet_statistics for update skip locked))
"""
MEASURES = {"": "messages/s", ": cpu of the worker": "us/message"}
VARIANTS: Mapping[str, Mapping[str, str]] = {
    "off": {"BENCH_BLIND": "1", "PACKHORSE_LOG_LEVEL": "error"},
    "on": {"PACKHORSE_LOG_LEVEL": "info"},
    "on, a line per message": {"PACKHORSE_LOG_LEVEL": "info", "PACKHORSE_LOG_OUTCOMES": "all"},
}
PAIRS = (("off", "on"), ("on", "off"), ("on", "off"), ("off", "on"))
"""Neighbours, in an order in which neither a steady nor a bending drift of the machine favours one of
them.
"""


def measure(system: System, case: Case, settings: Settings) -> Iterator[Number]:
    """One case; only Packhorse lists these."""
    assert isinstance(system, PostgresSystem), "only systems on Postgres list these cases"
    if case.key == "observability/scrape":
        yield from scrapes(system, settings)
    elif case.key == "observability/switched":
        yield from switched(system, settings)
    else:
        yield from drains(system, case, settings)


def scrapes(system: PostgresSystem, settings: Settings) -> Iterator[Number]:
    """Milliseconds of GET /metrics, and of one count of the fleet's numbers."""
    port = free_port()
    variables = {
        "BENCH_QUEUES": str(QUEUES),
        "PACKHORSE_METRICS_PORT": str(port),
        "PACKHORSE_FLEET_SECONDS": "1",
    }
    workers = system.start(1, env=variables)
    try:
        fill(system, settings.backlog)
        live = await_live(system, port, settings.backlog)
        times, page, counted, age = list[float](), "", 0, float("inf")
        deadline = time.monotonic() + MOST_SECONDS
        while len(times) < SCRAPES or counted < COUNTED:
            if len(times) % 40 == 0:
                recount(system)  # in production a count rests twenty times as long as it took
            if time.monotonic() > deadline:
                raise RuntimeError("the fleet's numbers were not counted while the scrapes were measured")
            began = time.perf_counter()
            page = get(port)
            times.append((time.perf_counter() - began) * 1000)
            before, age = age, sample(page, "fleet_age_seconds")
            counted += age < before
            time.sleep(PAUSE_SECONDS)  # scrapes spread over the counts, instead of keeping the exporter busy
    finally:
        workers.stop()
    yield Number("observability", "live rows as the metrics tell", 1, live, "rows")
    yield Number(
        "observability", "series", 1, sum(not line.startswith("#") for line in page.splitlines()), "lines"
    )
    for share in (0.50, 0.99):
        yield Number("observability", f"scrape p{share * 100:.0f}", 1, percentile(times, share), "ms")
    yield Number(
        "observability", "count of the fleet", 1, median([count(system) for _ in range(COUNTS)]), "ms"
    )


def drains(system: PostgresSystem, case: Case, settings: Settings) -> Iterator[Number]:
    """Messages per second of each variant, CPU of the worker's process tree per message, and what "on" is of
    its neighbour "off".

    The first drain fills files and caches that all others find filled: it does not count.
    """
    size = settings.size(system.sizes.drain[case.processes])
    drain(system, case.processes, size, "on")
    found: dict[str, list[tuple[float, float]]] = {}
    for variant in (*chain(*PAIRS), "on, a line per message"):
        found.setdefault(variant, []).append(drain(system, case.processes, size, variant))
    for variant, results in found.items():
        for (what, unit), values in zip(MEASURES.items(), zip(*results, strict=True), strict=True):
            yield Number(
                "observability", f"drain {variant}{what}", case.processes, median(list(values)), unit
            )
    for what, on, off in zip(
        MEASURES, zip(*found["on"], strict=True), zip(*found["off"], strict=True), strict=True
    ):
        shares = [one / other for one, other in zip(on, off, strict=True)]
        yield Number("observability", f"drain on / off{what}", case.processes, median(shares), "ratio")


def switched(system: PostgresSystem, settings: Settings) -> Iterator[Number]:
    """What a phase with metrics and logs is of its neighbours without, in one drain of one process.

    The machine drifts within seconds, so drains that are compared are too long; phases of SWITCH_SECONDS
    stand side by side.
    """
    size = settings.size(3 * system.sizes.drain[1])
    with tempfile.NamedTemporaryFile("r", prefix="phases-") as file:
        workers = system.start(1, env={"PACKHORSE_LOG_LEVEL": "info", "BENCH_SWITCH": file.name})
        try:
            system.warm_up(workers)
            file.read()
            system.load(workers, size)
            system.wait_drained(workers)
        finally:
            workers.stop()
        phases = [tuple(map(float, line.split())) for line in file.read().splitlines()]
    rates, costs = list[float](), list[float]()
    busy = [phase[3] > 0 for phase in phases]
    for place in range(2, len(phases) - 2):  # the first and the last phase of the drain are no whole ones
        if phases[place][0] and all(busy[place - 2 : place + 3]):
            (_, seconds, cpu, done), before, after = phases[place], phases[place - 1], phases[place + 1]
            rates.append(done / seconds / ((before[3] + after[3]) / (before[1] + after[1])))
            costs.append(cpu / done / ((before[2] + after[2]) / (before[3] + after[3])))
    yield Number("observability", "switched: phases", 1, len(rates), "phases")
    yield Number("observability", "switched: on / off", 1, median(rates), "ratio")
    yield Number("observability", "switched: on / off: cpu of the worker", 1, median(costs), "ratio")


def drain(system: PostgresSystem, processes: int, size: int, variant: str) -> tuple[float, float]:
    """One drain by a fresh worker, all of whose processes count; watched variants are scraped meanwhile."""
    port = free_port() if variant != "off" else 0
    env = {**VARIANTS[variant], **({"PACKHORSE_METRICS_PORT": str(port)} if port else {})}
    workers = system.start(processes, env=env)
    try:
        system.warm_up(workers)
        with scraped(port):
            cpu, started = workers.cpu_seconds(), system.load(workers, size)
            took = system.wait_drained(workers) - started
            return size / took, (workers.cpu_seconds() - cpu) / size * 1e6
    finally:
        workers.stop()


@contextmanager
def scraped(port: int) -> Iterator[None]:
    """Prometheus, in a hurry: a scrape every SCRAPE_SECONDS until the end of the block; none for port 0.
    Raises what a scrape raised.
    """
    over, failures = threading.Event(), list[Exception]()

    def scrape() -> None:
        while not over.wait(SCRAPE_SECONDS):
            try:
                get(port)
            except OSError as error:
                failures.append(error)

    thread = threading.Thread(target=scrape, name="scrapes")
    if port:
        get(port)
        thread.start()
    try:
        yield
    finally:
        over.set()
        if port:
            thread.join()
    if failures:
        raise failures[0]


def fill(system: PostgresSystem, size: int) -> None:
    """Live messages on paused queues, as some minutes after they came."""
    parameters = {
        "template": TEMPLATE,
        "number_mark": NUMBER_MARK,
        "sent_mark": SENT_MARK,
        "queues": QUEUES,
        "count": size,
    }
    with psycopg.connect(system.store_url(), autocommit=True) as connection:
        connection.execute("select packhorse.pause_queue(name, 'benchmark') from packhorse.queues")
        connection.execute(FILL, parameters)
        connection.execute("vacuum analyze packhorse.message_queue")
    system.server.admin.execute("checkpoint")


def await_live(system: PostgresSystem, port: int, size: int) -> float:
    """The number of live messages that the metrics tell, once it is about `size`; beyond a limit they are
    estimates.
    """
    deadline = time.monotonic() + 120
    while True:
        recount(system)
        values = re.findall(r"^packhorse_queue_messages\{.*\} (\S+)$", get(port), re.MULTILINE)
        found = sum(map(float, values))
        if 0.8 * size <= found <= 1.2 * size:
            return found
        if time.monotonic() > deadline:
            raise RuntimeError(f"the metrics tell {found:,.0f} live messages instead of {size:,}")
        time.sleep(1.0)  # the count runs in the worker; the page is the only place that shows it


def recount(system: PostgresSystem) -> None:
    """Let the fleet's numbers be due, unless they are being counted."""
    system.observing().execute(DUE)


def count(system: PostgresSystem) -> float:
    """Milliseconds of one count of everything that concerns the fleet, due at once."""
    recount(system)
    began = time.perf_counter()
    (counted,) = system.observing().execute(
        "select packhorse.refresh_fleet_statistics('0 seconds')"
    ).fetchone() or (False,)
    if not counted:
        raise RuntimeError("nothing was counted")
    return (time.perf_counter() - began) * 1000


def get(port: int) -> str:
    """One scrape, on a connection of its own; the exporter may still be starting."""
    deadline = time.monotonic() + 10
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("GET", "/metrics")
            answer = connection.getresponse()
            page = answer.read().decode()
            if answer.status != 200:
                raise OSError(f"/metrics: status {answer.status}")
            return page
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)  # until the exporter listens
        finally:
            connection.close()


def sample(page: str, name: str) -> float:
    """The value of a metric without labels; infinite as long as it is not there."""
    found = re.search(rf"^packhorse_{name} (\S+)$", page, re.MULTILINE)
    return float(found[1]) if found else float("inf")
