"""What do the functions of the conversation platform cost, and do fifty callers at once get along?

`calls`: one connection calls each function for one person after the other, each call in a transaction of its
own. `at once`: fifty connections call at the same instant for one person, again and again: a run with an
error, or with two sessions, fails. `sample`: the data of a salon, as a client writes it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import psycopg
from psycopg.types.json import Jsonb

from benchmarks.harness.config import Settings
from benchmarks.harness.stats import percentile
from benchmarks.metrics.base import Case, Number
from benchmarks.systems.base import System
from benchmarks.systems.packhorse import Adapter

CASES = [Case("platform/calls"), Case("platform/at-once"), Case("platform/sample")]
CALLS = 2_000
PEOPLE = 200
AT_ONCE = 50
ROUNDS = 20
SESSION = "select public.get_or_create_agent_session(%s, 'booking')"
MESSAGE = "select public.add_agent_message(%s, 'user', %s)"
MEMORY = "select (public.get_or_create_conversation_memory(%s, 'booking')).id"
REMEMBER = "select public.update_conversation_memory(%s, %s, %s)"
TEXT = "May I come on Tuesday at nine? " * 4
#: One salon: the sizes of the system that these tables come from, and its messages of some weeks.
SIZES = {
    "clients": 1_299,
    "services": 63,
    "staff": 12,
    "staff_schedules": 56,
    "bookings": 38,
    "dialog_contexts": 21,
}
MESSAGES = 10_000
INSERTS = {
    "clients": "insert into public.clients (company_id, phone, name, visits_count) values (1, '+250788' || lpad(%s::text, 6, '0'), 'Ann', 3)",
    "services": "insert into public.services (company_id, yclients_service_id, title, price_min, duration) values (1, %s, 'Cut', 100, 30)",
    "staff": "insert into public.staff (company_id, yclients_staff_id, name) values (1, %s, 'Bob')",
    "staff_schedules": "insert into public.staff_schedules (company_id, staff_id, date) values (1, %s %% 12 + 1, date '2030-01-01' + %s)",
    "bookings": "insert into public.bookings (company_id, client_id, service_id, staff_id, datetime, duration) "
    "values (1, %s + 1, 1, 1, timestamptz '2030-01-01' + %s * interval '30 minutes', 30)",
    "dialog_contexts": "insert into public.dialog_contexts (phone, company_id) values ('250788' || %s, 1)",
}


def measure(system: System, case: Case, settings: Settings) -> Iterator[Number]:
    """One case, on a database with the platform."""
    assert isinstance(system, Adapter), "the platform is Packhorse's"
    system.add_platform()
    variant = case.key.removeprefix("platform/")
    if variant == "calls":
        yield from calls(system.store_url())
    elif variant == "at-once":
        yield Number(
            "platform",
            f"{AT_ONCE} callers at once, one person, slowest call p99",
            1,
            percentile(at_once(system.store_url()), 0.99),
            "ms",
        )
    else:
        yield from sample(system.store_url())


def calls(url: str) -> Iterator[Number]:
    """Milliseconds of one call: p50 and p99 of CALLS each, PEOPLE people in turn, histories and memories
    full.
    """
    with psycopg.connect(url, autocommit=True) as connection:
        people = [f"+250788{number:06}" for number in range(PEOPLE)]
        sessions = [_value(connection, SESSION, (person,)) for person in people]
        memories = [_value(connection, MEMORY, (person,)) for person in people]
        for turn in range(20):
            for session, memory in zip(sessions, memories, strict=True):
                connection.execute(MESSAGE, (session, TEXT))
                connection.execute(
                    REMEMBER, (memory, Jsonb({"role": "user", "content": TEXT}), Jsonb({"turn": turn}))
                )
        for name, one in {
            "get_or_create_agent_session": lambda n: connection.execute(SESSION, (people[n % PEOPLE],)),
            "get_or_create_agent_session, new": lambda n: connection.execute(SESSION, (f"+250789{n:06}",)),
            "add_agent_message": lambda n: connection.execute(MESSAGE, (sessions[n % PEOPLE], TEXT)),
            "update_conversation_memory": lambda n: connection.execute(
                REMEMBER, (memories[n % PEOPLE], Jsonb({"role": "user", "content": TEXT}), Jsonb({"n": n}))
            ),
        }.items():
            took = []
            for number in range(CALLS):
                started = time.perf_counter()
                one(number)
                took.append((time.perf_counter() - started) * 1000)
            for share in (0.50, 0.99):
                yield Number("platform", f"{name} p{share * 100:.0f}", 1, percentile(took, share), "ms")


def at_once(url: str) -> list[float]:
    """Milliseconds of each caller's three calls, over ROUNDS rounds with a new person each. Raises
    RuntimeError when they do not get along.
    """
    took: list[float] = []
    with ExitStack() as stack:
        connections = [stack.enter_context(psycopg.connect(url, autocommit=True)) for _ in range(AT_ONCE)]
        for number in range(ROUNDS):
            person, problems, found = f"+25079{number:07}", [], set()
            barrier = threading.Barrier(AT_ONCE)

            def call(
                connection: psycopg.Connection,
                person: str,
                barrier: threading.Barrier,
                problems: list[str],
                found: set[tuple],
            ) -> None:
                barrier.wait()
                started = time.perf_counter()
                try:
                    session, memory = (
                        _value(connection, SESSION, (person,)),
                        _value(connection, MEMORY, (person,)),
                    )
                    said = _value(connection, MESSAGE, (session, TEXT))
                    noted = _value(
                        connection, REMEMBER, (memory, Jsonb({"role": "user", "content": TEXT}), None)
                    )
                    found.add((session, memory, said, noted))
                except psycopg.Error as error:
                    problems.append(str(error))
                took.append((time.perf_counter() - started) * 1000)

            threads = [
                threading.Thread(target=call, args=(one, person, barrier, problems, found))
                for one in connections
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            ((messages,),) = (
                connections[0]
                .execute(
                    "select message_count from public.agent_chat_sessions where user_phone = %s", (person,)
                )
                .fetchall()
            )
            if problems or len(found) != 1 or messages != AT_ONCE:
                raise RuntimeError(
                    f"{len(problems)} errors, {len(found)} sessions and memories, {messages} messages: {problems[:1]}"
                )
    return took


def sample(url: str) -> Iterator[Number]:
    """Seconds to insert a salon row by row in one transaction; the same with MESSAGES messages."""
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        started = time.monotonic()
        cursor.execute("insert into public.companies (id, name) values (1, 'Salon')")
        for table, count in SIZES.items():
            statement = INSERTS[table]
            cursor.executemany(statement, [(number,) * statement.count("%s") for number in range(count)])
        connection.commit()
        yield Number(
            "platform", f"a salon of {1 + sum(SIZES.values()):,} rows", 1, time.monotonic() - started, "s"
        )
        started = time.monotonic()
        cursor.executemany(
            "insert into public.messages (company_id, phone, direction, message) values (1, %s, 'inbound', %s)",
            [(f"+250788{number % 1299:06}", TEXT) for number in range(MESSAGES)],
        )
        connection.commit()
        yield Number("platform", f"its {MESSAGES:,} messages", 1, time.monotonic() - started, "s")


def _value(connection: psycopg.Connection, statement: str, arguments: tuple) -> object:
    return connection.execute(statement, arguments).fetchone()[0]  # type: ignore[index]
