"""What do handlers that wait cost, as most handlers of our users do: for an AI, a messaging API, a payment?

All systems: `second`, messages that await one second; `short`, 50 ms; each with so many at once in one
process, as a rate, as a share of the ideal (waiting and nothing else), and with the most memory that the
worker process ever had; `no-op`, asynchronous handlers that do nothing beside synchronous ones.
Packhorse only: `pickup`, how late a synchronous no-op starts in a process, alone and beside its waiting
coroutines, and how old the heartbeat of that process gets; `conversations`, three messages each, in order;
`killed`, a process that is killed with all its coroutines in flight while another one has room for them;
`steps`, how long one takes, and how many a second many coroutines store; `calls`, what the closed breaker of
a service costs a call.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psycopg

from benchmarks.harness.config import Settings
from benchmarks.harness.handler import AT_ONCE, AWAIT_SECONDS, LATENCY_FILE, read_latencies_ms
from benchmarks.harness.processes import python_child
from benchmarks.harness.stats import percentile
from benchmarks.metrics.base import Case, Number
from benchmarks.metrics.pickup import collect, send
from benchmarks.metrics.recovery import wait
from benchmarks.systems.base import NO_OP_SYNC, System
from benchmarks.systems.packhorse import Adapter
from benchmarks.systems.waiting_actors import NOTES_FILE, STEP_ASYNC_QUEUE, STEP_QUEUE, TALK_QUEUE, WAIT_QUEUE

CASES = [
    Case("waiting/second"),
    Case("waiting/short"),
    Case("waiting/no-op"),
    Case("waiting/pickup"),
    Case("waiting/conversations"),
    Case("waiting/killed"),
    Case("waiting/steps"),
    Case("waiting/calls"),
]
TURNS = ("sync", "async", "async", "sync")
"""Neighbours in time are compared; what the machine does more slowly from turn to turn cancels out."""
BESIDE = 5_000
BESIDE_SECONDS = 15.0
"""How much longer than the measurement the coroutines beside it wait, so that all are there when it begins
and ends.
"""
CONVERSATIONS, MESSAGES_EACH, TALK_SECONDS = 10_000, 3, 5.0
KILLED, KILLED_SECONDS = 5_000, 15.0
"""Long enough to fill one process and to start the other before the kill."""
STEPS, STEPS_AT_ONCE = 20_000, 1_000
CALLS = 100_000
BEAT_LOOK_SECONDS = 0.1

FILL_WAIT = "select packhorse.enqueue_payloads(%s, %s, (select jsonb_agg(jsonb_build_object('seconds', %s::float8)) from generate_series(1, %s)))"
FILL_TALK = """
select count(*) from packhorse.enqueue_messages((
  select jsonb_agg(jsonb_build_object(
    'queue', %(queue)s::text, 'message_type', %(queue)s::text, 'conversation_key', 'talk:' || c,
    'payload', jsonb_build_object('conversation', c, 'number', n, 'seconds', %(seconds)s::float8)) order by n, c)
  from generate_series(1, %(each)s) as n, generate_series(1, %(conversations)s) as c
))
"""
FILL_STEPS = """
select packhorse.enqueue_payloads(%(queue)s, %(queue)s, (select jsonb_agg(jsonb_build_object('number', n)) from generate_series(1, %(count)s) as n),
  p_conversation_key => %(key)s)
"""
RUNNING = "select count(*) from packhorse.message_queue where queue = 'wait' and state = 'running'"
WORKERS = "select count(*) from packhorse.workers"
EMPTY = "select 1 - count(*) from packhorse.message_queue where queue = 'wait'"
BEAT_AGE = "select extract(epoch from clock_timestamp() - min(last_seen_at))::float8 from packhorse.workers"
RESCUED = """
select count(*), extract(epoch from max(finished_at) - min((e ->> 'at')::timestamptz))::float8, max(crashes)
from packhorse.message_archive a, jsonb_array_elements(a.history) e
where a.queue = 'wait' and a.state = 'done' and e ->> 'event' = 'lease_expired'
"""


@dataclass(frozen=True)
class Wait:
    """A cell of the throughput of waiting handlers. seconds: what each awaits. at_once: in one process."""

    seconds: float
    messages: int
    at_once: int


CELLS = {"waiting/second": Wait(1.0, 20_000, 5_000), "waiting/short": Wait(0.05, 40_000, 400)}


def measure(system: System, case: Case, settings: Settings) -> Iterator[Number]:
    """The numbers of one case."""
    if case.key in CELLS:
        yield from throughput(system, CELLS[case.key], settings)
    elif case.key == "waiting/no-op":
        yield from no_ops(
            system, [kind for kind in TURNS if kind == "async" or NO_OP_SYNC in system.cases], settings
        )
    else:
        assert isinstance(system, Adapter), "only Packhorse lists these cases"
        only_ours = {
            "waiting/pickup": pickup,
            "waiting/conversations": conversations,
            "waiting/killed": killed,
            "waiting/steps": steps,
            "waiting/calls": calls,
        }
        yield from only_ours[case.key](system, settings)


def throughput(system: System, cell: Wait, settings: Settings) -> Iterator[Number]:
    """Messages per second until the last one is completed in the store, and the same as a share of the
    ideal.
    """
    count, at_once = settings.size(cell.messages), settings.at_once or cell.at_once
    workers = system.start(1, hold=True, env={AWAIT_SECONDS: str(cell.seconds), AT_ONCE: str(at_once)})
    try:
        system.warm_up(workers)
        started = system.load(workers, count)
        seconds = system.wait_drained(workers) - started
        peak = workers.peak_mib()
    finally:
        workers.stop()
    name = f"{cell.seconds * 1000:,.0f} ms, {at_once:,} at once"
    yield Number("waiting", name, 1, count / seconds, "messages/s")
    yield Number("waiting", f"{name}: of the ideal", 1, -(-count // at_once) * cell.seconds / seconds, "")
    yield Number("waiting", f"{name}: peak memory", 1, peak, "MiB")


def no_ops(system: System, turns: list[str], settings: Settings) -> Iterator[Number]:
    """Messages per second of handlers that do nothing, each kind with the settings that its system has for
    no-ops.
    """
    count = settings.size(system.sizes.drain[1])
    found: dict[str, list[float]] = {kind: [] for kind in turns}
    for kind in turns:
        workers = system.start(1, hold=True, env={AWAIT_SECONDS: "0"} if kind == "async" else {})
        try:
            system.warm_up(workers)
            started = system.load(workers, count)
            found[kind].append(count / (system.wait_drained(workers) - started))
        finally:
            workers.stop()
    for kind, values in found.items():
        yield Number("waiting", f"no-op, {kind}", 1, median(values), "messages/s")


def pickup(system: Adapter, settings: Settings) -> Iterator[Number]:
    """Milliseconds until a synchronous no-op starts, alone and beside coroutines that wait in the same
    process.
    """
    at_once = settings.at_once or BESIDE
    with ExitStack() as stack:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="packhorse-bench-"))) / "latencies"
        workers = system.start(1, variant="waiting", env={LATENCY_FILE: str(path), AT_ONCE: str(at_once)})
        stack.callback(workers.stop)
        connection = stack.enter_context(psycopg.connect(system.store_url(), autocommit=True))
        system.warm_up(workers)
        ages: dict[str, float] = {}
        samples: dict[str, list[float]] = {}
        for name in ("alone", "beside"):
            if name == "beside":
                connection.execute(
                    FILL_WAIT, (WAIT_QUEUE, WAIT_QUEUE, settings.samples / 50 + BESIDE_SECONDS, at_once)
                )
                wait(connection, RUNNING, at_once)
            before = len(read_latencies_ms(path))
            with oldest_beat(system.store_url()) as age:
                send(system, settings.samples)
                samples[name] = collect(workers, path, before + settings.samples)[before:]
            ages[name] = max(age)
        left = connection.execute(RUNNING).fetchone()
        assert left == (at_once,), f"{left} coroutines were left at the end of the measurement"
    for name, values in samples.items():
        for share in (0.50, 0.99):
            yield Number(
                "waiting", f"sync pickup {name} p{share * 100:.0f}", 1, percentile(values, share), "ms"
            )
    for name, seconds in ages.items():
        yield Number("waiting", f"oldest heartbeat {name}", 1, seconds, "s")


@contextmanager
def oldest_beat(url: str) -> Iterator[list[float]]:
    """Asks all the time how long ago the last heartbeat was, in seconds; the answers are complete at the
    end.
    """
    ages: list[float] = []
    ended = threading.Event()

    def look() -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            while not ended.wait(BEAT_LOOK_SECONDS):
                row = connection.execute(BEAT_AGE).fetchone()
                ages.extend(row or ())

    thread = threading.Thread(target=look, name="beats")
    thread.start()
    try:
        yield ages
    finally:
        ended.set()
        thread.join()


def conversations(system: Adapter, settings: Settings) -> Iterator[Number]:
    """Three messages of each conversation one after the other, all conversations at once; the order must be
    kept.
    """
    at_once = settings.at_once or CONVERSATIONS
    count = -(-settings.size(CONVERSATIONS * MESSAGES_EACH) // MESSAGES_EACH)
    with ExitStack() as stack:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="packhorse-bench-"))) / "order"
        workers = system.start(1, variant="waiting", env={NOTES_FILE: str(path), AT_ONCE: str(at_once)})
        stack.callback(workers.stop)
        system.warm_up(workers)
        with psycopg.connect(system.store_url()) as connection:
            parameters = {
                "queue": TALK_QUEUE,
                "seconds": TALK_SECONDS,
                "each": MESSAGES_EACH,
                "conversations": count,
            }
            connection.execute(FILL_TALK, parameters)
            started = system.commit_quietly(connection)
        seconds = system.wait_drained(workers) - started
        peak = workers.peak_mib()
        check_order(path, count)
    name = f"conversations, {at_once:,} at once"
    ideal = max(MESSAGES_EACH, -(-count * MESSAGES_EACH // at_once)) * TALK_SECONDS
    yield Number("waiting", name, 1, seconds, "s")
    yield Number("waiting", f"{name}: of the ideal", 1, ideal / seconds, "")
    yield Number("waiting", f"{name}: peak memory", 1, peak, "MiB")


def check_order(path: Path, conversations: int) -> None:
    """Every conversation has started and ended each of its messages once, one after the other. Raises
    ValueError.
    """
    seen: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        conversation, event = line.split(" ", 1)
        seen.setdefault(conversation, []).append(event)
    right = [f"{number} {event}" for number in range(1, MESSAGES_EACH + 1) for event in ("start", "end")]
    wrong = {conversation: events for conversation, events in seen.items() if events != right}
    if wrong or len(seen) != conversations:
        raise ValueError(
            f"{len(seen)} of {conversations} conversations ran, {len(wrong)} not in order, for example {next(iter(wrong.items()), '')}"
        )


def killed(system: Adapter, settings: Settings) -> Iterator[Number]:
    """From the first rescue until all that was in flight has run, in the process that had room for it."""
    at_once = settings.at_once or KILLED
    with ExitStack() as stack:
        connection = stack.enter_context(psycopg.connect(system.store_url(), autocommit=True))
        env = {AT_ONCE: str(at_once)}
        victim = system.start(1, variant="waiting", env=env)
        stack.callback(victim.stop)
        connection.execute(FILL_WAIT, (WAIT_QUEUE, WAIT_QUEUE, KILLED_SECONDS, at_once))
        wait(connection, RUNNING, at_once)
        stack.callback(system.start(1, variant="waiting", env=env).stop)
        wait(connection, WORKERS, 2)
        for process in victim.children[0].tree():
            process.kill()
        wait(connection, EMPTY, 1)
        count, seconds, crashes = connection.execute(RESCUED).fetchone() or (0, 0.0, 0)
    assert count == at_once, f"{count} of {at_once} were in flight at the kill"
    yield Number("waiting", "killed: rescued to all run", 1, seconds, "s")
    yield Number("waiting", "killed: the same without their own time", 1, seconds - KILLED_SECONDS, "s")
    yield Number("waiting", "killed: most crashes of a message", 1, crashes, "")


def steps(system: Adapter, settings: Settings) -> Iterator[Number]:
    """Milliseconds of one step, one at a time; and steps per second of many coroutines, from the first begun
    to the last stored.
    """
    at_once, count = settings.at_once or STEPS_AT_ONCE, settings.size(STEPS)
    with ExitStack() as stack:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="packhorse-bench-"))) / "steps"
        workers = system.start(1, variant="waiting", env={NOTES_FILE: str(path), AT_ONCE: str(at_once)})
        stack.callback(workers.stop)
        system.warm_up(workers)
        spans: list[list[tuple[int, int]]] = []
        for queue, number, key in (
            (STEP_QUEUE, settings.samples, "one at a time"),
            (STEP_ASYNC_QUEUE, count, None),
        ):
            before = sum(len(found) for found in spans)
            with psycopg.connect(system.store_url()) as connection:
                connection.execute(FILL_STEPS, {"queue": queue, "count": number, "key": key})
                system.commit_quietly(connection)
            system.wait_drained(workers)
            lines = [line.split() for line in path.read_text().splitlines()[before:]]
            spans.append([(int(began), int(ended)) for began, ended in lines])
            assert len(lines) == number, f"{len(lines)} of {number} steps were stored"
    alone, many = spans
    for share in (0.50, 0.99):
        yield Number(
            "waiting",
            f"one step p{share * 100:.0f}",
            1,
            percentile([(ended - began) / 1e6 for began, ended in alone], share),
            "ms",
        )
    seconds = (max(ended for _, ended in many) - min(began for began, _ in many)) / 1e9
    yield Number("waiting", f"a step each, {at_once:,} coroutines", 1, count / seconds, "steps/s")


def calls(system: Adapter, settings: Settings) -> Iterator[Number]:
    """Microseconds that a call through a closed breaker takes, when what is called takes nothing."""
    child = python_child(
        "benchmarks.systems.waiting_calls", str(settings.size(CALLS)), env=system.environment()
    )
    try:
        found = float(child.expect("done"))
    finally:
        child.stop()
    yield Number("waiting", "call through a closed breaker", 1, found, "µs")
