"""A thin client of the SQL API for tests: one method per call that many tests make, nothing decided here.

The connection is the unprivileged worker's (never a superuser's). Factories have defaults, so that a test
states only what matters to it.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from tests.support.postgres import Database

HOLDER = UUID(int=1)
OTHER = UUID(int=2)


class Lease(NamedTuple):
    """A claimed message, as far as tests look at it."""

    id: int
    token: int
    attempt: int
    type: str
    crashes: int
    conversation: str | None
    priority: int


class Sql:
    """The SQL API over one connection; in the connection's transaction, when it is in one."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self.connection = connection

    def rows(self, statement: str, *params: Any) -> list[tuple]:
        cursor = self.connection.execute(statement, params or None)
        return cursor.fetchall() if cursor.description else []

    def value(self, statement: str, *params: Any) -> Any:
        return self.rows(statement, *params)[0][0]

    def refused(self, statement: str, *params: Any) -> tuple[str | None, str | None]:
        """(SQLSTATE, COLUMN) with which the statement is refused; fails the test when it is not."""
        try:
            with self.connection.transaction():
                answer = self.rows(statement, *params)
        except psycopg.Error as error:
            return error.sqlstate, error.diag.column_name
        raise AssertionError(f"not refused, answered {answer}")

    def enqueue(self, queue: str = "q", message_type: str = "effect", **arguments: Any) -> int:
        """enqueue_message with arguments by their names without "p_"; the id."""
        return self.enqueue_row(queue, message_type, **arguments)[0]

    def enqueue_row(
        self, queue: str = "q", message_type: str = "effect", **arguments: Any
    ) -> tuple[int, bool]:
        statement, params = enqueue_call(queue, message_type, **arguments)
        row = self.rows(statement, *params)[0]
        return row[0], row[1]

    def enqueue_refused(
        self, queue: str = "q", message_type: str = "effect", **arguments: Any
    ) -> tuple[str | None, str | None]:
        statement, params = enqueue_call(queue, message_type, **arguments)
        return self.refused(statement, *params)

    def claim(
        self,
        limit: int = 1,
        queue: str = "q",
        holder: UUID = HOLDER,
        types: list[str] | None = None,
        isolated: bool | None = None,
        lease: str = "5 minutes",
    ) -> list[Lease]:
        return [
            Lease(*row)
            for row in self.rows(
                "select id, lease_token, attempt, message_type, crashes, conversation_key, priority "
                "from claim_messages(%s, %s, %s, %s::interval, %s::text[], p_isolated => %s::boolean)",
                holder,
                [queue],
                limit,
                lease,
                types,
                isolated,
            )
        ]

    def claim_one(self, queue: str = "q", holder: UUID = HOLDER) -> Lease:
        leases = self.claim(1, queue, holder)
        assert len(leases) == 1, "nothing was due"
        return leases[0]

    def claimed(self, queue: str = "q", **arguments: Any) -> Lease:
        """Enqueue one message and claim it; fails when another message was due before it."""
        message_id = self.enqueue(queue, **arguments)
        lease = self.claim_one(queue)
        assert lease.id == message_id
        return lease

    def complete(self, *leases: Lease) -> list[int]:
        return self.value(
            "select complete_messages(%s::bigint[], %s::bigint[])",
            [lease.id for lease in leases],
            [lease.token for lease in leases],
        )

    def fail(self, lease: Lease, error: str = "ValueError", message: str = "broken") -> str:
        return self.value("select fail_message(%s, %s, %s, %s)", lease.id, lease.token, error, message)

    def crash(self, lease: Lease) -> int:
        """The lease ends and rescue runs; how many were returned."""
        self.rows(
            "update message_queue set lease_expires_at = clock_timestamp() - interval '1 second' where id = %s",
            lease.id,
        )
        return self.value("select rescue_expired_messages()")

    def due_now(self) -> None:
        """Skip every wait for a retry, a backoff or a delay."""
        self.rows(
            "update message_queue set run_at = clock_timestamp() - interval '1 second' where run_at > clock_timestamp()"
        )

    def state(self, message_id: int) -> str | None:
        """Where the message is; None when no table knows it. Fails when two tables have it."""
        found = self.rows("select state from all_messages where id = %s", message_id)
        assert len(found) <= 1, f"message {message_id} is in two tables: {found}"
        return found[0][0] if found else None

    def live(self, message_id: int) -> dict[str, Any]:
        """The row of message_queue."""
        return self.row("select * from message_queue where id = %s", message_id)

    def dead(self, message_id: int) -> dict[str, Any]:
        """The row of dead_letters."""
        return self.row("select * from dead_letters where id = %s", message_id)

    def row(self, statement: str, *params: Any) -> dict[str, Any]:
        with self.connection.cursor(row_factory=psycopg.rows.dict_row) as cursor:
            row = cursor.execute(statement, params).fetchone()
        assert row is not None, statement
        return row

    def set_queue(self, queue: str = "q", **settings: Any) -> None:
        self.rows("select set_queue(%s, %s)", queue, Jsonb(settings))

    def snapshot(self) -> list[tuple]:
        """Every row that a lease could change, to show that nothing did."""
        return [
            self.rows("select m::text from message_queue m order by id"),
            self.rows("select a::text from message_archive a order by id"),
            self.rows("select d::text from dead_letters d order by id"),
        ]


def enqueue_call(queue: str | None, message_type: str | None, **arguments: Any) -> tuple[str, list[Any]]:
    """Statement and parameters of one enqueue."""
    params: list[Any] = [queue, message_type]
    text = ""
    for name, value in arguments.items():
        text += f", p_{name} => %s"
        params.append(Jsonb(value) if isinstance(value, dict | list) else value)
    return f"select message_id, duplicate from enqueue_message(%s, %s{text})", params


def open_sql(database: Database, **options: Any) -> Sql:
    """A client with a connection of its own; the caller closes it."""
    return Sql(database.connect(**options))
