"""C1: ai_agent_sessions becomes agent_chat_sessions (PLATFORM 7).

Sessions keep their ids. Of several active ones of a phone the newest is taken; an expired one is always
taken. Until the clean-up migrated rows carry a mark, and a trigger writes down when somebody changes one. So
a repeated run copies again what the source has changed, as long as nobody has changed the copy, and the way
back leaves what is in use.
"""

from __future__ import annotations

from typing import Any

from packhorse.schedules.backfill.base import (
    ONE_TRANSACTION_ROWS,
    Backfill,
    BatchResult,
    CheckFinding,
    quickly,
)
from packhorse.schedules.backfill.walking import security_invoker
from packhorse.worker.db import composed
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import translated
from packhorse.worker.db.queries import sql
from packhorse.worker.errors import StoreConflict
from packhorse.worker.store import backfill_tables as tables
from packhorse.worker.store import backfills as store
from packhorse.worker.store.backfill_tables import Batch, SourceTable, quoted
from packhorse.worker.store.rows import value

#: A larger share of sessions without a known person is said.
UNKNOWN_RATIO = 0.10
#: A smaller share of migrated rows is said.
MIGRATED_RATIO = 0.90
TAKE_BACK_ROWS = 5000
UNIQUE_VIOLATION = "23505"

TIME = ("timestamp with time zone",)
COLUMNS = {
    "id": ("uuid",),
    "phone": ("text", "character varying"),
    "context": ("jsonb",),
    "created_at": TIME,
    "updated_at": TIME,
    "expires_at": TIME,
}
VIEW = "ai_agent_sessions_compat"


class AgentSessions(Backfill):
    """See the module."""

    name = "agent_sessions"
    title = "ai_agent_sessions becomes agent_chat_sessions"
    defaults = {"source": "ai_agent_sessions"}
    time_columns = ("created_at", "updated_at")
    returns_after_drop = True
    by_place = True

    def own_relations(self, connection: DeadlineConnection) -> list[str]:
        return [quoted(connection.names.platform, VIEW)]

    def check(self, connection: DeadlineConnection, source: SourceTable) -> list[CheckFinding]:
        """Columns, rights, volumes, people."""
        found = list(self.missing_columns(source, COLUMNS))
        target = tables.table(connection, "agent_chat_sessions", ours=True)
        assert target is not None, "the ledger is there, so the platform is"
        if not target.owned:
            text = f"{target.label} belongs to {target.owner}: this role cannot mark migrated rows"
            found.append(
                CheckFinding("refused", "rights", text, "Set maintenance_url to a connection of its owner.")
            )
        if found:
            return found
        facts = tables.run(
            connection, "sessions_facts", {"source": source.quoted}, source=source.identifier
        ).fetchone()
        rows, active, newest, size, target_rows, unknown = facts
        if not rows:
            return [
                CheckFinding(
                    "ok",
                    "volume",
                    f"{source.label} is empty: safe to drop",
                    f"packhorse backfill run {self.name}, then finish.",
                )
            ]
        last = f", the newest of {newest:%Y-%m-%d %H:%M}Z" if newest else ""
        said = f"{source.label}: {rows} rows, {active} active{last}, {size} bytes; agent_chat_sessions: {target_rows} rows"
        found.append(CheckFinding("ok", "volume", said))
        if rows > ONE_TRANSACTION_ROWS:
            found.append(
                CheckFinding(
                    "warning", "volume", f"more than {ONE_TRANSACTION_ROWS} rows: they are copied in batches"
                )
            )
        if unknown:
            examples = [
                row[0]
                for row in tables.run(
                    connection, "sessions_unknown_examples", source=source.identifier
                ).fetchall()
            ]
            many = unknown > rows * UNKNOWN_RATIO
            end = ": their user_id stays NULL" if many else ""
            text = f"NO_USER_MATCH: {unknown} of {rows} sessions ({unknown / rows:.1%}){end}; {', '.join(examples)}"
            found.append(CheckFinding("warning" if many else "ok", "users", text))
        else:
            found.append(CheckFinding("ok", "users", "OK: whatsapp_users knows every phone"))
        return found

    def prepare(self, connection: DeadlineConnection, source: SourceTable) -> None:
        """The mark, who keeps it, and the view."""
        for name in (
            "sessions_column",
            "sessions_mark_function",
            "sessions_mark_comment",
            "sessions_mark_trigger",
        ):
            tables.run(connection, name)
        tables.run(connection, "sessions_mark_revoke", roles=tables.public_roles(connection))
        invoker = security_invoker(connection)
        tables.run(
            connection,
            "sessions_view",
            options=composed.SQL("with (security_invoker = true)" if invoker else ""),
        )
        tables.run(connection, "sessions_view_comment")
        tables.grant_view(connection, connection.names.platform, VIEW, to_authenticated=invoker)

    def copy(self, connection: DeadlineConnection, batch: Batch) -> BatchResult:
        """Stale copies go, older ones give way, rows are copied or explained."""
        parts: dict[str, composed.Composable] = {"source": batch.source.identifier, "in_batch": batch.where()}
        given = {"backfill": self.name, "label": batch.source.label, **batch.parameters}
        again = 0
        is_first = not tables.run(connection, "sessions_any_there", batch.parameters, **parts).fetchone()[0]
        if is_first:
            lookup = {
                "is_taken": composed.SQL("false"),
                "there": composed.SQL(""),
                "is_new": composed.SQL("true"),
            }
        else:
            again = tables.run(connection, "sessions_forget_stale", batch.parameters, **parts).rowcount
            lookup = {
                "is_taken": composed.SQL("t.id is not null"),
                "there": composed.SQL(connection.names.of(sql("sessions_there"))),
                "is_new": composed.SQL("not coalesce(t.migrated_from_simple, false)"),
            }
        given_way = tables.run(connection, "sessions_make_way", given, **parts).fetchone()[0]
        copied, told = self._insert(connection, given, {**parts, **lookup})
        if not is_first:
            tables.run(connection, "sessions_explain_changed", given, **parts)
        return BatchResult(copied - again - given_way, told + given_way)

    def _insert(
        self, connection: DeadlineConnection, given: dict[str, Any], parts: dict[str, composed.Composable]
    ) -> tuple[int, int]:
        """Copied, explained. ON CONFLICT makes an insert a tenth slower, so it is used only when somebody has
        inserted a session of one of these phones since the statement began.
        """
        try:
            with translated(), connection.transaction():
                row = tables.run(
                    connection, "sessions_copy", given, **parts, on_conflict=composed.SQL("")
                ).fetchone()
        except StoreConflict as error:
            if error.sqlstate != UNIQUE_VIOLATION:
                raise
            kept = composed.SQL("on conflict do nothing")
            row = tables.run(connection, "sessions_copy", given, **parts, on_conflict=kept).fetchone()
        return int(row[0]), int(row[1])

    def verify(self, connection: DeadlineConnection, source: SourceTable) -> list[CheckFinding]:
        """migrated + explained = source, and no row that the source has changed since."""
        given = {"backfill": self.name, "label": source.label}
        accounts = tables.run(connection, "sessions_accounts", given, source=source.identifier).fetchone()
        rows, migrated, *_ = accounts
        found = self.accounted(source, *accounts)
        if rows and migrated < rows * MIGRATED_RATIO:
            found.append(
                CheckFinding(
                    "warning",
                    "ratio",
                    f"only {migrated / rows:.1%} of the rows are migrated",
                    f"packhorse backfill show {self.name} counts the reasons.",
                )
            )
        orphans = tables.run(connection, "sessions_orphans", source=source.identifier).fetchone()[0]
        if orphans:
            found.append(
                CheckFinding(
                    "ok",
                    "deleted",
                    f"{orphans} migrated sessions are of rows that were deleted from {source.label} since; they stay",
                )
            )
        for agent, sessions, fresh, of_them in tables.run(connection, "sessions_by_agent").fetchall():
            found.append(
                CheckFinding(
                    "ok",
                    "agents",
                    f"{agent}: {sessions} sessions, {of_them} migrated, {fresh} of the last five minutes",
                )
            )
        return found

    def finish(self, connection: DeadlineConnection, source: SourceTable) -> None:
        """The view, the old table, the mark."""
        connection.execute(sql("backfill_copies_forget"), (self.name,))
        tables.run(connection, "sessions_remember", {"backfill": self.name})
        self._drop_mark(connection)
        super().finish(connection, source)

    def _drop_mark(self, connection: DeadlineConnection) -> None:
        for name in (
            "sessions_drop_view",
            "sessions_drop_trigger",
            "sessions_drop_function",
            "sessions_drop_columns",
        ):
            tables.run(connection, name)

    def rollback(
        self, connection: DeadlineConnection, source: SourceTable | None, finished: bool
    ) -> list[CheckFinding]:
        """Before the clean-up copies go, but for those in use; after it the old table is made again."""
        found = self._make_old_table(connection) if finished else self._take_back(connection)
        store.forget_ledger(connection, self.name)
        return found

    def _take_back(self, connection: DeadlineConnection) -> list[CheckFinding]:
        found = []
        if value(connection, "sessions_has_mark"):
            after: str | None = None
            while True:
                with connection.transaction():
                    _, after = tables.run(
                        connection, "sessions_take_back", {"after": after, "limit": TAKE_BACK_ROWS}
                    ).fetchone()
                if after is None:
                    break
            changed, ids = tables.run(connection, "sessions_changed").fetchone()
            if changed:
                text = f"{changed} migrated sessions were changed since and stay in agent_chat_sessions: {', '.join(ids)}"
                found.append(CheckFinding("warning", "changed", text))
        quickly(connection, lambda: self._drop_mark(connection))
        return found

    def _make_old_table(self, connection: DeadlineConnection) -> list[CheckFinding]:
        schema, _, name = str(store.progress(connection, self.name)[0]["source"]).rpartition(".")
        table = composed.Identifier(schema, name)
        with connection.transaction():
            tables.run(connection, "sessions_old_table", source=table)
            tables.run(connection, "sessions_old_secured", source=table)
            tables.run(connection, "sessions_old_revoke", source=table, roles=tables.public_roles(connection))
            for column in ("phone", "expires"):
                tables.run(
                    connection,
                    f"sessions_old_{column}_index",
                    source=table,
                    index=composed.Identifier(f"idx_{name}_{column}"),
                )
            tables.run(connection, "sessions_restore_explained", {"backfill": self.name}, source=table)
        for (place,) in connection.execute(sql("backfill_copies_places"), (self.name,)).fetchall():
            with connection.transaction():
                tables.run(
                    connection,
                    "sessions_restore_copied",
                    {"backfill": self.name, "place": place},
                    source=table,
                )
        with connection.transaction():
            connection.execute(sql("backfill_copies_forget"), (self.name,))
        text = f"{schema}.{name} is made again; its rights and policies are to be given again, and agent_chat_sessions keeps its sessions"
        return [
            CheckFinding(
                "warning", "rights", text, f"grant select, insert, update, delete on {schema}.{name} to …;"
            )
        ]
